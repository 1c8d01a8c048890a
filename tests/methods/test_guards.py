"""What a method returns is checked, and how its class is written."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch

from tests.methods.images import METHODS, image, make
from vtc import checks
from vtc.batch import ImageBatch
from vtc.errors import VTCError
from vtc.methods.base import Method
from vtc.tokens import CompressedTokens, MergeIndex, VisualTokens, keep_patches

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
class ChangedBatch(Method):
    """The same for many images, each changed by itself."""

    change: Callable[[CompressedTokens], Any] = lambda out: out
    name: ClassVar[str] = "changed_batch"

    def compress_batch(self, batch: ImageBatch) -> Any:
        keep = torch.zeros_like(batch.tables.valid)
        keep[:, :2] = True
        kept = [2 * tiles for tiles in batch.tiles]
        return [self.change(out) for out in batch.keep(keep, kept).apply(batch)]


@dataclass
class ChangedAll(Changed):
    """The same by a way in of its own."""

    name: ClassVar[str] = "changed_all"

    def compress_all(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        return [self.change(Changed(0.5).compress(image)) for image in images]


@dataclass
class Returns(Method):
    """Returns what it is told to, whatever the batch."""

    what: Any = None
    name: ClassVar[str] = "returns"

    def compress_batch(self, batch: ImageBatch) -> Any:
        return self.what


def nans(values: torch.Tensor) -> torch.Tensor:
    """One of them is no number."""
    return values.index_fill(0, torch.tensor([1]), torch.nan)


def in_place(out: CompressedTokens) -> CompressedTokens:
    """Writes into what was gathered."""
    out.features[1, 3] = torch.inf
    return out


def index_of(out: CompressedTokens, **changes: Any) -> MergeIndex:
    """Every token made of its own patch, but for `changes`."""
    real = out.is_patch.nonzero().squeeze(1)
    parts = dict(output=real, source=out.tile[real] * 4 + out.patch[real], weight=real * 0 + 1.0)
    return MergeIndex(**{**parts, "num_outputs": len(out), "num_sources": 20, **changes})


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
    "anchor behind the end": (
        lambda out: out.replace(anchor=out.anchor + 20),
        r"anchor outside \[0, 24\)",
    ),
    "anchor before the start": (
        lambda out: out.replace(anchor=out.anchor - 1),
        r"anchor outside .*: -1$",
    ),
    "tile behind the last": (lambda out: out.replace(tile=out.tile + 1), r"tile outside \[-1, 5\)"),
    "tile of no number": (lambda out: out.replace(tile=out.tile - 9), "tile outside"),
    "patch behind the last": (
        lambda out: out.replace(patch=out.patch + 3),
        r"patch outside \[-1, 4\)",
    ),
    "patches of no tile": (
        lambda out: out.replace(tile=out.tile * 0 - 1),
        "patch tokens of tile -1",
    ),
    "separators alone": (lambda out: out.replace(patch=out.patch * 0 - 1), "no patch token"),
    "not a number": (lambda out: out.replace(features=out.features * torch.nan), "not a number"),
    "one is infinite": (in_place, "features that are not a number, made of ones that are$"),
    "a weight is no number": (
        lambda out: out.replace(weight=nans(out.weight)),
        "weights that are not a number",
    ),
    "a merge weight is no number": (
        lambda out: out.replace(merged=index_of(out, weight=nans(index_of(out).weight))),
        "weights that are not a number",
    ),
    "merged into no token": (
        lambda out: out.replace(merged=index_of(out, output=index_of(out).output + 99)),
        "merge index with a output that is out of range",
    ),
    "merged from no patch": (
        lambda out: out.replace(merged=index_of(out, source=index_of(out).source - 20)),
        "merge index with a source that is out of range",
    ),
    "merged to another number": (
        lambda out: out.replace(merged=index_of(out, num_outputs=3)),
        "merge index from 20 patches to 3 tokens, expected from 20 to 14",
    ),
    "merged unevenly": (
        lambda out: out.replace(merged=index_of(out, weight=index_of(out).weight[1:])),
        "not of one length",
    ),
}
KINDS = [Changed, ChangedBatch, ChangedAll]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", [*SHAPES, *VALUES])
def test_results_that_do_not_fit(case: str, kind: type[Changed]) -> None:
    """Whatever the way in, for the first batch of a shape and for later ones."""
    change, message = {**SHAPES, **VALUES}[case]
    for right in (0, 1, 3):  # as many batches of that shape before, all right
        checks._state.cache_clear()
        images = [TOKENS] * 2
        for _ in range(right):
            assert len(kind(0.5).compress_all(images)) == 2
        for _ in range(2):  # an error is none of them: it comes again
            with pytest.raises(VTCError, match=message):
                kind(0.5, change=change).compress_all(images)
    if kind is not ChangedAll:
        with pytest.raises(VTCError, match=message):
            kind(0.5, change=change).compress(TOKENS)


@pytest.mark.parametrize("case", VALUES)
def test_a_batch_is_guarded_by_itself_too(case: str) -> None:
    change, message = VALUES[case]
    with pytest.raises(VTCError, match=message):
        method = ChangedBatch(0.5, change=change)
        method.compress_batch(ImageBatch([TOKENS, TOKENS], [method, method]))


@pytest.mark.parametrize("case", VALUES)
def test_one_wrong_image_among_others(case: str) -> None:
    change, message = VALUES[case]
    turn = iter(range(9))
    with pytest.raises(VTCError, match=message):
        ChangedBatch(0.5, change=lambda out: change(out) if next(turn) == 2 else out).compress_all(
            [TOKENS] * 4
        )


@pytest.mark.parametrize("kind", [Changed, ChangedBatch])
def test_frames_are_guarded_one_by_one(kind: type[Changed]) -> None:
    clip = VisualTokens(torch.ones(3, 4, 8), (2, 2))
    assert len(kind(0.5, video="frame").compress(clip)) == 6
    for change, message in (
        (lambda out: out.replace(features=out.features * torch.nan), "not a number"),
        (lambda out: out.replace(anchor=out.anchor + 4), r"anchor outside \[0, 4\)"),
    ):
        for give in (lambda m: m.compress(clip), lambda m: m.compress_all([clip, clip])):
            with pytest.raises(VTCError, match=message):
                give(kind(0.5, video="frame", change=change))


def test_results_of_a_batch_that_are_no_list_of_them() -> None:
    (one,) = ChangedBatch(0.5).compress_all([TOKENS])
    with pytest.raises(VTCError, match="expected a list of 2"):
        Returns(0.5, what=[one]).compress_all([TOKENS, TOKENS])
    with pytest.raises(VTCError, match="returned NoneType for a batch"):
        Returns(0.5).compress_all([TOKENS, TOKENS])
    assert Returns(0.5, what=(one,)).compress_all([TOKENS]) == [one]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "budget, most",
    [
        ({"retention": 0.45}, 9),
        ({"tokens": 9}, 9),
        ({"retention": 0.01}, 1),
        ({"tokens": [9, 10]}, 9),
    ],
)
def test_more_than_the_budget_is_an_error(kind: type[Changed], budget: Any, most: int) -> None:
    """Ten of twenty patches are kept, whatever was asked for."""
    with pytest.raises(VTCError, match=f"returned 10 patch tokens .* 20 patches, .* is {most}$"):
        kind(**budget).compress_all([TOKENS] * 2)
    assert len(kind(tokens=10).compress_all([TOKENS] * 2)) == 2
    assert len(kind(tokens=15).compress_all([TOKENS] * 2)) == 2, "fewer is no error"


def test_a_method_may_say_that_budgets_are_no_bound() -> None:
    class Loose(Changed):
        exact: ClassVar[bool] = False

    class Own(Changed):
        adaptive: ClassVar[bool] = True

    assert len(Loose(tokens=1).compress(TOKENS)) == len(Own().compress(TOKENS)) == 14
    with pytest.raises(VTCError, match="its budget is 1"):
        Own(tokens=1).compress(TOKENS)


def test_results_in_another_order() -> None:
    """The images have other shapes, so that one's anchors are out of the other's range."""

    @dataclass
    class Swapped(Method):
        name: ClassVar[str] = "swapped"

        def compress_all(self, images: Any, *args: Any, **kwargs: Any) -> Any:
            return make("uniform", retention=0.5).compress_all(images)[::-1]

    small, large = image((4, 4)), image((8, 8))
    for batch in ([small, large], [large, small]):
        with pytest.raises(VTCError, match="'swapped' returned (anchor|patch) outside"):
            Swapped(0.5).compress_all(batch)


@pytest.mark.parametrize("kept", [[8, 12], [12, 8], [9, 10], [10, 11], [0, 20]])
def test_a_mask_that_keeps_other_numbers_than_are_said(kept: list[int]) -> None:
    """Images would get each other's patches."""
    batch = ImageBatch([TOKENS, TOKENS], [Changed(0.5)] * 2)
    keep = torch.zeros_like(batch.tables.valid)
    keep[:, :2] = True
    assert [len(out) for out in batch.keep(keep, [10, 10]).apply(batch)] == [14, 14]
    with pytest.raises(VTCError, match=r"kept: got \[.*, but the mask keeps other numbers"):
        batch.keep(keep, kept)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p, n, s: (p + 24, n, s), "lengths: got .* tokens stand in other images"),
        (lambda p, n, s: (p - 1, n, s), "lengths: got .* tokens stand in other images"),
        (
            lambda p, n, s: (p.where(p > 0, 48), n, s),
            "lengths: got .* tokens stand in other images",
        ),
        (
            lambda p, n, s: (p, [n[0] - 1, n[1] + 1], s),
            "lengths: got .* tokens stand in other images",
        ),
        (lambda p, n, s: (p.clamp(min=1), n, s), "place: got a patch twice"),
        (lambda p, n, s: (p, n, [3, 5]), r"separators: got \[3, 5\], but \[20, 20\] tokens"),
    ],
)
@pytest.mark.parametrize("count", [1, 2])
def test_places_that_do_not_fit(count: int, change: Any, message: str) -> None:
    """What `ImageBatch.gather` is told by methods that put tokens together by their places."""
    batch = ImageBatch([TOKENS] * count, [Changed(0.5)] * count)
    whole = torch.arange(24 * count), [24, 24][:count], [4, 4][:count]
    assert [len(out) for out in batch.gather(*whole).apply(batch)] == [24] * count
    place, lengths, separators = change(whole[0], [24, 24], [4, 4])
    if count == 1:  # there is no other image
        if lengths != [24, 24] or int(place.max()) < 24 and "images" in message:
            return
        message = message.split(" got")[0]
    with pytest.raises(VTCError, match=message):
        batch.gather(place, lengths[:count], separators[:count])


