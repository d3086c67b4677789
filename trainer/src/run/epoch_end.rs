//! The end of an epoch: evaluation, records, a checkpoint.

use std::path::PathBuf;

use comm::control::Phase;

use super::Run;
use crate::checkpoint::{self, Pointer};
use crate::recorder::Evaluation;
use crate::replica::Replica;
use crate::saver::{OnWriteError, Waiting};
use crate::tally::Tally;
use crate::{Result, eval};

/// The files that rank 0 writes.
#[derive(Debug, Clone, Copy)]
enum Output {
    Records,
    /// The records, then a checkpoint.
    Checkpoint {
        is_best: bool,
    },
}

impl Run<'_> {
    /// Evaluates and saves if due, and records the epoch. `complete`: whether every sample of the epoch was
    /// trained on. Returns `false` if a rank was asked to stop during the evaluation, which is then
    /// repeated when the run resumes.
    pub(super) fn finish_epoch(&mut self, complete: bool) -> Result<bool> {
        let epoch = self.state.epoch();
        let is_last = epoch == self.config.train.epochs || self.is_at_max_steps();
        if is_last {
            self.optimizer.finish(&self.replica.flat);
        }
        let is_due = is_last || epoch.is_multiple_of(self.config.eval.every_epochs);
        let evaluation = match is_due {
            true => match self.evaluate()? {
                Some(evaluation) => Some(evaluation),
                None => return Ok(false),
            },
            false => None,
        };
        self.recorder.epoch(&self.state, evaluation);
        let best_before = (self.state.best_test_accuracy, self.state.best_step);
        let is_best = self.note_best(evaluation);
        if complete {
            self.state.epochs_completed += 1;
            self.state.samples_into_epoch = 0;
            self.state.epoch_tally = Tally::default();
            self.state.epoch_seconds = 0.0;
        }
        let every = self.config.checkpoint.every_epochs;
        let is_due = self.saver.is_behind() || self.state.epochs_completed.is_multiple_of(every);
        if self.is_complete() {
            self.save(is_best, OnWriteError::Wait)?;
        } else if is_best || is_due {
            self.save(is_best, OnWriteError::GoOn)?;
        }
        if self.saver.is_behind() {
            // The checkpoint of this evaluation was not written: `best` keeps pointing to one that exists.
            (self.state.best_test_accuracy, self.state.best_step) = best_before;
        }
        self.recorder.draw();
        Ok(true)
    }

    /// Evaluates the weights and, with `train.ema_decay`, their averages. Returns `None` if a rank was
    /// asked to stop before the evaluation was finished.
    fn evaluate(&mut self) -> Result<Option<Evaluation>> {
        self.link.state(Phase::Evaluating, self.state.epoch(), self.state.step);
        // A run that has reached `train.max_steps` is complete, and would not repeat the evaluation when
        // resumed.
        let may_stop = !self.is_at_max_steps();
        let Self { replica, test, ema, communicator, config, link, .. } = self;
        let wants_to_stop = || may_stop && link.stop_reason().is_some();
        let evaluate = |replica: &mut Replica| {
            eval::evaluate(replica, test, config.eval.tta, &**communicator, &wants_to_stop)
        };
        let Some(test) = evaluate(replica)? else { return Ok(None) };
        let ema_test = match ema {
            Some(ema) => match ema.in_place_of_weights(replica, evaluate)? {
                None => return Ok(None),
                tally => tally,
            },
            None => None,
        };
        let lr = self.learning_rate();
        self.check_finite("test loss", test.loss_sum, lr)?;
        if let Some(ema_test) = ema_test {
            self.check_finite("test loss of averaged weights", ema_test.loss_sum, lr)?;
        }
        Ok(Some(Evaluation { test, ema_test }))
    }

    /// Returns whether the test accuracy is higher than that of all earlier evaluations, and if so stores
    /// it as the best.
    fn note_best(&mut self, evaluation: Option<Evaluation>) -> bool {
        let Some(Evaluation { test, .. }) = evaluation else { return false };
        let is_best = self.state.best_test_accuracy.is_none_or(|(best, _)| test.accuracy() > best);
        if is_best {
            self.state.best_test_accuracy = Some((test.accuracy(), self.state.epoch()));
            self.state.best_step = Some(self.state.step);
        }
        is_best
    }

    /// Has rank 0 write the pending records and a checkpoint, and remove checkpoints that are no longer
    /// needed. Collective.
    pub(super) fn save(&mut self, is_best: bool, on_write_error: OnWriteError) -> Result<()> {
        self.link.state(Phase::Saving, self.state.epoch(), self.state.step);
        // The weights are the same on every rank, so either all ranks fail here or none.
        let norm = self.replica.flat.parameters.norm().double_value(&[]);
        self.check_finite("norm of the weights", norm, self.learning_rate())?;
        self.optimizer.apply_pending_decay(&mut self.replica.flat)?;
        self.state.loss_scaler = self.optimizer.loss_scaler_state();
        self.write(Output::Checkpoint { is_best }, on_write_error)
    }

    /// Has rank 0 write the pending records. Collective.
    pub(super) fn write_records(&mut self) -> Result<()> {
        self.write(Output::Records, OnWriteError::Wait)
    }

    fn write(&mut self, output: Output, on_write_error: OnWriteError) -> Result<()> {
        let Self { replica, optimizer, ema, state, communicator, link, config, .. } = self;
        let (recorder, folder) = (&mut self.recorder, self.run_dir.checkpoints_dir());
        let waiting = Waiting {
            beat: &|| link.state(Phase::Saving, state.epoch(), state.step),
            asked_to_stop: &|| link.stop_reason().is_some(),
        };
        let mut saved: Option<PathBuf> = None;
        self.saver.save(&**communicator, replica.device, on_write_error, &waiting, || {
            let records = match recorder.flush() {
                // If training goes on, the checkpoint is not written without its records; both are tried
                // again later. Otherwise a checkpoint without its records is better than none.
                Err(error) if on_write_error == OnWriteError::GoOn => return Err(error),
                ended => ended,
            };
            // If only the records failed before, a retry does not write the checkpoint again, unless it was
            // deleted.
            let is_there = saved.as_deref().is_some_and(checkpoint::is_whole);
            if let Output::Checkpoint { is_best } = output
                && !is_there
            {
                let path =
                    checkpoint::save(&folder, &replica.flat, optimizer, ema.as_ref(), state)?;
                checkpoint::point(Pointer::Latest, &path)?;
                if is_best {
                    checkpoint::point(Pointer::Best, &path)?;
                }
                checkpoint::prune(&folder, config.checkpoint.keep);
                saved = Some(path);
            }
            records
        })
    }
}
