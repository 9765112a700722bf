"""Forgetting in a run: before is the base model, after is the last epoch's, and nothing else changes."""

import json
import math

import pytest
import torch
from running import comparable, do, elsewhere, straight_and_resumed, trained
from tiers import sample
from transformers import AutoModelForCausalLM, AutoTokenizer

import tasks.e2e_metrics
import vera
from runs import evaluate
from runs.config import expand
from runs.identity import run_id
from runs.record import read_record, record_path, run_folder
from runs.training.loop import Training
from tasks.forgetting import fixed_text

pytestmark = pytest.mark.determinism


def text_of(path):
    text = fixed_text({})
    text.prepare(AutoTokenizer.from_pretrained(path), 160)
    return text


def of_method(words, *change):
    """The words with another method, whose rate moves what it computes."""
    schedule = ("train.schedule=constant", "train.warmup_ratio=0", "train.clip=null")
    plain = [w for w in words if not w.startswith(("method.", "train.lr="))]
    rate = [] if any(w.startswith("train.lr=") for w in change) else ["train.lr=0.1"]
    return [*plain, *rate, *schedule, *change]


WITH_VERA = ["method=vera", "method.rank=8"]


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    monkeypatch.setattr(tasks.e2e_metrics.shutil, "which", lambda name: None)


@pytest.mark.parametrize(
    "change",
    sample([WITH_VERA, ["method=lora", "method.rank=4"], ["method=full"]], WITH_VERA),
    ids=lambda change: change[0],
)
def test_before_is_the_base_model_and_after_the_last_epochs(change, e2e_words, tiny_gpt2):
    """Independently: a model that never had an adapter, and one with the kept file merged in, in float64."""
    record = trained([*of_method(e2e_words, *change), "task.decode=none", "keep=last"])
    found, text = record["result"]["forgetting"], text_of(tiny_gpt2)
    assert {key: found[key] for key in ("text", "sha256", "tokens")} == text.about()
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2, dtype=torch.float64).eval()
    with torch.no_grad():
        assert found["before"] == pytest.approx(text.loss(model), rel=1e-6)
        file = run_folder(record["config"]["output"], record["id"]) / "adapter.safetensors"
        if record["config"]["keep"] == "last" and file.is_file():
            method = vera.load(model, file)
            method.merge(model)
            assert found["after"] == pytest.approx(text.loss(model), rel=1e-6)
    assert abs(found["after"] - found["before"]) > 1e-4


def test_before_is_the_base_model_also_where_the_adapter_starts_elsewhere(e2e_words):
    words = [*of_method(e2e_words, "method=vera", "method.rank=8"), "task.decode=none", "keep=last"]
    first = trained(words)
    start = run_folder(first["config"]["output"], first["id"]) / "adapter.safetensors"
    (run,) = expand([*words, f"init_from={start}", "seed=1"])
    loop = Training(run, run_id(run), lambda event: None)
    found = first["result"]["forgetting"]
    assert loop.base_loss == found["before"] != pytest.approx(found["after"], abs=1e-4)
    assert all(parameter.requires_grad for parameter in loop.parameters.values())
    # And the adapter is on again, with the values that it starts from.
    assert float(loop.task.fixed_text.loss(loop.raw_model.eval())) == pytest.approx(found["after"], rel=1e-6)


@pytest.mark.slow  # it takes seconds
@pytest.mark.parametrize(
    "change",
    [
        ["method=vera", "method.rank=8"],
        ["method=bitfit"],
        ["method=peft", "method.sites=[c_attn,feed_forward_out]", "method.config_class=IA3Config"],
        ["method=adapter_p", "method.bottleneck=4"],
    ],
    ids=lambda change: change[-1],
)
def test_to_measure_it_changes_nothing_of_the_training(change, e2e_words, tmp_path):
    words = [*of_method(e2e_words, *change), "task.decode=none"]
    words = [w for w in words if "pdrop" not in w]  # with dropout, whose draws must not move
    with_it = do(elsewhere(words, output=tmp_path / "with"))
    without = do([*elsewhere(words, output=tmp_path / "without"), "task.forgetting_text=none"])
    assert with_it["id"] == without["id"]
    assert with_it["result"].pop("forgetting")["after"] is not None
    assert "forgetting" not in without["result"]
    del with_it["config"]["task"], without["config"]["task"]
    assert comparable(with_it) == comparable(without)


