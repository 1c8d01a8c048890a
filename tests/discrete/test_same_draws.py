"""What every sampler draws and every objective says on small generators, as it was at commit 0016095.

`same_draws.safetensors` was written there, before samplers became objects, by

    python -m tests.discrete.test_same_draws

which calls nothing but `Generator.sample` and `Generator.loss` by names and options. What is not in the
file was refused. The models are in double precision, where another CPU rounds too little to change a
code.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.discrete.small_generators import BITS, MODELS, PLANS, draw, lively
from vtc import VTCError
from vtc.discrete import CodeSpace, Condition, Guidance, create_generator
from vtc.discrete.backbone import TransformerConfig
from vtc.discrete.generator import Generator, GeneratorConfig

STORED = Path(__file__).with_name("same_draws.safetensors")
PAIRS = CodeSpace(16, (8, 8), (4, 4))
LABELS = torch.tensor([0, 4, 9])
OBJECTIVES = ("next_token", "masked_token", "next_all", "mixture", "bit_diffusion", "next_x")

#: Options to draw with; a sampler is called with each.
DRAWS: dict[str, tuple[dict[str, Any], ...]] = {
    "ar": ({}, {"temperature": 0.7, "top_k": 3, "top_p": 0.9}, {"temperature": 0.0}),
    "maskgit": (
        {"steps": 3},
        {"steps": 5, "schedule": "linear", "temperature": 3.0, "code_temperature": 0.5},
        {"steps": 4, "top_k": 2, "top_p": 0.8},
    ),
    "bit_diffusion": ({"steps": 4}, {"steps": 5, "posterior": True, "rho": 2.0, "temperature": 2}),
    "next_x": ({"steps": 3}, {"steps": 3, "method": "euler"}),
}


def _coded(space: CodeSpace, head: str, plan: str, **how: Any) -> Generator:
    adaptive = bool(how)
    transformer = TransformerConfig(32, 2, 2, rope=(8, 8), adaptive=adaptive)
    return Generator(GeneratorConfig(space, transformer, head, plan=plan, classes=10, **how))


def _model(kind: str, plan: str) -> tuple[Generator, Any]:
    """A generator with lively weights in double precision, and what it is told."""
    given: Any = LABELS
    torch.manual_seed(0)
    if kind == "index of bits":
        model = _coded(BITS, "index", plan)
    elif kind == "tied":
        model = _coded(PAIRS, "tied", plan)
    elif kind == "timed":
        model = _coded(BITS, "bit", plan, class_as="adaptive", time="scalar")
    elif kind == "latents":
        model = create_generator("tiny_xar_cell", grid=4, channels=2, plan=plan, dim=32, depth=2)
    else:
        model, given = MODELS[kind](plan)
    if isinstance(given, Condition) and given.context is not None:
        given = Condition(None, tuple(x.double() for x in given.context), given.valid)
    return lively(model).double(), given


def _kinds() -> Iterator[tuple[str, str]]:
    for kind in (*MODELS, "index of bits", "tied", "timed", "latents"):
        yield from ((kind, plan) for plan in PLANS)
    yield "latents", "pyramid"


def _cases(kind: str, plan: str) -> Iterator[tuple[str, Tensor | None]]:
    """Names, and what is drawn or said; None where it is refused."""
    model, given = _model(kind, plan)
    for sampler, many in DRAWS.items():
        for guidance in (None, Guidance(3.0, "linear_from_one")):
            for index, options in enumerate(many):
                name = f"{kind}/{plan}/{sampler}/{'guided' if guidance else 'plain'}/{index}"
                try:
                    yield name, model.sample(given, sampler, guidance=guidance, seed=7, **options)
                except (VTCError, RuntimeError):  # some were refused by torch
                    yield name, None
    torch.manual_seed(5)
    codes = torch.randn(3, 16, 2).double() if model.config.channels else draw(model.space)
    for objective in OBJECTIVES:
        try:
            yield f"{kind}/{plan}/{objective}", model.loss(codes, given, 7, objective)["position"]
        except (VTCError, RuntimeError):
            yield f"{kind}/{plan}/{objective}", None


@pytest.mark.parametrize(("kind", "plan"), list(_kinds()))
def test_draws_are_what_they_were(kind: str, plan: str) -> None:
    stored = load_file(STORED)
    for name, made in _cases(kind, plan):
        old = stored.get(name)
        assert (made is None) == (old is None), name
        if made is None or old is None:
            continue
        if old.is_floating_point():
            torch.testing.assert_close(made, old, rtol=1e-6, atol=1e-6, equal_nan=True)
        else:
            assert torch.equal(made, old.long()), name


def record(path: Path = STORED) -> None:
    """Write the file."""
    found = [case for kind, plan in _kinds() for case in _cases(kind, plan)]
    made = {name: x.contiguous() for name, x in found if x is not None}
    save_file({k: x if x.is_floating_point() else x.to(torch.int8) for k, x in made.items()}, path)


if __name__ == "__main__":
    record()
