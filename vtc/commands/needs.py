"""What a method needs of a model, in the words of a user: CLS, a text tower, the question."""

from __future__ import annotations

from vtc.errors import VTCError
from vtc.methods.base import Method
from vtc.methods.compares_frames import ComparesFrames

#: what is said of each, as a key under the table
KEY = {
    "CLS": "a CLS token in the vision tower, and nothing stands in for it",
    "CLS*": "a CLS token in the vision tower; without one, the attention each patch receives stands in",
    "attention": "attention of a layer of the vision tower; every tower has it",
    "pixels": "the pixels behind each token, which not every model family gives",
    "question": "the question, whose words decide what stays",
    "text tower": "the text half of the vision tower's CLIP or SigLIP, from text_encoder=",
    "text tower*": "text half of the tower's CLIP or SigLIP; none with text_score='similarity'",
    "trained": "a part of the model that was trained for this method",
    "clips": "a clip, whose frames are compared; an image is a clip of one frame",
}

#: signals that a text tower makes
TEXT_TOWER = ("text_embedding", "text_segments", "text_sequence")


def needs(cls: type[Method]) -> list[str]:
    """Keys of `KEY` that hold for the default options of a method."""
    found = []
    if _reads(cls, "cls_"):
        found.append("CLS*" if not _reads(cls, "cls_", has_cls=False) else "CLS")
    elif _reads(cls, "attention_received"):
        found.append("attention")
    if _reads(cls, "pixels"):
        found.append("pixels")
    if _reads(cls, "text_", "question_") or getattr(cls, "reads_question", False):
        found.append("question")
    if _reads(cls, *TEXT_TOWER):
        found.append("text tower*" if hasattr(cls, "text_score") else "text tower")
    if cls.weights is not Method.weights:
        found.append("trained")
    if issubclass(cls, ComparesFrames):
        found.append("clips")
    return found


def signals(cls: type[Method], has_cls: bool = True) -> list[str]:
    """Kinds of signals that the default options ask for; what the class names where it needs options."""
    try:
        requests = cls().requests(has_cls)
    except (VTCError, TypeError):
        return list(cls.__dict__.get("signals", ()))
    return list(dict.fromkeys(request.kind for request in requests.values()))


def _reads(cls: type[Method], *starts: str, has_cls: bool = True) -> bool:
    return any(kind.startswith(starts) for kind in signals(cls, has_cls))
