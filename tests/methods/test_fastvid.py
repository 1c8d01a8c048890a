"""FastVID against a loop over segments, frames and tokens."""

from dataclasses import replace

import pytest
import torch

from tests.methods.images import clip, image, make
from vtc import VisualTokens, VTCError
from vtc.batch import ImageBatch


def peaks(x: torch.Tensor, k: int) -> torch.Tensor:
    """Density times distance to the nearest denser of tokens `[n, C]`."""
    d = torch.cdist(x, x) / x.shape[1] ** 0.5
    rho = torch.exp(-d.square().sort(1).values[:, :k].mean(1))
    denser = [[j for j in range(len(x)) if (rho[j], -j) > (rho[i], -i)] for i in range(len(x))]
    delta = [min((d[i, j] for j in js), default=d.max()) for i, js in enumerate(denser)]
    return rho * torch.stack([torch.as_tensor(v) for v in delta]) if len(x) else rho


def by_hand(
    tokens: VisualTokens, frames: torch.Tensor, attention: torch.Tensor, keep: int, **options: float
) -> tuple[list[int], torch.Tensor]:
    """Places and features that are left, when every frame has `keep` tokens and roundings fit."""
    c, tau, d, p, beta = (options.get(k, v) for k, v in
                          dict(c=8, tau=0.9, d=0.4, p=4, beta=0.6).items())  # fmt: skip
    x = tokens.features.double()
    count, n = x.shape[:2]
    alike = torch.cosine_similarity(frames[1:].double(), frames[:-1].double(), dim=1)
    cut = set((alike.argsort(stable=True)[: int(c) - 1] + 1).tolist())
    cut |= {f + 1 for f in range(count - 1) if alike[f] < tau}
    edges = [0, *sorted(cut), count] if p > 1 else list(range(count + 1))
    aside, out = int(keep * d), {}
    for first, end in zip(edges, edges[1:], strict=False):
        m = end - first
        salient = [set(attention[f].argsort(descending=True, stable=True)[: keep - aside].tolist())
                   for f in range(first, end)]  # fmt: skip
        others = [[i for i in range(n) if i not in s] for s in salient]
        members = [(first + j, i) for j in range(m) for i in others[j]]
        for j in range(m):
            out |= {(first + j, i): x[first + j, i] for i in salient[j]}
            if (m - 1 - j) % int(p):
                continue
            score = peaks(x[first + j, others[j]], 4)
            number = aside * m // -(-m // int(p))
            best = score.argsort(descending=True, stable=True)[:number].tolist()
            anchors = sorted(others[j][i] for i in best)
            own: dict[int, list[torch.Tensor]] = {a: [] for a in anchors}
            for f, i in members if anchors else []:
                like = torch.cosine_similarity(x[f, i][None], x[first + j, anchors], dim=1)
                own[anchors[int(like.argmax())]].append(x[f, i])
            for a in anchors:
                w = max(1 / (len(own[a]) + 1), beta)
                mean = torch.stack(own[a]).mean(0)
                out[first + j, a] = w * x[first + j, a] + (1 - w) * mean
    places = sorted(out)
    return [f * n + i for f, i in places], torch.stack([out[place] for place in places]).float()


def agrees(tokens: VisualTokens, want: tuple[list[int], torch.Tensor], **options: object) -> None:
    out = make("fastvid", **options).compress(tokens)
    assert out.anchor.tolist() == want[0]
    torch.testing.assert_close(out.features, want[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("options", [{}, {"c": 3, "tau": 0.2}, {"c": 1, "tau": -1, "beta": 0.1}])
def test_as_by_hand(seed, options):
    tokens = clip(8, (5, 5), seed=seed)
    received = tokens.signals["attention_received"]
    # 10 of 25 each, 4 of them aside: 8, 12 and 16 go into one or two anchor frames without a rest
    want = by_hand(tokens, tokens.features.mean(1), received, 10, **options)
    if len(want[0]) == 80:
        agrees(tokens, want, retention=0.4, **options)
    agrees(tokens, want, retention=0.4, count="official", **options)


@pytest.mark.parametrize("p", [1, 2, 3])
def test_the_pooling_head_and_other_steps(p):
    tokens = clip(7, (5, 5), seed=p)
    rng = torch.Generator().manual_seed(p)
    pool = torch.rand(7, 25, generator=rng), torch.randn(7, 9, generator=rng) + 2
    with_pool = replace(
        tokens, signals=dict(zip(("pool_attention", "pool_output"), pool, strict=True))
    )
    want = by_hand(tokens, pool[1], pool[0], 6, p=p, tau=0.5, c=3)
    agrees(with_pool, want, retention=0.25, p=p, tau=0.5, c=3, guide="pool", count="official")
    method = make("fastvid", guide="pool")
    assert {r.kind for r in method.requests().values()} == {"pool_attention", "pool_output"}


def test_images_are_segments_of_one_frame():
    for tokens in (image((5, 5), newline=False), clip(1, (5, 5), seed=3)):
        frames, received = tokens.features.mean(1), tokens.signals["attention_received"]
        agrees(tokens, by_hand(tokens, frames, received, 10), retention=0.4)
    crops = image((5, 5), (1, 2), (500, 1000), newline=False)
    assert crops.num_patches == 75  # nothing padded
    frames = -crops.features.mean(1)  # other frames would follow
    want = by_hand(crops, frames, crops.signals["attention_received"], 10, p=1)
    out = make("fastvid", retention=0.4).compress(crops)
    assert sorted((out.tile * 25 + out.patch).tolist()) == want[0]


def test_what_anchor_frames_have_no_room_for_is_salient():
    """One segment of four: its anchor frame has room for 14 of 28, and the others take the rest."""
    tokens = clip(4, (5, 5), seed=1)
    options = {"c": 1, "tau": -1.0}
    method = make("fastvid", retention=0.72, **options)
    out = method.compress(tokens)
    assert torch.bincount(out.tile).tolist() == [16, 16, 15, 25]
    few = make("fastvid", retention=0.72, count="official", **options).compress(tokens)
    assert len(few) == 3 * 11 + 25


def test_fields_are_checked():
    for options, text in (
        ({"c": 0}, "c: got 0, allowed are whole numbers >= 1"),
        ({"tau": 2}, "tau: got 2, allowed are numbers from -1 to 1"),
        ({"guide": "cls"}, "guide: got 'cls', allowed are received, pool"),
    ):
        with pytest.raises(VTCError, match=text):
            make("fastvid", **options)


def test_segments_of_a_clip():
    x = torch.eye(16)[[0, 0, 1, 1, 1, 2]][:, None].repeat(1, 4, 1)
    tokens = VisualTokens(x, (2, 2))
    for c, want in ((1, [1, 0, 1, 0, 0, 1]), (4, [1, 1, 1, 0, 0, 1]), (99, [1] * 6)):
        method = make("fastvid", c=c)
        assert method.begins(ImageBatch([tokens], [method])).tolist() == [bool(w) for w in want]
