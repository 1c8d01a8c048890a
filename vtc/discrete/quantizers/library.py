"""Quantisers of vector-quantize-pytorch behind the interface of this module.

Its options and return orders stay in this file. Its rotation trick, on by default, is off here.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from vtc.discrete.codes import code_usage
from vtc.discrete.noise import Noise
from vtc.discrete.quantizers.base import Quantizer, projection, straight_through
from vtc.discrete.types import Quantized
from vtc.errors import VTCError

#: Bits a group of a lookup-free code may have: its entropy term enumerates every code of a group.
LARGEST_GROUP = 16


class LibraryQuantizer(Quantizer):
    """A vector-quantize-pytorch module between two linear maps.

    Made by the functions below. `look_up` turns the module's ids, `[B, N]` or `[B, N, K]`, into
    codes `[B, N, code_dim]`.
    """

    def __init__(
        self,
        dim: int,
        code_dim: int,
        vocab: tuple[int, ...],
        inner: nn.Module,
        look_up: Callable[[Tensor], Tensor],
        weight: float = 1.0,
    ) -> None:
        super().__init__(dim, vocab)
        self.down, self.up = projection(dim, code_dim), projection(code_dim, dim)
        self.inner, self.weight = inner, weight
        self._look_up = look_up

    def forward(self, h: Tensor, noise: Noise | None = None) -> Quantized:
        """See `Quantizer.forward`; the module draws nothing through `noise`."""
        self._check(h)
        moving = getattr(self.inner, "_codebook", None)  # of `ema_vq`
        if moving is not None and not self.training and not moving.initted:
            raise VTCError("kmeans: got True, so the codebook is made by the first training step")
        code, ids, *rest = self.inner(self.down(h))
        loss = rest[0].sum() if rest else code.new_zeros(())
        ids = ids.long() if ids.dim() == 3 else ids.long().unsqueeze(-1)
        if moving is None:  # the library rounds a code like the feature, which may be far larger
            code = straight_through(self._rows(ids).to(code), code)
        usage = [code_usage(ids[..., k], size) for k, size in enumerate(self.vocab)]
        aux = {"usage": torch.stack(usage).mean()}
        return Quantized(self.up(code), ids, self.weight * loss, aux)

    def _embed(self, ids: Tensor) -> Tensor:
        rows = self._rows(ids)
        weight = next(self.parameters(), rows)
        return self.up(rows.to(weight.dtype))  # those of FSQ are float32 whatever the weights

    def _rows(self, ids: Tensor) -> Tensor:
        return self._look_up(ids if len(self.vocab) > 1 else ids.squeeze(-1))


def ema_vq(
    dim: int,
    size: int,
    code_dim: int = 0,
    decay: float = 0.99,
    reset_below: float = 0.0,
    kmeans: bool = False,
    cosine: bool = False,
    weight: float = 1.0,
    eps: float = 1e-5,
) -> LibraryQuantizer:
    """Nearest-neighbour codes whose codebook is a moving average of the features.

    Args:
        dim: width of the features.
        size: rows of the codebook.
        code_dim: width of a code, `dim` when 0.
        decay: of the moving average.
        reset_below: codes whose average count falls below are moved to random features.
        kmeans: start from k-means of the first training batch; there are no codes before it.
        cosine: compare directions instead of distances.
        weight: of the commitment loss.
        eps: of the Laplace smoothing of counts.
    """
    code_dim = code_dim or dim
    inner = _library().VectorQuantize(
        dim=code_dim,
        codebook_size=size,
        decay=decay,
        eps=eps,
        kmeans_init=kmeans,
        threshold_ema_dead_code=reset_below,
        use_cosine_sim=cosine,
        rotation_trick=False,
    )
    return LibraryQuantizer(dim, code_dim, (size,), inner, inner.get_output_from_indices, weight)


def lfq(
    dim: int, bits: int, groups: int = 1, entropy: float = 0.1, spherical: bool = False
) -> LibraryQuantizer:
    """Signs of the features as bits (lookup-free quantisation, arXiv 2310.05737).

    Args:
        dim: width of the features.
        bits: bits a token.
        groups: sub-codes of a token; most significant bit first inside each.
        entropy: weight of the entropy term.
        spherical: put features on the sphere first, see `bsq`.
    """
    if groups < 1 or bits % groups:
        raise VTCError(f"groups: got {groups}, they do not divide {bits} bits")
    width = bits // groups
    if width > LARGEST_GROUP:
        others = _names(lambda make: make is not lfq and "bits" in signature(make).parameters)
        raise VTCError(
            f"groups: got {groups}, which leaves {width} bits a group; at most {LARGEST_GROUP} fit, "
            f"take more groups, or another quantiser of bits: {others}"
        )
    inner = _library().LFQ(
        dim=bits,
        codebook_size=2**width,
        num_codebooks=groups,
        has_projections=False,
        entropy_loss_weight=entropy,
        spherical=spherical,
    )
    return LibraryQuantizer(dim, bits, (2**width,) * groups, inner, inner.indices_to_codes)


def fsq(dim: int, levels: tuple[int, ...]) -> LibraryQuantizer:
    """Each of a few dimensions rounded to `levels` values (arXiv 2309.15505), one code a token."""
    inner = _library().FSQ(levels=list(levels))
    size = 1
    for level in levels:
        size *= level
    return LibraryQuantizer(dim, len(levels), (size,), inner, inner.indices_to_codes)


def sim_vq(dim: int, size: int, code_dim: int = 0, beta: float = 0.25) -> LibraryQuantizer:
    """A frozen codebook seen through one learned linear map (SimVQ, arXiv 2411.02038)."""
    code_dim = code_dim or dim
    inner = _library().SimVQ(
        dim=code_dim,
        codebook_size=size,
        rotation_trick=False,
        input_to_quantize_commit_loss_weight=beta,
    )
    return LibraryQuantizer(dim, code_dim, (size,), inner, inner.indices_to_codes)


def _library() -> Any:
    try:
        import vector_quantize_pytorch
    except ImportError as error:
        alone = _names(lambda make: isinstance(make, type))  # the library's are made by functions
        raise VTCError(
            "quantizer: this one needs vector-quantize-pytorch, install it with "
            f"`pip install vtc-vlm[discrete]`; {alone} work without"
        ) from error
    return vector_quantize_pytorch


def _names(which: Callable[[Callable[..., Quantizer]], bool]) -> str:
    from vtc.discrete.quantizers import QUANTIZERS  # which imports this file

    return ", ".join(repr(name) for name, make in sorted(QUANTIZERS.items()) if which(make))
