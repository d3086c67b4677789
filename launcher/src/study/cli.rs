//! The command line of `launcher study`.

use std::path::PathBuf;

use clap::Args;

use crate::cli::at_least_one;
use crate::console::Style;
use crate::plan::Request;

/// Runs every configuration of a study, several at a time if there is room, and draws its figures.
#[derive(Debug, Args)]
#[command(
    after_help = "Finished runs are skipped, and interrupted ones are resumed: after Ctrl-C or a failure, \
                        give the same command again.\n\nExit codes: 0 all runs are done; 8 stopped by a \
                        signal after saving; else that of the runs that failed, 4 where they differ."
)]
pub struct StudyCli {
    /// The study, a YAML file, such as studies/degradation.yaml
    #[arg(value_name = "FILE")]
    pub file: PathBuf,

    /// Number of GPUs for all runs together [default: all visible ones]
    #[arg(long, value_name = "N", value_parser = at_least_one, conflicts_with = "cpu")]
    pub gpus: Option<usize>,

    /// Run on the CPU, with at most N ranks at a time over all runs
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub cpu: Option<usize>,

    /// Number of runs at a time [default: as many as there is room for]
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub jobs: Option<usize>,

    /// Run the study in its reduced size, for a machine with two cores
    #[arg(long)]
    pub reduced: bool,

    /// Directory of runs, tables and figures [default: runs/study-NAME, or runs/study-NAME-reduced]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,

    /// Print the runs and exit; writes nothing, and needs no data except for image_folder
    #[arg(long)]
    pub dry_run: bool,

    /// Write tables and figures of the runs so far, and run nothing; needs no data
    #[arg(long, conflicts_with = "dry_run")]
    pub draw_only: bool,

    /// Print only warnings and errors
    #[arg(long)]
    pub quiet: bool,
}

impl StudyCli {
    /// Returns which devices the command line asks for.
    pub fn request(&self) -> Request {
        Request::of(self.cpu, self.gpus)
    }

    /// Returns how much is printed.
    pub const fn style(&self) -> Style {
        if self.quiet { Style::Quiet } else { Style::Pretty }
    }

    /// Returns the folder for runs, tables and figures.
    pub fn out(&self) -> PathBuf {
        let stem = self.file.file_stem().unwrap_or_default().to_string_lossy();
        let size = if self.reduced { "-reduced" } else { "" };
        self.out
            .clone()
            .unwrap_or_else(|| PathBuf::from("runs").join(format!("study-{stem}{size}")))
    }
}
