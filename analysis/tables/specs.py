"""What a table of cells is (specs.yaml), and what its cells are: a class for each kind of table."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import yaml

from analysis.beside import exact_counts
from analysis.facts import SCORES
from analysis.frame import cells, in_cells, reported_cells
from analysis.notes import SELECTED, measured
from analysis.others import NAMED
from analysis.paper import BENCHES, GLUE, LLAMAS, VIT, printed_file
from analysis.render import NONE, Cell, Entry, Number, diverged, number, of_runs
from runs.record import plural

#: How FastChat makes answers: with transformers' default top_k, and none is cut short for want of positions.
FASTCHAT = {"answer_tokens": 1024, "top_p": 1.0, "top_k": 50, "without_room": 0}
#: What is read of a judgement.
JUDGEMENT = ["bench", "judge", "mean", "low", "high", "n", "n_valid", "turns", "answering"]


@dataclass(frozen=True)
class View:
    """The runs that a table is made from, and how.

    select: how the epoch is chosen (paper, crossfit or half). seeds: of a complete cell (None: the table's).
    tasks, models: those that are shown (empty: all). whose: whose runs these are. others: what independent
    groups report below a row of the paper (true: a line; all: a line each). columns: further numbers of
    `frame.runs`. against: a row to which each row's difference is a column."""

    runs: pd.DataFrame
    select: str = "paper"
    seeds: int | None = None
    tasks: Sequence[str] = ()
    models: Sequence[str] = ()
    whose: str = "ours"
    others: str = "false"
    columns: Sequence[str] = ()
    against: str | None = None

    def cells(self, seeds: int, value: str = "", column: str = "") -> pd.DataFrame:
        """The cells of its runs, with their column. seeds: of a complete one, unless others are asked for.
        value: the column of runs. column: by default the task."""
        value = value or ("value" if self.select == "paper" else self.select)
        made = cells(self.runs, value, self.seeds or seeds)
        return made.assign(column=column or made.task, column_label=made.task_label, variant="")


class Spec(SimpleNamespace):
    """A part of a table, by its keys in specs.yaml. Its cells are those of the metric."""

    @property
    def ablation(self) -> bool:
        """Whether its rows are settings of one method."""
        return bool(self.head[0] == "setting")

    def belonging(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Its runs, finished or not. Other models than the Llamas are in table 13 with all of their rows,
        once a run is judged on its bench."""
        judged = {*runs.model[runs.benches.str.contains("vicuna_bench")]} - {*LLAMAS}
        known = {"glue": [*GLUE], "llamas": [*LLAMAS], "names": [*self.names], "judged": [*judged]}
        return runs.query(self.runs, local_dict=known, engine="python")

    def parts(self, view: View) -> list[View]:
        """The views of which each has tables of its own: one of its runs."""
        return [replace(view, runs=self.belonging(view.runs))]

    def cells(self, view: View) -> pd.DataFrame:
        """The cells of its runs, those that the view has."""
        return view.cells(self.seeds)

    def compares(self, made: pd.DataFrame) -> pd.DataFrame:
        """Those of its cells that stand beside the paper's."""
        return made[made.variant.astype(str).str.fullmatch(self.compared)]

    def entry(self, cell: Cell, column: str, verdict: str) -> Entry:
        """A cell as a number of the table."""
        return number(cell, self.middle, self.decimals.get(column, 1), verdict)

    def reads(self, view: View, made: pd.DataFrame) -> str:
        """What its numbers are. made: its cells."""
        epochs, middle = " or ".join(sorted(set(made.reported))), self.middle.capitalize()
        if self.how:
            return str(self.how)
        if view.select not in SELECTED:
            return f"{middle}s over seeds of the {epochs or 'reported'} epoch, +- sample standard deviation."
        if (epochs == "last" and view.select == "crossfit") or self.tasks:
            return "select= changes nothing here: the last epoch is reported."
        return f"{middle}s over seeds. {SELECTED[view.select]}"

    def deviates(self, model: str, runs: pd.DataFrame, made: pd.DataFrame) -> list[str]:
        """How it deviates from the paper's, beside its runs' own deviations."""
        return []

    def status(self, view: View, first: Cell, usual: str) -> str:
        """The words for a row of ours. first: its first cell. usual: what other tables say."""
        return usual


class Trained(Spec):
    """Of a table that others than its rows deviate from: sizes chosen here, numbers of images a class."""

    def deviates(self, model: str, runs: pd.DataFrame, made: pd.DataFrame) -> list[str]:
        """Rows whose size this project chose; other numbers of images a class than the paper's 10; why scores
        are missing, such as for want of Java."""
        found = [
            f"{of['method']}: size and rates chosen here, with {of['count']:,} parameters"
            f" for the paper's {of['printed']}"
            for of in exact_counts()
            if of["model"] == model and of.get("chosen")
        ]
        if model in VIT or (made.family == "images").any():
            for task, other in made.groupby("task").shots.agg(lambda of: set(of) - {10}).items():
                counts = ("all" if n != n or n is None else f"{n:g}" for n in sorted(other, key=str))
                found += [f"{task}: {' or '.join(counts)} images a class"] if other else []
        texts = [entry for of in in_cells(runs, made).texts for entry in of or []]
        return [*found, *sorted({why for of in texts for why in (of.get("unavailable") or {}).values()})]


class Texts(Trained):
    """Table 3: the five scores of texts."""

    def cells(self, view: View) -> pd.DataFrame:
        """Those of the last epoch as the paper decodes; by other length penalties; and of the best epoch,
        where it is another. A run that diverged before it had texts has 0."""
        found = [view.cells(self.seeds, key, key) for key in SCORES]
        runs = in_cells(view.runs, found[0])
        each = runs.explode("texts").dropna(subset="texts")
        texts = pd.DataFrame([*each.texts], each.index, ["which", "variant", "epoch", *SCORES])
        usual = texts.variant == texts.variant.groupby(level=0).transform("first")
        best = (texts.which == "best") & usual
        ways = ("length penalty " + texts.variant).where((texts.which == "last") & ~usual)
        for variant, of in texts.groupby(ways.mask(best, "best epoch"), sort=False):
            of = of[~of.index.duplicated()]
            other = of.index[(variant != "best epoch") | (of.epoch != runs.last_epoch[of.index])]
            rows = pd.Series(runs.index.isin(other), runs.index).groupby([runs.model, runs.row])
            shown = runs[rows.transform("any")]
            scores = of[[*SCORES]].reindex(shown.index).astype(float)
            scores[shown.diverged.astype(bool) & ~shown.index.isin(of.index)] = 0.0
            of_way = replace(view, runs=shown.assign(**scores))
            found += [of_way.cells(self.seeds, key, key).assign(variant=variant) for key in SCORES]
        return pd.concat([of for of in found if len(of)] or found[:1], ignore_index=True)

    def entry(self, cell: Cell, column: str, verdict: str) -> Entry:
        """The median of the seeds that have the score."""
        return number(cell, self.middle, self.decimals[column], verdict, known=True)

    def status(self, view: View, first: Cell, usual: str) -> str:
        """None of another way of decoding."""
        return "" if first.variant else usual


class Costs(Spec):
    """Table 12: what training costs."""

    def cells(self, view: View) -> pd.DataFrame:
        """Minutes, seconds a step, tokens a second and GB: medians of what a run has."""
        made = view.cells(self.seeds)
        made = made[made.row.isin(self.names)]
        numbers = {"minutes": made.train_seconds / 60, "tok/s": made.tokens_per_second}
        numbers |= {
            "s/step": made.train_seconds / made.steps.clip(lower=1),
            "gpu_gb": made.peak_memory_bytes / 1e9,
        }
        return pd.concat([made.assign(column=column, median=of) for column, of in numbers.items()])

    def entry(self, cell: Cell, column: str, verdict: str) -> Entry:
        """The median alone."""
        return of_runs(cell.median, cell.ids, decimals=self.decimals.get(column, 1))

    def status(self, view: View, first: Cell, usual: str) -> str:
        """Whose runs these are: costs have no verdict."""
        return view.whose


class Judged(Spec):
    """Tables 4 and 13: instruction tuning, judged by MT-Bench or Vicuna-bench; a line for each judge."""

    def judgements(self, runs: pd.DataFrame) -> pd.DataFrame:
        """Each judgement of its bench, by seed, with the id and label of its run."""
        each = runs.sort_values("seed", kind="stable").explode("judged").dropna(subset="judged")
        of = pd.DataFrame([*each.judged], columns=JUDGEMENT).assign(id=[*each.id], label=[*each.label])
        return of[of.bench == self.bench].drop_duplicates(["id", "judge"], keep="last")

    def cells(self, view: View) -> pd.DataFrame:
        """The cells, once for each judge with the runs that it has judged: their scores, the interval over
        questions of one run, the medians of each turn, and how many judgements have a score. A cell that none
        has judged is there once, without scores."""
        made, lines = view.cells(self.seeds), list[dict[str, Any]]()
        each = self.judgements(view.runs)
        for cell in made.to_dict("records"):
            label = cell["label"] if cell["task"] == "alpaca" else f"{cell['label']} on {cell['task_label']}"
            cell |= {"label": label, "column": "score", "wanted": max(cell["wanted"], cell["runs"])}
            of_cell = each[each.id.isin(cell["ids"])]
            for judge, of in [*of_cell.groupby("judge", sort=False)] or [("", of_cell)]:
                mean, turns = of["mean"], pd.DataFrame([*of.turns], dtype=float).median()
                about: dict[str, Any] = {"variant": judge, "judge": judge, "judged": (*of.id,)}
                about |= {"values": (*mean,), "spread": mean.std(), "median": mean.median()}
                about |= {"n": mean.count() if judge else cell["n"], "complete": len(of) >= cell["wanted"]}
                one = len(of) == 1 and of.low.notna().all()
                about["interval"] = f"{of.low.iloc[0]:.2f} to {of.high.iloc[0]:.2f}" if one else NONE
                about["turns"] = " / ".join(f"{t:.2f}" if t == t else NONE for t in turns) or NONE
                about["valid"] = f"{of.n_valid.sum()} of {of.n.sum()}" if judge else NONE
                lines.append(cell | about)
        return pd.DataFrame(lines) if lines else made

    def entry(self, cell: Cell, column: str, verdict: str) -> Entry:
        """A judge's median score, of the runs that it has judged."""
        of = number(cell, self.middle, self.decimals[column], verdict, known=True)
        return replace(of, n=len(cell.judged), ids=cell.judged) if isinstance(of, Number) else of

    def status(self, view: View, first: Cell, usual: str) -> str:
        """Of a row that nobody has judged: so."""
        if first.variant:
            return usual.removesuffix(f", {first.diverged} diverged")
        return "diverged" if first.diverged else f"{view.whose}, not judged by {BENCHES[self.bench]}"

    def reads(self, view: View, made: pd.DataFrame) -> str:
        """What the scores are, who gave them, and what is not judged."""
        runs = in_cells(view.runs, made)
        judged = self.judgements(runs)
        words = "The judge's scores from 1 to 10; 95% by resampling questions."
        if not judged.judge.astype(str).str.fullmatch(self.compared).all():
            words += " A judge that is no GPT-4 has a scale of its own"
            words += ": no difference to the paper's is shown."
        if len(runs) > judged.id.nunique():
            words += " not judged: python -m runs.answer ID, then python -m runs.judge ID."
        return words

    def deviates(self, model: str, runs: pd.DataFrame, made: pd.DataFrame) -> list[str]:
        """How answers were made where that is not FastChat's way, with the labels of the rows."""
        found = [
            (f"{key} {of.answering[key]} instead of FastChat's {usual}", of.label)
            for of in self.judgements(in_cells(runs, made)).itertuples()
            for key, usual in FASTCHAT.items()
            if of.answering[key] != usual
        ]
        labels = {word: dict.fromkeys(label for of, label in found if of == word) for word, _ in found}
        return [f"{word} ({', '.join(of)})" for word, of in labels.items()]


class Rows(Spec):
    """Rows x tasks: whatever has run."""

    def cells(self, view: View) -> pd.DataFrame:
        """By the number that each task's table reports; what trains most first. Rows of a task that were not
        measured alike have columns of their own."""
        made = reported_cells(view.runs, view.select, view.seeds or self.seeds)
        unlike = {
            (*key, row): of
            for key, ran in in_cells(view.runs, made).groupby(["model", "task"])
            for row, of in measured(ran).items()
        }
        keys = zip(made.model, made.task, made.row, strict=True)
        apart = [unlike[key] and f", {unlike[key]}" for key in keys]
        made = made.assign(column=made.task + apart, column_label=made.task_label + apart, variant="")
        return made.assign(order=-made.parameters).sort_values(["order", "row", "task"], kind="stable")

    def entry(self, cell: Cell, column: str, verdict: str) -> Entry:
        """The median of the seeds that have a number, with how many: "76.0 +-1.0 (5)"."""
        of = number(cell, decimals=int(cell.digits), known=True)
        of = of if isinstance(of, Number) else Number(math.nan, n=cell.runs, ids=cell.ids)
        return replace(of, counted=True, mark=diverged(cell), wanted=None)

    def reads(self, view: View, made: pd.DataFrame) -> str:
        """Which numbers the tasks report."""
        by_name = made.groupby("name", sort=False)
        on = {name: ", ".join(dict.fromkeys(of.sort_values("order").task_label)) for name, of in by_name}
        names = "; ".join(f"{name} ({of})" for name, of in on.items())
        return f"Medians over seeds, +- sample standard deviation (seeds): {names}."


class Demo(Spec):
    """Every method on the demo's task, with what it costs."""

    #: Marks a row whose rate is at an end of its grid.
    END = " ^"

    def parts(self, view: View) -> list[View]:
        """One for each number of rows."""
        runs = self.belonging(view.runs)
        trials = runs.index[runs.kind == "trial"]
        by_size = runs.drop(trials).groupby(["asked_train_rows", "asked_dev_rows"])
        sizes = [of.index for _, of in by_size if (of.kind == "result").any()]
        runs = runs.assign(several=len(sizes) > 1)
        return [replace(view, runs=runs.loc[size.union(trials)]) for size in sizes]

    def cells(self, view: View) -> pd.DataFrame:
        """The cells, the best first, with their parameters beside LoRA's (ratio); labels say which seeds lack
        and whether a rate is the lowest or highest of those that trials on held-out rows tried."""
        made = view.cells(self.seeds)
        by, rates = ["model", "row"], ["lr", "lr_head"]
        trials = view.runs[view.runs.kind == "trial"].groupby(by)[rates]
        low, high, tried = (
            made[by].join(of, on=by)[rates] for of in (trials.min(), trials.max(), trials.nunique())
        )
        ends = ((made[rates] == low) | (made[rates] == high)) & (tried > 1)
        marks = ends.any(axis=1).map({True: self.END, False: ""})
        fewer = ["" if of.complete else f" ({of.n}/{of.wanted} seeds)" for of in made.itertuples()]
        trains, lora = made.parameters > 0, made[made.row == "lora"].set_index("model").parameters
        of_model, counts = made.groupby("model"), made.runs.map(lambda count: plural(count, "seed"))
        alike = of_model.complete.transform("all") & (of_model.runs.transform("nunique") == 1)
        sizes = [f"{of.train_rows:,.0f} training and {of.dev_rows:,.0f} dev rows" for of in made.itertuples()]
        return made.assign(
            label=made.label + marks + fewer,
            ratio=(made.parameters / made.model.map(lora)).where(trains),
            adapter_bytes=made.adapter_bytes.where(trains),
            head_bytes=4 * made.head_parameters,
            unknown=made.runs - made.n,
            less=-made["median"],
            over=("median of " + counts).where(alike, "median over the seeds there are"),
            size=sizes,
            sizes=[f", {size}" * bool(view.runs.several.any()) for size in sizes],
        ).sort_values(["unknown", "less"], kind="stable")

    def reads(self, view: View, made: pd.DataFrame) -> str:
        """What its columns are, and marks."""
        how, results = f"trainable: without the classification head. {made.iloc[0]['size']}.", view.runs
        results = results[(results.model == made.model.iloc[0]) & (results.kind == "result")]
        if view.select in SELECTED:
            how += f" {SELECTED[view.select]}"
        elif (results.evaluations == 1).all():
            how += " The last epoch alone is evaluated."
        if made.label.str.contains(self.END, regex=False).any():
            how += f" {self.END.strip()}: its rate is at an end of the grid that was tried"
            how += "; one beyond could be better."
        return how


def _read(name: str, part: dict[str, Any]) -> Spec:
    """A part of specs.yaml, with the names of models and columns, and the decimals of these."""

    def named(of: Any) -> dict[str, Any]:
        names: dict[str, Any] = printed_file("names.yaml")[of] if isinstance(of, str) else NAMED
        return (
            {key: names[key] for key in of} if isinstance(of, list) else of if isinstance(of, dict) else names
        )

    columns = {key: of if isinstance(of, list) else [of, 1] for key, of in named(part["columns"]).items()}
    first = [*part["names"]] if part["first"] == [] else part["first"]
    part |= {"name": name, "models": named(part["models"]), "first": first}
    part["columns"], part["decimals"] = ({key: of[i] for key, of in columns.items()} for i in (0, 1))
    made: Spec = globals()[part["kind"]](**part)
    return made


@cache
def specs() -> dict[str, tuple[Spec, ...]]:
    """The parts of each table of cells, by its name; "" is rows x tasks."""
    tables = yaml.safe_load((Path(__file__).parent / "specs.yaml").read_text())
    defaults = tables.pop("defaults")
    return {name: tuple(_read(name, defaults | part) for part in parts) for name, parts in tables.items()}
