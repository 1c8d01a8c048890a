"""The accuracy runner: what it asks, what it writes, and what happens on a bad day."""

from __future__ import annotations

import dataclasses
import errno
import functools
import gzip
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from PIL import Image

import vtc.eval.suites as suites
from vtc.commands.eval import main
from vtc.errors import VTCError
from vtc.eval.accuracy import run as accuracy
from vtc.eval.accuracy import runner, summary
from vtc.eval.common import loading, settings
from vtc.eval.common.loading import load
from vtc.eval.common.processes import Processes
from vtc.eval.common.records import (
    Answer,
    read_answers,
    read_lines,
    read_manifest,
    write_manifest,
)
from vtc.eval.reference import checkpoint_path
from vtc.eval.suites import Item, Suite, create_suite
from vtc.eval.suites.chartqa import ChartQA

SMALL = ["accuracy", "--suite", "reference", "--suite-option", "reference.scenes=2",
         "--suite-option", "reference.questions=4", "--quiet"]  # fmt: skip
COUNT = 7  # questions in there
POOL = ["--methods", "pool", "--retention", "1.0,0.25"]


@pytest.fixture(scope="module")
def loaded():
    return load("reference", "cpu")


@pytest.fixture(autouse=True)
def quick(monkeypatch, loaded):
    """Load the reference model once."""
    monkeypatch.setattr("vtc.commands.eval.accuracy.load", lambda *arguments: loaded)


def answers(folder):
    return {(answer.setting, answer.item): answer for answer in read_answers(folder)}


def lines(folder):
    return [line for path in folder.glob("answers*.jsonl") for line in read_lines(path)]


def asked(folder):
    return Counter((line["setting"], line["item"]) for line in lines(folder))


# -- what is asked -------------------------------------------------------------------------------


def test_run_folder_holds_answers_summary_and_what_made_them(tmp_path, capsys):
    argv = [*SMALL, "--methods", "random,pool", "--retention", "1.0,0.25", "--seeds", "2",
            "--method-options", "random.video=frame", "--output", str(tmp_path)]  # fmt: skip
    assert main(argv) == 0
    option = '{"video": "frame"}'
    keys = ["none@1", f"random@0.25{option}", f"random@0.25#1{option}", "pool@0.25"]
    found = answers(tmp_path)
    assert {setting for setting, _ in found} == set(keys) and len(found) == 4 * COUNT
    for answer in found.values():
        assert answer.score == float(answer.prediction == answer.answers[0])
        assert (answer.tokens == answer.tokens_full) == (answer.setting == "none@1")
        if answer.patches is not None:
            assert answer.patches <= 0.25 * answer.patches_full
    manifest = read_manifest(tmp_path)
    assert manifest["kind"] == "accuracy"
    assert [entry["key"] for entry in manifest["settings"]] == keys
    assert manifest["settings"][2]["fields"]["seed"] == 1
    assert manifest["settings"][3]["fields"]["retention"] == 0.25
    assert manifest["model"]["dtype"] == "float32" and manifest["model"]["attention"] == "sdpa"
    assert len(manifest["model"]["sha256"]) == len(manifest["code"]["sources"]) == 64
    assert manifest["code"]["packages"]["torch"] == torch.__version__
    assert manifest["suite"]["facts"]["scenes"] == 2 and manifest["suite"]["items"] == COUNT
    assert manifest["generation"]["max_new_tokens"] == 8
    (session,) = manifest["sessions"]
    assert session["seconds"] > 0 and session["processes"] == 1 and session["device"] == "cpu"
    assert str(Path.home()) not in json.dumps(manifest["settings"]), "no path of this machine"

    summary = json.loads((tmp_path / "summary.json").read_text())
    by_key = {entry["key"]: entry for entry in summary["settings"]}
    for key in keys:
        mine = [answer for (setting, _), answer in found.items() if setting == key]
        assert by_key[key]["value"] == pytest.approx(sum(a.score for a in mine) / COUNT)
        assert by_key[key]["answered"] == COUNT and by_key[key]["failed"] == 0
    assert by_key["none@1"]["share"] == 1.0
    assert [entry["seeds"] for entry in summary["methods"]] == [1, 2, 1]
    assert len((tmp_path / "summary.csv").read_text().splitlines()) == 5
    assert "| pool | 25% |" in (tmp_path / "summary.md").read_text()
    assert "pool" in capsys.readouterr().out


