"""The texts that a trained model writes, and their scores: for the last epoch, and for the best one where it
is another.

Texts are saved as they come, so that a killed run goes on where it was. They stay in the run's folder:
decoded_last.jsonl and, in the format of the metrics' own scripts, the task's text files."""

import contextlib
import hashlib
import json
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from accelerate.utils import gather_object

import vera
from tasks.base import Decoding

if TYPE_CHECKING:
    from runs.train import Training

#: Variant of decoding -> a text for each item.
Texts = dict[str, list[str]]


def decode(training: "Training") -> dict[str, Any]:
    """Decodes with the last and with the best epoch's adapter, and scores; the record's `texts`."""
    task, curve = cast(Decoding, training.task), training.state["curve"]
    last, best = len(curve["epoch"]) - 1, training.best()
    keep, adapter = training.config["keep"], training.folder / "adapter.safetensors"
    found = {"last": _texts(training, "last")}
    if keep in ("last", "both"):
        training.write(adapter)
    if best == last:
        found["best"] = found["last"]
        (training.folder / "decoded_best.jsonl").unlink(missing_ok=True)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what copying a transformers model touches
            training.method = vera.load(training.raw_model, training.best_file)
        found["best"] = _texts(training, "best")
    if keep == "best":
        training.write(adapter)
    epochs = {"last": curve["epoch"][last], "best": curve["epoch"][best]}
    training.report({"phase": "scoring"})
    if not training.accelerator.is_main_process:  # which writes no record
        return {}
    training.check_owner()
    write(task, training.folder, found)
    entries = scores(task, found, epochs)
    for entry in entries:
        words = ", ".join(
            f"{key} {value:.2f}"
            for key, value in entry.items()
            if isinstance(value, float) and key != "epoch"
        )
        print(f"{entry['which']} epoch, {entry['variant']}: {words}", flush=True)
    about = {"split": task.split, "items": len(task.items), "decoding": task.settings()}
    return {**about, "scores": entries}


def rehearse(training: "Training") -> None:
    """Finds out before hours of training whether the model can be decoded. Raises DataError in one line where
    it cannot."""
    training.raw_model.eval()
    with torch.no_grad(), training.accelerator.autocast():
        cast(Decoding, training.task).rehearse(training.raw_model)


def scores(task: Decoding, found: Mapping[str, Texts], epochs: Mapping[str, float]) -> list[dict[str, Any]]:
    """An entry for each epoch (last, best) and variant, the last epoch by the protocol's variant first."""
    kept: dict[str, dict[str, Any]] = {}  # equal texts have equal scores, and METEOR takes a while
    entries = []
    for which, texts in found.items():
        for variant in task.variants:
            digest = hashlib.sha256(json.dumps(texts[variant]).encode()).hexdigest()[:16]
            if digest not in kept:
                kept[digest] = task.scores(texts[variant])
            entries.append(
                {"which": which, "epoch": epochs[which], "variant": variant, **kept[digest], "hash": digest}
            )
    return entries


def write(task: Decoding, folder: Path, found: Mapping[str, Texts]) -> None:
    """The texts as files in the format of the metrics' own scripts."""
    task.write(
        folder,
        {f"{which}_{variant}": texts[variant] for which, texts in found.items() for variant in task.variants},
    )


def read(task: Decoding, folder: Path) -> dict[str, Texts]:
    """The texts of a finished run, by epoch (last, and best where it is another). Raises ValueError where one
    is missing."""
    found = {}
    for which in ("last", "best"):
        path = folder / f"decoded_{which}.jsonl"
        if which == "last" or path.is_file():
            by_item = {line["item"]: line["texts"] for line in _lines(path)[1:]}
            missing = [i for i in range(len(task.items)) if i not in by_item]
            if missing:
                raise ValueError(f"{len(missing)} of the {len(task.items)} texts are missing or damaged")
            found[which] = {v: [by_item[i][v] for i in range(len(task.items))] for v in task.variants}
    return {"last": found["last"], "best": found.get("best", found["last"])}


