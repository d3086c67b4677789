"""Regenerates loss_scaler.json, what torch.amp.GradScaler does over 4,200 steps.

    python3 make_loss_scaler.py          # needs torch

Stored are the steps at which a gradient overflowed, and after each step at which the scale changed, that
step, the scale and the growth tracker; besides, the last growth tracker and the last weights.
"""

import json
import math
import pathlib

import torch

STEPS = 4200
OVERFLOWS = [0, 1, 7, 100, 2099, 2100, 4150]


def main() -> None:
    weights = torch.nn.Parameter(torch.tensor([0.5, -0.25, 1.0, 2.0]))
    optimizer = torch.optim.AdamW([weights], lr=0.001, fused=True)
    scaler = torch.amp.GradScaler("cpu")
    scale, changes = scaler.get_scale(), []
    for step in range(STEPS):
        factors = torch.tensor([math.sin(step + index) for index in range(4)])
        if step in OVERFLOWS:
            factors[2] = math.inf
        optimizer.zero_grad()
        scaler.scale((weights * factors).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        if scaler.get_scale() != scale:
            scale = scaler.get_scale()
            changes.append([step, scale, scaler._get_growth_tracker()])
    reference = {
        "torch": torch.__version__.split("+")[0],
        "steps": STEPS,
        "overflows": OVERFLOWS,
        "changes": changes,
        "growth_tracker": scaler._get_growth_tracker(),
        "weights": weights.tolist(),
    }
    path = pathlib.Path(__file__).with_name("loss_scaler.json")
    path.write_text(json.dumps(reference, indent=1) + "\n")


if __name__ == "__main__":
    main()
