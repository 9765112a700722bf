"""The texts that a trained model writes, and their scores, for the last epoch and the
best one.

Texts are saved as they come, so that a killed run continues with the missing ones. They
stay in the run's folder: decoded_last.jsonl, decoded_best.jsonl, and the task's files
in the format of the metrics' scripts."""

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate.utils import gather_object

import vera
from runs.record.items import pack
from runs.record.ledger import write_atomically
from runs.training.checkpoint import digest_of
from runs.training.context import Context
from runs.training.files import Attempt
from tasks.base import prompts_at_once
from tasks.continuations import Written

#: Variant of decoding -> a text for each item.
Texts = dict[str, list[str]]
#: What `write_down` saves of an item: a value of JSON.
Answer = TypeVar("Answer")


def decode_epochs(
    context: Context, epochs: Sequence[float], best: int, attempt: Attempt
) -> dict[str, Any]:
    """Decodes with the last and with the best epoch's adapter, and scores; the record's
    `texts`.

    epochs: all that were evaluated; best: index of the best one. attempt: counts the
    seconds that decoding takes. The model carries the best epoch's adapter at the
    end."""
    task, last, begun = (
        cast(Written, context.task),
        len(epochs) - 1,
        time.monotonic() - attempt.decoding,
    )
    keep, adapter = context.config["keep"], context.folder / "adapter.safetensors"

    def decoded() -> None:
        attempt.decoding = time.monotonic() - begun
        if context.accelerator.is_main_process:
            attempt.save()

    texts = {"last": _texts(context, "last", decoded)}
    if keep in ("last", "both"):
        context.write(adapter)
    if best == last:
        texts["best"] = texts["last"]
        (context.folder / "decoded_best.jsonl").unlink(missing_ok=True)
    else:
        vera.start_from(context.raw_model, context.best_file)
        texts["best"] = _texts(context, "best", decoded)
    if keep == "best":
        context.write(adapter)
    context.report({"phase": "scoring"})
    if not context.accelerator.is_main_process:  # the main process writes the record
        return {}
    write(task, context.folder, texts)
    entries = scores(task, texts, {"last": epochs[last], "best": epochs[best]})
    for entry in entries:
        numbers = {
            key: value
            for key, value in entry.items()
            if isinstance(value, float) and key != "epoch"
        }
        words = ", ".join(
            f"{key} {value:.2f}"
            for key, value in (numbers | entry.get("parts", {})).items()
        )
        print(f"{entry['which']} epoch, {entry['variant']}: {words}", flush=True)
    about = {
        "split": task.split,
        "items": len(task.items),
        "decoding": task.decoding(context.raw_model),
    }
    if task.item_groups is not None:
        about["groups"] = list(task.item_groups)
    return {**about, "scores": entries}


def rehearse(context: Context) -> None:
    """Tests before hours of training that the model can decode. Raises DataError where
    it cannot."""
    context.raw_model.eval()
    with torch.no_grad(), context.accelerator.autocast():
        cast(Written, context.task).rehearse(context.raw_model)


def scores(
    task: Written, texts: Mapping[str, Texts], epochs: Mapping[str, float]
) -> list[dict[str, Any]]:
    """An entry for each epoch (last, best) and variant; the protocol's variant of the
    last epoch is first."""
    # equal texts are scored once: METEOR takes a while
    by_hash: dict[str, Mapping[str, Any]] = {}
    entries = []
    for which, of_epoch in texts.items():
        for variant in task.variants:
            digest = hashlib.sha256(json.dumps(of_epoch[variant]).encode()).hexdigest()[
                :16
            ]
            if digest not in by_hash:
                by_hash[digest] = _scores_and_bits(task, of_epoch[variant])
            about = {"which": which, "epoch": epochs[which], "variant": variant}
            entries.append({**about, **by_hash[digest], "hash": digest})
    return entries


def _scores_and_bits(task: Written, texts: Sequence[str]) -> dict[str, Any]:
    """The scores of texts and, where each text is right or wrong, which ones are."""
    entry = dict(task.scores(texts))
    right = task.right(texts)
    bits = None if right is None else pack(right)
    return entry if bits is None else {**entry, "right": bits}


def write(task: Written, folder: Path, texts: Mapping[str, Texts]) -> None:
    """Writes the texts as files in the format of the metrics' own scripts."""
    files = {
        f"{which}_{v}": of_epoch[v]
        for which, of_epoch in texts.items()
        for v in task.variants
    }
    task.write(folder, files)


