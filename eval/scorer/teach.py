"""Where the answers of the uncompressed model look: what a scorer learns from, written to disk."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

import vtc
from vtc.errors import VTCError
from vtc.eval.common.listening import Listener
from vtc.eval.common.loading import Loaded
from vtc.eval.common.prompts import user_prompt
from vtc.eval.scorer.pictures import Picture
from vtc.layers import Choice, LayerView
from vtc.methods.layer_method import LayerMethod
from vtc.tokens import SignalRequest


@dataclass
class AttentionListener(Listener):
    """Remembers the image with the attention that `coverage` reads, called as `coverage` calls it."""

    def requests(self, has_cls: bool = True) -> dict[str, SignalRequest]:
        return vtc.create_method("coverage").requests(has_cls)


@dataclass
class Attended(LayerMethod):
    """Drops nothing, and adds up how much answers attend to each patch: mean over heads, answer tokens
    and layers.

    Attributes:
        answers: int64 `[B]`, tokens of the answer that ends each row.
        sums: what was added up, and the place in its image of each column.
    """

    answers: Any = None
    sums: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    name: ClassVar[str] = "attended"
    reads_before: ClassVar[bool] = True

    def cuts(self, depth: int) -> tuple[int, ...]:
        self._depth = depth
        return tuple(range(1, depth))

    def counts(self, tokens: int, depth: int) -> tuple[int, ...]:
        # a budget below the tokens, so that every layer is looked at; nothing is dropped all the same
        return tuple(max(tokens - cut, 0) for cut in range(1, depth))

    def choose(self, view: LayerView) -> Choice:
        seen = view.seen
        answers = self.answers.to(seen.asking.device)
        step = torch.arange(int(answers.max()), device=answers.device)
        # the last token asks nothing any more; those in front of it asked for one of the answer each
        rows = torch.where(
            step < answers[:, None], seen.asking[:, :1] - answers[:, None] + step, -1
        )
        self._note(view.attention(rows, "before", mean=True), seen.place)
        if seen.layer == self._depth - 1:
            self._note(view.attention(rows, "here", mean=True), seen.place)
        return Choice(seen.valid)

    def _note(self, attention: Tensor, place: Tensor) -> None:
        mean = attention.sum(1) / self.answers.to(attention.device)[:, None]
        self.sums.append((mean, place))

    def of_patches(self, tiles: int, patches: int, cols: int) -> Tensor:
        """Float32 `[B, tiles * patches]` on the CPU."""
        out = None
        for attention, (tile, row, col) in ((a, p.unbind(-1)) for a, p in self.sums):
            at = torch.where(tile < 0, tiles * patches, tile * patches + row * cols + col)
            mine = attention.new_zeros(len(attention), tiles * patches + 1)
            mine = mine.scatter_add_(1, at, attention)[:, :-1]
            out = mine if out is None else out + mine
        if out is None:
            raise VTCError("model: no layer of the language model was seen, nothing can be learned")
        return (out / len(self.sums)).float().cpu()


@dataclass(frozen=True)
class Lesson:
    """An image as a scorer sees it, and where answers look.

    Attributes:
        features: `[T, N, D]`.
        demand: float32 `[T, N]`, the attention that `coverage` starts from.
        valid: bool `[T, N]`.
        overview: whether the first tile is a thumbnail.
        target: float32 `[T, N]`, sums to 1.
    """

    features: Tensor
    demand: Tensor
    valid: Tensor
    overview: bool
    target: Tensor

    def save(self, path: Path) -> None:
        """To disk, whole or not at all; features in bfloat16."""
        from safetensors.torch import save_file

        tensors = {
            "features": self.features.to(torch.bfloat16),
            "demand": self.demand,
            "valid": self.valid,
            "overview": torch.tensor(self.overview),
            "target": self.target,
        }
        part = path.with_suffix(".part")
        save_file({k: v.cpu().contiguous() for k, v in tensors.items()}, part)
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Lesson:
        """From disk, as `save` wrote it."""
        from safetensors.torch import load_file

        found = load_file(path)
        overview = bool(found.pop("overview"))
        return cls(**found, overview=overview)


@dataclass(frozen=True)
class Asked:
    """The questions about an image with the model's own answers behind them.

    Attributes:
        inputs: what the model takes, rows end together.
        answers: int64 `[B]`, tokens of each answer.
    """

    inputs: dict[str, Any]
    answers: Tensor


@torch.inference_mode()
def asked(loaded: Loaded, image: Any, questions: Sequence[str], longest: int) -> Asked:
    """Answer greedily, without compression, and put the answers behind the prompts."""
    prompts = [user_prompt(loaded.processor, text, 1) for text in questions]
    inputs = dict(loaded.batch([[image]] * len(prompts), prompts))
    out = loaded.model.generate(**inputs, do_sample=False, num_beams=1, max_new_tokens=longest)
    length, new = inputs["input_ids"].shape[1], out[:, inputs["input_ids"].shape[1] :]
    ends = loaded.model.generation_config.eos_token_id
    ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
    end = torch.isin(new, torch.tensor(ends, device=new.device, dtype=new.dtype))
    answers = ((end.cumsum(1) - end.long()) == 0).sum(1)  # the end is a part of the answer
    shift = int(answers.max()) - answers  # so many columns each row moves to the right
    columns = torch.arange(length + int(answers.max()), device=new.device) - shift[:, None]
    whole: dict[str, Any] = {}
    for name, value in inputs.items():
        if not isinstance(value, Tensor) or value.shape[:2] != (len(new), length):
            whole[name] = value
            continue
        more = new[:, : int(answers.max())]
        if name != "input_ids":  # a mask has ones; types of tokens are those of text
            more = torch.full_like(more, int(name == "attention_mask"))
        row = torch.cat([value, more.to(value)], 1)
        at = columns.clamp(min=0)
        fill = row[:, :1] if name == "input_ids" else torch.zeros_like(row[:, :1])
        whole[name] = torch.where(columns >= 0, row.gather(1, at), fill)
    return Asked(whole, answers.cpu())


@torch.inference_mode()
def lesson(loaded: Loaded, picture: Picture, longest: int) -> Lesson:
    """Ask a model about an image, and see where its answers look.

    Raises:
        VTCError: the model gives no attention in its language model, or shows several images.
    """
    said = asked(loaded, picture.open(), picture.questions, longest)
    listener = AttentionListener(retention=0.5)
    attended = Attended(answers=said.answers)
    with vtc.compress(loaded.model, [listener, attended]):
        loaded.model(**said.inputs, use_cache=False, **_few_logits(loaded, 1))
    tokens = listener.heard[0]
    tiles, patches, _ = tokens.features.shape
    rows = attended.of_patches(tiles, patches, tokens.patch_grid[1])
    rows = rows / rows.sum(1, keepdim=True).clamp(min=1e-12)
    kinds: dict[str, list[Tensor]] = defaultdict(list)
    for kind, row in zip(picture.types, rows, strict=True):
        kinds[kind].append(row)
    target = torch.stack([torch.stack(some).mean(0) for some in kinds.values()]).mean(0)
    target = target.view(tiles, patches) * tokens.valid
    return Lesson(
        tokens.features.cpu(),
        tokens.signals["attention"].float().cpu(),
        tokens.valid,
        tokens.packing.tile_grid is not None,
        target / target.sum().clamp(min=1e-12),
    )


def _few_logits(loaded: Loaded, count: int) -> dict[str, int]:
    from vtc.plugins.hf import arguments

    takes = arguments.takes(loaded.model, "logits_to_keep")
    return {"logits_to_keep": count} if takes else {}


@torch.inference_mode()
def answer_logits(loaded: Loaded, said: Asked) -> Tensor:
    """Float32 log-probabilities `[tokens of all answers, vocabulary]`; compression that is on the model
    takes part."""
    most = int(said.answers.max())
    logits = loaded.model(**said.inputs, use_cache=False, **_few_logits(loaded, most + 1)).logits
    last = logits[:, -most - 1 : -1].float()
    here = torch.arange(most) >= most - said.answers[:, None]
    return last[here.to(last.device)].log_softmax(-1)


def file_of(folder: Path, picture: Picture, longest: int) -> Path:
    """Where the lesson of a picture lies: all that it is made from in a hash."""
    facts = "\0".join([str(longest), picture.name, *picture.questions, *picture.types, ""])
    return folder / (
        hashlib.sha256(facts.encode() + picture.content()).hexdigest()[:24] + ".safetensors"
    )
