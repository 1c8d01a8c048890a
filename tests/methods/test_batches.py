"""A batch gives every image what it gets alone."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import dedent
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.methods.images import METHODS, image, images, make
from vtc import CompressedTokens, VisualTokens, VTCError, registry
from vtc.batch import ImageBatch
from vtc.functional.ragged import cat_views, true_places
from vtc.methods.base import Method
from vtc.methods.compares_frames import ComparesFrames
from vtc.methods.random import Random
from vtc.registry import method_class
from vtc.tokens import OF_THE_QUESTION, keep_patches


def same(a: CompressedTokens, b: CompressedTokens) -> None:
    for name in ("tile", "patch", "anchor", "weight"):
        assert torch.equal(getattr(a, name), getattr(b, name)), name
    torch.testing.assert_close(a.features, b.features, rtol=1e-5, atol=1e-6)
    assert (a.merged is None) == (b.merged is None) and a.projected == b.projected
    if a.merged is not None and b.merged is not None:
        for name in ("output", "source", "num_outputs", "num_sources"):
            left, right = getattr(a.merged, name), getattr(b.merged, name)
            assert torch.equal(torch.as_tensor(left), torch.as_tensor(right)), name
        torch.testing.assert_close(a.merged.weight, b.merged.weight)


@pytest.mark.parametrize("name", [*METHODS, "none"])
@pytest.mark.parametrize("budget", [{}, {"retention": 0.3}, {"tokens": 7}, {"retention": 1.0}])
@settings(max_examples=6, deadline=None)
@given(batch=st.lists(images(), min_size=1, max_size=4))
def test_images_of_all_shapes_together_are_as_alone(name, budget, batch):
    together = make(name, **budget).compress_all(batch)
    assert len(together) == len(batch)
    for tokens, out in zip(batch, together, strict=True):
        same(out, make(name, **budget).compress(tokens))


@pytest.mark.parametrize("name", METHODS)
def test_budgets_image_by_image(name):
    batch = [image(crops=(2, 2), seed=i) for i in range(4)]
    method = make(name, retention=[0.1, 1.0, 0.3, 0.5, 0.2])
    together = method.compress_all(batch[1:], first=1, count=5)
    for i, (tokens, out) in enumerate(zip(batch[1:], together, strict=True)):
        same(out, method.for_image(1 + i, 5).compress(tokens))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("video", ["clip", "frame"])
def test_clips_beside_images(name, video):
    if video == "frame" and issubclass(method_class(name), ComparesFrames):
        with pytest.raises(VTCError, match=f"video: got 'frame', but '{name}' compares the frames"):
            make(name, video=video)
        return
    one = image(newline=False)
    clips = []
    for frames in (3, 1, 2):
        signals = {
            key: value if key in OF_THE_QUESTION else value.repeat(frames, *[1] * (value.dim() - 1))
            for key, value in one.signals.items()
        }
        features = torch.randn(frames, 64, 16, generator=torch.Generator().manual_seed(frames))
        clips.append(replace(one, features=features, signals=signals))
    method = make(name, retention=0.3, video=video)
    for tokens, out in zip(clips, method.compress_all(clips), strict=True):
        same(out, method.compress(tokens))


def test_an_image_without_outliers_keeps_a_patch_beside_one_with_some():
    plain = image(grid=(6, 6))
    flat = {**plain.signals, "cls_query": torch.zeros(1, 16), "text_embedding": torch.zeros(12)}
    batch = [replace(plain, signals=flat), image(grid=(6, 6), seed=1)]
    together = make("recoverable").compress_all(batch)
    assert int(together[0].is_patch.sum()) == 1 and int(together[1].is_patch.sum()) > 1
    for tokens, out in zip(batch, together, strict=True):
        same(out, make("recoverable").compress(tokens))


@dataclass
class Front(Method):
    """Keeps the first patch, image by image."""

    name: ClassVar[str] = "front"

    def compress(self, tokens: VisualTokens) -> CompressedTokens:
        keep = torch.zeros_like(tokens.valid)
        keep[0, 0] = True
        return keep_patches(tokens, keep)


@dataclass
class Noted(Random):
    """Overrides `compress` of a method that works on batches."""

    name: ClassVar[str] = "noted"

    def compress(self, tokens: VisualTokens) -> CompressedTokens:
        out = super().compress(tokens)
        return out.replace(weight=out.weight * 2)


def test_the_example_keeps_the_longest_features_of_every_image(monkeypatch):
    """The file that CONTRIBUTING.md shows, whole: 25 lines at most."""
    monkeypatch.setattr(registry._METHODS, "made", dict(registry._METHODS.made))
    text = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (shown,) = [dedent(block) for block in blocks if "class FeatureNorm(" in block]
    assert len(shown.strip().splitlines()) <= 25
    space: dict[str, Any] = {"__name__": __name__}
    exec(compile(shown, "CONTRIBUTING.md", "exec", dont_inherit=True), space)
    assert registry.method_class("feature_norm") is space["FeatureNorm"]
    method = space["FeatureNorm"](tokens=9)
    batch = [image((6, 6), crops, (500, 400), seed=i) for i, crops in enumerate([(2, 2), (1, 3)])]
    for tokens, out in zip(batch, method.compress_all(batch), strict=True):
        norm = tokens.features.norm(dim=-1).masked_fill(~tokens.valid, -1)
        kept = norm[out.tile[out.is_patch], out.patch[out.is_patch]]
        assert torch.equal(kept.sort().values, norm.flatten().sort().values[-9:])


@dataclass
class ByBatch(Method):
    """Defines `compress_batch`, which may return a selection too."""

    everything: bool = False

    name: ClassVar[str] = "by_batch"

    def compress_batch(self, batch: ImageBatch) -> Any:
        return batch.keep_all() if self.everything else make("uniform").select(batch)


def test_a_batch_may_be_answered_by_a_selection():
    batch = [image((6, 6), (2, 2), (500, 400), seed=i) for i in range(2)]
    want = make("uniform", tokens=9).compress_all(batch)
    for out, other in zip(ByBatch(tokens=9).compress_all(batch), want, strict=True):
        same(out, other)
    with pytest.raises(VTCError, match="'by_batch' returned .* patch tokens .* its budget is 5"):
        ByBatch(tokens=5, everything=True).compress_all(batch)


def test_a_method_that_knows_single_images_serves_batches():
    batch = [image(seed=i) for i in range(3)]
    assert [int(o.is_patch.sum()) for o in Front().compress_all(batch)] == [1, 1, 1]
    doubled = Noted(tokens=3).compress_all(batch)
    assert all(bool((out.weight == 2).all()) for out in doubled)


def test_a_batch_lacking_a_signal_is_an_error():
    batch = [image(), replace(image(), signals={})]
    with pytest.raises(VTCError, match="cls_logits"):
        make("globalcom2", tokens=5).compress_all(batch)


def test_slices_of_one_tensor_are_joined_without_a_copy():
    whole = torch.arange(24.0).view(6, 4)
    a, b, c = whole.split([1, 3, 2])
    joined = cat_views([a, b, c])
    assert torch.equal(joined, whole) and joined.data_ptr() == whole.data_ptr()
    assert torch.equal(cat_views([b, c]), whole[1:])
    for parts in ([a, c], [b, a], [a, b.clone()]):
        assert torch.equal(cat_views(parts), torch.cat(parts))
    assert torch.equal(cat_views([a.T, a.T]), torch.cat([a.T, a.T]))


@given(st.lists(st.booleans(), max_size=40))
def test_places_of_known_number(mask):
    flags = torch.tensor(mask, dtype=torch.bool)
    assert true_places(flags, sum(mask)).tolist() == [i for i, on in enumerate(mask) if on]
