"""What figures are drawn from: measured on tiny runs, beside what a whole model says."""

import json

import numpy as np
import pytest
import torch
from running import do, refused

from runs import publish
from runs.evaluate import find, restore
from runs.measure import layer_and_site, magnitude, matrix_fit, measure_id, similarity
from runs.measure import main as measure_main
from runs.record import read_ledger, run_folder, write_record
from vera.methods.layers import changes

pytestmark = pytest.mark.properties


@pytest.fixture(scope="module")
def pair(tiny_roberta, glue, tmp_path_factory):
    """The output folder with a LoRA and a VeRA run of one rank and seed, and their records."""
    output = tmp_path_factory.mktemp("pair")
    words = ["model=encoder", f"model.path={tiny_roberta}", "task=rte", f"task.data_dir={glue}"]
    words += ["train.effective_batch=8", "train.max_length=32", "train.lr=1e-2", "train.epochs=2"]
    words += ["method.rank=8", "device=cpu", f"output={output}"]
    return (str(output), *(do([*words, f"method={row}"]) for row in ("lora", "vera")))


def test_magnitude_is_the_distance_from_the_initial_values(pair):
    output, _, record = pair
    found = magnitude(record, output)
    model = restore(record, output).raw_model
    for key, start in (("d", 0.1), ("b", 0.0)):
        moved = [float((getattr(c, key).detach() - start).double().norm()) for c in changes(model)]
        assert found["values"][key] == pytest.approx(moved)
    assert min(found["values"]["d"]) > 0
    assert found["values"]["layer"] == [0, 0, 1, 1]
    assert found["values"]["site"] == ["query", "value"] * 2
    assert found["of"][0]["id"] == record["id"]
    assert found["of"][0]["adapter"]["epoch"] == record["result"]["best_epoch"]
    with refused("started from another adapter"):
        magnitude(record | {"start": {"from": "x", "id": "y"}}, output)


def merged(record, output):
    """What a whole model's adapted weights have become, less what they were."""
    model = restore(record, output).raw_model
    weights = {
        n: p.detach().double().clone() for n, p in model.named_parameters() if n.endswith("base.weight")
    }
    model._adaptation.method.merge(model)
    return [(p.detach().double() - weights[n]).flatten() for n, p in model.named_parameters() if n in weights]


def test_similarity_is_the_cosine_of_what_the_two_do_to_the_weights(pair):
    output, lora, vera = pair
    found = similarity(lora, vera, output, seed=3)
    expected = [
        float(torch.cosine_similarity(a, b, 0))
        for a, b in zip(merged(lora, output), merged(vera, output), strict=True)
    ]
    assert found["values"]["lora_vera"] == pytest.approx(expected, abs=1e-4)
    noise = np.random.default_rng([3, 1]).standard_normal((32, 32)).ravel()
    change = merged(lora, output)[1].numpy()
    cosine = change @ noise / np.linalg.norm(change) / np.linalg.norm(noise)
    assert found["values"]["lora_random"][1] == pytest.approx(cosine, abs=1e-4)
    query = np.array(found["values"]["lora_vera"])[np.array(found["values"]["site"]) == "query"]
    assert found["summary"]["mean lora_vera"] == pytest.approx(query.mean())
    # Either order; another seed is another measure, with the same cosine of the two runs
    assert similarity(vera, lora, output, seed=3)["values"] == found["values"]
    other = similarity(lora, vera, output, seed=4)
    assert measure_id("similarity", other) != measure_id("similarity", found)
    assert other["values"]["lora_vera"] == found["values"]["lora_vera"]
    assert other["values"]["lora_random"] != found["values"]["lora_random"]


def test_measures_are_files_that_the_ledger_reads_and_tables_do_not_see(pair, capsys, monkeypatch, tmp_path):
    output, lora, vera = pair
    assert measure_main(["magnitude", f"output={output}"]) == 0
    assert measure_main(["similarity", f"output={output}"]) == 0
    assert measure_main(["similarity", lora["id"], vera["id"], f"output={output}"]) == 0  # the same file
    told = capsys.readouterr().out
    assert "similarity of LoRA r=8 on RTE, seed 0 and VeRA r=8 on RTE, seed 0: mean lora_vera" in told
    ledger = read_ledger(output)
    assert sorted(m["kind"] for m in ledger.measures.values()) == ["magnitude", "similarity"]
    assert {lora["id"], vera["id"]} <= set(ledger.records)
    assert not ledger.problems
    for found in ledger.measures.values():
        assert {"code", "versions", "device", "seconds", "seeds", "settings"} <= found.keys()
        assert str(output) not in json.dumps(found)
    monkeypatch.setattr(publish, "PUBLISHED", tmp_path)
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", tmp_path)
    assert publish.main(["mine", f"output={output}"]) == 0
    assert "2 measures in runs/records/mine/measures" in capsys.readouterr().out
    assert len(read_ledger(tmp_path / "none").measures) == 2


PARTS = {"schema": 1, "id": "a", "of": [], "settings": {}, "seeds": {}, "kind": "x", "values": {}}
SHORT = {"method": [], "rank": [1], "parameters": [], "mse": [], "best": []}


