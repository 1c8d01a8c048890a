"""What stages have in common that cut what a vision encoder has made: its signals are read by probes,
and all that such a stage does is in hooks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from vtc.errors import VTCError
from vtc.methods.base import Method
from vtc.methods.which import quoted, without_signals
from vtc.plugins.hf import probe
from vtc.plugins.hf.adapters.base import Adapter
from vtc.plugins.hf.hooks import Hook, hang, is_hung, take_off
from vtc.plugins.hf.identity import check_made_for
from vtc.plugins.hf.typing import Model
from vtc.plugins.model.inputs import PIXELS
from vtc.plugins.model.layers import layer_index, layer_of_features
from vtc.plugins.model.signals import ATTENTION, GIVEN, HIDDEN, POOLED, TEXT
from vtc.tokens import SignalRequest

if TYPE_CHECKING:
    from vtc.plugins.hf.patch import Patch


class EncoderStage:
    """A stage behind the vision encoder, see `Stage`.

    Attributes:
        functions: every function that `hooks` hangs.
        cleaners: what takes off the rest, module by module.
    """

    name: ClassVar[str]
    where: ClassVar[str] = "boundary"
    functions: ClassVar[tuple[Callable[..., Any], ...]]
    cleaners: ClassVar[tuple[Callable[[Model], None], ...]] = (probe.detach,)
    #: kinds of signals that models of this stage do not give, and what is said of such a model
    lacks: ClassVar[frozenset[str]] = frozenset()
    because: ClassVar[str] = ""
    #: whether attention to visual tokens can be in proportion to what they stand for
    weighs: ClassVar[bool] = False

    def hooks(self, model: Model, adapter: Adapter) -> list[Hook]:
        """Every hook of a patched model."""
        raise NotImplementedError

    def check(self, model: Model, patch: Patch, method: Method) -> None:
        """Find the layers of the tower that the method's signals come from."""
        adapter, base = patch.adapter, model.base_model
        adapter.check(base)
        if method.early and not adapter.takes_some:
            raise VTCError(
                f"before: got 'tower', but the vision tower of {type(model).__name__} takes nothing but "
                "whole pictures; allowed here is 'language'"
            )
        if method.weighs and not self.weighs:
            raise VTCError(
                f"proportional: got True, but {type(model).__name__}{self.because} attends to visual "
                "tokens in a way that takes no bias here; allowed is False"
            )
        patch.has_cls = adapter.has_cls(base)
        requests = method.requests(patch.has_cls)
        modalities = [m for m in PIXELS if adapter.token_id(model.config, m) is not None]
        patch.layers = {modality: adapter.layers(base, modality) for modality in modalities}
        kinds = {request.kind for request in requests.values()}
        if kinds & self.lacks:
            raise VTCError(
                f"method: {method.name!r} reads {', '.join(sorted(kinds & self.lacks))}, which "
                f"{type(model).__name__}{self.because} does not give"
            )
        read = kinds - TEXT - GIVEN
        if read and patch.depth == 0:
            raise VTCError(
                f"method: {method.name!r} reads {', '.join(sorted(read))}, but no attention layers are "
                f"found in the vision tower of {type(model).__name__}; {quoted(without_signals())} "
                "work without"
            )
        if "cls_hidden" in read and not patch.has_cls:
            raise VTCError(
                f"method: {method.name!r} needs cls_hidden, but this vision tower has no CLS token"
            )
        if read & POOLED:
            adapter.pooling_head(base)  # raises where there is none
        # every layer as an index, so that nobody has to know how many there are
        patch.requests = {
            name: replace(request, layer=self._layer(request, patch, model))
            for name, request in requests.items()
        }
        placed = patch.requests.values()
        needed = {int(request.layer) for request in placed if request.kind in ATTENTION}
        patch.deepest = max(
            (int(r.layer) for r in placed if r.kind in ATTENTION | HIDDEN | POOLED), default=-1
        )
        towers = {id(adapter.tower(base, modality)): modality for modality in modalities if needed}
        patch.probed = [
            (adapter.attention(base, layer, modality), layer)
            for layer in sorted(needed)
            for modality in towers.values()
        ]
        adapter.projector(base)  # raises where a hook will find none
        made_for = getattr(method, "made_for", None)
        if made_for is not None:
            check_made_for(model, adapter, method.name, made_for)
        patch.notes += adapter.notes(base, method)
        if not patch.has_cls and "attention_received" in read:
            patch.notes.append(
                "the vision tower has no CLS token: attention received is used in its place"
            )

    def _layer(self, request: SignalRequest, patch: Patch, model: Model) -> int:
        """The encoder layer that a signal comes from, 0 for one that comes from none."""
        if request.kind in TEXT | GIVEN:
            return 0
        if request.kind in POOLED | {"last_hidden"}:
            return patch.depth - 1
        if isinstance(request.layer, str):  # "read"
            return layer_of_features(model.base_model.config, patch.depth)
        return layer_index(request.layer, patch.depth)

    def attach(self, model: Model, patch: Patch) -> None:
        """Hang the hooks, and probe the layers that are read."""
        hang(hook for hook in self.hooks(model, patch.adapter) if not is_hung(hook))
        for module, layer in patch.probed:
            probe.attach(module, layer)

    def detach(self, model: Model) -> None:
        """Leave no hook and no probe on any module.

        Every module is looked at: other libraries may have copied one that carried a hook (PEFT does).
        """
        for module in model.modules():
            take_off(module, *self.functions)
            for clean in self.cleaners:
                clean(module)
