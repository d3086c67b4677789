use std::path::PathBuf;

use super::*;
use crate::confusion::Confusion;
use crate::tally::Tally;
use figure::Shape;

/// Returns a report in which 9 of 10 images of each class are right and one is taken for the next class.
fn report(classes: usize) -> Report {
    let mut counts = vec![0; classes * classes];
    for class in 0..classes {
        counts[class * classes + class] = 9;
        counts[class * classes + (class + 1) % classes] = 1;
    }
    let images = 10.0 * classes as f64;
    Report {
        checkpoint: PathBuf::from("run/checkpoints/epoch-0002"),
        step: 78,
        data_set: Dataset::Cifar10,
        split: "test",
        classes: (0..classes).map(|class| format!("class-{class}")).collect(),
        ranks: 2,
        tally: Tally { loss_sum: images * 0.5, correct: images * 0.9, images },
        confusion: Confusion::new(classes, counts),
    }
}

#[test]
fn a_report_says_accuracy_loss_classes_and_mistakes() {
    let text = report(10).to_text();
    for line in [
        "images      100, test of cifar10",
        "accuracy    0.9000 (90 correct)",
        "loss        0.5000",
        "class-3      10    0.9000  class-4 (1)",
        "class-9        1        0        0        0        0        0        0        0        0        9",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    let many = report(100).to_text();
    assert!(many.contains("the whole matrix: --out DIR"), "{many}");
    assert!(many.lines().all(|line| line.len() < 100), "{many}");
}

#[test]
fn json_and_csv_have_the_whole_matrix() {
    let json = report(3).to_json();
    assert_eq!(json["accuracy"], 0.9);
    assert_eq!(json["classes"][2]["correct"], 9);
    assert_eq!(json["confusion"], serde_json::json!([[9, 1, 0], [0, 9, 1], [1, 0, 9]]));
    let mut report = report(2);
    report.classes[0] = "a \"b\", c".to_owned();
    let csv = "class,\"a \"\"b\"\", c\",\"class-1\"\n\"a \"\"b\"\", c\",9,1\n\"class-1\",1,9\n";
    assert_eq!(report.to_csv(), csv);
}

#[test]
fn the_picture_has_a_cell_for_each_pair_and_nothing_outside_of_it() {
    for classes in [1, 2, 10, 100] {
        let picture = picture::draw(&report(classes));
        let inside = |(x, y): (f32, f32)| {
            (0.0..=picture.width + 0.01).contains(&x) && (0.0..=picture.height + 0.01).contains(&y)
        };
        let mut cells = 0;
        for shape in &picture.shapes {
            let within = match shape {
                Shape::Rectangle { at, size, .. } => {
                    cells += 1;
                    inside(*at) && inside((at.0 + size.0, at.1 + size.1))
                }
                Shape::Line { points, .. }
                | Shape::Dashes { points, .. }
                | Shape::Area { points, .. } => points.iter().all(|point| inside(*point)),
                Shape::Dot { at, .. } | Shape::Text { at, .. } | Shape::Image { at, .. } => {
                    inside(*at)
                }
            };
            assert!(within, "{shape:?} with {classes} classes");
        }
        assert_eq!(cells, classes * classes);
    }
}

#[test]
fn a_network_is_only_measured_on_images_that_it_can_take() {
    let synthetic = || {
        let data = job::config::Data {
            dataset: Dataset::Synthetic,
            train_images: Some(1),
            test_images: Some(1),
            ..job::config::Data::default()
        };
        job::dataset::load(&job::dataset::Source::Synthetic { because: None }, &data, 0).unwrap()
    };
    let trained = synthetic().describe();
    check_fit(&synthetic(), &trained).unwrap();

    let mut folder = DataSet { name: Dataset::ImageFolder, ..synthetic() };
    folder.train.shape = [3, 64, 64];
    let error = check_fit(&folder, &trained).unwrap_err();
    assert_eq!(error.exit_code(), job::ExitCode::Usage);
    let error = error.to_string();
    assert!(error.contains("are 3x32x32, and those of image_folder are 3x64x64"), "{error}");
    assert!(error.ends_with("set data.image_size=32"), "{error}");

    let fewer = DataSet { classes: vec!["one".to_owned()], ..synthetic() };
    let error = check_fit(&fewer, &trained).unwrap_err().to_string();
    assert!(error.contains("which has 10 classes, and synthetic has 1"), "{error}");
}
