"""Between codes and the width of a generator: embedders, output maps, and their losses."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.discrete.types import CodeSpace
from vtc.errors import VTCError


class Head(nn.Module):
    """Embeds what a generator reads and maps what it puts out.

    Attributes:
        repeat: positions a token takes in the sequence.
        indexed: whether it looks codes up in tables, which have no row for a noisy bit.
    """

    repeat = 1
    indexed = False

    def embed(self, codes: Tensor, unknown: Tensor | None = None) -> Tensor:
        """Codes `[B, N, K]` to `[B, N * repeat, D]`; where `unknown` `[B, N]`, the mask's vector."""
        raise NotImplementedError

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Loss of each token, `[B, N]`: cross-entropy, mean over the sub-codes."""
        entropy = F.cross_entropy(output.flatten(0, -2), target.flatten(), reduction="none")
        return entropy.view(target.shape).mean(-1)


class IndexHead(Head):
    """K sub-codes with a table and an output map each, predicted in parallel (ELM).

    Args:
        dim: width.
        space: what a token is; vocabularies may differ, short ones are filled up with codes that never
            come.
    """

    indexed = True

    def __init__(self, dim: int, space: CodeSpace) -> None:
        super().__init__()
        self.vocab = space.vocab
        self.tables = nn.ModuleList(nn.Embedding(size, dim) for size in self.vocab)
        many = len(self.vocab) > 1
        self.join = nn.Linear(len(self.vocab) * dim, dim, bias=False) if many else nn.Identity()
        self.mask = nn.Parameter(0.02 * torch.randn(dim))
        self.out = nn.Linear(dim, sum(self.vocab), bias=False)
        for table in self.tables:
            nn.init.normal_(table.weight, std=0.02)  # type: ignore[arg-type]
        nn.init.zeros_(self.out.weight)

    def embed(self, codes: Tensor, unknown: Tensor | None = None) -> Tensor:
        """See `Head.embed`."""
        x = torch.cat([table(codes[..., k]) for k, table in enumerate(self.tables)], dim=-1)
        x = self.join(x)
        return x if unknown is None else torch.where(unknown.unsqueeze(-1), self.mask, x)

    def forward(self, h: Tensor) -> Tensor:
        """`[B, N, D]` to logits `[B, N, K, V]`."""
        logits = self.out(h)  # under autocast of another dtype than h
        # finite, so that guidance can take differences
        widest, never = max(self.vocab), torch.finfo(logits.dtype).min / 4
        parts = logits.split(list(self.vocab), dim=-1)
        padded = [F.pad(part, (0, widest - part.shape[-1]), value=never) for part in parts]
        return torch.stack(padded, dim=-2)


class TiedHead(Head):
    """Sub-codes one after the other in the sequence, one table in and out (ELM's masked model).

    The sub-codes of a token share its position. ELM tells them apart by nothing else, so where a whole
    token is hidden they would all get one prediction; here each has a learned vector, zero at first.

    Args:
        dim: width.
        space: what a token is; all sub-codes have one vocabulary.
    """

    indexed = True

    def __init__(self, dim: int, space: CodeSpace) -> None:
        super().__init__()
        if len(set(space.vocab)) > 1:
            raise VTCError(f"space: got vocab {space.vocab}, a tied head needs equal sub-codes")
        self.vocab, self.repeat = space.vocab, space.subcodes
        self.table = nn.Embedding(self.vocab[0] + 1, dim)  # the last row is the mask
        self.place = nn.Parameter(torch.zeros(self.repeat, dim)) if self.repeat > 1 else None
        self.map = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.LayerNorm(dim))
        self.bias = nn.Parameter(torch.zeros(self.vocab[0]))
        nn.init.normal_(self.table.weight, std=0.02)

    def embed(self, codes: Tensor, unknown: Tensor | None = None) -> Tensor:
        """See `Head.embed`."""
        if unknown is not None:
            codes = codes.masked_fill(unknown.unsqueeze(-1), self.vocab[0])
        x = self.table(codes)
        return (x if self.place is None else x + self.place).flatten(1, 2)

    def forward(self, h: Tensor) -> Tensor:
        """`[B, N * K, D]` to logits `[B, N, K, V]`; the table gets no gradient from here."""
        logits = self.map(h) @ self.table.weight[:-1].detach().transpose(0, 1) + self.bias
        return logits.unflatten(1, (-1, self.repeat))


class BitHead(Head):
    """n bits of a token through one linear map each way, independent given the past (Instella).

    Args:
        dim: width.
        space: binary.
    """

    def __init__(self, dim: int, space: CodeSpace) -> None:
        super().__init__()
        if not space.is_binary:
            raise VTCError(f"space: got vocab {space.vocab}, a bit head needs bits")
        self.enter, self.out = nn.Linear(space.subcodes, dim), nn.Linear(dim, space.subcodes)
        self.mask = nn.Parameter(0.02 * torch.randn(dim))

    def embed(self, codes: Tensor, unknown: Tensor | None = None) -> Tensor:
        """See `Head.embed`."""
        x = self.enter(codes.to(self.enter.weight.dtype))
        return x if unknown is None else torch.where(unknown.unsqueeze(-1), self.mask, x)

    def forward(self, h: Tensor) -> Tensor:
        """`[B, N, D]` to the logits of ones, `[B, N, n]`."""
        return self.out(h)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Binary cross-entropy, mean over the bits."""
        target = target.to(output.dtype)
        return F.binary_cross_entropy_with_logits(output, target, reduction="none").mean(-1)


class VelocityHead(Head):
    """Continuous latents in, velocities out (xAR).

    Args:
        dim: width.
        channels: C of a latent.
    """

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.enter, self.out = nn.Linear(channels, dim), nn.Linear(dim, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def embed(self, codes: Tensor, unknown: Tensor | None = None) -> Tensor:
        """Latents `[B, L, C]` to `[B, L, D]`."""
        return self.enter(codes.to(self.enter.weight.dtype))

    def forward(self, h: Tensor) -> Tensor:
        """`[B, L, D]` to `[B, L, C]`."""
        return self.out(h)

    def loss(self, output: Tensor, target: Tensor) -> Tensor:
        """Squared error, mean over the channels."""
        return (output - target).square().mean(-1)


#: Heads of codes by name; `vtc.registry.register` adds others.
HEADS: dict[str, Callable[..., Head]] = {"index": IndexHead, "tied": TiedHead, "bit": BitHead}
