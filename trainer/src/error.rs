//! The errors that can end a rank, and their exit codes.

use std::any::Any;
use std::borrow::Cow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use comm::{Blame, CommError};
use job::ExitCode;
use job::config::{ConfigError, Invalid};
use job::dataset::DataError;
use job::run_dir::RunDirError;
use torch_ext::TorchError;

use crate::checkpoint::CheckpointError;
use crate::log::print_error;
use crate::metrics::MetricsError;

/// The result of the trainer's functions.
pub type Result<T> = std::result::Result<T, TrainError>;

/// An error that ends a rank.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The command line or the configuration asks for something impossible.
    #[error("{0}")]
    Usage(String),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A value of the configuration does not fit the device or the ranks.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The run directory cannot be used.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// The data set is missing or bad.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Communication between ranks or with the launcher failed.
    #[error(transparent)]
    Comm(#[from] CommError),
    /// A checkpoint could not be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A metric could not be written.
    #[error(transparent)]
    Metrics(#[from] MetricsError),
    /// The loss or a gradient is not finite.
    #[error(
        "the {what} is {value} at step {step} (epoch {epoch}, learning rate {lr}); the newest \
         checkpoint is from an earlier step; a lower optimizer.lr or precision: fp32 may help"
    )]
    NotFinite {
        /// The quantity, for example `training loss`, `gradient` or `norm of the weights`.
        what: &'static str,
        /// Its value, NaN or an infinity.
        value: f64,
        /// Optimizer steps since the start of the run, this one included.
        step: u64,
        /// The epoch in progress, from 1.
        epoch: usize,
        /// The learning rate.
        lr: f64,
    },
    /// The network's output for an image is not finite.
    #[error("the network's output is not finite")]
    OutputNotFinite,
    /// The state of the run that rank 0 broadcasts cannot be serialized or parsed.
    #[error("cannot broadcast rank 0's state of the run: {0}")]
    State(serde_json::Error),
    /// The set-up cannot work on this machine.
    #[error("{0}")]
    Setup(String),
    /// libtorch returned an error.
    #[error("libtorch: {0}")]
    Torch(String),
    /// A panic, which is a bug of this program.
    #[error("panic: {0}")]
    Panic(String),
}

impl TrainError {
    /// Returns the process's documented exit code for this error.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) | Self::Invalid(_) => ExitCode::Usage,
            // Retrying the same command would fail in the same way.
            Self::Checkpoint(
                CheckpointError::DoesNotFit { .. }
                | CheckpointError::NoneGood { .. }
                | CheckpointError::Removed { .. },
            ) => ExitCode::Usage,
            Self::Config(error) => error.exit_code(),
            Self::RunDir(error) => error.exit_code(),
            Self::Data(error) => error.exit_code(),
            Self::Comm(CommError::Timeout { .. }) => ExitCode::Hang,
            Self::Comm(
                CommError::Connect { .. } | CommError::Environment(_) | CommError::Thread(_),
            )
            | Self::Setup(_) => ExitCode::Setup,
            Self::NotFinite { .. } | Self::OutputNotFinite => ExitCode::NotFinite,
            Self::Torch(message) if is_out_of_memory(message) => ExitCode::OutOfMemory,
            Self::Comm(_)
            | Self::Checkpoint(_)
            | Self::Metrics(_)
            | Self::State(_)
            | Self::Torch(_)
            | Self::Panic(_) => ExitCode::RankFailed,
        }
    }

    /// Returns the rank that this error is attributed to, if it follows from another rank's failure.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Comm(error) => error.blame(),
            _ => Blame::Nobody,
        }
    }

    /// Converts the payload of a caught panic; see [`caught`].
    pub fn from_panic(payload: &(dyn Any + Send)) -> Self {
        if let Some(error) = payload.downcast_ref::<TorchError>() {
            return error.clone().into();
        }
        let text = text_of(payload);
        let message = short(&text);
        if text.contains("Torch(") { Self::Torch(message) } else { Self::Panic(message) }
    }
}

