"""Whether compression is right on a model, by numbers: what `vtc doctor` and `selfcheck.py` run.

A check compares runs that have to agree, and knows nothing of versions or families. Logits are compared
by the root mean square of their difference as a share of their own spread. Before a difference counts,
the same runs are compared without compression: what differs there is not the plug-in's doing.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import inspect
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vtc.errors import VTCError
from vtc.methods.base import Method
from vtc.plugins.hf import apply, tiny
from vtc.plugins.hf.selfcheck import checking
from vtc.plugins.hf.typing import Model
from vtc.plugins.model.inputs import PIXELS
from vtc.plugins.model.question import with_question
from vtc.registry import create_method
from vtc.report import ImageReport

#: how far logits may be apart, as a share of their spread: sums in another order, nothing more
LIMITS = {torch.float64: 1e-6, torch.float32: 5e-3, torch.float16: 0.05, torch.bfloat16: 0.15}


class Found(NamedTuple):
    """What a check found.

    Attributes:
        text: in words.
        apart: how far logits were apart, where that was measured.
    """

    text: str
    apart: float | None = None


class Differs(Exception):
    """Two runs that have to agree do not.

    Args:
        text, apart: as in `Found`.
    """

    def __init__(self, text: str, apart: float | None = None) -> None:
        super().__init__(text)
        self.found = Found(text, apart)


class NotRun(Exception):
    """The check cannot be made here; the message says why."""


@dataclass
class Subject:
    """A model, prompts with images for it, and the setting to check.

    Attributes:
        name: of the model.
        model: not compressed; afterwards it is as it was.
        rows: prompts, each as a batch of one without padding.
        batch: the same prompts in one batch, padded on the left; or why there is none.
        method: what to put on the model.
        positions: position policy; None for the model's default.
        processor: for methods that read text.
        steps: tokens to decode.
    """

    name: str
    model: Model
    rows: list[dict[str, Any]]
    batch: dict[str, Any] | str
    method: Method
    positions: str | None = None
    processor: Any = None
    steps: int = 4

    def compressed(self, **changes: Any) -> apply.Handle:
        """A block with the method on the model, some of its fields changed."""
        method = replace(self.method, **changes) if changes else self.method
        # or it would read tokens that are appended
        method = with_question(method, "what is in the picture?")
        with checking():
            return apply.plan(
                self.model, method, processor=self.processor, positions=self.positions
            )

    @property
    def limit(self) -> float:
        """How far logits may be apart."""
        return LIMITS.get(getattr(self.model, "dtype", torch.float32), LIMITS[torch.bfloat16])

    @functools.cached_property
    def answer(self) -> list[int]:
        """Tokens to decode that are no placeholders and end nothing: some of the first prompt's text."""
        config, ids = self.model.config, self.rows[0]["input_ids"][0].tolist()
        barred = {getattr(config, f"{modality}_token_id", None) for modality in PIXELS}
        for settings in (self.model.generation_config, config.get_text_config()):
            for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
                value = getattr(settings, name, None)
                barred.update(value if isinstance(value, (list, tuple)) else [value])
        words = [token for token in reversed(ids) if token not in barred and token >= 0]
        if not words:
            raise NotRun("the prompt has no text")
        return [words[step % len(words)] for step in range(self.steps)]


#: sizes of the images of each prompt for tiny models
ONE: tiny.Rows = [[(40, 60)]]
TWO: tiny.Rows = [[(40, 60)], [(60, 24), (32, 32)]]


def tiny_subject(
    name: str,
    model: Model,
    method: Method | None = None,
    positions: str | None = None,
    rows: tiny.Rows = TWO,
    steps: int = 4,
) -> Subject:
    """A tiny model with prompts of its own.

    Args:
        method: None for half of the tokens, evenly.
        rows: the images of each prompt; of a single one no batch is made.
    """
    alone = [tiny.prompts(model, [row], first=index) for index, row in enumerate(rows)]
    batch = tiny.prompts(model, rows) if len(rows) > 1 else "there is only one prompt"
    method = method or create_method("uniform", retention=0.5)
    return Subject(name, model, alone, batch, method, positions, steps=steps)


