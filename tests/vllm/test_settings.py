"""What requests may ask for, and what a server is set to; no vLLM is needed."""

from __future__ import annotations

from typing import Any

import pytest

from vtc import VTCError
from vtc.plugins.vllm.settings import Limits, Settings, Wish

DEFAULT = {"vtc_method": "uniform", "vtc_retention": 0.5, "num_crops": 4}

BAD: list[tuple[dict[str, Any], str]] = [
    ({"vtc_retention": 1.5}, r"vtc_retention: got 1.5, allowed are numbers in \(0, 1\]"),
    ({"vtc_retention": 0}, "vtc_retention: got 0"),
    ({"vtc_retention": -0.1}, "vtc_retention: got -0.1"),
    ({"vtc_retention": float("nan")}, "vtc_retention: got nan"),
    ({"vtc_retention": True}, "vtc_retention: got True"),
    ({"vtc_retention": "much"}, "vtc_retention: got 'much'"),
    ({"vtc_retention": [0.5, 0.2]}, "vtc_retention: got .*allowed is one number"),
    ({"vtc_retention": {}}, "vtc_retention: got {}"),
    ({"vtc_tokens": 0}, "vtc_tokens: got 0"),
    ({"vtc_tokens": 2.5}, "vtc_tokens: got 2.5"),
    ({"vtc_tokens": [3]}, "vtc_tokens: got .*allowed is one number"),
    ({"vtc_tokens": 3, "vtc_retention": 0.5}, "vtc_tokens: got 3 beside vtc_retention=0.5"),
    ({"vtc_method": "unifrom"}, "vtc_method: got 'unifrom'.*did you mean 'uniform'"),
    ({"vtc_method": 3}, "vtc_method: got 3"),
    ({"vtc_method": "uniform+fastv"}, "vtc_method|method"),
    ({"vtc_method": "fastv"}, "vtc_method: "),
    ({"vtc_method": "cdpruner"}, "vtc_method: 'cdpruner' reads .*text_score='similarity' works"),
    ({"vtc_method": "tokenflex"}, "projector: got None"),
    ({"vtc_options": {"seed": 3}}, "vtc_options: method 'uniform' has no option 'seed'"),
    ({"vtc_options": 3}, "vtc_options: got 3"),
    ({"vtc_options": {"retention": 0.5}}, "vtc_options: 'retention' is not an option"),
    (
        {"vtc_method": "tokenflex", "vtc_options": {"projector": "/etc"}},
        "vtc_options: 'projector' names files of the server",
    ),
    (
        {"vtc_method": "learned", "vtc_options": {"scorer": "/etc"}},
        "vtc_options: 'scorer' names files of the server",
    ),
    (
        {"vtc_method": "coverage", "vtc_options": {"proportional": True}},
        "vtc_options: 'coverage' got proportional=True.*allowed is false",
    ),
    (
        {"vtc_method": "globalcom2", "vtc_options": {"tau": "hot"}},
        "vtc_options: tau",
    ),
    ({"vtc_retenton": 0.5}, "got 'vtc_retenton', .*did you mean 'vtc_retention'"),
    ({"vtc_spec": "{}"}, "got 'vtc_spec', allowed are vtc_method"),
    ({"vtc_positions": "original"}, "got 'vtc_positions'"),
    ({"VTC_METHOD": "pool"}, "got 'VTC_METHOD'"),
    ({"num_crops": 16}, "got 'num_crops', allowed are vtc_method"),
    ({"do_resize": False}, "got 'do_resize', allowed are vtc_method"),
    ({"vtc_question": 3}, "vtc_question: got 3"),
    ({"vtc_question": "where?"}, "vtc_question: .* 'uniform' reads no question"),
]


@pytest.mark.parametrize("keywords,message", BAD)
def test_a_bad_request_names_what_is_wrong(keywords: dict[str, Any], message: str) -> None:
    settings = Settings(DEFAULT, {})
    with pytest.raises(VTCError, match=message):
        settings.request(keywords)
    assert settings.request({}) == Wish("uniform", 0.5)


def test_a_request_changes_the_default_key_by_key() -> None:
    settings = Settings(DEFAULT, {})
    assert settings.request({"vtc_retention": 0.25}) == Wish("uniform", 0.25)
    assert settings.request({"vtc_tokens": 7}) == Wish("uniform", tokens=7)
    assert settings.request({"vtc_method": "pool"}) == Wish("pool", 0.5)
    assert settings.request({"vtc_method": "none"}).method == "none"
    assert settings.request({"num_crops": 4}) == settings.default  # the server's own


def test_what_was_asked_before_is_answered_alike() -> None:
    settings = Settings(DEFAULT, {})
    first = settings.request({"vtc_retention": 0.25})
    assert settings.request({"vtc_retention": 0.25}) is first
    assert settings.request({"vtc_retention": 0.25, "vtc_method": "pool"}).method == "pool"
    settings.request({"vtc_tokens": 1})
    with pytest.raises(VTCError, match="vtc_tokens: got True"):  # equal to 1, and no number
        settings.request({"vtc_tokens": True})
    for tokens in range(1, 600):  # questions of many clients do not pile up
        assert settings.request({"vtc_tokens": tokens}).tokens == tokens
    assert len(settings._known) <= 256


def test_the_environment_is_below_the_flags() -> None:
    env = {"VTC_METHOD": "pool", "VTC_TOKENS": "9"}
    assert Settings({}, env).default == Wish("pool", tokens=9)
    assert Settings({"vtc_retention": 0.5}, env).default == Wish("pool", 0.5)
    assert Settings({"vtc_method": "none"}, env).request({}).method == "none"
    with pytest.raises(VTCError, match="vtc_method: got 'none' beside a budget"):
        Settings({}, {}).request({"vtc_tokens": 3})
    with pytest.raises(VTCError, match="VTC_RETENTION: got 7"):
        Settings({}, {"VTC_METHOD": "pool", "VTC_RETENTION": "7"})
    with pytest.raises(VTCError, match="did you mean 'uniform'"):
        Settings({"vtc_method": "unifrom"}, {})


def test_operators_cap_what_requests_may_keep() -> None:
    limits = Limits.from_env({"VTC_MAX_RETENTION": "0.5", "VTC_MIN_RETENTION": "0.1"})
    limits.check(50, 100)
    limits.check(1, 1)  # of a single token one is kept
    with pytest.raises(VTCError, match="at most 0.5"):
        limits.check(51, 100)
    with pytest.raises(VTCError, match="no less than 0.1"):
        limits.check(9, 100)
    with pytest.raises(VTCError, match="got 'none', this server allows at most 0.5"):
        limits.check_whole()
    Limits().check_whole()
    with pytest.raises(VTCError, match="VTC_MAX_RETENTION: got 'x'"):
        Limits.from_env({"VTC_MAX_RETENTION": "x"})
    with pytest.raises(VTCError, match="VTC_MIN_RETENTION: got 0.5, above"):
        Limits.from_env({"VTC_MAX_RETENTION": "0.2", "VTC_MIN_RETENTION": "0.5"})


def test_foreign_keywords_are_the_operators_to_allow() -> None:
    settings = Settings(DEFAULT, {"VTC_ALLOW_PROCESSOR_KWARGS": "1"})
    assert settings.request({"num_crops": 16}) == settings.default
