"""`Generator`: a backbone, a head and a plan; trained by an objective, sampled by a sampler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vtc.discrete import masks
from vtc.discrete.backbone import KVCache, Rope, TimeEmbedding, Transformer, TransformerConfig
from vtc.discrete.condition import Condition
from vtc.discrete.heads import HEADS, Head, VelocityHead
from vtc.discrete.noise import Noise
from vtc.discrete.objectives import Objective, create_objective
from vtc.discrete.plans import Plan, create_plan
from vtc.discrete.samplers import Sampler, Seed, create_sampler
from vtc.discrete.schedules import Guidance
from vtc.discrete.text import TextEncoder
from vtc.discrete.types import CodeSpace
from vtc.errors import VTCError
from vtc.registry import create


@dataclass(frozen=True)
class GeneratorConfig:
    """What a `Generator` makes and how it is told what to make.

    Attributes:
        space: tokens and sub-codes. For continuous latents `channels` is set and only tokens and
            grid count.
        transformer: the backbone; with rotary axes it has two, row and column (`(1, N)` is the grid
            of a 1-D code).
        head: "index", "tied" or "bit"; unused for latents.
        plan: a name or a `Plan`, see `plans.create_plan`.
        classes: number of classes, 0 for none.
        words: size of the vocabulary of texts that a `TextEncoder` of its own reads into the context; 0
            for none, or where the context is given.
        class_as: "token", in front of the sequence, or "adaptive", added to the condition of adaLN.
        time: what adaLN reads of the time: "none", "scalar" or "sinusoid".
        drop: share of samples whose class and context are dropped in training.
        channels: C of continuous latents, 0 for codes.
        objective: what `loss` trains: a name or an `Objective`, see `objectives.create_objective`.
        sampler: what `sample` runs by default: a name or a `Sampler`, see `samplers.create_sampler`.
    """

    space: CodeSpace
    transformer: TransformerConfig
    head: str = "index"
    plan: str | Plan = "raster"
    classes: int = 0
    words: int = 0
    class_as: str = "token"
    time: str = "none"
    drop: float = 0.1
    channels: int = 0
    objective: str | Objective = "next_token"
    sampler: str | Mapping[str, Any] | Sampler = "ar"

    def __post_init__(self) -> None:
        if self.class_as not in ("token", "adaptive"):
            raise VTCError(f"class_as: got {self.class_as!r}, available are token, adaptive")
        if self.time not in ("none", "scalar", "sinusoid"):
            raise VTCError(f"time: got {self.time!r}, available are none, scalar, sinusoid")
        if self.time != "none" and not self.transformer.adaptive:
            raise VTCError(f"time: got {self.time!r}, which needs an adaptive transformer")
        if self.words and not self.transformer.context_dim:
            raise VTCError(f"words: got {self.words}, which needs a transformer with a context_dim")


class Generator(nn.Module):
    """A model of the codes, or of the continuous latents, of an image.

    Everything inside is in the order of the plan; `sample` and the objectives take and give raster
    order.
    """

    def __init__(self, config: GeneratorConfig) -> None:
        super().__init__()
        self.config, self.space = config, config.space
        self.plan: Plan = create_plan(config.plan, config.space.grid or (1, config.space.tokens))
        self.objective: Objective = create_objective(config.objective)
        create_sampler(config.sampler)  # an unknown one fails here
        self.recipe: dict[str, Any] = {}
        if self.plan.averages and not config.channels:
            raise VTCError(f"plan: got {config.plan!r}, which averages, so it is for latents only")
        dim = config.transformer.dim
        self.head: Head
        if config.channels:
            self.head = VelocityHead(dim, config.channels)
        else:
            self.head = create(HEADS, "head", config.head, dim=dim, space=config.space)
        self.backbone = Transformer(config.transformer)
        self.start = nn.Parameter(0.02 * torch.randn(1, 1, dim))
        self.classes: nn.Embedding | None = None
        if config.classes:
            self.classes = nn.Embedding(config.classes + 1, dim)
            # adaLN has no norm in front: a small class would drown beside the time
            std = 0.5 if config.class_as == "adaptive" else 0.02
            nn.init.normal_(self.classes.weight, std=std)
        self.text: TextEncoder | None = None
        if config.words:
            layers = sum(config.transformer.stages)
            self.text = TextEncoder(config.words, config.transformer.context_dim, layers)
        self.time: TimeEmbedding | None = None
        if config.time != "none":
            self.time = TimeEmbedding(dim, 0 if config.time == "scalar" else 256)

    # -- conditions --------------------------------------------------------------------------

    def condition(self, given: Condition | Tensor | None, batch: int = 0) -> Condition:
        """A `Condition` that fits the model, from labels or as it is.

        Args:
            given: labels `[B]`, a `Condition`, or None where the model has neither.
            batch: B, where it is known.

        Raises:
            VTCError: labels or a context that the model does not have, or none where it has; a wrong
                shape or type; labels out of range.
        """
        given = given if isinstance(given, Condition) else Condition(given)
        if given.text is not None:
            if self.text is None or given.context is not None:
                raise VTCError(
                    "text: got one, but the model has no words, or a context came with it"
                )
            given = Condition(given.labels, self.text(given.text), given.text >= 0)
        self._check_context(given)
        given = replace(given, labels=self._check_labels(given.labels))
        counts = {} if given.labels is None else {"labels": len(given.labels)}
        if given.context is not None:
            counts["context"] = len(given.context[0])
        expected = batch or given.rows
        for name, count in counts.items():
            if count != expected:
                raise VTCError(f"{name}: got {count} rows, expected {expected}")
        return given

    def _check_labels(self, labels: Tensor | None) -> Tensor | None:
        classes = self.config.classes
        if (labels is None) != (self.classes is None):
            raise VTCError(f"labels: got {labels}, the model has {classes} classes")
        if labels is None:
            return None
        kinds = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
        if not isinstance(labels, Tensor) or labels.dim() != 1 or labels.dtype not in kinds:
            raise VTCError(f"labels: got {labels}, expected a tensor of whole numbers [batch]")
        if labels.numel():
            low, high = int(labels.min()), int(labels.max())
            if low < 0 or high > classes:
                raise VTCError(
                    f"labels: got {low} to {high}, allowed are 0 to {classes} (no class)"
                )
        return labels.long()

    def _check_context(self, given: Condition) -> None:
        width, layers = self.config.transformer.context_dim, len(self.backbone.blocks)
        if given.context is None:
            if width:
                raise VTCError(f"context: got none, the model reads features of width {width}")
            if given.valid is not None:
                raise VTCError("valid: got one, but there is no context")
            return
        if not width:
            raise VTCError("context: got one, the model reads none (its context_dim is 0)")
        shapes = [tuple(feature.shape) for feature in given.context]
        if len(shapes) != layers or len(set(shapes)) > 1 or shapes[0][2:] != (width,):
            raise VTCError(
                f"context: got {len(shapes)} of shape {shapes[0] if shapes else None}, expected "
                f"{layers}, one a layer, of shape [batch, T, {width}]"
            )
        if given.valid is not None and tuple(given.valid.shape) != shapes[0][:2]:
            raise VTCError(
                f"valid: got shape {tuple(given.valid.shape)}, the context has {shapes[0][:2]}"
            )

    def without(self, given: Condition, rows: Tensor | None = None) -> Condition:
        """The same condition with no class and no context, in all rows or where `rows` `[B]`.

        A row without context sees none of its features, so that it needs no vector of its own.
        """
        labels, valid = given.labels, given.valid
        if rows is None:
            rows = self.start.new_ones(given.rows or 0, dtype=torch.bool)
        if labels is not None:
            labels = labels.masked_fill(rows, self.config.classes)
        if given.context is not None:
            valid = given.seen() & ~rows.unsqueeze(1)
        return replace(given, labels=labels, valid=valid)

    def drop(self, given: Condition, noise: Noise) -> Condition:
        """In training, a share of the rows is without class and context."""
        if given.rows is None or not self.training or not self.config.drop:
            return given
        return self.without(given, noise.uniform((given.rows,), self.start) < self.config.drop)

    # -- the network -------------------------------------------------------------------------

    def run(
        self,
        x: Tensor,
        given: Condition,
        mask: Tensor | None = None,
        t: Tensor | None = None,
        rope: Rope | None = None,
        cache: KVCache | None = None,
        commit: bool = True,
    ) -> Tensor:
        """Embedded positions `[B, L, D]` through the backbone.

        Args:
            x: embedded positions.
            given: the condition.
            mask: see `Transformer.forward`.
            t: times, `[B, 1]`, or `[B, groups]` for a whole sequence.
            rope: table of the positions.
            cache: see `Transformer.forward`.
            commit: see `Transformer.forward`.
        """
        vector = None
        if self.config.transformer.adaptive:
            vector = x.new_zeros(len(x), 1, x.shape[-1])
            if self.classes is not None and self.config.class_as == "adaptive":
                vector = vector + self.classes(given.labels).unsqueeze(1)
            if self.time is not None:
                if t is None:
                    raise VTCError("t: got none, but this generator reads the time")
                time = self.time(t)
                if t.shape[1] > 1:
                    time = time[:, self.plan.group_of().to(t.device)]
                vector = vector + time
        return self.backbone(
            x, mask, rope, vector, given.context, given.valid, cache=cache, commit=commit
        )

    def first(self, given: Condition, batch: int) -> Tensor:
        """What stands in front of the sequence: the class or a learned start, `[B, 1, D]`."""
        if self.classes is not None and self.config.class_as == "token":
            return self.classes(given.labels).unsqueeze(1)
        return self.start.expand(batch, -1, -1)

    def positions(self, first: bool = True) -> Rope | None:
        """Rotary table of the sequence, with the position of `first` as the origin."""
        coordinates = self.plan.coordinates.repeat_interleave(self.head.repeat, dim=0)
        return self.backbone.rope(F.pad(coordinates, (0, 0, int(first), 0)))

    def check_causal(self) -> None:
        """Raise `VTCError` when a token takes several positions, so that none comes next."""
        if self.head.repeat > 1:
            raise VTCError(f"head: got {self.config.head!r}, next tokens need one position each")

    def next_logits(self, ids: Tensor, given: Condition) -> Tensor:
        """Logits of every token given the ones before, in the order of the plan.

        Args:
            ids: `[B, N, K]` in the order of the plan.
            given: the condition.
        """
        self.check_causal()
        x = torch.cat([self.first(given, len(ids)), self.head.embed(ids[:, :-1])], dim=1)
        rope = _rows(self.positions(), slice(0, x.shape[1]))
        return self.head(self.run(x, given, masks.causal(x.shape[1]), rope=rope))

    def masked_logits(
        self, ids: Tensor, unknown: Tensor, given: Condition, mask: Tensor | None = None
    ) -> Tensor:
        """Logits of every token, where `unknown` `[B, N]` tokens are hidden.

        Args:
            ids: `[B, N, K]` in the order of the plan.
            unknown: True at hidden tokens.
            given: the condition.
            mask: bool `[N, N]` among the tokens; None for all. The first position, which sees
                itself alone then, is seen by all.
        """
        x = torch.cat([self.first(given, len(ids)), self.head.embed(ids, unknown)], dim=1)
        if mask is not None:
            for axis in (0, 1):
                mask = mask.repeat_interleave(self.head.repeat, axis)
            mask = F.pad(masks.with_prefix(mask, 1), (0, 0, 1, 0))
            mask[0, 0] = True
        h = self.run(x, given, mask, rope=self.positions())
        return self.head(h[:, 1:])

    def flip_logits(self, bits: Tensor, t: Tensor, given: Condition) -> Tensor:
        """Logit that each noisy bit was flipped: `[B, N, n]` at times `[B]`."""
        if self.head.indexed:
            raise VTCError(f"head: got {self.config.head!r}, which reads codes, not noisy bits")
        x = self.head.embed(bits)
        return self.head(self.run(x, given, t=t.unsqueeze(1), rope=self.positions(first=False)))

    def velocities(self, x: Tensor, t: Tensor, given: Condition) -> Tensor:
        """Velocities of all groups at once, each seeing the noisy groups before it.

        Args:
            x: noisy latents `[B, L, C]` in the order of the plan.
            t: times `[B, groups]`.
            given: the condition.
        """
        rope, mask = self.positions(first=False), self.plan.mask()
        return self.head(self.run(self.head.embed(x), given, mask, t, rope))

    def loss(
        self,
        codes: Tensor,
        given: Condition | Tensor | None = None,
        seed: Seed = None,
        objective: str | Objective | None = None,
    ) -> dict[str, Tensor]:
        """Loss of `objective`, by default the config's, see `objectives.Objective.loss`."""
        objective = self.objective if objective is None else create_objective(objective)
        return objective.loss(self, codes, given, seed)

    # -- sampling ----------------------------------------------------------------------------

    def sample(
        self,
        given: Condition | Tensor | None = None,
        sampler: str | Mapping[str, Any] | Sampler = "",
        batch: int = 0,
        guidance: Guidance | float | None = None,
        null: Condition | Tensor | None = None,
        seed: Seed = None,
        **options: Any,
    ) -> Tensor:
        """Draw codes, or latents.

        Args:
            given: labels `[B]`, or a `Condition`.
            sampler: a name or a `Sampler`, see `samplers.create_sampler`; the config's by default.
            batch: how many, where the condition does not tell.
            guidance: scale, or a `Guidance`; None for the conditional model alone.
            null: the condition that guidance leads away from, of one row or as many; no class and no
                context by default.
            seed: source of randomness.
            options: fields of the sampler.

        Returns:
            ids int64 `[B, N, K]`, or latents `[B, N, C]`, in raster order.

        Raises:
            VTCError: something of this does not fit the model or the sampler.
        """
        made = create_sampler(sampler or self.config.sampler, **options)
        return made.sample(self, given, batch, guidance, null, seed)

    def stepper(self, given: Condition, rows: int) -> Stepper:
        """Token after token, see `Stepper`."""
        return Stepper(self, given, rows)

    def group_stepper(self, given: Condition) -> GroupStepper:
        """Group after group, see `GroupStepper`."""
        return GroupStepper(self, given)


