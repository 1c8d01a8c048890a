"""Shared parts of both training stages: ranks, optimiser, schedule, log, checkpoints.

Two ranks with one thread each use two cores better than one process with two threads. The ranks
train apart and average their parameters every few steps, so a rank that is slowed down by other
work on the machine does not stop the other one at each step.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .muon import Muon


def add_arguments(parser: argparse.ArgumentParser, folder: str, minutes: float) -> None:
    """Flags that both stages share."""
    parser.add_argument("--folder", type=Path, default=Path(folder), help="state and log go here")
    parser.add_argument("--minutes", type=float, default=minutes, help="schedule length by clock")
    parser.add_argument("--steps", type=int, default=0, help="schedule length in steps instead")
    parser.add_argument("--ranks", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--sync", type=int, default=8, help="steps between parameter averages")
    parser.add_argument("--warmup", type=int, default=100, help="steps of linear warm-up")
    parser.add_argument("--decay-from", type=float, default=0.6, help="share before lr decays")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights and scenes")
    parser.add_argument("--save-minutes", type=float, default=3.0, help="between checkpoints")
    parser.add_argument("--resume", action="store_true", help="go on from the folder's state")


def launch(work: Callable[[int, argparse.Namespace], None], args: argparse.Namespace) -> None:
    """Run ``work(rank, args)`` in ``args.ranks`` processes."""
    if args.ranks < 1:
        raise ValueError(f"ranks must be at least 1, got {args.ranks}")
    args.folder.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory() as folder:
        args.meeting = f"file://{folder}/ranks"
        torch.multiprocessing.spawn(_rank, (work, args), nprocs=args.ranks)


def _rank(rank: int, work: Callable, args: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=args.meeting, rank=rank, world_size=args.ranks
    )
    try:
        work(rank, args)
    finally:
        torch.distributed.destroy_process_group()


def average(parameters: Iterable[Tensor]) -> None:
    """Replace parameters by their mean over the ranks, as one flat message."""
    parameters = list(parameters)
    world = torch.distributed.get_world_size()
    if world == 1:
        return
    with torch.no_grad():
        flat = torch.cat([p.detach().reshape(-1) for p in parameters])
        torch.distributed.all_reduce(flat)
        flat /= world
        start = 0
        for p in parameters:
            p.copy_(flat[start : start + p.numel()].view_as(p))
            start += p.numel()


class Schedule:
    """Progress 0..1 by steps or by the clock, agreed between ranks at each :meth:`update`."""

    def __init__(self, args: argparse.Namespace, used: float = 0.0) -> None:
        self.args = args
        self.used = used  # seconds of earlier runs
        self.start = time.monotonic()
        self.progress = 0.0
        self.limit = args.minutes * 60

    def seconds(self) -> float:
        """Training seconds so far, over all runs."""
        return self.used + time.monotonic() - self.start

    def update(self, step: int) -> float:
        """Call at the same steps on each rank; returns the agreed progress."""
        done = step / self.args.steps if self.args.steps else self.seconds() / self.limit
        agreed = torch.tensor([done], dtype=torch.float64)
        torch.distributed.broadcast(agreed, 0)
        self.progress = float(agreed[0])
        return self.progress

    def factor(self, step: int) -> float:
        """Learning-rate factor: linear warm-up, constant, linear decay to 2 %."""
        warm = min(1.0, (step + 1) / max(1, self.args.warmup))
        start = self.args.decay_from
        left = max(0.0, 1.0 - self.progress) / max(1e-6, 1.0 - start)
        return warm * max(0.02, min(1.0, left))


class Optimiser:
    """Muon for hidden matrices, AdamW for the rest, stepped together."""

    def __init__(
        self,
        named: Iterable[tuple[str, nn.Parameter]],
        hidden: Callable[[str], bool],
        lr: float,
        decay: float = 0.01,
    ) -> None:
        named = [(n, p) for n, p in named if p.requires_grad]
        matrices = [p for n, p in named if p.ndim == 2 and hidden(n)]
        rest = [p for n, p in named if not (p.ndim == 2 and hidden(n))]
        self.parameters = matrices + rest
        self.lr = lr
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
        ]
        if matrices:
            self.parts.append(Muon(matrices, lr=lr, weight_decay=decay))

    def step(self, factor: float, clip: float = 1.0) -> None:
        """Clip, step at ``factor`` times the base rate, clear the gradients."""
        torch.nn.utils.clip_grad_norm_(self.parameters, clip)
        for part in self.parts:
            for group in part.param_groups:
                group["lr"] = self.lr * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def state(self) -> list[dict]:
        """State of both optimisers."""
        return [part.state_dict() for part in self.parts]

    def load(self, state: list[dict]) -> None:
        """Undo :meth:`state`."""
        for part, saved in zip(self.parts, state, strict=True):
            part.load_state_dict(saved)


class Log:
    """One JSON object a line, in ``folder/log.jsonl``."""

    def __init__(self, folder: Path, resume: bool) -> None:
        self.path = folder / "log.jsonl"
        if not resume:
            self.path.write_text("")

    def write(self, **values: Any) -> None:
        """Append a line and print it."""
        rounded = {k: round(v, 4) if isinstance(v, float) else v for k, v in values.items()}
        line = json.dumps(rounded)
        with self.path.open("a") as file:
            file.write(line + "\n")
        print(line, flush=True)


def save_state(path: Path, **parts: Any) -> None:
    """Write a training state so that a crash never leaves half a file."""
    fresh = path.with_suffix(".new")
    torch.save(parts, fresh)
    fresh.replace(path)
