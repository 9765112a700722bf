"""The pages as Markdown, through the templates beside this file: results.md with the findings, study.md with
a study; words.md, a finding in words; readme.md."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2
import pandas as pd

from analysis.figures import forest, svg
from analysis.frame import runs
from analysis.inference import FIRM_PAIRS, MARGIN, seeds_to_decide
from analysis.results import study
from analysis.results.finding import WORDS, Finding
from analysis.results.of_rows import tries
from analysis.results.pooled import forest_lines, pictured, summaries
from runs.record import Ledger
from runs.record.text import one_line, plural


def environment(*folders: Path, autoescape: bool = False) -> jinja2.Environment:
    """Templates of this folder and of others. autoescape: for HTML; in Markdown the filter `cell` escapes
    labels."""
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([*folders, Path(__file__).parent]),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"cell": _in_cell}
    made.globals |= {"plural": plural, "counted": _counted, "verdicts": WORDS}
    made.globals |= {"margin": f"{MARGIN:g}", "firm_pairs": FIRM_PAIRS, "seeds_to_decide": seeds_to_decide}
    return made


def _in_cell(text: object) -> str:
    """A text of a Markdown table, in which a label's sign begins neither a column nor HTML."""
    return one_line(str(text)).replace("|", "\\|").replace("<", "&lt;")


def _counted(numbers: Sequence[int], word: str) -> str:
    """Such as "3 to 5 seeds"."""
    return f"{' to '.join(map(str, numbers))} {word}{'s' * ([*numbers] != [1])}"


def macros(page: str) -> Any:
    """The macros of a template, by name."""
    return environment().get_template(page).module


def rendered(page: str, **gaps: Any) -> str:
    """A page: its template with the gaps filled, without the blank lines that empty parts leave."""
    return re.sub(r"\n{3,}", "\n\n", environment().get_template(page).render(gaps)).strip() + "\n"


def pages(studies: Mapping[Path, Ledger], docs: Path) -> tuple[dict[str, str], list[dict[str, Any]]]:
    """The pages of these studies, by their folders, and the pictures that they show, by their paths in docs;
    and the findings over all tasks (`summaries`). They link what docs/bench has."""
    of = {folder: runs(ledger) for folder, ledger in studies.items()}
    measures = {folder: [*ledger.measures.values()] for folder, ledger in studies.items()}
    found = tries(of, measures)
    made = summaries(found)
    files = {"results.md": overview(found, made, of, sorted(docs.glob("bench/*/*.md")))}
    if any(map(pictured, made)):
        files["results/forest.svg"] = svg(forest.figure(forest_lines(made)))
    for folder, frame in of.items():
        gaps, pictures = study.gaps(folder, frame, measures[folder])
        files |= {f"results/{folder.name}.md": rendered("study.md", **gaps)} | pictures
    return files, made


def overview(
    found: Sequence[Finding],
    made: Sequence[Mapping[str, Any]],
    studies: Mapping[Path, pd.DataFrame] = MappingProxyType({}),
    benches: Sequence[Path] = (),
) -> str:
    """The page of all studies. found: every try; made: their summaries; benches: pages in docs/bench/NAME."""
    ran = [(folder.name, of[of.kind != "failed"]) for folder, of in studies.items()]
    numbers = {name: n for n, name in enumerate(dict.fromkeys(one["finding"] for one in made), 1)}
    gaps = {"found": found, "made": made, "ran": ran, "numbers": numbers, "benches": benches}
    return rendered("results.md", **gaps, drawn=any(map(pictured, made)))
