"""What a compression method sees (`VisualTokens`) and what it returns (`CompressedTokens`)."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vtc.errors import VTCError, nearest
from vtc.kernels.merge import weighted_merge
from vtc.packing import Geometry, Packed, Packing

#: Every signal a method can ask for. T tiles, N patches a tile, C width of the vision tower,
#: P width of the shared text-image space. "Layer" is the one the request names (default: the last).
#: Where the projector fuses patches into one token, N counts the fused tokens: attention is the sum over
#: the patches of a token, everything else their mean.
SIGNALS: Mapping[str, str] = MappingProxyType(
    {
        "cls_logits": "[T, N] CLS-to-patch attention logits of one layer, scaled by head_dim**-0.5, "
        "before the softmax, mean over heads; may be negative",
        "cls_attention": "[T, N] CLS-to-patch attention of one layer: softmax over all N+1 keys, mean "
        "over heads, CLS column dropped, not renormalised",
        "attention_received": "[T, N] attention each patch receives in one layer, mean over the queries "
        "that see it and over heads; sums to 1 over the keys of a tile. Stands in for CLS where a tower "
        "has none",
        "cls_query": "[T, C] CLS query of one layer, heads concatenated, not scaled",
        "keys": "[T, N+1, C] keys of one layer, CLS first, heads concatenated (N rows without CLS)",
        "key_mean": "[T, N+1, d] keys of one layer, mean over heads, CLS first (N rows without CLS)",
        "cls_hidden": "[T, C] CLS row of the hidden state that one layer makes",
        "projector_input": "[T, N, C] what the projector reads, for methods that work behind it",
        "last_hidden": "[T, N, C] patch rows of the tower's last layer, before any final norm",
        "patch_embedding": "[T, N, P] last_hidden projected into the shared text-image space",
        "pool_attention": "[T, N] attention of the tower's pooling head, mean over heads",
        "pool_output": "[T, C] output of the tower's pooling head",
        "pixels": "[T, N, values] the pixels behind each token, scaled as the tower reads them",
        "text_embedding": "[P] embedding of the question in the shared text-image space, not normalised",
        "text_segments": "[M, P] the same for pieces of the question of at most 77 tokens, one a row",
        "text_sequence": "[L, P] projected last hidden states of the text tower, a row a token of the "
        "question",
        "question_tokens": "[L, D] the question's tokens as the language model embeds them",
        "text_similarity": "[T, N] likeness of each visual token, as the language model reads it, to "
        "the question's tokens: dot products, mean over these, see functional.similarity; 0 for patches "
        "that have no token",
    }
)

#: those that belong to the question and not to tiles; methods ask for them by these names
OF_THE_QUESTION = frozenset({"text_embedding", "text_segments", "text_sequence", "question_tokens"})


@dataclass(frozen=True)
class SignalRequest:
    """One tensor that a method wants captured while the vision tower runs.

    Attributes:
        kind: a key of `SIGNALS`.
        layer: encoder layer; an int counts as Python indices do (-1 is the last), a float in
            (0, 1) is a fraction of the depth, and "read" is the layer whose output the features are.
        norm: for "patch_embedding": whether the tower's final norm goes over the hidden states first.
    """

    kind: str
    layer: int | float | str = -1
    norm: bool = False

    def __post_init__(self) -> None:
        if self.kind not in SIGNALS:
            raise VTCError(
                f"signal: got {self.kind!r}, known are {', '.join(SIGNALS)}"
                f"{nearest(self.kind, SIGNALS)}"
            )
        if isinstance(self.layer, str) and self.layer != "read":
            raise VTCError(f"layer: got {self.layer!r}, allowed are a number and 'read'")


_NOT_GIVEN: Any = object()  # None is a value


@dataclass(frozen=True, init=False)
class VisualTokens(Packed):
    """The visual tokens of one image or clip, before or after the projector (see `Method.stage`).

    `VisualTokens(features, packing)`; in place of a packing, or in change of it, its fields may be given
    one by one: `VisualTokens(features, (8, 8), (2, 2), size)`. Whether there is a newline, and how many
    frames a clip has, follows from the tensors.

    Attributes:
        features: `[T, N, D]`, T tiles (thumbnail first) or frames of N patches each.
        packing: how the tiles become a sequence.
        newline: `[D_lm]` separator embedding that closes each canvas row, None when the model has
            none.
        signals: what the method asked for, by name; see `SIGNALS`.
        content_seed: a hash of the image's pixels, so that methods that draw at random give an image
            the same draw wherever it stands in a batch.
        cell: `(rows, cols)` of the patches that a token is made of, where signals are given patch by
            patch (`Method.by_patch`); N of `SIGNALS` then counts patches, row-major.

    Raises:
        VTCError: the features do not fit the packing.
    """

    features: Tensor
    packing: Packing
    newline: Tensor | None
    signals: Mapping[str, Tensor]
    content_seed: int
    cell: tuple[int, int]

    def __init__(
        self,
        features: Tensor,
        packing: Packing | tuple[int, int] | None = None,
        tile_grid: tuple[int, int] | None = _NOT_GIVEN,
        image_size: tuple[int, int] | None = _NOT_GIVEN,
        newline: Tensor | None = None,
        signals: Mapping[str, Tensor] = MappingProxyType({}),
        *,
        content_seed: int = 0,
        cell: tuple[int, int] = (1, 1),
        **fields: Any,
    ) -> None:
        if features.dim() != 3:
            raise VTCError(
                f"features: got shape {tuple(features.shape)}, expected [tiles, patches, width]"
            )
        tiles, patches, _ = features.shape
        for name, pair in (("tile_grid", tile_grid), ("image_size", image_size)):
            if pair is not _NOT_GIVEN:
                fields[name] = pair
        own: dict[str, Any] = {"newline": newline is not None, "tiles": tiles}
        if not isinstance(packing, Packing):
            packing = Packing(**{"patch_grid": packing, **own, **fields})
        elif fields or (packing.newline, packing.tiles) != (newline is not None, tiles):
            packing = replace(packing, **own, **fields)
        rows, cols = packing.patch_grid
        if rows * cols != patches:
            raise VTCError(
                f"patch_grid: got {packing.patch_grid}, but a tile has {patches} patches"
            )
        for name, value in (
            ("features", features),
            ("packing", packing),
            ("newline", newline),
            ("signals", signals),
            ("content_seed", content_seed),
            ("cell", cell),
        ):
            object.__setattr__(self, name, value)

    @property
    def geometry(self) -> Geometry:
        """The index tables of this image's packing; shared with others, so never change them."""
        return self.packing.geometry

    @property
    def valid(self) -> Tensor:
        """Bool `[T, N]`, on the CPU: the patches that survive un-padding."""
        return self.packing.valid

    @property
    def num_patches(self) -> int:
        """Patch tokens of the image, un-padded, all tiles together: the base of `retention`."""
        return self.packing.patches

    def signal(self, name: str) -> Tensor:
        """The captured signal `name`; a clear error when the model could not give it."""
        if name not in self.signals:
            have = ", ".join(self.signals) or "none"
            raise VTCError(f"signals: {name!r} is needed by this method, captured are: {have}")
        return self.signals[name]


