"""What a model brings along for methods: options by name, in one place that every caller reads.

Beside a model's weights there may be

* `vtc_defaults.json`, for example `{"tokenflex": {"projector": "./projector"}}`. Text that begins with
  `./` is a path beside that file. Budgets are the caller's and not allowed here;
* a folder that a method asks for by itself (`Method.beside`): a projector that
  `TokenFlexProjector.save` wrote into `tokenflex`.

The file goes before the folders, and what a caller gives before both.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vtc.errors import VTCError
from vtc.methods.base import Method
from vtc.plugins.hf.typing import Model
from vtc.registry import create_method, list_methods, method_class

FILE = "vtc_defaults.json"
#: what only a caller says
_CALLERS = ("retention", "tokens")


def model_defaults(model: Model) -> dict[str, dict[str, Any]]:
    """Options of methods that come with a model, by method; empty where it brings none.

    Raises:
        VTCError: its file cannot be read, or says what it may not say.
    """
    folder = _folder(model)
    if folder is None:
        return {}
    found: dict[str, dict[str, Any]] = {}
    for name in list_methods():
        for field, beside in method_class(name).beside.items():
            if (folder / beside).is_dir():
                found.setdefault(name, {})[field] = str(folder / beside)
    for name, options in _read(folder / FILE).items():
        found.setdefault(name, {}).update(options)
    return found


def create_for(model: Model, name: str, options: Mapping[str, Any]) -> Method:
    """The method `name` with the caller's `options`, and for the others what the model brings.

    Raises:
        VTCError: see `create_method`; where the model's options are what is wrong, it is named.
    """
    defaults = model_defaults(model).get(name, {})
    try:
        return create_method(name, **{**defaults, **options})
    except VTCError as error:
        if not defaults:
            raise
        create_method(name, **options)  # raises where the caller is wrong already
        raise VTCError(
            f"{error}; that option comes with the model in {_folder(model)}, give another value or None"
        ) from error


def completed(model: Model, method: Method) -> Method:
    """`method` as its maker left it, but fields that are None are those that the model brings."""
    defaults = model_defaults(model).get(method.name, {})
    fields = {field.name for field in dataclasses.fields(method) if field.init}
    missing = {k: v for k, v in defaults.items() if k in fields and getattr(method, k) is None}
    try:
        return dataclasses.replace(method, **missing) if missing else method
    except VTCError as error:
        raise VTCError(
            f"{error}; {', '.join(missing)} come with the model in {_folder(model)}, give the method by "
            "its name, and None for what it shall do without"
        ) from error


def _folder(model: Model) -> Path | None:
    """Where the model's weights are on this machine, None when that is not known."""
    name = getattr(model, "name_or_path", None)
    if not name:
        return None
    if Path(name).is_dir():
        return Path(name)
    # a hub id: whatever of its files is here already
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    commit = getattr(getattr(model, "config", None), "_commit_hash", None)
    try:
        config = try_to_load_from_cache(name, "config.json", revision=commit)
    except HFValidationError:  # no hub id either
        return None
    return Path(config).parent if isinstance(config, str) else None


def _read(path: Path) -> dict[str, dict[str, Any]]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VTCError(f"{path}: cannot be read: {error}") from error
    if not isinstance(data, dict) or not all(isinstance(v, dict) for v in data.values()):
        raise VTCError(f"{path}: got {data!r}, expected options by name for each method")
    for name, options in data.items():
        for key in _CALLERS:
            if key in options:
                raise VTCError(f"{path}: {name!r} has {key!r}, which the caller alone may give")
    return {
        name: {key: _beside(path, value) for key, value in options.items()}
        for name, options in data.items()
    }


def _beside(path: Path, value: Any) -> Any:
    return str(path.parent / value) if isinstance(value, str) and value.startswith("./") else value
