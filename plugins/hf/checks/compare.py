"""How far logits and selections are apart, and what is said of it."""

from __future__ import annotations

import torch
from torch import Tensor

from vtc.plugins.hf.checks.outcome import Differs, Found, NotRun
from vtc.plugins.hf.checks.subject import Subject
from vtc.report import ImageReport


def distance(a: Tensor, b: Tensor) -> float:
    """The largest root mean square difference of logits `[..., V]`, as a share of `b`'s spread."""
    if a.shape != b.shape or not bool(torch.isfinite(a).all()):
        return float("inf")
    a, b = a.float(), b.float()
    return float(((a - b).square().mean(-1).sqrt() / b.std(-1).clamp(min=1e-6)).max())


def same_tokens(logits: Tensor, whole: Tensor, limit: float) -> bool:
    """Whether the likeliest tokens are the same, or so close that rounding may turn them round."""
    chosen = whole.gather(-1, logits.argmax(-1, keepdim=True))[..., 0]
    return bool((whole.max(-1).values - chosen <= 6 * limit * whole.std(-1)).all())


def in_words(apart: float, subject: Subject) -> str:
    """What is said of a distance."""
    return f"apart by {apart:.1e} of their spread (allowed {subject.limit:g})"


def moved(images: list[ImageReport], others: list[ImageReport]) -> float:
    """The share of patches that two selections do not treat alike."""
    changed = [
        ((a.share > 0) != (b.share > 0)) | (a.group != b.group)
        for a, b in zip(images, others, strict=True)
    ]
    return float(torch.cat([each.flatten() for each in changed]).double().mean())


def difference(subject: Subject, text: str, apart: float, moved: float) -> Exception:
    """The error for logits that are apart; not the plug-in's fault where rounding moved a few near-ties
    of a method that reads signals."""
    if 0 < moved <= 0.1:
        return NotRun(f"rounding moves near-ties of the selection, {moved:.0%} of the patches")
    return Differs(f"{text} {in_words(apart, subject)}", apart)


def furthest(apart: dict[str, float], subject: Subject) -> Found:
    """What a check found that holds for each of these distances."""
    most = max(apart.values())
    return Found(f"logits are {in_words(most, subject)}", most)
