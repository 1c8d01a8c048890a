"""Decoding plans and attention masks."""

import pytest
import torch

from vtc import VTCError
from vtc.discrete import masks, plans
from vtc.discrete.noise import Noise
from vtc.registry import register

PLANS = ["raster", "whole", "cell:2", "cell:4", "cell:1x4", "subsample:2", "subsample:4x2"]


def backwards(grid: tuple[int, int]) -> plans.Plan:
    """The last token first."""
    plan = plans.raster(grid)
    return plans.Plan(grid, plan.order.flip(0), plan.sizes, plan.coordinates.flip(0))


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("grid", [(4, 4), (8, 4)])
def test_plans_are_permutations(name: str, grid: tuple[int, int]) -> None:
    plan = plans.create_plan(name, grid)
    x = torch.randn(2, grid[0] * grid[1], 3)
    assert torch.equal(plan.restore(plan.arrange(x)), x)
    assert torch.equal(plan.merge(plan.split(x)), x)
    assert [len(part[0]) for part in plan.split(x)] == list(plan.sizes)
    row, column = plan.coordinates.long().unbind(1)
    assert torch.equal(row * grid[1] + column, plan.order)


def test_cells_and_subsamples_hold_the_right_positions() -> None:
    assert plans.cell((4, 4), 2).order[:4].tolist() == [0, 1, 4, 5]
    assert plans.subsample((4, 4), 2).order[:4].tolist() == [0, 2, 8, 10]
    assert plans.subsample((4, 4), 2).order[4:8].tolist() == [1, 3, 9, 11]
    assert plans.create_plan("cell:1x2", (2, 4)).order.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]
    assert plans.create_plan("cell:2x1", (2, 4)).order.tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert plans.create_plan("cell:2x1", (2, 4)).sizes == (2,) * 4
    assert plans.create_plan("subsample:1x2", (2, 4)).order.tolist() == [0, 2, 4, 6, 1, 3, 5, 7]


def test_plans_of_your_own() -> None:
    plan = backwards((2, 3))
    assert plans.create_plan(plan, (2, 3)) is plan
    register(plans.PLANS, "test_backwards")(backwards)
    try:
        made = plans.create_plan("test_backwards", (2, 3))
        assert torch.equal(made.order, plan.order)
        register(plans.PLANS, "test_backwards")(backwards)  # a module may be read again
        with pytest.raises(VTCError, match="already registered"):
            register(plans.PLANS, "test_backwards")(plans.raster)
    finally:
        del plans.PLANS["test_backwards"]


def test_pyramid_goes_from_the_mean_to_the_grid() -> None:
    plan = plans.pyramid((4, 4))
    x = torch.randn(2, 16, 3)
    sequence = plan.arrange(x)
    assert plan.sizes == (1, 4, 16)
    assert torch.allclose(sequence[:, 0], x.mean(1), atol=1e-6)
    assert torch.allclose(plan.restore(sequence), x)
    assert plan.coordinates[0].tolist() == [1.5, 1.5]
    assert plans.pyramid((6, 6)).sizes == (1, 4, 16, 36)


def test_plan_mask_is_block_causal() -> None:
    plan = plans.cell((4, 4), 2)
    group = plan.group_of()
    assert torch.equal(plan.mask(), group[:, None] >= group[None])
    assert torch.equal(plans.raster((2, 3)).mask(), masks.causal(6))
    assert plans.whole((2, 3)).mask().all()


def test_masks() -> None:
    mask = masks.causal_queries(3, 2)
    assert mask[0].tolist() == [True, False, False, True, True]
    assert mask[4].tolist() == [False, False, False, True, True]
    strict = masks.next_all(4, 2)
    assert strict[3].tolist() == [True, True, False, True]
    assert strict[0].tolist() == [True, True, False, False]
    assert masks.next_all(4, 2, strict=False).all()
    drawn = masks.random_mask(3, 7, [1, 4, 7], Noise(0))
    assert drawn.sum(1).tolist() == [1, 4, 7]
    padded = masks.allow_padding(masks.full(2), torch.tensor([[1, 0], [1, 1]]))
    assert padded[:, 0, 0].tolist() == [[True, False], [True, True]]


@pytest.mark.parametrize(
    "call",
    [
        lambda: plans.create_plan("cell:3", (4, 4)),
        lambda: plans.create_plan("cell", (4, 4)),
        lambda: plans.create_plan("raster:2", (4, 4)),
        lambda: plans.create_plan("cell:2x", (4, 4)),
        lambda: plans.create_plan("cell:3x2", (4, 4)),
        lambda: plans.create_plan("raster:a", (4, 4)),
        lambda: plans.create_plan(plans.raster((2, 4)), (4, 2)),
        lambda: plans.Plan((1, 2), torch.tensor([0, 0]), (1, 1), torch.zeros(2, 2)),
        lambda: plans.Plan((1, 2), torch.tensor([0, 1]), (1, 2), torch.zeros(2, 2)),
        lambda: plans.Plan((1, 2), torch.tensor([0, 1]), (1, 1), torch.zeros(2)),
        lambda: plans.create_plan("spiral", (4, 4)),
        lambda: plans.pyramid((4, 8)),
        lambda: plans.raster((2, 2)).arrange(torch.zeros(1, 5, 1)),
        lambda: masks.block_causal([]),
        lambda: masks.block_causal([2, 0]),
        lambda: masks.next_all(4, 5),
    ],
)
def test_bad_input(call) -> None:
    with pytest.raises(VTCError):
        call()
