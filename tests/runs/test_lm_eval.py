"""Runs are evaluated by lm-eval in this process, with the numbers of its own command."""

import importlib.util
import json
import random
import shutil
from pathlib import Path

import pandas as pd
import pytest
from running import call, do, elsewhere, refused, trained
from tiers import ALL_TESTS
from transformers import AutoModelForCausalLM, AutoTokenizer

import vera
from analysis.tables.__main__ import main as tables
from runs import evaluate, export, harness, lm_eval
from runs.record import read_ledger, read_record, record_path, run_folder, write_study
from runs.training import context

if importlib.util.find_spec("lm_eval") is None and not ALL_TESTS:
    pytest.skip("lm-eval is an extra: pip install -e '.[lm-eval]'", allow_module_level=True)
pytestmark = pytest.mark.parity

ROWS, COLOURS = 12, ["red", "green", "blue", "white"]
CHOICE = """
task: picks
dataset_path: nobody/picks
output_type: multiple_choice
training_split: train
test_split: test
doc_to_text: "Which colour is it, {{thing}}?"
doc_to_target: "{{label}}"
doc_to_choice: "{{choices}}"
num_fewshot: 2
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
  - {metric: acc_norm, aggregation: mean, higher_is_better: true}
metadata: {version: 1.5}
"""
TEXT = """
task: texts
dataset_path: nobody/texts
output_type: generate_until
test_split: test
doc_to_text: "{{thing}} is"
doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: ["."], do_sample: false, max_gen_toks: 6}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
metadata: {version: 2}
"""
GROUP = """
group: both
task: [picks, picks_too]
aggregate_metric_list:
  - {metric: acc, aggregation: mean, weight_by_size: true}
metadata: {version: 3}
"""


def write(path, rows):
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="session")
def own(tmp_path_factory):
    """Folders of own tasks (a choice, a text, a group), of their rows, and of tasks that name their place."""
    folder, rng = tmp_path_factory.mktemp("own"), random.Random(0)
    parts = {"picks": CHOICE, "picks_too": CHOICE.replace("picks", "picks_too"), "texts": TEXT, "both": GROUP}
    for name in ("yaml", "rows", "placed"):
        (folder / name).mkdir()
    files = {split: str(folder / "rows" / f"{split}.jsonl") for split in ("train", "test")}
    for path in files.values():
        things = [(f"the {rng.choice(COLOURS)} boat {n}", rng.randrange(4)) for n in range(ROWS)]
        write(path, [{"thing": thing, "choices": COLOURS, "label": label} for thing, label in things])
    for name, text in parts.items():
        (folder / "yaml" / f"{name}.yaml").write_text(text)
        placed = text.replace(f"nobody/{name}", "json")
        placed += f"dataset_kwargs: {json.dumps({'data_files': files})}\n" * (name != "both")
        (folder / "placed" / f"{name}.yaml").write_text(placed)
    return folder


@pytest.fixture
def far(alpaca_words):
    """Of runs that move far enough for other answers."""
    return [*elsewhere(alpaca_words, **{"train.lr": "0.1"}), "task.forgetting_text=none", "keep=last"]


@pytest.fixture
def asks(monkeypatch):
    """What models are asked, in words."""
    found, real = [], lm_eval.ask
    monkeypatch.setattr(lm_eval, "ask", lambda *given: found.append(given[5]) or real(*given))
    return found


def asked(*words):
    assert lm_eval.main([*map(str, words)]) == 0


def of_rows(own):
    return [f"include_path={own / 'yaml'}", f"data_dir={own / 'rows'}"]


def results(record, output):
    return read_record(record_path(output, record["id"]))["result"]["lm_eval"]


def of_ledger(output, record):
    return read_ledger(output).records[record["id"]]["result"]["lm_eval"]


def loaded(tasks, folder, rows, **more):
    """What harness.load makes of tasks, by their names."""
    settings = lm_eval.Settings(tasks=tasks, include_path=str(folder), data_dir=str(rows), **more)
    return {one.name: one for one in harness.load(settings)}, settings


def values(entries, key="value"):
    """Each metric of each task."""
    return {(task, of["metric"]): of[key] for task, entry in entries.items() for of in entry["metrics"]}


def likelihoods(folder):
    rows = [json.loads(line) for line in next(folder.rglob("picks.jsonl")).read_text().splitlines()]
    return [choice[0] for row in rows for choice in row["filtered_resps"]]


