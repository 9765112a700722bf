"""Writes docs/results.md: what this project's own studies found, from the records published in runs/records.

    python -m analysis.results [--docs docs] [--check]       (make results)

A study is a folder of published records. NOTES.md in it, written by hand, says how it was run and what is to be known of it;
every number and picture comes from the records. --check writes nothing and says whether the page is that of the records.
"""

import argparse
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis import figures, verdicts
from analysis.cells import Cell, Key, cells
from analysis.stats import VERDICT_SEEDS, compare
from analysis.tables import GLUE, TABLES, WITHOUT_RECORDS, Table, shown
from runs.record import FINISHED, Ledger, Record, is_trial, read_study, study_folders, write_atomically

README = Path(__file__).parent.parent / "README.md"
#: What stands between these lines of the README is written here.
BEGIN, END = "<!-- results: written by make results -->", "<!-- results: end -->"
#: The study that the README's table is of.
HEADLINE = "glue_minilm"
#: How near "within a point" and "the same" are, in points.
POINT = 1.0


# --- the paper's findings, held to our records


@dataclass(frozen=True)
class Finding:
    """What the paper finds, where it was tried here, the numbers in words, and whether they agree (None: cannot be said)."""

    claim: str
    where: str
    here: str
    agrees: bool | None

    @property
    def word(self) -> str:
        return {True: "agrees", False: "**does not agree**", None: "undecided"}[self.agrees]


def findings(ledger: Ledger) -> list[Finding]:
    """Every finding of the paper that the records can say something of."""
    found = cells([r for r in ledger if r["cell"]["task"] in GLUE or _of_images(r)], VERDICT_SEEDS)
    return [*_near(found), *_vectors(found), *_starts(found), *_shared(found), *_ranks(found), *_moved(ledger), *_fit(ledger)]


def _of_images(record: Record) -> bool:
    return bool(record["config"]["task"].get("family") == "images")


def _place(found: dict[Key, Cell], model: str, task: str, *rows: str) -> str:
    """A model and task by their labels, with the seeds of each row."""
    mine = [found[model, row, task] for row in rows]
    label = mine[0].records[0]["label"]
    counts = [cell.seeds - cell.unknown for cell in mine]
    seeds = str(counts[0]) if len(set(counts)) == 1 else " and ".join(map(str, counts))
    return f"{label['model']}, {label['task']}, {seeds} seed{'s' * (counts != [1] * len(counts))}"


def _pairs(found: dict[Key, Cell], *rows: str) -> Iterator[tuple[str, str, list[Cell]]]:
    """Models and tasks that have all of these rows, and their cells, each with its number."""
    for model, task in sorted({(key[0], key[2]) for key in found}):
        mine = [found[model, row, task] for row in rows if (model, row, task) in found]
        if len(mine) == len(rows) and not any(cell.unknown for cell in mine):
            yield model, task, mine


def _reported(cell: Cell) -> str:
    """The epoch that the family's table reports."""
    return "last" if _of_images(cell.records[0]) else "best"


def _near(found: dict[Key, Cell]) -> Iterator[Finding]:
    for model, task, (vera, lora) in _pairs(found, "vera", "lora"):
        which = _reported(vera)
        gap = vera.median(which) - lora.median(which)
        share = vera.parameters / lora.parameters
        line = next(c for c in compare({(model, r, task): found[model, r, task] for r in ("vera", "lora")}) if c.task == task)
        bounds = f", paired by seed {line.interval[0]:+.1f} to {line.interval[1]:+.1f}" if line.interval else ""
        middles = f"VeRA {vera.median(which):.1f}, LoRA {lora.median(which):.1f}"
        words = f"{middles}: {gap:+.1f}{bounds}; {share:.2f} of the parameters"
        place = _place(found, model, task, "vera", "lora")
        yield Finding("VeRA is within a point of LoRA, at a tenth of its parameters or less", place, words, gap >= -POINT)


