"""Steps that follow each other are operators of their own: schemas, fakes, compiled graphs."""

from __future__ import annotations

import torch

from vtc.functional.bipartite import halving, merge_pairs
from vtc.functional.pixel_prediction import surprise
from vtc.functional.prunesid import suppress
from vtc.functional.vispruner import choose

SEED = torch.Generator().manual_seed(0)
VALID = torch.ones(2, 12, dtype=torch.bool)
ROWS = torch.randn(2, 12, 5, generator=SEED)
SCORES = torch.rand(2, 12, generator=SEED)


def test_schemas_and_fakes() -> None:
    ops, check = torch.ops.vtc, torch.library.opcheck
    left, size, wanted = torch.arange(12).expand(2, -1).clone(), torch.tensor([12, 9]), 4
    check(ops.drop_alike, (ROWS @ ROWS.mT, left, size, torch.full((2,), wanted), [12, 8], 4))
    remove = torch.tensor([[6, 2], [4, 0]])
    check(ops.merge_pairs, (ROWS, VALID, torch.tensor([12, 12]), remove, [12, 8]))
    check(ops.suppress, ((ROWS @ ROWS.mT > 0).tril(-1), VALID))
    check(ops.pixel_surprise, (ROWS, VALID, 3, 4, 0.5))


def test_compiled_graphs_go_through() -> None:
    def every(rows: torch.Tensor, scores: torch.Tensor) -> list[torch.Tensor]:
        order, left = choose(scores, rows, VALID, [2, 3], [10, 9], [3, 4], 2)
        place, main = merge_pairs(rows, VALID, [12, 12], [halving(12, 5), halving(12, 7)])
        group = (scores > 0.5).long()
        kept = suppress(rows @ rows.mT > 0, group, order, VALID)
        return [order, left, place, main, kept, surprise(rows, VALID, (3, 4), 0.5)]

    want = every(ROWS, SCORES)
    compiled = torch.compile(every, fullgraph=True, backend="aot_eager")
    for got, one in zip(compiled(ROWS, SCORES), want, strict=True):
        assert torch.equal(got, one)
