"""`CompressionConfig`: precedence, merging, and errors that name their source."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
from typing import ClassVar

import numpy as np
import pytest

from vtc import registry
from vtc.config import CompressionConfig, add_arguments
from vtc.errors import VTCError
from vtc.methods.base import Method
from vtc.methods.random import Random


@dataclasses.dataclass
class Toy(Method):
    score: str = "logits"
    alpha: float = 0.5
    flag: bool = False
    name: ClassVar[str] = "toy"

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.alpha < 1:
            raise VTCError(f"alpha: got {self.alpha!r}, allowed are numbers in (0, 1)")


@dataclasses.dataclass
class Other(Method):
    beta: int = 1
    name: ClassVar[str] = "other_toy"


@pytest.fixture(autouse=True)
def toys(monkeypatch):
    monkeypatch.setattr(registry, "_METHODS", {**registry._METHODS, "toy": Toy, "other_toy": Other})


def parse(*argv: str, prefix: str = "vtc-") -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("--unrelated", default=3)
    add_arguments(parser, prefix=prefix)
    return parser.parse_args(list(argv))


def sources(**kwargs) -> CompressionConfig:
    kwargs.setdefault("env", {})
    return CompressionConfig.from_sources(**kwargs)


def test_nothing_set_is_none():
    config = sources(args=parse())
    assert config == CompressionConfig()
    assert config.create().name == "none"


SETTERS = ("file", "env", "flags", "keywords")
FIELDS = {
    "method": ["none", "toy", "other_toy", "toy"],
    "retention": [0.1, 0.2, 0.3, 0.4],
    "tokens": [1, 2, 3, 4],
    "positions": ["original", "contiguous", "original", "contiguous"],
}


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize(
    "used", [c for n in (1, 2, 3, 4) for c in itertools.combinations(SETTERS, n)]
)
def test_precedence_matrix(tmp_path, name, used):
    """Whatever subset of the sources sets a field, the highest of them wins."""
    values = dict(zip(SETTERS, FIELDS[name], strict=True))
    kwargs: dict = {}
    if "file" in used:
        kwargs["file"] = tmp_path / "vtc.yaml"
        kwargs["file"].write_text(f"{name}: {values['file']}\n")
    if "env" in used:
        kwargs["env"] = {f"VTC_{name.upper()}": str(values["env"])}
    if "flags" in used:
        kwargs["args"] = parse(f"--vtc-{name}", str(values["flags"]))
    if "keywords" in used:
        kwargs[name] = values["keywords"]
    assert getattr(sources(**kwargs), name) == values[used[-1]]


def test_flags_not_given_do_not_override(tmp_path):
    file = tmp_path / "vtc.json"
    file.write_text(json.dumps({"method": "toy", "retention": 0.5, "options": {"score": "x"}}))
    config = sources(file=file, args=parse())
    assert (config.method, config.retention, config.options) == ("toy", 0.5, {"score": "x"})


def test_options_merge_key_by_key(tmp_path):
    file = tmp_path / "vtc.yaml"
    file.write_text("method: toy\noptions: {score: file, alpha: 1e-1, flag: true}\n")
    config = sources(
        file=file,
        env={"VTC_OPTIONS": '{"score": "env", "alpha": 0.2}'},
        args=parse("--vtc-option", "score=flag"),
    )
    assert config.options == {"score": "flag", "alpha": 0.2, "flag": True}
    assert sources(file=file, alpha=0.3).options["alpha"] == 0.3
    assert sources(file=file).options["alpha"] == 0.1, "1e-1 is a number, whatever YAML 1.1 says"


def test_another_method_drops_the_options_of_the_one_it_replaces(tmp_path):
    file = tmp_path / "vtc.yaml"
    file.write_text("method: toy\nretention: 0.5\noptions: {score: file}\n")
    config = sources(file=file, env={"VTC_METHOD": "other_toy", "VTC_OPTIONS": '{"beta": 3}'})
    assert (config.retention, config.options) == (0.5, {"beta": 3})
    assert sources(file=file, env={"VTC_METHOD": "none"}).options == {}
    assert sources(env={"VTC_METHOD": "none", "VTC_OPTIONS": '{"beta": 3}'}).options == {}


@pytest.mark.parametrize("low, high", [("retention", "tokens"), ("tokens", "retention")])
def test_a_budget_replaces_the_other_kind_of_a_lower_source(tmp_path, low, high):
    values = {"retention": 0.5, "tokens": 64}
    file = tmp_path / "vtc.yaml"
    file.write_text(f"{low}: {values[low]}\n")
    config = sources(file=file, env={f"VTC_{high.upper()}": str(values[high])})
    assert getattr(config, low) is None and getattr(config, high) == values[high]


@pytest.mark.parametrize("text", ["tokens: 5\nretention: null", "retention: null\ntokens: 5"])
def test_null_beside_the_other_budget_is_no_clash(tmp_path, text):
    file = tmp_path / "vtc.yaml"
    file.write_text(text)
    assert sources(file=file).tokens == 5


@pytest.mark.parametrize("text", [".5,.25", "0.5, 0.25", "[0.5, 0.25]"])
def test_one_retention_per_image(text):
    assert sources(env={"VTC_RETENTION": text}).retention == [0.5, 0.25]


def test_null_asks_for_the_count_of_the_method():
    assert sources(env={"VTC_RETENTION": "0.5"}, args=parse("--vtc-retention", "null")) == (
        CompressionConfig()
    )


@pytest.mark.parametrize(
    "option, value",
    [("flag=true", True), ("alpha=1e-3", 1e-3), ("alpha=0.5 # half", 0.5), ("score=a b", "a b")],
)
def test_option_values_are_yaml_scalars(option, value):
    flags = parse("--vtc-method", "toy", "--vtc-option", option)
    assert list(sources(args=flags).options.values()) == [value]


TEXTS = ("What is on shelf #5?", "yes", "null", "Is it: red?", "2024-01-31", "[1]", "1e3", "")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("method, option", [("toy", "score"), ("recoverable", "question")])
def test_options_that_are_text_stay_as_they_are(tmp_path, method, option, text):
    # the method may be named by a source that is read later
    flags = parse("--vtc-option", f"{option}={text}")
    assert sources(args=flags, method=method).options == {option: text}
    file = tmp_path / "vtc.json"
    file.write_text(json.dumps({"method": method, "options": {option: text}}))
    assert sources(file=file).options == {option: text}


def test_a_question_is_text(tmp_path):
    file = tmp_path / "vtc.yaml"
    file.write_text("method: recoverable\noptions: {question: yes}\n")
    with pytest.raises(VTCError, match=r"vtc\.yaml, options: question: got True, allowed are text"):
        sources(file=file)


def test_other_prefix_of_the_flags():
    flags = parse("--method", "toy", "--retention", "abc", prefix="")
    with pytest.raises(VTCError, match=r"^--retention: got 'abc'"):
        sources(args=flags)


def test_create_passes_everything_on():
    method = sources(method="toy", retention=0.3, options={"score": "x"}, alpha=0.25).create()
    assert (method.retention, method.score, method.alpha) == (0.3, "x", 0.25)


def test_round_trip_through_a_file(tmp_path):
    config = CompressionConfig("toy", [0.5, 0.1], None, "contiguous", {"alpha": 0.75})
    file = tmp_path / "vtc.json"
    file.write_text(json.dumps(config.to_dict()))
    assert sources(file=file) == config


ENV_ERRORS = [
    ({"VTC_RETENTION": "abc"}, r"^VTC_RETENTION: got 'abc', allowed are numbers in \(0, 1\]"),
    ({"VTC_RETENTION": "0"}, r"^VTC_RETENTION: got 0,"),
    ({"VTC_RETENTION": "1.5"}, r"^VTC_RETENTION: got 1.5,"),
    ({"VTC_RETENTION": ".nan"}, r"^VTC_RETENTION: got nan"),
    ({"VTC_RETENTION": "true"}, r"^VTC_RETENTION: got True"),
    ({"VTC_RETENTION": "[]"}, r"^VTC_RETENTION: got an empty list"),
    ({"VTC_TOKENS": "2.5"}, r"^VTC_TOKENS: got 2.5, allowed are whole numbers"),
    ({"VTC_TOKENS": "3", "VTC_RETENTION": "0.5"}, r"^VTC_TOKENS: .*VTC_RETENTION.*only one"),
    ({"VTC_METHOD": "rnadom_toy"}, r"^VTC_METHOD: got 'rnadom_toy'"),
    ({"VTC_METHOD": "othr_toy"}, r"did you mean 'other_toy'"),
    ({"VTC_POSITIONS": "contigous"}, r"^VTC_POSITIONS: .*did you mean 'contiguous'"),
    ({"VTC_OPTIONS": "{score"}, r"^VTC_OPTIONS: .*not JSON"),
    ({"VTC_OPTIONS": "[1]"}, r"^VTC_OPTIONS: .*JSON object"),
    ({"VTC_OPTIONS": '{"score": 1}'}, r"^VTC_OPTIONS: got 'score', but no method is named"),
    (
        {"VTC_METHOD": "toy", "VTC_OPTIONS": '{"scor": 1}'},
        r"^VTC_OPTIONS: method 'toy' has no option 'scor'.*did you mean 'score'",
    ),
    (
        {"VTC_METHOD": "toy", "VTC_OPTIONS": '{"alpha": 2}'},
        r"^VTC_OPTIONS: alpha: got 2, allowed are numbers in \(0, 1\)",
    ),
    (
        {"VTC_METHOD": "toy", "VTC_OPTIONS": '{"retention": 0.5}'},
        r"^VTC_OPTIONS: 'retention' is not an option",
    ),
    (
        {"VTC_METHOD": "toy", "VTC_OPTIONS": '{"positions": 1}'},
        r"^VTC_OPTIONS: 'positions' is not an option, give it as 'positions' itself$",
    ),
    ({"VTC_RETENTON": "0.5"}, r"^VTC_RETENTON: unknown variable; did you mean 'VTC_RETENTION'"),
    ({"VTC_KEEP_RATIO": "0.5"}, r"unknown variable; did you mean 'VTC_RETENTION'"),
    ({"VTC_METHODS": "toy"}, r"did you mean 'VTC_METHOD'"),
    ({"VTCMETHOD": "toy"}, r"did you mean 'VTC_METHOD'"),
    ({"vtc_method": "toy"}, r"did you mean 'VTC_METHOD'"),
    ({"VTC_KERNEL": "torch"}, r"did you mean 'VTC_KERNELS'"),
]


@pytest.mark.parametrize("env, message", ENV_ERRORS)
def test_environment_errors_name_the_variable(env, message):
    with pytest.raises(VTCError, match=message):
        sources(env=env)


def test_unrelated_variables_are_left_alone():
    env = {"VTC_KERNELS": "torch", "VTC_HOME": "/x", "PATH": "/bin", "VTC_METHOD": " "}
    assert sources(env=env) == CompressionConfig()


FILE_ERRORS = [
    ("a.yaml", "retenton: 0.5", r"a\.yaml: unknown key 'retenton'.*did you mean 'retention'"),
    ("a.yaml", "retention: x", r"a\.yaml, retention: got 'x'"),
    ("a.yaml", "- 1", r"a\.yaml: got list, expected keys"),
    ("a.yaml", "method: [", r"a\.yaml: cannot be parsed"),
    ("a.json", "{", r"a\.json: cannot be parsed"),
    ("a.yaml", "options: 3", r"a\.yaml, options: got 3"),
    ("a.yaml", "method: toy\noptions: {alfa: 1}", r"a\.yaml, options: .*did you mean 'alpha'"),
    ("a.yaml", "method: 5", r"a\.yaml, method: got 5"),
    ("a.yaml", "tokens: true", r"a\.yaml, tokens: got True"),
]


@pytest.mark.parametrize("name, text, message", FILE_ERRORS)
def test_file_errors_name_the_file(tmp_path, name, text, message):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(VTCError, match=message):
        sources(file=file)


def test_missing_and_empty_files(tmp_path):
    with pytest.raises(VTCError, match="cannot read .*No such file"):
        sources(file=tmp_path / "none.yaml")
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert sources(file=tmp_path / "empty.yaml") == CompressionConfig()


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--vtc-retention", "2"], r"^--vtc-retention: got 2"),
        (["--vtc-option", "score"], r"^--vtc-option: got 'score', expected KEY=VALUE"),
        (["--vtc-method", "toy", "--vtc-option", "scroe=1"], r"^--vtc-option: .*'score'"),
    ],
)
def test_flag_errors_name_the_flag(argv, message):
    with pytest.raises(VTCError, match=message):
        sources(args=parse(*argv))


def test_misspelt_keyword_is_taken_for_an_option_and_refused():
    with pytest.raises(VTCError, match=r"^keyword retenton: .*did you mean 'retention'"):
        sources(method="toy", retenton=0.5)


def test_bad_fields_of_the_dataclass():
    with pytest.raises(VTCError, match="positions: got 'middle'"):
        CompressionConfig(positions="middle")
    with pytest.raises(VTCError, match="retention: got 2"):
        CompressionConfig("toy", retention=2).create()
    with pytest.raises(VTCError, match="options: 'retention' is not an option"):
        CompressionConfig("toy", retention=0.5, options={"retention": 0.1})
    with pytest.raises(VTCError, match="options: 'positions' is not an option"):
        CompressionConfig("toy", retention=0.5, options={"positions": "original"})
    with pytest.raises(VTCError, match=r"method: got \['a'\], available"):
        registry.create_method(["a"])


@pytest.mark.parametrize(
    "given, message",
    [
        ({"args": {"vtc_method": "toy"}}, "args: got dict"),
        ({"env": None}, "env: got None"),
        ({"file": 5}, "file: got 5, expected a path"),
        (
            {"env": {"VTC_RETENTION": ".5,"}},
            r"VTC_RETENTION: got '\.5,', expected a number on each",
        ),
        ({"method": "globalcom2", "tau": float("inf")}, "tau: got inf"),
        ({"method": "globalcom2", "eps": float("inf")}, "eps: got inf"),
        ({"method": "recoverable", "text_weight": float("inf")}, "text_weight: got inf"),
    ],
)
def test_sources_of_another_kind(given, message):
    with pytest.raises(VTCError, match=message):
        sources(**given)


def test_exponents_in_a_list(tmp_path):
    (tmp_path / "a.yaml").write_text("retention: [0.5, 1e-1]")
    assert sources(file=tmp_path / "a.yaml").retention == [0.5, 0.1]
    assert sources(env={"VTC_RETENTION": "[0.5, 1e-1]"}).retention == [0.5, 0.1]


def test_numbers_of_numpy():
    method = sources(method="toy", retention=[np.float32(0.5), np.float64(0.25)]).create()
    assert json.dumps(method.settings()["retention"]) == "[0.5, 0.25]"
    assert registry.create_method("toy", tokens=np.int64(3)).settings()["tokens"] == 3


# -- several methods ---------------------------------------------------------------------------


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A registered method that works inside the language model."""
    made = type("Inside", (Random,), {"name": "inside", "where": "layers"})
    monkeypatch.setitem(registry._METHODS, "inside", made)


