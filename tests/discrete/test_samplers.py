"""With a perfect model, each sampler reproduces the distribution (chi-square at fixed seeds)."""

import numpy as np
import pytest
import torch
from scipy.stats import chi2, norm

from vtc import VTCError
from vtc.discrete import CodeSpace, Noise, samplers
from vtc.discrete.plans import create_plan

JOINT = torch.tensor([[0.30, 0.05, 0.05], [0.02, 0.20, 0.08], [0.05, 0.10, 0.15]])
COUNT = 6000


def assert_same(counts: torch.Tensor, chances: torch.Tensor) -> None:
    """Chi-square of counts against chances; fails one time in 1000 when they agree."""
    expected = chances * counts.sum()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    assert statistic < chi2.ppf(0.999, len(counts) - 1), statistic


def pair_counts(ids: torch.Tensor) -> torch.Tensor:
    return torch.bincount(ids[:, 0, 0] * 3 + ids[:, 1, 0], minlength=9).double()


def test_autoregressive() -> None:
    def step(last: torch.Tensor | None) -> torch.Tensor:
        if last is None:
            return JOINT.sum(1).log().expand(COUNT, 1, 1, 3)
        return JOINT[last[:, :, 0]].log().unsqueeze(2)

    ids = samplers.sample_ar(step, CodeSpace(2, (3,)), COUNT, seed=0)
    assert_same(pair_counts(ids), JOINT.flatten())


def test_autoregressive_bits() -> None:
    chance = torch.tensor([0.2, 0.7])
    last_seen: list[torch.Tensor | None] = []

    def step(last: torch.Tensor | None) -> torch.Tensor:
        last_seen.append(last)
        now = chance if last is None else (chance + last[:, :, :1].float() * 0.1)
        return torch.logit(now).expand(COUNT, 1, 2)

    bits = samplers.sample_ar(step, CodeSpace(2, (2, 2)), COUNT, seed=0)
    assert_same(bits[:, 0, 0].bincount(minlength=2).double(), torch.tensor([0.8, 0.2]))
    second = bits[bits[:, 0, 0] == 1][:, 1, 1]
    assert_same(second.bincount(minlength=2).double(), torch.tensor([0.2, 0.8]))
    assert last_seen[0] is None


def test_masked() -> None:
    # one token a step in random order: with confident tokens first the order depends on the values
    def predict(ids: torch.Tensor, unknown: torch.Tensor) -> torch.Tensor:
        first, second = ids[:, 0, 0], ids[:, 1, 0]
        rows = torch.where(unknown[:, 1:], JOINT.sum(1), JOINT.T[second])
        columns = torch.where(unknown[:, :1], JOINT.sum(0), JOINT[first])
        return torch.stack([rows, columns], dim=1).log().unsqueeze(2)

    ids = samplers.sample_maskgit(
        predict, CodeSpace(2, (3,)), COUNT, steps=2, temperature=1e6, schedule="linear", seed=0
    )
    assert_same(pair_counts(ids), JOINT.flatten())


def test_masked_bits() -> None:
    chance = torch.tensor([[0.2, 0.7], [0.5, 0.1]])
    bits = samplers.sample_maskgit(
        lambda ids, unknown: torch.logit(chance).expand(COUNT, 2, 2),
        CodeSpace(2, (2, 2)),
        COUNT,
        steps=2,
        temperature=1e6,
        schedule="linear",
        seed=0,
    )
    for token in (0, 1):
        for bit in (0, 1):
            one = chance[token, bit]
            counts = bits[:, token, bit].bincount(minlength=2).double()
            assert_same(counts, torch.stack([1 - one, one]))


def test_bit_diffusion() -> None:
    rate = torch.tensor([0.1, 0.5, 0.8])

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        one = rate * torch.where(x > 0.5, 1 - t[0] / 2, t[0] / 2)
        zero = (1 - rate) * torch.where(x > 0.5, t[0] / 2, 1 - t[0] / 2)
        return samplers.clean_logits((one / zero).log(), x)  # its own inverse

    space = CodeSpace(1, (2, 2, 2))
    bits = samplers.sample_bit_diffusion(denoise, space, COUNT, steps=200, seed=0)
    for index, chance in enumerate(rate):
        counts = bits[:, 0, index].bincount(minlength=2).double()
        assert_same(counts, torch.stack([1 - chance, chance]))


