"""Writes a finished run's adapter for use elsewhere, or publishes it.

vera-bench export RUN peft FOLDER
    adapter and head in peft's format, with tokenizer and model card. Load them
    with peft.PeftModel.from_pretrained(base, FOLDER)
vera-bench export RUN hub OWNER/NAME
    the same folder, pushed to the Hugging Face hub; private=true shows it to
    its owner alone
vera-bench export RUN lora FOLDER
    as a LoRA, for servers that serve nothing else. VeRA loses nothing; rank=8
    makes the LoRA smaller, and prints what that loses
vera-bench export RUN merged FOLDER
    the whole model with the adapter merged in, for
    AutoModel...from_pretrained(FOLDER). It prints by how much its outputs
    differ, and refuses more than rounding
vera-bench export RUN leaderboard=FILE
    a run of GSM8K as a result file of peft's method comparison

RUN is a run id, or its beginning, as in outputs/records.
"""

import json
import math
import re
import shlex
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import jinja2
import numpy as np

from runs import models
from runs.command.errors import UserError
from runs.command.parser import Line, OfRecords, entry_point, one_of, read, setting
from runs.evaluate import find, kept_result, restore
from runs.publishing.result_file import result_file
from runs.record.cell import (
    Metric,
    cell_id,
    interval_name,
    median_interval,
    row_label,
    seed_value,
    text_score,
)
from runs.record.ledger import Ledger, read_ledger, write_atomically
from runs.record.redaction import without_paths
from runs.record.schema import FINISHED, TEXT_SCORES, Record
from runs.record.templates import environment
from runs.record.text import first_line, megabytes, one_line
from runs.run.definition import overrides_of
from runs.run.provenance import is_committed
from tasks.images import ImageTask, write_preprocessing

if TYPE_CHECKING:
    import vera
    from runs.training.context import Context

#: The formats, and the settings that each of them takes.
FORMATS = {
    "peft": ("base", "license"),
    "hub": ("base", "license", "private"),
    "lora": ("base", "license", "rank"),
    "merged": (),
}
#: What a new repository holds before anything is pushed.
EMPTY = {".gitattributes", "README.md"}
#: Dev rows whose outputs are compared.
ROWS = 64
#: The largest rank of a LoRA that vLLM serves (its --max-lora-rank).
VLLM_RANK = 512
#: How far outputs may lie apart by rounding in float32, relative to the largest: a
#: thousand units in the last place. Merged, all methods moved MiniLM's by 0 to 24; VeRA
#: and LoRA those of 24 and 32 layers by 3 to 8.
ROUNDING = 1000 * 2.0**-23


@dataclass(frozen=True)
class Settings(OfRecords):
    private: bool = setting(False, "hub: a repository that is made is private")
    rank: int | float | None = setting(
        None,
        "lora: of each layer; below 1: the share of squared values kept; VeRA needs none",
    )
    base: str | None = setting(
        None, "the base model, where not known: OWNER/NAME or OWNER/NAME@REVISION"
    )
    license: str | None = setting(
        None, "as the hub abbreviates it; by default the base model's"
    )
    leaderboard: str | None = setting(
        None, "in place of format and PATH: the result file of a run of GSM8K"
    )


