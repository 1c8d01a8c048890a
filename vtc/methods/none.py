"""No compression: the yardstick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vtc.batch import ImageBatch
from vtc.methods.base import Method
from vtc.registry import register_method
from vtc.tokens import CompressedTokens, VisualTokens


@register_method
@dataclass
class NoCompression(Method):
    """Keeps every token, whatever the budget; runs through the plug-in like any other method."""

    name: ClassVar[str] = "none"
    exact: ClassVar[bool] = False
    default_retention: ClassVar[float] = 1.0

    def is_identity(self, tokens: VisualTokens) -> bool:
        return True

    def compress_batch(self, batch: ImageBatch) -> list[CompressedTokens]:
        return batch.keep(batch.tables.valid, [shape.patches for shape in batch.shapes])