def test_full_model_is_the_plain_one(loaded, monkeypatch):
    """Nothing is on the model while the uncompressed answers are made, nor behind any."""
    suite = create_suite("reference", scenes=1, questions=1)
    chosen = settings.plan(["pool"], [0.5])
    kind, seen = type(loaded.model), []
    plain = kind.generate

    @functools.wraps(plain)
    def watched(self, *args, **kwargs):
        seen.append(hasattr(self, "_vtc"))
        return plain(self, *args, **kwargs)

    monkeypatch.setattr(kind, "generate", watched)
    ask = runner.Runner(loaded, suite, {"pool@0.5": settings.create(chosen[1])})
    found = list(ask.ask(suite.items(), chosen, ()))
    assert seen == [False, True] and not hasattr(loaded.model, "_vtc")
    assert all(answer.error is None for (answer,) in found)


@pytest.mark.parametrize("size", [1, 5])
def test_batch_size_changes_no_answer(tmp_path, loaded, size):
    """Scenes of different shapes, methods that draw, that read the question, and that merge."""
    argv = ["accuracy", "--suite", "reference", "--suite-option", "reference.scenes=3",
            "--suite-option", "reference.questions=4", "--quiet", "--seeds", "1", "--methods",
            "random,globalcom2,recoverable,tokenflex", "--retention", "0.25"]  # fmt: skip
    assert main([*argv, "--batch-size", "12", "--output", str(tmp_path / "12")]) == 0
    assert main([*argv, "--batch-size", str(size), "--output", str(tmp_path / "n")]) == 0
    assert len({answer.tokens_full for answer in read_answers(tmp_path / "12")}) > 1
    assert answers(tmp_path / "n") == answers(tmp_path / "12")


def test_prompt_template(loaded):
    suite = create_suite("reference", scenes=1, questions=2)
    ask = runner.Runner(loaded, suite, {}, "USER: {image}{question} ASSISTANT:")
    (found,) = ask.ask(suite.items(), [settings.FULL], ())
    usual = runner.Runner(loaded, suite, {})
    (expected,) = usual.ask(suite.items(), [settings.FULL], ())
    assert found == expected, "the template is the chat template written out"
    row = runner.Row(suite.items()[0], (None, None))
    ask.template = "{question} ?"
    assert ask._prompt(row) == f"<image>\n<image>\n{suite.items()[0].prompt} ?"
    ask.template = "what ?"
    with pytest.raises(VTCError, match="which has no {question}"):
        ask.check([])


# -- going on ------------------------------------------------------------------------------------


def test_killed_run_goes_on_and_asks_nothing_twice(tmp_path):
    argv = [*SMALL, *POOL, "--batch-size", "2", "--output", str(tmp_path / "killed")]
    argv[argv.index("reference.questions=4")] = "reference.questions=8"
    process = subprocess.Popen([sys.executable, "-m", "vtc.eval", *argv])
    path = tmp_path / "killed" / "answers.jsonl"
    while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= 4):
        time.sleep(0.005)
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    before = path.read_bytes()
    with path.open("ab") as file:  # and, by bad luck, in the middle of a line
        file.write(b'{"setting": "pool@0.25", "item": "te')
    assert main(argv) == 0
    assert path.read_bytes().startswith(before)
    assert set(asked(tmp_path / "killed").values()) == {1}
    argv[-1] = str(tmp_path / "whole")
    assert main(argv) == 0
    assert answers(tmp_path / "killed") == answers(tmp_path / "whole")
    assert len(read_manifest(tmp_path / "killed")["sessions"]) == 2
    for name in ("summary.json", "summary.csv"):
        assert (tmp_path / "killed" / name).read_text() == (tmp_path / "whole" / name).read_text()


def test_interrupted_run_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    ask, calls = loading.Loaded.answer, iter(range(100))

    def stopped(*arguments, **generation):
        if next(calls) == 3:
            raise KeyboardInterrupt
        return ask(*arguments, **generation)

    argv = [*SMALL, *POOL, "--batch-size", "2", "--output", str(tmp_path)]
    monkeypatch.setattr(loading.Loaded, "answer", stopped)
    assert main(argv) == 130
    assert "the same command goes on from there" in capsys.readouterr().err
    assert sum(asked(tmp_path).values()) == 6
    assert main(argv) == 0
    assert set(asked(tmp_path).values()) == {1} and len(answers(tmp_path)) == 2 * COUNT


