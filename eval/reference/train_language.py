"""Stage 2: projector and language model, on features of the frozen tower of stage 1.

Scenes are rendered on the fly, each is seen once. Small canvases come first, because looking
something up is learned faster in a short sequence. Text before the image, even crops and the
position jitter of :func:`packing.numbering` keep answers independent of how tokens are numbered.

Run: ``python -m vtc.eval.reference.train_language --vision runs/vision/clip.pt --minutes 60``
"""

from __future__ import annotations

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .model import build_clip, build_llava
from .packing import Lookahead, answer_logits, exact, pack, patch_features
from .scene import GRID_WEIGHTS, KINDS, Scene, make_scene
from .tiles import SIDE, token_layout
from .tokenizer import build_tokenizer
from .training import Log, Optimiser, Schedule, add_arguments, average, launch, save_state

# (until this progress, grids and their weights)
CURRICULUM = [
    (0.12, {(1, 2): 0.5, (2, 1): 0.5}),
    (0.25, {(1, 2): 0.25, (2, 1): 0.25, (1, 3): 0.2, (3, 1): 0.2, (2, 2): 0.1}),
    (1.01, GRID_WEIGHTS),
]

SPARSE = {"sparse": 1.0}
MIX = {**KINDS, "sparse": 0.12}
# Rare or slowly learned types count more in the loss.
WEIGHTS = {"at": 4.0, "count": 1.5}


def grids_at(progress: float) -> dict[tuple[int, int], float]:
    """Grid weights of the curriculum."""
    return next(grids for until, grids in CURRICULUM if progress < until)