@dataclass(frozen=True)
class MergeIndex:
    """Which source patches each output token is made of: a sparse `[M, T*N]` matrix.

    The same object moves values both ways, so that sizes, positions or pictures can follow the
    features (as ToMe's merge closures do).

    Attributes:
        output: int64 `[K]`, output token of each entry.
        source: int64 `[K]`, source patch as `tile * N + patch`.
        weight: float `[K]`, coefficient of that source in the output token.
        num_outputs: M.
        num_sources: T * N.
    """

    output: Tensor
    source: Tensor
    weight: Tensor
    num_outputs: int
    num_sources: int

    def merge(self, values: Tensor) -> Tensor:
        """Weighted sums: `[T*N, ...]` source values to `[M, ...]` output values."""
        return weighted_merge(values, self.output, self.source, self.weight, self.num_outputs)

    def spread(self, values: Tensor, fill: float = 0.0) -> Tensor:
        """Output values `[M, ...]` back over their source patches, `[T*N, ...]`.

        A source with several outputs gets their mean, one with none gets `fill`.
        """
        out = values.new_zeros(self.num_sources, *values.shape[1:])
        out.index_add_(0, self.source, values[self.output])
        count = torch.bincount(self.source, minlength=self.num_sources)
        shape = (-1, *[1] * (values.dim() - 1))
        mean = out / count.clamp(min=1).to(out).reshape(shape)
        return torch.where(count.reshape(shape) > 0, mean, torch.full_like(mean, fill))


