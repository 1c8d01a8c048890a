"""RGB pictures of 8 bits from whatever holds an image: every PIL mode, and arrays of any numbers.

Pillow's own `convert("RGB")` clips everything above 255 to white, which is all of a 16-bit picture
but its darkest shades. Needs numpy and Pillow only.
"""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from vtc.errors import VTCError

Array = np.ndarray[Any, Any]

ALLOWED = (
    "allowed are bool, whole numbers in 0..255 (8 bits) or 0..65535 (16 bits), and finite floats in "
    "0..1 or 0..255"
)
ROUNDING = 1e-3  # by how much floats may leave their range
#: formats whose whole numbers have 16 bits where Pillow calls their mode "I", of 32 bits: PNG before
#: Pillow 11, and PGM, which it stretches to 16 bits
SIXTEEN_BITS = ("PNG", "PPM")
BITS_PER_SAMPLE, PHOTOMETRIC = 258, 262  # tags of a TIFF file


def load_image(image: Image.Image | str | os.PathLike[str] | Array) -> Image.Image:
    """An RGB picture from a PIL image, a file (turned upright by its EXIF tag) or an array.

    More than 8 bits are scaled, see `levels` for what is white in which kind of array.

    Raises:
        VTCError: the file cannot be read as an image, or the array is none.
    """
    if isinstance(image, Image.Image):
        return rgb(image)
    if isinstance(image, np.ndarray):
        return from_array(image)
    if isinstance(image, str) and re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://|data:", image):
        kind = image.partition(":")[0]
        raise VTCError(
            f"image: got {image[:80]!r}, an address ({kind}:), which vtc does not fetch; download it "
            "and give the file"
        )
    try:
        with Image.open(image) as opened:
            return upright(opened)
    except VTCError as error:
        raise VTCError(f"{error}; in {str(image)!r}") from error
    except UnidentifiedImageError as error:
        raise VTCError(
            f"image: {str(image)!r} is not an image file that Pillow can read"
        ) from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise VTCError(f"image: cannot read {str(image)!r}: {reason}") from error
    except (AttributeError, TypeError, ValueError, Image.DecompressionBombError) as error:
        raise VTCError(f"image: cannot read {image!r}: {error}") from error


def rgb(picture: Image.Image) -> Image.Image:
    """A PIL picture as RGB; one of more than 8 bits is scaled by its range, as `levels` says.

    Colours under transparent pixels are kept.

    Raises:
        VTCError: a number is out of range, or Pillow cannot convert the mode.
    """
    return _rgb(picture, *_range(picture))


def upright(picture: Image.Image) -> Image.Image:
    """An opened file as RGB, turned as its EXIF tag says; see `rgb`."""
    known = _range(picture)  # a turned copy no longer tells its format
    return _rgb(ImageOps.exif_transpose(picture), *known)


def from_array(array: Array) -> Image.Image:
    """The RGB picture in an array `[H, W]`, `[H, W, 1]`, `[H, W, 3]` or `[H, W, 4]`, see `levels`.

    Raises:
        VTCError: another shape, another kind of number, or numbers out of range.
    """
    shape = array.shape
    if len(shape) not in (2, 3) or shape[2:] not in ((), (1,), (3,), (4,)) or not array.size:
        raise VTCError(f"image: got an array of shape {shape}, expected [H, W, channels]")
    array = levels(array)
    return Image.fromarray(array[..., 0] if shape[2:] == (1,) else array).convert("RGB")


def levels(array: Array, peak: int | None = None) -> Array:
    """Numbers of any kind as uint8 of the same shape.

    Args:
        array: bool; uint8; uint16, of which 65535 is white; other whole numbers, which are 8 bits
            when none is above 255 and 16 bits otherwise; floats, of which 1 is white when none is
            above 1, and 255 otherwise. A dark picture of wide whole numbers or of floats up to 255
            can be told by its numbers alone from a bright one of the smaller range only while a
            number is above it: give uint16 or uint8.
        peak: what is white, where the caller knows.

    Raises:
        VTCError: other kinds; numbers below 0, above the range or not finite; floats whose largest
            is a little above 1, which would be black in 0..255.
    """
    kind, size = array.dtype.kind, array.dtype.itemsize
    if kind == "b":
        return np.where(array, np.uint8(255), np.uint8(0))
    if kind not in "uif":
        raise VTCError(f"image: got numbers of type {array.dtype}, {ALLOWED}")
    low, high = array.min(), array.max()
    if kind == "f":
        good = -ROUNDING <= low <= high <= 255 + ROUNDING  # False with nan
        if not good or 1 + ROUNDING < high < 2:
            raise VTCError(f"image: got floats from {low:g} to {high:g}, {ALLOWED}")
        factor = 255.0 if high <= 1 + ROUNDING else 1.0
        scaled = np.asarray(array, np.float64) * factor
        return np.floor(scaled + 0.5).clip(0, 255).astype(np.uint8)
    if peak is None:
        peak = 255 if size == 1 or (high <= 255 and (kind, size) != ("u", 2)) else 65535
    if low < 0 or high > peak:
        raise VTCError(f"image: got whole numbers from {low} to {high}, {ALLOWED}")
    if peak == 255:
        return array.astype(np.uint8)
    return ((array.astype(np.int64) * 255 + peak // 2) // peak).astype(np.uint8)


def _range(picture: Image.Image) -> tuple[int | None, bool]:
    """What is white where the format or the mode says so, and whether it is what is black."""
    tags: Any = getattr(picture, "tag_v2", None) or {}
    # Pillow turns such a TIFF over for up to 8 bits alone
    inverted = tags.get(PHOTOMETRIC) == 0
    if picture.mode.startswith("I;16"):
        return 2 ** tags.get(BITS_PER_SAMPLE, (16,))[0] - 1, inverted  # there are TIFFs of 12 bits
    if picture.mode == "I" and picture.format in SIXTEEN_BITS:
        return 65535, inverted
    return None, inverted


def _rgb(picture: Image.Image, peak: int | None, inverted: bool) -> Image.Image:
    if picture.mode == "F" or picture.mode.startswith("I"):
        grey = levels(np.asarray(picture), peak)
        return Image.fromarray(255 - grey if inverted else grey).convert("RGB")
    try:
        return picture.convert("RGB")
    except ValueError as error:
        raise VTCError(f"image: got mode {picture.mode!r}, which is no picture: {error}") from error
