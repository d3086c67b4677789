//! How a launcher or a trainer ends.

/// The documented exit codes. Scripts rely on them. What each means says [`meaning`](Self::meaning).
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
    /// Every one of them, by number.
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

    /// The code with this number.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|known| *known as u8 == code)
    }

    /// What it means, for people.
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

    /// All of them in a line, for `--help`.
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
