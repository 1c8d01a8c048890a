"""Samplers of generators: their settings, which models they fit, and how they draw."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from vtc.discrete import flow
from vtc.discrete.condition import Condition
from vtc.discrete.modes import evaluation
from vtc.discrete.noise import Noise, as_noise, at_least_float32
from vtc.discrete.plans import Plan
from vtc.discrete.schedules import MASKING, Guidance, masked_count, noisy_probability
from vtc.discrete.types import CodeSpace
from vtc.errors import VTCError
from vtc.registry import create, entry, names, refuse_unknown

if TYPE_CHECKING:
    from vtc.discrete.generator import Generator

Seed = Noise | int | torch.Generator | None


@dataclass(frozen=True)
class Call:
    """One call of a sampler: how many samples, of what, and from which random numbers.

    Attributes:
        batch: how many samples.
        noise: the one source of random numbers.
        guidance: None for the conditional model alone.
        given: the model's condition; with guidance of twice the batch, the unconditional rows last.
    """

    batch: int
    noise: Noise = field(default_factory=Noise)
    guidance: Guidance | None = None
    given: Condition = Condition()

    def rows(self, x: Tensor) -> Tensor:
        """`[batch, ...]` as rows of the model: twice with guidance."""
        return x if self.guidance is None else torch.cat([x, x])

    def guided(self, rows: Tensor, step: int, steps: int) -> Tensor:
        """Output `[rows, ...]` of the model in `step` of `steps` to `[batch, ...]`, float32 at least."""
        rows = _precise(rows)
        return rows if self.guidance is None else self.guidance.mix(rows, step, steps)


class Sampler:
    """How a generator is sampled. A subclass is a dataclass of its settings, and draws in `draw`.

    Attributes:
        latents: whether it makes continuous latents instead of codes.
    """

    latents: ClassVar[bool] = False

    @torch.no_grad()
    def sample(
        self,
        model: Generator,
        given: Condition | Tensor | None = None,
        batch: int = 0,
        guidance: Guidance | float | None = None,
        null: Condition | Tensor | None = None,
        seed: Seed = None,
    ) -> Tensor:
        """Draw codes or latents in raster order, see `Generator.sample`.

        Raises:
            VTCError: something of this does not fit the model, or `draw` made another shape.
        """
        self.check(model)
        given, noise = model.condition(given, batch), as_noise(seed)
        batch = batch if given.rows is None else given.rows
        if batch < 1:
            raise VTCError(f"batch: got {batch}, say how many samples are wanted")
        if isinstance(guidance, Real):  # NumPy's as well
            guidance = Guidance(float(guidance))
        if guidance is not None:
            if not isinstance(guidance, Guidance):
                raise VTCError(f"guidance: got {guidance!r}, allowed are a number and a Guidance")
            if given.rows is None:
                raise VTCError("guidance: got one, but the model has no condition to lead by")
            away = model.without(given) if null is None else model.condition(null)
            given = given.followed_by(away)
        with evaluation(model):
            made = self.draw(model, Call(batch, noise, guidance, given))
        wanted = (batch, model.plan.length, model.config.channels or model.space.subcodes)
        if not isinstance(made, Tensor) or tuple(made.shape) != wanted:
            got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise VTCError(f"sampler: {type(self).__name__} made {got}, expected {list(wanted)}")
        return model.plan.restore(made)

    def check(self, model: Generator) -> None:
        """Raise `VTCError` where it does not fit a model; the message names the samplers that do."""
        if reason := self.misfit(model):
            fitting = ", ".join(list_samplers(model=model)) or "none"
            raise VTCError(
                f"sampler: got {type(self).__name__}, which {reason}; this model takes {fitting}"
            )

    def misfit(self, model: Generator) -> str:
        """Why it cannot sample a model, to be read behind "which"; empty where it can."""
        if self.latents == bool(model.config.channels):
            return ""
        return f"does not make the {'codes' if self.latents else 'latents'} of this model"

    def draw(self, model: Generator, call: Call) -> Tensor:
        """Codes int64 `[batch, L, K]` or latents `[batch, L, C]`, in the order of the plan.

        Args:
            model: one that fits, in evaluation mode.
            call: how many, and by which condition, guidance and noise.
        """
        raise NotImplementedError


# -- settings ---------------------------------------------------------------------------------------


def _number(value: Any, low: float, high: float = math.inf) -> bool:
    return isinstance(value, Real) and low <= float(value) <= high and float(value) < math.inf


def _whole(value: Any, low: int) -> bool:
    return isinstance(value, Integral) and int(value) >= low


#: What a number may be, whichever of the samplers here has it.
ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "steps": (lambda value: _whole(value, 1), "whole numbers >= 1"),
    "temperature": (lambda value: _number(value, 0), "numbers >= 0"),
    "code_temperature": (lambda value: _number(value, 0), "numbers >= 0"),
    "top_k": (lambda value: _whole(value, 0), "whole numbers >= 0"),
    "top_p": (lambda value: _number(value, 0, 1) and value > 0, "numbers in (0, 1]"),
    "rho": (lambda value: _number(value, 0) and value > 0, "numbers > 0"),
}


def _check(settings: Mapping[str, Any]) -> None:
    for name, value in settings.items():
        if name in ALLOWED and not ALLOWED[name][0](value):
            raise VTCError(f"{name}: got {value!r}, allowed are {ALLOWED[name][1]}")


# -- from logits to codes ---------------------------------------------------------------------------


def _precise(logits: Tensor) -> Tensor:
    return logits.to(at_least_float32(logits.dtype))


def filter_logits(
    logits: Tensor, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0
) -> Tensor:
    """Logits `[..., V]` after temperature, top-k and top-p, at least float32; dropped ones are -inf.

    Args:
        logits: before the softmax.
        temperature: divides them; 0 leaves only the largest.
        top_k: how many to keep, 0 for all; ties with the last one stay.
        top_p: keep the likeliest codes that make up this share, at least one.
    """
    _check({"temperature": temperature, "top_k": top_k, "top_p": top_p})
    logits = _precise(logits)
    if temperature == 0:
        best = logits.argmax(dim=-1, keepdim=True)
        return torch.full_like(logits, -torch.inf).scatter(-1, best, 0.0)
    logits = logits / temperature
    if 0 < top_k < logits.shape[-1]:
        smallest = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
    if top_p < 1:
        ordered, index = logits.softmax(dim=-1).sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered
        drop = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, index, before >= top_p)
        logits = logits.masked_fill(drop, -torch.inf)
    return logits


def draw_codes(logits: Tensor, noise: Noise) -> Tensor:
    """Int64 `[...]` drawn from logits `[..., V]` (the largest after Gumbel noise)."""
    return (logits + noise.gumbel(tuple(logits.shape), logits)).argmax(dim=-1)


def draw_bits(logits: Tensor, temperature: float, noise: Noise) -> Tensor:
    """Int64 bits drawn from logits of the same shape; temperature 0 rounds."""
    if temperature == 0:
        return (logits > 0).long()
    logits = _precise(logits)
    uniform = noise.uniform(tuple(logits.shape), logits)
    return (uniform < torch.sigmoid(logits / temperature)).long()


def _no_cut(top_k: int, top_p: float) -> None:
    if top_k or top_p < 1:
        raise VTCError(
            f"top_k, top_p: got {top_k}, {top_p}; for bits allowed are 0 and 1, which cut nothing"
        )


# -- autoregressive ---------------------------------------------------------------------------------


def _timeless(model: Generator) -> str:
    return "tells no time, which this model reads" if model.time is not None else ""


@dataclass(frozen=True)
class Autoregressive(Sampler):
    """Token after token; the sub-codes of a token are drawn independently.

    Attributes:
        temperature: see `filter_logits`; applied after guidance.
        top_k: see `filter_logits`, not for bits.
        top_p: see `filter_logits`, not for bits.
        trace: a list that gets the filtered logits of each step.
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    trace: list[Tensor] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        _check(vars(self))

    def misfit(self, model: Generator) -> str:
        """See `Sampler`."""
        if model.head.repeat > 1:
            return f"takes one position a token, the {model.config.head!r} head takes several"
        return super().misfit(model) or _timeless(model)

    def draw(self, model: Generator, call: Call) -> Tensor:
        """See `Sampler`."""
        step, count = model.stepper(call.given, call.given.rows or call.batch), model.space.tokens
        last, made = None, []
        for index in range(count):
            logits = call.guided(step(last), index, count)
            if logits.dim() == 3:
                _no_cut(self.top_k, self.top_p)
                ids = draw_bits(logits, self.temperature, call.noise)
            else:
                logits = filter_logits(logits, self.temperature, self.top_k, self.top_p)
                ids = draw_codes(logits, call.noise)
            if self.trace is not None:
                self.trace.append(logits)
            made.append(ids)
            last = call.rows(ids)
        return torch.cat(made, dim=1)


