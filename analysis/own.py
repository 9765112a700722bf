"""Splits the user's own records from those that the project has published, chooses a part of either, and
tells the variants of a row apart."""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from analysis.cells import label_of, nearest, reported_epoch, row_of, variants_of
from analysis.table import Table, TableCell
from runs.record import FINISHED, Ledger, Record, defining, other_data_seed, protocol
from runs.record.text import plural

#: How many runs a note names; of more it gives the number, too.
NAMED = 3


def split(ledger: Ledger) -> tuple[Ledger, Ledger]:
    """The records of this machine, and the published ones. A run that was done here and is published, too, is
    in both, with the record of each."""
    ours = {i: record for i, record in ledger.records.items() if ledger.origin.get(i, "ours") == "ours"}
    others = {i: record for i, record in ledger.records.items() if i not in ours}
    others |= {i: record for i, (_, record) in ledger.published.items()}
    origin = ledger.origin | {i: study for i, (study, _) in ledger.published.items()}

    def part(records: dict[str, Record], own: bool) -> Ledger:
        measures = {
            i: measure
            for i, measure in ledger.measures.items()
            if (ledger.measured.get(i, "ours") == "ours") is own
        }
        return Ledger(records, {i: "ours" if own else origin[i] for i in records}, [], measures)

    return part(ours, True), part(others, False)


def having(
    ledger: Ledger,
    models: Collection[str] = (),
    tasks: Collection[str] = (),
    rows: Collection[str] = (),
    ids: Collection[str] | None = None,
    seeds: Collection[str] = (),
) -> Ledger:
    """The records of these models, tasks, rows of conf/method and seeds (empty: of all), and of the runs with
    these ids (None: of all)."""
    wanted = {"model": models, "task": tasks, "row": rows, "seed": seeds}

    def has(record: Record) -> bool:
        of_ids = ids is None or record["id"] in ids
        return of_ids and all(str(record["cell"][key]) in of for key, of in wanted.items() if of)

    records = {i: record for i, record in ledger.records.items() if has(record)}
    also_published = {i: one for i, one in ledger.published.items() if has(one[1])}
    measures = {
        i: measure
        for i, measure in ledger.measures.items()
        if all(one["id"] in records or one["id"] not in ledger.records for one in measure["of"])
    }
    return replace(ledger, records=records, measures=measures, published=also_published)


def published(ledger: Ledger, runs: Iterable[str]) -> list[str]:
    """A note that counts which of these run ids (or measures) come from published studies; none where all ran
    on this machine."""
    origins = [ledger.origin[name] for name in set(runs) if name in ledger.origin]
    studies = Counter(origin for origin in origins if origin != "ours")
    if not studies:
        return []
    several, every = studies.total(), len(origins)
    which = f"{several} of the {every} runs" if several < every else "all runs"
    by_study = ", ".join(f"{count} of {study}" for study, count in sorted(studies.items()))
    return [f"Not done here, but published by the project in runs/records: {which} ({by_study})."]


# --- variants


def with_variants(ledger: Ledger, paper: bool) -> Ledger:
    """The ledger with every variant of a row as a row of its own, whose label says what sets it apart: "VeRA
    r=256, lr 0.001". Variants are records of the same row, model and task with other settings, data or start.
    paper: the variant nearest to its recipe keeps the row's name, so that it stands beside the paper's
    row."""
    changed = dict[str, Record]()
    for variants in variants_of(ledger).values():
        if len(variants) == 1:
            continue
        words = distinctions({name: _facts(records[0]) for name, records in variants.items()})
        kept = nearest(variants.values()) if paper else []
        for name, records in variants.items():
            changed |= {r["id"]: _named(r, words[name], row=records is not kept) for r in records}
    return replace(ledger, records=ledger.records | changed)


