"""VLMEvalKit with a compressed model: `python -m vtc.eval.harnesses.vlmevalkit --help`.

VLMEvalKit has no plug-ins: it takes models from a dictionary. The launcher adds one and then starts
VLMEvalKit's own `run.py` in the same process.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import importlib.util
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vtc.config import CompressionConfig, add_arguments
from vtc.errors import VTCError
from vtc.eval.common.arguments import add_place
from vtc.eval.harnesses.model import PLACE, Compressed, Generation, Question
from vtc.pictures import load_image

DESCRIPTION = """\
Everything that is not listed here goes to VLMEvalKit's run.py, for example --data MMBench_DEV_EN
--work-dir outputs --mode all. Its --model is set by this launcher.
"""


def question(message: Sequence[Mapping[str, str]]) -> Question:
    """A VLMEvalKit message, parts of type "image" (a path) and "text", as one user turn.

    In texts, what would be taken for the place of an image is spelt otherwise.
    """
    images = [load_image(part["value"]) for part in message if part["type"] == "image"]
    parts = [
        PLACE if part["type"] == "image" else part["value"].replace(PLACE, "< image >")
        for part in message
    ]
    return Question("\n".join(parts), images)


def build(
    pretrained: str, config: CompressionConfig, device: str | None, dtype: str, max_new_tokens: int
) -> Any:
    """The model as VLMEvalKit wants it, an instance of its `BaseModel`."""
    from vlmeval.vlm.base import BaseModel

    class VTC(BaseModel):
        INTERLEAVE = True
        allowed_types = ["text", "image"]

        def __init__(self) -> None:
            super().__init__()
            self.compressed = Compressed.load(pretrained, config, device, dtype)
            self.generation = Generation.read({"max_new_tokens": max_new_tokens})

        def generate_inner(self, message: Sequence[Mapping[str, str]], dataset: Any = None) -> str:
            return self.compressed.answer([question(message)], self.generation)[0]

    return VTC()


def name(pretrained: str, config: CompressionConfig) -> str:
    """What the model is called in VLMEvalKit's files, different for every setting."""
    budget = config.tokens if config.retention is None else config.retention
    model = Path(pretrained).name
    # checkpoints are often called alike, so that the folder in front must tell them apart
    path = "" if model == pretrained else hashlib.sha256(pretrained.encode()).hexdigest()[:6]
    parts = [model, path, config.method, "" if budget is None else str(budget)]
    parts += [f"{key}{value}" for key, value in sorted(config.options.items())]
    parts.append("" if config.positions == "original" else config.positions)
    return "-".join(part.replace("/", "_") for part in parts if part)


def main(argv: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        prog="python -m vtc.eval.harnesses.vlmevalkit",
        allow_abbrev=False,  # "--mode" and the like are VLMEvalKit's
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pretrained", required=True, help="hub id, folder or 'reference'")
    add_place(parser)
    parser.add_argument("--max-new-tokens", type=int, default=512)
    parser.add_argument("--run", metavar="FILE", help="VLMEvalKit's run.py, default: the installed")
    add_arguments(parser)
    args, rest = parser.parse_known_args(argv)
    try:
        config = CompressionConfig.from_sources(args=args)
        config.create_all()
        launch(args, config, rest)
    except VTCError as error:
        sys.exit(f"error: {error}")


def launch(args: argparse.Namespace, config: CompressionConfig, rest: Sequence[str]) -> None:
    """Add the model to VLMEvalKit's and start it.

    Raises:
        VTCError: VLMEvalKit is not installed, or its `run.py` is not to be found.
    """
    try:
        from vlmeval.config import supported_VLM
    except ImportError as error:
        raise VTCError(f"vlmeval: VLMEvalKit cannot be imported: {error}") from error
    called = name(args.pretrained, config)
    supported_VLM[called] = functools.partial(
        build, args.pretrained, config, args.device, args.dtype, args.max_new_tokens
    )
    sys.argv = [args.run or "run.py", *rest, "--model", called]
    if args.run is not None:
        if not Path(args.run).is_file():
            raise VTCError(f"run: got {args.run!r}, which is no file")
        runpy.run_path(args.run, run_name="__main__")
    elif importlib.util.find_spec("vlmeval.run") is not None:
        runpy.run_module("vlmeval.run", run_name="__main__", alter_sys=True)
    else:
        raise VTCError("run: this VLMEvalKit has no vlmeval.run, give the path of its run.py")


if __name__ == "__main__":
    main()
