//! Result of a check.

use std::fmt;

use serde::Serialize;

/// How bad a finding is.
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

/// Result of a check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad the finding is.
    pub severity: Severity,
    /// Name of what was checked, such as `disk space`.
    pub subject: &'static str,
    /// What the check saw, for the user.
    pub seen: String,
    /// What the user can do about it; empty if `severity` is [`Severity::Fine`].
    pub remedy: String,
}

impl Finding {
    /// Creates a finding of [`Severity::Fine`].
    pub fn fine(subject: &'static str, seen: impl Into<String>) -> Self {
        Self { severity: Severity::Fine, subject, seen: seen.into(), remedy: String::new() }
    }

    /// Creates a finding of [`Severity::Warning`].
    pub fn warning(
        subject: &'static str,
        seen: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (seen, remedy) = (seen.into(), remedy.into());
        Self { severity: Severity::Warning, subject, seen, remedy }
    }

    /// Creates a finding of [`Severity::Broken`].
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
