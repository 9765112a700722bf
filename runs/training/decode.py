"""The texts that a trained model writes, and their scores, for the last epoch and the
best one.

Texts are saved as they come, so that a killed run continues with the missing ones. They
stay in the run's folder: decoded_last.jsonl, decoded_best.jsonl, and the files of the
task in the format of the metrics' scripts."""

import contextlib
import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from accelerate.utils import gather_object

import vera
from runs.record.files import write_atomically
from runs.record.items import pack
from runs.record.schema import DecodedScores, Texts
from runs.training.batches import batches_of
from runs.training.checkpoint import checkpoint_sha256
from runs.training.context import Context, trained_parameters
from runs.training.files import Attempt
from tasks.base import prompts_at_once
from tasks.continuations import Written

#: The texts of all items in their order, by variant of decoding. A task may decode each
#: item in several ways, such as with several length penalties (Written.variants).
TextsByVariant = dict[str, list[str]]
#: What `decode_missing` saves of an item: a value of JSON.
Answer = TypeVar("Answer")


def decode_epochs(
    context: Context, epochs: Sequence[float], best: int, attempt: Attempt
) -> Texts | None:
    """Decodes with the last and with the best epoch's adapter, scores the texts, and
    writes the adapter that `keep` asks for. The model has the best epoch's adapter at
    the end.

    Args:
        context: its model has the last epoch's adapter.
        epochs: the epoch of each evaluation, such as 1.0 and 2.0.
        best: the index of the best evaluation.
        attempt: counts the seconds that decoding takes.

    Returns:
        The record's `texts`; None in all processes but the first.
    """
    task = cast(Written, context.task)
    last = len(epochs) - 1
    keep = context.config["keep"]
    adapter_file = context.folder / "adapter.safetensors"
    # As if decoding had started earlier by the seconds that earlier attempts spent on it.
    started_s = time.monotonic() - attempt.decoding

    def count_seconds() -> None:
        attempt.decoding = time.monotonic() - started_s
        if context.accelerator.is_main_process:
            attempt.save()

    texts = {"last": _decode_texts(context, "last", count_seconds)}
    if keep in ("last", "both"):
        context.write_adapter(adapter_file)
    if best == last:
        texts["best"] = texts["last"]
        # an earlier attempt may have left one, which `read_texts` would take
        (context.folder / "decoded_best.jsonl").unlink(missing_ok=True)
    else:
        vera.start_from(context.raw_model, context.best_file)
        texts["best"] = _decode_texts(context, "best", count_seconds)
    # with keep=both, context.best_file has the best epoch's adapter already
    if keep == "best":
        context.write_adapter(adapter_file)
    context.report({"phase": "scoring"})
    if not context.accelerator.is_main_process:  # the main process writes the record
        return None
    write_text_files(task, context.folder, texts)
    entries = score_entries(task, texts, {"last": epochs[last], "best": epochs[best]})
    for entry in entries:
        print(_summary(entry), flush=True)
    record: Texts = {
        "split": task.split,
        "items": len(task.items),
        "decoding": task.decoding(context.raw_model),
        "scores": entries,
    }
    if task.item_groups is not None:
        record["groups"] = list(task.item_groups)
    return record


def _summary(entry: DecodedScores) -> str:
    """The scores of an epoch's texts and of the test set's parts, in one line."""
    scores = dict[str, float]()
    for key, value in entry.items():
        if isinstance(value, float) and key != "epoch":
            scores[key] = value
    scores |= entry.get("parts", {})
    text = ", ".join(f"{key} {value:.2f}" for key, value in scores.items())
    return f"{entry['which']} epoch, {entry['variant']}: {text}"


def rehearse(context: Context) -> None:
    """Checks before training, which may take hours, that the model can decode. Raises
    DataError if it cannot."""
    context.raw_model.eval()
    with torch.no_grad(), context.accelerator.autocast():
        cast(Written, context.task).rehearse(context.raw_model)


