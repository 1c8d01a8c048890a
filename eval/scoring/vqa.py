"""VQA accuracy: agreement with the people who answered the question (VQAv2, TextVQA, VizWiz)."""

from __future__ import annotations

import re
from collections.abc import Sequence

# Words are compared with their apostrophes; one that lacks a single apostrophe gets it back.
_APOSTROPHES = (
    "ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't "
    "haven't he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am might've mightn't "
    "mightn't've must've mustn't needn't not've o'clock oughtn't 'ow's'at shan't she'd've "
    "should've shouldn't shouldn't've somebody'd've somebody'll somebody's someone'd someone'd've "
    "someone'll someone's something'd something'd've something'll that's there'd there'd've "
    "there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't "
    "what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's "
    "who've why'll why're why's won't would've wouldn't wouldn't've y'all y'all'd've y'all'll "
    "you'd you'd've you'll you're you've"
).split()
CONTRACTIONS = {
    word[:i] + word[i + 1 :]: word
    for word in _APOSTROPHES
    for i, letter in enumerate(word)
    if letter == "'"
}
CONTRACTIONS["somebody'd"] = "somebodyd"  # the other way round in the official table
_NUMBERS = "zero one two three four five six seven eight nine ten".split()
NUMBERS = {"none": "0", **{word: str(value) for value, word in enumerate(_NUMBERS)}}
ARTICLES = ("a", "an", "the")
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"(?<=\d),+(?=\d)")
_PERIOD = re.compile(r"\.(?!\d)")


def normalize(answer: str) -> str:
    """An answer as the VQA evaluation compares it.

    Punctuation goes: a mark is deleted when the answer has it beside a space, or has a comma inside
    a number, and becomes a space otherwise; periods stay in front of a digit. Then lower case,
    numbers up to ten as digits, no articles, and apostrophes where they were left out.

    Source: the evaluation code of the VQA challenge (Antol et al. 2015; Goyal et al. 2017).
    """
    answer = answer.replace("\n", " ").replace("\t", " ").strip()
    grouped = _COMMA_IN_NUMBER.search(answer) is not None
    cleaned = answer
    for mark in PUNCTUATION:
        lone = grouped or f"{mark} " in answer or f" {mark}" in answer
        cleaned = cleaned.replace(mark, "" if lone else " ")
    words = [NUMBERS.get(word, word) for word in _PERIOD.sub("", cleaned).lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def tokenize(answer: str) -> str:
    """What the TextVQA and VizWiz evaluations do to an answer before `normalize`: lower case, no
    commas and question marks, `'s` a word of its own.

    Source: the answer processor of M4C (Hu et al. 2020).
    """
    return answer.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()


def vqa_accuracy(prediction: str, answers: Sequence[str], tokenized: bool = False) -> float:
    """VQA accuracy of one answer: min(matches / 3, 1), averaged over leaving out each person.

    The official VQAv2 script leaves answers as they are when all people agree to the letter; here
    they are always normalised, as in the TextVQA evaluation and in lmms-eval.

    Args:
        answers: what each person said, usually ten.
        tokenized: apply `tokenize` first (TextVQA, VizWiz).

    Returns:
        A number from 0 to 1; 0 when there are no answers.

    Source: https://visualqa.org/evaluation.html
    """
    clean = (lambda text: normalize(tokenize(text))) if tokenized else normalize
    said = clean(prediction)
    matches = [clean(answer) == said for answer in answers]
    total = sum(matches)
    return sum(min(1.0, (total - match) / 3) for match in matches) / max(len(matches), 1)
