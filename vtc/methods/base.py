"""`Method`: the interface of every compression method, and the guards that they all share."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch

from vtc.errors import VTCError
from vtc.tokens import (
    CompressedTokens,
    SignalRequest,
    VisualTokens,
    frames_of,
    join_frames,
    keep_patches,
)

Compress = Callable[["Method", VisualTokens], CompressedTokens]


@dataclass
class Method:
    """Base class of compression methods: one dataclass each, its fields are the hyper-parameters.

    A method says which `signals` it reads, at which `stage` it works, and how to `compress` one
    image. The budget is defined once, here: `retention` is the share of patch tokens kept over the
    whole image, un-padded, all tiles together; separators are not counted and stay.

    The `compress` of every subclass is wrapped with these guards: retention 1.0 is the identity;
    the result has at least one token, matching lengths, provenance in range and the dtype of the
    input.

    Attributes:
        retention: share of patch tokens to keep, in (0, 1]; or one share per image of the call.
            None means `default_retention`, or the method's own count where it is `adaptive`.
        tokens: absolute number of patch tokens instead, or one number per image of the call.
        video: "clip". One budget for a whole clip, or the same for every "frame".
    """

    retention: float | Sequence[float] | None = None
    tokens: int | Sequence[int] | None = None
    video: str = dataclasses.field(default="clip", kw_only=True)

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    #: kinds of `vtc.tokens.SIGNALS` the method reads from the last encoder layer
    signals: ClassVar[tuple[str, ...]] = ()
    #: signal -> stand-in for vision towers without a CLS token
    without_cls: ClassVar[Mapping[str, str]] = {
        "cls_logits": "attention_received",
        "cls_attention": "attention_received",
    }
    #: "vision": works on tokens before the projector; "language": behind it
    stage: ClassVar[Literal["vision", "language"]] = "language"
    #: True when `retention=None` means a count of the method's own
    adaptive: ClassVar[bool] = False
    #: True when the method draws at random and wants `VisualTokens.content_seed`
    draws: ClassVar[bool] = False
    default_retention: ClassVar[float] = 0.25

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "compress" in cls.__dict__:
            cls.compress = _guarded(cls.__dict__["compress"])  # type: ignore[assignment,method-assign]

    def __post_init__(self) -> None:
        if self.video not in ("clip", "frame"):
            raise VTCError(f"video: got {self.video!r}, allowed are clip, frame")
        if self.retention is not None and self.tokens is not None:
            raise VTCError(
                f"tokens: got {self.tokens!r} beside retention={self.retention!r}, give only one"
            )
        for value in _each(self.retention):
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if not number or not 0 < value <= 1:
                raise VTCError(f"retention: got {value!r}, allowed are numbers in (0, 1]")
        for value in _each(self.tokens):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise VTCError(f"tokens: got {value!r}, allowed are whole numbers >= 1")

    def compress(self, tokens: VisualTokens) -> CompressedTokens:
        """Compress one image.

        Raises:
            VTCError: a signal is missing or the budget does not fit the image.
        """
        raise TypeError(f"{type(self).__name__} must define compress(tokens)")

    # -- what the plug-in asks ---------------------------------------------------------------

    def requests(self, has_cls: bool = True) -> dict[str, SignalRequest]:
        """The signals to capture, by the name under which `compress` reads them.

        Args:
            has_cls: whether the vision tower has a CLS token.
        """
        names = {
            name: name if has_cls else self.without_cls.get(name, name) for name in self.signals
        }
        if not has_cls:
            missing = [n for n in names.values() if n.startswith("cls_")]
            if missing:
                raise VTCError(
                    f"method: {self.name!r} needs {', '.join(missing)}, but this vision tower "
                    "has no CLS token; 'globalcom2' and 'token_correlation' work without"
                )
        return {name: SignalRequest(name) for name in dict.fromkeys(names.values())}

    def for_image(self, index: int, count: int) -> Method:
        """This method with the budget of image `index` out of `count` in the call."""
        changes: dict[str, Any] = {}
        for field in ("retention", "tokens"):
            value = getattr(self, field)
            if isinstance(value, Sequence):
                if len(value) != count:
                    raise VTCError(
                        f"{field}: got {len(value)} values, but the call has {count} image(s)"
                    )
                changes[field] = value[index]
        return replace(self, **changes) if changes else self

    def settings(self) -> dict[str, Any]:
        """The hyper-parameters as plain values, for reports."""
        out = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            plain = value is None or isinstance(value, (bool, int, float, str, list, tuple, dict))
            out[field.name] = value if plain else type(value).__name__
        return out

    # -- what `compress` uses ----------------------------------------------------------------

    def is_identity(self, tokens: VisualTokens) -> bool:
        """Whether the budget asks for every patch of this image."""
        if self.tokens is None and self.retention is None and self.adaptive:
            return False
        return self.budget(tokens) >= tokens.num_patches

    def budget(self, tokens: VisualTokens) -> int:
        """Patch tokens to keep of this image: `floor(retention * patches)`, at least 1."""
        if self.tokens is not None:
            if isinstance(self.tokens, Sequence):
                raise VTCError("tokens: one number per image needs for_image() first")
            if self.tokens > tokens.num_patches:
                raise VTCError(
                    f"tokens: got {self.tokens}, but the image has {tokens.num_patches} patch "
                    "tokens"
                )
            return self.tokens
        # 1e-9: 0.29 * 100 is 28.999999999999996 in floating point and means 29
        return max(1, math.floor(self.ratio * tokens.num_patches + 1e-9))

    @property
    def ratio(self) -> float:
        """`retention` as one number, `default_retention` when it is None."""
        if isinstance(self.retention, Sequence):
            raise VTCError("retention: one number per image needs for_image() first")
        return self.default_retention if self.retention is None else float(self.retention)


def _each(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    return value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)


def _guarded(compress: Compress) -> Compress:
    """`compress` with the identity short cut and the checks on what it returns."""

    @functools.wraps(compress)
    def wrapper(self: Method, tokens: VisualTokens) -> CompressedTokens:
        if tokens.frames > 1 and self.video == "frame":
            return join_frames(tokens, [wrapper(self, frame) for frame in frames_of(tokens)])
        if self.is_identity(tokens):
            return keep_patches(tokens, torch.ones_like(tokens.valid))
        out = compress(self, tokens)
        _check(self, tokens, out)
        return out

    return wrapper


def _check(method: Method, tokens: VisualTokens, out: CompressedTokens) -> None:
    count, (tiles, patches, width) = len(out), tokens.features.shape
    who = f"method {method.name!r} returned"
    if count == 0 or not bool((out.patch >= 0).any()):
        raise VTCError(f"{who} no patch token for an image with {tokens.num_patches} patches")
    for name in ("tile", "patch", "anchor", "weight"):
        if getattr(out, name).shape != (count,):
            raise VTCError(
                f"{who} {name} of shape {tuple(getattr(out, name).shape)}, not [{count}]"
            )
    if not out.projected and (
        out.features.dtype != tokens.features.dtype or out.features.shape[1] != width
    ):
        raise VTCError(
            f"{who} {out.features.dtype} features of width {out.features.shape[1]}, expected "
            f"{tokens.features.dtype} of width {width}"
        )
    for name, low, high in (
        ("tile", -1, tiles),
        ("patch", -1, patches),
        ("anchor", 0, len(tokens.layout)),
    ):
        value = getattr(out, name)
        if int(value.min()) < low or int(value.max()) >= high:
            raise VTCError(f"{who} {name} outside [{low}, {high})")
