"""Runners of the `discrete` golden vectors; `tests/golden.py` merges `RUNNERS` into its own.

A runner reads `in.*` and `w.*`, runs the public functions, and returns what came out by the name of
the expected tensor. What official code does against its own maths is repeated here, in the
adapters, and nowhere in the library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from vtc.discrete import (
    autoencoders,
    backbone,
    codes,
    flow,
    losses,
    masks,
    objectives,
    plans,
    samplers,
    schedules,
)
from vtc.discrete.backbone import (
    TransformerConfig,
    apply_rope,
    grid_coordinates,
    rope_table,
    sinusoid,
)
from vtc.discrete.generator import Condition, Generator, GeneratorConfig
from vtc.discrete.noise import Noise
from vtc.discrete.quantizers import bernoulli, create_quantizer, vq
from vtc.discrete.schedules import Guidance
from vtc.discrete.types import CodeSpace
from vtc.functional import similarity

Result = dict[str, Tensor]
RUNNERS: dict[str, Callable[[Any], None]] = {}


def runner(prefix: str) -> Callable[[Callable[[Any], Result]], Callable[[Any], Result]]:
    """Register a runner and compare all that it returns, with the tolerances of the case."""

    def register(function: Callable[[Any], Result]) -> Callable[[Any], Result]:
        def run(case: Any) -> None:
            atol, rtol = case.info["atol"], case.info["rtol"]
            for name, value in function(case).items():
                case.expect(name, value, atol=atol, rtol=rtol, need=True)
            missing = case.unread()
            if missing:
                raise AssertionError(f"{missing[0]}: not computed")

        RUNNERS[prefix] = run
        return function

    return register


def weights(case: Any, prefix: str = "") -> dict[str, Tensor]:
    """The official weights below `prefix`, by the rest of their names."""
    start = f"w.{prefix}"
    return {
        name[len(start) :]: case.input(name)
        for name in case.info["tensors"]
        if name.startswith(start)
    }


def leaf(case: Any, name: str) -> Tensor:
    """An input that takes a gradient."""
    return case.input(name).clone().requires_grad_()


def rows(x: Tensor) -> Tensor:
    """`[B, C, H, W]` to tokens `[B, H * W, C]`."""
    return x.flatten(2).transpose(1, 2)


def image(x: Tensor, grid: tuple[int, ...]) -> Tensor:
    """Tokens `[B, H * W, C]` to `[B, C, H, W]`."""
    return x.transpose(1, 2).unflatten(2, grid)


# -- codes -----------------------------------------------------------------------------------------


@runner("elm__pack_bits")
def elm_pack_bits(case: Any) -> Result:
    args = case.info["args"]
    bits = rows(case.input("in.bits_nchw"))
    return {
        "out.indices": codes.pack_bits(bits, args["token_each"]),
        "out.codebook": codes.bit_table(args["code_dim"]),
    }


@runner("elm__hamming_soft_labels")
def elm_hamming(case: Any) -> Result:
    weight = codes.hamming_soft_labels(case.input("in.bits"), case.info["args"]["dis"])
    return {"out.weights": weight.flatten(0, -2)}


# -- quantisers ------------------------------------------------------------------------------------


def bernoulli_quantizer(case: Any, table: str, **options: Any) -> bernoulli.BernoulliQuantizer:
    """A quantiser with the official projection and embedding."""
    weight = case.input("w.proj.0.weight").flatten(1)
    quantizer = bernoulli.BernoulliQuantizer(weight.shape[1], weight.shape[0], **options)
    quantizer.load_state_dict(
        {
            "project.weight": weight,
            "project.bias": case.input("w.proj.0.bias"),
            "table": case.input(table),
        }
    )
    return quantizer


@runner("instella__binary_quantizer")
def instella_quantizer(case: Any) -> Result:
    args = case.info["args"]
    quantizer = bernoulli_quantizer(case, "w.embed", temperature=args["train_temp"], penalty=1.0)
    quantizer.train(args["mode"] == "train")
    h = leaf(case, "in.h")
    out = quantizer(h, Noise(replay=[case.input("in.uniform")]))
    ((out.z * case.input("in.upstream")).sum() + args["loss_coef"] * out.loss).backward()
    return {
        "out.z_q": out.z,
        "out.code_loss": out.loss,
        "out.binary_code": out.ids.float(),
        "grad.h": h.grad,
        "grad.proj_weight": quantizer.project.weight.grad,
        "grad.embed": quantizer.table.grad,
    }


@runner("elm__binary_quantizer")
def elm_quantizer(case: Any) -> Result:
    args = case.info["args"]
    quantizer = bernoulli_quantizer(
        case,
        "w.embed.weight",
        temperature=1.0,
        symmetric=args["use_tanh"],
        draw_in_eval=not args["deterministic"],
    ).eval()
    h = leaf(case, "in.h")
    grid = h.shape[2:]
    out = quantizer(rows(h), Noise(replay=[rows(case.input("in.uniform"))]))
    z = image(out.z, grid)
    squashed = (torch.tanh if args["use_tanh"] else torch.sigmoid)(quantizer.project(rows(h)))
    code_loss = bernoulli.bit_penalty(torch.sigmoid(squashed))  # squashed twice
    ((z * case.input("in.upstream")).sum() + code_loss).backward()
    bits = 2 * out.ids - 1 if args["use_tanh"] else out.ids
    return {
        "out.z_q": z,
        "out.bits": image(bits, grid).float(),
        "out.code_loss": code_loss,
        "grad.h": h.grad,
        "grad.embed": quantizer.table.grad,
    }


@runner("seed__vq")
def seed_vq(case: Any) -> Result:
    args = case.info["args"]
    z, codebook = leaf(case, "in.z"), case.input("in.codebook")
    quantizer = vq.VectorQuantizer(
        z.shape[-1], len(codebook), beta=args["beta"], legacy=args["legacy"]
    )
    quantizer.load_state_dict({"codebook": codebook})
    out = quantizer(z)
    ((out.z * case.input("in.upstream")).sum() + out.loss).backward()
    return {
        "out.z_q": out.z,
        "out.loss": out.loss,
        "out.indices": out.ids.flatten(),
        "grad.z": z.grad,
        "grad.codebook": quantizer.codebook.grad,
    }


@runner("seed__vq_perplexity")
def seed_perplexity(case: Any) -> Result:
    z, codebook = case.input("in.z_nchw"), case.input("in.codebook")
    quantizer = vq.VectorQuantizer(z.shape[1], len(codebook), beta=case.info["args"]["beta"])
    quantizer.load_state_dict({"codebook": codebook})
    out = quantizer(rows(z))
    return {
        "out.z_q": image(out.z, z.shape[2:]),
        "out.loss": out.loss,
        "out.indices": out.ids.flatten(),
        "out.perplexity": out.aux["perplexity"],
    }


@runner("seed__ema_codebook")
def seed_ema(case: Any) -> Result:
    args, start = case.info["args"], case.input("in.weight0")
    quantizer = create_quantizer(
        "ema_vq", start.shape[1], size=len(start), decay=args["decay"], eps=args["eps"]
    ).train()
    book = quantizer.inner._codebook
    book.embed.copy_(start[None])
    book.embed_avg.copy_(start[None])
    book.cluster_size.fill_(args["cluster_size0"])
    weight, size = [], []
    for z in case.input("in.z_steps"):
        quantizer(z[None])
        weight.append(book.embed[0].clone())
        size.append(book.cluster_size[0].clone())
    return {"out.weight": torch.stack(weight), "out.cluster_size": torch.stack(size)}


# -- masks and plans -------------------------------------------------------------------------------


@runner("seed__causal_masks")
def seed_masks(case: Any) -> Result:
    args, valid = case.info["args"], case.input("in.pad").bool()
    queries, text = args["num_query"], args["num_text"]

    def additive(mask: Tensor, keys: Tensor) -> Tensor:
        return -10000.0 * (~masks.allow_padding(mask, keys)).float()

    # the official text sees the queries: harmless where only query outputs are read
    both = masks.causal_queries(queries, text, others_see_queries=True)
    caption = masks.with_prefix(masks.causal(text), queries)
    return {
        "out.query_only": additive(masks.causal(queries), valid[:, :queries]),
        "out.query_text": additive(both, valid),
        "out.reverse_1_query": additive(masks.full(1), valid[:, :1]),
        "out.caption_decoder": additive(caption, valid),
    }


def square(count: int) -> tuple[int, int]:
    """The square grid of `count` positions."""
    side = round(count**0.5)
    return side, side


def cell_plan(grid: tuple[int, int], cells: int) -> plans.Plan:
    """The plan of a square number of cells."""
    return plans.cell(grid, grid[0] // square(cells)[0])


@runner("xar__cell_mask")
def xar_cell_mask(case: Any) -> Result:
    args = case.info["args"]
    size = args["seq_len"] // args["cells"]
    return {"out.mask": masks.block_causal((size,) * args["cells"])}


@runner("xar__cells")
def xar_cells(case: Any) -> Result:
    latent, cells = case.input("in.latent"), case.info["args"]["cells"]
    plan = cell_plan(tuple(latent.shape[2:]), cells)
    parts = torch.stack(plan.split(rows(latent)), dim=1)  # [B, cells, size, C]
    if cells == latent.shape[2] * latent.shape[3]:
        parts = parts.squeeze(2)  # the official squeeze
    return {"out.cells": parts}


@runner("xar__uncluster")
def xar_uncluster(case: Any) -> Result:
    args, tokens = case.info["args"], case.input("in.tokens")
    grid = (args["grid"], args["grid"])
    return {"out.latent": image(cell_plan(grid, args["cells"]).restore(tokens), grid)}


@runner("tokenunify__prefix_keep")
def tokenunify_prefix(case: Any) -> Result:
    args, volume = case.info["args"], case.input("in.volume")
    patch, keep = args["patch"], args["keep"]
    blocks = volume
    for axis in range(3):  # raster of patches, then the voxels of each
        blocks = blocks.unflatten(2 * axis, (-1, patch[axis]))
    counts = blocks.shape[::2]
    parts = blocks.permute(0, 2, 4, 1, 3, 5).reshape(-1, *patch)
    visible = masks.next_all(len(parts), keep)[-1]
    visible[-1] = False  # the last position sees itself as well as the prefix
    rest = torch.zeros_like(parts)
    if args["fill"]:
        rest[keep:] = case.input("in.noise").to(parts)
    kept = torch.where(visible[:, None, None, None], parts, rest)
    back = kept.reshape(*counts, *patch).permute(0, 3, 1, 4, 2, 5)
    return {"out.masked": back.reshape(volume.shape), "out.next_patch": parts[keep]}


# -- schedules and flow ----------------------------------------------------------------------------


@runner("elm__cfg_schedules")
def elm_guidance(case: Any) -> Result:
    args = case.info["args"]
    steps = args["num_iter"]
    result = {}
    for name in case.info["tensors"]:
        guidance = schedules.Guidance(args["cfg_scale"], name.removeprefix("out."))
        values = [guidance.at(step, steps) for step in range(steps)]
        result[name] = torch.tensor(values, dtype=torch.float64)
    return result


@runner("elm__mask_schedule")
def elm_mask_schedule(case: Any) -> Result:
    args = case.info["args"]
    return {
        name: torch.tensor(
            [
                schedules.masked_count(
                    name.removeprefix("out."), args["tokens"], step, args["steps"]
                )
                for step in range(args["steps"])
            ]
        )
        for name in case.info["tensors"]
    }


@runner("elm__bld_scheduler")
def elm_bit_noise(case: Any) -> Result:
    args, x, time = case.info["args"], case.input("in.x"), case.input("in.t")
    noise = schedules.bit_noise(args["kind"], args["steps"])
    return {
        "out.k": noise.keep,
        "out.b": noise.offset,
        "out.beta": noise.step,
        "out.cumbeta": noise.keep,
        "out.q_sample": noise.from_clean(x, time),
        "out.one_step": noise.from_previous(x, time),
    }


@runner("elm__lr_schedule")
def elm_lr(case: Any) -> Result:
    a = case.info["args"]
    steps = range(case.info["tensors"]["out.lr"]["shape"][0])
    values = [
        schedules.warmup_cosine(step, a["lr"], a["warmup"], a["decay"], a["min_lr"])
        for step in steps
    ]
    return {"out.lr": torch.tensor(values, dtype=torch.float64)}


@runner("xar__lr_schedule")
def xar_lr(case: Any) -> Result:
    a = case.info["args"]
    constant, end = a.get("constant", 600), a.get("end", 800)
    values = [
        schedules.warmup_constant_cosine(e, a["lr"], a["warmup"], constant, end, a["min_lr"])
        for e in a["epochs"]
    ]
    return {"out.lr": torch.tensor(values, dtype=torch.float64)}


@runner("xar__logit_normal")
def xar_logit_normal(case: Any) -> Result:
    return {"out.t": schedules.logit_normal(case.input("in.normal")).float()}


@runner("xar__flow_math")
def xar_flow(case: Any) -> Result:
    x, v, t = (case.input(f"in.{name}") for name in ("x_t", "v", "t"))
    per_row = t[:, None, None]
    return {
        "out.score_linear": flow.score_from_velocity(v, x, per_row),
        "out.score_cosine": flow.score_from_velocity(v, x, per_row, "cosine"),
        "out.diffusion": flow.diffusion(t),
        "out.linear": torch.stack(flow.path(t)[:2]),
        "out.cosine": torch.stack(flow.path(t, "cosine")),
    }


@runner("instella__diffusion_add_noise")
def instella_add_noise(case: Any) -> Result:
    bits, logits = case.input("in.bits"), case.input("in.logits")
    noisy = schedules.noisy_probability(bits, case.input("in.t"))
    x_t = (case.input("in.uniform") < noisy).float()
    clean = samplers.clean_logits(logits, x_t)
    return {
        "out.x_t": x_t,
        "out.x0_logits": clean,
        "out.bce": F.binary_cross_entropy_with_logits(clean, bits),
    }


# -- positions -------------------------------------------------------------------------------------


@runner("elm__rope2d")
def elm_rope(case: Any) -> Result:
    args, x = case.info["args"], case.input("in.x")
    grid = (args["grid"], args["grid"])
    half = args["head_dim"] // 2
    table = rope_table(grid_coordinates(grid), (half, half), args["base"])
    # the class rows of the official table are zero, which is no rotation
    table = tuple(F.pad(part, (0, 0, args["cls"], 0)) for part in table)
    turned = apply_rope(x.transpose(1, 2), table).transpose(1, 2)
    pairs = torch.stack([part[:, ::2] for part in table], dim=-1)
    return {"out.table": pairs, "out.rotated": turned}


@runner("instella__rope_unscaled")
@runner("instella__rope_scaled")
def instella_rope(case: Any) -> Result:
    a = case.info["args"]
    coordinates = autoencoders.latent_coordinates(a["num_latent"], (a["H"], a["W"]), a["scale"])
    cos, sin = rope_table(coordinates, a["axes"])
    return {"out.cos": cos, "out.sin": sin}


def mismatched_rope(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """Instella pairs entry i with i + d/2 although its table repeats neighbours."""
    low, high = x.chunk(2, dim=-1)
    return x * rope[0] + torch.cat([-high, low], dim=-1) * rope[1]


@runner("instella__rope_apply")
def instella_rope_apply(case: Any) -> Result:
    rope = case.input("in.cos"), case.input("in.sin")
    return {
        f"out.{name}": mismatched_rope(case.input(f"in.{name}").transpose(1, 2), rope).transpose(
            1, 2
        )
        for name in ("q", "k")
    }


@runner("xar__rope_cells")
def xar_rope(case: Any) -> Result:
    args = case.info["args"]
    plan = cell_plan((args["grid"], args["grid"]), args["cells"])
    half = args["half_head_dim"]
    cos, sin = rope_table(plan.coordinates, (half, half))
    result = {"out.cos": cos, "out.sin": sin}
    starts = dict(zip(range(plan.groups), plan.starts, strict=True))
    for name in case.info["tensors"]:
        if name == "in.q_all":
            result["out.q_all"] = apply_rope(case.input(name), (cos, sin))
        elif name.startswith("in.q_cell"):
            # the official call with a cell number turns cells 0..number-1 or that one cell
            q, number = case.input(name), int(name.removeprefix("in.q_cell"))
            part = slice(starts[number], starts[number] + q.shape[2])
            result[name.replace("in.", "out.")] = apply_rope(q, (cos[part], sin[part]))
    return result


@runner("xar__timestep_embedding")
def xar_time(case: Any) -> Result:
    args = case.info["args"]
    return {"out.emb": sinusoid(case.input("in.t"), args["dim"], args["max_period"])}


# -- losses ----------------------------------------------------------------------------------------


@runner("elm__hinge_d_loss")
def elm_hinge(case: Any) -> Result:
    loss = losses.hinge_discriminator_loss(case.input("in.real"), case.input("in.fake"))
    return {"out.loss": loss}


@runner("elm__adaptive_weight")
def elm_adaptive_weight(case: Any) -> Result:
    x, w = case.input("in.x"), leaf(case, "in.w")
    y = x @ w.transpose(0, 1)
    result = {}
    for name in case.info["tensors"]:
        if name.startswith("out.weight_max"):
            limit = float(name.removeprefix("out.weight_max"))
            result[name] = losses.adaptive_weight(y.abs().mean(), -y.square().mean(), w, limit)
    return result


@runner("elm__focal_loss")
def elm_focal(case: Any) -> Result:
    logits, bits = case.input("in.logits"), case.input("in.target")
    return {
        "out.auto": losses.focal_loss(logits, bits, alpha=-1, gamma=1.0),
        "out.alpha": losses.focal_loss(logits, bits),
        "out.plain": losses.focal_loss(logits, bits, alpha=None),
    }


@runner("elm__label_smoothing_ce")
def elm_smoothing(case: Any) -> Result:
    smoothing = case.info["args"]["smoothing"]
    loss = losses.smoothed_cross_entropy(
        case.input("in.logits"), case.input("in.target"), smoothing
    )
    return {"out.loss": loss}


@runner("seed__itc_last_token")
def seed_contrastive(case: Any) -> Result:
    args = case.info["args"]
    image_features, text = case.input("in.image"), case.input("in.text")
    loss = losses.contrastive_last_token(
        image_features, text, args["temp"], args["label_smoothing"]
    )
    return {"out.loss": loss}


# -- READ ------------------------------------------------------------------------------------------


@runner("read__similarity")
def read_similarity(case: Any) -> Result:
    tokens = case.input("in.image")
    return {
        "out.sim": similarity.token_similarity(tokens, case.input("in.seg")),
        "out.sim_multi": similarity.token_similarity(tokens, case.input("in.segs")),
    }


@runner("read__points")
def read_points(case: Any) -> Result:
    a = case.info["args"]
    points, labels = similarity.similarity_points(
        case.input("in.similarity"),
        tuple(a["shape"]),
        a["num_points"],
        a["t_pos"],
        a["t_neg"],
        a["down_sample"],
    )
    return {"out.points_xy": points, "out.labels": labels}


# -- samplers on stand-in models -------------------------------------------------------------------


def fill(*parts: Tensor | list[Tensor]) -> Noise:
    """Recorded draws, in order."""
    flat: list[Tensor] = []
    for part in parts:
        flat += part if isinstance(part, list) else [part]
    return Noise(replay=flat)


@runner("instella__ar_sample")
def instella_ar_sample(case: Any) -> Result:
    args = case.info["args"]
    matrix, bias, cond = (case.input(f"in.{name}") for name in ("A", "b", "cond"))
    seen: list[Tensor] = []

    def step(last: Tensor | None) -> Tensor:
        if last is None:
            return cond + bias
        seen.append(last.float())
        return torch.cat([cond, *seen], dim=1).sum(1, keepdim=True) @ matrix + bias

    bits = samplers.sample_ar(
        step,
        CodeSpace(args["num_tokens"], (2,) * len(bias)),
        len(cond) // 2,
        Guidance(1 + args["guidance_scale"]),
        temperature=args["temp"],
        seed=fill(list(case.input("in.uniforms"))),
    )
    return {"out.bits": bits.float()}


@runner("instella__diffusion_sample")
def instella_diffusion_sample(case: Any) -> Result:
    args = case.info["args"]
    matrix, bias, cond = (case.input(f"in.{name}") for name in ("A", "b", "cond"))
    uniforms = case.input("in.uniforms")
    bits = samplers.sample_bit_diffusion(
        lambda x, t: x @ matrix + bias + cond + t[:, None, None],
        CodeSpace(uniforms.shape[2], (2,) * len(bias)),
        len(cond) // 2,
        args["num_steps"],
        Guidance(1 + args["guidance_scale"]),
        temperature=args["temp"],
        rho=args["rho"],
        posterior=str(args["protocol"]) == "2",
        seed=fill(list(uniforms)),
    )
    return {"out.bits": bits.float()}


@runner("elm__mask_by_random_topk")
def elm_remask(case: Any) -> Result:
    chance, temperature = case.input("in.probs").log(), case.info["args"]["temperature"]
    result = {}
    for name in case.info["tensors"]:
        if name.startswith("out.mask_"):
            count = int(name.removeprefix("out.mask_"))
            picked = samplers.least_confident(
                chance, count, temperature, fill(case.input("in.gumbel"))
            )
            result[name] = picked.unsqueeze(-1)
    return result


@runner("xar__sampler")
def xar_sampler(case: Any) -> Result:
    args = case.info["args"]
    matrix, bias, start = (case.input(f"in.{name}") for name in ("A", "class_bias", "latent"))
    steps, scale = args["num_steps"], args["cfg_scale"]

    def velocity(x: Tensor, t: float) -> Tensor:
        class_rows, null = bias[:-1], bias[-1:]
        plain = x @ matrix + t
        return plain + null + scale * (class_rows - null)

    if case.name.startswith("xar__sampler_euler_maruyama"):
        noise = fill(list(case.input("in.eps")))
        return {"out.x": samplers.euler_maruyama(velocity, start, steps, noise)}
    return {"out.x": samplers.euler(velocity, start, steps)}


# -- tiny networks ---------------------------------------------------------------------------------


def llama_blocks(w: dict[str, Tensor]) -> dict[str, Tensor]:
    """The layers of ELM's models, under the names of `Transformer`."""
    state, dim = {"norm.weight": w["norm.weight"]}, len(w["norm.weight"])
    rename = {
        "attention.wo": "attention.out",
        "feed_forward.w1": "ffn.gate",
        "feed_forward.w3": "ffn.up",
        "feed_forward.w2": "ffn.down",
        "attention_norm": "norm_attention",
        "ffn_norm": "norm_ffn",
    }
    for name, value in w.items():
        if not name.startswith("layers."):
            continue
        _, layer, rest = name.split(".", 2)
        rest = rest.removesuffix(".weight")
        if rest == "attention.wqkv":
            state[f"blocks.{layer}.attention.q.weight"] = value[:dim]
            state[f"blocks.{layer}.attention.kv.weight"] = value[dim:]
        else:
            state[f"blocks.{layer}.{rename[rest]}.weight"] = value
    return state


