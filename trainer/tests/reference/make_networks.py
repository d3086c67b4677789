"""Regenerates networks.json, PyTorch's own numbers for every family.

    python3 make_networks.py [NAME...]          # needs torch, torchvision and numpy; default: all

Weights and images come from a formula that the Rust test has too, so that only results are stored:
logits, loss, and of every gradient its norm and its product with a fixed vector.
"""

import json
import math
import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F
import torchvision

from make import noise
from networks import make

CLASSES = 10
# A prime, so that no two rows of a weight are the same.
TABLE = noise(1_000_003, 0.75)
SHIFT = 7919
# Of the largest gradient: smaller ones are sums that all but cancel.
SMALL = 1e-3
# name, stem, height and width of an image, batch size
CASES = [
    ("resnet18", "imagenet", 64, 8),
    ("resnet50", "imagenet", 64, 8),
    ("resnet20", "cifar", 32, 4),
    ("resnet56", "cifar", 32, 4),
    ("plain18", "notes", 64, 8),
    ("vgg19", "imagenet", 32, 8),
    ("vgg19_bn", "cifar", 32, 8),
    ("resnext29_8x64d", "cifar", 16, 4),
    ("resnext50_32x4d", "imagenet", 64, 4),
    ("wide_resnet50_2", "imagenet", 64, 8),
    ("wrn16_8", "cifar", 16, 4),
    ("preact_resnet18", "cifar", 32, 4),
    ("preact_resnet164", "cifar", 16, 4),
    ("airbench94", "cifar", 32, 4),
    ("airbench96", "cifar", 32, 4),
]


def tiled(count: int, place: int) -> np.ndarray:
    """Numbers in -1..1: the table from `place * SHIFT` on, again and again: [count] f64."""
    return np.resize(np.roll(TABLE, -place * SHIFT), count)


def fill(model: torch.nn.Module) -> None:
    state = model.state_dict()
    for place, (name, tensor) in enumerate(state.items()):
        if name.endswith("num_batches_tracked"):
            continue
        values = tiled(tensor.numel(), place)
        if tensor.dim() > 1:
            values *= math.sqrt(6 / math.prod(tensor.shape[1:]))
        elif name.endswith("running_var"):
            values = 1 + 0.1 * values
        elif name.endswith("weight"):
            values = 0.5 + 0.1 * values
        elif name.endswith("bias") and f"{name[:-4]}running_var" in state:
            # Three deviations on either side of zero: half the channels pass a ReLU, half do not, and
            # few numbers are so near to zero that rounding decides.
            values = np.where(values > 0, 1.5, -1.5) + 0.1 * values
        else:
            values *= 0.1
        tensor.copy_(torch.from_numpy(values).reshape(tensor.shape))


def images_of(batch: int, side: int, phase: float) -> torch.Tensor:
    """Stripes, of other widths in each image, under noise: [batch, 3, side, side] f32."""
    count = 3 * side * side
    widths = 0.4 / np.arange(1, batch + 1)
    stripes = np.sin(np.arange(count)[None, :] * widths[:, None])
    pixels = stripes + 0.25 * noise(batch * count, phase).reshape(batch, count)
    return torch.from_numpy(pixels).reshape(batch, 3, side, side).float()


def describe(tensor: torch.Tensor) -> list[float]:
    flat = tensor.flatten()
    product = torch.dot(flat, torch.from_numpy(tiled(flat.numel(), 1)))
    return [round_to(flat.norm().item()), round_to(product.item())]


def round_to(value: float) -> float:
    return float(f"{value:.8g}")


def run(case: tuple, phase: float, dtype: torch.dtype, layout=torch.contiguous_format):
    name, stem, side, batch = case
    model = make(name, stem, CLASSES)
    with torch.no_grad():
        fill(model)
    model.to(dtype=dtype, memory_format=layout)
    images = images_of(batch, side, phase).to(dtype=dtype, memory_format=layout)
    labels = torch.arange(batch) * 3 % CLASSES
    with torch.no_grad():
        eval_logits = model.eval()(images)
    logits = model.train()(images)
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    return model, eval_logits, logits, loss


def gradients_of(model: torch.nn.Module) -> dict:
    trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    return {name: value.grad.double() for name, value in trained}


def reference(case: tuple) -> dict:
    name, stem, side, batch = case
    for phase in np.arange(2.5, 18.5):
        model, eval_logits, logits, loss = run(case, phase, torch.float32)
        gradients, exact = gradients_of(model), gradients_of(run(case, phase, torch.float64)[0])
        other = gradients_of(run(case, phase, torch.float32, torch.channels_last)[0])
        largest = max(gradient.norm() for gradient in exact.values())
        # What a batch norm takes away has no effect: its gradient is zero but for rounding.
        zeros = {key for key, gradient in exact.items() if gradient.norm() < 1e-9 * largest}
        for key in zeros:
            gradients[key] = torch.zeros_like(gradients[key])
        error = max(
            ((found[key] - exact[key]).norm() / max(exact[key].norm(), SMALL * largest)).item()
            for found in (gradients, other)
            for key in exact.keys() - zeros
        )
        print(name, stem, f"{error:.1e} from the exact gradients, {len(zeros)} of them zero")
        # An activation within rounding of zero makes every program's gradient its own.
        if error < 3e-5:
            break
    else:
        raise SystemExit(f"{name}: no images found that rounding does not disturb")
    return {
        "name": name,
        "stem": stem,
        "side": side,
        "batch": batch,
        "phase": phase,
        "parameters": sum(value.numel() for value in model.parameters() if value.requires_grad),
        "eval_logits": [round_to(value) for value in eval_logits.flatten().tolist()],
        "train_logits": [round_to(value) for value in logits.flatten().tolist()],
        "loss": round_to(loss.item()),
        "gradients": [[key, *describe(gradient)] for key, gradient in gradients.items()],
    }


def main() -> None:
    path = pathlib.Path(__file__).with_name("networks.json")
    wanted = sys.argv[1:] or [name for name, *_ in CASES]
    kept = json.loads(path.read_text())["networks"] if sys.argv[1:] and path.exists() else []
    entries = {entry["name"]: entry for entry in kept}
    versions = {module.__name__: module.__version__.split("+")[0] for module in (torch, torchvision)}
    for case in CASES:
        if case[0] in wanted:
            entries[case[0]] = reference(case)
            lines = ",\n".join(
                json.dumps(entries[name], separators=(",", ":")) for name, *_ in CASES if name in entries
            )
            path.write_text(f'{{"versions": {json.dumps(versions)}, "networks": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
