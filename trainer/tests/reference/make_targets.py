"""Regenerates targets.json, PyTorch's cross-entropy with smoothed and mixed targets.

    python3 make_targets.py          # needs torch

Stored are logits, labels, what else each image is and how much, and for each amount of smoothing the sum
of the losses and the gradient of the logits, with mixed targets and without.
"""

import json
import pathlib

import torch
import torch.nn.functional as F

IMAGES, CLASSES = 6, 10


def losses(logits: torch.Tensor, targets: torch.Tensor, smoothing: float) -> dict:
    logits = logits.clone().requires_grad_()
    loss = F.cross_entropy(logits, targets, reduction="sum", label_smoothing=smoothing)
    loss.backward()
    return {"loss": loss.item(), "gradient": logits.grad.flatten().tolist()}


def main() -> None:
    torch.manual_seed(0)
    logits = torch.randn(IMAGES, CLASSES) * 3
    labels = torch.randint(CLASSES, (IMAGES,))
    others = torch.randint(CLASSES, (IMAGES,))
    others[0] = labels[0]
    share = torch.rand(IMAGES) / 2
    one_hot = lambda which: F.one_hot(which, CLASSES).float()
    mixed = one_hot(labels) * (1 - share)[:, None] + one_hot(others) * share[:, None]
    cases = [
        {"smoothing": s, "certain": losses(logits, labels, s), "mixed": losses(logits, mixed, s)}
        for s in (0.0, 0.1, 0.4)
    ]
    reference = {
        "torch": torch.__version__.split("+")[0],
        "logits": logits.flatten().tolist(),
        "labels": labels.tolist(),
        "others": others.tolist(),
        "share": share.tolist(),
        "cases": cases,
    }
    path = pathlib.Path(__file__).with_name("targets.json")
    path.write_text(json.dumps(reference) + "\n")


if __name__ == "__main__":
    main()
