"""The kinds of tables of cells, a class each, and those that specs.yaml names."""

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from analysis.frame import cells, in_cells, reported_cells
from analysis.others import names_by_key
from analysis.paper import BENCHES
from analysis.render import NONE, Cell, Entry, Number, cell_entry, diverged_mark
from analysis.tables.spec import (
    TableSpec,
    View,
    columns_of_tasks,
    complete_cells,
    melted,
)
from runs.record.files import read_yaml

#: How FastChat makes answers, by keys of a judgement's `answering`: with transformers'
#: default top_k, and with no question that leaves too few positions for its answer
#: (without_room).
FASTCHAT = {"answer_tokens": 1024, "top_p": 1.0, "top_k": 50, "without_room": 0}
#: The keys of a judgement that tables read.
JUDGEMENT_COLUMNS = [
    "bench",
    "judge",
    "mean",
    "low",
    "high",
    "n",
    "n_valid",
    "turns",
    "answering",
]


# --- the kinds of tables


class GeneratedTexts(TableSpec):
    """Table 3: the five scores of texts."""

    def numbers(self, runs: pd.DataFrame) -> pd.DataFrame:
        """The scores of each run's texts, a line each: of the last epoch as the paper
        decodes (variant "") and, as variants, of the last epoch by other length penalties
        and of the best epoch. The best epoch has a line if it is an earlier one than the
        last in one of a cell's runs. A run that diverged before it had texts has 0."""
        # a line for each epoch whose texts were scored, and for each way of decoding it
        exploded = runs.explode("texts").dropna(subset="texts")
        scores = [*self.columns]
        columns = ["which", "variant", "epoch", *scores]
        texts = pd.DataFrame([*exploded.texts], exploded.index, columns)
        # a run's first texts are by the paper's decoding
        papers_decoding = texts.variant.groupby(level=0).transform("first")
        is_papers_decoding = texts.variant == papers_decoding
        is_best_epoch = texts.which == "best"
        penalties = "length penalty " + texts.variant
        variants = penalties.where(~is_papers_decoding, "best epoch")
        # Two of the four combinations are variants: the paper's decoding of the best epoch,
        # and other penalties of the last. The paper's decoding of the last epoch is the
        # row itself (`super().numbers` takes it from the run's own columns), and other
        # penalties of the best epoch are not shown.
        is_variant = is_papers_decoding == is_best_epoch
        texts["variant"] = variants.where(is_variant)
        texts["is_earlier"] = texts.epoch != exploded.last_epoch
        texts = texts.dropna(subset="variant")
        kept_columns = ["variant", "is_earlier"]
        long = melted(texts[[*kept_columns, *scores]], *kept_columns)
        shown_numbers = long[(long.variant != "best epoch") | long.is_earlier]
        frame = complete_cells(runs, long, shown_numbers)
        lacks_texts = runs.diverged.astype(bool) & ~runs.texts.astype(bool)
        is_zero = frame.index.isin(runs.index[lacks_texts])
        frame["number"] = frame.number.mask(is_zero, 0.0)
        return pd.concat([super().numbers(runs), frame])


