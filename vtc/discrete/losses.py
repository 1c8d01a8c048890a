"""Training losses of tokenizers and of what is built on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.discrete.autoencoders import EmbeddingDecoder
from vtc.errors import VTCError

if TYPE_CHECKING:
    from vtc.discrete.tokenizer import ImageTokenizer

# -- reconstruction ---------------------------------------------------------------------------------


def reconstruction_loss(
    output: Tensor,
    target: Tensor,
    kind: str = "l1",
    perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
    perceptual_weight: float = 1.0,
) -> Tensor:
    """Pixel loss, plus an optional perceptual one.

    Args:
        output: `[B, 3, H, W]` in [-1, 1].
        target: the same shape.
        kind: "l1", "mse" or "smooth_l1".
        perceptual: a function of both images, for example an LPIPS network.
        perceptual_weight: weight of its mean.
    """
    kinds = {"l1": F.l1_loss, "mse": F.mse_loss, "smooth_l1": F.smooth_l1_loss}
    if kind not in kinds:
        raise VTCError(f"kind: got {kind!r}, available are {', '.join(kinds)}")
    if output.shape != target.shape:
        raise VTCError(f"output: got {tuple(output.shape)} for a target of {tuple(target.shape)}")
    loss = kinds[kind](output, target)
    if perceptual is not None:
        loss = loss + perceptual_weight * perceptual(output, target).mean()
    return loss


# -- adversarial ------------------------------------------------------------------------------------


class PatchDiscriminator(nn.Module):
    """Convolutions that call each patch real or made (PatchGAN, arXiv 1611.07004).

    Args:
        channels: image channels.
        width: channels of the first layer, doubled per layer up to 8 times.
        layers: stride-2 layers.
    """

    def __init__(self, channels: int = 3, width: int = 64, layers: int = 3) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2)]
        size = width
        for layer in range(1, layers + 1):
            previous, size = size, width * min(2**layer, 8)
            stride = 2 if layer < layers else 1
            parts += [
                nn.Conv2d(previous, size, 4, stride, 1, bias=False),
                nn.BatchNorm2d(size),
                nn.LeakyReLU(0.2),
            ]
        self.net = nn.Sequential(*parts, nn.Conv2d(size, 1, 4, 1, 1))

        self.smallest = 3 * 2**layers

    def forward(self, image: Tensor) -> Tensor:
        """`[B, 3, H, W]` to logits `[B, 1, h, w]`, large for real.

        Raises:
            VTCError: an image too small for so many layers.
        """
        if min(image.shape[2:]) < self.smallest:
            raise VTCError(
                f"layers: this many need images of {self.smallest} pixels, got "
                f"{image.shape[2]} x {image.shape[3]}; take fewer"
            )
        return self.net(image)


def hinge_discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Half the sum of both hinge terms of discriminator logits."""
    return 0.5 * (F.relu(1 - real).mean() + F.relu(1 + fake).mean())


def generator_loss(fake: Tensor) -> Tensor:
    """What the autoencoder adds: the negative mean logit of its images."""
    return -fake.mean()


def adaptive_weight(
    reconstruction: Tensor, adversarial: Tensor, last_layer: Tensor, limit: float = 1.0
) -> Tensor:
    """Weight that gives both losses gradients of like norm at the decoder's last weight (VQGAN)."""
    wanted = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)[0].norm()
    given = torch.autograd.grad(adversarial, last_layer, retain_graph=True)[0].norm()
    return (wanted / (given + 1e-4)).clamp(0, limit).detach()


