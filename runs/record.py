"""A run's record: one small JSON file. The only truth about a run; tables, plots and dashboards are made from it.

No torch and no Hydra: analysis/ reads the ledger through this file.

A record (schema 2): schema, id, status (done, failed, diverged), error; tries (how earlier tries of the run ended, in
words; since schema 2), claim (of a failed one: by whose lease it was written); cell (paper preset, row, model, task,
seed); label; start (what the adapter started from: the word of init_from, and the id behind it; or null); config and
its hash; recipe; seeds (training, projection, data; of VeRA projection_note, in words, whether other seeds have other
matrices); code (commit, dirty, and sources: the files of method and task family, see runs/sources.py; older records lack
these); versions, device, determinism; model and data (content hash, rows; selection: a hash of the training rows, where
they were drawn; unreadable: rows left out, and why); parameters (adapter, head, frozen_extra, total, formula); groups
with learning rates; effective_batch, steps; curve in columns (epoch, step, train_loss, dev_loss, metric, metric_select,
metric_report, lr; the last two metrics are of the halves A and B of dev); result (metric, select, best, best_epoch,
last, and protocols: paper and crossfit; records of before 2026-11-26 have another in the second's place, and `reported`
makes it from the curve); texts (null, or: the split and number of items, how they were decoded, and the scores by epoch,
last or best, and variant); judged (where a judge has scored its answers: a summary for each bench and judge, see
tasks/mt_bench.py); cost (seconds of training, evaluation and decoding, tokens or images a second, peak memory, adapter
bytes); predictions (hash of the best and of the last epoch's); deviations from the paper, in words. Metrics are
fractions, but for perplexity and the scores of texts; times are seconds; sizes are bytes. protocol (the version of the
task family's; a record without it is of the first).

A measure (runs/measure.py: what finished runs' adapters, or a small fit, say for a figure) is no run and has a file and a
schema of its own: measures/ID.json beside records/, or in a published study's folder; tables never see it. schema, id,
kind (magnitude, similarity, matrix_fit), of (the runs measured: id, cell, label, adapter's checksum and which epoch's it
is), settings, seeds, code, versions, device, seconds, values (columns of equal length).
"""

import contextlib
import errno
import gc
import json
import os
import socket
import stat
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from runs.text import LESS_IS_BETTER

SCHEMA = 2
#: From each older schema to the next.
MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: lambda record: record | {"schema": 2, "tries": []}}
#: Of measures, and the columns that each kind has.
MEASURE_SCHEMA = 1
MEASURES = {
    "magnitude": ("layer", "site", "d", "b"),
    "similarity": ("layer", "site", "lora_vera", "lora_random", "vera_random"),
    "matrix_fit": ("method", "rank", "parameters", "mse", "best"),
}
#: A run with one of these needs no other try. A diverged run is a result.
FINISHED = ("done", "diverged")
PUBLISHED = Path(__file__).parent / "records"
#: Keys of a part of the configuration that came after records had been written, with what was fixed before. At that value
#: they are left out of identities and comparisons: what was run stays done.
LATER: dict[str, dict[str, Any]] = {
    "train": {"decay_all": False, "adam_eps": 1e-8, "warmup_steps": None, "evaluate_every": 1},
    "task": {"holdout": None},
}
#: Task families whose batches were of like lengths before task.length_grouped said so. Others have had it from the beginning.
READS_LENGTH_GROUPED = ("glue", "text")

Record = dict[str, Any]


def defining(config: dict[str, Any], part: str) -> dict[str, Any]:
    """The settings of a part of the configuration (train, task) that tell runs apart."""
    later = LATER[part]
    if part == "task" and config["task"].get("family") in READS_LENGTH_GROUPED:
        later = later | {"length_grouped": True}
    return {key: value for key, value in config[part].items() if key not in later or value != later[key]}


def is_trial(config: dict[str, Any]) -> bool:
    """Whether a run was stopped early by train.max_steps, or judged on training rows (task.holdout): no result."""
    return config["train"].get("max_steps") is not None or config["task"].get("holdout") is not None


def best_epoch(values: Sequence[float], metric: str) -> int:
    """Index of the best epoch by these values, the earliest of equals; 0 where there are none."""
    return values.index((min if metric in LESS_IS_BETTER else max)(values)) if values else 0


