"""Codes as the visual input of a language model, and a small one to tune a tokenizer with (ETT)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.discrete import masks
from vtc.discrete.backbone import Transformer, TransformerConfig
from vtc.discrete.types import CodeSpace, Quantized
from vtc.errors import VTCError


class CodeProjector(nn.Module):
    """Visual tokens of a language model from the codes of an image (arXiv 2505.10562).

    The rows can go in place of a vision tower's: `[B, N, width]` are `VisualTokens.features`.

    Args:
        space: what a token is.
        code_dim: width of `Quantized.z`.
        width: of the language model.
        source: "embedding" maps `z` by two layers with a GELU, and the gradient reaches the
            tokenizer; "ids" looks the codes up in new tables, and none does.
    """

    def __init__(
        self, space: CodeSpace, code_dim: int, width: int, source: str = "embedding"
    ) -> None:
        super().__init__()
        if source not in ("embedding", "ids"):
            raise VTCError(f"source: got {source!r}, available are embedding, ids")
        self.source = source
        if source == "embedding":
            self.map = nn.Sequential(nn.Linear(code_dim, width), nn.GELU(), nn.Linear(width, width))
        else:
            self.tables = nn.ModuleList(nn.Embedding(size, width) for size in space.vocab)

    def forward(self, codes: Quantized) -> Tensor:
        """`[B, N, width]`."""
        if self.source == "embedding":
            return self.map(codes.z)
        parts = [table(codes.ids[..., k]) for k, table in enumerate(self.tables)]
        return torch.stack(parts).sum(0)


class Captioner(nn.Module):
    """A causal text decoder behind the visual tokens.

    Args:
        config: its transformer, with one rotary axis or a position table.
        vocab: size of the text vocabulary.
        projector: visual tokens of the transformer's width.
    """

    def __init__(self, config: TransformerConfig, vocab: int, projector: CodeProjector) -> None:
        super().__init__()
        self.projector, self.transformer = projector, Transformer(config)
        self.words = nn.Embedding(vocab, config.dim)
        nn.init.normal_(self.words.weight, std=0.02)

    def forward(self, codes: Quantized, text: Tensor) -> Tensor:
        """Logits `[B, T, vocab]` of each word of `text` `[B, T]` given the image and those before."""
        image = self.projector(codes)
        x = torch.cat([image, self.words(text[:, :-1])], dim=1)
        rope = self.transformer.rope(torch.arange(x.shape[1]).unsqueeze(1))
        h = self.transformer(x, mask=masks.causal(x.shape[1]), rope=rope)
        return h[:, image.shape[1] - 1 :] @ self.words.weight.transpose(0, 1)

    def loss(self, codes: Quantized, text: Tensor, ignore: int = -100) -> Tensor:
        """Mean cross-entropy of `text` `[B, T]`; entries equal to `ignore` do not count."""
        logits = self(codes, text.clamp(min=0))
        return F.cross_entropy(logits.flatten(0, 1), text.flatten(), ignore_index=ignore)
