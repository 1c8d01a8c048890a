"""The `vtc` command through `main(argv)`: exit status, JSON, and errors of one line."""

from __future__ import annotations

import argparse
import json

import numpy as np
import pytest
from PIL import Image

import vtc
import vtc.eval.reference as reference
from vtc.cli import main
from vtc.commands.methods import ACTS, MARKS, describe
from vtc.commands.needs import KEY
from vtc.commands.status import run_command
from vtc.eval.common import loading
from vtc.registry import create_method, list_methods
from vtc.report import Report

QUESTION = "how many circles are there ?"


@pytest.fixture(scope="module")
def loaded():
    return reference.load_reference()


@pytest.fixture(autouse=True)
def quick(monkeypatch, loaded):
    """Load the reference model once; keep the settings of the machine out of it."""
    monkeypatch.setattr(reference, "load_reference", lambda dtype=None: loaded)
    for name in ("METHOD", "RETENTION", "TOKENS", "POSITIONS", "OPTIONS"):
        monkeypatch.delenv(f"VTC_{name}", raising=False)


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    paths = []
    for index, (width, height) in enumerate([(128, 128), (200, 90)]):
        path = tmp_path / f"{index}.png"
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
        paths.append(str(path))
    return paths


def run(capsys, *argv):
    status = main(argv)
    out, err = capsys.readouterr()
    return status, out, err


def run_json(capsys, *argv):
    status, out, err = run(capsys, *argv, "--json")
    assert status == 0, err
    assert err == "", "with --json nothing is on stderr either"
    return json.loads(out)


# -- methods -------------------------------------------------------------------------------------


def test_methods_lists_all(capsys):
    rows = run_json(capsys, "methods")
    assert [row["name"] for row in rows] == list_methods()
    status, out, _ = run(capsys, "methods")
    assert status == 0 and all(name in out for name in list_methods())


def test_methods_takes_a_glob_and_a_name(capsys):
    rows = run_json(capsys, "methods", "token*")
    assert [row["name"] for row in rows] == ["token_correlation", "tokenflex"]
    status, out, _ = run(capsys, "methods", "globalcom2")
    assert status == 0 and "tau" in out and "retention" in out


@pytest.mark.parametrize("name", list_methods())
def test_every_option_is_explained(name):
    """`vtc methods NAME` reads the `Attributes:` of the docstrings; none may be missing."""
    row = describe(name)
    assert row["text"] and row["acts"] in ACTS
    assert [option["name"] for option in row["options"] if not option["text"]] == []


@pytest.mark.parametrize("name", list_methods())
def test_signals_are_those_that_are_asked_for(capsys, name):
    """What `vtc methods` shows is what a model is asked for, not a list beside it."""
    (row,) = run_json(capsys, "methods", name)
    requests = create_method(name).requests().values()
    assert row["signals"] == list(dict.fromkeys(request.kind for request in requests))
    status, out, _ = run(capsys, "methods", name)
    assert status == 0 and f"signals: {', '.join(row['signals']) or 'none'}" in " ".join(
        out.split()
    )


def test_where_methods_act_is_in_words(capsys):
    rows = {row["name"]: row for row in run_json(capsys, "methods")}
    words = {"resize": "pictures", "visionzip": "tower", "divprune": "prompt", "fastv": "layers"}
    assert {name: rows[name]["acts"] for name in words} == words
    for row in rows.values():
        assert (row["acts"] == "layers") == (row["where"] == "layers") == bool(row["cuts"])
    said = " ".join(run(capsys, "methods", "pyramiddrop")[1].split())
    assert "acts inside the language model" in said
    assert "in front of layers 8, 16, 24 of 32" in said
    table = run(capsys, "methods")[1]
    assert all(f"\n{word}: {meaning}" in table for word, meaning in ACTS.items())


