//! Whether a launcher that wants to join fits the job. Pure.

use std::collections::BTreeMap;

use job::ExitCode;
use job::config::PER_MACHINE;
use serde_json::Value;

use super::message::Introduction;

/// Maximum number of differences of the configuration that are listed; further ones are counted.
const LISTED: usize = 5;

/// Why two launchers do not belong to one job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mismatch {
    /// Exit code of both launchers.
    pub exit_code: ExitCode,
    /// What differs, and where.
    pub text: String,
}

/// Compares node 0's introduction with that of a launcher that `joins`.
///
/// # Errors
/// [`Mismatch`] for the first difference, which names both nodes.
pub fn agree(leader: &Introduction, joins: &Introduction) -> Result<(), Mismatch> {
    let (here, there) = (name(leader), name(joins));
    let differ = |exit_code, what: &str, mine: &str, theirs: &str| {
        let text = format!("{what}: {mine} on {here}, {theirs} on {there}");
        Err(Mismatch { exit_code, text })
    };
    if leader.version != joins.version {
        let what = "the launchers' versions differ";
        return differ(ExitCode::Setup, what, &leader.version, &joins.version);
    }
    if leader.protocol != joins.protocol {
        let (mine, theirs) = (leader.protocol.to_string(), joins.protocol.to_string());
        let what = "the launchers have the same version but different protocols; build both \
                    from the same source";
        return differ(ExitCode::Setup, what, &mine, &theirs);
    }
    if leader.nodes != joins.nodes {
        let (mine, theirs) = (leader.nodes.to_string(), joins.nodes.to_string());
        return differ(ExitCode::Usage, "the numbers of nodes differ", &mine, &theirs);
    }
    if !(1..joins.nodes).contains(&joins.node_rank) {
        let text =
            format!("{there} tries to join {here}, which expects nodes 1 to {}", joins.nodes - 1);
        return Err(Mismatch { exit_code: ExitCode::Usage, text });
    }
    if leader.device != joins.device {
        let what = "the devices differ";
        return differ(ExitCode::Usage, what, &leader.device, &joins.device);
    }
    let differences = differences(&leader.config, &joins.config);
    if !differences.is_empty() {
        let listed: Vec<_> = differences
            .iter()
            .take(LISTED)
            .map(|(path, mine, theirs)| format!("{path} is {mine} on {here}, {theirs} on {there}"))
            .collect();
        let more = match differences.len().saturating_sub(LISTED) {
            0 => String::new(),
            more => format!("; and {more} more"),
        };
        let text = format!("the configurations differ: {}{more}", listed.join("; "));
        return Err(Mismatch { exit_code: ExitCode::Usage, text });
    }
    // A hash is empty where a doctor has no images.
    let hashes = [&leader.data_hash, &joins.data_hash];
    if hashes.iter().all(|hash| !hash.is_empty()) && hashes[0] != hashes[1] {
        let what = "the data sets differ (BLAKE3 of images and labels)";
        let short = |hash: &str| hash.chars().take(12).collect::<String>();
        let (mine, theirs) = (short(&leader.data_hash), short(&joins.data_hash));
        return differ(ExitCode::Data, what, &mine, &theirs);
    }
    Ok(())
}

/// Returns the name of a node in messages: `node 1 (host)`.
pub fn name(of: &Introduction) -> String {
    format!("node {} ({})", of.node_rank, of.host)
}

fn differences(mine: &Value, theirs: &Value) -> Vec<(String, String, String)> {
    let (mut left, mut right) = (BTreeMap::new(), BTreeMap::new());
    leaves("", mine, &mut left);
    leaves("", theirs, &mut right);
    let paths: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).collect();
    let shown = |of: &BTreeMap<String, String>, path: &str| {
        of.get(path).cloned().unwrap_or_else(|| "unset".to_owned())
    };
    paths
        .into_iter()
        .filter(|path| !PER_MACHINE.contains(&path.as_str()))
        .map(|path| (path.clone(), shown(&left, path), shown(&right, path)))
        .filter(|(_, mine, theirs)| mine != theirs)
        .collect()
}

fn leaves(path: &str, value: &Value, found: &mut BTreeMap<String, String>) {
    match value {
        Value::Object(members) => {
            for (key, member) in members {
                let dot = if path.is_empty() { "" } else { "." };
                leaves(&format!("{path}{dot}{key}"), member, found);
            }
        }
        other => _ = found.insert(path.to_owned(), other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn introduction(node_rank: usize) -> Introduction {
        Introduction {
            version: "1.0.0".to_owned(),
            protocol: 7,
            host: format!("n{node_rank}"),
            nodes: 3,
            node_rank,
            ranks: 2,
            device: "cpu".to_owned(),
            config: serde_json::json!({"train": {"seed": 0, "epochs": 2}, "data": {"root": "a"}}),
            data_hash: "aaaa".to_owned(),
            unix_seconds: 0.0,
        }
    }

    #[test]
    fn launchers_of_one_job_agree_wherever_their_files_lie() {
        let mut other = introduction(2);
        other.config["data"]["root"] = "b".into();
        other.ranks = 5;
        assert_eq!(agree(&introduction(0), &other), Ok(()));
    }

    #[test]
    fn a_launcher_that_says_no_protocol_is_of_another() {
        let mut said = serde_json::to_value(introduction(1)).unwrap();
        said.as_object_mut().unwrap().remove("protocol");
        let joins: Introduction = serde_json::from_value(said).unwrap();
        assert_eq!(agree(&introduction(0), &joins).unwrap_err().exit_code, ExitCode::Setup);
    }

    #[test]
    fn what_differs_is_said_with_both_sides() {
        type Case = (fn(&mut Introduction), ExitCode, &'static str);
        let cases: [Case; 7] = [
            (|it| it.version = "2.0.0".into(), ExitCode::Setup, "versions differ: 1.0.0 on"),
            (|it| it.protocol = 8, ExitCode::Setup, "the same source: 7 on node 0 (n0), 8 on"),
            (|it| it.nodes = 2, ExitCode::Usage, "numbers of nodes differ: 3 on node 0 (n0), 2 on"),
            (|it| it.node_rank = 3, ExitCode::Usage, "expects nodes 1 to 2"),
            (|it| it.device = "cuda".into(), ExitCode::Usage, "devices differ: cpu on"),
            (
                |it| it.config["train"]["seed"] = 7.into(),
                ExitCode::Usage,
                "train.seed is 0 on node 0 (n0), 7 on node 1 (n1)",
            ),
            (|it| it.data_hash = "bbbb".into(), ExitCode::Data, "aaaa on node 0 (n0), bbbb on"),
        ];
        for (change, exit_code, told) in cases {
            let mut other = introduction(1);
            change(&mut other);
            let mismatch = agree(&introduction(0), &other).unwrap_err();
            assert_eq!(mismatch.exit_code, exit_code, "{}", mismatch.text);
            assert!(mismatch.text.contains(told), "{}", mismatch.text);
        }
    }
}
