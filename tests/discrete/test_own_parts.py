"""Objectives and samplers put together or registered by a user run, and say what they do not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from tests.discrete.small_generators import BYTES, draw, lively
from vtc import VTCError
from vtc.discrete import (
    CodeSpace,
    Condition,
    Generator,
    Guidance,
    Sampler,
    create_generator,
    create_objective,
    create_plan,
    samplers,
    schedules,
)
from vtc.discrete.noise import Noise
from vtc.discrete.objectives import Mixture, NextToken, NextX, Objective, Terms
from vtc.discrete.plans import Plan
from vtc.discrete.samplers import Call
from vtc.registry import register

LABELS = torch.tensor([0, 3, 7])


def codes_model(plan: str = "raster") -> Generator:
    return lively(create_generator("tiny_elm_ar", space=BYTES, dim=32, depth=2, plan=plan))


def latents_model() -> Generator:
    return lively(create_generator("tiny_xar_cell", grid=4, channels=2, plan="cell:2", dim=32))


# -- mixtures --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Still(Objective):
    """A user's objective of latents, whose loss is known."""

    value: float = 7.0
    latents = True

    def terms(self, model: Generator, codes: Tensor, given: Condition, noise: Noise) -> Terms:
        return torch.full(codes.shape[:2], self.value, requires_grad=True), None


def test_a_mixture_of_latents_trains_a_model_of_latents() -> None:
    model, x = latents_model(), torch.randn(3, 16, 2)
    replay = [torch.tensor(0.9), torch.tensor(0.3), torch.tensor(0.1)]  # the part; times; noise
    mixed = Mixture((Still(), NextX())).loss(model, x, LABELS, Noise(replay=replay))["loss"]
    alone = NextX().loss(model, x, LABELS, Noise(replay=replay[1:]))["loss"]
    assert torch.equal(mixed, alone)
    first = [torch.tensor(0.1)]
    assert Mixture((Still(), NextX())).loss(model, x, LABELS, Noise(replay=first))["loss"] == 7
    nested = Mixture((Mixture((Still(3.0),)), {"name": "mixture", "parts": ["next_x"]}))
    replay = [torch.tensor(0.1), torch.tensor(0.1)]
    assert nested.loss(model, x, LABELS, Noise(replay=replay))["loss"] == 3
    named = create_objective({"name": "mixture", "parts": ["next_x"]})
    named.loss(model.train(), x, LABELS, 0)["loss"].backward()
    assert any(p.grad is not None and p.grad.any() for p in model.parameters())


def test_mixtures_of_both_kinds_are_refused() -> None:
    for parts in ((NextX(), NextToken()), ("next_token", Still()), ("mixture", "next_x")):
        with pytest.raises(VTCError, match=r"^parts: got .*\(codes\).*all of latents"):
            Mixture(parts)


def test_a_mixture_does_not_fit_the_other_kind_of_model() -> None:
    with pytest.raises(VTCError, match="Mixture does not fit a model of codes"):
        Mixture(("next_x",)).loss(codes_model(), draw(BYTES), LABELS)
    with pytest.raises(VTCError, match="Mixture does not fit a model of latents"):
        Mixture().loss(latents_model(), torch.randn(3, 16, 2), LABELS)


# -- samplers --------------------------------------------------------------------------------------


@pytest.fixture
def mine() -> Iterator[Callable[..., Any]]:
    """Registers a sampler as "mine" for a test."""
    yield register(samplers.SAMPLERS, "mine")
    samplers.SAMPLERS.pop("mine", None)


@dataclass(frozen=True)
class Constant(Sampler):
    """The group of each token plus a shade."""

    shade: int = 3
    seen: ClassVar[list[Call]] = []

    def draw(self, model: Generator, call: Call) -> Tensor:
        self.seen.append(call)
        step = model.stepper(call.given, call.given.rows or call.batch)
        assert tuple(call.guided(step(None), 0, 1).shape) == (call.batch, 1, 2, 8)
        order = torch.arange(model.space.tokens)[:, None].expand(-1, 2) // 4
        return (order + self.shade).expand(call.batch, -1, -1)


