"""The scorers on examples worked out by hand from the benchmarks' definitions."""

import pytest

from vtc.errors import VTCError
from vtc.eval.scoring.anls import anls, levenshtein
from vtc.eval.scoring.choice import option_letter
from vtc.eval.scoring.circular import circular_accuracy
from vtc.eval.scoring.contains import contains_answer
from vtc.eval.scoring.exact import exact_match
from vtc.eval.scoring.mme import mme_scores, yes_no_other
from vtc.eval.scoring.relaxed import relaxed_accuracy
from vtc.eval.scoring.vqa import normalize, vqa_accuracy
from vtc.eval.scoring.yes_no import binary_figures, says_yes


@pytest.mark.parametrize(
    "answer, clean",
    [
        ("The Dog.", "dog"),
        ("two", "2"),
        ("none", "0"),
        ("a man, an apple and the sea", "man apple and sea"),
        ("1,000", "1000"),
        ("3.5 m", "3.5 m"),
        ("black/white", "black white"),
        ("black / white", "black white"),
        ("x-ray, y-ray", "x ray y ray"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("yes\n", "yes"),
        ("U.S.A.", "usa"),
        ("(left)", "left"),
    ],
)
def test_the_vqa_normaliser(answer, clean):
    assert normalize(answer) == clean


@pytest.mark.parametrize(
    "matches, accuracy",
    # leave one out: with 3 of 10, seven subsets have 3 matches and three have 2
    [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (10, 1)],
)
def test_vqa_accuracy_leaves_each_person_out(matches, accuracy):
    answers = ["red"] * matches + ["blue"] * (10 - matches)
    assert vqa_accuracy("Red.", answers) == pytest.approx(accuracy)


def test_vqa_accuracy_of_textvqa_takes_possessives_apart():
    answers = ["mcdonald 's"] * 10
    assert vqa_accuracy("McDonald's", answers, tokenized=True) == 1
    assert vqa_accuracy("McDonald's", answers) == 0
    assert vqa_accuracy("anything", []) == 0


def test_levenshtein():
    assert levenshtein("kitten", "sitting") == 3
    assert levenshtein("", "abc") == 3
    assert levenshtein("flaw", "lawn") == 2


@pytest.mark.parametrize(
    "prediction, answers, similarity",
    [
        ("Boston", ["boston"], 1),
        ("bostan", ["boston"], 1 - 1 / 6),
        ("bostan", ["new york", "boston"], 1 - 1 / 6),
        ("abcd", ["abxy"], 0.5),  # the threshold itself counts
        ("abc", ["axy"], 0),  # 1/3 is under it
        ("two  words", ["two words"], 1),
        ("", ["x"], 0),
        ("x", [], 0),
    ],
)
def test_anls(prediction, answers, similarity):
    assert anls(prediction, answers) == pytest.approx(similarity)


@pytest.mark.parametrize(
    "prediction, answer, right",
    [
        ("105", "100", 1),
        ("105.1", "100", 0),
        ("95", "100", 1),
        ("-10.4", "-10", 1),
        ("12%", "0.12", 1),
        ("12%", "12", 0),
        ("Blue", "blue", 1),
        ("light blue", "blue", 0),
        ("0", "0", 1),
        ("0.0", "0", 0),  # zero is compared as text
        ("1,000", "1000", 0),
        ("ten", "10", 0),
    ],
)
def test_relaxed_accuracy(prediction, answer, right):
    assert relaxed_accuracy(prediction, answer) == right


@pytest.mark.parametrize(
    "prediction, yes",
    [
        ("Yes", True),
        ("yes, there is", True),
        ("No", False),
        ("no.", False),
        ("There is not. Yes", False),
        ("Yes. It is not far", True),
        ("nothing", True),
    ],
)
def test_a_yes_by_the_rule_of_pope(prediction, yes):
    assert says_yes(prediction) is yes


def test_pope_figures():
    # 3 hits, 1 miss, 2 false alarms, 4 correct rejections
    pairs = [(True, True)] * 3 + [(False, True)] + [(True, False)] * 2 + [(False, False)] * 4
    assert binary_figures(pairs) == pytest.approx(
        {"accuracy": 0.7, "precision": 0.6, "recall": 0.75, "f1": 2 / 3, "yes_ratio": 0.5}
    )
    assert binary_figures([(False, False)])["f1"] == 0
    assert set(binary_figures([]).values()) == {0}


@pytest.mark.parametrize(
    "prediction, label",
    [
        ("Yes", "yes"),
        ("no.", "no"),
        ("Y", "yes"),
        ("Yes, it is", "yes"),
        ("not at all", "no"),
        ("I say yes", "other"),
        ("", "other"),
    ],
)
def test_how_mme_reads_an_answer(prediction, label):
    assert yes_no_other(prediction) == label


def test_mme_adds_accuracy_and_accuracy_plus():
    rows = [
        *(("count", "a", right) for right in (1, 1)),
        *(("count", "b", right) for right in (1, 0)),
        *(("OCR", "a", right) for right in (1, 1)),
        *(("code_reasoning", "c", right) for right in (0, 1)),
        ("color", "d", 1),  # its other question failed
    ]
    assert mme_scores(rows) == {
        "score/count": 75 + 50,
        "score/OCR": 200,
        "score/code_reasoning": 50,
        "perception": 325,
        "cognition": 50,
        "score": 375,
    }
    with pytest.raises(VTCError, match="category: got 'colour'"):
        mme_scores([("colour", "a", 1)])
    with pytest.raises(VTCError, match="'a' has 3 questions"):
        mme_scores([("count", "a", 1)] * 3)


OPTIONS = {"A": "a red cat", "B": "a dog", "C": "two birds", "D": "nothing"}


@pytest.mark.parametrize(
    "prediction, letter",
    [
        ("B", "B"),
        ("b", "B"),
        ("(C)", "C"),
        ("D.", "D"),
        ("A. a red cat", "A"),
        ("B) a dog", "B"),
        ("C: two birds", "C"),
        ("The answer is B.", "B"),
        ("The correct answer is (A), not B", "A"),
        ("Answer: D", "D"),
        ("the answer is a dog", "B"),
        ("The answer is A because of the colour", "A"),
        ("It must be C", "C"),
        ("the answer is b", "B"),
        ("Answer: b", "B"),
        ("The answer is (c).", "C"),
        ("the answer is a", "A"),
        ("the answer is b because it barks", "B"),
        ("A dog", "B"),  # the article, not the letter
        ("There are two birds here", "C"),
        ("a red cat or a dog", None),
        ("A or B", None),
        ("E", None),
        ("Because", None),
        ("", None),
    ],
)
def test_the_option_that_an_answer_means(prediction, letter):
    assert option_letter(prediction, OPTIONS) == letter


@pytest.mark.parametrize(
    "prediction, options, letter",
    [
        ("West Virginia", ("Virginia", "West Virginia", "Ohio"), "B"),
        ("It is West Virginia.", ("Virginia", "West Virginia", "Ohio"), "B"),
        ("Virginia", ("Virginia", "West Virginia", "Ohio"), "A"),
        ("West Virginia and Virginia", ("Virginia", "West Virginia", "Ohio"), None),
        ("10", ("1", "10"), "B"),
        ("there are 10.", ("1", "10"), "B"),
        ("about 3.5 m", ("5", "3"), None),
        ("catalyst", ("cat", "dog"), None),
        ("a cat!", ("cat", "dog"), "A"),
        ("Vitamin C", ("Vitamin D", "Vitamin C", "Iron"), "B"),
        ("a $5 note", ("$5", "5"), "A"),
        ("same", ("same", "same"), None),
    ],
)
def test_the_text_of_an_option_as_whole_words(prediction, options, letter):
    assert option_letter(prediction, dict(zip("ABC", options, strict=False))) == letter


def test_circular_evaluation_wants_every_turn():
    rows = [
        *(("1", 4, right) for right in (1, 1, 1, 1)),
        *(("2", 4, right) for right in (1, 1, 1, 0)),
        *(("3", 2, right) for right in (1, 1)),
        *(("4", 4, right) for right in (1, 1, 1)),  # one turn failed
    ]
    assert circular_accuracy(rows) == {"accuracy": 2 / 3, "vanilla_accuracy": 9 / 10}
    assert circular_accuracy(rows[-3:]) == {"vanilla_accuracy": 1}, "no question is whole"
    assert circular_accuracy([]) == {}


def test_exact_match_but_for_case_and_punctuation():
    assert exact_match("Bottle.", "bottle") == 1
    assert exact_match("bottles", "bottle") == 0


def test_text_contained_in_an_answer():
    assert contains_answer("The sign says STOP right here", ["stop HERE", "go"]) == 0
    assert contains_answer("The sign says STOP\nhere", ["stop HERE", "go"]) == 1
    assert contains_answer("ＳＴＯＰ", ["stop"]) == 1
    assert contains_answer("x ^ { 2 } + 1", ["x^{2}"], formula=True) == 1
    assert contains_answer("X ^ { 2 }", ["x^{2}"], formula=True) == 0
    assert contains_answer("anything", []) == 0