@pytest.mark.parametrize("method", ["vera", "lora"])
def test_live_merged_and_exported_adapters_have_the_same_numbers(method, far, own, tmp_path):
    from peft import PeftModel

    record, output = trained([*far, f"method={method}"]), tmp_path / "outputs"
    asked(record["id"], "tasks=picks,texts", f"output={output}", *of_rows(own))
    live, here = results(record, output), likelihoods(run_folder(output, record["id"]))
    assert max(abs(a - b) for a, b in zip(here, likelihoods(output / "lm_eval"), strict=True)) > 0.01
    restored, base = evaluate.restore(record, output).raw_model, record["config"]["model"]["path"]
    vera.unload(restored, merge=True)
    for form in ("merged", "peft"):
        assert export.main([record["id"], form, str(tmp_path / form), f"output={output}"]) == 0
    forms = {
        "unloaded": restored,
        "merged": AutoModelForCausalLM.from_pretrained(tmp_path / "merged"),
        "peft": PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "peft"),
    }
    for form, model in forms.items():
        more, found = (3, tmp_path / f"{form}s", "", lambda event: None), {}
        carried = (model, AutoTokenizer.from_pretrained(base))
        tasks, settings = loaded("picks,texts", own / "yaml", own / "rows")
        for one in tasks.values():
            found |= harness.ask(one, settings, carried, *more)
        assert values(found) == values(live)
        assert found["texts"]["samples"] == live["texts"]["samples"]
        assert {name: of["asked"] for name, of in found.items()} == {n: of["asked"] for n, of in live.items()}
        assert likelihoods(tmp_path / f"{form}s") == pytest.approx(here, abs=1e-4)
    write(tmp_path / "test.jsonl", [{"thing": "it", "choices": of, "label": 1} for of in (COLOURS, None)])
    tasks, settings = loaded("picks", own / "yaml", tmp_path, num_fewshot=0)
    with refused("picks: lm-eval cannot ask this model", "a row may lack"):
        harness.ask(tasks["picks"], settings, carried, *more)


def test_lm_evals_own_command_has_the_same_numbers(far, own, tmp_path, process):
    """Of the exported folder; and of a ready task, whose rows are a file."""
    record, output, folder = trained([*far, "method=lora"]), tmp_path / "outputs", tmp_path / "merged"
    asked(record["id"], "tasks=picks,texts,both", f"output={output}", f"include_path={own / 'placed'}")
    assert export.main([record["id"], "merged", str(folder), f"output={output}"]) == 0
    paths = ("--include_path", own / "placed", "--output_path", tmp_path / "theirs")
    model = ("--model", "hf", "--model_args", f"pretrained={folder}", "--device", "cpu", "--batch_size", "3")
    call("lm_eval", "run", *map(str, (*model, *paths)), "--tasks", "texts,both", check=0)
    theirs = json.loads(next((tmp_path / "theirs").rglob("results_*.json")).read_text())["results"]
    for task, entry in results(record, output).items():
        for of in entry["metrics"]:
            key = f"{of['metric']},none", f"{of['metric']}_stderr,none"
            assert (of["value"], of["stderr"]) == tuple(theirs[task][name] for name in key)
    rows = [{"question": f"{n} and {n}?", "answer": f"It is\n#### {2 * n}"} for n in range(9)]
    (tmp_path / "gsm8k" / "main").mkdir(parents=True)
    for split in ("train", "test"):
        write(tmp_path / "gsm8k" / "main" / f"{split}.jsonl", rows)
    ready = [record["id"], "tasks=gsm8k", f"output={output}", f"task.data_dir={tmp_path}", "num_fewshot=2"]
    with refused("gsm8k: lm-eval cannot ask this model"):  # it has 256 positions, and an answer as many
        asked(*ready)
    asked(*ready, "limit=3", "max_length=512")
    found = results(record, output)["gsm8k"]
    assert (found["shots"], found["rows"], found["limit"], found["version"]) == (2, 3, 3, 3.0)
    assert [of["filter"] for of in found["metrics"]] == ["strict-match", "flexible-extract"]
    for name, named in (("gsm8", "Did you mean gsm8k?"), ("arc_easy", "data_dir=FOLDER")):  # no hub
        with refused(named):
            lm_eval.main([record["id"], f"tasks={name}", f"output={output}"])