@dataclass
class Outcome:
    """What one check said of one subject.

    Attributes:
        check: name of the check.
        subject: name of the model, or of a part of the installation.
        status: `"ok"`, `"failed"` or `"not run"`.
        detail: the numbers, or the reason.
        apart: how far logits were apart, as a share of their spread, where that was measured.
        seconds: how long it took.
    """

    check: str
    subject: str
    status: str
    detail: str = ""
    apart: float | None = None
    seconds: float = 0.0


def outcome(check: str, subject: str, function: Callable[[], Found]) -> Outcome:
    """Run one check; whatever it raises becomes its outcome."""
    start = time.perf_counter()
    try:
        status, found = "ok", function()
    except NotRun as reason:
        status, found = "not run", Found(str(reason))
    except Differs as difference:
        status, found = "failed", difference.found
    except VTCError as error:
        status, found = "failed", Found(first_line(error))
    except Exception as error:  # a check that fails must not keep the others from running
        status, found = "failed", Found(f"{type(error).__name__}: {first_line(error)}")
    text, apart = found
    apart = apart if apart is not None and math.isfinite(apart) else None  # for JSON
    return Outcome(check, subject, status, text, apart, time.perf_counter() - start)


def first_line(error: BaseException) -> str:
    """The first line of an error's message that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


# -- the checks ----------------------------------------------------------------------------------


def identity(subject: Subject) -> Found:
    """Retention 1.0 changes no bit of the logits and no token."""
    row = subject.rows[0]
    plain = _logits(subject.model, row), _greedy(subject, row)
    with subject.compressed(retention=1.0, tokens=None):
        same = _logits(subject.model, row), _greedy(subject, row)
    if not torch.equal(plain[0], same[0]):
        apart = _apart(same[0], plain[0])
        raise Differs(f"retention 1.0 changes the logits: {_words(apart, subject)}", apart)
    if not torch.equal(plain[1], same[1]):
        raise Differs(f"retention 1.0 answers {same[1].tolist()} in place of {plain[1].tolist()}")
    return Found(f"logits and {subject.steps} tokens are the same bits")


def decoding(subject: Subject) -> Found:
    """Decoding with a cache, by `generate` and by a loop of one's own, says what one pass over the whole
    text says. The text is given, so that a near-tie cannot lead the runs apart."""
    row = subject.rows[0]
    otherwise = "decodes differently with and without a cache"
    ways = _sound(subject, row, lambda: _whole(subject, row), otherwise)
    with subject.compressed() as handle:
        whole = _whole(subject, row)
        found = {way: WAYS[way](subject, row) for way in ways}
    if not any(image.patches_after < image.patches_before for image in handle.reports[0].images):
        raise NotRun("the method drops nothing of this image")
    apart = {way: _apart(logits, whole) for way, logits in found.items()}
    for way in ways:
        if not apart[way] <= subject.limit:
            raise Differs(
                f"{way} with a cache is not what one pass over the whole text gives, logits are "
                f"{_words(apart[way], subject)}",
                apart[way],
            )
        if not _same_tokens(found[way], whole, subject.limit):
            raise Differs(f"{way} with a cache picks other tokens, and they are no near-ties")
    return _furthest(apart, subject)


def batches(subject: Subject) -> Found:
    """A batch with images of different sizes, padded on the left, gives what its rows give alone."""
    batch = subject.batch
    if isinstance(batch, str):
        raise NotRun(batch)

    def alone(way: str = "generate") -> Tensor:
        return torch.cat([WAYS[way](subject, row) for row in subject.rows])

    ways = _sound(subject, batch, alone, "gives other logits for a batch than for its rows")
    with subject.compressed() as handle:
        found = {way: _apart(WAYS[way](subject, batch), alone(way)) for way in ways}
    together, *single = handle.reports[: 1 + len(subject.rows)]
    moved = _moved(together.images, [image for report in single for image in report.images])
    for way, apart in found.items():
        if not apart <= subject.limit:
            text = f"a batch is not what its rows are alone, by {way} logits are"
            raise _differs(subject, text, apart, moved)
    return _furthest(found, subject)


def removal(subject: Subject) -> Found:
    """Behind `remove` the model answers as before, bit by bit, and carries nothing of vtc."""
    model, row = subject.model, subject.rows[0]
    plain, own = _logits(model, row), model.__dict__.get("generate")
    with subject.compressed():
        _generated(subject, row)
    left = _of_vtc(model)
    if model.__dict__.get("generate") is not own:
        left.append("generate of the model")
    # transformers itself hangs recorders on layers at their first run: only a second round is to change
    # nothing at all
    before = _carried(model)
    with subject.compressed():
        _generated(subject, row)
    after = _carried(model)
    left += [name for name in {**before, **after} if before.get(name) != after.get(name)]
    if left:
        raise Differs(f"left behind: {', '.join(left[:5])}")
    now = _logits(model, row)
    if not torch.equal(plain, now):
        apart = _apart(now, plain)
        raise Differs(f"the logits are not what they were: {_words(apart, subject)}", apart)
    return Found("logits are the same bits, no hook or attribute is left")


#: name -> the check
CHECKS: dict[str, Callable[[Subject], Found]] = {
    "retention 1.0": identity,
    "decoding": decoding,
    "batch": batches,
    "removal": removal,
}

#: attention backends, the first that runs is what the others are compared with
BACKENDS = ("eager", "sdpa", "flash_attention_2", "flex_attention")


def attention(subject: Subject) -> Iterator[Outcome]:
    """The compressed model under each attention backend, against the first one that runs."""
    reference: list[tuple[str, Tensor, list[ImageReport]]] = []

    def check(name: str) -> Found:
        _available(name, subject.model)
        with _backend(subject.model, name), subject.compressed() as handle:
            logits = _generated(subject, subject.rows[0])
        if not torch.isfinite(logits).all():
            raise Differs("logits are not finite")
        images = handle.reports[0].images
        if not reference:
            reference.append((name, logits, images))
            return Found("runs, the others are compared with it")
        other, wanted, others = reference[0]
        apart = _apart(logits, wanted)
        if not apart <= subject.limit:
            text = f"logits are from {other}'s"
            raise _differs(subject, text, apart, _moved(images, others))
        return Found(f"logits are from {other}'s {_words(apart, subject)}", apart)

    for name in BACKENDS:
        yield outcome(f"attention: {name}", subject.name, functools.partial(check, name))


# -- runs ----------------------------------------------------------------------------------------


@torch.no_grad()
def _logits(model: Model, row: dict[str, Any]) -> Tensor:
    return model(**row).logits


@torch.no_grad()
def _greedy(subject: Subject, row: dict[str, Any]) -> Tensor:
    out = subject.model.generate(
        **row, **_PLAIN, max_new_tokens=subject.steps, min_new_tokens=subject.steps
    )
    return out[:, row["input_ids"].shape[1] :]


#: one greedy beam, whatever the checkpoint's own settings are
_PLAIN: dict[str, Any] = dict(do_sample=False, num_beams=1, use_cache=True)


def _generated(subject: Subject, batch: dict[str, Any]) -> Tensor:
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
def _whole(subject: Subject, row: dict[str, Any]) -> Tensor:
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
    "generate": _generated,
    "a decoding loop": _looped,
    "a decoding loop without a mask": functools.partial(_looped, masked=False),
    "a later turn": _resumed,
}


def _sound(
    subject: Subject, batch: dict[str, Any], wanted: Callable[[], Tensor], otherwise: str
) -> list[str]:
    """The ways that the model itself can go: not all count positions right behind padding, and some want
    more arguments than a loop knows.

    Args:
        wanted: what the ways should give.
        otherwise: what to say of a model whose own `generate` does not.
    """
    out: list[str] = []
    try:
        logits = wanted()
        apart = _apart(_generated(subject, batch), logits)
    except Exception as error:
        name, said = type(error).__name__, first_line(error)
        raise NotRun(f"the model itself fails: {name}: {said}") from error
    if not apart <= subject.limit / 2:
        raise NotRun(f"the model itself {otherwise}: they are apart by {apart:.1e} of their spread")
    for way, run in WAYS.items():
        with contextlib.suppress(Exception):
            if run is _generated or _apart(run(subject, batch), logits) <= subject.limit / 2:
                out.append(way)
    return out


def _apart(a: Tensor, b: Tensor) -> float:
    """The largest root mean square difference of logits `[..., V]`, as a share of `b`'s spread."""
    if a.shape != b.shape or not bool(torch.isfinite(a).all()):
        return float("inf")
    a, b = a.float(), b.float()
    return float(((a - b).square().mean(-1).sqrt() / b.std(-1).clamp(min=1e-6)).max())


