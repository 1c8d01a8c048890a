"""The reference VLM: a small LLaVA-NeXT that ships with the package, its data and its scores.

Importing this module is cheap; torch and transformers are imported by the functions that need
them.
"""

from __future__ import annotations

from .model import checkpoint_path, load_reference
from .questions import Question, is_correct
from .scene import Item, Scene, scenes
from .tokenizer import chat as prompt

__all__ = [
    "Item",
    "Question",
    "Scene",
    "checkpoint_path",
    "is_correct",
    "load_reference",
    "prompt",
    "scenes",
]
