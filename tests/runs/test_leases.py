"""Leases: one owner at a time, whatever clocks do; a late one is refused."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import ledgers
import pytest
from running import ODD

from runs.errors import UserError
from runs.record import link_or_fail, read_record, record_path, write_record
from runs.sweep import leases
from runs.sweep.leases import Heart, LostLeaseError, Watcher, generations, held, holder_words

LINUX = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="only Linux tells which processes live, and since which boot"
)
LEASE = 20.0


class Clock:
    """In the place of this process's monotonic clock."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(leases.time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    monkeypatch.setattr(leases, "_boot", lambda: None)  # as if the owner were on another machine
    return Clock(monkeypatch)


def look(watcher, clock, seconds, step=1.0):
    """Looks every `step` seconds; the lease, once it is given."""
    for _ in range(int(seconds / step)):
        clock.now += step
        lease = watcher.take("run")
        if lease:
            return lease
    return None


def done(run_id="run", **more):
    return ledgers.record() | {"id": run_id, **more}


def test_a_run_has_one_owner_until_it_is_released(tmp_path):
    first, second = Watcher(tmp_path, LEASE), Watcher(tmp_path, LEASE)
    lease = first.take("run")
    lease.check()
    assert second.take("run") is None
    assert first.take("run") is None  # nor the same executor again
    assert second.holder("run")["pid"] == os.getpid()
    lease.release()
    assert not list(tmp_path.glob("leases/*"))
    assert second.take("run").generation == 1


