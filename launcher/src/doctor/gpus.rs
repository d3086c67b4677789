//! Checks that driver, libtorch and NCCL fit each other, and that GPUs can read each other's memory. Written
//! against the documentation of `nvidia-smi`; not yet tried on a machine with several GPUs.

use job::counted;

use super::finding::Finding;
use crate::about::About;
use crate::gpus::nvidia_smi;

/// First version (major, minor) of NCCL with `ncclAvg` and `ncclBfloat16`.
const MIN_NCCL_BF16_AVG: (u32, u32) = (2, 10);

/// First version (major, minor) of NCCL with non-blocking communicators.
const MIN_NCCL_NONBLOCKING: (u32, u32) = (2, 14);

const GET_NCCL: &str =
    "`make setup` installs it with libtorch; LD_LIBRARY_PATH can name another one's folder";

/// Checks the GPUs that a run with `ranks` ranks on this node would use: one per rank, unless `shares_gpus`.
/// `about` is what the trainer reports about them; without it, libtorch and NCCL are not checked.
pub async fn examine(about: Option<&About>, ranks: usize, shares_gpus: bool) -> Vec<Finding> {
    let mut findings = vec![driver().await];
    if let Some(about) = about {
        findings.extend(libraries(about, ranks, shares_gpus));
    }
    if ranks > 1 {
        findings.push(match nvidia_smi(&["topo", "-p2p", "r"]).await {
            Some(matrix) => peers(&matrix),
            None => Finding::warning(
                "GPU to GPU",
                "`nvidia-smi topo -p2p r` failed",
                "install tools of the driver's version; the all-reduce below shows the real speed",
            ),
        });
    }
    findings
}

async fn driver() -> Finding {
    let fields = ["--query-gpu=driver_version,name", "--format=csv,noheader"];
    match nvidia_smi(&fields).await {
        Some(list) => Finding::fine("driver", list.lines().next().unwrap_or_default()),
        None => Finding::warning(
            "driver",
            "nvidia-smi does not answer",
            "install the driver's tools, or check `dmesg` for driver errors",
        ),
    }
}

fn libraries(about: &About, ranks: usize, shares_gpus: bool) -> Vec<Finding> {
    let wanted = if shares_gpus { 1 } else { ranks };
    let mut findings = Vec::new();
    if let Some(gpus) = &about.gpus {
        findings.push(match &gpus.problem {
            Some(problem) => Finding::broken(
                "libtorch",
                problem,
                "`make setup` on this machine installs libtorch for its GPU; an older driver needs \
                 an older CUDA",
            ),
            None if gpus.count < wanted => Finding::broken(
                "libtorch",
                format!("sees {}, the run needs {wanted}", counted(gpus.count, "GPU")),
                "check CUDA_VISIBLE_DEVICES and, with `nvidia-smi`, the driver's version",
            ),
            None => Finding::fine("libtorch", format!("sees {}", counted(gpus.count, "GPU"))),
        });
    }
    if let Some(nccl) = &about.nccl {
        findings.push(match (&nccl.version, &nccl.problem) {
            (Some(version), _) => library(version),
            (None, problem) => {
                Finding::broken("NCCL", problem.as_deref().unwrap_or("is not found"), GET_NCCL)
            }
        });
    }
    findings
}

fn library(version: &str) -> Finding {
    let mut numbers = version.split('.').map_while(|number| number.parse::<u32>().ok());
    let number = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let seen = format!("version {version}");
    if number < MIN_NCCL_BF16_AVG {
        Finding::broken(
            "NCCL",
            format!("{seen} cannot average bf16, which needs 2.10 or newer"),
            GET_NCCL,
        )
    } else if number < MIN_NCCL_NONBLOCKING {
        let seen = format!("{seen}: a lost rank is noticed late; with 2.14 or newer, at once");
        Finding::warning("NCCL", seen, GET_NCCL)
    } else {
        Finding::fine("NCCL", seen)
    }
}

/// Judges the output of `nvidia-smi topo -p2p r`: one row per GPU, with `OK` where it can read another's
/// memory.
fn peers(matrix: &str) -> Finding {
    let rows = matrix.lines().map(str::trim).filter(|line| line.starts_with("GPU"));
    // The header row consists of names of GPUs only.
    let states =
        rows.flat_map(|row| row.split_whitespace().skip(1)).filter(|it| !it.starts_with("GPU"));
    // Each pair has two cells.
    let cells = states.filter(|state| !matches!(*state, "OK" | "X")).count();
    match cells.div_ceil(2) {
        0 => Finding::fine("GPU to GPU", "all read each other's memory"),
        pairs => Finding::warning(
            "GPU to GPU",
            format!(
                "{} without access to each other's memory: gradients go through the host",
                counted(pairs, "pair")
            ),
            "see `nvidia-smi topo -p2p r`; virtual machines and PCIe ACS often prevent it",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::Severity;

    #[test]
    fn an_old_nccl_is_told_from_one_that_is_too_old() {
        let severity = |version| library(version).severity;
        assert_eq!(severity("2.9.9"), Severity::Broken);
        assert_eq!(severity("2.13.4"), Severity::Warning);
        assert_eq!(severity("2.28.3"), Severity::Fine);
    }

    #[test]
    fn ranks_that_share_a_gpu_need_no_more_than_it() {
        let gpus = Some(crate::about::Gpus { count: 1, problem: None });
        let about = About { version: String::new(), mpirun: None, gpus, nccl: None };
        let severity = |shares_gpus| libraries(&about, 4, shares_gpus)[0].severity;
        assert_eq!(severity(false), Severity::Broken);
        assert_eq!(severity(true), Severity::Fine);
    }

    #[test]
    fn gpus_that_do_not_see_each_other_are_counted() {
        let matrix = |state: &str| {
            format!(
                " \tGPU0\tGPU1\t\n GPU0\tX\t{state}\t\n GPU1\t{state}\tX\t\n\nLegend:\n  OK = fine\n"
            )
        };
        assert_eq!(peers(&matrix("OK")).severity, Severity::Fine);
        let finding = peers(&matrix("CNS"));
        assert_eq!(finding.severity, Severity::Warning);
        assert!(finding.seen.starts_with("1 pair "), "{}", finding.seen);
    }
}
