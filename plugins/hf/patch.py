"""`Patch`: what is settled before a model is touched, and holds for its calls.

See `attach.py` for what a patched model carries, `scopes.py` for whose patch a call comes under.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from vtc.methods.base import Method
from vtc.methods.none import NoCompression
from vtc.methods.resize import Resize
from vtc.plugins.hf.adapters import Adapter
from vtc.plugins.hf.scopes import Call
from vtc.plugins.hf.text_encoder import load_text_encoder
from vtc.plugins.hf.typing import Model
from vtc.plugins.model.compaction import Compaction
from vtc.plugins.model.question import guidance
from vtc.plugins.model.signals import ENCODED, HIDDEN, POOLED, TEXT, WORDS
from vtc.report import ImageReport, Report
from vtc.several import name_of, settings_of
from vtc.tokens import SignalRequest

if TYPE_CHECKING:
    from vtc.methods.layer_method import LayerMethod
    from vtc.plugins.hf.stages.base import Stage


@dataclass(eq=False)
class Patch:
    """What holds for the calls that come under one handle.

    Attributes:
        methods: the compression methods, in the order in which tokens pass them.
        method: the one for the stages at the boundary, `none` behind pictures that are made smaller.
        resize: makes pictures smaller, None where nobody does.
        at_boundary: whether stages at the boundary have something to do; if not, they leave calls alone.
        inside: that of the layers of the language model, None for none.
        name: of all, `"a+b"`.
        stages: where each of them works.
        adapter: what is known of the model family.
        positions: position policy.
        requests: the signals of the vision tower and the question that are read, by name.
        layers: modality -> the encoder layers of its vision tower.
        deepest: the deepest encoder layer that a signal is read from, -1 for none.
        text_encoder: for text-guided methods, else None.
        tokenizer: reads the prompt for text-guided methods, else None.
        notes: what a reader of the reports should know, e.g. a stand-in signal.
        reports: one `Report` for every prefill with images, the last 1000.
        compaction: how the last prompt was shortened, None when it was not.
        probed: the attention modules that queries and keys are read from, each with its layer.
        has_cls: whether the vision tower has a CLS token.
        tensors: modality -> whether the model wants its features as one tensor, not a list.
    """

    methods: tuple[Method, ...]
    stages: tuple[Stage, ...]
    adapter: Adapter
    positions: str
    requests: dict[str, SignalRequest] = field(default_factory=dict)
    layers: dict[str, nn.ModuleList] = field(default_factory=dict)
    deepest: int = -1
    text_encoder: Any = None
    tokenizer: Any = None
    notes: list[str] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    compaction: Compaction | None = None
    probed: list[tuple[nn.Module, int]] = field(default_factory=list)
    has_cls: bool = False
    tensors: dict[str, bool] = field(default_factory=dict)
    method: Method = field(init=False)
    resize: Resize | None = field(init=False)
    name: str = field(init=False)
    at_boundary: bool = field(init=False)
    inside: LayerMethod | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        placed = {method.where: method for method in self.methods}
        made = placed.get("pixels")
        self.resize = made if isinstance(made, Resize) else None
        alone = self.methods[0] if self.resize is None else NoCompression()
        self.method, self.name = placed.get("boundary", alone), name_of(self.methods)
        self.at_boundary = self.method.where == "boundary"

    def lead(self, stage: Stage, method: Method) -> None:
        """Have a stage at the boundary that nobody asked for."""
        self.stages, self.method, self.at_boundary = (stage, *self.stages), method, True

    @property
    def depth(self) -> int:
        """Encoder layers of the vision tower; two towers of a model have the same."""
        return len(self.layers["image"])

    @property
    def reads_hidden(self) -> bool:
        """Whether the method reads hidden states of the vision tower."""
        kinds = {request.kind for request in self.requests.values()}
        return bool(kinds & (HIDDEN | POOLED))

    @property
    def reads_text(self) -> bool:
        """Whether the method reads what is asked."""
        return any(request.kind in TEXT for request in self.requests.values())

    @property
    def reads_prompt(self) -> bool:
        """Whether a tokenizer is needed."""
        if self.method.by_question:
            return True
        kinds = {request.kind for request in self.requests.values()}
        return bool(kinds & WORDS) or (
            bool(kinds & TEXT) and guidance(self.method).question is None
        )

    def equip(self, model: Model) -> None:
        """Load the text encoder of a method that reads one, if the patch has none (any more)."""
        kinds = {request.kind for request in self.requests.values()}
        if self.text_encoder is None and kinds & ENCODED:
            guide, width = guidance(self.method), self.adapter.width(model.base_model)
            self.text_encoder = load_text_encoder(guide.text_encoder, model, width, guide.official)

    def add_report(
        self, call: Call | None, images: list[ImageReport], rows: list[int], seconds: float
    ) -> Report:
        """Report one prefill, `rows` being the row of the batch that each image belongs to."""
        report = Report(
            images=[replace(image, sample=row) for image, row in zip(images, rows, strict=True)],
            method=self.name,
            settings=settings_of(self.methods),
            positions=self.positions,
            seconds=seconds,
            notes=list(self.notes),
        )
        self.reports.append(report)
        del self.reports[:-1000]  # a long-running server must not grow for ever
        if call is not None:
            call.reports.append(report)
        return report

    def note_compaction(self, call: Call | None, compaction: Compaction | None) -> None:
        """Remember how the prompt of a call was shortened."""
        self.compaction = compaction
        if call is not None:
            call.compaction = compaction
