"""Help and what is wrong with arguments come without torch, which takes seconds to import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

#: printed behind a command's own output
HEAVY = "torch", "transformers", "datasets", "sklearn", "matplotlib"
CODE = """
import sys
from {module} import main
try:
    status = main(sys.argv[1:])
finally:
    print([name for name in {heavy} if name in sys.modules], status)
"""
ASK = ["--image", "{image}", "--prompt", "what ?"]
PLAN = ["--suite", "reference", "--output", "run"]
MEASURE = ["efficiency", "--output", "run"]

VTC = [
    (["--help"], 0, "usage: vtc"),
    (["--version"], 0, "vtc "),
    *[
        ([name, "--help"], 0, "usage: vtc")
        for name in ("run", "show", "tune", "demo", "doctor", "methods", "train-scorer")
    ],
    ([], 2, "required: COMMAND"),
    (["nothing"], 2, "invalid choice: 'nothing'"),
    (["shwo"], 2, "; did you mean 'show'?"),
    (["visualise"], 2, "; did you mean 'visualize'?"),
    (["visualize", "--help"], 0, "usage: vtc"),
    (["run", *ASK, "--nothing"], 2, "unrecognized arguments: --nothing"),
    (["run", *ASK, "--ratio", "0.5"], 2, "--ratio 0.5; did you mean '--retention'?"),
    (["run", *ASK, "--num_tokens=9"], 2, "did you mean '--tokens'?"),
    (["run", *ASK, "--metod", "pool"], 2, "did you mean '--method'?"),
    (["run", "--image", "x.png"], 2, "required: --prompt"),
    (["run"], 2, "--image --scene is required"),
    (["run", "--scne", "4"], 2, "is required; unrecognized: --scne; did you mean '--scene'?"),
    (["run", "--imgae=x.png", "--retention", "1"], 2, "did you mean '--image'?"),
    (["run", *ASK, "--rounds", "0"], 2, "allowed are whole numbers >= 1"),
    (["run", *ASK, "--dtype", "int8"], 2, "invalid choice: 'int8'"),
    (["run", *ASK, "--dtype", "float"], 2, "; did you mean 'float"),
    (["run", *ASK, "--retention", ""], 1, "--retention: got '', expected a value"),
    (["run", *ASK, "--retention", "1.5"], 1, "--retention: got 1.5"),
    (["run", *ASK, "--retention", "x", "--method", "pool"], 1, "--retention: got 'x'"),
    (["run", *ASK, "--tokens", "0"], 1, "--tokens: got 0"),
    (["run", *ASK, "--positions", "none"], 1, "--positions: got 'none'"),
    (["run", *ASK, "--option", "tau"], 1, "expected KEY=VALUE"),
    (["run", *ASK, "--method", "globalcom"], 1, "did you mean 'globalcom2'?"),
    (["run", *ASK, "--method", "TopV"], 1, "vtc knows TopV"),
    (["run", *ASK, "--config", "no.yaml"], 1, "cannot read 'no.yaml'"),
    (["run", *ASK, "--import", "no.py"], 1, "--import: cannot import 'no.py': No such file"),
    (["run", "--image", "no.png", "--prompt", "x", "--method", "pool"], 1, "cannot read 'no.png'"),
    (["run", "--image", "{text}", "--prompt", "x", "--method", "pool"], 1, "is not an image file"),
    (["show", "--image", "{image}", "--output", "kept.txt"], 1, "allowed are image files"),
    (["show", "--image", "{image}", "--output", "{text}/a.png"], 1, "output: cannot write"),
    (["methods", "globalcom"], 1, "did you mean 'globalcom2'?"),
    (["methods", "--import", "no_such_module"], 1, "cannot import 'no_such_module'"),
    (["tune"], 2, "one of the arguments --data --suite is required"),
    (["tune", "--data", "no.jsonl"], 1, "cannot read 'no.jsonl'"),
    (["tune", "--data", "{text}", "--target", "1"], 1, "target: got 1.0"),
    (["tune", "--data", "{text}", "--methods", "poool"], 1, "did you mean 'pool'?"),
    (["tune", "--data", "{text}", "--cost", "money"], 2, "invalid choice: 'money'"),
    (["tune", "--data", "{text}", "--output", "run"], 1, "names that end in .yaml"),
    (["tune", "--data", "{text}"], 1, "text.png, line 1: not JSON"),
    (["demo", "--methods", "poool"], 1, "did you mean 'pool'?"),
    (["demo", "--retention", "0"], 1, "retention: got 0.0"),
    (["demo", "--output", "{text}"], 1, "it is a file"),
    (["doctor", "--method", "poool"], 1, "did you mean 'pool'?"),
    (["train-scorer", "--output", "out"], 2, "--images --scenes is required"),
    (
        ["train-scorer", "--output", "out", "--images", "no/folder"],
        1,
        "got 'no/folder', allowed is",
    ),
    (["train-scorer", "--output", "out", "--scenes", "0"], 2, "allowed are whole numbers >= 1"),
    (["train-scorer", "--output", "out", "--scenes", "4", "--lr", "2"], 2, "in (0, 1)"),
    (["train-scorer", "--output", "out", "--images", ".", "--retention", "x"], 1, "got 'x'"),
]
EVAL = [
    (["--help"], 0, "usage: python -m vtc.eval"),
    *[([name, "--help"], 0, "usage: ") for name in ("accuracy", "efficiency", "report", "summary")],
    (["generation", "--help"], 0, "usage: "),
    (["nothing"], 2, "invalid choice: 'nothing'"),
    (["accuracy", *PLAN], 2, "required: --methods"),
    (["accuracy", *PLAN, "--methods", "poool", "--retention", "1"], 1, "did you mean 'pool'?"),
    (["accuracy", *PLAN, "--methods", "pool", "--retention", "5"], 1, "retention: got 5.0"),
    (["accuracy", *PLAN, "--methods", "pool", "--retention", "x"], 1, "retention: got 'x'"),
    (
        ["accuracy", *PLAN[2:], "--suite", "gqaa", "--methods", "pool", "--retention", "1"],
        1,
        "did you mean 'gqa'?",
    ),
    ([*MEASURE, "--methods", "poool"], 1, "did you mean 'pool'?"),
    ([*MEASURE, "--shape", "llava-1.5"], 1, "shape: got 'llava-1.5'"),
    ([*MEASURE, "--image-size", "3"], 2, "expected WIDTHxHEIGHT"),
    ([*MEASURE, "--attention", "fast"], 1, "attention: got 'fast'"),
    ([*MEASURE, "--new-tokens", "1"], 1, "new-tokens: got 1"),
    (["report", "no_such_run", "--output", "page"], 1, "no_such_run"),
    (["summary", "no_such_run"], 1, "no_such_run"),
    (["generation", "run", "nothing", "--output", "out"], 1, "config: nothing"),
    (["generation", "study", "nothing"], 1, "study: got 'nothing'"),
]
CASES = [("vtc.cli", *case) for case in VTC] + [("vtc.commands.eval", *case) for case in EVAL]


@pytest.mark.parametrize("module, argv, status, message", CASES)
def test_no_heavy_library_is_imported(
    tmp_path: Path, module: str, argv: list[str], status: int, message: str
) -> None:
    places = {"image": tmp_path / "image.png", "text": tmp_path / "text.png"}
    Image.new("RGB", (8, 8)).save(places["image"])
    places["text"].write_text("no picture")
    done = subprocess.run(
        [sys.executable, "-c", CODE.format(module=module, heavy=HEAVY)]
        + [word.format(**places) for word in argv],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert message in done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == f"[] {status}", done.stderr
    assert "Traceback" not in done.stderr and {*tmp_path.iterdir()} == {*places.values()}