@pytest.mark.parametrize("posterior", [False, True])
def test_bit_diffusion_of_one_image(posterior: bool) -> None:
    image = torch.randint(2, (1, 5, 4), generator=torch.Generator().manual_seed(0)).float()
    bits = samplers.sample_bit_diffusion(
        lambda x, t: samplers.clean_logits(20 * (2 * image - 1).expand_as(x), x),
        CodeSpace(5, (2,) * 4),
        3,
        steps=6,
        posterior=posterior,
        seed=1,
    )
    assert torch.equal(bits, image.long().expand(3, -1, -1))


class GaussianGroups:
    """Exact velocities of two groups: the mean of the second is the first."""

    def __init__(self) -> None:
        self.mean, self.spread = torch.tensor(1.5), 0.5

    def velocity(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        t = t[:, None, None]
        centre = (x - (1 - t) * self.mean) / ((1 - t) ** 2 * self.spread**2 + t**2)
        return t * centre - (self.mean + (1 - t) * self.spread**2 * centre)

    def commit(self, x: torch.Tensor) -> None:
        self.mean = x


@pytest.mark.parametrize("method", ["euler", "euler_maruyama"])
def test_next_x(method: str) -> None:
    x = samplers.sample_next_x(
        GaussianGroups(), create_plan("raster", (1, 2)), 1, COUNT, 200, method=method, seed=0
    )[..., 0]
    edges = torch.tensor(norm.ppf([0.1, 0.3, 0.5, 0.7, 0.9]))
    for value, mean, spread in ((x[:, 0], 1.5, 0.5), (x[:, 1] - x[:, 0], 0.0, 0.5)):
        place = torch.bucketize(((value - mean) / spread).double(), edges)
        counts = torch.bincount(place, minlength=6).double()
        assert_same(counts, torch.tensor([0.1, 0.2, 0.2, 0.2, 0.2, 0.1]).double())


def test_filters() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 0.0])
    infinite = torch.isinf
    assert infinite(samplers.filter_logits(logits, top_k=2)).tolist() == [True, False, False, True]
    assert infinite(samplers.filter_logits(logits, top_p=0.6)).tolist() == [True, False, True, True]
    assert not infinite(samplers.filter_logits(logits, top_k=9)).any()
    assert samplers.filter_logits(logits, temperature=2.0).tolist() == [0.5, 1.5, 1.0, 0.0]
    greedy = samplers.filter_logits(logits, temperature=0.0)
    assert samplers.draw_codes(greedy.expand(50, 4), Noise(0)).unique().tolist() == [1]
    assert samplers.draw_bits(torch.tensor([0.1, -0.1, 0.0]), 0.0, Noise(0)).tolist() == [1, 0, 0]
    with pytest.raises(VTCError):
        samplers.filter_logits(logits, top_p=0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_draw_without_bias(dtype: torch.dtype) -> None:
    rows, codes = 20_000, 1024
    logits = torch.zeros(rows, codes, dtype=dtype)
    mean = float(samplers.draw_codes(logits, Noise(0)).double().mean())
    assert abs(mean - (codes - 1) / 2) < 5 * codes / (12 * rows) ** 0.5
    drawn = samplers.draw_bits(logits[:, :100] - 6, 1.0, Noise(0)).double().mean()
    assert float(drawn) == pytest.approx(0.00247, rel=0.1)
    tied = samplers.least_confident(logits[:, :64, None], 1, 1.0, Noise(0)).double().mean(0)
    assert_same(tied * rows, torch.full((64,), 1 / 64).double())
    assert torch.isfinite(samplers.filter_logits(logits, top_p=0.5)).sum(-1).eq(codes // 2).all()


@pytest.mark.parametrize("seed", [np.int64(3), np.uint8(3)])
def test_seeds_may_be_of_numpy(seed: np.integer) -> None:
    like = torch.empty(0)
    assert torch.equal(Noise(seed).uniform((4,), like), Noise(3).uniform((4,), like))


@pytest.mark.parametrize("seed", ["3", 3.0])
def test_other_seeds_are_refused(seed: object) -> None:
    with pytest.raises(VTCError, match="seed: got"):
        Noise(seed)  # type: ignore[arg-type]


def test_masked_codes_are_filtered() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).expand(500, 3, 1, 4)

    def drawn(**options: float) -> set[int]:
        space = CodeSpace(3, (4,))
        ids = samplers.sample_maskgit(lambda *_: logits, space, 500, 3, seed=0, **options)
        return set(ids.flatten().tolist())

    assert drawn() == {0, 1, 2, 3}
    assert drawn(top_k=2) == drawn(top_p=0.8) == {0, 1}
    assert drawn(code_temperature=0.0) == {0}


def test_bits_have_nothing_to_cut() -> None:
    space = CodeSpace(2, (2, 2))
    for cut in ({"top_k": 1}, {"top_p": 0.5}):
        with pytest.raises(VTCError, match="top_k, top_p: got"):
            samplers.sample_ar(lambda _: torch.zeros(1, 1, 2), space, 1, **cut)
        with pytest.raises(VTCError, match="top_k, top_p: got"):
            samplers.sample_maskgit(lambda *_: torch.zeros(1, 2, 2), space, 1, **cut)


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        ("ar", {"steps": 3}, "steps: 'ar' has no such option"),
        ("maskgit", {"stepz": 3}, "did you mean 'steps'"),
        ("maskgit", {"seed": 3}, "seed: 'maskgit' has no such option"),
        ("maskgit", {"steps": 0}, "steps: got 0"),
        ("next_x", {"steps": 2.5}, "steps: got 2.5"),
        ("next_x", {"method": "heun"}, "method: got 'heun'"),
        ("bit_diffusion", {"rho": 0}, "rho: got 0"),
        ("maskgit", {"schedule": "cubic"}, "schedule: got 'cubic'"),
        ("ar", {"temperature": float("nan")}, "temperature: got nan"),
        ("ar", {"top_k": "5"}, "top_k: got '5'"),
        ("dream", {}, "sampler: got 'dream'"),
    ],
)
def test_options_are_checked_by_name_and_value(sampler: str, options: dict, message: str) -> None:
    with pytest.raises(VTCError, match=message):
        samplers.create_sampler(sampler, **options)


