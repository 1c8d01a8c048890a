"""Ways to run a model: over a prompt, and to decode with and without a cache."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from vtc.plugins.hf.checks.subject import Subject
from vtc.plugins.hf.typing import Model


@torch.no_grad()
def prefill(model: Model, row: dict[str, Any]) -> Tensor:
    """Logits `[B, S, V]` of one forward over the prompt."""
    return model(**row).logits


@torch.no_grad()
def greedy(subject: Subject, row: dict[str, Any]) -> Tensor:
    """`Subject.steps` tokens `[B, steps]` as `generate` picks them."""
    out = subject.model.generate(
        **row, **_PLAIN, max_new_tokens=subject.steps, min_new_tokens=subject.steps
    )
    return out[:, row["input_ids"].shape[1] :]


#: one greedy beam, whatever the checkpoint's own settings are
_PLAIN: dict[str, Any] = dict(do_sample=False, num_beams=1, use_cache=True)


def generated(subject: Subject, batch: dict[str, Any]) -> Tensor:
    """Logits `[B, steps, V]` of `generate`, made to say `Subject.answer`."""
    return _forced(subject, batch, subject.answer)[0]


@torch.no_grad()
def _forced(
    subject: Subject, batch: dict[str, Any], answer: list[int]
) -> tuple[Tensor, dict[str, Any]]:
    """Logits of `generate`, made to say `answer`, and the cache that it leaves, by its name."""
    seen: list[int] = []

    def allowed(row: int, ids: Tensor) -> list[int]:
        seen.append(len(ids))  # of a short prompt, where the model is compressed
        return [answer[len(ids) - seen[0]]]

    out = subject.model.generate(
        **batch,
        **_PLAIN,
        max_new_tokens=len(answer),
        prefix_allowed_tokens_fn=allowed,
        return_dict_in_generate=True,
        output_logits=True,
    )
    return torch.stack(out.logits, 1).float(), _cache(subject.model, out)


def _resumed(subject: Subject, batch: dict[str, Any]) -> Tensor:
    """The same logits by two calls of `generate`, the second with cache and text of the first."""
    first, second = subject.answer[:1], subject.answer[1:]
    logits, cache = _forced(subject, batch, first)
    text = {name: value for name, value in _longer(batch, first).items() if name in _TEXT}
    return torch.cat([logits, _forced(subject, {**text, **cache}, second)[0]], 1)


@torch.no_grad()
def _looped(subject: Subject, batch: dict[str, Any], masked: bool = True) -> Tensor:
    """The same logits by a decoding loop as people write it: the cache goes along, the mask grows or is
    left out."""
    out = subject.model(**batch, use_cache=True)
    logits, mask = [out.logits[:, -1]], batch["attention_mask"]
    for token in subject.answer[:-1]:
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
        more = {"attention_mask": mask} if masked else {}
        out = subject.model(
            input_ids=torch.full_like(mask[:, :1], token),
            use_cache=True,
            **more,
            **_cache(subject.model, out),
        )
        logits.append(out.logits[:, -1])
    return torch.stack(logits, 1).float()


@torch.no_grad()
def whole(subject: Subject, row: dict[str, Any]) -> Tensor:
    """The same logits of a single row, by one forward over prompt and answer."""
    out = subject.model(**_longer(row, subject.answer[:-1]), use_cache=False)
    return out.logits[:, -subject.steps :].float()


#: arguments beside the text: what they are behind the prompt, None for what they are at its end
_TEXT: dict[str, int | None] = {
    "input_ids": None,
    "attention_mask": 1,
    "token_type_ids": 0,
    "mm_token_type_ids": 0,
    "cross_attention_mask": None,
}


def _longer(batch: dict[str, Any], answer: list[int]) -> dict[str, Any]:
    """A batch with an answer behind its prompts."""
    new = dict(batch)
    for name, fill in _TEXT.items():
        value = batch.get(name)
        if value is None:
            continue
        tail = value[:, -1:].repeat_interleave(len(answer), 1)
        if fill is not None:
            tail = torch.full_like(tail, fill)
        if name == "input_ids":
            tail = torch.tensor([answer], dtype=value.dtype, device=value.device).expand_as(tail)
        new[name] = torch.cat([value, tail], 1)
    return new


def _cache(model: Model, out: Any) -> dict[str, Any]:
    """The cache in an output, by the name under which the model takes it."""
    takes = inspect.signature(type(model).forward).parameters
    name = "cache" if "cache" in takes else "past_key_values"
    return {name: getattr(out, name, None)}


#: ways to decode with a cache
WAYS: dict[str, Callable[[Subject, dict[str, Any]], Tensor]] = {
    "generate": generated,
    "a decoding loop": _looped,
    "a decoding loop without a mask": functools.partial(_looped, masked=False),
    "a later turn": _resumed,
}
