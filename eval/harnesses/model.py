"""A model with compression on it, as harnesses see it: text and images in, text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import vtc
from vtc.config import CompressionConfig
from vtc.errors import VTCError
from vtc.eval.common.loading import Loaded, load
from vtc.eval.common.prompts import placed, prompt

#: stands where an image goes in the text of multi-image questions
PLACE = "<image>"
MAX_NEW_TOKENS = 1024


@dataclass(frozen=True)
class Question:
    """One user turn.

    Attributes:
        text: with `PLACE` for each image, or without any: then the images stand in front.
        images: PIL images.
    """

    text: str
    images: Sequence[Any] = ()


@dataclass
class Generation:
    """How an answer is generated, from a harness's keyword arguments.

    Attributes:
        arguments: for `model.generate`.
        until: an answer ends in front of the first of these.
        ignored: names that `generate` does not know.
    """

    arguments: dict[str, Any]
    until: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    @classmethod
    def read(cls, given: Mapping[str, Any]) -> Generation:
        """Greedy unless a temperature above 0 is given; `do_sample=False` overrules it."""
        from transformers import GenerationConfig

        values = dict(given)
        until = values.pop("until", None) or ()
        longest = values.pop("max_gen_toks", None)
        values["max_new_tokens"] = values.get("max_new_tokens") or longest or MAX_NEW_TOKENS
        values.setdefault("num_beams", 1)
        sampled = values.get("do_sample", True) and values.get("temperature")
        values["do_sample"] = bool(sampled)
        if not sampled:  # generate warns about settings of sampling that have no effect
            for name in ("temperature", "top_p", "top_k"):
                values.pop(name, None)
        known, ignored = GenerationConfig(), []
        for name in list(values):
            if not hasattr(known, name):
                ignored.append(name)
            if not hasattr(known, name) or values[name] is None:
                del values[name]
        return cls(values, (until,) if isinstance(until, str) else tuple(until), tuple(ignored))

    def cut(self, text: str) -> str:
        """`text` up to the first stop string."""
        ends = [text.find(stop) for stop in self.until if stop and stop in text]
        return text[: min(ends)] if ends else text


@dataclass
class Compressed:
    """A model that answers under one setting of compression.

    Attributes:
        tokens, tokens_full: visual tokens of all images so far, after and before compression; 0
            without compression.
    """

    loaded: Loaded
    handle: Any
    tokens: int = field(default=0, init=False)
    tokens_full: int = field(default=0, init=False)

    @classmethod
    def load(
        cls,
        pretrained: str,
        config: CompressionConfig,
        device: str | None = None,
        dtype: str = "auto",
    ) -> Compressed:
        """Load a model and put a method on it for good.

        Args:
            pretrained: hub id, folder or "reference".
            config: with method "none" the model is left as it is.

        Raises:
            VTCError: no such model, or it cannot have the method.
        """
        loaded = load(pretrained, device, dtype)
        handle = vtc.apply_from_config(loaded.model, config, processor=loaded.processor)
        return cls(loaded, handle)

    def answer(self, questions: Sequence[Question], generation: Generation) -> list[str]:
        """The answers, one a question; those with images and those without go apart."""
        found: dict[int, str] = {}
        for seen in (True, False):
            numbers = [i for i, question in enumerate(questions) if bool(question.images) == seen]
            if numbers:
                said = self._answer([questions[i] for i in numbers], generation)
                found.update(zip(numbers, said, strict=True))
        return [found[i] for i in range(len(questions))]

    def loss(self, question: Question, continuation: str) -> tuple[float, bool]:
        """Mean negative log-likelihood of a continuation of the answer's start, by token.

        The tokens are forced through `generate`, so that what is compressed is the question alone.

        Returns:
            The loss in nats, and whether greedy decoding would give the continuation.

        Raises:
            VTCError: the continuation has no token.
        """
        import torch

        inputs = self._inputs([question])
        tokenizer = getattr(self.loaded.processor, "tokenizer", self.loaded.processor)
        target = tokenizer(continuation, add_special_tokens=False)["input_ids"]
        if not target:
            raise VTCError(f"continuation: got {continuation!r}, which has no token")
        following = iter(target)  # one token a step; the prompt may have been shortened by then
        with torch.inference_mode():
            out = self.loaded.model.generate(
                **inputs,
                do_sample=False,
                num_beams=1,
                max_new_tokens=len(target),
                prefix_allowed_tokens_fn=lambda row, ids: [next(following)],
                output_logits=True,
                return_dict_in_generate=True,
            )
        self._count()
        logits = torch.cat(out.logits).float()  # one row a token, as the model gave them
        losses = torch.nn.functional.cross_entropy(
            logits, torch.tensor(target, device=logits.device), reduction="none"
        )
        return losses.mean().item(), logits.argmax(-1).tolist() == target

    def _answer(self, questions: Sequence[Question], generation: Generation) -> list[str]:
        texts = self.loaded.answer(self._inputs(questions), **generation.arguments)
        self._count()
        return [generation.cut(text).strip() for text in texts]

    def _inputs(self, questions: Sequence[Question]) -> Any:
        prompts = [self._prompt(question) for question in questions]
        return self.loaded.batch([question.images for question in questions], prompts)

    def _prompt(self, question: Question) -> str:
        processor, count = self.loaded.processor, len(question.images)
        pieces = question.text.split(PLACE)
        if not count or len(pieces) != count + 1:
            return prompt(processor, "".join(pieces), count)
        return placed(processor, pieces)

    def _count(self) -> None:
        if self.handle is None:
            return
        for report in self.handle.reports:
            self.tokens += sum(image.tokens_after for image in report.images)
            self.tokens_full += sum(image.tokens_before for image in report.images)
        self.handle.reports.clear()
