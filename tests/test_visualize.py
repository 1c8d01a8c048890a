"""Pictures: the right pixels stay clear, whatever the padding; bad input is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from vtc.errors import VTCError
from vtc.panels import cells_of, excerpt, font, paint_panel, swatch
from vtc.pictures import load_image, visualize
from vtc.report import ImageReport, LayerCut, Report
from vtc.sheet import GAP, PAGE, Heading, sheet, wrap
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


def cut_report():
    """Of 16 patches 8 go on to a language model of 8 layers; 4 are left from layer 2 on, 1 from 6 on."""
    report = report_keeping(
        view(None, None, newline=False), *((0, row, col) for row in (0, 2) for col in range(4))
    )
    report.cut(8, [LayerCut(2, torch.tensor([0, 1, 4, 5])), LayerCut(6, torch.tensor([4]))])
    return report


def test_what_is_dropped_inside_the_language_model_is_blue_by_the_layers_that_read_it():
    report = cut_report()
    want = torch.zeros(4, 4)
    want[0], want[2] = torch.tensor([6, 6, 2, 2]) / 8, torch.tensor([8, 6, 2, 2]) / 8
    assert torch.equal(report.read.view(4, 4), want)
    picture = Image.new("RGB", (400, 400), (128, 128, 128))
    panel = paint_panel(picture, report, "thumbnail")
    pixels = np.asarray(panel).astype(int)[80::160, 80::160]
    kept, late, early, front = pixels[2, 0], pixels[2, 1], pixels[2, 2], pixels[1, 0]
    assert abs(kept - 128).max() < 4
    blue = [int(pixel[2] - pixel[0]) for pixel in (late, early, front)]
    assert blue[0] > blue[1] > blue[2] > 0 and blue[1] > 2 * blue[2]
    assert np.array_equal(pixels[0, 0], late) and np.array_equal(pixels[0, 3], early)
    # the swatches of the legend are painted alike
    for level, pixel in ((6 / 8, late), (2 / 8, early)):
        patch = np.asarray(swatch(level, Image.new("RGB", (40, 20), (128, 128, 128)))).astype(int)
        assert abs(patch[10, 20] - pixel).max() <= 2


def test_a_merged_patch_goes_with_its_token():
    tokens = view(None, None, newline=False)
    out = keep_patches(tokens, torch.arange(16)[None] < 3)
    index = MergeIndex(
        output=torch.tensor([0, 1, 1, *[2] * 13, 0]),
        source=torch.tensor([*range(16), 15]),
        weight=torch.ones(17),
        num_outputs=3,
        num_sources=16,
    )
    report = ImageReport.from_tokens(tokens, replace(out, merged=index))
    assert report.read.eq(1).all()
    report.cut(4, [LayerCut(1, torch.tensor([0]))])
    assert report.read[0, :15].tolist() == [1.0, *[0.25] * 14]
    assert report.read[0, 15] == 1  # part of it is in a token that is left
    assert (report.group[0] >= 0).nonzero().flatten().tolist() == [0, 15]


def test_cuts_are_in_the_heading_and_the_legend(monkeypatch):
    heard = {}

    def listen(heading, panels, labels, legend, sample):
        heard.update(heading=heading, legend=legend)
        return sheet(heading, panels, labels, legend, sample)

    monkeypatch.setattr("vtc.pictures.sheet", listen)
    picture = Image.new("RGB", (400, 400), GREEN)
    visualize(picture, cut_report())
    counts = heard["heading"].counts
    assert "1 of 16 patch tokens left" in counts
    assert "reads 8 tokens of it, 4 from layer 2 on, 1 from layer 6 on" in counts
    assert "26.6% of the patch tokens" in counts  # (2 * 8 + 4 * 4 + 2 * 1) / 8 / 16
    assert (2 / 8, "dropped in front of layer 2 of 8") in heard["legend"]
    assert (6 / 8, "dropped in front of layer 6 of 8") in heard["legend"]
    assert ("dropped", "dropped") in heard["legend"]
    report = cut_report()
    report.cut(8, [])
    visualize(picture, report)
    assert not any(isinstance(kind, float) for kind, _ in heard["legend"])
    assert "from layer" not in heard["heading"].counts


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
    expected = np.asarray(visualize(image, pictures(), file="a.png"))
    image.save(tmp_path / "a.png")
    for given in (array, array / 255.0, tmp_path / "a.png", str(tmp_path / "a.png")):
        assert np.array_equal(np.asarray(visualize(given, pictures(), file="a.png")), expected)
    named = visualize(tmp_path / "a.png", pictures())
    assert np.array_equal(np.asarray(named), expected), "the heading names the file"
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
    assert page.width > 3 * 320, "side by side"
    assert visualize(frames, report, model="m").height > page.height, "the heading names the model"
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


@pytest.mark.parametrize("size, seen", [((900, 20), (144, 720)), ((20, 900), (640, 128))])
def test_a_very_slim_picture_is_stretched_and_its_patches_stay_where_they_are(size, seen):
    report = report_keeping(view(size, None, (4, 4)), (0, 1, 2), fit="stretch")
    panel = paint_panel(Image.new("RGB", size[::-1], GREEN), report, "thumbnail")
    wide, tall = seen
    assert panel.size == seen
    assert_box(panel, (wide / 2, tall / 4, wide * 3 / 4, tall / 2))


def test_texts_stay_on_the_page():
    """No line of a heading, label or legend runs over its neighbour or the edge."""
    panels = [Image.new("RGB", (60, 300))] * 2
    labels = ["thumbnail · 152 of 576 · 26%", "4 x 1 crops · 141 of 576 · 24% · drawn 3.0x as wide"]
    long = "a_method+another_one " * 9 + "x" * 400
    sample = panels[0].crop((0, 0, 44, 26))
    page = sheet(Heading(long, "1 of 2", long), panels, labels, [("kept", "kept")], sample)
    widths = [font(16).getlength(label) for label in labels]
    assert page.width >= 2 * GAP + 2 * max(widths)
    assert (np.asarray(page)[:, -GAP:] == PAGE).all(), "nothing touches the edge"
    for line in wrap(long, 24, 500):
        assert font(24).getlength(line) <= 500
    assert " ".join(wrap("a b c d", 24, 30)) == "a b c d" and wrap("", 24, 30) == []


def test_a_crop_says_what_it_keeps_where_there_is_room():
    """The label of a crop stays inside what is seen of it."""
    report = report_keeping(view((100, 150), (3, 12), (4, 4)))  # of the outer crops little is seen
    picture = Image.new("RGB", (150, 100), GREEN)
    bare, full = (
        np.asarray(paint_panel(picture, report, "crops", labels=labels)) for labels in (False, True)
    )
    tile = cells_of(report, "crops", bare.shape[1::-1], picture.size).tile
    changed = (bare != full).any(-1)
    for number in np.unique(tile[changed]):
        ys, xs = np.nonzero(changed & (tile == number))
        inside_y, inside_x = np.nonzero(tile == number)
        assert inside_y.min() < ys.min() and ys.max() < inside_y.max()
        assert inside_x.min() < xs.min() and xs.max() < inside_x.max()
    assert len(np.unique(tile[changed])) >= 12


def test_a_swatch_is_a_piece_of_the_picture():
    half = np.zeros((90, 120, 3), np.uint8)
    half[:, 60:] = GREEN
    piece = excerpt(Image.fromarray(half), (44, 26))
    green = np.abs(np.asarray(piece).astype(int) - np.array(GREEN)).max(-1) < 12
    assert green.mean() > 0.4
    kept, dropped, outside = (
        np.asarray(swatch(kind, piece)).astype(int)[2:-2, 2:-2]
        for kind in ("kept", "dropped", "outside")
    )
    assert np.array_equal(kept, np.asarray(piece).astype(int)[2:-2, 2:-2])
    assert np.abs(kept - dropped).mean() > 20 and np.abs(outside - dropped).mean() > 5


class Run:
    """What `vtc.compress` returns, as far as pictures look at it."""

    def __init__(self, *reports):
        self.reports = list(reports)


def test_a_run_and_its_reports_are_painted_as_the_last_of_them():
    first, last = pictures(), report_keeping(view((90, 120), (2, 2)), (2, 0, 0))
    reports = [Report([each], "globalcom2", {"retention": 0.25}) for each in (first, last)]
    picture = Image.new("RGB", (120, 90), GREEN)
    expected = np.asarray(visualize(picture, reports[-1]))
    for given in (Run(*reports), reports, tuple(reports)):
        assert np.array_equal(np.asarray(visualize(picture, given)), expected)
    assert not np.array_equal(np.asarray(visualize(picture, reports[0])), expected)
    for given, message in (
        ([], "there is none yet"),
        (Run(), "there is none yet"),
        ("kept", "got str"),
        (None, "got NoneType"),
        ([1], "got list"),
    ):
        with pytest.raises(VTCError, match=f"^report: {message}"):
            visualize(picture, given)
    for width in (0, 1.5, "x", None):
        with pytest.raises(VTCError, match="^width: got"):
            visualize(picture, first, width=width)
    for index in (1, "x", None, 0.0):
        with pytest.raises(VTCError, match="^index: got"):
            visualize(picture, reports[0], index)


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