def nearest_variants(ledger: Ledger, own: Ledger) -> Ledger:
    """The ledger with one variant of each row: the one that differs in the fewest settings from an own run of
    that row, model and task; of equals, and where there is no own run, the one that `nearest` takes."""
    own_variants, left_out = variants_of(own), set[str]()
    for key, variants in variants_of(ledger).items():
        settings = [_facts(records[0]) for records in own_variants.get(key, {}).values()]
        far = {name: _differences(_facts(records[0]), settings) for name, records in variants.items()}
        least = min(far.values())
        kept = nearest(records for name, records in variants.items() if far[name] == least)
        left_out |= {r["id"] for records in variants.values() if records is not kept for r in records}
    return replace(ledger, records={i: r for i, r in ledger.records.items() if i not in left_out})


def _differences(facts: Mapping[str, Any], others: Iterable[Mapping[str, Any]]) -> int:
    """In how many settings a mapping differs from the nearest of the others; 0 where there are none."""
    counts = (sum(facts.get(key) != of.get(key) for key in {*facts, *of}) for of in others)
    return min(counts, default=0)


def hidden_variants(records: Iterable[Record]) -> list[str]:
    """A note on how to see variants that no row shows."""
    several = any(len(variants) > 1 for variants in variants_of(records).values())
    return ["all=true shows every variant, with what sets it apart."] if several else []


