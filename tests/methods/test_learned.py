"""`learned`: equal to coverage before the first step, corrected demands by hand, scorers on disk."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vtc
from tests.hf import tiny
from tests.methods.images import WIDTH, clip, image
from vtc import VTCError, create_method
from vtc.batch import ImageBatch
from vtc.methods._scorer import LARGEST, DemandScorer
from vtc.plugins.hf.adapters import adapter_for
from vtc.plugins.hf.identity import identity_of
from vtc.plugins.model.identity import identity, same

IMAGES = [image(), image(crops=(2, 2), size=(600, 300)), image(crops=(1, 3), size=(900, 250))]


def scorer(trained: bool = True, seed: int = 0, width: int = WIDTH, **options) -> DemandScorer:
    torch.manual_seed(seed)
    made = DemandScorer(width, hidden=24, heads=2, **options)
    if trained:
        torch.nn.init.normal_(made.leave.weight, std=0.5)
        torch.nn.init.normal_(made.leave.bias)
    return made.eval()


@pytest.mark.parametrize("tokens", [*IMAGES, clip(4)], ids=["one", "crops", "row", "clip"])
@pytest.mark.parametrize("budget", [1, 9, 40])
def test_an_untrained_scorer_is_coverage_to_the_bit(tokens, budget) -> None:
    want = create_method("coverage", tokens=budget).compress(tokens)
    for made in (scorer(False), scorer(strength=0.0)):
        got = create_method("learned", tokens=budget, scorer=made).compress(tokens)
        assert torch.equal(got.anchor, want.anchor)
        assert torch.equal(got.features, want.features)
        assert torch.equal(got.weight, want.weight)


def by_hand(made: DemandScorer, tokens) -> torch.Tensor:
    """The logarithms of factors `[patches that are real]`, from the maths: no padding, no batch."""
    state, count = made.state_dict(), int(tokens.valid.sum())
    real = tokens.valid.flatten()
    x = tokens.features.flatten(0, 1)[real]
    x = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    demand = tokens.signals["attention"].flatten()[real]
    tile = torch.arange(len(tokens.features))[:, None].expand_as(tokens.valid).flatten()[real]
    facts = torch.stack([(demand / demand.mean()).log(), (tile == 0).float()], 1)
    x = x @ state["enter.weight"].T + state["enter.bias"] + facts @ state["facts.weight"].T

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(1, keepdim=True)
        scale = (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
        return centred / scale * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    for block in range(made.config["layers"]):
        at = f"blocks.{block}."
        query, key, value = linear(at + "qkv", norm(at + "first", x)).chunk(3, 1)
        mixed = []
        for q, k, v in zip(*(part.chunk(2, 1) for part in (query, key, value)), strict=True):
            mixed.append(torch.softmax(q @ k.T / 12**0.5, 1) @ v)
        x = x + linear(at + "out", torch.cat(mixed, 1))
        up = linear(at + "up", norm(at + "second", x))
        x = x + linear(at + "down", up * 0.5 * (1 + torch.erf(up / 2**0.5)))
    out = linear("leave", norm("norm", x)).squeeze(1)
    assert len(out) == count
    return made.strength * LARGEST * torch.tanh(out / LARGEST)


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("budget", [8, 64])
def test_demands_are_corrected_patch_by_patch(budget, strength) -> None:
    tokens, made = IMAGES[1], scorer(strength=strength)
    method = create_method("learned", tokens=budget, scorer=made)
    got = method.demand(ImageBatch([tokens], [method]))
    plain = create_method("coverage", tokens=budget)
    want = plain.demand(ImageBatch([tokens], [plain]))
    factor = torch.ones_like(want)
    factor[tokens.valid] = by_hand(made, tokens).exp()
    assert 0 < float((factor - 1).abs().max())
    torch.testing.assert_close(got, want * factor, rtol=1e-4, atol=1e-7)
    assert bool((got[~tokens.valid] == 0).all())


@pytest.mark.parametrize("options", [{}, {"scope": "tile"}, {"merge": False}])
@pytest.mark.parametrize("budget", [1, 7, 30])
def test_a_batch_is_its_rows(budget, options) -> None:
    images = [replace(each, newline=IMAGES[0].newline) for each in IMAGES[1:]]
    method = create_method("learned", tokens=budget, scorer=scorer(), **options)
    for got, one in zip(method.compress_all(images), images, strict=True):
        want = method.compress(one)
        assert torch.equal(got.anchor, want.anchor)
        torch.testing.assert_close(got.features, want.features)


def test_a_trained_scorer_decides() -> None:
    """What it wants is kept: patches along one axis, which CLS does not look at."""
    tokens = IMAGES[0]
    wanted = tokens.features[0, :, 0].topk(3).indices

    class Wants(torch.nn.Module):
        def forward(self, features, demand, overview, valid):
            return 20 * torch.isin(torch.arange(64), wanted)[None].float()

    out = create_method("learned", tokens=3, scorer=Wants()).compress(tokens)
    assert sorted(out.patch[out.is_patch].tolist()) == sorted(wanted.tolist())


def test_saved_and_loaded_scorers_are_equal(tmp_path: Path) -> None:
    made = scorer(strength=0.75, made_for={"model_type": "x", "shape": [], "sample": []})
    made.save(tmp_path)
    method = create_method("learned", tokens=9, scorer=str(tmp_path))
    assert method.scorer.strength == 0.75 and method.made_for == made.made_for
    want = create_method("learned", tokens=9, scorer=made).compress(IMAGES[1])
    assert torch.equal(method.compress(IMAGES[1]).features, want.features)


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    with pytest.raises(VTCError, match="scorer: got None.*vtc train-scorer.*'coverage' works"):
        create_method("learned", tokens=9).compress(IMAGES[0])
    with pytest.raises(VTCError, match="scorer: got int, allowed are"):
        create_method("learned", scorer=3)
    with pytest.raises(VTCError, match=r"need a folder with scorer.json and scorer.safetensors"):
        create_method("learned", scorer=str(tmp_path))
    scorer().save(tmp_path)
    facts = json.loads((tmp_path / "scorer.json").read_text())
    (tmp_path / "scorer.json").write_text(json.dumps({**facts, "hidden": 32}))
    with pytest.raises(VTCError, match="does not load"):
        create_method("learned", scorer=str(tmp_path))
    with pytest.raises(VTCError, match="for features of width 5, this model's have width 16"):
        create_method("learned", tokens=3, scorer=scorer(width=5)).compress(IMAGES[0])
    with pytest.raises(VTCError, match="heads: got 5, allowed are divisors of hidden=96"):
        DemandScorer(8, heads=5)
    with pytest.raises(VTCError, match="strength: got 2, allowed are numbers from 0 to 1"):
        DemandScorer(8, strength=2)


def test_a_scorer_belongs_to_one_model() -> None:
    """Its own takes it in any precision; another of the same kind does not, and stays as it was."""
    model = copy.deepcopy(tiny.build("next-clip"))
    adapter = adapter_for(model)
    width = model.config.get_text_config().hidden_size
    made = scorer(width=width, made_for=identity_of(model, adapter))
    batch = tiny.inputs("next-clip", [[(40, 60)]])
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model.to(dtype)
        with vtc.compress(model, "learned", retention=0.25, scorer=made) as run:
            with torch.no_grad():
                model(**{k: v.to(dtype) if v.is_floating_point() else v for k, v in batch.items()})
        share = run.reports[-1].total("patches_after") / run.reports[-1].total("patches_before")
        assert share == pytest.approx(0.25, abs=0.02)
    model.float()
    projector = adapter.projector(model.base_model)
    with torch.no_grad():
        next(p for p in projector.parameters() if p.dim() > 1).mul_(-1)
    with pytest.raises(VTCError, match="'learned' has a part that was trained for another"):
        vtc.apply(model, "learned", retention=0.25, scorer=made)
    assert not hasattr(model, "_vtc") or model._vtc is None
    with pytest.raises(VTCError, match="trained for a 'qwen', this is a"):
        made.made_for = {**made.made_for, "model_type": "qwen"}
        vtc.apply(model, "learned", retention=0.25, scorer=made)
    for wrong in ("qwen", {"model_type": "qwen"}, {**made.made_for, "sample": [1, 2]}):
        made.made_for = wrong  # as a file may say
        with pytest.raises(VTCError, match="'learned' has a part whose made_for is .*qwen"):
            vtc.apply(model, "learned", retention=0.25, scorer=made)


def test_weights_that_are_not_here_tell_nothing() -> None:
    """Those that were offloaded, or that another process holds: the type alone is compared."""
    known = identity("x", torch.randn(8, 4, generator=torch.Generator().manual_seed(0)))
    for weight in (torch.empty(8, 4, device="meta"), torch.empty(0)):
        assert same(known, identity("x", weight)) and not same(known, identity("y", weight))
