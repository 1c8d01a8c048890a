"""Pictures with questions: garments as they were photographed, cut-outs and smaller photographs on
photographs, signs."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFont, ImageOps

from .questions import PLACES, WORDS, Question, ask
from .sources import ALIKE, PAIRS, SPLITS, Sources
from .tower import SIDE

#: colours that a cut-out is dyed with
DYES = {
    "red": (215, 30, 35),
    "yellow": (245, 215, 30),
    "green": (40, 165, 60),
    "blue": (35, 75, 215),
    "purple": (140, 50, 175),
    "white": (250, 250, 250),
    "black": (38, 38, 40),
}
#: how often each kind of scene is drawn
SHARES = {"garment": 0.1, "things": 0.35, "photographs": 0.35, "sign": 0.2}


@dataclass(frozen=True)
class Thing:
    """A cut-out or a garment in a scene: its kind, its dye if it has one, and its place, one of
    `PLACES`."""

    kind: str
    dye: str | None
    place: str


@dataclass
class Scene:
    """A picture and what is asked about it.

    Attributes:
        image: of 224 x 224 px.
        kind: one of `SHARES`.
        questions: about it.
        words: kinds, dyes, garment and the sign's word or digits that are true of it.
        colors: whether `words` name the colour of everything that was pasted.
        garments: whether `words` name every garment in it.
    """

    image: Image.Image
    kind: str
    questions: list[Question]
    words: tuple[str, ...]
    colors: bool
    garments: bool


def make_scene(sources: Sources, split: str, seed: int, index: int, questions: int) -> Scene:
    """The scene of that number; the same numbers always make the same scene.

    Args:
        questions: at most so many, of different types where possible.
    """
    rng = np.random.default_rng([23, SPLITS.index(split), seed, index])
    kind = str(rng.choice(list(SHARES), p=list(SHARES.values())))
    if kind == "garment":
        name = str(rng.choice(list(sources.garments)))
        image = _photograph(_any(sources.garments[name], rng), rng, split == "train")
        asked = ask([], None, name, None, rng, questions)
        return Scene(image, kind, asked, (name,), False, True)
    photographs = kind == "photographs"
    plain = photographs or rng.random() < 0.5
    if plain:
        image = _behind(_any(sources.backgrounds, rng), rng)
    else:
        garment = str(rng.choice(list(sources.garments)))
        image = _photograph(_any(sources.garments[garment], rng), rng, True)
    sign, free = None, [str(place) for place in rng.permutation(list(PLACES))]
    if kind == "sign":
        half = str(rng.choice(["top", "bottom"]))
        word = str(rng.choice(WORDS)) if rng.random() < 0.6 else str(rng.integers(10, 100))
        free = [place for place in free if not place.startswith(half)]
        sign = word
        _paste_sign(image, _any(sources.fonts, rng), word, half, rng)
    pasted = [str(rng.choice(group)) for group in ALIKE] if photographs else list(sources.cutouts)
    kinds, counted = _kinds(pasted, kind == "sign", rng)
    things = [
        Thing(name, _dye(rng) if not photographs else None, place)
        for name, place in zip(kinds, free, strict=False)
    ]
    for thing in things:
        if photographs:
            _paste_photograph(image, _any(sources.garments[thing.kind], rng), thing, rng)
        else:
            _paste(image, _any(sources.cutouts[thing.kind], rng), thing, rng, split == "train")
    words = [*(thing.kind for thing in things), *(thing.dye for thing in things if thing.dye)]
    words += [] if sign is None else list(sign) if sign.isdigit() else [sign]
    return Scene(
        image,
        kind,
        ask(things, sign, None, counted, rng, questions),
        tuple(dict.fromkeys(words)),
        all(thing.dye for thing in things),
        plain,
    )


def _dye(rng: np.random.Generator) -> str | None:
    """The dye of a cut-out; four in ten have none."""
    return str(rng.choice(list(DYES))) if rng.random() < 0.6 else None


def _kinds(kinds: list[str], sign: bool, rng: np.random.Generator) -> tuple[list[str], str | None]:
    """What is pasted, and whose number may be asked for: beside a sign at most two things; else all
    different, or some alike, where any number from one to four is as likely."""
    mixed = [str(kind) for kind in rng.permutation(kinds)]
    if sign:
        return mixed[: int(rng.integers(0, 3))], None
    if rng.random() < 0.4:
        return mixed[: int(rng.integers(1, 5))], None
    counted = next(kind for kind in mixed if kind not in PAIRS)
    others = [kind for kind in mixed if kind != counted]
    alike = int(rng.integers(1, 5))
    return [counted] * alike + others[: int(rng.integers(0, 5 - alike))], counted


def _any(paths: list[Path], rng: np.random.Generator) -> Path:
    return paths[int(rng.integers(len(paths)))]


@functools.lru_cache(maxsize=4096)
def _opened(path: Path, longest: int, mode: str) -> Image.Image:
    """A picture no larger than it is needed; opened once, since scenes share few."""
    with Image.open(path) as image:
        image.draft("RGB", (longest, longest))
        small = ImageOps.exif_transpose(image).convert(mode)
    if mode == "RGBA":
        small = small.crop(small.getchannel("A").getbbox())
    small.thumbnail((longest, longest), Image.Resampling.BICUBIC)
    return small


def _photograph(path: Path, rng: np.random.Generator, vary: bool) -> Image.Image:
    """A whole photograph, or with `vary` most of it, mirrored or not."""
    image = _opened(path, 384, "RGB")
    if vary:
        wide, high = image.size
        share = rng.uniform(0.8, 1.0)
        x, y = (int(rng.uniform(0, (1 - share) * side)) for side in (wide, high))
        image = image.crop((x, y, x + int(wide * share), y + int(high * share)))
        if rng.random() < 0.5:
            image = ImageOps.mirror(image)
    return image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)


def _behind(path: Path, rng: np.random.Generator) -> Image.Image:
    """A square out of a background."""
    image = _opened(path, 800, "RGB")
    side = int(min(image.size) * rng.uniform(0.4, 1.0))
    x, y = (int(rng.integers(0, length - side + 1)) for length in image.size)
    image = image.crop((x, y, x + side, y + side)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return ImageOps.mirror(image) if rng.random() < 0.5 else image


def _corner(place: str, size: tuple[int, int], rng: np.random.Generator) -> tuple[int, int]:
    """Where the upper left corner of something goes, so that it lies within its quarter."""
    half = SIDE // 2
    down, right = place.split()
    x, y = (int(rng.integers(2, max(3, half - 1 - length))) for length in size)
    return x + half * (right == "right"), y + half * (down == "bottom")


def _paste_photograph(
    image: Image.Image, path: Path, thing: Thing, rng: np.random.Generator
) -> None:
    """Put a photograph with a white edge on a picture."""
    photograph = _opened(path, 384, "RGB")
    longest = int(rng.integers(88, 105))
    scale = longest / max(photograph.size)
    size = tuple(max(8, round(length * scale)) for length in photograph.size)
    photograph = photograph.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        photograph = ImageOps.mirror(photograph)
    photograph = ImageOps.expand(photograph, 2, (245, 245, 240))
    image.paste(photograph, _corner(thing.place, photograph.size, rng))


def _paste(
    image: Image.Image, path: Path, thing: Thing, rng: np.random.Generator, vary: bool
) -> None:
    """Put a cut-out on a picture, with `vary` turned and in another light, since there are few."""
    cutout = _opened(path, 160, "RGBA").copy()
    if rng.random() < 0.5:
        cutout = ImageOps.mirror(cutout)
    if vary:
        cutout = _varied(cutout, rng)
    longest = int(rng.integers(60, 106))
    scale = longest / max(cutout.size)
    wide, high = (max(8, round(length * scale)) for length in cutout.size)
    cutout = cutout.resize((wide, high), Image.Resampling.BICUBIC)
    if thing.dye is not None:
        cutout = dyed(cutout, thing.dye)
    image.paste(cutout, _corner(thing.place, cutout.size, rng), cutout)


def _varied(cutout: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A cut-out turned by at most 25 degrees, made longer or shorter by at most a sixth, with other
    brightness, contrast and saturation."""
    edge = cutout.getchannel("A")
    colours = cutout.convert("RGB")
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        colours = change(colours).enhance(float(rng.uniform(0.7, 1.35)))
    colours.putalpha(edge)
    size = max(8, round(cutout.width * float(rng.uniform(0.85, 1.18)))), cutout.height
    turned = colours.resize(size, Image.Resampling.BICUBIC).rotate(
        float(rng.uniform(-25, 25)), Image.Resampling.BICUBIC, expand=True
    )
    return turned.crop(turned.getchannel("A").getbbox())


