"""Methods that are their score: the example of the docs, whole, and what the base makes of it."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from tests.methods.images import image
from vtc import VTCError
from vtc.batch import ImageBatch
from vtc.methods.asks_text import AsksText
from vtc.methods.scored import Scored


@dataclass
class Norm(Scored):
    """Keeps the patches with the largest features."""

    name: ClassVar[str] = "norm"

    def score(self, batch: ImageBatch) -> Tensor:
        return batch.features.norm(dim=-1)


@dataclass
class NormOfTiles(Norm):
    """The same, tile by tile."""

    scope: ClassVar[Any] = "tile"


def test_the_best_of_the_image() -> None:
    tokens = [image(crops=(2, 2), seed=i) for i in range(2)] + [
        image(crops=(1, 3), size=(200, 600))
    ]
    for one, out in zip(tokens, Norm(0.3).compress_all(tokens), strict=True):
        norms = one.features.norm(dim=-1).masked_fill(~one.valid, -1)
        count = Norm(0.3).budget(one)
        want = norms.flatten().topk(count).indices.sort().values
        tile, patch = out.tile[out.is_patch], out.patch[out.is_patch]
        assert torch.equal((tile * norms.shape[1] + patch).sort().values, want)
        assert torch.equal(out.anchor, out.anchor.sort().values)


def test_the_best_of_every_tile() -> None:
    tokens = image(crops=(2, 2), size=(500, 500))
    out = NormOfTiles(0.25).compress(tokens)
    norms = tokens.features.norm(dim=-1)
    for tile in range(5):
        mine = out.patch[(out.tile == tile) & out.is_patch]
        assert len(mine) == 16
        assert set(mine.tolist()) == set(norms[tile].topk(16).indices.tolist())


def test_ties_go_to_the_first_and_padding_stays_out() -> None:
    @dataclass
    class Same(Scored):
        name: ClassVar[str] = "same"

        def score(self, batch: ImageBatch) -> Tensor:
            return torch.where(batch.tables.valid, 0.0, 9.0)

    tokens = image(crops=(2, 2), size=(300, 600))
    out = Same(tokens=5).compress(tokens)
    assert out.anchor[out.is_patch].tolist() == tokens.layout.is_patch.nonzero()[:5, 0].tolist()


def test_what_does_not_fit_is_refused() -> None:
    class Short(Norm):
        def score(self, batch: ImageBatch) -> Tensor:
            return batch.features.norm(dim=-1)[:, :-1]

    with pytest.raises(VTCError, match=r"gave scores of shape \(5, 63\), expected \(5, 64\)"):
        Short(0.5).compress(image(crops=(2, 2)))
    with pytest.raises(VTCError, match="scope: Odd has 'odd', allowed are 'image' and 'tile'"):

        class Odd(Norm):
            scope: ClassVar[Any] = "odd"

    class Nothing(Scored):
        pass

    with pytest.raises(VTCError, match="Nothing must define score"):
        Nothing(0.5).compress(image((4, 4)))


def test_a_scored_method_is_short() -> None:
    """With the imports that it needs, at most 25 lines."""
    imports = 7  # dataclass, ClassVar, Tensor, ImageBatch, Scored, register_method, annotations
    assert len(inspect.getsource(Norm).splitlines()) + imports + 4 <= 25


def test_a_question_is_asked_in_one_way() -> None:
    @dataclass
    class Asks(AsksText, Norm):
        name: ClassVar[str] = "asks"

    assert Asks(0.5, question="where").question == "where"
    with pytest.raises(VTCError, match="question: got 3, allowed are text and None"):
        Asks(0.5, question=3)  # type: ignore[arg-type]
    with pytest.raises(VTCError, match="text_source: got 'all', allowed are question, official"):
        Asks(0.5, text_source="all")
