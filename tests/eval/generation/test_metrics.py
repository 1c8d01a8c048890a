"""Metrics and seed statistics against scikit-image, scipy and arithmetic."""

import math

import numpy as np
import pytest
import torch

from vtc import VTCError
from vtc.discrete import CodeSpace, create_tokenizer
from vtc.discrete.metrics import code_statistics, image_quality, reconstruct

pytest.importorskip("omegaconf")
pytest.importorskip("accelerate")
skimage = pytest.importorskip("skimage.metrics")
scipy_stats = pytest.importorskip("scipy.stats")

from vtc.eval.generation.config import DataSettings, FeatureSettings  # noqa: E402
from vtc.eval.generation.data import load_data  # noqa: E402
from vtc.eval.generation.features import feature_net  # noqa: E402
from vtc.eval.generation.seeds import estimate, paired  # noqa: E402
from vtc.eval.generation.studies.rollout import growth  # noqa: E402
from vtc.eval.generation.targets import Latents, Pixels, normalised  # noqa: E402


def test_quality_agrees_with_scikit_image() -> None:
    torch.manual_seed(0)
    a = torch.rand(3, 3, 12, 12) * 2 - 1
    b = (a + 0.2 * torch.randn_like(a)).clamp(-1, 1)
    got = image_quality(b, a)
    x, y = a.double().numpy(), b.double().numpy()
    psnr = [10 * math.log10(4 / ((p - q) ** 2).mean()) for p, q in zip(x, y, strict=True)]
    ssim = [
        skimage.structural_similarity(p, q, channel_axis=0, data_range=2)
        for p, q in zip(x, y, strict=True)
    ]
    assert got["psnr"] == pytest.approx(np.mean(psnr), abs=1e-6)
    assert got["ssim"] == pytest.approx(np.mean(ssim), abs=1e-6)
    assert image_quality(5 * a, (5 * a).clamp(-1, 1))["psnr"] == math.inf  # clamped before
    with pytest.raises(VTCError, match="output"):
        image_quality(a, b[:2])
    with pytest.raises(VTCError, match="7 x 7"):
        image_quality(a[..., :6], b[..., :6])


def test_code_statistics() -> None:
    bits = torch.tensor([[[0, 0], [0, 1]], [[0, 0], [1, 1]]])
    found = code_statistics(bits, CodeSpace(2, (2, 2)))
    assert found == pytest.approx(
        {"bits_per_image": 4, "usage": 0.75, "code_entropy": 0.5, "bit_entropy": 0.25}
    )
    same = code_statistics(bits[:1].expand(5, -1, -1), CodeSpace(2, (2, 2)))
    assert same["code_entropy"] == same["bit_entropy"] == 0  # all images alike: collapsed
    # FSQ's 240 codes are no bits: entropy of the whole code only
    plain = code_statistics(torch.tensor([[[0]], [[239]]]), CodeSpace(1, (240,)))
    assert plain["usage"] == pytest.approx(2 / 240) and "bit_entropy" not in plain
    # 64 bits cannot be counted as one number
    wide = code_statistics(torch.zeros(1, 1, 64, dtype=torch.long), CodeSpace(1, (2,) * 64))
    assert "usage" not in wide and wide["bit_entropy"] == 0


def test_reconstruction_measures_evaluation_mode() -> None:
    torch.manual_seed(0)
    tokenizer = create_tokenizer("tiny_instella_1d", dim=24).train()
    images = torch.rand(5, 3, 8, 8)
    first, codes = reconstruct(tokenizer, images, batch=2)
    second, again = reconstruct(tokenizer, images, batch=5)
    assert first.shape == images.shape and torch.allclose(first, second, atol=1e-5)
    assert torch.equal(codes, again) and tokenizer.training


def test_features_rank_real_images_before_noise() -> None:
    data = load_data(DataSettings())
    net = feature_net(data, FeatureSettings(steps=80))
    images = torch.stack([data.valid[i]["image"] for i in range(200)])
    labels = torch.stack([data.valid[i]["label"] for i in range(200)])
    assert net.reference.var(dim=0).mean() == pytest.approx(1, abs=1e-4)
    assert net.distance(images) < 2 < net.distance(torch.rand_like(images) * 2 - 1)
    assert net.accuracy > 0.8 and net.agreement(images, labels) > 0.8
    with pytest.raises(VTCError, match="timm:NAME"):
        feature_net(data, FeatureSettings(net="inception"))


def test_patches_round_trip() -> None:
    images = torch.rand(2, 3, 8, 8)
    space = CodeSpace(16, (2,), (4, 4))
    colour, grey = Pixels(space, 12, 8), Pixels(space, 4, 8)
    assert torch.equal(colour.decode(colour.encode(images)), images)
    assert torch.allclose(grey.decode(grey.encode(images))[:, 1], images.mean(1))
    with pytest.raises(VTCError, match="5 channels"):
        Pixels(space, 5, 8)


def test_latents_are_scaled_and_come_back() -> None:
    torch.manual_seed(0)
    tokenizer = create_tokenizer("tiny_elm_bae", width=8).eval()
    images = torch.rand(4, 3, 8, 8)
    target = normalised(tokenizer, images)
    latents = target.encode(images)
    assert isinstance(target, Latents) and latents.shape == (4, 16, 16)
    assert latents.mean().abs() < 1e-5 and abs(latents.std() - 1) < 1e-5
    torch.testing.assert_close(
        target.decode(latents), tokenizer.decode(tokenizer.encode(images).ids)
    )


def test_estimate_is_the_student_t_interval() -> None:
    x = [1.0, 2.0, 4.0, 3.5, 2.5]
    got = estimate(x)
    low, high = scipy_stats.t.interval(0.95, 4, np.mean(x), scipy_stats.sem(x))
    assert (got.low, got.high) == pytest.approx((low, high))
    assert estimate([3.0]).low == 3.0
    with pytest.raises(VTCError, match="finite"):
        estimate([1.0, float("nan")])


def test_paired_differences_are_widened_for_their_number() -> None:
    a, b = [1.0, 2.0, 3.0, 4.0, 5.0], [0.5, 1.6, 2.3, 3.6, 4.2]
    one, many = paired(a, b, ("A", "B")), paired(a, b, ("A", "B"), comparisons=10)
    reference = scipy_stats.ttest_rel(a, b).confidence_interval(0.995)
    assert (many.difference.low, many.difference.high) == pytest.approx(tuple(reference))
    assert many.difference.low < one.difference.low and one.wins == 5
    assert one.separated and "do not separate" not in one.text("x")
    noise = paired([1.0, 2.0, 3.0], [2.0, 1.0, 3.0], ("A", "B"))
    assert not noise.separated and "do not separate" in noise.text("x")
    assert not paired([2.0, 2.0], [1.0, 1.0]).separated  # two seeds support nothing
    with pytest.raises(VTCError, match="same seeds"):
        paired([1.0], [1.0, 2.0])


def test_growth_exponent() -> None:
    steps = torch.arange(1.0, 41)
    assert growth(torch.full((40,), 0.2)) == pytest.approx(1)
    assert growth((steps**1.5).diff(prepend=torch.zeros(1))) == pytest.approx(1.5)
