"""Made-up images with every signal, for the tests of the methods."""

from __future__ import annotations

import functools
from typing import Any

import torch
from hypothesis import strategies as st

from tests import asking
from vtc import VisualTokens, create_method
from vtc.methods.base import Method
from vtc.packing import Packing
from vtc.registry import compared_methods, method_class

WIDTH = 16
METHODS = compared_methods(where="boundary")
#: signals of the question and what the projector reads, and their shapes (behind tiles and patches)
MORE = {
    "text_segments": (2, 12),
    "text_sequence": (6, 12),
    "question_tokens": (7, WIDTH),
    "projector_input": (10,),
}


def image(
    grid: tuple[int, int] = (8, 8),
    crops: tuple[int, int] | None = None,
    size: tuple[int, int] = (600, 400),
    *,
    newline: bool = True,
    has_cls: bool = True,
    unpad: str = "hf",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> VisualTokens:
    """An image with random features and signals; CLS attention is peaky, as in real towers."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    tiles = 1 if crops is None else 1 + crops[0] * crops[1]
    patches = grid[0] * grid[1]
    logits = normal(tiles, patches) * 2
    attention = torch.softmax(logits, 1) * 0.9
    signals = {
        "keys": normal(tiles, patches + has_cls, WIDTH),
        "patch_embedding": normal(tiles, patches, 12),
        "text_embedding": normal(12),
    }
    other = torch.Generator().manual_seed(seed + 1)  # so that the draws of the others stay
    for name, shape in MORE.items():
        shape = (tiles, patches, *shape) if name == "projector_input" else shape
        signals[name] = torch.randn(*shape, generator=other)
    if has_cls:
        query = normal(tiles, WIDTH) * 3
        signals |= {"cls_logits": logits, "cls_attention": attention, "cls_query": query}
    received = attention if has_cls else torch.softmax(logits, 1)
    signals |= {"attention_received": received, **more_signals(tiles, patches, has_cls, seed)}
    for name, kind in named(has_cls).items():
        values = torch.softmax(logits * 1.5, 1) if name.startswith("deep_att") else signals[kind]
        values = signals["another_layer"] if name in ("object", "local") else values
        signals.setdefault(name, values)
    return VisualTokens(
        features=normal(tiles, patches, WIDTH).to(dtype),
        patch_grid=grid,
        tile_grid=crops,
        image_size=size,
        newline=normal(WIDTH).to(dtype) if newline else None,
        signals=signals,
        unpad=unpad,
        content_seed=seed,
    )


def clip(
    frames: int,
    grid: tuple[int, int] = (4, 4),
    *,
    seed: int = 0,
    hidden: tuple[int, ...] = (),
    newline: torch.Tensor | None = None,
) -> VisualTokens:
    """A clip with every signal, some of whose frames are much like the one before."""
    still = image(grid, (1, frames - 1) if frames > 1 else None, seed=seed, newline=False)
    moves = torch.randint(0, 3, (frames,), generator=torch.Generator().manual_seed(seed))
    features = still.features.clone()
    for frame in range(1, frames):
        if moves[frame]:
            features[frame] = features[frame - 1] + 0.3 * features[frame]
    packing = Packing(grid, tiles=frames, hidden=hidden)
    return VisualTokens(
        features, packing, newline=newline, signals=still.signals, content_seed=seed
    )


def more_signals(tiles: int, patches: int, has_cls: bool, seed: int) -> dict[str, torch.Tensor]:
    """Signals with draws of their own, so that those of the others stay as they were."""
    generator = torch.Generator().manual_seed(seed + 10**6)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return {
        "key_mean": normal(tiles, patches + has_cls, 8),
        "another_layer": torch.softmax(normal(tiles, patches) * 2, 1) * 0.9,
        "pixels": torch.randint(0, 2, (tiles, patches, 2), generator=generator).float(),
    }


class Plain(torch.nn.Module):
    """A projector that changes nothing, so that what `tokenflex` pools can be seen."""

    def project(self, pooled: torch.Tensor) -> torch.Tensor:
        return pooled


@functools.lru_cache
def named(has_cls: bool) -> dict[str, str]:
    """Signal -> kind, of what methods read under a name of its own."""
    requests = [make(name).requests(has_cls) for name in METHODS]
    return {
        name: request.kind
        for some in requests
        for name, request in some.items()
        if name != request.kind
    }


def make(name: str, **options: Any) -> Method:
    """The method; one that was trained gets a part that was not, unless one is given."""
    if method_class(name).projects:
        options = {"projector": Plain(), **options}
    if name == "learned":
        options = {**asking.options(name, WIDTH), **options}
    method = create_method(name, **options)
    assert isinstance(method, Method)
    return method


@st.composite
def images(draw: st.DrawFn) -> VisualTokens:
    """Images of all shapes: single tiles, crops, padding on either axis, extreme aspect ratios."""
    return image(
        grid=draw(st.sampled_from([(4, 4), (6, 6), (5, 5), (8, 8), (3, 6)])),
        crops=draw(st.sampled_from([None, (2, 2), (1, 2), (2, 1), (1, 3), (3, 3)])),
        size=draw(
            st.tuples(st.integers(30, 900), st.integers(30, 900))
            | st.sampled_from([(3000, 20), (20, 3000), (336, 336)])
        ),
        newline=draw(st.booleans()),
        has_cls=draw(st.booleans()),
        unpad=draw(st.sampled_from(["hf", "official", "none"])),
        seed=draw(st.integers(0, 1000)),
    )
