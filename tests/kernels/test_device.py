"""Every kernel on a GPU, compiled: the checks of `interpreted/`, and what only a device can show.

Skipped without one. Kernel and twin both run on the GPU, the twin in float64 where the check says so.
"""

from __future__ import annotations

import importlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import Phase, settings
from torch import Tensor

from vtc.eval.kernels.bench.operations import OPERATIONS, correctness, is_right
from vtc.eval.kernels.bench.sizes import FULL, SMALL
from vtc.kernels import _dispatch
from vtc.kernels.merge import weighted_merge
from vtc.kernels.ragged_compact import ragged_compact

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

NAMES = sorted(
    path.stem.removeprefix("check_")
    for path in Path(__file__).with_name("interpreted").glob("check_*.py")
)
PACKAGE = f"{__package__}.interpreted"
CUDA = torch.device("cuda")
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# an example may be a build of its own, a second each, so none are spent on making one smaller
DRAWS = settings(max_examples=20, deadline=None, database=None, phases=(Phase.generate,))


def _checks(name: str) -> Iterator[tuple[str, Callable[..., None]]]:
    """The tests of `interpreted/check_<name>.py`, as `test_<name>_...`."""
    for found, check in vars(importlib.import_module(f"{PACKAGE}.check_{name}")).items():
        if found.startswith("test_"):
            drawn = getattr(check, "is_hypothesis_test", False)
            yield f"test_{name}_{found.removeprefix('test_')}", DRAWS(check) if drawn else check


if torch.cuda.is_available():
    pytest.register_assert_rewrite(*(f"{PACKAGE}.check_{name}" for name in NAMES))
    for _name in NAMES:
        globals().update(_checks(_name))


@pytest.fixture(autouse=True, scope="module")
def poisoned() -> Iterator[None]:
    """Whatever `empty` hands out is NaN, or the largest whole number, before a kernel writes it."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.zeros(1, device=CUDA).new_empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """No twin in place of a kernel, and a fault is that of the test in which it happened."""
    monkeypatch.setenv("VTC_KERNELS", "triton")
    torch.cuda.synchronize()


def results(call: Callable[..., Any], *inputs: Any) -> list[Tensor]:
    found = call(*inputs)
    return list(found) if isinstance(found, tuple) else [found]


def test_every_operation_is_checked() -> None:
    assert set(NAMES) == set(OPERATIONS)


@pytest.mark.parametrize("name", OPERATIONS)
def test_kernels_are_what_a_gpu_tensor_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VTC_KERNELS")
    inputs = OPERATIONS[name].inputs(SMALL, CUDA, torch.float16)
    assert _dispatch.use_triton(next(x for x in inputs if isinstance(x, Tensor)))
    launched: list[str] = []
    spied = _dispatch.Kernel.__getitem__

    def spy(kernel: Any, grid: Any) -> Any:
        launched.append(kernel.name)
        return spied(kernel, grid)

    monkeypatch.setattr(_dispatch.Kernel, "__getitem__", spy)
    OPERATIONS[name].call(*inputs)
    assert launched


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_values_at_the_shapes_of_a_model(name: str, dtype: torch.dtype) -> None:
    """LLaVA-NeXT-7B's, against the twin in float64."""
    row = correctness(name, FULL, CUDA, dtype)
    assert is_right(row), row


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", OPERATIONS)
def test_the_same_bits_every_time(name: str, dtype: torch.dtype) -> None:
    """A result that moves is a race."""
    inputs = OPERATIONS[name].inputs(FULL, CUDA, dtype)
    first = results(OPERATIONS[name].call, *inputs)
    for _ in range(20):
        for mine, other in zip(results(OPERATIONS[name].call, *inputs), first, strict=True):
            assert torch.equal(mine, other)


@pytest.mark.parametrize("name", OPERATIONS)
def test_nothing_waits_for_the_device(name: str) -> None:
    inputs = OPERATIONS[name].inputs(FULL, CUDA, torch.float16)
    OPERATIONS[name].call(*inputs)  # built and loaded
    torch.cuda.set_sync_debug_mode("error")
    try:
        OPERATIONS[name].call(*inputs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", OPERATIONS)
def test_inside_a_cuda_graph(name: str) -> None:
    operation = OPERATIONS[name]
    inputs = operation.inputs(FULL, CUDA, torch.float16)
    want = [x.clone() for x in results(operation.call, *inputs)]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        held = results(operation.call, *inputs)
    for out in held:
        out.zero_()
    graph.replay()
    for mine, other in zip(held, want, strict=True):
        assert torch.equal(mine, other)


@pytest.mark.parametrize("name", OPERATIONS)
def test_on_a_stream_and_in_threads(name: str) -> None:
    operation = OPERATIONS[name]
    inputs = operation.inputs(FULL, CUDA, torch.float16)
    want = results(operation.call, *inputs)
    wrong: list[str] = []

    def work(index: int) -> None:
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.default_stream())
        try:
            with torch.cuda.stream(stream):
                for _ in range(5):
                    got = results(operation.call, *inputs)
                    if not all(map(torch.equal, got, want)):
                        wrong.append(f"thread {index}")
        except Exception as error:
            wrong.append(repr(error))

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("name", OPERATIONS)
def test_in_a_graph_of_inductor(name: str) -> None:
    """`torch.compile` goes through the operator, traced on fake tensors."""
    operation = OPERATIONS[name]
    inputs = operation.inputs(SMALL, CUDA, torch.float16)
    torch._dynamo.reset()
    compiled = torch.compile(operation.call, fullgraph=True)
    want = results(operation.call, *inputs)
    for mine, other in zip(results(compiled, *inputs), want, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize(
    "name",
    ["adaptive_pool", "attention_received", "cls_attention", "cosine_topk", "neighbour_count"],
)
def test_tiles_behind_two_to_the_31_numbers(name: str) -> None:
    """The last tile is what it is by itself."""
    operation, tiles = OPERATIONS[name], 2**31 // (FULL.side**2 * FULL.vision) + 2
    inputs = operation.inputs(replace(FULL, tiles=tiles), CUDA, torch.float16)
    last = [x[-1:] if isinstance(x, Tensor) else x for x in inputs]
    for mine, other in zip(
        results(operation.call, *inputs), results(operation.call, *last), strict=True
    ):
        torch.testing.assert_close(mine[-1:], other)


@pytest.mark.parametrize("name", ["merge", "ragged_compact"])
def test_rows_behind_two_to_the_31_numbers(name: str) -> None:
    rows, width = 2**31 // 1024 + 5, 1024
    values = torch.empty(rows, width, dtype=torch.float16, device=CUDA)
    ends = values[[0, -1]] = torch.randn(2, width, device=CUDA).half()
    entries = torch.tensor([0, rows - 1], device=CUDA)
    if name == "merge":
        out = weighted_merge(values, entries, entries, torch.ones(2, device=CUDA), rows)
        assert torch.equal(out[[0, -1]], ends) and not out[1:-1].any()
    else:
        splits = torch.tensor([0, 2], device=CUDA)
        padded, position, mask = ragged_compact(values, entries, splits, 3, left=True)
        assert torch.equal(padded[0, 1:], ends) and not padded[0, 0].any()
        assert position[0].tolist() == [0, 0, rows - 1] and mask.sum() == 2
