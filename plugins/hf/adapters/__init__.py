"""One adapter a model family; importing this package registers them."""

from vtc.plugins.hf.adapters import (  # noqa: F401
    cohere2_vision,
    fallback,
    gemma,
    idefics3,
    internvl,
    llava,
    llava_next,
    mllama,
    qwen_vl,
    video_llava,
)
from vtc.plugins.hf.adapters.base import Adapter, adapter_for, register_adapter, supported_classes

__all__ = ["Adapter", "adapter_for", "register_adapter", "supported_classes"]
