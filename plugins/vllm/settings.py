"""What a server is set to, what its requests may change, and what is refused before anything runs.

Nothing here imports vLLM, nor torch at a place where a bad request would have to wait for it.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vtc.config import CompressionConfig
from vtc.errors import VTCError, nearest
from vtc.methods.base import Method
from vtc.plugins.model.signals import ENCODED, TEXT
from vtc.registry import create_method

#: keywords of a request, or of `--mm-processor-kwargs`, that are for `vtc`
KEYS = ("vtc_method", "vtc_retention", "vtc_tokens", "vtc_options", "vtc_question")
#: what the processor passes on, and nobody may give
SPEC = "vtc_spec"
#: options that name files or hold modules: the operator's alone
OPERATORS = frozenset({"projector", "scorer", "text_encoder"})


@dataclass(frozen=True)
class Limits:
    """What an operator allows.

    Attributes:
        least, most: share of an image's patch tokens that a request may keep.
        foreign: whether requests may set keywords of the model's own processor.
    """

    least: float = 0.0
    most: float = 1.0
    foreign: bool = False

    @classmethod
    def from_env(cls, env: Mapping[str, str] = os.environ) -> Limits:
        """`VTC_MIN_RETENTION`, `VTC_MAX_RETENTION` and `VTC_ALLOW_PROCESSOR_KWARGS`.

        Raises:
            VTCError: a value is none, or the least is above the most.
        """
        least = _share(env, "VTC_MIN_RETENTION", 0.0)
        most = _share(env, "VTC_MAX_RETENTION", 1.0)
        if least > most:
            raise VTCError(f"VTC_MIN_RETENTION: got {least}, above VTC_MAX_RETENTION={most}")
        word = env.get("VTC_ALLOW_PROCESSOR_KWARGS", "0").strip()
        if word not in ("0", "1"):
            raise VTCError(f"VTC_ALLOW_PROCESSOR_KWARGS: got {word!r}, allowed are 0 and 1")
        return cls(least, most, word == "1")

    def check(self, budget: int, patches: int) -> None:
        """Raise `VTCError` where `budget` of an image's `patches` are too few or too many."""
        share = budget / patches
        # at least one token is kept of every image, whatever the limits
        if share > self.most and budget > 1 and budget > int(self.most * patches + 1e-9):
            raise VTCError(
                f"vtc_retention: {budget} of {patches} tokens are {share:.3f}, "
                f"this server allows at most {self.most:g}"
            )
        if budget < int(self.least * patches + 1e-9):
            raise VTCError(
                f"vtc_retention: {budget} of {patches} tokens are {share:.3f}, "
                f"this server allows no less than {self.least:g}"
            )

    def check_whole(self) -> None:
        """Raise `VTCError` where images may not be left as they are."""
        if self.most < 1:
            raise VTCError(
                f"vtc_method: got 'none', this server allows at most {self.most:g} of an image's "
                "tokens; give a method and a budget"
            )


def _share(env: Mapping[str, str], name: str, default: float) -> float:
    text = env.get(name, "").strip()
    try:
        value = float(text) if text else default
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise VTCError(f"{name}: got {text!r}, allowed are numbers from 0 to 1")
    return value


@dataclass(frozen=True)
class Wish:
    """What is to be done to the images of a request: hashable, so that equal ones share work.

    Attributes:
        method: its name, `"none"` for nothing.
        retention, tokens: the budget of every image, one of them.
        options: further fields of the method, as JSON.
        question: what guides the method, None for what the prompt asks.
    """

    method: str = "none"
    retention: float | None = None
    tokens: int | None = None
    options: str = "{}"
    question: str | None = None

    def create(self) -> Method:
        """The method, made once for equal wishes and never changed."""
        return _created(self.method, self.retention, self.tokens, self.options)

    @property
    def asks(self) -> bool:
        """Whether the method reads what is asked."""
        return any(request.kind in TEXT for request in self.create().requests(True).values())


@functools.lru_cache(maxsize=256)
def _created(name: str, retention: float | None, tokens: int | None, options: str) -> Method:
    budget: dict[str, Any] = {"retention": retention, "tokens": tokens}
    given = {key: value for key, value in budget.items() if value is not None}
    return create_method(name, **given, **json.loads(options))


