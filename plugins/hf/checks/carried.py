"""What a model carries: of vtc, and altogether."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vtc.plugins.hf.typing import Model


def of_vtc(model: Model) -> list[str]:
    """Hooks, attributes and configs of vtc, by the module that they are on."""
    out = []
    for path, module in model.named_modules():
        where = path or "the model"
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        ours = [hook for hook in hooks if str(hook.__module__).startswith("vtc.")]
        out += [f"hook {hook.__name__} of {where}" for hook in ours]
        out += [f"{name} of {where}" for name in vars(module) if name.startswith("_vtc")]
        if hasattr(getattr(module, "config", None), "vtc_layer"):
            out.append(f"config of {where}")
    return out


def everything(model: Model) -> dict[str, Any]:
    """Attributes, hooks and configs of every module; of tensors, which a run may renew, the names."""
    out: dict[str, Any] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            held: Any = None if isinstance(value, Tensor) else id(value)
            if isinstance(value, dict):  # tables: parameters, hooks, children
                held = tuple((key, id(each)) for key, each in value.items())
            out[f"{path}.{name}".strip(".")] = held
    return out
