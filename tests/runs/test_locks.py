"""Locks in folders that other users of the machine can write: what such a user can make
a run do. Two users are two forked processes, for which the tests must be root."""

import contextlib
import os
import shutil
import stat
import tempfile
import time
from pathlib import Path

import pytest

from runs.command.errors import UserError
from runs.machine import gpus
from runs.machine.locks import Lock

pytestmark = pytest.mark.properties

VICTIM, ATTACKER = 12345, 12346
PRECIOUS = "export PATH=/home/victim/bin\n" * 40
needs_root = pytest.mark.skipif(
    os.geteuid() != 0, reason="needs root, to become two other users"
)


def start_as_user(user, function):
    """Starts a process of another user. Its exit code is what the function returns."""
    child = os.fork()
    if child:
        return child
    code = 99
    try:
        os.setgid(user)
        os.setuid(user)
        os.umask(0o022)
        code = function()
    finally:
        os._exit(code)


def result_of(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture
def machine(monkeypatch):
    """A TMPDIR as /tmp is, and a file of the victim's that nobody else can write."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    temporary = root / "tmp"
    temporary.mkdir()
    temporary.chmod(0o1777)
    precious = root / "home" / "bashrc"
    precious.parent.mkdir()
    precious.write_text(PRECIOUS)
    for path in (precious.parent, precious):
        os.chown(path, VICTIM, VICTIM)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(temporary))
    monkeypatch.setattr(gpus, "free_bytes", lambda name: 0.0)
    yield temporary, precious
    shutil.rmtree(root)


def take_often(seconds):
    """Takes a GPU's lock again and again. Returns 0 where it was taken at least once."""
    end = time.monotonic() + seconds
    times_taken = 0
    while time.monotonic() < end:
        with contextlib.suppress(UserError):
            place = gpus.take(["GPU-aaaa"], 1)
            if place:
                place[1].release()
                times_taken += 1
    return 0 if times_taken else 1


def swap_names(folder, target, mode, seconds=10.0):
    """Swaps a regular file and a link under the name of a GPU's lock."""
    folder.mkdir(exist_ok=True)
    folder.chmod(mode)
    name, spare = folder / "GPU-aaaa.0", folder / "spare"
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError):
            spare.touch(0o666)
            spare.chmod(0o666)
            os.replace(spare, name)
            spare.symlink_to(target)
            os.replace(spare, name)
    return 0


@needs_root
@pytest.mark.parametrize("mode", [0o777, 0o1777])
def test_another_user_cannot_make_a_run_overwrite_a_file_of_its_owner(machine, mode):
    """The folder's owner swaps a lock for a link while a run takes it."""
    temporary, precious = machine
    folder = temporary / "vera-bench-devices"
    attacker = start_as_user(ATTACKER, lambda: swap_names(folder, precious, mode))
    while not folder.is_dir():
        time.sleep(0.01)
    victim = start_as_user(VICTIM, lambda: take_often(1.5))
    taken = result_of(victim)
    os.kill(attacker, 9)
    os.waitpid(attacker, 0)
    assert precious.read_text() == PRECIOUS
    # the folder that is not sticky is not used, and so keeps no run off its GPU
    if mode == 0o777:
        assert taken == 0
        own = temporary / f"vera-bench-devices-{VICTIM}"
        assert own.stat().st_uid == VICTIM
        assert stat.S_IMODE(own.stat().st_mode) == 0o700


@needs_root
def test_two_users_share_the_locks_of_a_machine(machine):
    """Whoever comes first creates the folder; a lock that another user created, also
    in a folder of a third one's, keeps a run off a GPU while it is held, no longer."""

    def take_and_wait():
        place = gpus.take(["GPU-aaaa"], 1)
        ready.touch()
        time.sleep(30 if place else 0)
        return 1

    temporary, _ = machine
    ready = temporary / "ready"
    assert result_of(start_as_user(999, lambda: int(not gpus.lock_folder()))) == 0
    holder = start_as_user(ATTACKER, take_and_wait)
    while not ready.exists():
        time.sleep(0.01)
    (lock,) = (temporary / "vera-bench-devices").iterdir()
    assert lock.read_text().startswith(f"{holder} ")
    refused = lambda: int(gpus.take(["GPU-aaaa"], 1) is not None)  # noqa: E731
    assert result_of(start_as_user(VICTIM, refused)) == 0
    os.kill(holder, 9)
    os.waitpid(holder, 0)
    assert result_of(start_as_user(VICTIM, lambda: take_often(0.1))) == 0


@needs_root
def test_where_both_folders_are_other_users_one_line_names_a_way_out(machine):
    temporary, _ = machine
    for name in ("vera-bench-devices", f"vera-bench-devices-{os.geteuid()}"):
        (temporary / name).mkdir()
        os.chown(temporary / name, ATTACKER, ATTACKER)
    with pytest.raises(UserError, match=r"another user's folder.* TMPDIR=$"):
        gpus.take(["GPU-aaaa"], 1)
    assert gpus.take([], 1) is None


def test_a_lock_writes_over_nothing_but_a_holder(tmp_path):
    """A hard link leads to somebody's file, as a name does that was none when it was
    looked at."""
    precious, name = tmp_path / "precious", tmp_path / "lock"
    precious.write_text(PRECIOUS)
    os.link(precious, name)
    lock = Lock(name)
    assert lock.take()
    assert precious.read_text() == PRECIOUS
    assert Lock(name).holder() == "another process"
    lock.release()
    # what a full disk left of a holder is written over
    for beginning in ("", "12", "12 ho"):
        name.unlink()
        name.write_text(beginning)
        assert lock.take()
        assert name.read_text().startswith(f"{os.getpid()} ")
        lock.release()


def test_a_lock_follows_no_link_and_waits_for_no_pipe(tmp_path):
    precious, link, pipe = (tmp_path / name for name in ("precious", "link", "pipe"))
    precious.write_text("1 elsewhere")
    link.symlink_to(precious)
    os.mkfifo(pipe)
    for name in (link, pipe):
        with pytest.raises(OSError, match=r"symbolic links|not a regular file"):
            Lock(name).take()
        assert Lock(name).holder() == "another process"
        assert not Lock(name).is_held()
    assert precious.read_text() == "1 elsewhere"


def test_a_forked_process_neither_keeps_nor_gives_back_its_parents_lock(tmp_path):
    first, second = Lock(tmp_path / "lock"), Lock(tmp_path / "lock")
    assert first.take()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        first.release()
        os.read(reader, 1)
        os._exit(0)
    assert second.is_held()
    first.release()
    assert not second.is_held()
    os.write(writer, b"x")
    assert result_of(child) == 0


def test_a_lock_on_a_removed_file_keeps_nobody_off(tmp_path, monkeypatch):
    """A file that is removed between its opening and its locking."""
    import fcntl

    path = tmp_path / "lock"
    lock_file = fcntl.flock

    def remove_and_lock(descriptor, operation):
        if operation & fcntl.LOCK_EX and path.exists():
            path.unlink()
        lock_file(descriptor, operation)

    with monkeypatch.context() as patch:
        patch.setattr("runs.machine.locks.fcntl.flock", remove_and_lock)
        assert not Lock(path).take(0)
    lock = Lock(path)
    assert lock.take(0)
    assert Lock(path).is_held()
    lock.release()
