"""A case of the campaign, and how it is run: in a forked child of the warmed process, with limits, and
watched."""

import gc
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runs.errors import is_users

#: Within which a case is done, of the processor; how long it is waited for; by how much a process may grow.
SECONDS, PATIENCE, MEGABYTES = 10.0, 60.0, 500.0
#: Characters that the one line of a refusal may have.
LONGEST_LINE = 500
#: Programs that the project and its libraries start themselves: for where they run, scores in Java, and
#: peft's BOFT.
PROGRAMS = (
    "git",
    "uname",
    "java",
    "ldconfig",
    "gcc",
    "c++",
    "lscpu",
    "ninja",
    "fc-list",
    "make",
    "chromedriver",
)


class WrongError(AssertionError):
    """What a case has found that does not hold, in words."""


@dataclass
class Case:
    """act: the attack; it returns where what it gave was taken, raises the project's errors where it was
    refused.

    kind: the row of the table that it counts in. expected: "refused", "taken" or "either". tried: how many
    odd things it gives at once. halves: the same with each half of them, to find those that it failed on.
    known: error classes beside the project's own which are a refusal, too. network: whether it may connect.
    folder: removed afterwards.
    """

    kind: str
    name: str
    act: Callable[[], Any]
    expected: str = "refused"
    tried: int = 1
    seconds: float = SECONDS
    patience: float = PATIENCE
    megabytes: float = MEGABYTES
    known: tuple[type[BaseException], ...] = ()
    network: bool = False
    folder: Path | None = None
    halves: Callable[[], "list[Case]"] | None = None


@dataclass
class Row:
    """What came of the cases of a kind."""

    tried: int = 0
    refused: int = 0
    taken: int = 0
    problems: list[str] = field(default_factory=list)


class Home:
    """The campaign's folder: places for cases, and the canary, which nobody writes to unless a stranger's
    code runs."""

    def __init__(self, path: Path, seed: int, short: bool) -> None:
        self.path, self.seed, self.short, self.number = path, seed, short, 0
        self.canary, self.bin = path / "canary", path / "bin"
        for folder in (self.canary, self.bin, path / "log"):
            folder.mkdir(parents=True)
        self.code = f"open({str(self.canary / 'ran')!r}, 'w').close()"  # a stranger's code, in Python
        self.shell = f"touch {self.canary}/ran"
        for name in ("gs", "convert"):  # programs that a reader of files may start
            (self.bin / name).write_text(f"#!/bin/sh\n{self.shell}\n")
            (self.bin / name).chmod(0o755)

    def dice(self, part: str) -> random.Random:
        return random.Random(f"{self.seed} {part}")

    def some(self, part: str, every: list[Any], count: int) -> list[Any]:
        """All of them; of a short campaign this many, drawn."""
        return every if not self.short or len(every) <= count else self.dice(part).sample(every, count)

    def place(self) -> Path:
        self.number += 1
        folder = self.path / f"case {self.number}"
        folder.mkdir()
        return folder

    def file(self, name: str, content: bytes | str) -> Path:
        """A file in a folder of its own."""
        path = self.place() / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return path


# --- running


def thinned(cases: Iterator[Case], dice: random.Random, share: float) -> Iterator[Case]:
    """About this share of the cases, and those that are sound or look back."""
    for case in cases:
        if dice.random() < share or case.kind.startswith(("sound", "a sound", "afterwards")):
            yield case
        elif case.folder is not None:
            shutil.rmtree(case.folder, ignore_errors=True)


def run(cases: Iterator[Case], home: Home, workers: int, tell: Callable[[str], None]) -> dict[str, Row]:
    """Runs cases, some at a time, each in its child. Returns what came of them by kind."""
    rows: dict[str, Row] = {}
    waiting: list[Case] = []
    running: dict[int, tuple[Case, int, float]] = {}
    failed: dict[str, int] = {}
    done = False
    gc.collect()
    gc.freeze()  # what is there already: a child that looks at it would copy it
    while True:
        while len(running) < workers and not (done and not waiting):
            case = waiting.pop() if waiting else next(cases, None)
            if case is None:
                done = True
                continue
            child, end = _start(case, home)
            running[end] = case, child, time.monotonic()
        if not running:
            return rows
        ready = select.select(list(running), [], [], 0.5)[0]
        for end, (case, child, since) in list(running.items()):
            told = _read(end) if end in ready else b""
            if not told and end not in ready and time.monotonic() - since < case.patience:
                continue
            if end not in ready:
                os.killpg(child, signal.SIGKILL)
            status = os.waitpid(child, 0)[1]
            os.close(end)
            del running[end]
            ran = [path.name for path in home.canary.iterdir()]
            for name in ran:
                (home.canary / name).unlink()
            row = rows.setdefault(case.kind, Row())
            outcome, problems = _judge(case, told, status, ran)
            if case.halves is not None and problems and failed.get(case.kind, 0) < 3:
                waiting += reversed(case.halves())  # which say more, and are counted in its place
            else:
                row.tried += case.tried
                row.refused += case.tried * (outcome == "refused")
                row.taken += case.tried * (outcome == "taken")
                failed[case.kind] = failed.get(case.kind, 0) + bool(problems)
                row.problems += problems
                for words in problems:
                    tell(f"PROBLEM: {words}")
            if case.folder is not None:
                shutil.rmtree(case.folder, ignore_errors=True)


