"""No compression: the yardstick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vtc.batch import ImageBatch
from vtc.methods.base import Method
from vtc.packing import Packing
from vtc.registry import register_method
from vtc.selection import Selection
from vtc.tokens import VisualTokens


@register_method
@dataclass
class NoCompression(Method):
    """Keeps every token, whatever the budget; runs through the plug-in like any other method."""

    name: ClassVar[str] = "none"
    exact: ClassVar[bool] = False
    default_retention: ClassVar[float] = 1.0

    def is_identity(self, image: Packing | VisualTokens) -> bool:
        return True

    def select(self, batch: ImageBatch) -> Selection:
        return batch.keep_all()
