"""Regenerates images.safetensors, image files and what Pillow, which has libjpeg-turbo, makes of them.

    python3 make_images.py     # needs numpy, pillow and safetensors

`file/SPLIT/CLASS/NAME` are the bytes of a file, `pixels/SPLIT/CLASS/NAME` its pixels, [H, W, 3]. `train` and
`test` are a folder of images of CIFAR-10's size and classes; `any` has files of each kind that JPEG knows.
"""

import io
import pathlib

import numpy as np
from PIL import Image
from safetensors.numpy import save_file

from make import noise

CLASSES = "airplane automobile bird cat deer dog frog horse ship truck".split()
KINDS = {
    "420.jpeg": {"subsampling": "4:2:0"},
    "422.jpeg": {"subsampling": "4:2:2"},
    "444.jpeg": {"subsampling": "4:4:4"},
    "coarse.jpeg": {"quality": 5},
    "progressive.jpeg": {"progressive": True},
    "restarts.jpeg": {"restart_marker_rows": 1},
    "rgb.jpeg": {"keep_rgb": True},
    "grey.jpeg": {},
    "cmyk.jpeg": {},
}


def picture(width: int, height: int, phase: float) -> Image.Image:
    """Waves of all colours under a little noise."""
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(x * (0.1 + 0.07 * phase) + y * 0.2 * channel + phase) for channel in range(3)]
    pixels = np.stack(waves, -1) * 100 + noise(height * width * 3, phase).reshape(height, width, 3) * 25
    return Image.fromarray((pixels + 128).astype(np.uint8))


def main() -> None:
    tensors = {}

    def add(name: str, image: Image.Image, **options) -> None:
        file = io.BytesIO()
        image.save(file, "PNG" if name.endswith("png") else "JPEG", **options)
        tensors[f"file/{name}"] = np.frombuffer(file.getvalue(), np.uint8)
        tensors[f"pixels/{name}"] = np.asarray(Image.open(file).convert("RGB"))

    for label, name in enumerate(CLASSES):
        add(f"train/{name}/1.jpeg", picture(32, 32, label + 0.25))
        add(f"train/{name}/2.png", picture(32, 32, label + 0.5))
        add(f"test/{name}/1.jpeg", picture(32, 32, label + 0.75), subsampling="4:4:4")
    modes = {"grey.jpeg": "L", "cmyk.jpeg": "CMYK"}
    for name, options in KINDS.items():
        # No multiple of a block.
        add(f"any/{name}", picture(43, 27, 3.5).convert(modes.get(name, "RGB")), **options)
    save_file(tensors, pathlib.Path(__file__).with_name("images.safetensors"))


if __name__ == "__main__":
    main()
