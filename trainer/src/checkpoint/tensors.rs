//! Named tensors in a safetensors file.

use std::path::Path;

use safetensors::SafeTensorError;
use tch::{TchError, Tensor};

use super::{CheckpointError, Result, io_error};

/// Reads the tensors of the safetensors file at `path`, on the CPU, with their names.
///
/// # Errors
/// [`CheckpointError::Io`] when there is no such file, or it is not a safetensors file or truncated.
pub fn read(path: &Path) -> Result<Vec<(String, Tensor)>> {
    Tensor::read_safetensors(path).map_err(|error| io_error("read", path)(reason(error)))
}

/// Writes `tensors` to a safetensors file at `path`.
///
/// # Errors
/// [`CheckpointError::Io`], for example when the disk is full; [`CheckpointError::Tensor`] for a tensor
/// that cannot be stored.
pub fn write(path: &Path, tensors: &[(String, Tensor)]) -> Result<()> {
    Tensor::write_safetensors(tensors, path).map_err(|error| match error {
        TchError::SafeTensorError { err: SafeTensorError::IoError(error), .. } => {
            io_error("write", path)(error)
        }
        other => CheckpointError::Tensor { path: path.to_owned(), reason: other.to_string() },
    })
}

/// Returns the cause of an error, without the path and the type names that the libraries add.
fn reason(error: TchError) -> String {
    match error {
        TchError::SafeTensorError { err: SafeTensorError::IoError(error), .. } => error.to_string(),
        TchError::SafeTensorError { err, .. } => {
            format!("it is not a complete safetensors file: {err}")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_wrong_is_said_as_the_system_says_it() {
        let full = Path::new("/dev/full");
        let error = write(full, &[("a".to_owned(), Tensor::from(1.0f32))]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot write /dev/full: No space left on device (os error 28)"
        );
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("a.safetensors");
        let error = read(&missing).unwrap_err().to_string();
        assert!(
            error.ends_with("a.safetensors: No such file or directory (os error 2)"),
            "{error}"
        );
        std::fs::write(&missing, "{}").unwrap();
        let error = read(&missing).unwrap_err().to_string();
        assert!(
            error.ends_with("it is not a complete safetensors file: HeaderTooSmall"),
            "{error}"
        );
    }
}
