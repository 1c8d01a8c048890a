"""`Method`: the interface of every compression method, and the guards that they all share."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, ClassVar, Literal

from torch import nn

from vtc.batch import ImageBatch
from vtc.errors import VTCError
from vtc.methods import _guards
from vtc.openings import checked, share_of
from vtc.packing import Packing
from vtc.selection import Selection
from vtc.tokens import (
    CompressedTokens,
    SignalRequest,
    VisualTokens,
    frames_of,
    join_frames,
    keep_patches,
)

Compress = Callable[["Method", VisualTokens], CompressedTokens]
CompressBatch = Callable[["Method", ImageBatch], list[CompressedTokens]]
Select = Callable[["Method", ImageBatch], Selection]


class _Signals:
    """`Method.signals` of a class that names none: those of its `requests`."""

    def __get__(self, method: Method | None, cls: type[Method]) -> tuple[str, ...]:
        owner = next(base for base in cls.__mro__ if "requests" in base.__dict__)
        if owner.__dict__.get("signals") is self:  # `Method`, whose `requests` read what is named
            return ()
        requests = (cls() if method is None else method).requests()
        return tuple(dict.fromkeys(request.kind for request in requests.values()))


@dataclass
class Method:
    """Base class of compression methods: one dataclass each, its fields are the hyper-parameters.

    A method says which `signals` it reads, at which `stage` it works, and defines one of

    * `select`: for the images of a batch in the same few operations, a `Selection`. It decides, and
      gathers nothing. A method that scores tokens and keeps the best is a `Scored`.
    * `compress`: for one image, the tokens that are left.

    The budget is defined once, here: `retention` is the share of patch tokens kept over the whole
    image, un-padded, all tiles together; separators are not counted and stay.

    The results of every subclass are guarded, whatever it defines: retention 1.0 is the identity; there
    is at least one token and no more patch tokens than the budget, lengths match and the dtype is that
    of the input; tiles, patches, anchors and merges are in range, and numbers are numbers. The last two
    cost a look at the device, see `vtc.checks`.

    Attributes:
        retention: share of patch tokens to keep, in (0, 1]; or one share per image of the call, in
            the order in which the prompts show them: row by row, left to right, images and clips
            alike. None means `default_retention`, or the method's own count where it is `adaptive`.
            Or shares by how a question begins, `{"how many": 0.7, "*": 0.12}`, with "*" for all others;
            for methods in front of the language model.
        tokens: absolute number of patch tokens instead, or one number per image of the call. An
            image that has fewer keeps all, and its report says so.
        video: "clip". One budget for a whole clip, or the same for every "frame".
        strict: False. Whether `tokens` beyond what an image has is an error instead.
    """

    retention: float | Sequence[float] | Mapping[str, float] | None = None
    tokens: int | Sequence[int] | None = None
    video: str = dataclasses.field(default="clip", kw_only=True)
    strict: bool = dataclasses.field(default=False, kw_only=True)

    name: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    #: kinds of `vtc.tokens.SIGNALS` the method reads; a class either names them, and reads the last
    #: encoder layer's, or defines `requests`, from which they are then taken
    signals: ClassVar[tuple[str, ...]] = _Signals()  # type: ignore[assignment]
    #: signal -> stand-in for vision towers without a CLS token
    without_cls: ClassVar[Mapping[str, str]] = {
        "cls_logits": "attention_received",
        "cls_attention": "attention_received",
    }
    #: "vision": works on tokens before the projector; "language": behind it
    stage: ClassVar[Literal["vision", "language"]] = "language"
    #: "pixels": makes pictures smaller before the vision tower sees them; "boundary": makes fewer tokens
    #: before the language model reads them; "layers": inside of it
    where: ClassVar[Literal["pixels", "boundary", "layers"]] = "boundary"
    #: True when `retention=None` means a count of the method's own
    adaptive: ClassVar[bool] = False
    #: True when the method draws at random and wants `VisualTokens.content_seed`
    draws: ClassVar[bool] = False
    #: True when the method judges patches even where a projector makes one token of several, and reads
    #: `VisualTokens.cell`
    by_patch: ClassVar[bool] = False
    #: field -> folder beside a model's weights that it is taken from where it is None
    beside: ClassVar[Mapping[str, str]] = {}
    #: True when the method projects tokens itself, in place of the model's projector
    projects: ClassVar[bool] = False
    #: False when a budget is no bound, because published roundings or a grid come first
    exact: ClassVar[bool] = True
    default_retention: ClassVar[float] = 0.25
    #: True when tables and pictures show the method where nobody names any
    shown: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.stage not in ("vision", "language"):
            raise VTCError(
                f"stage: {cls.__name__} has {cls.stage!r}, allowed are 'vision' and 'language'"
            )
        for name, guard in _GUARDS.items():
            if name in cls.__dict__:
                setattr(cls, name, guard(cls.__dict__[name]))

    def __post_init__(self) -> None:
        if self.video not in ("clip", "frame"):
            raise VTCError(f"video: got {self.video!r}, allowed are clip, frame")
        if not isinstance(self.strict, bool):
            raise VTCError(f"strict: got {self.strict!r}, allowed are True and False")
        if self.retention is not None and self.tokens is not None:
            raise VTCError(
                f"tokens: got {self.tokens!r} beside retention={self.retention!r}, give only one"
            )
        if isinstance(self.retention, Mapping):
            if self.where != "boundary":
                raise VTCError(
                    f"retention: got shares by question, which are for methods in front of the language "
                    f"model; {self.name!r} has one share, or one for each image"
                )
            self.retention = checked(self.retention)
        for value in _each(self.retention):
            number = isinstance(value, Real) and not isinstance(value, bool)
            if not number or not 0 < value <= 1:
                raise VTCError(f"retention: got {value!r}, allowed are numbers in (0, 1]")
        for value in _each(self.tokens):
            if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
                raise VTCError(f"tokens: got {value!r}, allowed are whole numbers >= 1")
        self.retention, self.tokens = _plain(self.retention), _plain(self.tokens)

    def compress(self, tokens: VisualTokens) -> CompressedTokens:
        """Compress one image.

        Raises:
            VTCError: a signal is missing or the budget does not fit the image.
        """
        return self._in_batches([tokens], [self])[0]

    def select(self, batch: ImageBatch) -> Selection:
        """Decide for images that are alike in patch grid, packing and budgets' kind.

        The number of operations should not depend on how many images, tiles and patches there are.
        """
        raise VTCError(f"method: {type(self).__name__} must define select or compress")

    def compress_batch(self, batch: ImageBatch) -> list[CompressedTokens]:
        """What `select` leaves of the images of a batch."""
        return _guards.applied(batch, self.select(batch))

    def compress_all(
        self,
        images: Sequence[VisualTokens],
        first: int = 0,
        count: int | None = None,
        numbers: Sequence[int] | None = None,
    ) -> list[CompressedTokens]:
        """Compress the images of a call.

        Args:
            images: some or all of them.
            first: the number of the first among the images of the call, where they follow each other.
            count: images of the call, for budgets given image by image; None for `len(images)`.
            numbers: the number of each instead, where others stand between them.
        """
        count = len(images) if count is None else count
        numbers = range(first, first + len(images)) if numbers is None else numbers
        methods = [self.for_image(number, count) for number in numbers]
        if _by_image(type(self)):
            return [m.compress(image) for m, image in zip(methods, images, strict=True)]
        return self._in_batches(images, methods)

    def _in_batches(
        self, images: Sequence[VisualTokens], methods: Sequence[Method]
    ) -> list[CompressedTokens]:
        """`compress_batch` on what goes together; clips are taken apart where each frame counts."""
        apart = [m.video == "frame" and i.frames > 1 for i, m in zip(images, methods, strict=True)]
        views = [frames_of(i) if cut else [i] for i, cut in zip(images, apart, strict=True)]
        each = [(view, m) for some, m in zip(views, methods, strict=True) for view in some]
        groups: dict[Any, list[int]] = {}
        for index, (view, method) in enumerate(each):
            groups.setdefault(method.kind(view), []).append(index)
        done: dict[int, CompressedTokens] = {}
        for (identity, *_), members in groups.items():
            batch = ImageBatch(*zip(*(each[i] for i in members), strict=True))
            if identity:
                out = batch.keep_all().apply(batch)
            else:
                out = each[members[0]][1].compress_batch(batch)
            done.update(zip(members, out, strict=True))
        results = iter(done[i] for i in range(len(each)))
        return [
            join_frames(image, [next(results) for _ in some]) if cut else next(results)
            for image, some, cut in zip(images, views, apart, strict=True)
        ]

    # -- what the plug-in asks ---------------------------------------------------------------

    def check(self) -> None:
        """Raise `VTCError` where a part is missing that the method cannot do without.

        Called before a model is touched, and before tokens are compressed: what is missing in a method
        by itself may come with a model.
        """

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
                from vtc.methods.which import quoted, without_cls

                raise VTCError(
                    f"method: {self.name!r} needs {', '.join(missing)}, but this vision tower "
                    f"has no CLS token; {quoted(without_cls())} work without"
                )
        return {name: SignalRequest(name) for name in dict.fromkeys(names.values())}

    def for_image(self, index: int, count: int) -> Method:
        """This method with the budget of image `index` out of `count` in the call."""
        changes: dict[str, Any] = {}
        for field in ("retention", "tokens"):
            value = getattr(self, field)
            if isinstance(value, (list, tuple)):
                if len(value) != count:
                    raise VTCError(
                        f"{field}: got {len(value)} values, but the call has {count} image(s)"
                    )
                changes[field] = value[index]
        return replace(self, **changes) if changes else self

    @property
    def by_question(self) -> bool:
        """Whether the budget hangs on what is asked; see `for_questions`."""
        return isinstance(self.retention, Mapping)

    def for_questions(self, questions: Sequence[str]) -> Method:
        """This method with the share of each image of a call.

        Args:
            questions: what is asked about each.
        """
        if not isinstance(self.retention, Mapping):
            return self
        return replace(self, retention=[share_of(self.retention, text) for text in questions])

    def weights(self) -> dict[str, nn.Module]:
        """The trained modules of a learned method, by the field that holds each."""
        return {}

    def settings(self) -> dict[str, Any]:
        """The hyper-parameters as plain values, for reports."""
        out = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            plain = value is None or isinstance(value, (bool, int, float, str, list, tuple, dict))
            out[field.name] = value if plain else type(value).__name__
        return out

    # -- what `compress_batch` uses ----------------------------------------------------------------

    @property
    def early(self) -> bool:
        """Whether tokens are dropped before the vision tower encodes them; such a method reads pixels
        alone."""
        return False

    @property
    def weighs(self) -> bool:
        """Whether the language model attends to a token in proportion to its weight."""
        return False

    @property
    def counts_itself(self) -> bool:
        """Whether the number of tokens is the method's own."""
        return self.tokens is None and self.retention is None and self.adaptive

    def asked(self, image: Packing | VisualTokens) -> int | None:
        """Patch tokens that the setting asks for, be they there or not; None where it leaves that to
        the method."""
        if self.counts_itself:
            return None
        if self.tokens is None:
            return self.budget(image)
        return self._number * (image.frames if self.video == "frame" else 1)

    def is_identity(self, image: Packing | VisualTokens) -> bool:
        """Whether the budget asks for every patch of this image."""
        return not self.counts_itself and self.budget(image) >= image.geometry.patches

    def kind(self, tokens: VisualTokens) -> tuple[Any, ...]:
        """Images of one kind go into one `ImageBatch`; whether nothing is to be done comes first."""
        features, packing = tokens.features, tokens.packing
        return (
            self.is_identity(tokens),
            packing.patch_grid,
            packing.tile_grid is None,
            packing.newline,
            packing.order,
            packing.shrink,
            tokens.cell,
            features.shape[-1],
            features.dtype,
            features.device,
            *[(name, value.shape[1:]) for name, value in tokens.signals.items()],
        )

    def budget(self, image: Packing | VisualTokens) -> int:
        """Patch tokens to keep of an image: `floor(retention * patches)`, at least 1, or `tokens`, at
        most all. Of a clip with a budget for every frame, all frames together.

        It follows from the packing alone, before anything is encoded.
        """
        geometry = image.geometry
        if self.video == "frame" and image.frames > 1:
            return sum(map(self._share, geometry.available))
        return self._share(geometry.patches)

    def length(self, image: Packing | VisualTokens) -> int | None:
        """Tokens that will be left of an image, separators counted; None where that hangs on what the
        image shows (`counts_itself`, or not `exact`)."""
        packing = image if isinstance(image, Packing) else image.packing
        if self.is_identity(packing):
            return packing.length
        if self.counts_itself or not self.exact:
            return None
        return self.budget(packing) + packing.separators

    def _share(self, patches: int) -> int:
        """The budget of what has one by itself, an image or a frame."""
        if self.tokens is None:
            # 1e-9: 0.29 * 100 is 28.999999999999996 in floating point and means 29
            return min(patches, max(1, math.floor(self.ratio * patches + 1e-9)))
        if self.strict and self._number > patches:
            raise VTCError(f"tokens: got {self._number}, but the image has {patches} patch tokens")
        return min(self._number, patches)

    @property
    def _number(self) -> int:
        """`tokens` as one number."""
        if self.tokens is None or isinstance(self.tokens, Sequence):
            raise VTCError("tokens: one number per image needs for_image() first")
        return int(self.tokens)

    @property
    def ratio(self) -> float:
        """`retention` as one number, `default_retention` when it is None."""
        if isinstance(self.retention, Mapping):
            raise VTCError("retention: shares by question need for_questions() first")
        if isinstance(self.retention, Sequence):
            raise VTCError("retention: one number per image needs for_image() first")
        return self.default_retention if self.retention is None else float(self.retention)


