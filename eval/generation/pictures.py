"""Picture grids and curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

#: Colours of lines and bars; they stay apart for colour-blind readers (Okabe and Ito).
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#7f7f7f", "#222222")


def to_uint8(images: Tensor) -> np.ndarray:
    """`[n, 3, H, W]` in [-1, 1] as uint8 `[n, H, W, 3]`."""
    scaled = (images.detach().cpu().clamp(-1, 1) + 1) * 127.5
    return scaled.round().byte().permute(0, 2, 3, 1).numpy()


def grid(images: Tensor, columns: int, pixels: int = 64, gap: int = 2) -> Image.Image:
    """Images side by side, each enlarged to about `pixels` without smoothing."""
    cells = to_uint8(images)
    scale = max(1, round(pixels / cells.shape[2]))
    cells = cells.repeat(scale, axis=1).repeat(scale, axis=2)
    count, height, width = cells.shape[:3]
    rows = -(-count // columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for index, cell in enumerate(cells):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = cell
    return Image.fromarray(sheet)


def save_grid(images: Tensor, columns: int, path: Path, pixels: int = 64) -> None:
    """Write a grid as PNG."""
    grid(images, columns, pixels).save(path, optimize=True)


def save_rows(rows: Mapping[str, Tensor], path: Path, pixels: int = 48) -> None:
    """Write one labelled row of images for each entry, all as wide as the longest."""
    plt = pyplot()
    strips = {name: np.asarray(grid(images, len(images), pixels)) for name, images in rows.items()}
    width = max(strip.shape[1] for strip in strips.values())
    heights = [strip.shape[0] for strip in strips.values()]
    figure, axes = plt.subplots(
        len(strips),
        figsize=(width / 100 + 1.9, sum(heights) / 100 + 0.06 * len(strips)),
        gridspec_kw={"height_ratios": heights, "hspace": 0.06},
        squeeze=False,
    )
    for axis, (name, strip) in zip(axes[:, 0], strips.items(), strict=True):
        axis.imshow(strip, interpolation="nearest", extent=(0, strip.shape[1], strip.shape[0], 0))
        axis.set(xlim=(0, width), anchor="W")
        axis.set_axis_off()
        axis.text(-8, strip.shape[0] / 2, name, ha="right", va="center", fontsize=9)
    write(figure, path)


def pyplot() -> Any:
    """matplotlib without a screen."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {"axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "axes.grid": True}
    )
    plt.rcParams.update({"grid.alpha": 0.25, "legend.frameon": False})
    return plt


def write(figure: Any, path: Path) -> None:
    """Save a figure and let it go."""
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
    pyplot().close(figure)


def save_history(history: Sequence[Mapping[str, float]], path: Path, title: str = "") -> None:
    """The losses of a run over its steps."""
    plt = pyplot()
    names = [name for name in history[-1] if name not in ("step", "lr")]
    figure, axis = plt.subplots(figsize=(6, 3.2))
    for name, colour in zip(names, COLOURS * 3, strict=False):
        known = [row for row in history if name in row]
        axis.plot([r["step"] for r in known], [r[name] for r in known], label=name, color=colour)
    axis.set(xlabel="step", title=title)
    axis.legend()
    write(figure, path)


def dots(axis: Any, values: Mapping[str, Sequence[float]], label: str) -> None:
    """One row an entry: every seed a dot, the mean a bar."""
    for row, seeds in enumerate(values.values()):
        colour = COLOURS[row % len(COLOURS)]
        axis.plot(seeds, [row] * len(seeds), "o", ms=4, alpha=0.55, color=colour)
        if not seeds:
            continue
        axis.plot([np.mean(seeds)] * 2, [row - 0.3, row + 0.3], color=colour, lw=2.5)
    axis.set_yticks(range(len(values)), list(values))
    axis.set_ylim(len(values) - 0.4, -0.6)
    axis.set_xlabel(label)


def bands(axis: Any, x: Sequence[float], lines: Mapping[str, Any]) -> None:
    """Means over seeds as lines, `[seeds, len(x)]` an entry, with a band of one deviation."""
    for row, (name, seeds) in enumerate(lines.items()):
        table = torch.as_tensor(seeds, dtype=torch.float64)
        mean = table.mean(0)
        sd = table.std(0) if len(table) > 1 else torch.zeros_like(mean)
        colour = COLOURS[row % len(COLOURS)]
        axis.plot(x, mean, color=colour, label=name, lw=1.8)
        axis.fill_between(x, mean - sd, mean + sd, color=colour, alpha=0.18, lw=0)