def test_of_many_that_come_at_once_one_has_it(tmp_path):
    for number in range(40):
        barrier, taken = threading.Barrier(8), []

        def come(number=number, barrier=barrier, taken=taken):
            watcher = Watcher(tmp_path, LEASE)
            barrier.wait()
            taken.append(watcher.take(f"run{number}"))

        threads = [threading.Thread(target=come) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        owners = [lease for lease in taken if lease]
        assert len(owners) <= 1  # two that see each other may both withdraw, and come again
        for lease in owners:
            lease.check()
            assert generations(lease.path.parent, lease.run_id) == [lease.generation]


def test_a_silent_owner_is_followed_and_one_that_lives_is_not(tmp_path, clock):
    owner = Watcher(tmp_path, LEASE).take("run")
    watcher = Watcher(tmp_path, LEASE)
    for beat in range(1, 10):
        owner.beat(beat)
        assert look(watcher, clock, LEASE - 2) is None
    lease = look(watcher, clock, LEASE + 2)
    assert lease.generation == 2
    lease.check()
    with pytest.raises(LostLeaseError, match="taken over by another executor"):
        owner.check()


@pytest.mark.parametrize(("owners", "watchers"), [(LEASE, LEASE / 4), (LEASE / 4, LEASE)])
def test_of_two_times_of_silence_the_longer_counts(owners, watchers, tmp_path, clock):
    """The owner raises its counter as often as its own time asks for."""
    Watcher(tmp_path, owners).take("run")
    watcher = Watcher(tmp_path, watchers)
    assert look(watcher, clock, LEASE - 2) is None
    assert look(watcher, clock, 4).generation == 2


def test_whoever_meets_a_higher_generation_withdraws(tmp_path, clock, monkeypatch):
    """Two watchers follow the same silent owner; one was slow between its look and its lease."""
    Watcher(tmp_path, LEASE).take("run")
    slow, quick = Watcher(tmp_path, LEASE), Watcher(tmp_path, LEASE)
    create, taken = slow._create, []

    def late(path):
        lease = create(path)
        taken.append(quick._create(path.with_suffix(f".{int(path.suffix[1:]) + 1}")))
        return lease

    monkeypatch.setattr(slow, "_create", late)
    assert look(slow, clock, LEASE + 2) is None
    assert {lease.generation for lease in taken} == {3}
    taken[0].check()


def test_only_ones_own_lease_is_released(tmp_path):
    """Another may have the same generation, after a release that this one slept through."""
    owner = Watcher(tmp_path, LEASE).take("run")
    owner.path.unlink()
    other = Watcher(tmp_path, LEASE).take("run")
    assert other.path == owner.path
    owner.release()
    other.check()


def test_a_heart_pauses_for_less_than_a_quarter_of_its_time(tmp_path):
    """A look counts for a quarter at most: of the four that make a lease silent, each would see a beat."""
    heart = Heart(Watcher(tmp_path, LEASE).take("run"), LEASE)
    assert heart._every <= LEASE / 4


def test_wall_clocks_and_file_times_change_nothing(tmp_path, clock, monkeypatch):
    owner = Watcher(tmp_path, LEASE).take("run")
    watcher = Watcher(tmp_path, LEASE)
    monkeypatch.setattr(leases.time, "time", lambda: 1e12)
    os.utime(owner.path, (0, 0))
    assert look(watcher, clock, LEASE - 2) is None
    monkeypatch.setattr(leases.time, "time", lambda: 0.0)
    os.utime(owner.path, (2e9, 2e9))
    assert look(watcher, clock, 4) is not None


def test_a_watcher_that_slept_gives_the_owner_its_chance(tmp_path, clock):
    """A suspended machine wakes both: one long gap between two looks is no proof of silence."""
    owner = Watcher(tmp_path, LEASE).take("run")
    watcher = Watcher(tmp_path, LEASE)
    assert watcher.take("run") is None
    clock.now += 1e6
    assert watcher.take("run") is None
    owner.beat(1)
    clock.now += 1e6
    assert watcher.take("run") is None
    owner.check()


def test_a_late_owner_writes_nothing(tmp_path, clock):
    owner = Watcher(tmp_path, LEASE).take("run")
    lease = look(Watcher(tmp_path, LEASE), clock, LEASE + 3)
    before = lease.path.read_bytes()
    owner.beat(7)
    assert lease.path.read_bytes() == before
    for status in ("done", "failed"):
        with pytest.raises(LostLeaseError):
            owner.write(tmp_path, done() | {"status": status})
    assert not record_path(tmp_path, "run").exists()
    lease.write(tmp_path, done(by="the new owner"))
    owner.release()  # which leaves the new owner's lease be
    lease.check()
    lease.release()
    # Even if it had not looked: the first finished record stays.
    third = Watcher(tmp_path, LEASE).take("run")
    with pytest.raises(LostLeaseError, match="has a record already"):
        third.write(tmp_path, done(by="a third"))
    assert read_record(record_path(tmp_path, "run"))["by"] == "the new owner"


def test_a_counter_never_lands_in_the_lease_of_a_later_owner(tmp_path, clock):
    """Generation 1 is used again after a release: an executor that slept all the while still has the old file
    open."""
    owner = Watcher(tmp_path, LEASE).take("run")
    look(Watcher(tmp_path, LEASE), clock, LEASE + 3).release()
    later = Watcher(tmp_path, LEASE).take("run")
    assert later.path == owner.path
    owner.beat(9)
    assert json.loads(later.path.read_text())["beat"] == "0" * leases.WIDTH
    with pytest.raises(LostLeaseError):
        owner.check()
    later.check()


def test_failed_and_damaged_records_are_replaced(tmp_path):
    lease = Watcher(tmp_path, LEASE).take("run")
    write_record(tmp_path, done() | {"status": "failed"})
    lease.write(tmp_path, done())
    assert read_record(record_path(tmp_path, "run"))["status"] == "done"
    record_path(tmp_path, "run").write_text("{")
    lease.write(tmp_path, done())
    assert read_record(record_path(tmp_path, "run"))["status"] == "done"
    assert [path.name for path in (tmp_path / "records").iterdir()] == ["run.json"]


def test_a_late_failure_never_replaces_a_finished_record(tmp_path, monkeypatch):
    """An owner that has seen an old failed record sleeps; the next owner writes a finished one; then the
    first goes on."""
    late = Watcher(tmp_path, LEASE).take("run")
    write_record(tmp_path, done() | {"status": "failed"})
    look_once = leases._finished

    def sleep_after_the_look(path):
        seen = look_once(path)
        if path.name == "run.json":
            write_record(tmp_path, done(by="the new owner"))
        return seen

    monkeypatch.setattr(leases, "_finished", sleep_after_the_look)
    with pytest.raises(LostLeaseError, match="has a record already"):
        late.write(tmp_path, done() | {"status": "failed"})
    assert read_record(record_path(tmp_path, "run"))["by"] == "the new owner"
    assert [path.name for path in (tmp_path / "records").iterdir()] == ["run.json"]


@LINUX
def test_what_dead_executors_left_of_a_finished_run_is_forgotten(tmp_path):
    """A lease whose owner was killed between the record and the lease's end; garbage; a lease that was half
    made."""
    watcher, folder = Watcher(tmp_path, LEASE), tmp_path / "leases"
    living = watcher.take("lives")
    dead = watcher.take("dead").path
    dead.write_text(dead.read_text().replace(f'"pid": {os.getpid()}', f'"pid": {2**30}'))
    elsewhere = watcher.take("elsewhere").path
    elsewhere.write_text(elsewhere.read_text().replace('"boot": "', '"boot": "another '))
    (folder / "garbage.1").write_bytes(b"\xff")
    (folder / ".dead.1.here.12.34").touch()
    (folder / "dead.2.other").touch()  # no lease's name
    for run_id in ("lives", "dead", "elsewhere", "garbage"):
        watcher.forget(run_id)
    assert {path.name for path in folder.iterdir()} == {living.path.name, elsewhere.name, "dead.2.other"}


@pytest.mark.usefixtures("process")
@LINUX
def test_a_killed_owner_of_this_machine_is_followed_at_once(tmp_path):
    script = (
        f"from runs.sweep.leases import Watcher; Watcher({str(tmp_path)!r}, 1000).take('run');"
        " print('has it', flush=True); input()"
    )
    process = subprocess.Popen(
        [sys.executable, "-uc", script],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "has it\n"
    watcher = Watcher(tmp_path, 1000)
    assert watcher.take("run") is None
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert watcher.take("run").generation == 2


def lease_text(**changes):
    """A lease of this machine whose process is gone, which would be followed at once, with changes that make
    it damaged."""
    owner = {
        "beat": "0" * 12,
        "token": "x",
        "host": "here",
        "pid": 2**22 + 1,
        "started": "7",
        "boot": leases._boot(),
        "lease_seconds": LEASE,
    }
    return json.dumps({key: value for key, value in (owner | changes).items() if value is not ...}).encode()


DAMAGED = [
    *(b"", b"\xff\xfe garbage", b'{"beat": "000000000000"}', b"[1]", b"null", b"[" * 60_000, b"[" * 70_000),
    *(lease_text(pid=value) for value in (..., "x", "../zero", -1, 0, True, 1.5, 10**30)),
    *(lease_text(started=value) for value in (..., ["7"], 7)),
    *(lease_text(lease_seconds=value) for value in (..., "20", 0, -1, leases.LONGEST + 1, float("nan"))),
    *(
        lease_text(**{key: value})
        for key in ("token", "host", "beat", "boot")
        for value in (..., 7, {}, ["x"])
    ),
    lease_text(more=1),
]


@pytest.mark.usefixtures("no_hang")
@pytest.mark.parametrize("content", DAMAGED, ids=lambda content: content[:300].decode(errors="replace")[-60:])
def test_a_damaged_lease_grows_old_like_any_other(content, tmp_path, monkeypatch):
    clock, folder = Clock(monkeypatch), tmp_path / "leases"
    folder.mkdir()
    (folder / "run.1").write_bytes(content)
    (folder / "run.x").write_bytes(content)
    watcher = Watcher(tmp_path, LEASE)
    assert holder_words(watcher.holder("run")) == f"the owner of a damaged lease ({folder / 'run.1'})"
    assert look(watcher, clock, LEASE - 2) is None
    assert look(watcher, clock, 5).generation == 2


@LINUX
def test_the_same_lease_undamaged_is_followed_at_once(tmp_path):
    """Or the damaged ones above would differ from it by more than their damage."""
    path = tmp_path / "leases" / "run.1"
    path.parent.mkdir()
    path.write_bytes(lease_text())
    watcher = Watcher(tmp_path, LEASE)
    assert holder_words(watcher.holder("run")) == f"process {2**22 + 1} on here"
    assert watcher.take("run").generation == 2


@pytest.mark.usefixtures("no_hang")
@pytest.mark.parametrize("kind", [*ODD, "nothing"])
def test_what_is_no_file_in_a_leases_place_grows_old_unopened(kind, tmp_path, clock):
    path = tmp_path / "leases" / "run.1"
    path.parent.mkdir()
    (ODD | {"nothing": lambda path: path.symlink_to("nowhere")})[kind](path)
    watcher = Watcher(tmp_path, LEASE)
    assert look(watcher, clock, LEASE - 2) is None
    assert holder_words(watcher.holder("run")) == f"the owner of a damaged lease ({path})"
    lease = look(watcher, clock, 5)
    assert lease.generation == 2
    lease.check()
    lease.release()
    watcher.forget("run")
    assert list((tmp_path / "leases").iterdir()) == [path]  # it may be somebody's


@pytest.mark.usefixtures("no_hang")
@pytest.mark.parametrize(
    "name", ["007", "01", "0", "٣", "²", "+1", "1_0", " 1", "1.1", "", "1" + "0" * 30, "9" * 200]
)
def test_a_name_that_no_executor_writes_is_no_lease(name, tmp_path):
    folder = tmp_path / "leases"
    folder.mkdir()
    (folder / f"run.{name}").write_bytes(lease_text(boot="another"))
    watcher = Watcher(tmp_path, LEASE)
    assert watcher.free("run")
    lease = watcher.take("run")
    assert lease.generation == 1
    lease.check()
    lease.release()
    assert [path.name for path in folder.iterdir()] == [f"run.{name}"]


def test_the_last_generation_that_there_may_be_is_refused(tmp_path):
    path = tmp_path / "leases" / f"run.{leases.LAST}"
    path.parent.mkdir()
    path.write_bytes(lease_text())
    watcher = Watcher(tmp_path, LEASE)
    for ask in (watcher.take, watcher.free):
        with pytest.raises(UserError, match=f"{path}: no run has had so many owners. Delete it"):
            ask("run")


@pytest.mark.usefixtures("no_hang")
@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_in_a_records_place_stays_and_is_named(kind, tmp_path):
    lease, path = Watcher(tmp_path, LEASE).take("run"), record_path(tmp_path, "run")
    path.parent.mkdir()
    ODD[kind](path)
    with pytest.raises(UserError, match=f"{path}: {kind}.* Move it away, and the same command does the run"):
        lease.write(tmp_path, done())
    assert list(path.parent.iterdir()) == [path]


def test_a_lease_is_undecided_until_it_beats(tmp_path, clock):
    owner, watcher = Watcher(tmp_path, LEASE).take("run"), Watcher(tmp_path, LEASE)
    assert not watcher.undecided("run")
    assert look(watcher, clock, 3) is None
    assert watcher.undecided("run")
    owner.beat(1)
    assert look(watcher, clock, 3) is None
    assert not watcher.undecided("run")


def test_a_heart_beats_and_hears_of_its_loss(tmp_path, monkeypatch):
    lease = Watcher(tmp_path, 0.3).take("run")
    with Heart(lease, 0.3) as heart:
        begun = time.monotonic()
        while json.loads(lease.path.read_text())["beat"] < "000000000003":
            assert time.monotonic() < begun + 30
            time.sleep(0.01)
        assert not heart.lost
        link_or_fail(lease.path.with_suffix(".2"), '{"beat": "000000000000", "token": "another"}')
        while not heart.lost:
            assert time.monotonic() < begun + 60
            time.sleep(0.01)


def test_whoever_wants_it_next_waits_and_says_for_whom(tmp_path, capsys):
    lease = Watcher(tmp_path, 8.0).take("answers")
    threading.Timer(0.5, lease.release).start()
    with held(tmp_path, "answers", 8.0):
        assert f"answers: process {os.getpid()} on " in capsys.readouterr().out
    assert not list((tmp_path / "leases").iterdir())


def test_a_file_is_created_whole_and_once(tmp_path, monkeypatch):
    link_or_fail(tmp_path / "a", "first")
    with pytest.raises(FileExistsError):
        link_or_fail(tmp_path / "a", "second")

    def no_links(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("runs.record.files.os.link", no_links)
    link_or_fail(tmp_path / "b", "first")
    with pytest.raises(FileExistsError):
        link_or_fail(tmp_path / "b", "second")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"a": "first", "b": "first"}
