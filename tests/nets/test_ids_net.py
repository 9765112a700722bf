"""Ids of published records and of every preset's runs, the groups of optimizers, and
the contents of ids."""

import json
from collections import defaultdict
from functools import cache

import pytest
import transformers
import yaml
from tiers import slow_except

import tasks
import vera
from nets.golden import WRITES, read_lines, same_lines, short_hash, write_lines
from runs import config
from runs.config import Files
from runs.config.compose import Composer
from runs.config.grid import read_grid
from runs.models import skeleton
from runs.record.cell import is_trial_or_stopped
from runs.record.ledger import CONF, PUBLISHED, read_study
from runs.run import identity
from runs.run.definition import Run
from runs.run.methods import method_of_settings
from runs.training.checkpoint import optimizer_groups

pytestmark = pytest.mark.nets

STUDIES = sorted(folder.name for folder in PUBLISHED.iterdir() if folder.is_dir())
PRESETS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
#: A study of each kind of model, of few records.
SMALL = ["ablations_minilm", "e2e_smollm2", "images_dinov2"]
#: Of each kind of task a preset of few cells: a cell takes a quarter of a second to
#: compose.
FAST = ["figure3", "table12", "e2e_smollm2", "images_dinov2"]


# --- records


@pytest.mark.parametrize("study", slow_except(STUDIES, *SMALL))
def test_the_ids_and_groups_of_records(study, monkeypatch):
    """An id, computed from the record's own configuration, contents, protocol and
    seeds; and what its optimizer trains at which rate, parameter by parameter."""
    known, lines = {}, []
    for record in read_study(PUBLISHED / study):
        of, made = record["config"], record["groups"]
        cell = {key: record["cell"][key] for key in ("row", "model", "task", "seed")}
        run = Run(**cell, recipe="", experiment=None, config=of)
        monkeypatch.setattr(identity, "model_content", lambda _, of=record: of["model"])
        monkeypatch.setattr(
            identity, "data_content", lambda _, of=record: of["data"]["content"]
        )
        monkeypatch.setattr(tasks, "protocol", lambda _, of=record: of["protocol"])
        assert identity.run_id(run) == record["id"]
        key = json.dumps([of["model"], run.task, of["method"], of["train"], made])
        known[key] = known.get(key) or short_hash(groups(run, made))
        lines.append({"id": record["id"], "groups": known[key]})
    same_lines("records.jsonl", lines, study=study)


#: Outputs of each task's head where they are not two; of a language model none.
OUTPUTS = {"stsb": 1, "digits": 10, "resisc45": 12, "e2e": 0, "alpaca": 0, "sums": 0}
OUTPUTS |= {"sums_digit": 0}


def groups(run, recorded):
    """The groups of a run's optimizer, each with the names and shapes of its
    parameters; counted, they are those recorded."""
    for base_of in (skeleton, with_weights):
        texts = map(json.dumps, (run.config["model"], run.method))
        if not (of := adapted(base_of, OUTPUTS.get(run.task, 2), *texts)):
            continue
        method, base = of
        names = {id(p): name for name, p in base.named_parameters()}
        found = optimizer_groups(method, base, run.config["train"])
        members = [
            sorted((names[id(p)], *p.shape) for p in of["params"]) for of in found
        ]
        made = [
            {key: of[key] for key in ("name", "lr", "weight_decay")} for of in found
        ]
        for of, group in zip(made, found, strict=True):
            of["parameters"] = sum(p.numel() for p in group["params"])
        if made == recorded:
            return made, members
    raise AssertionError(f"{run.row}: {made}, recorded {recorded}")


@cache
def adapted(base_of, outputs, model, method):
    """Once for all rates; None where one of peft's methods reads the values that a
    skeleton lacks."""
    base, of = (
        base_of(json.loads(model), outputs),
        method_of_settings(json.loads(method)),
    )
    try:
        of.adapt(base)
    except vera.AdapterError:
        return None
    return of, base


def with_weights(model, outputs):
    settings = {"num_labels": outputs, "tie_word_embeddings": True} | model[
        "architecture"
    ]
    kind = "SequenceClassification" if outputs else "CausalLM"
    made = getattr(transformers, f"AutoModelFor{kind}")
    return made.from_config(transformers.AutoConfig.for_model(**settings))


# --- presets


def flat(value, name=""):
    if isinstance(value, dict) and value:
        return {
            key: one
            for k, inner in value.items()
            for key, one in flat(inner, f"{name}.{k}").items()
        }
    return {name: json.dumps(value)}  # 8 stays 8, and is not 8.0: ids are made of this


