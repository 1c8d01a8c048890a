"""A second reference VLM, on real pictures: a pretrained tower and a pretrained language model.

Both come from packages; what was trained to join them ships. Importing this module is cheap.
"""

from __future__ import annotations

from .model import checkpoint_path, load_photo
from .questions import Question, is_correct

__all__ = ["Question", "checkpoint_path", "is_correct", "load_photo"]
