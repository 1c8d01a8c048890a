"""Losses, schedules and metrics against plain definitions."""

import math

import pytest
import torch
import torch.nn.functional as F

from vtc import VTCError
from vtc.discrete import (
    ImageTokenizer,
    adversarial,
    create_quantizer,
    create_tokenizer,
    losses,
    metrics,
    schedules,
)
from vtc.discrete.autoencoders import EmbeddingDecoder, PatchEncoder, QueryEncoder
from vtc.discrete.backbone import TransformerConfig
from vtc.discrete.flow import path, score_from_velocity
from vtc.functional.similarity import similarity_points, token_similarity


def test_reconstruction_with_a_perceptual_term() -> None:
    a, b = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    plain = losses.reconstruction_loss(a, b)
    assert torch.equal(plain, F.l1_loss(a, b))
    more = losses.reconstruction_loss(a, b, perceptual=lambda x, y: torch.ones(2), kind="l1")
    assert torch.isclose(more, plain + 1)
    with pytest.raises(VTCError):
        losses.reconstruction_loss(a, b, "l3")
    with pytest.raises(VTCError):
        losses.reconstruction_loss(a, b[:, :, :2])


@pytest.mark.parametrize("shape", [(4, 2, 3), (4, 6), (4, 2, 3, 5)])
def test_focal_loss_is_balanced_by_the_ones_of_each_image(shape: tuple[int, ...]) -> None:
    """A pair of weights an image, whatever else is in the batch."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator)
    share = torch.tensor([0.1, 0.5, 0.9, 0.0]).view(-1, *[1] * (len(shape) - 1))
    bits = (torch.rand(shape, generator=generator) < share).float()
    got = losses.focal_loss(logits, bits, alpha=-1, gamma=1.0)
    for image, (x, row) in enumerate(zip(logits.flatten(1), bits.flatten(1), strict=True)):
        ones = row.sum().item() / row.numel()
        for place, (logit, bit) in enumerate(zip(x.tolist(), row.tolist(), strict=True)):
            p = 1 / (1 + math.exp(-logit if bit else logit))  # of what is right
            expected = (1 - ones if bit else ones) * (1 - p) * -math.log(p)
            assert got[image].flatten()[place].item() == pytest.approx(expected, abs=1e-6)
    single = losses.focal_loss(logits[1].flatten(), bits[1].flatten(), alpha=-1, gamma=1.0)
    assert torch.allclose(single, got[1].flatten()), "one axis is one image"


def test_adversarial_parts_fit_together() -> None:
    torch.manual_seed(0)
    discriminator, lecam = adversarial.PatchDiscriminator(width=8, layers=2), adversarial.LeCam()
    real, last = torch.rand(2, 3, 32, 32), torch.nn.Conv2d(3, 3, 1)
    fake = last(real)
    logits_real, logits_fake = discriminator(real), discriminator(fake)
    loss = adversarial.hinge_discriminator_loss(logits_real, logits_fake.detach())
    (loss + lecam(logits_real, logits_fake.detach())).backward()
    assert lecam.real_mean != 0
    pixels, verdict = F.l1_loss(fake, real), adversarial.generator_loss(discriminator(fake))
    weight = adversarial.adaptive_weight(pixels, verdict, last.weight)
    assert 0 <= weight <= 1 and not weight.requires_grad


def small_discriminator() -> adversarial.PatchDiscriminator:
    torch.manual_seed(1)
    return adversarial.PatchDiscriminator(width=4, layers=1)


def test_the_two_sides_learn_from_their_own_loss_alone() -> None:
    torch.manual_seed(0)
    tokenizer, image = create_tokenizer("tiny_vqgan", width=8), torch.rand(2, 3, 8, 8)
    rival = adversarial.Adversarial(0.3, adaptive=False, discriminator=small_discriminator())
    tokenizer.loss(image, adversarial=rival)["loss"].backward()
    output, out = tokenizer(image)
    # the autoencoder: reconstruction and the verdict of a discriminator that is a constant
    frozen = small_discriminator().requires_grad_(False)
    mine = losses.reconstruction_loss(output, image, "mse") + out.loss
    wanted = torch.autograd.grad(
        mine + 0.3 * adversarial.generator_loss(frozen(output)), tokenizer.decoder.last_layer
    )[0]
    torch.testing.assert_close(tokenizer.decoder.last_layer.grad, wanted)
    # the discriminator: the hinge loss of images that are constants
    other = small_discriminator()
    adversarial.hinge_discriminator_loss(other(image), other(output.detach())).backward()
    for got, expected in zip(rival.discriminator.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(got.grad, expected.grad)


def test_a_discriminator_may_begin_later_and_balances_itself() -> None:
    torch.manual_seed(0)
    tokenizer, image = create_tokenizer("tiny_vqgan", width=8), torch.rand(2, 3, 8, 8)
    rival = adversarial.Adversarial(start=2, lecam=0.1, discriminator=small_discriminator())
    names = [set(tokenizer.loss(image, adversarial=rival)) for _ in range(3)]
    assert "discriminator" not in names[0] | names[1] and "discriminator" in names[2]
    assert rival.lecam.real_mean != 0
    output, _ = tokenizer(image)
    pixels, last = losses.reconstruction_loss(output, image), tokenizer.decoder.last_layer
    share = rival(output, image, pixels, last)
    own = share["loss"] - share["discriminator"]
    one, two = (torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (pixels, own))
    assert two <= 1.01 * one
    with pytest.raises(VTCError, match="last_layer"):
        rival(output, image, pixels, None)
    with pytest.raises(VTCError, match="take fewer"):
        adversarial.Adversarial()(output, image, pixels, last)


def test_last_token_contrast_prefers_pairs() -> None:
    torch.manual_seed(0)
    tokens, text = torch.randn(6, 5, 8), torch.randn(6, 8)
    paired = losses.contrastive_last_token(torch.cat([tokens, text[:, None]], 1), text, 0.07)
    mixed = losses.contrastive_last_token(tokens, text, 0.07)
    assert paired < mixed


def test_distillation_gives_the_teacher_no_gradient() -> None:
    student, teacher = (torch.randn(2, 3, requires_grad=True) for _ in range(2))
    total = losses.cosine_distillation(student, teacher)
    (total + losses.embedding_distillation(student, teacher)).backward()
    assert student.grad is not None and teacher.grad is None


def embedding_tokenizer(separate: bool) -> ImageTokenizer:
    """`seed_causal` in small."""
    torch.manual_seed(0)
    query = TransformerConfig(16, 2, 2, cross_dim=16, cross_every=2)
    encoder = QueryEncoder(4, query, features=PatchEncoder(TransformerConfig(16, 1, 2), 4, 8))
    blocks = TransformerConfig(16, 1, 2, positions=4)
    decoder = EmbeddingDecoder(blocks, QueryEncoder(1, query, causal=False), 6, separate)
    quantizer = create_quantizer("vq", 16, size=32, code_dim=4, legacy=True, weight=5.0)
    return ImageTokenizer(encoder, quantizer, decoder, (8, 8))


@pytest.mark.parametrize("separate", [False, True])
def test_second_stage_of_seed(separate: bool) -> None:
    tokenizer = embedding_tokenizer(separate)
    tokenizer.encoder.requires_grad_(False)
    image, teacher = torch.rand(8, 3, 8, 8) * 2 - 1, torch.randn(8, 6)
    h = tokenizer.features(image)
    out = tokenizer.encode(image)
    cosine = 1 - F.cosine_similarity(tokenizer.decoder.features(out.z), h, dim=-1).mean()
    distance = F.mse_loss(tokenizer.decode(out.z), teacher)
    trained = [p for p in tokenizer.parameters() if p.requires_grad]
    optimizer, trace = torch.optim.Adam(trained, 3e-3), []
    for _ in range(20):
        parts = losses.distillation_loss(tokenizer, image, teacher)
        optimizer.zero_grad()
        parts["loss"].backward()
        optimizer.step()
        trace.append(float(parts["loss"].detach()))
    assert trace[0] == pytest.approx((out.loss + 2 * cosine + 0.5 * distance).item())
    assert trace[-1] < 0.8 * trace[0] and {"queries", "embedding", "perplexity"} <= set(parts)
    assert all(p.grad is not None for p in trained)
    with pytest.raises(VTCError, match="losses.distillation_loss"):
        tokenizer.loss(image)
    with pytest.raises(VTCError, match="teacher: got shape"):
        losses.distillation_loss(tokenizer, image, teacher[:, :5])
    with pytest.raises(VTCError, match="LatentDecoder"):
        losses.distillation_loss(create_tokenizer("tiny_titok"), image, teacher)


def test_alignment_reaches_a_teacher_of_another_grid() -> None:
    torch.manual_seed(0)
    tokenizer = create_tokenizer("tiny_instella_1d")
    z = tokenizer.encode(torch.rand(2, tokenizer.encoder.channels, *tokenizer.size)).z
    features = tokenizer.decoder.features(z, tokenizer.size)
    assert torch.equal(tokenizer.decoder.draw(features), tokenizer.decode(z))
    align = losses.Alignment(features.shape[-1], teacher=6)
    teacher = torch.randn(2, 3, 5, 6)
    optimizer = torch.optim.Adam(align.parameters(), 1e-2)
    trace = []
    for _ in range(60):
        loss = align(features.detach(), teacher)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        trace.append(float(loss.detach()))
    assert trace[-1] < 0.5 * trace[0]
    align(features, teacher).backward()
    assert tokenizer.encoder.latents.grad.abs().sum() > 0
    with pytest.raises(VTCError, match="teacher: got shape"):
        align(features, teacher[..., :5])


def test_soft_labels_contain_hard_ones() -> None:
    logits, target = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    hard = F.cross_entropy(logits, target, reduction="none")
    assert torch.allclose(losses.soft_cross_entropy(logits, F.one_hot(target, 4).float()), hard)


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_score_of_a_gaussian(kind: str) -> None:
    # data N(0, 1): x_t has variance alpha^2 + sigma^2, and both v and the score are linear in x
    t = torch.tensor([0.2, 0.5, 0.9])
    x, at = torch.randn(3), path(t, kind)
    variance = at.alpha**2 + at.sigma**2
    v = (at.d_alpha * at.alpha + at.d_sigma * at.sigma) / variance * x
    assert torch.allclose(score_from_velocity(v, x, t, kind), -x / variance, atol=1e-5)
    with pytest.raises(VTCError):
        path(t, "cubic")


def test_schedules() -> None:
    assert [schedules.Guidance(3.0, "linear").at(i, 4) for i in range(4)] == [1.5, 2, 2.5, 3]
    assert [schedules.Guidance(3.0, "linear", True).at(i, 3) for i in range(3)] == [1, 2, 3]
    assert schedules.Guidance(3.0, "linear", True).at(0, 1) == 3
    assert all(
        math.isclose(schedules.Guidance(3.0, name).at(7, 8), 3.0)
        for name in schedules.GUIDANCE
        if name != "square_root"
    )
    assert schedules.masked_count("cos", 10, 9, 10) == 0
    rate = [schedules.warmup_cosine(s, 1.0, 2, 6, 0.1) for s in (0, 1, 2, 4, 6, 9)]
    assert rate == pytest.approx([0, 0.5, 1, 0.55, 0.1, 0.1])
    for call in (schedules.bit_noise, lambda kind, _: schedules.masked_share(kind, 0.1)):
        with pytest.raises(VTCError):
            call("other", 3)


@pytest.mark.parametrize("kind", ["linear", "cos", "sigmoid"])
def test_bit_noise_composes(kind: str) -> None:
    noise, bits = schedules.bit_noise(kind, 6), torch.tensor([[0.0, 1.0]])
    chance = bits
    for step in range(1, 7):
        chance = noise.from_previous(chance, torch.tensor([step]))
        assert torch.allclose(chance, noise.from_clean(bits, torch.tensor([step])), atol=1e-6)
    assert torch.allclose(chance, torch.full_like(chance, 0.5))


def test_frechet_distance() -> None:
    torch.manual_seed(0)
    a = torch.randn(4000, 3)
    assert metrics.frechet_distance(a, a) == pytest.approx(0, abs=1e-6)
    assert metrics.frechet_distance(a, a + 2) == pytest.approx(12, abs=1e-4)
    assert metrics.frechet_distance(a, 3 * a) == pytest.approx(3 * 4, rel=0.1)
    with pytest.raises(VTCError):
        metrics.frechet_distance(a, a[:, :2])


def test_token_similarity() -> None:
    image, query = torch.randn(2, 9, 4), torch.randn(1, 4)
    assert torch.allclose(token_similarity(image, query)[..., 0], image @ query[0])
    several = token_similarity(image, torch.cat([query, query]))
    assert torch.allclose(several[..., 0], image @ query[0], atol=1e-5)  # equal queries, weight 1
    points, labels = similarity_points(torch.rand(64), (32, 48), count=5)
    assert points.shape == (5, 2) and labels[0] == 1
    assert (points[:, 0] < 48).all() and (points[:, 1] < 32).all()
    for call in (
        lambda: token_similarity(image, torch.randn(1, 3)),
        lambda: similarity_points(torch.rand(60), (8, 8)),
        lambda: similarity_points(torch.rand(64), (8, 8), count=99),
    ):
        with pytest.raises(VTCError):
            call()
