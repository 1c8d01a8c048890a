"""What the frozen lower layers of the tower make of the training pictures, worked out once.

Run: ``python -m vtc.eval.reference_photo.features --debian DEBIAN --clothing CLOTHING``
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtc.eval.common.loading import find_device

from . import tower
from .model import MEAN, STD
from .parts import TOWER
from .scene import make_scene
from .sources import SPLITS, find

#: layers of the tower that stay as they were
FROZEN = 7
TOKENS = 1 + (tower.SIDE // tower.PATCH) ** 2
WIDTH = 384
#: most questions about a scene in training
QUESTIONS = 8


def pixels(image: Any) -> Tensor:
    """A picture of 224 x 224 px as the tower takes it, `[3, 224, 224]`."""
    values = torch.from_numpy(np.array(image)).float() / 255
    return ((values - torch.tensor(MEAN)) / torch.tensor(STD)).permute(2, 0, 1)


def lower(model: Any, images: Tensor) -> Tensor:
    """Hidden states `[images, tokens, width]` behind the frozen layers."""
    with torch.no_grad(), torch.autocast(images.device.type, torch.bfloat16):
        hidden = model.embeddings(images)
        for layer in model.encoder.layer[:FROZEN]:
            hidden = layer(hidden)
    return hidden


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--debian", type=Path, required=True, help="the unpacked Debian packages")
    parser.add_argument("--clothing", type=Path, required=True, help="clothing-dataset-small")
    parser.add_argument("--output", type=Path, default=Path("runs/photo"))
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--scenes", type=int, default=9000)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    sources = find(args.debian, args.clothing, args.split)
    device = find_device(None)
    model = tower.build(TOWER.path()).to(device)
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / f"{args.split}{args.seed}.npy"
    shape = (args.scenes, TOKENS, WIDTH)
    held = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
    began = time.monotonic()
    for start in range(0, args.scenes, 32):
        numbers = range(start, min(args.scenes, start + 32))
        images = [make_scene(sources, args.split, args.seed, n, 1).image for n in numbers]
        hidden = lower(model, torch.stack([pixels(image) for image in images]).to(device))
        held[start : start + len(images)] = hidden.half().cpu().numpy()
        if start % 640 == 0:
            seconds = time.monotonic() - began
            print(f"{start + len(images)} of {args.scenes}, {seconds:.0f} s", flush=True)
    held.flush()


if __name__ == "__main__":
    main()
