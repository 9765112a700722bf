"""A run of a language model: its texts, what it forgets, its files; and the same record
when it is killed on the way. tests/nets has its record."""

import contextlib
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from running import (
    CONFIGURATION,
    begin,
    comparable,
    kill_at_call,
    refused,
    replace_words,
    straight_and_resumed,
    train_here,
    trained,
)
from tiers import slow_except
from transformers import AutoModelForCausalLM, AutoTokenizer

import tasks.e2e_metrics
import vera
from runs import evaluate
from runs.config import expand
from runs.record.ledger import read_record, record_path, run_folder
from runs.run.identity import run_id
from runs.training import decode
from runs.training.result import deviations
from tasks.forgetting import fixed_text

pytestmark = pytest.mark.determinism

FILES = {
    "adapter.safetensors",
    "adapter_best.safetensors",
    "decoded_last.jsonl",
    "references.txt",
}
FILES |= {
    f"{which}_{penalty}.txt" for which in ("last", "best") for penalty in ("0.9", "0.8")
}


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    """Scores that need Java have tests of their own; here it would cost seconds a
    run."""
    monkeypatch.setattr(tasks.e2e_metrics.shutil, "which", lambda name: None)


def of_method(words, *change):
    """The words with another method, whose rate moves what it computes."""
    plain = [w for w in words if not w.startswith(("method.", "train.lr="))]
    schedule = ("train.schedule=constant", "train.warmup_ratio=0", "train.clip=null")
    rate = [] if any(w.startswith("train.lr=") for w in change) else ["train.lr=0.1"]
    return [*plain, *rate, *schedule, *change]


def worse(words, *more):
    """Of a run whose second epoch is worse than its first."""
    return of_method(
        words, "method=adapter_l", "method.bottleneck=4", "train.lr=2", *more
    )


def folder_of(words) -> Path:
    (run,) = expand(words)
    return run_folder(run.config["output"], run_id(run))


def check(record):
    return evaluate.main([record["id"], f"output={record['config']['output']}"])


def text_of(path):
    text = fixed_text({})
    text.prepare(AutoTokenizer.from_pretrained(path), 160)
    return text


# --- the texts and the files


def test_the_texts_of_the_last_and_the_best_epoch_are_each_of_its_own_adapter(
    e2e_words, tiny_gpt2
):
    """By each penalty. What is forgotten is the last epoch's."""
    words = worse(e2e_words)
    record, folder, training = trained(words), folder_of(words), begin(words)
    kept = FILES | CONFIGURATION | {"decoded_best.jsonl", "attempts"}
    assert {path.name for path in folder.iterdir()} == kept
    assert (record["result"]["best_epoch"], record["result"]["best"]) == (
        1,
        min(record["curve"]["metric"]),
    )
    entries = {e["which"]: e for e in record["texts"]["scores"]}
    assert (entries["best"]["epoch"], entries["last"]["epoch"]) == (1, 2)
    assert entries["best"]["hash"] != entries["last"]["hash"]
    for name, which in (("adapter_best", "best"), ("adapter", "last")):
        vera.load(training.raw_model, folder / f"{name}.safetensors")
        texts = training.task.decode(training.raw_model.eval(), [0, 1, 2])
        assert [t["0.9"] for t in texts] == decode.read_texts(training.task, folder)[
            which
        ]["0.9"]
    blocks = (folder / "references.txt").read_text().removesuffix("\n\n").split("\n\n")
    assert len((folder / "last_0.9.txt").read_text().splitlines()) == len(blocks) == 3
    with torch.no_grad():
        after = text_of(tiny_gpt2).loss(training.raw_model)
    assert record["result"]["forgetting"]["after"] == pytest.approx(
        float(after), rel=1e-5
    )


KEPT = [("both", "fp16"), ("none", "fp32"), ("best", "fp32")]


