"""Compile every kernel for several GPUs without having one: `python -m vtc.kernels.aot`.

What is compiled is what the operations would launch at the shapes of LLaVA-NeXT-7B: their launches are
noted down on "meta" tensors (`_dispatch.noted_launches`), with Triton's specialisation of the
arguments. Registers, spills and shared memory are read from the binaries, vector loads and matrix
instructions from the assembly. Nothing is run.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.eval.common.docs import put
from vtc.kernels import (
    _dispatch,
    adaptive_pool,
    attention_received,
    bit_packing,
    cls_attention,
    cosine_topk,
    drop_alike,
    greedy_pick,
    lof,
    merge,
    neighbour_count,
    pixel_surprise,
    ragged_compact,
    row_attention,
    segmented_topk,
    suppress,
)
from vtc.kernels._dispatch import Launch, noted_launches
from vtc.kernels._ordering import LONGEST

#: name -> the arguments of Triton's GPUTarget: backend, architecture, threads of a warp
TARGETS: dict[str, tuple[str, int | str, int]] = {
    "sm_80": ("cuda", 80, 32),  # A100
    "sm_90": ("cuda", 90, 32),  # H100, H200
    "sm_100": ("cuda", 100, 32),  # B200
    "gfx942": ("hip", "gfx942", 64),  # MI300X
}
DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}

# LLaVA-NeXT-7B: a thumbnail and four crops through CLIP-L/14 at 336 pixels
TILES, PATCHES, HEADS, HEAD_WIDTH, WIDTH, LM_WIDTH = 5, 576, 16, 64, 1024, 4096
SIDE, PIXELS = 24, 588  # rows and columns of a tile, numbers of a patch's pixels
# its language model, and a prompt of 64 words around the picture
LM_HEADS, LM_HEAD_WIDTH, PROMPT = 32, 128, TILES * PATCHES + 64


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _cls_attention(dtype: torch.dtype) -> None:
    keys = _meta(TILES, PATCHES + 1, HEADS, HEAD_WIDTH, dtype=dtype).transpose(1, 2)
    cls_attention.launch(keys[:, :, 0], keys, HEAD_WIDTH**-0.5)


def _segmented_topk(dtype: torch.dtype) -> None:
    k, valid = _meta(TILES, dtype=torch.int64), _meta(TILES, PATCHES, dtype=torch.bool)
    segmented_topk.launch(_meta(TILES, PATCHES), k, valid)
    segmented_topk.launch(_meta(1, LONGEST), k, None)


def _lof(dtype: torch.dtype) -> None:
    lof.launch(_meta(TILES, PATCHES), 20, _meta(TILES, PATCHES, dtype=torch.bool))
    lof.launch(_meta(1, LONGEST), 20, None)


def _neighbour_count(dtype: torch.dtype) -> None:
    keys = _meta(TILES, PATCHES + 1, WIDTH, dtype=dtype)[:, 1:]
    neighbour_count.launch(keys, 0.5, _meta(TILES, PATCHES, dtype=torch.bool))


def _cosine_topk(dtype: torch.dtype) -> None:
    keys = _meta(TILES, PATCHES, WIDTH, dtype=dtype)
    valid, itself = _meta(TILES, PATCHES, dtype=torch.bool), _meta(TILES, 32, dtype=torch.int64)
    cosine_topk.launch(keys[:, :32], keys, 32, _meta(TILES, PATCHES), valid, itself)
    cosine_topk.launch(keys[:, :32], keys, cosine_topk.MOST, None, None, None)


def _greedy_pick(dtype: torch.dtype) -> None:
    rows, weight = _meta(1, TILES * PATCHES, LM_WIDTH, dtype=dtype), _meta(1, TILES * PATCHES)
    count, valid = _meta(1, dtype=torch.int64), _meta(1, TILES * PATCHES, dtype=torch.bool)
    for rule in greedy_pick.RULES[1:]:  # distance is a launch of mmr's kernel
        greedy_pick.launch(rule, rows, count, 720, weight, valid, None, 0.5, 1)
    tiles = _meta(TILES, PATCHES, PATCHES)
    greedy_pick.launch("cover", tiles, _meta(TILES, dtype=torch.int64), 144, None, None, None, 1, 1)


def _attention_received(dtype: torch.dtype) -> None:
    heads = _meta(TILES, PATCHES, HEADS, HEAD_WIDTH, dtype=dtype).transpose(1, 2)
    attention_received.launch(heads, heads, HEAD_WIDTH**-0.5)
    siglip = _meta(TILES, 729, HEADS, 72, dtype=dtype).transpose(1, 2)
    attention_received.launch(siglip, siglip, 72**-0.5)


def _row_attention(dtype: torch.dtype) -> None:
    def heads(number: int, rows: int, width: int) -> Tensor:
        return _meta(1, rows, number, width, dtype=dtype).transpose(1, 2)

    keys = heads(LM_HEADS, PROMPT, LM_HEAD_WIDTH)
    allowed = _meta(1, 1, PROMPT, dtype=torch.bool)
    row_attention.launch(heads(LM_HEADS, 1, LM_HEAD_WIDTH), keys, 1.0, allowed, True, None)
    # Gemma 3's grouped heads, and 20 words that rate
    row_attention.launch(heads(8, 20, 256), heads(4, 320, 256), 1.0, None, False, 50.0)


def _merge(dtype: torch.dtype) -> None:
    entries = _meta(TILES * PATCHES, dtype=torch.int64)
    values = _meta(TILES * PATCHES, WIDTH, dtype=dtype)
    merge.launch(values, entries, entries, _meta(TILES * PATCHES), 720)


def _adaptive_pool(dtype: torch.dtype) -> None:
    features = _meta(TILES, PATCHES, WIDTH, dtype=dtype)
    valid = _meta(TILES, PATCHES, dtype=torch.bool)
    pooled, count = adaptive_pool.launch(features, 24, 24, 8, 8, valid)
    adaptive_pool.launch_backward(pooled, count, 24, 24, 8, 8, valid)


def _ragged_compact(dtype: torch.dtype) -> None:
    index, splits = _meta(2880, dtype=torch.int64), _meta(5, dtype=torch.int64)
    values = _meta(4 * 2880, LM_WIDTH, dtype=dtype)
    ragged_compact.launch(values, index, splits, 1024, True, 0)
    ragged_compact.launch(_meta(4 * 2880, 2, dtype=torch.int64), index, splits, 1024, True, 0)


def _bit_packing(dtype: torch.dtype) -> None:
    words = bit_packing.launch_pack(_meta(32, 256, 16, dtype=torch.bool), 16, torch.int64)
    bit_packing.launch_unpack(words, 16, torch.int64)
    bit_packing.launch_pack(_meta(32, 256, 16, dtype=torch.bool), 8, torch.uint8)


def _drop_alike(dtype: torch.dtype) -> None:
    count = _meta(TILES, dtype=torch.int64)
    left, longest = _meta(TILES, 504, dtype=torch.int64), _meta(1, LONGEST, dtype=torch.int64)
    drop_alike.launch(_meta(TILES, PATCHES, PATCHES), left, count, count, [], 8)
    drop_alike.launch(_meta(1, LONGEST, LONGEST), longest, count[:1], count[:1], [], 8)


def _suppress(dtype: torch.dtype) -> None:
    for tiles, size in ((TILES, PATCHES), (1, LONGEST)):
        flags = _meta(tiles, size, size, dtype=torch.bool)
        suppress.launch(flags, flags[:, 0])


def _pixel_surprise(dtype: torch.dtype) -> None:
    pixels, valid = (
        _meta(TILES, PATCHES, PIXELS, dtype=dtype),
        _meta(TILES, PATCHES, dtype=torch.bool),
    )
    for tau in (0.0, 0.1):
        pixel_surprise.launch(pixels, valid, SIDE, SIDE, tau)


#: file of the operation -> a call of its launches for features of a dtype
OPERATIONS: dict[str, Callable[[torch.dtype], Any]] = {
    "cls_attention": _cls_attention,
    "attention_received": _attention_received,
    "row_attention": _row_attention,
    "segmented_topk": _segmented_topk,
    "lof": _lof,
    "neighbour_count": _neighbour_count,
    "cosine_topk": _cosine_topk,
    "greedy_pick": _greedy_pick,
    "merge": _merge,
    "adaptive_pool": _adaptive_pool,
    "ragged_compact": _ragged_compact,
    "bit_packing": _bit_packing,
    "drop_alike": _drop_alike,
    "suppress": _suppress,
    "pixel_surprise": _pixel_surprise,
}


@dataclass(frozen=True)
class Build:
    """One kernel compiled for one target.

    Attributes:
        operation, kernel, dtype, target: what was compiled; dtype is that of the features.
        variant: what the kernel was compiled with: the flags that are set, and the sizes of its blocks.
        warps: of a program.
        registers: of a thread (vector registers on AMD).
        spills: bytes of a thread that live in memory for want of registers.
        shared: bytes of a program.
        vector_loads: loads of 16 bytes a thread.
        matrix: tensor-core instructions.
    """

    operation: str
    kernel: str
    variant: str
    dtype: str
    target: str
    warps: int
    registers: int
    spills: int
    shared: int
    vector_loads: int
    matrix: int


def launches(operation: str, dtype: str) -> list[Launch]:
    """The launches of one call of an operation at LLaVA-NeXT-7B's shapes."""
    with noted_launches() as notes:
        OPERATIONS[operation](DTYPES[dtype])
    return notes