def crossfit(curve: dict[str, list[Any]], dev_rows: int, metric: str) -> dict[str, Any] | None:
    """The best epoch without the flattery of choosing it on the rows reported: chosen on half A of dev and reported on
    half B, chosen on B and reported on A, and the mean of the two weighted by rows.

    best, last (the same mean at the last epoch), best_epoch (the two epochs chosen), and optimism: the same mean at the
    epoch that is best on the whole of dev, less `best`. It is an upper estimate: half of the rows choose worse than all.
    Values are as the curve has them; None without a curve. curve: metric_select is of half A (dev_rows // 2 rows),
    metric_report of B.
    """
    a, b = curve.get("metric_select") or [], curve.get("metric_report") or []
    if not a or len(a) != len(b) or None in (*a, *b):
        return None
    by_a, by_b, whole = (best_epoch(values, metric) for values in (a, b, curve["metric"]))
    share = (dev_rows // 2) / dev_rows

    def mean(of_a: float, of_b: float) -> float:
        return share * of_a + (1 - share) * of_b

    best = mean(a[by_b], b[by_a])
    optimism = mean(a[whole], b[whole]) - best
    return {
        "best": best,
        "best_epoch": [curve["epoch"][by_a], curve["epoch"][by_b]],
        "last": mean(a[-1], b[-1]),
        "optimism": -optimism if metric in LESS_IS_BETTER else optimism,
    }


def reported(record: Record, select: str) -> dict[str, Any]:
    """A record's best and last number by a protocol, "paper" or "crossfit"; empty where it has none."""
    if select == "paper":
        return dict(record["result"].get("protocols", {}).get("paper") or {})
    return crossfit_of(record) or {}


def crossfit_of(record: Record) -> dict[str, Any] | None:
    """What `crossfit` says of a finished record."""
    return crossfit(record["curve"], record["data"]["dev_rows"], record["result"]["metric"])


def from_recipe(config: Mapping[str, Any], key: str, default: Any = None) -> Any:
    """What a configuration's recipe says of a key: for its task, or else for all. A null counts: `clip: null` is none."""
    recipe = config.get("recipe") or {}
    by_task = (recipe.get("by_task") or {}).get(key) or {}
    return by_task.get(config["task"]["name"], recipe.get(key, default))


def proportional_alpha(alpha: float, of_rank: int, rank: int) -> float:
    """LoRA's alpha for the scale alpha / of_rank at another rank. A whole number stays one: identities hash 8, not 8.0."""
    scaled = alpha * rank / of_rank
    return int(scaled) if scaled.is_integer() and isinstance(alpha, int) else scaled


#: What method.scaling may be: LoRA's alpha is the recipe's at every rank, or follows the rank.
SCALINGS = ("constant", "proportional")


def lora_scaling(config: dict[str, Any]) -> str | None:
    """How a LoRA run's alpha came about: "constant" (the recipe's alpha, as in Hu et al. 2021), "proportional" (the recipe's
    alpha / rank, times this rank), or "given" (neither). None at the recipe's own rank and alpha, where the two are one, and
    for other methods."""
    method = config["method"]
    if method.get("kind") != "lora":
        return None
    # conf/method/lora.yaml's, without a recipe
    rank, alpha = from_recipe(config, "rank", 8), from_recipe(config, "alpha", 8)
    if not all(isinstance(number, int | float) for number in (rank, alpha, method.get("rank"), method.get("alpha"))):
        return None
    if (method["rank"], method["alpha"]) == (rank, alpha):
        return None
    if method["rank"] != rank and method["alpha"] == alpha:
        return "constant"
    return "proportional" if method["alpha"] * rank == method["rank"] * alpha else "given"


def row_label(config: dict[str, Any]) -> str:
    """A run's method as tables and logs name it: "LoRA r=2, alpha=8" where alpha stayed the recipe's at another rank,
    "LoRA r=2, alpha=r" or "alpha=2r" where it follows the rank."""
    method, scaling = config["method"], lora_scaling(config)
    if scaling is None:
        return str(method["label"])
    ratio = method["alpha"] / method["rank"]
    alpha = f"{'' if ratio == 1 else f'{ratio:g}'}r" if scaling == "proportional" else f"{method['alpha']:g}"
    return f"{method['label']}, alpha={alpha}"


def cache_folder() -> Path:
    """What can be made anew and is worth keeping between calls, for this user."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vera-bench"


def write_atomically(path: Path, text: str) -> None:
    """Writes a file whole or not at all: a reader, or a kill in between, never meets half of it."""
    partial = _partial(path, text)
    try:
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _partial(path: Path, text: str) -> Path:
    """The text on disk, beside the file that it is for, under a name that no other process takes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}")
    try:
        with open(partial, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return partial


def sweep_up_dead(folder: Path) -> None:
    """Removes the half-written files below a folder whose processes were killed on this machine. Anybody may, at any time."""
    for partial in folder.rglob(f".*.{socket.gethostname()}.*"):
        try:
            os.kill(int(partial.name.split(".")[-2]), 0)
        except ProcessLookupError:
            partial.unlink(missing_ok=True)
        except (ValueError, OSError, OverflowError):  # of a number that no process has
            continue


def link_or_fail(path: Path, text: str) -> None:
    """Creates a file whole, or raises FileExistsError where one of that name is: of many that try at once, one succeeds."""
    partial = _partial(path, text)
    try:
        try:
            os.link(partial, path)
        except FileExistsError:
            if not os.path.samefile(partial, path):  # a network file system may do it, and answer that it is done already
                raise
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            with open(path, "x", encoding="utf-8") as file:  # a file system without hard links
                file.write(text)
    finally:
        partial.unlink(missing_ok=True)


def records_folder(output: str | Path) -> Path:
    """Where this machine's own records lie."""
    return Path(output) / "records"


def record_path(output: str | Path, run_id: str) -> Path:
    """The record of a run."""
    return records_folder(output) / f"{run_id}.json"


def measure_path(output: str | Path, measure_id: str) -> Path:
    """The file of a measure."""
    return Path(output) / "measures" / f"{measure_id}.json"


def run_folder(output: str | Path, run_id: str) -> Path:
    """A run's log, checkpoint, adapter and head."""
    return Path(output) / "runs" / run_id


def write_record(output: str | Path, record: Record) -> Path:
    """Writes a record to outputs/records, compact and atomically. NaN and infinity have no place in JSON: ValueError."""
    path = record_path(output, record["id"])
    write_atomically(path, record_text(record))
    return path


def record_text(record: Record) -> str:
    """A record as it stands in its file. ValueError as above."""
    return json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n"


#: A larger file is no record, lease or list of tries: it is not read.
LARGEST = 64 * 2**20


def read_regular(path: str | Path, most: int = LARGEST) -> bytes:
    """The bytes of a regular file, or of one that a link leads to; never blocks.

    Raises ValueError, naming the file, for a folder, a pipe, a device and the like, for more than `most` bytes, and where
    there is no file or none that may be read.
    """
    try:
        # Asked before it is opened, since opening a device may do something; and after, since it may have been replaced.
        check_regular(os.stat(path), path)
        file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        with open(file, "rb") as opened:
            check_regular(os.fstat(file), path)
            found = opened.read(most + 1)  # a file may grow, and those of /proc have no size
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}") from error
    if len(found) > most:
        raise ValueError(f"{path}: larger than {most:,} bytes")
    return found


