"""What the site (mkdocs.yml) has beside the files of docs/: README.md as its first
page, CONTRIBUTING.md, CHANGELOG.md, a script with which the search works from the disk,
a page of the API reference for each package, from the docstrings, and the published
records: as a table with its card, and the report."""

import io
import re
import tomllib
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from analysis.frame import cells, runs
from analysis.records import flat_runs
from analysis.render import to_csv
from analysis.report import page
from runs.record.ledger import read_ledger

ROOT = Path(__file__).parents[1]
#: Page -> the modules whose public names it shows.
API = {
    "vera": [
        *(
            "vera.methods.contract",
            "vera.methods.layers",
            "vera.methods.adapted",
            "vera.methods.vera",
        ),
        *("vera.methods.lora", "vera.methods.adapter", "vera.methods.plain"),
        *("vera.methods.peft", "vera.sites", "vera.projections"),
        *(
            "vera.adapter_file",
            "vera.head_file",
            "vera.peft_format.exporting",
            "vera.peft_format.importing",
            "vera.peft_format.to_lora",
            "vera.serving",
            "vera.base_weights",
            "vera.errors",
        ),
    ],
    "tasks": [
        "tasks",
        "tasks.base",
        "tasks.text",
        "tasks.metrics",
        "tasks.e2e_metrics",
        "tasks.fetch",
    ],
    "runs": [
        *(
            "runs.record.cell",
            "runs.record.schema",
            "runs.record.ledger",
            "runs.config",
        ),
        *("runs.config.schema", "runs.run.identity", "runs.training.context"),
        *(
            "runs.training.loop",
            "runs.training.result",
            "runs.sweep.sweep",
            "runs.command.parser",
            "runs.command.records",
            "runs.command.errors",
        ),
    ],
    "analysis": [
        *(
            "analysis.frame",
            "analysis.paper_comparison",
            "analysis.render",
            "analysis.paper",
            "analysis.inference",
        ),
        "analysis.stats",
    ],
}
#: Wide enough for code of 95 columns; tables are narrow, so that they need no
#: scrolling. A table that does scroll has a shadow at the side where it goes on.
STYLE = """.md-grid { max-width: 75rem }
.md-typeset pre > code { font-size: .72em }
.md-typeset table:not([class]) :is(th, td) { min-width: 0; padding: .35em .7em }
.md-typeset table:not([class]) { background: none }
@media (min-width: 45em) { .md-typeset td:first-child code { word-break: normal } }
@media (max-width: 44.99em) {
  .md-typeset td:first-child:has(code) { min-width: 8rem }
  .md-typeset td:nth-child(2):has(code) { min-width: 5.5rem }
}
.md-typeset__scrollwrap {
  --ground: var(--md-default-bg-color);
  background:
    linear-gradient(to right, var(--ground) 40%, transparent) left / 2.5rem 100%,
    linear-gradient(to left, var(--ground) 40%, transparent) right / 2.5rem 100%,
    linear-gradient(to right, #8889, transparent) left / .7rem 100%,
    linear-gradient(to left, #8889, transparent) right / .7rem 100%;
  background-attachment: local, local, scroll, scroll;
  background-repeat: no-repeat;
}
.md-typeset img[src$=".svg"] { background: white }
.md-typeset img[src$="forest.svg"] { width: min(100%, 34rem); height: auto }
"""
#: Pages that tell a story in steps.
GUIDES = (
    "index",
    "quickstart",
    "own_method",
    "own_task",
    "sweeps",
    "serving",
    "exporting",
    "publishing",
    "tracking",
    "lm_eval",
    "reward",
    "results",
    "glossary",
)
#: Files of the root that pages link to.
LINKED = ("CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "CITATION.cff")


def on_config(config: MkDocsConfig) -> None:
    """The project's address, where pyproject.toml has one."""
    config.repo_url = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "urls"
    ].get("Repository")


def on_page_markdown(
    markdown: str, page: Page, config: MkDocsConfig, files: Files
) -> str:
    """Fills in the project's address, and says how far up the search puts a page."""
    page.meta["search"] = {"boost": boost_of(page.file.src_uri)}
    return re.sub(
        r"(git clone |git\+)URL\b", rf"\1{config.repo_url or 'URL'}", markdown
    )


def boost_of(path: str) -> float:
    """Guides stand before references, and both before the API and the changelog. The
    search counts a word in a heading a thousand times, and each function of the API has
    a heading; so the API needs less than a thousandth."""
    if path.startswith(("api/", "CHANGELOG")):
        return 0.0002
    return 4 if path.removesuffix(".md") in GUIDES else 1


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages. Links into docs/ lose that folder: the site has its pages at the
    top."""

    def add(path: str, content: str | bytes) -> None:
        files.append(File.generated(config, path, content=content))

    readme = (ROOT / "README.md").read_text()
    add("index.md", readme.replace("](docs/", "]("))
    add("site.css", STYLE)
    add("iframe-worker.js", (ROOT / ".ci" / "iframe-worker.js").read_text())
    for name in LINKED:
        add(name, (ROOT / name).read_text().replace("](docs/", "]("))
    for package, modules in API.items():
        add(
            f"api/{package}.md",
            "\n\n".join([f"# {package}", *(f"::: {name}" for name in modules)]) + "\n",
        )
    published = read_ledger(ROOT / "none of one's own")
    frame, parquet = flat_runs(published), io.BytesIO()
    frame.to_parquet(parquet)
    of = {"results": "result", "trials": "trial"}
    counts = {name: int((frame.kind == kind).sum()) for name, kind in of.items()}
    counts |= {"cells": len(cells(runs(published))), "studies": frame.origin.nunique()}
    add("data/README.md", (ROOT / ".ci" / "data.md").read_text().format(**counts))
    add("data/runs.parquet", parquet.getvalue())
    add("data/runs.csv", to_csv(frame))
    add("report.html", page(published))
    return files
