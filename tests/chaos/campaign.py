"""A campaign: sweeps of tiny runs whose processes are killed again and again, and then
the same sweeps undisturbed."""

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import psutil
from chaos.folder import damage_a_file, differences, finished, state_of
from chaos.grounds import GROUNDS, environment, left_over
from chaos.material import Sweep, make_sweeps
from chaos.watch import PHASES, Sighting, Watch, end_all, is_member

from runs.record.ledger import ROOT

#: Seconds until a command that shows no run and does not end counts as hanging.
PATIENCE_S = 600.0
#: Seconds that a kill waits for a run in the wanted phase; then it takes another one.
HUNT_S = 8.0
#: Seconds between two looks at the runs, and the longest wait of a kill from then on.
LOOK_S, LONGEST_WAIT_S = 0.004, 0.4
#: How often a command is asked to stop instead of a kill, and a file is damaged after a
#: command.
STOP_SHARE, DAMAGE_SHARE = 0.06, 0.7
#: Seconds that processes have to end after their command.
ENDING_S = 20.0
#: The signals that ask a command to stop.
STOPS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Campaign:
    """Kills at random moments, biased towards the phases that were hit least.

    Attributes:
        kills: how often, by phase and victim.
        disturbances: how often anything else was done, in words.
        problems: what did not hold, a sentence each.
        commands: how many were started.
        rounds: how many folders were filled.
    """

    def __init__(self, home: Path, launcher: str, number: int, seed: int) -> None:
        self.home = home
        self.number = number
        self.dice = random.Random(seed)
        self.ground = GROUNDS[launcher](home, self.dice)
        self.kills = Counter[tuple[str, str]]()
        self.disturbances = Counter[str]()
        self.problems = list[str]()
        self.commands = 0
        self.rounds = 0
        self.sweeps = make_sweeps(home)
        self.environment = environment(home)
        self._runs = dict[str, set[str]]()

    @property
    def log(self) -> Path:
        """What all commands print."""
        return self.home / "log.txt"

    def go(self) -> None:
        """The whole campaign. Raises UserError where the launcher cannot work here: each
        command would be refused at once, and nothing would ever be killed."""
        self.ground.check()
        expected = self._undisturbed()
        self.ground.open()
        try:
            while self.kills.total() < self.number:
                self._round(expected)
        finally:
            end_all(self.home, signal.SIGKILL)
            self.ground.close()
        for pid in left_over(self.home, ENDING_S):
            self.problems.append(f"process {pid} is left over")

    def _undisturbed(self) -> dict[str, object]:
        """Does each sweep once, and notes its runs. Returns what has to be equal."""
        output = self.home / "outputs" / "undisturbed"
        before = set[str]()
        for sweep in self.sweeps:
            code = self._start(sweep, output, ["launcher=serial"]).wait()
            assert code == 0, f"the undisturbed sweep failed: {self.log}"
            self._runs[sweep.name] = finished(output).keys() - before
            before |= self._runs[sweep.name]
        return state_of(output)

    def _round(self, expected: dict[str, object]) -> None:
        """Fills a folder under kills, then undisturbed, and compares it."""
        self.rounds += 1
        output = self.home / "outputs" / str(self.rounds)
        while self.kills.total() < self.number:
            unfinished = self._unfinished(output)
            if not unfinished:
                break
            sweep, phase = self._choose(unfinished)
            self._disturb(sweep, phase, output)
        self._finish(output)
        for sentence in differences(expected, state_of(output)):
            self.problems.append(f"round {self.rounds}: {sentence}")
        if not self.problems:
            shutil.rmtree(output)
        self._report(f"round {self.rounds} compared")

    def _finish(self, output: Path) -> None:
        """Lets undisturbed commands do the rest; each has to end with 0. On another
        ground than this machine that is first a command there, then a plain one, which
        finds everything done."""
        self.ground.settle()
        commands = [["launcher=serial"]]
        if self.ground.name != "local":
            commands.insert(0, self.ground.overrides())
        for sweep in self.sweeps:
            for overrides in commands:
                process = self._start(sweep, output, overrides)
                code = self._wait(process)
                if code:
                    launcher = overrides[0]
                    sentence = f"the last command ({launcher}) ended with {code}"
                    self.problems.append(f"round {self.rounds}: {sentence}")

    def _report(self, text: str) -> None:
        kills, problems = self.kills.total(), len(self.problems)
        print(f"{text}: {kills} kills, {problems} problems", flush=True)

    # --- what is disturbed next

    def _unfinished(self, output: Path) -> list[Sweep]:
        done = finished(output).keys()
        return [sweep for sweep in self.sweeps if self._runs[sweep.name] - done]

    def _choose(self, sweeps: Iterable[Sweep]) -> tuple[Sweep, str]:
        """A sweep, and the phase of it in which a run is to be killed."""
        pairs = [(sweep, phase) for sweep in sweeps for phase in sweep.phases]
        hits = Counter[str]()
        for (phase, _), times in self.kills.items():
            hits[phase] += times
        weights = [1 / (1 + hits[phase]) ** 2 for _, phase in pairs]
        return self.dice.choices(pairs, weights)[0]

    # --- a command and its kills

    def _start(
        self, sweep: Sweep, output: Path, launcher: list[str]
    ) -> subprocess.Popen[bytes]:
        self.commands += 1
        words = [*sweep.overrides, f"output={output}", *launcher]
        line = [sys.executable, "-W", "ignore", "-m", "runs", *words]
        with open(self.log, "ab") as log:
            log.write(f"\n=== {' '.join(words)}\n".encode())
            log.flush()
            return subprocess.Popen(
                line,
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _wait(self, process: subprocess.Popen[bytes]) -> int:
        """Waits for a command's end, or kills it. Returns its exit code."""
        try:
            return process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.problems.append("a command hangs")
            end_all(self.home, signal.SIGKILL)
            return process.wait()

    def _disturb(self, sweep: Sweep, phase: str, output: Path) -> None:
        """Disturbs a command until it ends, or enough is killed; then perhaps damages a
        file."""
        process = self._start(sweep, output, self.ground.overrides())
        watch = Watch(self.home, output)
        while self.kills.total() < self.number:
            run = self._hunt(process, watch, phase)
            if run is None:
                break
            if self.dice.random() < STOP_SHARE:
                self._ask_to_stop(process)
                break
            self._kill(run, process)
            _, phase = self._choose([sweep])
        if self.kills.total() >= self.number:
            self._ask_to_stop(process)
        self._wait(process)
        # what outlives its command, such as jobs, still uses its files
        is_idle = not any(watch.look())
        if is_idle and self.dice.random() < DAMAGE_SHARE:
            damage = damage_a_file(output, self.dice)
            if damage:
                self.disturbances[damage] += 1

    def _hunt(
        self, process: subprocess.Popen[bytes], watch: Watch, phase: str
    ) -> Sighting | None:
        """Waits for a run in a phase; after a while any run will do. Returns it; None
        where the command has ended, or hangs."""
        started = time.monotonic()
        while process.poll() is None:
            seconds = time.monotonic() - started
            runs = watch.look()
            chosen = [run for run in runs if run.phase == phase]
            if not chosen and seconds > HUNT_S:
                chosen = runs
            if chosen:
                run = self.dice.choice(chosen)
                self._pause()
                # where it stands now, since it went on meanwhile
                run_now = watch.look_at(run.run_id)
                if run_now:
                    return run_now
            if seconds > PATIENCE_S:
                break
            time.sleep(LOOK_S)
        return None

    def _pause(self) -> None:
        """Half of the kills come at once, so that they hit short phases; the others at
        random moments later."""
        if self.dice.random() < 0.5:
            time.sleep(self.dice.random() * LONGEST_WAIT_S)

    def _kill(self, run: Sighting, process: subprocess.Popen[bytes]) -> None:
        """Kills a victim, and counts it, unless it has ended meanwhile."""
        victims = self.ground.victims
        victim = self.dice.choices([*victims], [*victims.values()])[0]
        if not is_member(run.pid, self.home):
            return
        with contextlib.suppress(OSError, psutil.Error, subprocess.SubprocessError):
            self.ground.strike(victim, run, process.pid)
            self.kills[run.phase, victim] += 1
            if self.kills.total() % 10 == 0:
                self._report("going on")

    def _ask_to_stop(self, process: subprocess.Popen[bytes]) -> None:
        """Asks a command and its processes to stop, as a terminal does."""
        number = self.dice.choice(STOPS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
            self.disturbances[f"the command was asked to stop ({number.name})"] += 1


def missed_phases(kills: Iterable[tuple[str, str]]) -> list[str]:
    """The phases in which nothing was killed."""
    hit = {phase for phase, _ in kills}
    return [phase for phase in PHASES if phase not in hit]
