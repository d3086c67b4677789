//! What a check found.

use std::fmt;

use serde::Serialize;

/// How bad something is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// As it should be.
    Fine,
    /// A run works, but not as well as it could.
    Warning,
    /// A run cannot work.
    Broken,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad it is.
    pub severity: Severity,
    /// What was looked at.
    pub subject: &'static str,
    /// What was seen.
    pub seen: String,
    /// What to do; empty where all is fine.
    pub remedy: String,
}

impl Finding {
    /// As it should be.
    pub fn fine(subject: &'static str, seen: impl Into<String>) -> Self {
        Self { severity: Severity::Fine, subject, seen: seen.into(), remedy: String::new() }
    }

    /// Not as good as it could be.
    pub fn warning(
        subject: &'static str,
        seen: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (seen, remedy) = (seen.into(), remedy.into());
        Self { severity: Severity::Warning, subject, seen, remedy }
    }

    /// A run cannot work.
    pub fn broken(
        subject: &'static str,
        seen: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { severity: Severity::Broken, ..Self::warning(subject, seen, remedy) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mark = match self.severity {
            Severity::Fine => "ok",
            Severity::Warning => "warning",
            Severity::Broken => "BROKEN",
        };
        write!(f, "{mark:<8} {:<16} {}", self.subject, self.seen)?;
        if !self.remedy.is_empty() {
            write!(f, "\n{:<25} -> {}", "", self.remedy)?;
        }
        Ok(())
    }
}
