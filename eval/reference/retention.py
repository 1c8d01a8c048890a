"""Exact match when only some image tokens are kept: random, uniform, CLS attention, text.

Run: ``python -m vtc.eval.reference.retention --split val``

This is a check of the checkpoint, not of the package's methods: it uses plain top-k rules. It
shows whether answers depend on how tokens are numbered (``--positions both``), whether the CLS
attention of each layer says where things are, and whether the text score finds what is asked for.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from .model import checkpoint_path, load_reference
from .questions import TYPES
from .scene import SPLITS, Scene, scenes
from .threads import one_thread
from .tiles import normalise, split_tiles, token_layout
from .train_language import measure, random_keep, uniform_keep


@torch.no_grad()
def layer_inputs(tower: Any, scene: Scene) -> list[torch.Tensor]:
    """Hidden states before each layer, and after the last one: ``[tiles, 1 + patches, D]``."""
    hidden = tower.pre_layrnorm(tower.embeddings(torch.from_numpy(_tiles(scene))))
    states = [hidden]
    for layer in tower.encoder.layers:
        hidden = layer(hidden, attention_mask=None)
        states.append(hidden)
    return states


def _tiles(scene: Scene) -> np.ndarray:
    return normalise(split_tiles(scene.image))


@torch.no_grad()
def cls_attention(tower: Any, scene: Scene, layer: int) -> np.ndarray:
    """Head-averaged attention of the CLS token to each patch, ``[tiles, patches]``."""
    block = tower.encoder.layers[layer]
    states = block.layer_norm1(layer_inputs(tower, scene)[:-1][layer])
    attention = block.self_attn
    heads = (len(states), -1, attention.num_heads, attention.head_dim)
    query = attention.q_proj(states[:, :1]).view(heads).transpose(1, 2)
    key = attention.k_proj(states).view(heads).transpose(1, 2)
    weights = (query @ key.mT * attention.scale).softmax(-1)
    return weights[:, :, 0, 1:].mean(1).numpy()


@torch.no_grad()
def text_scores(clip: Any, tokenizer: Any, scene: Scene, text: str) -> np.ndarray:
    """Cosine of each projected last-layer patch with the text, ``[tiles, patches]``."""
    patches = clip.visual_projection(layer_inputs(clip.vision_model, scene)[-1][:, 1:])
    ids = tokenizer(text, return_tensors="pt").input_ids
    wanted = clip.get_text_features(input_ids=ids).pooler_output[0]
    return F.cosine_similarity(patches, wanted, dim=-1).numpy()


def top(scene: Scene, scores: np.ndarray, retention: float, per_tile: bool) -> np.ndarray:
    """Keep the best patch tokens of each tile, or of the whole image; newlines stay."""
    layout = token_layout(scene.image.height, scene.image.width)
    keep = layout.patch < 0
    places = np.flatnonzero(~keep)
    value = scores[layout.tile[places], layout.patch[places]]
    group = layout.tile[places] if per_tile else np.zeros(len(places), dtype=int)
    for name in np.unique(group):
        members = places[group == name]
        count = max(1, round(retention * len(members)))
        keep[members[np.argsort(-value[group == name], kind="stable")[:count]]] = True
    return keep


def cls_rule(model: Any, layer: int, per_tile: bool) -> Callable:
    """A keep rule for :func:`measure` by CLS attention."""
    tower = model.model.vision_tower
    known: dict[int, np.ndarray] = {}  # by identity: the sample outlives the rule

    def keep(scene: Scene, retention: float, rng: np.random.Generator) -> np.ndarray:
        if id(scene) not in known:
            known[id(scene)] = cls_attention(tower, scene, layer)
        return top(scene, known[id(scene)], retention, per_tile)

    return keep


def one_question_each(sample: list[Scene], limit: int) -> list[Scene]:
    """One scene per question, for rules that depend on the question."""
    alone = [replace(scene, questions=[q]) for scene in sample for q in scene.questions]
    step = max(1, len(alone) // limit)
    return alone[::step][:limit]


def with_groups(scores: dict[str, float]) -> dict[str, float]:
    """Unweighted mean over types for each group, beside the overall exact match."""
    found = {"all": scores["all"]}
    members = defaultdict(list)
    for kind, group in TYPES.items():
        if kind in scores:
            members[group].append(scores[kind])
    found.update({group: float(np.mean(values)) for group, values in members.items()})
    return found


def study(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row per rule, retention and numbering, as soon as it is known."""
    from transformers import AutoTokenizer, CLIPModel

    model, _ = load_reference(path=args.path)
    sample = list(scenes(args.split, args.n, args.seed))
    rules: dict[str, Callable] = {"random": random_keep, "uniform": uniform_keep}
    for layer in (-1, -2):
        rules[f"cls layer {layer}, per tile"] = cls_rule(model, layer, True)
        rules[f"cls layer {layer}, global"] = cls_rule(model, layer, False)
    modes = ["original", "contiguous"] if args.positions == "both" else [args.positions]
    row = {"rule": "full", "retention": 1.0, "positions": "original"}
    yield row | with_groups(measure(model, sample))
    for retention in args.retention:
        for name, keep in rules.items():
            for mode in modes:
                scores = measure(model, sample, keep, retention, mode == "contiguous")
                row = {"rule": name, "retention": retention, "positions": mode}
                yield row | with_groups(scores)
    if args.text:
        folder = (args.path or checkpoint_path()) / "clip"
        clip = CLIPModel.from_pretrained(folder).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder)

        def by_text(scene: Scene, retention: float, rng: np.random.Generator) -> np.ndarray:
            scores = text_scores(clip, tokenizer, scene, scene.questions[0].text)
            return top(scene, scores, retention, False)

        alone = one_question_each(sample, args.text)
        for retention in args.retention:
            for name, keep in (("text score, global", by_text), ("random, same set", random_keep)):
                row = {"rule": name, "retention": retention, "positions": "original"}
                yield row | with_groups(measure(model, alone, keep, retention))


@one_thread()
def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--split", choices=sorted(SPLITS), default="val")
    parser.add_argument("--n", type=int, default=150, help="scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--retention", type=float, nargs="+", default=[0.5, 0.25, 0.1])
    parser.add_argument("--positions", choices=["original", "contiguous", "both"], default="both")
    parser.add_argument("--text", type=int, default=0, metavar="N", help="N questions by text")
    parser.add_argument("--path", type=Path, default=None, help="another checkpoint folder")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    wrong = [r for r in args.retention if not 0 < r <= 1]
    if wrong:
        raise ValueError(f"retention must be in (0, 1], got {wrong}")
    if args.json:
        print(json.dumps(list(study(args)), indent=1))
        return
    names = ["all", *dict.fromkeys(TYPES.values())]
    print(f"{'rule':26} {'keep':>5} {'positions':10} " + " ".join(f"{n:>9}" for n in names))
    for row in study(args):
        values = " ".join(f"{row.get(n, float('nan')):9.3f}" for n in names)
        start = f"{row['rule']:26} {row['retention']:5.2f} {row['positions']:10}"
        print(f"{start} {values}", flush=True)


if __name__ == "__main__":
    main()
