"""The golden runners of pure functions on cases nobody shipped: other sizes and settings.

The expected tensors come from plain code here: loops, and the formulas of the papers.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from tests.discrete.made_up import Made, check, randn


def pack_bits() -> Made:
    bits = torch.randint(2, (1, 15, 2, 4))
    ids = torch.empty(1, 8, 3, dtype=torch.long)
    for place in range(8):
        text = "".join(str(int(b)) for b in bits[0, :, place // 4, place % 4])
        ids[0, place] = torch.tensor([int(text[k : k + 5], 2) for k in (0, 5, 10)])
    book = torch.tensor([[int(c) for c in f"{k:05b}"] for k in range(32)])
    args = {"token_each": 3, "code_dim": 5}
    return args, {"in.bits_nchw": bits, "out.indices": ids, "out.codebook": book}


def hamming_soft_labels() -> Made:
    bits = torch.randint(2, (1, 3, 1, 5)).float()
    weight = torch.zeros(3, 32)
    for row, code in enumerate(bits.reshape(3, 5).long().tolist()):
        for other in range(32):
            far = sum(a != int(b) for a, b in zip(code, f"{other:05b}", strict=True))
            weight[row, other] = math.exp(-3 * far) if far <= 3 else 0
    return {"dis": 3}, {"in.bits": bits, "out.weights": weight / weight.sum(1, keepdim=True)}


def binary_quantizer(tanh: bool, deterministic: bool) -> Made:
    h, w, b = randn(1, 3, 2, 5).requires_grad_(), randn(4, 3, 1, 1), randn(4)
    table, up, u = randn(4, 3).requires_grad_(), randn(1, 3, 2, 5), torch.rand(1, 4, 2, 5)
    squashed = (torch.tanh if tanh else torch.sigmoid)(F.conv2d(h, w, b))
    chance = (squashed + 1) / 2 if tanh else squashed
    bits = (chance > 0.5 if deterministic else u < chance).float()
    bits = 2 * bits - 1 if tanh else bits
    z = torch.einsum("bnhw,nc->bchw", bits + squashed - squashed.detach(), table)
    again = torch.sigmoid(squashed)
    loss = (again * (1 - again)).mean()
    grad = torch.autograd.grad((z * up).sum() + loss, (h, table))
    return {"use_tanh": tanh, "deterministic": deterministic}, {
        **{"in.h": h, "in.uniform": u, "in.upstream": up, "w.proj.0.weight": w},
        **{"w.proj.0.bias": b, "w.embed.weight": table, "out.z_q": z, "out.bits": bits},
        **{"out.code_loss": loss, "grad.h": grad[0], "grad.embed": grad[1]},
    }


def instella_quantizer(mode: str) -> Made:
    h, w, b = randn(1, 3, 6).requires_grad_(), randn(4, 6).requires_grad_(), randn(4)
    table, up, u = randn(4, 6).requires_grad_(), randn(1, 3, 6), torch.rand(1, 3, 4)
    p = torch.sigmoid(h @ w.T + b)
    drawn = u < torch.sigmoid((h @ w.T + b) / 0.3)
    bits = (drawn if mode == "train" else p > 0.5).float()
    z, loss = (bits + p - p.detach()) @ table, (p * (1 - p)).mean()
    grad = torch.autograd.grad((z * up).sum() + 2 * loss, (h, w, table))
    args = {"codebook_size": 4, "emb_dim": 6, "train_temp": 0.3, "mode": mode, "loss_coef": 2.0}
    return args, {
        **{"in.h": h, "in.uniform": u, "in.upstream": up, "w.proj.0.weight": w},
        **{"w.proj.0.bias": b, "w.embed": table, "out.z_q": z, "out.code_loss": loss},
        **{"out.binary_code": bits, "grad.h": grad[0], "grad.proj_weight": grad[1]},
        "grad.embed": grad[2],
    }


def vector_quantizer(legacy: bool) -> Made:
    z, book, up = randn(1, 5, 3).requires_grad_(), randn(7, 3).requires_grad_(), randn(1, 5, 3)
    ids = torch.cdist(z[0], book).argmin(1)
    gap = (z[0] - book[ids].detach()).square().mean(), (z[0].detach() - book[ids]).square().mean()
    loss = gap[0] + 0.4 * gap[1] if legacy else 0.4 * gap[0] + gap[1]
    out = book[ids].detach()[None] + z - z.detach()
    grad = torch.autograd.grad((out * up).sum() + loss, (z, book))
    return {"beta": 0.4, "legacy": legacy}, {
        **{"in.z": z, "in.codebook": book, "in.upstream": up, "out.z_q": out, "out.loss": loss},
        **{"out.indices": ids, "grad.z": grad[0], "grad.codebook": grad[1]},
    }


def ema_codebook() -> Made:
    book, steps = randn(5, 2), randn(4, 9, 2)
    size, total, weight = torch.full((5,), 2.0), book.clone(), book.clone()
    sizes, weights = [], []
    for z in steps:
        ids = torch.cdist(z, weight).argmin(1)
        for code in range(5):
            size[code] = 0.8 * size[code] + 0.2 * (ids == code).sum()
            total[code] = 0.8 * total[code] + 0.2 * z[ids == code].sum(0)
        smooth = (size + 1e-3) / (size.sum() + 5e-3) * size.sum()
        weight = total / smooth[:, None]
        sizes.append(size.clone())
        weights.append(weight)
    return {"decay": 0.8, "eps": 1e-3, "cluster_size0": 2.0}, {
        **{"in.weight0": book, "in.z_steps": steps},
        **{"out.weight": torch.stack(weights), "out.cluster_size": torch.stack(sizes)},
    }


def causal_masks() -> Made:
    pad = torch.ones(1, 37)
    pad[0, 35:] = 0
    both = (
        torch.tensor([[k <= q or max(q, k) >= 32 for k in range(37)] for q in range(37)])
        & pad.bool()
    )
    caption = torch.tensor([[k <= 32 + q for k in range(37)] for q in range(5)]) & pad.bool()
    masks = {"query_only": both[:32, :32], "query_text": both, "caption_decoder": caption}
    masks["reverse_1_query"] = both[:1, :1]
    made = {f"out.{name}": -10000.0 * (~mask).float()[None, None] for name, mask in masks.items()}
    return {"num_query": 32, "num_text": 5}, {"in.pad": pad, **made}


def cells() -> Made:
    latent = randn(1, 2, 4, 6)
    parts = [latent[0, :, y : y + 2, x : x + 3] for y in (0, 2) for x in (0, 3)]
    return {"cells": 4}, {"in.latent": latent, "out.cells": torch.stack(parts).flatten(2).mT}


def uncluster() -> Made:
    tokens, latent = randn(1, 36, 2), torch.empty(1, 2, 6, 6)
    for place in range(36):
        cell, inside = divmod(place, 4)
        y, x = 2 * (cell // 3) + inside // 2, 2 * (cell % 3) + inside % 2
        latent[0, :, y, x] = tokens[0, place]
    return {"cells": 9, "grid": 6}, {"in.tokens": tokens, "out.latent": latent}


def rope_cells() -> Made:
    angle = torch.empty(16, 12)
    for place in range(16):
        cell, inside = divmod(place, 4)
        spot = 2 * (cell // 2) + inside // 2, 2 * (cell % 2) + inside % 2
        for entry in range(12):
            rate = 10000 ** (-2 * (entry % 6 // 2) / 6)
            angle[place, entry] = spot[entry // 6] * rate
    q = randn(1, 3, 8, 12)
    turned = torch.view_as_complex(q.unflatten(-1, (6, 2))) * torch.polar(
        torch.ones(8, 6), angle[8:, ::2]
    )
    return {"half_head_dim": 6, "grid": 4, "cells": 4}, {
        **{"out.cos": angle.cos(), "out.sin": angle.sin(), "in.q_cell3": q},
        "out.q_cell3": torch.view_as_real(turned).flatten(-2),
    }


def instella_rope() -> Made:
    angle = torch.zeros(2 + 10, 12)
    for row in range(12):
        at = (row, 0, 0) if row < 2 else (0, (row - 2) // 5 * 6 / 1, (row - 2) % 5 * 6 / 4)
        for axis, (start, width) in enumerate(((0, 2), (2, 4), (6, 6))):
            for entry in range(width):
                angle[row, start + entry] = at[axis] * 10000 ** (-(entry // 2 * 2) / width)
    args = {"H": 2, "W": 5, "num_latent": 2, "axes": [2, 4, 6], "scale": 7.0}
    return args, {"out.cos": angle.cos(), "out.sin": angle.sin()}


def mask_schedule() -> Made:
    cos = [math.floor(25 * math.cos(math.pi / 2 * (k + 1) / 10)) for k in range(10)]
    linear = [math.floor(25 * (1 - (k + 1) / 10)) for k in range(10)]
    made = {"out.cos": torch.tensor(cos), "out.linear": torch.tensor(linear)}
    return {"tokens": 25, "steps": 10}, made


def cfg_schedules() -> Made:
    r = torch.arange(1, 8, dtype=torch.float64) / 7
    grow = {"constant": r**0, "linear": r, "cos": torch.sin(torch.pi * r / 2), "square": r**2}
    grow |= {"log": torch.log(1 + r * (math.e - 1)), "square_root": (r - 1 / 7).sqrt()}
    made = {f"out.{name}": 1 + 4.5 * value for name, value in grow.items()}
    return {"num_iter": 7, "cfg_scale": 5.5}, made


def bit_noise(kind: str) -> Made:
    t, x, time = torch.arange(14) / 13, torch.rand(2, 3), torch.tensor([4, 13])
    if kind == "sigmoid":
        curve = torch.sigmoid(3 * t / 0.8)
        keep = (curve[-1] - curve) / (curve[-1] - curve[0])
    else:
        keep = 1 - t if kind == "linear" else 0.5 + 0.5 * torch.cos(torch.pi * t)
    beta = torch.cat([torch.ones(1), keep[1:] / keep[:-1]])
    sample, step = (k[time, None] * x + (1 - k[time, None]) / 2 for k in (keep, beta))
    return {"steps": 13, "kind": kind}, {
        **{"in.x": x, "in.t": time, "out.k": keep, "out.b": (1 - keep) / 2, "out.beta": beta},
        **{"out.cumbeta": keep, "out.q_sample": sample, "out.one_step": step},
    }


def diffusion_sample(protocol: int, rho: float) -> Made:
    steps, w, temp = 6, 3.5, 0.7
    a, b, cond, u = randn(5, 5), randn(5), randn(2, 1, 5), torch.rand(7, 1, 3, 5)
    x = (u[0] < 0.5).float()
    for k in range(steps):
        t, after = ((1 - j / steps) ** rho for j in (k, k + 1))
        flip = [(x[0] @ a + b + row + t) / temp for row in cond]
        given, null = (torch.where(x[0] > 0, -f, f) for f in flip)
        p = torch.sigmoid((1 + w) * given - w * null)
        if k == steps - 1:
            x = (p > 0.5).float()[None]
            break
        one, zero = (1 - after) * p + after / 2, (1 - after) * (1 - p) + after / 2
        if protocol == 2:
            back = x[0] - (t - after) * (x[0] - 0.5)
            one, zero = one * back, zero * (1 - back)
        x = (u[k + 1, 0] < one / (one + zero)).float()[None]
    args = {"num_steps": steps, "guidance_scale": w, "temp": temp, "rho": rho, "protocol": protocol}
    return args, {"in.A": a, "in.b": b, "in.cond": cond, "in.uniforms": u, "out.bits": x}


def ar_sample() -> Made:
    a, b, cond, u = randn(3, 3), randn(3), randn(2, 1, 3), torch.rand(4, 1, 1, 3)
    total, bits = cond[:, 0].clone(), []
    for k in range(4):
        logits = (total @ a if k else total) + b
        logits = logits / 1.3
        bits.append((u[k, 0, 0] < torch.sigmoid(2.5 * logits[0] - 1.5 * logits[1])).float())
        total = total + bits[-1]
    args = {"guidance_scale": 1.5, "temp": 1.3, "num_tokens": 4}
    made = {"in.A": a, "in.b": b, "in.cond": cond, "in.uniforms": u}
    return args, {**made, "out.bits": torch.stack(bits)[None]}


def solver(stochastic: bool) -> Made:
    a, bias, x, eps = randn(3, 3) / 3, randn(2, 1, 3), randn(1, 4, 3), randn(5, 1, 4, 3)
    state = x.double()
    if stochastic:
        times = [1 - 0.96 * k / 4 for k in range(5)] + [0.0]
    else:
        times = [1 - k / 5 for k in range(6)]
    for k, (t, after) in enumerate(zip(times[:-1], times[1:], strict=True)):
        v = state @ a.double() + t + bias[1] + 4.0 * (bias[0] - bias[1])
        if stochastic:
            v = v + t * (state + (1 - t) * v) / t
        state = state + (after - t) * v
        if stochastic and k < 4:
            state = state + math.sqrt(2 * t * (t - after)) * eps[k]
    made = {"in.A": a, "in.class_bias": bias, "in.latent": x, "in.eps": eps}
    return {"num_steps": 5, "cfg_scale": 4.0}, {**made, "out.x": state.float()}


def prefix_keep() -> Made:
    volume, keep = randn(4, 6, 8), 5
    noise, masked, seen = randn(8 - keep, 2, 3, 4), torch.empty(4, 6, 8), 0
    for z in (0, 2):
        for y in (0, 3):
            for x in (0, 4):
                part = (slice(z, z + 2), slice(y, y + 3), slice(x, x + 4))
                masked[part] = volume[part] if seen < keep else noise[seen - keep]
                if seen == keep:
                    following = volume[part]
                seen += 1
    made = {"in.volume": volume, "in.noise": noise, "out.masked": masked}
    return {"patch": [2, 3, 4], "keep": keep, "fill": 1}, {**made, "out.next_patch": following}


def resample(down: bool) -> Made:
    """The shortcut by channels: four neighbours of an unshuffle averaged, or one repeated."""
    x = randn(1, 3, 4, 2) if down else randn(1, 3, 2, 5)
    w, b = randn(3 if down else 12, 3, 3, 3), randn(3 if down else 12)
    if down:
        short = F.pixel_unshuffle(x, 2).unflatten(1, (3, 4)).mean(2)
        y = F.conv2d(x, w, b, stride=2, padding=1) + short
    else:
        y = F.pixel_shuffle(F.conv2d(x, w, b, padding=1) + x.repeat_interleave(4, 1), 2)
    made = {"in.x_nhwc": x.permute(0, 2, 3, 1), "w.conv.weight": w, "w.conv.bias": b}
    return {}, {**made, "out.tokens": y.flatten(2).mT}


def rope2d() -> Made:
    x, turned, table = randn(1, 11, 1, 12), torch.zeros(1, 11, 1, 12), torch.zeros(11, 6, 2)
    for place in range(9):
        for turn in range(6):
            angle = (place // 3, place % 3)[turn // 3] * 100 ** (-2 * (turn % 3) / 6)
            cos, sin = table[place + 2, turn] = torch.tensor([math.cos(angle), math.sin(angle)])
            a, b = x[0, place + 2, 0, 2 * turn : 2 * turn + 2]
            turned[0, place + 2, 0, 2 * turn : 2 * turn + 2] = torch.stack(
                [a * cos - b * sin, a * sin + b * cos]
            )
    args = {"grid": 3, "head_dim": 12, "base": 100, "cls": 2}
    return args, {"in.x": x, "out.table": table, "out.rotated": turned}


def remask() -> Made:
    probs, gumbel = torch.rand(1, 6, 3), randn(1, 6, 3).double()
    sure = (probs.log() + 0.4 * gumbel).mean(-1)[0]
    rank = [sum(bool(other < mine) for other in sure) for mine in sure]
    made = {f"out.mask_{n}": torch.tensor([r < n for r in rank])[None, :, None] for n in (2, 5)}
    return {"temperature": 0.4}, {"in.probs": probs, "in.gumbel": gumbel, **made}


def points(shape: tuple[int, int], down: int, count: int) -> Made:
    """Coarse cells by hand; what a point is moved by is a sum over the pixels around it."""
    height, width = shape
    sim, small = randn(144), 12 // down
    unit = ((sim - sim.min()) / (sim.max() - sim.min())).view(1, 1, 12, 12)

    def margins(side: int) -> tuple[int, int]:
        return tuple((int(n * (side / min(shape))) - side) // 2 for n in shape)

    coarse = F.interpolate(sim.view(1, 1, 12, 12), (small, small), mode="bilinear")[0, 0]
    coarse = (coarse - coarse.min()) / (coarse.max() - coarse.min())
    top, left = margins(small)
    tall, wide = small + 2 * top, small + 2 * left
    found = sorted(
        (0, -v, y, x) if v >= 0.7 else (1, v, y, x) if v <= 0.35 else (2, 0, y, x)
        for y, line in enumerate(coarse.tolist())
        for x, v in enumerate(line)
    )[:count]
    down_by, right_by = margins(336)
    full = F.interpolate(unit, (336, 336), mode="bilinear")
    full = F.pad(full, (right_by, right_by, down_by, down_by))
    full = F.interpolate(full, shape, mode="bilinear")[0, 0].double()
    place = []
    for _, _, y, x in found:
        py, px = int((y + top + 0.5) * height / tall), int((x + left + 0.5) * width / wide)
        far = (torch.arange(height)[:, None] - py) ** 2 + (torch.arange(width) - px) ** 2
        weight = torch.exp(full - far)
        mean = (
            weight.sum(0) @ torch.arange(width).double(),
            weight.sum(1) @ torch.arange(height).double(),
        )
        place.append(torch.stack(mean) / weight.sum())
    args = {"shape": shape, "num_points": count, "t_pos": 0.7, "t_neg": 0.35, "down_sample": down}
    labels = torch.tensor([1 - kind if kind < 2 else -1 for kind, *_ in found])
    made = {"in.similarity": sim, "out.points_xy": torch.stack(place).float()}
    return args, {**made, "out.labels": labels}


PURE: dict[str, Callable[[], Made]] = {
    "elm__pack_bits": pack_bits,
    "elm__hamming_soft_labels_3": hamming_soft_labels,
    "elm__binary_quantizer_tanh_bern": lambda: binary_quantizer(True, False),
    "elm__binary_quantizer_sigmoid_det": lambda: binary_quantizer(False, True),
    "elm__mask_schedule": mask_schedule,
    "elm__cfg_schedules": cfg_schedules,
    "elm__mask_by_random_topk": remask,
    "elm__rope2d": rope2d,
    "elm__bld_scheduler_cos": lambda: bit_noise("cos"),
    "elm__bld_scheduler_linear": lambda: bit_noise("linear"),
    "elm__bld_scheduler_sigmoid": lambda: bit_noise("sigmoid"),
    "instella__binary_quantizer_train": lambda: instella_quantizer("train"),
    "instella__binary_quantizer_eval": lambda: instella_quantizer("eval"),
    "instella__rope_scaled": instella_rope,
    "instella__dc_down": lambda: resample(True),
    "instella__dc_up": lambda: resample(False),
    "instella__ar_sample": ar_sample,
    "instella__diffusion_sample_1": lambda: diffusion_sample(1, 2.0),
    "instella__diffusion_sample_2": lambda: diffusion_sample(2, 1.5),
    "seed__vq_legacy": lambda: vector_quantizer(True),
    "seed__vq_fixed": lambda: vector_quantizer(False),
    "seed__ema_codebook": ema_codebook,
    "seed__causal_masks": causal_masks,
    "xar__cells_4": cells,
    "xar__uncluster": uncluster,
    "xar__rope_cells": rope_cells,
    "xar__sampler_euler": lambda: solver(False),
    "xar__sampler_euler_maruyama": lambda: solver(True),
    "tokenunify__prefix_keep_1": prefix_keep,
    "read__points": lambda: points((71, 50), 2, 20),
    "read__points_wide": lambda: points((40, 66), 1, 144),
    "read__points_square": lambda: points((48, 48), 3, 99),
}


@pytest.mark.parametrize("name", PURE)
def test_pure_functions(name: str, tmp_path: Path) -> None:
    torch.manual_seed(len(name))
    check(tmp_path, name, *PURE[name]())
