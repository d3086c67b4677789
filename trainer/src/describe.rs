//! `trainer --describe [gpus]`: describes this build and the GPUs that it finds, as JSON for the launcher,
//! which is not linked with libtorch.

use serde_json::{Value, json};

/// Returns the version and the MPI of this build. With `gpus`, also whether libtorch and NCCL work with the
/// driver of this machine, which takes a while to find out.
pub fn describe(gpus: bool) -> Value {
    let mut about = json!({
        "version": env!("CARGO_PKG_VERSION"),
        "mpirun": comm::bootstrap::MPIRUN,
    });
    if gpus {
        about["gpus"] = match find_gpus() {
            Ok(count) => json!({"count": count}),
            Err(problem) => json!({"count": 0, "problem": problem}),
        };
        about["nccl"] = match comm::bootstrap::nccl_version() {
            Ok(version) => json!({"version": version}),
            Err(error) => json!({"problem": error.to_string()}),
        };
    }
    about
}

fn find_gpus() -> Result<i64, String> {
    comm::bootstrap::check_driver_supports_cuda()?;
    torch_ext::load_cuda().map_err(|error| error.to_string())?;
    match tch::Cuda::device_count() {
        count if count > 0 && !tch::Cuda::cudnn_is_available() => {
            Err(format!("libtorch sees {count} GPUs but no cuDNN"))
        }
        count => Ok(count),
    }
}
