"""Every kernel compiled for GPUs that are not here: no spills, and the instructions that are meant."""

from __future__ import annotations

import importlib.util
import inspect
import pkgutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import vtc.kernels
from tests.kernels.pretend import Launches
from vtc.errors import VTCError
from vtc.eval.kernels import aot
from vtc.kernels._dispatch import Kernel, noted_launches
from vtc.kernels.cls_attention import launch as cls_attention

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed"
)

#: bytes of shared memory that a program can have
SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024, "gfx942": 64 * 1024}


@pytest.fixture(autouse=True)
def compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VTC_KERNELS", raising=False)


def check(target: str, operation: str, dtype: str) -> None:
    for launch in aot.launches(operation, dtype):
        b = aot.measure(operation, dtype, launch, target)
        assert b.spills == 0 and 0 < b.registers <= 512 and b.shared <= SHARED[target], b
        first = next(iter(launch.arguments.values()))
        if first.is_floating_point() and first.dim() > 2:  # features, queries or keys
            # 577 logits a head: rows begin anywhere; 588 halves a patch: at multiples of 8 bytes
            anywhere = b.kernel == "mean_over_heads"
            if not anywhere and (b.kernel != "follow_diagonals" or dtype == "fp32"):
                assert b.vector_loads > 0, b
        dot = "tl.dot" in inspect.getsource(launch.kernel.function)
        if dot and (dtype != "fp32" or target == "gfx942"):
            assert b.matrix > 0, b
        if not dot:
            assert b.matrix == 0, b


@needs_triton
@pytest.mark.parametrize("operation", aot.OPERATIONS)
@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
def test_half_precision(target, operation):
    check(target, operation, "fp16")


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("operation", aot.OPERATIONS)
@pytest.mark.parametrize("target", aot.TARGETS)
@pytest.mark.parametrize("dtype", aot.DTYPES)
def test_everything(target, operation, dtype):
    check(target, operation, dtype)


def test_every_kernel_of_the_folder_is_compiled():
    defined = set()
    for module in pkgutil.iter_modules(vtc.kernels.__path__):
        if not module.name.startswith("_"):
            names = vars(importlib.import_module(f"vtc.kernels.{module.name}")).values()
            defined |= {x for x in names if isinstance(x, Kernel)}
    helpers = {"float_rank", "rank_float", "load_rows"}  # inlined into those that call them
    noted = {launch.kernel for name in aot.OPERATIONS for launch in aot.launches(name, "fp16")}
    assert noted == {kernel for kernel in defined if kernel.name not in helpers}


@needs_triton
def test_spills_and_lost_vector_loads_are_seen():
    """The gauges move: a block too large for the registers, and heads that begin anywhere."""
    [launch] = aot.launches("neighbour_count", "fp32")
    large = replace(launch, arguments={**launch.arguments, "BLOCK": 128})
    assert aot.measure("neighbour_count", "fp32", large, "sm_80").spills > 0
    with noted_launches() as notes:
        keys = torch.empty(2, 40, 3, 65, dtype=torch.float16, device="meta").transpose(1, 2)
        cls_attention(keys[:, :, 0], keys, 0.1)
    assert aot.measure("cls_attention", "fp16", notes[0], "sm_90").vector_loads == 0


def build(target: str, registers: int, spills: int = 0) -> aot.Build:
    return aot.Build("lof", "rows", "1024", "fp16", target, 4, registers, spills, 512, 2, 0)


def test_table_in_the_docs(tmp_path, monkeypatch):
    path = tmp_path / "kernels.md"
    path.write_text("above\n\n<!-- compiled: begin -->\nold\n<!-- compiled: end -->\n\nbelow\n")
    monkeypatch.setattr(aot, "builds", lambda *_: [build("sm_80", 40), build("sm_90", 50, 8)])
    monkeypatch.setattr(aot._dispatch, "INSTALLED", True)
    aot.main(["--markdown", str(path)])
    text = path.read_text()
    assert text.startswith("above\n") and text.endswith("\nbelow\n") and "old" not in text
    assert "| lof | rows | 1024 | fp16 | 40 / 0 / 512 / 2 / 0 | 50 / 8 / 512 / 2 / 0 |" in text
    path.write_text("no place for it")
    with pytest.raises(VTCError, match="markdown: .*needs one line"):
        aot.main(["--markdown", str(path)])


@pytest.mark.parametrize("spills", [0, 8])
def test_command_fails_on_spills(spills, monkeypatch, capsys):
    monkeypatch.setattr(aot, "builds", lambda *_: [build("sm_80", 40), build("sm_90", 50, spills)])
    monkeypatch.setattr(aot._dispatch, "INSTALLED", True)
    assert aot.main([]) == (1 if spills else 0)
    printed = capsys.readouterr().out
    assert (
        "nothing was run" in printed and f"2 builds, {1 if spills else 0} of them spill" in printed
    )


