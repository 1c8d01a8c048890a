"""One safetensors file holds a model: its weights, and the preset and options that build it."""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

from vtc.discrete.types import CodeSpace
from vtc.errors import VTCError
from vtc.registry import entry


def save(model: nn.Module, path: str | Path) -> None:
    """Write a tokenizer or generator that `create_tokenizer` or `create_generator` made.

    Raises:
        VTCError: the model was put together by hand, or an option is an object of your own, so that
            nothing tells how to build it.
    """
    recipe: Any = getattr(model, "recipe", None)
    if not recipe:
        raise VTCError("model: only models made by create_tokenizer or create_generator are saved")
    plain = {**recipe, "options": {k: _plain(v) for k, v in recipe["options"].items()}}
    try:
        metadata = {"recipe": json.dumps(plain)}
    except TypeError as error:
        raise VTCError(
            f"model: {error}, only options that a name or number tells are saved"
        ) from error
    state = {name: value.detach().contiguous() for name, value in model.state_dict().items()}
    save_file(state, str(path), metadata=metadata)


def load(path: str | Path, device: str = "cpu") -> nn.Module:
    """The model in a file that `save` wrote, in evaluation mode.

    Raises:
        VTCError: no such file, or not one of these.
    """
    from vtc.discrete import presets

    if not Path(path).is_file():
        raise VTCError(f"path: {path} is no file")
    with safe_open(str(path), "pt", device=device) as file:
        metadata = file.metadata() or {}
        if "recipe" not in metadata:
            raise VTCError(f"path: {path} has no recipe, it was not written by vtc.discrete")
        state = {name: file.get_tensor(name) for name in file.keys()}
    recipe = json.loads(metadata["recipe"])
    options = {name: _object(value) for name, value in recipe["options"].items()}
    kind, name = recipe["kind"], recipe["name"]
    kinds: dict[str, tuple[Any, Any]] = {
        "tokenizer": (presets.TOKENIZERS, presets.create_tokenizer),
        "generator": (presets.GENERATORS, presets.create_generator),
    }
    table, create = kinds[kind]
    if "pretrained" in inspect.signature(entry(table, kind, name)).parameters:
        options["pretrained"] = False  # the weights are in the file
    model = create(name, **options)
    model.load_state_dict(state, assign=True)  # with the dtype they were saved in
    return model.to(device).eval()


def _plain(value: Any) -> Any:
    return {"space": asdict(value)} if isinstance(value, CodeSpace) else value


def _object(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"space"}:
        fields = value["space"]
        grid = tuple(fields["grid"]) if fields["grid"] else None
        return CodeSpace(fields["tokens"], tuple(fields["vocab"]), grid)
    return tuple(value) if isinstance(value, list) else value