class Batches:
    """Endless rows of fresh scenes; all rows of a batch have one tile grid."""

    def __init__(self, seed: int, rank: int, first: int, stride: int, tokens: int) -> None:
        self.seed, self.rank, self.index, self.stride = seed, rank, first, stride
        self.tokens = tokens
        self.tokenizer = build_tokenizer()

    def next(self, progress: float) -> tuple[Any, Any, int]:
        """A packed batch with about ``tokens`` image tokens, a few sparse scenes reduced to their
        thumbnails with questions about position, and the number of scenes.

        With crops in view, "where" is half answered by the order of the crops, and the model
        settles for that; alone, the thumbnail teaches it where the whole answer is.
        """
        rng = np.random.default_rng([11, self.seed, self.index])
        weights = grids_at(progress)
        shares = np.array(list(weights.values()))
        grid = list(weights)[int(rng.choice(len(weights), p=shares / shares.sum()))]
        count = max(2, self.tokens // (SIDE * SIDE * (1 + grid[0] * grid[1])))
        scenes: list[Scene] = []
        while len(scenes) < count:
            # More questions of a type than in the evaluation: pages would fill few slots else.
            scene = make_scene("train", 1 + self.seed, self.index, MIX, {grid: 1.0}, 16, 8)
            self.index += self.stride
            if scene.questions:
                scenes.append(scene)
        packed = pack(scenes, self.tokenizer, rng, noise=0.2)
        lone: list[Scene] = []
        while len(lone) < 10:
            scene = make_scene("train", 1 + self.seed, self.index, SPARSE, {grid: 1.0}, 16, 8)
            self.index += self.stride
            asked = [q for q in scene.questions if q.group == "position"]
            if asked:
                lone.append(replace(scene, questions=asked))
        layouts = [token_layout(s.image.height, s.image.width) for s in lone]
        keep = [layout.tile == 0 for layout in layouts]
        contiguous = bool(rng.random() < 0.5)
        thumbs = pack(lone, self.tokenizer, rng, "jitter", True, keep, contiguous)
        return packed, thumbs, count


def answer_loss(packed: Any, logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of the answer tokens, weighted by question type (:data:`WEIGHTS`)."""
    weights = torch.ones(packed.targets.shape)
    for row, types in enumerate(packed.types):
        for block, kind in enumerate(types):
            weights[row, block] = WEIGHTS.get(kind, 1.0)
    weights = weights[packed.targets >= 0]
    return (F.cross_entropy(logits, targets, reduction="none") * weights).sum() / weights.sum()


def random_keep(scene: Scene, retention: float, rng: np.random.Generator) -> np.ndarray:
    """Random patch tokens; newlines always stay."""
    patch = token_layout(scene.image.height, scene.image.width).patch
    places = np.flatnonzero(patch >= 0)
    keep = patch < 0
    keep[rng.permutation(places)[: round(retention * len(places))]] = True
    return keep


def uniform_keep(scene: Scene, retention: float, rng: np.random.Generator) -> np.ndarray:
    """Every n-th patch token in reading order, at the same phase in each image."""
    patch = token_layout(scene.image.height, scene.image.width).patch
    places = np.flatnonzero(patch >= 0)
    count = round(retention * len(places))
    keep = patch < 0
    keep[places[(np.arange(count) * len(places) / count).astype(int)]] = True
    return keep


def by_grid(scenes: Sequence[Scene], size: int = 8) -> Iterator[list[Scene]]:
    """Batches of scenes that share a grid and have questions."""
    groups = defaultdict(list)
    for scene in scenes:
        if scene.questions:
            groups[scene.grid].append(scene)
    for members in groups.values():
        for start in range(0, len(members), size):
            yield members[start : start + size]


def measure(
    model: Any,
    scenes: Sequence[Scene],
    keep: Any = None,
    retention: float = 1.0,
    contiguous: bool = False,
    seed: int = 0,
) -> dict[str, float]:
    """Exact match by question type, over all questions as "all"; ``n`` is their number."""
    tokenizer = build_tokenizer()
    rng = np.random.default_rng(seed)
    right: dict[str, list[bool]] = defaultdict(list)
    for batch in by_grid(scenes):
        masks = None if keep is None else [keep(scene, retention, rng) for scene in batch]
        packed = pack(batch, tokenizer, rng, "plain", False, masks, contiguous)
        with torch.no_grad():
            logits, _ = answer_logits(model, packed)
        for types, hits in zip(packed.types, exact(packed, logits), strict=True):
            for kind, hit in zip(types, hits, strict=True):
                right[kind].append(hit)
                right["all"].append(hit)
    scores = {kind: float(np.mean(hits)) for kind, hits in sorted(right.items())}
    return {**scores, "n": len(right["all"])}


def val_scenes(count: int) -> list[Scene]:
    """The validation scenes that training looks at."""
    return [make_scene("val", 0, index) for index in range(count)]


def numbering_gap(model: Any, scenes: Sequence[Scene]) -> dict[str, float]:
    """Exact match at half of the tokens, positions kept and renumbered."""
    found = {}
    for name, keep in (("random", random_keep), ("uniform", uniform_keep)):
        for mode in ("original", "contiguous"):
            scores = measure(model, scenes, keep, 0.5, mode == "contiguous")
            found[f"{name}_{mode}"] = scores["all"]
    return found


def work(rank: int, args: argparse.Namespace) -> None:
    """One rank of the training."""
    clip = build_clip(args.seed)
    clip.load_state_dict(torch.load(args.vision, weights_only=True))
    model: Any = build_llava(clip, args.seed)
    model.set_attn_implementation("eager")
    model.model.vision_tower.requires_grad_(False)
    learned = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    optimiser = Optimiser(
        learned, lambda n: ".layers." in n or "multi_modal_projector" in n, args.lr
    )
    config = model.config.text_config
    torch.manual_seed(args.seed)
    aux = Lookahead(config.hidden_size, config.vocab_size)
    aux_optimiser = Optimiser(aux.named_parameters(), lambda name: False, args.lr)
    shared = [p for _, p in learned] + list(aux.parameters())
    state_path = args.folder / f"state{rank}.pt"
    step, index, used, seen = 0, rank, 0.0, 0
    if args.resume:
        state = torch.load(state_path, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.load(state["optimiser"])
        if "aux" in state:
            aux.load_state_dict(state["aux"])
            aux_optimiser.load(state["aux_optimiser"])
        step, index, seen = state["step"], state["index"], state["scenes"]
        used = state["seconds"]
    data = Batches(args.seed, rank, index, args.ranks, args.tokens)
    log = Log(args.folder, args.resume) if rank == 0 else None
    watched = val_scenes(args.val_scenes) if rank == 0 else []
    schedule = Schedule(args, used)
    schedule.update(step)
    saved = checked = time.monotonic()
    recent: list[float] = []
    while schedule.progress < 1:
        packed, thumbs, count = data.next(schedule.progress)
        features = patch_features(
            model.model.vision_tower, packed.tiles, model.config.vision_feature_layer
        )
        logits, targets, ahead = answer_logits(model, packed, features, aux)
        loss = answer_loss(packed, logits, targets)
        (loss + args.ahead * ahead).backward()
        small = patch_features(
            model.model.vision_tower, thumbs.tiles[:, :1], model.config.vision_feature_layer
        )
        logits, targets, ahead_thumb = answer_logits(model, thumbs, small, aux)
        thumb = answer_loss(thumbs, logits, targets)
        (args.thumb * (thumb + args.ahead * ahead_thumb)).backward()
        optimiser.step(schedule.factor(step))
        aux_optimiser.step(schedule.factor(step))
        step, seen = step + 1, seen + count * args.ranks
        recent.append(float(loss.detach()))
        if step % args.sync == 0:
            average(shared)
            schedule.update(step)
        if step % args.log_every == 0 and log is not None:
            log.write(
                step=step,
                seconds=schedule.seconds(),
                scenes=seen,
                progress=schedule.progress,
                lr=args.lr * schedule.factor(step),
                loss=float(np.mean(recent)),
                ahead=float(ahead.detach()),
                thumb=float(thumb.detach()),
            )
            recent = []
        now = time.monotonic()
        if log is not None and now - checked > args.val_minutes * 60 and step % args.sync == 0:
            log.write(step=step, seconds=schedule.seconds(), val=measure(model, watched))
            if schedule.progress > 0.4:
                log.write(step=step, half=numbering_gap(model, watched[: len(watched) // 2]))
            checked = time.monotonic()
        if now - saved > args.save_minutes * 60 or schedule.progress >= 1:
            saved = now
            save_state(
                state_path,
                model=model.state_dict(),
                optimiser=optimiser.state(),
                aux=aux.state_dict(),
                aux_optimiser=aux_optimiser.state(),
                step=step,
                index=data.index,
                scenes=seen,
                seconds=schedule.seconds(),
            )
    average(shared)
    if log is not None:
        torch.save(model.state_dict(), args.folder / "llava.pt")
        log.write(step=step, seconds=schedule.seconds(), scenes=seen, final=measure(model, watched))


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    add_arguments(parser, "runs/language", 60.0)
    parser.add_argument("--vision", type=Path, default=Path("runs/vision/clip.pt"))
    parser.add_argument("--tokens", type=int, default=2600, help="image tokens per step and rank")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--ahead", type=float, default=0.5, help="weight of the look-ahead loss")
    parser.add_argument("--thumb", type=float, default=0.3, help="weight of thumbnail questions")
    parser.add_argument("--log-every", type=int, default=25)
    parser.add_argument("--val-scenes", type=int, default=64)
    parser.add_argument("--val-minutes", type=float, default=4.0)
    args = parser.parse_args(argv)
    if not args.vision.is_file():
        raise ValueError(f"vision must be a clip.pt of train_vision, no file {args.vision}")
    launch(work, args)


if __name__ == "__main__":
    main()
