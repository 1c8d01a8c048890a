"""`vtc show`: a picture of the tokens that a method keeps."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vtc.commands import asked
from vtc.commands.console import print_json, stdout, waiting
from vtc.commands.outputs import check_writable
from vtc.config import CompressionConfig, add_arguments
from vtc.errors import VTCError
from vtc.eval.common.arguments import add_model
from vtc.eval.common.loading import load
from vtc.eval.common.prompts import RULES, notes

QUESTION = "what is in the image?"


def add(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "show",
        aliases=["visualize"],  # its name in Python
        help="paint the tokens that a method keeps over the image",
        description="Run one prefill and paint kept, merged and dropped patches over the image.\n\n"
        + RULES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_model(parser)
    asked.add(parser, several=False)
    parser.add_argument(
        "--prompt",
        help="the question, read by text-guided methods; by default that of a scene, or "
        f"{QUESTION!r}",
    )
    parser.add_argument("--output", default="kept.png", metavar="FILE", help="default: kept.png")
    parser.add_argument("--report", metavar="FILE", help="also save the report as JSON")
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_arguments(parser, prefix="")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Prefill, paint, save."""
    config = CompressionConfig.from_sources(file=args.config, args=args)

    prompt = args.prompt or (QUESTION if args.scene is None else None)
    (subject,) = asked.subjects(args, prompt)
    picture = subject.image()
    _check_suffix(args.output)
    check_writable("output", args.output)
    if args.report:
        check_writable("report", args.report)
    config.create_all()  # what is wrong is said before the model is loaded

    import torch

    import vtc
    from vtc.pictures import visualize

    with waiting(f"loading {args.model}", args.json):
        loaded = load(args.model, args.device, args.dtype)
    inputs = loaded.inputs([picture], subject.prompt, args.raw)
    told = asked.budgeted(config) + ([] if args.raw else notes(loaded.processor, subject.prompt))
    with (
        waiting("reading the picture", args.json),
        vtc.compress(loaded.model, config, processor=loaded.processor) as handle,
        torch.inference_mode(),
    ):
        loaded.model.generate(**inputs, max_new_tokens=1, do_sample=False)
    report = handle.reports[-1]
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    heading = {"file": Path(subject.name).name, "model": args.model, "question": subject.prompt}
    visualize(picture, report, **heading).save(args.output)
    if args.report:
        report.save_json(args.report)
    if args.json:
        found = {"output": str(args.output), "report": report.to_dict(details=False)}
        print_json({**found, "notes": told})
    else:
        console = stdout()
        console.print(report.table())
        for note in told:
            console.print(f"note: {note}", markup=False)
        console.print(f"picture: {args.output}", markup=False)


def _check_suffix(path: str) -> None:
    """Refuse a file type before the model is loaded."""
    from PIL import Image

    known = Image.registered_extensions()
    suffix = Path(path).suffix.lower()
    if known.get(suffix) not in Image.SAVE:
        raise VTCError(f"output: got {path!r}, allowed are image files such as kept.png")
