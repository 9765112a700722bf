"""Runs are evaluated by lm-eval in this process, with the numbers of its own
command."""

import functools
import importlib.util
import json
import random
import shutil
from pathlib import Path

import pytest
from running import call, refused, replace_words, train_here, trained
from tiers import ALL_TESTS
from transformers import AutoModelForCausalLM, AutoTokenizer

import vera
from runs import evaluate, export, lm_eval
from runs.lm_harness import scores
from runs.lm_harness.tasks import load_tasks
from runs.record.ledger import (
    read_ledger,
    read_record,
    record_path,
    run_folder,
    write_study,
)
from runs.record.lm_eval import lm_eval_results
from runs.training import context

if importlib.util.find_spec("lm_eval") is None and not ALL_TESTS:
    pytest.skip(
        "lm-eval is an extra: pip install -e '.[lm-eval]'", allow_module_level=True
    )
pytestmark = pytest.mark.parity

ROWS, COLOURS = 12, ["red", "green", "blue", "white"]
CHOICE = """
task: picks
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


def write(folder, split, rows):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in rows)
    )


@pytest.fixture(scope="module", autouse=True)
def index_read_once():
    """lm-eval reads the files of its own tasks for 7 seconds, wherever one may be
    meant."""
    from lm_eval.tasks import _index

    theirs, build = Path(_index.__file__).parent, _index.TaskIndex.build
    read = functools.cache(lambda: build([theirs]))

    def build_once(paths):
        return (read() if theirs in paths else {}) | build(
            [path for path in paths if path != theirs]
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_index.TaskIndex, "build", staticmethod(build_once))
        yield


@pytest.fixture(scope="session")
def own(tmp_path_factory):
    """A folder of own tasks (a choice, a text, a group), and one of their rows."""
    folder, rng = tmp_path_factory.mktemp("own"), random.Random(0)
    for split in ("train", "test"):
        things = [
            (f"the {rng.choice(COLOURS)} boat {n}", rng.randrange(4))
            for n in range(ROWS)
        ]
        write(
            folder / "rows",
            split,
            [{"thing": t, "choices": COLOURS, "label": of} for t, of in things],
        )
    files = {
        split: str(folder / "rows" / f"{split}.jsonl") for split in ("train", "test")
    }
    place = f"dataset_path: json\ndataset_kwargs: {json.dumps({'data_files': files})}\n"
    parts = {
        "picks": CHOICE + place,
        "picks_too": CHOICE.replace("picks", "picks_too") + place,
    }
    parts |= {
        "texts": TEXT + place,
        "far": CHOICE.replace("picks", "far") + "dataset_path: nobody/far\n",
    }
    for name, text in (parts | {"both": GROUP}).items():
        (folder / f"{name}.yaml").write_text(text)
    return folder


@pytest.fixture
def far(alpaca_words):
    """Of runs that move far enough for other answers."""
    return [
        *replace_words(alpaca_words, **{"train.lr": "0.1"}),
        "task.forgetting_text=none",
        "keep=last",
    ]


@pytest.fixture
def asks(monkeypatch):
    """What models are asked; before: the base model."""
    found, real = [], scores.ask

    def ask(asked, *given):
        found.append(
            f"{asked.name} before"
            if given[-1].parents[1].name == "lm_eval"
            else asked.name
        )
        return real(asked, *given)

    monkeypatch.setattr(scores, "ask", ask)
    return found


def results(record, output):
    """Those in a record, by task."""
    return {
        of["task"]: of
        for of in read_record(record_path(output, record["id"]))["result"]["lm_eval"]
    }


def asked(record, output, own, *words):
    assert (
        lm_eval.main(
            [record["id"], f"include_path={own}", f"output={output}", *map(str, words)]
        )
        == 0
    )


def loaded(tasks, folder, **more):
    settings = lm_eval.Settings(tasks=tasks, include_path=str(folder), **more)
    return load_tasks(settings), settings


def values(entries, *keys):
    """Each metric of each task."""
    return [
        [of[key] for key in keys or ("value",)]
        for entry in entries.values()
        for of in entry["metrics"]
    ]


def test_live_merged_and_exported_adapters_have_the_same_numbers(far, own, tmp_path):
    from peft import PeftModel

    record, output = trained([*far, "method=vera"]), tmp_path / "outputs"
    asked(record, output, own, "tasks=picks,texts")
    live, base = results(record, output), record["config"]["model"]["path"]
    assert [of["samples"] == of["before"]["samples"] for of in live.values()] == [
        False,
        False,
    ]
    restored = evaluate.restore(record, output).raw_model
    vera.unload(restored, merge=True)
    for form in ("merged", "peft"):
        assert (
            export.main([record["id"], form, str(tmp_path / form), f"output={output}"])
            == 0
        )
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    peft = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), tmp_path / "peft"
    )
    (tasks, settings), more = (
        loaded("picks,texts", own),
        (AutoTokenizer.from_pretrained(base), 3, tmp_path),
    )
    for model in (restored, merged, peft):
        found = {one.name: scores.ask(one, settings, model, *more) for one in tasks}
        assert values(found, "value", "stderr", "filter") == values(
            live, "value", "stderr", "filter"
        )
        assert found["texts"]["samples"] == live["texts"]["samples"]
        assert [of["asked"] for of in found.values()] == [
            of["asked"] for of in live.values()
        ]
    write(
        tmp_path,
        "test",
        [{"thing": "it", "choices": of, "label": 1} for of in (COLOURS, None)],
    )
    tasks, settings = loaded("picks", own, data_dir=str(tmp_path), num_fewshot=0)
    with refused("picks: lm-eval cannot ask this model"):  # its second row
        scores.ask(tasks[0], settings, peft, *more)


def test_lm_evals_own_command_has_the_same_numbers(far, own, tmp_path, process):
    """Of the exported folder; and of ready tasks, whose rows are files."""
    record, output, folder = (
        trained([*far, "method=lora"]),
        tmp_path / "outputs",
        tmp_path / "merged",
    )
    asked(record, output, own, "tasks=texts,both")
    assert export.main([record["id"], "merged", str(folder), f"output={output}"]) == 0
    paths = ("--include_path", own, "--output_path", tmp_path / "theirs")
    model = (
        "--model",
        "hf",
        "--model_args",
        f"pretrained={folder}",
        "--device",
        "cpu",
        "--batch_size",
        "3",
    )
    call(
        "lm_eval", "run", *map(str, (*model, *paths)), "--tasks", "texts,both", check=0
    )
    theirs = json.loads(
        next((tmp_path / "theirs").rglob("results_*.json")).read_text()
    )["results"]
    for task, entry in results(record, output).items():
        names = [
            (f"{of['metric']},none", f"{of['metric']}_stderr,none")
            for of in entry["metrics"]
        ]
        assert [[theirs[task][name] for name in of] for of in names] == values(
            {0: entry}, "value", "stderr"
        )
    choices = {"text": COLOURS, "label": ["A", "B", "C", "D"]}
    picks = [
        {"question": f"Colour {n}?", "choices": choices, "answerKey": "B"}
        for n in range(9)
    ]
    sums = [
        {"question": f"{n} and {n}?", "answer": f"It is\n#### {2 * n}"}
        for n in range(9)
    ]
    for split in ("train", "test", "validation"):
        write(tmp_path / "ready" / "ARC-Easy", split, picks)
        write(tmp_path / "ready" / "gsm8k" / "main", split, sums)
    ready = ["limit=3", "num_fewshot=2", f"task.data_dir={tmp_path / 'ready'}"]
    # it has 256 positions, and an answer as many
    with refused("gsm8k: lm-eval cannot ask this model"):
        asked(record, output, own, "tasks=arc_easy,gsm8k", *ready)
    found = results(record, output)["arc_easy"]
    assert [found[key] for key in ("shots", "rows", "limit", "version")] == [
        2,
        3,
        3,
        1.0,
    ]
    # no hub
    for name, named in (
        ("gsm8", "Did you mean gsm8k?"),
        ("hellaswag", "data_dir=FOLDER"),
    ):
        with refused(named):
            asked(record, output, own, f"tasks={name}")


@pytest.mark.slow
def test_runs_share_one_base_model(far, own, tmp_path, asks, monkeypatch):
    """It is the base model again after each; full trains it in place, and then it is
    loaded afresh."""
    output, real, loads = tmp_path / "outputs", context.load_base, []
    monkeypatch.setattr(
        context, "load_base", lambda *given: loads.append(1) or real(*given)
    )
    plain = [word for word in far if not word.startswith("method.")]
    records = [train_here([*plain, f"method={of}"]) for of in ("none", "full")]
    records += [train_here([*far, f"method={of}"]) for of in ("lora", "vera")]
    loads.clear()
    asked(
        records[0],
        output,
        own,
        *[record["id"] for record in records[1:]],
        "tasks=picks",
        "limit=6",
    )
    assert (len(loads), asks) == (2, ["picks before", "picks", "picks", "picks"])
    found = [results(record, output)["picks"] for record in records]
    assert all(
        of["before"] == {key: found[0][key] for key in ("metrics", "samples")}
        for of in found
    )
    assert len({of["samples"] for of in found}) == 4
    # as on a model of its own
    for record, of in zip(records[2:], found[2:], strict=True):
        asked(record, output, own, "redo=true", "tasks=picks", "limit=6")
        assert results(record, output)["picks"] == of


def test_what_was_asked_alike_is_not_asked_again(far, own, tmp_path, asks):
    """Each way of asking has a result."""
    words, output = [*far, "method=lora"], tmp_path / "outputs"
    one, two = (train_here([*words, f"seed={seed}"]) for seed in (0, 1))
    both, few = ["picks before", "picks"], ["tasks=picks", "num_fewshot=0"]
    for given, expected, ways in (
        (["tasks=picks, picks"], both, [(2, ROWS)]),
        (["tasks=picks,texts"], ["texts before", "texts"], [(2, ROWS), (0, ROWS)]),
        (few, both, [(2, ROWS), (0, ROWS), (0, ROWS)]),
        ([*few, "limit=4"], both, [(2, ROWS), (0, ROWS), (0, ROWS), (0, 4)]),  # a trial
        ([*few, "redo=true"], both, [(2, ROWS), (0, ROWS), (0, ROWS), (0, 4)]),
        (["tasks=picks"], [], [(2, ROWS), (0, ROWS), (0, ROWS), (0, 4)]),
    ):
        asks.clear()
        asked(one, output, own, *given)
        kept = read_record(record_path(output, one["id"]))["result"]["lm_eval"]
        assert (asks, [(of["shots"], of["rows"]) for of in kept]) == (expected, ways), (
            given
        )
    assert (
        len([*(run_folder(output, one["id"]) / "lm_eval").glob("*/picks.jsonl")]) == 3
    )
    named = next(w for w in words if w.startswith("task.data_dir="))
    taken = ("output=", "device=", "eval_batch=", "task.data_dir=")
    composing = [w for w in words if not w.startswith(taken)]  # by what composes them
    asked(
        {"id": "seed=0,1"},
        output,
        own,
        *composing,
        "device=cpu",
        "eval_batch=3",
        named,
        "tasks=texts",
    )
    assert asks == ["texts"]  # of the base model it is known
    assert (
        results(two, output)["texts"]["before"]
        == results(one, output)["texts"]["before"]
    )


def test_a_published_run_keeps_its_record(far, own, tmp_path, monkeypatch):
    record, output, study = (
        trained([*far, "method=lora"]),
        tmp_path / "outputs",
        tmp_path / "all" / "study",
    )
    path = record_path(output, record["id"])
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", study.parent)
    write_study(study, [record])

    def of_ledger():
        ledger = read_ledger(output)
        assert not ledger.problems
        return {of["task"]: of for of in lm_eval_results(ledger.records[record["id"]])}

    text = path.read_text()
    asked(record, output, own, "tasks=picks", "limit=4")
    assert [*of_ledger()] == ["picks"]  # of one run with and without it
    path.unlink()
    for tasks in ("picks", "texts"):
        asked(record, output, own, f"tasks={tasks}", "limit=4")
    assert (path.exists(), (study / "records.jsonl").read_text()) == (False, text)
    found = of_ledger()
    assert {*found} == {"picks", "texts"}
    # was published with an older result, and one of another task
    older = json.loads(text)
    more = {**found["picks"], "task": "more"}
    older["result"]["lm_eval"] = [{**found["picks"], "samples": "older"}, more]
    write_study(study, [older])
    assert of_ledger() == {**found, "more": more}
    path.write_text(text)  # here without it
    assert of_ledger()["more"] == more


def test_what_is_asked_has_the_same_hash_in_every_process(own, tmp_path):
    """Although functions lie elsewhere; and how a group is aggregated is of it, not of
    its tasks."""
    hashes = []
    for name, group in (
        ("one", GROUP),
        ("two", GROUP),
        ("three", GROUP.replace("true", "false")),
    ):
        shutil.copytree(own, tmp_path / name)
        (tmp_path / name / "both.yaml").write_text(group)
        code = "import functools\nchanged = functools.partial(lambda rows, by: rows, by=1)\n"
        (tmp_path / name / "helper.py").write_text(
            f"{code}def text(row):\n    return row['thing']\n"
        )
        with (tmp_path / name / "picks.yaml").open("a") as file:
            file.write(
                "process_docs: !function helper.changed\nfewshot_config: {sampler: first_n}\n"
            )
            file.write("doc_to_text: !function helper.text\n")
        hashes.append([one.hash for one in loaded("picks,both", tmp_path / name)[0]])
    assert hashes[0] == hashes[1]
    assert [a == b for a, b in zip(hashes[1], hashes[2], strict=True)] == [True, False]


def test_what_cannot_be_asked_is_refused_before_a_model_is_loaded(
    far, own, words, tmp_path, monkeypatch
):
    record, classes, output = (
        trained([*far, "method=lora"]),
        trained(words),
        tmp_path / "outputs",
    )
    monkeypatch.setattr(context, "load_base", None)
    shutil.copytree(own, tmp_path / "code")
    with (tmp_path / "code" / "picks.yaml").open("a") as file:
        # is not imported
        file.write("unsafe_code: true\nprocess_docs: !function nowhere.rows\n")
    write(tmp_path / "few", "test", [{"thing": "it", "choices": COLOURS, "label": 1}])
    for named, *given in (
        (("tasks=",),),
        (("far: cannot be asked", "data_dir=FOLDER"), "tasks=far"),  # no hub
        (
            ("picks: cannot be asked", "train"),
            "tasks=picks",
            f"data_dir={tmp_path / 'few'}",
        ),
        (("nowhere", "test"), "tasks=picks", "data_dir=/nowhere"),
        (("limit=0",), "tasks=picks", "limit=0"),
        (("picks", "unsafe_code"), "tasks=picks", f"include_path={tmp_path / 'code'}"),
        (("picks: cannot be asked", "num_fewshot=13"), "tasks=picks", "num_fewshot=13"),
    ):
        place = (
            []
            if any("include_path" in word for word in given)
            else [f"include_path={own}"]
        )
        with refused(*named):
            lm_eval.main([record["id"], *place, *given, f"output={output}"])
    # reads no row of train
    assert loaded("picks", own, data_dir=str(tmp_path / "few"), num_fewshot=0)
    run_folder(output, record["id"]).joinpath("adapter.safetensors").unlink()
    with refused("adapter.safetensors is not there", "rerun="):
        asked(record, output, own, "tasks=picks")
    with refused("for language models"):
        asked(classes, output, own, "tasks=picks")
    monkeypatch.setattr(lm_eval, "find_spec", lambda name: None)
    for named in ("pip install '.[lm-eval]'", "without torchrun"):
        with refused(named):
            asked(record, output, own, "tasks=picks")
        monkeypatch.setenv("LOCAL_RANK", "0")