def test_needs_are_in_words_and_every_word_has_a_key(capsys):
    rows = {row["name"]: row["needs"] for row in run_json(capsys, "methods")}
    assert rows["uniform"] == [] and rows["globalcom2"] == ["CLS*"]
    assert rows["mmtok"] == ["question"] and rows["tokenflex"] == ["trained"]
    assert rows["recoverable"] == ["CLS*", "question", "text tower*"]
    assert "clips" in rows["vidcom2"]
    found = {need for needs in rows.values() for need in needs}
    status, out, _ = run(capsys, "methods")
    for need in found:
        assert status == 0 and f"\n{need}: {KEY[need]}" in out


@pytest.mark.parametrize("name", list_methods())
def test_marks_of_defaults_have_a_key(capsys, name):
    _, out, _ = run(capsys, "methods", name)
    used = {
        mark for mark in MARKS if any(f"[{mark}" in o["text"] for o in describe(name)["options"])
    }
    assert used == {mark for mark, meaning in MARKS.items() if f"\n[{mark}] {meaning}" in out}


# -- run -----------------------------------------------------------------------------------------


def test_run_gives_a_row_an_image(capsys, images):
    data = run_json(
        capsys, "run", "--image", *images, "--prompt", QUESTION, "--method", "uniform",
        "--retention", "0.25",
    )  # fmt: skip
    assert [result["images"] for result in data["results"]] == [[path] for path in images]
    for result in data["results"]:
        image = result["report"]["images"][0]
        assert image["patches_after"] == int(0.25 * image["patches_before"])
        assert isinstance(result["answer"], str) and "prefill_ratio" not in result


def test_run_compares(capsys, images):
    argv = ["run", "--image", images[0], "--prompt", QUESTION, "--method", "globalcom2",
            "--retention", "0.1", "--compare", "--rounds", "2"]  # fmt: skip
    (result,) = run_json(capsys, *argv)["results"]
    assert isinstance(result["answer_uncompressed"], str)
    ratio = result["prefill_ratio"]
    assert 0 < ratio["low"] <= ratio["median"] <= ratio["high"] and ratio["rounds"] == 2
    status, out, err = run(capsys, *argv)
    assert status == 0 and "prefill time" in out and "loading reference" in err


def test_run_without_a_method_changes_nothing(capsys, images, loaded):
    data = run_json(capsys, "run", "--image", images[0], "--prompt", QUESTION, "--compare")
    (result,) = data["results"]
    assert data["config"]["method"] == "none"
    assert result["answer"] == result["answer_uncompressed"]
    assert not hasattr(loaded[0], "_vtc")


def test_run_together_puts_the_images_into_one_prompt(capsys, images):
    data = run_json(
        capsys, "run", "--image", *images, "--prompt", QUESTION, "--together", "--method",
        "random", "--retention", "0.5,0.25",
    )  # fmt: skip
    (result,) = data["results"]
    shares = [image["retention"] for image in result["report"]["images"]]
    assert shares == pytest.approx([0.5, 0.25], abs=0.01)


def test_sources_of_the_settings(capsys, images, tmp_path, monkeypatch):
    file = tmp_path / "vtc.yaml"
    file.write_text("method: globalcom2\nretention: 0.5\noptions: {thumbnail_order: raster}\n")
    monkeypatch.setenv("VTC_RETENTION", "0.3")
    data = run_json(
        capsys, "run", "--image", images[0], "--prompt", QUESTION, "--config", str(file),
        "--option", "placement=spatial", "--positions", "contiguous",
    )  # fmt: skip
    assert data["config"] == {
        "method": "globalcom2",
        "retention": 0.3,
        "tokens": None,
        "positions": "contiguous",
        "options": {"thumbnail_order": "raster", "placement": "spatial"},
    }
    assert data["results"][0]["report"]["positions"] == "contiguous"


