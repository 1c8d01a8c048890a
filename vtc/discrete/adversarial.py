"""A discriminator beside an autoencoder (VQGAN, arXiv 2012.09841)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.errors import VTCError


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
