"""Pictures and arrays of more than 8 bits keep their shades; what has none is refused."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.test_visualize import pictures as a_report
from vtc.errors import VTCError
from vtc.pictures import load_image, visualize
from vtc.report import ImageReport
from vtc.rgb import levels
from vtc.tokens import VisualTokens, keep_patches

#: shades of 8 bits, and the same in 16 bits: 0xAB becomes 0xABAB
RAMP = np.arange(240, dtype=np.uint8).reshape(12, 20)
WIDE = np.array([[int(f"{v:02x}" * 2, 16) for v in row] for row in RAMP.tolist()], np.uint16)


def read(image: object) -> np.ndarray:
    picture = load_image(image)  # type: ignore[arg-type]
    assert picture.mode == "RGB"
    return np.asarray(picture)


def grey(image: object) -> np.ndarray:
    pixels = read(image)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def tiff(bits: int, photometric: int, rows: list[list[int]]) -> bytes:
    """A little-endian TIFF of one strip, packed by hand: numbers of `bits` bits, highest first."""
    if bits == 16:
        data = b"".join(struct.pack(f"<{len(row)}H", *row) for row in rows)
    else:
        text = "".join(f"{value:0{bits}b}" for row in rows for value in row)
        data = int(text, 2).to_bytes(len(text) // 8, "big")
    tags = {256: len(rows[0]), 257: len(rows), 258: bits, 259: 1, 262: photometric, 273: 8,
            277: 1, 278: len(rows), 279: len(data)}  # fmt: skip
    table = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack("<2sHI", b"II", 42, 8 + len(data))
    return head + data + struct.pack("<H", len(tags)) + table + bytes(4)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "int64", "uint32", "uint64", ">i4"])
def test_whole_numbers_up_to_255_are_8_bits(dtype: str) -> None:
    assert (grey(RAMP.astype(dtype)) == RAMP).all()
    assert (grey(RAMP.astype(dtype)[..., None]) == RAMP).all()


@pytest.mark.parametrize("dtype", ["uint16", ">u2", "int32", "int64", "uint32", "uint64"])
@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_wider_ones_are_16_bits(dtype: str, channels: int | None) -> None:
    array = WIDE.astype(dtype)
    if channels:
        array = np.repeat(array[..., None], channels, 2)
    assert (grey(array) == RAMP).all()


def test_uint16_is_16_bits_however_dark() -> None:
    assert (grey(np.full((4, 4), 200, np.uint16)) == 1).all(), "200 of 65535"


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_floats_in_0_1_or_0_255(dtype: str) -> None:
    slack = 0 if dtype == "float64" else 1
    for factor in (1 / 255, 1):
        made = np.clip(RAMP.astype(float), 0, None) * factor
        made.flat[-1] = 255 * factor
        got = grey(made.astype(dtype))
        assert np.abs(got.ravel()[:-1].astype(int) - RAMP.ravel()[:-1]).max() <= slack
        assert got.flat[-1] == 255
    assert (grey(np.full((2, 2), 1 + 1e-6)) == 255).all(), "rounding does not make white black"


def test_bool_arrays_are_black_and_white() -> None:
    mask = RAMP > 100
    for given in (mask, np.stack([mask] * 3, 2)):
        assert (grey(given) == np.where(mask, 255, 0)).all()


@pytest.mark.parametrize(
    "values",
    [
        [0.5, np.nan],
        [0.5, np.inf],
        [0.5, -np.inf],
        [0.5, -0.1],
        [200.0, -3.0],
        [0.0, 300.0],
        [0.0, 65535.0],
        [0.0, 1.4],
        [-1, 3],
        [0, 65536],
        [0, 2**40],
        [1j, 0],
        ["a", "b"],
        [None, 1],
    ],
)
def test_numbers_that_are_no_shades_are_refused(values: list) -> None:
    with pytest.raises(VTCError, match=r"^image: got .*allowed are bool, whole numbers in 0..255"):
        load_image(np.array([values, values]))


@pytest.mark.parametrize("shape", [(3,), (2, 3, 5), (0, 4), (4, 0, 3), (1, 2, 3, 4)])
def test_arrays_of_other_shapes_are_refused(shape: tuple) -> None:
    with pytest.raises(VTCError, match=r"^image: got an array of shape"):
        load_image(np.zeros(shape))


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "a.jp2", "a.pgm"])
def test_files_of_16_bits(tmp_path: Path, name: str) -> None:
    Image.fromarray(WIDE).save(
        tmp_path / name, **({"irreversible": False} if "jp2" in name else {})
    )
    assert (grey(tmp_path / name) == RAMP).all()
    with Image.open(tmp_path / name) as opened:
        assert (grey(opened) == RAMP).all()
        opened.load()
        assert (grey(opened) == RAMP).all()


def test_big_endian_pictures() -> None:
    picture = Image.frombytes("I;16B", (20, 12), WIDE.astype(">u2").tobytes())
    assert (grey(picture) == RAMP).all()
    file = io.BytesIO()
    picture.save(file, "TIFF")
    with Image.open(file) as opened:
        assert (grey(opened) == RAMP).all()


def test_tiffs_that_are_turned_over_or_of_12_bits(tmp_path: Path) -> None:
    file = tmp_path / "a.tiff"
    file.write_bytes(tiff(16, 1, WIDE.tolist()))
    assert (grey(file) == RAMP).all()
    file.write_bytes(tiff(16, 0, WIDE.tolist()))  # 0 is white
    assert (grey(file) == 255 - RAMP).all()
    file.write_bytes(tiff(12, 1, [[0, 4095, 2048, 1024]]))
    assert grey(file).tolist() == [[0, 255, 128, 64]]


def test_whole_numbers_of_32_bits() -> None:
    """What old Pillows make of a 16-bit PNG, and what an array makes."""
    dark = np.full((4, 4), 200, np.int32)
    picture = Image.fromarray(dark)
    assert picture.mode == "I" and (grey(picture) == 200).all()
    picture.format = "PNG"  # 16 bits, always
    assert (grey(picture) == 1).all()
    assert (grey(Image.fromarray(WIDE.astype(np.int32))) == RAMP).all()
    with pytest.raises(VTCError, match="whole numbers from 0 to 70000"):
        load_image(Image.fromarray(np.array([[0, 70_000]], np.int32)))


def test_float_files(tmp_path: Path) -> None:
    for factor in (1, 1 / 255):
        Image.fromarray((RAMP * factor).astype(np.float32)).save(tmp_path / "a.tiff")
        assert (grey(tmp_path / "a.tiff") == RAMP).all()
    Image.fromarray(np.full((2, 2), np.nan, np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(VTCError, match=r"^image: got floats from nan to nan.*a\.tiff'$"):
        load_image(tmp_path / "a.tiff")


def test_wide_files_are_turned_upright(tmp_path: Path) -> None:
    note = Image.Exif()
    note[0x0112] = 6  # the camera was turned: the right of the picture is its lower end
    Image.fromarray(WIDE).save(tmp_path / "a.png", exif=note)
    assert (grey(tmp_path / "a.png") == np.rot90(RAMP, -1)).all()


def test_modes_without_a_picture_are_refused() -> None:
    with pytest.raises(VTCError, match="^image: got mode 'La'"):
        load_image(Image.new("La", (2, 2)))


def test_frames_of_a_clip_are_judged_together() -> None:
    """A dark frame of whole numbers would else be taken for a bright one of 8 bits."""
    tokens = VisualTokens(torch.zeros(2, 16, 2), (4, 4))
    kept = keep_patches(tokens, tokens.valid)
    report = ImageReport.from_tokens(tokens, kept)
    clip = np.zeros((2, 100, 100, 3), np.int32)
    clip[0], clip[1] = 200, 60_000
    right = visualize([Image.new("RGB", (100, 100), (v, v, v)) for v in (1, 233)], report)
    for given in (clip, list(clip), tuple(clip)):
        assert np.array_equal(np.asarray(visualize(given, report)), np.asarray(right))


def test_a_wide_picture_under_a_report() -> None:
    array = np.arange(90 * 120).reshape(90, 120) % 250
    expected = np.asarray(visualize(array.astype(np.uint8), a_report()))
    for given in (array, (array * 257).astype(np.uint16), array * 257, array / 255):
        assert np.array_equal(np.asarray(visualize(given, a_report())), expected)


def test_levels_do_not_change_what_they_are_given() -> None:
    array = np.array([[0.0, 1.0]])
    assert levels(array).tolist() == [[0, 255]] and array.tolist() == [[0.0, 1.0]]
