"""LLaVA-1.5 and VipLLaVA: one tile an image, no separators."""

from __future__ import annotations

from vtc.plugins.hf.adapters.base import Adapter, register_adapter


@register_adapter("LlavaForConditionalGeneration", "LlavaModel")
class Llava(Adapter):
    """Features are one hidden state of a CLIP or SigLIP tower behind an MLP."""


@register_adapter("VipLlavaForConditionalGeneration", "VipLlavaModel")
class VipLlava(Adapter):
    """Features are several hidden states side by side, which the projector mixes."""

    wants_list = False
