"""The training loop: accelerate, averaged weights, checkpoints that continue bit by bit.

Which images a step sees and what noise it draws are functions of the seed and the step alone, so a
run that was stopped and continued is the run that was not.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, send_to_device
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader, Dataset, Sampler

from vtc.discrete import Noise
from vtc.discrete.schedules import warmup_constant_cosine
from vtc.errors import VTCError
from vtc.eval.generation.config import TrainSettings

History = list[dict[str, float]]
T = TypeVar("T", bound=nn.Module)


class StepBatches(Sampler):
    """Indices of each step's batch: an epoch is a permutation that the seed and its number give.

    Args:
        count: images there are.
        batch: images a step, over all processes.
        steps: `(first, last + 1)`.
        seed: of the permutations.
        rank: number of this process.
        world: number of processes; each takes its share of the batch.
    """

    def __init__(
        self,
        count: int,
        batch: int,
        steps: tuple[int, int],
        seed: int,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        if batch % world:
            raise VTCError(f"train.batch: got {batch}, it does not divide by {world} processes")
        self.count, self.batch, self.steps, self.seed = count, batch, steps, seed
        self.rank, self.world = rank, world

    def __len__(self) -> int:
        return self.steps[1] - self.steps[0]

    def __iter__(self) -> Iterator[list[int]]:
        epoch, order = -1, torch.empty(0)
        for step in range(*self.steps):
            rows = []
            for place in range(step * self.batch, (step + 1) * self.batch):
                if place // self.count != epoch:
                    epoch = place // self.count
                    draw = torch.Generator().manual_seed(_mix(self.seed, epoch))
                    order = torch.randperm(self.count, generator=draw)
                rows.append(int(order[place % self.count]))
            yield rows[self.rank :: self.world]


class State:
    """Where the run is: steps done and what was logged; accelerate saves and loads it."""

    def __init__(self) -> None:
        self.step, self.history = 0, []  # type: ignore[var-annotated]

    def state_dict(self) -> dict[str, Any]:
        """For accelerate."""
        return {"step": self.step, "history": self.history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """For accelerate."""
        self.step, self.history = state["step"], state["history"]


def learning_rate(settings: TrainSettings, step: int) -> float:
    """Rate of `step`, counted from 0; the first is not 0."""
    rise = settings.warmup * settings.steps
    fall = settings.steps if settings.schedule == "constant" else rise
    return warmup_constant_cosine(step + 1, settings.lr, rise, fall, settings.steps + 1)


def fit(
    task: T,
    images: Dataset,
    settings: TrainSettings,
    seed: int = 0,
    folder: Path | None = None,
    resume: bool = False,
    progress: Callable[[int, dict[str, float]], Any] = lambda step, row: None,
    accelerator: Accelerator | None = None,
) -> tuple[T, History]:
    """Train `task`, a module that takes a batch and a `Noise` and returns losses.

    Args:
        task: is trained in place; its last weights stay in it.
        images: items are dicts of tensors.
        settings: see `TrainSettings`.
        seed: of batches and noise.
        folder: where checkpoints go; None for none.
        resume: continue from the last checkpoint in the folder, if there is one.
        progress: called after every step with the number of steps done and the last row logged.
        accelerator: how to run; made here by default.

    Returns:
        the task with averaged weights, in evaluation mode on the device, and the history: a row of
        `step`, `lr` and losses every `log_every` steps.

    Raises:
        VTCError: the loss is no number, or the folder has checkpoints and `resume` is not set.
    """
    accelerator = accelerator or make_accelerator()
    weights = [p for p in task.parameters() if p.requires_grad]
    # a discriminator's gradients must not shrink the steps of its rival
    rival = getattr(task, "adversarial", None)
    theirs = list(rival.parameters()) if rival is not None else []
    ids = {id(p) for p in theirs}
    sides = [[p for p in weights if id(p) not in ids], theirs]
    optimiser: Any = torch.optim.AdamW(
        weights, settings.lr, weight_decay=settings.weight_decay, fused=True
    )
    state = State()
    model, optimiser = accelerator.prepare(task, optimiser)
    plain = accelerator.unwrap_model(model)
    average: Any = AveragedModel(plain, multi_avg_fn=_moving_average(settings.ema))
    accelerator.register_for_checkpointing(state, average)
    checkpoints = None if folder is None else folder / "checkpoints"
    if checkpoints is not None:
        last = latest(checkpoints)
        if last is not None and not resume:
            raise VTCError(f"output: {folder} has checkpoints, continue with --resume or remove it")
        if last is not None:
            accelerator.load_state(str(last))
    rank, world = accelerator.process_index, accelerator.num_processes
    loader = DataLoader(
        images,
        batch_sampler=StepBatches(
            len(images),  # type: ignore[arg-type]
            settings.batch,
            (state.step, settings.steps),
            seed,
            rank,
            world,
        ),
        collate_fn=collate,
        num_workers=settings.workers,
        # its own, or starting to read would draw from the state that a checkpoint has put back
        generator=torch.Generator().manual_seed(seed),
    )
    model.train()
    row: dict[str, float] = {}
    for batch in loader:
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(settings, state.step)
        batch = send_to_device(batch, accelerator.device)
        noise = Noise(torch.Generator().manual_seed(_mix(seed, state.step, rank)))
        with accelerator.autocast():
            parts = model(batch, noise)
        optimiser.zero_grad()
        accelerator.backward(parts["loss"])
        if settings.clip:
            accelerator.unscale_gradients()
            for side in sides:
                nn.utils.clip_grad_norm_(side, settings.clip)
        optimiser.step()
        average.update_parameters(plain)
        state.step += 1
        if state.step % settings.log_every == 0 or state.step == settings.steps:
            row = _row(accelerator, parts, state.step, learning_rate(settings, state.step - 1))
            state.history.append(row)
        if checkpoints is not None and _due(state.step, settings):
            save_checkpoint(accelerator, checkpoints, state.step)
        progress(state.step, row)
    chosen = average.module if settings.ema else plain
    return chosen.eval(), state.history


def make_accelerator(precision: str | None = None) -> Accelerator:
    """An accelerator for networks of which an objective may leave some weights unused.

    A process has one precision; None takes the one it has.
    """
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(mixed_precision=precision, kwargs_handlers=[unused])


def latest(checkpoints: Path) -> Path | None:
    """The newest finished checkpoint of a folder."""
    found = sorted(checkpoints.glob("step_*"), key=lambda p: int(p.name.partition("_")[2]))
    return found[-1] if found else None


def save_checkpoint(accelerator: Accelerator, checkpoints: Path, step: int, keep: int = 2) -> None:
    """Write a checkpoint under another name first: one that was cut off is never taken for whole."""
    part = checkpoints / "unfinished"
    if accelerator.is_main_process:
        shutil.rmtree(part, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(part))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        part.rename(checkpoints / f"step_{step}")
        found = sorted(checkpoints.glob("step_*"), key=lambda p: int(p.name.partition("_")[2]))
        for old in found[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def _moving_average(decay: float) -> Callable[..., None]:
    """Exponential average that forgets faster at first, or short runs would keep the first weights."""

    @torch.no_grad()
    def update(averages: Any, weights: Any, count: Any) -> None:
        seen = int(count)
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + seen) / (10 + seen)))

    return update


def collate(items: Any) -> dict[str, Tensor]:
    """A batch; data in memory hands out a whole one already."""
    return items if isinstance(items, dict) else torch.utils.data.default_collate(items)


def _due(step: int, settings: TrainSettings) -> bool:
    every = settings.checkpoint_every
    return step == settings.steps or bool(every and step % every == 0)


def _row(accelerator: Accelerator, parts: dict[str, Tensor], step: int, lr: float) -> dict:
    names = [name for name, value in parts.items() if value.numel() == 1]
    values = torch.stack([parts[name].detach().float().reshape(()) for name in names])
    mean = accelerator.reduce(values, "mean").tolist()  # type: ignore[union-attr]
    row = {"step": step, "lr": lr, **dict(zip(names, mean, strict=True))}
    if not math.isfinite(row["loss"]):
        raise VTCError(f"train.lr: the loss is {row['loss']} at step {step}; try a smaller rate")
    return row


def _mix(*numbers: int) -> int:
    """One seed from several numbers (the multiplier of a 64-bit congruential generator)."""
    mixed = 0
    for number in numbers:
        mixed = (mixed * 6364136223846793005 + number + 1442695040888963407) % 2**63
    return mixed
