"""Instella-T2I: binary quantiser, 1-D autoencoder, and its two generators of bits."""

from __future__ import annotations

import re
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
    leaf,
    load,
    renamed,
    rows,
    runner,
    weights,
)
from vtc.discrete import autoencoders, backbone, objectives, samplers, schedules
from vtc.discrete.backbone import TransformerConfig, rope_table
from vtc.discrete.condition import Condition
from vtc.discrete.generator import Generator, GeneratorConfig
from vtc.discrete.noise import Noise
from vtc.discrete.schedules import Guidance
from vtc.discrete.types import CodeSpace

# -- quantiser -------------------------------------------------------------------------------------


@runner("instella__binary_quantizer")
def quantizer(case: Any) -> Result:
    args, h = case.info["args"], leaf(case, "in.h")
    module = bernoulli_quantizer(weights(case), temperature=args["train_temp"], penalty=1.0)
    module.train(args["mode"] == "train")
    out = module(h, Noise(replay=[case.input("in.uniform")]))
    ((out.z * case.input("in.upstream")).sum() + args["loss_coef"] * out.loss).backward()
    return {
        "out.z_q": out.z,
        "out.code_loss": out.loss,
        "out.binary_code": out.ids.float(),
        "grad.h": h.grad,
        "grad.proj_weight": module.project.weight.grad,
        "grad.embed": module.table.grad,
    }


# -- positions and resampling ----------------------------------------------------------------------


@runner("instella__rope_unscaled")
@runner("instella__rope_scaled")
def rope(case: Any) -> Result:
    a = case.info["args"]
    coordinates = autoencoders.latent_coordinates(a["num_latent"], (a["H"], a["W"]), a["scale"])
    cos, sin = rope_table(coordinates, a["axes"])
    return {"out.cos": cos, "out.sin": sin}


