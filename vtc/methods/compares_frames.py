"""`ComparesFrames`: what all methods have in common that compare the frames of a clip."""

from __future__ import annotations

from dataclasses import dataclass

from vtc.errors import VTCError
from vtc.methods.base import Method


@dataclass
class ComparesFrames(Method):
    """A method that compares the frames of a clip; frames with a budget each would be strangers.

    An image is a clip of one frame. The thumbnail and the crops of an image do not follow each other
    in time: each is a frame that nothing came before.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.video != "clip":
            raise VTCError(
                f"video: got {self.video!r}, but {self.name!r} compares the frames of a clip with each "
                "other, allowed is clip"
            )