def test_files_that_a_method_reads_are_in_the_manifest(tmp_path, loaded):
    defaults = {"tokenflex": {"projector": str(checkpoint_path() / "tokenflex")}}
    run = accuracy.Run(
        tmp_path, loaded, create_suite("reference", scenes=1), [],
        settings.plan(["tokenflex"], [0.5]), defaults,
    )  # fmt: skip
    fields = run.facts()["settings"][1]["fields"]
    assert fields["projector"]["name"] == "tokenflex" and len(fields["projector"]["sha256"]) == 64
    assert fields["retention"] == 0.5
    other = tmp_path / "tokenflex"
    shutil.copytree(checkpoint_path() / "tokenflex", other)
    defaults["tokenflex"]["projector"] = str(other)
    assert run.facts()["settings"][1]["fields"] == fields, "the same file elsewhere"
    (other / "projector.json").write_text("{}")
    assert run.facts()["settings"][1]["fields"] != fields


def test_other_settings_are_refused(tmp_path, monkeypatch, capsys):
    argv = [*SMALL, *POOL, "--output", str(tmp_path)]
    assert main(argv) == 0
    before = (tmp_path / "answers.jsonl").read_bytes()
    for change, name in (
        (["--limit", "3"], "suite.limit was None, is now 3"),
        (["--suite-option", "reference.seed=1"], "suite.facts.seed was 100, is now 1"),
        (["--prompt", "{question}"], "generation.prompt was 'chat template', is now '{question}'"),
        (["--positions", "contiguous"], "generation.positions was 'original'"),
    ):
        capsys.readouterr()
        assert main([*argv, *change]) == 1
        assert name in capsys.readouterr().err
    monkeypatch.setattr("vtc.eval.common.manifest._sources", lambda: "other")
    assert main(argv) == 1
    assert "code.sources" in capsys.readouterr().err
    assert (tmp_path / "answers.jsonl").read_bytes() == before
    assert main([*argv, "--any-code"]) == 0
    assert read_manifest(tmp_path)["sessions"][-1]["code"]["sources"] == "other"


def test_a_run_is_extended_by_settings(tmp_path):
    assert main([*SMALL, *POOL, "--output", str(tmp_path / "two")]) == 0
    more = ["--methods", "uniform", "--retention", "0.25,0.5", "--pixels", "0.25"]
    assert main([*SMALL, *more, "--output", str(tmp_path / "two")]) == 0
    keys = [entry["key"] for entry in read_manifest(tmp_path / "two")["settings"]]
    coarse = 'none@1{"pixels": 0.25}'
    assert keys == ["none@1", "pool@0.25", coarse, "uniform@0.25", "uniform@0.5"]
    assert set(asked(tmp_path / "two").values()) == {1}
    assert (
        main([*SMALL, *more, "--methods", "pool,uniform", "--output", str(tmp_path / "one")]) == 0
    )
    one = answers(tmp_path / "one")
    assert {key: one[key] for key in answers(tmp_path / "two")} == answers(tmp_path / "two")
    entries = json.loads((tmp_path / "two" / "summary.json").read_text())["methods"]
    assert [entry["method"] for entry in entries] == ["none", "pool", "none", "uniform", "uniform"]


def test_a_setting_that_changed_is_refused(tmp_path, capsys):
    argv = [*SMALL, *POOL, "--output", str(tmp_path)]
    assert main(argv) == 0
    facts = read_manifest(tmp_path)
    facts["settings"][1]["fields"]["video"] = "frame"
    write_manifest(tmp_path, facts)
    assert main(argv) == 1
    assert "settings.pool@0.25.fields.video was 'frame', is now 'clip'" in capsys.readouterr().err


