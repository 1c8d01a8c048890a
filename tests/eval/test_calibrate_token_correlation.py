"""The command that chooses the thresholds of `token_correlation`."""

import pytest

from tests.reference_photo import pictures
from vtc.errors import VTCError
from vtc.eval import calibrate_token_correlation as calibrate
from vtc.eval.reference_photo import data


@pytest.mark.parametrize("name", ["--documents", "--questions"])
def test_counts_of_nothing_are_refused(name, capsys):
    with pytest.raises(SystemExit):
        calibrate.main([name, "0"])
    assert f"argument {name}: got '0'" in capsys.readouterr().err


def draw(root, split):
    data.main(
        f"--debian {pictures.debian(root / 'debian')} --output {root / split} --scenes 6 "
        f"--clothing {pictures.clothing(root / 'clothing')} --split {split}".split()
    )
    return root / split


def test_photographs_are_asked_about_once_each_and_of_the_validation_split_only(tmp_path):
    pytest.importorskip("matplotlib")
    folder = draw(tmp_path / "a", "val")
    found = calibrate.photographs(folder, 4)
    assert found.settings["pictures"] == len(found.first) == 4
    lines = (folder / "questions.jsonl").read_text()
    assert all(question in lines for _, question in found.first)
    test = draw(tmp_path / "b", "test")
    with pytest.raises(VTCError, match="photo: .*is of split 'test', allowed is 'val'"):
        calibrate.photographs(test, 4)
    with pytest.raises(SystemExit, match="data: got"):
        calibrate.main(["--photo", str(tmp_path / "none")])