def test_several_methods_have_a_table_each(layers: None) -> None:
    tables = {"uniform": {"retention": 0.5}, "inside": {"tokens": 3, "seed": 1}}
    for config in (
        CompressionConfig("uniform+inside", options=tables),
        CompressionConfig.from_sources(env={}, method="uniform+inside", options=tables),
        CompressionConfig.from_sources(
            env={"VTC_METHOD": "uniform+inside", "VTC_OPTIONS": json.dumps(tables)}
        ),
        CompressionConfig.from_sources(
            env={},
            args=parse(
                *("--vtc-method", "uniform+inside", "--vtc-option", "uniform={retention: 0.5}"),
                *("--vtc-option", "inside={tokens: 3, seed: 1}"),
            ),
        ),
    ):
        first, second = config.create_all({"inside": {"seed": 7, "tokens": 9}})
        assert (first.name, first.retention) == ("uniform", 0.5)
        assert (second.name, second.tokens, second.seed) == ("inside", 3, 1)
        with pytest.raises(VTCError, match=r"'uniform\+inside', allowed is one method"):
            config.create()


@pytest.mark.parametrize(
    "given, message",
    [
        ({"retention": 0.5}, r"retention: got one for 'uniform\+inside', where each has its own"),
        ({"options": {"seed": 1}}, r"seed: got one .*options=\{'uniform': \{...\}, 'inside'"),
        ({"options": {"inside": 1}}, "options: got one for"),
        ({"options": {"inside": {"sed": 1}}}, "sed: 'inside' has no such option.*seed"),
        ({"method": "uniform+random"}, "both work at the same place"),
        ({"method": "uniform+insid"}, "got 'insid'.*inside"),
    ],
)
def test_several_methods_with_mistakes(layers: None, given: dict, message: str) -> None:
    with pytest.raises(VTCError, match=message):
        CompressionConfig.from_sources(env={}, **{"method": "uniform+inside", **given})
