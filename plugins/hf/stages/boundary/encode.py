"""From pixels to compressed visual tokens: the model's own encoder, the signals, the method."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.functional.ragged import cat_views, join_indices
from vtc.plugins.hf.adapters.base import Call
from vtc.plugins.hf.signals import Signals
from vtc.plugins.hf.stages.boundary.cut import Cut, compress_seen, counted_whole, seen_alone
from vtc.plugins.hf.stages.boundary.early import Early, decide
from vtc.plugins.hf.stages.boundary.pictures import behind, check_hidden, pictures, smaller
from vtc.plugins.hf.stages.boundary.tower import awake, run_encoder
from vtc.plugins.hf.typing import Model
from vtc.plugins.model.compaction import image_runs, reading_order
from vtc.plugins.model.fingerprint import content_seeds
from vtc.plugins.model.inputs import PIXELS
from vtc.plugins.model.smaller.base import Smaller
from vtc.plugins.model.units import Unit, places
from vtc.report import ImageReport
from vtc.tokens import CompressedTokens, VisualTokens

if TYPE_CHECKING:
    from vtc.methods.base import Method
    from vtc.plugins.hf.patch import Patch


@dataclass
class Encoded:
    """The images or clips of one call, all of one modality.

    Attributes:
        modality: `"image"` or `"video"`.
        output: what the model's encoder function returned, its `pooler_output` replaced by the list of
            compressed features, one `[M, D]` an image.
        lengths: placeholders of each image in the caller's prompt, those that its mask hides included.
        anchors: int64 `[M]` an image, see `CompressedTokens.anchor`.
        reports: one an image.
        numbers: of each image among all images and clips of the prompts, in reading order.
        identity: True when no image lost a token that is seen.
        left: of each image that the prompt's mask hides in part, int64 `[L']`, the tokens that are seen.
        seconds: host time from the end of the encoder to the compressed tokens, signals included.
        smaller: the pictures that were made smaller, None where no method does.
        weights: float `[M]` an image, how many patches each token stands for; none where attention does
            not go by them.
    """

    modality: str
    output: Any
    lengths: list[int]
    anchors: list[Tensor]
    reports: list[ImageReport]
    numbers: list[int]
    identity: bool
    seconds: float
    left: dict[int, Tensor] = field(default_factory=dict)
    smaller: Smaller | None = None
    weights: list[Tensor] = field(default_factory=list)

    @property
    def resized(self) -> bool:
        """Whether a picture was made smaller."""
        return self.smaller is not None and any(map(self.smaller.changed, range(len(self.lengths))))

    @property
    def seats(self) -> list[Tensor]:
        """Of each image, int64: the places of the tokens that it has before any is dropped."""
        out = []
        for index, length in enumerate(self.lengths):
            if index in self.left:
                out.append(self.left[index])
            elif self.smaller is not None and self.smaller.changed(index):
                out.append(self.smaller.seats[index])
            else:
                out.append(torch.arange(length))
        return [seat.to(self.anchors[0].device) for seat in out]

    def settle(self) -> None:
        """Take out what is hidden where no image lost anything else: the prompt is shortened after all,
        for the sake of other images."""
        if self.identity and self.left:
            parts = self.output.pooler_output
            self.output.pooler_output = [
                part[self.anchors[i]] if i in self.left else part for i, part in enumerate(parts)
            ]
            _gather_deepstack(self.output, self.lengths, self.anchors)


def some(pixels: Any) -> bool:
    """Whether there are any; none of them is none."""
    return pixels is not None and not (isinstance(pixels, Tensor) and pixels.numel() == 0)


def encode(
    patch: Patch,
    base: Model,
    kwargs: dict[str, Any],
    ids: Tensor | None,
    placeholders: dict[str, Tensor],
    shown: dict[str, Tensor],
    questions: Callable[[str, list[int]], list[str]],
    visible: Callable[[str, list[int]], list[Tensor]] | None = None,
) -> list[Encoded]:
    """Run the encoders on the pixels in `kwargs` and compress every image and clip.

    Args:
        ids: token ids of the prompts `[B, L]`, None when the caller gave embeddings.
        placeholders: modality -> bool `[B, L]`, the placeholders to fill.
        shown: the same on the CPU.
        questions: given a modality and the number of tokens of each of its images, the text that each
            is asked about; called only for methods that read text, or whose budgets hang on it.
        visible: given the same, bool `[L]` (CPU) of each image, False for tokens that the prompt's mask
            hides; None where it hides none.
    """
    shows = {m: p for m, p in placeholders.items() if some(kwargs.get(PIXELS[m]))}

    def run(modality: str) -> Call:
        given = kwargs if modality not in small else {**kwargs, **small[modality].kwargs}
        more = {} if modality not in early else early[modality].arguments
        return run_encoder(patch, base, given, modality, ids, shows[modality], more)

    small: dict[str, Smaller] = {}
    early: dict[str, Early] = {}
    with awake(base):  # behind the encoders as well, for the newline
        ahead = patch.resize is not None or patch.method.early
        if ahead:  # what there is has to be known before it is encoded
            given = {m: pictures(base.config, m, kwargs, ids, p) for m, p in shows.items()}
            full = {m: each.units for m, each in given.items()}
        else:
            calls = {modality: run(modality) for modality in shows}
        began = time.perf_counter()
        if not ahead:
            full = {m: patch.adapter.units(call) for m, call in calls.items()}
        numbers = dict(zip(full, _numbers(list(full.items()), shown), strict=True))
        count = sum(map(len, numbers.values()))
        left: dict[str, dict[int, Tensor]] = {
            m: {} if visible is None else _left(visible(m, [len(u.layout) for u in units]))
            for m, units in full.items()
        }
        method = behind(patch, full, numbers)
        if method.by_question:
            method = method.for_questions(_asked(questions, full, numbers))
        if ahead:
            for m, each in given.items():
                if patch.resize is not None:
                    small[m] = smaller(patch, each, numbers[m], count)
                    check_hidden(small[m], left[m])
                if patch.method.early:
                    shrunk = {} if m not in small else small[m].kwargs
                    units = full[m] if m not in small else small[m].units
                    early[m] = decide(
                        patch,
                        base,
                        {**kwargs, **shrunk},
                        m,
                        units,
                        method,
                        numbers[m],
                        count,
                        left[m],
                    )
        seconds = time.perf_counter() - began
        if ahead:
            calls = {modality: run(modality) for modality in shows}
        done = []
        for m, call in calls.items():
            units = full[m] if m not in small else small[m].units
            done.append(
                compress_call(
                    patch,
                    call,
                    units,
                    questions,
                    numbers[m],
                    count,
                    left[m],
                    method,
                    small.get(m),
                    early.get(m),
                )
            )
            done[-1].seconds += seconds / len(calls)
    return done


def _asked(
    questions: Callable[[str, list[int]], list[str]],
    full: Mapping[str, list[Unit]],
    numbers: Mapping[str, Sequence[int]],
) -> list[str]:
    """What is asked about each image and clip of a call, in reading order."""
    found: dict[int, str] = {}
    for modality, units in full.items():
        texts = questions(modality, [len(unit.layout) for unit in units])
        found.update(zip(numbers[modality], texts, strict=True))
    return [found[number] for number in range(len(found))]


def _numbers(calls: list[tuple[str, list[Unit]]], shown: dict[str, Tensor]) -> list[list[int]]:
    """The number of each image and clip of each call, as the prompts show them."""
    if len(calls) == 1:
        return [list(range(len(units))) for _, units in calls]
    runs = [
        run
        for modality, units in calls
        for run in image_runs(shown[modality], [len(unit.layout) for unit in units])
    ]
    rank = {image: number for number, image in enumerate(reading_order(runs))}
    left = iter(range(len(runs)))
    return [[rank[next(left)] for _ in units] for _, units in calls]


def compress_call(
    patch: Patch,
    call: Call,
    units: list[Unit],
    questions: Callable[[str, list[int]], list[str]],
    numbers: Sequence[int],
    count: int,
    left: Mapping[int, Tensor] = MappingProxyType({}),
    method: Method | None = None,
    small: Smaller | None = None,
    early: Early | None = None,
) -> Encoded:
    """Compress what one encoder call made.

    Args:
        units: the images or clips of the call.
        questions: see `encode`.
        numbers: of each among all images and clips of the prompts, in reading order.
        count: of all calls.
        left: of each image that the prompt's mask hides in part, see `Encoded.left`.
        method: with budgets for these images; that of the patch where it says nothing else.
        small: the pictures that were made smaller, if any.
        early: what the method has decided before they were encoded, if it does.
    """
    start = time.perf_counter()
    method, left = patch.method if method is None else method, dict(left)
    full = units if small is None else small.full
    resized = [] if small is None else [i for i in range(len(units)) if small.changed(i)]
    lengths = [len(unit.layout) for unit in units] if early is None else early.encoded
    packed = cat_views([p.flatten(0, -2) for p in call.output.pooler_output])
    if sum(lengths) != len(packed):
        raise VTCError(
            f"model: packed {len(units)} {call.modality}(s) into {len(packed)} tokens, their layout "
            f"says {sum(lengths)}; is this a modified {type(call.base).__name__}?"
        )
    parts = list(packed.split(lengths))
    long = [len(unit.layout) for unit in full]
    if early is None:
        texts = questions(call.modality, long) if patch.reads_text else None
        cut = _cut(patch, call, units, method, numbers, count, left, parts, texts)
        _to_language(patch, call, units, cut.outs, parts, cut.changed)
        kept = cut.anchors
    else:
        cut = early
        whole = [torch.arange(length, device=packed.device) for length in lengths]
        kept = [
            left.get(i, each).to(each) if i not in cut.changed else each
            for i, each in enumerate(whole)
        ]
    anchors = cut.anchors
    # where nothing is lost, all stays as the model packed it, what is hidden too; see `settle`
    if cut.changed or resized:
        for index in set(left) - set(cut.changed):
            parts[index] = parts[index][kept[index]]
        _gather_deepstack(call.output, lengths, kept)
    for index in resized:
        assert small is not None, "who else changed their size"
        anchors[index] = small.seats[index].to(anchors[index].device)[anchors[index]]
    call.output.pooler_output = parts
    seconds = time.perf_counter() - start
    fit = patch.adapter.fit(call.base, call.modality)
    asking = [(patch.resize or method).for_image(number, count) for number in numbers]
    reports = [
        ImageReport.from_tokens(
            image,
            out,
            seconds / len(units),
            fit=fit,
            asked=asking[i].asked(image if patch.resize is None else full[i].packing),
            full=full[i].packing if i in resized and i not in left else None,
        )
        for i, (image, out) in enumerate(zip(cut.tokens, cut.outs, strict=True))
    ]
    return Encoded(
        call.modality,
        call.output,
        long,
        anchors,
        reports,
        list(numbers),
        not (cut.changed or resized),
        seconds,
        left,
        small,
        [out.weight for out in cut.outs] if method.weighs else [],
    )


def _left(visible: list[Tensor]) -> dict[int, Tensor]:
    """The tokens that are seen of each image of which some are hidden, see `Encoded.left`."""
    return {i: v.nonzero().squeeze(1) for i, v in enumerate(visible) if not bool(v.all())}


def _cut(
    patch: Patch,
    call: Call,
    units: list[Unit],
    method: Method,
    numbers: Sequence[int],
    count: int,
    left: dict[int, Tensor],
    parts: list[Tensor],
    texts: list[str] | None,
) -> Cut:
    """What the method leaves of what the tower has encoded, `parts` being every image packed."""
    signals = Signals(patch, call)
    tokens = _visual_tokens(patch, call, units, parts, signals.cell)
    for index, seen in left.items():
        tokens[index] = replace(tokens[index], packing=seen_alone(units[index].packing, seen))
    changed = []
    for index, (image, place) in enumerate(zip(tokens, signals.places(units), strict=True)):
        identity = method.for_image(numbers[index], count).is_identity(image)
        if len(image.layout) == 0 or identity:
            continue
        changed.append(index)
        text = None if texts is None else texts[index]
        captured = signals.of(place, text, units[index], parts[index])
        tokens[index] = replace(image, signals=captured)
    outs = compress_seen(method, tokens, numbers, count)
    counted_whole(outs, left)
    return Cut(tokens, outs, changed)


def _visual_tokens(
    patch: Patch, call: Call, units: list[Unit], packed: list[Tensor], cell: tuple[int, int]
) -> list[VisualTokens]:
    """Every image as the method sees it, still without signals."""
    record, method, newline = call.record, patch.method, patch.adapter.newline(call.base)
    seeds = [0] * len(units)
    if method.draws:
        pixels = [patch.adapter.pixels(call, units, index) for index in range(len(units))]
        seeds = content_seeds(pixels)
    rows = None
    if not all(unit.fused for unit in units):
        rows = record.projector_input if method.stage == "vision" else record.projector_output
        if rows is None:
            raise VTCError("model: its projector was not called; was it replaced after apply()?")
        rows = rows[:, int(units[0].packing.lead) :].flatten(0, 1)
    return [
        VisualTokens(
            unit.unpack(part) if unit.fused or rows is None else place.patches_of(rows),
            unit.packing,
            newline=newline if unit.packing.newline else None,
            content_seed=seed,
            cell=cell,
        )
        for unit, place, part, seed in zip(units, places(units), packed, seeds, strict=True)
    ]


def _to_language(
    patch: Patch,
    call: Call,
    units: list[Unit],
    outs: list[CompressedTokens],
    parts: list[Tensor],
    changed: list[int],
) -> None:
    """Put the compressed features in place of the packed ones of the images `changed`.

    They get the language model's width; separators are as the model packed them.
    """
    vision = patch.method.stage == "vision"
    for fused in (False, True):
        mine = [i for i in changed if units[i].fused == fused]
        if not mine:
            continue
        some = [outs[i] for i in mine]
        projected = any(out.projected for out in some)
        if fused and projected:
            raise VTCError(
                f"projector: one of the method's own cannot take the place of "
                f"{type(call.base).__name__}'s, behind which this image is scaled down; 'pool' can "
                "work on it"
            )
        features = cat_views([out.features for out in some])
        if vision and not fused and not projected:
            project = patch.adapter.projector(call.base)
            assert project is not None, "whose input was recorded"
            features = project(features[None])[0]
        if features.shape[-1] != parts[mine[0]].shape[-1]:
            raise VTCError(
                f"method {patch.method.name!r} returned projected features of width "
                f"{features.shape[-1]}, the language model reads {parts[mine[0]].shape[-1]}"
            )
        if any(units[i].separated for i in mine):
            packed = cat_views([parts[i] for i in mine])
            anchors = [out.anchor for out in some]
            own = packed[join_indices(anchors, [len(parts[i]) for i in mine])]
            patches = cat_views([out.patch for out in some]) >= 0
            features = torch.where(patches[:, None], features, own.to(features.dtype))
        sizes_after = [len(outs[i]) for i in mine]
        for i, part in zip(mine, features.to(parts[0].dtype).split(sizes_after), strict=True):
            parts[i] = part


def _gather_deepstack(output: Any, lengths: list[int], anchors: list[Tensor]) -> None:
    """Features for deeper decoder layers lose the same tokens; merged ones keep their anchor's."""
    levels = getattr(output, "deepstack_features", None)
    if levels is None:
        return
    where = join_indices(anchors, lengths)
    after = [len(anchor) for anchor in anchors]
    output.deepstack_features = [
        list(torch.cat(list(level))[where.to(level[0].device)].split(after)) for level in levels
    ]
