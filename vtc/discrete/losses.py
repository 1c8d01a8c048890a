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
            their rate in each image `[B, ...]` (a tensor of one axis is one image).
        gamma: exponent of the miss.
    """
    loss = F.binary_cross_entropy_with_logits(logits, bits, reduction="none")
    miss = torch.where(bits > 0.5, torch.sigmoid(-logits), torch.sigmoid(logits))
    loss = loss * miss**gamma
    if alpha is None:
        return loss
    share: Tensor | float = alpha
    if alpha == -1:
        share = 1 - bits.to(loss.dtype).mean(tuple(range(int(bits.dim() > 1), bits.dim())), True)
    return loss * torch.where(bits > 0.5, share, 1 - share)