@pytest.mark.parametrize("preset", slow_except(PRESETS, *FAST))
def test_a_presets_runs(preset, monkeypatch):
    """By its words: its id, with stubs for the contents of models and data, which need
    files, and a hash of its whole configuration, of which much is in no id. Of a preset
    without records the first seed's."""
    monkeypatch.setattr(
        identity, "model_content", lambda model: f"content of {model['name']}"
    )
    monkeypatch.setattr(
        identity, "data_content", lambda task: f"content of {task['name']}"
    )
    monkeypatch.chdir("/")  # paths that are relative stay so
    words = [f"experiment={preset}"]
    with Composer(Files()) as composer:
        seeds = read_grid(words, composer).seeds
    runs = config.expand([*words, *(seeds[:1] if preset not in STUDIES else ())])
    found = {
        *zip(
            map(words_of, runs), map(hashes, runs, identity.identify(runs)), strict=True
        )
    }
    found.add(("all", " ".join(seeds)))
    if preset in STUDIES:
        records_are_among(preset, runs, monkeypatch)
    lines = read_lines("runs.jsonl")
    known = {
        (line["words"], run): {*line["presets"]}
        for line in lines
        for run in line["runs"]
    }
    if not WRITES:
        assert found == {key for key, presets in known.items() if preset in presets}
        return
    grouped = defaultdict(list)
    for key in sorted({*known, *found}):
        presets = known.get(key, set()) - {preset} | (
            {preset} if key in found else set()
        )
        grouped[key[0], tuple(sorted(presets))].append(key[1])
    lines = [
        {"words": words, "presets": of, "runs": runs}
        for (words, of), runs in sorted(grouped.items())
        if of
    ]
    write_lines("runs.jsonl", lines)


#: Of a study: results that its preset does not compose (more seeds of a cell; LoRA's
#: other alpha is a preset of its own), and cells of it that were not run.
BESIDE = {
    "rank_scaling_minilm": (19, 0),
    "rank_scaling_sst2_minilm": (15, 0),
    "e2e_smollm2": (0, 2),
}
BESIDE |= {"peers_minilm": (364, 0), "glue_minilm": (30, 8)}
BESIDE |= {"glue_more_minilm": (0, 12), "glue_mpnet": (2, 9), "sums_digit": (11, 0)}
# Full fine-tuning and LoRA by demonstrations, which its comment names.
BESIDE |= {"how_small": (10, 0)}


def records_are_among(study, runs, monkeypatch):
    """The published records have the ids of their preset's runs: with the contents that
    they name."""
    records = [
        one
        for one in read_study(PUBLISHED / study)
        if not is_trial_or_stopped(one["config"])
    ]
    models = {one["config"]["model"]["name"]: one["model"] for one in records}
    data = {one["config"]["task"]["name"]: one["data"]["content"] for one in records}
    monkeypatch.setattr(identity, "model_content", lambda model: models[model["name"]])
    monkeypatch.setattr(identity, "data_content", lambda task: data[task["name"]])
    composed, recorded = {*identity.identify(runs)}, {one["id"] for one in records}
    assert (len(recorded - composed), len(composed - recorded)) == BESIDE.get(
        study, (0, 0)
    )


def words_of(run):
    words = [word for word in run.overrides if not word.startswith("experiment=")]
    return " ".join([*words, f"({run.recipe})"])


def hashes(run, run_id):
    """The seed, the id, and a hash of all that a run is."""
    start = run.start and identity.run_id(run.start)
    changed = [override.text for override in run.changed]
    names = [run.row, run.model, run.task, run.labels, changed, start]
    return f"{run.seed} {run_id} {short_hash([names, flat(run.config)])}"


# --- contents

#: What a model or a task is composed with.
TASKS = {"text": "reviews", "text generation": "e2e", "image": "digits"}
MODELS = dict.fromkeys(
    ("alpaca", "commonsense", "e2e", "gsm8k", "sums", "sums_digit"), "smollm2"
)
MODELS |= dict.fromkeys(
    ("cifar100", "digits", "flowers102", "food101", "resisc45"), "dinov2_small"
)
#: Those whose files are the user's.
OWN = {"decoder", "encoder", "vision", "image_folder", "text", "problems"}


# data are many bytes
@pytest.mark.parametrize("group", slow_except(["model", "task"], "model"))
def test_the_contents_of_what_is_pinned(group):
    """The contents that ids hold: of each model in a package or at a revision, and of
    each data set."""
    lines, read = (
        [],
        {"model": identity.model_content, "task": identity.data_content}[group],
    )
    for name in sorted({path.stem for path in CONF.glob(f"{group}/*.yaml")} - OWN):
        words = [f"task={name}", f"model={MODELS.get(name, 'minilm')}"]
        if group == "model":
            modality = yaml.safe_load((CONF / "model" / f"{name}.yaml").read_text())[
                "modality"
            ]
            words = [f"model={name}", f"task={TASKS[modality]}"]
        (run,) = config.expand(words)
        lines.append({"name": name, "content": read(run.config[group])})
    same_lines("contents.jsonl", lines, of=group)
