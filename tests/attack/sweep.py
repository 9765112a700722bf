"""Odd things in the way of `python -m runs`: each meets a tiny run of its own; one more run of the command
meets nothing.

Held: no traceback, no hang, exit code 0, 1 or 2; the run that meets nothing is done (but after exit code 2,
the command being refused); and the other is done, or is refused in a line that names what stands there."""

import functools
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from running import ForkNow
from tiny import save_tiny, write_glue

from attack.cases import Case, Home, WrongError
from runs.command import entry_point
from runs.config import expand
from runs.identity import run_id
from runs.record import read_record, record_path, run_folder
from runs.sweep import sweep

#: Seconds after which a command hangs: it takes some five.
PATIENCE = 60
DEEP = "[" * 100_000
#: So many cases share a command. Those that begin like this have one of their own: they may end it.
GROUP, ALONE = 16, ("runs/ID: ", "records: ", "runs: ", "locks: ", "leases: ")


@dataclass
class Place:
    """A fresh output folder, the run that meets something, and a good record of it."""

    output: Path
    id: str
    good: dict

    @property
    def record(self) -> Path:
        return self.made(record_path(self.output, self.id))

    def own(self, name: str) -> Path:
        return self.made(run_folder(self.output, self.id) / name)

    def made(self, path: Path) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path


# --- what is put there


def as_folder(path: Path) -> None:
    path.mkdir()
    (path / "mine.txt").write_text("a user's own")


def as_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def as_socket(path: Path) -> None:
    with tempfile.TemporaryDirectory() as short:  # a socket's name has room for some hundred letters
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(f"{short}/s")
        shutil.move(f"{short}/s", path)


def as_loop(path: Path) -> None:
    path.symlink_to(path.name)


def as_dangling(path: Path) -> None:
    path.symlink_to("/nowhere/at/all")


def as_pipe_link(path: Path) -> None:
    os.mkfifo(path.with_name("pipe"))
    path.symlink_to("pipe")


ODD: dict[str, Callable[[Path], None]] = {
    "a folder": as_folder,
    "a fifo": os.mkfifo,
    "a link to /dev/zero": as_device,
    "a link to a fifo": as_pipe_link,
    "a link to itself": as_loop,
    "a link to nothing": as_dangling,
    "a socket": as_socket,
}


def without(*keys: str) -> Callable[[dict], dict]:
    return lambda good: {key: value for key, value in good.items() if key not in keys}


def with_(**changes: object) -> Callable[[dict], dict]:
    return lambda good: good | changes


#: Valid JSON in a record's place that is no record.
NO_RECORD: dict[str, Callable[[dict], object]] = {
    "id and schema alone": lambda good: {"id": good["id"], "schema": 2},
    "without status": without("status"),
    "status a list": with_(status=["done"]),
    "status unknown": with_(status="odd"),
    "result null": with_(result=None),
    "result a list": with_(result=[]),
    "result without best": lambda good: good | {"result": without("best")(good["result"])},
    "result best a text": lambda good: good | {"result": good["result"] | {"best": "x"}},
    "config {}": with_(config={}),
    "config []": with_(config=[]),
    "config null": with_(config=None),
    "without id": without("id"),
    "schema a text": with_(schema="2"),
    "schema 1 and no more": lambda good: {"id": good["id"], "schema": 1, "status": "done"},
    "schema 99": with_(schema=99),
    "texts an int": with_(texts=5),
    "code a list": with_(code=[]),
    "label null": with_(label=None),
    "cost null": with_(cost=None),
    "a list": lambda good: [good],
    "a number": lambda good: 7,
}
BYTES = {
    "empty": b"",
    "truncated": b'{"id": "x", "schema": 2, "sta',
    "deep": DEEP.encode(),
    "NUL": bytes(1000),
    "utf-16": '{"schema": 2}'.encode("utf-16"),
    "10^30": b"1" + b"0" * 30,
}


