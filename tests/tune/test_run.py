"""The whole way on the reference model: the command, its files, going on, and Python."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import vtc
from vtc.cli import main
from vtc.errors import VTCError
from vtc.eval.common.loading import Loaded, load
from vtc.eval.reference.scene import make_scene
from vtc.eval.tune.divergence import divergence
from vtc.eval.tune.run import enough
from vtc.eval.tune.search import Search

TARGET = 0.5
IMAGES = enough(TARGET) + 7
ARGUMENTS = [
    "tune", "--target", str(TARGET), "--cost", "tokens", "--methods", "divprune,prumerge",
    "--retention", "0.5,0.03", "--batch-size", "16",
]  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of questions about drawn scenes with their answers."""
    place = tmp_path_factory.mktemp("tune")
    lines = []
    for number in range(IMAGES):
        scene = make_scene("test", 72, number)
        scene.image.save(place / f"{number}.png")
        question = scene.questions[0]
        row = {"image": f"{number}.png", "question": question.text, "answer": question.answer}
        lines.append(json.dumps(row))
    (place / "questions.jsonl").write_text("\n".join(lines))
    return place


@pytest.fixture(scope="module")
def arguments(folder: Path) -> list[str]:
    return [
        *ARGUMENTS, "--data", str(folder / "questions.jsonl"), "--output", str(folder / "vtc.yaml")
    ]  # fmt: skip


@pytest.fixture(scope="module")
def result(folder: Path, arguments: list[str]) -> dict[str, Any]:
    assert main(arguments) == 0
    return dict(json.loads((folder / "vtc.tune" / "result.json").read_text()))


@pytest.fixture(scope="module")
def loaded() -> Iterator[Loaded]:
    yield load("reference", "cpu")


def test_a_setting_is_promised(result: dict[str, Any]) -> None:
    assert result["promised"] == "divprune@0.5"
    assert TARGET <= result["bound"] <= result["quality"]
    assert result["images"] == {"search": 24, "confirm": IMAGES - 24}
    fates = {setting["key"]: setting["why_not"] for setting in result["settings"]}
    assert fates.pop("divprune@0.5") == "" and all(fates.values())
    assert "knows drawn scenes alone" in result["cautions"][-1]


def test_the_file_is_read_by_everyone(folder: Path, result: dict[str, Any], loaded: Loaded) -> None:
    config = vtc.CompressionConfig.from_sources(file=folder / "vtc.yaml", env={})
    assert config.method == "divprune" and config.retention == 0.5
    handle = vtc.apply_from_config(loaded.model, config)
    assert handle is not None
    handle.remove()
    asked = ["run", "--scene", "4", "--config", str(folder / "vtc.yaml"), "--max-new-tokens", "2"]
    assert main(asked) == 0
    text = (folder / "vtc.yaml").read_text()
    assert "with 95 % confidence" in text and "export VTC_METHOD=divprune" in text


def test_the_page_has_the_front_and_the_losers(folder: Path, result: dict[str, Any]) -> None:
    page = (folder / "vtc.tune" / "tune.html").read_text()
    for setting in result["settings"]:
        assert setting["label"].replace("_", "_<wbr>") in page
        assert setting["why_not"] in page
    assert page.count("<svg") == 2
    assert "http" not in page.replace("http://www.w3.org", "")


def test_the_same_command_goes_on_where_it_was(
    folder: Path, arguments: list[str], result: dict[str, Any]
) -> None:
    """Answers are kept: a run that was killed in the middle of a line asks what is missing alone."""
    answers = folder / "vtc.tune" / "answers.jsonl"
    whole = answers.read_text()
    lines = whole.splitlines(keepends=True)
    answers.write_text("".join(lines[:-30]) + lines[-30][:40])
    assert main(arguments) == 0
    again = json.loads((folder / "vtc.tune" / "result.json").read_text())
    same = ("promised", "quality", "bound", "settings", "cautions")
    assert {k: again[k] for k in same} == {k: result[k] for k in same}
    added = answers.read_text().splitlines()[len(lines) - 29 :]
    assert len(added) == 30
    before = answers.read_text()
    assert main(arguments) == 0
    assert answers.read_text() == before