@pytest.mark.parametrize(("keep", "precision"), slow_except(KEPT, *KEPT[:2]))
def test_what_stays_on_disk_is_what_keep_says(
    keep, precision, e2e_words, tmp_path, capsys
):
    """And the scores are of full precision, whatever is kept."""
    words = worse(e2e_words, f"keep={keep}", f"adapter_precision={precision}")
    whole = worse(replace_words(e2e_words, output=tmp_path / "reference"))
    record = train_here(words)
    assert record["texts"] == trained(whole)["texts"]
    names = {"none": [], "both": ["adapter", "adapter_best"]}.get(keep, ["adapter"])
    kept = {path.name for path in folder_of(words).glob("*.safetensors")}
    assert kept == {f"{name}.safetensors" for name in names}
    # texts are decoded from the best epoch's, which stays in full precision
    for name in names:
        one, other = (
            (folder_of(of) / f"{name}.safetensors").stat().st_size
            for of in (words, whole)
        )
        assert (one < 0.8 * other) == (precision == "fp16" and name == "adapter")
    capsys.readouterr()
    checked, said = check(record), capsys.readouterr().out
    if precision == "fp32":
        assert (checked, said.count("perplexity")) == (
            0,
            {"none": 1, "both": 2}.get(keep, 1),
        )
    assert ("kept no adapter" in said) == (keep == "none")


def test_the_untrained_model_is_a_row(e2e_words, capsys):
    plain = [w for w in e2e_words if not w.startswith("method.")]
    record = train_here([*plain, "method=none"])
    assert (record["steps"], {e["epoch"] for e in record["texts"]["scores"]}) == (
        0,
        {0.0},
    )
    capsys.readouterr()
    assert (check(record), "perplexity" in capsys.readouterr().out) == (0, True)


def test_a_model_that_cannot_be_decoded_is_told_before_training(e2e_words, monkeypatch):
    """Such as one whose cache is no attention cache."""
    monkeypatch.setattr("transformers.DynamicCache.batch_repeat_interleave", None)
    with pytest.raises(
        tasks.DataError,
        match=r"e2e: this model cannot be decoded .* task.decode=none trains",
    ):
        train_here(e2e_words)
    assert {path.name for path in folder_of(e2e_words).iterdir()} == CONFIGURATION | {
        "attempts"
    }
    assert [path.name for path in folder_of(e2e_words).glob("attempts/*/*")] == [
        "attempt.json"
    ]


# --- a killed run


@pytest.mark.parametrize("after", slow_except(range(4), 3))
def test_a_killed_decode_goes_on_where_it_was(after, e2e_words, tmp_path, capfd):
    """And with what it was begun to keep: another adapter would be on disk than the
    record says."""
    words = worse(e2e_words, "task.beams=6")  # an MR a call
    killed, undisturbed = (
        replace_words(words, output=tmp_path / name) for name in ("killed", "straight")
    )
    straight, folder = (
        trained(undisturbed),
        kill_at_call(killed, "task.decode", after + 1),
    )
    path = folder / f"decoded_{'last' if after < 3 else 'best'}.jsonl"
    assert path.read_text().count("\n") == 1 + after % 3
    if after == 2:  # a kill in the middle of a line
        with open(path, "ab") as file:  # and of a letter
            file.write('{"item": 2, "texts": {"0.9": "é'.encode()[:-1])
    path = folder / "attempt.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps(saved | {"decoding": 1000.0}))
    for change, before in (
        ("keep=best", "keep=both"),
        ("adapter_precision=fp16", "adapter_precision=fp32"),
    ):
        with refused(
            f"{change}: this run was begun with {before}: go on with that, or delete"
        ):
            begin([*killed, change]).train_and_decode()
    capfd.readouterr()
    record = train_here(killed)
    assert comparable(record) == comparable(straight)
    assert (saved["decoding"] > 0, 1000 < record["cost"]["decode_seconds"] < 1100) == (
        after > 0,
        True,
    )
    said = capfd.readouterr().out
    assert ("are there already" in said) == (after > 0)
    for name in (f for f in FILES if not f.endswith(".safetensors")):
        assert (folder_of(killed) / name).read_bytes() == (
            folder_of(undisturbed) / name
        ).read_bytes()