def main(arguments: list[str]) -> int:
    if any(word.startswith("leaderboard=") for word in arguments):
        return export_result(read(arguments, Settings, names="RUN"))
    line = read(arguments, Settings, names=f"RUN {'|'.join(FORMATS)} PATH")
    (name, form, target), settings, output = (
        line.names,
        line.settings,
        line.settings.output,
    )
    repo = target if form == "hub" else None
    for key in sorted(
        line.given.keys()
        - {"output", "debug", *FORMATS[one_of("format", form, FORMATS)]}
    ):
        takers = ", ".join(other for other, keys in FORMATS.items() if key in keys)
        raise UserError(f"{key}= belongs to {takers}, not to {form}")
    rank, base = settings.rank, settings.base or "none"
    if rank is not None and not (rank >= 1 if isinstance(rank, int) else 0 < rank <= 1):
        raise UserError(
            f"rank={rank}: should be a whole number from 1 on, or a share above 0 and up to 1"
        )
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?(@[\w./-]+)?", base):
        raise UserError(
            f"base={base}: should be OWNER/NAME or OWNER/NAME@REVISION on the hub"
        )
    if repo:
        from huggingface_hub import get_token

        if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo) or len(repo) > 96:
            raise UserError(f"{repo}: a repository of the hub is OWNER/NAME")
        if get_token() is None:
            raise UserError(
                f"{target}: pushing needs a token with write access: hf auth login, or HF_TOKEN="
            )
    elif Path(target).exists() and any(Path(target).iterdir()):
        raise UserError(f"{target}: is there already. Name another, or remove it")
    record = find(name, output)
    if not record["parameters"]["adapter"] and form != "merged":
        raise UserError(
            f"run {record['id']} ({record['label']['row']}) has no adapter: take merged"
        )
    folder = Path(output, "exports", record["id"]) if repo else Path(target)
    if form == "merged":
        write_merged(record, folder, output)
    else:
        write_adapter(record, folder, settings, repo, form == "lora")
    if repo:
        again = shlex.join(["vera-bench", "export", *arguments])
        print(
            push(
                folder,
                repo,
                settings.private,
                f"Run {record['id']} of vera-bench",
                again,
            )
        )
    else:
        print(
            f"{folder}: {megabytes(sum(file.stat().st_size for file in folder.iterdir()))}"
        )
    return 0


def export_result(line: Line[Settings]) -> int:
    """Writes a run's score and costs as a result file."""
    if others := sorted(line.given.keys() - {"leaderboard", "output", "debug"}):
        raise UserError(f"{others[0]}= does not go with leaderboard=")
    path = Path(str(line.settings.leaderboard))
    if path.exists():
        raise UserError(f"{path}: is there already. Name another, or remove it")
    record = find(line.names[0], line.settings.output)
    write_atomically(path, json.dumps(result_file(record), indent=2) + "\n")
    print(f"{path}: vera-bench table leaderboard={path.parent} reads it")
    return 0


def push(folder: Path, repo: str, private: bool, message: str, again: str) -> str:
    """Pushes a folder's files to a model repository in one commit; makes the repository
    where there is none. Returns the commit's address.

    private: a repository that is made is private; one that is there already and public
    is refused. again: the command that repeats this. Raises UserError in one line,
    which names the folder and that command, where the hub refuses or cannot be reached,
    or the repository holds something else."""
    from huggingface_hub import HfApi, logging
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.utils.tqdm import disable_progress_bars

    logging.set_verbosity_error()
    disable_progress_bars()
    api = HfApi()
    try:
        # asked first: with a limit in time, which making a repository does not have
        try:
            there = api.model_info(repo, timeout=10)
        except RepositoryNotFoundError:
            api.create_repo(repo, private=private)
        else:
            names = {file.rfilename for file in there.siblings or []} - EMPTY
            if names and "adapter_config.json" not in names:
                raise UserError(
                    f"it holds {min(names)} and no adapter. Name another repository"
                )
            if private and not there.private:
                raise UserError(
                    "it is public, and private=true would not hide it. Name another repository"
                )
            print(f"{repo} is there already: this becomes its newest commit")
        commit = api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=message
        )
    except Exception as error:  # the hub's library and its transfer raise many types
        why = (
            str(error)
            if isinstance(error, UserError)
            else f"{type(error).__name__}: {first_line(error)}"
        )
        stays = f"{folder} has all that would be there; to try again: {again}"
        raise UserError(f"{repo} is not pushed: {why}. {stays}") from None
    return str(commit.commit_url)


# --- what is written: an adapter with its card, or a whole model