class LeCam(nn.Module):
    """Keeps discriminator logits near running means of the other side (arXiv 2104.03310).

    Args:
        decay: of the running means.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real_mean", torch.zeros(()))
        self.register_buffer("fake_mean", torch.zeros(()))

    real_mean: Tensor
    fake_mean: Tensor

    def forward(self, real: Tensor, fake: Tensor) -> Tensor:
        """The penalty for a batch of logits; the means are then moved."""
        loss = F.relu(real - self.fake_mean).square().mean()
        loss = loss + F.relu(self.real_mean - fake).square().mean()
        with torch.no_grad():
            self.real_mean.lerp_(real.mean().detach(), 1 - self.decay)
            self.fake_mean.lerp_(fake.mean().detach(), 1 - self.decay)
        return loss


class Adversarial(nn.Module):
    """A discriminator that learns in the same step as the autoencoder (VQGAN, arXiv 2012.09841).

        adversarial = Adversarial(weight=0.1, start=30_000, lecam=0.001)
        parts = tokenizer.loss(image, "l1", adversarial=adversarial)
        parts["loss"].backward()

    The autoencoder sees the discriminator's weights as constants, the discriminator the images, so that
    the two losses add up and one backward pass and one optimiser serve both.

    Args:
        weight: of the autoencoder's share.
        start: training steps before it begins.
        adaptive: multiply the weight by `adaptive_weight`.
        lecam: weight of `LeCam` in the discriminator's share.
        discriminator: images to logits; a `PatchDiscriminator` by default.
    """

    def __init__(
        self,
        weight: float = 1.0,
        start: int = 0,
        adaptive: bool = True,
        lecam: float = 0.0,
        discriminator: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.weight, self.start, self.adaptive, self.lecam_weight = weight, start, adaptive, lecam
        self.discriminator = discriminator or PatchDiscriminator()
        self.lecam = LeCam()
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    steps: Tensor

    def forward(
        self, output: Tensor, image: Tensor, reconstruction: Tensor, last_layer: Tensor | None
    ) -> dict[str, Tensor]:
        """`loss` to be added, and both shares for the log; nothing before `start`.

        Args:
            output: what the autoencoder made, `[B, 3, H, W]`.
            image: what it should have.
            reconstruction: the loss that `adaptive_weight` balances with.
            last_layer: the decoder's last weight, for `adaptive`.
        """
        begun = int(self.steps) >= self.start
        self.steps += self.training
        if not begun:
            return {"loss": output.new_zeros(())}
        fixed = {name: p.detach() for name, p in self.discriminator.named_parameters()}
        mine = generator_loss(torch.func.functional_call(self.discriminator, fixed, output))
        weight: Tensor | float = self.weight
        if self.adaptive:
            if last_layer is None:
                raise VTCError("adaptive: got True, but the decoder has no `last_layer`")
            weight = weight * adaptive_weight(reconstruction, mine, last_layer)
        real, made = self.discriminator(image), self.discriminator(output.detach())
        rival = hinge_discriminator_loss(real, made)
        if self.lecam_weight:
            rival = rival + self.lecam_weight * self.lecam(real, made)
        shares = {"adversarial": mine.detach(), "discriminator": rival.detach()}
        return {"loss": weight * mine + rival, **shares}


# -- semantics --------------------------------------------------------------------------------------


def cosine_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean of `1 - cosine` along the last axis; the teacher gets no gradient."""
    return 1 - F.cosine_similarity(student, teacher.detach(), dim=-1).mean()


