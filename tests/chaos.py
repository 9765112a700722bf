"""A fault campaign: SIGKILLs at random times over sweeps of tiny runs, and what else goes wrong with
machines.

python tests/chaos.py [N] [SEED]      N kills (100); make chaos does the same

First a sweep that nobody disturbs. Then, in other folders, commands for the same runs are started again and
again and killed, two at a time among them; between them their files are damaged. When a folder has every
record, the next one is begun. At the end of each the plain command has to end with exit code 0, and its
records, adapters and texts have to be those of the undisturbed sweep, with nothing else left. What happened
stands in docs/chaos.md.
"""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from chaos_report import LATE, State, Tally, differences, finished, page, state_of
from tiny import save_gpt2, save_tiny, write_e2e, write_glue

from runs.record import records_folder
from runs.sweep.leases import leases_folder

ROOT = Path(__file__).parent.parent
LEASE = 2  # seconds
#: Who is killed while a run does what, and how often of 100 times. "run": its own process; "server": what it
#: is forked from.
AIMS = {
    "run": {"loading": 2, "training": 9, "evaluating": 8, "writing a checkpoint": 8, "writing an adapter": 5}
    | {"decoding": 10, "scoring": 2, "writing a record": 9, "clearing up": 3},
    "executor": {
        "starting": 1,
        "training": 3,
        "evaluating": 2,
        "decoding": 2,
        "writing a record": 3,
        "clearing up": 2,
    }
    | {"writing a lease": 4, "giving back a lease": 3, "writing progress": 2, "writing attempts": 2},
    "command": {"starting": 2, "training": 2, "decoding": 1, "writing the sweep's file": 2},
    "server": {"loading": 2, "training": 2},
    "everything": {"training": 3, "decoding": 3, "writing a record": 2, "writing a checkpoint": 1},
}
#: Launchers of the commands that are on at once.
ROUNDS = (["serial"], ["local"], ["serial", "local"], ["serial", "serial"], ["local", "local"])
#: For how many kills a command, or two, are left running.
KILLS_A_ROUND = 7


@dataclass
class Process:
    """A process of the campaign, whose role is told by its command line."""

    pid: int
    role: str
    parent: int


