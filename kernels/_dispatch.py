"""Which implementation of an operation runs, its PyTorch twin or its Triton kernel, and how kernels
are launched.

A tensor on a GPU goes to Triton, everything else to the twin. The environment variable
`VTC_KERNELS` overrides: `torch` (twins everywhere), `triton` (an error where Triton cannot run,
instead of the twin) or `interpret` (kernels under Triton's interpreter on the CPU, for tests). It is
read at every call. Float64 always goes to the twin: it is there to check kernels against.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vtc.errors import VTCError

VARIABLE = "VTC_KERNELS"
MODES = ("torch", "triton", "interpret")
#: compute capability from which NVIDIA GPUs get kernels by themselves: what `aot.py` compiles for
OLDEST_CAPABILITY = (8, 0)
INSTALLED = importlib.util.find_spec("triton") is not None

if os.environ.get(VARIABLE) == "interpret":
    os.environ["TRITON_INTERPRET"] = "1"  # is read when Triton is imported, by PyTorch perhaps


def use_triton(tensor: Tensor) -> bool:
    """Whether an operation on `tensor` runs its Triton kernel.

    Raises:
        VTCError: `VTC_KERNELS` is not one of the modes, or asks for Triton where it cannot run.
    """
    mode = os.environ.get(VARIABLE, "")
    if mode == "torch" or tensor.dtype == torch.float64:
        return False
    if mode == "":
        return tensor.is_cuda and _runs_by_itself(tensor.get_device())
    if mode not in MODES:
        raise VTCError(f"{VARIABLE}: got {mode!r}, allowed are {', '.join(MODES)} or nothing")
    if not INSTALLED:
        raise VTCError(
            f"{VARIABLE}: got {mode!r}, but triton is not installed; pip install 'vtc-vlm[kernels]', "
            f"or set {VARIABLE}=torch"
        )
    if mode == "triton" and not tensor.is_cuda:
        raise VTCError(
            f"{VARIABLE}: got 'triton' for a tensor on {tensor.device}; kernels run on GPUs, or "
            f"with {VARIABLE}=interpret on the CPU"
        )
    return True


def _runs_by_itself(device: int) -> bool:
    # a capability cannot be asked for in a compiled graph; Inductor makes such demands itself
    if not INSTALLED or torch.version.hip is not None or torch.compiler.is_compiling():
        return INSTALLED
    return torch.cuda.get_device_capability(device) >= OLDEST_CAPABILITY


def register(
    name: str,
    schema: str,
    launch: Callable[..., Any],
    fake: Callable[..., Any],
    twin: Callable[..., Any] | None = None,
    gradient: tuple[Callable[..., None], Callable[..., Any]] | None = None,
) -> None:
    """Make `launch` the operator `torch.ops.vtc.<name>`, opaque to `torch.compile`.

    Args:
        name, schema: as `torch.library.custom_op` wants them.
        launch: makes the results by launching kernels.
        fake: empty results of the right shapes, for tracing.
        twin: takes the same arguments and gives the gradients, by computing once more.
        gradient: `setup_context` and `backward` of an operator that has its own. With neither there are
            no gradients.
    """
    op = torch.library.custom_op(f"vtc::{name}", launch, mutates_args=(), schema=schema)
    op.register_fake(fake)
    gradient = _gradient_of(twin) if twin is not None else gradient
    if gradient is not None:
        op.register_autograd(gradient[1], setup_context=gradient[0])


def opaque(
    name: str, schema: str, function: Callable[..., Any], fake: Callable[..., Any]
) -> Callable[..., Any]:
    """The operator `torch.ops.vtc.<name>` that `torch.compile` does not look into, without gradients.

    For loops of PyTorch whose steps follow each other, which have no place in a compiled graph. Not
    `torch.library.custom_op`, which imports the compiler at its first call and takes seconds.
    """
    torch.library.define(f"vtc::{name}", schema)
    torch.library.impl(f"vtc::{name}", "CompositeExplicitAutograd", function)
    torch.library.register_fake(f"vtc::{name}", fake)
    operator: Callable[..., Any] = getattr(torch.ops.vtc, name)
    return operator


def _gradient_of(twin: Callable[..., Any]) -> tuple[Callable[..., None], Callable[..., Any]]:
    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.is_tensor = [isinstance(x, Tensor) for x in inputs]
        ctx.others = [x for x in inputs if not isinstance(x, Tensor)]
        ctx.save_for_backward(*(x for x in inputs if isinstance(x, Tensor)))

    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        saved, others = iter(ctx.saved_tensors), iter(ctx.others)
        inputs = [next(saved).detach() if t else next(others) for t in ctx.is_tensor]
        wanted = [x for x, need in zip(inputs, ctx.needs_input_grad, strict=True) if need]
        with torch.enable_grad():
            for x in wanted:
                x.requires_grad_()
            outputs = twin(*inputs)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        found = iter(torch.autograd.grad(outputs, wanted, gradients))
        return tuple(next(found) if need else None for need in ctx.needs_input_grad)

    return setup, backward


def widened(x: Tensor) -> Tensor:
    """`x` in the dtype that twins compute in: float64 stays, everything else becomes float32."""
    return x if x.dtype == torch.float64 else x.float()


@dataclass(frozen=True)
class Launch:
    """A launch that was noted down instead of made, see `noted_launches`."""

    kernel: Kernel
    arguments: dict[str, Any]
    options: dict[str, Any]


_notes: list[Launch] | None = None


@contextmanager
def noted_launches() -> Iterator[list[Launch]]:
    """Inside the block kernels are not launched: their arguments are noted, tensors may be "meta".

    This is how `aot.py` compiles exactly what an operation would launch.
    """
    global _notes
    before, _notes = _notes, []
    try:
        yield _notes
    finally:
        _notes = before


class Kernel:
    """A Triton kernel that is decorated at its first launch, so that importing needs no Triton.

    The decorated function says `tl` for `triton.language` without importing it. A function that
    kernels call is decorated in the same way.

    Args:
        function: the kernel; its first argument is a tensor.
    """

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.name = function.__name__.strip("_")
        self.names = function.__code__.co_varnames[: function.__code__.co_argcount]

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        """`kernel[grid](*arguments, num_warps=..., num_stages=...)`; an empty grid does nothing."""

        def launch(*arguments: Any, **keywords: Any) -> None:
            options = {k: v for k, v in keywords.items() if k not in self.names}
            if _notes is not None:
                constants = {k: v for k, v in keywords.items() if k in self.names}
                named = dict(zip(self.names, arguments, strict=False))
                _notes.append(Launch(self, {**named, **constants}, options))
            elif 0 not in grid:
                with torch.cuda.device_of(arguments[0]):
                    self.jitted[grid](*arguments, **keywords)

        return launch

    def __call__(self, *arguments: Any) -> Any:
        """Only kernels can call it; Triton's compiler or interpreter then has taken its place."""
        raise TypeError(f"{self.name} is called from kernels only")

    @functools.cached_property
    def jitted(self) -> Any:
        """The function as Triton decorates it: compiled, or interpreted where that is asked for."""
        import triton
        import triton.language

        # Triton's own functions were decorated at its import: a process has one mode
        if interpreted() and isinstance(triton.language.cdiv, triton.JITFunction):
            raise VTCError(
                f"{VARIABLE}: got 'interpret', but triton was imported without its interpreter; "
                f"set {VARIABLE} before vtc is imported"
            )
        names = self.function.__globals__
        names["tl"] = triton.language
        for name in self.function.__code__.co_names:
            if isinstance(names.get(name), Kernel):
                names[name] = names[name].jitted
        return triton.jit(self.function)


def interpreted() -> bool:
    """Whether kernels run in the interpreter, whose products of bfloat16 matrices are wrong."""
    return os.environ.get(VARIABLE) == "interpret"


def stride_unit(*tensors: Tensor) -> int:
    """8 where all strides but the last are multiples of 8, otherwise 1.

    A kernel that takes strides in this unit loads 8 numbers at once: Triton itself only sees multiples
    of 16, which the heads of SigLIP, 72 wide, are not.
    """
    return 8 if all(n % 8 == 0 for x in tensors for n in x.stride()[:-1]) else 1


def next_power(n: int) -> int:
    """The smallest power of two that is at least `n`."""
    return 1 << max(n - 1, 0).bit_length()