def test_a_damaged_measure_is_a_problem_and_no_more(tmp_path):
    (tmp_path / "measures").mkdir()
    for named, damaged in (
        ("not a measure", None),
        ("schema 9", PARTS | {"schema": 9}),
        ("kind: input should be", PARTS | {"values": {"d": [1]}}),
        ("differ in length", PARTS | {"kind": "matrix_fit", "values": SHORT}),
    ):
        (tmp_path / "measures" / "a.json").write_text(json.dumps(damaged))
        ledger = read_ledger(tmp_path, published=False)
        assert (len(ledger.measures), len(ledger.problems)) == (0, 1)
        assert named in ledger.problems[0]


def test_a_second_record_of_a_run_with_another_result_is_a_problem(pair, tmp_path, monkeypatch):
    _, lora, _ = pair
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", tmp_path / "published")
    write_record(tmp_path, lora)
    copy = tmp_path / "published" / "study" / f"{lora['id']}.json"
    copy.parent.mkdir(parents=True)
    copy.write_text(json.dumps(lora))
    assert not read_ledger(tmp_path).problems  # the same run, published
    copy.write_text(json.dumps(lora | {"result": lora["result"] | {"best": 0.123}}))
    (problem,) = read_ledger(tmp_path).problems
    assert problem == f"{copy.parent}: run {lora['id']} has another result here than in ours, which counts"
    assert read_ledger(tmp_path).records[lora["id"]] == lora
    copy.unlink()
    by_hand = tmp_path / "records" / "0.json"  # before the record itself, by name
    by_hand.write_text(json.dumps(lora | {"result": lora["result"] | {"best": 0.123}}))
    assert read_ledger(tmp_path).records[lora["id"]] == lora
    assert read_ledger(tmp_path).problems == [
        f"{by_hand}: the record of run {lora['id']}, which belongs in {lora['id']}.json"
    ]


# --- figure 6


def test_the_fit_reaches_what_a_matrix_of_its_rank_can_and_vera_fewer_parameters():
    values = matrix_fit(0, matrices=3, steps=400, ranks={"lora": (1, 5, 10), "vera": (1, 10, 190)})["values"]
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
    few = {"matrices": 2, "steps": 3, "ranks": {"lora": (1,), "vera": (2,)}}
    first, again, other = (matrix_fit(seed, **few) for seed in (0, 0, 1))
    assert first["values"] == again["values"] != other["values"]
    ids = [measure_id("matrix_fit", found) for found in (first, again, other)]
    assert ids[0] == ids[1] != ids[2]


# --- mistakes


def test_a_users_mistake_is_one_line_and_what_has_no_adapter_is_left_out_of_all(pair, tmp_path, capsys):
    output, lora, vera = pair
    here, empty = f"output={output}", f"output={tmp_path}"
    by_name = ["magnitude", vera["id"], empty]

    def check(*cases):
        for words, wanted in cases:
            with refused(wanted):
                measure_main(words)

    check(  # others are in test_command.py
        (["magnitude", lora["id"], here], "a run of the kind vera is wanted here"),
        (["similarity", vera["id"], vera["id"], here], "a run of the kind lora is wanted here"),
        (["magnitude", "nothing", here], "no records begin with 'nothing'"),
        (["magnitude", empty], "has no runs for magnitude"),
        (["similarity", empty], "has no runs for similarity"),
    )
    write_record(tmp_path, vera)  # copied, without its files
    check(
        (["magnitude", empty], "none of 1 could be measured"), (by_name, "adapter.safetensors is not there")
    )
    assert "left out: " in capsys.readouterr().out
    write_record(tmp_path, vera | {"config": vera["config"] | {"keep": "none"}})  # nobody expects one of it
    check((["magnitude", empty], "has no runs for magnitude"), (by_name, "had keep=none"))
    write_record(tmp_path, vera)
    damaged = bytearray((run_folder(output, vera["id"]) / "adapter.safetensors").read_bytes())
    damaged[-1] ^= 1
    (folder := run_folder(tmp_path, vera["id"])).mkdir(parents=True)
    (folder / "adapter.safetensors").write_bytes(damaged)
    check((by_name, "is not the file that the record of run"))


def test_layers_and_sites_are_read_from_names():
    for name, wanted in (
        ("roberta.encoder.layer.11.attention.self.query", (11, "query")),
        ("model.layers.3.self_attn.q_proj", (3, "query")),
        ("transformer.h.5.attn.c_attn.value", (5, "value")),
        ("encoder.layer.2.attention.output.dense", (2, "attention.output.dense")),
        ("pooler.dense", (-1, "pooler.dense")),
    ):
        assert layer_and_site(name) == wanted


def test_an_ids_beginning_means_a_run_of_this_machine_before_a_published_one(pair, tmp_path, monkeypatch):
    _, lora, vera = pair
    study = tmp_path / "published" / "study"
    study.mkdir(parents=True)
    monkeypatch.setattr("runs.record.ledger.PUBLISHED", study.parent)
    other = lora | {"id": vera["id"][:6] + "0" * 6}
    (study / f"{other['id']}.json").write_text(json.dumps(other))
    output = str(tmp_path / "outputs")
    assert find(vera["id"][:6], output)["id"] == other["id"]
    with refused("is not there ", "To have it here: python -m runs rerun="):
        restore(other, output)
    write_record(output, vera)
    assert find(vera["id"][:6], output)["id"] == vera["id"]
    assert find(other["id"], output)["id"] == other["id"]