def test_a_second_look_at_the_same_images_is_told(
    folder: Path, arguments: list[str], result: dict[str, Any]
) -> None:
    other = [word if word != str(TARGET) else "0.4" for word in arguments]
    assert main(other) == 0
    again = json.loads((folder / "vtc.tune" / "result.json").read_text())
    assert "used before in this folder, for target 0.5" in again["cautions"][0]
    assert main(arguments) == 0


def test_shares_by_question_are_looked_for(
    folder: Path, arguments: list[str], result: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 24 questions too few begin alike: that is said, and what is promised stays."""
    assert main([*arguments, "--by-question"]) == 0
    assert "by question: no shares of divprune save tokens" in "".join(capsys.readouterr())
    again = json.loads((folder / "vtc.tune" / "result.json").read_text())
    assert again["promised"] == result["promised"]
    assert main(arguments) == 0


def test_another_run_in_the_folder_is_refused(
    folder: Path, arguments: list[str], result: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--quality", "agreement"]) == 1
    assert "holds a run that differs" in capsys.readouterr().err


def test_what_the_model_brings_for_methods_is_part_of_the_run(
    folder: Path, arguments: list[str], result: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setattr(vtc, "model_defaults", lambda model: {"scope": {"alpha": 2.0}})
    assert main(arguments) == 1
    told = capsys.readouterr().err
    assert "generation.defaults.tokenflex is missing now" in told
    assert "generation.defaults.scope is new" in told


def test_python_without_answers_and_nothing_promised(folder: Path, loaded: Loaded) -> None:
    rows = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    data = [
        {"image": folder / row["image"], "question": row["question"], "id": str(number)}
        for number, row in enumerate(rows)
    ]
    output = folder / "nothing.yaml"
    found = vtc.tune(
        loaded.model, loaded.processor, data, target=TARGET, methods=["random"],
        retentions=[0.01], output=output, batch_size=16, cost="time",
    )  # fmt: skip
    assert found.promised is None and found.quality_of == "agreement"
    assert found.best is not None and found.bound < TARGET
    assert found.config == vtc.CompressionConfig() and "method: none" in output.read_text()
    assert "NOT proved" in (folder / "nothing.tune" / "best.yaml").read_text()
    assert "random at 1 %" in " ".join(found.sentences())
    assert 0 < found.best.cost < 2 and len(found.spreads["random@0.01"]) == 3
    assert not loaded.model._forward_pre_hooks


def test_divergence_of_the_distribution(folder: Path, loaded: Loaded) -> None:
    found = vtc.tune(
        loaded.model, loaded.processor, folder / "questions.jsonl", target=TARGET,
        quality="divergence", methods=["divprune"], retentions=[0.5], cost="memory",
    )  # fmt: skip
    assert found.promised is not None and 0.8 < found.quality < 1
    assert 0 < found.promised.cost < 1, "fewer tokens need less memory"


def test_divergence_by_hand() -> None:
    one, two = torch.tensor([[0.0, -torch.inf]]), torch.tensor([[-torch.inf, 0.0]])
    assert divergence(one, two) == pytest.approx(1.0) and divergence(one, one) == 0.0
    half = torch.zeros(1, 2)  # 1/2 (log2 4/3) + 1/2 (1/2 log2 2/3 + 1/2 log2 2)
    assert divergence(one, half) == pytest.approx(0.311278, abs=1e-6)


def test_logits_that_are_no_numbers_are_no_agreement() -> None:
    """A setting that overflows in half precision must not look like the full model."""
    broken, fine = torch.full((2, 3), torch.nan), torch.zeros(2, 3)
    for pair in ((broken, fine), (fine, broken)):
        with pytest.raises(VTCError, match="logits: got values that are no numbers"):
            divergence(*pair)


def questions_of(folder: Path, **more: Any) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (folder / "questions.jsonl").read_text().splitlines()]
    return [{**row, "image": folder / row["image"], **more} for row in rows]


def test_a_model_that_is_compressed_already(folder: Path, loaded: Loaded) -> None:
    """The full model is what settings are compared with; what was found is there again behind it."""
    tokenizer = loaded.processor.tokenizer
    given: dict[str, Any] = {
        "target": TARGET, "cost": "tokens", "methods": ["divprune"], "retentions": [0.5],
        "batch_size": 16,
    }  # fmt: skip
    plain = vtc.tune(loaded.model, loaded.processor, questions_of(folder), **given)
    tokenizer.padding_side = "right"
    handle = vtc.apply(loaded.model, "random", retention=0.02)
    try:
        found = vtc.tune(loaded.model, loaded.processor, questions_of(folder), **given)
        assert handle.active
    finally:
        handle.remove()
    assert found.score == plain.score and found.quality == plain.quality
    assert tokenizer.padding_side == "right"


def test_a_full_model_that_gets_nothing_right(folder: Path, loaded: Loaded) -> None:
    found = vtc.tune(
        loaded.model, loaded.processor, questions_of(folder, answer="nobody says this"),
        target=TARGET, cost="tokens", methods=["divprune"], retentions=[0.5], batch_size=16,
    )  # fmt: skip
    assert found.promised is None
    said = " ".join(found.sentences())
    assert "nan" not in said and "gets nothing right" in said


def test_a_run_that_is_stopped_while_it_confirms_has_looked(
    folder: Path, loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {
        "cost": "tokens", "methods": ["divprune"], "retentions": [0.5], "batch_size": 16,
        "output": folder / "stopped.yaml",
    }  # fmt: skip

    def stop(*given: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Search, "_confirm", stop)
        vtc.tune(loaded.model, loaded.processor, questions_of(folder), target=TARGET, **given)
    found = vtc.tune(loaded.model, loaded.processor, questions_of(folder), target=0.4, **given)
    assert "used before in this folder, for target 0.5" in found.cautions[0]


def test_answers_of_nobody_knows_what_are_not_taken(folder: Path, loaded: Loaded) -> None:
    place = folder / "strange.tune"
    place.mkdir()
    (place / "answers.jsonl").write_text("{}\n")
    with pytest.raises(VTCError, match="has answers but no run.json"):
        vtc.tune(
            loaded.model, loaded.processor, questions_of(folder), target=TARGET,
            output=folder / "strange.yaml",
        )  # fmt: skip


@pytest.mark.parametrize(
    "given, message",
    [
        ({"output": "vtc.json"}, "output: got 'vtc.json', allowed are names that end in .yaml"),
        ({"batch_size": 0}, "batch_size: got 0"),
        ({"target": 1.0}, "target: got 1.0"),
        ({"cost": "tims"}, "cost: got 'tims', .*did you mean 'time'"),
        ({"quality": "answer"}, "did you mean 'answers'"),
        ({"methods": ["divprun"]}, "did you mean 'divprune'"),
        ({"target": 0.99}, "too few to prove 0.99; give 625 at least"),
    ],
)
def test_what_is_refused(folder: Path, loaded: Loaded, given: dict[str, Any], message: str) -> None:
    with pytest.raises(VTCError, match=message):
        vtc.tune(
            loaded.model,
            loaded.processor,
            folder / "questions.jsonl",
            **{"target": TARGET, **given},
        )


def test_answers_that_are_not_there_are_missed_before_the_model_is_loaded(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"image": f"{n}.png", "question": "?"} for n in range(IMAGES)]
    data = folder / "unanswered.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = ["tune", "--model", "no/such", "--data", str(data), "--target", str(TARGET)]
    assert main([*asked, "--quality", "answers", "--output", str(folder / "never.yaml")]) == 1
    assert "quality: got 'answers', but the questions have none" in capsys.readouterr().err


def test_answers_that_are_asked_for_and_are_not_there(folder: Path, loaded: Loaded) -> None:
    data = [{"image": folder / f"{n}.png", "question": "?"} for n in range(enough(TARGET))]
    with pytest.raises(VTCError, match="quality: got 'answers', but the questions have none"):
        vtc.tune(loaded.model, loaded.processor, data, target=TARGET, quality="answers")