def test_processes_share_the_questions(tmp_path, loaded):
    """Two shards give what one process gives; three go on where two were stopped."""
    suite = create_suite("reference", scenes=2, questions=4)
    chosen = settings.plan(["uniform"], [0.25])

    def share(folder, rank, count):
        run = accuracy.Run(folder, loaded, suite, suite.items(), chosen, batch_size=2)
        return run.prepare(Processes(rank, count), "")

    share(tmp_path / "one", 0, 1).ask()
    shards = [share(tmp_path / "many", rank, 2) for rank in range(2)]
    shards[0].ask()
    rest = [share(tmp_path / "many", rank, 3) for rank in range(3)]
    assert 0 < sum(shard.left for shard in rest) == shards[1].left
    for shard in rest:
        shard.ask()
    assert set(asked(tmp_path / "many").values()) == {1}
    assert answers(tmp_path / "many") == answers(tmp_path / "one")


@pytest.mark.slow
def test_accelerate_launch_gives_the_scores_of_one_process(tmp_path):
    argv = [*SMALL, *POOL, "--device", "cpu", "--batch-size", "2"]
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    launch += ["--num_processes", "2", "--main_process_port", "0", "-m", "vtc.eval"]
    subprocess.run([*launch, *argv, "--output", str(tmp_path / "two")], check=True)
    assert len(list((tmp_path / "two").glob("answers-*.jsonl"))) == 2
    assert main([*argv, "--output", str(tmp_path / "one")]) == 0
    assert answers(tmp_path / "two") == answers(tmp_path / "one")
    for name in ("summary.json", "summary.csv"):
        assert (tmp_path / "two" / name).read_text() == (tmp_path / "one" / name).read_text()


# -- bad days ------------------------------------------------------------------------------------


