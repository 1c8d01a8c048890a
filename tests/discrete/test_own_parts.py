"""Objectives and samplers put together or registered by a user run, and say what they do not fit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from tests.discrete.small_generators import BYTES, draw, lively
from vtc import VTCError
from vtc.discrete import create_generator, create_objective, samplers
from vtc.discrete.noise import Noise
from vtc.discrete.objectives import Mixture, NextToken, NextX, Objective
from vtc.registry import register

LABELS = torch.tensor([0, 3, 7])


def codes_model(plan: str = "raster"):
    return lively(create_generator("tiny_elm_ar", space=BYTES, dim=32, depth=2, plan=plan))


def latents_model():
    return lively(create_generator("tiny_xar_cell", grid=4, channels=2, plan="cell:2", dim=32))


# -- mixtures --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Still(Objective):
    """A user's objective of latents, whose loss is known."""

    value: float = 7.0
    latents = True

    def terms(self, model, codes, given, noise):
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
def mine() -> Iterator[Callable]:
    """Registers a sampler as "mine" for a test."""
    yield register(samplers.SAMPLERS, "mine")
    samplers.SAMPLERS.pop("mine", None)


def test_a_sampler_of_your_own_runs(mine) -> None:
    """It gets what it names; codes come back in the order of the plan, like those of any loop."""
    model, seen = codes_model("subsample:2"), {}

    @mine
    def constant(step, space, batch, seed=None, guidance=None, shade=3, device="cpu"):
        seen.update(batch=batch, guidance=guidance, device=torch.device(device), seed=seed)
        assert tuple(step(None).shape) == (batch, 1, 2, 8)
        order = torch.arange(space.tokens)[:, None].expand(-1, 2) // 4
        return (order + shade).expand(batch, -1, -1)

    made = model.sample(LABELS, "mine", seed=3, shade=2)
    # the order of `subsample:2` by hand: every other row and column, four times
    expected = torch.tensor([[2, 3, 2, 3], [4, 5, 4, 5]]).repeat(2, 1).flatten()
    assert torch.equal(made, expected[None, :, None].expand(3, -1, 2))
    assert seen["batch"] == 3 and isinstance(seen["seed"], Noise) and seen["guidance"] is None
    with pytest.raises(VTCError, match="shde: 'mine' has no such option.*did you mean 'shade'"):
        model.sample(LABELS, "mine", shde=2)
    with pytest.raises(VTCError, match="sampler: got 'mine', which does not make the latents"):
        latents_model().sample(LABELS, "mine")


def test_a_sampler_around_another_one(mine) -> None:
    model = codes_model()

    @mine
    def greedy(predict, space, batch, **options):
        return samplers.sample_maskgit(predict, space, batch, code_temperature=0.0, **options)

    for guidance in (None, 2.0):
        made = model.sample(LABELS, "mine", guidance=guidance, seed=1, steps=3)
        theirs = model.sample(
            LABELS, "maskgit", guidance=guidance, seed=1, steps=3, code_temperature=0.0
        )
        assert torch.equal(made, theirs)
    with pytest.raises(VTCError, match="device: 'mine' has no such option"):
        model.sample(LABELS, "mine", device="cpu")


def test_a_sampler_of_latents_and_one_of_a_config(mine) -> None:
    @mine
    def zeros(channels, given, generator, plan, batch, device="cpu", dtype=torch.float32):
        assert given.labels.tolist() == LABELS.tolist() and generator.plan is plan
        return torch.zeros(batch, generator.space.tokens, channels, device=device, dtype=dtype)

    model = latents_model()
    assert torch.equal(model.sample(LABELS, "mine"), torch.zeros(3, 16, 2))
    model = create_generator("tiny_xar_cell", grid=4, channels=2, plan="cell:2", dim=32)
    object.__setattr__(model.config, "sampler", "mine")
    assert not model.sample(LABELS).any()
    with pytest.raises(VTCError, match="sampler: got 'mine', which does not make the codes"):
        codes_model().sample(LABELS, "mine")


def test_a_sampler_that_reads_the_model_itself(mine) -> None:
    @mine
    def first(model, batch, given):
        logits = model.next_logits(torch.zeros(batch, 16, 2, dtype=torch.long), given)
        return logits[..., :4].argmax(-1)

    model = codes_model()
    given = model.condition(LABELS)
    expected = model.next_logits(torch.zeros(3, 16, 2, dtype=torch.long), given)[..., :4].argmax(-1)
    assert torch.equal(model.sample(LABELS, "mine"), expected)


@pytest.mark.parametrize(
    ("loop", "message"),
    [
        (lambda nonsense, batch: None, "'mine' asks for 'nonsense'; by its name a loop is given"),
        (lambda batch, /: None, "'mine' asks for 'batch'"),
        (lambda batch: torch.zeros(batch, 16), r"'mine' made \(3, 16\), expected \[3, 16, 2\]"),
        (lambda batch: None, "'mine' made NoneType"),
    ],
)
def test_samplers_that_cannot_run(mine, loop: Callable[..., Tensor], message: str) -> None:
    mine(loop)
    with pytest.raises(VTCError, match=f"^sampler: {message}"):
        codes_model().sample(LABELS, "mine")


def test_options_of_your_own_may_share_a_name(mine) -> None:
    """`method` of another loop is not that of `next_x`."""

    @mine
    def heun(space, batch, method="heun"):
        return torch.full((batch, space.tokens, 2), len(method))

    assert (codes_model().sample(LABELS, "mine", method="rk4") == 3).all()