def build(launch: Launch, target: str) -> tuple[Any, int]:
    """Compile a launch; Triton's compiled kernel and the warps of a program.

    Arguments are specialised as a launch does it: whole numbers of 1 become constants, pointers and
    multiples of 16 are known to be aligned.
    """
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler import compile as compile_kernel

    function = launch.kernel.jitted
    backend, architecture, threads = TARGETS[target]
    signature, constants, attributes = {}, {}, {}
    for index, parameter in enumerate(function.params):
        name, value = parameter.name, launch.arguments[parameter.name]
        if parameter.is_constexpr or value is None or (type(value) is int and value == 1):
            signature[name], constants[name] = "constexpr", value
        elif isinstance(value, Tensor):
            signature[name] = "*" + _TYPES[value.dtype]
            attributes[(index,)] = [["tt.divisibility", 16]]
            if backend == "hip" and value.numel() * value.element_size() < 2**31:
                attributes[(index,)].append(["tt.pointer_range", 32])
        elif isinstance(value, int):
            signature[name] = "i32" if abs(value) < 2**31 else "i64"
            if value % 16 == 0:
                attributes[(index,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32"
    source = ASTSource(function, signature=signature, constexprs=constants, attrs=attributes)
    gpu = GPUTarget(backend, architecture, threads)
    compiled = compile_kernel(source, target=gpu, options=dict(launch.options))
    return compiled, compiled.metadata.num_warps


_TYPES = {
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.float32: "fp32",
    torch.int64: "i64",
    torch.int32: "i32",
    torch.uint8: "u8",
    torch.bool: "i1",
}


def measure(operation: str, dtype: str, launch: Launch, target: str) -> Build:
    """Compile a launch and read the figures from what came out."""
    compiled, warps = build(launch, target)
    if "amdgcn" in compiled.asm:
        text = compiled.asm["amdgcn"]

        def note(name: str) -> int:
            return int(re.search(rf"\.{name}:\s*(\d+)", text).group(1))  # type: ignore[union-attr]

        registers, spills = note("vgpr_count"), note("private_segment_fixed_size")
        loads = len(re.findall(r"(?:global|buffer)_load_dwordx4", text))
        matrix = len(re.findall(r"v_mfma", text))
    else:
        text = compiled.asm["ptx"]
        registers, spills = _resources(compiled.asm["cubin"])
        loads = len(re.findall(r"ld\.global\S*\.(?:v[48]\.b32|v[24]\.b64)", text))
        loads += len(re.findall(r"cp\.async\.cg\.shared\.global .*, 0x10", text))
        matrix = len(re.findall(r"mma\.sync|wgmma\.mma_async|tcgen05\.mma", text))
    return Build(
        operation,
        launch.kernel.name,
        _variant(launch),
        dtype,
        target,
        warps,
        registers,
        spills,
        compiled.metadata.shared,
        loads,
        matrix,
    )


def _variant(launch: Launch) -> str:
    flags = [name.lower() for name, value in launch.arguments.items() if value is True]
    sizes = [str(v) for name, v in launch.arguments.items() if name.startswith("BLOCK")]
    return " ".join([*flags, "x".join(sizes)])


def _resources(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of the one function in a CUDA binary."""
    from triton import knobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+).*LOCAL:(\d+)", out)
    if found is None:
        raise RuntimeError(f"cuobjdump: no resource usage in {out!r}")
    registers, stack, local = map(int, found.groups())
    return registers, stack + local


def builds(
    operations: Sequence[str] = (), dtypes: Sequence[str] = (), targets: Sequence[str] = ()
) -> Iterator[Build]:
    """Compile what is asked for, by default everything; equal builds of two dtypes are made once."""
    for target in targets or TARGETS:
        for operation in operations or OPERATIONS:
            seen = set()
            for dtype in dtypes or DTYPES:
                for launch in launches(operation, dtype):
                    key = str((launch.kernel.name, launch.options, launch.arguments))
                    if key not in seen:
                        seen.add(key)
                        yield measure(operation, dtype, launch, target)


def markdown(rows: Sequence[Build]) -> str:
    """The table for the docs: a line for each kernel, variant and dtype, a column for each target."""
    targets = list(dict.fromkeys(row.target for row in rows))
    lines: dict[tuple[str, ...], dict[str, Build]] = {}
    for row in rows:
        key = (row.operation, row.kernel, row.variant, row.dtype)
        lines.setdefault(key, {})[row.target] = row
    head = ["operation", "kernel", "variant", "features", *targets]
    out = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for named, cells in lines.items():
        figures = [
            f"{b.registers} / {b.spills} / {b.shared} / {b.vector_loads} / {b.matrix}"
            for b in cells.values()
        ]
        out.append("| " + " | ".join([*named, *figures]) + " |")
    return "\n".join(out) + "\n"


def _print(rows: Sequence[Build]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="Compiled without a GPU; nothing was run")
    for name in ("target", "operation", "kernel", "variant", "features"):
        table.add_column(name)
    for name in ("warps", "registers", "spills B", "shared B", "16 B loads", "matrix ops"):
        table.add_column(name, justify="right")
    for b in rows:
        figures = (b.warps, b.registers, b.spills, b.shared, b.vector_loads, b.matrix)
        style = "red" if b.spills else None
        names = (b.target, b.operation, b.kernel, b.variant, b.dtype)
        table.add_row(*names, *map(str, figures), style=style)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def main(arguments: Sequence[str] | None = None) -> int:
    """Compile, print, and exit with 1 where a kernel spills."""
    parser = argparse.ArgumentParser(prog="python -m vtc.kernels.aot", description=__doc__)
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=list(OPERATIONS))
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES))
    parser.add_argument("--markdown", type=Path, help="file of the docs that gets the table")
    given = parser.parse_args(arguments)
    if not _dispatch.INSTALLED:
        raise VTCError("triton: not installed; pip install 'vtc-vlm[kernels]'")
    if _dispatch.interpreted():
        raise VTCError(f"{_dispatch.VARIABLE}: got 'interpret', in which nothing is compiled")
    rows = list(builds(given.operations, given.dtypes, given.targets))
    _print(rows)
    if given.markdown:
        put(given.markdown, "compiled", markdown(rows))
    spilled = [b for b in rows if b.spills]
    print(f"{len(rows)} builds, {len(spilled)} of them spill")
    return int(bool(spilled))


if __name__ == "__main__":
    sys.exit(main())
