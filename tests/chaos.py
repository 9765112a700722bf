"""A fault campaign: kills at random moments of sweeps of tiny runs, and what else goes
wrong with machines.

python tests/chaos.py [N] [SEED]      N kills (100); make chaos does the same

First a sweep that nobody disturbs. Then, in other folders, commands for the same runs
are started again and again, and while a run is on, it, the server that it was forked
from, the command, or all of them are killed. Between commands files are damaged. When a
folder has every record, the plain command has to end with exit code 0, and records,
adapters and texts have to be those of the undisturbed sweep, with nothing else left.
docs/chaos.md says what happened. A kill at each write of a run, and another run there
that no lock keeps off, are in tests/runs/test_attempt.py."""

import contextlib
import datetime
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
from running import ROOT, comparable
from tiny import save_gpt2, save_tiny, write_e2e, write_glue

from runs.record.ledger import finished_record

#: Who is killed, and how often of ten times.
WHO = {"run": 5, "server": 1, "command": 2, "everything": 2}
LAUNCHERS = (["launcher=serial"], ["launcher=local", "launcher.runs_per_device=2"])
#: Seconds for a command to come to its end; and until a kill, at most, once a run is
#: on.
PATIENCE, SOON = 240, 3.0


class Campaign:
    def __init__(self, home: Path, number: int, seed: int) -> None:
        self.home, self.dice, self.kills = (
            home,
            random.Random(seed),
            Counter[tuple[str, str]](),
        )
        self.others, self.problems, self.commands = Counter[str](), list[str](), 0
        (home / "bin").mkdir(parents=True)
        # without Java: a tenth of a second of scoring instead of ten
        for name in ("git", "uname"):
            (home / "bin" / name).symlink_to(str(shutil.which(name)))
        self.sweeps = self.material()
        self.wanted = number

    def material(self) -> list[list[str]]:
        """Tiny models and their data; the words of two commands: classifiers with
        dropout, and a decoder that writes texts."""
        dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
        bert, glue = (
            save_tiny(self.home / "bert", "bert", **dropout),
            write_glue(self.home / "glue"),
        )
        gpt2, e2e = save_gpt2(self.home / "gpt2"), write_e2e(self.home / "e2e")
        shared = [
            "device=cpu",
            "tracking=off",
            "checkpoint_minutes=0",
            "seed=0,1",
            "table=false",
        ]
        classify = [
            f"model.path={bert}",
            "model=encoder",
            "task=rte",
            f"task.data_dir={glue}",
        ]
        classify += [
            "method=vera,lora,adalora,full",
            "train.epochs=6",
            "train.effective_batch=8",
        ]
        classify += ["train.max_length=32", "train.lr=1e-2", "eval_batch=2"]
        write = [
            f"model.path={gpt2}",
            "model=decoder",
            "task=e2e",
            f"task.data_dir={e2e}",
        ]
        write += [
            "method=vera,lora",
            "task.beams=3",
            "task.max_new_tokens=24",
            "train.epochs=3",
        ]
        write += [
            "train.effective_batch=4",
            "train.lr=0.3",
            "train.max_length=64",
            "eval_batch=3",
        ]
        write += ["keep=both", "adapter_precision=fp16"]
        return [[*classify, *shared], [*write, *shared]]

    def start(
        self, words: list[str], output: Path, launcher: list[str]
    ) -> subprocess.Popen:
        self.commands += 1
        env = os.environ | {"PYTHONPATH": str(ROOT), "CHAOS_HOME": str(self.home)}
        env |= {
            "PATH": str(self.home / "bin"),
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "runs",
            *words,
            f"output={output}",
            *launcher,
        ]
        log = open(self.home / "log.txt", "ab")  # noqa: SIM115 - the process writes into it
        return subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True
        )

    def go(self) -> None:
        straight = self.home / "outputs" / "straight"
        runs = [set[str]()]  # what is finished after each sweep
        for words in self.sweeps:
            assert self.start(words, straight, LAUNCHERS[0]).wait() == 0, (
                self.home / "log.txt"
            )
            runs.append({*finished(straight)})
        expected = state_of(straight)
        for number in itertools.count(1):
            output = self.home / "outputs" / str(number)
            while self.kills.total() < self.wanted and (
                left := runs[-1] - finished(output).keys()
            ):
                of = [i for i in (0, 1) if left & (runs[i + 1] - runs[i])]
                self.disturb(self.sweeps[self.dice.choice(of)], output)
            for words in self.sweeps:
                if code := self.start(words, output, LAUNCHERS[0]).wait():
                    self.problems.append(
                        f"the last command of round {number} ended with {code}"
                    )
            self.problems += [
                f"round {number}: {words}"
                for words in differences(expected, state_of(output))
            ]
            shutil.rmtree(output)
            print(
                f"round {number}: {self.kills.total()} kills, {len(self.problems)} problems",
                flush=True,
            )
            if self.kills.total() >= self.wanted:
                break

    def disturb(self, words: list[str], output: Path) -> None:
        """A command of which somebody is killed, if it does not end before; then a file
        is damaged."""
        process = self.start(words, output, self.dice.choice(LAUNCHERS))
        while process.poll() is None and not self.running(output):
            time.sleep(0.02)
        time.sleep(SOON * self.dice.random())
        for phase, pid in self.running(output)[:1]:
            who = self.dice.choices([*WHO], [*WHO.values()])[0]
            with contextlib.suppress(OSError, psutil.Error):  # it has ended meanwhile
                pids = {
                    "run": pid,
                    "server": psutil.Process(pid).ppid(),
                    "command": process.pid,
                }
                kill = os.killpg if who == "everything" else os.kill
                kill(pids.get(who, process.pid), signal.SIGKILL)
                self.kills[who, phase] += 1
            # in time, or the next command has less to do
            with contextlib.suppress(ProcessLookupError):
                os.killpg(
                    process.pid, signal.SIGTERM if self.dice.random() < 0.3 else 0
                )
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.problems.append("a command hangs")
            os.killpg(process.pid, signal.SIGKILL)
        self.damage(output)

    def running(self, output: Path) -> list[tuple[str, int]]:
        """The runs that are on: what each does, as its progress.json says it, and its
        process."""
        found, living = list[tuple[str, int]](), members(self.home)
        for path in output.glob("runs/*/progress.json"):
            # it has ended, or the file is damaged
            with contextlib.suppress(OSError, ValueError, KeyError):
                progress = json.loads(path.read_bytes())
                phase = re.match("[a-z ]*[a-z]", progress["phase"])[0]
                found += [(phase, progress["pid"])] if progress["pid"] in living else []
        return self.dice.sample(found, len(found))

    def damage(self, output: Path) -> None:
        """A file of a run that is not finished, or a finished record, is damaged."""
        kinds = (
            "attempts/*/checkpoint.safetensors",
            "attempts/*/attempt.json",
            "progress.json",
        )
        paths = [path for kind in kinds for path in output.glob(f"runs/*/{kind}")]
        paths += [
            path for path in output.glob("records/*.json") if self.dice.random() < 0.1
        ]
        if not paths or self.dice.random() < 0.5:
            return
        path = self.dice.choice(paths)
        # A record has no checksum: a letter that turns into another one within a text
        # is not seen
        flips = () if path.parent.name == "records" else ("a bit flips",)
        how, content = (
            self.dice.choice(("cut short", "garbage", *flips)),
            path.read_bytes(),
        )
        place = self.dice.randrange(len(content))
        flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        put = {
            "cut short": content[:place],
            "garbage": b"\xff{" * 99,
            "a bit flips": flipped,
        }
        path.write_bytes(put[how])
        self.others[f"{'a record' if flips == () else path.name}: {how}"] += 1