def test_the_projector_that_ships_is_taken(capsys, images, loaded, tmp_path):
    """`run` and `show` give what the model gives with the projector named, not plain pooling."""
    model, processor = loaded
    folder = str(reference.checkpoint_path() / "tokenflex")
    argv = ["--image", images[0], "--prompt", QUESTION, "--method", "tokenflex", "--tokens", "80"]
    (plain,) = run_json(capsys, "run", *argv)["results"]
    (named,) = run_json(capsys, "run", *argv, "--option", f"projector={folder}")["results"]
    inputs = loading.Loaded("reference", model, processor, model.device).inputs(
        [Image.open(images[0]).convert("RGB")], QUESTION
    )
    with vtc.compress(model, "tokenflex", tokens=80, projector=folder):
        out = model.generate(**inputs, max_new_tokens=8, do_sample=False)
    said = processor.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert plain["answer"] == named["answer"] == said[0].strip()
    assert plain["report"]["settings"]["projector"] == "TokenFlexProjector"
    data = run_json(capsys, "show", *argv, "--output", str(tmp_path / "kept.png"))
    assert data["report"]["settings"]["projector"] == "TokenFlexProjector"


def test_run_says_where_a_budget_is_more_than_there_is(capsys, images):
    argv = ["run", "--image", *images, "--prompt", QUESTION, "--method", "random"]
    data = run_json(capsys, *argv, "--tokens", "310")
    found = [result["report"]["images"][0] for result in data["results"]]
    assert [image["patches_after"] for image in found] == [310, found[1]["patches_before"]]
    said = f"asked for 310 patch tokens, there are {found[1]['patches_before']}, and all stay"
    assert [image["note"] for image in found] == ["", said]
    status, out, _ = run(capsys, *argv, "--tokens", "310")
    assert status == 0 and f"note: image 0: {said}" in " ".join(out.split())
    status, _, err = run(capsys, *argv, "--tokens", "310", "--option", "strict=true")
    assert status == 1 and "tokens: got 310, but the image has" in err


def test_a_budget_without_a_method_is_said_to_do_nothing(capsys, images):
    argv = ["run", "--image", images[0], "--prompt", QUESTION, "--retention", "0.5"]
    (result,) = run_json(capsys, *argv)["results"]
    assert "asked for 160 patch tokens, 320 of 320 are left" in result["report"]["notes"][0]


