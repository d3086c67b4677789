"""Regenerates ema.json, what PyTorch's AveragedModel makes of a series of weights.

    python3 make_ema.py          # needs torch

Stored are the weights and the running statistics after each step, and for each decay and number of steps
between updates the averages of both after the last.
"""

import json
import pathlib

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

STEPS, SIZE = 12, 8


class Module(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(SIZE))
        self.register_buffer("running", torch.zeros(SIZE))


def main() -> None:
    torch.manual_seed(0)
    weights, running = torch.randn(STEPS, SIZE), torch.rand(STEPS, SIZE)
    cases = []
    for decay, every in ((0.9, 1), (0.999, 1), (0.4, 5)):
        module = Module()
        average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay), use_buffers=True)
        for step in range(STEPS):
            with torch.no_grad():
                module.weight.copy_(weights[step])
                module.running.copy_(running[step])
            if (step + 1) % every == 0:
                average.update_parameters(module)
        averages = average.module
        cases.append(
            {
                "decay": decay,
                "every": every,
                "weights": averages.weight.tolist(),
                "running": averages.running.tolist(),
            }
        )
    reference = {
        "torch": torch.__version__.split("+")[0],
        "weights": weights.tolist(),
        "running": running.tolist(),
        "cases": cases,
    }
    path = pathlib.Path(__file__).with_name("ema.json")
    path.write_text(json.dumps(reference) + "\n")


if __name__ == "__main__":
    main()
