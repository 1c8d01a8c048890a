"""Writes the scenes of a split into a folder, which the suite `photo` reads.

Run: ``python -m vtc.eval.reference_photo.data --debian DEBIAN --clothing CLOTHING --output FOLDER``
"""

from __future__ import annotations

import argparse
import hashlib
import json
from pathlib import Path

from vtc.errors import VTCError

from .scene import make_scene
from .sources import SPLITS, find

#: a line a question: id, picture, type, question, answer
QUESTIONS = "questions.jsonl"
#: what made the folder, and a SHA-256 of the pixels of each picture
FACTS = "facts.json"


def write(
    debian: Path, clothing: Path, output: Path, split: str, seed: int, scenes: int, questions: int
) -> None:
    """Draw scenes and write them, PNG each.

    Raises:
        VTCError: as `sources.find`.
    """
    sources = find(debian, clothing, split)
    output.mkdir(parents=True, exist_ok=True)
    lines, pixels = [], {}
    for number in range(scenes):
        scene = make_scene(sources, split, seed, number, questions)
        name = f"{split}-{seed}-{number:05d}"
        scene.image.save(output / f"{name}.png")
        pixels[name] = hashlib.sha256(scene.image.tobytes()).hexdigest()[:16]
        for place, question in enumerate(scene.questions):
            line = {
                "id": f"{name}-{place}",
                "picture": name,
                "type": question.type,
                "question": question.text,
                "answer": question.answer,
            }
            lines.append(json.dumps(line))
    facts = {
        "split": split,
        "seed": seed,
        "scenes": scenes,
        "questions": questions,
        "pixels": pixels,
    }
    (output / QUESTIONS).write_text("".join(f"{line}\n" for line in lines))
    (output / FACTS).write_text(json.dumps(facts, indent=1) + "\n")


def main(argv: list[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--debian", type=Path, required=True, help="the unpacked Debian packages")
    parser.add_argument("--clothing", type=Path, required=True, help="clothing-dataset-small")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--split", choices=SPLITS, default="test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scenes", type=int, default=300)
    parser.add_argument("--questions", type=int, default=3, help="most about a scene")
    args = parser.parse_args(argv)
    try:
        write(**vars(args))
    except VTCError as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    main()
