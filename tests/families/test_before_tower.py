"""Tokens dropped before the vision tower: it encodes what is left as if the rest could not be seen.

The reference calls the tower's layers by hand on all patches, with rotary positions, windows and learned
positions written out here, under a mask that hides the keys of what is dropped.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

import vtc
from tests.families import by_hand, tiny
from tests.hf.tiny import snapshot
from vtc import VTCError
from vtc.methods.pixelprune import PixelPrune

QWEN = ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"]
CASES = [(name, video) for name in QWEN for video in (False, True)]
PLACES = dict[int, list[list[tuple[int, int, int]]]]


def paper(name: str, rows: tiny.Rows, **more: Any) -> dict[str, Any]:
    """A batch, much of whose pictures repeats itself."""
    batch = tiny.inputs(name, rows, **more)
    for key in ("pixel_values", "pixel_values_videos"):
        if key in batch:
            tokens = batch[key].unflatten(0, (-1, 4))
            drawn = torch.rand(len(tokens), generator=torch.Generator().manual_seed(1)) < 0.6
            tokens[drawn] = 0.25
    return batch


def rotary(row: Tensor, col: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines `[N, width]` of patches at these rows and columns."""
    rate = 10000.0 ** (-torch.arange(0, width // 2, 2) / (width // 2))
    angle = torch.cat([row[:, None] * rate, col[:, None] * rate], 1)
    angle = torch.cat([angle, angle], 1)
    return angle.cos(), angle.sin()


def turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return x * cos + torch.cat([-b, a], -1) * sin


@torch.no_grad()
def features(
    tower: Any, pixels: Tensor, grid: list[int], kept: list[tuple[int, int, int]]
) -> tuple[Tensor, list[Tensor]]:
    """Of one image or clip, the tokens `kept` (frame, row, column), and their deeper levels."""
    frames, high, wide = grid
    merge = tower.spatial_merge_size
    frame, y, x, a, b = torch.meshgrid(
        *(torch.arange(n) for n in (frames, high // merge, wide // merge, merge, merge)),
        indexing="ij",
    )
    frame, y, x = frame.flatten(), y.flatten(), x.flatten()
    row, col = y * merge + a.flatten(), x * merge + b.flatten()
    stays = torch.tensor(
        [place in set(kept) for place in zip(frame.tolist(), y.tolist(), x.tolist(), strict=True)]
    )
    hidden = tower.patch_embed(pixels)
    if hasattr(tower, "pos_embed"):
        side = math.isqrt(len(tower.pos_embed.weight))
        table = tower.pos_embed.weight.T.view(1, -1, side, side)
        learned = interpolate(table, (high, wide), mode="bilinear", align_corners=True)[0]
        hidden = hidden + learned[:, row, col].T
    full = getattr(tower, "fullatt_block_indexes", None)
    deep_at = list(getattr(tower, "deepstack_visual_indexes", ()))
    deep = []
    for index, block in enumerate(tower.blocks):
        together = frame[:, None] == frame[None, :]
        if full is not None and index not in full:
            size = tower.window_size // merge // tower.patch_size
            for place in (y // size, x // size):
                together &= place[:, None] == place[None, :]
        heads = block.attn.num_heads
        q, k, v = block.attn.qkv(block.norm1(hidden)).view(len(hidden), 3, heads, -1).unbind(1)
        cos, sin = (t[:, None] for t in rotary(row.float(), col.float(), q.shape[-1]))
        q, k = turned(q, cos, sin), turned(k, cos, sin)
        logits = torch.einsum("qhd,khd->hqk", q, k) / math.sqrt(q.shape[-1])
        logits = logits.masked_fill(~(together & stays[None, :]), -torch.inf)
        logits = logits.masked_fill(
            ~logits.isfinite().any(-1, keepdim=True), 0.0
        )  # of what is gone
        out = torch.einsum("hqk,khd->qhd", logits.softmax(-1), v).flatten(1)
        hidden = hidden + block.attn.proj(out)
        hidden = hidden + block.mlp(block.norm2(hidden))
        if index in deep_at:
            deep.append(tower.deepstack_merger_list[deep_at.index(index)](hidden[stays]))
    return tower.merger(hidden[stays]), deep


def kinds_of(batch: dict[str, Any]) -> list[tuple[str, str]]:
    kinds = (("image", "pixel_values"), ("video", "pixel_values_videos"))
    return [(kind, key) for kind, key in kinds if key in batch]


def expected(model: Any, batch: dict[str, Any], method: PixelPrune, policy: str) -> by_hand.Short:
    """The short prompt of one row, its visual tokens those of `features`."""
    assert method.before == "language"
    with torch.no_grad(), vtc.compress(model, method) as run:
        model(**batch)
    images = iter(run.reports[-1].images if run.reports else ())
    shown = sorted(
        (int((batch["input_ids"][0] == token).nonzero()[0, 0]), kind, key)
        for token, (kind, key) in (
            (tiny.IMAGE if kind == "image" else tiny.VIDEO, (kind, key))
            for kind, key in kinds_of(batch)
        )
    )
    short = by_hand.shorten(model, batch, method, policy)
    for _, kind, key in shown:  # in these batches all images of a row stand before its clips
        grids = batch[f"{kind}_grid_thw"].tolist()
        parts = batch[key].split([math.prod(grid) for grid in grids])
        found = [
            features(model.model.visual, part, grid, next(images).kept)
            for part, grid in zip(parts, grids, strict=True)
        ]
        token = tiny.IMAGE if kind == "image" else tiny.VIDEO
        short.embeds[0, short.ids[0] == token] = torch.cat([f for f, _ in found])
        short.features[kind] = [f for f, _ in found]
        short.deep[kind] = [[levels[n] for _, levels in found] for n in range(len(found[0][1]))]
    return short


@pytest.mark.parametrize("retention", [0.5, None])
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("name, video", CASES)
def test_what_is_left_is_encoded_alone(
    name: str, video: bool, side: str, retention: float | None
) -> None:
    model, rows = tiny.built(name), tiny.rows_of(name, video)
    batch = paper(name, rows, side=side)
    early = PixelPrune(retention, before="tower")
    with torch.no_grad(), vtc.compress(model, early) as run:
        got = model(**batch).logits
        tokens = model.generate(**batch, max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert run.reports[0].total("patches_after") < run.reports[0].total("patches_before")
    with torch.no_grad(), vtc.compress(model, PixelPrune(retention)) as late:
        model(**batch)
    kept = [image.kept for image in late.reports[0].images]
    assert [image.kept for image in run.reports[0].images] == kept
    for row, one in enumerate(rows_alone(batch, rows)):
        short = expected(model, one, PixelPrune(retention), "original")
        want = by_hand.logits(model, short)
        mine = got[row, -len(want) :] if side == "left" else got[row, : len(want)]
        torch.testing.assert_close(mine, want, atol=2e-3, rtol=1e-3)
        ask = dict(max_new_tokens=3, min_new_tokens=3, do_sample=False)
        assert tokens[row, -3:].tolist() == by_hand.generate(model, short, **ask)


def rows_alone(batch: dict[str, Any], rows: tiny.Rows) -> list[dict[str, Any]]:
    """Each row by itself, without padding."""
    out, starts = [], {"image": 0, "video": 0}
    for index, row in enumerate(rows):
        keep = batch["attention_mask"][index].bool()
        names = ("input_ids", "attention_mask", "mm_token_type_ids")
        one = {name: batch[name][index][keep][None] for name in names}
        for kind, key in kinds_of(batch):
            count = sum(k == kind for k, _ in row)
            a, starts[kind] = starts[kind], starts[kind] + count
            grids = batch[f"{kind}_grid_thw"]
            if count:
                parts = batch[key].split(grids.prod(-1).tolist())
                one[key] = torch.cat(parts[a : a + count])
                one[f"{kind}_grid_thw"] = grids[a : a + count]
        out.append(one)
    return out


@pytest.mark.parametrize("name", QWEN)
def test_the_tower_has_less_to_do(name: str) -> None:
    model, batch = tiny.built(name), paper(name, [[tiny.C]])
    lengths: list[int] = []
    hook = model.model.visual.blocks[0].register_forward_pre_hook(
        lambda module, args: lengths.append(len(args[0]))
    )
    with torch.no_grad():
        for before in ("language", "tower"):
            with vtc.compress(model, "pixelprune", before=before) as run:
                model(**batch)
    hook.remove()
    (image,) = run.reports[0].images
    assert lengths == [4 * image.patches_before, 4 * image.patches_after]
    assert image.patches_after < image.patches_before


@pytest.mark.parametrize("name, video", CASES)
def test_nothing_dropped_changes_no_bit(name: str, video: bool) -> None:
    model, batch = tiny.built(name), tiny.inputs(name, tiny.rows_of(name, video))
    with torch.no_grad():
        bare = model(**batch).logits
        with vtc.compress(model, "pixelprune", retention=1.0, before="tower"):
            assert torch.equal(model(**batch).logits, bare)
        with vtc.compress(model, "pixelprune", before="tower") as run:  # noise: all is a surprise
            torch.testing.assert_close(model(**batch).logits, bare, atol=2e-4, rtol=1e-4)
        assert run.reports[0].total("patches_after") == run.reports[0].total("patches_before")
        assert torch.equal(model(**batch).logits, bare)
    assert "_vtc" not in vars(model)


def test_one_picture_whole_beside_one_that_is_not() -> None:
    model, batch = tiny.built("qwen2_5_vl"), paper("qwen2_5_vl", [[tiny.C], [tiny.A]])
    with (
        torch.no_grad(),
        vtc.compress(model, "pixelprune", retention=[1.0, 0.5], before="tower") as run,
    ):
        got = model(**batch).logits
        bare, short = rows_alone(batch, [[tiny.C], [tiny.A]])
    with torch.no_grad():
        want = model(**bare).logits[0]
    torch.testing.assert_close(got[0, -len(want) :], want, atol=2e-4, rtol=1e-4)
    want = by_hand.logits(model, expected(model, short, PixelPrune(0.5), "original"))
    torch.testing.assert_close(got[1, -len(want) :], want, atol=2e-3, rtol=1e-3)
    assert [image.retention for image in run.reports[0].images] == [1.0, 0.5]


def test_behind_a_smaller_picture() -> None:
    """`resize` in front: the small picture's patches, and no more of them than the budget."""
    model, batch = tiny.built("qwen2_5_vl"), paper("qwen2_5_vl", [[("image", (96, 128))]])
    lengths: list[int] = []
    tower = model.model.visual
    hook = tower.blocks[0].register_forward_pre_hook(lambda m, args: lengths.append(len(args[0])))
    plan = [vtc.create_method("resize", retention=0.25), PixelPrune(before="tower")]
    with torch.no_grad(), vtc.compress(model, plan) as run:
        assert model(**batch).logits.isfinite().all()
    hook.remove()
    (image,) = run.reports[0].images
    assert (image.patches_before, image.patches_after) == (48, 12)
    assert image.packing.patches <= 24 and lengths == [4 * 12]


def test_hidden_pictures_and_refusals() -> None:
    model, batch = tiny.built("qwen2_vl"), paper("qwen2_vl", [[tiny.C, tiny.A]])
    where = (batch["input_ids"][0] == tiny.IMAGE).nonzero().squeeze(1)
    batch["attention_mask"][0, where[16:]] = 0
    with torch.no_grad(), vtc.compress(model, "pixelprune", retention=0.5, before="tower") as run:
        got = model(**batch).logits
    assert [image.tokens_after for image in run.reports[0].images] == [8, 0]
    left = batch["attention_mask"][0].bool()
    one = {n: batch[n][:, left] for n in ("input_ids", "attention_mask", "mm_token_type_ids")}
    sizes = batch["image_grid_thw"].prod(-1).tolist()
    one["pixel_values"] = batch["pixel_values"].split(sizes)[0]
    one["image_grid_thw"] = batch["image_grid_thw"][:1]
    want = by_hand.logits(model, expected(model, one, PixelPrune(0.5), "original"))
    torch.testing.assert_close(got[0], want, atol=2e-3, rtol=1e-3)
    with pytest.raises(VTCError, match="before: got 'layers', allowed are language, tower"):
        PixelPrune(before="layers")
    for name in ("llava", "llava_next", "internvl", "gemma3"):
        other = tiny.built(name)
        before = snapshot(other)
        with pytest.raises(VTCError, match="before: got 'tower', but the vision tower of"):
            vtc.apply(other, "pixelprune", before="tower")
        assert snapshot(other) == before
