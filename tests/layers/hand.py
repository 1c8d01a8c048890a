"""The reference: a row alone and unpadded, its layers called one by one.

Keys and values are in lists of its own, masks are made here, and scores are read off whole attention
maps of the model's eager attention. Nothing of the stage is used but the numbers of a method.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tests.families import tiny
from tests.layers import methods
from tests.layers.models import family_of

Row = list[tuple[str, tuple[int, int]]]


class Lists:
    """A cache of one layer's keys and values."""

    def __init__(self) -> None:
        self.held: tuple[Tensor, Tensor] | None = None

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if self.held is not None:
            key, value = (torch.cat(pair, 2) for pair in zip(self.held, (key, value), strict=True))
        self.held = key, value
        return key, value

    def get_seq_length(self, *_: Any) -> int:
        return 0 if self.held is None else self.held[0].shape[2]


def first_call(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """What the language model is given for the prompt of a `generate`."""
    base = model.model
    lm = getattr(base, "language_model", None) or base.text_model
    seen: list[dict[str, Any]] = []
    hook = lm.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append(dict(kwargs)), with_kwargs=True
    )
    try:
        model.generate(**inputs, max_new_tokens=1, do_sample=False)
    finally:
        hook.remove()
    return seen[0]


def sizes(family: str, row: Row) -> list[int]:
    """The visual tokens of each image of a row."""
    rng, make = torch.Generator(), tiny.FAMILIES[family].item
    count = sum(kind == "image" for kind, _ in row)
    ids = [make(kind, size, rng, count).ids for kind, size in row]
    return [sum(token in (tiny.IMAGE, tiny.VIDEO) for token in each) for each in ids]


