"""One adapter a model family; importing this package registers them."""

from vtc.plugins.hf.adapters import llava, llava_next  # noqa: F401
from vtc.plugins.hf.adapters.base import Adapter, adapter_for, register_adapter, supported_classes

__all__ = ["Adapter", "adapter_for", "register_adapter", "supported_classes"]
