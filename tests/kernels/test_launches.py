"""A selection is a fixed number of operations for a whole batch, and waits for the device once."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import _get_current_dispatch_mode

import vtc
from tests import asking
from tests.families.tiny import projector
from tests.hf import tiny
from tests.kernels.pretend import Launches, OnDevice, PretendDevice, taken_back
from tests.methods.images import METHODS, image, make
from vtc import VisualTokens, checks
from vtc.kernels import (
    adaptive_pool,
    cosine_topk,
    drop_alike,
    greedy_pick,
    lof,
    merge,
    neighbour_count,
    pixel_surprise,
    segmented_topk,
    suppress,
)
from vtc.methods.base import Method
from vtc.plugins.hf.stages.boundary import encode, shorten
from vtc.registry import method_class

#: a row of the table in docs/kernels.md that says what one call of a method's selection is
ROW = re.compile(r"^\| `(\w+)` \|((?: \d+ \|){6})$", re.MULTILINE)
DOCS = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text()
NUMBERS = {name: [int(n) for n in re.findall(r"\d+", row)] for name, row in ROW.findall(DOCS)}
#: method -> operations on the device around the kernels, calls of kernels, copies to the device, reads
#: of the device; with a given budget, tables of the shapes made before. Of a method that the docs do
#: not name, numbers must be the same for every shape all the same.
STATED = {name: tuple(numbers[:4]) for name, numbers in NUMBERS.items()}
#: method -> operations and reads that a thorough look at the result adds (`vtc.checks`): for the first
#: batch of a shape, and for every one with VTC_CHECK=1
LOOKS = {name: tuple(numbers[4:]) for name, numbers in NUMBERS.items()}
TWINS = {
    "adaptive_pool_torch": adaptive_pool,
    "cosine_topk_torch": cosine_topk,
    "drop_alike_torch": drop_alike,
    "greedy_pick_torch": greedy_pick,
    "local_outlier_factor_torch": lof,
    "weighted_merge_torch": merge,
    "neighbour_count_torch": neighbour_count,
    "pixel_surprise_torch": pixel_surprise,
    "segmented_topk_torch": segmented_topk,
    "suppress_torch": suppress,
}
#: images, crops, grid of a tile
SHAPES = [(2, (2, 2), (8, 8)), (5, (2, 2), (8, 8)), (2, (1, 3), (8, 8)), (2, (2, 2), (16, 16))]


def on_device(images: list[VisualTokens]) -> list[VisualTokens]:
    """The images as slices of tensors on the pretended device, as an encoder leaves them."""
    newline = OnDevice(images[0].newline)
    return [
        replace(
            tokens,
            features=OnDevice(tokens.features),
            newline=newline,
            signals={name: OnDevice(value) for name, value in tokens.signals.items()},
        )
        for tokens in images
    ]


def batch_of(count: int, crops: tuple[int, int], grid: tuple[int, int]) -> list[VisualTokens]:
    images = [image(grid, crops, (600, 500), seed=seed) for seed in range(count)]
    return [replace(tokens, newline=images[0].newline) for tokens in images]


def only(tokens: VisualTokens, method: Method) -> VisualTokens:
    """The image with the signals that the method reads."""
    return replace(tokens, signals={name: tokens.signals[name] for name in method.requests()})


@pytest.fixture
def kernel_calls(monkeypatch) -> Counter[str]:
    """Calls of kernels; what their twins do is left out of the counts of `PretendDevice`."""
    calls: Counter[str] = Counter()

    def counted(name: str, twin: Callable) -> Callable:
        def call(*args, **kwargs):
            device = _get_current_dispatch_mode()
            if not isinstance(device, PretendDevice):
                return twin(*args, **kwargs)
            before = device.launches.copy(), device.sends
            out = twin(*args, **kwargs)
            device.launches, device.sends = before
            calls[name] += 1
            return out

        return call

    for name, module in TWINS.items():
        monkeypatch.setattr(module, name, counted(name, getattr(module, name)))
    return calls


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_is_the_stated_number_of_operations(name, kernel_calls, monkeypatch):
    monkeypatch.setenv("VTC_KERNELS", "torch")
    method, found = make(name, retention=0.25), []
    for shape in SHAPES:
        images = on_device(batch_of(*shape))
        with PretendDevice() as device:
            method.compress_all(images)
            kernel_calls.clear()
            device.launches.clear()
            device.reads = device.sends = 0
            out = method.compress_all(images)
        assert not device.stops
        found.append(
            (sum(device.launches.values()), kernel_calls.total(), device.sends, device.reads)
        )
        # and what comes back is what the CPU gives
        for got, want in zip(out, method.compress_all(batch_of(*shape)), strict=True):
            assert torch.equal(taken_back(got.anchor), want.anchor)
            torch.testing.assert_close(taken_back(got.features), want.features)
    operations, calls, copies, reads = STATED.get(name, found[0])
    assert found == [(operations, calls, copies, reads)] * len(SHAPES)
    assert reads <= 1


@pytest.mark.parametrize("name", METHODS)
def test_a_thorough_look_is_the_stated_number_of_operations(name, kernel_calls, monkeypatch):
    monkeypatch.setenv("VTC_KERNELS", "torch")
    method, found, counts = make(name, retention=0.25), [], set()
    for shape in SHAPES:
        images = on_device([only(tokens, method) for tokens in batch_of(*shape)])
        with PretendDevice() as device:
            method.compress_all(images)  # makes the tables
        counted = []
        for look in ("forgotten", "1", "0"):
            if look == "forgotten":
                checks._state.cache_clear()
            monkeypatch.setenv("VTC_CHECK", look.replace("forgotten", "0"))
            with PretendDevice() as device:
                method.compress_all(images)
            assert not device.stops
            counted.append((sum(device.launches.values()), device.reads))
        first, checked, later = counted
        assert first == checked
        counts.add(later)
        found.append(tuple(a - b for a, b in zip(checked, later, strict=True)))
    assert found == [LOOKS.get(name, found[0])] * len(SHAPES)
    stated = STATED.get(name)
    assert len(counts) == 1 and (stated is None or counts == {(stated[0], stated[3])})


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("budget", [{}, {"retention": 0.25}, {"tokens": 20}])
def test_twins_and_work_on_the_cpu_are_a_fixed_number_too(name, budget):
    method, found = make(name, **budget), set()
    for shape in SHAPES:
        images = batch_of(*shape)
        method.compress_all(images)
        with Launches() as launches:
            method.compress_all(images)
        assert not launches.waits
        found.add(launches.total)
    assert len(found) == 1


@pytest.mark.parametrize("name", METHODS)
def test_images_of_new_sizes_cost_a_fixed_number_more(name):
    """The first call with a combination of known shapes joins their tables."""
    # the tokens of `tokenflex` are made side by side where n is the same
    method, found = (
        make(name, **({"side": 4} if name == "tokenflex" else {"retention": 0.25})),
        set(),
    )
    sizes = [(600, 500), (400, 500), (500, 300)]
    seen = [image((8, 8), (2, 2), size) for size in sizes]
    method.compress_all(seen[:2])
    for tokens in seen:
        method.compress(tokens)
    for order in ([0, 0, 1], [1, 0, 0, 2, 2], [2, 1, 2, 0]):
        images = [replace(seen[i], newline=seen[0].newline) for i in order]
        with Launches() as launches:
            method.compress_all(images)
        found.add(launches.total)
    assert len(found) == 1


def count_calls(monkeypatch, module, name: str) -> list[Launches]:
    """A list that every call of `module.name` puts its operations into."""
    noted: list[Launches] = []
    function = getattr(module, name)

    def counted(*args, **kwargs):
        with Launches() as launches:
            out = function(*args, **kwargs)
        noted.append(launches)
        return out

    monkeypatch.setattr(module, name, counted)
    return noted


@pytest.mark.parametrize("name", [n for n in METHODS if not asking.reads_text(n)])
def test_the_plug_in_adds_nothing_that_grows(name, monkeypatch):
    model = tiny.build("next-clip")
    options = asking.options(name, 32)
    if method_class(name).projects:
        options = {"projector": projector(model)}
    selections = count_calls(monkeypatch, encode, "compress_call")
    plans = count_calls(monkeypatch, shorten, "build_compaction")
    found = set()
    with vtc.compress(model, name, retention=0.5, **options), torch.no_grad():
        for rows in ([[(40, 60)]] * 2, [[(40, 60)]] * 4, [[(40, 60)] * 3, [(40, 60)]]):
            batch = tiny.inputs("next-clip", rows)
            model(**batch)
            model(**batch)
            assert not selections[-1].waits
            found.add((selections[-1].total, plans[-1].total))
    assert len(found) == 1