class Campaign:
    def __init__(self, home: Path, number: int, seed: int) -> None:
        self.home, self.number, self.seed = home, number, seed
        self.dice, self.tally, self.begun = random.Random(seed), Tally(), time.monotonic()
        for name in ("phase", "bin", "tmp", "logs"):
            (home / name).mkdir(parents=True)
        # Without Java: a tenth of a second of scoring instead of ten.
        for name in ("git", "uname"):
            if found := shutil.which(name):
                (home / "bin" / name).symlink_to(found)
        self.logs: dict[int, Path] = {}
        self.sweeps = self.material()
        wanted = [
            (role, phase)
            for role, phases in AIMS.items()
            for phase, times in phases.items()
            for _ in range(times)
        ]
        self.aims: list[tuple[str, str]] = []
        while len(self.aims) < number:
            self.aims += self.dice.sample(wanted, len(wanted))
        del self.aims[number:]

    def material(self) -> list[list[str]]:
        """Tiny models and their data; the words of two commands: classifiers with dropout, and a decoder that
        writes texts."""
        bert = save_tiny(
            self.home / "bert", "bert", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1
        )
        gpt2, glue, e2e = (
            save_gpt2(self.home / "gpt2"),
            write_glue(self.home / "glue"),
            write_e2e(self.home / "e2e"),
        )
        shared = ["device=cpu", "tracking=off", f"lease_seconds={LEASE}", "checkpoint_minutes=0.002"]
        classify = [
            f"model.path={bert}",
            "model=encoder",
            "task=rte",
            f"task.data_dir={glue}",
            "method=vera,lora,adalora,full",
        ]
        classify += [
            "seed=0,1",
            "train.epochs=6",
            "train.effective_batch=8",
            "train.max_length=32",
            "train.lr=1e-2",
        ]
        write = [
            f"model.path={gpt2}",
            "model=decoder",
            "task=e2e",
            f"task.data_dir={e2e}",
            "method=vera,lora",
            "seed=0,1",
        ]
        write += [
            "task.beams=3",
            "task.max_new_tokens=48",
            "train.epochs=4",
            "train.effective_batch=4",
            "train.lr=0.3",
        ]
        write += ["train.max_length=64", "keep=both", "adapter_precision=fp16", "eval_batch=3"]
        return [[*classify, "eval_batch=2", *shared], [*write, *shared]]

    # --- commands and their processes

    def start(
        self,
        words: list[str],
        output: Path,
        slow: float = 0.02,
        clock: bool = False,
        home: Path | None = None,
    ) -> subprocess.Popen:
        """A command in a session of its own. slow: how far windows are widened, in seconds; 0: nothing is
        changed."""
        self.tally.commands += 1
        places = os.pathsep.join([*([str(ROOT / "tests" / "chaos_shim")] if slow else []), str(ROOT)])
        environment = os.environ | {
            "PYTHONPATH": places,
            "CHAOS_HOME": str(home or self.home),
            "CHAOS_SLOW": str(slow),
        }
        environment |= {
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "TMPDIR": str(self.home / "tmp"),
            "HF_HUB_OFFLINE": "1",
        }
        environment |= {"OMP_NUM_THREADS": "1", "PATH": str(self.home / "bin")} | (
            {"CHAOS_CLOCK": "1"} if clock else {}
        )
        command = [sys.executable, "-m", "runs", *words, f"output={output}"]
        path = self.home / "logs" / f"{self.tally.commands:03d}.txt"
        with open(path, "wb") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )
        self.logs[process.pid] = path
        return process

    def processes(self) -> list[Process]:
        """Those of the campaign that live, however they came to be: each has a file that says its phase."""
        found, mark = [], f"CHAOS_HOME={self.home}\0".encode()
        for path in (self.home / "phase").iterdir():
            proc = Path("/proc") / path.name
            try:
                words = (proc / "cmdline").read_bytes().decode().split("\0")
                if mark not in (proc / "environ").read_bytes():
                    raise ProcessLookupError
                parent = int((proc / "stat").read_text().rpartition(")")[2].split()[1])
            except (OSError, IndexError):
                path.unlink(missing_ok=True)
                continue
            kinds = {
                "executor": "runs.sweep.executor" in words or "launcher=serial" in words,
                "command": "runs" in words,
            }
            kinds |= {"server": any("forkserver" in word for word in words), "helper": True}
            role = next(kind for kind, fits in kinds.items() if fits)
            found.append(Process(int(path.name), role, parent))
        for process in found:  # a server says nothing of itself; the runs' processes that it forks do
            if process.role == "server" and self.phase(process.pid) != "starting":
                process.role = "run"
        return [process for process in found if process.role != "helper"]

    def phase(self, pid: int) -> str:
        try:
            return (self.home / "phase" / str(pid)).read_text().strip()
        except OSError:
            return ""

    def phase_of(self, process: Process, every: list[Process]) -> str:
        """What a process does: what it writes itself, or else what a run below it does."""
        own, below = self.phase(process.pid), [process.pid]
        if process.role == "run" or own.startswith(("writing", "giving", "clearing")):
            return own
        for _ in range(3):
            below += [other.pid for other in every if other.parent in below and other.pid not in below]
        runs = [other for other in every if other.role == "run" and other.pid in below]
        return self.phase(runs[0].pid) if runs else own

    # --- disturbances

    def kill(self, commands: list[subprocess.Popen], closing: bool) -> bool:
        """Waits until one of the next aims is met, and kills. closing: everything at once. False: every
        command has ended."""
        end = time.monotonic() + 3  # what comes next will do after that
        coming = self.aims[:15] if not closing else [aim for aim in self.aims if aim[0] == "everything"][:3]
        while True:
            every = self.processes()
            self.watch_leases()
            late = time.monotonic() > end
            if all(command.poll() is not None for command in commands):
                return False
            met = [(p, (p.role, self.phase_of(p, every))) for p in every]
            if closing:
                met = [(p, ("everything", phase)) for p, (role, phase) in met if role == "run"]
            chosen = [(p, aim) for p, aim in met if aim in coming]
            chosen = chosen or [
                (p, aim) for p, aim in met if late and p.role == "run" and aim[1] != "loading"
            ]
            if chosen:
                break
            if late and closing:
                return True
            time.sleep(0.002)
        process, aim = self.dice.choice(chosen)
        time.sleep(self.dice.random() * 0.01)
        phase = self.phase_of(process, every)
        for victim in [process, *(every if closing else [])]:
            self.signal(victim.pid, signal.SIGKILL)
        target = aim[0]
        self.aims.remove(
            aim if aim in self.aims else next((a for a in self.aims if a[0] == target), self.aims[0])
        )
        self.tally.kills[target, phase or "not known"] += 1
        seconds = time.monotonic() - self.begun
        print(
            f"{seconds:4.0f} s  kill {self.tally.kills.total():3d}/{self.number}: {target}, {phase}",
            flush=True,
        )
        return True

    def signal(self, pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def leases(self) -> list[tuple[str, dict]]:
        found = []
        for path in leases_folder(self.output).glob("[!.]*"):
            with contextlib.suppress(OSError, ValueError):
                found.append((path.name, json.loads(path.read_text())))
        return found

    def watch_leases(self) -> None:
        """Counts runs that were taken over: a lease of a later generation, with a token not seen yet."""
        for name, owner in self.leases():
            if not name.endswith(".1"):
                self.tally.takeovers.add(owner["token"])

    def stop_an_executor(self) -> bool:
        """SIGSTOP for longer than its lease, until another has its run; then SIGCONT: it has to give up.
        False: none was on."""
        every = self.processes()
        holders = {owner["pid"]: name for name, owner in self.leases()}
        executors = [
            p
            for p in every
            if p.pid in holders and self.phase_of(p, every) in ("training", "evaluating", "decoding")
        ]
        if not executors or len({p.pid for p in every if p.role == "executor"}) < 2:
            return False
        executor = self.dice.choice(executors)
        run_id, _, generation = holders[executor.pid].partition(".")
        servers = [p.pid for p in every if p.role == "server" and p.parent == executor.pid]
        runs = [p.pid for p in every if p.role == "run" and p.parent in servers]
        # A run that goes on alone is refused, too
        stopped = [executor.pid, *(runs if self.dice.random() < 0.5 else [])]
        for pid in stopped:
            self.signal(pid, signal.SIGSTOP)
        record, end = records_folder(self.output) / f"{run_id}.json", time.monotonic() + 12 * LEASE
        taken = False
        while not taken and time.monotonic() < end and not record.is_file():
            time.sleep(0.01)
            self.watch_leases()
            taken = any(
                name.startswith(f"{run_id}.") and name != f"{run_id}.{generation}"
                for name, _ in self.leases()
            )
        time.sleep(self.dice.random())
        for pid in stopped:
            self.signal(pid, signal.SIGCONT)
        end = time.monotonic() + 4 * LEASE
        while time.monotonic() < end and any(p.pid in runs for p in self.processes()):
            time.sleep(0.05)
        gone = not any(p.pid in runs for p in self.processes())
        outcome = "refused" if taken and gone else LATE if not taken else "went on"
        if outcome == "went on":
            self.tally.problem(f"a late owner of run {run_id} went on")
        self.tally.disturbances["an executor is stopped for longer than its lease, then goes on"] += 1
        self.tally.stops.append(outcome)
        print(f"stopped the executor of run {run_id} ({len(stopped)} processes): {outcome}", flush=True)
        return True

    def damage(self) -> None:
        """Damages one thing of each kind that is there, the kinds that had least of it first."""
        runs, records = self.output / "runs", list(records_folder(self.output).glob("*.json"))
        begun = [path.parent for path in runs.glob("*/checkpoint.safetensors")]
        unfinished = [
            path
            for path in runs.glob("*")
            if not (records_folder(self.output) / f"{path.name}.json").is_file()
        ]
        noise = self.dice.randbytes(200)
        kinds = {
            "a checkpoint is cut short": [(folder / "checkpoint.safetensors", self.cut) for folder in begun],
            "a checkpoint is filled with garbage": [
                (folder / "checkpoint.safetensors", noise) for folder in begun
            ],
            "a bit of a checkpoint flips": [
                (folder / "checkpoint.safetensors", self.flip) for folder in begun
            ],
            "a finished record is cut short": [(path, self.cut) for path in records],
            "a finished record is filled with garbage": [(path, noise) for path in records],
            "decoded texts are cut short": [
                (path, self.cut) for folder in unfinished for path in folder.glob("decoded_*")
            ],
            "garbage in a lease": [
                (leases_folder(self.output) / f"{folder.name}.1", noise) for folder in unfinished
            ],
            "garbage in attempts.json": [(folder / "attempts.json", noise) for folder in unfinished],
            "JSON of another shape in attempts.json": [
                (folder / "attempts.json", b'{"ended": 1, "settings": [], "deviations": {}}')
                for folder in unfinished
            ],
            "garbage in progress.json": [(folder / "progress.json", noise) for folder in unfinished],
        }
        counts = {kind: self.tally.disturbances[kind] for kind, places in kinds.items() if places}
        possible = sorted(
            (count, self.dice.random(), kind)
            for kind, count in counts.items()
            if count < 1 + self.number // 30
        )
        for _, _, kind in possible[:2]:
            path, how = self.dice.choice(kinds[kind])
            path.write_bytes(how if isinstance(how, bytes) else how(path.read_bytes()))
            self.tally.disturbances[kind] += 1
            print(f"{kind} ({path.relative_to(self.output)})", flush=True)

    def cut(self, content: bytes) -> bytes:
        return content[: self.dice.randrange(len(content) or 1)]

    def flip(self, content: bytes) -> bytes:
        place = self.dice.randrange(len(content) // 4, 3 * len(content) // 4)
        return content[:place] + bytes([content[place] ^ 1 << self.dice.randrange(8)]) + content[place + 1 :]

    # --- the campaign

    def go(self) -> None:
        self.output = self.reference = self.home / "reference"
        for words in self.sweeps:
            if self.start(words, self.reference, slow=0).wait() != 0:
                raise SystemExit(f"the undisturbed sweep failed: {self.home}/logs")
        self.expected = state_of(self.reference)
        print(f"{len(self.expected[0])} runs, undisturbed", flush=True)
        disk = threading.Thread(target=self.full_disk)  # which waits most of the time
        disk.start()
        lap = 0
        while self.aims:
            lap += 1
            self.output = self.home / "outputs" / str(lap)
            for number in range(1000):
                if not self.aims or len(finished(self.output)) == len(self.expected[0]):
                    break
                self.round(ROUNDS[(number + lap) % len(ROUNDS)])
            self.conclude(self.sweeps, self.expected, self.output, f"folder {lap}")
        disk.join()

    def round(self, launchers: list[str]) -> None:
        """Some commands at once, disturbed, and damage after them."""
        commands = []
        first = self.dice.randrange(2) if len(finished(self.output)) < 6 else 1
        for number, launcher in enumerate(launchers):
            # Two that race do the same sweep, or one each.
            words = self.sweeps[(first + (number and self.dice.random() < 0.3)) % 2]
            # In another order each time, or the kills would meet the first runs alone.
            words = [self.shuffled(word) if word.startswith(("method=", "seed=")) else word for word in words]
            clock = self.dice.random() < 0.5
            self.tally.disturbances["a command whose clock jumps"] += clock
            commands.append(
                self.start(
                    [*words, f"launcher={launcher}", "launcher.runs_per_device=2"],
                    self.output,
                    clock=clock,
                )
            )
        self.tally.disturbances["two commands race"] += len(commands) > 1
        print(f"commands: {' and '.join(launchers)}, {len(finished(self.output))} runs done", flush=True)
        to_stop = len(commands) > 1
        for number in range(KILLS_A_ROUND):
            if to_stop and number and self.dice.random() < 0.5:
                to_stop = not self.stop_an_executor()
            if not self.aims or not self.kill(commands, closing=number == KILLS_A_ROUND - 1):
                break
            time.sleep(self.dice.random() * 0.6)
        for command in commands:  # what still lives is asked to stop, and saves
            command.terminate()
        self.await_end(commands)
        if self.aims:
            self.damage()

    def shuffled(self, word: str) -> str:
        key, _, values = word.partition("=")
        choices = values.split(",")
        return f"{key}={','.join(self.dice.sample(choices, len(choices)))}"

    def await_end(self, commands: list[subprocess.Popen]) -> None:
        """Every process ends by itself within seconds of its command."""
        for command in commands:
            try:
                self.tally.endings[command.wait(60)] += 1
            except subprocess.TimeoutExpired:
                self.tally.problem("a command did not end within 60 s of SIGTERM")
        end = time.monotonic() + 15
        while (left := self.processes()) and time.monotonic() < end:
            time.sleep(0.05)
        for process in left:
            words = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode().replace("\0", " ")
            self.tally.problem(
                f"a process outlived its command: {process.role}, {self.phase(process.pid)}: {words[:200]}"
            )
            self.signal(process.pid, signal.SIGKILL)

    def full_disk(self) -> None:
        """A disk that is full before a command, and again while a run trains: the command waits for room, and
        ends well."""
        home = self.home / "disk"
        output = home / "outputs" / "disk"
        for folder in (output, home / "phase"):
            folder.mkdir(parents=True)
        real = (
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", output], capture_output=True
            ).returncode
            == 0
        )
        full = output / "ballast" if real else home / "full"  # the latter: see chaos_shim
        kind = "a tmpfs" if real else "os.fsync that fails"
        words = [word for word in self.sweeps[0] if not word.startswith(("seed=", "method="))] + [
            "method=vera",
            "seed=0,1",
        ]
        try:
            fill(full, real)
            command = self.start(words, output, slow=0 if real else 0.001, home=home)
            log = self.logs[command.pid]
            for number, when in enumerate(("before the start", "while a run trains"), 1):
                while command.poll() is None and log.read_text().count("No space left") < number:
                    time.sleep(0.02)
                full.unlink()
                self.tally.disturbances[f"a full disk ({kind}) {when}"] += 1
                print(
                    f"full disk {when}: the command {'waits' if command.poll() is None else 'has ended'}",
                    flush=True,
                )
                while (
                    number == 1
                    and command.poll() is None
                    and not list(output.glob("runs/*/checkpoint.safetensors"))
                ):
                    time.sleep(0.002)
                if number == 1:
                    fill(full, real)
            if code := command.wait():
                self.tally.problem(f"a full disk: the command ended with exit code {code}")
            ours = [path.stem for path in records_folder(output).glob("*.json")]
            records, files = self.expected
            expected = (
                {i: r for i, r in records.items() if i in ours},
                {n: c for n, c in files.items() if n[:12] in ours},
            )
            if len(ours) != 2:
                self.tally.problem(f"after a full disk {len(ours)} of 2 records are there")
            self.conclude([words], expected, output, "full disk")
        finally:
            if real:
                subprocess.run(["umount", "-l", output], check=False)

    # --- the verdict

    def conclude(self, sweeps: list[list[str]], expected: State, output: Path, name: str) -> None:
        """The plain command once more; then records and files are compared, and what is left is looked
        for."""
        for words in sweeps:
            if code := self.start(words, output, slow=0).wait():
                self.tally.problem(f"{name}: the plain command ended with exit code {code}")
        for words in differences(expected, output):
            self.tally.problem(f"{name}: {words}")
        for path in [*(self.home / "logs").glob("*.txt"), *output.glob("sweeps/*/executor-*.log")]:
            if "Traceback" in path.read_text(errors="replace"):
                self.tally.problem(f"{name}: a traceback in {path.relative_to(self.home)}")
        print(f"{name}: {len(expected[0])} records and {len(expected[1])} files compared", flush=True)


def fill(full: Path, real: bool) -> None:
    """Takes all the room there is on a small disk, or says that there is none."""
    with contextlib.suppress(OSError), open(full, "wb", buffering=0) as file:
        while real:
            file.write(bytes(4096))


def main(arguments: list[str]) -> int:
    number = int(arguments[0]) if arguments else 100
    seed = int(arguments[1]) if len(arguments) > 1 else random.SystemRandom().randrange(10**6)
    print(f"{number} kills, seed {seed}", flush=True)
    started, home = time.monotonic(), Path(tempfile.mkdtemp(prefix="chaos-"))
    campaign = Campaign(home, number, seed)
    campaign.go()
    seconds, problems = time.monotonic() - started, campaign.tally.problems
    (ROOT / "docs" / "chaos.md").write_text(
        page(campaign.tally, list(AIMS), len(campaign.expected[0]), seed, seconds), encoding="utf-8"
    )
    print(f"exit codes: {dict(campaign.tally.endings)}")
    print(
        f"{campaign.tally.kills.total()} kills in {seconds:.0f} s: {len(problems)} problems"
        + (f", see {home}" if problems else "")
    )
    for words in problems:
        print(f"  {words}")
    if not problems:
        shutil.rmtree(home)
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
