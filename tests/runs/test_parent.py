"""A process ends with the one that started it, also while it starts: each test kills one with SIGKILL and
looks who is left."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest
from running import ROOT

pytestmark = pytest.mark.determinism

#: Seconds that what is left may take to end: a slow machine's, and far from what the children here would live
#: for.
PATIENCE = 5
#: A process that forks runs, and has begun one, which sleeps before it does anything of ours.
RUNS = """
import multiprocessing, multiprocessing.forkserver, time
if __name__ == "__main__":
    from runs.fork_server import start_fork_server
    start_fork_server()
    run = multiprocessing.get_context("forkserver").Process(target=time.sleep, args=(60,))
    run.start()
    print(multiprocessing.forkserver._forkserver._forkserver_pid, run.pid, flush=True)
    run.join()
    print(run.exitcode, flush=True)
    time.sleep(60)
"""


def first_import(folder: Path, code: str) -> None:
    """What the server does when it begins to import: see runs/preload.py."""
    (folder / "sklearn").mkdir()
    (folder / "sklearn" / "__init__.py").write_text(code)


class Family:
    """A Python process that runs `code`, and all that comes of it: told by a variable of their
    environment."""

    def __init__(self, code: str, folder: Path, **environment: str) -> None:
        (folder / "script.py").write_text(code)
        self.mark = f"FAMILY={uuid.uuid4().hex}"
        name, _, value = self.mark.partition("=")
        places = os.pathsep.join([str(folder), str(ROOT)])
        self.process = subprocess.Popen(
            [sys.executable, str(folder / "script.py")],
            env=os.environ | {name: value, "PYTHONPATH": places} | environment,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def members(self, word: str = "") -> list[int]:
        """Those that live, with this word in their command line."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (path / "environ").read_bytes().split(b"\0"):
                    found += [int(path.name)] if word in (path / "cmdline").read_text() else []
            except OSError:  # it has ended, or is somebody else's
                continue
        return found

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def assert_gone(self) -> None:
        """What is left ends by itself within PATIENCE; this test leaves nothing either way."""
        end = time.monotonic() + PATIENCE
        while (left := self.members()) and time.monotonic() < end:
            time.sleep(0.05)
        words = [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:200] for pid in left]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
        assert not words


@pytest.fixture
def family(process, tmp_path):
    if not Path("/proc/self/environ").exists():
        pytest.skip("this system does not tell which process came of which")
    begun = []

    def begin(code, **environment):
        begun.append(Family(code, tmp_path, **environment))
        return begun[-1]

    yield begin
    for one in begun:
        one.kill()
        one.process.stdout.close()
        for pid in one.members():
            os.kill(pid, signal.SIGKILL)


def wait_for(there, seconds=60):
    end = time.monotonic() + seconds
    while not (found := there()):
        assert time.monotonic() < end
        time.sleep(0.01)
    return found


@pytest.mark.parametrize("imports", [False, True])
def test_the_server_that_runs_are_forked_from_ends_while_it_starts(imports, family, tmp_path):
    """The first thing that it imports takes a minute here: the server does not look after its parent by
    itself until then."""
    first_import(tmp_path, f"import time; open({str(tmp_path / 'importing')!r}, 'w').close(); time.sleep(60)")
    parent = family(RUNS)
    wait_for((tmp_path / "importing").exists if imports else lambda: parent.members("forkserver"))
    parent.kill()
    parent.assert_gone()


@pytest.fixture
def light(tmp_path):
    """A server that gives up its imports at the first one, which spares seconds."""
    first_import(tmp_path, "raise ImportError")


def test_all_end_with_who_does_the_runs(family, light):
    parent = family(RUNS)
    assert len(parent.process.stdout.readline().split()) == 2
    assert len(parent.members()) == 4  # and the one that multiprocessing keeps for shared memory
    parent.kill()
    parent.assert_gone()


def test_a_run_ends_with_the_server_even_before_it_has_begun(family, light):
    """Its executor hears of the server's end, and would do the run again beside it."""
    parent = family(RUNS)
    server, run = map(int, parent.process.stdout.readline().split())
    os.kill(server, signal.SIGKILL)
    assert parent.process.stdout.readline() == "255\n"
    wait_for(lambda: run not in parent.members(), PATIENCE)
