"""Loads a checkpoint's model into the notes' module, strictly, and prints its logits as JSON.

    python3 load.py MODEL.safetensors resnet18 notes          # needs torch and numpy

The file is read by hand, so that nothing but torch is needed; users have safetensors.torch.
"""

import json
import sys

import torch

from make import noise
from notes_resnet import ResNet

DTYPES = {"F32": torch.float32, "I64": torch.int64}


def read_safetensors(path: str) -> dict:
    with open(path, "rb") as file:
        data = bytearray(file.read())
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        first, last = entry["data_offsets"]
        part = data[start + first : start + last]
        tensors[name] = torch.frombuffer(part, dtype=DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return tensors


def main() -> None:
    path, name, stem = sys.argv[1:]
    model = ResNet(name, stem)
    model.load_state_dict(read_safetensors(path), strict=True)
    images = torch.from_numpy(noise(2 * 3 * 32 * 32, 2.5)).reshape(2, 3, 32, 32).float()
    with torch.no_grad():
        print(json.dumps(model.eval()(images).flatten().tolist()))


if __name__ == "__main__":
    main()
