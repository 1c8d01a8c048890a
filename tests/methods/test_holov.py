"""HoloV against a loop over runs."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.methods import plain
from tests.methods.images import image, images
from vtc import VisualTokens, VTCError
from vtc.functional.budget import apportion
from vtc.functional.holov import cut, quotas
from vtc.methods.holov import HoloV


@given(
    tokens=images(),
    retention=st.floats(0.05, 0.9),
    runs=st.sampled_from([1, 3, 16, None]),
    factor=st.sampled_from(["run", "image"]),
)
def test_runs_share_the_tokens(
    tokens: VisualTokens, retention: float, runs: int | None, factor: str
) -> None:
    method = HoloV(retention, runs=runs, factor=factor, alpha=0.5)
    budget, layout = method.budget(tokens), tokens.layout
    tile, patch = layout.tile[layout.is_patch], layout.patch[layout.is_patch]
    a = tokens.signals["attention"][tile, patch].double()
    x = tokens.features[tile, patch].double()
    number = runs or max(1, int(1024 / 576 * len(a) / budget))
    each, over = divmod(len(a), number)
    lengths = [each + (run < over) for run in range(number)]
    parts = torch.arange(len(a)).split(lengths)
    varied = []
    for part in parts:
        like = torch.nn.functional.cosine_similarity(x[part][:, None], x[part][None], dim=-1)
        like.fill_diagonal_(0)
        fellows = max(len(part) - 1, 1)
        mean = like.sum(1) / fellows
        varied.append((like - mean[:, None]).square().sum(1) / fellows)
    scores = []
    for part, var in zip(parts, varied, strict=True):
        whose = (a, torch.cat(varied)) if factor == "image" else (a[part], var)
        scale = 1000 * whose[0].mean() / (whose[1].mean() + 1e-6)
        score = (1000 * a[part] + 0.5 * var * scale).mean() if len(part) else torch.tensor(0.0)
        scores.append(float(a[part] if len(part) == 1 and factor == "run" else score))
    if factor == "run" or runs == 1:  # the variance cancels
        means = [1500 * float(a[part].mean()) if len(part) else 0.0 for part in parts]
        bare = [float(a[part]) if len(part) == 1 else 0.0 for part in parts]
        want = [b or m for b, m in zip(bare, means, strict=True)]
        # it cancels where it is large beside the 1e-6 that is added to it
        large = [bool(part.mean() > 1e-4) or bool(b) for part, b in zip(varied, bare, strict=True)]
        for got, expected, cancels in zip(scores, want, large, strict=True):
            assert runs == 1 or not cancels or got == pytest.approx(expected, rel=1e-2)
    share = [score / (sum(scores) + 1e-6) for score in scores]
    close = sorted(s for s in share if s)  # what float32 and float64 may tell apart otherwise
    assume(len(close) == 1 or all(abs(s * budget - round(s * budget)) > 1e-3 for s in close))
    assume(all(b - a > 1e-5 for a, b in pairwise(close)))
    granted = [math.floor(s * budget) for s in share]
    order = sorted(range(number), key=lambda run: (-share[run], run))
    for run in order[: budget - sum(granted)]:
        granted[run] += 1
    most = [min(g, n) for g, n in zip(granted, lengths, strict=True)]
    left = [n - m for n, m in zip(lengths, most, strict=True)]
    weights = [s * (n > 0) for s, n in zip(scores, left, strict=True)]
    more = apportion(weights, left, budget - sum(most)).tolist()
    kept = set()
    for part, m, n in zip(parts, most, more, strict=True):
        best = plain.best(a, part.tolist(), m + n)
        kept |= {(int(tile[i]), int(patch[i])) for i in best}
    assert plain.kept(method.compress(tokens)) == kept


def test_no_run_is_granted_more_than_it_has() -> None:
    scores = torch.tensor([[5.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0], [torch.nan, 1, 1, 1]])
    capacity = [[3, 3, 3, 0], [3, 3, 3, 3], [3, 3, 3, 3]]
    asked, granted = quotas(scores, capacity, [7, 6, 9])
    assert asked[0].tolist() == [5, 1, 1, 0]
    assert granted[0].tolist() == [3, 2, 2, 0]
    assert granted.sum(1).tolist() == [7, 6, 9]
    assert cut(7, 3) == [(0, 3), (3, 2), (5, 2)] and cut(2, 3)[2] == (2, 0)


def test_what_is_refused() -> None:
    with pytest.raises(VTCError, match="runs: got 0, allowed are whole numbers >= 1"):
        HoloV(runs=0)
    with pytest.raises(VTCError, match="factor: got 'tile', allowed are run, image"):
        HoloV(factor="tile")
    assert len(HoloV(0.5).compress(image((1, 3), newline=False))) == 1
