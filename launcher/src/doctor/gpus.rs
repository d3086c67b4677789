//! Driver, libtorch and NCCL fit each other, and GPUs see each other. Written against the documentation of
//! `nvidia-smi`; it has not seen a machine with several GPUs yet.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::Finding;
use crate::about::About;

/// A driver that does not answer for this long is broken.
const NVIDIA_SMI_TIMEOUT: Duration = Duration::from_secs(20);

/// Looks at the `ranks` GPUs that a run would use. `about`: what the trainer says of them.
pub async fn examine(about: Option<&About>, ranks: usize) -> Vec<Finding> {
    let mut findings = vec![driver().await];
    if let Some(about) = about {
        findings.extend(libraries(about, ranks));
    }
    if ranks > 1
        && let Some(matrix) = nvidia_smi(&["topo", "-p2p", "r"]).await
    {
        findings.push(peers(&matrix));
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
            "install the driver's tools, or look at `dmesg` for its errors",
        ),
    }
}

fn libraries(about: &About, ranks: usize) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(gpus) = &about.gpus {
        findings.push(match &gpus.problem {
            Some(problem) => Finding::broken(
                "libtorch",
                problem,
                "`make setup` on this machine gets libtorch for its GPU; an older driver needs an \
                 older CUDA",
            ),
            None if gpus.count < ranks => Finding::broken(
                "libtorch",
                format!("sees {} GPUs, the run wants {ranks}", gpus.count),
                "CUDA_VISIBLE_DEVICES, or the driver's version: `nvidia-smi`",
            ),
            None => Finding::fine("libtorch", format!("sees {} GPUs", gpus.count)),
        });
    }
    if let Some(nccl) = &about.nccl {
        findings.push(match (&nccl.version, &nccl.problem) {
            (Some(version), _) => Finding::fine("NCCL", format!("version {version}")),
            (None, problem) => Finding::broken(
                "NCCL",
                problem.as_deref().unwrap_or("is not found"),
                "`make setup` gets it with libtorch; LD_LIBRARY_PATH must name its folder",
            ),
        });
    }
    findings
}

/// `nvidia-smi topo -p2p r`: a row a GPU, `OK` where it reads another's memory.
fn peers(matrix: &str) -> Finding {
    let rows = matrix.lines().map(str::trim).filter(|line| line.starts_with("GPU"));
    // The header names GPUs only.
    let states =
        rows.flat_map(|row| row.split_whitespace().skip(1)).filter(|it| !it.starts_with("GPU"));
    let apart = states.filter(|state| !matches!(*state, "OK" | "X")).count();
    match apart {
        0 => Finding::fine("GPU to GPU", "all read each other's memory"),
        _ => Finding::warning(
            "GPU to GPU",
            format!("{apart} pairs do not read each other's memory: gradients go through the host"),
            "`nvidia-smi topo -p2p r`; virtual machines and ACS often withhold it",
        ),
    }
}

async fn nvidia_smi(args: &[&str]) -> Option<String> {
    let mut command = Command::new("nvidia-smi");
    command.args(args).stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(NVIDIA_SMI_TIMEOUT, command.output()).await.ok()?.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Severity;

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
        assert!(finding.seen.starts_with("2 pairs"), "{}", finding.seen);
    }
}
