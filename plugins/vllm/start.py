"""What is checked before a server starts, where vLLM checks a model's configuration.

vLLM calls it in the process that reads the command line, so that a wrong setting ends the start before
any other process begins. Nothing here imports vLLM.
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

from vtc.errors import VTCError
from vtc.plugins.vllm import families, metrics, server
from vtc.plugins.vllm.settings import Settings


def check(vllm_config: Any) -> None:
    """Check what a server is set to, and note it for all its processes.

    Raises:
        VTCError: a default is wrong or cannot be served, or pruning would be silently wrong.
    """
    model_config, parallel = vllm_config.model_config, vllm_config.parallel_config
    mm_config = model_config.multimodal_config
    refuse(vllm_config)
    blind = ""
    if mm_config.mm_encoder_tp_mode == "data" and parallel.tensor_parallel_size > 1:
        blind = "under mm_encoder_tp_mode='data' a rank sees its own images only"
    told = server.of(mm_config, blind, metrics.tally())
    config = model_config.hf_config
    default = Settings(told.defaults, os.environ).default
    families.check(default, config, families.tower_of(config, blind))


def refuse(vllm_config: Any) -> None:
    """Raise `VTCError` for what would be silently wrong beside pruning."""
    compilation = vllm_config.compilation_config
    mm_config = vllm_config.model_config.multimodal_config
    lora = vllm_config.lora_config
    for wrong, name, why in (
        (
            getattr(compilation, "cudagraph_mm_encoder", False),
            "cudagraph_mm_encoder",
            "graphs of the encoder go around what prunes its images",
        ),
        (
            getattr(compilation, "compile_mm_encoder", False),
            "compile_mm_encoder",
            "nothing can be read of the attention of a compiled encoder",
        ),
        (
            mm_config.get_video_pruning_spec() is not None,
            "video_pruning_rate",
            "vLLM's pruning of videos keeps positions in the same place",
        ),
        (
            lora is not None and getattr(lora, "enable_tower_connector_lora", False),
            "enable_tower_connector_lora",
            "adapters of the tower count the tokens that are left",
        ),
    ):
        if wrong:
            raise VTCError(f"{name}: got {wrong}, {why}; turn it off, or set VTC_VLLM=0")


@cache
def checked(own: Any) -> Any:
    """A class for vLLM's table of checks that runs vLLM's own check first.

    Args:
        own: the class that stands there, or None.
    """
    if hasattr(own, "vtc"):
        return own

    class Checked:
        vtc = True

        @staticmethod
        def verify_and_update_config(vllm_config: Any) -> None:
            if own is not None:
                own.verify_and_update_config(vllm_config)
            check(vllm_config)

        @staticmethod
        def verify_and_update_model_config(model_config: Any) -> None:
            if own is not None:
                own.verify_and_update_model_config(model_config)

    return Checked
