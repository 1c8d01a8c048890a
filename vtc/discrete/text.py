"""A small reader of texts for generators that have no language model at hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vtc.discrete.backbone import Transformer, TransformerConfig
from vtc.errors import VTCError


class TextEncoder(nn.Module):
    """One feature of each word for each layer of a generator, learned along with it.

    Instella-T2I (arXiv 2506.21022) gives every layer the hidden states of one layer of a frozen language
    model; this has the same shape and stands in its place.

    Args:
        words: size of the vocabulary.
        dim: width of the features.
        layers: of the generator, and so of this.
        heads: attention heads.
    """

    def __init__(self, words: int, dim: int, layers: int, heads: int = 4) -> None:
        super().__init__()
        self.table = nn.Embedding(words, dim)
        config = TransformerConfig(dim, 1, heads, rope=(dim // heads,), final_norm="none")
        self.layers = nn.ModuleList(Transformer(config) for _ in range(layers))
        self.norm = nn.RMSNorm(dim)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, text: Tensor) -> tuple[Tensor, ...]:
        """Features `[B, T, dim]`, one a layer.

        Args:
            text: int64 `[B, T]`; negative entries are padding.

        Raises:
            VTCError: another shape or type, or a word outside the vocabulary.
        """
        words = self.table.num_embeddings
        if text.dim() != 2 or text.is_floating_point() or int(text.max()) >= words:
            raise VTCError(
                f"text: got shape {tuple(text.shape)} of {text.dtype} up to {text.max()}, expected "
                f"words [batch, T] below {words}"
            )
        x, count = self.table(text.clamp(min=0)), text.shape[1]
        rope = self.layers[0].rope(torch.arange(count).unsqueeze(1))  # type: ignore[operator]
        # padding sees itself, or its row of the softmax would be empty
        own = torch.eye(count, dtype=torch.bool, device=text.device)
        mask = ((text >= 0).unsqueeze(1) | own).unsqueeze(1)
        features = []
        for layer in self.layers:
            x = layer(x, mask=mask, rope=rope)
            features.append(self.norm(x))
        return tuple(features)