@dataclasses.dataclass
class Files(Suite):
    """Questions about files of a folder; one without an answer, one that the scorer cannot read."""

    data: str = ""

    name: ClassVar[str] = "files"
    max_new_tokens: ClassVar[int] = 4

    def items(self):
        def image(name):
            return lambda: Image.open(Path(self.data) / name)

        return [
            Item("good", (image("good.png"),), "how many circles are there ?", ("0",)),
            Item("torn", (image("torn.png"),), "how many circles are there ?", ("0",)),
            Item("missing", (image("none.png"),), "how many circles are there ?", ("0",)),
            Item("unlabelled", (image("good.png"),), "how many rings are there ?", ()),
            Item("odd", (image("good.png"),), "how many rings are there ?", ("odd",)),
            Item("row-5", (), "", (), error="row 5: there is no question"),
        ]

    def score(self, item, prediction):
        return float(int(prediction) == int(item.answers[0]))

    def facts(self):
        return {"count": 6}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setitem(suites._SUITES.made, "files", Files)
    folder = tmp_path / "data"
    folder.mkdir()
    Image.new("RGB", (128, 128), "white").save(folder / "good.png")
    data = (folder / "good.png").read_bytes()
    (folder / "torn.png").write_bytes(data[: len(data) // 2])
    return folder


def test_bad_rows_are_marked_and_cost_no_other(tmp_path, files, capsys):
    argv = ["accuracy", "--suite", "files", "--data", str(files), *POOL, "--quiet", "--output",
            str(tmp_path / "run")]  # fmt: skip
    assert main(argv) == 0
    found = answers(tmp_path / "run")
    for key in ("none@1", "pool@0.25"):
        assert found[key, "good"].error is None and found[key, "good"].score is not None
        assert found[key, "torn"].error.startswith("image: OSError: ")
        assert found[key, "missing"].error.startswith("image: FileNotFoundError")
        assert found[key, "unlabelled"].error == "answers: the data has none"
        assert found[key, "odd"].error.startswith("score: ValueError")
        assert found[key, "odd"].prediction, "what was said is kept"
        assert found[key, "row-5"].error == "row 5: there is no question"
    assert "10 rows failed" in capsys.readouterr().err
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert [(e["answered"], e["failed"]) for e in summary["settings"]] == [(1, 5), (1, 5)]
    assert main([*argv, "--strict"]) == 1

    (files / "torn.png").write_bytes((files / "good.png").read_bytes())
    assert main(argv) == 0, "rows that failed are asked again"
    assert answers(tmp_path / "run")["pool@0.25", "torn"].error is None
    assert asked(tmp_path / "run")["pool@0.25", "good"] == 1


def test_answers_without_a_manifest_are_not_taken_over(tmp_path, capsys):
    (tmp_path / "answers-1.jsonl").write_text("")
    assert main([*SMALL, *POOL, "--output", str(tmp_path)]) == 1
    assert "has answers but no run.json" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["answers-1.jsonl"]


@pytest.mark.parametrize("line", ['{"setting": "none@1"}', "[1]", '{"answers": 1}'])
def test_a_line_that_is_no_answer_is_named(tmp_path, line):
    good = Answer("none@1", "a", "a", "", ("x",), "x", 1.0).line()
    (tmp_path / "answers.jsonl").write_text(f'{good}\n{{"torn\n{line}\n')
    with pytest.raises(VTCError, match=r"answers.jsonl', line 3: "):
        read_answers(tmp_path)


def test_a_packed_file_that_is_cut_short_is_named(tmp_path):
    lines = "".join(
        Answer("none@1", str(i), "", "", ("x",), "x", 1.0).line() + "\n" for i in range(99)
    )
    data = gzip.compress(lines.encode())
    for cut in (data[:-20], data[:40] + bytes(99) + data[40:]):
        (tmp_path / "answers.jsonl.gz").write_bytes(cut)
        with pytest.raises(VTCError, match=r"answers.jsonl.gz', behind line \d+: "):
            read_answers(tmp_path)


class Charts(ChartQA):
    """Rows in memory: an image in two files, the same colour in another shape, a torn file."""

    name = "charts"
    opened = 0

    def rows(self):
        square, wide = (64, 64), (128, 32)
        for size, form in ((square, "PNG"), (square, "BMP"), (wide, "PNG"), (None, "")):
            call = functools.partial(self._image, size, form)
            yield {"image": call, "question": "how many circles are there ?", "answer": "0",
                   "type": ""}  # fmt: skip

    def _image(self, size, form):
        self.opened += 1
        file = io.BytesIO()
        if size is not None:
            Image.new("RGB", size, "red").save(file, form)
        return Image.open(file)


def test_questions_about_the_same_pixels_are_one_cluster(loaded):
    suite = Charts()
    items = suite.items()
    assert suite.opened == 0 and {item.cluster for item in items} == {""}
    chosen = settings.plan(["pool"], [0.5])
    ask = runner.Runner(loaded, suite, {"pool@0.5": settings.create(chosen[1])})
    full, pool = ask.ask(items, chosen, ())
    assert suite.opened == 4, "once a row, not once a setting"
    clusters = {answer.item: answer.cluster for answer in full}
    assert clusters == {answer.item: answer.cluster for answer in pool}
    assert clusters["0"] == clusters["1"] != clusters["2"]
    assert clusters["3"] == "3", "an image that cannot be opened has no pixels"
    (alone,) = ask.ask(items[1:2], chosen[:1], ())
    assert alone[0].cluster == clusters["1"], "whatever else is in the batch"


def test_a_cluster_of_the_data_is_kept(loaded):
    suite = create_suite("reference", scenes=1, questions=2)
    (found,) = runner.Runner(loaded, suite, {}).ask(suite.items(), [settings.FULL], ())
    assert {answer.cluster for answer in found} == {"test-100-00000"}


def test_nothing_measured_is_an_error(tmp_path, files, capsys):
    (files / "good.png").unlink()
    argv = ["accuracy", "--suite", "files", "--data", str(files), *POOL, "--quiet"]
    assert main([*argv, "--output", str(tmp_path / "run")]) == 1
    assert "nothing could be measured" in capsys.readouterr().err


def test_out_of_memory_halves_the_batch_then_marks_the_row(tmp_path, monkeypatch, loaded):
    suite = create_suite("reference", seed=3, scenes=1, questions=8)
    doomed = suite.items()[5]
    assert len(suite.items()) == 8
    ask, sizes = loading.Loaded.answer, []

    def small(self, inputs, **generation):
        texts = self.processor.batch_decode(inputs["input_ids"], skip_special_tokens=True)
        sizes.append(len(texts))
        if len(texts) > 2 or any(doomed.prompt in text for text in texts):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return ask(self, inputs, **generation)

    monkeypatch.setattr(loading.Loaded, "answer", small)
    ask_all = runner.Runner(loaded, suite, {})
    (found,) = ask_all.ask(suite.items(), [settings.FULL], ())
    failed = [answer.item for answer in found if answer.error]
    assert [a.item for a in found] == [item.id for item in suite.items()]
    assert failed == [doomed.id] and "out of memory" in found[5].error
    assert all(answer.score is not None for answer in found if answer.item not in failed)
    sizes.clear()
    list(ask_all.ask(suite.items()[:4], [settings.FULL], ()))
    assert max(sizes) <= 2, "the batch that did not fit is not tried again"


def test_full_disk_loses_nothing(tmp_path, monkeypatch, capsys):
    argv = [*SMALL, *POOL, "--batch-size", "2", "--output", str(tmp_path)]
    sync, calls = os.fsync, iter(range(100))

    def full(number):
        if next(calls) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(number)

    monkeypatch.setattr(os, "fsync", full)
    assert main(argv) == 1
    message = capsys.readouterr().err
    assert "No space left on device" in message and "goes on from there" in message
    kept = (tmp_path / "answers.jsonl").read_bytes()
    assert kept.count(b"\n") >= 6
    assert main(argv) == 0
    assert (tmp_path / "answers.jsonl").read_bytes().startswith(kept)
    assert len(answers(tmp_path)) == 2 * COUNT and set(asked(tmp_path).values()) == {1}


def test_method_that_the_model_cannot_have_is_told_before_anything_runs(tmp_path, capsys):
    argv = [*SMALL, "--methods", "tokenflex", "--retention", "0.5", "--output", str(tmp_path)]
    assert main([*argv, "--method-options", f"tokenflex.projector={tmp_path}"]) == 1
    assert "projector" in capsys.readouterr().err
    assert not (tmp_path / "answers.jsonl").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--suite", "reference,referense"], "did you mean 'reference'"),
        (["--methods", "poool"], "did you mean 'pool'"),
        (["--retention", "2"], "retention: got 2.0"),
        (["--retention", "half"], "retention: got 'half'"),
        (["--retention", ""], "retention: got none"),
        (["--retention", "0.5,own"], "retention: got own, but none of pool has its own count"),
        (["--methods", ","], "methods: got none"),
        (["--method-options", "pool.nothing=1"], "nothing: 'pool' has no such option"),
        (["--method-options", "uniform.video=clip"], "'uniform', which is not in methods"),
        (["--method-options", "pool"], "expected NAME.FIELD=VALUE or JSON"),
        (["--suite-option", "reference.scenes=0"], "scenes: got 0"),
        (["--suite-option", "reference.split=dev"], "split: got 'dev'"),
        (["--suite-option", "pope.split=test"], "'pope', which is not in --suite"),
        (["--data", "x"], "data: 'reference' has no such option"),
    ],
)
def test_bad_arguments(tmp_path, capsys, change, message):
    assert main([*SMALL, *POOL, "--output", str(tmp_path / "run"), *change]) == 1
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "run").exists()


