//! How a launcher or a trainer ends.

/// The documented exit codes. Scripts rely on them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// Trained to the end.
    Done = 0,
    /// A bad command line or configuration.
    Usage = 2,
    /// The data set is missing or bad.
    Data = 3,
    /// A rank failed.
    RankFailed = 4,
    /// A deadline passed.
    Hang = 5,
    /// The loss or a gradient is not finite.
    NotFinite = 6,
    /// Out of memory.
    OutOfMemory = 7,
    /// Stopped by a signal after saving a checkpoint; the same command goes on.
    Stopped = 8,
    /// Set-up cannot work here: no GPU, no NCCL, versions that do not fit.
    Setup = 9,
}

impl ExitCode {
    /// The code with this number.
    pub fn from_code(code: u8) -> Option<Self> {
        const ALL: [ExitCode; 9] = [
            ExitCode::Done,
            ExitCode::Usage,
            ExitCode::Data,
            ExitCode::RankFailed,
            ExitCode::Hang,
            ExitCode::NotFinite,
            ExitCode::OutOfMemory,
            ExitCode::Stopped,
            ExitCode::Setup,
        ];
        ALL.into_iter().find(|known| *known as u8 == code)
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}