def test_what_is_looked_at_is_set_by_a_variable(monkeypatch: Any) -> None:
    monkeypatch.setenv("VTC_CHECK", "yes")
    with pytest.raises(VTCError, match="VTC_CHECK: got 'yes', allowed are 0, 1"):
        ChangedBatch(0.5).compress(TOKENS)
    with torch.inference_mode():  # writing is not counted here
        for value, found in (("0", False), ("1", True)):
            monkeypatch.setenv("VTC_CHECK", value)
            ChangedBatch(0.5).compress(TOKENS)
            try:
                ChangedBatch(0.5, change=in_place).compress(TOKENS)
                assert not found
            except VTCError as error:
                assert found and "not a number" in str(error)


def test_newlines_may_share_an_anchor() -> None:
    """GlobalCom2's newlines of padded rows borrow their neighbour's."""

    def share(out: CompressedTokens) -> CompressedTokens:
        first = out.anchor[~out.is_patch][0]
        return out.replace(anchor=torch.where(out.is_patch, out.anchor, first))

    assert len(Changed(0.5, change=share).compress(TOKENS)) == 14


@pytest.mark.parametrize("kind", KINDS)
def test_features_that_were_not_numbers_before_are_not_the_methods_fault(kind: Any) -> None:
    spoilt = VisualTokens(TOKENS.features * torch.nan, (2, 2), (2, 2), (4, 4))
    assert kind(0.5).compress_all([spoilt])[0].features.isnan().all()
    with pytest.warns(UserWarning, match="features: not all that the model made"):
        kind(0.5, change=lambda out: out.replace(features=out.features + 1)).compress_all([spoilt])


