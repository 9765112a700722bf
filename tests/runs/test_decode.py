"""A run that decodes: its record, its files, and the same record when it is killed on the way."""

import contextlib
import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from running import CONFIGURATION, call, call_here, comparable, do, elsewhere, trained
from tiers import sample

import tasks.e2e_metrics
import vera
from runs import evaluate
from runs.config import expand
from runs.identity import run_id
from runs.record import read_record, record_path, run_folder
from runs.training import decode
from runs.training.loop import Training

pytestmark = pytest.mark.determinism

FILES = {"adapter.safetensors", "adapter_best.safetensors", "decoded_last.jsonl", "references.txt"}
FILES |= {f"{which}_{penalty}.txt" for which in ("last", "best") for penalty in ("0.9", "0.8")}


def worse(words, *more):
    """Of a run whose second epoch is worse than its first."""
    plain = [w for w in words if not w.startswith("method.")]
    schedule = ("train.schedule=constant", "train.warmup_ratio=0", "train.clip=null")
    return [*plain, "method=adapter_l", "method.bottleneck=4", "train.lr=2", *schedule, *more]


@pytest.fixture(autouse=True)
def no_java(monkeypatch):
    """Scores that need Java have tests of their own; here it would cost seconds a run."""
    monkeypatch.setattr(tasks.e2e_metrics.shutil, "which", lambda name: None)


def folder_of(words) -> Path:
    (run,) = expand(words)
    return run_folder(run.config["output"], run_id(run))


def test_a_run_leaves_the_texts_of_the_last_and_the_best_epoch_by_each_penalty(e2e_words):
    """tests/nets has its record."""
    record = trained(e2e_words)
    curve = record["curve"]
    assert record["result"]["best"] == min(curve["metric"])
    assert curve["metric"] == pytest.approx(
        [torch.tensor(x).exp().item() for x in curve["dev_loss"]], rel=1e-5
    )
    folder = folder_of(e2e_words)
    assert {path.name for path in folder.iterdir()} - {"decoded_best.jsonl"} == FILES | CONFIGURATION
    blocks = (folder / "references.txt").read_text().removesuffix("\n\n").split("\n\n")
    assert blocks[0] == "Grey Goat is a Thai pub .\nThe pub Grey Goat serves Thai food ."
    assert len((folder / "last_0.9.txt").read_text().splitlines()) == len(blocks) == 3
    assert record["cost"]["decode_seconds"] > 0


def test_the_best_epoch_is_decoded_from_its_own_adapter(e2e_words):
    """Best and last are two sets of texts, of two adapters on disk."""
    words = worse(e2e_words, "task.items=2")
    record = do(words)
    assert record["result"]["best_epoch"] == 1
    entries = {e["which"]: e for e in record["texts"]["scores"]}
    assert (entries["best"]["epoch"], entries["last"]["epoch"]) == (1, 2)
    assert entries["best"]["hash"] != entries["last"]["hash"]
    (run,) = expand(words)
    training = Training(run, run_id(run), lambda event: None)
    folder = folder_of(words)
    for name, which in (("adapter_best", "best"), ("adapter", "last")):
        vera.load(training.raw_model, folder / f"{name}.safetensors")
        texts = training.task.decode(training.raw_model.eval(), [0, 1])
        saved = decode.read(training.task, folder)[which]
        assert [t["0.9"] for t in texts] == saved["0.9"]


KEPT = itertools.product(["best", "last", "both", "none"], ["fp32", "fp16"])


@pytest.mark.parametrize(("keep", "precision"), sample(KEPT, ("both", "fp16"), ("none", "fp32")))
def test_what_stays_on_disk_is_what_keep_says(keep, precision, e2e_words, tmp_path, capsys):
    """And the scores are of full precision, whatever is kept."""
    words = worse(e2e_words, f"keep={keep}", f"adapter_precision={precision}")
    record = do(words)
    reference = trained(worse(elsewhere(e2e_words, output=tmp_path / "reference")))
    assert record["texts"] == reference["texts"]
    names = {"none": [], "both": ["adapter", "adapter_best"]}.get(keep, ["adapter"])
    assert {path.name for path in folder_of(words).glob("*.safetensors")} == {
        f"{name}.safetensors" for name in names
    }
    whole = folder_of(worse(elsewhere(e2e_words, output=tmp_path / "reference")))
    for name in names:  # texts are decoded from the best epoch's, which stays in full precision
        one, other = ((folder / f"{name}.safetensors").stat().st_size for folder in (folder_of(words), whole))
        assert (one < 0.8 * other) == (precision == "fp16" and name == "adapter")
    capsys.readouterr()
    checked = evaluate.main([record["id"], f"output={record['config']['output']}"])
    said = capsys.readouterr().out
    if precision == "fp32":
        assert checked == 0
        assert said.count("perplexity") == {"none": 1, "both": 2}.get(keep, 1)
    assert ("kept no adapter" in said) == (keep == "none")


