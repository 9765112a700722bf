"""Every kind of task through `python -m runs`: the same run twice, and once killed in training and resumed.

Curves, hashes of predictions and texts are equal on the device asked for. On a CPU one of texts alone."""

import contextlib
import json
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from gpu_check import material
from gpu_check.report import Report

VERA = ["method=vera", "method.rank=40", "train.lr=1e-2"]
#: What two runs have in common that are the same one.
SAME = ("status", "steps", "curve", "predictions", "result")
#: Seconds that a run may take.
LIMIT = 120


def run(report: Report, home: Path) -> None:
    families = {"text": material.text(home)}
    more = {"text, bf16": [*families["text"], "train.precision=bf16"]}
    more |= {"text, fp16": [*families["text"], "train.precision=fp16"]}
    more |= {"E2E": material.e2e(home), "images": material.images(home)}
    more |= {"Llama in 4 bit": material.llama(home)}
    report.absent(*more)
    families |= more if report.on_gpu else {}
    with ThreadPoolExecutor(len(families)) as pool:  # each is a process that does little at a time
        jobs = {name: pool.submit(family, home, name, families[name], report.device) for name in families}
    for name, job in jobs.items():
        with report.guarded(name):
            for what, good, detail in job.result():
                report.check(f"{name}: {what}", good, detail)
    with report.guarded("what beam search writes is what the CPU writes"):
        texts(report, home, more["E2E"])


def family(home: Path, name: str, own: list[str], device: str) -> list[tuple[str, bool, str]]:
    """What is checked of a family, whether it holds, and a few words on it."""
    home = home / f"runs of {name.replace(',', '')}"
    home.mkdir()
    epochs = 6 if "Llama" in name else 10  # it is killed after the second
    words = [*own, *VERA, f"train.epochs={epochs}", f"device={device}", "checkpoint_minutes=0.001"]
    words += ["launcher.runs_per_device=8"]  # no family waits for another
    first = whole(home / "first", words)
    where = first["device"]
    found = [("it is done on the device that was asked for", where["type"] == device, where["name"])]
    if device == "cuda":
        found.append(("the same run twice", *same(first, whole(home / "second", words))))
    at = killed(home / "third", words)
    equal, detail = same(first, whole(home / "third", words))
    resumed = "resumed at step" in log(home / "third")
    detail = f"killed after {at} epochs, {'' if resumed else 'not '}resumed; {detail}"
    return [*found, ("killed and resumed", resumed and equal and at > 0, detail)]


@contextlib.contextmanager
def started(output: Path, words: list[str]) -> Any:
    """`python -m runs` in a session of its own, all of which is killed at the end."""
    command = material.command([*words, f"output={output}"], output.parent)
    with open(f"{output}.txt", "ab") as screen:
        process = subprocess.Popen(**command, stdout=screen, stderr=screen, start_new_session=True)
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def whole(output: Path, words: list[str]) -> dict[str, Any]:
    """A run from where it is to its end; its record."""
    with started(output, words) as process, contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(LIMIT)
    records = [json.loads(path.read_bytes()) for path in (output / "records").glob("*.json")]
    if len(records) != 1 or records[0]["status"] != "done":
        screen = Path(f"{output}.txt").read_text() + log(output)
        raise AssertionError(screen[-400:].strip().replace("\n", " | ") or "no record")
    return dict(records[0])


def killed(output: Path, words: list[str]) -> int:
    """Kills a run (SIGKILL) once it has been evaluated twice. After how many epochs; 0 where it was done."""
    with started(output, words) as process:
        until = time.monotonic() + LIMIT
        while process.poll() is None and log(output).count("\nepoch ") < 2 and time.monotonic() < until:
            time.sleep(0.005)
    return 0 if list((output / "records").glob("*.json")) else log(output).count("\nepoch ")


def log(output: Path) -> str:
    return "".join(path.read_text() for path in output.rglob("log.txt"))


def same(one: dict[str, Any], other: dict[str, Any]) -> tuple[bool, str]:
    """Whether two records tell of the same numbers, and what differs."""
    differs = [key for key in SAME if one[key] != other[key]]
    of = [{k: v for k, v in (r["texts"] or {}).items() if "seconds" not in k} for r in (one, other)]
    differs += ["texts"] if of[0] != of[1] else []
    steps = f"{one['steps']} steps, {len(one['curve']['epoch'])} evaluations"
    return not differs, f"other {', '.join(differs)}" if differs else steps


def texts(report: Report, home: Path, words: list[str]) -> None:
    """Decodes on the device and on the CPU with the same weights, in float32."""
    name, found = "what beam search writes is what the CPU writes", {}
    for device in dict.fromkeys((report.device, "cpu")):
        found[device] = decoded([*words, *VERA, f"device={device}", f"output={home}/decoded_{device}"])
    prompts = len(found["cpu"])
    report.measured("texts of beam search", f"{prompts} prompts", texts=found["cpu"])
    report.absent(name)
    if report.on_gpu:
        same = sum(here == there for here, there in zip(found["cuda"], found["cpu"], strict=True))
        report.check(name, same == prompts, f"{same} of {prompts} prompts")


def decoded(words: list[str]) -> list[Any]:
    """The tokens that beam search gives for each prompt, of a model as it begins."""
    from runs.config import expand
    from runs.training.loop import Training

    training = Training(expand(words)[0], "0" * 12, lambda event: None)
    training.raw_model.eval()
    with torch.no_grad():
        return list(training.task.decode(training.raw_model, range(len(training.task.items))))
