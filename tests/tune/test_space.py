"""What is tried, and how a setting reads as a configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vtc.config import CompressionConfig
from vtc.errors import VTCError
from vtc.eval.tune.result import environment, plain_yaml, served
from vtc.eval.tune.space import METHODS, RETENTIONS, Candidate, plan
from vtc.plugins.vllm.settings import Settings


def test_everything_is_tried_by_default_and_can_be_made() -> None:
    found = plan()
    assert len(found) == len(METHODS) * len(RETENTIONS) == len({c.key for c in found})
    for candidate in found:
        assert candidate.create({})


def test_axes() -> None:
    found = plan(["pool", "divprune"], [0.25, 0.5], positions=["original", "contiguous"])
    assert [c.label for c in found[:3]] == [
        "pool at 50 %", "pool at 25 %", "pool at 50 %, positions contiguous",
    ]  # fmt: skip
    assert len(found) == 8 and len({c.family for c in found}) == 4
    shares = plan(["pool"], [0.125, 0.12])
    assert [c.label for c in shares] == ["pool at 12.5 %", "pool at 12 %"]
    assert [c.tokens for c in plan(["pool"], tokens=[10, 40])] == [40, 10]
    assert {c.method for c in plan(tokens=[40])} == {
        name for name in METHODS if "+" not in name or name.startswith("resize")
    }


@pytest.mark.parametrize(
    "candidate",
    [
        Candidate("divprune", 0.25),
        Candidate("divprune", None, tokens=64),
        Candidate("resize", 0.25, positions="contiguous", options={"share": 0.7}),
        Candidate("resize+divprune", 0.25, options={"resize": {"share": 0.7}}),
        Candidate("divprune+pyramiddrop", 0.25),
    ],
)
def test_a_setting_reads_the_same_from_its_file_and_from_variables(
    tmp_path: Path, candidate: Candidate
) -> None:
    config = candidate.config()
    file = tmp_path / "vtc.yaml"
    file.write_text(plain_yaml(config))
    assert CompressionConfig.from_sources(file=file, env={}) == config
    assert CompressionConfig.from_sources(env=environment(config)) == config
    assert len(config.create_all()) == len(candidate.method.split("+"))


def test_a_composition_keeps_the_product() -> None:
    config = Candidate("divprune+pyramiddrop", 0.25).config()
    assert config.options == {"divprune": {"retention": 0.5}, "pyramiddrop": {"retention": 0.5}}
    assert config.retention is None


def test_servers() -> None:
    config = Candidate("divprune", 0.25).config()
    assert served(config) == ["For vLLM: export VTC_METHOD=divprune VTC_RETENTION=0.25"]
    assert Settings(env=environment(config)).default.retention == 0.25
    (line,) = served(Candidate("resize", 0.25).config())
    assert line.startswith("vLLM cannot have it: ")
    assert served(CompressionConfig()) == []


@pytest.mark.parametrize(
    "given, message",
    [
        ({"methods": ["divprun"]}, "did you mean 'divprune'"),
        ({"methods": ["none"]}, "methods: got 'none', the full model"),
        ({"methods": []}, "methods: got no method"),
        ({"retentions": [1.0]}, r"retention: got 1.0, allowed are numbers in \(0, 1\)"),
        ({"retentions": [True]}, "retention: got True"),
        ({"tokens": [0]}, "tokens: got 0"),
        ({"positions": ["orginal"]}, "did you mean 'original'"),
        (
            {"methods": ["pool"], "options": {"mmr": {}}},
            "options of 'mmr', which is not in methods",
        ),
        ({"methods": ["pool"], "options": {"pool": {"nothing": 1}}}, "nothing"),
        ({"methods": ["divprune+scope"]}, "both work at the same place"),
        ({"methods": ["divprune+fastv"], "tokens": [9]}, "tokens: 'divprune.fastv' has a budget"),
        (
            {"methods": ["divprune+fastv"], "options": {"fastv": {"retention": 0.9}}},
            "fastv.retention is given by --retention",
        ),
    ],
)
def test_what_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(VTCError, match=message):
        plan(**given)