def test_runs_share_one_base_model(far, own, tmp_path, asks, monkeypatch, capsys):
    """It is the base model again after each; full trains it in place, and then it is loaded afresh."""
    methods, output = ("none", "full", "lora", "vera"), tmp_path / "outputs"
    real, loads = context.load_base, []
    monkeypatch.setattr(context, "load_base", lambda *given: loads.append(1) or real(*given))
    rank = [word for word in far if not word.startswith("method.")]
    records = {of: do([*(far if of in ("lora", "vera") else rank), f"method={of}"]) for of in methods}
    loads.clear()
    more = ["tasks=picks", "limit=6", *of_rows(own), f"output={output}"]
    asked(*[record["id"] for record in records.values()], *more)
    assert len(loads) == 2
    assert asks == ["picks of the base model", "picks", "picks", "picks"]
    found = {of: results(record, output) for of, record in records.items()}
    base = values(found["none"])
    assert all(values(of, "before") == base for of in found.values())
    assert len({of["picks"]["samples"] for of in found.values()}) == 4
    assert {of["picks"]["samples_before"] for of in found.values()} == {found["none"]["picks"]["samples"]}
    for of in ("lora", "vera"):  # as on a model of its own
        asked(records[of]["id"], "redo=true", "base=false", *more)
        alone = results(records[of], output)["picks"]
        assert alone["samples"] == found[of]["picks"]["samples"]
        assert "before" not in alone["metrics"][0]
    assert tables(["lm_eval", f"output={output}", "format=csv"]) == 0
    parts, acc = ('"lm-eval', ",full,", "acc, 2", "difference"), ("picks", "acc")
    (line,) = [of for of in capsys.readouterr().out.splitlines() if all(part in of for part in parts)]
    assert f",{values(found['full'])[acc] - base[acc]}," in line


