"""The comparison of `coverage` with and without the question, on a few scenes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import vtc
from vtc.eval import guided_coverage, reference
from vtc.eval.calibrate_coverage import compressed, hits, listened
from vtc.eval.common.loading import load
from vtc.eval.reference.train_language import measure
from vtc.tokens import keep_patches

ROOT = Path(__file__).parents[2]
SAMPLE = [s for s in reference.scenes("val", 2, 5) if s.questions]


@pytest.fixture(scope="module")
def loaded():
    return load("reference", "cpu")


def test_every_question_by_itself_scores_as_all_of_a_scene_together(loaded) -> None:
    """Rows of one question against rows of a scene, and all tokens against the model's own tower."""
    method = vtc.create_method("coverage", retention=0.05)
    guided = vtc.create_method("coverage", retention=0.05, guidance=0.5, sign="positive")
    questions = guided_coverage.asked(loaded, SAMPLE, [method, guided])
    scenes, tokens = [s for _, s, _ in questions], [t for _, _, t in questions]
    outs = dict(enumerate(guided_coverage.chosen(method, tokens)))
    alone = hits(loaded.model, scenes, outs)
    images = listened(loaded, SAMPLE, [method])
    together = hits(loaded.model, SAMPLE, {n: compressed(method, t) for n, t in enumerate(images)})
    assert list(alone.values()) == [together[key] for key in sorted(together)]
    everything = {n: keep_patches(t, t.valid) for n, t in enumerate(images)}
    want = measure(loaded.model, SAMPLE)["all"]
    assert np.mean(list(hits(loaded.model, SAMPLE, everything).values())) == pytest.approx(want)


def test_signals_are_those_of_a_call_with_image_and_question(loaded) -> None:
    guided = vtc.create_method("coverage", retention=0.05, guidance=0.5)
    questions = guided_coverage.asked(loaded, SAMPLE[:1], [guided])
    for _, scene, tokens in questions[1:4]:
        want = guided_coverage.heard(loaded, SAMPLE[0], scene.questions[0].text, [guided])
        assert tokens.signals.keys() == want.signals.keys() and len(want.signals) == 3
        for name, value in want.signals.items():
            torch.testing.assert_close(tokens.signals[name], value)


def test_the_page_has_the_numbers_of_the_log() -> None:
    log = json.loads((ROOT / "eval/reference/logs/guided.json").read_text())
    page = (ROOT / "docs/own-methods.md").read_text()
    for line in guided_coverage.page(log["rows"]):
        assert line in page
