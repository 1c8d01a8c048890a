"""`vtc train-scorer`: a scorer for `learned`, trained on a model's own answers."""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

from vtc.commands.console import progress, stdout
from vtc.errors import VTCError
from vtc.eval.common.arguments import add_imports, add_place, names, positive
from vtc.eval.scorer.pictures import GENERAL, from_folder, scenes

DESCRIPTION = f"""\
Train the scorer of the method 'learned' for one model, without labels. The model answers questions
about images as it does without compression; the scorer learns where these answers look. On images held
out, the divergence of answers under selection from the model's own is measured as it learns, and the
best weights are kept. The language model is only run, never trained.

Use it with  vtc run --model MODEL --method learned --option scorer=FOLDER ...  or with
vtc.compress(model, "learned", scorer=FOLDER, retention=0.1).

--questions is a file of lines {{"image": NAME, "question": TEXT, "type": KIND}}; kinds count alike, and
"type" may be left out. Without it every image is asked:
  {chr(10).join(GENERAL).replace(chr(10), chr(10) + "  ")}

A run that was stopped goes on with the same command. Several GPUs:
  accelerate launch --num_processes 4 -m vtc train-scorer ...
"""


def add(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "train-scorer",
        help="train the scorer of 'learned' on a model's own answers",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--model", default="reference", help="hub id, folder, or 'reference' (default)"
    )
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--images", type=Path, metavar="FOLDER", help="images, also in sub-folders")
    where.add_argument(
        "--scenes",
        type=positive,
        metavar="N",
        help="so many drawn training scenes of the reference model, with their questions",
    )
    parser.add_argument("--questions", type=Path, metavar="FILE", help="JSONL, see above")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="the scorer")
    parser.add_argument(
        "--lessons",
        type=Path,
        metavar="FOLDER",
        help="where answers look, written once for several runs; default: in --output",
    )
    parser.add_argument(
        "--most-questions", type=positive, default=8, metavar="N", help="an image, default 8"
    )
    parser.add_argument(
        "--max-new-tokens", type=positive, default=32, metavar="N", help="of an answer, default 32"
    )
    parser.add_argument(
        "--held-out",
        type=positive,
        metavar="N",
        help="images held out, drawn from the folder; default a tenth, 32 at most",
    )
    parser.add_argument(
        "--retention",
        type=names,
        default="0.1,0.05,0.03",
        metavar="SHARE,...",
        help="of the learning curve, default 0.1,0.05,0.03",
    )
    parser.add_argument("--steps", type=positive, default=300, help="default 300")
    parser.add_argument(
        "--batch", type=positive, default=8, help="images a step, all processes together, default 8"
    )
    parser.add_argument("--lr", type=_rate, default=1e-3, help="default 0.001")
    parser.add_argument(
        "--every", type=positive, default=100, help="steps between points of the curve, default 100"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scene-seed", type=int, default=0, help="of --scenes")
    add_imports(parser)
    add_place(parser)
    parser.set_defaults(run=run, usage=parser.error)


def run(args: argparse.Namespace) -> None:
    """Train and print the curve."""
    shares = [_share(text) for text in args.retention]
    if args.scenes is not None:
        if args.questions is not None:
            args.usage("--questions: scenes bring their own, give --images")
        pictures = scenes(args.scenes, args.scene_seed, args.most_questions)
    else:
        pictures = from_folder(args.images, args.questions, args.most_questions)
        # held out are the last: of all sub-folders, and the same ones whatever --seed is
        random.Random(0).shuffle(pictures)
    if len(pictures) < 2:
        given = "--images: got 1 image" if args.scenes is None else "--scenes: got 1"
        raise VTCError(f"{given}, needed are 2 at least")
    held_out = args.held_out or min(32, max(1, len(pictures) // 10))
    from vtc.eval.scorer.fit import Settings, ranks
    from vtc.eval.scorer.train import Plan, train

    settings = Settings(args.steps, args.batch, args.lr, args.every, args.seed)
    plan = Plan(
        args.model,
        pictures,
        held_out,
        args.output,
        settings,
        args.lessons,
        args.max_new_tokens,
        shares,
        args.device,
        args.dtype,
    )
    with progress(disable=ranks()[0] > 0) as bar:
        task = bar.add_task(f"loading {args.model}")
        state, strength = train(plan, bar, task)
    if ranks()[0] > 0:
        return
    from rich.table import Table

    table = Table("step", "loss", *(f"divergence at {share:.0%}" for share in shares))
    for row in state.curve:
        loss = "" if row["loss"] is None else f"{row['loss']:.3f}"
        table.add_row(str(row["step"]), loss, *(f"{value:.3f}" for value in row["at"].values()))
    stdout().print(table)
    best = min(state.curve, key=lambda row: row["divergence"])
    stdout().print(
        f"kept: the weights of step {best['step']} at strength {strength:g}, in {args.output}",
        soft_wrap=True,
    )
    if best["step"] == 0 or strength == 0:
        stdout().print(
            "note: nothing that was learned is better than no correction on the images held out; "
            "this scorer corrects nothing"
        )


def _share(text: str) -> float:
    from vtc.eval.common.settings import parse_retention

    share = parse_retention(text)
    if share is None:
        raise VTCError(f"--retention: got {text!r}, allowed are numbers in (0, 1]")
    return share


def _rate(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, allowed are numbers in (0, 1)")
    return value
