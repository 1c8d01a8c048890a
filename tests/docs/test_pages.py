"""The code on the pages of the documentation runs, and the site has everything that it names."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest
import torch

import vtc
from tests.docs.pages import DOCS, code, run_pages

_spec = importlib.util.spec_from_file_location("offline", DOCS.parent / "tools" / "offline.py")
assert _spec and _spec.loader
offline = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(offline)


@pytest.mark.parametrize("page", run_pages())
def test_the_code_of_a_page_runs(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    path = DOCS / page
    exec(compile(code(path), str(path), "exec"), {"__name__": "page"})
    told = capsys.readouterr().out
    assert told.strip(), "a page shows what comes out"


def test_enough_pages_are_run() -> None:
    assert {"quickstart.md", "faq.md", "integrations/transformers.md"} <= set(run_pages())
    assert len(run_pages()) >= 6


def test_the_quick_start_says_what_is_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    exec(compile(code(DOCS / "quickstart.md"), "quickstart.md", "exec"), names)
    out = capsys.readouterr().out
    assert "square | right is: square" in out and "did you mean 'retention'?" in out
    assert "64 tokens are left" in out and (tmp_path / "kept.png").is_file()


def test_the_api_page_has_every_public_name() -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    told = re.findall(r"^::: vtc\.(\w+)$", text, re.MULTILINE)
    named = re.findall(r"`vtc\.(\w+)`", text)
    assert sorted({*told, *named} - {"SIGNALS"}) == sorted(
        {*vtc.__all__} - {"SIGNALS", "__version__"}
    )
    for name, members in re.findall(r"^::: vtc\.(\w+)\n.*?\n +members: \[(.*?)\]", text, re.M):
        for member in members.split(", "):
            assert hasattr(getattr(vtc, name), member), f"{name}.{member}"


@pytest.mark.parametrize(
    "tag",
    [
        '<link rel="stylesheet" href="https://a.b/c.css">',
        '<link href="https://a.b/c.css" rel="stylesheet">',
        "<link href=//a.b/c.css rel=stylesheet>",
        '<link as="font" href="https://a.b/c.woff2" rel="preload">',
        '<img alt="x" src="https://a.b/c.png">',
        "<script\n defer src='http://a.b/c.js'></script>",
    ],
)
def test_the_site_sees_what_a_page_would_fetch(tag: str) -> None:
    assert offline.elsewhere(f"<p>one</p>{tag}<p>two</p>").startswith(tag.partition(">")[0])


def test_the_site_lets_pages_name_addresses() -> None:
    told = """<link rel="canonical" href="https://a.b/"><a href="https://a.b/">there</a>
        <link rel="stylesheet" href="assets/main.css"><img src="data:image/png;base64,//8A">"""
    assert offline.elsewhere(told) == ""


@pytest.mark.parametrize(
    "page", sorted(path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md"))
)
def test_links_of_a_page_lead_somewhere(page: str) -> None:
    """Pages that the site makes of files outside docs/ count as there."""
    made = {"contributing.md", "changes.md", "examples.md"}
    text = (DOCS / page).read_text(encoding="utf-8")
    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
        target = (DOCS / page).parent / link
        name = link.rpartition("/")[2]
        assert target.exists() or name in made or target.with_suffix(".ipynb").exists(), link
