"""PruneVid's first stage against a loop over windows, frames and sets."""

import pytest
import torch

from tests.methods.images import clip, image, make
from tests.methods.test_fastvid import peaks
from vtc import VisualTokens
from vtc.batch import ImageBatch
from vtc.functional.budget import apportion
from vtc.functional.prunevid import windows

Set = tuple[list[int], list[list[int]], torch.Tensor]  # places, their sources, tokens


def groups(x: torch.Tensor, count: int, k: int = 7) -> list[tuple[int, list[int]]]:
    """Centre and members of each cluster of tokens `[n, C]`."""
    best = peaks(x, k).argsort(descending=True, stable=True)[:count].tolist()
    distance = torch.cdist(x, x)
    out: dict[int, list[int]] = {c: [] for c in sorted(best)}
    for i in range(len(x)):
        centres = list(out)
        out[i if i in out else centres[int(distance[i, centres].argmin())]].append(i)
    return list(out.items())


def sets_of(tokens: VisualTokens, found: list[int], budget: int | None) -> list[Set]:
    x, n = tokens.features.double(), tokens.features.shape[1]
    unit, still = torch.nn.functional.normalize(x, dim=-1), []
    for window, m in enumerate(found):
        first = sum(found[:window])
        for place in range(n):
            u = unit[first : first + m, place]
            pairs = [float(u[i] @ u[j]) for i in range(m) for j in range(m) if i != j]
            if pairs and sum(pairs) / len(pairs) > 0.8:
                still.append((-sum(pairs) / len(pairs), window, place, m - 1))
    left, static = tokens.num_patches, set()
    for _, window, place, cost in sorted(still):
        if budget is not None and left - cost < budget:
            break
        left -= cost
        static.add((window, place))
    out: list[Set] = []
    for kind in ("static", "dynamic"):
        for window, m in enumerate(found):
            first = sum(found[:window])
            frames = range(first, first + m)
            mine = [p for p in range(n) if ((window, p) in static) == (kind == "static")]
            for frame in [first] if kind == "static" else frames:
                over = list(frames) if kind == "static" else [frame]
                out.append(([frame * n + p for p in mine],
                            [[f * n + p for f in over] for p in mine],
                            x[over][:, mine].mean(0)))  # fmt: skip
    return out


def by_hand(
    tokens: VisualTokens, found: list[int], budget: int | None
) -> tuple[list[int], torch.Tensor]:
    x = tokens.features.double().flatten(0, 1)
    sets = sets_of(tokens, found, budget)
    sizes = [len(places) for places, _, _ in sets]
    shares = [n // 2 if n > 14 else n for n in sizes]
    if budget is not None:
        shares = apportion(sizes, sizes, budget).tolist()
    out = {}
    for (places, sources, values), share in zip(sets, shares, strict=True):
        for centre, members in groups(values, share) if share else []:
            out[places[centre]] = x[[s for i in members for s in sources[i]]].mean(0)
    return sorted(out), torch.stack([out[place] for place in sorted(out)]).float()


@pytest.mark.parametrize("budget", [None, 5, 40, 100, 160])
@pytest.mark.parametrize("seed", range(4))
def test_as_by_hand(seed, budget):
    tokens = clip(9, (5, 5), seed=seed)
    if seed == 3:  # all alike: one window, nothing moves
        features = tokens.features[:1] + 0.1 * tokens.features
        tokens = VisualTokens(features, (5, 5))
    method = make("prunevid", tokens=budget)
    found = method.windows(ImageBatch([tokens], [method]))[0]
    out = method.compress(tokens)
    places, features = by_hand(tokens, found, budget)
    assert out.anchor.tolist() == places
    torch.testing.assert_close(out.features, features, rtol=1e-4, atol=1e-5)
    assert budget is not None or int(out.weight.sum()) == 225  # every token goes somewhere


def test_images_are_clustered_alone():
    for tokens in (image((5, 5), newline=False), clip(1, (5, 5), seed=3)):
        for budget in (None, 7, 24):
            out = make("prunevid", tokens=budget).compress(tokens)
            places, features = by_hand(tokens, [1], budget)
            assert out.anchor.tolist() == places
            torch.testing.assert_close(out.features, features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("labels", "want"),
    [
        ("aabbb", [2, 3]),
        ("abcd", [4]),  # lone frames alone
        ("aabab", [5]),  # the lone b, a and b all go left
        ("aabacc", [4, 2]),
        ("aabbbaaa", [5, 3]),  # the shorter run of a goes
        ("aabbcaa", [2, 3, 2]),  # both runs of a are the longest; left on a tie
        ("bccc", [4]),
        ("aabccc", [2, 4]),
        ("aabccbddd", [3, 2, 4]),
        ("baabaa", [6]),  # the same cluster on both sides
    ],
)
def test_windows(labels, want):
    assert windows(list(map(ord, labels))) == want
