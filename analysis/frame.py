"""Records as two pandas frames: `runs`, a row a run, and `cells`, a row a cell (model, row, task) over its
seeds.

Every value is a number or a name; tables make words of them. A metric's columns (value, best, last,
crossfit, optimism, median, mean, spread) are in the unit that tables print, points for fractions; seconds
and bytes are in their columns' names. NaN: a run has no such number."""

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import yaml

from runs.record import (
    CONF,
    FINISHED,
    Ledger,
    Metric,
    Record,
    cell_id,
    crossfit_of,
    defining,
    epoch_of_table,
    lora_scaling,
    one_class,
    other_data_seed,
    protocol,
    read_ledger,
    row_label,
    sample_deviation,
    seed_value,
    text_score,
)

#: What a cell is of.
KEY = ["model", "row", "task"]
SCORES = ("bleu", "nist", "meteor", "rouge_l", "cider")
#: Seeds of a complete cell: as many as the paper's medians are over, unless a task's protocol has others.
SEEDS = 5
PROTOCOLS = {"alpaca": 1, "e2e": 3, "reviews": 3}
#: Tasks of studies that have more seeds than the protocol: there the preset says it.
OF_STUDIES = ("alpaca", "reviews")

# --- a run


def row_of(record: Record) -> str:
    """The row of tables that a record belongs to. LoRA of another rank than its recipe's is one row with a
    constant alpha and another with a proportional one, however alpha was set."""
    row = str(record["cell"]["row"])
    return f"{row}_proportional" if lora_scaling(record["config"]) == "proportional" else row


def label_of(record: Record) -> str:
    """The name of a record's method in tables. It says how LoRA's alpha was chosen, which the labels of older
    records do not, and spells a class of peft as every table does."""
    by_config = lora_scaling(record["config"]) or record["config"]["method"]["kind"] == "peft"
    return row_label(record["config"]) if by_config else str(record["label"]["row"])


def kind_of(record: Record) -> str:
    """What a record is: a result, or why it is in no table: failed, stopped (train.max_steps ended it
    early), or a trial (judged on training rows, task.holdout)."""
    config = record["config"]
    if record["status"] not in FINISHED:
        return "failed"
    if config["train"].get("max_steps") is not None:
        return "stopped"
    return "result" if config["task"].get("holdout") is None else "trial"


def reported_epoch(record: Record) -> str:
    """best or last: the epoch that a table reports of a record."""
    return epoch_of_table(record["config"]["train"], record["result"]["reported"])


def measured_on(record: Record) -> str:
    """What a record's number was measured on, and how: the data, how many rows of them, the texts that were
    decoded, the protocol, and whether an epoch was chosen. Numbers that differ in it are not compared."""
    items, chosen = record["config"]["task"].get("items"), reported_epoch(record) == "best"
    return repr((protocol(record), chosen, items, *sorted(record["data"].items())))


def settings_of(record: Record) -> dict[str, Any]:
    """What defines a record's result except its seed and what follows it, as one mapping without groups."""
    settings = dict[str, Any]()
    for group, values in defining(record["config"]).items():
        of_group = values if isinstance(values, dict) else {group: values}
        settings |= {key: value for key, value in of_group.items() if key != "draw_seed"}
    if record["config"]["method"].get("redrawn"):
        settings.pop("projection_seed", None)
    settings |= {"recipe": record["recipe"]["name"], "start": (record.get("start") or {}).get("id")}
    return settings | {
        "data_seed": other_data_seed(record),
        "protocol": protocol(record),
        "data": record["data"]["content"].rpartition(":")[2][:8],
        "model": record["model"].rpartition(":")[2][:8],
    }


def forgetting(record: Record) -> float:
    """Nats a token that a run has lost on its text (above 0), or gained; NaN where it was not measured."""
    of = record["result"].get("forgetting") or {}
    whole = of.get("before") is not None and of.get("after") is not None
    return float(of["after"] - of["before"]) if whole else math.nan


#: Tokens of the text whose forward pass `added_flops` counts.
TOKENS = 512
#: Methods of this project whose change merges into the weights of the base model, so that inference costs
#: nothing more (docs/methods.md). Of peft's classes there, one does not merge.
MERGE = {"none", "head", "full", "bitfit", "ssf", "lora", "dylora", "lora_xs", "tied_lora", "nola"}
MERGE |= {"adalora", "vera", "vera_plus"}
PEFT_STAYS = {"LilyConfig"}


