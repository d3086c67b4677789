//! What follows the steps of an epoch: evaluation, records, a checkpoint.

use std::path::PathBuf;

use comm::control::Phase;

use super::Run;
use crate::checkpoint::{self, Link as CheckpointLink};
use crate::recorder::Evaluation;
use crate::replica::Replica;
use crate::saver::{IfRefused, Waiting};
use crate::tally::Tally;
use crate::{Result, eval};

/// What rank 0 writes.
#[derive(Debug, Clone, Copy)]
enum What {
    Records,
    /// And the records before it.
    Checkpoint {
        is_best: bool,
    },
}

impl Run<'_> {
    /// Evaluates where it is time for it, records and saves. `complete`: whether every sample of the
    /// epoch was seen. `false` where some rank was asked to stop meanwhile: the evaluation is done again when the
    /// run goes on.
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
            self.save(is_best, IfRefused::Wait)?;
        } else if is_best || is_due {
            self.save(is_best, IfRefused::GoOn)?;
        }
        if self.saver.is_behind() {
            // `best` points to a checkpoint that there is.
            (self.state.best_test_accuracy, self.state.best_step) = best_before;
        }
        self.recorder.draw();
        Ok(true)
    }

    /// `None` where some rank was asked to stop before it was done.
    fn evaluate(&mut self) -> Result<Option<Evaluation>> {
        self.link.state(Phase::Evaluating, self.state.epoch(), self.state.step);
        // After `train.max_steps` a run is complete, and would not evaluate when started again.
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

    /// Whether no evaluation before found so high a test accuracy.
    fn note_best(&mut self, evaluation: Option<Evaluation>) -> bool {
        let Some(Evaluation { test, .. }) = evaluation else { return false };
        let is_best = self.state.best_test_accuracy.is_none_or(|(best, _)| test.accuracy() > best);
        if is_best {
            self.state.best_test_accuracy = Some((test.accuracy(), self.state.epoch()));
            self.state.best_step = Some(self.state.step);
        }
        is_best
    }

    /// Rank 0 writes a checkpoint and the records before it, and removes checkpoints that are not needed any more.
    pub(super) fn save(&mut self, is_best: bool, if_refused: IfRefused) -> Result<()> {
        self.link.state(Phase::Saving, self.state.epoch(), self.state.step);
        // The weights are the same on every rank, so all of them stop here, or none.
        let norm = self.replica.flat.parameters.norm().double_value(&[]);
        self.check_finite("norm of the weights", norm, self.learning_rate())?;
        self.optimizer.settle(&mut self.replica.flat)?;
        self.state.loss_scaler = self.optimizer.loss_scaler_state();
        self.write(What::Checkpoint { is_best }, if_refused)
    }

    /// Has the records that are kept on disk.
    pub(super) fn write_records(&mut self) -> Result<()> {
        self.write(What::Records, IfRefused::Wait)
    }

    fn write(&mut self, what: What, if_refused: IfRefused) -> Result<()> {
        let Self { replica, optimizer, ema, state, communicator, link, config, .. } = self;
        let (recorder, folder) = (&mut self.recorder, self.run_dir.checkpoints_dir());
        let waiting = Waiting {
            beat: &|| link.state(Phase::Saving, state.epoch(), state.step),
            asked_to_stop: &|| link.stop_reason().is_some(),
        };
        let mut saved: Option<PathBuf> = None;
        self.saver.save(&**communicator, replica.device, if_refused, &waiting, || {
            let records = match recorder.flush() {
                // A checkpoint whose records are missing is better than none, but only then.
                Err(error) if if_refused == IfRefused::GoOn => return Err(error),
                ended => ended,
            };
            // A try that comes after waiting for the records does not write it again, if nobody has cleared the disk.
            let is_there = saved.as_deref().is_some_and(checkpoint::is_whole);
            if let What::Checkpoint { is_best } = what
                && !is_there
            {
                let path =
                    checkpoint::save(&folder, &replica.flat, optimizer, ema.as_ref(), state)?;
                checkpoint::point(CheckpointLink::Latest, &path)?;
                if is_best {
                    checkpoint::point(CheckpointLink::Best, &path)?;
                }
                checkpoint::prune(&folder, config.checkpoint.keep);
                saved = Some(path);
            }
            records
        })
    }
}
