"""xAR: cells, flow matching, solvers, and the model that makes cell after cell."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tests.golden_discrete.common import (
    Result,
    depth,
    expected,
    fill,
    image,
    load,
    pair,
    renamed,
    rows,
    runner,
    weights,
)
from vtc.discrete import flow, masks, objectives, plans, samplers, schedules
from vtc.discrete.backbone import TransformerConfig, apply_rope, rope_table, sinusoid
from vtc.discrete.generator import Generator, GeneratorConfig
from vtc.discrete.schedules import Guidance
from vtc.discrete.types import CodeSpace

# -- cells -----------------------------------------------------------------------------------------


def cell_plan(grid: tuple[int, ...], cells: int) -> plans.Plan:
    """The plan of a grid in `cells` cells, as many down as across."""
    side = round(cells**0.5)
    return plans.cell((grid[0], grid[1]), (grid[0] // side, grid[1] // side))


@runner("xar__cell_mask")
def cell_mask(case: Any) -> Result:
    args = case.info["args"]
    size = args["seq_len"] // args["cells"]
    return {"out.mask": masks.block_causal((size,) * args["cells"])}


@runner("xar__cells")
def split_cells(case: Any) -> Result:
    latent = case.input("in.latent")
    parts = cell_plan(latent.shape[2:], case.info["args"]["cells"]).split(rows(latent))
    return {"out.cells": torch.stack(parts, dim=1).squeeze()}  # official code squeezes all axes


@runner("xar__uncluster")
def merge_cells(case: Any) -> Result:
    args, grid = case.info["args"], pair(case.info["args"]["grid"])
    tokens = cell_plan(grid, args["cells"]).restore(case.input("in.tokens"))
    return {"out.latent": image(tokens, grid)}


@runner("xar__rope_cells")
def rope_cells(case: Any) -> Result:
    args = case.info["args"]
    plan = cell_plan(pair(args["grid"]), args["cells"])
    cos, sin = rope_table(plan.coordinates, (args["half_head_dim"],) * 2)
    result = {"out.cos": cos, "out.sin": sin}
    for name, match in expected(case, r"out\.q_(?:all|cell(\d+))").items():
        q = case.input(name.replace("out.", "in."))
        # a call with a number turns that cell, and those before it that were passed along
        end = plan.starts[int(match[1])] + plan.sizes[0] if match[1] else plan.length
        part = slice(end - q.shape[2], end)
        result[name] = apply_rope(q, (cos[part], sin[part]))
    return result


# -- flow and schedules ----------------------------------------------------------------------------


@runner("xar__flow_math")
def flow_math(case: Any) -> Result:
    x, v, t = (case.input(f"in.{name}") for name in ("x_t", "v", "t"))
    per_row = t.view(-1, *[1] * (x.dim() - 1))
    return {
        "out.score_linear": flow.score_from_velocity(v, x, per_row),
        "out.score_cosine": flow.score_from_velocity(v, x, per_row, "cosine"),
        "out.diffusion": flow.diffusion(t),
        "out.linear": torch.stack(flow.path(t)[:2]),
        "out.cosine": torch.stack(flow.path(t, "cosine")),
    }


@runner("xar__logit_normal")
def logit_normal(case: Any) -> Result:
    return {"out.t": schedules.logit_normal(case.input("in.normal")).float()}


@runner("xar__timestep_embedding")
def timestep_embedding(case: Any) -> Result:
    args = case.info["args"]
    return {"out.emb": sinusoid(case.input("in.t"), args["dim"], args["max_period"])}


@runner("xar__lr_schedule")
def lr_schedule(case: Any) -> Result:
    a = case.info["args"]
    constant, end = a.get("constant", 600), a.get("end", 800)  # written out in official code
    values = [
        schedules.warmup_constant_cosine(e, a["lr"], a["warmup"], constant, end, a["min_lr"])
        for e in a["epochs"]
    ]
    return {"out.lr": torch.tensor(values, dtype=torch.float64)}


@runner("xar__sampler")
def sampler(case: Any) -> Result:
    args, start = case.info["args"], case.input("in.latent")
    matrix, bias = case.input("in.A"), case.input("in.class_bias")
    given, null = bias[:-1], bias[-1:]

    def velocity(x: Tensor, t: float) -> Tensor:
        return x @ matrix + t + null + args["cfg_scale"] * (given - null)

    if "euler_maruyama" not in case.name:
        return {"out.x": samplers.euler(velocity, start, args["num_steps"])}
    noise = fill(list(case.input("in.eps")))
    return {"out.x": samplers.euler_maruyama(velocity, start, args["num_steps"], noise)}


# -- model -----------------------------------------------------------------------------------------

RULES = {
    r"class_rows": "classes.weight",
    r"time_embed\.mlp": "time.net",
    r"z_proj\.": "head.enter.",
    r"z_proj_ln": "backbone.input_norm",
    r"encoder_pos_embed_learned": "backbone.positions",
    r"encoder_norm": "backbone.joints.0.norm",
    r"decoder_embed": "backbone.joints.0.map",
    r"decoder_pos_embed_learned": "backbone.joints.0.positions",
    r"decoder_norm": "backbone.norm",
    r"pred": "head.out",
    r"blocks\.(\d+)\.attn\.qkv": r"backbone.blocks.\1.attention.qkv",
    r"blocks\.(\d+)\.attn\.proj": r"backbone.blocks.\1.attention.out",
    r"blocks\.(\d+)\.mlp\.fc1_g": r"backbone.blocks.\1.ffn.gate",
    r"blocks\.(\d+)\.mlp\.fc1_x": r"backbone.blocks.\1.ffn.up",
    r"blocks\.(\d+)\.mlp\.fc2": r"backbone.blocks.\1.ffn.down",
    r"blocks\.(\d+)\.ada_lin\.1": r"backbone.blocks.\1.modulation",
}


def generator(case: Any, groups: int) -> Generator:
    """A generator with the weights of a training case; row k of its classes is that of sample k."""
    a, w = case.info["args"], weights(case)
    channels, *grid = case.input("in.latent").shape[1:]
    stages = depth(w, "encoder_blocks"), depth(w, "decoder_blocks")
    transformer = TransformerConfig(
        len(w["z_proj.bias"]),
        stages,
        a["heads"],
        ffn="geglu",
        hidden=len(w["encoder_blocks.0.mlp.fc1_x.bias"]),
        qkv_bias="encoder_blocks.0.attn.qkv.bias" in w,
        out_bias=True,
        ffn_bias=True,
        rope=(len(w["z_proj.bias"]) // a["heads"] // 2,) * 2,
        positions=grid[0] * grid[1],
        input_norm=True,
        adaptive=True,
    )
    config = GeneratorConfig(
        CodeSpace(grid[0] * grid[1], (2,), (grid[0], grid[1])),
        transformer,
        plan=f"cell:{grid[0] // round(groups**0.5)}",
        classes=len(w["class_rows"]) - 1,
        class_as="adaptive",
        time="sinusoid",
        drop=a["label_drop_prob"],
        channels=channels,
    )
    one_stack = {}
    for name, value in w.items():
        stack, _, rest = name.partition("_blocks.")
        if rest:  # our layers are numbered through both stacks
            layer, _, rest = rest.partition(".")
            name = f"blocks.{int(layer) + (stages[0] if stack == 'decoder' else 0)}.{rest}"
        if ".ada_lin." in name:
            # official order: both gates, both scales, both shifts
            gate_a, gate_f, scale_a, scale_f, shift_a, shift_f = value.chunk(6)
            value = torch.cat([shift_a, scale_a, gate_a, shift_f, scale_f, gate_f])
        one_stack[name] = value
    return load(Generator(config), renamed(one_stack, RULES), "start")


@runner("xar__train_step")
def train_step(case: Any) -> Result:
    latent, noise = case.input("in.latent"), case.input("in.noise")
    batch, groups = noise.shape[:2]
    model = generator(case, groups).train()
    drop = [case.input("in.drop_uniform")] if model.config.drop else []  # else nothing is drawn
    times = case.input("in.t_normal").view(groups, batch).transpose(0, 1)
    draws = fill(drop, times, noise.flatten(1, 2))
    report = objectives.NextX().loss(model, rows(latent), torch.arange(batch), draws)
    report["loss"].backward()
    return {
        "out.loss": report["loss"],
        "out.sq_err": report["position"],
        "grad.z_proj": model.head.enter.weight.grad,
        "grad.pred": model.head.out.weight.grad,
    }


@runner("xar__generate")
def generate(case: Any) -> Result:
    a, start, eps = case.info["args"], case.input("in.init"), case.input("in.eps")
    batch, groups = start.shape[:2]
    beside = case.folder / f"{case.name.replace('generate', 'train_step')}.json"
    trained = type(case)(beside if beside.exists() else case.folder / "xar__train_step.json")
    per_group = eps.unflatten(0, (groups, -1))[:, : a["num_steps"] - 1]
    known = trained.input("in.labels").tolist()
    latent = generator(trained, groups).sample(
        torch.tensor([known.index(label) for label in case.input("in.labels").tolist()]),
        "next_x",
        guidance=Guidance(a["cfg"], "linear", from_one=True),
        steps=a["num_steps"],
        seed=fill(*([start[:, g], *per_group[g]] for g in range(groups))),
    )
    return {"out.latent": image(latent, trained.input("in.latent").shape[2:])}
