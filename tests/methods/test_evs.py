"""EVS against a loop over tokens."""

import pytest
import torch

from tests.methods.images import clip, image, make
from vtc import VisualTokens


def by_hand(tokens: VisualTokens, count: int) -> list[int]:
    """Places of the tokens that stay: most changed first, the first frame before all."""
    x = tokens.features
    ranked = []
    for frame in range(len(x)):
        middle = torch.nn.functional.normalize(x[frame], dim=1).sum(0)
        for patch in range(x.shape[1]):
            to = x[frame - 1, patch] if frame else middle
            new = 1 - float(torch.cosine_similarity(x[frame, patch], to, dim=0))
            ranked.append((frame > 0, -new, frame * x.shape[1] + patch))
    return sorted(place for *_, place in sorted(ranked)[:count])


@pytest.mark.parametrize("count", [1, 7, 16, 17, 40, 79])
def test_as_by_hand(count):
    tokens = clip(5, seed=2)
    assert make("evs", tokens=count).compress(tokens).anchor.tolist() == by_hand(tokens, count)


def test_an_image_and_its_crops_are_first_frames():
    tokens = image((5, 5), newline=False)
    assert make("evs", tokens=9).compress(tokens).anchor.tolist() == by_hand(tokens, 9)
    crops = image((5, 5), (1, 2), (50, 100), newline=False)
    out = make("evs", tokens=20).compress(crops)
    frames = [
        VisualTokens(crops.features[tile : tile + 1], (5, 5)) for tile in range(3)
    ]  # each with the scores that it has alone
    found = {(tile, p) for tile in range(3) for p in by_hand(frames[tile], 3)}
    assert found <= set(zip(out.tile.tolist(), out.patch.tolist(), strict=True))


def test_a_token_whose_counterpart_is_hidden_is_new():
    tokens = clip(3, seed=4, hidden=(5,))
    out = make("evs", tokens=16).compress(
        tokens
    )  # 15 of the first frame, and the one behind place 5
    assert (out.tile * 16 + out.patch).tolist() == [*range(5), *range(6, 16), 21]
