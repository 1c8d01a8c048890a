"""A folder of the suite `photo` with something wrong in it is refused, each time that it is asked."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vtc.errors import VTCError
from vtc.eval import reference
from vtc.eval.suites import create_suite
from vtc.eval.suites import reference as drawn

ROW = {"id": "a", "picture": "p", "question": "what ?", "answer": "x", "type": "color"}
FACTS = {"split": "test", "pixels": {"p": "0" * 16}}


def folder(path: Path, *rows: object, facts: str = json.dumps(FACTS)) -> Path:
    (path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (path / "facts.json").write_text(facts)
    return path


def test_a_broken_line_is_refused_twice(tmp_path: Path) -> None:
    """The lines in front of it are no suite."""
    suite = create_suite("photo", data=str(folder(tmp_path, ROW, {"id": "b"})))
    for _ in range(2):
        with pytest.raises(VTCError, match="data: line 2 of questions.jsonl: KeyError"):
            suite.items()


@pytest.mark.parametrize("facts", ["{", "[]", "{}", '{"pixels": 3}', None])
def test_facts_that_cannot_be_read(tmp_path: Path, facts: str | None) -> None:
    made = folder(tmp_path, ROW, facts=facts or "")
    if facts is None:
        (made / "facts.json").unlink()
    with pytest.raises(VTCError, match="data: .*facts.json"):
        create_suite("photo", data=str(made)).facts()


def test_drawn_scenes_are_all_there_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing was interrupted; half of the scenes are no suite."""

    def interrupted(*args: object, **options: object):
        yield from (scene for scene in list(reference.scenes("val", 1, 7, questions=2)))
        raise KeyboardInterrupt

    suite = create_suite("reference", split="val", seed=7, scenes=2, questions=2)
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(drawn, "scenes", interrupted)
        suite.items()
    assert len({item.cluster for item in suite.items()}) == 2
    assert len(suite.facts()["fingerprint"]) == 64
