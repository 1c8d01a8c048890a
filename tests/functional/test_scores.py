"""The methods' formulas against direct evaluations."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vtc.functional import globalcom2 as gc2
from vtc.functional import token_correlation as tcc
from vtc.functional.recoverable import cluster_keys, cluster_members, text_scores, visual_scores
from vtc.functional.sampling import exponential_race, image_noise
from vtc.packing import Packing

CPU = torch.device("cpu")
#: the patches of an 8 x 8 thumbnail that stand for each of 2 x 2 crops
SHARE = gc2.crop_of_patch((8, 8), (2, 2)) == torch.arange(4)[:, None]


def test_thumbnail_is_split_evenly_with_remainders_at_the_end():
    assert gc2.crop_of_patch((5, 5), (2, 1)).view(5, 5)[:, 0].tolist() == [0, 0, 1, 1, 1]
    assert gc2.crop_of_patch((4, 8), (1, 3)).view(4, 8)[0].tolist() == [0, 0, 1, 1, 2, 2, 2, 2]
    assert gc2.crop_of_patch((2, 2), (3, 1)).tolist() == [0, 0, 1, 1]  # fewer lines than crops


@given(st.integers(0, 10**6), st.floats(0.01, 1), st.floats(0.1, 100))
def test_ratios_centre_on_the_retention_and_stay_below_one(seed, retention, tau):
    scores = torch.randn(64, generator=torch.Generator().manual_seed(seed)) * 5
    ratios = gc2.crop_ratios(scores, SHARE, retention, tau)
    assert ratios.dtype == torch.float64 and float(ratios.max()) <= 1
    assert float(ratios.min()) >= retention * (1 - 1 / 4) - 1e-9
    if float(ratios.max()) < 1:
        assert math.isclose(float(ratios.mean()), retention, rel_tol=1e-9)


def test_a_saturated_softmax_gives_one_crop_the_most_it_can_get():
    scores = torch.zeros(64)
    scores.view(8, 8)[:4, 4:] = 100
    ratios = gc2.crop_ratios(scores, SHARE, 0.25)
    expected = torch.tensor([0.75, 1.75, 0.75, 0.75], dtype=torch.float64) * 0.25
    torch.testing.assert_close(ratios, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("size", [(300, 600), (600, 300), (500, 570)])
def test_thumbnail_view_covers_the_region_and_nothing_else(size):
    shape = Packing((4, 4), (2, 2), size).geometry
    top, bottom, left, right = shape.region
    thumbnail = torch.rand(1, 16, generator=torch.Generator().manual_seed(0)) + 1
    view = gc2.global_scores(thumbnail, gc2.crop_tables((shape,), CPU))
    image = thumbnail.view(1, 1, 4, 4)
    want = torch.nn.functional.interpolate(
        image, size=(bottom - top, right - left), mode="bilinear"
    )[0, 0]
    canvas = view.view(2, 2, 4, 4).permute(0, 2, 1, 3).reshape(8, 8)
    torch.testing.assert_close(canvas[top:bottom, left:right], want, rtol=1e-6, atol=0)
    outside = torch.ones(8, 8, dtype=torch.bool)
    outside[top:bottom, left:right] = False
    assert float(canvas[outside].abs().sum()) == 0


def test_thumbnail_view_of_an_empty_region_is_zero():
    shape = Packing((4, 4), (2, 2), (3000, 10)).geometry
    assert shape.region[2] >= shape.region[3]
    view = gc2.global_scores(torch.ones(1, 16), gc2.crop_tables((shape,), CPU))
    assert float(view.abs().sum()) == 0


def test_holistic_score_ignores_padding():
    generator = torch.Generator().manual_seed(0)
    local, view = torch.randn(2, 6, generator=generator), torch.randn(2, 6, generator=generator)
    valid = torch.tensor([[True] * 4 + [False] * 2, [True] * 6])
    got = gc2.holistic_scores(local, view, valid)
    short = local[0, :4] / local[0, :4].norm() + view[0, :4] / view[0, :4].norm()
    torch.testing.assert_close(got[0, :4], short)


def test_extents_of_crops_count_each_axis_by_itself():
    assert gc2.crop_extents((4, 4), (2, 2), (5, 7, 1, 8)).tolist() == [
        [0, 3],
        [0, 4],
        [2, 3],
        [2, 4],
    ]


@given(st.integers(0, 10**6), st.integers(1, 50))
def test_fence_is_that_of_numpy_over_valid_patches(seed, size):
    generator = torch.Generator().manual_seed(seed)
    values = torch.rand(2, 50, generator=generator)
    valid = torch.zeros(2, 50, dtype=torch.bool)
    valid[0, torch.randperm(50, generator=generator)[:size]] = True
    low, high, fence = tcc.iqr_fence(values, valid)[0].tolist()
    quartiles = np.quantile(values[0, valid[0]].numpy(), [0.25, 0.75])
    np.testing.assert_allclose([low, high], quartiles, rtol=1e-5)
    np.testing.assert_allclose(fence, high + 1.5 * (high - low), rtol=1e-5)
    assert bool(tcc.iqr_fence(values, valid)[1].isnan().all())


def test_redundancy_is_a_strict_share_of_the_fellows():
    valid = torch.ones(1, 11, dtype=torch.bool)
    count = torch.arange(11)[None]
    assert tcc.redundant_patches(count, 0.3, valid)[0].tolist() == [c > 3 for c in range(11)]
    valid[0, 6:] = False  # four fellows are left, 0.3 of them are 1.2
    assert tcc.redundant_patches(count, 0.3, valid)[0].tolist() == [1 < c < 6 for c in range(11)]


def test_identical_patches_leave_one_to_draw():
    keys = torch.ones(1, 30, 8)
    valid = torch.ones(1, 30, dtype=torch.bool)
    redundant = tcc.redundant_patches(tcc.neighbour_count(keys, 0.8), 0.1, valid)
    assert bool(redundant.all()) and int(tcc.sampling_number(redundant, valid)) == 1


def test_race_has_the_law_of_drawing_without_replacement():
    weights = torch.tensor([0.5, 0.3, 0.15, 0.05])
    noise = torch.empty(40000, 4).exponential_(generator=torch.Generator().manual_seed(0))
    order = exponential_race(weights.expand(40000, 4), noise).argsort(1, descending=True)
    first = torch.bincount(order[:, 0], minlength=4) / 40000
    torch.testing.assert_close(first, weights, rtol=0, atol=0.01)
    pair = ((order[:, 0] == 0) & (order[:, 1] == 1)).float().mean()
    assert abs(float(pair) - 0.5 * 0.3 / 0.5) < 0.01


def test_noise_depends_on_seed_and_content_alone():
    contents = [0, 1, 2**31, 2**63 - 1]  # large values are fine
    draws = {
        tuple(row.tolist()) for s in (0, 1, 2**40) for row in image_noise(s, contents, 50, CPU)
    }
    assert len(draws) == 12
    alone = image_noise(1, [2**31], 50, CPU)
    assert torch.equal(image_noise(1, contents, 50, CPU)[2:3], alone)
    assert torch.equal(image_noise(1, [2**31], 20, CPU), alone[:, :20])


def test_noise_is_uniform_and_uncorrelated():
    noise = image_noise(3, list(range(200)), 500, CPU).double()
    assert float(noise.min()) > 0 and float(noise.max()) < 1
    counts = torch.histc(noise, 20, 0, 1)
    assert float(((counts - 5000) ** 2 / 5000).sum()) < 43  # chi-squared, 19 degrees: 0.1 % above
    centred = noise - 0.5
    for shifted in (centred.roll(1, 0), centred.roll(1, 1)):  # next image, next place
        assert abs(float((centred * shifted).mean() * 12)) < 4 / 100_000**0.5


def test_visual_score_is_one_wide_head():
    generator = torch.Generator().manual_seed(0)
    query, keys = torch.randn(2, 8, generator=generator), torch.randn(2, 6, 8, generator=generator)
    got = visual_scores(query, keys)
    want = torch.softmax((keys[1] @ query[1]) / math.sqrt(8), 0)[1:]
    torch.testing.assert_close(got[1], want)


def test_text_score_is_a_cosine():
    patches, text = torch.randn(1, 5, 4), torch.randn(4)
    want = torch.cosine_similarity(patches, text.expand(1, 5, 4), dim=-1) / 2
    torch.testing.assert_close(text_scores(patches * 7, text * 3), want)


def test_official_cluster_keys_are_those_of_the_first_patches():
    keys = torch.eye(4)[None]
    rest = torch.tensor([[False, True, False, True]])
    assert cluster_keys(keys, rest, "official")[0, [1, 3]].argmax(1).tolist() == [0, 1]
    assert cluster_keys(keys, rest, "aligned")[0, [1, 3]].argmax(1).tolist() == [1, 3]


def test_clusters_are_cut_where_the_rest_is_small():
    unit = torch.nn.functional.normalize(torch.randn(1, 6, 4), dim=-1)
    rest = torch.tensor([[True, True, False, True, False, False]])
    members = cluster_members(unit, torch.zeros(1, 6), rest, torch.tensor([[0]]), 32, 50.0)
    assert members.shape == (1, 1, 32)
    assert sorted(members[0, 0, :2].tolist()) == [1, 3] and bool((members[0, 0, 2:] == -1).all())