def _means(found: dict[Key, Cell], model: str, task: str, **rows: str) -> tuple[str, dict[str, float]]:
    values = {row: found[model, row, task].mean() for row in rows.values()}
    return ", ".join(f"{name.replace('_', ' ')} {values[row]:.1f}" for name, row in rows.items()), values


def _vectors(found: dict[Key, Cell]) -> Iterator[Finding]:
    for model, task, _ in _pairs(found, "vera_only_d", "vera_only_b"):
        words, means = _means(found, model, task, only_d="vera_only_d", only_b="vera_only_b")
        place = _place(found, model, task, "vera_only_d", "vera_only_b")
        yield Finding("d alone is better than b alone (table 6)", place, words, means["vera_only_d"] > means["vera_only_b"])
    for model, task, _ in _pairs(found, "vera", "vera_only_d", "vera_only_b"):
        words, means = _means(found, model, task, both="vera", only_d="vera_only_d", only_b="vera_only_b")
        place = _place(found, model, task, "vera", "vera_only_d", "vera_only_b")
        both = means["vera"] > max(means["vera_only_d"], means["vera_only_b"])
        yield Finding("both vectors are better than one (table 6)", place, words, both)


def _starts(found: dict[Key, Cell]) -> Iterator[Finding]:
    for model, task, _ in _pairs(found, "vera", "vera_uniform"):
        words, means = _means(found, model, task, Kaiming_uniform="vera", **{"uniform_[0,_0.1]": "vera_uniform"})
        place = _place(found, model, task, "vera", "vera_uniform")
        yield Finding("A and B by Kaiming beat a uniform draw (table 6)", place, words, means["vera"] > means["vera_uniform"])
    for model, task, _ in _pairs(found, "vera", "vera_d_init_1e-7", "vera_d_init_1"):
        rows = {"0.1": "vera", "1e-7": "vera_d_init_1e-7", "1": "vera_d_init_1"}
        words, means = _means(found, model, task, **rows)
        place = _place(found, model, task, *rows.values())
        small = min(means["vera"], means["vera_d_init_1e-7"]) > means["vera_d_init_1"]
        yield Finding("d that starts at 0.1 or 1e-7 beats d that starts at 1 (table 6)", place, f"d from {words}", small)


def _shared(found: dict[Key, Cell]) -> Iterator[Finding]:
    for model, task, _ in _pairs(found, "vera", "vera_unique"):
        words, means = _means(found, model, task, shared="vera", unique="vera_unique")
        place = _place(found, model, task, "vera", "vera_unique")
        near = means["vera"] >= means["vera_unique"] - POINT
        yield Finding(
            "A and B may be shared by all layers: a pair for each is no better by a point (table 7)", place, words, near
        )


def _ranks(found: dict[Key, Cell]) -> Iterator[Finding]:
    """VeRA of the highest rank that has run, and LoRA of the rank whose count is nearest: the counts are never equal."""
    for model, task in sorted({(key[0], key[2]) for key in found}):
        of = {key[1]: cell for key, cell in found.items() if (key[0], key[2]) == (model, task) and not cell.unknown}
        ranked = {row: cell for row, cell in of.items() if row.partition("_r")[2].isdecimal()}
        lora = {row: cell for row, cell in ranked.items() if row.startswith("lora")}
        vera = {row: cell for row, cell in ranked.items() if row.startswith("vera")}
        if not lora or not vera:
            continue
        high = max(vera, key=lambda row: vera[row].parameters)
        near = min(lora, key=lambda row: abs(math.log(lora[row].parameters / vera[high].parameters)))
        pair = [ranked[high], ranked[near]]
        words = ", ".join(f"{cell.label} {cell.median():.1f} ({cell.parameters:,} parameters)" for cell in pair)
        place = _place(found, model, task, high, near)
        claim = "of like counts of parameters, VeRA of a high rank is above LoRA (figure 2)"
        yield Finding(claim, place, words, pair[0].median() > pair[1].median())


