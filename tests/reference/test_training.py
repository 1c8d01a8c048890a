"""Optimiser, position jitter and keep rules."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from vtc.eval.reference.muon import Muon, orthogonalise
from vtc.eval.reference.packing import NEWLINE, TEXT, numbering, pack
from vtc.eval.reference.scene import make_scene
from vtc.eval.reference.tokenizer import build_tokenizer
from vtc.eval.reference.train_language import CURRICULUM, grids_at, random_keep, uniform_keep


@pytest.mark.parametrize("shape", [(32, 32), (16, 48), (48, 16)])
def test_orthogonalise_evens_out_singular_values(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(3, *shape)))
    assert values.min() > 0.3 and values.max() < 1.4


def test_muon_lowers_a_loss():
    torch.manual_seed(0)
    weight = torch.nn.Parameter(torch.randn(8, 8))
    goal = torch.randn(8, 8)
    optimiser = Muon([weight], lr=0.05)
    first = None
    for _ in range(200):
        loss = (weight - goal).square().mean()
        first = first or float(loss.detach())
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert float(loss.detach()) < 0.2 * first


def test_numbering():
    source = np.array([TEXT] * 3 + [0, 1, 2, 3, NEWLINE, 4, 5, NEWLINE])
    plain = numbering(source, np.random.default_rng(0), "plain")
    assert plain.tolist() == list(range(11))
    shrunk = False
    for seed in range(40):
        positions = numbering(source, np.random.default_rng(seed))
        steps = np.diff(positions)
        assert ((steps[1:] == 0) | (steps[1:] == 1)).all() and steps[0] >= 1
        assert (steps[np.flatnonzero(source == NEWLINE) - 1] == 1).all()
        shrunk |= bool((steps == 0).any())
    assert shrunk


def test_dropping_tokens_keeps_or_renumbers_positions():
    scene = make_scene("val", 0, 5, None, {(2, 2): 1.0})
    tokenizer = build_tokenizer()
    keep = random_keep(scene, 0.5, np.random.default_rng(1))

    def packed(**options):
        return pack([scene], tokenizer, np.random.default_rng(0), "plain", False, **options)

    whole = packed()
    kept = packed(keep=[keep])
    tight = packed(keep=[keep], contiguous=True)
    assert kept.block_positions[0, 0, 0] == whole.block_positions[0, 0, 0]
    assert tight.positions[0].tolist() == list(range(tight.positions.shape[1]))
    assert tight.block_positions[0, 0, 0] == tight.positions.shape[1]
    assert torch.equal(kept.source, tight.source)
    assert (whole.source == NEWLINE).sum() == (kept.source == NEWLINE).sum()


def test_keep_rules_hit_the_budget():
    scene = make_scene("val", 0, 5)
    rng = np.random.default_rng(0)
    patches = int((~random_keep(scene, 0.0, rng)).sum())
    newlines = int(random_keep(scene, 0.0, rng).sum())
    for rule in (random_keep, uniform_keep):
        for retention in (0.1, 0.25, 0.5):
            assert rule(scene, retention, rng).sum() == newlines + round(retention * patches)


def test_curriculum_covers_training():
    assert grids_at(0.0) == CURRICULUM[0][1]
    assert grids_at(1.0) == CURRICULUM[-1][1]