def test_the_untrained_model_is_a_row_and_without_decoding_there_are_no_texts(e2e_words, capsys, tmp_path):
    plain = [w for w in e2e_words if not w.startswith("method.")]
    record = do([*plain, "method=none"])
    assert record["steps"] == 0
    # It trains nothing: of the training, how long a text may be is left.
    told = [words for words in record["deviations"] if words.startswith("train.") or "recipe" in words]
    assert told == [f"{word} given" for word in plain if word.startswith("train.max_length=")]
    assert {e["epoch"] for e in record["texts"]["scores"]} == {0.0}
    capsys.readouterr()
    assert evaluate.main([record["id"], f"output={record['config']['output']}"]) == 0
    assert "perplexity" in capsys.readouterr().out
    without = [*elsewhere(e2e_words, output=tmp_path / "without"), "task.decode=none"]
    assert do(without)["texts"] is None
    kept = {"adapter.safetensors", "adapter_best.safetensors"}
    assert {path.name for path in folder_of(without).iterdir()} == kept | CONFIGURATION


OTHERS = [
    ["adalora"],
    ["peft", "method.config_class=AdaLoraConfig"],
    ["peft", "method.config_class=IA3Config"],
    ["bitfit"],
]


@pytest.mark.parametrize("row", sample(OTHERS, ["bitfit"]), ids=lambda row: row[-1])
def test_other_methods_decode_too(row, e2e_words):
    """peft's adapt a fused projection as a whole, and merge in ways of their own."""
    plain = [w for w in e2e_words if not w.startswith("method.")]
    sites = [] if row[0] in ("adalora", "bitfit") else ["method.sites=[c_attn]"]
    record = do([*plain, f"method={row[0]}", *row[1:], *sites, "train.epochs=3"])
    assert record["texts"]["items"] == 3
    assert evaluate.main([record["id"], f"output={record['config']['output']}"]) == 0


def test_micro_batches_have_the_gradient_of_the_whole_batchs_tokens(e2e_words):
    """Rows differ in length: parts weigh by their tokens, not by their rows."""
    curves = [
        do(elsewhere([*e2e_words, f"micro_batch={m}"], output=f"{e2e_words[-1][7:]}{m}"))["curve"]
        for m in (4, 1, 3)
    ]
    for curve in curves[1:]:
        assert curve["train_loss"] == pytest.approx(curves[0]["train_loss"], abs=1e-5)
        assert curve["dev_loss"] == pytest.approx(curves[0]["dev_loss"], abs=1e-5)


#: Losses of five steps on the tiny GPT-2 and own restaurants: they move only with the loop, the task, or the
#: method.
LOSSES = {
    "vera": (1.0, [10.823615, 10.81838, 10.794473, 10.780002, 10.770054]),
    "lora": (0.1, [10.823615, 10.80582, 10.768778, 10.765546, 10.75772]),
    "adapter_l": (0.1, [10.822481, 10.751408, 10.738562, 10.728391, 10.719032]),
}


@pytest.mark.parametrize("method", LOSSES)
def test_loss_sequence(method, e2e_words):
    rate, expected = LOSSES[method]
    words = [*(w for w in e2e_words if not w.startswith("method.")), f"method={method}", f"train.lr={rate}"]
    words += ["train.warmup_steps=0", "train.epochs=3", "task.decode=none"]
    words += ["method.bottleneck=4"] if method == "adapter_l" else ["method.rank=8"]
    (run,) = expand(words)
    loop = Training(run, run_id(run), lambda event: None)
    losses = [float(loop.step([i % 8 for i in range(s, s + 4)])) for s in range(5)]
    assert losses == pytest.approx(expected, abs=1e-5)


