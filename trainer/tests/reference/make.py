"""Regenerates resnet.json, PyTorch's own numbers for the notes' networks.

    python3 make.py          # needs torch, in full, and numpy

Weights and images come from a formula that the Rust test has too, so that only results are stored:
logits, loss, running statistics, and of every gradient its norm, its product with a fixed vector,
and its first elements.
"""

import json
import math
import pathlib

import numpy as np
import torch
import torch.nn.functional as F

from notes_resnet import ResNet


def noise(count: int, phase: float) -> np.ndarray:
    """Numbers in -1..1 without a pattern, that both sides can compute: [count] f64."""
    index = np.arange(count, dtype=np.float64)
    return 2 * np.modf(np.abs(np.sin(index * 12.9898 + phase * 78.233)) * 43758.5453)[0] - 1


def fill(model: torch.nn.Module) -> None:
    for number, (name, tensor) in enumerate(model.state_dict().items()):
        if name.endswith("num_batches_tracked"):
            continue
        values = noise(tensor.numel(), number + 1)
        if tensor.dim() > 1:
            values *= math.sqrt(6 / math.prod(tensor.shape[1:]))
        elif name.endswith(("running_var", "weight")):
            values = 1 + 0.1 * values
        else:
            values *= 0.1
        tensor.copy_(torch.from_numpy(values).reshape(tensor.shape))


def describe(tensor: torch.Tensor, phase: float) -> dict:
    flat = tensor.detach().double().flatten().contiguous()
    probe = torch.from_numpy(noise(flat.numel(), phase))
    return {
        "norm": flat.norm().item(),
        "product": flat.dot(probe).item(),
        "first": flat[:4].tolist(),
    }


def run(name: str, stem: str, batch: int, dtype: torch.dtype):
    model = ResNet(name, stem)
    with torch.no_grad():
        fill(model)
    model.to(dtype)
    images = torch.from_numpy(noise(batch * 3 * 32 * 32, 2.5)).reshape(batch, 3, 32, 32).float()
    labels = torch.arange(batch) * 3 % 10
    eval_logits = model.eval()(images.to(dtype))
    logits = model.train()(images.to(dtype))
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    return model, eval_logits, logits, loss


def reference(name: str, stem: str, batch: int) -> dict:
    model, eval_logits, logits, loss = run(name, stem, batch, torch.float32)
    # An activation within rounding of zero would make every implementation's gradient its own.
    exact = dict(run(name, stem, batch, torch.float64)[0].named_parameters())
    for key, value in model.named_parameters():
        error = (value.grad.double() - exact[key].grad).norm() / exact[key].grad.norm()
        assert error < 4e-5, f"{name} {stem}: choose other images, {key} is off by {error}"
    state = model.state_dict()
    return {
        "name": name,
        "stem": stem,
        "batch": batch,
        "torch": torch.__version__.split("+")[0],
        "state_dict": [[key, list(value.shape), str(value.dtype)] for key, value in state.items()],
        "eval_logits": eval_logits.flatten().tolist(),
        "train_logits": logits.flatten().tolist(),
        "loss": loss.item(),
        "gradients": {key: describe(value.grad, 0.25) for key, value in model.named_parameters()},
        "running": {key: describe(value, 0.25) for key, value in state.items() if "running" in key},
    }


def main() -> None:
    torch.set_num_threads(1)
    networks = [("resnet18", "notes", 8), ("resnet18", "cifar", 2), ("resnet34", "notes", 8)]
    path = pathlib.Path(__file__).with_name("resnet.json")
    path.write_text(json.dumps([reference(*network) for network in networks], indent=1) + "\n")


if __name__ == "__main__":
    main()