def test_a_sampler_of_your_own_runs(mine: Callable[..., Any]) -> None:
    """Codes come back in the order of the plan, like those of any sampler."""
    mine(Constant)
    model = codes_model("subsample:2")
    made = model.sample(LABELS, "mine", seed=3, shade=2)
    # the order of `subsample:2` by hand: every other row and column, four times
    expected = torch.tensor([[2, 3, 2, 3], [4, 5, 4, 5]]).repeat(2, 1).flatten()
    assert torch.equal(made, expected[None, :, None].expand(3, -1, 2))
    seen = Constant.seen.pop()
    assert seen.batch == 3 and isinstance(seen.noise, Noise) and seen.guidance is None
    for same in ({"name": "mine", "shade": 2}, Constant(2)):
        assert torch.equal(model.sample(LABELS, same), made)
    assert torch.equal(model.sample(LABELS, Constant(7), guidance=2, shade=2), made)
    assert Constant.seen[-1].guidance == Guidance(2.0)
    assert str(Constant.seen[-1].given.labels) == "tensor([ 0,  3,  7, 10, 10, 10])"
    for sampler, name in (("mine", "mine"), (Constant(), "Constant")):
        with pytest.raises(VTCError, match=f"shde: '{name}' has no such option.*mean 'shade'"):
            model.sample(LABELS, sampler, shde=2)
    with pytest.raises(VTCError, match="sampler: got Constant, which does not make the latents"):
        latents_model().sample(LABELS, "mine")


def test_another_one_with_settings_of_your_own(mine: Callable[..., Any]) -> None:
    @mine
    @dataclass(frozen=True)
    class Greedy(samplers.MaskGit):
        steps: int = 3
        code_temperature: float = 0.0

    model, greedy = codes_model(), dict[str, Any](steps=3, code_temperature=0.0)
    for guidance in (None, 2.0):
        theirs = model.sample(LABELS, "maskgit", guidance=guidance, seed=1, **greedy)
        for same in ("mine", Greedy(), samplers.MaskGit(**greedy), {"name": "maskgit", **greedy}):
            assert torch.equal(model.sample(LABELS, same, guidance=guidance, seed=1), theirs)
    with pytest.raises(VTCError, match="device: 'mine' has no such option"):
        model.sample(LABELS, "mine", device="cpu")


def test_a_sampler_of_latents_and_one_of_a_config(mine: Callable[..., Any]) -> None:
    @mine
    @dataclass
    class Zeros(Sampler):
        latents: ClassVar[bool] = True

        def draw(self, model: Generator, call: Call) -> Tensor:
            assert call.given.labels is not None and torch.equal(call.given.labels, LABELS)
            return model.start.new_zeros(call.batch, model.plan.length, model.config.channels)

    for own in ("mine", Zeros(), {"name": "mine"}):
        config = replace(latents_model().config, sampler=own)
        assert torch.equal(Generator(config).sample(LABELS), torch.zeros(3, 16, 2))
    pyramid = lively(create_generator("tiny_xar_cell", grid=4, plan="pyramid", dim=32))
    assert torch.equal(pyramid.sample(LABELS, "mine"), torch.zeros(3, 16, 1))
    assert samplers.list_samplers(model=latents_model()) == ["mine", "next_x"]
    with pytest.raises(VTCError, match="got Zeros, .* codes of this model; .* takes ar, maskgit$"):
        codes_model().sample(LABELS, "mine")
    with pytest.raises(VTCError, match=r"^sampler: got 'nobody', available are ar, .*, mine"):
        Generator(replace(latents_model().config, sampler="nobody"))


