"""How transformers names a KV cache, and what is noted on one.

The argument, the field of outputs and the keyword of `generate` are `cache` from transformers 5.24 on
and were `past_key_values` before; remote code may keep the old name. Everything else asks here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partialmethod
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from vtc.errors import VTCError
from vtc.plugins.hf import arguments
from vtc.plugins.hf.typing import Model
from vtc.plugins.model.compaction import Compaction

if TYPE_CHECKING:
    from vtc.plugins.hf.stages.layers.notes import Notes

#: what the argument may be called, the new name first
NAMES = ("cache", "past_key_values")
#: what is kept on a cache
_NOTES = ("_vtc_held", "_vtc_inside", "_vtc_bias", "_vtc_biased")


def name(model: Model) -> str:
    """What `model`'s forward calls its cache."""
    cls: Any = type(model)
    inner: Any = type(getattr(model, "base_model", model))
    return _name(cls, cls.forward, inner)


@lru_cache(maxsize=64)
def _name(cls: type, forward: Any, inner: type) -> str:
    """By class, not by call: a decoding step has no time to read signatures."""
    for each in (cls, inner):
        for parameters in arguments.forwards_of(each):
            for known in NAMES:
                if known in parameters:
                    return known
    return NAMES[-1]


def given(kwargs: dict[str, Any]) -> Any:
    """The cache among a call's arguments, under either name; None when there is none."""
    for known in NAMES:
        if kwargs.get(known) is not None:
            return kwargs[known]
    return None