def _texts(training: "Training", which: str) -> Texts:
    """Every item's texts; those that an earlier try has saved are not decoded again."""
    task, started = cast(Decoding, training.task), time.monotonic()
    order = sorted(range(len(task.items)), key=lambda i: len(task.items[i][0]))
    size = max(1, training.config["eval_batch"] // task.settings()["beams"])
    found = write_down(
        training,
        training.folder / f"decoded_{which}.jsonl",
        {"run": training.run_id, "weights": weights(training), "decoding": task.settings()},
        [order[i : i + size] for i in range(0, len(order), size)],
        lambda items: task.decode(training.raw_model, items),
        task.variants,
        f"decoding ({which} epoch)",
    )
    seconds = training.state["seconds"]
    seconds["decode"] = seconds.get("decode", 0.0) + time.monotonic() - started
    return {variant: [found[i][variant] for i in range(len(task.items))] for variant in task.variants}


def write_down(
    training: "Training",
    path: Path,
    of: Mapping[str, Any],
    batches: Sequence[Sequence[int]],
    decode: Callable[[Sequence[int]], list[dict[str, str]]],
    variants: Sequence[str],
    phase: str,
) -> dict[int, dict[str, str]]:
    """Each item's texts by variant, saved in `path` as they come; processes share the batches. What an
    earlier try has saved there is not decoded again, if it is of the same `of`: what defines the texts.

    Items that meet in a batch meet again after a kill: sums of floats depend on the company.
    """
    accelerator, total = training.accelerator, sum(map(len, batches))
    saved = _saved(path, of, variants)
    accelerator.wait_for_everyone()  # all have read before the first one writes
    file = None
    if accelerator.is_main_process:
        training.check_owner()
        file = _continue(path, of, saved)
    left = [batch for batch in batches if not saved.keys() >= set(batch)]
    world, rank = accelerator.num_processes, accelerator.process_index
    rounds = math.ceil(len(left) / world)
    if saved:
        print(f"{len(saved)} of the {total} texts ({path.stem}) are there already", flush=True)

    def report(turn: int, turns: int, seconds_left: float | None = None) -> None:
        quarter = turn == turns or 4 * turn // turns != 4 * (turn - 1) // turns
        event = {
            "phase": phase,
            "done": len(saved),
            "of": total,
            "milestone": quarter,
            "seconds_left": seconds_left,
        }
        training.report(event)

    training.raw_model.eval()
    begun = time.monotonic()
    with _merged(training), contextlib.closing(file) if file else contextlib.nullcontext():
        for turn in range(rounds):
            report(turn, rounds, (time.monotonic() - begun) / turn * (rounds - turn) if turn else None)
            mine = next(iter(left[turn * world + rank :]), [])
            with accelerator.autocast():
                texts = decode(mine) if mine else []
            for item, written in gather_object(list(zip(mine, texts, strict=True))):
                saved[item] = written
                if file:
                    file.write(json.dumps({"item": item, "texts": written}, ensure_ascii=False) + "\n")
            if file:
                file.flush()
    report(1, 1)
    return saved


@contextlib.contextmanager
def _merged(training: "Training") -> Any:
    """The adapter in the weights, where the method can do that: every step then costs what the base model's
    does."""
    method, model = training.method, training.raw_model
    try:
        method.merge(model)
    except vera.AdapterError:
        yield
        return
    try:
        yield
    finally:
        method.unmerge(model)


def weights(training: "Training") -> str:
    """A hash of the trained values: texts of other values are no part of this run."""
    digest = hashlib.sha256()
    for name, tensor in sorted(
        (name, p) for name, p in training.raw_model.named_parameters() if p.requires_grad
    ):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _saved(path: Path, of: Mapping[str, Any], variants: Sequence[str]) -> dict[int, dict[str, str]]:
    """The texts that a file holds, if they are of these weights and settings; a last line that was cut off is
    left out."""
    header, *lines = _lines(path) or [None]
    if header != of:
        return {}
    found = {}
    for line in lines:
        if not (
            isinstance(line, dict) and type(line.get("item")) is int and isinstance(line.get("texts"), dict)
        ):
            break
        texts = {variant: line["texts"].get(variant) for variant in variants}
        if not all(isinstance(text, str) for text in texts.values()):
            break
        found[line["item"]] = texts
    return found


def _lines(path: Path) -> list[Any]:
    """A file's JSON lines up to the first that is damaged, as the last one is that a kill cut off; none
    without a file."""
    found: list[Any] = []
    with contextlib.suppress(OSError, ValueError, RecursionError):
        text = path.read_text(encoding="utf-8", errors="replace")  # the kill may have cut a letter
        *whole, _ = text.split("\n")  # not splitlines: a text may hold other ends of lines
        for line in whole:
            found.append(json.loads(line))
    return found


def _continue(path: Path, of: Mapping[str, Any], saved: Mapping[int, dict[str, str]]) -> Any:
    """The file, open at its end, with the header and what is saved: written anew, since a kill may have cut a
    line."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    lines = [of, *({"item": item, "texts": texts} for item, texts in saved.items())]
    partial.write_text(
        "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
    )
    partial.replace(path)
    return open(path, "a", encoding="utf-8")