# --- a killed run


class KilledError(Exception):
    pass


def killed_while_decoding(words, after, monkeypatch):
    """Runs until `after` calls of decode have been made."""
    (run,) = expand(words)
    training = Training(run, run_id(run), lambda event: None)
    whole, calls = training.task.decode, []

    def decode_some(model, indices):
        calls.append(indices)
        if len(calls) > after:
            raise KilledError
        return whole(model, indices)

    monkeypatch.setattr(training.task, "decode", decode_some)
    with pytest.raises(KilledError):
        training.go()
    return training.folder


@pytest.mark.parametrize("after", sample(range(4), 3))
def test_a_killed_decode_goes_on_where_it_was(after, e2e_words, tmp_path, monkeypatch, capfd):
    words = worse(e2e_words, "task.beams=6")  # an MR a call
    straight = trained(elsewhere(words, output=tmp_path / "straight"))
    killed = elsewhere(words, output=tmp_path / "killed")
    folder = killed_while_decoding(killed, after, monkeypatch)
    which = "last" if after < 3 else "best"
    path = folder / f"decoded_{which}.jsonl"
    assert path.read_text().count("\n") == 1 + after % 3
    if after == 2:  # a kill in the middle of a line
        with open(path, "ab") as file:  # and of a letter
            file.write('{"item": 2, "texts": {"0.9": "é'.encode()[:-1])
    capfd.readouterr()
    resumed = do(killed)
    assert comparable(resumed) == comparable(straight)
    said = capfd.readouterr().out
    assert "resumed at step 4 of 4" in said
    assert ("are there already" in said) == (after > 0)
    straight_folder = folder_of(elsewhere(words, output=tmp_path / "straight"))
    for name in (f for f in FILES if not f.endswith(".safetensors")):
        assert (folder_of(killed) / name).read_bytes() == (straight_folder / name).read_bytes()


def test_a_killed_run_keeps_its_seconds_and_goes_on_with_what_it_was_begun_to_keep(e2e_words, monkeypatch):
    """Another word would leave another adapter on disk than the record says."""
    words = worse(e2e_words, "task.beams=6", "train.epochs=1")
    path = killed_while_decoding(words, 2, monkeypatch) / "attempt.json"
    saved = json.loads(path.read_text())
    assert saved["decoding"] > 0
    path.write_text(json.dumps(saved | {"decoding": 1000.0}))
    for change, before in (("keep=best", "keep=both"), ("adapter_precision=fp16", "adapter_precision=fp32")):
        (run,) = expand([*words, change])
        begun = f"{change}: this run was begun with {before}: go on with that, or delete"
        with pytest.raises(evaluate.UserError, match=begun):
            Training(run, run_id(run), lambda event: None).go()
    assert 1000 < do(words)["cost"]["decode_seconds"] < 1100


@pytest.mark.parametrize("of", [{"weights": "w"}, {"weights": "another"}])
def test_texts_are_taken_up_to_a_damaged_line_and_of_the_same_weights_alone(of, tmp_path):
    """A text may hold other ends of lines."""
    path, odd = tmp_path / "decoded_last.jsonl", {"0.9": "a\u2028b\x85c", "0.8": ""}
    lines = [{"weights": "w"}, {"item": 7, "texts": odd}, {"item": 1, "texts": {"0.9": "e", "0.8": "e"}}]
    text = "\n".join(json.dumps(line, ensure_ascii=False) for line in lines[:2])
    path.write_text(f"{text}\n{{damaged\n{json.dumps(lines[2])}\n")
    asked = []

    def texts_of(items):
        asked.extend(items)
        return [{"0.9": "new", "0.8": "new"} for _ in items]

    one = SimpleNamespace(num_processes=1, process_index=0, is_main_process=True)
    one.wait_for_everyone, one.autocast = lambda: None, contextlib.nullcontext
    context = SimpleNamespace(accelerator=one, raw_model=torch.nn.Module(), method=Mock(), report=Mock())
    found = decode.write_down(context, path, of, [[1], [7]], texts_of, "decoding")
    same = of["weights"] == "w"
    assert asked == ([1] if same else [1, 7])
    assert found[7] == (odd if same else {"0.9": "new", "0.8": "new"})
    assert [json.loads(line) for line in path.read_text().split("\n")[1:-1]] == [
        {"item": item, "texts": texts} for item, texts in found.items()
    ]