@pytest.mark.parametrize("of", [{"weights": "w"}, {"weights": "another"}])
def test_texts_are_taken_up_to_a_damaged_line_and_of_the_same_weights_alone(
    of, tmp_path
):
    """A text may hold other ends of lines."""
    path, odd = tmp_path / "decoded_last.jsonl", {"0.9": "a\u2028b\x85c", "0.8": ""}
    lines = [
        {"weights": "w"},
        {"item": 7, "texts": odd},
        {"item": 1, "texts": {"0.9": "e", "0.8": "e"}},
    ]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines[:2])
    path.write_text(f"{text}\n{{damaged\n{json.dumps(lines[2])}\n")
    new = {"0.9": "new", "0.8": "new"}
    one = SimpleNamespace(num_processes=1, process_index=0, is_main_process=True)
    one.wait_for_everyone, one.autocast = lambda: None, contextlib.nullcontext
    context = SimpleNamespace(
        accelerator=one, raw_model=torch.nn.Module(), report=Mock()
    )
    context.method = context.stop = Mock()
    texts_of, same = (
        Mock(side_effect=lambda items: [new for _ in items]),
        of["weights"] == "w",
    )
    found = decode.decode_missing(context, path, of, [[1], [7]], texts_of, "decoding")
    asked = [item for call in texts_of.call_args_list for item in call.args[0]]
    assert (asked, found[7]) == (([1], odd) if same else ([1, 7], new))
    assert [json.loads(line) for line in path.read_text().split("\n")[1:-1]] == [
        {"item": item, "texts": texts} for item, texts in found.items()
    ]


# --- looking again


def test_scores_that_fail_this_time_stay_as_they_were(e2e_words, monkeypatch):
    record = trained(worse(e2e_words))
    path = record_path(record["config"]["output"], record["id"])
    first, *others = record["texts"]["scores"]
    first |= {
        "rouge_l": 50.0,
        "unavailable": {"meteor": "java failed", "cider": "java failed"},
    }
    path.write_text(json.dumps(record))
    found = {
        "bleu": first["bleu"],
        "nist": first["nist"],
        "meteor": None,
        "rouge_l": None,
        "cider": 1.5,
    }
    found["unavailable"] = {"meteor": "no", "rouge_l": "no"}
    monkeypatch.setattr("tasks.e2e.e2e_scores", lambda *_: dict(found))
    assert check(record) == 0
    again = read_record(path)["texts"]["scores"]
    assert (again[0]["rouge_l"], again[0]["cider"], again[0]["meteor"]) == (
        50.0,
        1.5,
        None,
    )
    assert again[0]["unavailable"] == {"meteor": "java failed"}
    assert (again[1]["cider"], len(again)) == (1.5, 1 + len(others))


@pytest.mark.usefixtures("process")
def test_a_finished_run_is_scored_again_and_what_was_missing_is_filled_in(
    e2e_words, monkeypatch, capsys
):
    record, path = trained(e2e_words), folder_of(e2e_words) / "decoded_last.jsonl"
    monkeypatch.undo()
    assert check(record) == 0
    said = capsys.readouterr().out
    assert "last epoch, 0.9: bleu 0.00, nist 0.00: the same" in said
    if shutil.which("java"):
        again = read_record(record_path(record["config"]["output"], record["id"]))
        assert again["texts"]["scores"][0]["meteor"] is not None
        assert again["texts"]["scores"][0].get("unavailable") is None
        assert again | {"texts": None} == record | {"texts": None}
    path.write_text(path.read_text().replace('"0.9": "', '"0.9": "more '))
    with refused("decoded_last.jsonl is not the file that the record of run"):
        check(record)


# --- forgetting: before is the base model, after is the last epoch's, and nothing else changes

WITH_VERA = ["method=vera", "method.rank=8"]


