"""Regenerates schedules.json, the learning rates that PyTorch's schedulers give.

    python3 make_schedules.py          # needs torch

Each case is a configuration, and the rates of its 24 steps: 6 epochs of 4. `by` says whether PyTorch's
scheduler was stepped after each step or after each epoch.
"""

import json
import pathlib

import torch
from torch.optim import lr_scheduler as schedulers

LR, EPOCHS, STEPS_PER_EPOCH = 0.4, 6, 4
STEPS = EPOCHS * STEPS_PER_EPOCH


def warmed_up(steps, after):
    """`steps` of linear warm-up, then `after`."""

    def make(optimizer):
        rise = schedulers.LinearLR(optimizer, 1 / (steps + 1), 1.0, steps)
        return schedulers.SequentialLR(optimizer, [rise, after(optimizer)], [steps])

    return make


def one_cycle(peak_step, start, end):
    """OneCycleLR reaches its end in its last step; here that is the step after the run."""
    return lambda optimizer: schedulers.OneCycleLR(
        optimizer, LR, STEPS + 1, pct_start=(peak_step + 1) / (STEPS + 1), anneal_strategy="linear",
        div_factor=1 / start, final_div_factor=start / end, cycle_momentum=False)


CASES = [
    ({"name": "constant", "warmup_steps": 5}, "step",
     lambda o: schedulers.LinearLR(o, 1 / 6, 1.0, 5)),
    ({"name": "step", "step_size": 2, "gamma": 0.5}, "epoch",
     lambda o: schedulers.StepLR(o, 2, 0.5)),
    ({"name": "step", "step_size": 7, "unit": "steps"}, "step",
     lambda o: schedulers.StepLR(o, 7, 0.1)),
    ({"name": "multistep", "milestones": [3, 5]}, "epoch",
     lambda o: schedulers.MultiStepLR(o, [3, 5])),
    ({"name": "multistep", "milestones": [9, 10, 20], "unit": "steps", "gamma": 0.2}, "step",
     lambda o: schedulers.MultiStepLR(o, [9, 10, 20], 0.2)),
    ({"name": "cosine", "min_lr": 0.01}, "step",
     lambda o: schedulers.CosineAnnealingLR(o, STEPS, 0.01)),
    ({"name": "cosine", "update": "epoch"}, "epoch",
     lambda o: schedulers.CosineAnnealingLR(o, EPOCHS)),
    ({"name": "cosine", "warmup_steps": 6}, "step",
     warmed_up(6, lambda o: schedulers.CosineAnnealingLR(o, STEPS - 6))),
    ({"name": "polynomial", "power": 2.0, "warmup_epochs": 2.0}, "step",
     warmed_up(8, lambda o: schedulers.PolynomialLR(o, STEPS - 8, 2.0))),
    ({"name": "polynomial", "power": 0.9, "update": "epoch"}, "epoch",
     lambda o: schedulers.PolynomialLR(o, EPOCHS, 0.9)),
    ({"name": "one_cycle", "pct_start": 0.25, "start_factor": 0.2, "end_factor": 0.07}, "step",
     one_cycle(6, 0.2, 0.07)),
]


def rates(by, make):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=LR)
    scheduler, found = make(optimizer), []
    for step in range(STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if by == "step" or (step + 1) % STEPS_PER_EPOCH == 0:
            scheduler.step()
    return found


def main() -> None:
    reference = {
        "torch": torch.__version__.split("+")[0],
        "steps_per_epoch": STEPS_PER_EPOCH,
        "cases": [
            {
                "config": {"train": {"epochs": EPOCHS}, "optimizer": {"lr": LR}, "schedule": schedule},
                "by": by,
                "rates": rates(by, make),
            }
            for schedule, by, make in CASES
        ],
    }
    path = pathlib.Path(__file__).with_name("schedules.json")
    path.write_text(json.dumps(reference, indent=1) + "\n")


if __name__ == "__main__":
    main()