def test_what_was_asked_alike_is_not_asked_again(far, own, tmp_path, asks, capsys):
    words, output = [*far, "method=lora"], tmp_path / "outputs"
    one, two = (do([*words, f"seed={seed}"]) for seed in (0, 1))
    more, both = [*of_rows(own), f"output={output}"], ["picks of the base model", "picks"]
    for given, expected, shots in (
        (["tasks=picks, picks"], both, 2),
        (["tasks=picks"], [], 2),
        (["tasks=picks,texts"], ["texts of the base model", "texts"], 2),
        (["tasks=picks", "num_fewshot=0"], both, 0),
        (["tasks=picks"], [], 2),  # each way has its folder
        (["tasks=picks", "num_fewshot=0", "limit=4"], both, 2),  # a trial
        (["tasks=picks", "num_fewshot=0", "redo=true"], both, 0),
    ):
        asks.clear()
        asked(one["id"], *given, *more)
        kept = results(one, output)
        assert (asks, kept["picks"]["shots"], kept["picks"]["rows"]) == (expected, shots, ROWS), given
    assert len([*(run_folder(output, one["id"]) / "lm_eval").glob("*/picks.jsonl")]) == 3
    asks.clear()
    asked(two["id"], "tasks=texts", "base=false", *more)
    asked(two["id"], "tasks=texts", *more)  # of the base model it is known
    assert asks == ["texts"]
    assert values(results(two, output), "before") == values({"texts": kept["texts"]}, "before")
    named = next(w for w in words if w.startswith("task.data_dir="))
    own_keys = ("output=", "device=", "eval_batch=", "task.data_dir=")
    composing = [w for w in words if not w.startswith(own_keys)]  # by what composes them
    asked(*composing, "device=cpu", "eval_batch=3", named, "seed=0,1", "tasks=texts", *more)
    assert asks == ["texts"]
    assert capsys.readouterr().out.count("texts (is there already)") == 3
    assert tables(["lm_eval", f"output={output}"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| LoRA"))
    assert ("(1/2)" in row, "(2)" in row) == (True, True)  # seeds that have it


def test_a_published_run_keeps_its_record(far, own, tmp_path, monkeypatch):
    record, output, study = trained([*far, "method=lora"]), tmp_path / "outputs", tmp_path / "published" / "a"
    path = record_path(output, record["id"])
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", study.parent)
    write_study(study, [record])
    text = path.read_text()
    asked(record["id"], "tasks=picks", "limit=4", f"output={output}", *of_rows(own))
    assert not read_ledger(output).problems  # of one run with and without them
    path.unlink()
    for tasks in ("picks", "texts"):
        asked(record["id"], f"tasks={tasks}", "limit=4", f"output={output}", *of_rows(own))
    assert (path.exists(), (study / "records.jsonl").read_text()) == (False, text)
    found = of_ledger(output, record)
    assert [*found] == ["picks", "texts"]
    assert tables(["lm_eval", f"output={output}"]) == 0
    older = json.loads(text)  # was published with an older result of one, and one of another task
    older["result"]["lm_eval"] = {"picks": {**found["picks"], "samples": "older"}, "more": found["picks"]}
    write_study(study, [older])
    assert of_ledger(output, record) == {**found, "more": found["picks"]}
    path.write_text(text)  # here without it
    assert of_ledger(output, record)["more"] == found["picks"]


def test_what_is_asked_has_the_same_hash_in_every_process(own, tmp_path):
    """Although functions lie elsewhere; and how a group is aggregated is of it, not of its tasks."""
    hashes = []
    for name, group in (("one", GROUP), ("two", GROUP), ("three", GROUP.replace("true", "false"))):
        shutil.copytree(own / "yaml", tmp_path / name)
        (tmp_path / name / "both.yaml").write_text(group)
        code = "import functools\nchanged = functools.partial(lambda rows, by: rows, by=1)\n"
        (tmp_path / name / "helper.py").write_text(code)
        more = "process_docs: !function helper.changed\nfewshot_config: {sampler: first_n}\n"
        (tmp_path / name / "picks.yaml").write_text(CHOICE + more)
        found, _ = loaded("both,picks", tmp_path / name, own / "rows")
        hashes.append((found["picks"].hash, found["both"].hash))
    assert hashes[0] == hashes[1]
    assert [a == b for a, b in zip(hashes[1], hashes[2], strict=True)] == [True, False]


def test_what_cannot_be_asked_is_refused_before_a_model_is_loaded(far, own, tmp_path, monkeypatch):
    record, output = trained([*far, "method=lora"]), tmp_path / "outputs"
    monkeypatch.setattr(context, "load_base", None)
    where, rows = f"include_path={own / 'yaml'}", f"data_dir={own / 'rows'}"
    (tmp_path / "few").mkdir()
    pd.read_json(own / "rows" / "test.jsonl", lines=True).to_parquet(tmp_path / "few" / "test.parquet")
    (tmp_path / "few" / "dataset_infos.json").write_text("{}")  # is no file of rows
    shutil.copytree(own / "yaml", tmp_path / "code")
    code = CHOICE + "unsafe_code: true\nprocess_docs: !function nowhere.rows\n"  # is not imported
    (tmp_path / "code" / "picks.yaml").write_text(code)
    for named, *given in (
        ("which tasks?",),
        ("picks: cannot be loaded", "tasks=picks", where),  # no hub
        ("no train.jsonl", "tasks=picks", where, f"data_dir={tmp_path / 'few'}"),
        ("no test.jsonl", "tasks=picks", where, f"data_dir={tmp_path}", "num_fewshot=0"),
        ("no such folder", "tasks=picks", where, "data_dir=/nowhere"),
        ("which runs?", None, "tasks=picks"),
        ("should be greater", "tasks=picks", "limit=0"),
        ("picks: has unsafe_code", "tasks=picks", f"include_path={tmp_path / 'code'}"),
        ("num_fewshot=13 takes 13 of 12", "tasks=picks", where, rows, "num_fewshot=13"),
        ("apply_chat_template=true", "tasks=picks", where, rows, "apply_chat_template=true"),
    ):
        with refused(named):
            ids = [] if given[:1] == [None] else [record["id"]]
            lm_eval.main([*ids, *filter(None, given), f"output={output}"])
    assert loaded("picks", own / "yaml", tmp_path / "few", num_fewshot=0)  # reads no row of train
    run_folder(output, record["id"]).joinpath("adapter.safetensors").unlink()
    with refused("adapter.safetensors is not there", "rerun="):
        lm_eval.main([record["id"], "tasks=picks", where, rows, f"output={output}"])
    monkeypatch.setattr(lm_eval, "find_spec", lambda name: None)
    for named in ("pip install '.[lm-eval]'", "without torchrun"):
        with refused(named):
            lm_eval.main([record["id"], "tasks=picks"])
        monkeypatch.setenv("LOCAL_RANK", "0")


def test_a_run_with_classes_is_refused(words, tmp_path):
    record = trained(words)
    with refused(f"run {record['id']} is", "for language models"):
        lm_eval.main([record["id"], "tasks=picks", f"output={tmp_path / 'outputs'}"])
