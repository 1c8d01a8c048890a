"""The page in a real browser. Skipped where no Chromium is installed."""

from __future__ import annotations

import pytest

from tests.eval import synthetic
from tests.eval.browser import CHROMIUM, browser
from vtc.commands.eval import main
from vtc.eval.common.settings import plan
from vtc.eval.report.results import LINES

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

TAB, ENTER = ("Tab", 9), ("Enter", 13, "\r")
FOCUSED = "document.activeElement.outerHTML.slice(0, 60)"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    chosen = synthetic.settings(synthetic.MANY)
    rows = synthetic.answers(chosen, 24)
    broken = [synthetic.failed(row) if row.item == "0001-2" else row for row in rows]
    synthetic.write_accuracy(folder / "accuracy", chosen, 24, rows=broken)
    synthetic.write_efficiency(folder / "efficiency", synthetic.settings(synthetic.MANY, seeds=1))
    argv = ["report", str(folder / "accuracy"), str(folder / "efficiency"), "--pictures", "0"]
    assert main([*argv, "--output", str(folder / "out"), "--resamples", "200"]) == 0
    return folder / "out" / "report.html"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.mark.parametrize("width", [360, 1280])
def test_fits_its_window_and_asks_for_nothing(page, path, width):
    page.problems.clear()
    page.requests.clear()
    page.open(path, width)
    page.run("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert page.run("innerWidth") == width
    assert page.run("document.documentElement.scrollWidth") <= width
    # wide tables scroll inside their own box, which the keyboard can reach
    inside = page.run(
        "[...document.querySelectorAll('*')].filter(e => e.scrollWidth > e.clientWidth + 1"
        " && getComputedStyle(e).overflowX === 'auto').map(e => e.tabIndex)"
    )
    assert all(index == 0 for index in inside) and (width > 600 or inside)
    shown = page.run(
        "[...document.querySelectorAll('figure svg')].filter(e => e.checkVisibility()).length"
    )
    assert shown == 2
    assert page.problems == []
    local = (path.as_uri(), "data:")
    assert page.requests and all(url.startswith(local) for url in page.requests)


def test_text_in_figures_can_be_read_on_a_phone(page, path):
    page.open(path, 360)
    smallest = page.run(
        "Math.min(...[...document.querySelectorAll('figure .narrow svg text')]"
        ".map(e => e.getBoundingClientRect().height))"
    )
    assert smallest >= 9
    outside = page.run(
        "[...document.querySelectorAll('figure .narrow svg text')]"
        ".filter(e => e.getBoundingClientRect().right > innerWidth).map(e => e.textContent)"
    )
    assert outside == []


def test_keyboard_goes_through_the_page_in_order(page, path):
    page.open(path)
    page.press(*TAB)
    assert 'class="skip"' in page.run(FOCUSED)
    assert page.run("document.activeElement.getBoundingClientRect().left >= 0")
    page.press(*ENTER)
    assert page.run("document.activeElement.id") == "main"
    tops, seen = [], []
    for _ in range(200):
        page.press(*TAB)
        focused = page.run(
            "(e => e === document.body ? null : [e.tagName, scrollY + e.getBoundingClientRect().top,"
            " getComputedStyle(e).outlineStyle])(document.activeElement)"
        )
        if focused is None:
            break
        seen.append(focused[0])
        tops.append(round(focused[1]))
        assert focused[2] != "none", page.run(FOCUSED)
    assert {"BUTTON", "SUMMARY", "DIV"} <= set(seen)
    # top to bottom, columns beside each other aside
    assert all(later >= earlier - 250 for earlier, later in zip(tops, tops[1:], strict=False))
    closed = "document.querySelectorAll('details:not([open])').length"
    before = page.run(closed)
    page.run("document.querySelector('summary').focus()")
    page.press(*ENTER)
    assert page.run(closed) == before - 1


def test_table_is_sorted_by_its_heads(page, path):
    page.open(path)
    page.run("document.querySelectorAll('.main-table button')[2].focus()")
    column = (
        "[...document.querySelectorAll('.main-table tbody tr')].map(r => +r.cells[2].dataset.value)"
    )
    start = page.run(column)
    page.press(*ENTER)
    assert page.run(column) == sorted(start, reverse=True) != start
    heads = "[...document.querySelectorAll('.main-table th[aria-sort]')].map(h => h.ariaSort)"
    assert page.run(heads)[:3] == ["none", "none", "descending"]
    page.press(*ENTER)
    assert page.run(column) == sorted(start)
    page.press(*ENTER)
    assert page.run(column) == start


def test_dark_screen_and_paper(page, path):
    """Text keeps its contrast with what is behind it, on every screen; print opens the details."""
    contrast = """(() => {
      const rgb = e => getComputedStyle(e).color.match(/[0-9.]+/g).map(Number);
      const light = c => c.slice(0, 3).map(v => v / 255).map(
        v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4
      ).reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
      const paper = getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).map(Number);
      const ratio = (a, b) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
      const texts = 'p, li, main a, nav a, h2, td, figcaption, summary';
      return Math.min(...[...document.querySelectorAll(texts)].filter(e => e.checkVisibility())
        .map(e => ratio(light(rgb(e)), light(paper))));
    })()"""
    page.open(path)
    grounds = []
    for scheme in ("light", "dark"):
        page.media("screen", scheme)
        assert page.run(contrast) >= 4.5
        grounds.append(page.run("getComputedStyle(document.body).backgroundColor"))
    assert grounds[0] != grounds[1]
    page.media("print", "dark")
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    page.media()
    sheet = page.pdf()
    assert sheet.startswith(b"%PDF") and sheet.count(b"/Type /Page\n") + sheet.count(
        b"/Type /Page "
    ) >= 2  # fmt: skip
    assert page.problems == []


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """A page with every method."""
    folder = tmp_path_factory.mktemp("crowd")
    chosen = plan(synthetic.EVERY, [0.5, 0.25, 0.1], 1, pixels=[0.25])
    synthetic.write_accuracy(folder / "run", chosen, 6)
    argv = ["report", str(folder / "run"), "--pictures", "0", "--resamples", "100"]
    assert main([*argv, "--output", str(folder)]) == 0
    return folder / "report.html"


SHOWN = "[...document.querySelectorAll('{}')].filter(e => e.checkVisibility()).length"
TYPED = (
    "(e => {{ e.value = {!r}; e.dispatchEvent(new Event({!r}, {{bubbles: true}})); }})"
    "(document.querySelector({!r}))"
)


@pytest.mark.parametrize("width", [390, 1280])
def test_many_methods_fit_and_are_searched(page, crowd, width):
    page.problems.clear()
    page.open(crowd, width)
    page.run("document.querySelectorAll('details').forEach(part => part.open = true)")
    assert page.run("document.documentElement.scrollWidth") <= width
    rows = SHOWN.format(".main-table tbody tr")
    assert page.run(rows) == 1 + 3 * len(synthetic.EVERY)
    table = "section[aria-labelledby=table] .filter "
    page.run(TYPED.format("scope, random", "input", table + "input"))
    assert page.run(rows) == 6
    assert page.run(f"document.querySelector('{table} output').textContent").startswith("6 of ")
    page.run(TYPED.format("25 %", "change", table + "select"))
    assert page.run(rows) == 2
    pairs = SHOWN.format("#other-pairs li")
    before = page.run(pairs)
    page.run(TYPED.format("divprune", "input", "details:has(#other-pairs) .filter input"))
    assert 0 < page.run(pairs) < before / 5
    # what is hidden stays so when the table is sorted
    page.run("document.querySelectorAll('.main-table button')[2].click()")
    assert page.run(rows) == 2 and page.problems == []


def test_lines_are_chosen(page, crowd):
    page.open(crowd)
    lines = (
        "new Set([...document.querySelectorAll('.wide svg [data-method]')]"
        ".filter(e => getComputedStyle(e).display !== 'none').map(e => e.dataset.method)).size"
    )
    assert page.run(lines) == LINES
    for value, count in (("none", 0), ("all", len(synthetic.EVERY)), ("first", LINES)):
        page.run(f"document.querySelector('.choose button[value={value}]').click()")
        assert page.run(lines) == count
    page.run("document.querySelector('.choose input:not(:checked)').click()")
    assert page.run(lines) == LINES + 1
    page.media("print")
    assert not page.run("document.querySelector('.choose').checkVisibility()")
    page.media()


def test_without_scripts_the_first_choice_is_there(page, crowd):
    page.send("Emulation.setScriptExecutionDisabled", value=True)
    page.open(crowd)
    page.send("Emulation.setScriptExecutionDisabled", value=False)
    assert page.run(SHOWN.format(".filter, .choose")) == 0
    assert page.run(SHOWN.format(".main-table tbody tr")) == 1 + 3 * len(synthetic.EVERY)
    styles = "[...document.querySelectorAll('svg .off[data-method]')].map(e => getComputedStyle(e))"
    assert page.run(f"{styles}.length") > 0
    assert page.run(f"{styles}.every(style => style.display === 'none')")