FOREIGN = {
    "ended": [],
    "settings": {"output": "{other}", "micro_batch": -5},
    "deviations": [],
    "stopped": True,
}
TRIES: dict[str, object] = {
    "foreign: another output, micro_batch -5": FOREIGN,
    "micro_batch 0": {"ended": [], "settings": {"micro_batch": 0}, "deviations": []},
    "micro_batch true": {"ended": [], "settings": {"micro_batch": True}, "deviations": []},
    "micro_batch 10^30": {
        "ended": [],
        "settings": {"micro_batch": 10**30},
        "deviations": [],
    },
    "micro_batch 2.5": {"ended": [], "settings": {"micro_batch": 2.5}, "deviations": []},
    "micro_batch a list": {"ended": [], "settings": {"micro_batch": [4]}, "deviations": []},
    "eval_batch a text": {"ended": [], "settings": {"eval_batch": "x"}, "deviations": []},
    "seed and train": {
        "ended": [],
        "settings": {"seed": 7, "train": {}, "keep": "none"},
        "deviations": [],
    },
    "settings a list": {"ended": [], "settings": [1], "deviations": []},
    "ended of numbers": {"ended": [1, None], "settings": {}, "deviations": []},
    "ended null": {"ended": None, "settings": {}, "deviations": []},
    "deviations of dicts": {"ended": [], "settings": {"micro_batch": 4}, "deviations": [{}]},
    "deviations of another's": {
        "ended": [],
        "settings": {},
        "deviations": ["state of the art"],
    },
    "a list": [],
    "our own": {
        "ended": ["out of memory"],
        "settings": {"micro_batch": 4},
        "deviations": ["micro-batch 4, since memory ran out at 8; the effective batch stays"],
    },
}
PROGRESS: dict[str, object] = {
    "seconds_left a text": {"phase": "training", "seconds_left": "x"},
    "epoch alone": {"epoch": 1},
    "10^400": {"seconds_left": 10**400},
    "a list": [1],
}


@functools.cache
def good_header() -> bytes:
    """A safetensors file without tensors, whose metadata are deep."""
    header = json.dumps({"__metadata__": {"header": DEEP, "sha256": "x"}}).encode()
    return len(header).to_bytes(8, "little") + header


def deep_checkpoint(path: Path) -> None:
    """A checkpoint with the checksum of what it holds, and that is a deep text."""
    from safetensors.torch import save_file

    from runs.training.checkpoint import _digest

    tensors = {"x": torch.zeros(1)}
    save_file(tensors, path, {"header": DEEP, "sha256": _digest(DEEP, tensors)})


#: A run's files, those of an attempt included.
OWN = ("progress.json", "log.txt", "adapter.safetensors", "head.safetensors")
OF_ATTEMPT = ("attempt.json", "checkpoint.safetensors", "decoded_last.jsonl")


