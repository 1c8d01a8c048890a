"""Queries, keys and what the projector reads, while vLLM's own tower runs.

Hooks hang for one call and come off behind it. The core of an attention layer in vLLM is a module of its
own, which is given queries and keys behind their rotary positions.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from vtc.errors import VTCError
from vtc.plugins.model.signals import Heads

logger = logging.getLogger("vllm.vtc")
_TOWERS = ("vision_tower.vision_model", "vision_tower", "visual", "model.vision_model")
_LAYERS = ("encoder.layers", "encoder.layer", "blocks")
_CORES = ("self_attn.attn", "attention.attn", "attn.attn")
_PROJECTORS = ("multi_modal_projector", "model.connector", "visual.merger")


def find(module: Any, paths: Sequence[str], what: str) -> Any:
    """The first of some dotted paths that there is.

    Raises:
        VTCError: there is none.
    """
    for path in paths:
        found = module
        for name in path.split("."):
            found = getattr(found, name, None)
        if found is not None:
            return found
    raise VTCError(
        f"model: {type(module).__name__} of this vLLM has no {what} under {', '.join(paths)}"
    )


def layers_of(model: Any) -> nn.ModuleList:
    """The encoder layers that vLLM builds."""
    return find(model, [f"{tower}.{layers}" for tower in _TOWERS for layers in _LAYERS], "tower")


def projector_of(model: Any) -> Any:
    """What maps features to the language model's width."""
    return find(model, _PROJECTORS, "projector")


@dataclass
class Record:
    """What one run of the tower left behind.

    Attributes:
        attention: layer -> its calls in order, of this rank's heads.
        projector_input: what the projector was given, call after call.
    """

    attention: dict[int, list[Heads]] = field(default_factory=dict)
    projector_input: list[Tensor] = field(default_factory=list)