def test_command_says_what_is_missing(monkeypatch):
    monkeypatch.setattr(aot._dispatch, "INSTALLED", False)
    with pytest.raises(VTCError, match=r"triton: not installed.*vtc-vlm\[kernels\]"):
        aot.main([])


def test_docs_hold_the_table():
    text = (Path(__file__).parents[2] / "docs" / "kernels.md").read_text()
    table = text.split("<!-- compiled: begin -->")[1].split("<!-- compiled: end -->")[0]
    for operation in aot.OPERATIONS:
        for launch in aot.launches(operation, "fp16"):
            assert f"| {operation} | {launch.kernel.name} | " in table


def _ones(dtype: torch.dtype = torch.float16, dim: int = 2) -> torch.Tensor:
    return torch.empty([1] * dim, dtype=dtype, device="meta")


#: launches at sizes of 1, which Triton makes constants of
SMALLEST = {
    "cls_attention": lambda m: m.launch(_ones(dim=3), _ones(dim=4), 1.0),
    "attention_received": lambda m: m.launch(_ones(dim=4), _ones(dim=4), 1.0),
    "row_attention": lambda m: m.launch(
        _ones(dim=4), _ones(dim=4), 1.0, _ones(torch.bool, dim=3), True, 50.0
    ),
    "segmented_topk": lambda m: m.launch(_ones(), _ones(torch.int64, 1), _ones(torch.bool)),
    "lof": lambda m: m.launch(_ones(), 1, _ones(torch.bool)),
    "neighbour_count": lambda m: m.launch(_ones(dim=3), 1.0, _ones(torch.bool)),
    "cosine_topk": lambda m: m.launch(
        _ones(dim=3), _ones(dim=3), 1, _ones(), _ones(torch.bool), _ones(torch.int64)
    ),
    "greedy_pick": lambda m: [
        m.launch(
            rule,
            _ones(dim=3),
            _ones(torch.int64, 1),
            1,
            _ones(torch.float32),
            _ones(torch.bool),
            _ones(torch.float32),
            0.5,
            1,
        )  # fmt: skip
        for rule in m.RULES
    ],
    "merge": lambda m: m.launch(
        _ones(), _ones(torch.int64, 1), _ones(torch.int64, 1), _ones(torch.float32, 1), 1
    ),
    "adaptive_pool": lambda m: m.launch_backward(
        m.launch(_ones(dim=3), 1, 1, 1, 1, None)[0], _ones(), 1, 1, 1, 1, _ones(torch.bool)
    ),
    "ragged_compact": lambda m: m.launch(
        _ones(), _ones(torch.int64, 1), torch.empty(2, dtype=torch.int64, device="meta"), 1, True, 1
    ),
    "bit_packing": lambda m: m.launch_unpack(
        m.launch_pack(_ones(torch.bool), 1, torch.uint8), 1, torch.int64
    ),
    "drop_alike": lambda m: m.launch(
        _ones(dim=3), _ones(torch.int64), _ones(torch.int64, 1), _ones(torch.int64, 1), [], 1
    ),
    "suppress": lambda m: m.launch(_ones(torch.bool, 3), _ones(torch.bool)),
    "pixel_surprise": lambda m: [
        m.launch(_ones(dim=3), _ones(torch.bool), 1, 1, tau) for tau in (0.0, 0.5)
    ],
}


@needs_triton
@pytest.mark.parametrize("operation", aot.OPERATIONS)
def test_sizes_of_one(operation):
    with noted_launches() as notes:
        SMALLEST[operation](importlib.import_module(f"vtc.kernels.{operation}"))
    assert notes
    for launch in notes:
        assert aot.measure(operation, "fp16", launch, "sm_80").spills == 0


#: launches of one call, PyTorch's own included, as docs/kernels.md states them
STATED = {
    "cls_attention": 2,
    "attention_received": 3,
    "row_attention": 3,
    "segmented_topk": 1,
    "lof": 1,
    "neighbour_count": 3,
    "cosine_topk": 3,
    "greedy_pick": 23 + 17 + 19 + 11,  # rule by rule
    "merge": 4,
    "adaptive_pool": 1 + 3,  # with the gradient
    "ragged_compact": 1,
    "bit_packing": 1 + 1,  # there and back
    "drop_alike": 1,
    "suppress": 1,
    "pixel_surprise": 1 + 1,  # without and with a tau
}


@pytest.mark.parametrize("operation", aot.OPERATIONS)
def test_launches_are_as_stated(operation):
    with Launches() as others, noted_launches() as notes:
        SMALLEST[operation](importlib.import_module(f"vtc.kernels.{operation}"))
    made = [name for name in others.names.elements() if "empty" not in name]
    assert len(notes) + len(made) == STATED[operation], made
