"""Exact match of the reference VLM by question type, beside two baselines that ignore the image.

Run: ``python -m vtc.eval.reference.score --split test``

"majority" always gives the most frequent answer of the type on the same questions; "no image" is
the model itself with every image token removed. Answers are scored by the packed forward pass of
:mod:`.packing`; ``--generate N`` also answers the questions of N scenes through the real processor
and ``generate`` and prints how often the two agree.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from vtc.eval.common.loading import Loaded

from .model import load_reference
from .questions import TYPES, is_correct, majority
from .scene import SPLITS, Scene, scenes
from .threads import one_thread
from .tokenizer import chat
from .train_language import measure


def nothing_kept(scene: Scene, retention: float, rng: np.random.Generator) -> np.ndarray:
    """Mask that removes the whole image, newlines included."""
    from .tiles import token_layout

    return np.zeros(len(token_layout(scene.image.height, scene.image.width)), dtype=bool)


def groups(scores: dict[str, float], count: dict[str, int]) -> dict[str, float]:
    """Question-weighted means over the types of each group."""
    found = {}
    for group in dict.fromkeys(TYPES.values()):
        kinds = [kind for kind in TYPES if TYPES[kind] == group and count.get(kind)]
        if len(kinds) > 1:
            total = sum(count[kind] for kind in kinds)
            found[group] = sum(scores[kind] * count[kind] for kind in kinds) / total
    return found


def hits(loaded: Loaded, scene: Scene) -> list[bool]:
    """Whether each question about a scene is answered right through the processor and ``generate``."""
    prompts = [chat(question.text) for question in scene.questions]
    inputs = loaded.batch([[scene.image]] * len(prompts), prompts)
    said = loaded.answer(inputs, max_new_tokens=8)
    return [
        is_correct(text.strip(), q.answer) for text, q in zip(said, scene.questions, strict=True)
    ]


def check_generate(loaded: Loaded, sample: list[Scene]) -> dict[str, float]:
    """Exact match by ``generate`` and by the packed pass, on the same scenes."""
    right = [hit for scene in sample if scene.questions for hit in hits(loaded, scene)]
    packed = measure(loaded.model, sample)
    return {"generate": float(np.mean(right)), "packed": packed["all"], "n": len(right)}


def score(split: str, n: int, seed: int, path: Path | None, generate: int = 0) -> dict[str, Any]:
    """Everything that the command prints."""
    model, processor = load_reference(path=path)
    sample = list(scenes(split, n, seed))
    share, count = majority(question for scene in sample for question in scene.questions)
    full = measure(model, sample)
    blind = measure(model, sample, nothing_kept)
    names = [*TYPES, "all"]
    result: dict[str, Any] = {"split": split, "scenes": n, "seed": seed}
    result["types"] = {
        name: {
            "n": count[name],
            "exact": full[name],
            "majority": share[name],
            "no_image": blind[name],
        }
        for name in names
        if name in count
    }
    result["groups"] = groups(full, count)
    kinds = {kind: [s for s in sample if s.kind == kind] for kind in {s.kind for s in sample}}
    result["scene_kinds"] = {
        kind: measure(model, members)["all"] for kind, members in sorted(kinds.items())
    }
    if generate:
        loaded = Loaded("reference", model, processor, model.device)
        result["generate"] = check_generate(loaded, sample[:generate])
    return result


def table(result: dict[str, Any]) -> str:
    """The result as text."""
    lines = [f"{'type':10} {'n':>6} {'exact':>7} {'majority':>9} {'no image':>9}"]
    for name, row in result["types"].items():
        lines.append(
            f"{name:10} {row['n']:6d} {row['exact']:7.3f} {row['majority']:9.3f} "
            f"{row['no_image']:9.3f}"
        )
    for title in ("groups", "scene_kinds"):
        pairs = "  ".join(f"{k} {v:.3f}" for k, v in result[title].items())
        lines.append(f"{title.replace('_', ' ')}: {pairs}")
    if "generate" in result:
        lines.append(
            "through generate(): {generate:.3f}, packed pass on the same {n} questions: "
            "{packed:.3f}".format(**result["generate"])
        )
    return "\n".join(lines)


@one_thread()
def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--split", choices=sorted(SPLITS), default="test")
    parser.add_argument("--n", type=int, default=600, help="scenes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--path", type=Path, default=None, help="another checkpoint folder")
    parser.add_argument("--generate", type=int, default=0, metavar="N", help="check N scenes")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    result = score(args.split, args.n, args.seed, args.path, args.generate)
    print(json.dumps(result, indent=1) if args.json else table(result))


if __name__ == "__main__":
    main()