# --- looking again


def test_scores_that_fail_this_time_stay_as_they_were(e2e_words, monkeypatch, capsys):
    record = trained(e2e_words)
    path = record_path(record["config"]["output"], record["id"])
    first, *others = record["texts"]["scores"]
    first |= {"rouge_l": 50.0, "unavailable": {"meteor": "java failed", "cider": "java failed"}}
    path.write_text(json.dumps(record))
    found = {"bleu": first["bleu"], "nist": first["nist"], "meteor": None, "rouge_l": None, "cider": 1.5}
    monkeypatch.setattr(
        "tasks.e2e.scores", lambda *_: {**found, "unavailable": {"meteor": "no", "rouge_l": "no"}}
    )
    assert evaluate.main([record["id"], f"output={record['config']['output']}"]) == 0
    assert "cider added to the record" in capsys.readouterr().out
    again = read_record(path)["texts"]["scores"]
    assert (again[0]["rouge_l"], again[0]["cider"], again[0]["meteor"]) == (50.0, 1.5, None)
    assert again[0]["unavailable"] == {"meteor": "java failed"}
    assert again[1]["cider"] == 1.5
    assert len(again) == 1 + len(others)


@pytest.mark.usefixtures("process")
def test_a_finished_run_is_scored_again_and_what_was_missing_is_filled_in(e2e_words, monkeypatch, capsys):
    record = trained(e2e_words)
    output = record["config"]["output"]
    monkeypatch.undo()
    assert evaluate.main([record["id"], f"output={output}"]) == 0
    said = capsys.readouterr().out
    assert "last epoch, 0.9: bleu 0.00, nist 0.00: the same" in said
    if shutil.which("java"):
        assert "meteor, rouge_l, cider added to the record" in said
        again = read_record(record_path(output, record["id"]))
        assert again["texts"]["scores"][0]["meteor"] is not None
        assert again["texts"]["scores"][0].get("unavailable") is None
        assert again | {"texts": None} == record | {"texts": None}
    path = run_folder(output, record["id"]) / "decoded_last.jsonl"
    path.write_text(path.read_text().replace('"0.9": "', '"0.9": "more '))
    with pytest.raises(evaluate.UserError, match="is not the file that the record of run"):
        evaluate.main([record["id"], f"output={output}"])
    path.unlink()
    with pytest.raises(evaluate.UserError, match=r"decoded_last.jsonl is not there .*python -m runs "):
        evaluate.main([record["id"], f"output={output}"])


@pytest.mark.usefixtures("process")
def test_a_sweep_shows_decoding_and_the_score_and_an_encoder_cannot_do_it(e2e_words, tiny_bert):
    done = call("runs", *e2e_words, check=0)
    log = (folder_of(e2e_words) / "log.txt").read_text()
    assert "epoch 2: train loss" in log
    assert "last epoch, 0.9: bleu 0.00, nist 0.00" in log
    assert "BLEU 0.0 on test" in done.stdout
    assert "already done (perplexity" in call_here("runs", *e2e_words, check=0).stdout
    words = [f"model.path={tiny_bert}" if w.startswith("model.path") else w for w in e2e_words]
    refused = call_here("runs", *words, check=2).stderr
    assert refused.startswith("error: ")
    assert refused.count("\n") == 1


def test_a_model_that_cannot_be_decoded_is_told_before_training(e2e_words, monkeypatch):
    """Such as one whose cache is no attention cache."""
    monkeypatch.setattr("transformers.DynamicCache.batch_repeat_interleave", None)
    with pytest.raises(
        evaluate.tasks.DataError, match=r"e2e: this model cannot be decoded \(.*\). task.decode=none trains"
    ):
        do(e2e_words)
    assert {path.name for path in folder_of(e2e_words).iterdir()} == CONFIGURATION | {"attempts"}
    assert [path.name for path in folder_of(e2e_words).glob("attempts/*/*")] == ["attempt.json"]
