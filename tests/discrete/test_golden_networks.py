"""The golden runners of the tiny networks on cases nobody shipped: other sizes and settings.

The expected tensors come from a network in plain code, or from a shipped case whose answer cannot
change: a layer that adds nothing, one sample of a batch.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.discrete.made_up import SHIPPED, Made, Tensors, check, randn, shipped
from tests.golden import Mismatch

# -- networks against plain code -------------------------------------------------------------------


def elm_weights(head: dict[str, tuple[int, ...]], dim: int, layers: int, hidden: int) -> Tensors:
    shapes = {"cls_embedding.embedding_table.weight": (4, dim), "norm.weight": (dim,), **head}
    for layer in range(layers):
        shapes |= {
            f"layers.{layer}.attention.wqkv.weight": (3 * dim, dim),
            f"layers.{layer}.attention.wo.weight": (dim, dim),
            f"layers.{layer}.attention_norm.weight": (dim,),
            f"layers.{layer}.feed_forward.w1.weight": (hidden, dim),
            f"layers.{layer}.feed_forward.w3.weight": (hidden, dim),
            f"layers.{layer}.feed_forward.w2.weight": (dim, hidden),
            f"layers.{layer}.ffn_norm.weight": (dim,),
        }
    return {f"w.{name}": randn(*shape) / 3 + (len(shape) < 2) for name, shape in shapes.items()}


def elm_layers(w: Tensors, x: Tensor, places: Tensor, heads: int, causal: bool) -> Tensor:
    """`[L, D]` through ELM's layers; row 0 is the class, whose query and key vanish."""
    d = x.shape[1] // heads

    def norm(x: Tensor, name: str) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"w.{name}.weight"]

    rate = 10000 ** (-torch.arange(0, d // 2, 2) / (d // 2))
    angle = torch.cat([places[:, :1] * rate, places[:, 1:] * rate], 1)
    turn = torch.cat([torch.zeros(1, d // 2), torch.polar(torch.ones_like(angle), angle)])

    def rotate(x: Tensor) -> Tensor:
        turned = torch.view_as_complex(x.reshape(len(x), -1, 2)) * turn[: len(x)]
        return torch.view_as_real(turned).flatten(1)

    layer = 0
    while f"w.layers.{layer}.ffn_norm.weight" in w:
        name = f"layers.{layer}"
        qkv = norm(x, f"{name}.attention_norm") @ w[f"w.{name}.attention.wqkv.weight"].T
        mixed = []
        for head in range(heads):
            q, k, v = (part[:, head * d : (head + 1) * d] for part in qkv.chunk(3, dim=1))
            score = rotate(q) @ rotate(k).T / d**0.5
            if causal:
                score = score.masked_fill(torch.ones_like(score).triu(1) > 0, -torch.inf)
            mixed.append(score.softmax(-1) @ v)
        x = x + torch.cat(mixed, 1) @ w[f"w.{name}.attention.wo.weight"].T
        h = norm(x, f"{name}.ffn_norm")
        gate, up = (h @ w[f"w.{name}.feed_forward.{part}.weight"].T for part in ("w1", "w3"))
        x = x + (F.silu(gate) * up) @ w[f"w.{name}.feed_forward.w2.weight"].T
        layer += 1
    return norm(x, "norm")


def elm_places(grid: int, repeat: int = 1) -> Tensor:
    return torch.tensor([[y, x] for y in range(grid) for x in range(grid) for _ in range(repeat)])


def elm_ar(subcodes: int, grid: int, heads: int, layers: int) -> Made:
    dim, vocab, count = 8 * heads, 8, grid * grid
    many = [f".{k}" for k in range(subcodes)] if subcodes > 1 else [""]
    head = {f"{part}{k}.weight": (vocab, dim) for k in many for part in ("tok_embedder", "output")}
    if subcodes > 1:
        head["proj.weight"] = (dim, subcodes * dim)
    w = elm_weights(head, dim, layers, 20)
    ids, labels = torch.randint(vocab, (1, count, subcodes)), torch.tensor([2])
    classes = w["w.cls_embedding.embedding_table.weight"]

    def logits(ids: Tensor, label: int) -> Tensor:
        """Of all positions up to the one behind `ids` `[n, K]`: `[n + 1, K, V]`."""
        x = [w[f"w.tok_embedder{name}.weight"][ids[:, k]] for k, name in enumerate(many)]
        x = torch.cat(x, 1) @ w["w.proj.weight"].T if subcodes > 1 else x[0]
        h = elm_layers(w, torch.cat([classes[label, None], x]), elm_places(grid), heads, True)
        return torch.stack([h @ w[f"w.output{name}.weight"].T for name in many], 1)

    out = logits(ids[0, :-1], 2)
    made, trace = ids[0, :0], []
    for step in range(count):
        given, null = logits(made, 2)[-1], logits(made, 3)[-1]
        guided = (null + (1 + 1.5 * ((step + 1) / count) ** 2) * (given - null)) / 0.6
        keep = guided >= guided.sort(descending=True).values[:, 2:3]
        trace.append(guided.masked_fill(~keep, -torch.inf))
        made = torch.cat([made, trace[-1].argmax(-1)[None]])
    args = {"heads": heads, "grid": grid, "top_k": 3, "cfg_scale": 2.5, "cfg_schedule": "square"}
    return args | {"temperature": 0.6}, w | {
        **{"in.ids": ids, "in.labels": labels, "out.logits": out.flatten(0, 1)[None]},
        **{"out.loss": F.cross_entropy(out.flatten(0, 1), ids.flatten())},
        **{"out.greedy": made[None], "out.step_logits": torch.stack(trace)[:, None]},
    }


def elm_masked(subcodes: int, grid: int, heads: int, layers: int, iters: int) -> Made:
    dim, vocab, count = 8 * heads, 8, grid * grid
    head = {"tok_embedder.weight": (vocab + 1, dim), "mlm_layer.bias": (1, 1, vocab + 1)}
    head |= {"mlm_layer.fc.weight": (dim, dim), "mlm_layer.fc.bias": (dim,)}
    head |= {"mlm_layer.ln.weight": (dim,), "mlm_layer.ln.bias": (dim,)}
    w = elm_weights(head, dim, layers, 12)
    ids, labels = torch.randint(vocab, (1, count, subcodes)), torch.tensor([0])
    gumbel, hidden = randn(iters, 1, count, subcodes), torch.rand(count) < 0.6
    hidden[0] = True
    table = w["w.tok_embedder.weight"]

    def logits(ids: Tensor, hidden: Tensor, label: int) -> Tensor:
        """`[N, K, V]`: sub-codes stand side by side in the sequence, at one place."""
        x = table[ids.masked_fill(hidden[:, None], vocab).flatten()]
        x = torch.cat([w["w.cls_embedding.embedding_table.weight"][label, None], x])
        h = elm_layers(w, x, elm_places(grid, subcodes), heads, False)[1:]
        h = F.gelu(F.linear(h, w["w.mlm_layer.fc.weight"], w["w.mlm_layer.fc.bias"]))
        h = F.layer_norm(h, (dim,), w["w.mlm_layer.ln.weight"], w["w.mlm_layer.ln.bias"])
        out = h @ table[:-1].T + w["w.mlm_layer.bias"][0, 0, :-1]
        return out.view(count, subcodes, vocab)

    out = logits(ids[0], hidden, 0)
    made, left = torch.zeros(count, subcodes, dtype=torch.long), torch.ones(count, dtype=torch.bool)
    for step in range(iters):
        ratio = (step + 1) / iters
        given, null = logits(made, left, 0), logits(made, left, 3)
        guided = null + (1 + 1.5 * math.sin(math.pi * ratio / 2)) * (given - null)
        made = torch.where(left[:, None], guided.argmax(-1), made)
        if step < iters - 1:
            sure = guided.log_softmax(-1).gather(-1, made[..., None])[..., 0]
            sure = (sure + 3.0 * (1 - ratio) * gumbel[step, 0]).mean(-1)
            sure[~left] = torch.inf
            number = max(1, min(int(left.sum()) - 1, math.floor(count * (1 - ratio))))
            left = torch.zeros(count, dtype=torch.bool)
            left[sure.argsort()[:number]] = True
    args = {"heads": heads, "grid": grid, "iters": iters, "temperature": 3.0, "cfg_scale": 2.5}
    return args | {"cfg_schedule": "cos", "mask_schedule": "linear"}, w | {
        **{"in.ids": ids, "in.labels": labels, "in.mask": hidden[None].float()},
        **{"in.gumbel": gumbel, "out.logits": out.flatten(0, 1)[None], "out.generated": made[None]},
        "out.loss": F.cross_entropy(out[hidden].flatten(0, 1), ids[0, hidden].flatten()),
    }


def qformer(queries: int, heads: int, layers: int, every: int) -> Made:
    """BERT with the norm behind each branch; causal for the official number of queries alone."""
    dim, width, hidden = 4 * heads, 5, 7
    names = {"embeddings.LayerNorm": (dim,)}
    for layer in range(layers):
        name = f"encoder.layer.{layer}"
        for part, source in (("attention", dim), ("crossattention", width)):
            if part == "attention" or layer % every == 0:
                names[f"{name}.{part}.self.query"] = (dim, dim)
                names |= {f"{name}.{part}.self.{kv}": (dim, source) for kv in ("key", "value")}
                names[f"{name}.{part}.output.dense"] = (dim, dim)
                names[f"{name}.{part}.output.LayerNorm"] = (dim,)
        names[f"{name}.intermediate_query.dense"] = (hidden, dim)
        names[f"{name}.output_query.dense"] = (dim, hidden)
        names[f"{name}.output_query.LayerNorm"] = (dim,)
    w = {f"w.{name}.weight": randn(*shape) / 2 for name, shape in names.items()}
    w |= {f"w.{name}.bias": randn(shape[0]) / 2 for name, shape in names.items()}
    start, tokens = randn(1, queries, dim), randn(1, 6, width)

    def line(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"w.{name}.weight"], w[f"w.{name}.bias"])

    def norm(x: Tensor, name: str) -> Tensor:
        weight, bias = w[f"w.{name}.LayerNorm.weight"], w[f"w.{name}.LayerNorm.bias"]
        return F.layer_norm(x, (dim,), weight, bias, 1e-12)

    def attend(x: Tensor, source: Tensor, name: str, causal: bool) -> Tensor:
        q, k, v = (
            line(s, f"{name}.self.{part}").view(len(s), heads, 4).transpose(0, 1)
            for s, part in ((x, "query"), (source, "key"), (source, "value"))
        )
        score = q @ k.mT / 2
        if causal:
            score = score.masked_fill(torch.ones_like(score).triu(1) > 0, -torch.inf)
        mixed = (score.softmax(-1) @ v).transpose(0, 1).flatten(1)
        return norm(x + line(mixed, f"{name}.output.dense"), f"{name}.output")

    x = norm(start[0], "embeddings")
    for layer in range(layers):
        name = f"encoder.layer.{layer}"
        x = attend(x, x, f"{name}.attention", queries == 32)
        if layer % every == 0:
            x = attend(x, tokens[0], f"{name}.crossattention", False)
        up = F.gelu(line(x, f"{name}.intermediate_query.dense"))
        x = norm(x + line(up, f"{name}.output_query.dense"), f"{name}.output_query")
    made = {"in.queries": start, "in.image_tokens": tokens, "out.hidden": x[None]}
    return {"heads": heads}, w | made


NETWORKS: dict[str, Callable[[], Made]] = {
    "elm__ar_tiny_1": lambda: elm_ar(subcodes=1, grid=3, heads=3, layers=1),
    "elm__ar_tiny_3": lambda: elm_ar(subcodes=3, grid=2, heads=1, layers=3),
    "elm__mlm_tiny_1": lambda: elm_masked(subcodes=1, grid=3, heads=2, layers=1, iters=6),
    "elm__mlm_tiny_2": lambda: elm_masked(subcodes=2, grid=3, heads=1, layers=3, iters=3),
    "seed__causal_qformer_tiny": lambda: qformer(queries=32, heads=3, layers=4, every=2),
    "seed__causal_qformer_tiny_few": lambda: qformer(queries=5, heads=1, layers=3, every=3),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks(name: str, tmp_path: Path) -> None:
    torch.manual_seed(len(name))
    check(tmp_path, name, *NETWORKS[name]())


# -- networks whose answer cannot change -----------------------------------------------------------


def with_layer(tensors: Tensors, stack: str, at: int, nothing: str) -> Tensors:
    """One layer more at `at`: a copy of the first whose output maps `nothing` are zero."""
    out = {}
    for name, value in tensors.items():
        start, _, rest = name.partition(f"{stack}.")
        number, _, rest = rest.partition(".")
        if start != "w." or not number.isdigit():
            out[name] = value
            continue
        moved = int(number) + (int(number) >= at)
        out[f"w.{stack}.{moved}.{rest}"] = value
        if number == "0":
            empty = re.match(nothing, rest)
            out[f"w.{stack}.{at}.{rest}"] = torch.zeros_like(value) if empty else value
    return out


@pytest.mark.parametrize(
    ("name", "stack", "nothing", "changed"),
    [
        ("elm__ar_tiny_2", "layers", r"attention\.wo|feed_forward\.w2", {}),
        ("elm__mlm_tiny_1", "layers", r"attention\.wo|feed_forward\.w2", {}),
        (
            *("instella__bae_tiny", "encoder.transformer_blocks", r"attn\.o_proj|mlp\.down_proj"),
            {"encoder_layers": 3, "downsample_idx": [1]},
        ),
        (
            *("instella__bae_tiny", "decoder.transformer_blocks", r"attn\.o_proj|mlp\.down_proj"),
            {"decoder_layers": 3, "upsample_idx": [1]},
        ),
        ("instella__ar_model_tiny", "transformer_blocks", r"attn\.o_proj|mlp\.net\.2", {}),
        ("instella__diff_model_tiny", "transformer_blocks", r"norm1\.linear", {}),
        ("seed__detokenize_tiny", "blocks", r"attn\.proj|mlp\.fc2", {}),
        ("xar__train_step", "encoder_blocks", r"ada_lin", {"depth": [2, 1]}),
        ("xar__train_step", "decoder_blocks", r"ada_lin", {"depth": [1, 2]}),
    ],
)
def test_a_layer_that_adds_nothing(
    name: str, stack: str, nothing: str, changed: dict[str, Any], tmp_path: Path
) -> None:
    args, tensors = shipped(name)
    deeper = with_layer(tensors, stack, 1 if "xar" in name else 0, nothing)
    if "in.feat1" in deeper:  # a text feature for each layer, whatever it says to the new one
        deeper |= {"in.feat1": tensors["in.feat0"], "in.feat2": tensors["in.feat1"]}
    check(tmp_path, name, args | {"layers": 3} | changed, deeper)


@pytest.mark.parametrize(
    ("name", "batched", "second"),
    [
        ("elm__ar_tiny_1", "in.ids in.labels out.logits out.greedy", "out.step_logits"),
        ("elm__mlm_tiny_1", "in.ids in.labels in.mask out.logits out.generated", "in.gumbel"),
        ("instella__bae_tiny", "in.image out.encoder out.bits out.recon out.recon_2x", ""),
        ("instella__ar_model_tiny", "in.bits in.feat0 in.feat1 in.text_mask out.logits", ""),
        ("instella__diff_model_tiny", "in.x_t in.t in.feat0 in.feat1 in.text_mask out.logits", ""),
        ("seed__causal_qformer_tiny", "in.image_tokens out.hidden", ""),
        ("seed__detokenize_tiny", "in.hidden in.clip_target out.recon out.embedding", ""),
        ("xar__generate", "in.labels in.init out.latent", "in.eps"),
    ],
)
def test_a_batch_of_one(name: str, batched: str, second: str, tmp_path: Path) -> None:
    args, tensors = shipped(name)
    alone = {key: value for key, value in tensors.items() if not key.startswith("out.")}
    alone |= {key: tensors[key][1:] for key in batched.split()}
    alone |= {key: tensors[key][:, 1:] for key in second.split()}
    for part in ("json", "safetensors"):  # the weights of the generation are in its neighbour
        shutil.copy(SHIPPED / f"xar__train_step.{part}", tmp_path)
    check(tmp_path, name, args, alone)


def test_labels_that_are_never_dropped(tmp_path: Path) -> None:
    args, tensors = shipped("xar__train_step")
    dropped = tensors["in.drop_uniform"] < args["label_drop_prob"]
    assert bool(dropped.any())
    rows = tensors["w.class_rows"]
    rows[:-1][dropped] = rows[-1]  # the row of no class, for those that lost theirs
    check(tmp_path, "xar__train_step", args | {"label_drop_prob": 0.0}, tensors)


def test_heads_of_a_case_that_does_not_say(tmp_path: Path) -> None:
    args, tensors = shipped("seed__detokenize_tiny")
    about = {"args": {"hidden": tensors["in.hidden"].shape[-1], "heads": 4}}
    (tmp_path / "seed__causal_qformer_tiny.json").write_text(json.dumps(about))
    with pytest.raises(Mismatch):  # four heads by the neighbour, and the answer is that of two
        check(tmp_path, "seed__detokenize_tiny", args, tensors)
    check(tmp_path, "seed__detokenize_tiny", args | {"heads": 2}, tensors)
