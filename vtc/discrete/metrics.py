"""How good reconstructions and samples are."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from vtc.discrete.codes import bit_entropy, code_histogram, regroup
from vtc.discrete.modes import evaluation
from vtc.discrete.tokenizer import ImageTokenizer
from vtc.discrete.types import CodeSpace
from vtc.errors import VTCError

#: Codes of a token are counted as one number up to this many bits.
COUNTED_BITS = 16


def image_quality(output: Tensor, target: Tensor) -> dict[str, float]:
    """Mean `psnr` in dB and `ssim` (7 x 7 windows) of images `[n, C, H, W]` in [-1, 1].

    Both are scikit-image's.

    Raises:
        VTCError: other shapes, images of less than 7 pixels, or scikit-image is missing.
    """
    try:
        from skimage.metrics import peak_signal_noise_ratio, structural_similarity
    except ImportError as error:
        raise VTCError(
            "metrics: scikit-image is missing, install it with `pip install vtc-vlm[eval]`"
        ) from error
    if output.shape != target.shape:
        raise VTCError(f"output: got {tuple(output.shape)} for a target of {tuple(target.shape)}")
    if min(target.shape[2:]) < 7:
        raise VTCError(f"target: got shape {tuple(target.shape)}, at least 7 x 7 pixels are needed")
    made, real = (x.detach().cpu().clamp(-1, 1).double().numpy() for x in (output, target))
    pairs = list(zip(real, made, strict=True))
    with np.errstate(divide="ignore"):
        psnr = [peak_signal_noise_ratio(a, b, data_range=2) for a, b in pairs]
    ssim = [structural_similarity(a, b, data_range=2, channel_axis=0) for a, b in pairs]
    return {"psnr": float(np.mean(psnr)), "ssim": float(np.mean(ssim))}


def code_statistics(ids: Tensor, space: CodeSpace) -> dict[str, float]:
    """How codes `[n, N, K]` use their space.

    Returns:
        `bits_per_image`; where a token has at most `COUNTED_BITS`: `usage`, the share of the codes that
        occur at any place, and `code_entropy`, the entropy in bits of the code at one place, averaged
        over the places (0 when all images get the same code; log2 n at most, and low for few images);
        for binary codes `bit_entropy`, the like of single bits.
    """
    report = {"bits_per_image": space.bits_per_image}
    if space.bits <= COUNTED_BITS:
        powers = all(size & (size - 1) == 0 for size in space.vocab)
        if space.subcodes == 1 or powers:
            whole = ids if space.subcodes == 1 else regroup(ids, space, space.split(1))
            size = round(2**space.bits)
            places = torch.stack([code_histogram(place, size) for place in whole.unbind(1)])
            report["usage"] = float((places.sum(0) > 0).float().mean())
            entropy = torch.special.entr(places).sum(1).mean() / math.log(2)
            report["code_entropy"] = float(entropy)
    if space.is_binary:
        report["bit_entropy"] = float(bit_entropy(ids))
    return report


@torch.no_grad()
def reconstruct(
    tokenizer: ImageTokenizer, images: Tensor, batch: int = 128
) -> tuple[Tensor, Tensor]:
    """Images `[n, C, H, W]` after the tokenizer, and their codes `[n, N, K]`, both on the CPU.

    The codes are those of evaluation; the tokenizer's mode is left as it was.
    """
    device = next(tokenizer.parameters()).device
    with evaluation(tokenizer):
        parts = [tokenizer(part.to(device)) for part in images.split(batch)]
    outputs, codes = zip(*parts, strict=True)
    return torch.cat(outputs).cpu(), torch.cat([code.ids for code in codes]).cpu()


def reconstruction_report(
    tokenizer: ImageTokenizer, images: Tensor, batch: int = 128
) -> dict[str, float]:
    """`image_quality` and `code_statistics` of the tokenizer on images `[n, C, H, W]`."""
    output, ids = reconstruct(tokenizer, images, batch)
    space = tokenizer.space_of(images.shape[2:])
    return {**image_quality(output, images), **code_statistics(ids, space)}


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
