use job::Config;
use job::metrics::{EpochRecord, TestRecord};
use serde_yaml::Value;

use super::super::expand::{self, Override};
use super::super::planned::State;
use super::super::results::{Reached, Results};
use super::*;

/// A run of 25 steps, 10 per epoch, whose test errors are 90 % and then `errors`.
fn run(name: &str, seed: u64, errors: [f64; 2]) -> Planned {
    let epoch = |(index, error): (usize, &f64)| EpochRecord {
        epoch: index + 1,
        train_loss: 1.0,
        train_accuracy: 0.5,
        test: Some(TestRecord { test_loss: 1.0, test_accuracy: 1.0 - error }),
        ema: None,
        seconds: 1.0,
        images_per_s: None,
    };
    let epochs = [0.9, errors[0], errors[1]].iter().enumerate().map(epoch).collect();
    let value = Value::from(name);
    let overrides = vec![Override { key: "model.name".to_owned(), value, place: Vec::new() }];
    let (group, config) = (name.to_owned(), "c.yaml".into());
    Planned {
        spec: expand::RunSpec {
            name: format!("{name}-seed{seed}"),
            group,
            seed,
            config,
            overrides,
        },
        config: Config::default(),
        root: "run".into(),
        steps: 25,
        steps_per_epoch: 10,
        epochs: 3,
        global_batch_size: 128,
        parameters: 1000,
        multiply_adds: 2000,
        results: Results { epochs, end: Some(Reached { step: 25, world_size: 1 }) },
        state: State::Done,
        falls_back: false,
    }
}

fn xy(points: &[Point]) -> Vec<(f64, f64)> {
    points.iter().map(|point| (point.x, point.y.round())).collect()
}

#[test]
fn runs_of_a_line_are_averaged_step_by_step() {
    let (a, b) = (run("a", 0, [0.5, 0.2]), run("a", 1, [0.3, 0.4]));
    let points = points(Metric::TestError, &X::Step, &[&a, &b]);
    assert_eq!(
        xy(&points),
        [(10.0, 90.0), (20.0, 40.0), (25.0, 30.0)],
        "the last epoch is cut short"
    );
    let std = 200.0f64.sqrt();
    let (low, high) = points[1].range;
    assert!((low - (40.0 - std)).abs() < 1e-9 && (high - (40.0 + std)).abs() < 1e-9);
}

#[test]
fn a_line_from_run_to_run_has_what_each_had_at_its_end() {
    let (a, mut b) = (run("a", 0, [0.5, 0.2]), run("b", 0, [0.3, 0.4]));
    b.global_batch_size = 64;
    let points = points(Metric::TestAccuracy, &X::GlobalBatchSize, &[&a, &b]);
    assert_eq!(xy(&points), [(64.0, 60.0), (128.0, 80.0)]);
    let rate = X::Key("optimizer.lr".to_owned());
    assert_eq!(xy(&self::points(Metric::TestAccuracy, &rate, &[&a])), [(0.001, 80.0)]);
}

#[test]
fn a_figure_says_of_how_many_runs_a_point_is() {
    let entry = "{name: f, x: global_batch_size, y: [test_error], group_by: []}";
    let entry: FigureEntry = serde_yaml::from_str(entry).unwrap();
    let mut runs = [run("a", 0, [0.2, 0.1]), run("a", 1, [0.1, 0.1]), run("a", 0, [0.1, 0.1])];
    runs[2].global_batch_size = 64;
    let of = |runs: &[Planned]| subtitle(&entry, &X::GlobalBatchSize, &groups(&entry, runs));
    assert_eq!(of(&runs[1..]), "test error, one run each");
    assert_eq!(of(&runs), "test error, mean and standard deviation of 1 to 2 runs");
    assert_eq!(of(&runs[..2]), "test error, mean and standard deviation of 2 runs");
}

#[test]
fn a_line_is_of_runs_that_agree_wherever_their_value_is_from() {
    let entry = "{name: f, x: epoch, y: [test_error], group_by: [optimizer.name]}";
    let entry: FigureEntry = serde_yaml::from_str(entry).unwrap();
    // By default the optimizer is adamw.
    let (of_config, mut set, mut same) =
        (run("a", 0, [0.2, 0.1]), run("b", 0, [0.1, 0.1]), run("c", 0, [0.1, 0.1]));
    for (run, value) in [(&mut set, "sgd"), (&mut same, "adamw")] {
        let (key, value) = ("optimizer.name".to_owned(), Value::from(value));
        run.spec.overrides.push(Override { key, value, place: Vec::new() });
    }
    let runs = [of_config, set, same];
    let of = groups(&entry, &runs).into_iter().map(|group| (group.name, group.runs.len()));
    assert_eq!(of.collect::<Vec<_>>(), [("adamw".to_owned(), 2), ("sgd".to_owned(), 1)]);
}

#[test]
fn panels_show_their_runs_and_where_networks_start_does_not_flatten_the_rest() {
    let entry: FigureEntry = serde_yaml::from_str(
        "{name: f, x: step, y: [test_error, train_error], panels: [
            {title: left, only: {model.name: a}}, {title: right, only: {model.name: [b, c]}}]}",
    )
    .unwrap();
    let mut runs = [run("a", 0, [0.2, 0.1]), run("b", 0, [0.1, 0.1])];
    runs.iter_mut().for_each(|run| run.steps_per_epoch = 1);
    runs.iter_mut().for_each(|run| run.results.epochs[2].epoch = 20);
    let groups = groups(&entry, &runs);
    let of = |panel: usize| lines(&entry, &X::Step, &entry.panels[panel], &groups);
    let names = |lines: &[Line]| lines.iter().map(|line| line.name.clone()).collect::<Vec<_>>();
    assert_eq!((names(&of(0)), names(&of(1))), (vec!["a".into(); 2], vec!["b".into(); 2]));
    assert_eq!(of(0)[0].stroke, Stroke::Dashed);
    assert_eq!(of(0)[1].stroke, Stroke::Solid);
    let y = y_axis(Quantity::Error, &X::Step, &[of(0)]);
    assert_eq!(y, YAxis::FromZero { to: Some(50.0 * 1.08) }, "of the dashed training error");
    assert_eq!(xy(&cut(of(0), y)[1].points), [(2.0, 20.0), (20.0, 10.0)]);
    let svg = draw("t", &entry, &X::Step, &runs).to_svg();
    assert!(svg.contains("left: error, %") && svg.contains("one run each"), "{svg}");
}
