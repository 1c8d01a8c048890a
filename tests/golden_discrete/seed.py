"""SEED: vector quantisers, masks, the causal Q-Former, and the way back to an image embedding."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from tests.golden_discrete.common import (
    Result,
    depth,
    expected,
    image,
    leaf,
    load,
    renamed,
    rows,
    runner,
    weights,
)
from vtc.discrete import autoencoders, losses, masks
from vtc.discrete.backbone import TransformerConfig
from vtc.discrete.quantizers import create_quantizer, vq

#: Official code is causal for this number of queries, which it writes out, and for no other.
QUERIES = 32

# -- quantisers ------------------------------------------------------------------------------------


def quantizer(codebook: Tensor, **options: Any) -> vq.VectorQuantizer:
    """A quantiser with the official codebook and nothing around it."""
    module = vq.VectorQuantizer(codebook.shape[1], len(codebook), **options)
    return load(module, {"codebook": codebook})


@runner("seed__vq")
def vector_quantizer(case: Any) -> Result:
    args, z = case.info["args"], leaf(case, "in.z")
    module = quantizer(case.input("in.codebook"), beta=args["beta"], legacy=args["legacy"])
    out = module(z)
    ((out.z * case.input("in.upstream")).sum() + out.loss).backward()
    return {
        "out.z_q": out.z,
        "out.loss": out.loss,
        "out.indices": out.ids.flatten(),
        "grad.z": z.grad,
        "grad.codebook": module.codebook.grad,
    }


@runner("seed__vq_perplexity")
def perplexity(case: Any) -> Result:
    z = case.input("in.z_nchw")
    out = quantizer(case.input("in.codebook"), beta=case.info["args"]["beta"])(rows(z))
    return {
        "out.z_q": image(out.z, z.shape[2:]),
        "out.loss": out.loss,
        "out.indices": out.ids.flatten(),
        "out.perplexity": out.aux["perplexity"],
    }


@runner("seed__ema_codebook")
def ema_codebook(case: Any) -> Result:
    args, start = case.info["args"], case.input("in.weight0")
    module = create_quantizer(
        "ema_vq", start.shape[1], size=len(start), decay=args["decay"], eps=args["eps"]
    ).train()
    book = module.inner._codebook
    book.embed.copy_(start[None])
    book.embed_avg.copy_(start[None])
    book.cluster_size.fill_(args["cluster_size0"])
    weight, size = [], []
    for z in case.input("in.z_steps"):
        module(z[None])
        weight.append(book.embed[0].clone())
        size.append(book.cluster_size[0].clone())
    return {"out.weight": torch.stack(weight), "out.cluster_size": torch.stack(size)}


# -- masks -----------------------------------------------------------------------------------------


@runner("seed__causal_masks")
def causal_masks(case: Any) -> Result:
    args, valid = case.info["args"], case.input("in.pad").bool()
    queries, text = args["num_query"], args["num_text"]

    def additive(mask: Tensor) -> Tensor:
        return -10000.0 * (~masks.allow_padding(mask, valid[:, : mask.shape[1]])).float()

    def encoder(length: int) -> Tensor:
        # the official text sees the queries: harmless where only query outputs are read
        first = min(length, QUERIES)
        return additive(masks.causal_queries(first, length - first, others_see_queries=True))

    result = {
        "out.query_only": encoder(queries),
        "out.query_text": encoder(queries + text),
        "out.caption_decoder": additive(masks.with_prefix(masks.causal(text), queries)),
    }
    for name, match in expected(case, r"out\.reverse_(\d+)_query").items():
        result[name] = additive(masks.full(int(match[1])))
    return result


# -- losses ----------------------------------------------------------------------------------------


@runner("seed__itc_last_token")
def contrastive(case: Any) -> Result:
    args = case.info["args"]
    loss = losses.contrastive_last_token(
        case.input("in.image"), case.input("in.text"), args["temp"], args["label_smoothing"]
    )
    return {"out.loss": loss}


# -- networks --------------------------------------------------------------------------------------

LAYER = r"encoder\.layer\.(\d+)\."
BLOCK = r"transformer.blocks.\1."
QFORMER = {
    r"embeddings\.LayerNorm": "norm",
    rf"{LAYER}intermediate_query\.dense": rf"{BLOCK}ffn.up",
    rf"{LAYER}output_query\.dense": rf"{BLOCK}ffn.down",
    rf"{LAYER}output_query\.LayerNorm": rf"{BLOCK}norm_ffn",
}
for source, target in (("attention", "attention"), ("crossattention", "cross")):
    QFORMER |= {
        rf"{LAYER}{source}\.self\.query": rf"{BLOCK}{target}.q",
        rf"{LAYER}{source}\.self\.key": rf"{BLOCK}{target}.k",
        rf"{LAYER}{source}\.self\.value": rf"{BLOCK}{target}.v",
        rf"{LAYER}{source}\.output\.dense": rf"{BLOCK}{target}.out",
        rf"{LAYER}{source}\.output\.LayerNorm": rf"{BLOCK}norm_{target}",
    }
VIT_BLOCKS = {
    r"(\d+)\.attn\.qkv": r"blocks.\1.attention.qkv",
    r"(\d+)\.attn\.proj": r"blocks.\1.attention.out",
    r"(\d+)\.norm1": r"blocks.\1.norm_attention",
    r"(\d+)\.mlp\.fc1": r"blocks.\1.ffn.up",
    r"(\d+)\.mlp\.fc2": r"blocks.\1.ffn.down",
    r"(\d+)\.norm2": r"blocks.\1.norm_ffn",
}
BERT = {"norm": "layer", "final_norm": "none", "ffn": "gelu"}
BIASED = {"qkv_bias": True, "out_bias": True, "ffn_bias": True}


def query_encoder(w: dict[str, Tensor], queries: Tensor, heads: int) -> autoencoders.QueryEncoder:
    """A Q-Former of the size of its weights."""
    layers = depth(w, "encoder.layer")
    crossed = [k for k in range(layers) if f"encoder.layer.{k}.crossattention.self.key.weight" in w]
    config = TransformerConfig(
        queries.shape[-1],
        layers,
        heads,
        hidden=len(w["encoder.layer.0.intermediate_query.dense.weight"]),
        norm_eps=1e-12,
        post_norm=True,
        cross_dim=w["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        cross_every=crossed[1] if len(crossed) > 1 else layers,
        **BERT,
        **BIASED,
    )
    causal = queries.shape[1] == QUERIES
    encoder = autoencoders.QueryEncoder(queries.shape[1], config, causal).eval()
    return load(encoder, renamed(w, QFORMER) | {"queries": queries})


@runner("seed__causal_qformer_tiny")
def causal_qformer(case: Any) -> Result:
    heads = case.info["args"]["heads"]
    encoder = query_encoder(weights(case), case.input("in.queries"), heads)
    return {"out.hidden": encoder(case.input("in.image_tokens"))}


def heads_of(case: Any, dim: int) -> int:
    """Heads of a case that may not say: those of the Q-Former of the same width beside it."""
    beside = case.folder / f"{case.name.replace('detokenize', 'causal_qformer')}.json"
    known = json.loads(beside.read_text())["args"] if beside.exists() else {}
    given = known["heads"] if known.get("hidden") == dim else 2
    return case.info["args"].get("heads", given)


@runner("seed__detokenize_tiny")
def detokenize(case: Any) -> Result:
    a, hidden, book = case.info["args"], case.input("in.hidden"), case.input("in.codebook")
    dim, heads = hidden.shape[-1], heads_of(case, hidden.shape[-1])
    module = vq.VectorQuantizer(
        dim, len(book), book.shape[1], beta=a.get("beta", 0.25), legacy=True, head="tanh"
    )
    maps = renamed(weights(case, "encode."), {r"": "down."})
    maps |= renamed(weights(case, "decode."), {r"": "up."})
    load(module, maps | {"codebook": book})

    w = weights(case, "blocks.")
    config = TransformerConfig(
        dim,
        len({name.split(".")[0] for name in w}),
        heads,
        hidden=len(w["0.mlp.fc1.weight"]),
        positions=hidden.shape[1],
        **BERT,
        **BIASED,
    )
    reader = query_encoder(weights(case, "reverse."), case.input("in.reverse_query"), heads)
    decoder = autoencoders.EmbeddingDecoder(config, reader, len(case.input("w.proj.bias"))).eval()
    load(decoder.blocks, renamed(w, VIT_BLOCKS) | {"positions": case.input("in.pos")})
    load(decoder.out, weights(case, "proj."))

    out = module(hidden)
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