def added_flops(record: Record) -> float:
    """FLOPs of a forward pass over TOKENS tokens beyond the base model's: 0 where the method merges, two
    for each weight of a bottleneck adapter and token, in each block that shares it; NaN where that is not
    known."""
    config, method = record["config"], record["config"]["method"]
    if method["kind"] == "adapter":
        architecture = config["model"].get("architecture") or {}
        layers = architecture.get("num_hidden_layers") or architecture.get("n_layer")
        blocks = int(layers) - int(method.get("drop_layers") or 0) if layers else math.nan
        return 2.0 * TOKENS * record["parameters"]["adapter"] * (blocks if method.get("share") else 1)
    of_peft = method["kind"] == "peft" and method["config_class"] not in PEFT_STAYS
    return 0.0 if of_peft or method["kind"] in MERGE else math.nan


def _part_of_data(record: Record) -> bool:
    """Whether a run was trained or evaluated on as many rows as task.train_rows and task.dev_rows say. With
    fewer rows than the setting says, the data are whole."""
    task, data = record["config"]["task"], record["data"]
    return any(task.get(key) and task[key] == data[key] for key in ("train_rows", "dev_rows"))


@cache
def _of_method(recipe: str) -> bool:
    """Whether a recipe is that of a method, such as vera/minilm, and not one that a study made for its
    rows."""
    return (CONF / "method" / f"{recipe.partition('/')[0]}.yaml").is_file()


def _metric(epoch: str | None, select: str = "paper") -> Callable[[Record], float]:
    return lambda record: record["result"]["scale"] * seed_value(record, epoch, select)


def _crossfit(record: Record) -> float:
    return float(record["result"]["scale"] * seed_value(record, reported_epoch(record), "crossfit"))


def _optimism(record: Record) -> float:
    of = crossfit_of(record) if record["status"] == "done" and reported_epoch(record) == "best" else None
    return float(record["result"]["scale"] * of["optimism"]) if of else math.nan


def _score(key: str) -> Callable[[Record], float]:
    return lambda record: math.nan if (score := text_score(record, key)) is None else score


def _cost(*keys: str) -> Callable[[Record], float | None]:
    def number(record: Record) -> float | None:
        known = [record["cost"][key] for key in keys if record["cost"].get(key) is not None]
        return float(sum(known)) if known else None

    return number


def _in(*path: str) -> Callable[[Record], Any]:
    def value(record: Record) -> Any:
        part: Any = record
        for key in path:
            part = (part or {}).get(key)
        return part

    return value


