"""Asks a model the questions of a suite, in batches; a row that fails costs no other row."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import vtc
from vtc.errors import VTCError
from vtc.eval.accuracy.hard import coarse
from vtc.eval.common.loading import Loaded
from vtc.eval.common.memory import free_memory, out_of_memory
from vtc.eval.common.prompts import prompt
from vtc.eval.common.records import Answer
from vtc.eval.common.settings import FULL, Setting
from vtc.eval.suites.base import Item, Suite
from vtc.methods.base import Method
from vtc.pictures import load_image
from vtc.plugins.hf.remember import Remembered, remembering
from vtc.report import Report

#: `(setting key, item id)` of answers that are there
Done = Collection[tuple[str, str]]


@dataclass(frozen=True)
class Row:
    """An item with its images opened."""

    item: Item
    images: tuple[Any, ...]


@dataclass
class Runner:
    """Asks one model the questions of one suite.

    Attributes:
        loaded: model and processor.
        suite: scores the answers.
        methods: those of each setting by its key; without any the uncompressed model is the plain
            one, with nothing on it, which reports nothing.
        template: a prompt with `{question}` and perhaps `{image}`, in place of the chat template.
        positions: as `vtc.compress` takes it.
        notes: of the first report of each setting that answered, by its key.
    """

    loaded: Loaded
    suite: Suite
    methods: Mapping[str, list[Method]]
    template: str | None = None
    positions: str = "original"
    notes: dict[str, list[str]] = field(default_factory=dict, init=False)
    _fits: dict[str, int] = field(default_factory=dict, init=False)  # rows, after running out
    _inputs: dict[tuple[str, ...], Any] = field(default_factory=dict, init=False)  # of one batch
    _layers: Sequence[Remembered] = field(default=(), init=False)  # of the vision tower
    _held: dict[str, Any] = field(default_factory=dict, init=False)  # text encoders between batches

    def check(self, settings: Sequence[Setting]) -> None:
        """Put every method on the model once.

        Raises:
            VTCError: the model cannot have one of them, or the template has no `{question}`.
        """
        if self.template is not None and "{question}" not in self.template:
            raise VTCError(f"prompt: got {self.template!r}, which has no {{question}}")
        for setting in settings:
            with self.compressed(setting):
                pass

    def ask(
        self, batch: Sequence[Item], settings: Sequence[Setting], done: Done
    ) -> Iterator[list[Answer]]:
        """The answers of a batch, one list a setting, without those that are `done`. Its pictures are
        encoded once for all settings."""
        opened = _open(batch)
        self._inputs.clear()
        with remembering(self.loaded.model) as self._layers:
            for setting in settings:
                todo = [item for item in batch if (setting.key, item.id) not in done]
                rows, found = [], []
                for item in todo:
                    row = opened[item.id]
                    if isinstance(row, str):
                        found.append(_failed(setting, item, row))
                    else:
                        rows.append(row)
                if todo:
                    yield found + self._ask(setting, rows)

    def _ask(self, setting: Setting, rows: Sequence[Row]) -> list[Answer]:
        """Rows that fail together are asked in halves, down to the row that is to blame."""
        if not rows:
            return []
        half = self._fits.get(setting.key, len(rows))
        if half >= len(rows):
            try:
                return self._generate(setting, rows)
            except Exception as error:  # whatever model, processor or method raise
                reason, memory = _reason(error), out_of_memory(error)
            half = len(rows) // 2
            if memory:
                for layer in self._layers:
                    layer.forget()
                free_memory()
                self._fits[setting.key] = max(1, half)
            if not half:
                return [_failed(setting, rows[0].item, reason)]
        return self._ask(setting, rows[:half]) + self._ask(setting, rows[half:])

    def _generate(self, setting: Setting, rows: Sequence[Row]) -> list[Answer]:
        inputs = self._prepared(setting, rows)
        with self.compressed(setting) as run:
            said = self.said(setting, rows, inputs)
            reports = [] if run is None else list(run.reports)
        if run is None:
            counts = self._placeholders(inputs)
        else:
            counts = [_counts(reports, index) for index in range(len(rows))]
        for report in reports[:1]:
            self.notes.setdefault(setting.key, report.notes)
        return [
            self._scored(setting, row.item, text.strip(), count)
            for row, text, count in zip(rows, said, counts, strict=True)
        ]

    def said(self, setting: Setting, rows: Sequence[Row], inputs: Any) -> list[str]:
        """What the model, with the setting on it, says to each row."""
        return self.loaded.answer(inputs, max_new_tokens=self.suite.max_new_tokens)

    def report(self, setting: Setting, item: Item, images: Sequence[Any]) -> Report:
        """What a setting keeps of the images of a question; one prefill, nothing is answered."""
        import torch

        inputs = self.inputs([Row(item, tuple(images))])
        with self.compressed(setting) as run, torch.inference_mode():
            self.loaded.model(**inputs)
        return run.reports[-1]

    def _prepared(self, setting: Setting, rows: Sequence[Row]) -> Any:
        """Inputs of the model, made once a batch for all settings of whole pictures: a quarter of a
        run's time."""
        if setting.pixels is not None:
            share = setting.pixels
            return self.inputs(
                [Row(r.item, tuple(coarse(i, share) for i in r.images)) for r in rows]
            )
        key = tuple(row.item.id for row in rows)
        if key not in self._inputs:
            self._inputs[key] = self.inputs(rows)
        return self._inputs[key]

    def inputs(self, rows: Sequence[Row]) -> Any:
        """What the model takes, on its device."""
        prompts = [self._prompt(row) for row in rows]
        images = [row.images for row in rows]
        return self.loaded.batch(images, prompts)

    @contextlib.contextmanager
    def compressed(self, setting: Setting) -> Iterator[Any]:
        """The method of a setting on the model; yields its handle, None for the plain model."""
        if setting.method == FULL.method and setting.key not in self.methods:
            yield None
            return
        methods, processor = self.methods[setting.key], self.loaded.processor
        with vtc.compress(
            self.loaded.model, methods, processor=processor, positions=self.positions_of(setting)
        ) as run:
            self._held[setting.key] = run.text_encoder
            yield run

    def positions_of(self, setting: Setting) -> str:
        """The rule for positions of a setting."""
        return self.positions

    def _prompt(self, row: Row) -> str:
        processor, text = self.loaded.processor, row.item.prompt
        if self.template is None:
            return prompt(processor, text, len(row.images))
        tokens = f"{getattr(processor, 'image_token', '<image>')}\n" * len(row.images)
        template = self.template if "{image}" in self.template else "{image}" + self.template
        return template.replace("{image}", tokens).replace("{question}", text)

    def _placeholders(self, inputs: Any) -> list[dict[str, int]]:
        """Visual tokens of each row of the uncompressed model, where its processor names them."""
        token = getattr(self.loaded.processor, "image_token_id", None)
        if token is None:
            return [{} for _ in inputs["input_ids"]]
        counts = (inputs["input_ids"] == token).sum(1).tolist()
        return [{"tokens": count, "tokens_full": count} for count in counts]

    def _scored(self, setting: Setting, item: Item, text: str, counts: dict[str, int]) -> Answer:
        score, error = None, None
        try:
            score = float(self.suite.score(item, text))
        except Exception as wrong:  # an answer or a label that the scorer cannot read
            error = f"score: {_reason(wrong)}"
        return _answer(setting, item, prediction=text, score=score, error=error, **counts)


