"""`python -m vtc.eval efficiency`: what methods cost and save, against the uncompressed model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.commands.console import print_json, progress, stderr, stdout
from vtc.errors import VTCError
from vtc.eval.common.arguments import add_settings, command, names, planned, positive

if TYPE_CHECKING:
    from vtc.eval.efficiency.lines import Line
    from vtc.eval.efficiency.run import Measurement
    from vtc.eval.efficiency.subject import Subject

DESCRIPTION = """\
Time of the vision tower, of the selection and of the prefill, time to the first token, decoding
speed, peak memory, KV cache and FLOPs of every method at every retention, in one process, one after
the other in every round. Ratios are to the uncompressed model of the same run, and to the ideal: the
vision tower as it is, and the language model alone on as many tokens.

--shape builds a well-known architecture with random weights; on a CPU with a few layers, from which
figures at the published depth are extrapolated. docs/efficiency.md defines all figures.
"""
ATTENTIONS = ("sdpa", "flash_attention_2", "eager")


def add(commands: Any) -> None:
    """Add the sub-command."""
    parser = commands.add_parser(
        "efficiency",
        help="times, memory, cache and FLOPs of methods",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    subject = parser.add_mutually_exclusive_group()
    subject.add_argument(
        "--shape",
        metavar="NAME",
        help="llava-1.5-7b, llava-next-7b, qwen2.5-vl-7b, internvl3-8b with random weights, or "
        "'reference' (default)",
    )
    subject.add_argument("--model", metavar="NAME", help="a checkpoint: hub id or folder")
    add_settings(parser, "0.25,0.1")
    parser.add_argument(
        "--layers", type=positive, help="language layers of a shape; default: 1 on a CPU, else all"
    )
    parser.add_argument(
        "--vision-layers", type=positive, help="vision layers; default: 4 on a CPU (8 for qwen)"
    )
    parser.add_argument(
        "--width",
        type=float,
        default=1.0,
        metavar="SHARE",
        help="of the language model's width, for a shape; default 1",
    )
    parser.add_argument(
        "--image-size", metavar="WxH", type=_size, help="pixels, default 672x672; reference 128x128"
    )
    parser.add_argument("--image", metavar="FILE", help="a picture instead of smooth noise")
    parser.add_argument(
        "--question", type=positive, default=48, metavar="N", help="tokens of text, default 48"
    )
    parser.add_argument("--rounds", type=positive, default=5, help="timed rounds, default 5")
    parser.add_argument(
        "--new-tokens", type=positive, default=8, metavar="N", help="tokens to decode, default 8"
    )
    parser.add_argument(
        "--attention",
        type=names,
        metavar="NAME,...",
        help="sdpa, flash_attention_2, eager; default: sdpa, and flash_attention_2 where it runs",
    )
    parser.add_argument("--output", required=True, metavar="RUN", help="folder of the run, new")
    parser.add_argument("--json", action="store_true", help="print the lines as JSON")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Plan, measure, print."""
    _check(args)
    chosen = planned(args)

    from vtc.eval.efficiency.run import measure, steps

    with progress(disable=args.quiet or args.json) as bar:
        task = bar.add_task("building the model", total=None)
        subject = _subject(args)
        attentions = _attentions(args.attention, subject.device)
        bar.update(task, total=steps(len(chosen), len(attentions), args.rounds))
        done = measure(
            subject,
            chosen,
            attentions,
            args.rounds,
            args.new_tokens,
            Path(args.output),
            args.positions,
            {"command": command()},
            lambda text: bar.update(task, description=text, advance=1),
        )
    lines = done.lines()
    if args.json:
        print_json([line.plain() for line in lines])
    else:
        _print(done, lines, Path(args.output))
    if all(line.error is not None for line in lines):
        raise VTCError(f"efficiency: nothing could be measured: {lines[0].error}")


def _check(args: argparse.Namespace) -> None:
    """What can be said of the arguments before a heavy library is imported."""
    from vtc.eval.efficiency.shapes import narrowed, shape

    if args.new_tokens < 2:
        raise VTCError(f"new-tokens: got {args.new_tokens}, allowed are 2 and more")
    for name in args.attention or ():
        if name not in ATTENTIONS:
            raise VTCError(f"attention: got {name!r}, allowed are {', '.join(ATTENTIONS)}")
    if args.shape not in (None, "reference"):
        narrowed(shape(args.shape), args.width).reduced(args.layers, args.vision_layers)
        return
    if args.width != 1:
        raise VTCError(
            f"width: got {args.width}, but only shapes with random weights can be narrower"
        )
    for name in ("layers", "vision_layers"):
        if getattr(args, name) is not None:
            raise VTCError(
                f"{name.replace('_', '-')}: got {getattr(args, name)}, but only shapes with "
                "random weights can have fewer layers"
            )


def _subject(args: argparse.Namespace) -> Subject:
    from vtc.eval.efficiency.subject import from_checkpoint, from_shape, picture
    from vtc.rgb import load_image

    image = None if args.image is None else load_image(args.image)
    if args.image_size is not None:
        image = picture(args.image_size) if image is None else image.resize(args.image_size)
    common = dict(device=args.device, dtype=args.dtype, image=image, question=args.question)
    if args.shape in (None, "reference"):
        return from_checkpoint(args.model or "reference", **common)
    depth = args.layers, args.vision_layers
    return from_shape(args.shape, *depth, **common, width=args.width)


def _attentions(given: Sequence[str] | None, device: Any) -> list[str]:
    """What was asked for, or all that runs fast."""
    if given is None:
        from transformers.utils import is_flash_attn_2_available

        more = device.type == "cuda" and is_flash_attn_2_available()
        return ["sdpa", *["flash_attention_2"] * more]
    return list(dict.fromkeys(given))


def _print(done: Measurement, lines: Sequence[Line], folder: Path) -> None:
    from vtc.eval.efficiency.run import NOISY
    from vtc.eval.efficiency.table import CAPTION, table

    console, subject = stdout(), done.subject
    many = len(dict.fromkeys(line.attention for line in lines)) > 1
    for attention in dict.fromkeys(line.attention for line in lines):
        rows = [line for line in lines if line.attention == attention]
        about = f"{subject.name}, {attention}" if many else subject.name
        width = subject.facts.get("width", 1.0)
        about += f", {width:g} of its width" if width != 1 else ""
        depth, true = subject.depth, subject.true_depth
        layers = f"{depth.language} + {depth.vision} layers"
        console.print(table(f"{about}, {layers}, as measured", rows))
        if depth != true:
            layers = f"{true.language} + {true.vision} layers"
            console.print(table(f"{about}, extrapolated to {layers}", rows, extrapolated=True))
    console.print(CAPTION, style="dim", highlight=False)
    for line in lines:
        if line.error is not None:
            console.print(f"{line.setting}: {line.error}", markup=False, highlight=False)
    for note in dict.fromkeys(note for line in lines for note in line.notes):
        if note.startswith(NOISY):  # the run's warning names the settings
            continue
        console.print(f"note: {note}", markup=False, highlight=False)
    for warning in done.warnings:
        stderr().print(f"warning: {warning}", markup=False, highlight=False)
    console.print(f"\nrun: {folder}", markup=False, highlight=False)


def _size(text: str) -> tuple[int, int]:
    """Type of `--image-size`."""
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal() and int(width) and int(height)):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected WIDTHxHEIGHT")
    return int(width), int(height)