def write_adapter(
    record: Record, folder: Path, settings: Settings, repo: str | None, as_lora: bool
) -> None:
    """Writes a run's adapter in peft's format, with how inputs are prepared and a card.
    repo: on the hub. as_lora: converted to a LoRA."""
    import vera

    model = record["config"]["model"]
    origin = models.origin(model, record["model"], settings.base)
    if origin is None and repo:
        unknown = (
            "which model of the hub its base is, is not known: name it, base=OWNER/NAME"
        )
        raise UserError(f"run {record['id']}: {unknown}")
    if origin is None:
        print(
            "which model of the hub the base is, is not known: AutoPeftModel needs it (base=OWNER/NAME)"
        )
    elif origin.note and not settings.base:
        print(f"base model: {origin.name}. Note: {origin.note}")
    if (licence := settings.license or (origin.licence if origin else None)) is None:
        print("no licence is known, and the card names none (license=mit)")
    context, lost = restore(record, settings.output), ""
    answer_labels(context)
    base = (origin.name, origin.revision) if origin else (None, None)
    if as_lora:
        lost = write_lora(context, settings.rank, folder, *base)
        print(lost)
    else:
        vera.export_peft(context.raw_model, folder, *base)
    write_inputs(context, folder)
    name = repo or folder.resolve().name  # no path of this machine in the card
    text = card(
        record,
        read_ledger(settings.output),
        name,
        origin,
        licence,
        loads(context),
        lost,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")
    if not repo:
        where = models.fetch(model)
        print(
            f"for peft.PeftModel.from_pretrained(base, '{folder}'), where base is the model of {where}"
        )


def write_lora(
    context: "Context",
    rank: int | float | None,
    folder: Path,
    base: str | None,
    revision: str | None,
) -> str:
    """Writes the adapter of a restored run as a LoRA in peft's format, with its head,
    and loads that file onto the run's model by peft.

    Args:
        context: The run, restored. Its model has the LoRA afterwards.
        rank: As for `vera.export_lora`.
        folder: Where the adapter goes.
        base: As for `vera.export_lora`.
        revision: As for `vera.export_lora`.

    Returns:
        Sentences for a user: the rank, the size, what servers allow, and what is lost.

    Raises:
        AdapterError: The adapter cannot be converted; nothing is written then.
    """
    import peft

    import vera

    model, task = context.raw_model, context.task
    score_before = context.score()
    outputs_before = outputs(context)
    conversion = vera.export_lora(model, folder, rank, base, revision)
    if not conversion.change:
        return "The adapter changes no weight: its kept epoch is one before its values had moved."
    vera.unload(model)
    with warnings.catch_warnings():
        # peft's, of a base model that it cannot look up
        warnings.simplefilter("ignore")
        peft.PeftModel.from_pretrained(model, folder)  # in place
    score_after = context.score()
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    sentences = [
        *describe_conversion(conversion, rank, size),
        f"{task.metric}: {task.scale * score_before:.2f} before, {task.scale * score_after:.2f} after.",
        difference(outputs_before, outputs(context))[1],
    ]
    return " ".join(sentences)


def describe_conversion(
    conversion: "vera.Conversion", rank: int | float | None, size: int
) -> list[str]:
    """What a conversion to LoRA gave and lost, in sentences. size: of the file in
    bytes."""
    lora = f"The LoRA has rank {conversion.rank} and {megabytes(size)}."
    if conversion.rank > VLLM_RANK:
        limit = f"vLLM serves ranks up to {VLLM_RANK}: rank={VLLM_RANK} truncates it."
    else:
        limit = f"vLLM serves it with --max-lora-rank of at least {conversion.rank}."
    lost = conversion.error / conversion.change
    if rank is None:
        return [lora, limit, f"It is VeRA's change up to rounding ({lost:.0e})."]
    shares = {}
    for site, layer in conversion.layers.items():
        shares[site] = layer.error / layer.change if layer.change else 0.0
    worst = max(shares, key=lambda site: shares[site])
    loses = (
        f"The conversion to LoRA (rank={rank:g}) loses {lost:.2%} of the change of the"
        f" weights (Frobenius norm), at worst {shares[worst]:.2%}, in {worst}."
    )
    return [lora, limit, loses]


def write_merged(record: Record, folder: Path, output: str) -> None:
    """Writes a run's whole model with the adapter merged in, in float32 whatever the
    run computed in. Raises UserError, and writes nothing, where its outputs are another
    model's."""
    import vera

    config = {
        **record["config"],
        "train": {**record["config"]["train"], "precision": "fp32"},
    }
    if config["model"].get("quantise"):
        # Whole weights take the adapter in; 4-bit ones would round it away
        config["model"] = {**config["model"], "quantise": None}
        print(
            "the adapter was trained over 4-bit weights; it is merged into the whole ones"
        )
    context = restore({**record, "config": config}, output)
    context.raw_model.float()
    model, before = context.raw_model, outputs(context)
    vera.unload(model, merge=True)
    rounding, words = difference(before, outputs(context))
    if not rounding:
        raise UserError(
            f"run {record['id']} is not written: merged, it is another model. {words}"
        )
    print(words)
    answer_labels(context)
    if classes := getattr(context.task, "classes", None):
        model.config.id2label = dict(enumerate(classes))
        model.config.label2id = {c: i for i, c in enumerate(classes)}
    model.save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):
        # safetensors' own are for the owner alone
        weights.chmod((folder / "config.json").stat().st_mode)
    write_inputs(context, folder)