def read(task: Written, folder: Path) -> dict[str, Texts]:
    """The texts of a finished run for the last and the best epoch. Raises ValueError
    where one is missing."""
    texts = {}
    for which in ("last", "best"):
        path = folder / f"decoded_{which}.jsonl"
        if which == "last" or path.is_file():
            by_item = {line["item"]: line["texts"] for line in _lines(path)[1:]}
            missing = [i for i in range(len(task.items)) if i not in by_item]
            if missing:
                raise ValueError(
                    f"{len(missing)} of the {len(task.items)} texts are missing or damaged"
                )
            texts[which] = {
                v: [by_item[i][v] for i in range(len(task.items))]
                for v in task.variants
            }
    return {"last": texts["last"], "best": texts.get("best", texts["last"])}


def _texts(context: Context, which: str, decoded: Callable[[], None]) -> Texts:
    """Every item's texts; those that an earlier attempt saved stay. decoded: called
    after each batch."""
    task = cast(Written, context.task)

    def decode(items: Sequence[int]) -> list[dict[str, str]]:
        texts = task.decode(context.raw_model, items)
        decoded()
        return texts

    order = sorted(range(len(task.items)), key=lambda i: len(task.items[i][0]))
    on_gpu = context.accelerator.device.type == "cuda"
    size = prompts_at_once(
        context.config["eval_batch"], task.settings()["beams"], on_gpu
    )
    by_item = write_down(
        context,
        context.folder / f"decoded_{which}.jsonl",
        {
            "run": context.run_id,
            "weights": weights(context),
            "decoding": task.settings(),
            "prompts": size,
        },
        [order[i : i + size] for i in range(0, len(order), size)],
        decode,
        f"decoding ({which} epoch)",
    )
    return {
        variant: [by_item[i][variant] for i in range(len(task.items))]
        for variant in task.variants
    }


def write_down(
    context: Context,
    path: Path,
    of: Mapping[str, Any],
    batches: Sequence[Sequence[int]],
    decode: Callable[[Sequence[int]], list[Answer]],
    phase: str,
) -> dict[int, Answer]:
    """Decodes each item and saves what it becomes in `path`, as it comes; processes
    share the batches. Returns that by item: its texts by variant, or the outputs of a
    head.

    of: what defines them, the file's first line. Those that an earlier attempt saved
    under the same `of` are not decoded again. The batches stay the same after a kill,
    since a sum of floats depends on them."""
    accelerator, total = context.accelerator, sum(map(len, batches))
    header, *lines = _lines(path) or [None]
    saved = {line["item"]: line["texts"] for line in lines} if header == of else {}
    # all have read the file before the main process writes
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:  # again, since a kill may have cut its last line
        lines = [of, *({"item": item, "texts": texts} for item, texts in saved.items())]
        write_atomically(path, "".join(map(_line, lines)))
    left = [batch for batch in batches if not saved.keys() >= set(batch)]
    world, rank = accelerator.num_processes, accelerator.process_index
    rounds, begun = math.ceil(len(left) / world), time.monotonic()
    if saved:
        print(f"{len(saved)} of {total} are there already ({path.name})", flush=True)

    def report(seconds_left: float | None = None) -> None:
        context.report(
            {
                "phase": phase,
                "done": len(saved),
                "of": total,
                "seconds_left": seconds_left,
            }
        )

    context.raw_model.eval()
    where = path if accelerator.is_main_process else os.devnull  # it alone writes
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(vera.AdapterError):  # a method that cannot merge
            # a step then costs as much as without an adapter
            context.method.merge(context.raw_model)
            stack.callback(context.method.unmerge, context.raw_model)
        file = stack.enter_context(open(where, "a", encoding="utf-8"))
        for turn in range(rounds):
            report(
                (time.monotonic() - begun) / turn * (rounds - turn) if turn else None
            )
            mine = next(iter(left[turn * world + rank :]), [])
            with accelerator.autocast():
                texts = decode(mine) if mine else []
            for item, written in gather_object(list(zip(mine, texts, strict=True))):
                saved[item] = written
                file.write(_line({"item": item, "texts": written}))
            file.flush()
    report()
    return saved


def weights(context: Context) -> str:
    """A hash of the trained values, which saved texts must come from."""
    trained = {
        n: p.detach().cpu()
        for n, p in context.raw_model.named_parameters()
        if p.requires_grad
    }
    return digest_of("", trained)[:16]


def _line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _lines(path: Path) -> list[Any]:
    """A file's JSON lines up to the first damaged one (a kill cuts off the last); none
    without a file."""
    values: list[Any] = []
    with contextlib.suppress(OSError, ValueError):
        # the kill may have cut a letter
        text = path.read_text(encoding="utf-8", errors="replace")
        # not splitlines: a text may hold other ends of lines
        *whole, _ = text.split("\n")
        for line in whole:
            values.append(json.loads(line))
    return values