def test_only_tokens_made_of_what_is_no_number_are_excused() -> None:
    """Patch 0 of tile 0 is none; the first token is made of it."""
    features = TOKENS.features.clone()
    features[0, 0] = torch.inf
    spoilt = VisualTokens(features, (2, 2), (2, 2), (4, 4), newline=torch.zeros(8))

    def merged(*wrong: int) -> Callable[[CompressedTokens], CompressedTokens]:
        def change(out: CompressedTokens) -> CompressedTokens:
            made = out.features.index_fill(0, torch.tensor(wrong), torch.nan)
            return out.replace(features=made, merged=index_of(out))

        return change

    with pytest.warns(UserWarning, match="half precision"):
        ChangedBatch(0.5, change=merged(0)).compress(spoilt)
    with pytest.raises(VTCError, match="not a number, made of ones that are"):
        ChangedBatch(0.5, change=merged(0, 1)).compress(spoilt)


@pytest.mark.parametrize("name", ["globalcom2", "token_correlation", "recoverable"])
def test_signals_that_are_no_numbers_are_named(name: str, monkeypatch: Any) -> None:
    """The tower's attention may overflow where the features that the model reads do not."""
    monkeypatch.setenv("VTC_CHECK", "1")
    tokens, method = image(crops=(2, 2)), make(name, retention=0.5)
    for signal in method.requests():
        values = tokens.signals[signal].clone()
        values.view(-1)[7] = torch.nan
        spoilt = replace(tokens, signals={**tokens.signals, signal: values})
        with pytest.warns(UserWarning, match=f"signals: {signal} of the model, .* {name!r}"):
            assert method.compress(spoilt).features.isfinite().all()