def check_regular(found: os.stat_result, path: str | Path) -> None:
    """Raises ValueError, naming the file, for what is a folder, a pipe, a device or the like."""
    if not stat.S_ISREG(found.st_mode):
        kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
        raise ValueError(f"{path}: {kinds.get(stat.S_IFMT(found.st_mode), 'a socket')}, and no file")


def read_record(path: Path) -> Record:
    """One record, in this schema. Raises ValueError, naming the file, for one that is damaged or of a schema not known here."""
    content = read_regular(path)
    try:
        record = orjson.loads(content)
    except ValueError as error:
        raise ValueError(f"{path}: not a record ({error})") from None
    if not isinstance(record, dict) or not isinstance(record.get("id"), str) or type(record.get("schema")) is not int:
        raise ValueError(f"{path}: not a record")
    while record["schema"] in MIGRATIONS:
        record = MIGRATIONS[record["schema"]](record)
    if record["schema"] != SCHEMA:
        newer = "made by a newer version; update this one" if record["schema"] > SCHEMA else "not known"
        raise ValueError(f"{path}: a record of schema {record['schema']}, {newer} (here: {SCHEMA})")
    return record


def read_measure(path: Path) -> Record:
    """One measure. Raises ValueError, naming the file, for one that is damaged or of a schema not known here."""
    try:
        with open(path, "rb") as file:
            measure = orjson.loads(file.read())
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: not a measure ({error})") from None
    kinds = {"id": str, "kind": str, "of": list, "settings": dict, "seeds": dict, "values": dict}
    if not isinstance(measure, dict) or not all(isinstance(measure.get(key), kind) for key, kind in kinds.items()):
        raise ValueError(f"{path}: not a measure")
    columns = measure["values"]
    if measure.get("schema") != MEASURE_SCHEMA:
        raise ValueError(f"{path}: a measure of schema {measure.get('schema')}, not known (here: {MEASURE_SCHEMA})")
    if len({len(column) if isinstance(column, list) else -1 for column in columns.values()}) > 1:
        raise ValueError(f"{path}: a measure whose columns differ in length")
    runs = {"matrix_fit": 0, "magnitude": 1, "similarity": 2}.get(measure["kind"])
    if tuple(columns) != MEASURES.get(measure["kind"]) or len(measure["of"]) != runs:
        raise ValueError(f"{path}: a measure of kind {measure['kind']!r} with columns {', '.join(columns)}: not known here")
    return measure


