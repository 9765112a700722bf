"""Every kind of task through `python -m runs`: the same run twice, and once killed in
training and resumed.

Curves, hashes of predictions and texts are equal on the device asked for. On a CPU one
of texts alone."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from running import ROOT, replace_words
from tiny import save_gpt2

from gpu_check import DEVICE, GPU_ONLY, ON_GPU, cases
from runs.config import expand
from runs.training.loop import Training

pytestmark = [pytest.mark.determinism, pytest.mark.slow]

#: The words of a family's tiny run, and those that are added.
FAMILIES = {
    "text": ("dropout_words", []),
    "text, bf16": ("dropout_words", ["train.precision=bf16"]),
    "text, fp16": ("dropout_words", ["train.precision=fp16"]),
    "E2E": ("sharp_words", []),
    "images": ("image_words", []),
    "Llama in 4 bit": (
        "alpaca_words",
        [
            "model.quantise=nf4",
            "train.precision=bf16",
            "micro_batch=2",
            "gradient_checkpointing=true",
        ],
    ),
}
VERA = ["method=vera", "method.rank=40", "checkpoint_minutes=0.001", f"device={DEVICE}"]
VERA += ["launcher.runs_per_device=8"]  # none waits for another
#: What two runs have in common that are the same one.
SAME = ("status", "steps", "curve", "predictions", "result")
#: Seconds that a run may take.
LIMIT = 120


@pytest.fixture
def sharp_words(e2e_words, tmp_path):
    """GPT-2, whose logits differ enough that rounding does not choose among tokens."""
    model = save_gpt2(tmp_path / "gpt2", initializer_range=0.2)
    return replace_words(e2e_words, **{"model.path": model, "task.max_new_tokens": 12})


@pytest.mark.parametrize(
    ("family", "epochs"),  # it is killed after the second
    cases([(name, 6 if "Llama" in name else 10) for name in FAMILIES], [("text", 10)]),
)
def test_a_run_is_the_same_twice_and_killed_and_resumed(
    family, epochs, request, tmp_path, found
):
    fixture, more = FAMILIES[family]
    words = [*request.getfixturevalue(fixture), *more, *VERA, f"train.epochs={epochs}"]
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    with ThreadPoolExecutor() as pool:  # each is a process that does little at a time
        runs = [
            pool.submit(whole, output, words)
            for output in (first, second)[: 1 + ON_GPU]
        ]
        at = killed(third, words)
        one, *again = [run.result() for run in runs] + [whole(third, words)]
    found(f"killed after {at} epochs, {one['steps']} steps; {one['device']['name']}")
    assert one["device"]["type"] == DEVICE
    assert at > 0
    assert "resumed at step" in log(third)
    assert [differs(one, other) for other in again] == [[]] * len(again)


def command(words: list[str], home: Path, *places: Path, **more: str) -> dict[str, Any]:
    """What subprocess is given for `python -m runs`, without Java, whose scores take
    ten seconds. places: before the others on Python's path; more: of its
    environment."""
    programs = home / "bin"
    programs.mkdir(exist_ok=True)
    for name in ("git", "uname"):
        with contextlib.suppress(FileExistsError):
            (programs / name).symlink_to(shutil.which(name) or "nowhere")
    path = os.pathsep.join([*map(str, places), str(ROOT)])
    environment = os.environ | {"PATH": str(programs), "PYTHONPATH": path} | more
    return {
        "args": [sys.executable, "-W", "ignore", "-m", "runs", *words],
        "cwd": ROOT,
        "env": environment,
    }


@contextlib.contextmanager
def started(output: Path, words: list[str]) -> Any:
    """`python -m runs` in a session of its own, all of which is killed at the end."""
    with open(f"{output}.txt", "ab") as screen:
        of = command(replace_words(words, output=output), output.parent)
        process = subprocess.Popen(
            **of, stdout=screen, stderr=screen, start_new_session=True
        )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def whole(output: Path, words: list[str]) -> dict[str, Any]:
    """A run from where it is to its end; its record."""
    with (
        started(output, words) as process,
        contextlib.suppress(subprocess.TimeoutExpired),
    ):
        process.wait(LIMIT)
    records = [
        json.loads(path.read_bytes()) for path in (output / "records").glob("*.json")
    ]
    screen = Path(f"{output}.txt").read_text() + log(output)
    assert [record["status"] for record in records] == ["done"], (
        screen[-400:].strip().replace("\n", " | ")
    )
    return dict(records[0])


def killed(output: Path, words: list[str]) -> int:
    """Kills a run (SIGKILL) once it has been evaluated twice. After how many epochs; 0
    where it was done."""
    with started(output, words) as process:
        until = time.monotonic() + LIMIT
        while (
            process.poll() is None
            and log(output).count("\nepoch ") < 2
            and time.monotonic() < until
        ):
            time.sleep(0.005)
    return (
        0
        if list((output / "records").glob("*.json"))
        else log(output).count("\nepoch ")
    )


def log(output: Path) -> str:
    return "".join(path.read_text() for path in output.rglob("log.txt"))


def differs(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """In what two records that should tell of the same numbers differ."""
    of = [
        {k: v for k, v in (r["texts"] or {}).items() if "seconds" not in k}
        for r in (one, other)
    ]
    return [key for key in SAME if one[key] != other[key]] + ["texts"] * (
        of[0] != of[1]
    )


@GPU_ONLY
def test_beam_search_writes_what_the_cpu_writes(sharp_words, tmp_path, found):
    """With the same weights, in float32."""
    words = [*sharp_words, "method=vera", "method.rank=40"]
    here, there = (
        decoded([*words, f"device={device}"], tmp_path / device)
        for device in (DEVICE, "cpu")
    )
    found(f"{len(there)} prompts", texts=there)
    assert here == there


def decoded(words: list[str], output: Path) -> list[Any]:
    """The tokens that beam search gives for each prompt, of a model as it begins."""
    training = Training(
        expand(replace_words(words, output=output))[0], "0" * 12, lambda event: None
    )
    training.raw_model.eval()
    with torch.no_grad():
        return list(
            training.task.decode(training.raw_model, range(len(training.task.items)))
        )
