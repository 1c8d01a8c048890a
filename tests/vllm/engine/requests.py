"""The requests of the comparison, and what transformers says to them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

import vtc
from tests.vllm.families import Made
from vtc.registry import compared_methods, method_class

#: methods that the spec's comparison tries in every way; the others are tried once
MAIN = ("uniform", "globalcom2", "token_correlation", "random")
#: options with which methods work without a text encoder or trained weights
OPTIONS: dict[str, dict[str, Any]] = {
    "cdpruner": {"text_score": "similarity"},
    "eadp": {"text_score": "similarity"},
    "recoverable": {"text_score": "similarity"},
}
#: what no server can do: they need a part that was trained, or the pixels behind tokens
LEFT_OUT = {"tokenflex", "learned", "pixelprune"}
ASK = ("what colour is it?", "how many are there?")


@dataclass(frozen=True)
class Request:
    """One request.

    Attributes:
        pictures: by name.
        method, options: the method; empty for none.
        retention, tokens: the budget.
        question: asked about the pictures.
    """

    pictures: tuple[str, ...]
    method: str = ""
    retention: float | None = None
    tokens: int | None = None
    options: dict[str, Any] = field(default_factory=dict)
    question: str = ASK[0]

    def prompt(self, made: Made) -> str:
        return f"USER: {made.image * len(self.pictures)}\n{self.question} ASSISTANT:"

    def keywords(self) -> dict[str, Any]:
        """As a client writes them."""
        if not self.method:
            return {}
        out: dict[str, Any] = {"vtc_method": self.method}
        if self.retention is not None:
            out["vtc_retention"] = self.retention
        if self.tokens is not None:
            out["vtc_tokens"] = self.tokens
        return {**out, **({"vtc_options": self.options} if self.options else {})}

    def job(self, made: Made, files: dict[str, Path]) -> dict[str, Any]:
        """As an engine gets it."""
        images = [str(files[name]) for name in self.pictures]
        return {"prompt": self.prompt(made), "images": images, "keywords": self.keywords()}


def main_requests(two: bool = True) -> list[Request]:
    """The 21 of the comparison; `two`: with two pictures in some prompts."""
    both = ("wide", "tall") if two else ("tall",)
    out = [Request(("wide",)), Request(both)]
    for method in MAIN:
        out += [
            Request(("wide",), method, 0.5),
            Request(("wide",), method, 0.25),
            Request(both, method, 0.375),
            Request(("tall",), method, tokens=3),
        ]
    out.append(Request(("wide",), "globalcom2", 1.0))
    guided = {"importance": "question"}
    return out + [Request(("wide",), "mmr", 0.25, options=guided, question=ask) for ask in ASK]


def other_requests() -> list[Request]:
    """Every other method that has a fixed count, once."""
    names = [name for name in compared_methods() if name not in {*MAIN, *LEFT_OUT}]
    names = [name for name in names if method_class(name).where == "boundary"]
    return [Request(("wide",), name, 0.4, options=OPTIONS.get(name, {})) for name in names]


def answer(made: Made, files: dict[str, Path], request: Request, steps: int = 10) -> dict[str, Any]:
    """What transformers says, under `vtc.compress` with as many tokens as the share means."""
    images = [Image.open(files[name]) for name in request.pictures]
    inputs = made.processor(text=request.prompt(made), images=images, return_tensors="pt")
    model, options = made.model, dict(request.options)
    if request.method:
        if request.tokens is None:
            with vtc.compress(model, "uniform", retention=0.5) as run, torch.no_grad():
                model(**inputs)
            assert request.retention is not None
            share = request.retention
            before = [image.patches_before for image in run.reports[-1].images]
            options["tokens"] = [max(1, math.floor(share * n + 1e-9)) for n in before]
        else:
            options["tokens"] = request.tokens
    method = request.method or "none"
    with vtc.compress(
        model, method, processor=made.processor, positions=made.positions, **options
    ) as run:
        out = model.generate(
            **inputs,
            max_new_tokens=steps,
            do_sample=False,
            eos_token_id=None,
            output_logits=True,
            return_dict_in_generate=True,
        )
    before = inputs["input_ids"].shape[1]
    length = before
    if request.method:
        length -= sum(i.tokens_before - i.tokens_after for i in run.reports[-1].images)
    ids = out.sequences[0, before:].tolist()
    logs = [
        float(step[0].log_softmax(-1)[token]) for step, token in zip(out.logits, ids, strict=True)
    ]
    return {"length": length, "ids": ids, "logs": logs}