def score_entries(
    task: Written, texts: Mapping[str, TextsByVariant], epochs: Mapping[str, float]
) -> list[DecodedScores]:
    """The record's entry for each epoch (last, best) and variant of decoding; the
    protocol's variant of the last epoch is first.

    texts: by "last" and "best". epochs: which epoch each of these is."""
    # Equal texts are scored once: METEOR takes a while.
    scores_by_hash = dict[str, dict[str, Any]]()
    entries = list[DecodedScores]()
    for epoch_name, by_variant in texts.items():
        for variant in task.variants:
            written = json.dumps(by_variant[variant]).encode()
            digest = hashlib.sha256(written).hexdigest()[:16]
            if digest not in scores_by_hash:
                scores_by_hash[digest] = _scores_and_bits(task, by_variant[variant])
            entry = {
                "which": epoch_name,
                "epoch": epochs[epoch_name],
                "variant": variant,
                **scores_by_hash[digest],
                "hash": digest,
            }
            entries.append(cast(DecodedScores, entry))
    return entries


def _scores_and_bits(task: Written, texts: Sequence[str]) -> dict[str, Any]:
    """The scores of texts, by their names; under "right" which texts are right, for a
    task whose texts are right or wrong."""
    entry: dict[str, Any] = dict(task.scores(texts))
    is_right = task.right(texts)
    if is_right is None:
        return entry
    bits = pack(is_right)
    if bits is not None:  # not too many for a record
        entry["right"] = bits
    return entry


def write_text_files(
    task: Written, folder: Path, texts: Mapping[str, TextsByVariant]
) -> None:
    """Writes the texts as files of the task, such as those that the metrics' own scripts
    read. A file is named by its epoch and variant: last_greedy."""
    files = {}
    for epoch_name, by_variant in texts.items():
        for variant in task.variants:
            files[f"{epoch_name}_{variant}"] = by_variant[variant]
    task.write(folder, files)


def read_texts(task: Written, folder: Path) -> dict[str, TextsByVariant]:
    """The texts of a finished run for the last and the best epoch. Raises ValueError
    where one is missing."""
    last = _read_epoch(task, folder / "decoded_last.jsonl")
    best_file = folder / "decoded_best.jsonl"
    best = _read_epoch(task, best_file) if best_file.is_file() else last
    return {"last": last, "best": best}


def _read_epoch(task: Written, path: Path) -> TextsByVariant:
    """The texts in a file of `decode_missing`, whose first line is its header. Raises
    ValueError where one is missing."""
    by_item = {line["item"]: line["texts"] for line in _read_lines(path)[1:]}
    missing = set(range(len(task.items))) - by_item.keys()
    if missing:
        raise ValueError(
            f"{len(missing)} of the {len(task.items)} texts are missing or damaged"
        )
    return _by_variant(task, by_item)


def _by_variant(
    task: Written, by_item: Mapping[int, Mapping[str, str]]
) -> TextsByVariant:
    """The texts of all items in their order, by variant of decoding. by_item: each
    item's texts by variant."""
    items = [by_item[index] for index in range(len(task.items))]
    return {variant: [item[variant] for item in items] for variant in task.variants}


def _decode_texts(
    context: Context, epoch_name: str, after_batch: Callable[[], None]
) -> TextsByVariant:
    """The texts of every item; those that an earlier attempt saved are not decoded
    again.

    Args:
        epoch_name: "last" or "best", the epoch whose adapter the model has.
        after_batch: called after each batch.
    """
    task = cast(Written, context.task)

    def decode(items: Sequence[int]) -> list[dict[str, str]]:
        texts = task.decode(context.raw_model, items)
        after_batch()
        return texts

    # by the length of the prompt, which saves padding
    order = sorted(range(len(task.items)), key=lambda i: len(task.items[i][0]))
    on_gpu = context.accelerator.device.type == "cuda"
    beams = task.settings()["beams"]
    size = prompts_at_once(context.config["eval_batch"], beams, on_gpu)
    header = {
        "run": context.run_id,
        "weights": hash_of_trained(context),
        "decoding": task.settings(),
        "prompts": size,
    }
    by_item = decode_missing(
        context,
        context.folder / f"decoded_{epoch_name}.jsonl",
        header,
        batches_of(order, size),
        decode,
        f"decoding ({epoch_name} epoch)",
    )
    return _by_variant(task, by_item)


