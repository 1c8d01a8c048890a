"""Positions on three axes, against transformers' own for the whole prompt; no vLLM is needed."""

from __future__ import annotations

import pytest
import torch

from tests.families import tiny
from tests.families.models import IMAGE
from vtc import VTCError
from vtc.plugins.vllm import mrope


def test_the_whole_prompt_is_put_back() -> None:
    ids, places = mrope.restored([1, 9, 9, 2, 9, 3], [(1, 2, 4), (4, 1, 3)])
    assert ids == [1, 9, 9, 9, 9, 2, 9, 9, 9, 3]
    assert places.tolist() == [0, 1, 2, 5, 6, 9]


def test_a_step_at_a_time_gives_transformers_positions() -> None:
    """Two images, kept tokens by chance, borders of steps at every token; large rows and columns
    survive bf16."""
    model = tiny.build("qwen2_5_vl")
    batch = tiny.inputs("qwen2_5_vl", [[("image", (96, 160)), ("image", (160, 64))]])
    ids = batch["input_ids"][0]
    theirs, _ = model.model.get_rope_index(
        batch["input_ids"],
        mm_token_type_ids=batch["mm_token_type_ids"],
        image_grid_thw=batch["image_grid_thw"],
    )
    whole = theirs[-3:, 0]
    rng = torch.Generator().manual_seed(0)
    grids = [(rows // 2, cols // 2) for _, rows, cols in batch["image_grid_thw"].tolist()]
    is_image = ids == IMAGE
    runs = is_image.nonzero().squeeze(1).split([r * c for r, c in grids])
    keep, rows, gaps = ~is_image, [], []
    for run, (height, width) in zip(runs, grids, strict=True):
        chosen = torch.randperm(height * width, generator=rng)[: height * width // 3].sort().values
        keep[run[chosen]] = True
        like = torch.zeros(len(chosen), 8, dtype=torch.bfloat16)
        place = mrope.columns(chosen // width, chosen % width, like)
        rows.append(torch.cat([like, place], 1))
    short = ids[keep]
    wanted = whole[:, keep]
    offset = 0
    for run, part in zip(runs, rows, strict=True):
        start = int(run[0]) - offset
        gaps.append((start, len(part), len(run)))
        offset += len(run) - len(part)
    long, places = mrope.restored(short.tolist(), gaps)
    assert long == ids.tolist()
    first = whole[:, places]
    embed = short == IMAGE
    for border in range(1, len(short)):
        positions = first
        for begin, end in ((0, border), (border, len(short))):
            count, before = int(embed[begin:end].sum()), int(embed[:begin].sum())
            step = torch.cat(rows)[before : before + count]
            parts = [step[:1], step[1:]] if count > 1 else [step] if count else []
            for _ in range(2):  # after preemption it is done once more
                out, positions, delta = mrope.recomputed(embed, parts, positions, begin)
            assert all(each.shape[1] == 8 for each in out)
        assert torch.equal(positions, wanted), border
        assert delta == int(wanted.max()) + 1 - len(short)


def test_rows_without_a_promise_keep_their_positions() -> None:
    rows = torch.randn(3, 4)
    marked = torch.cat([rows, mrope.blank(rows)], 1)
    positions = torch.arange(15).view(3, 5)
    embed = torch.tensor([False, True, True, True, False])
    out, after, _ = mrope.recomputed(embed, [marked], positions, 0)
    assert torch.equal(out[0], rows) and torch.equal(after, positions)


def test_large_grids_in_half_precision() -> None:
    row = torch.tensor([0, 127, 128, 300, 1000])
    like = torch.zeros(5, 2, dtype=torch.bfloat16)
    marked = torch.cat([like, mrope.columns(row, row.flip(0), like)], 1)
    positions = torch.full((3, 5), 7)
    _, after, _ = mrope.recomputed(torch.ones(5, dtype=torch.bool), [marked], positions, 0)
    assert (
        after[1].tolist() == (7 + row).tolist() and after[2].tolist() == (7 + row.flip(0)).tolist()
    )


def test_images_may_not_take_more_positions_than_the_model_knows() -> None:
    """Ten images of 3 tokens, 40 tokens wide: 60 tokens, with positions to 430."""
    images = [(3, 40)] * 10
    mrope.check_reach(60, images, 430)
    with pytest.raises(VTCError, match="10 images in 60 tokens take positions to 430.* knows 429"):
        mrope.check_reach(60, images, 429)
    mrope.check_reach(500, [(400, 40)], 429)  # as far as tokens alone go, vLLM decides


def test_no_position_lies_behind_the_table() -> None:
    positions = torch.tensor([[0, 5, 70]] * 3)
    kept, delta = mrope.bounded(positions, 68, 64, 32)
    assert kept[0].tolist() == [0, 5, 63] and delta == 32  # 31 + 32 is the last one
    same, delta = mrope.bounded(positions, 20, 256, 32)
    assert torch.equal(same, positions) and delta == 20


def test_a_model_with_fewer_positions_than_tokens_does_not_start() -> None:
    mrope.check_table(64, 64)
    with pytest.raises(VTCError, match="max_model_len: got 65, .* 64 positions; .* VTC_VLLM=0"):
        mrope.check_table(65, 64)


def test_as_far_as_transformers_counts() -> None:
    """The reach of a prompt is one behind the last position that transformers gives it."""
    model = tiny.build("qwen2_5_vl")
    batch = tiny.inputs("qwen2_5_vl", [[("image", (96, 160)), ("image", (160, 64))]])
    theirs, _ = model.model.get_rope_index(
        batch["input_ids"],
        mm_token_type_ids=batch["mm_token_type_ids"],
        image_grid_thw=batch["image_grid_thw"],
    )
    last, length = int(theirs.max()), batch["input_ids"].shape[1]
    grids = [(rows // 2, cols // 2) for _, rows, cols in batch["image_grid_thw"].tolist()]
    short = length - sum(r * c for r, c in grids) + 2  # one token is left of each
    images = [(1, max(grid)) for grid in grids]
    mrope.check_reach(short, images, last + 1)
    with pytest.raises(VTCError, match=f"take positions to {last + 1},"):
        mrope.check_reach(short, images, last)