def _read(end: int) -> bytes:
    told = b""
    while part := os.read(end, 2**16):
        told += part
    return told


def _start(case: Case, home: Home) -> tuple[int, int]:
    read, write = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child:
        os.close(write)
        return child, read
    try:
        os.close(read)
        os.setsid()
        told = _watched(case, home)
        os.write(write, json.dumps(told).encode())
    finally:
        os._exit(0)


def pages(number: int) -> float:
    """Megabytes of a process's memory: 0: its addresses; 1: what is resident."""
    return int(Path("/proc/self/statm").read_text().split()[number]) * resource.getpagesize() / 2**20


def _watched(case: Case, home: Home) -> dict[str, Any]:
    """What a case does, in this process."""
    strange: list[str] = []
    log = home.path / "log" / str(os.getpid())
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(output, stream)
    os.environ["PATH"] = f"{home.bin}:{os.environ['PATH']}"
    resource.setrlimit(resource.RLIMIT_CPU, (int(3 * case.seconds),) * 2)
    if case.megabytes < float("inf"):
        resource.setrlimit(resource.RLIMIT_AS, (int((pages(0) + 8 * case.megabytes) * 2**20),) * 2)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.addaudithook(lambda event, arguments: _notice(strange, event, arguments, case, home))
    before, begun = pages(1), time.process_time()
    try:
        case.act()
        outcome, words = "taken", ""
    except WrongError as error:
        outcome, words = "wrong", str(error)
    except BaseException as error:
        refused = is_users(error) or isinstance(error, case.known)
        outcome, words = "refused" if refused else "raised", f"{error}" if refused else _short(error)
    seconds = time.process_time() - begun
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024 - before
    sys.stdout.flush()
    sys.stderr.flush()
    if "Traceback (most recent" in log.read_text(errors="replace"):
        strange.append("a traceback on the screen")
    log.unlink()
    return {
        "outcome": outcome,
        "words": words[:4000],
        "seconds": seconds,
        "grown": grown,
        "strange": strange[:3],
    }


def _short(error: BaseException) -> str:
    where = [
        f"{Path(frame.filename).name}:{frame.lineno}" for frame in traceback.extract_tb(error.__traceback__)
    ][-3:]
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]} (at {', '.join(where)})"


def _notice(strange: list[str], event: str, arguments: tuple[Any, ...], case: Case, home: Home) -> None:
    """Told by Python of what it is about to do: notes what no file from a stranger is to bring about."""
    if event == "socket.connect" and not case.network:
        strange.append(f"connects to {arguments[1]!r:.100}")
    elif event in ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pty.spawn"):
        command = arguments[0] if event != "subprocess.Popen" else arguments[0] or arguments[1][0]
        if Path(os.fsdecode(command)).name not in (*PROGRAMS, Path(sys.executable).name):
            strange.append(f"starts {command!r:.100}")
    elif event == "pickle.find_class":
        strange.append(f"unpickles {arguments!r:.100}")


def _judge(case: Case, told: bytes, status: int, ran: list[str]) -> tuple[str, list[str]]:
    """What came of a case, and what of it is not as it should be."""
    name = f"{case.kind}: {case.name}"
    if not told:
        signalled = (
            f"was ended by signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else "ended without a word"
        )
        why = f"hangs for more than {case.patience:.0f} s" if status == signal.SIGKILL else signalled
        return "raised", [f"{name}: {why}"]
    found = json.loads(told)
    outcome, words, problems = (
        found["outcome"],
        found["words"],
        [f"{name}: {words}" for words in found["strange"]],
    )
    if outcome in ("wrong", "raised"):
        problems.append(f"{name}: {words}")
    elif case.expected not in ("either", outcome):
        problems.append(f"{name}: is {outcome}, and should be {case.expected} {words}"[:400])
    if outcome == "refused" and ("\n" in words or len(words) > LONGEST_LINE or not words.strip()):
        problems.append(
            f"{name}: is refused in {words.count(chr(10)) + 1} lines, {len(words)} characters:"
            f" {words[:100]!r}"
        )
    if found["seconds"] > case.seconds:
        problems.append(f"{name}: took {found['seconds']:.1f} s of the processor")
    if found["grown"] > case.megabytes:
        problems.append(f"{name}: took {found['grown']:.0f} MB")
    if ran:
        problems.append(f"{name}: a stranger's code ran")
    return outcome, problems