def answer_labels(context: "Context") -> None:
    """Makes a regression that was trained on scaled labels answer in their own units by
    itself."""
    import vera

    if context.task.scaling:
        vera.unscale(vera.output_layer(context.raw_model), *context.task.scaling)
        context.task.scaling = None


def difference(before: np.ndarray, after: np.ndarray) -> tuple[bool, str]:
    """Whether outputs of the same rows differ by rounding alone, and by how much, in
    words."""
    rows, differ, largest = (
        len(before),
        float(abs(after - before).max()),
        float(abs(before).max()),
    )
    words = f"Outputs of {rows} dev rows differ by at most {differ:.2g}; the largest output is {largest:.2g}."
    return differ <= ROUNDING * largest, words


def outputs(context: "Context") -> np.ndarray:
    """What the first dev rows are judged by now, (rows, outputs): logits, or a row's
    loss."""
    import torch

    import vera

    context.raw_model.eval()
    rows, size = (
        range(min(ROWS, len(context.task.lengths("dev")))),
        context.config["eval_batch"],
    )
    with (
        torch.no_grad(),
        vera.unchanged(context.raw_model),
        context.accelerator.autocast(),
    ):
        batches = [
            context.batch("dev", rows[i : i + size]) for i in range(0, len(rows), size)
        ]
        return np.concatenate(
            [context.task.answers(context.raw_model, batch)[1] for batch in batches]
        )


def write_inputs(context: "Context", folder: Path) -> None:
    """Writes the tokenizer, or how images are prepared. timm's models have that in
    their own config.json, which a folder with the adapter alone has not."""
    from transformers import AutoTokenizer

    base = models.fetch(context.config["model"])
    if not isinstance(context.task, ImageTask):
        AutoTokenizer.from_pretrained(base, local_files_only=True).save_pretrained(
            folder
        )
    elif (base / "preprocessor_config.json").is_file() or (
        folder / "config.json"
    ).is_file():
        write_preprocessing(base, folder, context.task.preprocessing)


def loads(context: "Context") -> dict[str, Any]:
    """The settings with which transformers loads the base model as the run had it."""
    config, classes = context.raw_model.config, getattr(context.task, "classes", None)
    of_timm = config.model_type == "timm_wrapper"
    dtype = None
    if not context.config["model"].get("quantise"):
        dtype = models.DTYPES[models.dtype_of(context.config)]
    given = {
        "dtype": dtype,
        "num_labels": context.task.num_labels or None,
        # with its own number of classes
        "model_args": (config.model_args or {}) if of_timm else None,
        # The base has a head of other classes
        "ignore_mismatched_sizes": of_timm
        or (config.architectures or [""])[0].endswith("Classification"),
        "id2label": dict(enumerate(classes)) if classes else None,
    }
    return {
        key: value
        for key, value in given.items()
        if value is not None and value is not False
    }


# --- the model card, from the record: what it is, how well it does, how it was made


