//! What can end a rank, and with which exit code.

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
use crate::log::complain;
use crate::metrics::MetricsError;

/// The result of anything a rank does.
pub type Result<T> = std::result::Result<T, TrainError>;

/// What ended a rank.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The command line asks for what cannot be.
    #[error("{0}")]
    Usage(String),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A value of the configuration does not go with the ranks.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The run directory cannot be used.
    #[error(transparent)]
    RunDir(#[from] RunDirError),
    /// The data set is missing or bad.
    #[error(transparent)]
    Data(#[from] DataError),
    /// Something between ranks.
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
         checkpoint is from before; a lower optimizer.lr or precision: fp32 may help"
    )]
    NotFinite {
        /// As in `training loss`, `gradient` or `norm of the weights`.
        what: &'static str,
        /// NaN or infinity.
        value: f64,
        /// Optimizer steps since the start of the run, this one included.
        step: u64,
        /// From 1.
        epoch: usize,
        /// The learning rate of the step.
        lr: f64,
    },
    /// The network's answer to an image is not finite.
    #[error("the network's answer is not a number")]
    AnswerNotFinite,
    /// What rank 0 tells the others of the run cannot be sent or read.
    #[error("rank 0's state of the run cannot be shared: {0}")]
    State(serde_json::Error),
    /// This machine cannot do what was asked for.
    #[error("{0}")]
    Setup(String),
    /// libtorch refused.
    #[error("libtorch: {0}")]
    Torch(String),
    /// A bug of this program.
    #[error("panic: {0}")]
    Panic(String),
}

impl TrainError {
    /// The documented code for this end.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            Self::Usage(_) | Self::Invalid(_) => ExitCode::Usage,
            // The same command would end so again.
            Self::Checkpoint(
                CheckpointError::DoesNotFit { .. } | CheckpointError::NoneGood { .. },
            ) => ExitCode::Usage,
            Self::Config(error) => error.exit_code(),
            Self::RunDir(error) => error.exit_code(),
            Self::Data(error) => error.exit_code(),
            Self::Comm(CommError::Timeout { .. }) => ExitCode::Hang,
            Self::Comm(
                CommError::Connect { .. } | CommError::Environment(_) | CommError::Thread(_),
            )
            | Self::Setup(_) => ExitCode::Setup,
            Self::NotFinite { .. } | Self::AnswerNotFinite => ExitCode::NotFinite,
            Self::Torch(message) if is_out_of_memory(message) => ExitCode::OutOfMemory,
            Self::Comm(_)
            | Self::Checkpoint(_)
            | Self::Metrics(_)
            | Self::State(_)
            | Self::Torch(_)
            | Self::Panic(_) => ExitCode::RankFailed,
        }
    }

    /// Whom it follows from.
    pub fn blame(&self) -> Blame {
        match self {
            Self::Comm(error) => error.blame(),
            _ => Blame::Nobody,
        }
    }

    /// The error in a caught panic; see [`caught`].
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

/// A panic's message without what `tch` writes around libtorch's, and without the C++ backtrace behind that.
fn short(text: &str) -> String {
    // With line ends as they are, or as `Debug` shows them.
    let backtrace =
        ["\\nException raised from", "\\nframe #", "\nException raised from", "\nframe #"];
    let end = backtrace.iter().filter_map(|begin| text.find(begin)).min();
    let text = &text[..end.unwrap_or(text.len())];
    let torch = text.split_once("Torch(\"").map(|(_, message)| message.trim_end_matches("\")"));
    torch.unwrap_or(text).to_owned()
}

/// Has panics say where and why in a line, unless `RUST_BACKTRACE` asks for more.
pub fn keep_panics_short() {
    if std::env::var_os("RUST_BACKTRACE").is_some() {
        return;
    }
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        complain(format_args!("panic at {place}: {}", short(&text_of(panic.payload()))));
    }));
}

/// What `work` gives. A panic in it becomes an error: `tch` panics where libtorch throws, and so do layers.
///
/// # Errors
/// Those of `work`.
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