#: The columns of `runs`: how each comes from a record, and what `cells` makes of it: its first value, its
#: median over the runs that did not diverge, or nothing (""). A failed run has those of NAMES alone.
NAMES: dict[str, tuple[Callable[[Record], Any], str]] = {
    "id": (_in("id"), ""),
    "status": (_in("status"), ""),
    "kind": (kind_of, ""),
    "model": (_in("cell", "model"), ""),
    "row": (row_of, ""),
    "task": (_in("cell", "task"), ""),
    "seed": (_in("cell", "seed"), ""),
    "label": (label_of, "first"),
    "model_label": (_in("label", "model"), "first"),
    "task_label": (_in("label", "task"), "first"),
    "method": (_in("config", "method", "kind"), "first"),
    "scaling": (lambda record: lora_scaling(record["config"]), "first"),
    "conf_row": (_in("cell", "row"), "first"),
    "family": (_in("config", "task", "family"), "first"),
    "preset": (_in("cell", "paper"), ""),
    "asked_train_rows": (lambda record: record["config"]["task"].get("train_rows") or 0, ""),
    "asked_dev_rows": (lambda record: record["config"]["task"].get("dev_rows") or 0, ""),
    "epochs": (_in("config", "train", "epochs"), "first"),
    "lr": (_in("config", "train", "lr"), "first"),
    "lr_head": (_in("config", "train", "lr_head"), "first"),
    "error": (_in("error"), ""),
}
NUMBERS: dict[str, tuple[Callable[[Record], Any], str]] = {
    "metric": (_in("result", "metric"), "first"),
    "higher_is_better": (_in("result", "higher_is_better"), "first"),
    "scale": (_in("result", "scale"), "first"),
    "decimals": (lambda record: Metric.of_record(record).decimals, "first"),
    "reported": (reported_epoch, "first"),
    "value": (_metric(None), ""),
    "best": (_metric("best"), ""),
    "last": (_metric("last"), ""),
    "best_epoch": (
        lambda record: (record["result"].get("protocols") or {}).get("paper", {}).get("best_epoch"),
        "",
    ),
    "last_epoch": (lambda record: (record["curve"]["epoch"] or [math.nan])[-1], ""),
    "crossfit": (_crossfit, ""),
    "optimism": (_optimism, ""),
    **{key: (_score(key), "") for key in SCORES},
    "forgetting": (forgetting, ""),
    "forgetting_before": (_in("result", "forgetting", "before"), ""),
    "forgetting_name": (_in("result", "forgetting", "text"), ""),
    "forgetting_text": (_in("result", "forgetting", "sha256"), ""),
    "forgetting_tokens": (_in("result", "forgetting", "tokens"), ""),
    "added_flops": (added_flops, ""),
    "diverged": (lambda record: record["status"] == "diverged", ""),
    "one_class": (one_class, ""),  # the share of rows that the class has, in words
    "parameters": (_in("parameters", "adapter"), "first"),
    "head_parameters": (_in("parameters", "head"), "first"),
    "total_parameters": (_in("parameters", "total"), "first"),
    "train_rows": (_in("data", "train_rows"), "first"),
    "dev_rows": (_in("data", "dev_rows"), "first"),
    "data": (_in("data", "content"), "first"),
    "part_of_data": (_part_of_data, ""),
    "shots": (_in("config", "task", "shots"), "first"),
    "evaluations": (lambda record: len(record["curve"]["epoch"]), ""),
    "rank": (_in("config", "method", "rank"), "first"),
    "alpha": (_in("config", "method", "alpha"), "first"),
    "texts": (lambda record: (record.get("texts") or {}).get("scores", []), ""),
    "judged": (lambda record: record.get("judged") or [], ""),
    "template": (_in("config", "task", "template"), ""),
    "seconds": (_cost("train_seconds", "evaluate_seconds", "decode_seconds"), "median"),
    **{
        key: (_cost(key), "median")
        for key in ("train_seconds", "evaluate_seconds", "decode_seconds", "tokens_per_second")
    },
    "peak_memory_bytes": (_cost("peak_memory_bytes"), "median"),
    "adapter_bytes": (_cost("adapter_bytes"), "median"),
    "steps": (_in("steps"), "first"),
    "device": (_in("device", "name"), "first"),
    "device_type": (_in("device", "type"), "first"),
    "threads": (_in("determinism", "threads"), ""),
    "recipe": (lambda record: str(record["recipe"]["name"]), "first"),
    "deviations": (lambda record: tuple(record["deviations"]), ""),
    "protocol": (protocol, "first"),
    "measured": (measured_on, ""),
    "cell": (cell_id, "first"),
    "sources": (lambda record: (record.get("code") or {}).get("sources") or {}, ""),
    "one_draw": (lambda record: _one_draw(record), "first"),
}


def _one_draw(record: Record) -> bool:
    """Whether all seeds share VeRA's random matrices."""
    method = record["config"]["method"]
    return method["kind"] == "vera" and not method.get("redrawn")


def runs(ledger: Ledger | None = None) -> pd.DataFrame:
    """Every run of a ledger, a row each, with NAMES, NUMBERS and these: origin ("ours", or the study that
    has published it), settings (what defines its result), and left_out, why it is in no cell ("": it is in
    one; see `chosen`). Without a ledger: the records of outputs/ and the published ones."""
    ledger = read_ledger() if ledger is None else ledger
    lines, settings = [], dict[str, dict[str, Any]]()
    for record in ledger:
        line = {name: of(record) for name, (of, _) in NAMES.items()}
        if line["kind"] != "failed":
            line |= {name: of(record) for name, (of, _) in NUMBERS.items()}
            line["settings"] = settings.setdefault(
                line["cell"], settings_of(record) if line["cell"] not in settings else {}
            )
        lines.append(line | {"origin": ledger.origin.get(record["id"], "ours")})
    columns = [*NAMES, *NUMBERS, "settings", "origin"]
    # Texts as objects: a frame of so many Arrow columns takes twice as long to filter
    frame = pd.DataFrame(lines, columns=columns)
    texts = [name for name, kind in frame.dtypes.items() if isinstance(kind, pd.StringDtype)]
    return chosen(frame.astype(dict.fromkeys(texts, object)).copy())  # consolidated


# --- which runs are in a cell

ORDER = ["protocol", "few", "of_method", "count", "newest"]


