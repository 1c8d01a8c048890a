"""Which families' pictures can be made smaller, and why those of the others cannot."""

from __future__ import annotations

from typing import Any

from vtc.errors import VTCError
from vtc.plugins.model import families
from vtc.plugins.model.smaller.base import Resizer
from vtc.plugins.model.smaller.crops import AnyRes, InternVL
from vtc.plugins.model.smaller.patches import Pixtral, Qwen

_QWEN = Qwen()
#: by `model_type`
RESIZERS: dict[str, Resizer] = {
    "qwen2_vl": _QWEN,
    "qwen2_5_vl": _QWEN,
    "qwen3_vl": _QWEN,
    "qwen3_vl_moe": _QWEN,
    "llava": Pixtral(),
    "llava_next": AnyRes(families.llava_next),
    "llava_next_video": AnyRes(families.llava_next_video),
    "llava_onevision": AnyRes(families.llava_onevision),
    "internvl": InternVL(),
}
#: of those that are not there, why
_FIXED = "whose processor brings every picture to one size"
_WHY = {
    "llava": _FIXED,
    "vipllava": _FIXED,
    "video_llava": _FIXED,
    "paligemma": _FIXED,
    "gemma3": _FIXED,
    "idefics3": "whose prompts name every crop of a picture in words",
    "smolvlm": "whose prompts name every crop of a picture in words",
    "cohere2_vision": "whose prompts have a break behind every crop of a picture",
}


def resizer(config: Any) -> Resizer:
    """How the pictures of a model are made smaller.

    Raises:
        VTCError: nobody can, and why.
    """
    kind = getattr(config, "model_type", None)
    tower = getattr(getattr(config, "vision_config", None), "model_type", None)
    if kind in RESIZERS and (kind != "llava" or tower == "pixtral"):
        return RESIZERS[kind]
    why = _WHY.get(kind or "", "which 'resize' does not know")
    raise VTCError(
        f"method: 'resize' makes no picture smaller for {kind!r}, {why}; 'pool' averages tokens behind "
        "the tower instead"
    )
