"""Regenerates tta.json: PyTorch's logits of a network of make.py, averaged over views of each image.

    python3 make_tta.py          # needs torch, in full, and numpy

`mirror` and `mirror_translate` are airbench's `infer_mirror` and `infer_mirror_translate`, written out.
"""

import json
import pathlib

import torch
import torch.nn.functional as F

from make import fill, noise
from notes_resnet import ResNet

BATCH = 8


def mirror(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    return 0.5 * model(images) + 0.5 * model(images.flip(-1))


def mirror_translate(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    padded = F.pad(images, (1,) * 4, "reflect")
    shifted = [padded[:, :, 0:32, 0:32], padded[:, :, 2:34, 2:34]]
    translated = torch.stack([mirror(model, view) for view in shifted]).mean(0)
    return 0.5 * mirror(model, images) + 0.5 * translated


def main() -> None:
    torch.set_num_threads(1)
    model = ResNet("resnet18", "notes")
    images = torch.from_numpy(noise(BATCH * 3 * 32 * 32, 2.5)).reshape(BATCH, 3, 32, 32).float()
    with torch.no_grad():
        fill(model)
        model.eval()
        reference = {
            "torch": torch.__version__.split("+")[0],
            "none": model(images).flatten().tolist(),
            "flip": mirror(model, images).flatten().tolist(),
            "multi_crop": mirror_translate(model, images).flatten().tolist(),
        }
    path = pathlib.Path(__file__).with_name("tta.json")
    path.write_text(json.dumps(reference) + "\n")


if __name__ == "__main__":
    main()