def chosen(runs: pd.DataFrame) -> pd.DataFrame:
    """The runs with left_out, why a run is in no cell: failed, stopped, trial, protocol (another variant of
    its row follows a newer one), settings (another variant is nearer to its recipe: of the newest protocol,
    with the fewest deviations, by a method's recipe and not by a study's, and then with the most runs),
    seed (another run of the same settings has that seed). Runs with other settings are never in one
    cell."""
    runs = runs.assign(left_out=runs.kind.where(runs.kind != "result", ""))
    results = runs[runs.left_out == ""]
    if results.empty:
        return runs
    facts = results[["id", "protocol"]].assign(
        key=results.groupby(KEY).ngroup(),
        variant=results.groupby([*KEY, "cell"]).ngroup(),
        few=-results.deviations.map(len),
        of_method=results.recipe.map(_of_method),
    )
    variants = facts.groupby("variant", sort=False).agg(
        **{name: (name, "first") for name in ("key", "protocol", "few", "of_method")},
        count=("id", "size"),
        newest=("id", "max"),
    )
    nearest = variants.sort_values(ORDER, kind="stable").drop_duplicates("key", keep="last")
    is_shown = facts.variant.isin(nearest.index)
    of_newest = facts.protocol == facts.key.map(nearest.set_index("key").protocol)
    by_seed = results[is_shown].assign(few=-facts.few[is_shown]).sort_values(["seed", "few", "id"])
    again = by_seed.index[by_seed.duplicated([*KEY, "seed"])]
    left_out = np.select([is_shown, of_newest], ["", "settings"], "protocol")
    runs.loc[results.index, "left_out"] = left_out
    runs.loc[again, "left_out"] = "seed"
    return runs


# --- cells


#: The columns of `cells`, after KEY.
SUMMED = [name for name, (_, how) in (NAMES | NUMBERS).items() if how]
MEDIANS = [name for name, (_, how) in (NAMES | NUMBERS).items() if how == "median"]
OVER_SEEDS = ["best", "last", "crossfit", "optimism"]
CELL_COLUMNS = [
    *(*KEY, *SUMMED, "runs", "n", "wanted", "complete", "values", "seeds", "ids", "median", "mean", "spread"),
    *(
        "best",
        "last",
        "crossfit",
        "optimism",
        "diverged",
        "one_class",
        "class_share",
        "presets",
        "origins",
        "deviations",
    ),
    *("left_out", "older", "again"),
]


def cells(runs: pd.DataFrame, value: str = "value", seeds: int | None = None) -> pd.DataFrame:
    """The cells of some runs, a row each, sorted by KEY: the statistics of a column of `runs` over the seeds.

    value: the column (value, best, last, crossfit, a score). seeds: how many a complete cell has; by
    default those of the task's protocol, or of the preset that ran it. Diverged runs and those of one class
    count like any other; a run without a number makes the statistics NaN.

    Columns: KEY; those of NAMES and NUMBERS that are one or a median; runs, n (those that have the number),
    wanted, complete; values, seeds and ids, tuples by seed; median, mean, spread (sample standard
    deviation); best, last, crossfit and optimism, medians; diverged, a count; one_class, the seeds that
    predict one class, and class_share, its share of the rows in words; deviations; presets; origins;
    left_out, how many results of the row have other settings; older, their older protocols; again, the ids
    of results that repeat a seed."""
    runs = chosen(runs)
    results = runs[runs.kind == "result"]
    out: dict[str, dict[Any, list[Any]]] = {"settings": {}, "protocol": {}, "seed": {}}
    for *key, run, of, why in results[[*KEY, "id", "protocol", "left_out"]].itertuples(
        index=False, name=None
    ):
        if why:
            out[why].setdefault(tuple(key), []).append(run if why == "seed" else of)
    kept = runs[runs.left_out == ""].sort_values([*KEY, "seed"], kind="stable")
    places = kept.groupby(KEY, sort=False).indices
    lines = list[dict[str, Any]]()
    columns = {name: kept[name].to_numpy() for name in ("id", "seed", "preset", "origin", "deviations")}
    numbers = {name: pd.to_numeric(kept[name]).to_numpy(float) for name in {value, *OVER_SEEDS, *MEDIANS}}
    diverged, alike = kept.diverged.to_numpy(bool), kept.one_class.to_numpy()
    for key, at in places.items():
        values, done = numbers[value][at], at[~diverged[at]] if not diverged[at].all() else at
        known = not np.isnan(values).any()
        lines.append(
            {
                "runs": len(at),
                "n": int((~np.isnan(values)).sum()),
                "values": tuple(values),
                "seeds": tuple(columns["seed"][at]),
                "ids": tuple(columns["id"][at]),
                "median": statistics.median(values) if known else math.nan,
                "mean": statistics.fmean(values) if known else math.nan,
                "spread": _spread(values),
                **{name: _median(numbers[name][at]) for name in OVER_SEEDS},
                **{name: _median(numbers[name][done]) for name in MEDIANS},
                "diverged": int(diverged[at].sum()),
                "one_class": tuple(columns["seed"][i] for i in at if isinstance(alike[i], str)),
                "class_share": next((alike[i] for i in at if isinstance(alike[i], str)), ""),
                "presets": tuple(dict.fromkeys(columns["preset"][at])),
                "origins": tuple(dict.fromkeys(columns["origin"][at])),
                "deviations": tuple(dict.fromkeys(word for i in at for word in columns["deviations"][i])),
                "left_out": sum(len(out[why].get(key, ())) for why in ("settings", "protocol")),
                "older": tuple(sorted(set(out["protocol"].get(key, ())))),
                "again": tuple(out["seed"].get(key, ())),
            }
        )
    first = kept.iloc[[at[0] for at in places.values()]].reset_index(drop=True)
    made = first[[*KEY, *(name for name in SUMMED if name not in MEDIANS)]].join(pd.DataFrame(lines))
    made = made.reindex(columns=CELL_COLUMNS)
    wanted = [_wanted(task, of) for task, of in zip(made.task, made.presets, strict=True)]
    return made.assign(wanted=seeds or wanted, complete=lambda of: of.n >= of.wanted)


