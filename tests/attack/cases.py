"""A case of the campaign, and how it is run: in a forked child of the warmed process,
watched."""

import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from runs.command.errors import is_user_error

#: What is tried by hand.
HOSTILE = yaml.safe_load(
    Path(__file__).with_name("hostile.yaml").read_text(encoding="utf-8")
)
IMAGE = HOSTILE["targets"]["an image"]
HOSTILE["targets"] |= {f"a {form}": IMAGE | {"form": form} for form in HOSTILE["forms"]}
#: Of the addresses libraries have 2 GB; letters of a refusal.
ADDRESSES, LONGEST_LINE = 6 << 30, 500
#: Programs that the project and its libraries start themselves: for where they run,
#: scores in Java, peft's BOFT, and a browser.
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
    "chromedriver",
)


@dataclass
class Case:
    """act: the attack, in a folder of its own that `make` has filled before. It returns
    where what it gave was taken, and raises the project's errors, or `known` ones,
    where it was refused.

    kind: the row of the table that it counts in. expected: "refused", "taken" or
    "either". tried: how many odd things it gives at once. seconds: of the processor.
    megabytes: by which it may grow. network: whether it may connect."""

    kind: str
    name: str
    act: Callable[[Path], Any]
    make: Callable[[Path], Any] = lambda folder: None
    expected: str = "refused"
    tried: int = 1
    seconds: float = 10.0
    megabytes: float = 500.0
    known: tuple[type[BaseException], ...] = ()
    network: bool = False


#: What a stranger's code, in Python or as words of a shell, leaves in the folder of its
#: case.
CODE, SHELL = "open('canary', 'w').close()", "touch canary"


def run(case: Case, home: Path) -> tuple[str, list[str]]:
    """What came of a case (refused, taken, raised), and what of it is not as it should
    be."""
    folder, (read, write) = Path(tempfile.mkdtemp(dir=home)), os.pipe()
    case.make(folder)
    # a program that a reader of images may start
    (folder / "gs").write_text(f"#!/bin/sh\n{SHELL}\n")
    (folder / "gs").chmod(0o755)
    child = os.fork()
    if not child:
        try:
            os.setsid()
            os.write(write, json.dumps(_watched(case, folder)).encode())
        finally:
            os._exit(0)
    os.close(write)
    if not select.select([read], [], [], 60 + 2 * case.seconds)[0]:
        os.killpg(child, signal.SIGKILL)
    with os.fdopen(read, "rb") as pipe:
        told = pipe.read()
    status = os.waitpid(child, 0)[1]
    outcome, wrong = (
        json.loads(told)
        if told
        else ("raised", [f"ended by signal {status}, or hangs"])
    )
    if (folder / "canary").exists():
        wrong.append("a stranger's code ran")
    shutil.rmtree(folder, ignore_errors=True)
    return outcome, [f"{case.kind}: {case.name}: {words}" for words in wrong]


def _watched(case: Case, folder: Path) -> tuple[str, list[str]]:
    """What a case does, in this process."""
    wrong: list[str] = []
    os.chdir(folder)
    log = folder / "log"
    for stream in (1, 2):
        os.dup2(
            os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND), stream
        )
    os.environ["PATH"] = f"{folder}:{os.environ['PATH']}"
    resource.setrlimit(resource.RLIMIT_CPU, (int(3 * case.seconds),) * 2)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES,) * 2)
    sys.addaudithook(
        lambda event, arguments: _notice(wrong, event, arguments, case.network)
    )
    before, words, outcome = resource.getrusage(resource.RUSAGE_SELF), "", "taken"
    try:
        case.act(folder)
    except BaseException as error:
        outcome, words = "refused", f"{error}"
        if not is_user_error(error) and not isinstance(error, case.known):
            outcome, last = "raised", traceback.extract_tb(error.__traceback__)[-1]
            wrong.append(
                f"{type(error).__name__}: {words[:400]} ({last.filename}:{last.lineno})"
            )
    after = resource.getrusage(resource.RUSAGE_SELF)
    seconds, grown = (
        after.ru_utime - before.ru_utime,
        (after.ru_maxrss - before.ru_maxrss) / 1024,
    )
    sys.stdout.flush()
    sys.stderr.flush()
    if outcome != "raised" and case.expected not in ("either", outcome):
        wrong.append(f"is {outcome}, and should be {case.expected} {words}"[:400])
    if outcome == "refused" and (
        "\n" in words or len(words) > LONGEST_LINE or not words.strip()
    ):
        wrong.append(f"is refused in more than a line, or in none: {words[:100]!r}")
    if seconds > case.seconds or grown > case.megabytes:
        wrong.append(f"took {seconds:.1f} s of the processor and {grown:.0f} MB")
    if "Traceback (most recent" in log.read_text(errors="replace"):
        wrong.append("a traceback on the screen")
    return outcome, wrong[:4]


def _notice(
    wrong: list[str], event: str, arguments: tuple[Any, ...], network: bool
) -> None:
    """Told by Python of what it is about to do: notes what no file from a stranger is
    to bring about."""
    if event == "socket.connect" and not network:
        wrong.append(f"connects to {arguments[1]!r:.100}")
    elif event in (
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "subprocess.Popen",
        "pty.spawn",
    ):
        command = (
            arguments[0]
            if event != "subprocess.Popen"
            else arguments[0] or arguments[1][0]
        )
        if Path(os.fsdecode(command)).name not in (
            *PROGRAMS,
            Path(sys.executable).name,
        ):
            wrong.append(f"starts {command!r:.100}")
    elif event == "pickle.find_class":
        wrong.append(f"unpickles {arguments!r:.100}")
