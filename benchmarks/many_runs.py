"""What a sweep of many tiny runs costs beside their training: time and CPU time of a
run, and the memory of the processes that live as long as the sweep."""

import contextlib
import itertools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from tqdm import tqdm
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from benchmarks.training import Row
from runs.command.errors import UserError
from runs.machine.processes import process_environment

#: The words of the texts: each of the first half makes a text good, the others bad.
WORDS = ["good", "kind", "calm", "bright", "bad", "rude", "loud", "dull"]
#: The special tokens of the tiny model's tokenizer.
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
#: How many seconds lie between two looks at the processes.
SAMPLING_INTERVAL_S = 0.1
MB = 2**20


@dataclass(frozen=True)
class Sample:
    """The processes of a command at one moment.

    Attributes:
        runs: how many have ended.
        wall_s: seconds since the command started.
        cpu_s: CPU seconds of the command, of the server that runs are forked from, and
            of the runs that have ended.
        parent_rss, parent_pss: bytes of the command's memory, where PSS counts a page
            that processes share in parts.
        server_rss: bytes of the memory of the server that runs are forked from.
    """

    runs: int
    wall_s: float
    cpu_s: float
    parent_rss: int
    parent_pss: int
    server_rss: int


def many_runs(number: int) -> list[Row]:
    """Does `number` runs of one step in one command, one after another. Returns a row
    for each mark (`marks_up_to`): what each run since the mark before has cost, and the
    memory at the mark."""
    with tempfile.TemporaryDirectory() as folder:
        samples = list(_samples(Path(folder), number))
        training_seconds = _training_seconds(Path(folder))
    rows = []
    for before, sample in itertools.pairwise(samples):
        count = sample.runs - before.runs
        seconds = (sample.wall_s - before.wall_s) / count
        cpu_seconds = (sample.cpu_s - before.cpu_s) / count
        row = {
            "part": "runs",
            "runs": sample.runs,
            "new runs": count,
            "seconds a run": round(seconds, 3),
            "of them training": round(training_seconds, 3),
            "overhead a run, s": round(seconds - training_seconds, 3),
            "CPU seconds a run": round(cpu_seconds, 3),
            "parent's RSS, MB": round(sample.parent_rss / MB, 1),
            "parent's PSS, MB": round(sample.parent_pss / MB, 1),
            "server's RSS, MB": round(sample.server_rss / MB, 1),
        }
        rows.append(row)
    return rows


def marks_up_to(number: int) -> list[int]:
    """The marks of a command of `number` runs: after how many of them a sample is taken. These
    are 1, 10, each hundred, and the end."""
    marks = {1, 10, *range(100, number, 100), number}
    return sorted(mark for mark in marks if mark <= number)


def _command(folder: Path, number: int) -> list[str]:
    """Writes a tiny random BERT and 16 rows into `folder`. Returns a command that does
    `number` runs with them, one for each seed."""
    _write_model(folder / "bert")
    lines = ["text,label"]
    for index in range(16):
        word = WORDS[index % len(WORDS)]
        label = "good" if word in WORDS[:4] else "bad"
        lines.append(f"a {word} text,{label}")
    rows = folder / "rows.csv"
    rows.write_text("\n".join(lines) + "\n")
    return [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "runs",
        "model=encoder",
        f"model.path={folder / 'bert'}",
        "task=text",
        "task.name=tones",
        f"task.train_file={rows}",
        f"task.dev_file={rows}",
        "method=vera",
        f"seed=range({number})",
        "device=cpu",
        "tracking=off",
        "train.max_steps=1",
        "train.epochs=1",
        "train.effective_batch=8",
        "table=false",
        f"output={folder / 'outputs'}",
    ]


def _write_model(folder: Path) -> None:
    """Writes a tiny random BERT, and a tokenizer that knows WORDS."""
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    torch.manual_seed(0)
    config = BertConfig(vocab_size=len(vocabulary), max_position_embeddings=48, **sizes)
    BertModel(config).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
    ).save_pretrained(folder)


def _samples(folder: Path, number: int) -> Iterator[Sample]:
    """Runs the command in a process of its own. Yields a sample at its start, and one at
    each mark (`marks_up_to`). folder: for its files. Raises UserError if the command
    fails."""
    command = _command(folder, number)
    log = folder / "log.txt"
    marks = marks_up_to(number)
    started = time.perf_counter()
    with (
        log.open("wb") as printed,
        tqdm(total=number, desc="runs", leave=False, disable=None) as bar,
        subprocess.Popen(
            command, env=process_environment(), stdout=printed, stderr=subprocess.STDOUT
        ) as process,
    ):
        latest = Sample(
            runs=0, wall_s=0.0, cpu_s=0.0, parent_rss=0, parent_pss=0, server_rss=0
        )
        yield latest
        while process.poll() is None:
            # a name with a dot in front is a record that is still being written
            runs = len(list(folder.glob("outputs/records/[!.]*.json")))
            bar.update(runs - bar.n)
            with contextlib.suppress(psutil.Error):  # the command has just ended
                latest = _sample(process.pid, runs, time.perf_counter() - started)
            if marks and latest.runs >= marks[0]:
                yield latest
                marks = [mark for mark in marks if mark > latest.runs]
            time.sleep(SAMPLING_INTERVAL_S)
    if process.returncode:
        last_line = log.read_text().strip().splitlines()[-1:]
        raise UserError(f"the runs that are timed failed: {last_line}")
    if marks:
        # The last record was written after the last look at the processes: now that they
        # have ended, the CPU time and memory of that look stand for those at the end
        yield replace(latest, runs=number, wall_s=time.perf_counter() - started)


def _sample(pid: int, runs: int, wall_s: float) -> Sample:
    """A sample of the command's processes. pid: the command's. runs, wall_s: see Sample.
    Raises psutil.Error where the command has ended."""
    parent = psutil.Process(pid)
    memory = parent.memory_full_info()
    times = [parent.cpu_times()]
    server_rss = 0
    for child in parent.children():
        times.append(child.cpu_times())
        # The largest child: the others are small helpers of Python
        server_rss = max(server_rss, child.memory_info().rss)
    cpu_s = 0.0
    for process_times in times:
        cpu_s += process_times.user + process_times.system
        cpu_s += process_times.children_user + process_times.children_system
    return Sample(runs, wall_s, cpu_s, memory.rss, memory.pss, server_rss)


def _training_seconds(folder: Path) -> float:
    """The mean seconds that a run has trained and evaluated, from the records below
    `folder`."""
    seconds = []
    for path in folder.glob("outputs/records/*.json"):
        cost = json.loads(path.read_text())["cost"]
        seconds.append(cost["train_seconds"] + cost["evaluate_seconds"])
    return sum(seconds) / len(seconds)
