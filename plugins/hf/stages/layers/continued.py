"""Who may continue a cache whose layers hold different numbers of tokens.

A bare model sizes the masks of all layers by the first one, and attention fails on the shapes or, worse,
does not. The cache itself sees that (`Notes.check`), so that nothing has to stay on a model or be put on
a class.
"""

from __future__ import annotations

import weakref

from vtc.errors import VTCError
from vtc.plugins.hf.scopes import RUNNING, current
from vtc.plugins.hf.typing import Model

#: the models that have filled caches; notes name them, so that a cache can be copied and pickled
_OWNERS: weakref.WeakValueDictionary[int, Model] = weakref.WeakValueDictionary()


def named(model: Model) -> int:
    """What notes call a model that fills or continues a cache."""
    _OWNERS[id(model)] = model
    return id(model)


def is_expected(owner: int) -> bool:
    """Whether the call under way runs under compression inside the language model.

    Args:
        owner: `named` of the model that continued last.
    """
    running, model = RUNNING.get(), _OWNERS.get(owner)
    try:
        scope = running[1] if running is not None else None if model is None else current(model)
    except VTCError:  # the call itself says so
        return True
    return scope is not None and scope.patch is not None and scope.patch.inside is not None
