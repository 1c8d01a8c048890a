"""The golden cases of the discrete half, through the runner that a user calls."""

from pathlib import Path

import pytest

from tests.golden import run

CASES = Path(__file__).parents[1] / "golden" / "discrete"


@pytest.mark.parametrize("system", ["elm", "instella", "read", "seed", "tokenunify", "xar"])
def test_golden(system: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(CASES, f"{system}__"), capsys.readouterr().out
