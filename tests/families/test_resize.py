"""Pictures made smaller: the outcome is that of the bare model on a small picture in a short prompt.

Two references. Pixels: a picture made small by Pillow, through the family's own processor. The rest: the
bare model, called with what `small` puts together.
"""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import (
    LlavaNextImageProcessorPil,
)
from transformers.models.pixtral.image_processing_pil_pixtral import PixtralImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import vtc
from tests.families import by_hand, tiny
from tests.families.models import PINPOINTS
from tests.families.small import (
    CASES,
    CROPS,
    FREE,
    LARGE,
    METHODS,
    ROWS,
    WIDE,
    encoded,
    given,
    prompt,
    rows_of,
    short_rows,
)
from tests.hf.methods import Early, Norms
from tests.hf.tiny import snapshot
from tests.methods.images import image
from vtc import VTCError
from vtc.functional.anyres import tile_grid
from vtc.methods.pool import Pool
from vtc.methods.resize import Resize
from vtc.methods.uniform import Uniform
from vtc.packing import Packing
from vtc.plugins.model.smaller.choose import Choice, choose, grids

ASK = {
    "greedy": dict(do_sample=False),
    "beams": dict(do_sample=False, num_beams=3),
    "static": dict(do_sample=False, cache_implementation="static"),
}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name, video", CASES)
def test_forward_is_that_of_small_pictures(name: str, video: bool, side: str) -> None:
    model, rows = tiny.built(name), rows_of(name, video)
    method = METHODS[name]
    batch, alone = given(name, model, rows, method, side=side)
    with torch.no_grad(), vtc.compress(model, method) as run:
        got = model(**batch).logits
    images = run.reports[-1].images
    assert sum(image.full is not None for image in images) >= 2
    for each in images:
        assert each.patches_after <= each.asked and each.patches_after <= each.patches_before
    for row, one in enumerate(alone):
        with torch.no_grad():
            want = model(**one).logits[0]
        mine = got[row, -len(want) :] if side == "left" else got[row, : len(want)]
        torch.testing.assert_close(mine, want, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("mode", ASK)
@pytest.mark.parametrize("name, video", CASES)
def test_generate_is_that_of_small_pictures(name: str, video: bool, mode: str) -> None:
    model, rows = tiny.built(name), rows_of(name, video)
    method = METHODS[name]
    if mode == "beams" and transformers.__version__ < "5.19":
        pytest.skip("the bare model repeats the images of a prompt one by one, in the wrong order")
    batch, alone = given(name, model, rows, method)
    ask = dict(ASK[mode], max_new_tokens=4, min_new_tokens=4)
    with vtc.compress(model, method):
        got = model.generate(**batch, **ask)
    length = batch["input_ids"].shape[1]
    assert torch.equal(got[:, :length], batch["input_ids"])
    for row, one in enumerate(alone):
        want = model.generate(**one, **ask)[0, one["input_ids"].shape[1] :]
        assert got[row, length:].tolist() == want.tolist()


@pytest.mark.parametrize(
    "behind, positions",
    [
        (Uniform(), "original"),
        (Norms(), "contiguous"),
        (Pool(), "regrid"),
        (Early(), "original"),
    ],
)
# of the shrunk canvas the thumbnail alone is left, which the bare model cannot be given
@pytest.mark.parametrize("name, video", [c for c in CASES if c[0] != "llava_onevision_shrunk"])
def test_a_method_behind(name: str, video: bool, behind: Any, positions: str) -> None:
    """One budget: the method behind leaves that many tokens of the small pictures."""
    model, rows = tiny.built(name), rows_of(name, video)
    plan = [Resize(0.4, share=0.5), behind]
    batch, alone = given(name, model, rows, plan)
    with torch.no_grad(), vtc.compress(model, plan, positions=positions) as run:
        got = model(**batch).logits
        tokens = model.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    report = run.reports[0]
    assert report.method == f"resize+{behind.name}" and len(report.stages) == 2
    assert any(image.full is not None for image in report.images)
    images = iter(report.images)
    for row, one in enumerate(alone):
        mine = [next(images) for _ in rows[row]]
        kept = [math.floor(0.4 * image.patches_before + 1e-9) for image in mine]
        assert [image.asked for image in mine] == kept
        assert [image.patches_after for image in mine] == kept
        one_method = replace(behind, tokens=kept) if kept else behind
        short = by_hand.shorten(model, one, one_method, positions)
        want = by_hand.logits(model, short)
        torch.testing.assert_close(got[row, -len(want) :], want, atol=2e-3, rtol=1e-3)
        ask = dict(max_new_tokens=3, min_new_tokens=3, do_sample=False)
        assert tokens[row, -3:].tolist() == by_hand.generate(model, short, **ask)


@pytest.mark.parametrize("name", CROPS[:3])
def test_the_thumbnail_alone(name: str) -> None:
    """Below the smallest canvas, beside a picture that has crops left; features made by hand."""
    model, rows = tiny.built(name), [[LARGE], [LARGE]]
    batch = tiny.inputs(name, rows)
    method, base = Resize(tokens=[16, 40]), model.model
    with torch.no_grad(), vtc.compress(model, method) as run:
        got = model(**batch).logits
        tokens = model.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert [i.patches_after for i in run.reports[0].images] == [16, 32]
    assert base.config.image_grid_pinpoints == PINPOINTS
    with torch.no_grad():
        layer, default = (
            base.config.vision_feature_layer,
            "siglip" not in str(type(base.vision_tower)).lower(),
        )
        states = base.vision_tower(batch["pixel_values"][0, :1], output_hidden_states=True)
        hidden = states.hidden_states[layer][:, int(default) :]
        feature = torch.cat([base.multi_modal_projector(hidden)[0], base.image_newline[None]])
        ids = batch["input_ids"][0][batch["attention_mask"][0].bool()].tolist()
        first, last = ids.index(tiny.IMAGE), len(ids) - ids[::-1].index(tiny.IMAGE)
        embed = model.get_input_embeddings()
        parts = [embed(torch.tensor(ids[:first])), feature, embed(torch.tensor(ids[last:]))]
        want = model(inputs_embeds=torch.cat(parts)[None]).logits[0]
        said = model.generate(
            inputs_embeds=torch.cat(parts)[None],
            max_new_tokens=3,
            min_new_tokens=3,
            do_sample=False,
        )
        assert tokens[0, -3:].tolist() == said[0, -3:].tolist()
        torch.testing.assert_close(got[0, -len(want) :], want, atol=2e-4, rtol=1e-4)
        _, alone = given(name, model, [[LARGE]], Resize(tokens=40))
        want = model(**alone[0]).logits[0]
    if torch.equal(batch["input_ids"][1], batch["input_ids"][0]):
        torch.testing.assert_close(got[1, -len(want) :], want, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("name, video", CASES)
def test_retention_one_and_removal_change_no_bit(name: str, video: bool) -> None:
    model, batch = tiny.built(name), tiny.inputs(name, rows_of(name, video))
    with torch.no_grad():
        bare = model(**batch).logits
        for plan in (Resize(1.0), [Resize(1.0), Uniform()]):
            with vtc.compress(model, plan) as run:
                assert torch.equal(model(**batch).logits, bare)
            assert all(image.full is None for image in run.reports[-1].images)
        with vtc.compress(model, METHODS[name]):
            assert not torch.equal(model(**batch).logits, bare)
        assert torch.equal(model(**batch).logits, bare)
    assert "_vtc" not in vars(model) and "generate" not in vars(model)


def test_turns_go_on_behind_small_pictures() -> None:
    """A conversation in a cache: a second question, then another picture."""
    for name in ("qwen2_vl", "llava_pixtral"):
        model, method = tiny.built(name), Resize(0.5)
        first, second = (
            tiny.inputs(name, [[kind]], seed) for kind, seed in ((LARGE, 0), (WIDE, 1))
        )
        _, (one,) = given(name, model, [[LARGE]], method)
        small = encoded(model, method, second)
        (other,) = short_rows(model, name, second, small)
        ask = dict(max_new_tokens=3, min_new_tokens=3, do_sample=False)
        ask |= dict(return_dict_in_generate=True)
        more = torch.tensor([[5, 6, 7]])
        with vtc.compress(model, method):
            out = model.generate(**first, **ask)
            text = out.sequences
            ids = torch.cat([text, more], 1)
            said = model.generate(
                **prompt(name, ids[0].tolist()), **ask, past_key_values=out.past_key_values
            )
            whole = torch.cat([said.sequences, second["input_ids"]], 1)
            pixels = {
                k: v for k, v in second.items() if "pixel" in k or "grid" in k or "sizes" in k
            }
            last = model.generate(
                **prompt(name, whole[0].tolist()),
                **pixels,
                **ask,
                past_key_values=said.past_key_values,
            )
        answer = text[0, first["input_ids"].shape[1] :].tolist()
        again = said.sequences[0, ids.shape[1] :].tolist()
        final = last.sequences[0, whole.shape[1] :].tolist()
        pixels = {k: v for k, v in one.items() if k not in prompt(name, [1])}
        row = one["input_ids"][0].tolist()
        bare = dict(ask, return_dict_in_generate=False)
        want = model.generate(**prompt(name, row), **pixels, **bare)[0].tolist()
        assert want == [*row, *answer]
        row = [*want, 5, 6, 7]
        want = model.generate(**prompt(name, row), **pixels, **bare)[0].tolist()
        assert want == [*row, *again]
        row = [*want, *other]
        both = {
            k: torch.cat([v, small[k]]) if "grid" in k or "sizes" in k else joined(v, small[k])
            for k, v in pixels.items()
        }
        want = model.generate(**prompt(name, row), **both, **bare)[0].tolist()
        assert want == [*row, *final]


def joined(a: Tensor, b: Tensor) -> Tensor:
    """Pixels of two calls as one, those of Pixtral padded alike."""
    if a.dim() == 4:
        box = [max(a.shape[i], b.shape[i]) for i in (2, 3)]
        a, b = (
            torch.nn.functional.pad(x, (0, box[1] - x.shape[3], 0, box[0] - x.shape[2]))
            for x in (a, b)
        )
    return torch.cat([a, b])


@pytest.mark.parametrize("name", [*FREE, "llava_next", "internvl"])
def test_labels_and_columns_of_logits(name: str) -> None:
    model, method = tiny.built(name), METHODS[name]
    batch, alone = given(name, model, ROWS[name], method)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    labels = labels.masked_fill(labels == tiny.IMAGE, -100)
    labels = labels.masked_fill(labels == tiny.BOS, -100)  # padding may stand before it
    with torch.no_grad():
        with vtc.compress(model, method):
            loss = model(**batch, labels=labels).loss
            last = model(**batch, logits_to_keep=3).logits
        sums, count = 0.0, 0
        for row, one in enumerate(alone):
            want = model(**one).logits[0]
            torch.testing.assert_close(last[row], want[-3:], atol=2e-4, rtol=1e-4)
            goal = one["input_ids"][0, 1:]
            seen = goal != tiny.IMAGE
            losses = torch.nn.functional.cross_entropy(want[:-1], goal, reduction="none")
            sums, count = sums + losses[seen].sum(), count + int(seen.sum())
    torch.testing.assert_close(loss, sums / count, atol=1e-4, rtol=1e-4)


def test_embeddings_in_place_of_ids_and_positions_of_the_caller() -> None:
    model, method = tiny.built("llava_pixtral"), Resize(0.5)
    batch, (one,) = given("llava_pixtral", model, [[LARGE]], method)
    embeds = model.get_input_embeddings()(batch["input_ids"])
    count = torch.arange(batch["input_ids"].shape[1])[None] + 7
    with torch.no_grad():
        want = model(**one).logits
        moved = model(**one, position_ids=torch.arange(want.shape[1])[None] + 7).logits
        with vtc.compress(model, method):
            given_embeds = {k: v for k, v in batch.items() if k != "input_ids"}
            torch.testing.assert_close(model(**given_embeds, inputs_embeds=embeds).logits, want)
            torch.testing.assert_close(model(**batch, position_ids=count).logits, moved)


# -- pixels -------------------------------------------------------------------------------------


def photograph(height: int, width: int) -> Image.Image:
    """Something with edges, colours and noise."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / (5 + 3 * c)) * np.cos(y / (7 - c)) * 90 + 120 for c in range(3)]
    pixels = np.stack(waves, -1) + rng.normal(0, 6, (height, width, 3))
    pixels[height // 4 : height // 2, width // 3 : width // 2] = (250, 250, 250)
    pixels[-height // 4 :, : width // 3] = (0, 0, 0)
    pixels[:2, :2] = (255, 255, 255)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def processed(name: str, image: Image.Image) -> dict[str, Tensor]:
    """What the family's own processor makes of a picture, for the tiny models."""
    tile = {"height": tiny.TILE, "width": tiny.TILE}
    if name.startswith("qwen"):
        limits = dict(min_pixels=1, max_pixels=10**8)
        make = Qwen2VLImageProcessorPil(patch_size=tiny.PATCH, **limits)
    elif name == "llava_pixtral":
        sizes = dict(patch_size=dict(height=tiny.PATCH, width=tiny.PATCH))
        make = PixtralImageProcessorPil(size={"longest_edge": 4096}, **sizes)
    elif name == "llava_next":
        make = LlavaNextImageProcessorPil(
            size={"shortest_edge": tiny.TILE}, crop_size=tile, image_grid_pinpoints=PINPOINTS
        )
    else:
        crops = dict(crop_to_patches=True, min_patches=1, max_patches=6)
        make = GotOcr2ImageProcessorPil(size=tile, **crops)
    out = make(image, return_tensors="pt")
    return {k: v for k, v in out.items() if isinstance(v, Tensor) and k != "num_patches"}


@pytest.mark.parametrize(
    "name, size, small, budget",
    [
        ("qwen2_vl", (128, 192), (64, 96), 24),
        ("qwen2_vl", (128, 192), (96, 128), 50),
        ("llava_pixtral", (64, 96), (48, 80), 60),
        ("llava_next", (64, 64), (32, 32), 40),
        ("llava_next", (32, 96), (21, 64), 40),
        ("internvl", (64, 96), (32, 64), 12),
        ("internvl", (64, 96), (32, 32), 5),
    ],
)
def test_pixels_are_those_of_a_small_picture(
    name: str, size: tuple[int, int], small: tuple[int, int], budget: int
) -> None:
    """At a size at which the processor leaves the picture alone, so that it is resized once each time.
    The thumbnail stays that of the picture as it was."""
    model, image = tiny.build(name), photograph(*size)
    out = processed(name, image)
    want = processed(name, image.resize(small[::-1], Image.Resampling.BICUBIC))
    pixels = out["pixel_values"]
    tokens = size[0] * size[1] // (64 if name == "llava_pixtral" else 256)
    if name == "internvl":
        tokens = 4 * len(pixels)
    elif name == "llava_next":
        crops = tile_grid(size, [tuple(p) for p in PINPOINTS], tiny.TILE)
        tokens = Packing((4, 4), crops, size, newline=True).length
    ids = [3, 4, *[tiny.IMAGE] * tokens, 5]
    got = encoded(model, Resize(tokens=budget), {**prompt(name, ids), **out})
    if "image_grid_thw" in want:
        assert torch.equal(got["image_grid_thw"], want["image_grid_thw"])
    if name == "llava_pixtral":
        assert got["image_sizes"].tolist() == [list(small)]
    assert got["pixel_values"].shape == want["pixel_values"].shape
    off = (got["pixel_values"] - want["pixel_values"]).abs()
    if name == "llava_next":
        off = off[:, 1:]
    elif name == "internvl" and len(off) > 1:
        off = off[:-1]
    levels = off * 255 * 0.27  # the processors' standard deviation
    assert levels.mean() < 0.5 and levels.max() < 8  # Pillow rounds and cuts between its two passes


def test_a_break_behind_every_row_goes_with_its_row() -> None:
    """Pixtral's own prompts: a break behind each row of tokens, another token at the end."""
    model, method = tiny.built("llava_pixtral"), Resize(tokens=8)
    out = processed("llava_pixtral", photograph(32, 48))

    def ids(rows: int, cols: int) -> list[int]:
        row = [*[tiny.IMAGE] * cols, 71]
        return [tiny.BOS, 9, *(row * rows)[:-1], 72, 8, 7]

    small = encoded(model, method, {**prompt("llava_pixtral", ids(4, 6)), **out})
    assert small["image_sizes"].tolist() == [[16, 32]] or small["image_sizes"].tolist() == [
        [16, 24]
    ]
    rows, cols = (small["image_sizes"][0] // tiny.PATCH).tolist()
    with torch.no_grad():
        want = model(**prompt("llava_pixtral", ids(rows, cols)), **small).logits
        with vtc.compress(model, method) as run:
            got = model(**prompt("llava_pixtral", ids(4, 6)), **out).logits
    assert run.reports[0].images[0].patches_after == rows * cols
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)


# -- sizes ---------------------------------------------------------------------------------------


def test_sizes_have_the_shape_of_the_picture() -> None:
    every = grids((12, 8))
    assert every[-1] == Choice(96, (12, 8)) and every[0].patches == 1
    for choice in every:
        rows, cols = choice.size
        assert abs(rows - cols * 12 / 8) <= 1.5 or abs(cols - rows * 8 / 12) <= 1
        assert choice.patches == rows * cols
    assert [c.size for c in grids((1, 5))] == [(1, n) for n in range(1, 6)]
    assert choose(every, 24).size == (6, 4)
    assert choose(every, 23).patches <= 23
    assert grids((4, 4), frames=3)[-1].patches == 48


def test_what_a_method_behind_leaves_open() -> None:
    few = [Choice(32, (32, 32)), Choice(80, (96, 96))]
    assert choose(few, 50, 20).patches == 32
    assert choose(few, 30, 20).patches == 32  # nothing between: the next above
    assert choose(few, 70, 40).patches == 80
    with pytest.raises(VTCError, match="budget of 30 patch tokens.*can leave 32, 80.*resize.pool"):
        choose(few, 30)
    image = Packing((10, 10), unpad="none")
    assert [Resize(0.25, share=s).target(image) for s in (0, 0.5, 1)] == [100, 50, 25]


REFUSED = {
    "llava": ("brings every picture to one size", {}),
    "llava_siglip": ("brings every picture to one size", {}),
    "paligemma": ("brings every picture to one size", {}),
    "gemma3": ("brings every picture to one size", {}),
    "video_llava": ("brings every picture to one size", {}),
    "vipllava": ("brings every picture to one size", {}),
    "idefics3": ("name every crop", {}),
    "smolvlm": ("name every crop", {}),
    "cohere2_vision": ("a break behind every crop", {}),
    "aya_vision": ("does not know", {}),
}


@pytest.mark.parametrize("name", REFUSED)
def test_families_whose_pictures_have_one_size(name: str) -> None:
    model = tiny.built(name)
    before = snapshot(model)
    with pytest.raises(VTCError, match=f"'resize' makes no picture smaller.*{REFUSED[name][0]}"):
        vtc.apply(model, "resize", retention=0.5)
    assert snapshot(model) == before


def test_refused() -> None:
    model = tiny.built("qwen2_vl")
    batch = tiny.inputs("qwen2_vl", [[LARGE, WIDE]])
    with pytest.raises(VTCError, match=r"0\.5 for 'resize' and 0\.2 for 'uniform'.*one budget"):
        vtc.compress(model, [Resize(0.5), Uniform(0.2)])
    with pytest.raises(VTCError, match="share: got 2"):
        vtc.compress(model, "resize+uniform", share=2)
    with pytest.raises(VTCError, match="retention: options go with a method's name"):
        vtc.compress(model, ["resize", "uniform"], retention=0.5)
    with pytest.raises(VTCError, match="works on pixels"):
        Resize(0.5).compress(image())
    part = copy.deepcopy(batch)
    at = (part["input_ids"][0] == tiny.IMAGE).nonzero()[2, 0]
    part["attention_mask"][0, at] = 0
    with vtc.compress(model, "resize", retention=0.5), torch.no_grad():
        with pytest.raises(VTCError, match="attention_mask: hides a part of an image"):
            model(**part)
        places = torch.zeros(4, *batch["input_ids"].shape, dtype=torch.long)
        with pytest.raises(VTCError, match="position_ids: got .*rows and columns"):
            model(**batch, position_ids=places)


def test_an_image_that_is_hidden_whole_is_not_there() -> None:
    model, method = tiny.built("qwen2_vl"), Resize(0.5)
    batch = tiny.inputs("qwen2_vl", [[LARGE, WIDE]])
    alone, (one,) = given("qwen2_vl", model, [[LARGE]], method)
    where = (batch["input_ids"][0] == tiny.IMAGE).nonzero().squeeze(1)
    batch["attention_mask"][0, where[36:]] = 0
    text = batch["input_ids"][0].tolist()
    short = one["input_ids"][0].tolist()
    tail = [t for t in text[int(where[35]) + 1 :] if t != tiny.IMAGE]
    last = max(i for i, t in enumerate(short) if t == tiny.IMAGE)
    row = [*text[: int(where[0])], *[tiny.IMAGE] * short.count(tiny.IMAGE), *tail]
    assert short[: last + 1].count(tiny.IMAGE) == 18 or last
    small = encoded(model, method, batch)
    pixels = {
        "pixel_values": small["pixel_values"][: one["pixel_values"].shape[0]],
        "image_grid_thw": small["image_grid_thw"][:1],
    }
    with torch.no_grad():
        with vtc.compress(model, method) as run:
            got = model(**batch).logits
        want = model(**prompt("qwen2_vl", row), **pixels).logits
    assert [i.tokens_after for i in run.reports[0].images][1] == 0
    torch.testing.assert_close(got, want, atol=2e-4, rtol=1e-4)


def test_the_report_counts_from_the_picture_as_it_was() -> None:
    model, batch = tiny.built("qwen2_vl"), tiny.inputs("qwen2_vl", [[LARGE]])
    with torch.no_grad(), vtc.compress(model, "resize+uniform", tokens=7, share=0.5) as run:
        model(**batch)
    assert run.method == Resize(tokens=7, share=0.5)
    (image_report,) = run.reports[0].images
    assert (image_report.patches_before, image_report.patches_after) == (36, 7)
    assert image_report.patch_grid == (4, 4) or math.prod(image_report.patch_grid) <= 15
    assert image_report.retention == 7 / 36 and image_report.note == ""
    again = vtc.Report.from_dict(run.reports[0].to_dict()).images[0]
    assert again.full == image_report.full and again.counts() == image_report.counts()