def mismatched_rope(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Instella pairs entry i with i + d/2 although its table repeats neighbours."""
    low, high = x.chunk(2, dim=-1)
    return x * table[0] + torch.cat([-high, low], dim=-1) * table[1]


@runner("instella__rope_apply")
def rope_apply(case: Any) -> Result:
    table, result = (case.input("in.cos"), case.input("in.sin")), {}
    for name in ("q", "k"):
        x = case.input(f"in.{name}").transpose(1, 2)
        result[f"out.{name}"] = mismatched_rope(x, table).transpose(1, 2)
    return result


@runner("instella__dc")
def resample(case: Any) -> Result:
    x = case.input("in.x_nhwc").permute(0, 3, 1, 2)
    down = case.name.startswith("instella__dc_down")
    layer = (autoencoders.ResampleDown if down else autoencoders.ResampleUp)(x.shape[1])
    return {"out.tokens": rows(load(layer, weights(case))(x))}


# -- samplers on stand-in models -------------------------------------------------------------------


def guidance(case: Any, batch: int) -> Guidance | None:
    """`(1 + w) c - w u`, where the stand-in has rows with and without condition."""
    guided = len(case.input("in.cond")) > batch
    return Guidance(1 + case.info["args"]["guidance_scale"]) if guided else None


@runner("instella__ar_sample")
def ar_sample(case: Any) -> Result:
    matrix, bias, cond = (case.input(f"in.{name}") for name in ("A", "b", "cond"))
    uniforms = case.input("in.uniforms")
    count, batch = uniforms.shape[:2]
    seen: list[Tensor] = []

    def step(last: Tensor | None) -> Tensor:
        if last is None:
            return cond + bias
        seen.append(last.float())
        return torch.cat([cond, *seen], dim=1).sum(1, keepdim=True) @ matrix + bias

    bits = samplers.sample_ar(
        step,
        CodeSpace(count, (2,) * len(bias)),
        batch,
        guidance=guidance(case, batch),
        temperature=case.info["args"]["temp"],
        seed=fill(list(uniforms)),
    )
    return {"out.bits": bits.float()}


@runner("instella__diffusion_sample")
def diffusion_sample(case: Any) -> Result:
    args, uniforms = case.info["args"], case.input("in.uniforms")
    matrix, bias, cond = (case.input(f"in.{name}") for name in ("A", "b", "cond"))
    _, batch, count, width = uniforms.shape
    bits = samplers.sample_bit_diffusion(
        lambda x, t: x @ matrix + bias + cond + t[:, None, None],
        CodeSpace(count, (2,) * width),
        batch,
        args["num_steps"],
        guidance=guidance(case, batch),
        temperature=args["temp"],
        rho=args["rho"],
        posterior=str(args["protocol"]) == "2",
        seed=fill(list(uniforms)),
    )
    return {"out.bits": bits.float()}


@runner("instella__diffusion_add_noise")
def diffusion_add_noise(case: Any) -> Result:
    bits, logits = case.input("in.bits"), case.input("in.logits")
    noisy = schedules.noisy_probability(bits, case.input("in.t").view(-1, 1, 1))
    x_t = (case.input("in.uniform") < noisy).float()
    clean = samplers.clean_logits(logits, x_t)
    return {
        "out.x_t": x_t,
        "out.x0_logits": clean,
        "out.bce": F.binary_cross_entropy_with_logits(clean, bits),
    }


# -- networks --------------------------------------------------------------------------------------


BLOCK = {
    "attn.q_proj": "attention.q",
    "attn.k_proj": "attention.k",
    "attn.v_proj": "attention.v",
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
    "pos_emb": "positions",
}


def block_rules(layer: int | str, target: str) -> dict[str, str]:
    """Names of one layer of any of the networks, or, by a pattern, of all of them."""
    start = rf"transformer_blocks\.{layer}\."
    return {start + re.escape(name): f"{target}.{ours}" for name, ours in BLOCK.items()}


def side(case: Any, name: str) -> TransformerConfig:
    """The transformer of the encoder or the decoder; its stages end where the grid changes."""
    a, w = case.info["args"], weights(case, f"{name}.")
    splits = a["downsample_idx" if name == "encoder" else "upsample_idx"]
    edges = [0, *(split + 1 for split in splits), depth(w, "transformer_blocks")]
    heads = a[f"{name}_num_heads"]
    return TransformerConfig(
        heads * a[f"{name}_head_dim"],
        tuple(end - start for start, end in zip(edges[:-1], edges[1:], strict=True)),
        heads,
        hidden=len(w["transformer_blocks.0.mlp.up_proj.weight"]),
        qk_norm=True,
        rope=tuple(a["axes_dims_rope"]),
    )


def load_side(
    module: torch.nn.Module, case: Any, name: str, stages: tuple[int, ...], more: dict[str, str]
) -> None:
    """The official weights of the encoder or the decoder; `more` renames what is outside layers."""
    places = [(stage, block) for stage, count in enumerate(stages) for block in range(count)]
    rules = {r"(down|up)_layers": "resample", r"norm_out": f"stages.{len(stages) - 1}.norm"} | more
    for layer, (stage, block) in enumerate(places):
        rules |= block_rules(layer, f"stages.{stage}.blocks.{block}")
    w = weights(case, f"{name}.")
    if name == "decoder":
        w |= {f"to_pixel.{kind}": value for kind, value in weights(case, "to_pixel.").items()}
    load(module, renamed(w, rules))


@runner("instella__bae_tiny")
def autoencoder(case: Any) -> Result:
    a, x = case.info["args"], case.input("in.image")
    latents, patches = case.input("w.encoder.latent_tokens"), "w.encoder.patch_embedder.weight"
    config = autoencoders.LatentConfig(
        latents.shape[-2],
        case.input(patches).shape[-1],
        side(case, "encoder"),
        side(case, "decoder"),
        extent=a.get("scale"),
        channels=x.shape[1],
    )
    encoder, decoder = autoencoders.LatentEncoder(config), autoencoders.LatentDecoder(config)
    enter = {r"latent_tokens": "latents", r"patch_embedder": "patches", r"proj_out": "out"}
    load_side(encoder, case, "encoder", config.encoder.stages, enter)
    leave = {r"mask_tokens": "mask", r"input_layer": "enter", r"to_pixel": "out"}
    load_side(decoder, case, "decoder", config.decoder.stages, leave)
    quantizer = bernoulli_quantizer(weights(case, "quantizer."), penalty=1.0).eval()
    result = {}
    proper, backbone.apply_rope = backbone.apply_rope, mismatched_rope
    try:
        features = encoder(x)
        out = quantizer(features)
        for name, match in expected(case, r"out\.(?:recon(?:_(\d+)x)?|forward)").items():
            times = int(match[1] or 1)
            result[name] = decoder(out.z, [times * length for length in x.shape[2:]])
    finally:
        backbone.apply_rope = proper
    return result | {
        "out.encoder": features,
        "out.z_q": out.z,
        "out.code_loss": out.loss,
        "out.bits": out.ids,
    }


GENERATOR = {
    **block_rules(r"(\d+)", r"backbone.blocks.\1"),
    r"split_token": "start",
    r"x_embedder": "head.enter",
    r"proj_out": "head.out",
    r"time_embed\.linear_1": "time.net.0",
    r"time_embed\.linear_2": "time.net.2",
    r"norm_out\.linear": "backbone.modulation",
    r"norm_out": "backbone.norm",
}


def generator(case: Any, bits: Tensor, **options: Any) -> tuple[Generator, Condition]:
    """A generator of the size of the weights, and one text feature a layer."""
    w = weights(case)
    state = renamed(w, GENERATOR)
    features = tuple(case.input(f"in.feat{k}") for k in range(depth(w, "transformer_blocks")))
    dim, width = state["head.enter.weight"].shape
    transformer = TransformerConfig(
        dim,
        len(features),
        case.info["args"]["heads"],
        ffn="gelu_tanh",
        hidden=len(state["backbone.blocks.0.ffn.up.bias"]),
        qk_norm=True,
        ffn_bias=True,
        block_positions=state["backbone.blocks.0.positions"].shape[-2],
        context_dim=features[0].shape[-1],
        **options,
    )
    time = "scalar" if transformer.adaptive else "none"
    space = CodeSpace(bits.shape[1], (2,) * width)
    model = Generator(GeneratorConfig(space, transformer, "bit", time=time)).eval()
    for name in state:
        if name.startswith("backbone.modulation."):  # official order: scale, shift
            state[name] = torch.cat(state[name].chunk(2)[::-1])
    load(model, state, "head.mask", *(["start"] if transformer.adaptive else []))
    return model, Condition(None, features, case.input("in.text_mask").bool())


@runner("instella__ar_model_tiny")
def ar_model(case: Any) -> Result:
    bits = case.input("in.bits")
    model, given = generator(case, bits)
    return {
        "out.logits": model.next_logits(bits, given),
        "out.loss": objectives.NextToken().loss(model, bits.long(), given)["loss"],
    }


@runner("instella__diff_model_tiny")
def diffusion_model(case: Any) -> Result:
    bits = case.input("in.x_t")
    model, given = generator(case, bits, norm="layer", adaptive=True, final_norm="adaptive")
    return {"out.logits": model.flip_logits(bits, case.input("in.t").flatten(), given)}