def _moved(ledger: Ledger) -> Iterator[Finding]:
    for figure in figures.figure3(ledger):
        rows = [dict(zip(figure.header, row, strict=True)) for row in figure.rows]
        by_site = {site: [row for row in rows if row["site"] == site and row["d median"] != "-"] for site in ("query", "value")}
        if not all(by_site.values()):
            continue
        query, value = (statistics.fmean(float(row["d median"]) for row in by_site[site]) for site in ("query", "value"))
        words = f"mean over layers of the change of d: query {query:.3g}, value {value:.3g}"
        runs = {name for row in rows for name in row["runs"].split()}
        place = f"{figure.title.partition('layer, ')[2].replace(' on ', ', ')}, {len(runs)} run{'s' * (len(runs) > 1)}"
        yield Finding("d changes more in query than in value (figure 3)", place, words, query > value)
        half = sorted({int(row["layer"]) for row in rows})
        low, high = half[: len(half) // 2], half[-(len(half) // 2) :]
        early, late = (
            statistics.fmean(float(row["d median"]) for row in rows if int(row["layer"]) in part) for part in (low, high)
        )
        words = f"mean change of d: first half of the layers {early:.3g}, second half {late:.3g}"
        yield Finding("d changes more in later layers (figure 3)", place, words, late > early)
    for figure in figures.figure5(ledger):
        rows = [dict(zip(figure.header, row, strict=True)) for row in figure.rows]
        ours = [row for row in rows if row["source"] == "ours" and row["site"] == "query" and row["median"] != "-"]
        pairs = {pair: [float(row["median"]) for row in ours if row["pair"] == pair] for pair in figures.PAIRS.values()}
        if not all(pairs.values()):
            continue
        together, random = (statistics.fmean(pairs[figures.PAIRS[pair]]) for pair in ("lora_vera", "lora_random"))
        place = figure.title.partition("differences, ")[2].replace(" on ", ", ")
        words = f"mean cosine over layers (query): LoRA and VeRA {together:.1e}, LoRA and random {random:.1e}"
        claim = "LoRA's and VeRA's changes resemble each other more than random ones (figure 5)"
        yield Finding(claim, place, words, together > abs(random))


def _fit(ledger: Ledger) -> Iterator[Finding]:
    (figure,) = figures.figure6(ledger)
    rows = [dict(zip(figure.header, row, strict=True)) for row in figure.rows]
    errors = {(row["method"], int(row["parameters"])): float(row["mse mean"]) for row in rows}
    lora, vera = ({count for method, count in errors if method == name} for name in ("LoRA", "VeRA"))
    counts = sorted(lora & vera)
    if counts:
        apart = [(count, errors["VeRA", count], errors["LoRA", count]) for count in counts]
        equal = all(abs(vera - lora) <= 0.1 * lora for _, vera, lora in apart)
        words = ", ".join(f"{count}: {vera:.3f} and {lora:.3f}" for count, vera, lora in apart[::2])
        claim = "random matrices are fitted equally well at equal counts, within a tenth (figure 6)"
        yield Finding(claim, "10 x 10 matrices", f"mean squared errors of VeRA and LoRA, by parameters: {words}", equal)


# --- the page


@dataclass
class Page:
    """The page as text, and the pictures that it shows, by their paths beside it."""

    text: str
    pictures: dict[str, str]


def page(studies: Sequence[Path]) -> Page:
    """The page of these folders of published records."""
    ledgers = {folder: read_study(folder) for folder in studies}
    whole = Ledger()
    for ledger in ledgers.values():
        whole.records |= ledger.records
        whole.measures |= ledger.measures
    made = Page("", {})
    parts = [INTRODUCTION, _what_ran(ledgers), _agreement(findings(whole))]
    parts += [_study(folder, ledger, made) for folder, ledger in ledgers.items()]
    made.text = "\n\n".join(part.strip() for part in parts) + "\n"
    return made


INTRODUCTION = """# Results

<!-- written by make results from runs/records: edit the NOTES.md of a study, not this page -->

What this project's own studies found: the paper's protocols on smaller models and real benchmark data, at a scale that a
machine without a GPU bears. None of the models is one that the paper uses, so no number here reproduces or refutes one of the
paper's; what can be compared are its findings. Every number comes from the records in `runs/records`; `make report` shows the
same records with curves, configuration, provenance and run ids. Data sets are no part of this repository."""


def _what_ran(ledgers: Mapping[Path, Ledger]) -> str:
    lines = ["| study | runs | diverged | hours | device |", "|---|---:|---:|---:|---|"]
    for folder, ledger in ledgers.items():
        runs = [r for r in ledger if not is_trial(r["config"])]
        trials = len(ledger.records) - len(runs)
        count = f"{len(runs)}" + (f" and {trials} trials" if trials else "")
        diverged = sum(r["status"] == "diverged" for r in ledger)
        seconds = sum(float(r["cost"].get(f"{part}_seconds") or 0) for r in ledger for part in ("train", "evaluate", "decode"))
        devices = sorted({_device(r) for r in ledger})
        lines.append(
            f"| [{folder.name}](#{folder.name}) | {count} | {diverged} | {seconds / 3600:.1f} | {'; '.join(devices)} |"
        )
    return "\n".join(["## What ran", "", *lines])


def _device(record: Record) -> str:
    threads = record["determinism"].get("threads")
    cpu = f", {threads} thread{'s' * (threads != 1)}" if record["device"]["type"] == "cpu" and threads else ""
    return f"{record['device']['name']}{cpu}"


CAUTION = """Medians of the best epoch for table 2, means for tables 6 and 7, as the paper has them. The word in the last column
compares the numbers beside it and nothing else: few seeds on small models show tendencies. Why, as far as it is known, is said
under each study."""


def _agreement(found: list[Finding]) -> str:
    lines = ["## What agrees with the paper, and what does not", ""]
    if not found:
        return "\n".join([*lines, "Nothing has been published yet that a finding of the paper could be held to."])
    lines += ["| the paper's finding | tried on | here | |", "|---|---|---|---|"]
    lines += [f"| {f.claim} | {f.where} | {f.here} | {f.word} |" for f in found]
    lines += ["", CAUTION]
    return "\n".join(lines)


def _study(folder: Path, ledger: Ledger, made: Page) -> str:
    notes = folder / "NOTES.md"
    parts = [f"## {folder.name}", notes.read_text().strip() if notes.is_file() else ""]
    finished = Ledger({r["id"]: r for r in ledger if r["status"] in FINISHED}, ledger.origin, [], ledger.measures)
    for name in TABLES:
        for table in TABLES[name](finished, "paper", None) if name not in WITHOUT_RECORDS else []:
            if table.runs and table.model not in verdicts.MODELS:
                parts.append(_table(table))
    for name in figures.FIGURES:
        for figure in figures.FIGURES[name](finished):
            if any(row[-1] for row in figure.rows):
                path = f"results/{folder.name}_{figure.name}.svg"
                made.pictures[path] = figures.svg(figure)
                notes_ = [f"- {note}" for note in figure.notes]
                parts.append("\n".join([f"![{figure.title}]({path})", "", *notes_]).strip())
    parts += [_table(table) for table in verdicts.statistics_tables(finished)]
    parts += [_trials(finished)]
    return "\n\n".join(part for part in parts if part)


def _table(table: Table) -> str:
    body = table.render("md").removeprefix(table.title).strip()
    lines = body.splitlines()
    end = next((i for i, line in enumerate(lines) if not line.startswith("|")), len(lines))
    notes = [f"- {note}" for note in table.notes]
    return "\n".join([f"**{table.title}**", "", *lines[:end], "", *notes]).strip()


def _trials(ledger: Ledger) -> str:
    """What was tried on held-out training rows: the budget of each method, and which rates won."""
    groups: dict[Key, list[Record]] = defaultdict(list)
    for record in ledger:
        if record["config"]["task"].get("holdout") is not None:
            cell = record["cell"]
            groups[cell["model"], cell["task"], cell["row"]].append(record)
    if not groups:
        return ""
    lines = ["**Tuning: every trial, on training rows held out; the best epoch, median over its seeds, best first**", ""]
    lines += ["| method | task | rows trained on, judged on | rates (adapter, head): value |", "|---|---|---:|---|"]
    for (_, task, _), records in sorted(groups.items(), key=lambda item: (item[0][1], item[0][2])):
        by_rate: dict[str, list[float]] = defaultdict(list)
        for record in records:
            rates = [float(record["config"]["train"][key]) for key in ("lr", "lr_head")]
            words = f"{rates[1]:g}" if record["config"]["method"]["kind"] == "head" else f"{rates[0]:g}, {rates[1]:g}"
            best = record["result"].get("protocols", {}).get("paper", {}).get("best")
            by_rate[words].append(100 * best if best is not None else 0.0)
        ranked = sorted(by_rate.items(), key=lambda item: -statistics.median(item[1]))
        told = "; ".join(f"({words}): {statistics.median(values):.1f}" for words, values in ranked)
        rows = {f"{r['data']['train_rows']:,}, {r['data']['dev_rows']:,}" for r in records}
        lines.append(f"| {records[0]['label']['row']} | {task} | {'; '.join(sorted(rows))} | {told} |")
    return "\n".join(lines)


# --- the README's table


def headline(ledger: Ledger) -> str:
    """The table of the README: the protocol of table 2 on MiniLM, from the study glue_minilm."""
    found = cells([r for r in ledger if r["cell"]["task"] in GLUE], VERDICT_SEEDS)
    tasks = [task for task in GLUE if any(key[2] == task for key in found)]
    lora = next((cell.parameters for key, cell in found.items() if key[1] == "lora"), None)
    lines = ["| | trainable | vs LoRA |" + "".join(f" {GLUE[task]} |" for task in tasks)]
    lines.append("| --- | ---: | ---: |" + " ---: |" * len(tasks))
    order = list(dict.fromkeys(key[1] for key in sorted(found, key=lambda key: -found[key].parameters)))
    for row in order:
        mine = {task: cell for (_, name, task), cell in found.items() if name == row}
        first = next(iter(mine.values()))
        ratio = f"{first.parameters / lora:.2f}x" if lora and first.parameters else "-"
        values = "".join(f" {shown(mine[task]) if task in mine else 'missing'} |" for task in tasks)
        lines.append(f"| {first.label} | {first.parameters:,} | {ratio} |{values}")
    return "\n".join(lines)


def readme(text: str, table: str) -> str:
    """The README with the table between its two marks. Raises ValueError where a mark is missing."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{after}"


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.results", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--docs", default=str(README.parent / "docs"), help="where results.md and results/ go")
    parser.add_argument("--readme", default=str(README), help="the file whose headline table is written, too")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where the records say otherwise")
    options = parser.parse_args(arguments)
    docs, front = Path(options.docs), Path(options.readme)
    folders = study_folders()
    if not folders:
        print("error: no published records in runs/records yet (make publish STUDY=name)", file=sys.stderr)
        return 2
    made = page(folders)
    headlined = next((folder for folder in folders if folder.name == HEADLINE), None)
    files = {docs / "results.md": made.text}
    if headlined:
        try:
            files[front] = readme(front.read_text(), headline(read_study(headlined)))
        except ValueError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    if options.check:
        stale = [str(path) for path, text in files.items() if not path.is_file() or path.read_text() != text]
        print("\n".join(f"{path} is not what the records say: make results" for path in stale) or "as the records say")
        return 1 if stale else 0
    for path, picture in made.pictures.items():
        write_atomically(docs / path, picture)
    for old in set((docs / "results").glob("*.svg")) - {docs / path for path in made.pictures}:
        old.unlink()
    for file, text in files.items():
        write_atomically(file, text)
        print(f"Results: {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
