"""What a training step computes: a module from a batch to its losses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from vtc.discrete import Condition, Generator, ImageTokenizer, Noise, Objective
from vtc.discrete.adversarial import Adversarial
from vtc.errors import VTCError

Batch = dict[str, Tensor]


class Lpips:
    """LPIPS (arXiv 1801.03924) as a loss; no module, so that no checkpoint holds its frozen net.

    Args:
        weight: of the loss.
    """

    def __init__(self, weight: float) -> None:
        try:
            import lpips
        except (
            ImportError,
            RuntimeError,
        ) as error:  # RuntimeError: a torchvision that does not fit
            raise VTCError(
                f"tokenizer.perceptual: needs lpips, which cannot be imported ({error}); install it "
                "with `pip install vtc-vlm[discrete]`"
            ) from error
        self.weight = weight
        self.net = lpips.LPIPS(net="vgg", verbose=False).eval().requires_grad_(False)

    def __call__(self, output: Tensor, target: Tensor) -> Tensor:
        """Weighted distance of images `[B, 3, H, W]` in [-1, 1], `[B, 1, 1, 1]`."""
        return self.weight * self.net.to(output.device)(output, target)


class TokenizerTask(nn.Module):
    """Reconstruct images.

    Args:
        tokenizer: the model that learns.
        kind: see `vtc.discrete.losses.reconstruction_loss`.
        prefix: decode a random number of leading tokens in half of the steps.
        perceptual: see `ImageTokenizer.loss`.
        adversarial: see `ImageTokenizer.loss`.
    """

    def __init__(
        self,
        tokenizer: ImageTokenizer,
        kind: str = "mse",
        prefix: bool = False,
        perceptual: Callable[[Tensor, Tensor], Tensor] | None = None,
        adversarial: Adversarial | None = None,
    ) -> None:
        super().__init__()
        self.tokenizer, self.kind, self.prefix = tokenizer, kind, prefix
        self.perceptual, self.adversarial = perceptual, adversarial
        if prefix and tokenizer.space.grid is not None:
            raise VTCError(
                "tokenizer.prefix: this tokenizer makes a grid, a prefix needs 1-D codes"
            )

    def forward(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """`loss` and what to log."""
        keep, tokens = 0, self.tokenizer.space.tokens
        if self.prefix and noise.integer(2, torch.empty(0)):
            keep = 1 + noise.integer(tokens, torch.empty(0))
        return self.tokenizer.loss(
            batch["image"], self.kind, self.perceptual, noise, keep, self.adversarial
        )


class GeneratorTask(nn.Module):
    """Predict what a `targets.Target` made of images, `batch["codes"]`.

    Args:
        generator: the model that learns.
        objective: in place of the generator's own.
    """

    def __init__(self, generator: Generator, objective: Objective | None = None) -> None:
        super().__init__()
        self.generator, self.objective = generator, objective

    def forward(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """`loss` and what to log."""
        given = condition(self.generator, batch)
        return {"loss": self.generator.loss(batch["codes"], given, noise, self.objective)["loss"]}


def condition(generator: Generator, batch: Batch) -> Condition | None:
    """What a generator is told of a batch: its captions, its labels, or nothing."""
    if generator.text is not None:
        return Condition(text=batch["caption"])
    return Condition(batch["label"]) if generator.classes is not None else None