@pytest.mark.slow  # it takes seconds
def test_a_resumed_run_has_the_same_forgetting(e2e_words, tmp_path):
    words = [*of_method(e2e_words, "method=full"), "task.decode=none"]  # whose base is gone once it trains
    straight, resumed = straight_and_resumed(words, 3, tmp_path)
    assert comparable(resumed) == comparable(straight)
    assert resumed["result"]["forgetting"] == straight["result"]["forgetting"]


def test_the_last_epoch_counts_also_where_another_is_the_best_and_decoded(e2e_words, tiny_gpt2):
    record = do([*of_method(e2e_words, "method=adapter_l", "method.bottleneck=4", "train.lr=2")])
    assert record["result"]["best_epoch"] == 1
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2).eval()
    vera.load(model, run_folder(record["config"]["output"], record["id"]) / "adapter.safetensors")
    with torch.no_grad():
        after = text_of(tiny_gpt2).loss(model)
    assert record["result"]["forgetting"]["after"] == pytest.approx(after, rel=1e-5)


def test_a_diverged_run_has_none(e2e_words):
    words = [w for w in e2e_words if not w.startswith("train.lr=")]
    record = do([*words, "train.lr=1e30", "train.clip=null", "task.decode=none"])
    assert record["status"] == "diverged"
    assert "forgetting" not in record["result"]


def test_instructions_have_it_too_and_classifiers_do_not(alpaca_words, words):
    found = trained(alpaca_words)["result"]["forgetting"]
    assert found["text"] == "shipped"
    assert math.isfinite(found["after"])
    assert "forgetting" not in trained(words)["result"]


# --- the setting


def test_the_text_is_not_part_of_what_a_run_is(e2e_words, tmp_path):
    (tmp_path / "t.txt").write_text("Another text.")
    values = ("null", "none", str(tmp_path / "t.txt"), "hub:a/b/c.txt")
    ids = {run_id(expand([*e2e_words, f"task.forgetting_text={value}"])[0]) for value in values}
    assert len(ids) == 1
    record = trained([*e2e_words, f"task.forgetting_text={tmp_path / 't.txt'}", "task.decode=none"])
    assert record["result"]["forgetting"]["text"] == "t.txt"
    assert not any("forgetting" in word for word in record["deviations"])


# --- python -m runs.evaluate


@pytest.mark.slow  # it takes seconds
@pytest.mark.parametrize("change", [["method=vera", "method.rank=8"], ["method=none"]], ids=str)
def test_a_record_that_lacks_it_gets_it_and_one_that_has_it_is_checked(change, e2e_words, capsys):
    record = trained([*of_method(e2e_words, *change), "task.decode=none", "keep=last"])
    output = record["config"]["output"]
    path, wanted = record_path(output, record["id"]), record["result"].pop("forgetting")
    path.write_text(json.dumps(record))
    assert evaluate.main([record["id"], f"output={output}"]) == 0
    assert "forgetting added to the record" in capsys.readouterr().out
    again = read_record(path)
    found = again["result"].pop("forgetting")
    assert found == {**wanted, "after": pytest.approx(wanted["after"], rel=1e-6)}
    assert again == record
    for change, code, words in (
        ({}, 0, "forgetting as recorded: the same"),
        ({"after": wanted["after"] + 0.5}, 1, "forgetting as recorded: NOT the same"),
        ({"before": wanted["before"] + 0.5}, 1, "forgetting as recorded: NOT the same"),  # another base
        ({"sha256": "another", "text": "b.txt"}, 0, "recorded on another text (b.txt), not compared"),
    ):
        again["result"]["forgetting"] = wanted | change
        path.write_text(json.dumps(again))
        assert evaluate.main([record["id"], f"output={output}"]) == code
        assert words in capsys.readouterr().out