@pytest.mark.parametrize(
    "change",
    slow_except([WITH_VERA, ["method=full"]], WITH_VERA),
    ids=lambda change: change[0],
)
def test_before_is_the_base_model_and_after_the_last_epochs(
    change, e2e_words, tiny_gpt2
):
    """Independently: a model that never had an adapter, and one with the kept file
    merged in, in float64."""
    words = [*of_method(e2e_words, *change), "task.decode=none", "keep=last"]
    record, text = trained(words), text_of(tiny_gpt2)
    found, kept = (
        record["result"]["forgetting"],
        CONFIGURATION | {"adapter.safetensors"},
    )
    assert (record["texts"], {path.name for path in folder_of(words).iterdir()}) == (
        None,
        kept,
    )
    assert {
        key: found[key] for key in ("text", "sha256", "tokens")
    } == text.for_record()
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2, dtype=torch.float64).eval()
    with torch.no_grad():
        assert found["before"] == pytest.approx(text.loss(model), rel=1e-6)
        vera.load(model, folder_of(words) / "adapter.safetensors").merge(model)
        assert found["after"] == pytest.approx(text.loss(model), rel=1e-6)
    assert abs(found["after"] - found["before"]) > 1e-4


def test_before_is_the_base_model_also_where_the_adapter_starts_elsewhere(e2e_words):
    words = [*of_method(e2e_words, *WITH_VERA), "task.decode=none", "keep=last"]
    found = trained(words)["result"]["forgetting"]
    loop = begin(
        [*words, f"init_from={folder_of(words) / 'adapter.safetensors'}", "seed=1"]
    )
    assert (
        loop.text_loss_before
        == found["before"]
        != pytest.approx(found["after"], abs=1e-4)
    )
    assert all(parameter.requires_grad for parameter in loop.parameters.values())
    # And the adapter is on again, with the values that it starts from.
    assert float(loop.task.fixed_text.loss(loop.raw_model.eval())) == pytest.approx(
        found["after"], rel=1e-6
    )


OF_PEFT = [
    "method=peft",
    "method.sites=[c_attn,feed_forward_out]",
    "method.config_class=IA3Config",
]


@pytest.mark.slow  # it takes seconds
@pytest.mark.parametrize("change", [WITH_VERA, OF_PEFT], ids=lambda change: change[-1])
def test_to_measure_it_changes_nothing_of_the_training(change, e2e_words, tmp_path):
    words = [*of_method(e2e_words, *change), "task.decode=none"]
    # with dropout, whose draws must not move
    words = [w for w in words if "pdrop" not in w]
    with_it = train_here(replace_words(words, output=tmp_path / "with"))
    without = train_here(
        [
            *replace_words(words, output=tmp_path / "without"),
            "task.forgetting_text=none",
        ]
    )
    assert with_it["id"] == without["id"]
    assert with_it["result"].pop("forgetting")["after"] is not None
    assert "forgetting" not in without["result"]
    del with_it["config"]["task"], without["config"]["task"]
    assert comparable(with_it) == comparable(without)


@pytest.mark.slow  # it takes seconds
def test_a_resumed_run_has_the_same_forgetting_and_a_diverged_one_none(
    e2e_words, tmp_path
):
    # whose base is gone once it trains
    words = [*of_method(e2e_words, "method=full"), "task.decode=none"]
    straight, resumed = straight_and_resumed(words, tmp_path, "step", 4)
    assert comparable(resumed) == comparable(straight)
    assert resumed["result"]["forgetting"] == straight["result"]["forgetting"]
    diverged = train_here(
        [*of_method(e2e_words, "method=vera", "train.lr=1e30"), "task.decode=none"]
    )
    assert (diverged["status"], "forgetting" in diverged["result"]) == (
        "diverged",
        False,
    )


def test_the_text_is_not_part_of_what_a_run_is(e2e_words, tmp_path):
    (tmp_path / "t.txt").write_text("Another text.")
    none, run = expand([*e2e_words, f"task.forgetting_text=none,{tmp_path / 't.txt'}"])
    assert run_id(none) == run_id(run)
    assert not any("forgetting" in word for word in deviations(run, []))
    assert begin(run).task.fixed_text.for_record()["text"] == "t.txt"
