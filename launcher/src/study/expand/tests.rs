use super::*;

fn study(text: &str) -> StudyFile {
    serde_yaml::from_str(&format!("title: t\nconfig: c.yaml\n{text}")).unwrap()
}

fn names(expanded: &Expanded) -> Vec<&str> {
    expanded.runs.iter().map(|spec| spec.name.as_str()).collect()
}

fn arguments(spec: &RunSpec) -> Vec<String> {
    spec.overrides.iter().map(Override::argument).collect()
}

const GRID: &str = "
seeds: [0, 7]
set: {train.epochs: 3}
grid:
  model.name: [resnet20, plain20]
  optimizer.lr: [0.1, 1e-2]
reduced:
  ranks: 2
  seeds: [1]
  set: {train.epochs: 1, data.augment: [crop, flip]}
  grid: {optimizer.lr: [0.5]}
";

#[test]
fn a_grid_is_every_combination_seed_by_seed() {
    let expanded = expand(&study(GRID), false).unwrap();
    assert_eq!(
        names(&expanded)[..5],
        [
            "resnet20-lr0.1-seed0",
            "resnet20-lr0.01-seed0",
            "plain20-lr0.1-seed0",
            "plain20-lr0.01-seed0",
            "resnet20-lr0.1-seed7",
        ]
    );
    assert_eq!((expanded.ranks, expanded.runs.len()), (1, 8));
    let last = expanded.runs.last().unwrap();
    assert_eq!((last.group.as_str(), last.seed), ("plain20-lr0.01", 7));
    let expected = ["train.epochs=3", "model.name=plain20", "optimizer.lr=0.01", "train.seed=7"];
    assert_eq!(arguments(last), expected);
    assert_eq!(last.value("model.name"), Some(&"plain20".into()));
}

#[test]
fn the_reduced_size_changes_what_it_names_and_keeps_the_rest() {
    let expanded = expand(&study(GRID), true).unwrap();
    assert_eq!(names(&expanded), ["resnet20-lr0.5-seed1", "plain20-lr0.5-seed1"]);
    assert_eq!(expanded.ranks, 2);
    let expected = [
        "train.epochs=3",
        "train.epochs=1",
        "data.augment=[crop, flip]",
        "model.name=resnet20",
        "optimizer.lr=0.5",
        "train.seed=1",
    ];
    assert_eq!(arguments(&expanded.runs[0]), expected);
}

#[test]
fn listed_runs_have_their_own_names_and_configurations() {
    let text = "runs: [{name: a, config: a.yaml}, {name: b c, set: {train.epochs: 2}}]";
    let expanded = expand(&study(text), false).unwrap();
    assert_eq!(names(&expanded), ["a-seed0", "bc-seed0"]);
    let configs: Vec<_> = expanded.runs.iter().map(|spec| spec.config.to_str()).collect();
    assert_eq!(configs, [Some("a.yaml"), Some("c.yaml")]);
    assert_eq!(arguments(&expanded.runs[1]), ["train.epochs=2", "train.seed=0"]);
}

#[test]
fn a_study_of_nothing_but_seeds_is_one() {
    let expanded = expand(&study("seeds: [3, 4]"), false).unwrap();
    assert_eq!(names(&expanded), ["run-seed3", "run-seed4"]);
}

#[test]
fn what_cannot_be_run_is_named() {
    for (text, place, problem) in [
        ("seeds: []", "seeds", "at least one"),
        ("ranks: 0", "ranks", "at least one"),
        ("grid: {optimizer.lr: 0.1}", "grid optimizer.lr", "expected a list"),
        ("grid: {optimizer.lr: []}", "grid optimizer.lr", "leaves nothing"),
        ("grid: {optimizer.lr: [0.1, 0.1]}", "grid", "two runs are called lr0.1-seed0"),
        ("runs: [{name: a}, {name: a}]", "runs", "two runs are called a-seed0"),
        ("set: {train.seed: 1}", "set train.seed", "the study's `seeds`"),
        ("set: {train: {epochs: 1}}", "set train", "a section"),
        ("set: {1: 2}", "set", "expected a dotted key"),
    ] {
        let invalid = expand(&study(text), false).unwrap_err();
        assert_eq!(invalid.place.join(" "), place, "{text}");
        assert!(invalid.problem.contains(problem), "{text}: {}", invalid.problem);
    }
}