class Hand:
    """One row, from its prompt on.

    Attributes:
        asking: columns whose attention counts.
        columns: of the row's prompt, what each cut has left, by layer.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        inputs: dict[str, Any],
        row: Row,
        method: Any,
        asking: Sequence[int] = (-1,),
    ) -> None:
        self.asking = [column % inputs["input_ids"].shape[1] for column in asking]
        self.model, self.method, self.family = model, method, family_of(name)
        self.sizes = self.sizes_of(row)
        self.lm = getattr(model.model, "language_model", None) or model.model.text_model
        self.eager = copy.deepcopy(self.lm)
        self.eager.set_attn_implementation("eager")
        self.config = self.lm.config
        takes = inspect.signature(type(self.lm.layers[0]).forward).parameters
        self.name = "cache" if "cache" in takes else "past_key_values"
        self.lists = [Lists() for _ in self.lm.layers]
        self.ids = inputs["input_ids"][0]
        self.types = inputs.get("token_type_ids")
        self.columns: dict[int, list[int]] = {}
        given = self.given(inputs)
        self.positions = self._axes(given["position_ids"], len(self.ids))
        self.prompt = self._prompt(given)

    @torch.no_grad()
    def turn(self, given: dict[str, Any], ids: Tensor, row: Row) -> None:
        """Another turn behind what is in the lists; `prompt` is its output then.

        Args:
            given: what the bare language model is given for it.
            ids: the new tokens.
            row: what they show.
        """
        self.ids, self.sizes = ids, sizes(self.family, row)
        self.asking, self.types = [len(ids) - 1], None
        if given.get("token_type_ids") is not None or self.family == "gemma3":
            self.types = (ids == tiny.IMAGE).long()[None]
        axes = len(self.positions)
        self.positions = self._axes(given["position_ids"], len(ids)).expand(axes, -1, -1)
        self.prompt = self._prompt(given)

    def given(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """What the bare language model is given for the prompt."""
        return first_call(self.model, inputs)

    def sizes_of(self, row: Row) -> list[int]:
        """The visual tokens of each image."""
        return sizes(self.family, row)

    def _axes(self, positions: Tensor | None, length: int) -> Tensor:
        if positions is None:
            return torch.arange(length)[None, None]
        if positions.dim() == 2:
            return positions[None]
        return positions[-3:]

    def _rotary(self, hidden: Tensor, positions: Tensor, number: int) -> Any:
        at = positions[0] if len(positions) == 1 else positions
        make = self.lm.rotary_emb
        if self.family == "gemma3":
            return make(hidden, at, self.config.layer_types[number])
        return make(hidden, at)

    def _window(self, number: int) -> int | None:
        kinds = getattr(self.config, "layer_types", None)
        if kinds is not None and kinds[number] != "sliding_attention":
            return None
        return getattr(self.config, "sliding_window", None)

    def _mask(self, number: int, fresh: int, held: int, types: Tensor | None) -> Tensor:
        """Additive `[1, 1, fresh, held + fresh]`, element by element."""
        window = self._window(number)
        q, k = torch.arange(held, held + fresh)[:, None], torch.arange(held + fresh)
        near = k <= q
        for a in range(fresh if types is not None else 0):
            for b in range(fresh):
                near[a, held + b] |= self._one_block(types.tolist(), a, b)
        if window is not None:
            near &= k > q - window
        out = torch.full(near.shape, torch.finfo(torch.float32).min).masked_fill(near, 0)
        return out[None, None].to(self.lm.dtype)

    def _one_block(self, kinds: list[int], a: int, b: int) -> bool:
        if self.family == "paligemma":
            return kinds[a] == 0 and kinds[b] == 0
        low, high = min(a, b), max(a, b)
        return all(kind == 1 for kind in kinds[low : high + 1])

    def _layer(
        self, number: int, hidden: Tensor, positions: Tensor, mask: Tensor, held: Any
    ) -> Tensor:
        out = self.lm.layers[number](
            hidden,
            attention_mask=mask,
            position_ids=None,
            position_embeddings=self._rotary(hidden, positions, number),
            **{self.name: held},
        )
        return out[0] if isinstance(out, tuple) else out

    def _map(
        self, number: int, hidden: Tensor, positions: Tensor, types: Tensor | None, held: Lists
    ) -> Tensor:
        """`[S, S]`, the attention of a layer to this turn's tokens, mean over heads."""
        layer, past, fresh = self.eager.layers[number], held.get_seq_length(), hidden.shape[1]
        _, weights = layer.self_attn(
            hidden_states=layer.input_layernorm(hidden),
            attention_mask=self._mask(number, fresh, past, types),
            position_embeddings=self._rotary(hidden, positions, number),
            **({self.name: held} if past else {}),
        )
        return weights[0, ..., past:].detach().float().mean(0)

    def _prompt(self, given: dict[str, Any]) -> Tensor:
        """`[1, S, D]`, what leaves the last layer of the prompt."""
        hidden, positions = given["inputs_embeds"], self.positions
        levels = given.get("deepstack_visual_embeds") or []
        visual = [i for i, t in enumerate(self.ids.tolist()) if t in (tiny.IMAGE, tiny.VIDEO)]
        columns = list(range(len(self.ids)))
        types = None if self.types is None else self.types[0]
        cuts = self.method.cuts(len(self.lm.layers))
        before: tuple[Any, ...] = ()
        for number in range(len(self.lm.layers)):
            if number in cuts:
                hidden, left = self._cut(
                    cuts.index(number), number, hidden, positions, columns, types, before
                )
                columns = [columns[i] for i in left]
                positions = positions[..., left]
                types = None if types is None else types[left]
                self.columns[number] = columns
            held = self.lists[number]
            before = (hidden, positions, types, copy.copy(held))
            mask = self._mask(number, hidden.shape[1], held.get_seq_length(), types)
            hidden = self._layer(number, hidden, positions, mask, held)
            if number < len(levels):
                hidden = hidden.clone()
                for place, column in enumerate(columns):
                    if column in visual:
                        hidden[0, place] += levels[number][visual.index(column)]
        self.left = columns
        return hidden

    def _runs(self, columns: Sequence[int]) -> list[list[int]]:
        """The places of each image among the columns that are left."""
        ids = self.ids.tolist()
        every = [column for column, token in enumerate(ids) if token in (tiny.IMAGE, tiny.VIDEO)]
        out, start = [], 0
        for size in self.sizes:
            mine = set(every[start : start + size])
            out.append([place for place, column in enumerate(columns) if column in mine])
            start += size
        assert start == len(every)
        return out

    def _parity(self, column: int) -> int:
        """Row and column of a token of a tile of 4 x 4, added up, modulo 2."""
        ids = self.ids.tolist()
        nth = sum(token == tiny.IMAGE for token in ids[:column]) % 16
        return (nth // 4 + nth % 4) % 2

    def _cut(
        self,
        cut: int,
        number: int,
        hidden: Tensor,
        positions: Tensor,
        columns: list[int],
        types: Tensor | None,
        before: tuple[Any, ...],
    ) -> tuple[Tensor, list[int]]:
        method, runs = self.method, self._runs(columns)
        gone: set[int] = set()
        if isinstance(method, methods.Merge):
            hidden = hidden.clone()
            old = hidden.clone()
            for run in runs:
                odd = [p for p in run if self._parity(columns[p])]
                gone |= set(odd)
                for place in run:
                    if place + 1 in odd and place not in odd:
                        hidden[0, place] = old[0, place] + 0.5 * old[0, place + 1]
        elif isinstance(method, methods.DropAll):
            gone = {place for run in runs for place in run}
        else:
            weights = (
                self._map(number - 1, *before)
                if isinstance(method, methods.Last)
                else self._map(number, hidden, positions, types, copy.copy(self.lists[number]))
            )
            for index, run in enumerate(runs):
                count = method.counts(self.sizes[index], len(self.lm.layers))[cut]
                score = weights[[columns.index(column) for column in self.asking]].amax(0)
                ranked = sorted(run, key=lambda place: (-float(score[place]), place))
                gone |= set(ranked[count:])
        left = [place for place in range(len(columns)) if place not in gone]
        return hidden[:, left], left

    # -- what comes out ----------------------------------------------------------------------------

    def logits(self, hidden: Tensor) -> Tensor:
        """`[S, V]` of `hidden [1, S, D]`."""
        out = self.model.lm_head(self.lm.norm(hidden))[0]
        config = self.config
        if getattr(config, "final_logit_softcapping", None) is not None:
            cap = config.final_logit_softcapping
            out = torch.tanh(out / cap) * cap
        return out

    @torch.no_grad()
    def greedy(self, steps: int) -> tuple[list[int], Tensor]:
        """Tokens, and the logits `[steps, V]` that each was chosen by."""
        logits = [self.logits(self.prompt[:, -1:])[0]]
        tokens: list[int] = []
        following = int(self.positions.amax()) + 1
        banned = self.model.generation_config.suppress_tokens
        for step in range(steps):
            tokens.append(int(logits[-1].index_fill(0, torch.tensor(banned), -torch.inf).argmax()))
            if step + 1 == steps:
                break
            hidden = self.lm.embed_tokens(torch.tensor([tokens[-1:]]))
            positions = torch.full((len(self.positions), 1, 1), following + step)
            for number in range(len(self.lm.layers)):
                held = self.lists[number]
                mask = self._mask(number, 1, held.get_seq_length(), None)
                hidden = self._layer(number, hidden, positions, mask, held)
            logits.append(self.logits(hidden)[0])
        return tokens, torch.stack(logits)
