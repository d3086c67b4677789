use super::*;
use crate::ExitCode;

fn config(seed: u64) -> Config {
    let mut config = Config::default();
    config.train.seed = seed;
    config
}

#[test]
fn the_default_path_is_the_configs_name_and_the_utc_time() {
    let now = time::macros::datetime!(2025-03-04 01:02:03 +2);
    assert_eq!(
        RunDir::default_path(Path::new("configs/resnet18.yaml"), now),
        Path::new("runs/resnet18-20250303T230203Z")
    );
}

#[test]
fn resume_is_read_from_a_command_line() {
    assert_eq!("auto".parse(), Ok(Resume::Auto));
    assert_eq!("never".parse(), Ok(Resume::Never));
    assert_eq!("runs/a".parse(), Ok(Resume::From(PathBuf::from("runs/a"))));
    assert!("".parse::<Resume>().is_err());
}

#[test]
fn a_new_directory_gets_its_folders_and_its_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("runs/a");
    for resume in [Resume::Never, Resume::Auto] {
        let run_dir = RunDir::open(&root, &config(3), &resume).unwrap();
        assert!(run_dir.holds_run());
        assert!(run_dir.checkpoints_dir().is_dir());
        assert_eq!(run_dir.log_path(1), root.join("logs/rank-1.log"));
        assert_eq!(config::load(&run_dir.config_path(), &[]).unwrap(), config(3));
    }
}

#[test]
fn a_run_goes_on_when_what_shapes_training_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    drop(RunDir::open(folder.path(), &config(3), &Resume::Auto).unwrap());
    let mut longer = config(3);
    longer.train.epochs = 99;
    let run_dir = RunDir::open(folder.path(), &longer, &Resume::Auto).unwrap();
    assert_eq!(config::load(&run_dir.config_path(), &[]).unwrap(), longer);
}

#[test]
fn another_configuration_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    drop(RunDir::open(folder.path(), &config(3), &Resume::Auto).unwrap());
    fs::write(RunDir::at(folder.path()).metrics_path(), "a record\n").unwrap();
    let error = RunDir::open(folder.path(), &config(4), &Resume::Auto).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Usage);
    assert!(error.to_string().contains("train.seed: 3 before, 4 now"), "{error}");
    let kept = config::load(&RunDir::at(folder.path()).config_path(), &[]).unwrap();
    assert_eq!(kept, config(3));
}

#[test]
fn a_run_that_failed_before_its_first_record_may_be_given_another_configuration() {
    let folder = tempfile::tempdir().unwrap();
    drop(RunDir::open(folder.path(), &config(3), &Resume::Auto).unwrap());
    drop(RunDir::open(folder.path(), &config(4), &Resume::Auto).unwrap());
    fs::create_dir(RunDir::at(folder.path()).checkpoints_dir().join("step-0000001")).unwrap();
    RunDir::open(folder.path(), &config(5), &Resume::Auto).unwrap_err();
}

#[test]
fn a_run_is_not_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    drop(RunDir::open(folder.path(), &config(3), &Resume::Auto).unwrap());
    for resume in [Resume::Never, Resume::From(folder.path().to_path_buf())] {
        let error = RunDir::open(folder.path(), &config(3), &resume).unwrap_err();
        assert!(matches!(error, RunDirError::HoldsRun { .. }), "{error}");
    }
    let missing = Resume::From(folder.path().join("missing"));
    let error = RunDir::open(&folder.path().join("b"), &config(3), &missing).unwrap_err();
    assert!(matches!(error, RunDirError::NoSource { .. }), "{error}");
    assert!(!folder.path().join("b").exists());
}

#[test]
fn a_run_that_began_from_another_goes_on_by_the_same_command_or_by_auto() {
    let folder = tempfile::tempdir().unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| folder.path().join(name));
    for other in [&a, &c] {
        drop(RunDir::open(other, &config(3), &Resume::Auto).unwrap());
    }
    let from = Resume::From(a.clone());
    for resume in [&from, &from, &Resume::Auto] {
        let run_dir = RunDir::open(&b, &config(3), resume).unwrap();
        assert_eq!(run_dir.origin(), Some(a.clone()));
    }
    let error = RunDir::open(&b, &config(3), &Resume::From(c.clone())).unwrap_err();
    assert!(matches!(error, RunDirError::HoldsRun { .. }), "{error}");
    fs::write(RunDir::at(&b).metrics_path(), "a record\n").unwrap();
    let error = RunDir::open(&b, &config(4), &from).unwrap_err();
    assert!(matches!(error, RunDirError::Different { .. }), "{error}");
    assert_eq!(RunDir::at(&c).origin(), None);

    // Once the run has checkpoints of its own, its origin may be removed.
    fs::remove_dir_all(&a).unwrap();
    let error = RunDir::open(&b, &config(3), &from).unwrap_err();
    assert!(matches!(error, RunDirError::NoSource { .. }), "{error}");
    fs::create_dir(RunDir::at(&b).checkpoints_dir().join("epoch-0001")).unwrap();
    drop(RunDir::open(&b, &config(3), &from).unwrap());
}

#[test]
fn two_at_once_are_refused_and_the_holder_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let first = RunDir::open(folder.path(), &config(3), &Resume::Auto).unwrap();
    let error = RunDir::open(folder.path(), &config(3), &Resume::Auto).unwrap_err().to_string();
    assert!(error.contains(&format!("process {} on ", std::process::id())), "{error}");
    assert!(error.contains(".lock"), "{error}");
    drop(first);
    RunDir::open(folder.path(), &config(3), &Resume::Auto).unwrap();
}

#[test]
fn a_directory_that_cannot_be_made_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = RunDir::open(&file, &config(3), &Resume::Auto).unwrap_err();
    assert_eq!(error.exit_code(), ExitCode::Setup);
    assert!(error.to_string().contains("/file"), "{error}");
}