def dyed(cutout: Image.Image, dye: str) -> Image.Image:
    """A cut-out in one colour; light and shade stay, within bounds that leave the colour its name."""
    pixels = np.asarray(cutout).astype(np.float32)
    light = pixels[..., :3] @ np.array([0.299, 0.587, 0.114], np.float32)
    seen = light[pixels[..., 3] > 128]
    low, high = np.percentile(seen, [5, 95]) if seen.size else (0.0, 1.0)
    shade = np.clip((light - low) / max(high - low, 1.0), 0, 1)[..., None]
    colour = np.array(DYES[dye], np.float32)
    if dye == "black":
        painted = colour * (0.2 + 1.6 * shade)
    else:
        painted = colour * (0.55 + 0.45 * shade)
    if dye not in ("black", "white"):
        painted += (255 - painted) * 0.25 * np.clip(shade - 0.75, 0, 1)
    return Image.fromarray(
        np.concatenate([painted.clip(0, 255), pixels[..., 3:]], -1).astype(np.uint8), "RGBA"
    )


def _paste_sign(
    image: Image.Image, font: Path, word: str, half: str, rng: np.random.Generator
) -> None:
    """Put a sign with a word or number on the upper or lower half of a picture."""
    size = int(rng.integers(34, 57))
    letters: Any = ImageFont.truetype(str(font), size)
    box = letters.getbbox(word)
    wide, high = int(box[2] - box[0]), int(box[3] - box[1])
    pad = int(rng.integers(6, 13))
    if wide + 2 * pad > SIDE - 4:
        pad = max(2, (SIDE - 4 - wide) // 2)
    dark = rng.integers(0, 90, 3)
    pale = rng.integers(185, 256, 3)
    paper, ink = (dark, pale) if rng.random() < 0.3 else (pale, dark)
    plate = Image.new("RGB", (wide + 2 * pad, high + 2 * pad), tuple(int(v) for v in paper))
    ImageDraw.Draw(plate).text(
        (pad - box[0], pad - box[1]), word, font=letters, fill=tuple(int(v) for v in ink)
    )
    x = int(rng.integers(0, max(1, SIDE - plate.width)))
    y = int(rng.integers(0, max(1, SIDE // 2 - plate.height)))
    image.paste(plate, (x, y + SIDE // 2 * (half == "bottom")))
