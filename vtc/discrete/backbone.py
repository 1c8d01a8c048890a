"""One transformer for every encoder, decoder and generator of the module.

What the published systems do differently (norms, feed-forward, positions, conditioning, masks) is a
field of `TransformerConfig`; attention is `scaled_dot_product_attention` with a mask from outside.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.errors import VTCError

Rope = tuple[Tensor, Tensor]

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "swiglu": F.silu,
    "geglu": F.gelu,
    "gelu": F.gelu,
    "gelu_tanh": functools.partial(F.gelu, approximate="tanh"),
}


@dataclass(frozen=True)
class TransformerConfig:
    """Shape of a `Transformer`.

    Attributes:
        dim: width.
        depth: layers; several numbers are stages, with a norm, a linear map and a position table of
            its own in between (xAR's encoder and decoder).
        heads: attention heads.
        ffn: "swiglu" or "geglu" (three matrices), "gelu" or "gelu_tanh" (two; the latter approximates
            by tanh).
        hidden: width inside the feed-forward; 0 means 4 times `dim`.
        norm: "rms" or "layer".
        norm_eps: epsilon of the norms.
        post_norm: norm behind the residual sum (BERT) instead of before each branch.
        final_norm: "plain", "adaptive" (scale and shift from the condition) or "none".
        qk_norm: RMS norm of queries and keys, per head.
        qkv_bias: bias of the query, key and value maps.
        out_bias: bias of the attention's output map.
        ffn_bias: bias of the feed-forward.
        rope: widths of the rotary axes, they sum to the width of a head; empty for none.
        rope_base: base of the rotary frequencies.
        positions: rows of a learned table added to the input (and behind each joint of stages).
        input_norm: norm behind that table.
        block_positions: rows of a learned table of each layer, added behind its first norm.
        context_dim: width of features put in front of keys and values, projected per layer.
        cross_dim: width of a source that is cross-attended; 0 for none.
        cross_every: layers from one cross-attention to the next, starting with the first.
        adaptive: adaLN: a condition gives scale, shift and gate of both branches; starts as zero.
        dropout: of the attention's and the feed-forward's output.
    """

    dim: int
    depth: int | tuple[int, ...]
    heads: int
    ffn: str = "swiglu"
    hidden: int = 0
    norm: str = "rms"
    norm_eps: float = 1e-6
    post_norm: bool = False
    final_norm: str = "plain"
    qk_norm: bool = False
    qkv_bias: bool = False
    out_bias: bool = False
    ffn_bias: bool = False
    rope: tuple[int, ...] = ()
    rope_base: float = 10_000.0
    positions: int = 0
    input_norm: bool = False
    block_positions: int = 0
    context_dim: int = 0
    cross_dim: int = 0
    cross_every: int = 1
    adaptive: bool = False
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.dim % self.heads:
            raise VTCError(f"heads: got {self.heads}, they do not divide the width {self.dim}")
        if self.rope and (sum(self.rope) != self.head_dim or any(w % 2 for w in self.rope)):
            raise VTCError(
                f"rope: got {self.rope}, allowed are even widths that sum to {self.head_dim}"
            )
        for name, allowed in (
            ("ffn", tuple(ACTIVATIONS)),
            ("norm", ("rms", "layer")),
            ("final_norm", ("plain", "adaptive", "none")),
        ):
            if getattr(self, name) not in allowed:
                raise VTCError(f"{name}: got {getattr(self, name)!r}, available are {allowed}")

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.dim // self.heads

    @property
    def stages(self) -> tuple[int, ...]:
        """Layers of each stage."""
        return (self.depth,) if isinstance(self.depth, int) else tuple(self.depth)


def swiglu_hidden(dim: int, multiple: int = 256) -> int:
    """Feed-forward width of LLaMA: 8/3 of `dim`, rounded up to a multiple."""
    return math.ceil(int(8 * dim / 3) / multiple) * multiple


# -- rotary positions -------------------------------------------------------------------------------


def rope_table(coordinates: Tensor, axes: Sequence[int], base: float = 10_000.0) -> Rope:
    """Cosines and sines of a rotary embedding with several axes.

    Args:
        coordinates: `[L, A]`, one coordinate an axis; fractions are fine.
        axes: A even widths; axis a turns its pairs by `coordinate * base ** (-2 i / width)`.
        base: see above.

    Returns:
        Two tensors `[L, sum(axes)]`, neighbours 2i and 2i+1 share an angle.
    """
    angles = []
    for axis, width in enumerate(axes):
        exponent = torch.arange(0, width, 2, device=coordinates.device).float() / width
        angles.append(coordinates[:, axis : axis + 1].float() / base**exponent)
    angle = torch.cat(angles, dim=1).repeat_interleave(2, dim=1)
    return angle.cos(), angle.sin()


def apply_rope(x: Tensor, rope: Rope) -> Tensor:
    """Turn neighbouring pairs of `x` `[B, heads, L, head_dim]` by the table `[L, head_dim]`."""
    cos, sin = rope
    even, odd = x[..., ::2], x[..., 1::2]
    turned = torch.stack([-odd, even], dim=-1).flatten(-2)
    return (x * cos + turned * sin).to(x.dtype)


def grid_coordinates(grid: tuple[int, int], extent: float | None = None) -> Tensor:
    """`[rows * cols, 2]` row and column of a raster grid.

    Args:
        grid: `(rows, cols)`.
        extent: stretch each axis to span `[0, extent - 1]` whatever the grid, so that one set of
            tokens can be read or drawn at several resolutions (Instella-T2I).
    """
    axes = [torch.arange(size).float() for size in grid]
    if extent is not None:
        axes = [a / max(size - 1, 1) * (extent - 1) for a, size in zip(axes, grid, strict=True)]
    return torch.cartesian_prod(*axes)


# -- cache ------------------------------------------------------------------------------------------


class KVCache:
    """Keys and values of finished groups, one entry a layer.

    A token is a group of one, so autoregressive and next-X sampling share this class.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[Tensor, Tensor]] = {}
        self.length = 0

    def join(self, layer: int, key: Tensor, value: Tensor, commit: bool) -> tuple[Tensor, Tensor]:
        """Cached keys and values of `layer` followed by the new ones `[B, heads, L, d]`."""
        if layer in self._entries:
            old_key, old_value = self._entries[layer]
            key, value = torch.cat([old_key, key], dim=2), torch.cat([old_value, value], dim=2)
        if commit:
            self._entries[layer] = key, value
        return key, value


