"""Trains the projector, low-rank changes of the language model and of the tower's upper layers.

First each picture is only to show, by some patch, the words that are true of it: the projector learns
to make patches look like words, from labels of whole pictures. Then questions are answered, while a
random part of the visual tokens, 5 to 100 %, is there.

Run: ``python -m vtc.eval.reference_photo.train --debian DEBIAN --clothing CLOTHING --output runs/photo``
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vtc.eval.common.loading import find_device

from . import lora, tower
from .features import FROZEN, QUESTIONS
from .model import base, load_tokenizer
from .packing import hidden, logits, pack, right
from .questions import TYPES, Question, answers
from .scene import make_scene
from .sources import find

PATCHES = (tower.SIDE // tower.PATCH) ** 2
RANKS = {"language": 32, "tower": 16}
#: learning rate of tower and projector behind it, in that of the language model
SLOW = 0.2
#: types with few questions count more in the loss
WEIGHTS = {"garment": 2.0, "reading": 2.0}


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


class Shown(nn.Module):
    """Loss of the first stage: each word that is true of a picture should be near some patch.

    The nearness of a word is a soft maximum over patches of the cosine between visual token and the
    word's embedding. Visual tokens are held at the length of words.
    """

    def __init__(self, table: Tensor, tokenizer: Any) -> None:
        super().__init__()
        self.words = [
            *answers("naming"),
            *answers("color"),
            *answers("garment"),
            *(word for word in answers("reading") if word.isalpha()),
            *"0123456789",
        ]
        self.place = {word: place for place, word in enumerate(self.words)}
        self.kinds = [answers(kind) for kind in ("naming", "color", "garment")]
        ids = [tokenizer(word, add_special_tokens=False).input_ids for word in self.words]
        vectors = torch.stack([table[one].float().mean(0) for one in ids])
        centre = table[:-1].float().mean(0)
        self.vectors, self.centre = F.normalize(vectors - centre, dim=-1), centre
        self.length = float((table[:-1].float() - centre).norm(dim=-1).mean())
        self.scale = nn.Parameter(torch.full((len(self.words),), 16.0))
        self.offset = nn.Parameter(torch.full((len(self.words),), -6.0))

    def forward(self, visual: Tensor, rows: Sequence[Sequence[Question]]) -> Tensor:
        visual = visual.float() - self.centre
        norms = visual.norm(dim=-1)
        near = (visual / norms[..., None].clamp(min=1e-6)) @ self.vectors.T
        near = torch.logsumexp(20 * near, 1) / 20 - math.log(near.shape[1]) / 20
        wanted, known = (table.to(visual.device) for table in self.labels(rows))
        loss = F.binary_cross_entropy_with_logits(
            near * self.scale + self.offset, wanted, reduction="none"
        )
        return (loss * known).sum() / known.sum() + 0.1 * ((norms / self.length - 1) ** 2).mean()

    def labels(self, rows: Sequence[Sequence[Question]]) -> tuple[Tensor, Tensor]:
        """Which words are true of each picture, and which of them it is known of."""
        wanted = torch.zeros(len(rows), len(self.words))
        known = torch.ones(len(rows), len(self.words))
        colors, garments = ([self.place[w] for w in self.kinds[n]] for n in (1, 2))
        for row, questions in enumerate(rows):
            types = {question.type for question in questions}
            named = [q for q in questions if q.type == "naming"]
            if len(named) > sum(q.type == "color" for q in questions):
                known[row, colors] = 0  # what is not dyed has a colour too
            if "garment" not in types:
                known[row, garments] = 0  # one may lie behind
            for question in questions:
                if question.type in ("naming", "color", "garment", "reading"):
                    parts = (
                        list(question.answer) if question.answer.isdigit() else [question.answer]
                    )
                    for word in parts:
                        wanted[row, self.place[word]] = known[row, self.place[word]] = 1
        return wanted, known


class Data:
    """Scenes of a split, with the hidden states that `features` kept."""

    def __init__(self, args: argparse.Namespace, split: str, seed: int, questions: int) -> None:
        self.states = np.load(args.output / f"{split}{seed}.npy", mmap_mode="r")
        path = args.output / f"{split}{seed}.questions{questions}.json"
        if path.is_file():
            self.asked = [[Question(*q) for q in row] for row in json.loads(path.read_text())]
        else:
            sources = find(args.debian, args.clothing, split)
            self.asked = [
                make_scene(sources, split, seed, n, questions).questions
                for n in range(len(self.states))
            ]
            path.write_text(
                json.dumps([[(q.type, q.text, q.answer) for q in row] for row in self.asked])
            )

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
    for module in model.model.language_model.layers.modules():
        if isinstance(module, lora.LowRank):
            module.base.to(torch.bfloat16)  # autocast would bring them there at every step
    model.lm_head.weight.data = model.lm_head.weight.data.to(torch.bfloat16)
    return model, eyes, load_tokenizer()


def measure(
    model: Any, eyes: Eyes, data: Data, tokenizer: Any, share: float, scenes: int
) -> dict[str, float]:
    """Share of right answers by type about the first scenes, with that share of the visual tokens, at
    random."""
    rng = np.random.default_rng(5)
    found: dict[str, list[bool]] = defaultdict(list)
    device = model.device
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        for start in range(0, scenes, 8):
            numbers = list(range(start, min(start + 8, scenes)))
            rows = [data.asked[n] for n in numbers]
            kept = [keep(rng, share) for _ in rows]
            packed = pack(rows, tokenizer, kept, PATCHES).to(device)
            visual = eyes(data.read(numbers).to(device))
            said, _ = logits(model, packed, hidden(model, packed, visual))
            told = right(packed, said, [len(row) for row in rows])
            for row, goods in zip(rows, told, strict=True):
                for question, good in zip(row, goods, strict=True):
                    found[question.type].append(good)
    return {kind: round(float(np.mean(found[kind])), 3) for kind in TYPES if found[kind]}


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
    parser.add_argument("--debian", type=Path, required=True, help="the unpacked Debian packages")
    parser.add_argument("--clothing", type=Path, required=True, help="clothing-dataset-small")
    parser.add_argument("--output", type=Path, default=Path("runs/photo"), help="with the features")
    parser.add_argument("--minutes", type=float, default=56)
    parser.add_argument("--shown", type=float, default=0.15, help="of it, for the first stage")
    parser.add_argument(
        "--fixed",
        type=float,
        default=0.3,
        help="of the second stage, with tower and projector as they are",
    )
    parser.add_argument("--start", type=Path, help="trained weights to go on from")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    device = find_device(None)
    model, eyes, tokenizer = build(device)
    if args.start:
        told = model.load_state_dict(load_file(args.start, str(device)), strict=False)
        assert not told.unexpected_keys, told.unexpected_keys
    data, held = Data(args, "train", args.seed, QUESTIONS), Data(args, "val", args.seed, QUESTIONS)
    shown = Shown(model.get_input_embeddings().weight.detach(), tokenizer).to(device)
    seeing = [p for p in eyes.parameters() if p.requires_grad]
    seen = {id(p) for p in seeing}
    talking = [p for p in model.parameters() if p.requires_grad and id(p) not in seen]
    learned = seeing + talking
    optimiser = torch.optim.AdamW(
        [
            {"params": seeing, "weight_decay": 0.01},
            {"params": talking, "weight_decay": 0.01},
            {"params": list(shown.parameters()), "lr": 0.02, "weight_decay": 0.0},
        ],
        lr=args.lr,
        betas=(0.9, 0.98),
    )
    print(f"{sum(p.numel() for p in learned) / 1e6:.2f} M trained", flush=True)
    rng = np.random.default_rng([args.seed, int(args.start is not None)])
    began, recent = time.monotonic(), defaultdict(list)
    steps, saved = {True: 0, False: 0}, began
    log = (args.output / "log.jsonl").open("w")
    batches: Iterator[list[int]] = iter(())
    while (progress := (time.monotonic() - began) / (60 * args.minutes)) < 1:
        numbers = next(batches, None)
        if numbers is None:
            batches = data.batches(args.batch, rng)
            continue
        first = progress < args.shown
        steps[first] += 1
        within = progress / args.shown if first else (progress - args.shown) / (1 - args.shown)
        rate = args.lr * min(1.0, steps[first] / 50) * (0.51 + 0.49 * math.cos(math.pi * within))
        look = first or within > args.fixed
        optimiser.param_groups[0]["lr"] = rate if first else SLOW * rate
        optimiser.param_groups[1]["lr"] = rate
        if not first and steps[True] and steps[False] == 1:
            export(model, args.output / "shown.safetensors")
        rows = [data.asked[n] for n in numbers]
        with torch.autocast(device.type, torch.bfloat16):
            with torch.set_grad_enabled(look):
                visual = eyes(data.read(numbers).to(device))
                loss = near = shown(visual, rows)
            if not first:
                share = float(np.exp(rng.uniform(math.log(0.05), 0)))
                kept = [keep(rng, share) for _ in rows]
                renumber = bool(rng.random() < 0.3)
                packed = pack(rows, tokenizer, kept, PATCHES, renumber).to(device)
                said, wanted = logits(model, packed, hidden(model, packed, visual))
                answer = question_loss(packed, said, wanted, rows)
                loss = answer + near
                recent["answer"].append(answer.item())
        loss.backward()
        nn.utils.clip_grad_norm_(learned, 1.0)
        optimiser.step()
        optimiser.zero_grad()  # what has no gradient stays as it is
        recent["near"].append(near.item())
        if sum(steps.values()) % 25 == 0:
            line: dict[str, Any] = {"steps": [*steps.values()]}
            line["seconds"] = round(time.monotonic() - began)
            line |= {name: round(float(np.mean(v)), 4) for name, v in recent.items()}
            recent.clear()
            if time.monotonic() - saved > 420 and not first:
                line["val"] = measure(model, eyes, held, tokenizer, 1.0, 160)
                export(model, args.output / "trained.safetensors")
                saved = time.monotonic()
            print(json.dumps(line), flush=True)
            log.write(json.dumps(line) + "\n")
            log.flush()
    export(model, args.output / "trained.safetensors")
    for share in (1.0, 0.25, 0.0):
        line = {
            "share": share,
            "val": measure(model, eyes, held, tokenizer, share, len(held.asked)),
        }
        print(json.dumps(line), flush=True)
        log.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
