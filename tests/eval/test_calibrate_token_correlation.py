"""The command that chooses the thresholds of `token_correlation`."""

import pytest

from vtc.eval.calibrate_token_correlation import main


@pytest.mark.parametrize("name", ["--documents", "--questions"])
def test_counts_of_nothing_are_refused(name, capsys):
    with pytest.raises(SystemExit):
        main([name, "0"])
    assert f"argument {name}: got '0'" in capsys.readouterr().err