# -- parts ---------------------------------------------------------------------------------------


def test_close_retentions_have_keys_of_their_own():
    shares = (1.0, 0.25, 0.1, 0.3333333, 0.3333334)
    keys = [settings.Setting("pool", share).key for share in shares]
    assert keys == ["pool@1", "pool@0.25", "pool@0.1", "pool@0.3333333", "pool@0.3333334"]


@pytest.mark.parametrize(
    "name, value, shown", [("ocrbench", 1.0, "1.0"), ("mme", 0.5, "0.5"), ("gqa", 0.5, "50.0")]
)
def test_figures_are_shown_in_the_unit_of_the_suite(name, value, shown):
    entry = dict.fromkeys(("low", "high", "share", "tokens"), None)
    entry |= {"method": "none", "retention": 1.0, "options": {}, "seeds": 1, "failed": 0}
    entry |= {"value": value, "figures": {"score/OCR": 1.0, "other": 1.0}}
    metric = suites.suite_class(name).metric
    header, ((*cells,),) = summary.cells({"suite": name, "metric": metric, "methods": [entry]})
    found = dict(zip(header, cells, strict=True))
    assert found[metric] == shown and found["other"] == "100.0"
    assert found["score/OCR"] == ("100.0" if name == "gqa" else "1.0")