def embedding_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared distance to an embedding that gets no gradient."""
    return F.mse_loss(student, teacher.detach())


def distillation_loss(
    tokenizer: ImageTokenizer,
    image: Tensor,
    teacher: Tensor,
    queries: float = 2.0,
    embed: float = 0.5,
) -> dict[str, Tensor]:
    """SEED's second stage (arXiv 2310.01218): the quantiser's loss, the queries and the embedding.

        tokenizer = create_tokenizer("seed_causal")
        tokenizer.encoder.requires_grad_(False)  # trained in the first stage
        distillation_loss(tokenizer, image, clip(image))["loss"].backward()

    Args:
        tokenizer: with an `EmbeddingDecoder`; the weight of the quantiser's loss is its own, 5 in
            SEED.
        image: `[B, 3, H, W]` in [-1, 1].
        teacher: embeddings `[B, target]` of the same images.
        queries: weight of `cosine_distillation` of the decoder's features from what is quantised.
        embed: weight of `embedding_distillation` of the decoder's embedding from the teacher.

    Returns:
        `loss`, its parts for the log, and the quantiser's diagnostics.

    Raises:
        VTCError: another decoder, or a teacher of another shape.
    """
    decoder = tokenizer.decoder
    if not isinstance(decoder, EmbeddingDecoder):
        raise VTCError(f"tokenizer: decodes by {type(decoder).__name__}, not by EmbeddingDecoder")
    h = tokenizer.features(image)
    out = tokenizer.quantizer(h)
    output = decoder(out.z)
    if teacher.shape != output.shape:
        raise VTCError(f"teacher: got shape {tuple(teacher.shape)}, expected {tuple(output.shape)}")
    cosine = cosine_distillation(decoder.features(out.z), h)
    distance = embedding_distillation(output, teacher)
    total = out.loss + queries * cosine + embed * distance
    parts = {"quantizer": out.loss, "queries": cosine, "embedding": distance}
    return {"loss": total, **{name: x.detach() for name, x in parts.items()}, **out.aux}


class Alignment(nn.Module):
    """Pulls a decoder's patches towards those of a frozen vision model (Instella-T2I, after REPA,
    arXiv 2410.06940): Linear, LayerNorm, ReLU, Linear, then `cosine_distillation`.

        features = tokenizer.decoder.features(tokenizer.encode(image).z, size)
        loss = reconstruction_loss(tokenizer.decoder.draw(features), image)
        loss = loss + weight * alignment(features, teacher)

    Args:
        dim: width of the patches.
        teacher: width of the vision model's [1024 in the release].
    """

    def __init__(self, dim: int, teacher: int = 1024) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(dim, dim), nn.LayerNorm(dim), nn.ReLU(), nn.Linear(dim, teacher)
        )

    def forward(self, features: Tensor, teacher: Tensor) -> Tensor:
        """The loss of a batch.

        Args:
            features: `[B, h, w, dim]`.
            teacher: `[B, h', w', teacher]`; another grid is resampled to h x w.

        Raises:
            VTCError: the teacher is no such map.
        """
        width = self.net[-1].out_features
        if teacher.dim() != 4 or teacher.shape[-1] != width or len(teacher) != len(features):
            raise VTCError(
                f"teacher: got shape {tuple(teacher.shape)}, expected "
                f"[{len(features)}, rows, cols, {width}]"
            )
        teacher = teacher.movedim(-1, 1)
        if teacher.shape[2:] != features.shape[1:3]:
            teacher = F.interpolate(
                teacher, features.shape[1:3], mode="bilinear", align_corners=False
            )
        return cosine_distillation(self.net(features), teacher.movedim(1, -1))


def contrastive_last_token(
    image: Tensor, text: Tensor, temperature: Tensor | float, smoothing: float = 0.1
) -> Tensor:
    """Symmetric contrastive loss of paired features (SEED, arXiv 2310.01218).

    A causal encoder's last token is the only one that has seen all others, so it stands for the
    image.

    Args:
        image: `[B, D]`, last tokens; `[B, N, D]` takes the last of N. Normalised here.
        text: `[B, D]`, paired row by row.
        temperature: divides the cosine similarity.
        smoothing: label smoothing.
    """
    if image.dim() == 3:
        image = image[:, -1]
    image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    logits = image @ text.transpose(0, 1) / temperature
    target = torch.arange(len(image), device=image.device)
    forth = F.cross_entropy(logits, target, label_smoothing=smoothing)
    back = F.cross_entropy(logits.transpose(0, 1), target, label_smoothing=smoothing)
    return (forth + back) / 2


def joint_caption_loss(caption: Tensor, tokenizer: Tensor | float, alpha: float = 0.25) -> Tensor:
    """End-to-end tokenizer tuning: caption loss + alpha * tokenizer loss (arXiv 2505.10562)."""
    return caption + alpha * tokenizer


# -- classification ---------------------------------------------------------------------------------


def smoothed_cross_entropy(logits: Tensor, target: Tensor, smoothing: float = 0.1) -> Tensor:
    """Cross-entropy of each row of `[R, V]` against `(1 - s) * onehot + s / V`, not reduced."""
    return F.cross_entropy(logits, target, label_smoothing=smoothing, reduction="none")


def soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each row against a distribution `[R, V]`, not reduced."""
    return -(target * logits.log_softmax(dim=-1)).sum(-1)


def focal_loss(
    logits: Tensor, bits: Tensor, alpha: float | None = 0.25, gamma: float = 2.0
) -> Tensor:
    """Binary cross-entropy that fades where the model is sure (arXiv 1708.02002), not reduced.

    Args:
        logits: any shape.
        bits: targets in {0, 1}.
        alpha: weight of ones, `1 - alpha` that of zeros; None for neither; -1 balances both by
            their rate in the batch.
        gamma: exponent of the miss.
    """
    loss = F.binary_cross_entropy_with_logits(logits, bits, reduction="none")
    miss = torch.where(bits > 0.5, torch.sigmoid(-logits), torch.sigmoid(logits))
    loss = loss * miss**gamma
    if alpha is None:
        return loss
    share = 1 - bits.mean() if alpha == -1 else alpha
    return loss * torch.where(bits > 0.5, share, 1 - share)