def test_features_made_of_signals_that_are_no_numbers() -> None:
    tokens = image(crops=(2, 2), size=(500, 500))
    tokens = replace(tokens, signals={"keys": tokens.signals["keys"] * torch.nan})
    method = ChangedBatch(0.5, change=lambda out: out.replace(features=out.features * torch.nan))
    with pytest.raises(VTCError, match="; the model's keys are none"):
        method.compress(tokens)


@pytest.mark.parametrize("name", METHODS)
def test_what_methods_return_is_what_is_noted_of_it(name: str) -> None:
    """The counts that reports and guards read without a look at the device, and what is trusted."""
    batch = [image(crops=(2, 2), seed=i) for i in range(3)]
    outs = make(name, retention=0.3).compress_all(batch)
    other = image((8, 8)).geometry
    for tokens, out in zip(batch, outs, strict=True):
        assert out.gathered is not None and out.num_patches == int(out.is_patch.sum())
        assert not out.known_right(other)
        assert out.known_right(tokens.geometry) == (
            name != "tokenflex"
        )  # what a projector makes is looked at
        for field in ("features", "tile", "patch", "anchor", "weight"):
            assert not out.replace(**{field: getattr(out, field).clone()}).known_right(
                tokens.geometry
            )
        assert out.replace(patch=out.patch * 0 - 1).num_patches == 0
        if out.merged is not None:
            again = replace(out.merged, weight=out.merged.weight.clone())
            assert not out.replace(merged=again).known_right(tokens.geometry)
    outs[0].features.mul_(2)
    assert not outs[0].known_right(batch[0].geometry)


def test_a_class_says_where_it_works_and_how() -> None:
    with pytest.raises(VTCError, match="stage: Middle has 'middle'"):

        class Middle(Method):
            stage: ClassVar[Any] = "middle"

    class Empty(Method):
        name: ClassVar[str] = "empty"

    with pytest.raises(VTCError, match="Empty must define select or compress"):
        Empty(0.5).compress(TOKENS)