def ways() -> Iterator[tuple[str, Callable[[Place], object], list[str]]]:
    """Name, what is put there, and words of the command."""
    own = [*OWN, *(f"attempts/here.1.x/{name}" for name in OF_ATTEMPT)]
    for name, put in ODD.items():
        yield f"record: {name}", lambda at, put=put: put(at.record), []
        yield f"lock: {name}", lambda at, put=put: put(at.made(at.output / "locks" / at.id)), []
        yield f"runs/ID: {name}", lambda at, put=put: put(at.made(run_folder(at.output, at.id))), []
        yield f"attempts: {name}", lambda at, put=put: put(at.own("attempts")), []
        for of in own:
            yield f"{of}: {name}", lambda at, put=put, of=of: put(at.own(of)), []
    for name, change in NO_RECORD.items():
        text = functools.partial(lambda at, change: json.dumps(change(at.good)), change=change)
        yield f"record: {name}", lambda at, text=text: at.record.write_text(text(at)), []
    for name, content in BYTES.items():
        yield f"record: {name}", lambda at, content=content: at.record.write_bytes(content), []
        for of in own:
            yield f"{of}: {name}", lambda at, content=content, of=of: at.own(of).write_bytes(content), []
    yield "record: 65 MB of spaces", lambda at: at.record.write_bytes(b" " * (65 << 20)), []
    for name, damage in {
        "deep metadata": lambda path: path.write_bytes(good_header()),
        "deep, with its checksum": deep_checkpoint,
        "a header of 2^40": lambda path: path.write_bytes((2**40).to_bytes(8, "little") + b"{}"),
    }.items():
        yield f"checkpoint: {name}", lambda at, damage=damage: damage(with_tries(at, TRIES["our own"])), []
    for name, tries in TRIES.items():
        yield f"attempt.json: {name}", lambda at, tries=tries: with_tries(at, tries), []
    for name, event in PROGRESS.items():
        text = json.dumps(event)
        yield f"progress.json: {name}", lambda at, text=text: at.own("progress.json").write_text(text), []
    yield "runs/ID: a file", lambda at: at.made(run_folder(at.output, at.id)).write_text("mine"), []
    yield "runs/ID/notes: a folder", lambda at: as_folder(at.own("notes")), []
    for name in ("records", "runs", "locks", "leases"):
        yield f"{name}: a file", lambda at, name=name: at.made(at.output / name).write_text("mine"), []
        yield f"{name}: a link to nothing", lambda at, name=name: as_dangling(at.made(at.output / name)), []
    local = ["launcher=local"]
    for name in ("a folder", "a fifo", "a link to nothing"):
        yield f"local, record: {name}", lambda at, name=name: ODD[name](at.record), local
    yield "local, attempt.json: foreign", lambda at: with_tries(at, FOREIGN), local
    yield "local, log.txt: a fifo", lambda at: os.mkfifo(at.own("log.txt")), local
    yield "debug=true, record: a folder", lambda at: as_folder(at.record), ["debug=true"]
    yield "redo=true, record: a folder", lambda at: as_folder(at.record), ["redo=true"]


def with_tries(at: Place, tries: object) -> Path:
    """An earlier attempt that has left this; the path of its checkpoint."""
    path = at.own("attempts/here.1.x/attempt.json")
    tries = tries | {"stopped": True} if isinstance(tries, dict) else tries
    path.write_text(json.dumps(tries).replace("{other}", f"{at.output}-other"))
    return path.with_name("checkpoint.safetensors")