class NextLayer:
    """Queries and keys of the layer behind the last one that vLLM builds.

    LLaVA's features are the input of the tower's last layer, so vLLM leaves that out; methods read the
    attention of CLS in it. Its norm and two projections are kept from the stream of weights, whole on
    every rank.
    """

    PARTS = ("layer_norm1.weight", "layer_norm1.bias") + tuple(
        f"self_attn.{name}_proj.{part}" for name in "qk" for part in ("weight", "bias")
    )

    def __init__(self, index: int, heads: int, eps: float) -> None:
        self.index, self.heads, self.eps = index, heads, eps
        self.weights: dict[str, Tensor] = {}

    def watch(self, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
        """The same weights, with those of the layer noted."""
        middle = f"encoder.layers.{self.index}."
        for name, weight in weights:
            part = name.rpartition(middle)[2]
            if middle in name and part in self.PARTS and "vision" in name:
                self.weights[part] = weight.detach().clone()
            yield name, weight

    @property
    def complete(self) -> bool:
        """Whether all weights were in the stream."""
        return set(self.weights) == set(self.PARTS)

    def heads_of(self, hidden: Tensor) -> Heads:
        """Queries and keys `[B, H, L, d]` from the output `[B, L, C]` of the layer before."""
        w = {name: value.to(hidden) for name, value in self.weights.items()}
        self.weights = w  # moved once
        x = nn.functional.layer_norm(
            hidden, hidden.shape[-1:], w["layer_norm1.weight"], w["layer_norm1.bias"], self.eps
        )
        q, k = (
            nn.functional.linear(x, w[f"self_attn.{n}_proj.weight"], w[f"self_attn.{n}_proj.bias"])
            .unflatten(-1, (self.heads, -1))
            .transpose(1, 2)
            for n in "qk"
        )
        return Heads(q, k, q.shape[-1] ** -0.5)


def watched(
    encode: Callable[[], Iterable[Tensor]], watch: Callable[[], AbstractContextManager[Record]]
) -> tuple[list[Tensor], Record]:
    """The rows of a call of the encoder, and what was seen of it.

    Where reading fails, the error is logged, the encoder runs once more without it, and nothing was
    seen: half of a record would be taken for the whole.

    Args:
        encode: vLLM's own call.
        watch: what collects inside a block, as `recording`.
    """
    try:
        with watch() as record:
            return list(encode()), record
    except Exception:
        logger.exception("vtc: nothing could be read of the vision tower")
    return list(encode()), Record()  # an error here is vLLM's own


@contextmanager
def recording(
    model: Any, wanted: Iterable[int], projector: bool, following: NextLayer | None
) -> Iterator[Record]:
    """Collect what the layers `wanted`, and the projector, are given inside the block.

    Raises:
        VTCError: a layer is not there.
    """
    record, hung = Record(), []
    layers = layers_of(model)
    try:
        for layer in sorted(set(wanted)):
            if layer < len(layers):
                core = find(layers[layer], _CORES, "attention core")
                hook = _core_hook(record, layer)
                hung.append(core.register_forward_pre_hook(hook, with_kwargs=True))
            elif following is not None and following.complete and layer == following.index:
                hook = _last_hook(record, layer, following)
                hung.append(layers[-1].register_forward_hook(hook))
            else:
                raise VTCError(f"layer: got {layer}, vLLM built {len(layers)} layers of the tower")
        with _noted(projector_of(model), record) if projector else nullcontext():
            yield record
    finally:
        for handle in hung:
            handle.remove()


def _core_hook(record: Record, layer: int) -> Any:
    def note(module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        query = args[0] if args else kwargs["query"]
        key = args[1] if len(args) > 1 else kwargs["key"]
        borders = kwargs.get("cu_seqlens")
        if borders is None and len(args) > 3:
            borders = args[3]
        heads = [_by_head(each, module.num_heads) for each in (query, key)]
        scale = float(getattr(module, "scale", None) or heads[0].shape[-1] ** -0.5)
        calls = record.attention.setdefault(layer, [])
        if borders is None:
            calls.append(Heads(heads[0], heads[1], scale))
            return
        lengths = [n for n in borders.diff().tolist() if n]
        if sum(lengths) != heads[0].shape[2]:
            raise VTCError(
                f"cu_seqlens: got borders to {sum(lengths)} for {heads[0].shape[2]} patches, from an "
                "attention backend that counts otherwise"
            )
        parts = zip(heads[0].split(lengths, 2), heads[1].split(lengths, 2), strict=True)
        calls.extend(Heads(q, k, scale) for q, k in parts)

    return note


def _by_head(values: Tensor, heads: int) -> Tensor:
    """`[B, L, H * d]` or `[B, L, H, d]` as `[B, H, L, d]`."""
    values = values.unflatten(-1, (heads, -1)) if values.dim() == 3 else values
    return values.transpose(1, 2)


def _last_hook(record: Record, layer: int, following: NextLayer) -> Any:
    def note(module: Any, args: Any, output: Any) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        record.attention.setdefault(layer, []).append(following.heads_of(hidden))

    return note


@contextmanager
def _noted(projector: nn.Module, record: Record) -> Iterator[None]:
    """Note what a projector is given. Classes that vLLM may compile call `forward` around hooks."""
    forward = projector.forward

    def noting(*args: Any, **kwargs: Any) -> Any:
        record.projector_input.append(args[0] if args else next(iter(kwargs.values())))
        return forward(*args, **kwargs)

    projector.forward = noting
    try:
        yield
    finally:
        del projector.forward


def gathered(values: Tensor, kind: str, sharded: bool) -> Tensor:
    """A signal of this rank's heads as one of all heads."""
    if not sharded:
        return values
    from vllm.distributed import (
        get_tensor_model_parallel_world_size,
        tensor_model_parallel_all_gather,
        tensor_model_parallel_all_reduce,
    )

    size = get_tensor_model_parallel_world_size()
    if size == 1:
        return values
    if kind in ("keys", "cls_query"):  # heads side by side
        return tensor_model_parallel_all_gather(values.contiguous(), dim=-1)
    return tensor_model_parallel_all_reduce(values.float().contiguous()).div(size).to(values.dtype)
