"""PruneVid, first stage: what does not move is averaged over time, the rest clustered in its frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from vtc.batch import ImageBatch
from vtc.functional.budget import apportion
from vtc.functional.density_peaks import clusters
from vtc.functional.prunevid import over_windows, stillness, windows
from vtc.functional.ragged import to_device, to_host, true_places
from vtc.methods import _fields
from vtc.methods.compares_frames import ComparesFrames
from vtc.registry import register_method
from vtc.selection import Selection


class Sets(NamedTuple):
    """Static tokens of G windows, then the other tokens of S frames: R = G + S sets of N places.

    Attributes:
        window: int64 `[S]`, NumPy, the window of each frame.
        static: bool `[G, N]`.
        share: int64 `[R]`, NumPy, tokens that are left of each set.
        sources: int64 `[R]`, NumPy, tokens that it is made of.
        centre: int64 `[R, N]`, the place that each token goes to.
        order: int64 `[R, N]`, places by falling peak score.
    """

    window: np.ndarray
    static: Tensor
    share: np.ndarray
    sources: np.ndarray
    centre: Tensor
    order: Tensor


@register_method
@dataclass
class PruneVid(ComparesFrames):
    """Cuts a clip into windows by clustering its frames. Places whose tokens are alike all through a
    window are static and averaged over it; these, and the other tokens of each frame, are then
    clustered by density peaks and replaced by the clusters' means.

    Without a budget sets of more than 14 tokens are halved. A budget is shared by the sets in
    proportion to their sizes [ours]; where static places would leave fewer tokens than it allows, only
    the stillest are averaged. A token stands at its cluster's centre, a static one in the window's first
    frame; officially positions are made up. An image is a window of one frame, each tile of one with
    crops too: it is only clustered.

    Officially random noise breaks ties in density, here the first token is the denser; clips of fewer
    than four frames fail, here they are one window. The second stage, in the language model, is not
    here. Waits for the device twice: for the windows, and for the sizes of the sets.

    Paper: Huang et al., "PruneVid: Visual Token Pruning for Efficient Video Large Language Models"
    (arXiv 2412.16117). Code: Visual-AI/PruneVid@b12600c (CC BY-NC-SA 4.0): written from the maths.

    Attributes:
        temporal_segment_ratio: 0.25. Clusters of frames, as a share of their number [code].
        tau: 0.8. Mean cosine above which a place is static [code].
        cluster_ratio: 0.5. Clusters of a set as a share of its tokens, without a budget [code].
        k: 7. Neighbours, a token itself among them, for the density [code].
    """

    temporal_segment_ratio: float = 0.25
    tau: float = 0.8
    cluster_ratio: float = 0.5
    k: int = 7

    name: ClassVar[str] = "prunevid"
    paper: ClassVar[str] = "arXiv 2412.16117"
    adaptive: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        _fields.number("temporal_segment_ratio", self.temporal_segment_ratio, 0, 1)
        _fields.number("tau", self.tau, -1, 1)
        _fields.number("cluster_ratio", self.cluster_ratio, 0, 1)
        _fields.whole("k", self.k, 1)

    def windows(self, batch: ImageBatch) -> list[list[int]]:
        """Frames of each window of each clip."""
        if batch.images[0].tile_grid is not None:
            return [[1] * tiles for tiles in batch.tiles]
        real = batch.tables.valid[..., None]
        total = batch.features.detach().float().masked_fill(~real, 0).sum(1)
        mean = batch.padded(total / real.sum(1).clamp(min=1), 0)
        wanted = [max(int(n * self.temporal_segment_ratio), 1) for n in batch.tiles]
        label, _ = clusters(mean, batch.tables.here, to_device(wanted, mean), self.k)
        return [
            windows(row[:n]) for row, n in zip(to_host(label).tolist(), batch.tiles, strict=True)
        ]

    def sets(self, batch: ImageBatch) -> Sets:
        """Which tokens go together, and what is left of them."""
        valid, found = batch.tables.valid, self.windows(batch)
        frames = np.concatenate(found)
        window = np.arange(len(frames)).repeat(frames)
        image = np.arange(len(batch)).repeat([len(some) for some in found])  # of each window
        at, long = (
            to_device(torch.from_numpy(window), valid),
            to_device(torch.from_numpy(frames), valid),
        )
        static = valid.new_zeros(len(frames), valid.shape[1])
        if moves := bool((frames > 1).any()):  # in a window of one frame nothing is static
            still = stillness(batch.features, valid, long)
            static = still > self.tau
            if not self.counts_itself:
                static &= _affordable(still.masked_fill(~static, -torch.inf), long, image, batch)

        dynamic = valid & ~static[at]
        members = torch.cat([static, dynamic])
        size = to_host(members.sum(1)).numpy()
        if self.counts_itself:
            half = np.floor(size * self.cluster_ratio).astype(np.int64)
            share = np.where(size > 14, np.maximum(half, 1), size)
        else:
            owner = np.concatenate([image, image[window]])
            table = torch.from_numpy(np.where(owner == np.arange(len(batch))[:, None], size, 0))
            share = apportion(table, table, batch.budgets).sum(0).numpy()
        tokens, first = batch.features.detach().float(), len(frames)
        if moves:
            tokens, first = torch.cat([over_windows(tokens, long) / long[:, None, None], tokens]), 0
        count = to_device(torch.from_numpy(share[first:]), valid)
        # without static sets where all are empty
        made = clusters(tokens, members[first:], count, self.k)
        centre, order = (pad(x, (0, 0, first, 0)) for x in made)
        sources = size * np.concatenate([frames, np.ones_like(window)])
        return Sets(window, static, share, np.where(share > 0, sources, 0), centre, order)

    def select(self, batch: ImageBatch) -> Selection:
        own, valid = self.sets(batch), batch.tables.valid
        frames, patches = valid.shape
        begin = _frames(own.window)
        window, first, share = (
            to_device(torch.from_numpy(x), valid) for x in (own.window, begin, own.share)
        )
        frame, place = (torch.arange(n, device=valid.device) for n in (frames, patches))
        still = own.static[window]
        row = torch.where(still, window[:, None], len(own.static) + frame[:, None])
        stand = torch.where(still, first[window][:, None], frame[:, None])
        target = (stand * patches + own.centre[row, place]).flatten()

        entry = true_places((valid & (share[row] > 0)).flatten(), int(own.sources.sum()))
        target = target[entry]
        size = torch.zeros(valid.numel(), device=valid.device)
        size.index_add_(0, target, torch.ones_like(target, dtype=torch.float32))
        kept = true_places(size > 0, int(own.share.sum()))
        return batch.merge(
            batch.tables.packed.flatten()[kept],
            ((size > 0).cumsum(0) - 1)[target],
            entry,
            1 / size[target],
            size[kept],
            *(
                batch.per_image(np.bincount(begin, x, frames).astype(int).tolist())
                for x in (own.share, own.sources)
            ),
        )


def _frames(window: np.ndarray) -> np.ndarray:
    """The first frame of each set's tokens."""
    first = np.flatnonzero(np.diff(window, prepend=-1))
    return np.concatenate([first, np.arange(len(window))])


def _affordable(still: Tensor, frames: Tensor, image: np.ndarray, batch: ImageBatch) -> Tensor:
    """Bool `[G, N]`: the stillest places, as many as leave each image its budget.

    Args:
        still: `[G, N]`, -inf for places that are not static.
        frames: int64 `[G]`, frames of each window; all but one token of a static place go.
        image: int64 `[G]`, of each window.
    """
    patches, values = still.shape[1], still.flatten()
    start = np.searchsorted(image, np.arange(len(batch))) * patches
    spare = [shape.patches - n for shape, n in zip(batch.shapes, batch.budgets, strict=True)]
    of = to_device(torch.from_numpy(image), still).repeat_interleave(
        patches, output_size=values.numel()
    )
    order = values.sort(descending=True, stable=True).indices
    order = order[of[order].sort(stable=True).indices]
    cost = torch.where(values[order].isfinite(), (frames - 1)[order // patches], 0)
    spent = cost.cumsum(0)
    begin, allowed = to_device(torch.stack([torch.from_numpy(start), torch.tensor(spare)]), still)
    before = (spent - cost)[begin]
    good = values[order].isfinite() & (spent - before[of] <= allowed[of])
    return torch.zeros_like(good).scatter_(0, order, good).view(still.shape)
