//! The README's configuration reference is what the program does.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use job::config::{self, Config};

#[test]
fn the_reference_in_the_readme_has_every_key_with_its_default() {
    let readme = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    let readme = std::fs::read_to_string(readme).unwrap();
    let reference = readme.split("```yaml").nth(1).and_then(|text| text.split("```").next());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("reference.yaml");
    std::fs::write(&path, reference.unwrap()).unwrap();
    assert_eq!(config::load(&path, &[]).unwrap(), Config::default());

    let keys = |yaml: &str| {
        let keys = yaml.lines().filter_map(|line| line.split_once(':').map(|(key, _)| key.trim()));
        keys.map(|key| key.trim_start_matches("# ").to_owned()).collect::<Vec<_>>()
    };
    let documented = keys(reference.unwrap());
    for key in keys(&config::to_yaml(&Config::default())) {
        assert!(documented.contains(&key), "{key} is not in the README");
    }
}
