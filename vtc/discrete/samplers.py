"""Sampling loops. A model is a function here, so that an oracle can stand in for it.

With guidance every loop calls the model on rows `[conditional | unconditional]`, twice the batch.

A loop is told by the names of its parameters what `Generator.sample` is to give it, so that one of your
own, registered in `SAMPLERS`, runs as those here do:

* of a model of codes: `step`, `predict` or `denoise`, functions as `sample_ar`, `sample_maskgit` and
  `sample_bit_diffusion` describe them;
* of a model of latents: `channels`, and as `model` a `GroupModel`, see `sample_next_x`;
* of both: `generator`, the `Generator` itself (of a model of codes `model` too), `given`, its
  `Condition` (with guidance of twice the batch), `space`, `plan`, `batch`, `guidance`, `seed`, `device`
  and `dtype`. A loop that ends in `**options` is given `guidance` and `seed` at least.

Its other parameters need a default; they are the options of `Generator.sample`. Codes come back in the
order of the plan, int64 `[batch, N, K]`, latents in raster order, `[batch, N, C]`.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any, Protocol

import torch
from torch import Tensor

from vtc.discrete import flow
from vtc.discrete.noise import Noise, as_noise, at_least_float32
from vtc.discrete.plans import Plan
from vtc.discrete.schedules import Guidance, masked_count, noisy_probability
from vtc.discrete.types import CodeSpace
from vtc.errors import VTCError
from vtc.registry import entry, refuse_unknown

Seed = Noise | int | torch.Generator | None

# -- options ----------------------------------------------------------------------------------------


def _number(value: Any, low: float, high: float = math.inf) -> bool:
    return isinstance(value, Real) and low <= float(value) <= high and float(value) < math.inf


def _whole(value: Any, low: int) -> bool:
    return isinstance(value, Integral) and int(value) >= low


#: What an option may be, whichever loop takes it.
ALLOWED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "steps": (lambda value: _whole(value, 1), "whole numbers >= 1"),
    "temperature": (lambda value: _number(value, 0), "numbers >= 0"),
    "code_temperature": (lambda value: _number(value, 0), "numbers >= 0"),
    "top_k": (lambda value: _whole(value, 0), "whole numbers >= 0"),
    "top_p": (lambda value: _number(value, 0, 1) and value > 0, "numbers in (0, 1]"),
    "rho": (lambda value: _number(value, 0) and value > 0, "numbers > 0"),
    "schedule": (lambda value: value in ("cos", "linear"), "'cos' and 'linear'"),
    "method": (
        lambda value: value in ("euler", "euler_maruyama"),
        "'euler' and 'euler_maruyama'",
    ),
}

#: What `Generator.sample` gives a loop itself, by whether its model makes codes, latents or either; a
#: loop's other parameters are its options.
OF_CODES = ("step", "predict", "denoise")
OF_LATENTS = ("channels",)
OF_BOTH = (
    *("model", "generator", "given", "space", "plan"),
    *("batch", "guidance", "seed", "device", "dtype"),
)
GIVEN = (*OF_CODES, *OF_LATENTS, *OF_BOTH)


def _check(**options: Any) -> None:
    for name, value in options.items():
        if name in ALLOWED and not ALLOWED[name][0](value):
            raise VTCError(f"{name}: got {value!r}, allowed are {ALLOWED[name][1]}")


def check_options(sampler: str, options: Mapping[str, Any]) -> None:
    """Check options that `Generator.sample` is to pass on, before anything is trained or drawn.

    Args:
        sampler: a key of `SAMPLERS`.
        options: by name.

    Raises:
        VTCError: the sampler is unknown, takes no such option, or not such a value; or it is one of
            your own that asks for something else than the module says.
    """
    loop = entry(SAMPLERS, "sampler", sampler)
    parameters = inspect.signature(loop).parameters
    catch_all, takes = False, []
    for name, parameter in parameters.items():
        catch_all |= parameter.kind is parameter.VAR_KEYWORD
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            continue
        known = name in GIVEN or parameter.default is not parameter.empty
        if not known or parameter.kind is parameter.POSITIONAL_ONLY:
            raise VTCError(
                f"sampler: {sampler!r} asks for {name!r}; by its name a loop is given "
                f"{', '.join(GIVEN)}, and its options need a default"
            )
        if name not in GIVEN:
            takes.append(name)
    refuse_unknown(sampler, [name for name in options if not catch_all or name in GIVEN], takes)
    if loop.__module__ == __name__:  # what another loop calls by these names is its own business
        _check(**options)


def arguments(sampler: str, offers: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
    """What a loop is given: those of `offers`, by `GIVEN` name, that its parameters ask for."""
    parameters = inspect.signature(SAMPLERS[sampler]).parameters
    asks = set(parameters)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        asks |= {"guidance", "seed"}
    return {name: offer() for name, offer in offers.items() if name in asks}


def fits(sampler: str, latents: bool) -> bool:
    """Whether a loop is for models of latents, or of codes; one that does not tell is for both."""
    asks = inspect.signature(entry(SAMPLERS, "sampler", sampler)).parameters
    return not any(name in asks for name in (OF_CODES if latents else OF_LATENTS))


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
    _check(temperature=temperature, top_k=top_k, top_p=top_p)
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


def _rows(x: Tensor, guidance: Guidance | None) -> Tensor:
    return x if guidance is None else torch.cat([x, x])


def _guided(rows: Tensor, guidance: Guidance | None, step: int, steps: int) -> Tensor:
    rows = _precise(rows)
    return rows if guidance is None else guidance.mix(rows, step, steps)


def _no_cut(top_k: int, top_p: float) -> None:
    if top_k or top_p < 1:
        raise VTCError(
            f"top_k, top_p: got {top_k}, {top_p}; for bits allowed are 0 and 1, which cut nothing"
        )


# -- autoregressive ---------------------------------------------------------------------------------


def sample_ar(
    step: Callable[[Tensor | None], Tensor],
    space: CodeSpace,
    batch: int,
    guidance: Guidance | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: Seed = None,
    trace: list[Tensor] | None = None,
) -> Tensor:
    """Token after token; the sub-codes of a token are drawn independently.

    Args:
        step: takes the last token `[rows, 1, K]`, None at first, and returns the logits of the next:
            `[rows, 1, K, V]`, or `[rows, 1, n]` of bits.
        space: what is made.
        batch: how many samples.
        guidance: see the module.
        temperature: see `filter_logits`; applied after guidance.
        top_k: see `filter_logits`, not for bits.
        top_p: see `filter_logits`, not for bits.
        seed: source of randomness.
        trace: collects the filtered logits of each step.

    Returns:
        int64 `[batch, N, K]`.
    """
    _check(temperature=temperature, top_k=top_k, top_p=top_p)
    noise, made = as_noise(seed), []
    last: Tensor | None = None
    for index in range(space.tokens):
        logits = _guided(step(last), guidance, index, space.tokens)
        if logits.dim() == 3:
            _no_cut(top_k, top_p)
            ids = draw_bits(logits, temperature, noise)
        else:
            logits = filter_logits(logits, temperature, top_k, top_p)
            ids = draw_codes(logits, noise)
        if trace is not None:
            trace.append(logits)
        made.append(ids)
        last = _rows(ids, guidance)
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


def sample_maskgit(
    predict: Callable[[Tensor, Tensor], Tensor],
    space: CodeSpace,
    batch: int,
    steps: int = 8,
    guidance: Guidance | None = None,
    temperature: float = 1.0,
    code_temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    schedule: str = "cos",
    seed: Seed = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """All tokens at once, the least confident masked again, fewer at each step (MaskGIT).

    Args:
        predict: takes ids `[rows, N, K]` and the mask of unknown tokens `[rows, N]`, returns logits
            `[rows, N, K, V]`, or `[rows, N, n]` of bits.
        space: what is made.
        batch: how many samples.
        steps: model calls.
        guidance: see the module.
        temperature: of the choice what to mask again; falls to 0 over the steps.
        code_temperature: of the codes, the `temperature` of `filter_logits`. The confidence in a code
            stays its unfiltered probability.
        top_k: see `filter_logits`, not for bits.
        top_p: see `filter_logits`, not for bits.
        schedule: "cos" or "linear", see `schedules.masked_count`.
        seed: source of randomness.
        device: where the ids live.

    Returns:
        int64 `[batch, N, K]`.
    """
    _check(steps=steps, schedule=schedule, top_k=top_k, top_p=top_p)
    _check(temperature=temperature, code_temperature=code_temperature)
    noise, count = as_noise(seed), space.tokens
    ids = torch.zeros(batch, count, space.subcodes, dtype=torch.long, device=device)
    unknown = torch.ones(batch, count, dtype=torch.bool, device=device)
    for step in range(steps):
        logits = predict(_rows(ids, guidance), _rows(unknown, guidance))
        logits = _guided(logits, guidance, step, steps)
        if logits.dim() == 3:  # a bit is a code of two values
            _no_cut(top_k, top_p)
            logits = torch.stack([torch.zeros_like(logits), logits], dim=-1)
        drawn = draw_codes(filter_logits(logits, code_temperature, top_k, top_p), noise)
        ids = torch.where(unknown.unsqueeze(-1), drawn, ids)
        if step == steps - 1:
            break
        chance = logits.log_softmax(dim=-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        chance = chance.masked_fill(~unknown.unsqueeze(-1), torch.inf)
        wanted = masked_count(schedule, count, step, steps)
        wanted = max(1, min(int(unknown[0].sum()) - 1, wanted))
        unknown = least_confident(chance, wanted, temperature * (1 - (step + 1) / steps), noise)
    return ids


# -- bit diffusion ----------------------------------------------------------------------------------


def clean_logits(flip: Tensor, noisy: Tensor) -> Tensor:
    """Logit that the clean bit is 1, from the logit that the noisy bit was flipped."""
    return flip * (1 - 2 * noisy)


def sample_bit_diffusion(
    denoise: Callable[[Tensor, Tensor], Tensor],
    space: CodeSpace,
    batch: int,
    steps: int = 20,
    guidance: Guidance | None = None,
    temperature: float = 1.0,
    rho: float = 1.0,
    posterior: bool = False,
    seed: Seed = None,
    device: torch.device | str = "cpu",
) -> Tensor:
    """All bits at once, from fair coins to the data (Instella-T2I, arXiv 2506.21022).

    Args:
        denoise: takes noisy bits `[rows, N, n]` (float) and times `[rows]`, returns flip logits.
        space: what is made; binary.
        batch: how many samples.
        steps: model calls.
        guidance: see the module.
        temperature: divides the logits.
        rho: step i is at time `(1 - i / steps) ** rho`.
        posterior: weigh the re-noised prediction with one step back from the current bits (the
            second published protocol), instead of re-noising the prediction alone.
        seed: source of randomness.
        device: where the bits live.

    Returns:
        int64 `[batch, N, n]`.
    """
    if not space.is_binary:
        raise VTCError(f"space: got vocab {space.vocab}, bit diffusion makes bits")
    _check(steps=steps, temperature=temperature, rho=rho)
    if temperature == 0:
        raise VTCError(f"temperature: got {temperature}, allowed are numbers > 0")
    noise, like = as_noise(seed), torch.empty(0, device=device)
    shape = (batch, space.tokens, space.subcodes)
    bits = (noise.uniform(shape, like) < 0.5).to(like.dtype)
    times = (1 - torch.arange(steps + 1, dtype=torch.float64) / steps) ** rho
    for step in range(steps):
        now, after = float(times[step]), float(times[step + 1])
        rows = _rows(bits, guidance)
        flip = denoise(rows, torch.full_like(rows[:, 0, 0], now)) / temperature
        chance = torch.sigmoid(_guided(clean_logits(flip, rows), guidance, step, steps))
        if step == steps - 1:
            break
        chance = noisy_probability(chance, after)
        if posterior:
            back = bits - (now - after) * (bits - 0.5)
            one, zero = chance * back, (1 - chance) * (1 - back)
            chance = one / (one + zero)
        bits = (noise.uniform(shape, like) < chance).to(like.dtype)
    return (chance > 0.5).long()


# -- next-X flow ------------------------------------------------------------------------------------


class GroupModel(Protocol):
    """What `sample_next_x` asks of a model."""

    def velocity(self, x: Tensor, t: Tensor) -> Tensor:
        """Velocity of the current group `[rows, g, C]` at times `[rows]`."""

    def commit(self, x: Tensor) -> None:
        """The current group is finished: `[rows, g, C]`; the next one begins."""


def euler(velocity: Callable[[Tensor, float], Tensor], x: Tensor, steps: int) -> Tensor:
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


def sample_next_x(
    model: GroupModel,
    plan: Plan,
    channels: int,
    batch: int,
    steps: int = 20,
    guidance: Guidance | None = None,
    method: str = "euler_maruyama",
    seed: Seed = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Group after group, each by a flow from noise (xAR, arXiv 2502.20388).

    Args:
        model: see `GroupModel`.
        plan: the groups.
        channels: C of a position.
        batch: how many samples.
        steps: model calls a group.
        guidance: see the module; its steps are the groups.
        method: "euler" or "euler_maruyama".
        seed: source of randomness.
        device: where the samples live.
        dtype: of the samples; on the way they are at least float32.

    Returns:
        `[batch, N, C]` in raster order.
    """
    _check(steps=steps, method=method)
    noise, parts = as_noise(seed), []
    like = torch.empty(0, device=device, dtype=dtype)
    for group, size in enumerate(plan.sizes):
        x = noise.normal((batch, size, channels), like)

        def velocity(state: Tensor, now: float, group: int = group) -> Tensor:
            rows = _rows(state, guidance)
            v = model.velocity(rows, torch.full_like(rows[:, 0, 0], now))
            return _guided(v, guidance, group, plan.groups)

        if method == "euler":
            x = euler(velocity, x, steps)
        else:
            x = euler_maruyama(velocity, x, steps, noise)
        parts.append(x)
        model.commit(_rows(x, guidance))
    return plan.merge(parts).to(dtype)


#: The loops by name; `vtc.registry.register` adds others.
SAMPLERS: dict[str, Callable[..., Tensor]] = {
    "ar": sample_ar,
    "maskgit": sample_maskgit,
    "bit_diffusion": sample_bit_diffusion,
    "next_x": sample_next_x,
}
