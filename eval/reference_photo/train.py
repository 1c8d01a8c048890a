"""Trains the projector, low-rank changes of the language model and of the tower's upper layers.

First each picture is only to show, by some patch, the words that are true of it: the projector learns
to make patches look like words, from labels of whole pictures. Then questions are answered, while a
random part of the visual tokens, 5 to 100 %, is there.

Two processes of one thread each share every batch. The schedule counts steps, so the same machine
makes the same weights again.

Run: ``python -m vtc.eval.reference_photo.train --output runs/photo``, behind `features`
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vtc.eval.common.loading import find_device
from vtc.eval.reference.training import average, launch

from . import lora, tower
from .features import FROZEN
from .model import base, load_tokenizer
from .packing import hidden, logits, pack, right
from .questions import TYPES, Question
from .shown import Seen, Shown

PATCHES = (tower.SIDE // tower.PATCH) ** 2
RANKS = {"language": 32, "tower": 16}
#: learning rate of tower and projector behind it, in that of the language model
SLOW = 0.2
#: types with few questions count more in the loss
WEIGHTS = {"color": 2.0, "garment": 2.0, "reading": 2.0}


class Eyes(nn.Module):
    """The tower's upper layers and the projector: from cached hidden states to visual tokens."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        depth = tower.LAYERS + 1 + tower.FEATURE_LAYER
        self.layers = model.model.vision_tower.encoder.layer[FROZEN:depth]
        self.projector = model.model.multi_modal_projector

    def forward(self, states: Tensor) -> Tensor:
        for layer in self.layers:
            states = layer(states)
        return self.projector(states[:, 1:])


class Data:
    """Scenes of a split: hidden states, questions and what is true of them, as `features` kept them."""

    def __init__(self, folder: Path, split: str, seed: int) -> None:
        self.states = np.load(folder / f"{split}{seed}.npy", mmap_mode="r")
        lines = [
            json.loads(line)
            for path in folder.glob(f"{split}{seed}.*.jsonl")
            for line in path.read_text().splitlines()
        ]
        lines.sort()
        if [line[0] for line in lines] != list(range(len(self.states))):
            raise SystemExit(f"{folder}: scenes are missing; run `features` to its end")
        self.asked = [[Question(*question) for question in asked] for _, asked, _ in lines]
        self.seen = [Seen(*seen) for _, _, seen in lines]

    def batches(self, size: int, rng: np.random.Generator) -> Iterator[list[int]]:
        """Scenes in a random order, those with about as many questions together."""
        order = rng.permutation(len(self.asked))
        for start in range(0, len(order) - 8 * size + 1, 8 * size):
            some = sorted(order[start : start + 8 * size], key=lambda n: len(self.asked[n]))
            for first in rng.permutation(range(0, 8 * size, size)):
                yield [int(n) for n in some[first : first + size]]

    def read(self, numbers: Sequence[int]) -> Tensor:
        """Hidden states of some scenes, float32."""
        return torch.from_numpy(np.stack([self.states[n] for n in numbers])).float()


def build(device: Any) -> tuple[Any, Eyes, Any]:
    """The composed model with what is trained put on it, its eyes, and the tokenizer."""
    model = base().to(device).requires_grad_(False)
    # on a CPU the backward pass of the fused attention takes longer than all matrix products
    model.set_attn_implementation("eager")
    torch.manual_seed(0)
    eyes = Eyes(model)
    lora.attach(eyes.layers, RANKS["tower"])
    lora.attach(model.model.language_model.layers, RANKS["language"])
    model.to(device)
    eyes.projector.requires_grad_(True)
    for parameter in model.model.language_model.parameters():
        if not parameter.requires_grad:  # autocast would bring them there at every step
            parameter.data = parameter.data.to(torch.bfloat16)
    model.tie_weights()
    return model, eyes, load_tokenizer()


def measure(
    model: Any, eyes: Eyes, data: Data, tokenizer: Any, share: float, scenes: int
) -> dict[str, float]:
    """Share of right answers by type about the first scenes, with that share of the visual tokens, at
    random; the processes share the scenes."""
    device, ranks = model.device, torch.distributed.get_world_size()
    found = torch.zeros(len(TYPES), 2, dtype=torch.float64)
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        for start in range(8 * torch.distributed.get_rank(), scenes, 8 * ranks):
            rng = np.random.default_rng([5, start])
            numbers = list(range(start, min(start + 8, scenes)))
            rows = [data.asked[n] for n in numbers]
            kept = [keep(rng, share) for _ in rows]
            packed = pack(rows, tokenizer, kept, PATCHES).to(device)
            visual = eyes(data.read(numbers).to(device))
            said, _ = logits(model, packed, hidden(model, packed, visual))
            told = right(packed, said, [len(row) for row in rows])
            for row, goods in zip(rows, told, strict=True):
                for question, good in zip(row, goods, strict=True):
                    found[TYPES.index(question.type)] += torch.tensor([good, 1])
    torch.distributed.all_reduce(found)
    shares = (found[:, 0] / found[:, 1].clamp(min=1)).tolist()
    return {kind: round(share, 3) for kind, share in zip(TYPES, shares, strict=True)}


def keep(rng: np.random.Generator, share: float) -> np.ndarray:
    """Random visual tokens, in order."""
    return np.sort(rng.permutation(PATCHES)[: round(share * PATCHES)])