# -- layers -----------------------------------------------------------------------------------------


def make_norm(config: TransformerConfig, affine: bool = True) -> nn.Module:
    """The norm that a config asks for."""
    if config.norm == "rms":
        return nn.RMSNorm(config.dim, eps=config.norm_eps, elementwise_affine=affine)
    return nn.LayerNorm(config.dim, eps=config.norm_eps, elementwise_affine=affine)


class Attention(nn.Module):
    """Multi-head attention of a sequence to itself or to a source of width `source_dim`."""

    def __init__(self, config: TransformerConfig, source_dim: int = 0) -> None:
        super().__init__()
        dim = config.dim
        self.heads = config.heads
        self.q = nn.Linear(dim, dim, bias=config.qkv_bias)
        self.kv = nn.Linear(source_dim or dim, 2 * dim, bias=config.qkv_bias)
        self.out = nn.Linear(dim, dim, bias=config.out_bias)
        normed = config.qk_norm
        self.norm_q = nn.RMSNorm(config.head_dim, config.norm_eps) if normed else nn.Identity()
        self.norm_k = nn.RMSNorm(config.head_dim, config.norm_eps) if normed else nn.Identity()

    def forward(
        self,
        x: Tensor,
        source: Tensor,
        mask: Tensor | None = None,
        rope: Rope | None = None,
        unrotated: int = 0,
        cache: tuple[KVCache, int, bool] | None = None,
    ) -> Tensor:
        """Attend from `x` `[B, Q, D]` to `source` `[B, K, D']`.

        Args:
            x: gives the queries.
            source: gives keys and values.
            mask: bool, broadcasts to `[B, heads, Q, K]`, cached keys first.
            rope: table of the queries, and of the keys behind the first `unrotated`.
            unrotated: keys in front that have no position.
            cache: the cache, the layer's key in it, and whether to keep the new keys.
        """
        split = (self.heads, -1)
        query = self.norm_q(self.q(x).unflatten(-1, split)).transpose(1, 2)
        key, value = self.kv(source).chunk(2, dim=-1)
        key = self.norm_k(key.unflatten(-1, split)).transpose(1, 2)
        value = value.unflatten(-1, split).transpose(1, 2)
        if rope is not None:
            query = apply_rope(query, rope)
            key = torch.cat([key[:, :, :unrotated], apply_rope(key[:, :, unrotated:], rope)], dim=2)
        if cache is not None:
            store, layer, commit = cache
            key, value = store.join(layer, key, value, commit)
        out = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        return self.out(out.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    """Feed-forward, gated ("glu") or plain."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        hidden, bias = config.hidden or 4 * config.dim, config.ffn_bias
        self.activation = ACTIVATIONS[config.ffn]
        self.gate = nn.Linear(config.dim, hidden, bias) if config.ffn.endswith("glu") else None
        self.up = nn.Linear(config.dim, hidden, bias)
        self.down = nn.Linear(hidden, config.dim, bias)

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D]` to `[..., D]`."""
        if self.gate is None:
            return self.down(self.activation(self.up(x)))
        return self.down(self.activation(self.gate(x)) * self.up(x))


class Block(nn.Module):
    """Attention, optional cross-attention, feed-forward."""

    def __init__(self, config: TransformerConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.post_norm = config.post_norm
        self.attention, self.ffn = Attention(config), FeedForward(config)
        affine = not config.adaptive
        self.norm_attention, self.norm_ffn = make_norm(config, affine), make_norm(config, affine)
        self.cross = self.norm_cross = None
        if config.cross_dim and layer % config.cross_every == 0:
            self.cross = Attention(config, config.cross_dim)
            self.norm_cross = make_norm(config)
        self.modulation = nn.Linear(config.dim, 6 * config.dim) if config.adaptive else None
        self.context = nn.Linear(config.context_dim, config.dim) if config.context_dim else None
        self.positions: nn.Parameter | None = None
        if config.block_positions:
            self.positions = nn.Parameter(0.02 * torch.randn(config.block_positions, config.dim))
        self.drop = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None,
        rope: Rope | None,
        condition: Tensor | None,
        context: Tensor | None,
        source: Tensor | None,
        cache: tuple[KVCache, int, bool] | None,
        offset: int,
    ) -> Tensor:
        """One layer; see `Transformer.forward`. `offset` is the position of the first row of x."""
        shift_a = scale_a = shift_f = scale_f = 0.0
        gate_a = gate_f = 1.0
        if self.modulation is not None and condition is not None:
            parts = self.modulation(F.silu(condition)).chunk(6, dim=-1)
            shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = parts

        def attend(h: Tensor) -> Tensor:
            if self.positions is not None:
                h = h + self.positions[offset : offset + h.shape[1]]
            keys, extra = h, 0
            if context is not None and self.context is not None:
                keys, extra = torch.cat([self.context(context), h], dim=1), context.shape[1]
            return self.drop(self.attention(h, keys, mask, rope, extra, cache))

        if self.post_norm:
            x = self.norm_attention(x + attend(x))
            if self.cross is not None and self.norm_cross is not None and source is not None:
                x = self.norm_cross(x + self.drop(self.cross(x, source)))
            return self.norm_ffn(x + self.drop(self.ffn(x)))
        x = x + gate_a * attend(self.norm_attention(x) * (1 + scale_a) + shift_a)
        if self.cross is not None and self.norm_cross is not None and source is not None:
            x = x + self.drop(self.cross(self.norm_cross(x), source))
        return x + gate_f * self.drop(self.ffn(self.norm_ffn(x) * (1 + scale_f) + shift_f))


class Joint(nn.Module):
    """Between two stages: norm, linear map, and a new position table."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.norm = make_norm(config)
        self.map = nn.Linear(config.dim, config.dim)
        self.positions: nn.Parameter | None = None
        if config.positions:
            self.positions = nn.Parameter(0.02 * torch.randn(config.positions, config.dim))

    def forward(self, x: Tensor, offset: int) -> Tensor:
        """`[B, L, D]` to `[B, L, D]`; `offset` is the position of the first row."""
        x = self.map(self.norm(x))
        return x if self.positions is None else x + self.positions[offset : offset + x.shape[1]]


class Transformer(nn.Module):
    """The backbone; see `TransformerConfig`."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        depth = sum(config.stages)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(depth))
        self.joints = nn.ModuleList(Joint(config) for _ in config.stages[1:])
        self.positions: nn.Parameter | None = None
        if config.positions:
            self.positions = nn.Parameter(0.02 * torch.randn(config.positions, config.dim))
        self.input_norm = make_norm(config) if config.input_norm else nn.Identity()
        self.norm: nn.Module = nn.Identity()
        if config.final_norm != "none":
            self.norm = make_norm(config, affine=config.final_norm == "plain")
        adaptive = config.final_norm == "adaptive"
        self.modulation = nn.Linear(config.dim, 2 * config.dim) if adaptive else None
        self.apply(_init)

    def rope(self, coordinates: Tensor) -> Rope | None:
        """Rotary table of `coordinates` `[L, A]`, None when the config has no rotary axes."""
        if not self.config.rope:
            return None
        if coordinates.shape[-1] != len(self.config.rope):
            raise VTCError(
                f"coordinates: got {coordinates.shape[-1]} axes, rope has {len(self.config.rope)}"
            )
        device = next(self.parameters()).device
        return rope_table(coordinates.to(device), self.config.rope, self.config.rope_base)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        rope: Rope | None = None,
        condition: Tensor | None = None,
        context: Sequence[Tensor] | Tensor | None = None,
        context_valid: Tensor | None = None,
        source: Tensor | None = None,
        cache: KVCache | None = None,
        commit: bool = True,
    ) -> Tensor:
        """Run the layers.

        Args:
            x: `[B, L, D]`.
            mask: bool `[L, K]` or `[B, 1, L, K]`, K counting cached positions first; None lets
                every position see all.
            rope: from `rope`, of the L positions of x.
            condition: `[B, 1 or L, D]`, with `adaptive`.
            context: `[B, T, C]` for all layers or one such tensor a layer, with `context_dim`.
            context_valid: bool `[B, T]`, False for padding.
            source: `[B, S, C]`, with `cross_dim`.
            cache: keys and values of finished positions, which x does not repeat.
            commit: whether x is finished and joins the cache.

        Returns:
            `[B, L, D]`.
        """
        if condition is None and (self.config.adaptive or self.modulation is not None):
            raise VTCError("condition: got none, but this transformer is adaptive")
        offset = 0 if cache is None else cache.length
        rows = self.config.positions or self.config.block_positions
        if rows and offset + x.shape[1] > rows:
            raise VTCError(f"x: got {offset + x.shape[1]} positions, the position table has {rows}")
        features = [context] * len(self.blocks) if isinstance(context, Tensor) else context
        if features is not None and len(features) != len(self.blocks):
            raise VTCError(f"context: got {len(features)} tensors for {len(self.blocks)} layers")
        if features is not None:
            mask = _with_context(mask, features[0], context_valid, x.shape[1], offset)
            if offset:  # its keys are in the cache already
                features = None
        if mask is not None:
            mask = mask.to(x.device)
        if self.positions is not None:
            x = x + self.positions[offset : offset + x.shape[1]]
        x = self.input_norm(x)
        edges = [sum(self.config.stages[: k + 1]) for k in range(len(self.joints))]
        for layer, block in enumerate(self.blocks):
            if layer in edges:
                x = self.joints[edges.index(layer)](x, offset)
            store = None if cache is None else (cache, layer, commit)
            feature = None if features is None else features[layer]
            x = block(x, mask, rope, condition, feature, source, store, offset)
        if cache is not None and commit:
            cache.length += x.shape[1]
        x = self.norm(x)
        if self.modulation is not None and condition is not None:
            shift, scale = self.modulation(F.silu(condition)).chunk(2, dim=-1)
            x = x * (1 + scale) + shift
        return x


