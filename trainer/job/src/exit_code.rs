//! Exit codes of launcher and trainer.

/// The documented exit codes, on which scripts rely. [`meaning`](Self::meaning) says what each one means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum ExitCode {
    Done = 0,
    Usage = 2,
    Data = 3,
    RankFailed = 4,
    Hang = 5,
    NotFinite = 6,
    OutOfMemory = 7,
    Stopped = 8,
    Setup = 9,
}

impl ExitCode {
    /// All exit codes, by number.
    pub const ALL: [Self; 9] = [
        Self::Done,
        Self::Usage,
        Self::Data,
        Self::RankFailed,
        Self::Hang,
        Self::NotFinite,
        Self::OutOfMemory,
        Self::Stopped,
        Self::Setup,
    ];

    /// Returns the exit code with this number; `None` if there is none.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|known| *known as u8 == code)
    }

    /// Returns the meaning of the code, for people.
    pub const fn meaning(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Usage => "bad command line or configuration",
            Self::Data => "data missing or bad",
            Self::RankFailed => "a rank failed",
            Self::Hang => "hang: a deadline passed",
            Self::NotFinite => "loss or gradient not finite",
            Self::OutOfMemory => "out of memory",
            Self::Stopped => "stopped by a signal",
            Self::Setup => "set-up cannot work here",
        }
    }

    /// Returns all codes and their meanings on one line, for `--help`.
    pub fn help() -> String {
        let each = Self::ALL.map(|code| format!("{} {}", code as u8, code.meaning()));
        format!("Exit codes: {}", each.join("; "))
    }
}

impl From<ExitCode> for std::process::ExitCode {
    fn from(code: ExitCode) -> Self {
        Self::from(code as u8)
    }
}
