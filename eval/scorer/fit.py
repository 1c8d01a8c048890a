"""The training loop of a scorer: resumable, on one device or several."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vtc.errors import VTCError
from vtc.eval.scorer.teach import Lesson
from vtc.methods._scorer import DemandScorer


@dataclass(frozen=True)
class Settings:
    """How a scorer is trained.

    Attributes:
        steps: optimiser steps.
        batch: images a step, over all processes.
        lr: peak of the learning rate, which rises over a tenth of the steps and falls to 0.
        every: steps between two looks at held-out images.
        seed: of weights and batches.
        hidden, layers: of the scorer.
    """

    steps: int = 300
    batch: int = 8
    lr: float = 1e-3
    every: int = 100
    seed: int = 0
    hidden: int = 96
    layers: int = 2


@dataclass
class State:
    """Where a run is.

    Attributes:
        step: steps done.
        curve: a row for each look at the held-out images, see `held_out.look`, with `step` and `loss`.
        best: the weights with the least divergence there.
    """

    step: int = 0
    curve: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)


def ranks() -> tuple[int, int]:
    """The number of this process and how many there are, as `accelerate launch` says it."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def chosen(count: int, batch: int, step: int, seed: int) -> list[int]:
    """The images of a step: an epoch is a permutation that the seed and its number give."""
    out: list[int] = []
    for place in range(step * batch, (step + 1) * batch):
        epoch, nth = divmod(place, count)
        draw = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        out.append(int(torch.randperm(count, generator=draw)[nth]))
    return out


def loss_of(scorer: nn.Module, lessons: Sequence[Lesson], device: torch.device) -> Tensor:
    """Kullback-Leibler divergence of corrected demands from where answers look, mean over images."""
    patches = [lesson.valid.numel() for lesson in lessons]
    most = max(patches)

    def rows(values: Sequence[Tensor]) -> Tensor:
        flat = [value.flatten(0, 1) for value in values]
        out = flat[0].new_zeros(len(flat), most, *flat[0].shape[1:])
        for row, value in zip(out, flat, strict=True):
            row[: len(value)] = value
        return out.to(device)

    valid = rows([lesson.valid for lesson in lessons])
    demand = rows([lesson.demand for lesson in lessons]) * valid
    thumbnail = [torch.zeros_like(lesson.valid) for lesson in lessons]
    for flags, lesson in zip(thumbnail, lessons, strict=True):
        flags[0] = lesson.overview
    features = rows([lesson.features for lesson in lessons])
    target = rows([lesson.target for lesson in lessons])
    delta = scorer(features, demand, rows(thumbnail), valid)
    logits = demand.clamp(min=1e-9).log() + delta
    found = logits.masked_fill(~valid, -torch.inf).log_softmax(1).masked_fill(~valid, 0)
    entropy = torch.xlogy(target, target).sum(1)
    return (entropy - (target * found).sum(1)).mean()


def fit(
    scorer: DemandScorer,
    files: Sequence[Path],
    settings: Settings,
    look: Callable[[DemandScorer], dict[str, Any]],
    device: torch.device,
    checkpoint: Path,
    progress: Callable[[int, float], None] = lambda step, loss: None,
    facts: Mapping[str, Any] | None = None,
) -> State:
    """Train `scorer` in place, and leave it with the weights that were best on held-out images.

    Args:
        files: lessons to learn from.
        look: measures a scorer on held-out images; has `divergence`, which is to be small.
        checkpoint: where the run continues from, and is written to at every look.
        progress: called after every step with its number and loss.
        facts: plain values beside the settings and the names of `files` that belong to a run.

    Raises:
        VTCError: the checkpoint is of another run, or the batch does not divide by the processes.
    """
    rank, world = ranks()
    if settings.batch % world:
        raise VTCError(f"--batch: got {settings.batch}, which {world} processes cannot share")
    scorer.to(device)
    module: Any = scorer
    optimiser: Any = torch.optim.AdamW(scorer.parameters(), settings.lr, weight_decay=0.05)
    accelerator = None
    if world > 1:
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=device.type == "cpu")
        module, optimiser = accelerator.prepare(scorer, optimiser)
    state = State()
    run = {**asdict(settings), **(facts or {}), "images": [file.name for file in files]}
    if checkpoint.is_file():
        kept = torch.load(checkpoint, map_location=device, weights_only=True)
        begun = kept.get("run", {})
        if begun != run:
            changed = [k for k in {**run, **begun} if begun.get(k) != run.get(k)]
            raise VTCError(
                f"{changed[0].replace('_', '-')}: the run in {str(checkpoint.parent)!r} was "
                "begun with another value; give the same, or another --output"
            )
        scorer.load_state_dict(kept["scorer"])
        optimiser.load_state_dict(kept["optimiser"])
        state = State(kept["step"], kept["curve"], kept["best"])
    if accelerator is not None:  # nobody finds the first checkpoint of this very run
        accelerator.wait_for_everyone()

    def settle(loss: float | None) -> None:
        """Look at the held-out images, on the first process, and write everything down."""
        if rank == 0:
            scorer.eval()
            state.curve.append({"step": state.step, "loss": loss, **look(scorer)})
            scorer.train()
            if min(state.curve, key=lambda row: row["divergence"]) is state.curve[-1]:
                state.best = {k: v.detach().cpu().clone() for k, v in scorer.state_dict().items()}
            part = checkpoint.with_suffix(".part")
            torch.save(
                {
                    "run": run,
                    "scorer": scorer.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "step": state.step,
                    "curve": state.curve,
                    "best": state.best,
                },
                part,
            )
            part.replace(checkpoint)
        if accelerator is not None:
            accelerator.wait_for_everyone()

    if not state.curve:
        settle(None)
    since: list[float] = []
    while state.step < settings.steps:
        mine = chosen(len(files), settings.batch, state.step, settings.seed)[rank::world]
        rise = min(1.0, (state.step + 1) / max(1, settings.steps // 10))
        for group in optimiser.param_groups:
            group["lr"] = settings.lr * rise * (1 - state.step / settings.steps)
        loss = loss_of(module, [Lesson.load(files[i]) for i in mine], device)
        if accelerator is None:
            loss.backward()
        else:
            accelerator.backward(loss)
        torch.nn.utils.clip_grad_norm_(scorer.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        state.step += 1
        since.append(float(loss.detach()))
        progress(state.step, since[-1])
        if state.step % settings.every == 0 or state.step == settings.steps:
            settle(sum(since) / len(since))
            since.clear()
    if state.best:
        scorer.load_state_dict(state.best)
    scorer.eval()
    return state