def _median(values: Any) -> float:
    """Of those that are known; NaN of none."""
    known = values[~np.isnan(values)]
    return statistics.median(known.tolist()) if len(known) else math.nan


def _spread(values: Sequence[float]) -> float:
    deviation = sample_deviation(values)
    return math.nan if deviation is None else deviation


def _wanted(task: str, presets: Iterable[Any]) -> int:
    """How many seeds a cell should have: those of its protocol, or of the preset that ran it."""
    of_protocol = PROTOCOLS.get(task, SEEDS)
    if task not in OF_STUDIES:
        return of_protocol
    return max((_seeds(str(preset)) for preset in presets), default=0) or of_protocol


@cache
def _seeds(preset: str) -> int:
    """How many seeds a preset has; 0 where it is none, or says nothing of them."""
    path = CONF / "experiment" / f"{preset}.yaml"
    node: Any = yaml.safe_load(path.read_text()) if path.is_file() else {}
    for key in ("hydra", "sweeper", "params", "seed"):
        node = node.get(key, {})
    return len(str(node).split(",")) if node != {} else 0


def in_cells(runs: pd.DataFrame, cells: pd.DataFrame) -> pd.DataFrame:
    """The runs that are in these cells."""
    return runs[runs.id.isin({run for ids in cells.ids for run in ids})]


# --- the number that tables show


def reported(runs: pd.DataFrame, select: str = "paper") -> pd.DataFrame:
    """The runs with `number`, what their task's table reports, its `name` ("accuracy, best epoch"), whether
    less of it is better (`less`) and its `digits`: BLEU of the last epoch where a cell's texts were scored,
    else the metric of the epoch that the table reports, or cross-fitted."""
    texts = runs.bleu.notna() & (runs.status == "done")
    of_texts = texts.groupby(runs.cell).transform("any") & (select == "paper")
    metric = runs.crossfit if select == "crossfit" else runs.value
    return runs.assign(
        number=metric.where(~of_texts, runs.bleu),
        name=(runs.metric + ", " + runs.reported + " epoch").where(~of_texts, "BLEU, last epoch"),
        less=(runs.higher_is_better == False) & ~of_texts,  # noqa: E712, an object column
        digits=runs.decimals.where(~of_texts, 1),
    )


def pairs(runs: pd.DataFrame, row: str, other: str = "", number: str = "number") -> pd.DataFrame:
    """The runs of a row beside those of another ("": of every other), a line for each model, task and seed
    that both have, measured on the same: x of `row` and y of the other, such that more is better, with the
    ids of both. runs: of `reported`, in cells."""
    known = runs[(runs.left_out == "") & runs[number].notna()]
    known = known.assign(value=known[number].where(~known.less, -known[number]))
    on = ["model", "task", "seed", "measured", "name"]
    known = known[[*on, "row", "label", "less", "digits", "id", "value"]]
    right = known[known.row == other] if other else known[known.row != row]
    both = known[known.row == row].merge(right, on=on, suffixes=("", "_other"))
    both = both.rename(columns={"value": "x", "value_other": "y"})
    # Two diverged runs may both be infinite
    return both.assign(difference=np.where(both.x == both.y, 0.0, both.x - both.y))


def median(values: Iterable[float]) -> float:
    """NaN of no values, and where one of them is."""
    values = list(values)
    return math.nan if not values or any(map(math.isnan, values)) else statistics.median(values)