def _same_tokens(logits: Tensor, whole: Tensor, limit: float) -> bool:
    """Whether the likeliest tokens are the same, or so close that rounding may turn them round."""
    chosen = whole.gather(-1, logits.argmax(-1, keepdim=True))[..., 0]
    return bool((whole.max(-1).values - chosen <= 6 * limit * whole.std(-1)).all())


def _words(apart: float, subject: Subject) -> str:
    return f"apart by {apart:.1e} of their spread (allowed {subject.limit:g})"


def _moved(images: list[ImageReport], others: list[ImageReport]) -> float:
    """The share of patches that two selections do not treat alike."""
    changed = [
        ((a.share > 0) != (b.share > 0)) | (a.group != b.group)
        for a, b in zip(images, others, strict=True)
    ]
    return float(torch.cat([each.flatten() for each in changed]).double().mean())


def _differs(subject: Subject, text: str, apart: float, moved: float) -> Exception:
    """The error for logits that are apart; not the plug-in's fault where rounding moved a few near-ties
    of a method that reads signals."""
    if 0 < moved <= 0.1:
        return NotRun(f"rounding moves near-ties of the selection, {moved:.0%} of the patches")
    return Differs(f"{text} {_words(apart, subject)}", apart)


def _furthest(apart: dict[str, float], subject: Subject) -> Found:
    most = max(apart.values())
    return Found(f"logits are {_words(most, subject)}", most)


