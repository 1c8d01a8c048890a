"""What a processor makes of the images or clips of a call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

#: pixel input of each modality
PIXELS = {"image": "pixel_values", "video": "pixel_values_videos"}


@dataclass
class Inputs:
    """The images or the clips of a call, and the prompts around them.

    Attributes:
        config: the model's.
        modality: `"image"` or `"video"`.
        kwargs: what the processor made, by name.
        ids: token ids `[B, L]`, None where a caller gave embeddings.
        placeholder: bool `[B, L]`, the placeholders of this modality.
    """

    config: Any
    modality: str
    kwargs: Mapping[str, Any]
    ids: Tensor | None
    placeholder: Tensor

    @property
    def runs(self) -> list[tuple[int, int, int]]:
        """`(row, start, length)` of every unbroken run of placeholders, in reading order."""
        mask = nn.functional.pad(self.placeholder, (1, 1))
        edges = (mask[:, 1:] != mask[:, :-1]).nonzero().view(-1, 2, 2).tolist()
        return [(row, start, stop - start) for (row, start), (_, stop) in edges]

    @property
    def pixels(self) -> Tensor:
        """The pixel input."""
        return self.kwargs[PIXELS[self.modality]]
