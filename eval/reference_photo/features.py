"""What the frozen lower layers of the tower make of the training pictures, worked out once, and what is
asked about them.

Run: ``python -m vtc.eval.reference_photo.features --debian DEBIAN --clothing CLOTHING``, in two
processes of one thread each
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vtc.eval.common.loading import find_device
from vtc.eval.reference.training import launch

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
QUESTIONS = 10


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
    parser.add_argument("--scenes", type=int, default=12000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=2, help="processes, one thread each")
    args = parser.parse_args(argv)
    args.folder = args.output
    args.output.mkdir(parents=True, exist_ok=True)
    shape = (args.scenes, TOKENS, WIDTH)
    for old in args.output.glob(place(args, ".*.jsonl").name):
        old.unlink()
    np.lib.format.open_memmap(place(args), mode="w+", dtype=np.float16, shape=shape).flush()
    launch(work, args)


def place(args: argparse.Namespace, end: str = ".npy") -> Path:
    """A file of a split and seed."""
    path: Path = args.output / f"{args.split}{args.seed}{end}"
    return path


def work(rank: int, args: argparse.Namespace) -> None:
    """One process's share of the scenes."""
    sources = find(args.debian, args.clothing, args.split)
    device = find_device(None)
    model = tower.build(TOWER.path()).to(device)
    held = np.load(place(args), mmap_mode="r+")
    began, asked = time.monotonic(), place(args, f".{rank}.jsonl").open("w")
    for start in range(32 * rank, args.scenes, 32 * args.ranks):
        numbers = range(start, min(args.scenes, start + 32))
        scenes = [make_scene(sources, args.split, args.seed, n, QUESTIONS) for n in numbers]
        hidden = lower(model, torch.stack([pixels(scene.image) for scene in scenes]).to(device))
        held[start : start + len(scenes)] = hidden.half().cpu().numpy()
        for number, scene in zip(numbers, scenes, strict=True):
            questions = [(q.type, q.text, q.answer) for q in scene.questions]
            seen = (scene.words, scene.colors, scene.garments)
            print(json.dumps([number, questions, seen]), file=asked)
        if start % 640 == 0:
            seconds = time.monotonic() - began
            print(f"{start + len(scenes)} of {args.scenes}, {seconds:.0f} s", flush=True)
    held.flush()
    asked.close()


if __name__ == "__main__":
    main()