def batches(items: Sequence[Item], size: int, done: Done, keys: Sequence[str]) -> list[list[Item]]:
    """Items that still lack an answer under some of the settings, up to `size` together, in order.

    Items with images and items without are kept apart.
    """
    found: list[list[Item]] = []
    for item in items:
        if all((key, item.id) in done for key in keys):
            continue
        if found and len(found[-1]) < size and bool(found[-1][0].images) == bool(item.images):
            found[-1].append(item)
        else:
            found.append([item])
    return found


# -- rows --------------------------------------------------------------------------------------


def _open(batch: Sequence[Item]) -> dict[str, Row | str]:
    """Each item with its images, or why they cannot be had; a shared image is opened once."""
    known: dict[Callable[[], Any], Any] = {}
    found: dict[str, Row | str] = {}
    for item in batch:
        if item.error:
            found[item.id] = item.error
            continue
        if not item.answers:
            found[item.id] = "answers: the data has none"
            continue
        try:
            for call in item.images:
                if call not in known:
                    known[call] = load_image(call())
            images = tuple(known[call] for call in item.images)
            found[item.id] = Row(replace(item, cluster=item.cluster or _pixels(images)), images)
        except Exception as error:  # whatever a decoder raises at a corrupt file
            found[item.id] = f"image: {_reason(error)}"
    return found


def _pixels(images: Sequence[Any]) -> str:
    """A name for these pixels, however the files hold them; "" for no image."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(repr(image.size).encode() + image.tobytes())
    return digest.hexdigest()[:16] if images else ""


def _counts(reports: Sequence[Any], row: int) -> dict[str, int]:
    """Tokens of a row's images that enter a layer of the language model, on average over layers."""
    images = [image for report in reports for image in report.images if image.sample == row]
    return {
        "tokens": round(sum(image.kv_retention * image.tokens_before for image in images)),
        "tokens_full": sum(image.tokens_before for image in images),
        "patches": round(sum(image.average_retention * image.patches_before for image in images)),
        "patches_full": sum(image.patches_before for image in images),
    }


def _failed(setting: Setting, item: Item, reason: str) -> Answer:
    return _answer(setting, item, prediction=None, score=None, error=reason)


def _answer(setting: Setting, item: Item, **values: Any) -> Answer:
    return Answer(
        setting=setting.key,
        item=item.id,
        cluster=item.cluster or item.id,
        kind=item.kind,
        answers=item.answers,
        extra=item.extra,
        **values,
    )


def _reason(error: BaseException) -> str:
    """What went wrong in one line."""
    text = " ".join(str(error).split())
    name = "" if isinstance(error, VTCError) else type(error).__name__
    return ": ".join(part for part in (name, text[:300]) if part)
