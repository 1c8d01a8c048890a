"""The text half of CLIP ViT-L/14 with random weights, for shapes that have no checkpoint."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn


class RandomTextTower:
    """What `recoverable` reads the question with; costs what the real one costs.

    Every text is 77 random ids that were not seen before: tokenising is left out, and nothing is
    remembered from one call to the next.

    Args:
        width: of the vision tower whose patches are projected.
    """

    def __init__(self, width: int, device: Any, dtype: Any) -> None:
        from transformers import CLIPTextConfig, CLIPTextModel

        config = CLIPTextConfig(hidden_size=768, intermediate_size=3072, num_attention_heads=12)
        with torch.device(device):
            self.text_model = CLIPTextModel(config).to(dtype).eval()
            self.text_projection = nn.Linear(768, 768, bias=False, dtype=dtype)
            self.visual_projection = nn.Linear(width, 768, bias=False, dtype=dtype)
        self.length, self.last = config.max_position_embeddings, config.vocab_size - 1
        self.serial = itertools.count()

    @torch.no_grad()
    def embed(self, text: str) -> Tensor:
        """`[768]` embedding of a text."""
        generator = torch.Generator().manual_seed(next(self.serial))
        ids = torch.randint(self.last, (1, self.length), generator=generator)
        ids[0, -1] = self.last  # the end of the text, where the embedding is read
        output = self.text_model(input_ids=ids.to(self.text_projection.weight.device))
        return self.text_projection(output.last_hidden_state[0, -1])

    @torch.no_grad()
    def project(self, hidden: Tensor) -> Tensor:
        """Patches `[..., width]` into the shared space, `[..., 768]`."""
        return self.visual_projection(hidden)
