"""Loops whose steps follow each other go through compiled graphs as operators of their own."""

from __future__ import annotations

import torch

from vtc.functional.bipartite import halving, merge_pairs
from vtc.functional.prunesid import unsuppressed
from vtc.functional.vispruner import choose
from vtc.kernels.pixel_surprise import pixel_surprise

SEED = torch.Generator().manual_seed(0)
VALID = torch.ones(2, 12, dtype=torch.bool)
ROWS = torch.randn(2, 12, 5, generator=SEED)
SCORES = torch.rand(2, 12, generator=SEED)


def test_schema_and_fake() -> None:
    remove = torch.tensor([[6, 2], [4, 0]])
    arguments = ROWS, VALID, torch.tensor([12, 12]), remove, [12, 8]
    torch.library.opcheck(torch.ops.vtc.merge_pairs, arguments)


def test_compiled_graphs_go_through() -> None:
    def every(rows: torch.Tensor, scores: torch.Tensor) -> list[torch.Tensor]:
        order, left = choose(scores, rows, VALID, [2, 3], [10, 9], [3, 4], 2)
        place, main = merge_pairs(rows, VALID, [12, 12], [halving(12, 5), halving(12, 7)])
        group = (scores > 0.5).long()
        kept = unsuppressed(rows @ rows.mT > 0, group, order, VALID)
        return [order, left, place, main, kept, pixel_surprise(rows, VALID, (3, 4), 0.5)]

    want = every(ROWS, SCORES)
    compiled = torch.compile(every, fullgraph=True, backend="aot_eager")
    for got, one in zip(compiled(ROWS, SCORES), want, strict=True):
        assert torch.equal(got, one)