def test_a_sampler_says_itself_what_it_fits(mine: Callable[..., Any]) -> None:
    @mine
    @dataclass(frozen=True, kw_only=True)
    class Square(samplers.Autoregressive):
        side: int

        def misfit(self, model: Generator) -> str:
            return super().misfit(model) or f"needs {self.side} rows" * (model.plan.grid[0] != 5)

    with pytest.raises(
        VTCError, match="^sampler: got Square, which needs 7 rows; this model .* ar"
    ):
        codes_model().sample(LABELS, "mine", side=7)
    with pytest.raises(VTCError, match="^side: 'mine' needs it"):
        codes_model().sample(LABELS, "mine")


def test_what_fits_is_said() -> None:
    bits = CodeSpace(16, (2,) * 5, (4, 4))
    timed = create_generator("tiny_instella_diffusion", space=bits, dim=32)
    for name in ("ar", "maskgit"):
        with pytest.raises(VTCError, match="tells no time, .*; this model takes bit_diffusion$"):
            timed.sample(LABELS, name)
    indexed = create_generator("tiny_elm_ar", space=bits, dim=32)
    with pytest.raises(VTCError, match="noisy bits, the 'index' head reads codes; .* ar, maskgit$"):
        indexed.sample(LABELS, "bit_diffusion")
    with pytest.raises(VTCError, match="^head: got 'index', which reads codes, not noisy bits"):
        indexed.loss(draw(bits), LABELS, objective="bit_diffusion")


@dataclass
class Returns(Sampler):
    """Whatever it is told."""

    what: Any = None

    def draw(self, model: Generator, call: Call) -> Any:
        return self.what


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (Returns(torch.zeros(3, 16)), r"Returns made \(3, 16\), expected \[3, 16, 2\]"),
        (Returns(), "Returns made NoneType"),
        ({"steps": 3}, "got 'None', available are"),
        ("mine", "'mine' made dict, expected a `Sampler`"),
    ],
)
def test_samplers_that_cannot_run(mine: Callable[..., Any], made: Any, message: str) -> None:
    mine(lambda: {})
    with pytest.raises(VTCError, match=f"^sampler: {message}"):
        codes_model().sample(LABELS, made)


def test_options_of_your_own_may_share_a_name(mine: Callable[..., Any]) -> None:
    """`method` of another sampler is not that of `next_x`."""

    @mine
    @dataclass
    class Heun(Sampler):
        method: str = "heun"

        def draw(self, model: Generator, call: Call) -> Tensor:
            return torch.full((call.batch, 16, 2), len(self.method))

    assert (codes_model().sample(LABELS, "mine", method="rk4") == 3).all()


def test_solvers_and_schedules_of_your_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put into their tables is a setting like any other."""
    monkeypatch.setitem(samplers.SOLVERS, "still", lambda velocity, x, steps, noise: 0 * x)
    assert not latents_model().sample(LABELS, method="still").any()
    monkeypatch.setitem(schedules.MASKING, "late", lambda ratio: 1 - ratio**3)
    made = codes_model().sample(LABELS, "maskgit", schedule="late", seed=0)
    assert not torch.equal(made, codes_model().sample(LABELS, "maskgit", seed=0))
    assert create_objective("masked_token", schedule="late").loss(codes_model(), made, LABELS)


# -- plans -----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Halves(Plan):
    """A mean of all tokens in front of them."""

    averages = True

    def __post_init__(self) -> None: ...

    def arrange(self, x: Tensor) -> Tensor:
        return torch.cat([x.mean(1, keepdim=True), x], dim=1)

    def restore(self, x: Tensor) -> Tensor:
        return x[:, 1:]


def test_a_plan_of_your_own_may_average() -> None:
    raster = create_plan("raster", (4, 4))
    coordinates = torch.cat([torch.full((1, 2), 1.5), raster.coordinates])
    plan = Halves((4, 4), raster.order, (1, 16), coordinates)
    model = create_generator("tiny_xar_cell", grid=4, channels=2, plan=plan, dim=32)
    model.loss(torch.randn(3, 16, 2), LABELS)["loss"].backward()
    assert model.sample(LABELS, steps=2).shape == (3, 16, 2)
    with pytest.raises(VTCError, match="which averages, so it is for latents only"):
        create_generator("tiny_elm_ar", space=BYTES, plan=plan)