def _each(value: Any) -> Sequence[Any]:
    if value is None:
        return ()
    if isinstance(value, Mapping):
        return list(value.values())
    return value if isinstance(value, Sequence) and not isinstance(value, str) else (value,)


def _plain(value: Any) -> Any:
    """NumPy numbers as Python's, also in a list; other sequences as lists."""
    if isinstance(value, Sequence):
        return (tuple if isinstance(value, tuple) else list)(_plain(each) for each in value)
    return value.item() if hasattr(value, "item") else value


def _by_image(cls: type[Method]) -> bool:
    """Whether the class that has the last word defines `compress` and nothing for batches."""
    for base in cls.__mro__:
        if "compress_batch" in base.__dict__ or "select" in base.__dict__:
            return False
        if "compress" in base.__dict__:
            return True
    return True


def _guarded(compress: Compress) -> Compress:
    """`compress` with the identity short cut and the checks on what it returns."""

    @functools.wraps(compress)
    def wrapper(self: Method, tokens: VisualTokens) -> CompressedTokens:
        if tokens.frames > 1 and self.video == "frame":
            return join_frames(tokens, [wrapper(self, frame) for frame in frames_of(tokens)])
        if self.is_identity(tokens):
            return keep_patches(tokens, tokens.valid)
        self.check()
        out = compress(self, tokens)
        _guards.check([self], [tokens], [out])
        return out

    return wrapper


