"""The lmms-eval plug-in, run by lmms-eval itself. Skipped where it is not installed (CI)."""

import json
import os
import subprocess
import sys
from functools import partial

import pytest

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")

from vtc.errors import VTCError  # noqa: E402
from vtc.eval import reference  # noqa: E402

TASK = """\
task: vtc_local
dataset_path: parquet
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.visual
doc_to_text: question
doc_to_target: answer
process_results: !function utils.process
generation_kwargs:
  max_new_tokens: 128
metric_list:
  - metric: contains
    aggregation: mean
    higher_is_better: true
"""
UTILS = """\
def visual(doc):
    return [doc["image"].convert("RGB")]


def process(doc, results):
    said = results[0].lower()
    return {"contains": float(any(answer.lower() in said for answer in doc["answer"]))}
"""


@pytest.fixture(scope="module")
def scenes():
    return list(reference.scenes("test", 8, 7, questions=4))


@pytest.fixture(scope="module")
def local(tmp_path_factory, scenes):
    """A task for lmms-eval, and its table in the form of OCRBench."""
    from tests.eval.suites.hub import HUB, Table

    folder = tmp_path_factory.mktemp("local")
    rows = [
        {"dataset": "vtc", "question_type": "Regular Text Recognition", "image": scene.image}
        | {"question": question.text, "answer": [question.answer]}
        for scene in scenes
        for question in scene.questions
    ]
    file = Table("test.parquet", HUB["ocrbench"][0].types, rows).write(folder)
    (folder / "tasks").mkdir()
    (folder / "tasks" / "vtc_local.yaml").write_text(TASK.format(file=file))
    (folder / "tasks" / "utils.py").write_text(UTILS)
    return folder, file