def _with_context(
    mask: Tensor | None, context: Tensor, valid: Tensor | None, queries: int, past: int
) -> Tensor | None:
    """The mask with the context's keys in front."""
    if mask is None and valid is None:
        return None
    batch, count = context.shape[:2]
    if mask is None:
        mask = torch.ones(queries, past + queries, dtype=torch.bool)
    if mask.dim() == 2:
        mask = mask[None, None]
    mask = mask.to(context.device).expand(batch, -1, -1, -1)
    if valid is None:
        valid = torch.ones(batch, count, dtype=torch.bool, device=context.device)
    front = valid.bool()[:, None, None].expand(-1, mask.shape[1], queries, -1)
    return torch.cat([front, mask], dim=-1)


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, (Block, Transformer)) and module.modulation is not None:
        nn.init.zeros_(module.modulation.weight)


# -- time -------------------------------------------------------------------------------------------


def sinusoid(value: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """`[..., dim]` cosines then sines of `value` at dim // 2 falling frequencies; odd dims end in 0."""
    half = dim // 2
    exponent = torch.arange(half, dtype=torch.float32, device=value.device) / half
    angle = value.float().unsqueeze(-1) * torch.exp(-math.log(max_period) * exponent)
    return F.pad(torch.cat([angle.cos(), angle.sin()], dim=-1), (0, dim % 2))


class TimeEmbedding(nn.Module):
    """Two-layer map of a time in [0, 1] to the width of the model.

    Args:
        dim: width.
        frequencies: width of the sinusoid of `floor(1000 t)` that is read; 0 reads t itself.
    """

    def __init__(self, dim: int, frequencies: int = 256) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.net = nn.Sequential(nn.Linear(frequencies or 1, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        """`[...]` to `[..., dim]`."""
        if self.frequencies:
            x = sinusoid((1000 * t).floor(), self.frequencies)
        else:
            x = t.unsqueeze(-1)
        return self.net(x.to(next(self.parameters()).dtype))
