"""Shares by how a question begins: which one a question gets, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

import vtc
from vtc.openings import opening, share_of

SHARES = {"how many": 0.7, "how many people": 0.9, "what": 0.2, "*": 0.1}


@pytest.mark.parametrize(
    "question, share",
    [
        ("How many boxes are there?", 0.7),
        ("how MANY people, please?", 0.9),
        ("How many", 0.7),
        ("How manyfold is it?", 0.1),
        ("What's this?", 0.1),
        ("  “What” is this?", 0.2),
        ("Tell me how many there are.", 0.1),
        ("有几个盒子？", 0.1),
        ("", 0.1),
    ],
)
def test_the_longest_opening_that_fits(question: str, share: float) -> None:
    assert share_of(SHARES, question) == share


def test_openings_are_two_words() -> None:
    assert opening("What is the total?") == "what is"
    assert opening("“Where?”") == "where"


def test_a_method_has_the_share_of_each_image() -> None:
    method = vtc.create_method("divprune", retention={"How many?": 0.7, "*": 0.1})
    assert method.by_question and method.retention == {"how many": 0.7, "*": 0.1}
    asked = method.for_questions(["How many are there?", "Where?", "How many?"])
    assert asked.retention == [0.7, 0.1, 0.7] and not asked.by_question
    assert asked.for_image(1, 3).ratio == 0.1
    assert asked.for_questions(["How many?"]) is asked
    with pytest.raises(vtc.VTCError, match="need for_questions"):
        _ = method.ratio


@pytest.mark.parametrize(
    "shares, message",
    [
        ({}, r"got {}, allowed are shares by question with one for '\*'"),
        (
            {"how many": 0.5},
            r"got {'how many': 0.5}, allowed are shares by question with one for '\*'",
        ),
        ({"*": 0.5, "how many": 0}, "got 0 for 'how many', allowed are numbers"),
        ({"*": 1.5}, r"got 1.5 for '\*'"),
        ({"*": True}, r"got True for '\*'"),
        ({"*": 0.5, "?": 0.2}, r"got the opening '\?', allowed are the first words"),
        ({"*": 0.5, 3: 0.2}, "got the opening 3, allowed are the first words"),
        ({"*": 0.5, "How": 0.2, "how": 0.3}, "got the opening 'how', which is there twice"),
    ],
)
def test_what_is_refused(shares: dict[Any, Any], message: str) -> None:
    with pytest.raises(vtc.VTCError, match=f"retention: {message}"):
        vtc.create_method("divprune", retention=shares)
    with pytest.raises(vtc.VTCError, match=f"retention: {message}"):
        vtc.CompressionConfig.from_sources(env={}, method="divprune", retention=shares)


@pytest.mark.parametrize("name", ["resize", "fastv"])
def test_methods_elsewhere_have_none(name: str) -> None:
    with pytest.raises(vtc.VTCError, match=f"shares by question, .* '{name}' has one share"):
        vtc.create_method(name, retention=SHARES)


def test_every_source_can_give_them() -> None:
    want = vtc.CompressionConfig("divprune", retention=SHARES)
    text = json.dumps(SHARES)
    env = {"VTC_METHOD": "divprune", "VTC_RETENTION": text}
    assert vtc.CompressionConfig.from_sources(env=env) == want
    with pytest.raises(vtc.VTCError, match="VTC_TOKENS: got .*, allowed are whole numbers"):
        vtc.CompressionConfig.from_sources(env={"VTC_METHOD": "divprune", "VTC_TOKENS": text})
