"""A fault campaign: SIGKILLs at random times over sweeps of tiny runs, and what else goes wrong with machines.

python tests/chaos.py [N] [SEED]      N kills (100); make chaos does the same

First a sweep that nobody disturbs. Then, in other folders, commands for the same runs are started again and again and
killed, two at a time among them; between them their files are damaged. When a folder has every record, the next one is
begun. At the end of each the plain command has to end with exit code 0, and its records, adapters and texts have to be
those of the undisturbed sweep, with nothing else left. What happened stands in docs/chaos.md.
"""

import contextlib
import datetime
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from running import comparable
from tiny import save_gpt2, save_tiny, write_e2e, write_glue

from runs.claims import claims_folder
from runs.record import FINISHED, read_record, records_folder

ROOT = Path(__file__).parent.parent
LEASE = 2  # seconds
#: Who is killed while a run does what, and how often of 100 times. "run": its own process; "server": what it is forked from.
AIMS = {
    "run": {"loading": 2, "training": 9, "evaluating": 8, "writing a checkpoint": 8, "writing an adapter": 5}
    | {"decoding": 10, "scoring": 2, "writing a record": 9, "clearing up": 3},
    "executor": {"starting": 1, "training": 3, "evaluating": 2, "decoding": 2, "writing a record": 3, "clearing up": 2}
    | {"writing a lease": 4, "giving back a lease": 3, "writing progress": 2, "writing tries": 2},
    "command": {"starting": 2, "training": 2, "decoding": 1, "writing the sweep's file": 2},
    "server": {"loading": 2, "training": 2},
    "everything": {"training": 3, "decoding": 3, "writing a record": 2, "writing a checkpoint": 1},
}
#: How a stopped executor may end up without another one having its run.
LATE = "not taken over in time"
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