def seeds_of(record: Record, records: Iterable[Record]) -> dict[int, Record]:
    """A run and the others of its cell, by seed: of several the one of the fewest
    deviations and first id."""
    cell = cell_id(record), record["cell"]["row"]
    same = [
        r
        for r in records
        if r["status"] in FINISHED and (cell_id(r), r["cell"]["row"]) == cell
    ]
    # of a seed the last one counts
    same.sort(key=lambda r: (len(r["deviations"]), r["id"]), reverse=True)
    return {r["cell"]["seed"]: r for r in (*same, record)}


def numbers(record: Record, seeds: Mapping[int, Record]) -> list[dict[str, Any]]:
    """The metric of a run and the scores of its texts, beside those of its cell's other
    seeds (`seeds_of`): name, median, how many seeds, the title in the model-index
    (which has no field for seeds and an interval), and the cells of the card's table.
    Without those that this run lacks, or that are not finite."""
    metric, own, found = (
        Metric.of_record(record),
        record["cell"]["seed"],
        list[dict[str, Any]](),
    )
    for name in (metric.name, *TEXT_SCORES):
        of_texts = name in TEXT_SCORES
        every = {
            seed: text_score(r, name) if of_texts else seed_value(r)
            for seed, r in seeds.items()
        }
        values = {seed: value for seed, value in every.items() if value is not None}
        if own not in values or not all(map(math.isfinite, values.values())):
            continue
        text = "{:.2f}".format if of_texts else metric.text
        mine = values[own] if of_texts else kept_result(record, best=False)
        middle, ends = (
            median(values.values()),
            median_interval([*values.values()]) or (),
        )
        interval = (
            f"{interval_name([len(values)])}: {' to '.join(f'{end:g}' for end in ends)}"
        )
        title = f"{name}, {f'median of {len(values)} seeds ({interval})' if ends else 'one seed'}"
        cells = [
            text(mine),
            text(middle),
            " to ".join(map(text, ends)) or "-",
            str(len(values)),
        ]
        found.append(
            {
                "name": name,
                "median": middle,
                "seeds": len(values),
                "title": title,
                "cells": cells,
            }
        )
    return found


def card(
    record: Record,
    ledger: Ledger,
    name: str,
    origin: models.Origin | None,
    licence: str | None,
    loads: Mapping[str, Any],
    converted: str = "",
) -> str:
    """The card of an adapter to be called `name`, by the template card.md. ledger: with
    the other seeds of its cell, of which the card says who ran them. loads: the
    settings that load its base model as the run had it. converted: what a conversion to
    LoRA lost, in words; the numbers are then of the adapters before."""
    record = without_paths(record)
    seeds, config = seeds_of(record, ledger), record["config"]
    method = {
        key: config["method"].get(key)
        for key in ("rank", "alpha", "sites", "projection_seed")
    }
    gaps = {
        "record": record,
        "config": config,
        "origin": origin,
        "licence": licence,
        "converted": converted,
    }
    gaps |= {
        "name": name,
        "quoted": repr(name),
        "method": row_label(config),
        "settings": ", ".join(
            f"{key} {json.dumps(of)}" for key, of in method.items() if of is not None
        ),
        "metric": Metric.of_record(record),
        "numbers": (own := numbers(record, seeds)),
        "interval": interval_name(of["seeds"] for of in own),
        "origins": [ledger.origin.get(run["id"], "ours") for run in seeds.values()],
        "loads": ", ".join(
            [repr(name), *(f"{key}={value!r}" for key, value in loads.items())]
        ),
        "committed": is_committed(record),
        "command": shlex.join(overrides_of(record)),
    }

    def safe(value: object) -> object:
        """One line without HTML, so that no text of a record forges a heading; what is
        marked safe stays."""
        return (
            value
            if hasattr(value, "__html__")
            else one_line(str(value)).replace("<", "&lt;")
        )

    templates = environment(Path(__file__).parent / "publishing").overlay(
        finalize=safe, undefined=jinja2.ChainableUndefined, lstrip_blocks=False
    )
    return templates.get_template("card.md").render(gaps)


if __name__ == "__main__":
    entry_point(main)