def elm_generator(case: Any, head: str) -> Generator:
    """A generator with ELM's weights in the backbone; the class position has no rotation."""
    a, w = case.info["args"], weights(case)
    half = a["dim"] // a["heads"] // 2
    ids = case.input("in.ids")
    transformer = TransformerConfig(
        a["dim"],
        a["layers"],
        a["heads"],
        hidden=len(w["layers.0.feed_forward.w1.weight"]),
        norm_eps=1e-5,
        rope=(half, half),
    )
    space = CodeSpace(ids.shape[1], (2 ** a["code_dim"],) * ids.shape[2], (a["grid"], a["grid"]))
    model = Generator(GeneratorConfig(space, transformer, head, classes=a["num_classes"])).eval()
    model.backbone.load_state_dict(llama_blocks(w))
    model.classes.weight.data = w["cls_embedding.embedding_table.weight"]
    rotate = model.backbone.rope

    def rope(coordinates: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = rotate(coordinates)  # row 0, the class, is zero: no query and no key
        return F.pad(cos[1:], (0, 0, 1, 0)), F.pad(sin[1:], (0, 0, 1, 0))

    model.backbone.rope = rope
    return model


@runner("elm__ar_tiny")
def elm_ar(case: Any) -> Result:
    a, w = case.info["args"], weights(case)
    ids, labels = case.input("in.ids"), case.input("in.labels")
    model = elm_generator(case, "index")
    count = ids.shape[2]
    names = [f".{k}" if count > 1 else "" for k in range(count)]
    state = {f"tables.{k}.weight": w[f"tok_embedder{n}.weight"] for k, n in enumerate(names)}
    state["out.weight"] = torch.cat([w[f"output{n}.weight"] for n in names])
    state["mask"] = model.head.mask.detach()
    if count > 1:
        state["join.weight"] = w["proj.weight"]
    model.head.load_state_dict(state)
    given = model.condition(labels)
    logits = model.next_logits(ids, given)
    trace: list[Tensor] = []
    greedy = model.sample(
        labels,
        guidance=Guidance(a["cfg_scale"], a["cfg_schedule"]),
        temperature=a["temperature"],
        top_k=a["top_k"],
        seed=fill([torch.zeros(1)] * ids.shape[1]),  # no Gumbel noise: the likeliest code
        trace=trace,
    )
    return {
        "out.logits": logits.flatten(1, 2),
        "out.loss": objectives.NextToken().loss(model, ids, labels)["loss"],
        "out.greedy": greedy,
        "out.step_logits": torch.stack([step.squeeze(1) for step in trace]),
    }


@runner("elm__mlm_tiny")
def elm_mlm(case: Any) -> Result:
    a, w = case.info["args"], weights(case)
    ids, labels = case.input("in.ids"), case.input("in.labels")
    model = elm_generator(case, "tied")
    model.head.load_state_dict(
        {
            "table.weight": w["tok_embedder.weight"],
            "map.0.weight": w["mlm_layer.fc.weight"],
            "map.0.bias": w["mlm_layer.fc.bias"],
            "map.2.weight": w["mlm_layer.ln.weight"],
            "map.2.bias": w["mlm_layer.ln.bias"],
            "bias": w["mlm_layer.bias"].flatten()[:-1],
        }
    )
    unknown = case.input("in.mask").bool()
    logits = model.masked_logits(ids, unknown, model.condition(labels))
    entropy = model.head.loss(logits, ids)
    draws = [x for gumbel in case.input("in.gumbel") for x in (torch.zeros(1), gumbel)]
    generated = model.sample(
        labels,
        "maskgit",
        guidance=Guidance(a["cfg_scale"], a["cfg_schedule"]),
        steps=a["iters"],
        temperature=a["temperature"],
        schedule=a["mask_schedule"],
        seed=fill(draws),
    )
    return {
        "out.logits": logits.flatten(1, 2),
        "out.loss": (entropy * unknown).sum() / unknown.sum(),
        "out.generated": generated,
    }


def instella_block(w: dict[str, Tensor], name: str, target: str) -> dict[str, Tensor]:
    """One layer of any of Instella's networks, under the names of `Block`."""
    rename = {
        "attn.q_proj": "attention.q",
        "attn.o_proj": "attention.out",
        "attn.norm_q": "attention.norm_q",
        "attn.norm_k": "attention.norm_k",
        "input_layernorm": "norm_attention",
        "post_attention_layernorm": "norm_ffn",
        "mlp.gate_proj": "ffn.gate",
        "mlp.up_proj": "ffn.up",
        "mlp.down_proj": "ffn.down",
        "mlp.net.0.proj": "ffn.up",
        "mlp.net.2": "ffn.down",
        "ff.net.0.proj": "ffn.up",
        "ff.net.2": "ffn.down",
        "norm1.linear": "modulation",
        "proj_cond": "context",
    }
    state = {}
    for key, value in w.items():
        if not key.startswith(f"{name}."):
            continue
        rest = key.removeprefix(f"{name}.")
        if rest == "pos_emb":
            state[f"{target}.positions"] = value[0]
        elif rest == "attn.k_proj.weight":
            value = torch.cat([value, w[f"{name}.attn.v_proj.weight"]])
            state[f"{target}.attention.kv.weight"] = value
        elif rest != "attn.v_proj.weight":
            part, _, kind = rest.rpartition(".")
            state[f"{target}.{rename[part]}.{kind}"] = value
    return state


@runner("instella__dc")
def instella_resample(case: Any) -> Result:
    x = case.input("in.x_nhwc").permute(0, 3, 1, 2)
    down = case.name.startswith("instella__dc_down")
    layer = (autoencoders.ResampleDown if down else autoencoders.ResampleUp)(x.shape[1])
    layer.load_state_dict(weights(case))
    return {"out.tokens": rows(layer(x))}


@runner("instella__bae_tiny")
def instella_autoencoder(case: Any) -> Result:
    a, w, x = case.info["args"], weights(case), case.input("in.image")

    def side(name: str, splits: list[int]) -> TransformerConfig:
        edges = [0, *(s + 1 for s in splits), a[f"{name}_layers"]]
        hidden = len(w[f"{name}.transformer_blocks.0.mlp.up_proj.weight"])
        heads = a[f"{name}_num_heads"]
        return TransformerConfig(
            heads * a[f"{name}_head_dim"],
            tuple(b - c for c, b in zip(edges[:-1], edges[1:], strict=True)),
            heads,
            hidden=hidden,
            qk_norm=True,
            rope=tuple(a["axes_dims_rope"]),
        )

    config = autoencoders.LatentConfig(
        a["num_latent_tkns"],
        a["patch_size"],
        side("encoder", a["downsample_idx"]),
        side("decoder", a["upsample_idx"]),
        channels=a["in_channels"],
    )
    encoder, decoder = autoencoders.LatentEncoder(config), autoencoders.LatentDecoder(config)
    states: list[dict[str, Tensor]] = []
    for name, transformer, layer in (
        ("encoder", config.encoder, "down_layers"),
        ("decoder", config.decoder, "up_layers"),
    ):
        state, first = {}, 0
        for index, depth in enumerate(transformer.stages):
            for block in range(depth):
                source = f"{name}.transformer_blocks.{first + block}"
                state |= instella_block(w, source, f"stages.{index}.blocks.{block}")
            first += depth
        for key, value in w.items():
            if key.startswith(f"{name}.{layer}."):
                state["resample." + key.removeprefix(f"{name}.{layer}.")] = value
        state[f"stages.{index}.norm.weight"] = w[f"{name}.norm_out.weight"]
        states.append(state)
    encoder.load_state_dict(
        states[0]
        | {
            "latents": w["encoder.latent_tokens"][0],
            "patches.weight": w["encoder.patch_embedder.weight"],
            "patches.bias": w["encoder.patch_embedder.bias"],
            "out.weight": w["encoder.proj_out.weight"],
            "out.bias": w["encoder.proj_out.bias"],
        }
    )
    decoder.load_state_dict(
        states[1]
        | {
            "mask": w["decoder.mask_tokens"].flatten(),
            "enter.0.weight": w["decoder.input_layer.0.weight"],
            "enter.1.weight": w["decoder.input_layer.1.weight"],
            "enter.1.bias": w["decoder.input_layer.1.bias"],
            "out.weight": w["to_pixel.weight"],
            "out.bias": w["to_pixel.bias"],
        }
    )
    quantizer = bernoulli.BernoulliQuantizer(
        config.encoder.dim, a["codebook_size"], a["train_temp"], penalty=1.0
    )
    quantizer.load_state_dict(
        {
            "project.weight": w["quantizer.proj.0.weight"],
            "project.bias": w["quantizer.proj.0.bias"],
            "table": w["quantizer.embed"],
        }
    )
    proper, backbone.apply_rope = backbone.apply_rope, mismatched_rope
    try:
        features = encoder(x)
        out = quantizer.eval()(features)
        size = tuple(x.shape[2:])
        recon = decoder(out.z, size)
        twice = decoder(out.z, (2 * size[0], 2 * size[1]))
    finally:
        backbone.apply_rope = proper
    return {
        "out.encoder": features,
        "out.z_q": out.z,
        "out.code_loss": out.loss,
        "out.bits": out.ids,
        "out.recon": recon,
        "out.forward": recon,
        "out.recon_2x": twice,
    }


def instella_generator(case: Any, bits: Tensor, **options: Any) -> Generator:
    """A generator with Instella's layers and input and output maps."""
    a, w = case.info["args"], weights(case)
    first = "transformer_blocks.0"
    transformer = TransformerConfig(
        a["dim"],
        a["layers"],
        a["heads"],
        ffn="gelu_tanh",
        hidden=len(w.get(f"{first}.mlp.net.0.proj.bias", w.get(f"{first}.ff.net.0.proj.bias"))),
        qk_norm=True,
        ffn_bias=True,
        block_positions=w[f"{first}.pos_emb"].shape[1],
        context_dim=case.input("in.feat0").shape[-1],
        **options,
    )
    space = CodeSpace(bits.shape[1], (2,) * bits.shape[2])
    time = "scalar" if transformer.adaptive else "none"
    model = Generator(GeneratorConfig(space, transformer, "bit", time=time)).eval()
    state = {
        "head.mask": model.head.mask.detach(),
        "head.enter.weight": w["x_embedder.weight"],
        "head.enter.bias": w["x_embedder.bias"],
        "head.out.weight": w["proj_out.weight"],
        "head.out.bias": w["proj_out.bias"],
        "start": w.get("split_token", model.start.detach()),
    }
    for layer in range(a["layers"]):
        state |= instella_block(w, f"transformer_blocks.{layer}", f"backbone.blocks.{layer}")
    if time == "scalar":
        for number, layer in (("1", "0"), ("2", "2")):
            for kind in ("weight", "bias"):
                state[f"time.net.{layer}.{kind}"] = w[f"time_embed.linear_{number}.{kind}"]
        for kind in ("weight", "bias"):
            scale, shift = w[f"norm_out.linear.{kind}"].chunk(2)  # official order
            state[f"backbone.modulation.{kind}"] = torch.cat([shift, scale])
    else:
        state["backbone.norm.weight"] = w["norm_out.weight"]
    model.load_state_dict(state)
    return model


def instella_condition(case: Any) -> Condition:
    """One text feature a layer."""
    features = tuple(case.input(f"in.feat{k}") for k in range(case.info["args"]["layers"]))
    return Condition(None, features, case.input("in.text_mask").bool())


@runner("instella__ar_model_tiny")
def instella_ar(case: Any) -> Result:
    bits = case.input("in.bits")
    model, given = instella_generator(case, bits), instella_condition(case)
    return {
        "out.logits": model.next_logits(bits, given),
        "out.loss": objectives.NextToken().loss(model, bits.long(), given)["loss"],
    }


@runner("instella__diff_model_tiny")
def instella_diffusion(case: Any) -> Result:
    bits = case.input("in.x_t")
    model = instella_generator(case, bits, norm="layer", adaptive=True, final_norm="adaptive")
    logits = model.flip_logits(bits, case.input("in.t"), instella_condition(case))
    return {"out.logits": logits}


def bert_layers(w: dict[str, Tensor], count: int) -> dict[str, Tensor]:
    """The layers of a Q-Former, under the names of `Transformer`."""
    state = {}
    for layer in range(count):
        for source, target, norm in (
            ("attention", "attention", "norm_attention"),
            ("crossattention", "cross", "norm_cross"),
        ):
            for kind in ("weight", "bias"):
                start, goal = f"encoder.layer.{layer}.{source}", f"blocks.{layer}.{target}"
                if f"{start}.self.query.{kind}" not in w:
                    continue
                state[f"{goal}.q.{kind}"] = w[f"{start}.self.query.{kind}"]
                state[f"{goal}.kv.{kind}"] = torch.cat(
                    [w[f"{start}.self.{part}.{kind}"] for part in ("key", "value")]
                )
                state[f"{goal}.out.{kind}"] = w[f"{start}.output.dense.{kind}"]
                state[f"blocks.{layer}.{norm}.{kind}"] = w[f"{start}.output.LayerNorm.{kind}"]
        for kind in ("weight", "bias"):
            start, goal = f"encoder.layer.{layer}", f"blocks.{layer}"
            state[f"{goal}.ffn.up.{kind}"] = w[f"{start}.intermediate_query.dense.{kind}"]
            state[f"{goal}.ffn.down.{kind}"] = w[f"{start}.output_query.dense.{kind}"]
            state[f"{goal}.norm_ffn.{kind}"] = w[f"{start}.output_query.LayerNorm.{kind}"]
    return state


def query_encoder(
    w: dict[str, Tensor], queries: Tensor, heads: int, causal: bool
) -> autoencoders.QueryEncoder:
    """A Q-Former with official weights; depth and cross-attention are read off their names."""
    names = [name.split(".") for name in w if name.startswith("encoder.layer.")]
    depth = 1 + max(int(parts[2]) for parts in names)
    crossed = sorted({int(parts[2]) for parts in names if parts[3] == "crossattention"})
    config = TransformerConfig(
        queries.shape[-1],
        depth,
        heads,
        ffn="gelu",
        hidden=len(w["encoder.layer.0.intermediate_query.dense.weight"]),
        norm="layer",
        norm_eps=1e-12,
        post_norm=True,
        final_norm="none",
        qkv_bias=True,
        out_bias=True,
        ffn_bias=True,
        cross_dim=w["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        cross_every=crossed[1] if len(crossed) > 1 else depth,
    )
    encoder = autoencoders.QueryEncoder(queries.shape[1], config, causal)
    state = {f"transformer.{name}": value for name, value in bert_layers(w, depth).items()}
    state |= {
        "queries": queries[0],
        "norm.weight": w["embeddings.LayerNorm.weight"],
        "norm.bias": w["embeddings.LayerNorm.bias"],
    }
    encoder.load_state_dict(state)
    return encoder.eval()


@runner("seed__causal_qformer_tiny")
def seed_encoder(case: Any) -> Result:
    queries, heads = case.input("in.queries"), case.info["args"]["heads"]
    encoder = query_encoder(weights(case), queries, heads, causal=True)
    return {"out.hidden": encoder(case.input("in.image_tokens"))}


@runner("seed__detokenize_tiny")
def seed_detokenize(case: Any) -> Result:
    a, hidden, book = case.info["args"], case.input("in.hidden"), case.input("in.codebook")
    heads, dim = a.get("heads", 2), hidden.shape[-1]
    quantizer = vq.VectorQuantizer(dim, len(book), book.shape[1], legacy=True, head="tanh")
    state = {"codebook": book}
    for source, target in (("encode", "down"), ("decode", "up")):
        state |= {f"{target}.{k}": v for k, v in weights(case, f"{source}.").items()}
    quantizer.load_state_dict(state)

    w = weights(case, "blocks.")
    config = TransformerConfig(
        dim,
        1 + max(int(name.split(".")[0]) for name in w),
        heads,
        ffn="gelu",
        hidden=len(w["0.mlp.fc1.weight"]),
        norm="layer",
        final_norm="none",
        qkv_bias=True,
        out_bias=True,
        ffn_bias=True,
        positions=hidden.shape[1],
    )
    rename = {
        "attn.proj": "attention.out",
        "mlp.fc1": "ffn.up",
        "mlp.fc2": "ffn.down",
        "norm1": "norm_attention",
        "norm2": "norm_ffn",
    }
    reader = query_encoder(
        weights(case, "reverse."), case.input("in.reverse_query"), heads, causal=False
    )
    decoder = autoencoders.EmbeddingDecoder(config, reader, len(case.input("w.proj.bias")))
    state = {"blocks.positions": case.input("in.pos")[0]}
    for name, value in w.items():
        layer, rest = name.split(".", 1)
        part, _, kind = rest.rpartition(".")
        goal = f"blocks.blocks.{layer}"
        if part == "attn.qkv":
            state[f"{goal}.attention.q.{kind}"] = value[:dim]
            state[f"{goal}.attention.kv.{kind}"] = value[dim:]
        else:
            state[f"{goal}.{rename[part]}.{kind}"] = value
    state |= {f"reader.{name}": value for name, value in reader.state_dict().items()}
    state |= {f"out.{name}": value for name, value in weights(case, "proj.").items()}
    decoder.load_state_dict(state)
    decoder.eval()

    out = quantizer(hidden)
    recon, embedding = decoder.features(out.z), decoder(out.z)
    cosine = losses.cosine_distillation(recon, hidden)
    distance = losses.embedding_distillation(embedding, case.input("in.clip_target"))
    share = a["weights"]
    total = share["vq"] * out.loss + share["recon"] * cosine + share["distill_image"] * distance
    return {
        "out.indices": out.ids.squeeze(-1),
        "out.vq_loss": out.loss,
        "out.up": out.z,
        "out.recon": recon,
        "out.cosine_loss": cosine,
        "out.embedding": embedding,
        "out.total_loss": total,
    }


def xar_generator(case: Any, latent: Tensor, groups: int) -> Generator:
    """A generator with xAR's weights; its rows of classes are numbered 0, 1, ... and none."""
    a, w = case.info["args"], weights(case)
    grid = tuple(latent.shape[2:])
    half = a["dim"] // a["heads"] // 2
    transformer = TransformerConfig(
        a["dim"],
        tuple(a["depth"]),
        a["heads"],
        ffn="geglu",
        hidden=len(w["encoder_blocks.0.mlp.fc1_x.bias"]),
        qkv_bias="encoder_blocks.0.attn.qkv.bias" in w,
        out_bias=True,
        ffn_bias=True,
        rope=(half, half),
        positions=grid[0] * grid[1],
        input_norm=True,
        adaptive=True,
    )
    config = GeneratorConfig(
        CodeSpace(grid[0] * grid[1], (2,), grid),
        transformer,
        plan=f"cell:{grid[0] // square(groups)[0]}",
        classes=len(w["class_rows"]) - 1,
        class_as="adaptive",
        time="sinusoid",
        drop=a["label_drop_prob"],
        channels=latent.shape[1],
    )
    model = Generator(config)
    dim, first = a["dim"], a["depth"][0]
    state = {
        "start": model.start.detach(),
        "classes.weight": w["class_rows"],
        "head.enter.weight": w["z_proj.weight"],
        "head.enter.bias": w["z_proj.bias"],
        "backbone.input_norm.weight": w["z_proj_ln.weight"],
        "head.out.weight": w["pred.weight"],
        "head.out.bias": w["pred.bias"],
        "backbone.positions": w["encoder_pos_embed_learned"][0],
        "backbone.joints.0.norm.weight": w["encoder_norm.weight"],
        "backbone.joints.0.map.weight": w["decoder_embed.weight"],
        "backbone.joints.0.map.bias": w["decoder_embed.bias"],
        "backbone.joints.0.positions": w["decoder_pos_embed_learned"][0],
        "backbone.norm.weight": w["decoder_norm.weight"],
    }
    rename = {
        "attn.proj": "attention.out",
        "mlp.fc1_g": "ffn.gate",
        "mlp.fc1_x": "ffn.up",
        "mlp.fc2": "ffn.down",
    }
    for name, value in w.items():
        if name.startswith("time_embed.mlp."):
            state[name.replace("time_embed.mlp.", "time.net.")] = value
        if not name.startswith(("encoder_blocks.", "decoder_blocks.")):
            continue
        stack, layer, rest = name.split(".", 2)
        part, _, kind = rest.rpartition(".")
        goal = f"backbone.blocks.{int(layer) + (first if stack == 'decoder_blocks' else 0)}"
        if part == "attn.qkv":
            state[f"{goal}.attention.q.{kind}"] = value[:dim]
            state[f"{goal}.attention.kv.{kind}"] = value[dim:]
        elif part == "ada_lin.1":
            # official order: both gates, both scales, both shifts
            gate_a, gate_f, scale_a, scale_f, shift_a, shift_f = value.chunk(6)
            value = torch.cat([shift_a, scale_a, gate_a, shift_f, scale_f, gate_f])
            state[f"{goal}.modulation.{kind}"] = value
        else:
            state[f"{goal}.{rename[part]}.{kind}"] = value
    model.load_state_dict(state)
    return model


@runner("xar__train_step")
def xar_train_step(case: Any) -> Result:
    latent, noise = case.input("in.latent"), case.input("in.noise")
    batch, groups = noise.shape[:2]
    model = xar_generator(case, latent, groups).train()
    times = case.input("in.t_normal").view(groups, batch).transpose(0, 1)
    draws = fill(case.input("in.drop_uniform"), times, noise.flatten(1, 2))
    report = objectives.NextX().loss(model, rows(latent), torch.arange(batch), draws)
    report["loss"].backward()
    return {
        "out.loss": report["loss"],
        "out.sq_err": report["position"],
        "grad.z_proj": model.head.enter.weight.grad,
        "grad.pred": model.head.out.weight.grad,
    }


@runner("xar__generate")
def xar_generate(case: Any) -> Result:
    a, start, eps = case.info["args"], case.input("in.init"), case.input("in.eps")
    batch, groups, size, channels = start.shape
    path = case.folder / f"{case.name.replace('generate', 'train_step')}.json"
    trained = type(case)(path if path.exists() else case.folder / "xar__train_step.json")
    side = square(groups * size)
    model = xar_generator(trained, start.new_zeros(1, channels, *side), groups)
    per_group = list(eps.unflatten(0, (groups, -1)))
    draws = [[start[:, g], *per_group[g]] for g in range(groups)]
    latent = model.sample(
        torch.arange(batch),
        "next_x",
        guidance=Guidance(a["cfg"], "linear", from_one=True),
        steps=a["num_steps"],
        seed=fill(*draws),
    )
    return {"out.latent": image(latent, side)}
