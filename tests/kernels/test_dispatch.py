"""Which implementation runs: by device, by `VTC_KERNELS`, with and without Triton."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.kernels import _dispatch
from vtc.kernels.adaptive_pool import adaptive_pool
from vtc.kernels.attention_received import attention_received
from vtc.kernels.bit_packing import pack_bits, unpack_bits
from vtc.kernels.cls_attention import cls_attention
from vtc.kernels.cosine_topk import cosine_topk
from vtc.kernels.drop_alike import drop_alike
from vtc.kernels.greedy_pick import greedy_pick
from vtc.kernels.lof import local_outlier_factor
from vtc.kernels.merge import weighted_merge
from vtc.kernels.neighbour_count import neighbour_count
from vtc.kernels.pixel_surprise import pixel_surprise
from vtc.kernels.ragged_compact import ragged_compact
from vtc.kernels.row_attention import row_attention
from vtc.kernels.segmented_topk import segmented_topk
from vtc.kernels.suppress import suppress

INDEX = torch.tensor([0, 1])
#: every public operation on an input of float32 or float64
CALLS = {
    "adaptive_pool": lambda x: adaptive_pool(x, (2, 3), (1, 2)),
    "attention_received": lambda x: attention_received(x[None], x[None], 0.5),
    "cls_attention": lambda x: cls_attention(x[None, :, 0], x[None], 0.5),
    "cosine_topk": lambda x: cosine_topk(x[:, :2], x, 2),
    "drop_alike": lambda x: drop_alike(
        x @ x.mT,
        torch.arange(6).expand(2, -1),
        torch.tensor([6, 6]),
        torch.tensor([3, 3]),
        [6, 4],
        2,
    ),
    "greedy_pick": lambda x: greedy_pick("mmr", x, torch.tensor([2, 1]), 2, x[..., 0]),
    "local_outlier_factor": lambda x: local_outlier_factor(x[0], 2),
    "neighbour_count": lambda x: neighbour_count(x, 0.1),
    "pack_bits": lambda x: pack_bits(x > 0, 2),
    "pixel_surprise": lambda x: pixel_surprise(x, x[..., 0] > -9, (2, 3), 0.5),
    "ragged_compact": lambda x: ragged_compact(x[0], INDEX, torch.tensor([0, 2]), 3),
    "row_attention": lambda x: row_attention(x[None, :, :2], x[None, :1], 0.5),
    "segmented_topk": lambda x: segmented_topk(x[0], torch.tensor([1] * 6)),
    "suppress": lambda x: suppress((x @ x.mT > 0).tril(-1), x[..., 0] > 0),
    "unpack_bits": lambda x: unpack_bits((x > 0).long(), 2),
    "weighted_merge": lambda x: weighted_merge(x[0], INDEX, INDEX, torch.ones(2), 2),
}


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))


def tensors(result: object) -> list[Tensor]:
    return list(result) if isinstance(result, tuple) else [result]


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The operators that were called, in place of running them."""
    names: list[str] = []

    class Operators:
        def __getattr__(self, name: str) -> object:
            def operator(*arguments: object) -> object:
                names.append(name)
                raise InterruptedError

            return operator

    monkeypatch.setattr(torch.ops, "vtc", Operators())
    return names


@pytest.mark.parametrize("name", CALLS)
def test_a_cpu_tensor_goes_to_the_twin(name, x, called, monkeypatch):
    for mode in (None, "torch"):
        if mode is None:
            monkeypatch.delenv("VTC_KERNELS", raising=False)
        else:
            monkeypatch.setenv("VTC_KERNELS", mode)
        CALLS[name](x)
    assert not called


@pytest.mark.parametrize("name", CALLS)
def test_every_operation_dispatches(name, x, called, monkeypatch):
    monkeypatch.setenv("VTC_KERNELS", "interpret")
    monkeypatch.setattr(_dispatch, "INSTALLED", True)
    with pytest.raises(InterruptedError):
        CALLS[name](x)
    assert called == [name]


