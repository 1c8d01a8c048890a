"""The scorers against those of lmms-eval. Skipped where lmms-eval is not installed (CI)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("lmms_eval", reason="lmms-eval is not installed")

from vtc.eval.scoring.anls import anls  # noqa: E402
from vtc.eval.scoring.choice import option_letter  # noqa: E402
from vtc.eval.scoring.circular import circular_accuracy  # noqa: E402
from vtc.eval.scoring.contains import contains_answer  # noqa: E402
from vtc.eval.scoring.exact import exact_match  # noqa: E402
from vtc.eval.scoring.mme import COGNITION, PERCEPTION, mme_scores, yes_no_other  # noqa: E402
from vtc.eval.scoring.relaxed import relaxed_accuracy  # noqa: E402
from vtc.eval.scoring.vqa import vqa_accuracy  # noqa: E402
from vtc.eval.scoring.yes_no import binary_figures  # noqa: E402

many = settings(max_examples=300, deadline=None)
WORDS = (
    "the a an dog Dog, two none 1,000 3.5 U.S. dont couldnt've x-ray black/white (left) yes no. "
    "'s McDonald's what? 12% ! ; [x] 10:30 e.g. ten youre \n"
).split(" ")
phrases = st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)
# the plain letters keep chance agreements likely, the rest is anything printable
texts = phrases | st.text("abAB1 .,'-", max_size=8) | st.text(max_size=12)


@many
@given(texts, st.lists(texts, min_size=1, max_size=10))
def test_vqa_accuracy(prediction, answers):
    from lmms_eval.tasks.textvqa.utils import textvqa_process_results
    from lmms_eval.tasks.vqav2.utils import vqav2_process_results_val

    doc = {
        "question_id": 1,
        "answers": [{"answer": a, "answer_id": i} for i, a in enumerate(answers)],
    }
    theirs = vqav2_process_results_val(doc, [prediction])["exact_match"]
    assert vqa_accuracy(prediction, answers) == pytest.approx(theirs)
    doc = {"question_id": 1, "answers": list(answers)}
    theirs = textvqa_process_results(doc, [prediction])["exact_match"]
    assert vqa_accuracy(prediction, answers, tokenized=True) == pytest.approx(theirs)


@many
@given(texts, st.lists(texts, min_size=1, max_size=4))
def test_anls(prediction, answers):
    from lmms_eval.api.metrics import anls as theirs

    assert anls(prediction, answers) == pytest.approx(theirs(answers, [prediction])["anls"])


numbers = st.floats(-1e6, 1e6).map(str) | st.integers(-99, 99).map(str)
figures = numbers | numbers.map(lambda text: text + "%") | st.sampled_from(["0", "1,000", "Blue"])


@many
@given(figures | texts, figures | texts, st.floats(0.9, 1.1))
def test_relaxed_accuracy(prediction, answer, factor):
    from lmms_eval.tasks.chartqa.utils import relaxed_correctness

    prediction, answer = prediction.strip(), answer.strip()
    assert relaxed_accuracy(prediction, answer) == relaxed_correctness(prediction, answer)
    try:
        prediction = str(float(answer) * factor)
    except ValueError:
        return
    assert relaxed_accuracy(prediction, answer) == relaxed_correctness(prediction, answer)


@many
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_pope(pairs):
    from lmms_eval.tasks.pope import utils

    word = {True: "yes", False: "no"}
    rows = [
        utils.pope_process_results(
            {"question_id": str(i), "answer": word[is_yes]}, [word[says].capitalize()]
        )
        for i, (says, is_yes) in enumerate(pairs)
    ]
    ours = binary_figures(pairs)
    for figure, name in [
        ("f1", "f1_score"),
        *((n, n) for n in ("accuracy", "precision", "recall")),
    ]:
        gathered = [row[f"pope_{name}"] for row in rows]
        theirs = getattr(utils, f"pope_aggregate_{name}")(gathered)
        assert ours[figure] == pytest.approx(theirs)


subtasks = st.sampled_from([*PERCEPTION, *COGNITION])
replies = st.sampled_from(["Yes", "no.", "Y", "n", "Yes, it is", "not", "maybe", "the answer: no"])


@many
@given(st.lists(st.tuples(subtasks, replies | texts, replies), min_size=1, max_size=20))
def test_mme(images):
    from lmms_eval.tasks.mme.utils import mme_aggregate_results, mme_process_results

    rows, theirs = [], {"mme_perception_score": [], "mme_cognition_score": []}
    for number, (subtask, *said) in enumerate(images):
        for prediction, answer in zip(said, ("Yes", "No"), strict=True):
            doc = {"question_id": str(number), "category": subtask, "answer": answer}
            for key, value in mme_process_results(doc, [prediction]).items():
                theirs[key].append(value)
            right = yes_no_other(prediction) == answer.lower()
            rows.append((subtask, str(number), float(right)))
    ours = mme_scores(rows)
    assert ours["perception"] == pytest.approx(
        mme_aggregate_results(theirs["mme_perception_score"])
    )
    assert ours["cognition"] == pytest.approx(mme_aggregate_results(theirs["mme_cognition_score"]))


@many
@given(texts, st.lists(texts, min_size=1, max_size=3), st.booleans())
def test_ocrbench(prediction, answers, formula):
    from lmms_eval.tasks.ocrbench.utils import ocrbench_process_results

    doc = {"answer": answers, "dataset": "HME100k" if formula else "x", "question_type": "x"}
    theirs = ocrbench_process_results(doc, [prediction])["ocrbench_accuracy"]["score"]
    assert contains_answer(prediction, answers, formula) == theirs


bare = st.text("aBc.,! -", max_size=5).map(lambda text: text.strip(".,! -"))


@many
@given(bare, bare)
def test_gqa(prediction, answer):
    from lmms_eval.api.metrics import exact_match_fn

    theirs = exact_match_fn(
        predictions=[prediction], references=[answer], ignore_case=True, ignore_punctuation=True
    )["exact_match"]
    assert exact_match(f" {prediction}. ", answer) == theirs


OPTIONS = {"A": "red", "B": "blue", "C": "green", "D": "white"}
forms = st.sampled_from(
    ["{}", "{}.", "({})", "{}. {text}", "({}) {text}", "{}: {text}", "The answer is {}."]
)


@many
@given(forms, st.sampled_from(list(OPTIONS)), st.sampled_from(list(OPTIONS)))
def test_letters(form, letter, right):
    """In the forms that models answer in, all readers of lmms-eval that know a form agree."""
    from lmms_eval.tasks._task_utils.mcq_extract import extract_mcq_answer
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator
    from lmms_eval.tasks.scienceqa.utils import sqa_process_results

    said = form.format(letter, text=OPTIONS[letter])
    ours = option_letter(said, OPTIONS)
    assert ours == letter == extract_mcq_answer(said, choices=list(OPTIONS))
    inferred = MMBench_Evaluator().can_infer(said, dict(OPTIONS))
    assert inferred in (letter, False)
    doc = {"choices": list(OPTIONS.values()), "answer": list(OPTIONS).index(right)}
    if form in ("{}", "{}. {text}"):  # what its ScienceQA rule can read
        assert sqa_process_results(doc, [said])["exact_match"] == float(ours == right)


@many
@given(st.lists(st.lists(st.booleans(), min_size=2, max_size=4), min_size=1, max_size=8))
def test_mmbench(questions):
    from lmms_eval.tasks.mmbench.mmbench_evals import MMBench_Evaluator

    table, rows = [], []
    for index, turns in enumerate(questions):
        for turn, right in enumerate(turns):
            answer = "ABCD"[turn]
            said = answer if right else "ABCD"[(turn + 1) % len(turns)]
            options = {letter: "nan" for letter in "ABCD"} | dict(zip("ABCD", turns, strict=False))
            table.append(
                {"index": index + turn * 1_000_000, "question": "", "answer": answer}
                | {"prediction": said, "category": "x", "L2-category": "y"}
                | {letter: str(text) for letter, text in options.items()}
            )
            rows.append((str(index), len(turns), float(right)))
    theirs, _, _ = MMBench_Evaluator().eval_result(table, eval_method="static")
    assert circular_accuracy(rows)["accuracy"] == pytest.approx(theirs)
