"""The texts that a trained model writes, and their scores, for the last epoch and the best one.

Texts are saved as they come, so that a killed run continues with the missing ones. They stay in the run's
folder: decoded_last.jsonl, decoded_best.jsonl, and the task's text files in the format of the metrics' own
scripts."""

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate.utils import gather_object

import vera
from runs.record import read_regular, write_atomically
from runs.training.context import Context
from tasks.base import Decoding, prompts_at_once

#: Variant of decoding -> a text for each item.
Texts = dict[str, list[str]]


def decode_epochs(
    context: Context, epochs: Sequence[float], best: int, seconds: dict[str, float]
) -> dict[str, Any]:
    """Decodes with the last and with the best epoch's adapter, and scores; the record's `texts`.

    epochs: all that were evaluated; best: index of the best one. seconds: "decode" becomes what decoding
    took, over all attempts. The model carries the best epoch's adapter at the end.
    """
    task, last = cast(Decoding, context.task), len(epochs) - 1
    keep, adapter = context.config["keep"], context.folder / "adapter.safetensors"
    clock = Clock(context.folder / "decode_seconds.json", weights(context))
    texts = {"last": _texts(context, "last", clock)}
    if keep in ("last", "both"):
        context.write(adapter)
    if best == last:
        texts["best"] = texts["last"]
        (context.folder / "decoded_best.jsonl").unlink(missing_ok=True)
    else:
        vera.start_from(context.raw_model, context.best_file)
        texts["best"] = _texts(context, "best", clock)
    seconds["decode"] = clock.seconds()
    if keep == "best":
        context.write(adapter)
    context.report({"phase": "scoring"})
    if not context.accelerator.is_main_process:  # the main process writes the record
        return {}
    write(task, context.folder, texts)
    entries = scores(task, texts, {"last": epochs[last], "best": epochs[best]})
    for entry in entries:
        words = ", ".join(
            f"{key} {value:.2f}"
            for key, value in entry.items()
            if isinstance(value, float) and key != "epoch"
        )
        print(f"{entry['which']} epoch, {entry['variant']}: {words}", flush=True)
    about = {"split": task.split, "items": len(task.items), "decoding": task.settings()}
    return {**about, "scores": entries}


def rehearse(context: Context) -> None:
    """Tests before hours of training that the model can decode. Raises DataError in one line where it
    cannot."""
    context.raw_model.eval()
    with torch.no_grad(), context.accelerator.autocast():
        cast(Decoding, context.task).rehearse(context.raw_model)


def scores(task: Decoding, texts: Mapping[str, Texts], epochs: Mapping[str, float]) -> list[dict[str, Any]]:
    """An entry for each epoch (last, best) and variant; the protocol's variant of the last epoch is first."""
    by_hash: dict[str, dict[str, Any]] = {}  # equal texts are scored once: METEOR takes a while
    entries = []
    for which, of_epoch in texts.items():
        for variant in task.variants:
            digest = hashlib.sha256(json.dumps(of_epoch[variant]).encode()).hexdigest()[:16]
            if digest not in by_hash:
                by_hash[digest] = task.scores(of_epoch[variant])
            about = {"which": which, "epoch": epochs[which], "variant": variant}
            entries.append({**about, **by_hash[digest], "hash": digest})
    return entries


def write(task: Decoding, folder: Path, texts: Mapping[str, Texts]) -> None:
    """Writes the texts as files in the format of the metrics' own scripts."""
    files = {f"{which}_{v}": of_epoch[v] for which, of_epoch in texts.items() for v in task.variants}
    task.write(folder, files)


def read(task: Decoding, folder: Path) -> dict[str, Texts]:
    """The texts of a finished run for the last and the best epoch. Raises ValueError where one is missing."""
    texts = {}
    for which in ("last", "best"):
        path = folder / f"decoded_{which}.jsonl"
        if which == "last" or path.is_file():
            by_item = {line["item"]: line["texts"] for line in _lines(path)[1:]}
            missing = [i for i in range(len(task.items)) if i not in by_item]
            if missing:
                raise ValueError(f"{len(missing)} of the {len(task.items)} texts are missing or damaged")
            texts[which] = {v: [by_item[i][v] for i in range(len(task.items))] for v in task.variants}
    return {"last": texts["last"], "best": texts.get("best", texts["last"])}


