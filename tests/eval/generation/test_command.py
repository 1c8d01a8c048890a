"""`python -m vtc.eval generation`: an experiment end to end, and wrong orders of its steps."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("omegaconf")
pytest.importorskip("accelerate")
pytest.importorskip("skimage")

from safetensors.torch import load_file  # noqa: E402

from vtc.commands.eval import main  # noqa: E402

SMALL = [
    "tokenizer.options.width=8",
    "generator.options.dim=16",
    "generator.options.depth=1",
    *(
        f"{part}.train.{key}"
        for part in ("tokenizer", "generator")
        for key in ("steps=20", "batch=8")
    ),
    "sample.count=20",
    "features.steps=20",
]


def run(*words: str) -> int:
    return main(["generation", *words])


def test_train_sample_measure(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "digits"
    given = ["digits_ar", "--output", str(folder), "--set", *SMALL]
    assert run("train-tokenizer", *given) == 0
    assert run("train-generator", *given) == 0
    assert run("sample", *given) == 0
    capsys.readouterr()
    assert run("measure", *given) == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads((folder / "metrics.json").read_text())
    assert report["features"] == "32-d classifier of digits"
    assert report["reconstruction"]["bits_per_image"] == 128
    assert report["samples"]["count"] == 20 and report["samples"]["distance"] > 0
    made = load_file(str(folder / "samples.safetensors"))
    assert made["images"].shape == (20, 3, 8, 8) and made["images"].abs().max() <= 1
    assert made["labels"].tolist() == [n % 10 for n in range(20)]
    for name in ("samples.png", "reconstructions.png", "tokenizer/history.png"):
        assert (folder / name).stat().st_size > 0
    rows = (folder / "tokenizer" / "history.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] == 20
    # the same samples again, and a finished run that is continued changes nothing
    weights = (folder / "generator" / "model.safetensors").read_bytes()
    assert run("train-generator", *given, "--resume") == 0
    assert (folder / "generator" / "model.safetensors").read_bytes() == weights
    assert run("sample", *given) == 0
    again = load_file(str(folder / "samples.safetensors"))
    assert torch.equal(again["images"], made["images"])
    # refused: starting over, and other settings in the same folder
    assert run("train-generator", *given) == 1
    assert "--resume" in capsys.readouterr().err
    assert run("sample", *given, "seed=3") == 1
    assert "seed: 0 -> 3" in capsys.readouterr().err
    # but samples may be drawn again in another way
    assert run("sample", *given, "sample.guidance=3", "sample.count=30") == 0
    assert run("measure", *given, "features.steps=25") == 0
    again = json.loads((folder / "metrics.json").read_text())["samples"]
    assert (again["guidance"], again["count"]) == (3, 30) and report["samples"]["guidance"] == 2


def test_latents_of_a_tokenizer(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "tokenizer: {name: tiny_elm_bae, options: {width: 8}, train: {steps: 5, batch: 4}}\n"
        "generator: {name: tiny_xar_cell, target: latents, options: {dim: 16, depth: 1, "
        "plan: 'cell:2'}, train: {steps: 5, batch: 4}}\n"
        "sample: {count: 20, options: {steps: 2}}\nfeatures: {steps: 5}\n"
    )
    assert run("run", str(config), "--output", str(tmp_path / "x")) == 0
    assert json.loads((tmp_path / "x" / "metrics.json").read_text())["samples"]["count"] == 20


def test_texts(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    small = [
        "data.count=60",
        "tokenizer.options={patch: 4, tokens: 4, dim: 32}",
        "generator.options={dim: 32, depth: 1}",
        "generator.objective=bit_diffusion",
        *(f"{part}.train.steps=3" for part in ("tokenizer", "generator")),
        "sample.count=20",
        "features.steps=5",
    ]
    given = ["shapes_text", "--output", str(tmp_path / "x"), "--set", *small]
    assert run("run", *given) == 0
    report = json.loads((tmp_path / "x" / "metrics.json").read_text())
    assert report["samples"]["class_accuracy"] is not None  # of the held-out images' shapes
    own = 'sample.captions=["small red ring upper-left","large blue square"]'
    assert run("sample", *given, own) == 0 and run("measure", *given, own) == 0
    report = json.loads((tmp_path / "x" / "metrics.json").read_text())["samples"]
    assert report["class_accuracy"] is None and len(report["captions"]) == 2
    capsys.readouterr()
    for setting, message in (
        ('sample.captions=["a pink ring"]', "'a' is none of small, large"),
        ("generator.objective={name: bit_difusion}", "bit_diffusion"),
        ("generator.name=tiny_elm_ar", "tiny_elm_ar"),
        ("sample.options.stepz=3", "steps"),
    ):
        assert run("run", *given[:2], str(tmp_path / "y"), *given[3:], setting) == 1
        assert message in capsys.readouterr().err


def test_a_first_call_that_fails_leaves_the_folder_free(tmp_path: Path) -> None:
    given = ["digits_ar", "--output", str(tmp_path / "x"), "--set", *SMALL]
    assert run("train-tokenizer", *given, "data.size=10") == 1
    assert run("train-tokenizer", *given) == 0


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("sample.schedule=lineer", "linear"),
        ("data.held_out=0", "data.held_out"),
        ("generator.options.wide=3", "wide"),
        ("sample.sampler=next_x", "this model takes ar, maskgit"),
        ("generator.target=latents", "makes codes, not latents"),
    ],
)
def test_what_cannot_end_well_is_not_begun(
    setting: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = ["digits_ar", "--output", str(tmp_path / "x"), "--set", *SMALL, setting]
    assert run("run", *given) == 1
    assert message in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_pixels_need_no_tokenizer(tmp_path: Path) -> None:
    small = [
        "generator.options={grid: 4, channels: 4, plan: whole, dim: 16, depth: 1}",
        "generator.train.steps=3",
        "sample.count=10",
        "sample.options.steps=2",
        "features.steps=5",
    ]
    given = ["digits_pixels", "--output", str(tmp_path / "x"), "--set", *small]
    assert run("run", *given) == 0
    report = json.loads((tmp_path / "x" / "metrics.json").read_text())
    assert "reconstruction" not in report and report["samples"]["count"] == 10


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sample"], "generation train-generator"),
        (["train-generator"], "generation train-tokenizer"),
        (["measure"], "neither a trained tokenizer nor samples"),
        (["train-tokenizer", "tokenizer.options.size=8"], "set data.size"),
        (["train-tokenizer", "tokenizer.name=tiny_elm"], "tiny_elm_bae"),
        (["train-tokenizer", "tokenizer.options.wide=8"], "wide"),
        (["train-tokenizer", "tokenizer.train.lr=fast"], "tokenizer.train.lr"),
    ],
)
def test_errors_are_one_clear_line(
    words: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    action, *more = words
    given = [action, "digits_ar", "--output", str(tmp_path / "x"), "--set", *SMALL, *more]
    assert run(*given) == 1
    error = capsys.readouterr().err.splitlines()[-1]  # a progress bar may stand before
    assert error.startswith("vtc: error: ") and message in error


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        ("{name: tiny_xar_cell, options: {dim: 16, depth: 1}}", "the tokenizer CodeSpace("),
        ("{name: tiny_xar_cell, target: pixels, options: {channels: 2}}", "2 channels"),
    ],
)
def test_generators_that_do_not_fit(
    generator: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(
        "tokenizer: {name: tiny_elm_bae, options: {width: 8}, train: {steps: 1, batch: 2}}\n"
        f"generator: {generator}\n"
    )
    given = [str(config), "--output", str(tmp_path / "x")]
    assert run("train-tokenizer", *given) == 0
    capsys.readouterr()
    assert run("train-generator", *given) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_list_names_what_there_is(capsys: pytest.CaptureFixture) -> None:
    assert run("list") == 0
    out = capsys.readouterr().out
    for word in ("digits_ar", "quantizers", "tiny_instella_1d", "xar_cell"):
        assert word in out
