"""What the documentation site has that its pages do not say: navigation, pages from elsewhere, drawings.

MkDocs calls the functions by their names (`hooks` in mkdocs.yml). A page that is not there yet is left
out of the navigation, and a page that nobody named stands under "More": a new page needs no line here.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from offline import elsewhere

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"

#: title -> page, or section -> pages
NAV: list[tuple[str, Any]] = [
    ("Home", "index.md"),
    ("Quick start", "quickstart.md"),
    (
        "Guide",
        [
            ("Choose a method", "methods.md"),
            ("Methods of this library", "own-methods.md"),
            ("Choose a budget", "tune.md"),
            ("Smaller pictures", "resize.md"),
            ("How it works", "how.md"),
            ("Threads, caches, columns", "calling.md"),
            ("Serving", "serving.md"),
            ("Your model", "models.md"),
            ("Families and methods", "support.md"),
            ("What is promised", "promises.md"),
            ("Questions", "faq.md"),
        ],
    ),
    (
        "Integrations",
        [
            ("transformers", "integrations/transformers.md"),
            ("PEFT and quantised models", "integrations/peft.md"),
            ("Streaming", "integrations/streaming.md"),
            ("Training", "integrations/training.md"),
            ("vLLM", "integrations/vllm.md"),
            ("lmms-eval", "integrations/lmms-eval.md"),
            ("VLMEvalKit", "integrations/vlmevalkit.md"),
            ("Complete scripts", "examples.md"),
        ],
    ),
    (
        "Notebooks",
        [
            ("Compress a model", "notebooks/compress_a_model.md"),
            ("Compare methods", "notebooks/compare_methods.md"),
            ("Write a method", "notebooks/write_a_method.md"),
            ("Train a tokenizer", "notebooks/train_a_tokenizer.md"),
        ],
    ),
    (
        "Measure",
        [
            ("What it costs and saves", "costs.md"),
            ("Results", "results.md"),
            ("Accuracy", "accuracy.md"),
            ("A second model, on real pictures", "reference-photo.md"),
            ("Time and memory", "efficiency.md"),
            ("Benchmarks", "suites.md"),
            ("Reports", "reports.md"),
        ],
    ),
    ("Image tokenizers", [("The parts", "discrete.md"), ("Experiments", "generation.md")]),
    (
        "Reference",
        [
            ("API", "api.md"),
            ("What stays", "stability.md"),
            ("Kernels", "kernels.md"),
            ("Add a part", "contributing.md"),
            ("Changes", "changes.md"),
        ],
    ),
]


def on_config(config: Any) -> Any:
    """Put the navigation together from what is there."""
    made = {file for file, _ in _made()}
    known = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")} | made
    known = {name for name in known if not name.startswith("results/")}  # written by commands
    named: set[str] = set()
    nav = _present(NAV, known, named)
    rest = sorted(known - named)
    if rest:
        nav.append({"More": rest})
    config.nav = nav
    return config


def _present(pages: list[tuple[str, Any]], known: set[str], named: set[str]) -> list[Any]:
    found: list[Any] = []
    for title, page in pages:
        if isinstance(page, list):
            inner = _present(page, known, named)
            found += [{title: inner}] if inner else []
        elif page in known:
            named.add(page)
            found.append({title: page})
    return found


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made of files outside docs/, of notebooks and of scripts."""
    for name, text in _made():
        files.append(File.generated(config, name, content=text))
    return files


def _made() -> list[tuple[str, str]]:
    """`(page, Markdown)` of every page that is made."""
    books = sorted((DOCS / "notebooks").glob("*.ipynb"))
    return [
        ("contributing.md", _moved((ROOT / "CONTRIBUTING.md").read_text("utf-8"))),
        ("changes.md", _moved((ROOT / "CHANGELOG.md").read_text("utf-8"))),
        ("examples.md", examples(sorted((DOCS / "examples").glob("*.py")))),
        *((f"notebooks/{book.stem}.md", notebook(book)) for book in books),
    ]


def _moved(text: str) -> str:
    """Links of a file of the root folder, from docs/; what the site does not have becomes plain text."""
    text = re.sub(r"\]\(docs/", "](", text).replace("](README.md)", "](index.md)")
    return re.sub(r"\[([^\]]*)\]\((?!https?:|#)([^)#]+)(#[^)]*)?\)", _there, text)


def _there(link: re.Match[str]) -> str:
    return link[0] if (DOCS / link[2]).exists() or link[2] == "index.md" else link[1]


def notebook(path: Path) -> str:
    """A notebook as Markdown, with what its cells print and draw."""
    parts = []
    for cell in json.loads(path.read_text("utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(re.sub(r"\.ipynb(?=[)#])", ".md", source))
        else:
            parts.append(f"```python\n{source}\n```")
            parts += [text for output in cell["outputs"] for text in _output(output)]
    title, rest = parts[0].split("\n", 1)
    file = f"[This notebook]({path.name}) runs from top to bottom in the tests."
    return "\n\n".join([title, file, rest.strip(), *parts[1:]]) + "\n"


def _output(output: dict[str, Any]) -> list[str]:
    kinds = output.get("data", {})
    if "image/png" in kinds:
        picture = "".join(kinds["image/png"]).replace("\n", "")
        return [f'<img alt="what the cell draws" src="data:image/png;base64,{picture}">']
    text = "".join(output.get("text", kinds.get("text/plain", "")))
    if not text.strip():
        return []
    return [f'<div class="output" markdown>\n\n```text\n{text.rstrip()}\n```\n\n</div>']


def examples(scripts: list[Path]) -> str:
    """A page with every complete script."""
    parts = [
        "# Complete scripts",
        "They are in `docs/examples/`. The tests run each on the small model that ships with `vtc`; "
        "`--model` takes yours.",
    ]
    for path in scripts:
        code = path.read_text("utf-8")
        title = code.partition('"""')[2].partition("\n")[0].rstrip(".")
        parts += [f"## {title}", f"[{path.name}](examples/{path.name})", f"```python\n{code}```"]
    return "\n\n".join(parts) + "\n"


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Let a link that shows the name of a file show the title of its page."""
    inner = (entry[1] if isinstance(entry[1], list) else [entry] for entry in NAV)
    titles = {file: title for pages in inner for title, file in pages}
    named = r"\[(?:docs/)?([\w-]+\.md)\]\("
    return re.sub(named, lambda link: f"[{titles.get(link[1], link[1])}](", markdown)


def on_page_content(html: str, page: Any, config: Any, files: Files) -> str:
    """Put drawings into the page itself, where they take the colours of its scheme; let no line end
    inside the name of an option."""

    def drawn(tag: re.Match[str]) -> str:
        name = Path(tag[1]).name
        svg = (DOCS / "images" / name).read_text("utf-8")
        svg = re.sub(r"<style>.*?</style>", "", svg, flags=re.DOTALL)
        return f'<div class="drawing" data-search-exclude>{svg}</div>'

    def whole(code: re.Match[str]) -> str:
        return re.sub(r"(?<![\w-])--[\w-]+", r'<span class="flag">\g<0></span>', code[0])

    html = re.sub(r"<code>[^<]*</code>", whole, html)  # of text; blocks have other tags inside
    return re.sub(r'<img [^>]*src="([^"]+\.svg)"[^>]*>', drawn, html)


def on_post_page(output: str, page: Any, config: Any) -> str:
    """Stop where a page would load a script, style or picture from elsewhere: it could not offline."""
    found = elsewhere(output)
    if found:
        raise PluginError(f"{page.file.src_uri} loads from elsewhere: {found}")
    return output
