"""VidCom2 against a loop over frames and tokens."""

import pytest
import torch

from tests.methods.images import clip, image, make
from vtc import VisualTokens, VTCError


def by_hand(tokens: VisualTokens, share: float, count: int | None) -> list[tuple[int, int]]:
    """Frame and place of what stays; `count` None for what the frames' shares come to."""
    frames = [x[v].double() for x, v in zip(tokens.features, tokens.valid, strict=True)]
    every = torch.cat(frames)
    low = every.var(0, correction=0).sort(stable=True).indices[: every.shape[1] // 2]
    frames = [torch.nn.functional.normalize(x[:, low], dim=1) for x in frames]

    def gauss(x: torch.Tensor, middle: torch.Tensor) -> torch.Tensor:
        d = (x - middle).square().sum(1)
        return sum(torch.exp(-d / 2 / 2.0**k) for k in range(-3, 2))

    of_clip = [gauss(x, torch.cat(frames).mean(0)) for x in frames]
    score = -torch.stack([x.mean() for x in of_clip])
    p = torch.softmax((score - score.max()) / 0.01, 0)
    kept, ranked = [], []
    for nth, x in enumerate(frames):
        alike = of_clip[nth] + gauss(x, x.mean(0))
        n = len(x)
        mine = max(1, round(n * min(1.0, float(share * (1 + p[nth] - p.mean())))))
        order = alike.argsort().tolist()
        real = tokens.valid[nth].nonzero().squeeze(1).tolist()
        kept += [(nth, real[i]) for i in order[:mine]]
        ranked += [(i not in order[:mine], float(alike[i]), (nth, real[i])) for i in range(n)]
    if count is not None:
        kept = [place for *_, place in sorted(ranked)[:count]]
    return sorted(kept)


def places(tokens: VisualTokens, **options: object) -> list[tuple[int, int]]:
    out = make("vidcom2", **options).compress(tokens)
    patch = out.is_patch
    return sorted(zip(out.tile[patch].tolist(), out.patch[patch].tolist(), strict=True))


@pytest.mark.parametrize("retention", [0.1, 0.33, 0.5, 0.8])
@pytest.mark.parametrize("seed", range(3))
def test_as_by_hand(retention, seed):
    for tokens in (
        clip(6, (5, 5), seed=seed),
        clip(1, (5, 5), seed=seed),
        image((6, 6), (2, 2), (600, 400), seed=seed),
        clip(4, seed=seed, hidden=(3, 18, 19)),
    ):
        count = int(retention * tokens.num_patches + 1e-9)
        assert places(tokens, retention=retention) == by_hand(tokens, retention, count)
        official = by_hand(tokens, retention, None)
        assert places(tokens, retention=retention, count="official") == official


def test_the_official_count_is_no_bound():
    assert make("vidcom2", retention=0.5).length(clip(3)) == 24
    assert make("vidcom2", retention=0.5, count="official").length(clip(3)) is None
    with pytest.raises(VTCError, match="count: got 'all', allowed are exact, official"):
        make("vidcom2", count="all")
