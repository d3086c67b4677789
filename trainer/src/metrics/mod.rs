//! Placeholder for the API that recorder.rs uses; to be replaced as a whole.
#![allow(missing_docs)]
use std::path::Path;
#[derive(Debug, thiserror::Error)]
#[error("metrics: {0}")]
pub struct MetricsError(pub String);
pub struct StepRecord {
    pub step: u64,
    pub epoch: usize,
    pub loss: f64,
    pub lr: f64,
    pub images_per_s: Option<f64>,
    pub step_ms: f64,
    pub data_ms: f64,
    pub comm_exposed_ms: f64,
    pub grad_norm: f64,
}
pub struct EpochRecord {
    pub epoch: usize,
    pub train_loss: f64,
    pub train_accuracy: f64,
    pub test_loss: f64,
    pub test_accuracy: f64,
    pub seconds: f64,
    pub images_per_s: f64,
}
pub struct SummaryRecord {
    pub world_size: usize,
    pub batch_size_per_rank: usize,
    pub steps: u64,
    pub images_per_s: Option<f64>,
    pub step_ms_p50: Option<f64>,
    pub step_ms_p95: Option<f64>,
    pub seconds_to_first_step: Option<f64>,
    pub peak_memory_bytes: u64,
    pub best_test_accuracy: Option<f64>,
}
pub enum Record {
    Step(StepRecord),
    Epoch(EpochRecord),
    Summary(SummaryRecord),
}
pub struct Writer;
impl Writer {
    /// Opens for appending; drops an incomplete last line, step records after `step` and epoch records after `epochs_completed`.
    pub fn resume(
        _path: &Path,
        _step: u64,
        _epochs_completed: usize,
    ) -> Result<Self, MetricsError> {
        Ok(Self)
    }
    pub fn write(&mut self, _record: &Record) -> Result<(), MetricsError> {
        Ok(())
    }
}
/// Reads the run directory's epoch records and redraws curves.svg and curves.png.
pub fn draw_curves(_run_dir: &job::run_dir::RunDir) -> Result<(), MetricsError> {
    Ok(())
}
