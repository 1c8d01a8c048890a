"""`vtc doctor`: right on what is installed, and wrong where compression is made wrong."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from vtc.cli import main
from vtc.commands import doctor
from vtc.eval.reference import checkpoint_path
from vtc.plugins.hf import cache, tiny
from vtc.plugins.hf.checks.agreement import CHECKS as AGREEMENT
from vtc.plugins.hf.checks.outcome import Found, Outcome
from vtc.plugins.hf.checks.subject import Subject
from vtc.plugins.hf.stages import encoder

CHECKS = ("retention 1.0", "decoding", "batch", "removal", "attention: eager", "attention: sdpa")


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the machine's settings."""
    for name in ("METHOD", "RETENTION", "TOKENS", "POSITIONS", "OPTIONS", "KERNELS"):
        monkeypatch.delenv(f"VTC_{name}", raising=False)


@pytest.fixture
def one_family(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiny, "FAMILIES", {"llava": tiny.FAMILIES["llava"]})
    monkeypatch.setattr(doctor, "_loaded", lambda *_: iter(()))


def run(capsys: Any, *argv: str) -> tuple[int, dict[tuple[str, str], dict[str, Any]], str]:
    """Exit status, outcomes by check and model, and what stands on stderr."""
    status = main(["doctor", "--device", "cpu", *argv, "--json"])
    out, err = capsys.readouterr()
    found = json.loads(out)["checks"] if out else []
    return status, {(one["check"], one["subject"]): one for one in found}, err


@pytest.fixture
def renamed_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """A transformers whose cache has a name that the plug-in does not know, as 5.24's once was."""
    monkeypatch.setattr(cache, "NAMES", ("kv_store",))


def test_what_is_installed_is_right(capsys) -> None:
    status, found, err = run(capsys)
    assert [one for one in found.values() if one["status"] == "failed"] == []
    assert status == 0 and err == ""
    for check in CHECKS:
        for model in (*(f"tiny {family}" for family in tiny.FAMILIES), "reference"):
            assert found[check, model]["status"] == "ok", found[check, model]
    assert found["kernels", "triton"]["detail"] == "the PyTorch twins run on cpu"
    assert found["twins", "all operations"]["status"] == "ok"
    assert 0 < found["decoding", "reference"]["apart"] < 1e-4


def test_a_cache_that_is_not_seen(capsys, renamed_cache, one_family) -> None:
    """Decoding goes wrong, silently but for these checks."""
    status, found, err = run(capsys)
    assert status == 1
    assert err.strip() == "vtc: error: doctor: 2 of 14 checks failed: decoding, batch"
    wrong = found["decoding", "tiny llava"]
    assert wrong["status"] == "failed" and wrong["apart"] > 0.1
    assert "with a cache is not what one pass over the whole text gives" in wrong["detail"]
    assert found["retention 1.0", "tiny llava"]["status"] == "ok"


def test_the_table_says_what_failed(capsys, renamed_cache, one_family) -> None:
    assert main(["doctor", "--device", "cpu"]) == 1
    out, err = capsys.readouterr()
    assert "FAILED" in out and "not run" in out and "2 failed" in out
    assert err.strip().splitlines()[-1].startswith("vtc: error: doctor: 2 of 14 checks failed")


def test_the_time_told_is_the_users(capsys, monkeypatch) -> None:
    """With imports and what else happens between the checks."""

    def slow(*_: Any) -> Iterator[Outcome]:
        time.sleep(1.6)
        yield Outcome("version", "python", "ok", "3", seconds=0.0)

    monkeypatch.setattr(doctor, "_all", slow)
    assert main(["doctor", "--device", "cpu"]) == 0
    assert "1 ok, 0 failed, 0 not run, 2 s" in capsys.readouterr().out


def test_a_check_that_breaks_costs_no_other(capsys, monkeypatch, one_family) -> None:
    def broken(subject: Subject) -> Found:
        raise RuntimeError("out of luck\nand more")

    monkeypatch.setitem(AGREEMENT, "decoding", broken)
    status, found, _ = run(capsys)
    assert status == 1
    assert found["decoding", "tiny llava"]["detail"] == "RuntimeError: out of luck"
    others = [check for check in CHECKS if check != "decoding"]
    assert all(found[check, "tiny llava"]["status"] == "ok" for check in others)


def test_what_is_left_behind(capsys, monkeypatch, one_family) -> None:
    monkeypatch.setattr(encoder, "take_off", lambda *_: None)
    left = run(capsys)[1]["removal", "tiny llava"]
    assert (
        left["status"] == "failed" and "left behind: hook pre_hook of the model" in left["detail"]
    )


def test_a_model_of_ones_own(capsys) -> None:
    folder = str(checkpoint_path())
    status, found, err = run(capsys, "--model", folder, "--method", "globalcom2")
    assert status == 0 and err == ""
    assert found["loading", folder]["detail"].startswith("LlavaNextForConditionalGeneration")
    assert all(found[check, folder]["status"] == "ok" for check in CHECKS)
    assert not any(name.startswith("tiny") for _, name in found)


def test_a_setting_that_does_not_fit(capsys) -> None:
    """Of a model of one's own that is a failure, of a tiny one it is not."""
    status, found, _ = run(
        capsys,
        "--model",
        "reference",
        "--method",
        "uniform",
        "--tokens",
        "9999",
        "--option",
        "strict=true",
    )
    assert status == 1 and found["decoding", "reference"]["status"] == "failed"
    assert "9999" in found["decoding", "reference"]["detail"]
    status, found, _ = run(capsys, "--method", "recoverable")
    assert status == 0
    assert "text_encoder" in found["setting", "tiny llava"]["detail"]
    assert found["decoding", "reference"]["status"] == "ok"


def test_a_model_that_cannot_be_loaded(capsys, tmp_path) -> None:
    status, found, err = run(capsys, "--model", str(tmp_path))
    assert status == 1 and err.count("vtc: error: ") == 1
    assert "cannot load" in found["loading", str(tmp_path)]["detail"]
    assert found["version", "torch"]["status"] == "ok"


@pytest.mark.parametrize(
    "argv, message",
    [
        (["--retention", ".5,.2"], "give one number"),
        (["--method", "globalcom"], "did you mean 'globalcom2'?"),
        (["--device", "abacus"], "device: cannot use 'abacus'"),
    ],
)
def test_wrong_settings_are_one_line(capsys, argv, message) -> None:
    status, found, err = run(capsys, *argv)
    assert status == 1 and not found
    assert message in err and err.count("vtc: error: ") == 1