class Clock:
    """The seconds that decoding has taken, those of killed attempts included: `save` keeps them in a file.

    weights: of the last epoch; the file of other weights does not count.
    """

    def __init__(self, path: Path, weights: str) -> None:
        self._path, self._weights, self._started = path, weights, time.monotonic()
        with contextlib.suppress(ValueError, TypeError, KeyError):  # no such file, or a damaged one
            saved = json.loads(read_regular(path))
            if saved["weights"] == weights and 0 <= float(saved["seconds"]) < math.inf:
                self._started -= float(saved["seconds"])

    def seconds(self) -> float:
        """The seconds so far."""
        return time.monotonic() - self._started

    def save(self) -> None:
        """Writes the seconds so far, for an attempt that goes on after a kill."""
        values = {"weights": self._weights, "seconds": round(self.seconds(), 3)}
        write_atomically(self._path, json.dumps(values) + "\n")


def _texts(context: Context, which: str, clock: Clock) -> Texts:
    """Every item's texts; those that an earlier attempt has saved are not decoded again."""
    task = cast(Decoding, context.task)

    def decode(items: Sequence[int]) -> list[dict[str, str]]:
        texts = task.decode(context.raw_model, items)
        if context.accelerator.is_main_process:
            clock.save()
        return texts

    order = sorted(range(len(task.items)), key=lambda i: len(task.items[i][0]))
    on_gpu = context.accelerator.device.type == "cuda"
    size = prompts_at_once(context.config["eval_batch"], task.settings()["beams"], on_gpu)
    by_item = write_down(
        context,
        context.folder / f"decoded_{which}.jsonl",
        {"run": context.run_id, "weights": weights(context), "decoding": task.settings(), "prompts": size},
        [order[i : i + size] for i in range(0, len(order), size)],
        decode,
        task.variants,
        f"decoding ({which} epoch)",
    )
    return {variant: [by_item[i][variant] for i in range(len(task.items))] for variant in task.variants}


def write_down(
    context: Context,
    path: Path,
    of: Mapping[str, Any],
    batches: Sequence[Sequence[int]],
    decode: Callable[[Sequence[int]], list[dict[str, str]]],
    variants: Sequence[str],
    phase: str,
) -> dict[int, dict[str, str]]:
    """Decodes each item and saves the texts in `path` as they come; processes share the batches. Returns an
    item's texts by variant.

    of: what defines the texts, the file's first line. Texts that an earlier attempt saved under the same `of`
    are not decoded again. The batches stay the same after a kill, since a sum of floats depends on them.
    """
    accelerator, total = context.accelerator, sum(map(len, batches))
    saved = _saved(path, of, variants)
    accelerator.wait_for_everyone()  # all have read the file before the main process writes
    file = None
    if accelerator.is_main_process:
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
        context.report(event)

    context.raw_model.eval()
    begun = time.monotonic()
    with _merged(context), contextlib.closing(file) if file else contextlib.nullcontext():
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
def _merged(context: Context) -> Any:
    """Merges the adapter into the weights, where the method can: a step then costs as much as without it."""
    method, model = context.method, context.raw_model
    try:
        method.merge(model)
    except vera.AdapterError:
        yield
        return
    try:
        yield
    finally:
        method.unmerge(model)


def weights(context: Context) -> str:
    """A hash of the trained values, which saved texts must come from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(
        (name, p) for name, p in context.raw_model.named_parameters() if p.requires_grad
    ):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _saved(path: Path, of: Mapping[str, Any], variants: Sequence[str]) -> dict[int, dict[str, str]]:
    """The texts of a file whose first line is `of`, up to the first damaged line."""
    header, *lines = _lines(path) or [None]
    if header != of:
        return {}
    saved = {}
    for line in lines:
        if not (
            isinstance(line, dict) and type(line.get("item")) is int and isinstance(line.get("texts"), dict)
        ):
            break
        texts = {variant: line["texts"].get(variant) for variant in variants}
        if not all(isinstance(text, str) for text in texts.values()):
            break
        saved[line["item"]] = texts
    return saved


def _lines(path: Path) -> list[Any]:
    """A file's JSON lines up to the first damaged one (a kill cuts off the last); none without a file."""
    values: list[Any] = []
    with contextlib.suppress(OSError, ValueError, RecursionError):
        text = path.read_text(encoding="utf-8", errors="replace")  # the kill may have cut a letter
        *whole, _ = text.split("\n")  # not splitlines: a text may hold other ends of lines
        for line in whole:
            values.append(json.loads(line))
    return values


def _continue(path: Path, of: Mapping[str, Any], saved: Mapping[int, dict[str, str]]) -> Any:
    """Writes the file again, since a kill may have cut its last line, and opens it at its end."""
    lines = [of, *({"item": item, "texts": texts} for item, texts in saved.items())]
    write_atomically(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    return open(path, "a", encoding="utf-8")
