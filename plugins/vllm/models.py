"""One class an architecture: vLLM's own, its processor and its encoder with pruning in front.

vLLM imports the class by its name, which is made on demand. It remembers what a class supports by a hash
of this file alone: whoever changes what the classes of `model.py` declare changes this number: 1.
"""

from __future__ import annotations

import importlib
from functools import cache
from typing import Any

from vllm.multimodal import MULTIMODAL_REGISTRY

from vtc.plugins.vllm.families import ARCHITECTURES
from vtc.plugins.vllm.model import PruningModel, PruningMRoPE
from vtc.plugins.vllm.processor import PruningProcessor


@cache
def made(name: str) -> Any:
    """The class of an architecture."""
    module, own = ARCHITECTURES[name]
    # from its module: the registry has ours by now
    base = getattr(importlib.import_module(f"vllm.model_executor.models.{module}"), own)
    mixin = PruningMRoPE if hasattr(base, "get_mrope_input_positions") else PruningModel
    cls = type(name, (mixin, base), {"__module__": __name__, "__doc__": base.__doc__})
    factories = base._processor_factory
    register = MULTIMODAL_REGISTRY.register_processor(
        _with_pruning(factories.processor),
        info=factories.info,
        dummy_inputs=factories.dummy_inputs,
    )
    return register(cls)


def _with_pruning(factory: Any) -> Any:
    """A factory of processors that prune, from vLLM's own, which may be a class or a function."""

    def make(info: Any, dummy_inputs: Any, **kwargs: Any) -> Any:
        own = factory if isinstance(factory, type) else type(factory(info, dummy_inputs, **kwargs))
        return _mixed(own)(info, dummy_inputs, **kwargs)

    return make


@cache
def _mixed(own: type) -> type:
    return type(f"Pruning{own.__name__}", (PruningProcessor, own), {})


def __getattr__(name: str) -> Any:
    if name in ARCHITECTURES:
        return made(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