def test_a_file_that_cannot_be_read_costs_its_row_alone(capsys, images, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")
    paths = [images[0], str(bad), "https://a.b/c.png", images[1]]
    argv = ["run", "--image", *paths, "--prompt", QUESTION, "--method", "random"]
    argv += ["--tokens", "9,8,7,6"]
    status, out, err = run(capsys, *argv, "--json")
    found = json.loads(out)["results"]
    assert status == 1 and "2 of 4 images could not be read" in err
    assert [row["images"] for row in found] == [[path] for path in paths]
    assert ["error" in row for row in found] == [False, True, True, False]
    assert "is not an image file" in found[1]["error"] and "does not fetch" in found[2]["error"]
    left = [row["report"]["images"][0]["patches_after"] for row in (found[0], found[3])]
    assert left == [9, 6], "each keeps the budget of its place"
    status, out, _ = run(capsys, *argv)
    assert status == 1 and out.count("not read: ") == 2
    status, out, err = run(capsys, *argv, "--together")
    assert status == 1 and out == "" and "is not an image file" in err, "all in one prompt, or none"


def test_a_scene_has_a_question_and_an_answer(capsys):
    (row,) = run_json(capsys, "run", "--scene", "4")["results"]
    assert (row["answer"], row["right_answer"], row["images"]) == ("owl", "owl", ["scene 4"])
    data = run_json(capsys, "run", "--scene", "4", "--prompt", "is there a cyan cross ?")
    assert data["results"][0]["right_answer"] == "no" and data["notes"] == []
    data = run_json(capsys, "run", "--scene", "4", "--prompt", "why ?")
    assert "right_answer" not in data["results"][0]
    status, out, _ = run(capsys, "run", "--scene", "4")
    assert status == 0 and "the right answer: owl" in out


def test_a_photograph_is_said_to_be_strange_to_the_reference_model(capsys, images, loaded):
    argv = ["--image", images[0], "--prompt", QUESTION]
    assert "drawn scenes alone" in run_json(capsys, "run", *argv)["notes"][0]
    status, out, _ = run(capsys, "run", *argv)
    assert status == 0 and "--scene 4" in out


def test_an_answer_without_words_is_named(capsys, images, monkeypatch):
    monkeypatch.setattr(loading.Loaded, "decode", lambda self, output, inputs: ["  "])
    argv = ["run", "--image", images[0], "--prompt", QUESTION]
    status, out, _ = run(capsys, *argv)
    assert status == 0 and "(empty answer)" in out
    assert run_json(capsys, *argv)["results"][0]["answer"] == "", "programs get what was said"


# -- show ----------------------------------------------------------------------------------------


def test_show_writes_a_picture_and_the_report(capsys, images, tmp_path):
    kept, report = tmp_path / "new" / "kept.png", tmp_path / "report.json"
    argv = ["show", "--image", images[1], "--method", "globalcom2", "--tokens", "40",
            "--output", str(kept), "--report", str(report)]  # fmt: skip
    data = run_json(capsys, *argv)
    assert data["output"] == str(kept)
    assert Image.open(kept).width > 600
    assert Report.load_json(report).images[0].patches_after == 40
    status, out, _ = run(capsys, *argv)
    assert status == 0 and str(kept) in out.replace("\n", "")


# -- errors --------------------------------------------------------------------------------------

ASK = ["--prompt", QUESTION]
ERRORS = [
    (["run", "--image", "missing.png", *ASK], "cannot read 'missing.png': No such file"),
    (["run", "--image", "{text}", *ASK], "is not an image file"),
    (["run", "--image", "{image}", *ASK, "--method", "globalcom"], "did you mean 'globalcom2'?"),
    (["run", "--image", "{image}", *ASK, "--retention", "1.5"], "--retention: got 1.5"),
    (["run", "--image", "{image}", *ASK, "--retention", ".5,.2"], "got 2 values"),
    (["run", "--image", "{image}", *ASK, "--tokens", "x"], "--tokens: got 'x'"),
    (
        ["run", "--image", "{image}", *ASK, "--method", "random", "--tokens", "9999"]
        + ["--option", "strict=true"],
        "has 320",
    ),
    (
        ["run", "--image", "{image}", *ASK, "--method", "globalcom2", "--option", "tua=1"],
        "did you mean 'tau'?",
    ),
    (["run", "--image", "{image}", *ASK, "--config", "no.yaml"], "cannot read 'no.yaml'"),
    (["run", "--image", "{image}", *ASK, "--model", "./no"], "'./no' is no folder"),
    (["run", "--image", "{image}", *ASK, "--model", "{folder}"], "cannot load"),
    (["run", "--image", "{image}", *ASK, "--model", "nobody/nothing"], "hub cannot be reached"),
    (["run", "--image", "{image}", *ASK, "--model", "refrence"], "did you mean 'reference'?"),
    (["run", "--image", "{image}", *ASK, "--device", "abacus"], "device: cannot use 'abacus'"),
    (["show", "--image", "{image}", "--output", "kept.txt"], "allowed are image files"),
    (["show", "--image", "{image}", "--output", "{text}/kept.png"], "text.png"),
    (["methods", "globalcom"], "did you mean 'globalcom2'?"),
    (["demo", "--methods", "poool"], "did you mean 'pool'?"),
    (["demo", "--retention", "0"], "retention: got 0"),
]


@pytest.mark.parametrize("argv, message", ERRORS)
def test_expected_problems_are_one_line(capsys, images, tmp_path, monkeypatch, argv, message):
    monkeypatch.setattr(loading, "_hub_answers", lambda: False)
    text = tmp_path / "text.png"
    text.write_text("no picture")
    places = {"text": text, "image": images[0], "folder": tmp_path}
    status, out, err = run(capsys, *(word.format(**places) for word in argv))
    last = err.strip().splitlines()[-1]
    assert status == 1 and out == ""
    assert last.startswith("vtc: error: ") and message in last
    assert err.count("vtc: error: ") == 1 and "Traceback" not in err


def test_a_missing_package_is_named_with_the_extra_that_brings_it(capsys):
    def needs_fonts(args):
        raise ModuleNotFoundError("No module named 'matplotlib.pyplot'", name="matplotlib.pyplot")

    parser = argparse.ArgumentParser()
    parser.set_defaults(run=needs_fonts)
    assert run_command(parser, []) == 1
    err = capsys.readouterr().err
    assert "'matplotlib' is missing: pip install 'vtc-vlm[demo]', or in a checkout '.[demo]'" in err


@pytest.mark.parametrize(
    "argv", [[], ["nothing"], ["run"], ["run", "--image", "x"], ["demo", "--scenes", "0"]]
)
def test_wrong_usage(capsys, argv):
    status, _, err = run(capsys, *argv)
    assert status == 2 and "error" in err


def test_no_command_tells_all_commands(capsys):
    _, _, err = run(capsys)
    assert "ask a model about images" in err and "whether compression is right" in err


def test_a_budget_without_a_method_is_told(capsys):
    data = run_json(capsys, "run", "--scene", "4", "--retention", "0.5", "--max-new-tokens", "1")
    assert any("method none drops nothing" in note for note in data["notes"])
    data = run_json(capsys, "run", "--scene", "4", "--max-new-tokens", "1")
    assert not data["notes"]


def test_help_and_version(capsys):
    for argv in (
        ["--help"],
        ["--version"],
        *([name, "--help"] for name in ("run", "show", "demo", "doctor")),
    ):
        status, out, _ = run(capsys, *argv)
        assert status == 0 and "vtc" in out


def test_image_tokens_in_the_prompt_are_counted(capsys, images):
    status, out, err = run(
        capsys, "run", "--prompt", f"<image><image> {QUESTION}", "--image", images[0]
    )
    assert status != 0 and "prompt: 2 image tokens, 1 images" in err and "Traceback" not in err
    assert "write it once for each" in err


def test_the_image_goes_where_its_token_stands(capsys, images, loaded, monkeypatch):
    """In the user's words, in the model's template; within a sentence that is said."""
    seen = []
    model, processor = loaded

    class Listening:
        def __getattr__(self, name):
            return getattr(processor, name)

        def __call__(self, images, text, **more):
            seen.append(text)
            return processor(images=images, text=text, **more)

    monkeypatch.setattr(reference, "load_reference", lambda dtype=None: (model, Listening()))
    argv = ["run", "--image", images[0], "--max-new-tokens", "1"]
    for text, prompt, told in (
        ("what ?", "USER: <image>\nwhat ? ASSISTANT:", False),
        ("a\n<image>\nb", "USER: a\n<image>\nb ASSISTANT:", False),
        ("what does <image> mean in html ?", None, True),
        ("USER: <image>\nwhat ? ASSISTANT:", "USER: <image>\nwhat ? ASSISTANT:", False),
    ):
        data = run_json(capsys, *argv, "--prompt", text)
        assert " ".join(seen[-1].split()) == " ".join(
            (prompt or f"USER: {text} ASSISTANT:").split()
        )
        prompts = [note for note in data["notes"] if note.startswith("prompt: ")]
        assert [note.startswith("prompt: <image> within") for note in prompts] == [True] * told
    status, out, _ = run(capsys, *argv, "--prompt", "what does <image> mean in html ?")
    assert status == 0 and "note: prompt: <image> within a line" in out
    run_json(capsys, *argv, "--prompt", "<image> what ?", "--raw")
    assert seen[-1] == "<image> what ?"
    status, _, err = run(capsys, *argv, "--prompt", "what ?", "--raw")
    assert status == 1 and "prompt: 0 image tokens, 1 images" in err


def test_the_rule_is_in_the_help(capsys):
    for name in ("run", "show"):
        _, out, _ = run(capsys, name, "--help")
        assert "written once for each image" in out and "--raw" in out
