"""Images drawn from random numbers: coloured shapes with a caption, and letters.

A scene is drawn in the unit square, so that one scene can be seen at any resolution.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

Rendered = tuple[Tensor, Tensor, tuple[str, ...], dict[str, Tensor]]

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
COLOURS = {
    "red": (0.9, 0.2, 0.2),
    "green": (0.2, 0.75, 0.3),
    "blue": (0.25, 0.4, 0.95),
    "yellow": (0.95, 0.85, 0.2),
    "white": (0.95, 0.95, 0.95),
}
SIZES = ("small", "large")
PLACES = ("upper-left", "upper-right", "lower-left", "lower-right")
#: Words of a caption in order: size, colour, shape, place.
WORDS = (*SIZES, *COLOURS, *SHAPES, *PLACES)
LETTERS = "ABCDEFGHJKLMNPRSTUVXYZ"


class Scenes(NamedTuple):
    """Numbers of `n` scenes, each `[n]`: lengths as a share of the image's side."""

    shape: Tensor
    colour: Tensor
    x: Tensor
    y: Tensor
    radius: Tensor
    angle: Tensor
    ground: Tensor


def draw_scenes(count: int, seed: int) -> Scenes:
    """Random scenes."""
    draw = torch.Generator().manual_seed(seed)

    def between(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=draw)

    def one_of(many: int) -> Tensor:
        return torch.randint(many, (count,), generator=draw)

    return Scenes(
        one_of(len(SHAPES)),
        one_of(len(COLOURS)),
        between(0.36, 0.64),
        between(0.36, 0.64),
        torch.where(one_of(2) == 0, between(0.2, 0.24), between(0.32, 0.36)),
        between(-0.4, 0.4),
        between(0.0, 0.2),
    )


def draw_shapes(scenes: Scenes, size: int) -> Tensor:
    """The scenes as images `[n, 3, size, size]` in [-1, 1], edges smoothed over a pixel."""
    axis = (torch.arange(size) + 0.5) / size
    x = axis[None, None, :] - scenes.x[:, None, None]
    y = axis[None, :, None] - scenes.y[:, None, None]
    cos, sin = (f(scenes.angle)[:, None, None] for f in (torch.cos, torch.sin))
    u, v, r = x * cos + y * sin, y * cos - x * sin, scenes.radius[:, None, None]
    arm = 0.3 * r

    def box(width: Tensor, height: Tensor) -> Tensor:
        return torch.maximum(u.abs() - width, v.abs() - height)

    # signed distances, negative inside, in the order of SHAPES
    slope = torch.maximum(u.abs() * math.cos(math.pi / 6) + v * 0.5, -v)
    distance = torch.stack(
        [
            (u.square() + v.square()).sqrt() - r,
            box(0.8 * r, 0.8 * r),
            slope - 0.6 * r,
            (u.abs() + v.abs() - 1.1 * r) / math.sqrt(2),
            torch.minimum(box(arm, r), box(r, arm)),
            ((u.square() + v.square()).sqrt() - 0.75 * r).abs() - 0.25 * r,
        ]
    )
    mine = distance[scenes.shape, torch.arange(len(scenes.shape))]
    cover = (0.5 - mine * size).clamp(0, 1).unsqueeze(1)
    paint = torch.tensor(list(COLOURS.values()))[scenes.colour][:, :, None, None]
    return 2 * (cover * paint + (1 - cover) * scenes.ground[:, None, None, None]) - 1


def captions(scenes: Scenes) -> Tensor:
    """The four words of each scene as places in `WORDS`, int64 `[n, 4]`."""
    large = (scenes.radius > 0.28).long()
    place = 2 * (scenes.y > 0.5).long() + (scenes.x > 0.5).long()
    starts = torch.tensor([0, 2, 2 + len(COLOURS), 2 + len(COLOURS) + len(SHAPES)])
    return torch.stack([large, scenes.colour, scenes.shape, place], dim=1) + starts


def shapes(count: int, size: int, seed: int) -> Rendered:
    """Images, labels (the shape), names, and the captions under "caption"."""
    scenes = draw_scenes(count, seed)
    return draw_shapes(scenes, size), scenes.shape, SHAPES, {"caption": captions(scenes)}


def glyphs(count: int, size: int, seed: int) -> Rendered:
    """Letters of Pillow's own font, moved, turned and scaled a little; the label is the letter."""
    import numpy as np
    from PIL import Image, ImageDraw, ImageFont

    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(len(LETTERS), (count,), generator=draw)
    wobble = torch.rand(count, 4, generator=draw).tolist()
    large = 4 * size  # drawn larger, then averaged: smooth edges
    pictures = []
    for label, (a, b, c, d) in zip(labels.tolist(), wobble, strict=True):
        picture = Image.new("L", (large, large))
        font = ImageFont.load_default(large * (0.85 + 0.15 * a))
        centre = (large * (0.5 + 0.08 * (b - 0.5)), large * (0.5 + 0.08 * (c - 0.5)))
        ImageDraw.Draw(picture).text(centre, LETTERS[label], 255, font, anchor="mm")
        picture = picture.rotate(12 * (d - 0.5), Image.Resampling.BILINEAR)
        pictures.append(np.array(picture.resize((size, size), Image.Resampling.BOX)))
    images = torch.from_numpy(np.stack(pictures)).float()[:, None] / 127.5 - 1
    return images.expand(-1, 3, -1, -1).contiguous(), labels, tuple(LETTERS), {}