def test_known_options_pass() -> None:
    made = samplers.create_sampler("ar", temperature=0.7, top_k=5, top_p=0.9)
    assert made == samplers.Autoregressive(0.7, 5, 0.9)
    samplers.create_sampler("maskgit", steps=np.int64(4), code_temperature=1, top_k=2)


def test_recorded_draws_run_out() -> None:
    noise = Noise(replay=[torch.zeros(2)])
    assert noise.uniform((3, 2), torch.empty(0)).shape == (3, 2)
    with pytest.raises(VTCError, match="replay"):
        noise.normal((2,), torch.empty(0))


def test_trace_shows_what_was_drawn_from() -> None:
    trace: list[torch.Tensor] = []
    space = CodeSpace(3, (4,))
    samplers.sample_ar(lambda _: torch.randn(2, 1, 1, 4), space, 2, top_k=1, trace=trace, seed=0)
    assert len(trace) == 3 and all(torch.isfinite(step).sum() == 2 for step in trace)


@pytest.mark.parametrize(
    "call",
    [
        lambda: samplers.sample_bit_diffusion(lambda x, t: x, CodeSpace(1, (3,)), 1),
        lambda: samplers.sample_bit_diffusion(lambda x, t: x, CodeSpace(1, (2,)), 1, steps=0),
        lambda: samplers.sample_bit_diffusion(lambda x, t: x, CodeSpace(1, (2,)), 1, temperature=0),
        lambda: samplers.sample_next_x(
            GaussianGroups(), create_plan("raster", (1, 2)), 1, 1, method="heun"
        ),
        lambda: samplers.sample_next_x(
            GaussianGroups(), create_plan("raster", (1, 2)), 1, 1, steps=0
        ),
        lambda: samplers.sample_maskgit(
            lambda *_: torch.zeros(1, 2, 1, 3), CodeSpace(2, (3,)), 1, steps=0
        ),
    ],
)
def test_bad_input(call) -> None:
    with pytest.raises(VTCError):
        call()
