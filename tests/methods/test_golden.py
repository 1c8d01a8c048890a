"""The golden runner: passes on the vectors, fails on anything else."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests import golden

FOLDER = Path(golden.__file__).with_name("golden")
CASES = sorted(path.stem for path in FOLDER.glob("*.json"))
INSIDE = sorted(f"inside_lm/{path.stem}" for path in (FOLDER / "inside_lm").glob("*.json"))


@pytest.mark.parametrize("name", CASES + INSIDE)
def test_case(name):
    case = golden.Case(FOLDER / f"{name}.json")
    name = case.name
    golden.RUNNERS[golden.family(name)](case)
    if "KNOWN_BUG" not in name:
        assert case.unread() == []


def test_every_family_is_there(capsys):
    assert golden.main([str(FOLDER)]) == 0
    lines = capsys.readouterr().out.split("\n")
    own = {"gc2_attn 2/2", "gc2_full 14/14", "rc_full 8/8", "rc_lof 2/2", "tcc_unofficial 3/3"}
    assert own <= set(lines)


def copy(tmp_path, name):
    for ending in (".json", ".safetensors"):
        shutil.copy(FOLDER / f"{name}{ending}", tmp_path / f"{name}{ending}")
    return tmp_path / f"{name}.safetensors"


@pytest.mark.parametrize(
    "name,tensor,index",
    [
        ("gc2_full_p06_2x1_small", "out_tokens", (3, 5)),
        ("gc2_full_p06_2x1_small", "topk_compact_idx", (2,)),
        ("gc2_attn_p02", "cls_scores", (1, 4)),
        ("rc_full_p01_n64", "main_idx", (7,)),
        ("rc_full_p01_n64", "out_tokens", (24, 0)),
        ("rc_lof_p01", "normal_100_k10.nof", (9,)),
        ("tcc_unofficial_p01", "keep_top", (0,)),
    ],
)
def test_a_wrong_expectation_is_found_and_named(tmp_path, capsys, name, tensor, index):
    path = copy(tmp_path, name)
    tensors = load_file(path)
    tensors[tensor][index] += 1
    save_file(tensors, path)
    assert golden.main([str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert f"  {name}: {tensor}[{', '.join(map(str, index))}]: got" in out
    assert f"{golden.family(name)} 0/1" in out


@pytest.mark.parametrize("shift, status", [(4e-6, 0), (5e-5, 1)])
def test_another_cpu_s_bilinear_passes(tmp_path, capsys, shift, status):
    """Its scores differ by 2e-6 where they are near 0, far less than between two patches."""
    path = copy(tmp_path, "gc2_full_p02_2x2_padrows")
    tensors = load_file(path)
    scores = tensors["global_scores_split"]
    scores[scores.abs().argmin()] += shift
    save_file(tensors, path)
    assert golden.main([str(tmp_path)]) == status


def test_a_wrong_number_in_the_json_is_found(tmp_path, capsys):
    path = copy(tmp_path, "rc_lof_p02").with_suffix(".json")
    info = json.loads(path.read_text())
    info["vectors"]["normal_100_k10"]["outliers"] += 1
    path.write_text(json.dumps(info))
    assert golden.main([str(tmp_path)]) == 1
    assert "normal_100_k10 outliers: got 10, expected 11" in capsys.readouterr().out


def test_only_selects_and_unknown_families_fail(tmp_path, capsys):
    copy(tmp_path, "rc_full_p05_n144_nocenters")
    (tmp_path / "nobody__knows.json").write_text("{}")
    assert golden.main([str(tmp_path), "--only", "rc_full"]) == 0
    assert capsys.readouterr().out == "rc_full 1/1\n"
    assert golden.main([str(tmp_path)]) == 1
    assert "0/1: no runner for this prefix" in capsys.readouterr().out
    assert golden.main([str(tmp_path), "--only", "zzz"]) == 1


def test_expected_tensors_cannot_be_read():
    case = golden.Case(FOLDER / "rc_full_p01_n64.json")
    with pytest.raises(golden.Mismatch, match="is no input"):
        case.input("out_tokens")
