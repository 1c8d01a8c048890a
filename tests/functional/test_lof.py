"""The local outlier factor against scikit-learn."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vtc.functional.recoverable import outliers, share
from vtc.kernels.lof import local_outlier_factor

sklearn = pytest.importorskip("sklearn.neighbors")


def reference(values: np.ndarray, k: int) -> np.ndarray:
    model = sklearn.LocalOutlierFactor(n_neighbors=max(1, min(k, len(values) - 1)))
    model.fit(values.reshape(-1, 1))
    return model.negative_outlier_factor_


@given(st.integers(0, 10**6), st.integers(2, 300), st.integers(1, 30), st.sampled_from("aenu"))
def test_matches_scikit_learn(seed, size, k, kind):
    rng = np.random.default_rng(seed)
    values = {
        "a": lambda: np.exp(rng.normal(size=size) * 2) / size**2,  # like attention, ~1e-3 and less
        "e": lambda: rng.exponential(size=size),
        "n": lambda: rng.normal(size=size),
        "u": lambda: rng.uniform(size=size),
    }[kind]().astype(np.float32)
    got = local_outlier_factor(torch.from_numpy(values)[None], k)[0].numpy()
    np.testing.assert_allclose(got, reference(values, k), rtol=1e-3)


@pytest.mark.parametrize("k", [1, 5, 20])
@pytest.mark.parametrize("copies", [2, 9, 30])
def test_matches_scikit_learn_with_duplicates(k, copies):
    rng = np.random.default_rng(copies)
    values = rng.normal(size=200).astype(np.float32)
    values[:copies] = values.min()
    got = local_outlier_factor(torch.from_numpy(values)[None], k)[0].numpy()
    np.testing.assert_allclose(got, reference(values, k), rtol=1e-3)


@given(st.integers(0, 10**6), st.lists(st.integers(0, 60), min_size=1, max_size=5))
def test_masked_rows_of_a_batch_are_what_they_are_alone(seed, sizes):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(len(sizes), 60, generator=generator)
    scatter = torch.rand(len(sizes), 60, generator=generator)
    valid = scatter.argsort(1).argsort(1) < torch.tensor(sizes)[:, None]
    together = local_outlier_factor(values, 20, valid)
    for row, mask, found in zip(values, valid, together, strict=True):
        assert bool((found[~mask] == -1).all())
        if mask.sum() > 1:
            alone = local_outlier_factor(row[mask][None], 20)[0]
            torch.testing.assert_close(found[mask], alone, rtol=1e-4, atol=0)


def test_equal_values_and_single_values_are_inliers():
    for values in (torch.full((1, 50), 0.3), torch.zeros(1, 1), torch.zeros(1, 0)):
        factor, count = outliers(values, 20, torch.ones_like(values, dtype=torch.bool))
        assert factor.shape == values.shape and int(count) == 0


def test_rescaling_changes_the_result():
    """The 1e-10 in the density is part of the definition at the scale of attention."""
    values = torch.rand(1, 100, generator=torch.Generator().manual_seed(0)) * 1e-10
    a, b = local_outlier_factor(values, 10), local_outlier_factor(values * 1e6, 10)
    assert not torch.allclose(a, b, rtol=1e-2)


def test_float64_round_trip_loses_a_token_where_the_official_code_does():
    count = torch.arange(730)
    size = torch.full_like(count, 729)
    official = share(size, count, size, "official")
    lost = (official < count).nonzero().squeeze(1)
    assert len(lost) == 49 and lost[:6].tolist() == [1, 2, 4, 8, 16, 23]
    for patches, c in ((196, 27), (100, 29)):
        one, of = torch.tensor([c]), torch.tensor([patches])
        assert int(share(of, one, of, "official")) == c - 1 == int(share(of, one, of, "exact")) - 1
    assert torch.equal(share(size, count, size, "exact"), count)
    for exact in (36, 64, 144, 576, 1024):
        count = torch.arange(exact + 1)
        size = torch.full_like(count, exact)
        assert torch.equal(share(size, count, size, "official"), count)
