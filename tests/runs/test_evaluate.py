"""What commands make of finished runs: plan, publish, evaluate, and what figures are
drawn from."""

import json
import re
from pathlib import Path

import ledgers
import numpy as np
import pytest
import torch
from running import TRAINING, call_here, output_of, refused, trained
from tiers import slow_except

from runs import evaluate, plan, publish
from runs.config import expand
from runs.evaluate import find_finished, restore
from runs.machine.locks import holding, run_lock
from runs.measure import main as measure_main
from runs.measure import measure_id
from runs.measures.adapters import layer_and_site, magnitude, similarity
from runs.measures.matrix_fit import FitSettings, matrix_fit
from runs.record.folder import RecordFolder
from runs.record.ledger import (
    read_ledger,
    read_study,
    record_text,
    run_folder,
    write_record,
    write_study,
)
from runs.record.redaction import without_paths
from runs.run.identity import run_id
from vera.methods.layers import layer_changes

pytestmark = pytest.mark.properties

# --- plan, publish, evaluate


def shows(text, *parts):
    """Asserts that a plan's text has these."""
    assert [part for part in parts if part not in text] == [], text


def test_the_plan_says_where_each_run_stands(words):
    every = [*words, "seed=0,1,2,3", "train.max_steps=2"]
    runs, output = expand(every), output_of(words)
    shows(call_here("runs.plan", *every, check=0).stdout, "missing 4")
    record = trained([*words, "seed=0", "train.max_steps=2"])
    write_record(
        output,
        record | {"id": run_id(runs[1]), "status": "failed", "error": "it broke"},
    )
    write_record(output, record | {"id": run_id(runs[2]), "status": "diverged"})
    counts = "done 1 · diverged 1 · failed 1 · missing 1"
    named = [
        f"plan: 4 runs on {Path(record['config']['model']['path']).name}",
        "2/4 df",
        counts,
        "failed: VeRA r=8 on RTE, seed 1: it broke",
    ]
    shows(
        call_here("runs.plan", *every, check=0).stdout,
        *named,
        "at the pace of 1 finished run)",
    )
    finished = [*words, "seed=0,2", "train.max_steps=2"]
    shows(
        call_here("runs.plan", *finished, check=0).stdout,
        "2/2",
        "nothing is left to run",
    )
    blocked = [
        f"model.path={Path(output) / 'none'}" if w.startswith("model.path") else w
        for w in every
    ]
    nothing = call_here("runs.plan", *blocked, check=0).stdout
    shows(nothing, "blocked 4", "nothing that can be done now")
    hub = ["model=encoder", "model.hub=own/model", "task=rte"]
    unknown = call_here("runs.plan", *hub, check=0).stdout
    shows(unknown, "0/1 ?", "has no pinned revision")


