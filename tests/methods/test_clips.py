"""What all methods that compare the frames of a clip promise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kernels.pretend import Launches, PretendDevice, taken_back
from tests.kernels.test_launches import on_device
from tests.methods.images import METHODS, clip, image, make
from tests.methods.test_batches import same
from tests.methods.test_properties import check
from vtc.methods.compares_frames import ComparesFrames
from vtc.registry import method_class

CLIPS = [name for name in METHODS if issubclass(method_class(name), ComparesFrames)]


@pytest.mark.parametrize("name", CLIPS)
@settings(max_examples=15, deadline=None)
@given(frames=st.lists(st.integers(1, 11), min_size=1, max_size=4), data=st.data())
def test_clips_of_all_lengths_are_met_exactly_and_together_as_alone(name, frames, data):
    newline = torch.ones(16) if data.draw(st.booleans()) else None
    clips = [clip(n, seed=data.draw(st.integers(0, 99)), newline=newline) for n in frames]
    clips.append(image((4, 4), newline=False))
    budgets = [data.draw(st.integers(1, tokens.num_patches)) for tokens in clips]
    method = make(name, tokens=budgets)
    outs = method.compress_all(clips)
    for index, (tokens, out) in enumerate(zip(clips, outs, strict=True)):
        check(tokens, out)
        assert int(out.is_patch.sum()) == budgets[index]
        assert bool((out.anchor.diff() > 0).all())
        same(out, method.for_image(index, len(clips)).compress(tokens))


@pytest.mark.parametrize("name", CLIPS)
def test_what_the_prompt_hides_takes_no_part(name):
    """Places 2 of the first frame and all of the third are hidden: their features change nothing."""
    hidden = (2, *range(32, 48))
    tokens = clip(6, hidden=hidden, seed=3)
    other = tokens.features.flatten(0, 1).clone()
    other[list(hidden)] = 1e3
    changed = replace(tokens, features=other.view_as(tokens.features))
    for budget in ({"tokens": 5}, {"tokens": 30}, {"retention": 0.8}, {}):
        out, again = (make(name, **budget).compress(each) for each in (tokens, changed))
        check(tokens, out)
        same(out, again)


@pytest.mark.parametrize("name", CLIPS)
@pytest.mark.parametrize("budget", [{}, {"retention": 0.25}, {"retention": 0.7}])
def test_clips_are_a_fixed_number_of_operations(name, budget, monkeypatch):
    monkeypatch.setenv("VTC_KERNELS", "torch")
    method, found, host = make(name, **budget), set(), set()
    newline = torch.ones(16)
    for lengths, grid in (([5, 9], (4, 4)), ([6, 8, 3, 12], (4, 4)), ([5, 9], (6, 6))):
        clips = [clip(n, grid, seed=n, newline=newline) for n in lengths]
        want = method.compress_all(clips)
        with Launches() as launches:
            method.compress_all(clips)
        host.add(launches.total)
        there = on_device(clips)
        with PretendDevice() as device:
            method.compress_all(there)
            device.launches.clear()
            device.reads = device.sends = 0
            out = method.compress_all(there)
        assert not device.stops
        found.add((sum(device.launches.values()), device.sends, device.reads))
        for one, other in zip(out, want, strict=True):
            assert torch.equal(taken_back(one.anchor), other.anchor)
            torch.testing.assert_close(taken_back(one.features), other.features)
    # `prunevid` asks for its windows, and then for what does not move in them
    assert len(found) == len(host) == 1 and found.pop()[2] <= 1 + (name == "prunevid")


@pytest.mark.parametrize("name", CLIPS)
def test_equal_frames_are_no_trouble(name):
    still = clip(7, seed=1)
    for features in (still.features[:1].expand(7, -1, -1), torch.zeros_like(still.features)):
        tokens = replace(still, features=features.contiguous())
        for count in (3, 20, 100):
            out = make(name, tokens=count).compress(tokens)
            check(tokens, out)
            assert int(out.is_patch.sum()) == count