@dataclass
class Ledger:
    """Records by run id, where each comes from ("ours" or the study's name), and files that could not be read.

    measures: by their own ids; what figures are drawn from that is no run.
    """

    records: dict[str, Record] = field(default_factory=dict)
    origin: dict[str, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    measures: dict[str, Record] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.records.values())


def read_ledger(output: str | Path = "outputs", published: bool = True) -> Ledger:
    """All records of this machine and, unless switched off, the published ones. This machine's own come first.

    A second record of a run with the same result is the same run, published. Where it has another result (another machine,
    other versions), the first one counts, and how many there are of each study is a problem. A copy of a published record is
    of that study, not of this machine.
    """
    ledger = Ledger()
    folders = [("ours", records_folder(output), Path(output) / "measures")]
    if published:
        folders += [(folder.name, folder, folder / "measures") for folder in study_folders()]
    for origin, folder, measures in folders:
        _read_into(ledger, origin, folder, measures, output)
    return ledger


def read_study(folder: Path) -> Ledger:
    """The records and measures of one published study alone."""
    ledger = Ledger()
    _read_into(ledger, folder.name, folder, folder / "measures", "")
    return ledger


def study_folders() -> list[Path]:
    """The published studies."""
    return sorted(folder for folder in PUBLISHED.iterdir() if folder.is_dir()) if PUBLISHED.is_dir() else []


def _is_better(known: str, origin: str, first: Record, again: Record, output: str | Path) -> bool:
    """Whether a second record of a run says better where it comes from: the first was copied from it (publishing takes paths
    out, and a run of this machine leaves a folder), or the study is that of its preset."""
    if known == "ours":
        return first == again and not run_folder(output, first["id"]).exists()
    return origin == again["cell"]["paper"]


def _read_into(ledger: Ledger, origin: str, folder: Path, measures: Path, output: str | Path) -> None:
    others = []
    with _no_garbage():
        for path in _json_files(folder):
            try:
                record = read_record(path)
            except ValueError as error:
                ledger.problems.append(str(error))
                continue
            if path.stem != record["id"]:  # a copy by hand; which of two would count must not hang on their names
                ledger.problems.append(f"{path}: the record of run {record['id']}, which belongs in {record['id']}.json")
                continue
            first = ledger.records.setdefault(record["id"], record)
            if first is not record and first.get("result") != record.get("result"):
                others.append(record["id"])
            elif first is record or _is_better(ledger.origin[record["id"]], origin, first, record, output):
                ledger.origin[record["id"]] = origin
        for path in _json_files(measures):
            try:
                measure = read_measure(path)
            except ValueError as error:
                ledger.problems.append(str(error))
                continue
            ledger.measures.setdefault(measure["id"], measure)
    if others:
        which = f"run {others[0]} has" if len(others) == 1 else f"{len(others)} runs have"
        whose = ", ".join(sorted({ledger.origin[name] for name in others}))
        ledger.problems.append(f"{folder}: {which} another result here than in {whose}, which counts")


def _json_files(folder: Path) -> list[Path]:
    names = sorted(os.listdir(folder)) if folder.is_dir() else []
    return [folder / name for name in names if name.endswith(".json") and not name.startswith(".")]


@contextlib.contextmanager
def _no_garbage() -> Iterator[None]:
    """Without the search for cycles, which JSON has none of: over thousands of records it takes longer than reading them."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
