"""A name for what PyTorch's types say too little about."""

from __future__ import annotations

from typing import Any, TypeAlias

#: a transformers model or a part of one: PyTorch takes every attribute of a module for a tensor or a
#: module, which a configuration, a number of patches and `generate` are not
Model: TypeAlias = Any
