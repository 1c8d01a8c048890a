"""Train a TokenFLEX projector in place of the reference VLM's own, and see at which counts it holds.

Two runs that differ in one thing: `flex` draws the tokens a tile (n x n) anew for every step, `fixed`
always takes the full grid. Both start from the shipped model, keep its vision tower frozen, first bring
the new projector near the outputs of the old one, then train it on answers; the language model stays
frozen too unless `--train-language` is given, so that the projector fits the shipped model. Both are
then asked the same questions at every n, also at n that `flex` never drew.

    python -m vtc.eval.train_tokenflex --steps 500 --output runs/tokenflex

writes the projectors and `result.json`. The `flex` projector of such a run is shipped beside the
reference VLM.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from vtc.eval.reference import load_reference
from vtc.eval.reference.packing import PAD, TEXT, Packed, answer_states, exact, pack, patch_features
from vtc.eval.reference.scene import GRID_WEIGHTS, KINDS, Scene, make_scene
from vtc.eval.reference.threads import one_thread
from vtc.eval.reference.tiles import SIDE
from vtc.eval.reference.tokenizer import build_tokenizer
from vtc.eval.reference.train_language import by_grid
from vtc.methods.tokenflex import TokenFlex, TokenFlexProjector, sample_token_count
from vtc.tokens import VisualTokens

DRAWN = (
    4,
    16,
    64,
)  # tokens a tile that `flex` trains at; the paper's 64, 144, 256 on its 27 x 27 grid
PROBABILITIES = (0.2, 0.3, 0.5)
ASKED = (8, 6, 4, 3, 2)  # n at which both are tested


def prefix(
    model: Any, packed: Packed, scenes: Sequence[Scene], features: Tensor, method: TokenFlex
) -> tuple[Packed, Tensor]:
    """The packed rows with their image part compressed, and its input embeddings.

    Args:
        features: `[rows, tiles * patches, C]`, from `patch_features`.
    """
    core = model.model
    text = core.language_model.embed_tokens(packed.ids)
    rows, places, marks = [], [], []
    for row, scene in enumerate(scenes):
        start = int((packed.source[row] == TEXT).sum())
        tokens = VisualTokens(
            features=features[row].view(-1, SIDE * SIDE, features.shape[-1]),
            patch_grid=(SIDE, SIDE),
            tile_grid=scene.grid,
            image_size=(scene.image.height, scene.image.width),
            newline=core.image_newline,
        )
        out = method.compress(tokens)
        image = torch.where(out.is_patch[:, None], out.features, core.image_newline)
        rows.append(torch.cat([text[row, :start], image]))
        places.append(
            torch.cat([packed.positions[row, :start], packed.positions[row, start + out.anchor]])
        )
        marks.append(torch.zeros(len(rows[-1]), dtype=torch.long))
    pad = nn.utils.rnn.pad_sequence
    short = replace(
        packed,
        positions=pad(places, batch_first=True),
        source=pad(marks, batch_first=True, padding_value=PAD),
    )
    return short, pad(rows, batch_first=True)


def logits(
    model: Any, packed: Packed, scenes: Sequence[Scene], method: TokenFlex
) -> tuple[Tensor, Tensor]:
    """Logits and targets of all answer tokens."""
    layer = model.config.vision_feature_layer
    features = patch_features(model.model.vision_tower, packed.tiles, layer)
    short, embedded = prefix(model, packed, scenes, features, method)
    asked = packed.targets >= 0
    states, _ = answer_states(model, short, embedded)
    return model.lm_head(states[asked]), packed.targets[asked]


class Scenes:
    """Endless batches of fresh training scenes, all of a batch with one grid of crops."""

    def __init__(self, seed: int, size: int) -> None:
        self.rng = np.random.default_rng([23, seed])
        self.seed, self.size, self.index = (
            seed,
            size,
            10_000_000,
        )  # apart from the reference training

    def next(self) -> list[Scene]:
        grids, weights = list(GRID_WEIGHTS), np.array(list(GRID_WEIGHTS.values()))
        grid = grids[int(self.rng.choice(len(grids), p=weights / weights.sum()))]
        batch: list[Scene] = []
        while len(batch) < self.size:
            scene = make_scene("train", 1 + self.seed, self.index, KINDS, {grid: 1.0})
            self.index += 1
            if scene.questions:
                batch.append(scene)
        return batch


def align(model: Any, projector: TokenFlexProjector, data: Scenes, steps: int) -> float:
    """Bring the new projector near the old one on full grids; the share of variance left."""
    optimiser = torch.optim.AdamW(projector.parameters(), lr=3e-3)
    tokenizer, rng, left = build_tokenizer(), np.random.default_rng(0), 1.0
    for _ in range(steps):
        packed = pack(data.next(), tokenizer, rng)
        features = patch_features(
            model.model.vision_tower, packed.tiles, model.config.vision_feature_layer
        )
        with torch.no_grad():
            target = model.model.multi_modal_projector(features)
        loss = F.mse_loss(projector.project(features), target)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        left = float(loss.detach() / target.var())
    return left


def train(name: str, args: argparse.Namespace, console: Console) -> tuple[nn.Module, Any]:
    """One of the two runs."""
    model: Any = load_reference()[0]
    model.set_attn_implementation("eager")
    model.requires_grad_(False)
    if args.train_language:
        model.model.language_model.requires_grad_(True)
        model.lm_head.requires_grad_(True)
        model.model.image_newline.requires_grad_(True)
    torch.manual_seed(args.seed)
    config = model.config
    projector = TokenFlexProjector(
        config.vision_config.hidden_size, config.text_config.hidden_size, hidden=args.hidden
    )
    data = Scenes(args.seed, args.scenes)
    left = align(model, projector, data, args.align_steps)
    console.print(f"{name}: {left:.1%} of the old projector's variance left after alignment")

    learned: list[dict[str, Any]] = [{"params": list(projector.parameters()), "lr": args.lr}]
    if args.train_language:
        rest = [p for p in model.parameters() if p.requires_grad]
        learned.append({"params": rest, "lr": args.lr / 3})
    optimiser = torch.optim.AdamW(learned, betas=(0.9, 0.98), weight_decay=0.01)
    base = [group["lr"] for group in optimiser.param_groups]
    tokenizer, rng = build_tokenizer(), np.random.default_rng([29, args.seed])
    start, step, losses = time.monotonic(), 0, []
    while (
        done := step / args.steps
        if args.steps
        else (time.monotonic() - start) / (60 * args.minutes)
    ) < 1:
        count = sample_token_count(args.seed + step, DRAWN, PROBABILITIES)
        side = int(count**0.5) if name == "flex" else SIDE
        batch = data.next()
        out, targets = logits(
            model, pack(batch, tokenizer, rng), batch, TokenFlex(side=side, projector=projector)
        )
        loss = F.cross_entropy(out, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_([p for g in learned for p in g["params"]], 1.0)
        factor = min(1.0, (step + 1) / 30, (1 - done) / 0.4)
        for group, lr in zip(optimiser.param_groups, base, strict=True):
            group["lr"] = lr * max(factor, 0.02)
        optimiser.step()
        optimiser.zero_grad()
        step += 1
        losses.append(float(loss.detach()))
        if step % 25 == 0:
            console.print(f"{name}: step {step}, loss {np.mean(losses[-25:]):.3f}, {done:.0%}")
    console.print(f"{name}: {step} steps in {time.monotonic() - start:.0f} s")
    return model, projector


def measure(
    model: nn.Module, projector: Any, side: int, scenes: Sequence[Scene]
) -> dict[str, float]:
    """Exact match at n = `side`, over all questions and by group."""
    tokenizer, rng = build_tokenizer(), np.random.default_rng(0)
    hits: dict[str, list[bool]] = defaultdict(list)
    for batch in by_grid(scenes):
        packed = pack(batch, tokenizer, rng, "plain", False)
        with torch.no_grad():
            out, _ = logits(model, packed, batch, TokenFlex(side=side, projector=projector))
        for scene, right in zip(batch, exact(packed, out), strict=True):
            for question, hit in zip(scene.questions, right, strict=True):
                hits["all"].append(hit)
                hits[question.group].append(hit)
    return {"questions": len(hits["all"]), **{k: float(np.mean(v)) for k, v in hits.items()}}


@one_thread()
def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=6.0, help="training time of each run")
    parser.add_argument("--steps", type=int, default=0, help="steps of each run instead of minutes")
    parser.add_argument("--align-steps", type=int, default=60)
    parser.add_argument(
        "--scenes", type=int, default=6, help="scenes a step, up to 16 questions each"
    )
    parser.add_argument(
        "--lr", type=float, default=3e-3, help="of the projector; a third of it else"
    )
    parser.add_argument(
        "--train-language",
        action="store_true",
        help="train the language model too, as the paper does",
    )
    parser.add_argument("--hidden", type=int, default=384, help="inner width of the SwiGLU")
    parser.add_argument("--test-scenes", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/tokenflex"))
    args = parser.parse_args(argv)

    console = Console(stderr=True)
    tested = [make_scene("test", 0, index) for index in range(args.test_scenes)]
    result: dict[str, Any] = {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "drawn": DRAWN,
        "probabilities": PROBABILITIES,
        "scores": {},
    }
    for name in ("flex", "fixed"):
        model, projector = train(name, args, console)
        folder = args.output / name
        projector.save(folder)
        if args.train_language:
            weights = {k: v for k, v in model.state_dict().items() if "vision_tower" not in k}
            torch.save(weights, folder / "language.pt")
        result["scores"][name] = {side: measure(model, projector, side, tested) for side in ASKED}
        (args.output / "result.json").write_text(json.dumps(result, indent=1) + "\n")

    table = Table("n x n a tile", *(f"{name}" for name in result["scores"]))
    for side in ASKED:
        cells = [f"{scores[side]['all']:.1%}" for scores in result["scores"].values()]
        table.add_row(f"{side} x {side} = {side * side}", *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