fn text_of(payload: &(dyn Any + Send)) -> Cow<'_, str> {
    if let Some(error) = payload.downcast_ref::<TorchError>() {
        return error.to_string().into();
    }
    let string = payload.downcast_ref::<String>().map(String::as_str);
    let text = string.or_else(|| payload.downcast_ref::<&str>().copied());
    text.unwrap_or("a panic without a message").into()
}

/// Returns a panic's message without the text that `tch` adds around libtorch's message, and without the
/// C++ backtrace that follows it.
fn short(text: &str) -> String {
    // Line ends are either literal or escaped by `Debug`.
    let backtrace =
        ["\\nException raised from", "\\nframe #", "\nException raised from", "\nframe #"];
    let end = backtrace.iter().filter_map(|begin| text.find(begin)).min();
    let text = &text[..end.unwrap_or(text.len())];
    let torch = text.split_once("Torch(\"").map(|(_, message)| message.trim_end_matches("\")"));
    torch.unwrap_or(text).to_owned()
}

/// Installs a panic hook that prints the location and the message in one line, unless `RUST_BACKTRACE` is
/// set.
pub fn keep_panics_short() {
    if std::env::var_os("RUST_BACKTRACE").is_some() {
        return;
    }
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        print_error(format_args!("panic at {place}: {}", short(&text_of(panic.payload()))));
    }));
}

/// Runs `work` and returns its result. Converts a panic into an error: `tch` and the layers panic where
/// libtorch throws.
///
/// # Errors
/// Those of `work`, and panics in it.
pub fn caught<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    let ended = catch_unwind(AssertUnwindSafe(work));
    ended.unwrap_or_else(|payload| Err(TrainError::from_panic(&*payload)))
}

impl From<tch::TchError> for TrainError {
    fn from(error: tch::TchError) -> Self {
        Self::Torch(short(&error.to_string()))
    }
}

impl From<TorchError> for TrainError {
    fn from(error: TorchError) -> Self {
        Self::Torch(error.to_string())
    }
}

fn is_out_of_memory(message: &str) -> bool {
    let lower = message.to_lowercase();
    ["out of memory", "can't allocate memory", "std::bad_alloc"]
        .iter()
        .any(|text| lower.contains(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_allocation_has_its_own_exit_code_whoever_threw() {
        for text in ["CUDA out of memory. Tried to allocate 2 GiB", "std::bad_alloc"] {
            assert_eq!(TrainError::Torch(text.to_owned()).exit_code(), ExitCode::OutOfMemory);
        }
    }

    #[test]
    fn a_machine_without_threads_is_a_matter_of_setup_and_a_panic_or_a_torn_state_is_a_failure() {
        let code = |error: CommError| TrainError::from(error).exit_code();
        assert_eq!(code(CommError::Thread("no more".to_owned())), ExitCode::Setup);
        assert_eq!(code(CommError::Panicked { sequence: 3 }), ExitCode::RankFailed);
        let torn = serde_json::from_str::<u64>("").unwrap_err();
        assert_eq!(TrainError::State(torn).exit_code(), ExitCode::RankFailed);
    }

    #[test]
    fn a_panic_about_memory_has_its_own_exit_code() {
        let payload: Box<dyn Any + Send> = Box::new(
            "Torch(\"DefaultCPUAllocator: can't allocate memory\\nException raised from x\")"
                .to_owned(),
        );
        let error = TrainError::from_panic(&*payload);
        assert_eq!(error.exit_code(), ExitCode::OutOfMemory);
        assert_eq!(error.to_string(), "libtorch: DefaultCPUAllocator: can't allocate memory");
        let with_frames =
            r#"an `Err` value: Torch("can't allocate memory\nframe #0: c10::alloc_cpu")"#;
        let error = TrainError::from_panic(&with_frames);
        assert_eq!(error.to_string(), "libtorch: can't allocate memory");
        let bug = TrainError::from_panic(&"index out of bounds");
        assert_eq!(
            (bug.exit_code(), bug.to_string()),
            (ExitCode::RankFailed, "panic: index out of bounds".to_owned())
        );
    }
}
