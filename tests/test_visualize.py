"""Pictures: the right pixels stay clear, whatever the padding; bad input is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vtc.errors import VTCError
from vtc.panels import cells_of, paint_panel
from vtc.pictures import load_image, visualize
from vtc.report import ImageReport, Report
from vtc.tokens import MergeIndex, VisualTokens, keep_patches

GREEN = (40, 200, 60)


def view(size, tile_grid, patch_grid=(4, 4), newline=True):
    tiles = 1 if tile_grid is None else 1 + tile_grid[0] * tile_grid[1]
    features = torch.zeros(tiles, patch_grid[0] * patch_grid[1], 2)
    separator = torch.zeros(2) if newline else None
    return VisualTokens(features, patch_grid, tile_grid, size, separator)


def report_keeping(tokens, *cells, fit="crop"):
    """A report in which only the patches `(tile, row, col)` are kept."""
    keep = torch.zeros(tokens.features.shape[:2], dtype=torch.bool)
    for tile, row, col in cells:
        keep[tile, row * tokens.patch_grid[1] + col] = True
    return ImageReport.from_tokens(tokens, keep_patches(tokens, keep), fit=fit)


def clear_box(panel):
    """Bounding box `(left, top, right, bottom)` of the pixels that kept their colour."""
    pixels = np.asarray(panel).astype(int)
    near = np.abs(pixels - np.array(GREEN)).max(-1) < 12
    ys, xs = np.nonzero(near)
    return xs.min(), ys.min(), xs.max() + 1, ys.max() + 1


def assert_box(panel, expected, slack=3):
    assert np.abs(np.array(clear_box(panel)) - np.array(expected)).max() <= slack


# A canvas of 8 x 8 cells from 2 x 2 crops of 4 x 4 patches. The expected pixels are worked out by
# hand from the definition: the picture is scaled to fit and centred on the canvas.
GEOMETRY = [
    # full canvas: 640 px over 8 cells
    ((100, 100), (1, 1, 2), (640, 640), (160, 80, 240, 160)),
    ((100, 100), (4, 3, 3), (640, 640), (560, 560, 640, 640)),
    # landscape 2:1 fills rows 2 to 6: canvas row 3 is the second row of the picture
    ((100, 200), (1, 3, 0), (640, 320), (0, 80, 80, 160)),
    ((100, 200), (4, 1, 3), (640, 320), (560, 240, 640, 320)),
    # portrait 1:2 fills columns 2 to 6
    ((200, 100), (1, 0, 2), (360, 720), (0, 0, 90, 90)),
    ((200, 100), (2, 2, 1), (360, 720), (270, 180, 360, 270)),
    # 4:3 fills 6 rows of 8, one cell of padding above and below
    ((90, 120), (1, 1, 1), (640, 480), (80, 0, 160, 80)),
    # 5 rows of 8: 1.5 cells of padding; un-padding keeps cell 1, half of it picture
    ((100, 160), (1, 1, 0), (640, 400), (0, 0, 80, 40)),
    ((100, 160), (1, 2, 0), (640, 400), (0, 40, 80, 120)),
]


@pytest.mark.parametrize("size, cell, panel_size, box", GEOMETRY)
@pytest.mark.parametrize("zoom", [1, 3])
def test_a_kept_crop_patch_is_clear_where_it_looks(size, cell, panel_size, box, zoom):
    picture = Image.new("RGB", (zoom * size[1], zoom * size[0]), GREEN)
    panel = paint_panel(picture, report_keeping(view(size, (2, 2)), cell), "crops")
    assert panel.size == panel_size
    assert_box(panel, box)


@pytest.mark.parametrize("size, panel_size", [((100, 200), (640, 320)), ((200, 100), (360, 720))])
def test_the_thumbnail_covers_the_whole_picture(size, panel_size):
    picture = Image.new("RGB", (size[1], size[0]), GREEN)
    panel = paint_panel(picture, report_keeping(view(size, (2, 2)), (0, 1, 3)), "thumbnail")
    width, height = panel_size
    assert panel.size == panel_size
    assert_box(panel, (0.75 * width, 0.25 * height, width, 0.5 * height))


@pytest.mark.parametrize("fit, box", [("crop", (160, 0, 240, 80)), ("stretch", (0, 0, 160, 80))])
def test_a_single_tile_is_cut_from_the_middle_or_stretched(fit, box):
    picture = Image.new("RGB", (200, 100), GREEN)
    report = report_keeping(view(None, None, newline=False), (0, 0, 0), fit=fit)
    assert_box(paint_panel(picture, report, "thumbnail"), box)


def test_dropped_is_dark_and_outside_is_neither():
    picture = Image.new("RGB", (160, 100), (255, 255, 255))
    tokens = view((100, 160), (2, 2))
    panel = np.asarray(paint_panel(picture, report_keeping(tokens, (1, 2, 0)), "crops")).astype(int)
    kept, dropped = panel[80, 40], panel[360, 600]
    assert kept.min() > 240 and dropped.max() < 140


def test_merged_patches_are_tinted_and_stronger_when_fewer_share():
    picture = Image.new("RGB", (400, 400), (128, 128, 128))
    tokens = view(None, None, newline=False)
    out = keep_patches(tokens, torch.arange(16)[None] < 3)
    index = MergeIndex(
        output=torch.tensor([0, 1, 1, *[2] * 13]),
        source=torch.arange(16),
        weight=torch.ones(16),
        num_outputs=3,
        num_sources=16,
    )
    report = ImageReport.from_tokens(tokens, out.replace(merged=index))
    panel = np.asarray(paint_panel(picture, report, "thumbnail")).astype(int)
    kept, pair, crowd = (panel[80, x] for x in (80, 240, 560))
    assert np.abs(kept - 128).max() <= 1, "a token of its own is not tinted"
    warm = [int(p[0] - p[2]) for p in (pair, crowd)]
    assert warm[0] > warm[1] > 10


def pictures():
    tokens = view((90, 120), (2, 2))
    return report_keeping(tokens, (0, 0, 0), (1, 1, 1), (4, 2, 2))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "CMYK", "1"])
def test_every_mode_of_picture(mode):
    out = visualize(Image.new(mode, (120, 90)), pictures())
    assert out.mode == "RGB" and out.width > 1300 and 480 < out.height < 700


def test_arrays_files_and_upright_photos(tmp_path):
    rng = np.random.default_rng(0)
    array = rng.integers(0, 255, (90, 120, 3), dtype=np.uint8)
    image = Image.fromarray(array)
    expected = np.asarray(visualize(image, pictures()))
    image.save(tmp_path / "a.png")
    for given in (array, array / 255.0, tmp_path / "a.png", str(tmp_path / "a.png")):
        assert np.array_equal(np.asarray(visualize(given, pictures())), expected)
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    Image.new("RGB", (30, 60)).save(tmp_path / "photo.jpg", exif=exif)
    assert load_image(tmp_path / "photo.jpg").size == (60, 30)


def test_a_report_knows_its_method_and_index():
    full, kept = pictures(), pictures()
    report = Report([full, kept], "globalcom2", {"retention": 0.25, "score": "logits"})
    picture = Image.new("RGB", (120, 90), GREEN)
    assert visualize(picture, report, 1).size == visualize(picture, report, -1).size
    with pytest.raises(VTCError, match=r"^index: got 2, the report has 2 image"):
        visualize(picture, report, 2)


def test_a_clip_has_a_panel_a_frame():
    features = torch.zeros(3, 16, 2)
    tokens = VisualTokens(features, (4, 4))
    report = report_keeping(tokens, (0, 0, 0), (2, 1, 1))
    frames = [Image.new("RGB", (200, 200), GREEN) for _ in range(3)]
    page = visualize(frames, report)
    assert page.width > 3 * 320
    assert np.array_equal(
        np.asarray(page), np.asarray(visualize(np.stack([np.asarray(f) for f in frames]), report))
    )
    panel = paint_panel(frames[2], report, "thumbnail", 400, frame=2)
    assert_box(panel, (100, 100, 200, 200))
    with pytest.raises(VTCError, match="got 1 picture.*a clip of 3 frames"):
        visualize(frames[0], report)


def test_a_canvas_that_was_scaled_down_has_no_holes():
    """LLaVA-OneVision mixes neighbouring patches into fewer tokens: all of the picture is seen."""
    tokens = VisualTokens(
        torch.zeros(10, 16, 2), (4, 4), (3, 3), (120, 120), torch.zeros(2), shrink=4
    )
    report = ImageReport.from_tokens(tokens, keep_patches(tokens, torch.ones_like(tokens.valid)))
    assert report.patches_before == 16 + 64, "12 x 12 patches become 8 x 8 tokens"
    assert (cells_of(report, "crops", (96, 96), (120, 120)).share == 1).all()
    tall = replace(tokens, image_size=(120, 80))  # padding on both sides stays padding
    report = ImageReport.from_tokens(tall, keep_patches(tall, torch.zeros_like(tall.valid)))
    share = cells_of(report, "crops", (80, 120), (80, 120)).share
    assert (share >= 0).all() and (share == 0).any()


def test_extreme_shapes_do_not_break_the_page():
    for size, grid in (((30, 900), (1, 2)), ((900, 30), (2, 1)), ((2, 2), (2, 2))):
        tokens = view(size, grid)
        keep = torch.ones_like(tokens.valid)
        report = ImageReport.from_tokens(tokens, keep_patches(tokens, keep))
        page = visualize(Image.new("RGB", (size[1], size[0])), report)
        assert page.width >= 440 and page.height >= 100


def test_bad_input_is_refused(tmp_path):
    report = pictures()
    (tmp_path / "text.png").write_text("not an image")
    for given, message in (
        (tmp_path / "missing.png", "cannot read .*No such file"),
        (tmp_path / "text.png", "not an image file"),
        (tmp_path, "cannot read"),
        (np.zeros(3), r"array of shape \(3,\)"),
        (None, "cannot read None"),
        (Image.new("RGB", (90, 120)), "got 90 x 120, but the report is about an image of 120 x 90"),
    ):
        with pytest.raises(VTCError, match=f"^image: .*{message}|^image: {message}"):
            visualize(given, report)
