"""A fault campaign: kills over sweeps of tiny runs, each at a phase of a run, and what else goes wrong with
machines.

python tests/chaos.py [N] [SEED]      N kills (100); make chaos does the same

First a sweep that nobody disturbs. Then, in other folders, commands for the same runs are started again and
again. Each has an aim: who is killed, or stopped, when a run comes to which phase (tests/chaos_shim does it).
A stopped run goes on once another command, which no lock keeps off, has done the same run. Between commands
files are damaged. When a folder has every record, the plain command has to end with exit code 0, and records,
adapters and texts have to be those of the undisturbed sweep, with nothing else left. An aim whose phase never
came fails the campaign. docs/chaos.md says what happened.
"""

import itertools
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
from pathlib import Path

from chaos_report import differences, finished, page, state_of
from tiny import save_gpt2, save_tiny, write_e2e, write_glue

ROOT = Path(__file__).parent.parent
FILES = ("a checkpoint", "an adapter", "a head", "texts", "the attempt", "the record")
#: The phases of a run, in the words of the shim; those of texts come in the second command alone.
PHASES = (
    *("taking the lock", "loading", "training", "evaluating", "decoding", "scoring"),
    *(f"{when} writing {what}" for what in FILES if what != "texts" for when in ("before", "after")),
    *("before writing texts", "after writing texts", "before moving files in", "after moving files in"),
    "clearing up",
)
OF_TEXTS = ("decoding", "scoring", "before writing texts", "after writing texts")
OF_CLASSES = ("before writing a head", "after writing a head")
#: Who is killed, and how often of ten times; stopped: the run's process, until another has done its run.
WHO = {"run": 4, "stopped": 2, "server": 1, "command": 1, "everything": 2}
LAUNCHERS = (["launcher=serial"], ["launcher=local", "launcher.runs_per_device=2"])
#: Seconds for a command to come to its aim, or to its end.
PATIENCE = 240