class Gathered(NamedTuple):
    """What is known of tokens without a look at them, from whoever put them together.

    It holds of the very tensors noted here, as long as nothing writes to them (which nobody counts in
    `torch.inference_mode`).

    Attributes:
        shape: of the image that they are of.
        patches: how many of the tokens stand for patches, None where that is not known.
        right: whether all that they say is right: places, weights, merges, and features, which are rows
            of the input or newlines, or sums of some with these weights.
        fields: features, tile, patch, anchor and weight; then output, source and weight of a merge.
        versions: of these; none where writing is not counted.
    """

    shape: Geometry
    patches: int | None
    right: bool
    fields: tuple[Tensor, ...]
    versions: tuple[int, ...]

    @classmethod
    def of(cls, shape: Geometry, patches: int | None, right: bool, *fields: Tensor) -> Gathered:
        """Of tensors as they are now."""
        versions = [] if fields[0].is_inference() else [x._version for x in fields]
        return cls(shape, patches, right, fields, tuple(versions))


@dataclass(frozen=True)
class CompressedTokens:
    """The tokens that go on to the language model, in order.

    Attributes:
        features: `[M, D]`.
        tile: int64 `[M]`, source tile, -1 for a separator.
        patch: int64 `[M]`, source patch, -1 for a separator; of a merged token, its main source.
        anchor: int64 `[M]`, index in the uncompressed packed sequence that gives the position.
        weight: float `[M]`, how many source tokens it stands for (1 for a kept one).
        merged: the sources of merged tokens, None when tokens are only selected.
        projected: True when `features` already have the language model's width although the
            method works before the projector.
        gathered: what is known without asking the device; filled in by what puts tokens together here.
    """

    features: Tensor
    tile: Tensor
    patch: Tensor
    anchor: Tensor
    weight: Tensor
    merged: MergeIndex | None = None
    projected: bool = False
    gathered: Gathered | None = field(default=None, repr=False, compare=False)

    def __len__(self) -> int:
        return int(self.features.shape[0])

    @property
    def num_patches(self) -> int | None:
        """How many tokens stand for patches; None where only the device knows."""
        known = self.gathered
        if known is not None and known.fields[2] is self.patch and known.patches is not None:
            return known.patches
        return int(self.is_patch.sum()) if self.patch.device.type == "cpu" else None

    def known_right(self, shape: Geometry) -> bool:
        """Whether the tokens are as they were put together of an image of this shape, and were right."""
        known = self.gathered
        if known is None or not known.right or known.shape is not shape:
            return False
        mine = [self.features, self.tile, self.patch, self.anchor, self.weight]
        if self.merged is not None:
            mine += [self.merged.output, self.merged.source, self.merged.weight]
        if len(mine) != len(known.fields) or not all(map(operator.is_, mine, known.fields)):
            return False
        return not known.versions or known.versions == tuple([x._version for x in mine])

    @property
    def is_patch(self) -> Tensor:
        """Bool `[M]`: True for tokens that stand for patches, False for separators."""
        return self.patch >= 0

    def replace(self, **changes: object) -> CompressedTokens:
        """A copy with some fields changed."""
        return replace(self, **changes)  # type: ignore[arg-type]


def packed_index(tokens: VisualTokens) -> Tensor:
    """Int64 `[T, N]`: where each patch stands in the packed sequence, -1 for padding."""
    return tokens.geometry.packed


def keep_patches(tokens: VisualTokens, keep: Tensor) -> CompressedTokens:
    """Select patches and leave everything else as it was packed: order, separators, positions.

    Args:
        keep: bool `[T, N]`; padding patches are ignored.
    """
    layout = tokens.layout
    kept = ~layout.is_patch
    kept[layout.is_patch] = keep.cpu()[layout.tile[layout.is_patch], layout.patch[layout.is_patch]]
    anchor = kept.nonzero().squeeze(1)
    return _gathered(tokens, layout.tile[anchor], layout.patch[anchor], anchor, right=True)


def gather_tokens(
    tokens: VisualTokens, tile: Tensor, patch: Tensor, anchor: Tensor
) -> CompressedTokens:
    """Unmerged tokens in the order given; -1 in `patch` stands for the newline.

    Before the projector (`Method.stage == "vision"`) the newline has another width: its rows are
    left zero and the plug-in fills them in behind the projector.
    """
    return _gathered(tokens, tile, patch, anchor, right=False)