# -- masked -----------------------------------------------------------------------------------------


def least_confident(
    log_probability: Tensor, count: int, temperature: float, noise: Noise
) -> Tensor:
    """Bool `[B, N]`, True at the `count` tokens with the smallest confidence.

    Confidence is `log p + temperature * gumbel`, averaged over the sub-codes.

    Args:
        log_probability: `[B, N, K]`; +inf for tokens that are settled.
        count: tokens to pick in each row.
        temperature: of the noise.
        noise: source of randomness.
    """
    gumbel = noise.gumbel(tuple(log_probability.shape), log_probability)
    confidence = (log_probability + temperature * gumbel).mean(dim=-1)
    lowest = confidence.argsort(dim=1, stable=True)[:, :count]
    return torch.zeros_like(confidence, dtype=torch.bool).scatter(1, lowest, True)


@dataclass(frozen=True)
class MaskGit(Sampler):
    """All tokens at once, the least confident masked again, fewer at each step (MaskGIT).

    Attributes:
        steps: model calls.
        temperature: of the choice what to mask again; falls to 0 over the steps.
        code_temperature: of the codes, the `temperature` of `filter_logits`. The confidence in a code
            stays its unfiltered probability.
        top_k: see `filter_logits`, not for bits.
        top_p: see `filter_logits`, not for bits.
        schedule: a key of `schedules.MASKING`, see `schedules.masked_count`.
    """

    steps: int = 8
    temperature: float = 1.0
    code_temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    schedule: str = "cos"

    def __post_init__(self) -> None:
        _check(vars(self))
        entry(MASKING, "schedule", self.schedule)

    def misfit(self, model: Generator) -> str:
        """See `Sampler`."""
        return super().misfit(model) or _timeless(model)

    def draw(self, model: Generator, call: Call) -> Tensor:
        """See `Sampler`."""
        space, steps, device = model.space, self.steps, model.start.device
        ids = torch.zeros(call.batch, space.tokens, space.subcodes, dtype=torch.long, device=device)
        unknown = torch.ones(call.batch, space.tokens, dtype=torch.bool, device=device)
        for step in range(steps):
            logits = model.masked_logits(call.rows(ids), call.rows(unknown), call.given)
            logits = call.guided(logits, step, steps)
            if logits.dim() == 3:  # a bit is a code of two values
                _no_cut(self.top_k, self.top_p)
                logits = torch.stack([torch.zeros_like(logits), logits], dim=-1)
            kept = filter_logits(logits, self.code_temperature, self.top_k, self.top_p)
            ids = torch.where(unknown.unsqueeze(-1), draw_codes(kept, call.noise), ids)
            if step == steps - 1:
                break
            chance = logits.log_softmax(dim=-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
            chance = chance.masked_fill(~unknown.unsqueeze(-1), torch.inf)
            wanted = masked_count(self.schedule, space.tokens, step, steps)
            wanted = max(1, min(int(unknown[0].sum()) - 1, wanted))
            temperature = self.temperature * (1 - (step + 1) / steps)
            unknown = least_confident(chance, wanted, temperature, call.noise)
        return ids


# -- bit diffusion ----------------------------------------------------------------------------------


def clean_logits(flip: Tensor, noisy: Tensor) -> Tensor:
    """Logit that the clean bit is 1, from the logit that the noisy bit was flipped."""
    return flip * (1 - 2 * noisy)


@dataclass(frozen=True)
class BitDiffusion(Sampler):
    """All bits at once, from fair coins to the data (Instella-T2I, arXiv 2506.21022).

    Attributes:
        steps: model calls.
        temperature: divides the logits; above 0.
        rho: step i is at time `(1 - i / steps) ** rho`.
        posterior: weigh the re-noised prediction with one step back from the current bits (the
            second published protocol), instead of re-noising the prediction alone.
    """

    steps: int = 20
    temperature: float = 1.0
    rho: float = 1.0
    posterior: bool = False

    def __post_init__(self) -> None:
        _check(vars(self))
        if self.temperature == 0:
            raise VTCError(f"temperature: got {self.temperature}, allowed are numbers > 0")

    def misfit(self, model: Generator) -> str:
        """See `Sampler`."""
        if not (model.config.channels or model.space.is_binary):
            return f"makes bits, not codes of vocab {model.space.vocab}"
        if model.head.indexed:
            return f"reads noisy bits, the {model.config.head!r} head reads codes"
        return super().misfit(model)

    def draw(self, model: Generator, call: Call) -> Tensor:
        """See `Sampler`."""
        if not model.space.is_binary:
            raise VTCError(f"space: got vocab {model.space.vocab}, bit diffusion makes bits")
        steps, noise = self.steps, call.noise
        shape = (call.batch, model.space.tokens, model.space.subcodes)
        like = torch.empty(0, device=model.start.device)
        bits = (noise.uniform(shape, like) < 0.5).to(like.dtype)
        times = (1 - torch.arange(steps + 1, dtype=torch.float64) / steps) ** self.rho
        for step in range(steps):
            now, after = float(times[step]), float(times[step + 1])
            rows = call.rows(bits)
            flip = model.flip_logits(rows, torch.full_like(rows[:, 0, 0], now), call.given)
            clean = clean_logits(flip / self.temperature, rows)
            chance = torch.sigmoid(call.guided(clean, step, steps))
            if step == steps - 1:
                break
            chance = noisy_probability(chance, after)
            if self.posterior:
                back = bits - (now - after) * (bits - 0.5)
                one, zero = chance * back, (1 - chance) * (1 - back)
                chance = one / (one + zero)
            bits = (noise.uniform(shape, like) < chance).to(like.dtype)
        return (chance > 0.5).long()


# -- next-X flow ------------------------------------------------------------------------------------


def euler(
    velocity: Callable[[Tensor, float], Tensor], x: Tensor, steps: int, noise: Noise | None = None
) -> Tensor:
    """Follow `velocity(x, t)` from t = 1 to 0 in equal steps; the state is float64."""
    times, state = flow.euler_times(steps).tolist(), x.double()
    for now, after in zip(times[:-1], times[1:], strict=True):
        state = state + (after - now) * velocity(state.to(x.dtype), now).double()
    return state.to(x.dtype)


def euler_maruyama(
    velocity: Callable[[Tensor, float], Tensor], x: Tensor, steps: int, noise: Noise
) -> Tensor:
    """The reverse stochastic equation with the same marginals; the last step has no noise."""
    times, state = flow.euler_maruyama_times(steps).tolist(), x.double()
    for index, (now, after) in enumerate(zip(times[:-1], times[1:], strict=True)):
        v = velocity(state.to(x.dtype), now).double()
        t = torch.tensor(now, dtype=torch.float64, device=x.device)
        rate = flow.diffusion(t)
        drift = v - 0.5 * rate * flow.score_from_velocity(v, state, t)
        state = state + (after - now) * drift
        if index < steps - 1:
            kick = noise.normal(tuple(x.shape), x).double()
            state = state + torch.sqrt(rate * abs(after - now)) * kick
    return state.to(x.dtype)


#: Solvers of the flow by name, from a velocity, a start, a number of steps and a source of noise.
SOLVERS: dict[str, Callable[..., Tensor]] = {"euler": euler, "euler_maruyama": euler_maruyama}


@dataclass(frozen=True)
class NextX(Sampler):
    """Group after group, each by a flow from noise (xAR, arXiv 2502.20388).

    Attributes:
        steps: model calls a group.
        method: a key of `SOLVERS`.
    """

    latents: ClassVar[bool] = True
    steps: int = 20
    method: str = "euler_maruyama"

    def __post_init__(self) -> None:
        _check(vars(self))
        entry(SOLVERS, "method", self.method)

    def draw(self, model: Generator, call: Call) -> Tensor:
        """See `Sampler`; on the way latents are at least float32."""
        stepper, groups, parts = model.group_stepper(call.given), model.plan.groups, []
        for group, size in enumerate(model.plan.sizes):

            def velocity(state: Tensor, now: float, group: int = group) -> Tensor:
                rows = call.rows(state)
                v = stepper.velocity(rows, torch.full_like(rows[:, 0, 0], now))
                return call.guided(v, group, groups)

            x = call.noise.normal((call.batch, size, model.config.channels), model.start)
            parts.append(SOLVERS[self.method](velocity, x, self.steps, call.noise))
            stepper.commit(call.rows(parts[-1]))
        return torch.cat(parts, dim=1).to(model.start.dtype)


# -- by name ----------------------------------------------------------------------------------------

#: Samplers by name; `vtc.registry.register` adds others.
SAMPLERS: dict[str, Callable[..., Sampler]] = {
    "ar": Autoregressive,
    "maskgit": MaskGit,
    "bit_diffusion": BitDiffusion,
    "next_x": NextX,
}


def create_sampler(sampler: str | Mapping[str, Any] | Sampler, **options: Any) -> Sampler:
    """A sampler by name, or one of your own.

    Args:
        sampler: a name, a mapping of `name` and options (as in a config file), or a `Sampler`.
        options: its fields; they replace those that a mapping or a `Sampler` comes with.

    Raises:
        VTCError: unknown name or option, or a value out of range.
    """
    if isinstance(sampler, Sampler):
        kind = type(sampler)
        refuse_unknown(kind.__name__, options, inspect.signature(kind).parameters)
        return replace(sampler, **options) if options else sampler  # type: ignore[type-var]
    if isinstance(sampler, Mapping):
        options = {**sampler, **options}
        sampler = options.pop("name", None)
    made = create(SAMPLERS, "sampler", str(sampler), **options)
    if not isinstance(made, Sampler):
        raise VTCError(f"sampler: {sampler!r} made {type(made).__name__}, expected a `Sampler`")
    return made


def list_samplers(pattern: str = "*", model: Generator | None = None) -> list[str]:
    """Names of samplers that match a glob, sorted; with a model, those that fit it as they are."""
    fitting = []
    for name in names(SAMPLERS, pattern):
        with suppress(VTCError):  # it needs an option
            if model is None or not create_sampler(name).misfit(model):
                fitting.append(name)
    return fitting


# -- on functions in place of a generator -----------------------------------------------------------


def sample_ar(step: Callable[..., Tensor], space: CodeSpace, batch: int, **options: Any) -> Tensor:
    """`Autoregressive` with `step(last)` for `Generator.stepper`."""
    return _sample(Autoregressive, batch, options, space=space, stepper=lambda *_: step)


def sample_maskgit(
    predict: Callable[..., Tensor], space: CodeSpace, batch: int, steps: int = 8, **options: Any
) -> Tensor:
    """`MaskGit` with `predict(ids, unknown)` for `Generator.masked_logits`."""
    options["steps"] = steps
    return _sample(MaskGit, batch, options, space=space, masked_logits=lambda *x: predict(*x[:2]))


def sample_bit_diffusion(
    denoise: Callable[..., Tensor], space: CodeSpace, batch: int, steps: int = 20, **options: Any
) -> Tensor:
    """`BitDiffusion` with `denoise(bits, t)` for `Generator.flip_logits`."""
    options["steps"] = steps
    flips = {"flip_logits": lambda *x: denoise(*x[:2])}
    return _sample(BitDiffusion, batch, options, space=space, **flips)


def sample_next_x(
    model: Any, plan: Plan, channels: int, batch: int, steps: int = 20, **options: Any
) -> Tensor:
    """`NextX` with `model` for `Generator.group_stepper`; latents in raster order."""
    options["steps"], config = steps, SimpleNamespace(channels=channels)
    parts = {"plan": plan, "config": config, "group_stepper": lambda _: model}
    return plan.restore(_sample(NextX, batch, options, **parts))


def _sample(
    kind: Callable[..., Sampler], batch: int, options: dict[str, Any], **parts: Any
) -> Tensor:
    noise, guidance = as_noise(options.pop("seed", None)), options.pop("guidance", None)
    like = {name: options.pop(name) for name in ("device", "dtype") if name in options}
    model: Any = SimpleNamespace(start=torch.empty(0, **like), **parts)
    return kind(**options).draw(model, Call(batch, noise, guidance))