class Campaign:
    def __init__(self, home: Path, number: int, seed: int) -> None:
        self.home, self.dice, self.kills = home, random.Random(seed), Counter[tuple[str, str]]()
        self.others, self.problems, self.commands = Counter[str](), list[str](), 0
        (home / "bin").mkdir(parents=True)
        for name in ("git", "uname"):  # without Java: a tenth of a second of scoring instead of ten
            (home / "bin" / name).symlink_to(str(shutil.which(name)))
        self.sweeps = self.material()
        who = [name for name, times in WHO.items() for _ in range(times)]
        self.dice.shuffle(who)
        phases = itertools.chain.from_iterable(
            self.dice.sample(PHASES, len(PHASES)) for _ in itertools.count()
        )
        self.aims = [*zip(itertools.islice(itertools.cycle(who), number), phases, strict=False)]

    def material(self) -> list[list[str]]:
        """Tiny models and their data; the words of two commands: classifiers with dropout, and a decoder that
        writes texts."""
        dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
        bert, glue = save_tiny(self.home / "bert", "bert", **dropout), write_glue(self.home / "glue")
        gpt2, e2e = save_gpt2(self.home / "gpt2"), write_e2e(self.home / "e2e")
        shared = ["device=cpu", "tracking=off", "checkpoint_minutes=0", "seed=0,1", "table=false"]
        classify = [f"model.path={bert}", "model=encoder", "task=rte", f"task.data_dir={glue}"]
        classify += ["method=vera,lora,adalora,full", "train.epochs=6", "train.effective_batch=8"]
        classify += ["train.max_length=32", "train.lr=1e-2", "eval_batch=2"]
        write = [
            f"model.path={gpt2}",
            "model=decoder",
            "task=e2e",
            f"task.data_dir={e2e}",
            "method=vera,lora",
        ]
        write += ["task.beams=3", "task.max_new_tokens=24", "train.epochs=3", "train.effective_batch=4"]
        write += [
            "train.lr=0.3",
            "train.max_length=64",
            "keep=both",
            "adapter_precision=fp16",
            "eval_batch=3",
        ]
        return [[*classify, *shared], [*write, *shared]]

    def start(self, words: list[str], output: Path, launcher: list[str], **more: str) -> subprocess.Popen:
        self.commands += 1
        paths = [str(ROOT / "tests" / "chaos_shim"), str(ROOT)]
        env = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "CHAOS_HOME": str(self.home)}
        env |= {"PATH": str(self.home / "bin"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"} | more
        command = [sys.executable, "-W", "ignore", "-m", "runs", *words, f"output={output}", *launcher]
        log = open(self.home / "log.txt", "ab")  # noqa: SIM115 - the process writes into it
        return subprocess.Popen(command, cwd=ROOT, env=env, stdout=log, stderr=log, start_new_session=True)

    def go(self) -> None:
        straight = self.home / "outputs" / "straight"
        for words in self.sweeps:
            assert self.start(words, straight, ["launcher=serial"]).wait() == 0, self.home / "log.txt"
        expected = state_of(straight)
        for number in itertools.count(1):
            output, before = self.home / "outputs" / str(number), len(self.aims)
            self.round(output, len(expected[0]))
            for words in self.sweeps:
                if code := self.start(words, output, ["launcher=serial"]).wait():
                    self.problems.append(f"the last command of round {number} ended with {code}")
            self.problems += [f"round {number}: {words}" for words in differences(expected, output)]
            shutil.rmtree(output)
            print(f"round {number}: {self.kills.total()} kills, {len(self.problems)} problems", flush=True)
            if not self.aims or len(self.aims) == before:
                break
        self.problems += [f"no run came to: {who}, {phase}" for who, phase in self.aims]

    def round(self, output: Path, runs: int) -> None:
        """Commands in one folder, each with an aim, until it has all records. Aims whose phase does not come
        any more wait for the next folder."""
        later = list[tuple[str, str]]()
        while self.aims and len(finished(output)) < runs:
            who, phase = self.aims.pop(0)
            of = 1 if phase in OF_TEXTS else 0 if phase in OF_CLASSES else self.dice.randrange(2)
            (self.home / "hit").unlink(missing_ok=True)
            (self.home / "aim").write_text(json.dumps({"who": who, "phase": phase}))
            launcher = LAUNCHERS[self.dice.randrange(2)]
            process = self.start(self.sweeps[of], output, launcher)
            hit = self.wait(process)
            if hit:
                self.kills[who, phase] += 1
                if who == "stopped":
                    self.take_over(process, self.sweeps[of], output)
                elif who in ("command", "everything"):
                    process.wait()
            else:
                later.append((who, phase))
            (self.home / "aim").unlink(missing_ok=True)
            if (
                hit and self.dice.random() < 0.3
            ):  # the command goes on to its end: the next one finds less to do
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
            self.damage(output)
        self.aims += later

    def wait(self, process: subprocess.Popen) -> bool:
        """Whether the aim was met before the command's end."""
        end = time.monotonic() + PATIENCE
        while not (self.home / "hit").exists() and process.poll() is None:
            if time.monotonic() > end:
                self.problems.append("a command hangs")
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.02)
        return (self.home / "hit").exists()

    def take_over(self, process: subprocess.Popen, words: list[str], output: Path) -> None:
        """Another command, which locks let pass, does all runs; then the stopped process goes on."""
        before = len(finished(output))
        other = self.start(words, output, ["launcher=serial"], CHAOS_NO_LOCKS="1")
        if other.wait():
            self.problems.append(f"a command beside a stopped run ended with {other.returncode}")
        self.others["a run was done by another process while its own was stopped, which then went on"] += 1
        self.others["runs that were finished meanwhile"] += len(finished(output)) - before
        os.killpg(process.pid, signal.SIGCONT)

    def damage(self, output: Path) -> None:
        """A file of a run that is not finished, or a finished record, is damaged."""
        kinds = ("attempts/*/checkpoint.safetensors", "attempts/*/attempt.json", "progress.json")
        paths = [path for kind in kinds for path in output.glob(f"runs/*/{kind}")]
        paths += [path for path in output.glob("records/*.json") if self.dice.random() < 0.1]
        if not paths or self.dice.random() < 0.5:
            return
        path = self.dice.choice(paths)
        # A record has no checksum: a letter that turns into another one within a text is not seen
        flips = () if path.parent.name == "records" else ("a bit flips",)
        how = self.dice.choice(("cut short", "garbage", *flips))
        content = path.read_bytes()
        place = self.dice.randrange(len(content))
        flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        path.write_bytes(
            {"cut short": content[:place], "garbage": b"\xff{" * 99, "a bit flips": flipped}[how]
        )
        self.others[f"{path.name if path.parent.name != 'records' else 'a record'}: {how}"] += 1


def orphans(home: Path) -> list[str]:
    """Processes of the campaign that are still there, by their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"CHAOS_HOME={home}".encode() in path.read_bytes():
                found.append(f"process {path.parent.name} is left over")
        except OSError:
            continue
    return found


def main(number: int = 100, seed: int | None = None) -> int:
    seed = random.randrange(10**6) if seed is None else seed
    home, begun = Path(tempfile.mkdtemp(prefix="chaos-")), time.monotonic()
    campaign = Campaign(home, number, seed)
    print(f"{number} kills, seed {seed}, in {home}", flush=True)
    campaign.go()
    time.sleep(2)
    campaign.problems += orphans(home)
    text = page(
        campaign.kills, campaign.others, campaign.problems, campaign.commands, seed, time.monotonic() - begun
    )
    (ROOT / "docs" / "chaos.md").write_text(text, encoding="utf-8")
    print(text)
    return int(bool(campaign.problems))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