def test_float64_stays_with_the_twin(x, called, monkeypatch):
    monkeypatch.setenv("VTC_KERNELS", "interpret")
    monkeypatch.setattr(_dispatch, "INSTALLED", True)
    for name in ("adaptive_pool", "cls_attention", "neighbour_count", "weighted_merge"):
        CALLS[name](x.double())
    assert not called


class OnGpu:
    """As much of a tensor on a GPU as the dispatch looks at."""

    is_cuda, dtype, device = True, torch.float16, torch.device("cuda", 0)

    def get_device(self) -> int:
        return 0


@pytest.mark.parametrize("installed", [True, False])
@pytest.mark.parametrize("capability,able", [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_a_gpu_tensor_goes_to_triton_where_it_runs(installed, capability, able, monkeypatch):
    monkeypatch.delenv("VTC_KERNELS", raising=False)
    monkeypatch.setattr(_dispatch, "INSTALLED", installed)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert _dispatch.use_triton(OnGpu()) == (installed and able)
    monkeypatch.setenv("VTC_KERNELS", "torch")
    assert not _dispatch.use_triton(OnGpu())


def test_triton_asked_for(x, monkeypatch):
    monkeypatch.setenv("VTC_KERNELS", "triton")
    monkeypatch.setattr(_dispatch, "INSTALLED", True)
    assert _dispatch.use_triton(OnGpu())
    with pytest.raises(VTCError, match=r"VTC_KERNELS: got 'triton' for a tensor on cpu.*interpret"):
        neighbour_count(x, 0.5)


@pytest.mark.parametrize("mode", ["triton", "interpret"])
def test_triton_asked_for_and_missing(mode, x, monkeypatch):
    monkeypatch.setenv("VTC_KERNELS", mode)
    monkeypatch.setattr(_dispatch, "INSTALLED", False)
    with pytest.raises(VTCError, match=rf"got '{mode}'.*not installed.*vtc-vlm\[kernels\]"):
        neighbour_count(x, 0.5)


def test_wrong_value(x, monkeypatch):
    monkeypatch.setenv("VTC_KERNELS", "cuda")
    with pytest.raises(VTCError, match="VTC_KERNELS: got 'cuda', allowed are torch, triton"):
        neighbour_count(x, 0.5)


def test_operations_work_without_triton():
    """In a process in which Triton cannot be imported."""
    code = """
import sys
sys.modules["triton"] = None
import torch
from vtc.kernels import _dispatch
from vtc.kernels.neighbour_count import neighbour_count
assert not _dispatch.INSTALLED
assert neighbour_count(torch.ones(1, 3, 2), 0.5).tolist() == [[2, 2, 2]]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", CALLS)
def test_twins_compile_without_a_break(name, x, monkeypatch):
    monkeypatch.delenv("VTC_KERNELS", raising=False)
    torch._dynamo.reset()
    compiled = torch.compile(CALLS[name], fullgraph=True, backend="eager")
    for mine, eager in zip(tensors(compiled(x)), tensors(CALLS[name](x)), strict=True):
        assert torch.equal(mine, eager)


@pytest.mark.parametrize(
    "name", ["adaptive_pool", "cls_attention", "ragged_compact", "weighted_merge"]
)
def test_gradients_of_the_twins(name, x, monkeypatch):
    monkeypatch.delenv("VTC_KERNELS", raising=False)
    x = x.double().requires_grad_()

    def differentiable(x: Tensor) -> list[Tensor]:
        return [out for out in tensors(CALLS[name](x)) if out.requires_grad]

    assert torch.autograd.gradcheck(differentiable, (x,))


def test_gradients_of_weights_and_masks(x):
    weight = torch.tensor([0.3, 0.7], dtype=torch.float64, requires_grad=True)
    values = x[0].double().requires_grad_()
    valid = torch.tensor([[True, False, True, True, True, False]]).expand(2, 6)
    assert torch.autograd.gradcheck(
        lambda v, w: weighted_merge(v, torch.tensor([1, 1]), INDEX, w, 2), (values, weight)
    )
    assert torch.autograd.gradcheck(
        lambda v: adaptive_pool(v, (2, 3), (2, 2), valid)[0], (x.double().requires_grad_(),)
    )