def start(words: list[str], printed: Path) -> multiprocessing.Process:
    """`python -m runs` in a session of its own, forked from this process, so that nothing is imported
    again."""

    def go() -> None:
        os.setsid()
        file = os.open(printed, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for stream, name in ((1, "stdout"), (2, "stderr")):
            os.dup2(file, stream)
            setattr(sys, name, os.fdopen(stream, "w", buffering=1, closefd=False))
        sweep.start_fork_server = lambda several=True: None
        multiprocessing.get_context = lambda _: ForkNow()
        sys.argv = ["runs", *words]
        from runs.__main__ import main

        entry_point(main)

    process = multiprocessing.get_context("fork").Process(target=go)
    process.start()
    return process


def status_of(output: Path, name: str) -> str:
    try:
        return str(read_record(record_path(output, name))["status"])
    except (ValueError, KeyError):
        return "none"


def attempt(
    group: list[tuple], words: list[str], more: list[str], good: list[dict], output: Path
) -> list[str] | None:
    """A command over a run for each case and one that meets nothing; the table's rows. None: they did not
    hold together."""
    many = f"seed={','.join(map(str, range(len(group) + 1)))}"
    command = [*words, f"output={output}", many, *more]
    places = [Place(output, record["id"], record) for record in good[: len(group) + 1]]
    for (_, put, _), at in zip(group, places[1:], strict=True):
        put(at)
    printed = output.with_suffix(".txt")
    begun = time.monotonic()
    process = start(command, printed)
    process.join(PATIENCE + 20 * len(group))
    hung = process.is_alive()
    if hung:
        os.killpg(process.pid, signal.SIGKILL)
        process.join()
    seconds = time.monotonic() - begun
    text = printed.read_text(errors="replace")
    others = [path.read_text(errors="replace") for path in output.glob("sweeps/*/*.log") if path.is_file()]
    untouched, rows = status_of(output, good[0]["id"]), []
    for (name, _, _), at in zip(group, places[1:], strict=True):
        status, log = status_of(output, at.id), run_folder(output, at.id) / "log.txt"
        told = [
            line
            for line in text.splitlines()
            if at.id in line and f", run {at.id}" not in line and "  run " not in line
        ]
        told += [line for line in text.splitlines() if line.startswith("error:")]
        said = [log.read_text(errors="replace")] if log.is_file() else []
        bad = ["HANG"] * hung
        bad += ["TRACEBACK"] * any("Traceback" in each for each in (text, *others, *said))
        bad += [f"EXIT {process.exitcode}"] * (not hung and process.exitcode not in (0, 1, 2))
        bad += ["THE OTHER RUN IS NOT DONE"] * (process.exitcode != 2 and untouched != "done")
        bad += ["REDIRECTED"] * Path(f"{output}-other").exists()
        bad += ["NOT TOLD"] * (status != "done" and not told)
        bad += ["SAYS THAT IT IS DONE"] * (process.exitcode == 0 and status != "done")
        line = (told or [""])[-1].strip().replace(str(output), "OUT").replace(at.id, "RUN")
        rows.append(
            f"| {name} | {process.exitcode} | {status} |"
            f" {'**' + ', '.join(bad) + '** ' if bad else ''}{line} |"
        )
    alone = len(group) == 1
    if not alone and (process.exitcode == 2 or any("**" in row for row in rows)):
        return None
    rows[0] += f" <!-- {len(group)} in {seconds:.0f} s -->"
    return rows


def cases(home: Home) -> Iterator[Case]:
    place = home.place()
    model, glue = save_tiny(place / "bert", "bert"), write_glue(place / "glue")
    words = [
        "model=encoder",
        f"model.path={model}",
        "task=rte",
        f"task.data_dir={glue}",
        "method.rank=8",
        "device=cpu",
    ]
    words += ["train.epochs=1", "train.effective_batch=8", "train.max_length=32", "train.max_steps=2"]
    many = [*words, f"output={place / 'clean'}", f"seed={','.join(map(str, range(GROUP + 1)))}"]
    start(many, place / "clean.txt").join()
    good = [read_record(record_path(place / "clean", run_id(run))) for run in expand(many)]
    groups: list[list[tuple]] = []
    for way in ways():  # those of the same words together, but for what ends a command
        alone = bool(way[2]) or way[0].startswith(ALONE)
        if (
            alone
            or not groups
            or len(groups[-1]) == GROUP
            or groups[-1][0][2]
            or groups[-1][0][0].startswith(ALONE)
        ):
            groups.append([])
        groups[-1].append(way)
    for group in home.some("sweep", groups, 4):
        yield _case(home, group, words, good)


def _case(home: Home, group: list[tuple], words: list[str], good: list[dict]) -> Case:
    folder = home.place()

    def act() -> None:
        rows = attempt(group, words, group[0][2], good, folder / "outputs")
        if rows is None or any("**" in row for row in rows):
            raise WrongError("not all of them hold beside each other" if rows is None else rows[0])

    kind = "records, locks and a run's own files" if not group[0][2] else f"the same with {group[0][2][0]}"
    halves = (lambda: [_case(home, [way], words, good) for way in group]) if len(group) > 1 else None
    more = {"seconds": 120, "patience": PATIENCE + 30 * len(group), "megabytes": 900, "network": True}
    return Case(kind, group[0][0], act, "taken", len(group), folder=folder, halves=halves, **more)