def test_publishing_copies_finished_records(words, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", tmp_path / "published")
    output = output_of(words)
    one, two = (trained([*words, f"seed={seed}"]) for seed in (0, 1))
    trained([*words, "train.max_steps=1"])  # a trial, which stays here
    write_record(output, two | {"status": "failed"})
    for uncommitted, told in (
        (False, "1 record in runs/records/mine\n"),
        (None, "(1 made with code "),
    ):
        one["code"]["dirty"] = False
        for source in one["code"]["sources"].values():
            source["uncommitted"] = uncommitted  # None: of another repository
        write_record(output, one)
        assert publish.main(["mine", f"output={output}"]) == 0
        assert told in capsys.readouterr().out
    path = tmp_path / "published" / "mine" / "records.jsonl"
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == [
        one["id"]
    ]
    assert str(tmp_path) not in path.read_text()
    assert read_ledger(tmp_path / "nothing").origin == {one["id"]: "mine"}
    assert read_ledger(output).origin[one["id"]] == "ours"
    copy = tmp_path / "copy"
    for published in read_study(path.parent):
        write_record(copy, published)
    assert read_ledger(copy).origin == {one["id"]: "mine"}
    path.write_text(damaged := path.read_text() + '{"id": "halved')
    for study, folder, told in (
        ("mine", output, "records.jsonl line 2: not a record"),
        ("again", copy, "what is there was copied"),
        ("../up", output, "a name of a-z"),
        ("mine", tmp_path / "nothing", "no finished record"),
    ):
        with refused(told):
            publish.main([study, f"output={folder}"])
    assert path.read_text() == damaged
    # as a run leaves it whose record names no path
    (copy / "runs" / one["id"]).mkdir(parents=True)
    assert read_ledger(copy).origin == {one["id"]: "ours"}


@pytest.mark.parametrize(
    "method", slow_except(["none", "lora_fa", "adalora", "bitfit"], "none", "lora_fa")
)
def test_a_finished_run_is_checked_from_its_files(method, words, capsys):
    record = trained(
        [*(w for w in words if not w.startswith("method.")), f"method={method}"]
    )
    assert evaluate.main([record["id"][:6], f"output={output_of(words)}"]) == 0
    assert "the same" in capsys.readouterr().out
    assert (record["steps"] == 0) == (method == "none")


def test_what_is_not_what_the_record_names_is_one_line(words):
    record, output = trained(words), output_of(words)

    def says(*named, module="runs.evaluate", word=record["id"]):
        line = call_here(module, word, f"output={output}", check=2).stderr
        assert line.count("\n") == 1
        assert [words for words in named if words not in line] == []

    adapter = Path(output) / "runs" / record["id"] / "adapter.safetensors"
    adapter.write_bytes(adapter.read_bytes()[:200])
    says(f"{adapter} is not the file that the record of run {record['id']} names")
    older = {key: record[key] for key in record if key not in ("files", "overrides")}
    write_record(output, older)
    says("adapter.safetensors: damaged, or no")
    # without its overrides
    says(f"run {record['id']}: ", module="runs", word=f"rerun={record['id']}")
    adapter.unlink()  # or a record that was copied
    says(f"{adapter} is not there (run {record['id']} had keep=best)", "redo=true\n")
    write_record(output, record | {"status": "diverged", "error": "a loss of nan"})
    says("is diverged: a loss of nan")


def test_a_plan_shows_what_runs_and_how_far_it_is(words, capsys):
    runs, output = expand([*words, "seed=0,1"]), output_of(words)
    first, folder = run_id(runs[0]), run_folder(output, run_id(runs[0]))

    def shown():
        records = RecordFolder("nowhere")
        return plan.plan_text(plan.plan(runs, records), records)

    folder.mkdir(parents=True)
    with holding(run_lock(output, first), "it"):
        for odd in (
            "[1]",
            "null",
            '{"phase":"training","steps":3}',
            "[" * 10**5,
            '{"phase":3}',
        ):
            (folder / "progress.json").write_text(odd)
            shows(shown(), "running: VeRA r=8 on RTE, seed 0")
        (folder / "progress.json").write_text(json.dumps(TRAINING | {"host": "node7"}))
        row = "running: VeRA r=8 on RTE, seed 0: epoch 2/5  left: 1m01s  step 9/25  loss 0.500  dev"
        shows(shown(), "0/2 *", "running 1 · missing 1", row, "/s  on node7")
        assert re.search("est. 1m01s left on one .* for 1 of the 2 runs left", shown())
    assert "running" not in shown()
    (folder / "attempts" / "here.1.x").mkdir(parents=True)
    (folder / "attempts" / "here.1.x" / "checkpoint.safetensors").touch()
    shows(shown(), "0/2 r")
    # it goes on from there
    assert re.search("est. 1m01s left on one .* for 1 of the 2 runs left", shown())

    for run in runs:
        cell = {
            "paper": None,
            "model": run.model,
            "task": run.task,
            "row": run.row,
            "seed": run.seed,
        }
        write_record(
            output,
            ledgers.record() | {"id": run_id(run), "cell": cell, "config": run.config},
        )
    assert plan.main([*words, "seed=0,1", "redo=true"]) == 0
    printed = capsys.readouterr().out
    shows(printed, "0/2", "to repeat 2", "est. ")
    assert "done" not in printed
    # only the runs that the command names, not those they start from
    records = RecordFolder(output)
    states = [entry.state for entry in plan.plan(runs, records, runs[1:])]
    assert states == ["done", "to repeat"]


# --- a run once more


@pytest.mark.usefixtures("process")
def test_a_run_is_repeated_by_its_id(words, monkeypatch, tmp_path):
    """As the error of one says that kept no adapter; then a published one, whose data
    are elsewhere."""
    output = output_of(words)
    record = trained([*words, "train.max_steps=1", "keep=none"])
    done = call_here("runs.evaluate", record["id"], f"output={output}", check=2)
    assert "adapter.safetensors is not there" in done.stderr
    command = done.stderr.partition("vera-bench ")[2].split()
    assert command == [
        f"rerun={record['id']}",
        "keep=best",
        f"output={output}",
        "redo=true",
    ]
    call_here("runs", *command, "device=cpu", check=0)
    call_here("runs.evaluate", record["id"], f"output={output}", check=0)
    study, other = tmp_path / "published" / "study", f"output={tmp_path / 'other'}"
    write_study(study, [without_paths(record)])
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", study.parent)
    told = call_here("runs.evaluate", record["id"], other, check=2).stderr
    assert f"To have it here: vera-bench rerun={record['id']}" in told
    assert told.count("\n") == 1
    call_here("analysis.diff", record["id"], other, check=2)
    again = [f"rerun={record['id'][:8]}", other]
    folder = f"task.data_dir={record['config']['task']['data_dir']}"
    model = f"model.path={record['config']['model']['path']}"
    assert "add task.data_dir=" in call_here("runs", *again, model, check=2).stderr
    call_here("runs", *again, folder, model, "device=cpu", check=0)
    compared = call_here("analysis.diff", record["id"], other, check=0).stdout
    assert f"{record['id']} (published in study)" in compared
    assert not re.search(r"\| (curve|result|predictions)\.", compared)
    changed = call_here(
        "runs", *again, folder, model, "device=cpu", "train.lr=0.02", check=0
    ).stdout
    assert f"another run than {record['id']}" in changed


# --- measures, beside what a whole model says


@pytest.fixture
def pair(words):
    """The output folder with a LoRA and a VeRA run of one rank and seed, and their
    records."""
    return output_of(words), *(
        trained([*words, f"method={row}"]) for row in ("lora", "vera")
    )


def test_magnitude_is_the_distance_from_the_initial_values(pair):
    output, _, record = pair
    found = magnitude(0, output, record)
    model = restore(record, output).raw_model
    for key, start in (("d", 0.1), ("b", 0.0)):
        moved = [
            float((getattr(c, key).detach() - start).double().norm())
            for c in layer_changes(model)
        ]
        assert found["values"][key] == pytest.approx(moved)
    assert min(found["values"]["d"]) > 0
    assert found["values"]["layer"] == [0, 0, 1, 1]
    assert found["values"]["site"] == ["query", "value"] * 2
    assert found["of"][0]["id"] == record["id"]
    assert found["of"][0]["adapter"]["epoch"] == record["result"]["best_epoch"]
    with refused("started from another adapter"):
        magnitude(0, output, record | {"start": {"from": "x", "id": "y"}})


def merged(record, output):
    """What a whole model's adapted weights have become, less what they were."""
    model = restore(record, output).raw_model
    weights = {
        n: p.detach().double().clone()
        for n, p in model.named_parameters()
        if n.endswith("base.weight")
    }
    model._adaptation.method.merge(model)
    return [
        (p.detach().double() - weights[n]).flatten()
        for n, p in model.named_parameters()
        if n in weights
    ]


def test_similarity_is_the_cosine_of_what_the_two_do_to_the_weights(pair):
    output, lora, vera = pair
    found = similarity(3, output, lora, vera)
    expected = [
        float(torch.cosine_similarity(a, b, 0))
        for a, b in zip(merged(lora, output), merged(vera, output), strict=True)
    ]
    assert found["values"]["lora_vera"] == pytest.approx(expected, abs=1e-4)
    noise = np.random.default_rng([3, 1]).standard_normal((32, 32)).ravel()
    change = merged(lora, output)[1].numpy()
    cosine = change @ noise / np.linalg.norm(change) / np.linalg.norm(noise)
    assert found["values"]["lora_random"][1] == pytest.approx(cosine, abs=1e-4)
    query = np.array(found["values"]["lora_vera"])[
        np.array(found["values"]["site"]) == "query"
    ]
    assert found["summary"]["mean lora_vera"] == pytest.approx(query.mean())
    # Either order; another seed is another measure, with the same cosine of the two
    # runs
    assert similarity(3, output, vera, lora)["values"] == found["values"]
    other = similarity(4, output, lora, vera)
    assert measure_id("similarity", other) != measure_id("similarity", found)
    assert other["values"]["lora_vera"] == found["values"]["lora_vera"]
    assert other["values"]["lora_random"] != found["values"]["lora_random"]


def test_measures_are_files_that_the_ledger_reads_and_tables_do_not_see(
    pair, capsys, monkeypatch, tmp_path
):
    output, lora, vera = pair
    assert measure_main(["magnitude", f"output={output}"]) == 0
    assert measure_main(["similarity", f"output={output}"]) == 0
    # the same file
    assert measure_main(["similarity", lora["id"], vera["id"], f"output={output}"]) == 0
    ledger = read_ledger(output)
    assert sorted(m["kind"] for m in ledger.measures.values()) == [
        "magnitude",
        "similarity",
    ]
    assert {lora["id"], vera["id"]} <= set(ledger.records)
    assert not ledger.problems
    for found in ledger.measures.values():
        assert {
            "code",
            "versions",
            "device",
            "seconds",
            "seeds",
            "settings",
        } <= found.keys()
        assert str(output) not in json.dumps(found)
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", tmp_path / "published")
    assert publish.main(["mine", f"output={output}"]) == 0
    assert "2 measures in runs/records/mine/measures.jsonl" in capsys.readouterr().out
    assert len(read_ledger(tmp_path / "none").measures) == 2


PARTS = {
    "schema": 1,
    "id": "a",
    "of": [],
    "settings": {},
    "seeds": {},
    "kind": "x",
    "values": {},
}
SHORT = {"method": [], "rank": [1], "parameters": [], "mse": [], "best": []}


def test_a_damaged_measure_is_a_problem_and_no_more(tmp_path):
    (tmp_path / "measures").mkdir()
    for named, damaged in (
        ("schema 9", PARTS | {"schema": 9}),
        ("kind: input should be", PARTS | {"values": {"d": [1]}}),
        ("differ in length", PARTS | {"kind": "matrix_fit", "values": SHORT}),
    ):
        (tmp_path / "measures" / "a.json").write_text(json.dumps(damaged))
        ledger = read_ledger(tmp_path, published=False)
        assert (len(ledger.measures), len(ledger.problems)) == (0, 1)
        assert named in ledger.problems[0]


def test_a_second_record_of_a_run_with_another_result_is_a_problem(
    pair, tmp_path, monkeypatch
):
    _, lora, _ = pair
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", tmp_path / "published")
    write_record(tmp_path, lora)
    copy, other = (
        tmp_path / "published" / "study",
        lora | {"result": lora["result"] | {"best": 0.123}},
    )
    write_study(copy, [lora])
    assert not read_ledger(tmp_path).problems  # the same run, published
    write_study(copy, [other])
    (problem,) = read_ledger(tmp_path).problems
    another = f"run {lora['id']} has another result here than in"
    best = lora["result"]["best"]
    size = f"(the largest difference is {abs(best - 0.123):.2g})"
    assert problem == f"{copy / 'records.jsonl'}: {another} ours, which counts {size}"
    assert read_ledger(tmp_path).records[lora["id"]] == lora
    # as by a merge
    (copy / "records.jsonl").write_text(record_text(lora) + record_text(other))
    assert [another in of for of in read_study(copy).problems] == [True]
    (copy / "records.jsonl").unlink()
    by_hand = tmp_path / "records" / "0.json"  # before the record itself, by name
    by_hand.write_text(json.dumps(other))
    assert read_ledger(tmp_path).records[lora["id"]] == lora
    assert read_ledger(tmp_path).problems == [
        f"{by_hand}: a record that belongs in {lora['id']}.json"
    ]


# --- figure 6


def test_the_fit_reaches_what_a_matrix_of_its_rank_can_and_vera_fewer_parameters():
    ranks = {"lora": (1, 5, 10), "vera": (1, 10, 190)}
    settings = FitSettings(matrices=3, steps=400, ranks=ranks)
    values = matrix_fit(0, settings=settings)["values"]
    of = values["method"].index("vera")
    assert values["parameters"] == [20, 100, 200, 11, 20, 200]
    for mse, best in zip(values["mse"][:of], values["best"][:of], strict=True):
        assert mse == pytest.approx(best, abs=2e-3)
        assert all(e > b - 1e-5 for e, b in zip(mse, best, strict=True))
    assert min(values["best"][0]) > 0.1
    of_11, of_20, of_200 = values["mse"][of:]
    assert max(of_200) < 1e-3 < 0.1 < min(of_20)
    assert np.mean(of_20) < np.mean(of_11)


def test_the_fit_is_its_seeds():
    few = FitSettings(matrices=2, steps=3, ranks={"lora": (1,), "vera": (2,)})
    first, again, other = (matrix_fit(seed, settings=few) for seed in (0, 0, 1))
    assert first["values"] == again["values"] != other["values"]
    ids = [measure_id("matrix_fit", found) for found in (first, again, other)]
    assert ids[0] == ids[1] != ids[2]


# --- mistakes


def test_a_users_mistake_is_one_line_and_what_has_no_adapter_is_left_out_of_all(
    pair, tmp_path, capsys
):
    output, lora, vera = pair
    here, empty = f"output={output}", f"output={tmp_path}"
    by_name = ["magnitude", vera["id"], empty]

    def check(*cases):
        for words, wanted in cases:
            with refused(wanted):
                measure_main(words)

    check(  # others are in test_command.py
        (["magnitude", lora["id"], here], "a run of the kind vera is wanted here"),
        (["similarity", empty], "has no runs for similarity"),
    )
    write_record(tmp_path, vera)  # copied, without its files
    check(
        (["magnitude", empty], "none of 1 could be measured"),
        (by_name, "adapter.safetensors is not there"),
    )
    assert "left out: " in capsys.readouterr().out
    # nobody expects one of it
    write_record(tmp_path, vera | {"config": vera["config"] | {"keep": "none"}})
    check(
        (["magnitude", empty], "has no runs for magnitude"), (by_name, "had keep=none")
    )


def test_layers_and_sites_are_read_from_names():
    for name, wanted in (
        ("roberta.encoder.layer.11.attention.self.query", (11, "query")),
        ("model.layers.3.self_attn.q_proj", (3, "query")),
        ("transformer.h.5.attn.c_attn.value", (5, "value")),
        ("encoder.layer.2.attention.output.dense", (2, "attention.output.dense")),
        ("pooler.dense", (-1, "pooler.dense")),
    ):
        assert layer_and_site(name) == wanted


def test_an_ids_beginning_means_a_run_of_this_machine_before_a_published_one(
    pair, tmp_path, monkeypatch
):
    _, lora, vera = pair
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", tmp_path / "published")
    other = lora | {"id": vera["id"][:6] + "0" * 6}
    write_study(tmp_path / "published" / "study", [other])
    output = str(tmp_path / "others")
    assert find_finished(vera["id"][:6], output)["id"] == other["id"]
    with refused("is not there ", "To have it here: vera-bench rerun="):
        restore(other, output)
    write_record(output, vera)
    assert find_finished(vera["id"][:6], output)["id"] == vera["id"]
    assert find_finished(other["id"], output)["id"] == other["id"]
