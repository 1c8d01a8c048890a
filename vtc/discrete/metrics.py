"""How good reconstructions and samples are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.discrete.codes import bit_entropy, code_usage
from vtc.discrete.tokenizer import ImageTokenizer
from vtc.errors import VTCError


def psnr(output: Tensor, target: Tensor, span: float = 2.0) -> Tensor:
    """Peak signal-to-noise ratio of each image in dB, `[B]`; `span` is the range of the pixels."""
    error = (output - target).square().flatten(1).mean(1)
    return 10 * torch.log10(span**2 / error.clamp(min=1e-12))


def ssim(output: Tensor, target: Tensor, span: float = 2.0, sigma: float = 1.5) -> Tensor:
    """Structural similarity of each image, `[B]` (Wang et al. 2004).

    The Gaussian window has 11 pixels, fewer for images that are smaller.
    """
    side = min(11, output.shape[-1], output.shape[-2])
    side -= 1 - side % 2
    offset = torch.arange(side, device=output.device, dtype=output.dtype) - side // 2
    window = torch.exp(-offset.square() / (2 * sigma**2))
    window = torch.outer(window, window) / window.sum() ** 2
    channels = output.shape[1]
    kernel = window.expand(channels, 1, side, side)

    def mean(x: Tensor) -> Tensor:
        return F.conv2d(x, kernel, groups=channels)

    a, b = mean(output), mean(target)
    var_a, var_b = mean(output**2) - a**2, mean(target**2) - b**2
    covariance = mean(output * target) - a * b
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    value = (2 * a * b + c1) * (2 * covariance + c2)
    value = value / ((a**2 + b**2 + c1) * (var_a + var_b + c2))
    return value.flatten(1).mean(1)


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance of Gaussians fitted to features `[n, D]` and `[m, D]`.

    Say which network gave the features: with any but Inception's this is not FID.
    """
    if min(len(a), len(b)) < 2 or a.shape[1:] != b.shape[1:]:
        raise VTCError(f"a, b: got shapes {tuple(a.shape)} and {tuple(b.shape)}")
    a, b = a.double(), b.double()
    cov_a, cov_b = (torch.atleast_2d(torch.cov(x.T)) for x in (a, b))
    # trace of (A B)^(1/2): the square roots of the eigenvalues of A^(1/2) B A^(1/2)
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp(min=0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return float(distance.clamp(min=0))


@torch.no_grad()
def reconstruction_report(
    tokenizer: ImageTokenizer, images: Tensor, batch: int = 64
) -> dict[str, float]:
    """PSNR, SSIM, share of the codes in use and entropy of the bits, over `images` `[n, C, H, W]`.

    Codes are those of evaluation. `usage` is the mean over the sub-codes; `bit_entropy` is there for
    binary codes only.
    """
    was_training = tokenizer.training
    tokenizer.eval()
    scores, ids = [], []
    for part in images.split(batch):
        output, out = tokenizer(part)
        output = output.clamp(-1, 1)
        scores.append(torch.stack([psnr(output, part), ssim(output, part)], dim=1))
        ids.append(out.ids.cpu())
    tokenizer.train(was_training)
    codes, space = torch.cat(ids), tokenizer.space_of(images.shape[2:])
    mean = torch.cat(scores).mean(0)
    usage = [code_usage(codes[..., k], size) for k, size in enumerate(space.vocab)]
    report = {
        "psnr": float(mean[0]),
        "ssim": float(mean[1]),
        "usage": sum(usage) / len(usage),
        "bits_per_image": space.bits_per_image,
    }
    if space.is_binary:
        report["bit_entropy"] = float(bit_entropy(codes))
    return report