def test_plan():
    keys = [setting.key for setting in settings.plan(["random", "none", "pool"], [1.0, 0.5], 2)]
    assert keys == ["none@1", "random@0.5", "random@0.5#1", "pool@0.5"]
    own = settings.plan(["pool", "recoverable"], [None, 0.5])
    assert [s.key for s in own] == ["none@1", "pool@0.5", "recoverable@own", "recoverable@0.5"]
    assert settings.create(own[2])[0].retention is None
    drawn = settings.plan(["random"], [0.5], 3)
    assert [settings.create(setting)[0].seed for setting in drawn[1:]] == [0, 1, 2]
    given = settings.plan(["random"], [0.5], 3, {"random": {"seed": 7}})
    assert [settings.create(setting)[0].seed for setting in given[1:]] == [7]


def test_plan_of_several_methods():
    """The share is of the method in front of the language model; a method inside it keeps its own."""
    (_, small) = settings.plan(["resize+divprune"], [0.25])
    assert [type(part).__name__ for part in settings.create(small)] == ["Resize", "DivPrune"]
    assert [part.retention for part in settings.create(small)] == [0.25, 0.25]
    with pytest.raises(VTCError, match="retention: got own, but none of resize\\+divprune has"):
        settings.plan(["resize+divprune"], [None])
    given = {"random": {"video": "frame"}, "fastv": {"layer": 1}}
    drawn = settings.plan(["random+fastv"], [0.5], 2, given)
    assert [s.seed for s in drawn] == [0, 0, 1]
    random, fastv = settings.create(drawn[2])
    assert (random.retention, random.seed, random.video) == (0.5, 1, "frame")
    assert (fastv.retention, fastv.layer) == (None, 1)
    with pytest.raises(VTCError, match="random.retention is given by --retention"):
        settings.plan(["random+fastv"], [0.5], 1, {"random": {"retention": 0.1}})


def test_seeds_are_for_methods_that_draw_as_they_are_set():
    for sample, count in ((False, 1), (True, 2)):
        options = {"token_correlation": {"sample": sample}}
        found = settings.plan(["token_correlation"], [0.5], 2, options)
        assert [setting.seed for setting in found[1:]] == list(range(count))


def test_options_as_json_or_one_by_one():
    texts = ['{"pool": {"a": 1}, "random": {"b": [1, 2]}}', "pool.c=x", "pool.a=0.5"]
    found = settings.parse_options(texts, "method-options")
    assert found == {"pool": {"a": 0.5, "c": "x"}, "random": {"b": [1, 2]}}


def test_reference_suite_draws_fresh_images_from_any_seed():
    one, again, other = (create_suite("reference", scenes=2, seed=seed) for seed in (1, 1, 2))
    assert one.facts() == again.facts() and one.items()[0].id == again.items()[0].id
    assert one.facts()["fingerprint"] != other.facts()["fingerprint"]
    ids = [item.id for item in (*one.items(), *other.items())]
    assert len(set(ids)) == len(ids)
    first, second = (suite.items()[0].images[0]() for suite in (one, other))
    assert first.tobytes() != second.tobytes()
    item = one.items()[0]
    assert (
        one.score(item, f" {item.answers[0].upper()}. ") == 1.0 and one.score(item, "no way") == 0
    )


def test_model_by_its_folder(tmp_path, monkeypatch):
    """A folder loads through the automatic classes and answers as the shipped model does."""
    monkeypatch.setattr("vtc.commands.eval.accuracy.load", loading.load)
    argv = [*SMALL, *POOL, "--limit", "2", "--output"]
    assert main([*argv, str(tmp_path / "folder"), "--model", str(checkpoint_path())]) == 0
    assert main([*argv, str(tmp_path / "name")]) == 0
    assert answers(tmp_path / "folder") == answers(tmp_path / "name")
    model = read_manifest(tmp_path / "folder")["model"]
    assert model["name"] == checkpoint_path().name
    assert model["sha256"] == read_manifest(tmp_path / "name")["model"]["sha256"]


def test_text_of_a_method_option_stays_text():
    texts = ["recoverable.question=What is on shelf #5?", "recoverable.tau=1e-1"]
    found = settings.parse_options(texts, "method-options", settings.method_option)
    assert found == {"recoverable": {"question": "What is on shelf #5?", "tau": 0.1}}
    with pytest.raises(VTCError, match="method: got 'recoverabel'"):
        settings.parse_options(["recoverabel.tau=1"], "method-options", settings.method_option)