# -- what a model carries --------------------------------------------------------------------------


def _of_vtc(model: Model) -> list[str]:
    """Hooks, attributes and configs of vtc, by the module that they are on."""
    out = []
    for path, module in model.named_modules():
        where = path or "the model"
        hooks = [*module._forward_pre_hooks.values(), *module._forward_hooks.values()]
        ours = [hook for hook in hooks if str(hook.__module__).startswith("vtc.")]
        out += [f"hook {hook.__name__} of {where}" for hook in ours]
        out += [f"{name} of {where}" for name in vars(module) if name.startswith("_vtc")]
        if hasattr(getattr(module, "config", None), "vtc_layer"):
            out.append(f"config of {where}")
    return out


def _carried(model: Model) -> dict[str, Any]:
    """Attributes, hooks and configs of every module; of tensors, which a run may renew, the names."""
    out: dict[str, Any] = {}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            held: Any = None if isinstance(value, Tensor) else id(value)
            if isinstance(value, dict):  # tables: parameters, hooks, children
                held = tuple((key, id(each)) for key, each in value.items())
            out[f"{path}.{name}".strip(".")] = held
    return out


# -- attention backends ----------------------------------------------------------------------------


def _available(name: str, model: Model) -> None:
    """Raise `NotRun` where a backend cannot work."""
    device = next(model.parameters()).device
    if name == "flash_attention_2":
        if importlib.util.find_spec("flash_attn") is None:
            raise NotRun("the package flash_attn is not installed")
        if device.type == "cpu":
            raise NotRun("needs a GPU")
        if model.dtype not in (torch.float16, torch.bfloat16):
            raise NotRun("needs half precision: --dtype bfloat16")
    if name == "flex_attention" and device.type == "cpu":
        raise NotRun("needs a GPU")


@contextlib.contextmanager
def _backend(model: Model, name: str) -> Iterator[None]:
    """Attention by `name` inside the block, by what it was behind it."""
    configs = {id(config): config for config in _configs(model)}.values()
    before = [(config, config._attn_implementation_internal) for config in configs]
    try:
        try:
            model.set_attn_implementation(name)
        except (ValueError, ImportError, NotImplementedError) as error:
            raise NotRun(first_line(error)) from error
        yield
    finally:
        for config, own in before:
            config._attn_implementation_internal = own


def _configs(model: Model) -> Iterator[Any]:
    for module in model.modules():
        config = getattr(module, "config", None)
        for part in (config, *(vars(config).values() if hasattr(config, "__dict__") else ())):
            if hasattr(part, "_attn_implementation_internal"):
                yield part


def refused(subject: Subject) -> str | None:
    """Why the setting cannot be put on the model, None when it can."""
    try:
        with subject.compressed():
            return None
    except VTCError as error:
        return first_line(error)
    except Exception as error:
        return f"{type(error).__name__}: {first_line(error)}"
