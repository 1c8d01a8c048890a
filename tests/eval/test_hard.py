"""Hard questions: coarse pictures, and which questions they leave."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from tests.eval.synthetic import answers, write_accuracy
from vtc.errors import VTCError
from vtc.eval.accuracy.hard import coarse, hard_items
from vtc.eval.accuracy.summary import cells, summarise
from vtc.eval.common.settings import FULL, Setting, plan


def picture(width, height):
    return Image.fromarray(
        np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


def test_a_coarse_picture_has_the_old_size_and_the_detail_of_a_small_one():
    image = picture(64, 48)
    found = coarse(image, 0.25)
    assert found.size == image.size and found.mode == "RGB"
    small = image.resize((32, 24), Image.Resampling.BICUBIC)
    assert found.tobytes() == small.resize((64, 48), Image.Resampling.BICUBIC).tobytes()

    def fine(img):  # what is above half of the sampling rate
        spectrum = np.abs(np.fft.fft2(np.asarray(img, dtype=float).mean(-1)))
        return spectrum[12:37, 16:49].sum() / spectrum.sum()

    assert fine(found) < 0.3 * fine(image)


def test_a_picture_keeps_a_pixel():
    assert coarse(picture(3, 200), 0.001).size == (3, 200)


def test_flat_colours_stay():
    flat = Image.new("RGB", (20, 30), (10, 200, 77))
    assert coarse(flat, 0.1).tobytes() == flat.tobytes()


def row(setting, item, score):
    return replace(answers([setting], 1, 1)[0], item=item, score=score, cluster=item)


def test_hard_is_what_the_full_model_alone_answers():
    quarter = Setting("none", options={"pixels": 0.25})
    tenth = Setting("none", options={"pixels": 0.1})
    found = {
        FULL.key: [
            row(FULL, name, score) for name, score in zip("abcd", (1, 1, 0, 1), strict=True)
        ],
        quarter.key: [
            row(quarter, name, score) for name, score in zip("abc", (1, 0, 0), strict=True)
        ],
    }
    asked = [FULL, quarter, tenth, Setting("pool", 0.25)]
    # d was not asked about a coarse picture, c the full model does not know
    assert hard_items(asked, found) == {0.25: ["b"], 0.1: []}
    assert hard_items(asked[:1], found) == {}


def test_summary_has_hard_questions_beside_the_others(tmp_path):
    chosen = [*plan(["pool"], [0.25, 0.5]), Setting("none", options={"pixels": 0.25})]
    full, pool, half, coarse_ = chosen
    made = [
        *(row(full, item, 1.0) for item in "abcd"),
        *(row(coarse_, item, score) for item, score in zip("abcd", (1, 0, 0, 0), strict=True)),
        *(row(pool, item, score) for item, score in zip("abcd", (0, 1, 1, 0), strict=True)),
        *(row(half, item, 1.0) for item in "abcd"),
    ]
    suite = {"name": "reference", "metric": "accuracy", "limit": None, "items": 4, "facts": {}}
    write_accuracy(tmp_path, chosen, 1, rows=made, suite=suite)
    summary = summarise(tmp_path)
    assert summary["hard"] == {"0.25": 3}
    by_name = {(e["method"], e["retention"]): e for e in summary["methods"] if not e["options"]}
    assert by_name["pool", 0.25]["hard"] == pytest.approx(2 / 3)
    low, high = (by_name["pool", 0.25][name] for name in ("hard_low", "hard_high"))
    assert 0 <= low < 2 / 3 < high <= 1
    assert by_name["pool", 0.5]["hard"] is None and by_name["none", 1.0]["hard"] is None
    header, lines = cells(summary)
    assert header[5:7] == ["hard", "hard, 95 %"]
    shown = {(line[0], line[1]): line[5] for line in lines}
    assert shown.pop(("pool", "25%")) == "66.7" and set(shown.values()) == {""}


@pytest.mark.parametrize("share", [0.0, 1.0, 1.5])
def test_shares_of_pixels_are_checked(share):
    with pytest.raises(VTCError, match="pixels: got"):
        plan(["pool"], [0.5], pixels=[share])
