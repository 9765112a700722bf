"""The pages as Markdown, through the templates beside this file: results.md with the findings, study.md with
a study; words.md, a finding in words; readme.md, the README's blocks."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2
import pandas as pd

from analysis.figures import svg
from analysis.frame import cells, runs
from analysis.inference import FIRM_PAIRS, MARGIN, seeds_to_decide
from analysis.paper import GLUE
from analysis.render import number
from analysis.results import study
from analysis.results.finding import WORDS, Finding
from analysis.results.of_rows import tries
from analysis.results.pooled import forest, summaries
from runs.errors import UserError
from runs.record import Ledger
from runs.record.text import megabytes, one_line, plural

#: `make results` writes what stands between these lines of the README.
BEGIN, END = "<!-- results of {}: written by make results -->", "<!-- results of {}: end -->"


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
    made.filters["megabytes"] = megabytes
    made.filters["cell"] = lambda text: one_line(str(text)).replace("|", "\\|").replace("<", "&lt;")
    made.globals |= {"plural": plural, "verdicts": WORDS, "firm_pairs": FIRM_PAIRS}
    made.globals |= {"margin": f"{MARGIN:g}", "seeds_to_decide": seeds_to_decide}
    return made


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
    if plot := forest(made):
        files["results/forest.svg"] = svg(plot)
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
    return rendered("results.md", **gaps, drawn=forest(made))


# --- the README's blocks


def headline(runs: pd.DataFrame) -> str:
    """A table of the README: the rows of a study of GLUE, those that train most first."""
    found = cells(runs).sort_values("parameters", ascending=False, kind="stable")
    tasks = {task: name for task, name in GLUE.items() if task in set(found.task)}
    lora = found[found.row == "lora"].parameters.max()
    rows = [
        {"label": of.label.iloc[0], "parameters": size, "ratio": size / lora if lora == lora else 0}
        | {"numbers": [number(next(of[of.task == task].itertuples(), None)) for task in tasks]}
        for (size, _), of in found.groupby(["parameters", "row"], sort=False)
    ]
    return str(macros("readme.md").headline(rows, list(tasks.values()))).strip()


def near_lora(made: Iterable[Mapping[str, Any]]) -> str:
    """The README's sentence on VeRA beside LoRA over all tasks. made: the summaries of findings."""
    near = [one for one in made if one["finding"] == "VeRA is near LoRA with fewer parameters"]
    return str(macros("readme.md").near_lora(near)).strip()


def readme(text: str, study: str, block: str) -> str:
    """The README with a block between its two marks. Raises UserError where a mark is missing."""
    first, last = BEGIN.format(study), END.format(study)
    before, begin, rest = text.partition(first)
    _, end, after = rest.partition(last)
    if not begin or not end:
        raise UserError(f"README.md lacks the lines {first} and {last}")
    return f"{before}{first}\n\n{block}\n\n{last}{after}"
