"""`vtc train-scorer`: pictures, lessons, training, a scorer on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import vtc
from vtc.errors import VTCError
from vtc.eval.common.loading import load
from vtc.eval.reference.threads import one_thread
from vtc.eval.scorer.fit import Settings, State, fit, ranks
from vtc.eval.scorer.held_out import HeldOut
from vtc.eval.scorer.pictures import Picture
from vtc.eval.scorer.teach import Attended, AttentionListener, Lesson, file_of, lesson
from vtc.methods._scorer import DemandScorer

if TYPE_CHECKING:
    from vtc.eval.common.loading import Loaded

RETENTIONS = (0.1, 0.05, 0.03)


@dataclass(frozen=True)
class Plan:
    """What is trained on what.

    Attributes:
        model, device, dtype: see `load`.
        pictures: at least two.
        held_out: how many of them, the last, are for the learning curve alone.
        output: folder of the scorer, the lessons and the checkpoint.
        lessons: folder of the lessons instead, so that several runs can share them.
        longest: most tokens of an answer.
        retentions: at which the learning curve is measured.
        settings: of the training.
    """

    model: str
    pictures: Sequence[Picture]
    held_out: int
    output: Path
    settings: Settings
    lessons: Path | None = None
    longest: int = 32
    retentions: Sequence[float] = RETENTIONS
    device: str | None = None
    dtype: str = "auto"


def train(plan: Plan, bar: Any, task: Any) -> tuple[State, float]:
    """Train, and write `scorer.json`, `scorer.safetensors` and `curve.json` into the output folder.

    What was done already is not done again.

    Args:
        bar, task: as `rich.progress` has them.

    Returns:
        how the run went, and the strength that was chosen.

    Raises:
        VTCError: there are too few pictures, the folder holds lessons of another model or a run that was
            begun otherwise, or the model's family takes no methods inside the language model.
    """
    with one_thread() if plan.model == "reference" else nullcontext():
        return _train(plan, bar, task)


def _train(plan: Plan, bar: Any, task: Any) -> tuple[State, float]:
    if not 0 < plan.held_out < len(plan.pictures):
        raise VTCError(
            f"--held-out: got {plan.held_out} of {len(plan.pictures)} images, allowed are 1 to "
            f"{len(plan.pictures) - 1}"
        )
    rank, world = ranks()
    local = os.environ.get("LOCAL_RANK", rank)  # its number on this machine
    device = f"cuda:{local}" if plan.device is None and world > 1 and _gpus() else plan.device
    loaded = load(plan.model, device, plan.dtype)
    with vtc.compress(loaded.model, [AttentionListener(retention=0.5), Attended()]):
        made_for = _identity(loaded)  # and a model that cannot teach says so before it is asked
    folder = plan.output / "lessons" if plan.lessons is None else plan.lessons
    folder.mkdir(parents=True, exist_ok=True)
    plan.output.mkdir(parents=True, exist_ok=True)
    _same_model(folder / "model.json", made_for)
    learned, apart = plan.pictures[: -plan.held_out], plan.pictures[-plan.held_out :]
    files = [file_of(folder, picture, plan.longest) for picture in learned]
    total = len(learned) + plan.held_out + plan.settings.steps
    bar.update(task, description="where answers look", total=total)
    for number, (picture, file) in enumerate(zip(learned, files, strict=True)):
        if number % world == rank and not file.is_file():
            lesson(loaded, picture, plan.longest).save(file)
        bar.advance(task)
    _wait_for(files)
    bar.update(task, description="held-out images")
    held = HeldOut.of(loaded, apart if rank == 0 else [], plan.longest, lambda: bar.advance(task))
    import torch

    torch.manual_seed(plan.settings.seed)
    width = Lesson.load(files[0]).features.shape[-1]
    scorer = DemandScorer(
        width, plan.settings.hidden, layers=plan.settings.layers, made_for=made_for
    )
    bar.update(task, description="training")
    checkpoint = plan.output / "training.pt"
    begun = [len(learned) + plan.held_out]

    def progress(step: int, loss: float) -> None:
        bar.update(task, completed=begun[0] + step, description=f"training, loss {loss:.3f}")

    state = fit(
        scorer,
        files,
        plan.settings,
        lambda module: held.look(module, plan.retentions),
        loaded.device,
        checkpoint,
        progress,
        {
            "model": made_for,
            "held_out": [file_of(folder, picture, plan.longest).name for picture in apart],
            "retention": list(plan.retentions),
        },
    )
    if rank == 0:
        bar.update(task, description="how strong the correction shall be")
        strengths = held.strengthened(scorer, plan.retentions)
        scorer.save(plan.output)
        facts = {
            "model": plan.model,
            "images": len(learned),
            "held_out": plan.held_out,
            "questions": sum(len(picture.questions) for picture in plan.pictures),
            "settings": asdict(plan.settings),
            "curve": state.curve,
            "strength": scorer.strength,
            "strengths": strengths,
        }
        (plan.output / "curve.json").write_text(json.dumps(facts, indent=1) + "\n")
    return state, scorer.strength


def _gpus() -> bool:
    import torch

    return torch.cuda.is_available()


def _identity(loaded: Loaded) -> dict[str, Any]:
    from vtc.plugins.hf.adapters import adapter_for
    from vtc.plugins.hf.identity import identity_of

    return identity_of(loaded.model, adapter_for(loaded.model))


def _same_model(path: Path, made_for: dict[str, Any]) -> None:
    """Note the model beside its lessons, or compare it with what is noted."""
    from vtc.plugins.model.identity import is_identity, same

    if not path.is_file():
        part = path.with_suffix(f".{ranks()[0]}.part")  # other processes read whole files
        part.write_text(json.dumps(made_for) + "\n", encoding="utf-8")
        part.replace(path)
    found = json.loads(path.read_text(encoding="utf-8"))
    if not (is_identity(found) and same(found, made_for)):
        raise VTCError(f"--output: {str(path.parent)!r} holds lessons of another model")


def _wait_for(files: Sequence[Path], patience: float = 3600.0) -> None:
    """Until the other processes have written theirs."""
    import time

    end = time.monotonic() + patience
    while not all(file.is_file() for file in files):
        if time.monotonic() > end:
            raise VTCError("lessons: another process has not written its own within an hour")
        time.sleep(0.2)
