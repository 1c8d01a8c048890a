"""Reports: counts, laziness and the way through JSON."""

from __future__ import annotations

import json

import pytest
import torch

from vtc.errors import VTCError
from vtc.report import ImageReport, Report
from vtc.tokens import MergeIndex, VisualTokens, keep_patches


def tokens(tile_grid=(2, 2), image_size=(120, 128), patch_grid=(4, 4), newline=True):
    count = 1 if tile_grid is None else 1 + tile_grid[0] * tile_grid[1]
    features = torch.arange(count * patch_grid[0] * patch_grid[1] * 3.0)
    return VisualTokens(
        features.reshape(count, -1, 3),
        patch_grid,
        tile_grid,
        image_size,
        torch.zeros(3) if newline else None,
    )


def selection(view, count):
    """Keep the first `count` valid patches of every tile."""
    keep = view.valid & (view.valid.long().cumsum(1) <= count)
    return keep_patches(view, keep)


def test_counts_by_hand():
    # 120 x 128 in a canvas of 8 x 8 patches: 7.5 rows hold image, one row is cut at no side
    view = tokens(image_size=(96, 128))  # 6 rows of 8, one cut above and one below
    image = ImageReport.from_tokens(view, selection(view, 3), seconds=0.5, sample=2)
    assert (image.patches_before, image.separators_before) == (16 + 48, 6)
    assert (image.patches_after, image.separators_after) == (5 * 3, 6)
    assert (image.tokens_before, image.tokens_after) == (70, 21)
    assert image.per_tile == [(3, 16), (3, 12), (3, 12), (3, 12), (3, 12)]
    assert image.per_tile_retention == [3 / 16, 0.25, 0.25, 0.25, 0.25]
    assert image.retention == 15 / 64
    assert (image.seconds, image.sample) == (0.5, 2)


def test_kept_is_tile_row_col_in_order():
    view = tokens(image_size=(96, 128))
    image = ImageReport.from_tokens(view, selection(view, 1))
    # the first valid patch of the upper crops is in row 1: row 0 is padding
    assert image.kept == [(0, 0, 0), (1, 1, 0), (2, 1, 0), (3, 0, 0), (4, 0, 0)]


def test_single_tile_without_separators():
    view = tokens(None, None, newline=False)
    image = ImageReport.from_tokens(view, selection(view, 4))
    assert (image.tokens_before, image.tokens_after, image.separators_after) == (16, 4, 0)
    assert image.per_tile_retention == [0.25]


def test_nothing_is_computed_when_it_is_made():
    """A prefill must not pay for numbers that nobody reads, nor keep features alive."""
    view = tokens()
    image = ImageReport.from_tokens(view, selection(view, 2))
    lazy = {"kept", "per_tile", "share", "group", "patches_before", "patches_after"}
    assert not lazy & set(vars(image))
    held = [value for value in vars(image).values() if torch.is_tensor(value)]
    assert all(value.dim() == 1 for value in held)


def test_share_of_a_selection():
    view = tokens(image_size=(96, 128))
    share = ImageReport.from_tokens(view, selection(view, 2)).share
    assert share.shape == (5, 16)
    assert torch.equal(share == -1, ~view.valid)
    assert int((share == 1).sum()) == 10
    assert set(share.unique().tolist()) == {-1.0, 0.0, 1.0}


def merged_report():
    """Tile of 2 x 2: patch 0 kept, patches 1 and 2 merged (1 also in a second token), 3 dropped."""
    view = tokens(None, None, (2, 2), newline=False)
    out = keep_patches(view, torch.tensor([[True, True, True, False]]))
    index = MergeIndex(
        output=torch.tensor([0, 1, 1, 2, 2]),
        source=torch.tensor([0, 1, 2, 1, 2]),
        weight=torch.tensor([1.0, 0.5, 0.5, 0.25, 0.75]),
        num_outputs=3,
        num_sources=4,
    )
    return Report([ImageReport.from_tokens(view, out.replace(merged=index))], "pool", seconds=0.001)


def test_share_and_group_of_merged_tokens():
    image = merged_report().images[0]
    assert image.share.tolist() == [[1.0, 0.75, 1.0, 0.0]], "0.5 + 0.25, and 1.25 cut to 1"
    assert image.group.tolist() == [[-1, 1, 2, -1]], "where each has its largest part"


@pytest.mark.parametrize("size", [(96, 128), (300, 77), (64, 64)])
def test_round_trip_through_json(tmp_path, size):
    view = tokens(image_size=size)
    report = Report(
        [ImageReport.from_tokens(view, selection(view, n), n / 7, n) for n in (1, 5)],
        "globalcom2",
        {"retention": 0.25, "score": "logits"},
        0.125,
        "contiguous",
        ["no CLS token: attention received is used"],
    )
    report.save_json(tmp_path / "report.json")
    again = Report.load_json(tmp_path / "report.json")
    assert again.to_dict() == report.to_dict()
    assert torch.equal(again.images[1].share, report.images[1].share)
    assert json.loads((tmp_path / "report.json").read_text())["images"][0]["kept"][0] == [0, 0, 0]


def test_counts_alone_are_no_report():
    report = merged_report()
    data = report.to_dict(details=False)
    assert data["images"][0]["patches_after"] == 3 and "tile" not in data["images"][0]
    with pytest.raises(VTCError, match="no report in this data"):
        Report.from_dict(data)


def test_round_trip_with_merged_tokens(tmp_path):
    report = merged_report()
    report.save_json(tmp_path / "report.json")
    again = Report.load_json(tmp_path / "report.json")
    assert again.to_dict() == report.to_dict()
    assert torch.equal(again.images[0].group, report.images[0].group)


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"format": "x"}', '{"format": "vtc-report-1", "images": [{}]}']
)
def test_files_that_are_no_reports(tmp_path, text):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(VTCError, match="^report: "):
        Report.load_json(tmp_path / "report.json")
    with pytest.raises(VTCError, match="^report: cannot read"):
        Report.load_json(tmp_path / "missing.json")


def test_renderings():
    view = tokens(image_size=(96, 128))
    report = Report([ImageReport.from_tokens(view, selection(view, 3))] * 2, "random", seconds=0.01)
    line = report.summary()
    assert line == (
        "random: 30 of 128 patch tokens (23.4%) + 12 newline tokens, 2 images, selection 10.0 ms"
    )
    assert str(report) == line and "\n" not in line
    table = report.table()
    assert table.row_count == 2
    cells = {column.header: next(iter(column.cells)) for column in table.columns}
    high, wide = report.images[0].image_size
    down, across = report.images[0].tile_grid
    assert cells["width x height"] == f"{wide} x {high}"
    assert cells["rows x columns of crops"] == f"{down} x {across}"
    assert Report().summary().startswith("none: 0 of 0 patch tokens")