class Judged(TableSpec):
    """Tables 4 and 13: instruction tuning, judged by MT-Bench or Vicuna-bench; a line
    for each judge."""

    def judgements(self, runs: pd.DataFrame) -> pd.DataFrame:
        """The judgements of these runs on this table's bench, in the order of seeds, with
        the id and label of their run. Of several by one judge on a run, the last one."""
        by_seed = runs.sort_values("seed", kind="stable")
        exploded = by_seed.explode("judged").dropna(subset="judged")
        frame = pd.DataFrame([*exploded.judged], exploded.index, JUDGEMENT_COLUMNS)
        frame = frame.assign(id=exploded.id, label=exploded.label)
        of_bench = frame[frame.bench == self.bench]
        return of_bench.drop_duplicates(["id", "judge"], keep="last")

    def numbers(self, runs: pd.DataFrame) -> pd.DataFrame:
        """The mean score that each judge gives each run, with the judge as variant. A run
        that nobody has judged has one line with NaN and the variant "", so that its cell
        is shown."""
        judgements = self.judgements(runs)
        long = pd.DataFrame(
            {
                "column": "score",
                "variant": judgements.judge,
                "number": judgements["mean"].astype(float),
            }
        )
        judged = complete_cells(runs, long, long)
        unjudged = runs.loc[~runs.index.isin(judged.index), []]
        unjudged = unjudged.assign(column="score", variant="", number=math.nan)
        return pd.concat([judged, unjudged])

    def cells(self, view: View) -> pd.DataFrame:
        """The cells: one for each judge of a row, whose variant is the judge, or one with
        the variant "" if nobody has judged the row. A label names the task if it is not
        the paper's. A judged cell is complete only if the judge has scored every run.
        Four columns more:

        - interval: of the score, over questions, where a cell has one run.
        - turns: the median score of each turn.
        - valid: how many judgements could be read.
        - state: why a cell has no score; "" if it has one."""
        frame = super().cells(view)
        judgements = self.judgements(view.runs)
        lines = [_judged_columns(cell, judgements) for cell in frame.itertuples()]
        columns = ["interval", "turns", "valid"]
        frame[columns] = pd.DataFrame(lines, frame.index, columns, dtype=object)
        # the paper's task is Alpaca
        label_with_task = frame.label + " on " + frame.task_label
        frame["label"] = frame.label.where(frame.task == "alpaca", label_with_task)
        unjudged = f"{view.origin}, not judged by {BENCHES[self.bench]}"
        states = np.where(frame.diverged > 0, "diverged", unjudged)
        is_judged = frame.variant != ""
        frame["state"] = np.where(is_judged, "", states)
        # Otherwise a note would say that the runs of an unjudged cell, whose n is 0,
        # finished without their score. The state says what is missing.
        frame["n"] = frame.n.where(is_judged, frame.runs)
        frame["wanted"] = frame[["wanted", "runs"]].max(axis=1)
        frame["complete"] = frame.n >= frame.wanted
        return frame

    def describe(self, view: View, cells: pd.DataFrame) -> str:
        """The note that says what the scores are and, where it applies, that judges
        differ and what to do about runs that nobody has judged."""
        # specs.yaml has the three sentences in this order
        scores, other_judges, unjudged = self.description
        runs = in_cells(view.runs, cells)
        judgements = self.judgements(runs)
        sentences = [scores]
        if not judgements.judge.astype(str).str.fullmatch(self.compared_variants).all():
            sentences.append(other_judges)
        if len(runs) > judgements.id.nunique():
            sentences.append(unjudged)
        return " ".join(sentences)

    def deviations(self, runs: pd.DataFrame, cells: pd.DataFrame) -> list[str]:
        """A phrase for each setting of the answers that differs from FastChat's, with
        the labels of the rows that differ in it."""
        # the labels are the keys of a dict, so that each is named once
        labels_by_deviation = dict[str, dict[str, None]]()
        for judgement in self.judgements(in_cells(runs, cells)).itertuples():
            for key, usual in FASTCHAT.items():
                value = judgement.answering[key]
                if value != usual:
                    deviation = f"{key} {value} instead of FastChat's {usual}"
                    labels = labels_by_deviation.setdefault(deviation, {})
                    labels[judgement.label] = None
        return [
            f"{deviation} ({', '.join(labels)})"
            for deviation, labels in labels_by_deviation.items()
        ]


def _judged_columns(cell: Cell, judgements: pd.DataFrame) -> list[str]:
    """The texts of the columns interval, turns and valid of `Judged.cells` for a cell,
    whose variant is its judge: "2.31 to 2.95", "3.10 / 2.20", "158 of 160"."""
    judged_runs = judgements[
        judgements.id.isin(cell.ids) & (judgements.judge == cell.variant)
    ]
    if judged_runs.empty:
        return [NONE, NONE, NONE]
    turns = pd.DataFrame([*judged_runs.turns], dtype=float).median()
    by_turn = " / ".join(NONE if math.isnan(turn) else f"{turn:.2f}" for turn in turns)
    interval = NONE
    if len(judged_runs) == 1 and judged_runs.low.notna().all():
        interval = f"{judged_runs.low.iloc[0]:.2f} to {judged_runs.high.iloc[0]:.2f}"
    return [
        interval,
        by_turn or NONE,
        f"{judged_runs.n_valid.sum()} of {judged_runs.n.sum()}",
    ]


class RowsByTasks(TableSpec):
    """Rows x tasks: whatever has run."""

    def cells(self, view: View) -> pd.DataFrame:
        """The cells of the score that each task's table reports. The rows with the most
        trained parameters come first."""
        seeds = view.seeds or self.seeds
        frame = columns_of_tasks(reported_cells(view.runs, view.select, seeds))
        order = ["parameters", "row", "task"]
        return frame.sort_values(order, ascending=[False, True, True])

    def entry(self, cell: Cell, verdict: str) -> Entry:
        """The median of the seeds that have a number, with how many these are: "76.0 +-1.0
        (5)"; "nan (5)", with the number of runs, where none has. These tables have no
        verdicts."""
        median = cell_entry(cell, decimals=int(cell.digits), skips_missing=True)
        if not isinstance(median, Number):
            median = Number(math.nan, n=cell.runs, ids=cell.ids)
        return replace(median, counted=True, mark=diverged_mark(cell), wanted=None)

    def describe(self, view: View, cells: pd.DataFrame) -> str:
        """The note that says which scores the tasks report. Each score has a sentence of
        its own, because notes are broken between sentences."""
        sentences = [
            "Medians over seeds, +- sample standard deviation (number of seeds)."
        ]
        for name, labels in cells.groupby("name", sort=False).task_label:
            tasks = ", ".join(dict.fromkeys(labels))
            sentences.append(f"{name[:1].upper()}{name[1:]}: {tasks}.")
        return " ".join(sentences)