class Stepper:
    """The next token's logits, with the keys and values of finished tokens in a cache."""

    def __init__(self, model: Generator, given: Condition, rows: int) -> None:
        model.check_causal()
        self.model, self.given, self.rows = model, given, rows
        self.cache, self.rope = KVCache(), model.positions()

    def __call__(self, last: Tensor | None) -> Tensor:
        """Logits `[rows, 1, K, V]`, or `[rows, 1, n]` of bits, behind the last token `[rows, 1, K]`,
        None at first."""
        model = self.model
        x = model.first(self.given, self.rows) if last is None else model.head.embed(last)
        here = self.cache.length
        rope = _rows(self.rope, slice(here, here + 1))
        return model.head(model.run(x, self.given, rope=rope, cache=self.cache))


class GroupStepper:
    """Velocities of one group after another; finished groups enter the cache at time 0."""

    def __init__(self, model: Generator, given: Condition) -> None:
        self.model, self.given = model, given
        self.cache, self.rope = KVCache(), model.positions(first=False)

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """Velocity of the current group `[rows, g, C]` at times `[rows]`."""
        return self._run(x, t, commit=False)

    def commit(self, x: Tensor) -> None:
        """The current group is finished: `[rows, g, C]`; the next one begins."""
        self._run(x, torch.zeros_like(x[:, 0, 0]), commit=True)

    def _run(self, x: Tensor, t: Tensor, commit: bool) -> Tensor:
        here = self.cache.length
        rope = _rows(self.rope, slice(here, here + x.shape[1]))
        h, cache, t = self.model.head.embed(x), self.cache, t.unsqueeze(1)
        h = self.model.run(h, self.given, t=t, rope=rope, cache=cache, commit=commit)
        return self.model.head(h)


def _rows(rope: Rope | None, rows: slice) -> Rope | None:
    return None if rope is None else (rope[0][rows], rope[1][rows])
