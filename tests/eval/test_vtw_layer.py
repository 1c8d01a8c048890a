"""The search for the layer of `vtw`, against layers that are called by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import vtc
from tests.families import tiny
from tests.layers import models
from tests.layers.hand import Hand
from tests.layers.methods import DropAll
from vtc import VTCError
from vtc.eval import vtw_layer
from vtc.eval.vtw_layer import search

ROWS: tiny.Rows = [[tiny.A], [tiny.B, tiny.C]]


@pytest.fixture(scope="module")
def model() -> Any:
    return models.build("llava")


def _apart(whole: Tensor, cut: Tensor) -> float:
    """Sum of p log(p / q), number by number."""
    p, q = torch.softmax(cut.double(), -1).tolist(), torch.softmax(whole.double(), -1).tolist()
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def _by_hand(model: Any, layer: int) -> float:
    found = []
    for index, row in enumerate(ROWS):
        alone = tiny.alone("llava", ROWS, index)
        whole = Hand(model, "llava", alone, row, _Never()).greedy(1)[1][0]
        cut = Hand(model, "llava", alone, row, DropAll(layer=layer)).greedy(1)[1][0]
        found.append(_apart(whole, cut))
    return sum(found) / len(found)


class _Never(DropAll):
    def cuts(self, depth: int) -> tuple[int, ...]:
        return ()


def test_divergence_and_layer(model: Any) -> None:
    samples = [tiny.alone("llava", ROWS, index) for index in range(2)]
    found = search(model, samples, threshold=0, every=True)
    assert found.layer is None and list(found.divergence) == [1, 2, 3, 4]
    for layer, value in found.divergence.items():
        assert value == pytest.approx(_by_hand(model, layer), rel=1e-3)
    # the first layer that is within, whatever comes behind it
    within = max(found.divergence.values())
    assert search(model, samples, within).layer == 1
    third = found.divergence[3]
    first = min(layer for layer, value in found.divergence.items() if value <= third)
    stopped = search(model, samples, third)
    assert stopped.layer == first and list(stopped.divergence) == list(range(1, first + 1))
    assert search(model, samples, third, first=3).layer == 3
    # a batch gives what its rows give
    batch = search(model, [tiny.inputs("llava", ROWS)], 0, every=True).divergence
    assert batch == pytest.approx(found.divergence, rel=1e-3)


def test_the_model_is_left_as_it_was(model: Any) -> None:
    sample = tiny.inputs("llava", ROWS)
    want = search(model, [sample], 0, first=4).divergence
    handle = vtc.apply(model, "random", retention=0.25)
    assert search(model, [sample], 0, first=4).divergence == want
    assert handle.active
    handle.remove()
    assert not hasattr(model, "_vtc")


def test_what_is_refused(model: Any) -> None:
    sample = tiny.inputs("llava", ROWS)
    right = dict(sample, attention_mask=sample["attention_mask"].flip(1))
    text = {key: sample[key][:, -3:] for key in ("input_ids", "attention_mask")}
    for given, options, message in (
        ([], {}, "samples: got none"),
        ([right], {}, "padded on the right"),
        ([text], {}, "shows no image"),
        ([sample], {"threshold": -1.0}, "threshold: got -1.0"),
        ([sample], {"threshold": math.nan}, "threshold: got nan"),
        ([sample], {"first": 0}, "first: got 0, allowed are 1 to 4"),
        ([sample], {"first": 5}, "first: got 5"),
    ):
        with pytest.raises(VTCError, match=message):
            search(model, given, **options)


def test_no_more_questions_are_read_than_asked_for() -> None:
    """A benchmark may have thousands, and fetch each when it is read."""

    def first(limit: int | None) -> Iterator[Any]:
        yield SimpleNamespace(images=[], prompt="no picture")
        for prompt in ("one", "two"):
            yield SimpleNamespace(images=[lambda: Image.new("RGB", (4, 4))], prompt=prompt)
        raise AssertionError("read on")

    loaded = SimpleNamespace(inputs=lambda images, prompt: {"prompt": prompt})
    found = list(vtw_layer._samples(loaded, SimpleNamespace(first=first), 2))
    assert [sample["prompt"] for sample in found] == ["one", "two"]


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--samples", "2", "--suite-option", "reference.scenes=2"]
    assert vtw_layer.main([*asked, "--threshold", "1000", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["layer"] == 1 and list(found["divergence"]) == ["1"]
    assert vtw_layer.main([*asked, "--threshold", "0"]) == 1
    captured = capsys.readouterr()
    assert "layer 3:" in captured.out and "no layer is within 0.0" in captured.err
    assert vtw_layer.main([*asked, "--first", "9"]) == 1
    assert "first: got 9" in capsys.readouterr().err
