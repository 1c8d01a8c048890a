"""Image tokens pruned inside an unmodified vLLM server, per request.

vLLM finds `register` by an entry point, in every process that it starts; nothing has to be imported and
nothing is set on workers. `VTC_VLLM=0`, or `VLLM_PLUGINS` without `vtc`, leaves vLLM as it is.
"""

from __future__ import annotations

import functools
from typing import Any


def register() -> None:
    """Put the classes of `models.py` in place of vLLM's own, for the families that are served.

    Doing it again changes nothing.

    Raises:
        VTCError: `VTC_VLLM` is neither 0 nor 1.
    """
    from vtc.plugins.vllm.server import turned_on

    if not turned_on():
        return
    from vllm import ModelRegistry
    from vllm.model_executor.models.config import MODELS_CONFIG_MAP
    from vllm.platforms import current_platform

    from vtc.plugins.vllm.families import ARCHITECTURES
    from vtc.plugins.vllm.start import checked

    known = ModelRegistry.get_supported_archs()
    for name in ARCHITECTURES:
        if name in known:  # by name: CUDA must not be touched before vLLM starts its processes
            ModelRegistry.register_model(name, f"vtc.plugins.vllm.models:{name}")
            MODELS_CONFIG_MAP[name] = checked(MODELS_CONFIG_MAP.get(name))
    if current_platform.is_cpu():
        _mend_cpu_runner()


def _mend_cpu_runner() -> None:
    """vLLM's runner for CPUs never asks a model whether its positions follow what is kept."""
    from vllm.v1.worker.cpu_model_runner import CPUModelRunner

    load_model = CPUModelRunner.load_model
    if hasattr(load_model, "vtc"):
        return

    @functools.wraps(load_model)
    def load(self: Any, *args: Any, **kwargs: Any) -> Any:
        out = load_model(self, *args, **kwargs)
        if getattr(self.get_model(), "vtc_mrope", False):
            self.is_multimodal_pruning_enabled = True
        return out

    load.vtc = True  # type: ignore[attr-defined]
    CPUModelRunner.load_model = load
