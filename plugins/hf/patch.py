"""`Patch`: what is settled before a model is touched, and holds for its calls.

See `attach.py` for what a patched model carries, `scopes.py` for whose patch a call comes under.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from vtc.methods.base import Method
from vtc.plugins.hf.adapters import Adapter
from vtc.plugins.hf.scopes import Call
from vtc.plugins.hf.text_encoder import load_text_encoder
from vtc.plugins.model.compaction import Compaction
from vtc.report import ImageReport, Report
from vtc.tokens import SignalRequest

#: signals that come from hidden states of the tower, and from the question, not from attention
HIDDEN = frozenset({"last_hidden", "patch_embedding"})
TEXT = frozenset({"text_embedding", "text_similarity"})


@dataclass(eq=False)
class Patch:
    """What holds for the calls that come under one handle.

    Attributes:
        method: the compression method.
        adapter: what is known of the model family.
        positions: position policy.
        requests: the signals the method reads, by name.
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

    method: Method
    adapter: Adapter
    positions: str
    requests: dict[str, SignalRequest]
    layers: dict[str, nn.ModuleList]
    deepest: int
    text_encoder: Any = None
    tokenizer: Any = None
    notes: list[str] = field(default_factory=list)
    reports: list[Report] = field(default_factory=list)
    compaction: Compaction | None = None
    probed: list[tuple[nn.Module, int]] = field(default_factory=list)
    has_cls: bool = False
    tensors: dict[str, bool] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Encoder layers of the vision tower; two towers of a model have the same."""
        return len(self.layers["image"])

    @property
    def reads_hidden(self) -> bool:
        """Whether the method reads hidden states of the vision tower."""
        kinds = {request.kind for request in self.requests.values()}
        return bool(kinds & HIDDEN)

    @property
    def reads_text(self) -> bool:
        """Whether the method reads what is asked."""
        return any(request.kind in TEXT for request in self.requests.values())

    def equip(self, model: nn.Module) -> None:
        """Load the text encoder of a method that reads one, if the patch has none (any more)."""
        kinds = {request.kind for request in self.requests.values()}
        if self.text_encoder is None and kinds & {"text_embedding", "patch_embedding"}:
            official = getattr(self.method, "text_source", "question") == "official"
            choice = getattr(self.method, "text_encoder", None)
            width = self.adapter.width(model.base_model)
            self.text_encoder = load_text_encoder(choice, model, width, official)

    def add_report(
        self, call: Call | None, images: list[ImageReport], rows: list[int], seconds: float
    ) -> None:
        """Report one prefill, `rows` being the row of the batch that each image belongs to."""
        report = Report(
            images=[replace(image, sample=row) for image, row in zip(images, rows, strict=True)],
            method=self.method.name,
            settings=self.method.settings(),
            positions=self.positions,
            seconds=seconds,
            notes=list(self.notes),
        )
        self.reports.append(report)
        del self.reports[:-1000]  # a long-running server must not grow for ever
        if call is not None:
            call.reports.append(report)

    def note_compaction(self, call: Call | None, compaction: Compaction | None) -> None:
        """Remember how the prompt of a call was shortened."""
        self.compaction = compaction
        if call is not None:
            call.compaction = compaction