class Settings:
    """The server's own settings, and what they make of a request's keywords.

    Args:
        defaults: the server's processor keywords; `vtc_*` among them are `vtc`'s.
        env: `VTC_METHOD`, `VTC_RETENTION`, `VTC_TOKENS` and `VTC_OPTIONS` are read where the keywords
            do not say otherwise, and the limits.

    Raises:
        VTCError: an unknown method or option, a value out of range, a method that cannot serve.
    """

    def __init__(
        self, defaults: Mapping[str, Any] | None = None, env: Mapping[str, str] = os.environ
    ) -> None:
        self.limits = Limits.from_env(env)
        ours, self.theirs = split(defaults or {})
        base = CompressionConfig.from_sources(env=env)
        self.config = _over(base, ours)
        self.question = _question(ours.get("vtc_question"))
        self.default = self._wish(self.config, self.question, budget=_has_budget(ours))
        self._known: dict[str, Wish] = {}

    def request(self, keywords: Mapping[str, Any]) -> Wish:
        """What a request asks for.

        Args:
            keywords: its processor keywords, with or without the server's own among them.

        Raises:
            VTCError: a keyword is not allowed, or its value is not.
        """
        ours, theirs = split(keywords)
        if not self.limits.foreign:
            for key, value in theirs.items():
                if key not in self.theirs or self.theirs[key] != value:
                    raise VTCError(
                        f"mm_processor_kwargs: got {key!r}, allowed are {', '.join(KEYS)}"
                        f"{nearest(key, KEYS)}"
                    )
        if not ours:
            return self.default
        key = repr(sorted(ours.items()))
        wish = self._known.get(key)
        if wish is None:
            wish = self._checked(ours)
            if len(self._known) >= 256:
                self._known.clear()
            self._known[key] = wish
        return wish

    def _checked(self, ours: Mapping[str, Any]) -> Wish:
        """What keywords mean that were not seen before; most requests say the same."""
        options = ours.get("vtc_options")
        for name, value in options.items() if isinstance(options, Mapping) else ():
            if name in OPERATORS and value != self.config.options.get(name):
                raise VTCError(
                    f"vtc_options: {name!r} names files of the server, which its operator alone may set"
                )
        config = _over(self.config, ours)
        question = _question(ours.get("vtc_question", self.question))
        wish = self._wish(config, question, budget=_has_budget(ours))
        if "vtc_question" in ours and ours["vtc_question"] is not None and not wish.asks:
            raise VTCError(
                f"vtc_question: got {question!r}, but method {wish.method!r} reads no question"
            )
        return wish

    def _wish(self, config: CompressionConfig, question: str | None, budget: bool) -> Wish:
        if config.method == "none":
            if budget:
                raise VTCError(
                    "vtc_method: got 'none' beside a budget, allowed are a method that meets it, "
                    "or neither"
                )
            return Wish()
        for field in ("retention", "tokens"):
            if isinstance(getattr(config, field), (list, dict)):
                raise VTCError(
                    f"vtc_{field}: got {getattr(config, field)}, allowed is one number, "
                    "which holds for every image of a request"
                )
        method = config.create()
        check_method(method)
        options = json.dumps(config.options, sort_keys=True)
        retention = None if config.retention is None else float(config.retention)  # type: ignore[arg-type]
        return Wish(config.method, retention, config.tokens, options, question)  # type: ignore[arg-type]


def split(keywords: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`vtc`'s keywords, and all others.

    Raises:
        VTCError: one that begins with `vtc_` is none.
    """
    if not isinstance(keywords, Mapping):
        raise VTCError(f"mm_processor_kwargs: got {keywords!r}, expected names with values")
    ours, theirs = {}, {}
    for key, value in keywords.items():
        if key in KEYS:
            ours[key] = value
        elif str(key).lower().startswith("vtc"):
            raise VTCError(
                f"mm_processor_kwargs: got {key!r}, allowed are {', '.join(KEYS)}{nearest(key, KEYS)}"
            )
        else:
            theirs[key] = value
    return ours, theirs


def check_method(method: Method) -> None:
    """Raise `VTCError` for a method whose number of tokens does not follow from an image's shape, or
    that needs what no server has."""
    if method.where != "boundary":
        raise VTCError(
            f"vtc_method: {method.name!r} works at a place ({method.where}) that only vLLM's own code "
            "reaches; allowed are methods between the vision tower and the language model"
        )
    if method.counts_itself:
        raise VTCError(
            f"vtc_method: {method.name!r} without a number keeps as many tokens as an image needs, "
            "which is known too late for a server; give vtc_retention or vtc_tokens"
        )
    if method.weighs:
        raise VTCError(
            f"vtc_options: {method.name!r} got proportional=True, for which attention to every key "
            "needs a bias that vLLM's attention does not take; allowed is false"
        )
    kinds = {request.kind for request in method.requests(True).values()}
    if kinds & ENCODED:
        raise VTCError(
            f"vtc_method: {method.name!r} reads {', '.join(sorted(kinds & ENCODED))}, for which a text "
            "encoder is needed that vLLM does not run"
            + ("; text_score='similarity' works" if hasattr(method, "text_score") else "")
        )
    method.check()


def _over(config: CompressionConfig, ours: Mapping[str, Any]) -> CompressionConfig:
    """A configuration with a request's keywords over it; errors name the keyword."""
    if "+" in str(ours.get("vtc_method")):
        raise VTCError(f"vtc_method: got {ours['vtc_method']!r}, allowed is one method")
    fields = {key.removeprefix("vtc_"): ours[key] for key in ours if key != "vtc_question"}
    return config.overlaid(fields, prefix="vtc_")


def _has_budget(ours: Mapping[str, Any]) -> bool:
    return any(ours.get(key) is not None for key in ("vtc_retention", "vtc_tokens"))


def _question(value: Any) -> str | None:
    if not isinstance(value, (str, type(None))):
        raise VTCError(f"vtc_question: got {value!r}, allowed are text and None")
    return value