def command(folder, *arguments):
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=folder,  # the metadata of an old installation in the checkout would hide the plug-in
        env={**os.environ, **offline, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def samples(folder, out, launcher=()):
    """Answers and scores by document, and the score of the task, as lmms-eval wrote them."""
    command(
        folder,
        *(*launcher, "lmms_eval", "--model", "vtc"),
        *("--model_args", "pretrained=reference,method=globalcom2,retention=0.25"),
        *("--tasks", "vtc_local", "--include_path", str(folder / "tasks")),
        *("--batch_size", "4", "--device", "cpu", "--output_path", str(out), "--log_samples"),
    )
    (lines,) = out.rglob("*_samples_vtc_local.jsonl")
    (results,) = out.rglob("*_results.json")
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    score = json.loads(results.read_text())["results"]["vtc_local"]["contains,none"]
    said = {row["doc_id"]: row["filtered_resps"] for row in rows}  # one text, or a list of one
    texts = {doc: text if isinstance(text, str) else text[0] for doc, text in said.items()}
    return {row["doc_id"]: (texts[row["doc_id"]], row["contains"]) for row in rows}, score


@pytest.mark.slow
def test_lmms_eval_and_vtc_eval_agree_answer_by_answer(local, tmp_path):
    from vtc.eval.common.records import read_answers

    folder, file = local
    theirs, score = samples(folder, tmp_path / "lmms")
    command(
        folder,
        *("vtc.eval", "accuracy", "--model", "reference", "--methods", "globalcom2"),
        *("--retention", "0.25", "--suite", "ocrbench", "--data", str(file), "--device", "cpu"),
        *("--batch-size", "4", "--output", str(tmp_path / "vtc"), "--quiet"),
    )
    ours = {
        int(answer.item): (answer.prediction, answer.score)
        for answer in read_answers(tmp_path / "vtc")
        if answer.setting == "globalcom2@0.25"
    }
    assert theirs == ours
    assert score == pytest.approx(sum(right for _, right in ours.values()) / len(ours))
    assert 0.5 < score < 1


@pytest.mark.slow
def test_two_ranks_answer_as_one(local, tmp_path):
    folder, _ = local
    alone, score = samples(folder, tmp_path / "one")
    launcher = ("accelerate.commands.launch", "--cpu", "--num_processes", "2", "--module")
    shared, same = samples(folder, tmp_path / "two", launcher)
    assert (shared, same) == (alone, score)


# -- requests ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    from vtc.eval.harnesses.lmms_model import Model

    return Model("reference", method="globalcom2", retention=0.5, device="cpu", batch_size="3")


@pytest.fixture
def rows(model, scenes):
    """Documents of a task called "t": image and question."""
    found = [{"image": s.image, "text": q.text} for s in scenes[:3] for q in s.questions[:2]]
    model.task_dict = {"t": {"test": found}}
    return found


def visual(row):
    return [row["image"]]


def request(kind, *arguments):
    from lmms_eval.api.instance import Instance

    metadata = {"task": "t", "doc_id": 0, "repeats": 1}
    return Instance(request_type=kind, arguments=arguments, idx=0, metadata=metadata)


def generate(number, row, **settings):
    return request("generate_until", row["text"], settings, visual, number, "t", "test")


def test_answers_come_back_in_order_whatever_the_batches(model, rows):
    requests = [
        generate(i, row, max_new_tokens=8 if i % 2 else 7, until=["</s>"])
        for i, row in enumerate(rows)
    ]
    one_by_one = [model.generate_until([each])[0] for each in requests]
    assert model.generate_until(requests) == one_by_one
    assert len(set(one_by_one)) > 1


def test_until_ends_an_answer(model, rows):
    whole = model.generate_until([generate(0, rows[0], max_new_tokens=8)])[0]
    cut = model.generate_until([generate(0, rows[0], max_new_tokens=8, until=whole[1:])])[0]
    assert whole and cut == whole[0]


def test_likelihoods_rank_the_given_answer_first(model, rows):
    said = model.generate_until([generate(0, rows[0], max_new_tokens=8)])[0]
    choices = [said, "red" if said != "red" else "blue", "left"]
    requests = [
        request("loglikelihood", rows[0]["text"], f" {choice}", visual, 0, "t", "test")
        for choice in choices
    ]
    losses, greedy = zip(*model.loglikelihood(requests), strict=True)
    assert losses[0] == min(losses) > 0 and greedy == (True, False, False)
    by_call = request("loglikelihood", rows[0]["text"], lambda row: said, visual, 0, "t", "test")
    assert model.loglikelihood([by_call])[0][0] == pytest.approx(losses[0])
    with pytest.raises(VTCError, match="acc_mutual_info"):
        model.loglikelihood([request("loglikelihood", "", said)])


def test_rounds_go_on_until_the_task_ends_them(model, rows):
    def following(row, previous_output, round_idx, previous_round_info, other):
        assert len(previous_output) == round_idx and previous_round_info == (round_idx - 1 or None)
        return [row["image"]], other, round_idx == 2, previous_output, round_idx

    arguments = (rows[0]["text"], {"max_new_tokens": 8}, visual)
    call = partial(following, other=rows[1]["text"])
    found = model.generate_until_multi_round(
        [request("generate_until_multi_round", *arguments, call, 0, "t", "test")]
    )
    both = [{"image": rows[0]["image"], "text": row["text"]} for row in rows[:2]]
    model.task_dict = {"t": {"test": both}}
    expected = [generate(i, row, max_new_tokens=8) for i, row in enumerate(both)]
    assert found == [model.generate_until(expected)]


def test_videos_and_wrong_arguments_are_refused(model, rows):
    from vtc.eval.harnesses.lmms_model import Model

    bad = request("generate_until", "what ?", {}, lambda row: ["clip.mp4"], 0, "t", "test")
    with pytest.raises(VTCError, match="'t' has a str among its visuals"):
        model.generate_until([bad])
    with pytest.raises(VTCError, match="batch_size: got 'auto'"):
        Model("reference", batch_size="auto")
    with pytest.raises(VTCError, match="retention"):
        Model("reference", method="globalcom2", retention=1.5)
    with pytest.raises(VTCError, match="no option 'sead'"):
        Model("reference", method="random", retention=0.5, sead=1)