def _gathered(
    tokens: VisualTokens, tile: Tensor, patch: Tensor, anchor: Tensor, right: bool
) -> CompressedTokens:
    features = tokens.features
    device, width = features.device, features.shape[-1]
    patches = int((patch >= 0).sum()) if patch.device.type == "cpu" else None
    tile, patch, anchor = (x.to(device) for x in (tile, patch, anchor))
    out = features[tile.clamp(min=0), patch.clamp(min=0)]
    separator = patch < 0
    if tokens.newline is not None and tokens.newline.shape[-1] == width:
        fill = tokens.newline.to(out)
    else:
        fill = out.new_zeros(width)
    out = torch.where(separator[:, None], fill, out)
    weight = torch.ones(len(tile), device=device)
    fields = out, tile, patch, anchor, weight
    return CompressedTokens(*fields, gathered=Gathered.of(tokens.geometry, patches, right, *fields))


def nothing_of(tokens: VisualTokens) -> CompressedTokens:
    """No tokens at all: what is left of an image that the prompt's mask hides whole."""
    none = torch.zeros(0, dtype=torch.long, device=tokens.features.device)
    return CompressedTokens(tokens.features.flatten(0, 1)[:0], none, none, none, none.float())


def frames_of(tokens: VisualTokens) -> list[VisualTokens]:
    """Every frame of a clip as an image of its own, without the separator behind the clip."""
    return [
        VisualTokens(
            tokens.features[i : i + 1],
            tokens.packing.frame(i),
            # all signals but those of the question have the frames in front
            signals={
                k: v if v.dim() == 1 or k in OF_THE_QUESTION else v[i : i + 1]
                for k, v in tokens.signals.items()
            },
            content_seed=tokens.content_seed + i,
            cell=tokens.cell,
        )
        for i in range(tokens.frames)
    ]


def join_frames(tokens: VisualTokens, parts: Sequence[CompressedTokens]) -> CompressedTokens:
    """What is left of every frame as one clip, the separator behind it put back.

    Args:
        tokens: the clip that `frames_of` took apart.
        parts: one for each frame.
    """
    patches, length = tokens.features.shape[1], tokens.packing.frame_length
    hidden = torch.tensor(tokens.packing.hidden, dtype=torch.long)
    tile, patch, anchor, features, weight = [], [], [], [], []
    output, source, share = [], [], []
    done = 0
    for frame, part in enumerate(parts):
        tile.append(torch.where(part.is_patch, part.tile + frame, part.tile))
        patch.append(part.patch)
        anchor.append(part.anchor + frame * length - int((hidden < frame * length).sum()))
        features.append(part.features)
        weight.append(part.weight)
        if part.merged is None:
            mine = part.is_patch.nonzero().squeeze(1)
            entries = mine, part.patch[mine], torch.ones_like(mine, dtype=torch.float32)
        else:
            entries = part.merged.output, part.merged.source, part.merged.weight
        output.append(entries[0] + done)
        source.append(entries[1] + frame * patches)
        share.append(entries[2])
        done += len(part)
    if tokens.newline is not None and not bool((hidden == tokens.frames * length).any()):
        none = torch.tensor([-1])
        end = gather_tokens(tokens, none, none, torch.tensor([len(tokens.layout) - 1]))
        for total, value in (
            (tile, end.tile),
            (patch, end.patch),
            (anchor, end.anchor),
            (features, end.features.to(features[0])),
            (weight, end.weight),
        ):
            total.append(value)
    merged = None
    if any(part.merged is not None for part in parts):
        merged = MergeIndex(
            torch.cat(output),
            torch.cat(source),
            torch.cat(share),
            sum(map(len, tile)),
            tokens.features.shape[0] * patches,
        )
    counts = [part.num_patches for part in parts]
    count = None if None in counts else sum(count for count in counts if count is not None)
    whole = CompressedTokens(
        features=torch.cat(features),
        tile=torch.cat(tile),
        patch=torch.cat(patch),
        anchor=torch.cat(anchor),
        weight=torch.cat(weight),
        merged=merged,
        projected=all(part.projected for part in parts),
    )
    fields = whole.features, whole.tile, whole.patch, whole.anchor, whole.weight
    return whole.replace(gathered=Gathered.of(tokens.geometry, count, False, *fields))
