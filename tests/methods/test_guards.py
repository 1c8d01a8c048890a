"""What a method returns is checked, and how its class is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

from vtc.batch import ImageBatch
from vtc.errors import VTCError
from vtc.methods.base import Method
from vtc.tokens import CompressedTokens, VisualTokens, keep_patches

TOKENS = VisualTokens(
    torch.ones(5, 4, 8), (2, 2), (2, 2), (4, 4), newline=torch.zeros(8), content_seed=1
)


@dataclass
class Changed(Method):
    """Keeps the first half and returns it changed."""

    change: Callable[[CompressedTokens], Any] = lambda out: out
    name: ClassVar[str] = "changed"

    def compress(self, tokens: VisualTokens) -> CompressedTokens:
        keep = torch.zeros_like(tokens.valid)
        keep[:, :2] = True
        return self.change(keep_patches(tokens, keep))


@dataclass
class ChangedBatch(Changed):
    """The same for many images."""

    name: ClassVar[str] = "changed_batch"

    def compress_batch(self, batch: ImageBatch) -> Any:
        return self.change(batch.keep(batch.tables.valid, [s.patches for s in batch.shapes])[0])


SHAPES: dict[str, tuple[Callable[[CompressedTokens], Any], str]] = {
    "nothing": (lambda out: None, "returned NoneType"),
    "a tensor": (lambda out: out.features, "returned Tensor"),
    "one dimension": (lambda out: out.replace(features=out.features[:, 0]), "features of shape"),
    "float anchors": (
        lambda out: out.replace(anchor=out.anchor.float()),
        "anchor of torch.float32",
    ),
    "float patches": (lambda out: out.replace(patch=out.patch.float()), "patch of torch.float32"),
}
VALUES: dict[str, tuple[Callable[[CompressedTokens], Any], str]] = {
    "one anchor for all": (lambda out: out.replace(anchor=out.anchor * 0), "the same anchor"),
    "not a number": (lambda out: out.replace(features=out.features * torch.nan), "not a number"),
}


@pytest.mark.parametrize("case", [*SHAPES, *VALUES])
def test_results_that_do_not_fit(case: str) -> None:
    change, message = {**SHAPES, **VALUES}[case]
    with pytest.raises(VTCError, match=message):
        Changed(0.5, change=change).compress(TOKENS)


@pytest.mark.parametrize("case", SHAPES)
def test_results_of_a_batch_that_do_not_fit(case: str) -> None:
    change, message = SHAPES[case]
    with pytest.raises(VTCError, match=message):
        ChangedBatch(0.5, change=lambda out: [change(out)]).compress_all([TOKENS])
    with pytest.raises(VTCError, match="expected a list of 2"):
        ChangedBatch(0.5, change=lambda out: [out]).compress_all([TOKENS, TOKENS])
    with pytest.raises(VTCError, match="returned NoneType for a batch"):
        ChangedBatch(0.5, change=lambda out: None).compress_all([TOKENS])


def test_newlines_may_share_an_anchor() -> None:
    """GlobalCom2's newlines of padded rows borrow their neighbour's."""

    def share(out: CompressedTokens) -> CompressedTokens:
        first = out.anchor[~out.is_patch][0]
        return out.replace(anchor=torch.where(out.is_patch, out.anchor, first))

    assert len(Changed(0.5, change=share).compress(TOKENS)) == 14


def test_features_that_were_not_numbers_before_are_not_the_methods_fault() -> None:
    spoilt = VisualTokens(TOKENS.features * torch.nan, (2, 2), (2, 2), (4, 4))
    assert Changed(0.5).compress(spoilt).features.isnan().all()


def test_a_class_says_where_it_works_and_how() -> None:
    with pytest.raises(VTCError, match="stage: Middle has 'middle'"):

        class Middle(Method):
            stage: ClassVar[Any] = "middle"

    class Empty(Method):
        name: ClassVar[str] = "empty"

    with pytest.raises(VTCError, match="Empty must define compress or compress_batch"):
        Empty(0.5).compress(TOKENS)