def distinctions(facts: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Of several mappings, by their names: the keys and values of each in which they are not all alike, in
    words."""
    keys = sorted({key for of in facts.values() for key in of})
    unlike = [key for key in keys if len({str(of.get(key)) for of in facts.values()}) > 1]
    return {name: ", ".join(f"{key} {_word(of.get(key))}" for key in unlike) for name, of in facts.items()}


def _facts(record: Record) -> dict[str, Any]:
    """What defines a record's result except its seed and what follows it, as one mapping without groups."""
    facts = dict[str, Any]()
    for group, settings in defining(record["config"]).items():
        of_group = settings if isinstance(settings, dict) else {group: settings}
        facts |= {key: value for key, value in of_group.items() if key != "draw_seed"}
    if record["config"]["method"].get("redrawn"):
        facts.pop("projection_seed", None)
    facts |= {"recipe": record["recipe"]["name"], "start": (record.get("start") or {}).get("id")}
    return facts | {
        "data_seed": other_data_seed(record),
        "protocol": protocol(record),
        "data": record["data"]["content"].rpartition(":")[2][:8],
        "model": record["model"].rpartition(":")[2][:8],
    }


def _word(value: Any) -> str:
    return "null" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _named(record: Record, words: str, row: bool) -> Record:
    """The record with these words after its label and, if `row`, after its row."""
    method, cell = record["config"]["method"], record["cell"]
    label = str(method.get("label") or label_of(record))
    new = [
        word for word in words.split(", ") if word.replace("rank ", "r=") not in re.split(r"[\s,]+", label)
    ]
    label = ", ".join([label, *new])
    return record | {
        "cell": cell | ({"row": f"{cell['row']} {words}"} if row else {}),
        "label": record["label"] | {"row": ", ".join([record["label"]["row"], *new])},
        "config": record["config"] | {"method": method | {"label": label}},
    }


# --- notes


def is_stopped(record: Record) -> bool:
    """Whether train.max_steps has stopped a run early."""
    return record["config"]["train"].get("max_steps") is not None


def early_stops(records: Iterable[Record]) -> list[str]:
    """A note that names the runs that train.max_steps has stopped early, which are in no table."""
    stopped = [r for r in records if is_stopped(r)]
    names = [_name(r, f", {plural(r.get('steps', 0), 'step')}") for r in stopped]
    return [f"stopped early by train.max_steps, in no table: {_enumeration(names)}."] if names else []


def failures(records: Iterable[Record]) -> list[str]:
    """A note that names the runs that failed."""
    names = [_name(r) for r in records if r["status"] == "failed"]
    return [f"failed: {_enumeration(names)}."] if names else []


def _name(record: Record, more: str = "") -> str:
    return f"{record['id']} ({label_of(record)} on {record['label']['task']}{more})"


def _enumeration(names: list[str]) -> str:
    if len(names) <= NAMED:
        return ", ".join(names)
    return f"{len(names)} runs: {', '.join(names[:NAMED])} and {len(names) - NAMED} more"


def parts_of_data(records: Iterable[Record]) -> list[str]:
    """A note for each size of a part of the data (task.train_rows, task.dev_rows) that runs were trained and
    evaluated on, where their deviations do not name it. It names the rows, unless all have that part or it is
    the part of most."""
    sizes: dict[str, set[str]] = defaultdict(set)
    for record in records:
        task = record["config"]["task"]
        named = any("subset of" in word for word in record.get("deviations", []))
        if record["status"] in FINISHED:
            data, keys = record["data"], ("train_rows", "dev_rows")
            # With fewer rows than the setting says, the data are whole
            part = not named and any(task.get(key) and task[key] == data[key] for key in keys)
            words = f"{data['train_rows']:,} training and {data['dev_rows']:,} dev rows" if part else ""
            sizes[words].add(f"{row_of(record)} on {record['cell']['task']}")
    named_rows = {words: f" ({', '.join(sorted(of))})" * (len(sizes) > 1) for words, of in sizes.items()}
    most = max(sizes, key=lambda words: len(sizes[words]), default="")
    if "" not in sizes and len(sizes[most]) > NAMED and len(sizes) > 1:
        named_rows[most] = " (all others)"
    return [f"a part of the data: {words}{rows}" for words, rows in sorted(named_rows.items()) if words]


def measured_unlike(records: Iterable[Record]) -> list[str]:
    """A note for each task whose rows were not measured alike: on other rows of data, or by the best epoch
    and by the last. records: of one model's table."""
    by_task: dict[str, dict[str, dict[str, Any]]] = defaultdict(dict)
    for record in records:
        by_task[record["cell"]["task"]].setdefault(row_of(record), _conditions(record))
    notes = []
    for task, of_rows in by_task.items():
        rows: dict[str, list[str]] = defaultdict(list)
        for row, words in distinctions(of_rows).items():
            rows[words].append(row)
        if len(rows) > 1:
            each = "; ".join(f"{words} ({', '.join(sorted(of))})" for words, of in sorted(rows.items()))
            notes.append(f"not measured alike on {task}, so not to be compared: {each}.")
    return notes


def _conditions(record: Record) -> dict[str, Any]:
    """What `measured_on` has, by names, without what follows the seed (the draw of images)."""
    data = record["data"]
    return {
        "protocol": protocol(record),
        "training rows": data["train_rows"],
        "dev rows": data["dev_rows"],
        "data": data["content"].rpartition(":")[2][:8],
        "items": record["config"]["task"].get("items"),
        "epoch": reported_epoch(record),
    }


# --- tables


def as_published(table: Table) -> Table:
    """The table with "published" in place of "ours"."""
    return replace(table, title=f"{table.title} (published)", rows=named_published(table.rows))


def named_published(rows: Sequence[Sequence[TableCell]]) -> list[list[TableCell]]:
    """Rows with "published" in place of "ours"."""
    return [[replace(c, text=re.sub(r"^ours(?=$|, )", "published", c.text)) for c in row] for row in rows]


def of_tasks(table: Table, tasks: Collection[str]) -> Table:
    """The table without the columns of other tasks. A table whose tasks are no columns stays as it is."""
    gone = {label for task, label in table.tasks.items() if task not in tasks}
    kept = [i for i, name in enumerate(table.header) if name not in gone]
    return replace(
        table,
        header=[table.header[i] for i in kept],
        rows=[[row[i] for i in kept] for row in table.rows],
        tasks={task: label for task, label in table.tasks.items() if task in tasks},
    )
