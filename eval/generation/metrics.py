"""What is measured of reconstructions, codes and samples."""

from __future__ import annotations

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from vtc.discrete import CodeSpace, ImageTokenizer
from vtc.discrete.codes import bit_entropy, code_histogram, regroup
from vtc.errors import VTCError

#: Codes of a token are counted as one number up to this many bits.
COUNTED_BITS = 16


def image_quality(output: Tensor, target: Tensor) -> dict[str, float]:
    """Mean `psnr` in dB and `ssim` (7 x 7 windows) of images `[n, C, H, W]` in [-1, 1]."""
    if output.shape != target.shape:
        raise VTCError(f"output: got {tuple(output.shape)} for a target of {tuple(target.shape)}")
    made, real = (x.detach().cpu().clamp(-1, 1).double().numpy() for x in (output, target))
    pairs = list(zip(real, made, strict=True))
    with np.errstate(divide="ignore"):
        psnr = [peak_signal_noise_ratio(a, b, data_range=2) for a, b in pairs]
    ssim = [structural_similarity(a, b, data_range=2, channel_axis=0) for a, b in pairs]
    return {"psnr": float(np.mean(psnr)), "ssim": float(np.mean(ssim))}


def code_statistics(ids: Tensor, space: CodeSpace) -> dict[str, float]:
    """How codes `[n, N, K]` use their space.

    Returns:
        `bits_per_image`; `usage`, the share of a token's codes that occur, and `code_entropy`, the
        entropy of a token's code in bits, where a token has at most `COUNTED_BITS`; `bit_entropy`,
        1 when every bit is set half of the time, for binary codes.
    """
    report = {"bits_per_image": space.bits_per_image}
    if len(space.vocab) == 1:
        whole, size = ids, space.vocab[0]
    elif all(size & (size - 1) == 0 for size in space.vocab) and space.bits <= COUNTED_BITS:
        whole, size = regroup(ids, space, space.split(1)), round(2**space.bits)
    else:
        whole, size = None, 0
    if whole is not None and size <= 2**COUNTED_BITS:
        share = code_histogram(whole, size)
        report["usage"] = float((share > 0).float().mean())
        report["code_entropy"] = float(torch.special.entr(share).sum() / np.log(2))
    if space.is_binary:
        report["bit_entropy"] = float(bit_entropy(ids))
    return report


@torch.no_grad()
def reconstruction(
    tokenizer: ImageTokenizer, images: Tensor, batch: int = 128
) -> tuple[dict[str, float], Tensor]:
    """Quality of reconstructions and use of the codes over `images`, and the reconstructions.

    The tokenizer is put into evaluation mode.
    """
    tokenizer.eval()
    device = next(tokenizer.parameters()).device
    parts = [tokenizer(part.to(device)) for part in images.split(batch)]
    output = torch.cat([image.cpu() for image, _ in parts])
    ids = torch.cat([codes.ids.cpu() for _, codes in parts])
    space = tokenizer.space_of(images.shape[2:])
    return {**image_quality(output, images), **code_statistics(ids, space)}, output
