"""What scenes are made of: cut-outs, backgrounds, fonts and photographs, each with its split."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from vtc.errors import VTCError

SPLITS = ("train", "val", "test")
#: Debian packages; `fetch` unpacks them into a folder
DEBIAN = (
    "tuxpaint-stamps-default",
    "plasma-workspace-wallpapers",
    "mate-backgrounds",
    "fonts-liberation",
    "fonts-freefont-ttf",
    "fonts-dejavu-core",
    "fonts-lato",
    "fonts-open-sans",
    "fonts-crosextra-caladea",
    "fonts-crosextra-carlito",
    "fonts-roboto-unhinted",
)
#: folders of the cut-outs, or files where a folder mixes kinds
KINDS = {
    "bird": ("animals/birds",),
    "fish": ("animals/fish",),
    "insect": ("animals/insects",),
    "mammal": ("animals/mammals", "animals/marsupials"),
    "fruit": ("food/fruit",),
    "vegetable": ("food/vegetables",),
    "flower": ("plants/flowers",),
    "vehicle": ("vehicles",),
    "tool": ("household/tools", "household/arttools"),
    "planet": ("space/planets", "space/moon"),
    "instrument": ("hobbies/music",),
}
#: drawings among the photographs, mirrored copies, and what another kind would claim too
LEFT_OUT = {
    "7spoke256", "Brown_slug", "Woodlouse", "cementmixer", "echidna", "edward_bear", "hedgehog",
    "lobster", "mushroom", "seahorse", "shrimp", "0_sun", "moon_crescent", "toolbox", "tree",
    "wheel_tractor", "dolphin", "orca", "whale", "sea_lion",
}  # fmt: skip
#: backgrounds that show what is asked about
NOT_BEHIND = {"FreshFlower", "Garden", "YellowFlower", "LadyBird", "FlyingKonqui"}
GARMENTS = {
    "dress": "dress",
    "hat": "hat",
    "longsleeve": "sweater",
    "outwear": "coat",
    "pants": "pants",
    "shirt": "shirt",
    "shoes": "shoes",
    "shorts": "shorts",
    "skirt": "skirt",
    "t-shirt": "t-shirt",
}
#: garments that are like each other, so that no question asks to tell them apart in one picture
ALIKE = (
    ("coat", "shirt", "sweater", "t-shirt"),
    ("dress", "skirt"),
    ("hat",),
    ("pants", "shorts"),
    ("shoes",),
)
#: garments whose name is a plural
PAIRS = ("pants", "shoes", "shorts")
FONTS = {
    "train": ("liberation", "freefont", "dejavu", "crosextra"),
    "val": ("roboto",),
    "test": ("lato", "open-sans"),
}
THIN = ("Hairline", "Thin", "Light", "Narrow", "Cond")


@dataclass(frozen=True)
class Sources:
    """Files of one split.

    Attributes:
        cutouts: of each kind.
        backgrounds: photographs and drawings without anything that is asked about.
        fonts: TrueType files.
        garments: photographs of each kind of garment.
    """

    cutouts: dict[str, list[Path]]
    backgrounds: list[Path]
    fonts: list[Path]
    garments: dict[str, list[Path]]


def find(debian: Path, clothing: Path, split: str) -> Sources:
    """The files of a split.

    Args:
        debian: a folder with the unpacked packages.
        clothing: `clothing-dataset-small`, with `train/`, `validation/` and `test/`.
        split: one of `SPLITS`.

    Raises:
        VTCError: unknown split, or a folder lacks what it should have.
    """
    if split not in SPLITS:
        raise VTCError(f"split: got {split!r}, allowed are {', '.join(SPLITS)}")
    share = debian / "usr/share"
    stamps = share / "tuxpaint/stamps"
    cutouts = {
        kind: divided(_cutouts(stamps, places), split, _cutout) for kind, places in KINDS.items()
    }
    fonts = [
        path
        for family in FONTS[split]
        for path in sorted((share / "fonts/truetype" / family).rglob("*.ttf"))
        if not any(word in path.stem for word in THIN)
    ]
    folder = clothing / {"val": "validation"}.get(split, split)
    garments = {name: sorted((folder / place).glob("*.jpg")) for place, name in GARMENTS.items()}
    found = Sources(cutouts, divided(_backgrounds(share), split, _background), fonts, garments)
    for what, place, lists in (
        ("debian", stamps, cutouts.values()),
        ("debian", share / "wallpapers", [found.backgrounds]),
        ("debian", share / "fonts", [fonts]),
        ("clothing", folder, garments.values()),
    ):
        if not all(lists):
            raise VTCError(f"{what}: {str(place)!r} lacks pictures or fonts; see --help")
    return found


def divided(paths: Iterable[Path], split: str, name: Callable[[Path], str]) -> list[Path]:
    """The part of `paths` that belongs to a split: of the names in an order that means nothing, every
    fourth from the first is for "test", every eighth from the second for "val"."""
    mixed = sorted(paths, key=lambda path: hashlib.sha256(name(path).encode()).hexdigest())
    parts: dict[str, list[Path]] = {name: [] for name in SPLITS}
    for place, path in enumerate(mixed):
        parts["test" if place % 4 == 0 else "val" if place % 8 == 1 else "train"].append(path)
    return parts[split]


def _cutouts(stamps: Path, places: Iterable[str]) -> list[Path]:
    found = [path for place in places for path in sorted((stamps / place).rglob("*.png"))]
    return [
        path
        for path in found
        if "cartoon" not in path.parts
        and not path.stem.endswith("_mirror")
        and path.stem not in LEFT_OUT
    ]


def _backgrounds(share: Path) -> list[Path]:
    """The largest picture of each wallpaper, and MATE's photographs."""
    found = []
    for folder in sorted((share / "wallpapers").glob("*/contents/images")):
        pictures = sorted(
            (p for p in folder.iterdir() if p.suffix in {".jpg", ".png"}),
            key=lambda path: (path.stat().st_size, path.name),
        )
        found += pictures[-1:]
    found += sorted((share / "backgrounds/mate/nature").glob("*.jpg"))
    return [path for path in found if _background(path) not in NOT_BEHIND]


def _cutout(path: Path) -> str:
    return path.stem


def _background(path: Path) -> str:
    """Of a wallpaper its folder's name, of others the file's."""
    return path.parts[-4] if path.parent.name == "images" else path.stem