def renamed(model: Model, kwargs: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments with its cache under the name that `model` reads.

    transformers before 5.24 takes no notice of `cache=`, later versions drop one of two names.

    Raises:
        VTCError: two different caches.
    """
    here = [known for known in NAMES if known in kwargs]
    if not here or here == [name(model)]:
        return kwargs
    caches = [kwargs[known] for known in here if kwargs[known] is not None]
    if len(caches) > 1 and caches[0] is not caches[1]:
        raise VTCError("cache: got another cache as past_key_values, give only one")
    out = {key: value for key, value in kwargs.items() if key not in NAMES}
    if caches:
        out[name(model)] = caches[0]
    return out


def found(output: Any, kwargs: dict[str, Any]) -> Any:
    """The cache behind a call: its caller's own, or the one in its output, a tuple or a dictionary."""
    own = given(kwargs)
    if own is not None:
        return own
    values: Iterable[Any] = ()
    if isinstance(output, dict):
        values = output.values()
    elif isinstance(output, (tuple, list)):
        values = output
    return next((value for value in values if isinstance(value, Cache)), None)


def length(cache: Any) -> int:
    """Tokens that a cache holds, 0 for None."""
    return 0 if cache is None else int(cache.get_seq_length())


@dataclass
class Held:
    """What a cache holds of a conversation that was compressed; kept on the cache.

    Attributes:
        compaction: of the conversation up to the last compressed prompt.
        seen: its length before compression.
        long: int64 `[R, B, seen]`, its positions before compression.
        own: int64 `[R, B, S]`, the positions of its short form; R is 1, or 4 with M-RoPE.
        after: int64 `[R, B]`, the position that follows the short form on each axis.
        visual: bool `[B, S]`, the visual tokens of the short form.
        length: tokens in the cache when it was last looked at.
        broken: why it cannot be continued, None while it can.
    """

    compaction: Compaction
    seen: int
    long: Tensor
    own: Tensor
    after: Tensor
    visual: Tensor
    length: int = 0
    broken: str | None = None

    @property
    def places(self) -> int:
        """S, tokens of the short form."""
        return self.compaction.slot.shape[1]

    def rows(self, index: Tensor) -> None:
        """Take rows of the batch, by number."""
        index = index.to(self.visual.device)
        c = self.compaction
        self.compaction = Compaction(c.slot[index], c.position[index], c.valid[index], c.ragged)
        self.long, self.own = self.long[:, index], self.own[:, index]
        self.after, self.visual = self.after[:, index], self.visual[index]

    def cut(self, left: int) -> None:
        """The cache was cropped to `left` tokens."""
        if left >= self.places:
            return
        c = self.compaction
        slot, valid, visual = (x[:, left:].cpu() for x in (c.slot, c.valid, self.visual))
        if not bool(valid.all()) or bool(visual.any()) or len(slot[:, 0].unique()) > 1:
            self.broken = (
                f"it was cropped to {left} tokens, which cuts into an image or into padding"
            )
            return
        self.seen = int(slot[0, 0])
        self.compaction = Compaction(
            c.slot[:, :left], c.position[:, :left], c.valid[:, :left], c.ragged
        )
        self.long = self.long[:, :, : self.seen]
        self.after = self.own[:, :, left]
        self.own, self.visual = self.own[:, :, :left], self.visual[:, :left]


def note(cache: Any, held: Held) -> None:
    """Keep `held` on a cache, and follow what its owner does with it."""
    rows = len(held.visual)
    held.length = length(cache)
    batch = _rows(cache)
    if batch and batch > rows and batch % rows == 0:  # beams
        held.rows(torch.arange(rows).repeat_interleave(batch // rows))
    cache._vtc_held = held
    _follow(cache)


def note_inside(cache: Any, notes: Notes) -> None:
    """Keep on a cache what its layers hold where a prompt was cut between them.

    From then on it sizes masks for those alone who know of it, see `Notes.check`.
    """
    cache._vtc_inside = notes
    _follow(cache)


def inside(cache: Any) -> Notes | None:
    """What `note_inside` has left on a cache; None for no cache and for nothing."""
    return getattr(cache, "_vtc_inside", None)


def note_bias(cache: Any, bias: Tensor) -> None:
    """Keep on a cache what is added to the logits of all attention to its keys.

    From then on it takes keys of no layer that was not given the bias, see `biased`: a model that knows
    nothing of it would go on in silence.

    Args:
        bias: float32 `[B, C]` of its columns, those that are still to come included; 0 behind them.
    """
    cache._vtc_bias = bias
    _follow(cache)


def bias(cache: Any) -> Tensor | None:
    """What `note_bias` has left on a cache; None for no cache and for nothing."""
    return getattr(cache, "_vtc_bias", None)


def biased(cache: Any, layer: int) -> None:
    """Let a cache take the keys of a layer whose mask has the bias, once."""
    if bias(cache) is not None:
        cache._vtc_biased = layer


def held(cache: Any) -> Held | None:
    """What was noted on a cache; None for no cache, an empty one, or one without notes."""
    known: Held | None = getattr(cache, "_vtc_held", None)
    if known is None:
        return None
    if length(cache) == 0:  # its owner has reset it
        forget(cache)
        return None
    if length(cache) < known.length and known.broken is None:
        known.broken = (
            f"it holds {length(cache)} tokens where there were {known.length}: some were taken out "
            "by hand"
        )
    return known


def forget(cache: Any) -> None:
    """Take the notes off a cache."""
    for attribute in _NOTES:
        vars(cache).pop(attribute, None)
    if isinstance(cache, Followed):
        cache.__class__ = cache._vtc_plain


def fit(held: Held, batch: int, what: str) -> Held:
    """`held`, with as many rows as the call.

    Raises:
        VTCError: nobody knows which rows are meant, or the cache cannot be continued.
    """
    if held.broken is not None:
        raise VTCError(
            f"{what}: cannot be continued under compression, {held.broken}; start with a fresh one, or "
            "give position_ids and a mask that fit what it holds"
        )
    if is_to_repeat(len(held.visual), batch, what):
        held.rows(torch.zeros(batch, dtype=torch.long))
    return held


def is_to_repeat(rows: int, batch: int, what: str) -> bool:
    """Whether the one row that a cache's notes have is to stand for each row of a call.

    Raises:
        VTCError: they have several and the call another number, so that nobody knows which are meant.
    """
    if rows not in (1, batch):
        raise VTCError(
            f"{what}: holds {rows} compressed prompts, the call has {batch}; repeat or select rows "
            "by the cache's own batch_repeat_interleave and batch_select_indices"
        )
    return rows != batch


# -- following the owner ---------------------------------------------------------------------------


def _rows(cache: Any) -> int:
    """Rows of a cache's batch, 0 where it does not say."""
    layers = getattr(cache, "layers", None) or ()
    keys = next(
        (k for k in (getattr(x, "keys", None) for x in layers) if isinstance(k, Tensor)), None
    )
    return 0 if keys is None or keys.dim() != 4 else len(keys)


class Followed:
    """A cache whose notes move with its contents; see `_class`."""

    #: the class that transformers gave it
    _vtc_plain: Any


def _follow(cache: Any) -> None:
    """Have `cache` tell its notes what its owner does with it, until they are forgotten.

    By a class of its own: a bound method among the attributes of a cache would be a cycle, which waits
    for the garbage collector. That counts objects and not bytes, so that keys and values of finished
    calls would fill the memory of a GPU.
    """
    if not isinstance(cache, Followed):
        plain: Any = type(cache)
        cache.__class__ = _class(plain)


@lru_cache(maxsize=64)
def _class(plain: Any) -> type[Followed]:
    """The class of caches of class `plain` that carry notes. It goes by the same name."""
    members: dict[str, Any] = {
        method: partialmethod(_followed, method) for method in _FOLLOWED if hasattr(plain, method)
    }
    members |= {
        own.__name__: own for own in (get_mask_sizes, update) if hasattr(plain, own.__name__)
    }
    members |= {"_vtc_plain": plain, "__reduce__": _reduced}
    members |= {known: getattr(plain, known) for known in ("__module__", "__qualname__", "__doc__")}
    return type(plain.__name__, (Followed, plain), members)


def _reduced(cache: Any) -> tuple[Any, ...]:
    """For copies and pickles, which find classes by their names."""
    return _remade, (cache._vtc_plain,), vars(cache)


def _remade(plain: type) -> Any:
    return object.__new__(_class(plain))


def get_mask_sizes(cache: Any, *args: Any, **kwargs: Any) -> Any:
    """By this method transformers sizes masks; see `note_inside`.

    Raises:
        VTCError: the call knows nothing of the notes.
    """
    notes = inside(cache)
    if notes is not None and not torch.compiler.is_compiling():
        notes.check()
    return cache._vtc_plain.get_mask_sizes(cache, *args, **kwargs)


def _followed(cache: Any, method: str, *args: Any, **kwargs: Any) -> Any:
    """A method of a cache that moves its contents; our notes move with them."""
    out = getattr(cache._vtc_plain, method)(cache, *args, **kwargs)
    value = args[0] if args else next(iter(kwargs.values()), None)
    layers = inside(cache)
    if layers is not None:
        rows = _rows_after(method, layers.rows, value)
        if rows is not None:
            layers.select(rows)
    weighed = bias(cache)
    if weighed is not None:
        rows = _rows_after(method, len(weighed), value)
        if rows is not None:
            cache._vtc_bias = weighed[rows.to(weighed.device)]
        elif method == "crop":
            cache._vtc_bias = weighed[:, : length(cache)]
    known: Held | None = getattr(cache, "_vtc_held", None)
    if known is not None:
        _FOLLOWED[method](cache, known, value)
    elif method == "reset" or (method == "crop" and length(cache) == 0):
        forget(cache)
    return out


def update(cache: Any, key: Tensor, value: Tensor, layer: int, *args: Any, **kwargs: Any) -> Any:
    """By this method a layer hands over its keys and values; see `note_bias`.

    Raises:
        VTCError: the cache has a bias, and nobody has given it to this layer.
    """
    if (
        bias(cache) is not None
        and not torch.compiler.is_compiling()
        and vars(cache).pop("_vtc_biased", None) != layer
    ):
        raise VTCError(
            "cache: holds tokens that stand for several patches each, to which all attention is "
            "proportional, and this call knows nothing of it; continue it under a method with "
            "proportional=True, or start with a fresh one"
        )
    return cache._vtc_plain.update(cache, key, value, layer, *args, **kwargs)


def _rows_after(method: str, rows: int, value: Any) -> Tensor | None:
    """The rows that a cache has behind one of its methods, by their old numbers; None for the same."""
    if method == "batch_repeat_interleave":
        return torch.arange(rows).repeat_interleave(int(value))
    if method in ("batch_select_indices", "reorder_cache"):
        index = torch.as_tensor(value)
        return index.nonzero().squeeze(1) if index.dtype == torch.bool else index.long()
    return None


def _reset(cache: Any, known: Held, value: Any) -> None:
    forget(cache)


def _crop(cache: Any, known: Held, value: Any) -> None:
    left = length(cache)
    if left == 0:
        forget(cache)
        return
    known.cut(left)
    known.length = left


def _move(method: str) -> Callable[[Any, Held, Any], None]:
    def moved(cache: Any, known: Held, value: Any) -> None:
        rows = _rows_after(method, len(known.visual), value)
        assert rows is not None
        known.rows(rows)

    return moved


_FOLLOWED: dict[str, Callable[[Any, Held, Any], None]] = {
    "reset": _reset,
    "crop": _crop,
    **{
        method: _move(method)
        for method in ("batch_repeat_interleave", "batch_select_indices", "reorder_cache")
    },
}
