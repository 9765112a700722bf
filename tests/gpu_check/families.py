"""Every kind of task through `python -m runs`: the same run twice, and once killed in training and resumed.

Curves, hashes of predictions and texts are equal, on the device that was asked for."""

import contextlib
import json
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from running import started

from gpu_check import material
from gpu_check.report import Report

VERA = ["method=vera", "method.rank=40", "train.lr=1e-2"]
#: Epochs of a run that is killed after its second one: enough that there is time to see it.
EPOCHS = {"text": 12, "text, bf16": 12, "text, fp16": 12, "E2E": 10, "images": 12, "Llama in 4 bit": 6}
#: What two runs have in common that are the same one.
SAME = ("status", "steps", "curve", "predictions", "result")
#: Seconds that a run may take.
LIMIT = 120


def run(report: Report, home: Path) -> None:
    text = material.text(home)
    families = {
        "text": text,
        "text, bf16": [*text, "train.precision=bf16"],
        "text, fp16": [*text, "train.precision=fp16"],
        "E2E": material.e2e(home),
        "images": material.images(home),
        "Llama in 4 bit": material.llama(home),
    }
    if not report.on_gpu:
        report.absent("text, fp16")
        del families["text, fp16"]
    environment = material.environment(home)
    if report.on_gpu:  # each run is a process that does little at a time: several at once end sooner
        with ThreadPoolExecutor(len(families)) as pool:
            jobs = {
                name: pool.submit(family, *job(home, name, own, report.device))
                for name, own in families.items()
            }
            results = {name: future.result for name, future in jobs.items()}
    else:
        os.environ |= environment  # what is forked has ours
        results = {name: partial(family, *job(home, name, own, "cpu")) for name, own in families.items()}
    for name, result in results.items():
        with report.guarded(name):
            for what, good, detail in result():
                report.check(f"{name}: {what}", good, detail)
    # Last: CUDA has not begun in a process that is forked
    with report.guarded("what beam search writes is what the CPU writes"):
        texts(report, home, families["E2E"])


def job(home: Path, name: str, own: list[str], device: str) -> tuple[Path, list[str], str]:
    """What `family` is given: a folder of its own, and words."""
    words = [*own, *VERA, f"train.epochs={EPOCHS[name]}", f"device={device}", "checkpoint_minutes=0.001"]
    # No family waits for another
    return home / f"runs of {name.replace(',', '')}", [*words, "launcher.runs_per_device=8"], device


def family(home: Path, words: list[str], device: str) -> list[tuple[str, bool, str]]:
    """What is checked of a family, whether it holds, and a few words on it."""
    home.mkdir()
    first, second = (whole(home / name, words, device) for name in ("first", "second"))
    where = first["device"]
    found = [("it is done on the device that was asked for", where["type"] == device, where["name"])]
    found.append(("the same run twice", *same(first, second)))
    there, at = killed(home / "third", words, device)
    third = whole(home / "third", words, device)
    resumed = there and "resumed at step" in log(home / "third")
    equal, detail = same(first, third)
    found.append(
        ("killed and resumed", resumed and equal, f"{at}, {'' if resumed else 'not '}resumed; {detail}")
    )
    return found


def start(output: Path, words: list[str], device: str) -> Any:
    """`python -m runs` in a session of its own. On a CPU it is forked from this process, so that it need not
    import anything; a process that has met CUDA cannot be forked."""
    words = [*words, f"output={output}"]
    if device == "cpu":
        return started(*words)
    with open(f"{output}.txt", "ab") as screen:
        return subprocess.Popen(
            material.command(words),
            cwd=material.ROOT,
            env=material.environment(output.parent.parent),
            stdout=screen,
            stderr=screen,
            start_new_session=True,
        )


def lives(process: Any) -> bool:
    return process.poll() is None if isinstance(process, subprocess.Popen) else process.is_alive()


def end(process: Any) -> None:
    """Kills a command with all its processes."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait() if isinstance(process, subprocess.Popen) else process.join()


def whole(output: Path, words: list[str], device: str) -> dict[str, Any]:
    """A run from where it is to its end; its record."""
    process, until = start(output, words, device), time.monotonic() + LIMIT
    while lives(process) and time.monotonic() < until:
        time.sleep(0.02)
    end(process)
    records = [json.loads(path.read_bytes()) for path in (output / "records").glob("*.json")]
    if len(records) != 1 or records[0]["status"] != "done":
        screen = Path(f"{output}.txt").read_text() if Path(f"{output}.txt").exists() else ""
        raise AssertionError((screen + log(output))[-400:].strip().replace("\n", " | ") or "no record")
    return dict(records[0])


def killed(output: Path, words: list[str], device: str) -> tuple[bool, str]:
    """Kills a run (SIGKILL) once it has been evaluated twice. Whether it was unfinished, and where it was."""
    process, until = start(output, words, device), time.monotonic() + LIMIT
    while lives(process) and log(output).count("\nepoch ") < 2 and time.monotonic() < until:
        time.sleep(0.005)
    end(process)
    epochs, unfinished = log(output).count("\nepoch "), not list((output / "records").glob("*.json"))
    return unfinished and epochs > 0, f"killed after {epochs} epochs"


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
    found = {}
    for device in dict.fromkeys((report.device, "cpu")):
        found[device] = decoded([*words, *VERA, f"device={device}", f"output={home}/decoded_{device}"])
    name, count = "what beam search writes is what the CPU writes", len(found["cpu"])
    if not report.on_gpu:
        report.measured("texts of beam search", f"{count} prompts", texts=found["cpu"])
        report.absent(name)
        return
    differ = sum(here != there for here, there in zip(found[report.device], found["cpu"], strict=True))
    report.check(name, not differ, f"{count - differ} of {count} prompts", texts=found["cpu"])


def decoded(words: list[str]) -> list[Any]:
    """The tokens that beam search gives for each prompt, of a model as it begins."""
    from runs.config import expand
    from runs.training.loop import Training

    (own,) = expand(words)
    training = Training(own, "0" * 12, lambda event: None)
    training.raw_model.eval()
    with torch.no_grad():
        return list(training.task.decode(training.raw_model, range(len(training.task.items))))