def _guarded_batch(compress_batch: CompressBatch) -> CompressBatch:
    """`compress_batch` with the checks on what it returns, which may be a `Selection`."""

    @functools.wraps(compress_batch)
    def wrapper(self: Method, batch: ImageBatch) -> list[CompressedTokens]:
        self.check()
        out: Any = compress_batch(self, batch)
        if isinstance(out, Selection):
            _guards.check_selection(batch, out)
            return _guards.applied(batch, out)
        _guards.check(batch.methods, batch.images, out, batch.budgets)
        return out

    return wrapper


def _guarded_select(select: Select) -> Select:
    """`select` with the checks on what it decides, before anything is gathered."""

    @functools.wraps(select)
    def wrapper(self: Method, batch: ImageBatch) -> Selection:
        self.check()
        out = select(self, batch)
        if not isinstance(out, Selection):
            raise VTCError(
                f"method {self.name!r} returned {type(out).__name__} from select, expected Selection"
            )
        _guards.check_selection(batch, out)
        return out

    return wrapper


def _guarded_all(compress_all: Callable[..., Any]) -> Callable[..., Any]:
    """`compress_all` of a class of its own, with the checks on what it returns."""

    @functools.wraps(compress_all)
    def wrapper(
        self: Method, images: Sequence[VisualTokens], *args: Any, **kwargs: Any
    ) -> list[CompressedTokens]:
        given = inspect.signature(Method.compress_all).bind(self, images, *args, **kwargs)
        given.apply_defaults()
        numbers, count = given.arguments["numbers"], given.arguments["count"]
        first = given.arguments["first"]
        numbers = range(first, first + len(images)) if numbers is None else numbers
        count = len(images) if count is None else count
        out = compress_all(self, images, *args, **kwargs)
        _guards.check([self.for_image(number, count) for number in numbers], images, out)
        return out

    return wrapper


#: what a subclass may define, and how it is guarded
_GUARDS: dict[str, Callable[[Any], Any]] = {
    "compress": _guarded,
    "select": _guarded_select,
    "compress_batch": _guarded_batch,
    "compress_all": _guarded_all,
}