class Exact(RowsByTasks):
    """Scores of texts that were read for an answer: a column for each test set (a part of
    the score), and one for their average."""

    describe = TableSpec.describe  # the table's description, not one of each score

    def numbers(self, runs: pd.DataFrame) -> pd.DataFrame:
        """The scores of each run's texts after the last epoch, by test set, a line each. A
        run that diverged before it had texts has 0 on the sets of its cell."""
        # the first entry of a run's texts is the last epoch by the task's own decoding
        scores = [texts[0]["parts"] if texts else {} for texts in runs.texts]
        scores_by_part = pd.DataFrame(scores, runs.index, dtype=float)
        if self.average:
            *averaged_parts, _ = self.columns  # the last column is the average
            averaged = scores_by_part.reindex(columns=averaged_parts)
            scores_by_part[self.average] = averaged.mean(axis=1, skipna=False)
        long = melted(scores_by_part).assign(variant="")
        frame = complete_cells(runs, long, long.dropna())
        # 0 for a diverged run; NaN, which fills nothing, for any other
        score_without_texts = runs.diverged.map({True: 0.0}).astype(float)
        numbers = frame.number.fillna(score_without_texts[frame.index])
        return frame.assign(number=numbers)

    def cells(self, view: View) -> pd.DataFrame:
        """The cells with a `state`, which the table shows as status: what the loss is over
        and how texts are decoded. Papers differ in both."""
        frame = cells(view.runs, self.numbers, view.seeds or self.seeds)
        states = [
            f"{view.origin}, {_loss_and_decoding(*settings)}"
            for settings in zip(frame.train_on_inputs, frame.beams, strict=True)
        ]
        return frame.assign(column_label=frame.column, digits=1, state=states)


def _loss_and_decoding(train_on_inputs: bool, beams: float) -> str:
    """Which tokens the loss is over, and how texts are decoded, as a phrase."""
    loss = "prompt and answer" if train_on_inputs else "answer"
    decoding = f"{beams:g} beams" if beams > 1 else "greedy"
    return f"loss on {loss}, {decoding}"


class LmEval(TableSpec):
    """What lm-eval measured after training, before it, and the difference: a table for
    each task that was trained on."""

    def parts(self, view: View) -> list[View]:
        """A view for each task that was trained on."""
        by_task = self.select_runs(view.runs).groupby("task")
        return [replace(view, runs=runs) for _, runs in by_task]

    def numbers(self, runs: pd.DataFrame) -> pd.DataFrame:
        """The metrics that lm-eval measured of each run, a line each, with one column for
        each metric and way of asking. Variants: "" (after training), "before" and
        "difference"."""
        lines = list[tuple[Any, ...]]()
        for run, result in runs.lm_eval.explode().dropna().items():
            before = result["before"]["metrics"]
            for metric, base in zip(result["metrics"], before, strict=True):
                column = metric_column(result, metric)
                asked = result["asked"]
                lines.append((run, column, asked, metric["value"], base["value"]))
        # the last two are variants: after training, and before it
        columns = ["run", "column", "asked", "", "before"]
        by_metric = pd.DataFrame(lines, columns=columns).set_index("run")
        # `asked` is a hash of how a task was asked. Tasks of one name may be asked on other
        # rows or be of other versions: then their columns have its first digits.
        is_ambiguous = by_metric.groupby("column").asked.transform("nunique") > 1
        suffix = ", " + by_metric.asked.str[:4]
        by_metric["column"] += suffix.where(is_ambiguous, "")
        by_metric["difference"] = by_metric[""] - by_metric.before
        long = by_metric.drop(columns="asked").melt(
            "column", var_name="variant", value_name="number", ignore_index=False
        )
        return complete_cells(runs, long, long)

    def cells(self, view: View) -> pd.DataFrame:
        """The cells; each counts as complete with the seeds that it has."""
        frame = super().cells(view)
        return frame.assign(wanted=frame.runs)

    def entry(self, cell: Cell, verdict: str) -> Entry:
        """The median of the seeds that have a number, with how many: "0.3541 +-0.0131
        (5)"; "-" where none has. These tables have no verdicts."""
        median = cell_entry(cell, decimals=4, skips_missing=True)
        if isinstance(median, str):
            return median
        return replace(median, counted=True, sign=cell.variant == "difference")


