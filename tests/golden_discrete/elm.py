"""ELM: code packing, binary quantiser, schedules, losses, and its two language models."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.golden_discrete.common import (
    Result,
    bernoulli_quantizer,
    depth,
    expected,
    fill,
    image,
    leaf,
    load,
    pair,
    renamed,
    rows,
    runner,
    weights,
)
from vtc.discrete import adversarial, codes, losses, objectives, samplers, schedules
from vtc.discrete.backbone import TransformerConfig, apply_rope, grid_coordinates, rope_table
from vtc.discrete.generator import Generator, GeneratorConfig
from vtc.discrete.noise import Noise
from vtc.discrete.quantizers.bernoulli import bit_penalty
from vtc.discrete.schedules import Guidance
from vtc.discrete.types import CodeSpace

# -- codes -----------------------------------------------------------------------------------------


@runner("elm__pack_bits")
def pack_bits(case: Any) -> Result:
    args = case.info["args"]
    return {
        "out.indices": codes.pack_bits(rows(case.input("in.bits_nchw")), args["token_each"]),
        "out.codebook": codes.bit_table(args["code_dim"]),
    }


@runner("elm__hamming_soft_labels")
def hamming_soft_labels(case: Any) -> Result:
    weight = codes.hamming_soft_labels(case.input("in.bits"), case.info["args"]["dis"])
    return {"out.weights": weight.flatten(0, -2)}


@runner("elm__binary_quantizer")
def binary_quantizer(case: Any) -> Result:
    args, h = case.info["args"], leaf(case, "in.h")
    quantizer = bernoulli_quantizer(
        weights(case),
        temperature=1.0,
        symmetric=args["use_tanh"],
        draw_in_eval=not args["deterministic"],
    ).eval()
    out = quantizer(rows(h), Noise(replay=[rows(case.input("in.uniform"))]))
    squashed = (torch.tanh if args["use_tanh"] else torch.sigmoid)(quantizer.project(rows(h)))
    code_loss = bit_penalty(torch.sigmoid(squashed))  # squashed twice
    z = image(out.z, h.shape[2:])
    ((z * case.input("in.upstream")).sum() + args.get("loss_coef", 1.0) * code_loss).backward()
    bits = 2 * out.ids - 1 if args["use_tanh"] else out.ids
    return {
        "out.z_q": z,
        "out.bits": image(bits, h.shape[2:]).float(),
        "out.code_loss": code_loss,
        "grad.h": h.grad,
        "grad.embed": quantizer.table.grad,
    }


# -- schedules -------------------------------------------------------------------------------------


@runner("elm__cfg_schedules")
def cfg_schedules(case: Any) -> Result:
    args, result = case.info["args"], {}
    steps = args["num_iter"]
    for name, match in expected(case, r"out\.(\w+)").items():
        guidance = Guidance(args["cfg_scale"], match[1])
        values = [guidance.at(step, steps) for step in range(steps)]
        result[name] = torch.tensor(values, dtype=torch.float64)
    return result


@runner("elm__mask_schedule")
def mask_schedule(case: Any) -> Result:
    args, result = case.info["args"], {}
    tokens, steps = args["tokens"], args["steps"]
    for name, match in expected(case, r"out\.(\w+)").items():
        counts = [schedules.masked_count(match[1], tokens, step, steps) for step in range(steps)]
        result[name] = torch.tensor(counts)
    return result


@runner("elm__bld_scheduler")
def bit_noise(case: Any) -> Result:
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
def lr_schedule(case: Any) -> Result:
    a = case.info["args"]
    steps = range(case.info["tensors"]["out.lr"]["shape"][0])
    values = [
        schedules.warmup_cosine(step, a["lr"], a["warmup"], a["decay"], a["min_lr"])
        for step in steps
    ]
    return {"out.lr": torch.tensor(values, dtype=torch.float64)}


# -- positions -------------------------------------------------------------------------------------


@runner("elm__rope2d")
def rope2d(case: Any) -> Result:
    args, x = case.info["args"], case.input("in.x")
    half = args["head_dim"] // 2
    table = rope_table(grid_coordinates(pair(args["grid"])), (half, half), args["base"])
    # the class rows of the official table are zero, which is no rotation
    table = tuple(F.pad(part, (0, 0, args["cls"], 0)) for part in table)
    turned = apply_rope(x.transpose(1, 2), table).transpose(1, 2)
    return {"out.table": torch.stack([part[:, ::2] for part in table], -1), "out.rotated": turned}


# -- losses ----------------------------------------------------------------------------------------


@runner("elm__hinge_d_loss")
def hinge(case: Any) -> Result:
    loss = adversarial.hinge_discriminator_loss(case.input("in.real"), case.input("in.fake"))
    return {"out.loss": loss}


@runner("elm__adaptive_weight")
def adaptive_weight(case: Any) -> Result:
    w = leaf(case, "in.w")
    y = case.input("in.x") @ w.transpose(0, 1)
    return {
        name: adversarial.adaptive_weight(y.abs().mean(), -y.square().mean(), w, float(match[1]))
        for name, match in expected(case, r"out\.weight_max(.+)").items()
    }


@runner("elm__focal_loss")
def focal_loss(case: Any) -> Result:
    logits, bits = case.input("in.logits"), case.input("in.target")
    return {
        "out.auto": losses.focal_loss(logits, bits, alpha=-1, gamma=1.0),
        "out.alpha": losses.focal_loss(logits, bits),
        "out.plain": losses.focal_loss(logits, bits, alpha=None),
    }


@runner("elm__label_smoothing_ce")
def label_smoothing(case: Any) -> Result:
    logits, target = case.input("in.logits"), case.input("in.target")
    smoothing = case.info["args"]["smoothing"]
    return {"out.loss": losses.smoothed_cross_entropy(logits, target, smoothing)}


# -- language models -------------------------------------------------------------------------------


@runner("elm__mask_by_random_topk")
def remask(case: Any) -> Result:
    chance, temperature = case.input("in.probs").log(), case.info["args"]["temperature"]
    result = {}
    for name, match in expected(case, r"out\.mask_(\d+)").items():
        noise = fill(case.input("in.gumbel"))
        picked = samplers.least_confident(chance, int(match[1]), temperature, noise)
        result[name] = picked.unsqueeze(-1)
    return result


LAYER = r"layers\.(\d+)\."
BLOCK = r"backbone.blocks.\1."
RULES = {
    rf"{LAYER}attention\.wqkv": rf"{BLOCK}attention.qkv",
    rf"{LAYER}attention\.wo": rf"{BLOCK}attention.out",
    rf"{LAYER}attention_norm": rf"{BLOCK}norm_attention",
    rf"{LAYER}feed_forward\.w1": rf"{BLOCK}ffn.gate",
    rf"{LAYER}feed_forward\.w3": rf"{BLOCK}ffn.up",
    rf"{LAYER}feed_forward\.w2": rf"{BLOCK}ffn.down",
    rf"{LAYER}ffn_norm": rf"{BLOCK}norm_ffn",
    r"norm\.": "backbone.norm.",
    r"cls_embedding\.embedding_table": "classes",
}
AR_HEAD = {
    r"tok_embedder\.(\d+)": r"head.tables.\1",
    r"tok_embedder": "head.tables.0",
    r"output\.(\d+)\.": r"head.out.\1.",
    r"output": "head.out.0",
    r"proj": "head.join",
}
MASKED_HEAD = {
    r"tok_embedder": "head.table",
    r"mlm_layer\.fc": "head.map.0",
    r"mlm_layer\.ln": "head.map.2",
    r"mlm_layer\.bias": "head.bias",
}


def generator(case: Any, head: str, vocab: int) -> Generator:
    """A generator of the size of the weights; the class position has no rotation."""
    w, ids, heads = weights(case), case.input("in.ids"), case.info["args"]["heads"]
    dim = len(w["norm.weight"])
    transformer = TransformerConfig(
        dim,
        depth(w, "layers"),
        heads,
        hidden=len(w["layers.0.feed_forward.w1.weight"]),
        norm_eps=1e-5,
        rope=(dim // heads // 2,) * 2,
    )
    space = CodeSpace(ids.shape[1], (vocab,) * ids.shape[2], pair(case.info["args"]["grid"]))
    classes = len(w["cls_embedding.embedding_table.weight"]) - 1
    model = Generator(GeneratorConfig(space, transformer, head, classes=classes)).eval()
    rotate = model.backbone.rope

    def rope(coordinates: Tensor) -> tuple[Tensor, Tensor]:
        cos, sin = rotate(coordinates)  # row 0, the class, is zero: no query and no key
        return F.pad(cos[1:], (0, 0, 1, 0)), F.pad(sin[1:], (0, 0, 1, 0))

    model.backbone.rope = rope
    return model


@runner("elm__ar_tiny")
def ar_model(case: Any) -> Result:
    a, ids, labels = case.info["args"], case.input("in.ids"), case.input("in.labels")
    state = renamed(weights(case), RULES | AR_HEAD)
    model = generator(case, "index", len(state["head.tables.0.weight"]))
    maps = [state.pop(f"head.out.{k}.weight") for k in range(ids.shape[2])]
    load(model, state | {"head.out.weight": torch.cat(maps)}, "head.mask", "start")
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
        "out.logits": model.next_logits(ids, model.condition(labels)).flatten(1, 2),
        "out.loss": objectives.NextToken().loss(model, ids, labels)["loss"],
        "out.greedy": greedy,
        "out.step_logits": torch.stack([step.squeeze(1) for step in trace]),
    }


@runner("elm__mlm_tiny")
def masked_model(case: Any) -> Result:
    a, ids, labels = case.info["args"], case.input("in.ids"), case.input("in.labels")
    state = renamed(weights(case), RULES | MASKED_HEAD)
    state["head.bias"] = state["head.bias"].flatten()[:-1]  # the mask itself is never predicted
    # our vector of a sub-code, which ELM lacks, is zero at first
    model = load(generator(case, "tied", len(state["head.bias"])), state, "start", "head.place")
    # sub-codes of a token are masked together, whether or not the mask has one entry for each
    unknown = case.input("in.mask").bool().reshape(*ids.shape[:2], -1).all(-1)
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
