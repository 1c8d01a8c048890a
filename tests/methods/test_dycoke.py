"""DyCoke's first stage against a loop over frames."""

import pytest
import torch

from tests.methods.images import clip, image, make
from vtc import VisualTokens, VTCError


def by_hand(tokens: VisualTokens, keep: list[int], official: bool = False) -> list[int]:
    """Places that stay, in order of output; `keep` says how many of each compared frame."""
    x, out = tokens.features, []
    frames, patches = x.shape[:2]
    for frame in range(frames - frames % 2 if official and frames > 1 else frames):
        to = frame // 4 * 4 + (2 if frame % 4 == 3 else 0)
        whole = frame == to or official and frame % 4 == 2 and to >= frames - 4
        own = list(range(patches))
        if not whole:
            alike = torch.cosine_similarity(x[frame], x[to], dim=1)
            own = alike.argsort(stable=True)[: keep[frame]].tolist()
        out += [frame * patches + p for p in (own if official else sorted(own))]
    return out


def places(seen: VisualTokens, **options: object) -> list[int]:
    out = make("dycoke", **options).compress(seen)
    return (out.tile * seen.features.shape[1] + out.patch)[out.is_patch].tolist()


@pytest.mark.parametrize("frames", range(1, 14))
@pytest.mark.parametrize("ratio", [0.7, 0.5, 0.9])
def test_its_own_count_as_by_hand(frames, ratio):
    tokens = clip(frames, (5, 4), seed=frames, newline=torch.ones(16))
    keep = [int((1 - ratio) * 20 + 1e-9)] * frames
    assert places(tokens, merging_ratio=ratio) == by_hand(tokens, keep)
    keep = [int((1 - ratio) * 20)] * frames  # 1 in place of 2 at 0.9
    found = places(tokens, merging_ratio=ratio, groups="official")
    assert found == by_hand(tokens, keep, official=True)


def test_a_budget_solves_for_the_ratio():
    tokens = clip(6, seed=5)  # frames 0 and 4 whole: 32
    assert places(tokens, tokens=32 + 22) == by_hand(tokens, [0, 6, 6, 5, 0, 5])
    assert places(tokens, tokens=32) == [*range(16), *range(64, 80)]
    few = places(tokens, tokens=9)  # the first frames share it
    assert [sum(16 * f <= p < 16 * f + 16 for p in few) for f in range(6)] == [5, 0, 0, 0, 4, 0]


def test_an_image_stays_whole_without_a_budget():
    for tokens in (image(), image((6, 6), (2, 2))):
        assert len(places(tokens)) == tokens.num_patches
        assert len(places(tokens, tokens=30)) == 30


def test_the_official_loops_take_no_budget():
    with pytest.raises(VTCError, match="groups: got 'official' beside a budget"):
        make("dycoke", groups="official", retention=0.5)
