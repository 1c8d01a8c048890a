"""A folder as the Debian packages make it, and one of garments, both drawn here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from vtc.eval.reference_photo.sources import FONTS, GARMENTS, KINDS

NAMES = [f"name{number}" for number in range(16)]


def debian(folder: Path) -> Path:
    """16 cut-outs of each kind, 16 backgrounds, a font for each family."""
    share = folder / "usr/share"
    for number, places in enumerate(KINDS.values()):
        for place in places:
            (share / "tuxpaint/stamps" / place).mkdir(parents=True, exist_ok=True)
        for name in NAMES:
            cutout = Image.new("RGBA", (60, 40), (0, 0, 0, 0))
            color = (20 * number, 250 - 20 * number, 128, 255)
            ImageDraw.Draw(cutout).ellipse((5, 5, 55, 35), fill=color)
            cutout.save(share / "tuxpaint/stamps" / places[0] / f"{name}.png")
    for number, name in enumerate(NAMES):
        pictures = share / "wallpapers" / name / "contents/images"
        pictures.mkdir(parents=True)
        rng = np.random.default_rng(number)
        Image.fromarray(rng.integers(0, 255, (60, 80, 3), dtype=np.uint8)).save(
            pictures / "80x60.png"
        )
    for family in sum(FONTS.values(), ()):
        (share / "fonts/truetype" / family).mkdir(parents=True)
        (share / "fonts/truetype" / family / "Font-Bold.ttf").symlink_to(_font())
    return folder


def clothing(folder: Path) -> Path:
    """Three photographs of each kind of garment in each split."""
    for split in ("train", "validation", "test"):
        for place in GARMENTS:
            (folder / split / place).mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (90, 120), (60 * number, 90, 90)).save(
                    folder / split / place / f"{number}.jpg"
                )
    return folder


def _font() -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans-Bold.ttf"
