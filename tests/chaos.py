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

import contextlib
import datetime
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

from running import comparable
from tiny import save_gpt2, save_tiny, write_e2e, write_glue

from runs.record import finished_record

ROOT = Path(__file__).parent.parent
FILES = ("a checkpoint", "an adapter", "a head", "texts", "the attempt", "the record")
#: The phases of a run, in the words of the shim; those of texts come in the second command alone.
PHASES = (
    *("taking the lock", "loading", "training", "evaluating", "decoding", "scoring"),
    *(f"{when} writing {what}" for what in FILES for when in ("before", "after")),
    *("before moving files in", "after moving files in", "clearing up"),
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
        who = self.dice.sample([*WHO], counts=WHO.values(), k=10)
        phases = [phase for _ in range(number) for phase in self.dice.sample(PHASES, len(PHASES))]
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
        write = [f"model.path={gpt2}", "model=decoder", "task=e2e", f"task.data_dir={e2e}"]
        write += ["method=vera,lora", "task.beams=3", "task.max_new_tokens=24", "train.epochs=3"]
        write += ["train.effective_batch=4", "train.lr=0.3", "train.max_length=64", "eval_batch=3"]
        write += ["keep=both", "adapter_precision=fp16"]
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
            assert self.start(words, straight, LAUNCHERS[0]).wait() == 0, self.home / "log.txt"
        expected = state_of(straight)
        for number in itertools.count(1):
            output, before = self.home / "outputs" / str(number), len(self.aims)
            self.round(output, len(expected[0]))
            for words in self.sweeps:
                if code := self.start(words, output, LAUNCHERS[0]).wait():
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
            process = self.start(self.sweeps[of], output, self.dice.choice(LAUNCHERS))
            if hit := self.wait(process):
                self.kills[who, phase] += 1
            else:
                later.append((who, phase))
            if hit and who == "stopped":
                self.take_over(process, self.sweeps[of], output)
            (self.home / "aim").unlink(missing_ok=True)
            if hit and self.dice.random() < 0.3:  # else it goes on to its end, and leaves the next one less
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
        if code := self.start(words, output, LAUNCHERS[0], CHAOS_NO_LOCKS="1").wait():
            self.problems.append(f"a command beside a stopped run ended with {code}")
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
        how, content = self.dice.choice(("cut short", "garbage", *flips)), path.read_bytes()
        place = self.dice.randrange(len(content))
        flipped = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        put = {"cut short": content[:place], "garbage": b"\xff{" * 99, "a bit flips": flipped}
        path.write_bytes(put[how])
        self.others[f"{'a record' if flips == () else path.name}: {how}"] += 1


def orphans(home: Path) -> list[str]:
    """Processes of the campaign that are still there, by their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if f"CHAOS_HOME={home}".encode() in path.read_bytes():
                found.append(f"process {path.parent.name} is left over")
    return found


def finished(output: Path) -> dict[str, dict]:
    """The finished records of a folder, by run; damaged ones count as none."""
    made = {path.stem: finished_record(output, path.stem) for path in output.glob("records/[!.]*.json")}
    return {run_id: record for run_id, record in made.items() if record}


def state_of(output: Path) -> tuple[dict, dict]:
    """What has to be equal: the records without times and places, and the files of each run (adapters and
    heads as they are, decoded texts by item), but for its log."""
    files: dict[str, object] = {}
    for path in sorted(output.glob("runs/*/**/*")):
        content: object = path.read_bytes() if path.is_file() else "a folder"
        if path.suffix == ".yaml":  # which name the output folder
            content = sorted(path.read_text().replace(str(output), "OUTPUT").splitlines())
        if path.name != "log.txt":
            files[str(path.relative_to(output))] = content
    return {run_id: comparable(record) for run_id, record in finished(output).items()}, files


def differences(expected: tuple[dict, dict], output: Path) -> list[str]:
    """What of a folder is not as expected, in words; and what is left over."""
    (records, files), words = state_of(output), list[str]()
    for run_id, record in expected[0].items():
        if records.get(run_id) != record:
            keys = [key for key in record if records.get(run_id, {}).get(key) != record[key]]
            words.append(f"the record of run {run_id} differs in {', '.join(keys)}")
    for file in sorted(expected[1].keys() | files.keys()):
        if files.get(file) != expected[1].get(file):
            both = "differs" if file in expected[1] else "is left over"
            words.append(f"{file} {both if file in files else 'is missing'}")
    return words + [f"{path.relative_to(output)} is left over" for path in sorted(output.glob("records/.*"))]


def page(campaign: Campaign, seed: int, seconds: float) -> str:
    """docs/chaos.md, from what a campaign has counted."""
    kills, problems = campaign.kills, campaign.problems
    who, phases = sorted({who for who, _ in kills}), sorted({phase for _, phase in kills})
    rows = [["a run was", *who], ["---", *["---:"] * len(who)]]
    rows += [[phase, *(str(kills[name, phase] or "") for name in who)] for phase in phases]
    rows.append(["all", *(str(sum(kills[name, phase] for phase in phases)) for name in who)])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    good = (
        "Every record, adapter, head and text equals that of the undisturbed sweep, and nothing is left over."
    )
    verdict = "\n".join(f"- {words}" for words in problems) or good
    disturbed = "\n".join(f"- {words}: {count}" for words, count in sorted(campaign.others.items()))
    return f"""# A fault campaign

`make chaos` (tests/chaos.py; `N=` for more kills) disturbs sweeps of 12 tiny runs: VeRA, LoRA, AdaLoRA and
full fine-tuning of a BERT with dropout, and VeRA and LoRA of a GPT-2 that decodes texts. Each kill is aimed
at a phase of a run; one whose phase never came would be a problem below. Commands have one run at a time or
two. In the end everything is compared with an undisturbed sweep: records except times, costs and paths; files
byte for byte.

Measured on {datetime.date.today()}, 2 CPU cores, seed {seed}: {kills.total()} kills,
{campaign.commands} commands, in {seconds / 60:.0f} minutes.

## Verdict

{verdict}

## Kills

{table}

run: the run's process. server: what runs are forked from. command: what a user has started. everything:
all of them at once. stopped: the run's process is stopped there (SIGSTOP), another command, which no lock
keeps off, does its runs, and then the stopped one goes on.

## Other disturbances

{disturbed}
"""


def main(number: int = 100, seed: int = random.randrange(10**6)) -> int:
    home, begun = Path(tempfile.mkdtemp(prefix="chaos-")), time.monotonic()
    campaign = Campaign(home, number, seed)
    print(f"{number} kills, seed {seed}, in {home}", flush=True)
    campaign.go()
    time.sleep(2)
    campaign.problems += orphans(home)
    text = page(campaign, seed, time.monotonic() - begun)
    (ROOT / "docs" / "chaos.md").write_text(text, encoding="utf-8")
    print(text)
    return int(bool(campaign.problems))


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