@dataclass
class Tally:
    """What happened."""

    kills: Counter = field(default_factory=Counter)  # by target and phase
    disturbances: Counter = field(default_factory=Counter)
    takeovers: set = field(default_factory=set)
    stops: list = field(default_factory=list)
    commands: int = 0
    endings: Counter = field(default_factory=Counter)
    problems: list = field(default_factory=list)

    def problem(self, words: str) -> None:
        print(f"PROBLEM: {words}", flush=True)
        self.problems.append(words)


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
        self.sweeps = self.material()
        wanted = [(role, phase) for role, phases in AIMS.items() for phase, times in phases.items() for _ in range(times)]
        self.aims: list[tuple[str, str]] = []
        while len(self.aims) < number:
            self.aims += self.dice.sample(wanted, len(wanted))
        del self.aims[number:]

    def material(self) -> list[list[str]]:
        """Tiny models and their data; the words of two commands: classifiers with dropout, and a decoder that writes texts."""
        bert = save_tiny(self.home / "bert", "bert", hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1)
        gpt2, glue, e2e = save_gpt2(self.home / "gpt2"), write_glue(self.home / "glue"), write_e2e(self.home / "e2e")
        shared = ["device=cpu", "tracking=off", f"lease_seconds={LEASE}", "checkpoint_minutes=0.002"]
        classify = [f"model.path={bert}", "model=encoder", "task=rte", f"task.data_dir={glue}", "method=vera,lora,adalora,full"]
        classify += ["seed=0,1", "train.epochs=6", "train.effective_batch=8", "train.max_length=32", "train.lr=1e-2"]
        write = [f"model.path={gpt2}", "model=decoder", "task=e2e", f"task.data_dir={e2e}", "method=vera,lora", "seed=0,1"]
        write += ["task.beams=3", "task.max_new_tokens=48", "train.epochs=4", "train.effective_batch=4", "train.lr=0.3"]
        write += ["train.max_length=64", "keep=both", "adapter_precision=fp16", "eval_batch=3"]
        return [[*classify, "eval_batch=2", *shared], [*write, *shared]]

    # --- commands and their processes

    def start(self, words: list[str], output: Path, slow: float = 0.02, clock: bool = False) -> subprocess.Popen:
        """A command in a session of its own. slow: how far windows are widened, in seconds; 0: nothing is changed."""
        self.tally.commands += 1
        path = os.pathsep.join([*([str(ROOT / "tests" / "chaos_shim")] if slow else []), str(ROOT)])
        environment = os.environ | {"PYTHONPATH": path, "CHAOS_HOME": str(self.home), "CHAOS_SLOW": str(slow)}
        environment |= {"XDG_CACHE_HOME": str(self.home / "cache"), "TMPDIR": str(self.home / "tmp"), "HF_HUB_OFFLINE": "1"}
        environment |= {"OMP_NUM_THREADS": "1", "PATH": str(self.home / "bin")} | ({"CHAOS_CLOCK": "1"} if clock else {})
        command = [sys.executable, "-m", "runs", *words, f"output={output}"]
        with open(self.home / "logs" / f"{self.tally.commands:03d}.txt", "wb") as log:
            return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)

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
            role = (
                "executor" if "runs.executor" in words or "launcher=serial" in words else "command" if "runs" in words else ""
            )
            role = role or ("server" if any("forkserver" in word for word in words) else "helper")
            found.append(Process(int(path.name), role, parent))
        servers = {process.pid for process in found if process.role == "server"}
        for process in found:
            process.role = "run" if process.parent in servers else process.role
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
        """Waits until one of the next aims is met, and kills. closing: everything at once. False: every command has ended."""
        end = time.monotonic() + 3  # what comes next will do after that
        coming = self.aims[:15] if not closing else [aim for aim in self.aims if aim[0] == "everything"][:3]
        while True:
            every = self.processes()
            self.watch_leases()
            late = time.monotonic() > end
            if all(command.poll() is not None for command in commands):
                return False
            met = [(p, (p.role, self.phase_of(p, every))) for p in every]
            met += [(p, ("everything", aim[1])) for p, aim in met if p.role == "run"] if closing else []
            chosen = [(process, aim) for process, aim in met if aim in coming]
            if late and not chosen:
                chosen = [(p, ("everything" if closing else p.role, phase)) for p, (_, phase) in met if p.role == "run"]
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
        self.aims.remove(aim if aim in self.aims else next((a for a in self.aims if a[0] == target), self.aims[0]))
        self.tally.kills[target, phase] += 1
        seconds = time.monotonic() - self.begun
        print(f"{seconds:4.0f} s  kill {self.tally.kills.total():3d}/{self.number}: {target}, {phase}", flush=True)
        return True

    def signal(self, pid: int, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)

    def leases(self) -> list[tuple[str, dict]]:
        found = []
        for path in claims_folder(self.output).glob("[!.]*"):
            with contextlib.suppress(OSError, ValueError):
                found.append((path.name, json.loads(path.read_text())))
        return found

    def watch_leases(self) -> None:
        """Counts runs that were taken over: a lease of a later generation, with a token not seen yet."""
        for name, owner in self.leases():
            if not name.endswith(".1"):
                self.tally.takeovers.add(owner["token"])

    def stop_an_executor(self) -> None:
        """SIGSTOP for longer than its lease, until another has its run; then SIGCONT: it has to give up."""
        every = self.processes()
        holders = {owner["pid"]: name for name, owner in self.leases()}
        executors = [p for p in every if p.pid in holders and self.phase_of(p, every) in ("training", "evaluating", "decoding")]
        if not executors or len({p.pid for p in every if p.role == "executor"}) < 2:
            return
        executor = self.dice.choice(executors)
        run_id, _, generation = holders[executor.pid].partition(".")
        servers = [p.pid for p in every if p.role == "server" and p.parent == executor.pid]
        runs = [p.pid for p in every if p.role == "run" and p.parent in servers]
        stopped = [executor.pid, *(runs if self.dice.random() < 0.5 else [])]  # a run that goes on alone is refused, too
        for pid in stopped:
            self.signal(pid, signal.SIGSTOP)
        record, end = records_folder(self.output) / f"{run_id}.json", time.monotonic() + 12 * LEASE
        taken = False
        while not taken and time.monotonic() < end and not record.is_file():
            time.sleep(0.01)
            self.watch_leases()
            taken = any(name.startswith(f"{run_id}.") and name != f"{run_id}.{generation}" for name, _ in self.leases())
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

    def damage(self) -> None:
        """Damages one thing of each kind that is there, the kinds that had least of it first."""
        runs, records = self.output / "runs", list(records_folder(self.output).glob("*.json"))
        begun = [path.parent for path in runs.glob("*/checkpoint.safetensors")]
        unfinished = [path for path in runs.glob("*") if not (records_folder(self.output) / f"{path.name}.json").is_file()]
        noise = self.dice.randbytes(200)
        kinds = {
            "a checkpoint is cut short": [(folder / "checkpoint.safetensors", self.cut) for folder in begun],
            "a checkpoint is filled with garbage": [(folder / "checkpoint.safetensors", noise) for folder in begun],
            "a bit of a checkpoint flips": [(folder / "checkpoint.safetensors", self.flip) for folder in begun],
            "a finished record is cut short": [(path, self.cut) for path in records],
            "a finished record is filled with garbage": [(path, noise) for path in records],
            "decoded texts are cut short": [(path, self.cut) for folder in unfinished for path in folder.glob("decoded_*")],
            "garbage in a lease": [(claims_folder(self.output) / f"{folder.name}.1", noise) for folder in unfinished],
            "garbage in tries.json": [(folder / "tries.json", noise) for folder in unfinished],
            "JSON of another shape in tries.json": [
                (folder / "tries.json", b'{"ended": 1, "settings": [], "deviations": {}}') for folder in unfinished
            ],
            "garbage in progress.json": [(folder / "progress.json", noise) for folder in unfinished],
        }
        counts = {kind: self.tally.disturbances[kind] for kind, places in kinds.items() if places}
        possible = sorted((count, self.dice.random(), kind) for kind, count in counts.items() if count < 1 + self.number // 30)
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
        self.full_disk()
        lap = 0
        while self.aims:
            lap += 1
            self.output = self.home / "outputs" / str(lap)
            for number in range(1000):
                if not self.aims or len(finished(self.output)) == len(self.expected[0]):
                    break
                self.round(ROUNDS[(number + lap) % len(ROUNDS)])
            self.conclude(self.sweeps, self.expected, f"folder {lap}")

    def round(self, launchers: list[str]) -> None:
        """Some commands at once, disturbed, and damage after them."""
        commands = []
        first = self.dice.randrange(2) if len(finished(self.output)) < 6 else 1
        for number, launcher in enumerate(launchers):
            # Two that race do the same sweep, or one each.
            words = self.sweeps[(first + (number and self.dice.random() < 0.3)) % 2]
            clock = self.dice.random() < 0.5
            self.tally.disturbances["a command whose clock jumps"] += clock
            commands.append(self.start([*words, f"launcher={launcher}", "runs_per_device=2"], self.output, clock=clock))
        self.tally.disturbances["two commands race"] += len(commands) > 1
        print(f"commands: {' and '.join(launchers)}, {len(finished(self.output))} runs done", flush=True)
        stop_at = self.dice.randrange(1, KILLS_A_ROUND - 1) if len(commands) > 1 else -1
        for number in range(KILLS_A_ROUND):
            if number == stop_at:
                self.stop_an_executor()
            if not self.aims or not self.kill(commands, closing=number == KILLS_A_ROUND - 1):
                break
            time.sleep(self.dice.random() * 0.6)
        for command in commands:  # what still lives is asked to stop, and saves
            command.terminate()
        self.await_end(commands)
        if self.aims:
            self.damage()

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
            self.tally.problem(f"a process outlived its command: {process.role}, {self.phase(process.pid)}: {words[:200]}")
            self.signal(process.pid, signal.SIGKILL)

    def full_disk(self) -> None:
        """A disk that is full before a command, and one that fills while a run trains; later there is room again."""
        self.output = output = self.home / "outputs" / "disk"
        output.mkdir(parents=True)
        real = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", output], capture_output=True).returncode == 0
        kind = "tmpfs" if real else "os.fsync that fails"
        words = [word for word in self.sweeps[0] if not word.startswith(("seed=", "method="))] + ["method=vera", "seed=0,1"]
        try:
            self.fill(real)
            code = self.start(words, output).wait()
            self.empty(real)
            print(f"a full disk ({kind}) before the start: exit code {code}", flush=True)
            command = self.start([*words, "launcher=serial"], output)
            while command.poll() is None and not list(output.glob("runs/*/checkpoint.safetensors")):
                time.sleep(0.002)
            self.fill(real)
            log = self.home / "logs" / f"{self.tally.commands:03d}.txt"
            while command.poll() is None and "No space left" not in log.read_text():
                time.sleep(0.05)
            waited = command.poll() is None
            self.empty(real)
            print(f"the disk fills while a run trains: the command {'waits' if waited else 'has ended'}", flush=True)
            code = command.wait()
            self.tally.disturbances[f"full disk ({kind}): before the start"] += 1
            self.tally.disturbances[f"full disk ({kind}): while a run trains"] += 1
            if not waited or code != 0:
                self.tally.problem(f"a full disk: the command ended with exit code {code}, waited: {waited}")
            records, files = self.expected
            ours = finished(output)
            expected = (
                {i: r for i, r in records.items() if i in ours},
                {n: c for n, c in files.items() if n.split("/")[0] in ours},
            )
            if len(ours) != 2:
                self.tally.problem(f"after a full disk {len(ours)} of 2 records are there")
            self.conclude([words], expected, "full disk")
        finally:
            if real:
                subprocess.run(["umount", "-l", output], check=False)

    def fill(self, real: bool) -> None:
        if not real:
            (self.home / "full").touch()
            return
        with contextlib.suppress(OSError), open(self.output / "ballast", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    def empty(self, real: bool) -> None:
        ((self.output / "ballast") if real else self.home / "full").unlink()

    # --- the verdict

    def conclude(self, sweeps: list[list[str]], expected: tuple[dict, dict], name: str) -> None:
        """The plain command once more; then records and files are compared, and what is left is looked for."""
        for words in sweeps:
            code = self.start(words, self.output, slow=0).wait()
            if code != 0:
                self.tally.problem(f"{name}: the plain command ended with exit code {code}: log {self.tally.commands:03d}")
        records, files = state_of(self.output)
        for run_id, record in expected[0].items():
            if run_id not in records:
                self.tally.problem(f"{name}: no record of run {run_id}")
            elif records[run_id] != record:
                keys = [key for key in record if records[run_id].get(key) != record[key]]
                self.tally.problem(f"{name}: the record of run {run_id} differs in {', '.join(keys)}")
        for file in sorted(expected[1].keys() | files.keys()):
            if file not in files or file not in expected[1]:
                self.tally.problem(f"{name}: {file} is {'missing' if file not in files else 'left over'}")
            elif files[file] != expected[1][file]:
                self.tally.problem(f"{name}: {file} differs")
        for path in [*claims_folder(self.output).glob("*"), *self.output.rglob(".*")]:
            self.tally.problem(f"{name}: {path.relative_to(self.output)} is left over")
        for path in [*(self.home / "logs").glob("*.txt"), *self.output.glob("sweeps/*/executor-*.log")]:
            if "Traceback" in path.read_text(errors="replace"):
                self.tally.problem(f"{name}: a traceback in {path.relative_to(self.home)}")
        print(f"{name}: {len(records)} records, {len(files)} files compared", flush=True)


def finished(output: Path) -> dict[str, dict]:
    """The finished records of a folder, by run; damaged ones count as none."""
    found = {}
    for path in records_folder(output).glob("[!.]*.json"):
        with contextlib.suppress(ValueError):
            record = read_record(path)
            if record["status"] in FINISHED:
                found[path.stem] = record
    return found


def state_of(output: Path) -> tuple[dict[str, dict], dict[str, object]]:
    """What has to be equal: the records without times and places, and the files of each run (adapters and heads as they are,
    decoded texts by item), but for its log."""
    records = {run_id: comparable(record) for run_id, record in finished(output).items()}
    files: dict[str, object] = {}
    for path in sorted(output.glob("runs/*/*")):
        if path.name == "log.txt":
            continue
        content: object = path.read_bytes()
        if path.suffix == ".jsonl":
            head, *lines = map(json.loads, path.read_text().splitlines())
            content = head, {line["item"]: line["texts"] for line in lines}
        files[f"{path.parent.name}/{path.name}"] = content
    return records, files


def page(campaign: Campaign, seconds: float) -> str:
    """docs/chaos.md, from what this campaign has counted."""
    tally = campaign.tally
    targets, phases = list(AIMS), sorted({phase for _, phase in tally.kills})
    rows = [[phase, *(tally.kills[target, phase] for target in targets)] for phase in phases]
    rows = [[*row, sum(row[1:])] for row in rows]
    rows.append(["all", *(sum(row[i] for row in rows) for i in range(1, len(targets) + 2))])
    table = [["while a run, or who does it, was", *targets, "all"], ["---"] + ["---:"] * (len(targets) + 1), *rows]
    lines = [f"| {' | '.join(str(cell or '') for cell in row)} |" for row in table]
    refused = Counter(tally.stops)
    verdict = (
        "Every record, adapter, head and text was that of the undisturbed sweep. None was missing, none half-written. No "
        "checkpoint, lease or partial file was left."
        if not tally.problems
        else "These differed:\n\n" + "\n".join(f"- {words}" for words in tally.problems)
    )
    disturbed = "\n".join(f"- {kind}: {count}" for kind, count in sorted(tally.disturbances.items()) if count)
    return f"""# A fault campaign

`make chaos` (tests/chaos.py; `N=` for more kills) starts the commands of {len(campaign.expected[0])} tiny runs again and
again (VeRA, LoRA, AdaLoRA and full fine-tuning of a BERT with dropout; VeRA and LoRA of a GPT-2 that writes texts),
kills their processes with SIGKILL at random times, and damages their files. The launchers are serial and local with two
runs on a device. Then the plain command is run once more, and everything is compared with a sweep that nobody disturbed:
records but for times, costs and places; adapters and heads byte for byte; texts.

Measured on {datetime.date.today()}, 2 CPU cores, seed {campaign.seed}: {tally.kills.total()} kills of {tally.commands}
commands in {seconds / 60:.0f} minutes.

## Verdict

{verdict}

## Kills

{chr(10).join(lines)}

run: the run's own process. executor: who does the runs and holds their leases (with launcher=serial the command itself).
command: the one that supervises executors. server: what the runs' processes are forked from. everything: all processes
at once. Windows of microseconds (a file that is written and not yet renamed) were widened to hundredths of a second.

## Other disturbances

{disturbed}

{len(tally.takeovers)} times an executor took over a run whose owner was silent. {len(tally.stops)} executors were stopped for
longer than their lease: {refused["refused"]} were refused when they went on, since another one had taken over; {refused[LATE]} went on
before another one came.
"""


def main(arguments: list[str]) -> int:
    number = int(arguments[0]) if arguments else 100
    seed = int(arguments[1]) if len(arguments) > 1 else random.SystemRandom().randrange(10**6)
    print(f"{number} kills, seed {seed}", flush=True)
    started, home = time.monotonic(), Path(tempfile.mkdtemp(prefix="chaos-"))
    campaign = Campaign(home, number, seed)
    campaign.go()
    seconds, problems = time.monotonic() - started, campaign.tally.problems
    (ROOT / "docs" / "chaos.md").write_text(page(campaign, seconds), encoding="utf-8")
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
