"""`compaction.py` and `positions.py` against plain Python loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache

from tests.hf import tiny
from vtc.errors import VTCError
from vtc.plugins.hf.stages.boundary.packed import one_sample
from vtc.plugins.model.compaction import build_compaction, image_runs
from vtc.plugins.model.positions import check_policy, default_positions

IMAGE = 9


@st.composite
def prompts(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]], list[int], list[list[int]]]:
    """Rows of tokens, their masks, the lengths of the images and the anchors in each image.

    Placeholders of an image may have text between them (tile tags); anchors may repeat and stand in
    any order; padding may be on both sides.
    """
    rows, lengths, anchors = [], [], []
    for _ in range(draw(st.integers(1, 3))):
        row: list[int] = draw(st.lists(st.integers(1, 8), min_size=1, max_size=3))
        for _ in range(draw(st.integers(0, 2))):
            count = draw(st.integers(1, 5))
            lengths.append(count)
            anchors.append(draw(st.lists(st.integers(0, count - 1), min_size=1, max_size=5)))
            for _ in range(count):
                row += [IMAGE, *draw(st.lists(st.integers(1, 8), max_size=1))]
        rows.append(row)
    width = max(map(len, rows)) + draw(st.integers(0, 1))
    masks = []
    for i, row in enumerate(rows):
        before = draw(st.integers(0, width - len(row)))
        after = width - len(row) - before
        masks.append([0] * before + [1] * len(row) + [0] * after)
        rows[i] = [0] * before + row + [0] * after
    return rows, masks, lengths, anchors


def by_loop(
    rows: list[list[int]], masks: list[list[int]], lengths: list[int], anchors: list[list[int]]
) -> list[list[tuple[int, int]]]:
    """`(slot, position)` of every short row."""
    out, todo = [], list(zip(lengths, anchors, strict=True))
    for row, mask in zip(rows, masks, strict=True):
        places = [c for c in range(len(row)) if row[c] == IMAGE]
        kept: dict[int, list[int]] = {}
        while places:
            count, picks = todo.pop(0)
            run, places = places[:count], places[count:]
            for pick, place in zip(picks, sorted(picks), strict=True):
                kept.setdefault(run[place], []).append(run[pick])
        short = []
        for column in range(len(row)):
            if mask[column] and row[column] != IMAGE:
                short.append((column, column))
            short += [(column, position) for position in kept.get(column, [])]
        out.append(short)
    return out


@pytest.mark.parametrize("left", [True, False])
@settings(max_examples=150, deadline=None, derandomize=True)
@given(prompt=prompts())
def test_compaction_equals_a_loop(left: bool, prompt: tuple) -> None:
    """Slots, positions, padding and gathers, whatever the prompt."""
    rows, masks, lengths, anchors = prompt
    ids, real = torch.tensor(rows), torch.tensor(masks).bool()
    placeholder = ids == IMAGE
    runs = image_runs(placeholder, lengths)
    plan = build_compaction(real, placeholder, runs, [torch.tensor(a) for a in anchors], left)
    want = by_loop(rows, masks, lengths, anchors)
    width = max(map(len, want))
    assert plan.slot.shape == plan.position.shape == plan.valid.shape == (len(rows), width)
    values = torch.randn(*ids.shape, 2)
    short_ids, short_values = plan.gather(ids, -7), plan.gather(values, -7.0)
    positions = plan.positions(torch.arange(ids.shape[1]).expand(ids.shape) + 100)
    for i, row in enumerate(want):
        gap = width - len(row)
        mine = slice(gap, None) if left else slice(0, len(row))
        rest = slice(0, gap) if left else slice(len(row), None)
        assert plan.valid[i, mine].all() and not plan.valid[i, rest].any()
        assert plan.slot[i, mine].tolist() == [slot for slot, _ in row]
        assert plan.position[i, mine].tolist() == [position for _, position in row]
        assert short_ids[i, mine].tolist() == [rows[i][slot] for slot, _ in row]
        assert torch.equal(short_values[i, mine], values[i, [slot for slot, _ in row]])
        assert positions[i, mine].tolist() == [100 + position for _, position in row]
        assert (short_ids[i, rest] == -7).all() and (short_values[i, rest] == -7).all()
        assert (positions[i, rest] == 0).all()


def test_gathers_keep_type_and_gradient() -> None:
    """Bool, integer and float tensors keep their types; gradients reach what was gathered."""
    real = torch.ones(1, 4, dtype=torch.bool)
    placeholder = torch.tensor([[False, True, True, False]])
    runs = image_runs(placeholder, [2])
    plan = build_compaction(real, placeholder, runs, [torch.tensor([1])], True)
    for dtype in (torch.bool, torch.int32, torch.float16):
        assert plan.gather(torch.ones(1, 4, dtype=dtype)).dtype == dtype
    values = torch.zeros(1, 4, 3, requires_grad=True)
    plan.gather(values).sum().backward()
    assert values.grad[0, :, 0].tolist() == [1, 0, 1, 1]


@pytest.mark.parametrize("lengths", [[1], [3], [1, 2], []])
def test_another_number_of_placeholders(lengths: list[int]) -> None:
    """The error says how many there are and how many there should be."""
    placeholder = torch.tensor([[False, True, True, False]])
    with pytest.raises(VTCError, match=rf"2 image placeholders.*{sum(lengths)} visual"):
        image_runs(placeholder, lengths)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=1, max_size=3))
def test_default_positions_count_real_tokens(masks: list[list[bool]]) -> None:
    """What transformers derives from a mask: a running count, never negative."""
    got = default_positions(torch.tensor(masks)).tolist()
    assert got == [[max(sum(row[: i + 1]) - 1, 0) for i in range(5)] for row in masks]


def test_guard_against_packing() -> None:
    """A mask of ones is added exactly where transformers would look for packed sequences."""
    model = tiny.build("llava-clip")
    ids, positions = torch.ones(2, 3, dtype=torch.long), torch.tensor([[0, 4, 5]] * 2)
    added = one_sample(model, {"input_ids": ids, "position_ids": positions})
    assert added["attention_mask"].tolist() == [[1] * 3] * 2
    added = one_sample(model, {"inputs_embeds": torch.ones(2, 3, 8), "position_ids": positions})
    assert added["attention_mask"].shape == (2, 3)
    cache = DynamicCache()
    for other in (
        {"input_ids": ids},
        {"input_ids": ids, "position_ids": positions, "attention_mask": torch.zeros(2, 3)},
        {"input_ids": ids, "position_ids": positions, "past_key_values": cache},
        {"input_ids": ids, "position_ids": positions, "cache": cache},
        {"input_ids": ids, "position_ids": positions.expand(4, 2, 3)},
        {"position_ids": positions},
    ):
        assert not one_sample(model, other)


def test_flash_attention_is_told_that_gaps_are_no_borders() -> None:
    """It drops a mask of ones, and looks for borders in the positions of a single row."""
    model = tiny.build("llava-clip")
    model.config.text_config._attn_implementation_internal = "flash_attention_2"
    ids, positions = torch.ones(1, 3, dtype=torch.long), torch.tensor([[0, 4, 5]])
    mask = torch.ones(1, 3)
    added = one_sample(model, {"input_ids": ids, "position_ids": positions, "attention_mask": mask})
    assert added["cu_seq_lens_q"].tolist() == added["cu_seq_lens_k"].tolist() == [0, 3]
    assert added["max_length_q"] == added["max_length_k"] == 3
    for other in (
        {"input_ids": ids, "position_ids": positions, "attention_mask": torch.tensor([[0, 1, 1]])},
        {"input_ids": ids[:, :1], "position_ids": positions[:, :1], "attention_mask": mask},
        {
            "input_ids": ids.repeat(2, 1),
            "position_ids": positions.repeat(2, 1),
            "attention_mask": mask.repeat(2, 1),
        },
    ):
        assert not one_sample(model, other)


@pytest.mark.parametrize("policy", ["Original", "none", 3, None])
def test_unknown_policy(policy: object) -> None:
    """The error names the policies there are."""
    with pytest.raises(VTCError, match="original, contiguous"):
        check_policy(policy)  # type: ignore[arg-type]
