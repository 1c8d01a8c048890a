"""What the runners share: the registry, layouts, recorded draws, and the renaming of weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from vtc.discrete.noise import Noise
from vtc.discrete.quantizers.bernoulli import BernoulliQuantizer

Module = TypeVar("Module", bound=nn.Module)
Result = dict[str, Tensor]
RUNNERS: dict[str, Callable[[Any], None]] = {}


def runner(prefix: str) -> Callable[[Callable[[Any], Result]], Callable[[Any], Result]]:
    """Register a runner; every expected tensor of a case has to be among what it returns."""

    def register(function: Callable[[Any], Result]) -> Callable[[Any], Result]:
        def run(case: Any) -> None:
            atol, rtol = case.info["atol"], case.info["rtol"]
            for name, value in function(case).items():
                case.expect(name, value, atol=atol, rtol=rtol)
            missing = case.unread()
            if missing:
                raise AssertionError(f"{missing[0]}: not computed")

        RUNNERS[prefix] = run
        return function

    return register


# -- layouts ---------------------------------------------------------------------------------------


def leaf(case: Any, name: str) -> Tensor:
    """An input that takes a gradient."""
    return case.input(name).clone().requires_grad_()


def rows(x: Tensor) -> Tensor:
    """`[B, C, H, W]` to tokens `[B, H * W, C]`."""
    return x.flatten(2).transpose(1, 2)


def image(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Tokens `[B, H * W, C]` to `[B, C, H, W]`."""
    return x.transpose(1, 2).unflatten(2, grid)


def pair(size: int | Iterable[int]) -> tuple[int, int]:
    """`(rows, cols)` of a JSON value: one number stands for a square."""
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def expected(case: Any, pattern: str) -> dict[str, re.Match[str]]:
    """Names of expected tensors that match `pattern`; a case tells by them what it wants."""
    found = {name: re.fullmatch(pattern, name) for name in case.info["tensors"]}
    return {name: match for name, match in found.items() if match}


def fill(*parts: Tensor | Iterable[Tensor]) -> Noise:
    """Recorded draws, in order."""
    flat: list[Tensor] = []
    for part in parts:
        flat += [part] if isinstance(part, Tensor) else part
    return Noise(replay=flat)


# -- weights ---------------------------------------------------------------------------------------


def weights(case: Any, prefix: str = "") -> dict[str, Tensor]:
    """The official weights below `prefix`, by the rest of their names."""
    start = f"w.{prefix}"
    return {
        name[len(start) :]: case.input(name)
        for name in case.info["tensors"]
        if name.startswith(start)
    }


def depth(w: dict[str, Tensor], stack: str) -> int:
    """Layers of a stack: names go `stack.0.`, `stack.1.`, ..."""
    return len({name[len(stack) + 1 :].split(".")[0] for name in w if name.startswith(f"{stack}.")})


def renamed(w: dict[str, Tensor], rules: dict[str, str]) -> dict[str, Tensor]:
    """Weights under our names.

    A rule is a pattern for the start of a name and what stands there instead; the first that fits
    counts, and one has to. Queries, keys and values end up as our two maps `q` and `kv`.
    """
    state = {}
    for name, value in w.items():
        for pattern, goal in rules.items():
            if re.match(pattern, name):
                state[re.sub(pattern, goal, name, count=1)] = value
                break
        else:
            raise AssertionError(f"w.{name}: no rule renames it")
    for name in list(state):
        stem, _, kind = name.rpartition(".")
        if stem.endswith(".qkv"):
            value = state.pop(name)
            dim = len(value) // 3
            state[f"{stem[:-3]}q.{kind}"], state[f"{stem[:-3]}kv.{kind}"] = value.split(
                (dim, 2 * dim)
            )
        elif stem.endswith(".k"):
            both = [state.pop(f"{stem[:-1]}{part}.{kind}") for part in "kv"]
            state[f"{stem[:-1]}kv.{kind}"] = torch.cat(both)
    return state


def load(module: Module, state: dict[str, Tensor], *own: str) -> Module:
    """`module` with the weights `state`, all it has but those named in `own`.

    Axes of length 1 that official tensors have more, or less, do not count.
    """
    shapes = {name: value.shape for name, value in module.state_dict().items()}
    fitted = {}
    for name, value in state.items():
        shape = shapes.get(name, value.shape)
        same = [n for n in value.shape if n > 1] == [n for n in shape if n > 1]
        fitted[name] = value.reshape(shape) if same else value
    found = module.load_state_dict(fitted, strict=False)
    wrong = [*found.unexpected_keys, *(set(found.missing_keys) - set(own))]
    if wrong:
        raise AssertionError(f"{type(module).__name__}: {wrong[0]} does not fit")
    return module


def bernoulli_quantizer(w: dict[str, Tensor], **options: Any) -> BernoulliQuantizer:
    """A binary quantiser with the official projection and embedding."""
    state = renamed(w, {r"proj\.0": "project", r"embed(\.weight)?$": "table"})
    bits, dim = state["table"].shape
    return load(BernoulliQuantizer(dim, bits, **options), state)