def metric_column(result: dict[str, Any], metric: dict[str, Any]) -> str:
    """The name of a metric's column: "gsm8k exact_match,strict-match, 5 shots". result: what
    lm-eval measured on one task. metric: one of its metrics."""
    name = f"{result['task']} {metric['metric']},{metric['filter']}"
    parts = [name.removesuffix(",none")]  # the filter that changes nothing
    if result["shots"]:
        parts.append(f"{result['shots']} shots")
    if metric["higher_is_better"] is False:
        parts.append("lower is better")
    if result["limit"]:
        parts.append(f"{result['limit']} rows")
    return ", ".join(parts)


class Demo(TableSpec):
    """Every method on the demo's task, with what it costs."""

    def parts(self, view: View) -> list[View]:
        """A view for each way in which runs were measured, at each size of the data that
        they asked for. Each view also has all trials, since they choose rates, and the
        failed runs of its size, for a failed run has no result that shows its way."""
        runs = self.select_runs(view.runs)
        is_trial = runs.kind == "trial"
        by_size = runs[~is_trial].groupby(["asked_train_rows", "asked_dev_rows"])
        views = list[View]()
        for _, of_size in by_size:
            for way in sorted(of_size.way.dropna().unique()):
                is_in_view = of_size.way.isna() | (of_size.way == way)
                indices = of_size.index[is_in_view].union(runs.index[is_trial])
                views.append(replace(view, runs=runs.loc[indices]))
        return views

    def cells(self, view: View) -> pd.DataFrame:
        """The cells, with `ratio`, their parameters divided by LoRA's. The best comes first;
        cells with runs that lack the score come last.

        A row's label ends with ^ if trials on held-out rows tried several of its rates (of
        the adapter or of the head), and its own is the lowest or the highest of them."""
        frame = super().cells(view)
        keys = ["model", "row"]
        rates = ["lr", "lr_head"]
        tried_rates = view.runs[view.runs.kind == "trial"].groupby(keys)[rates]
        # what the trials of each cell's row tried, in the order of the cells
        cell_keys = frame[keys]
        lowest = cell_keys.join(tried_rates.min(), on=keys)[rates]
        highest = cell_keys.join(tried_rates.max(), on=keys)[rates]
        rate_count = cell_keys.join(tried_rates.nunique(), on=keys)[rates]
        is_at_end = (frame[rates] == lowest) | (frame[rates] == highest)
        is_at_end &= rate_count > 1
        lora = frame[frame.row == "lora"].set_index("model").parameters
        trains_adapter = frame.parameters > 0  # and not the head alone
        frame["label"] += is_at_end.any(axis=1).map({True: " ^", False: ""})
        ratio = frame.parameters / frame.model.map(lora)
        frame["ratio"] = ratio.where(trains_adapter)
        frame["adapter_bytes"] = frame.adapter_bytes.where(trains_adapter)
        frame["head_bytes"] = 4 * frame.head_parameters  # float32
        frame["missing_scores"] = frame.runs - frame.n
        return frame.sort_values(["missing_scores", "median"], ascending=[True, False])

    def describe(self, view: View, cells: pd.DataFrame) -> str:
        """The note that says what the table's numbers are and, if a label ends with ^, what
        that means."""
        text = super().describe(view, cells)
        if cells.label.str.endswith(" ^").any():
            text += " ^: its best rate is the lowest or highest of the grid; one beyond it may be better."
        return text


# --- specs.yaml

#: The classes by the names of `kind` in specs.yaml.
KINDS: dict[str, type[TableSpec]] = {
    "Spec": TableSpec,
    "Texts": GeneratedTexts,
    "Judged": Judged,
    "Rows": RowsByTasks,
    "Exact": Exact,
    "LmEval": LmEval,
    "Demo": Demo,
}


def _spec_of(name: str, part: dict[str, Any]) -> TableSpec:
    """The spec of a part of a table, with the names of its models and columns filled in,
    and with rows in the order of row_names unless it has a row_order. name: of the table.
    part: its entry in specs.yaml."""
    settings = {key: value for key, value in part.items() if key != "kind"}
    settings["name"] = name
    settings["models"] = names_by_key(part.get("models", []))
    settings["columns"] = names_by_key(part.get("columns", []))
    settings.setdefault("row_order", [*part.get("row_names", ())])
    return KINDS[part.get("kind", "Spec")](**settings)


@cache
def specs() -> dict[str, tuple[TableSpec, ...]]:
    """The parts of each table of cells in specs.yaml, by the table's name; "" is rows x
    tasks."""
    tables = read_yaml(Path(__file__).parent / "specs.yaml")
    return {
        name: tuple(_spec_of(name, part) for part in parts)
        for name, parts in tables.items()
    }
