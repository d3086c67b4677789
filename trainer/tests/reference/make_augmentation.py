"""Regenerates augmentation.safetensors, what torchvision makes of a few images.

    python3 make_augmentation.py     # needs torch, torchvision 0.26 and safetensors

Images are bytes, [N, 3, H, W], higher than wide: a pattern, one that is dark, grey, and of one colour.
`rand_augment/OPERATION/MAGNITUDE/SIGN` is an operation of RandAugment, `color_jitter/CHANGE/AMOUNT` one
of ColorJitter, `cutmix/PART/ROW/COLUMN` a rectangle of CutMix: the rows and columns that it takes.
"""

import pathlib

import safetensors.torch
import torch
from torchvision.transforms import InterpolationMode, RandAugment
from torchvision.transforms import functional as F
from torchvision.transforms.autoaugment import _apply_op
from torchvision.transforms.v2 import CutMix

HEIGHT, WIDTH = 13, 10
MAGNITUDES = [9, 30]
JITTER = {
    "brightness": (F.adjust_brightness, [0.6, 1.37]),
    "contrast": (F.adjust_contrast, [0.6, 1.37]),
    "saturation": (F.adjust_saturation, [0.0, 0.6, 1.37]),
    "hue": (F.adjust_hue, [-0.5, -0.07, 0.1, 0.31]),
}


def pictures() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    pattern = torch.randint(256, (3, HEIGHT, WIDTH), generator=generator)
    dark = torch.randint(20, 90, (3, HEIGHT, WIDTH), generator=generator)
    grey = torch.randint(5, 250, (1, HEIGHT, WIDTH), generator=generator).expand(3, -1, -1)
    flat = torch.tensor([200, 31, 77]).view(3, 1, 1).expand(-1, HEIGHT, WIDTH)
    return torch.stack([pattern, dark, grey, flat]).to(torch.uint8)


def rand_augment(images: torch.Tensor) -> dict:
    results = {}
    for name, (strengths, signed) in RandAugment()._augmentation_space(31, (HEIGHT, WIDTH)).items():
        # Where the strength does not matter, once is enough.
        for magnitude in MAGNITUDES if strengths.ndim > 0 else MAGNITUDES[:1]:
            strength = float(strengths[magnitude].item()) if strengths.ndim > 0 else 0.0
            for sign in (1, -1) if signed else (1,):
                result = [
                    _apply_op(image, name, sign * strength, InterpolationMode.NEAREST, None)
                    for image in images
                ]
                results[f"rand_augment/{name}/{magnitude}/{sign}"] = torch.stack(result)
    return results


def color_jitter(images: torch.Tensor) -> dict:
    return {
        f"color_jitter/{name}/{amount}": torch.stack([change(image, amount) for image in images])
        for name, (change, amounts) in JITTER.items()
        for amount in amounts
    }


class FixedPart:
    """A distribution of one number: how much is left of the image."""

    def __init__(self, part: float):
        self.part = part

    def sample(self, _):
        return torch.tensor(1.0 - self.part)


def cutmix() -> dict:
    results = {}
    randint = torch.randint
    for part in (0.0625, 0.5, 0.8):
        for row, column in ((0, 0), (6, 5), (12, 3)):
            mix = CutMix(num_classes=2)
            mix._dist = FixedPart(part)
            torch.randint = lambda high, size: torch.tensor([column if high == WIDTH else row])
            x1, y1, x2, y2 = mix.make_params([torch.zeros(1, 3, HEIGHT, WIDTH)])["box"]
            torch.randint = randint
            results[f"cutmix/{part}/{row}/{column}"] = torch.tensor([y1, y2, x1, x2])
    return results


def main() -> None:
    images = pictures()
    tensors = {"images": images, **rand_augment(images), **color_jitter(images), **cutmix()}
    path = pathlib.Path(__file__).with_name("augmentation.safetensors")
    safetensors.torch.save_file(tensors, path)


if __name__ == "__main__":
    main()