def question_loss(packed: Any, said: Tensor, wanted: Tensor, rows: Sequence[Any]) -> Tensor:
    """Cross-entropy of the answer tokens, questions of rare types counting more."""
    table = [[WEIGHTS.get(q.type, 1.0) for q in row] for row in rows]
    places = (packed.targets >= 0).nonzero()
    owners = packed.question.tolist()
    weights = torch.tensor([table[r][owners[r][c]] for r, c in places.tolist()]).to(said.device)
    loss = F.cross_entropy(said.float(), wanted, reduction="none")
    return (loss * weights).sum() / weights.sum()


def export(model: Any, path: Path) -> None:
    """Write what was trained, in half precision."""
    found = lora.changes(model)
    start = "model.multi_modal_projector."
    found |= {n: v for n, v in model.state_dict().items() if n.startswith(start)}
    half = {name: value.half().cpu().contiguous() for name, value in found.items()}
    save_file(half, path)
    path.chmod(0o644)


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=Path("runs/photo"), help="with the features")
    parser.add_argument("--shown", type=int, default=1000, help="steps of the first stage")
    parser.add_argument("--steps", type=int, default=3400, help="steps with questions")
    parser.add_argument(
        "--fixed",
        type=float,
        default=0.25,
        help="share of them with tower and projector as they are",
    )
    parser.add_argument("--start", type=Path, help="trained weights to go on from")
    parser.add_argument("--batch", type=int, default=8, help="pictures a step, all ranks together")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--measure", type=int, default=500, help="steps between measurements")
    args = parser.parse_args(argv)
    args.folder = args.output
    launch(work, args)


def work(rank: int, args: argparse.Namespace) -> None:
    """One process's share of the training."""
    device = find_device(None)
    model, eyes, tokenizer = build(device)
    if args.start:
        told = model.load_state_dict(load_file(args.start, str(device)), strict=False)
        assert not told.unexpected_keys, told.unexpected_keys
    data, held = (Data(args.output, split, args.seed) for split in ("train", "val"))
    shown = Shown(model.get_input_embeddings().weight.detach(), tokenizer).to(device)
    seeing = [p for p in eyes.parameters() if p.requires_grad]
    seen = {id(p) for p in seeing}
    talking = [p for p in model.parameters() if p.requires_grad and id(p) not in seen]
    learned = [*seeing, *talking, *shown.parameters()]
    optimiser = torch.optim.AdamW(
        [
            {"params": seeing, "weight_decay": 0.01},
            {"params": talking, "weight_decay": 0.01},
            {"params": list(shown.parameters()), "lr": 0.02, "weight_decay": 0.0},
        ],
        lr=args.lr,
        betas=(0.9, 0.98),
    )
    log = _log(args.output / "log.jsonl", rank)
    log({"trained": sum(p.numel() for p in seeing + talking)})
    order = np.random.default_rng([args.seed, int(args.start is not None)])
    rng = np.random.default_rng([args.seed, int(args.start is not None), rank])
    began, recent = time.monotonic(), defaultdict(list)
    batches: Iterator[list[int]] = iter(())
    for step in range(args.shown + args.steps):
        first = step < args.shown
        if step == args.shown and rank == 0:
            export(model, args.output / "shown.safetensors")
        done = step if first else step - args.shown
        within = done / (args.shown if first else args.steps)
        rate = args.lr * min(1.0, (done + 1) / 50) * (0.51 + 0.49 * math.cos(math.pi * within))
        look = first or within >= args.fixed
        optimiser.param_groups[0]["lr"] = rate if first else SLOW * rate
        optimiser.param_groups[1]["lr"] = rate
        numbers = next(batches, [])
        if not numbers:
            batches = data.batches(args.batch, order)
            numbers = next(batches)
        numbers = numbers[rank :: args.ranks]
        rows = [data.asked[n] for n in numbers]
        with torch.autocast(device.type, torch.bfloat16):
            with torch.set_grad_enabled(look):
                visual = eyes(data.read(numbers).to(device))
                loss = near = shown(visual, [data.seen[n] for n in numbers])
            if not first:
                # the same for all processes, or each would wait for the longest sequences
                share = float(np.exp(order.uniform(math.log(0.05), 0)))
                kept = [keep(rng, share) for _ in rows]
                renumber = bool(rng.random() < 0.3)
                packed = pack(rows, tokenizer, kept, PATCHES, renumber).to(device)
                said, wanted = logits(model, packed, hidden(model, packed, visual))
                answer = question_loss(packed, said, wanted, rows)
                loss = answer + near
                recent["answer"].append(answer.item())
        loss.backward()
        average(p.grad for p in learned if p.grad is not None)
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimiser.step()
        optimiser.zero_grad()  # what has no gradient stays as it is
        recent["near"].append(near.item())
        if (step + 1) % 50 == 0:
            line: dict[str, Any] = {"step": step + 1, "seconds": round(time.monotonic() - began)}
            line |= {name: round(float(np.mean(v)), 4) for name, v in recent.items()}
            recent.clear()
            if not first and (done + 1) % args.measure == 0:
                line["val"] = measure(model, eyes, held, tokenizer, 1.0, 160)
                if rank == 0:
                    export(model, args.output / "trained.safetensors")
            log(line)
    if rank == 0:
        export(model, args.output / "trained.safetensors")
    for share in (1.0, 0.25, 0.0):
        found = measure(model, eyes, held, tokenizer, share, len(held.asked))
        log({"share": share, "val": found})


def _log(path: Path, rank: int) -> Callable[[dict[str, Any]], None]:
    """Prints lines and keeps them, in the first process."""
    file = path.open("w") if rank == 0 else None

    def log(line: dict[str, Any]) -> None:
        if file is not None:
            print(json.dumps(line), file=file, flush=True)
            print(json.dumps(line), flush=True)

    return log


if __name__ == "__main__":
    main()