def decode_missing(
    context: Context,
    path: Path,
    header: Mapping[str, Any],
    batches: Sequence[Sequence[int]],
    decode: Callable[[Sequence[int]], list[Answer]],
    phase: str,
) -> dict[int, Answer]:
    """Decodes the items whose answers `path` lacks, and saves each answer there as it
    comes. Processes share the batches.

    Args:
        header: what defines the answers; the file's first line. Only answers below the
            same header count as saved.
        batches: indices of items. After a kill they must be the same: how an answer is
            rounded depends on the items that share its batch.
        decode: returns the answers of a batch.
        phase: what progress is called while this runs.

    Returns:
        The answer of each item: its texts by variant, or the outputs of a head.
    """
    accelerator = context.accelerator
    saved = _saved_answers(path, header)
    # Every process has to read the file before the main process writes it.
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        # The whole file: a kill may have cut off the last line.
        _write_answers(path, header, saved)
    total = sum(map(len, batches))
    # A batch without all of its answers is decoded as a whole.
    missing_batches = [batch for batch in batches if not saved.keys() >= set(batch)]
    rounds = math.ceil(len(missing_batches) / accelerator.num_processes)
    started_s = time.monotonic()
    if saved:
        print(f"{len(saved)} of {total} are there already ({path.name})", flush=True)

    def report(seconds_left: float | None) -> None:
        context.report(
            {
                "phase": phase,
                "done": len(saved),
                "of": total,
                "seconds_left": seconds_left,
            }
        )

    context.raw_model.eval()
    output_file = path if accelerator.is_main_process else os.devnull
    with _merged_adapter(context), open(output_file, "a", encoding="utf-8") as file:
        for past_rounds in range(rounds):
            seconds_left = None
            if past_rounds:
                seconds_per_round = (time.monotonic() - started_s) / past_rounds
                seconds_left = seconds_per_round * (rounds - past_rounds)
            report(seconds_left)
            # In the last round a process may have no batch.
            index = past_rounds * accelerator.num_processes + accelerator.process_index
            batch = missing_batches[index] if index < len(missing_batches) else []
            with accelerator.autocast():
                answers = decode(batch) if batch else []
            own_answers = list(zip(batch, answers, strict=True))
            for item, answer in gather_object(own_answers):
                saved[item] = answer
                file.write(_json_line({"item": item, "texts": answer}))
            file.flush()
    report(None)
    return saved


@contextlib.contextmanager
def _merged_adapter(context: Context) -> Iterator[None]:
    """Merges the adapter for the time of a with block, if the method can: a step of
    decoding then costs as much as without an adapter."""
    is_merged = False
    # raised by a method that cannot merge
    with contextlib.suppress(vera.AdapterError):
        context.method.merge(context.raw_model)
        is_merged = True
    try:
        yield
    finally:
        if is_merged:
            context.method.unmerge(context.raw_model)


def _saved_answers(path: Path, header: Mapping[str, Any]) -> dict[int, Any]:
    """The answers that a file has, by item; none for a file with another header: its
    answers come from other weights or settings."""
    lines = _read_lines(path)
    if not lines or lines[0] != header:
        return {}
    return {line["item"]: line["texts"] for line in lines[1:]}


def _write_answers(
    path: Path, header: Mapping[str, Any], answers: Mapping[int, Any]
) -> None:
    """Writes a file that `_saved_answers` reads."""
    lines = [_json_line(header)]
    for item, answer in answers.items():
        lines.append(_json_line({"item": item, "texts": answer}))
    write_atomically(path, "".join(lines))


def hash_of_trained(context: Context) -> str:
    """A hash of the trained values. Saved texts count only if they come from these."""
    tensors = {}
    for name, parameter in trained_parameters(context.raw_model).items():
        tensors[name] = parameter.detach().cpu()
    return checkpoint_sha256("", tensors)[:16]


def _json_line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) + "\n"


def _read_lines(path: Path) -> list[Any]:
    """The values of a file's JSON lines up to the first damaged one (a kill cuts off the
    last); none without a file."""
    values: list[Any] = []
    with contextlib.suppress(OSError, ValueError):
        # a kill may have cut a character of several bytes
        text = path.read_text(encoding="utf-8", errors="replace")
        # Not splitlines: a text may contain other line separators.
        for line in text.split("\n")[:-1]:
            values.append(json.loads(line))
    return values