def members(home: Path) -> list[int]:
    """The processes of a campaign that live, whatever has become of those that started
    them."""
    processes = psutil.process_iter(["environ"])  # None of somebody else's
    return [
        one.pid
        for one in processes
        if (one.info["environ"] or {}).get("CHAOS_HOME") == str(home)
    ]


def finished(output: Path) -> dict[str, dict]:
    """The finished records of a folder, by run; damaged ones count as none."""
    made = {
        path.stem: finished_record(output, path.stem)
        for path in output.glob("records/[!.]*.json")
    }
    return {run_id: record for run_id, record in made.items() if record}


def state_of(output: Path) -> dict[str, object]:
    """What has to be equal, by its name: the records without times and places, and the
    files of each run (adapters and heads as they are, decoded texts by item), but for
    its log; and what is left of records."""
    state: dict[str, object] = {
        f"record {run_id}": comparable(one) for run_id, one in finished(output).items()
    }
    for path in sorted((*output.glob("runs/*/**/*"), *output.glob("records/.*"))):
        content: object = path.read_bytes() if path.is_file() else "a folder"
        if path.suffix == ".yaml":  # which name the output folder
            content = sorted(
                path.read_text().replace(str(output), "OUTPUT").splitlines()
            )
        if path.name != "log.txt":
            state[str(path.relative_to(output))] = content
    return state


def differences(expected: dict, found: dict) -> list[str]:
    """What is not as expected, in words."""
    names = [
        name
        for name in sorted(expected | found)
        if expected.get(name) != found.get(name)
    ]
    how = {
        (True, True): "differs",
        (True, False): "is missing",
        (False, True): "is left over",
    }
    return [f"{name} {how[name in expected, name in found]}" for name in names]


def page(campaign: Campaign, seed: int, seconds: float) -> str:
    """What a campaign has counted, for docs/chaos.md."""
    kills = f"{campaign.kills.total()} kills, {campaign.commands} commands, in {seconds / 60:.0f} minutes"
    good = "Every record, adapter, head and text equals that of the undisturbed sweep; nothing is left over."
    lines = [f"Measured on {datetime.date.today()}, 2 CPU cores, seed {seed}: {kills}."]
    lines += [
        "",
        "## Verdict",
        "",
        *([f"- {words}" for words in campaign.problems] or [good]),
    ]
    lines += [
        "",
        "## Kills",
        "",
        "| a run was | killed was | times |",
        "|---|---|---:|",
    ]
    lines += [
        f"| {phase} | {who} | {n} |"
        for (who, phase), n in sorted(campaign.kills.items())
    ]
    lines += ["", "## Other disturbances", ""]
    return "\n".join(
        [
            *lines,
            *(f"- {words}: {n}" for words, n in sorted(campaign.others.items())),
            "",
        ]
    )


def main(number: int = 100, seed: int = random.randrange(10**6)) -> int:
    home, begun = Path(tempfile.mkdtemp(prefix="chaos-")), time.monotonic()
    campaign = Campaign(home, number, seed)
    print(f"{number} kills, seed {seed}, in {home}", flush=True)
    campaign.go()
    time.sleep(2)
    campaign.problems += [f"process {pid} is left over" for pid in members(home)]
    text, path = (
        page(campaign, seed, time.monotonic() - begun),
        ROOT / "docs" / "chaos.md",
    )
    # how it is done, and the words
    about = path.read_text(encoding="utf-8").partition("Measured on ")[0]
    path.write_text(about + text, encoding="utf-8")
    print(text)
    return int(bool(campaign.problems))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
