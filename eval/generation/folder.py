"""The output folder of an experiment: a part belongs to the settings that it was trained with.

Sampling and measuring may be repeated with other settings; `samples.safetensors` and `metrics.json`
say which ones they had.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from accelerate import PartialState
from omegaconf import OmegaConf

from vtc.discrete import load
from vtc.errors import VTCError
from vtc.eval.generation.config import Experiment

FILE = "model.safetensors"


def settings_of(experiment: Experiment, part: str) -> dict[str, Any]:
    """What the weights of "tokenizer" or "generator" depend on."""
    names = ["data", part, "precision", "seed"]
    if part == "generator" and experiment.generator.target != "pixels":
        names.insert(1, "tokenizer")
    whole = OmegaConf.to_container(OmegaConf.structured(experiment))
    return {name: whole[name] for name in names}  # type: ignore[index,call-overload]


def claim(experiment: Experiment, folder: Path, part: str) -> None:
    """Note the settings in the folder of a part; call it when they are known to be good.

    Raises:
        VTCError: the part is there already, with other settings.
    """
    check(experiment, folder, part)
    path = folder / part / "config.yaml"
    if PartialState().is_main_process and not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(OmegaConf.to_yaml(settings_of(experiment, part)), encoding="utf-8")
    PartialState().wait_for_everyone()


def check(experiment: Experiment, folder: Path, part: str) -> None:
    """Raise `VTCError` when the part in the folder has other settings than the experiment."""
    path = folder / part / "config.yaml"
    if not path.is_file():
        return
    old, new = (
        _flat(OmegaConf.to_container(OmegaConf.load(path))),
        _flat(settings_of(experiment, part)),
    )
    changed = [
        f"{key}: {old.get(key, 'unset')} -> {new.get(key, 'unset')}"
        for key in {**old, **new}
        if old.get(key) != new.get(key)
    ]
    if changed:
        raise VTCError(
            f"output: {path.parent} was trained with other settings ({'; '.join(changed[:3])}); take "
            "another folder"
        )


def load_part(experiment: Experiment, folder: Path, part: str) -> Any:
    """The trained tokenizer or generator of a folder, in evaluation mode.

    Raises:
        VTCError: it is not there, or has other settings.
    """
    path = folder / part / FILE
    if not path.is_file():
        raise VTCError(f"output: {path} is missing; `generation train-{part}` makes it")
    check(experiment, folder, part)
    return load(path)


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return out
