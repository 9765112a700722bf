"""Starting from another adapter: identity, label, plan, order, and what is said while the start is not
there."""

import re

import pytest
import torch
from running import call_here, trained
from safetensors.torch import load_file

import vera
from runs import plan
from runs.config import expand
from runs.errors import UserError
from runs.identity import run_id, start_file
from runs.record import read_ledger, read_record, record_path, run_folder, write_record
from runs.run import starts, with_starts
from runs.sweep import sweep
from runs.training.loop import Training
from runs.training.train import train

pytestmark = pytest.mark.properties


@pytest.fixture
def lora(words):
    """LoRA on the words' own task, two steps."""
    return [*(w for w in words if not w.startswith("method.")), "method=lora", "train.max_steps=2"]


def text_of(words) -> str:
    runs = expand(words)
    ledger = read_ledger(runs[0].config["output"], published=False)
    return plan.text(plan.plan(with_starts(runs), ledger), ledger)


def mnli_rows(words):
    others = [word for word in words if not word.startswith(("method=", "task="))]
    return [*others, "method=lora_mnli", "task=rte,mrpc", "seed=0,1"]


@pytest.mark.usefixtures("process")
def test_the_mnli_rows_wait_for_one_run_that_the_same_command_does_first(lora, capsys):
    words = mnli_rows(lora)
    runs = expand(words)
    (first,) = starts(runs)
    assert (first.row, first.task, first.seed, first.config["init_from"]) == ("lora", "mnli", 0, None)
    assert with_starts(runs) == [first, *runs]
    text = text_of(words)
    assert "plan: 5 runs on encoder" in text
    assert re.search(r"lora +0/1 +- +-\nlora_mnli +- +0/2 b +0/2 b\n", text)
    assert "missing 1 · blocked 4" in text
    waits = f"blocked: waits for LoRA r=8 on MNLI, seed 0 (run {run_id(first)}), which has not run here"
    assert f"{waits}, and is done first by the same command (4 runs)" in text
    done = call_here("runs", *words, check=0)
    ended = [line.split("] ")[1].split(", seed")[0] for line in done.stdout.splitlines() if ", last " in line]
    after = [f"LoRA r=8 from mnli on {task}" for task in ("RTE", "MRPC") for _ in range(2)]
    assert ended == ["LoRA r=8 on MNLI", *after]
    text = text_of(words)
    assert re.search(r"lora +1/1 +- +-\nlora_mnli +- +2/2 +2/2\n", text)
    record = read_record(record_path(runs[0].config["output"], run_id(runs[0])))
    assert record["start"] == {"from": "lora@mnli", "id": run_id(first)}
    assert record["label"]["row"] == "LoRA r=8 from mnli"
    assert record["cell"]["row"] == "lora_mnli"


def test_the_start_is_part_of_the_identity_and_of_the_row(lora):
    (plain,) = expand(lora)
    trained(lora)
    path = run_folder(plain.config["output"], run_id(plain)) / "adapter.safetensors"
    by_id, by_file = (expand([*lora, f"init_from={start}", "seed=1"])[0] for start in (run_id(plain), path))
    ids = {run_id(by_id), run_id(by_file), run_id(expand([*lora, "seed=1"])[0])}
    assert len(ids) == 3
    assert by_id.config["method"]["label"] == f"LoRA r=8 from run {run_id(plain)}"
    assert by_id.row == f"lora_from_run_{run_id(plain)}"
    assert (by_file.config["method"]["label"], by_file.row) == ("LoRA r=8 from adapter", "lora_from_adapter")
    before = run_id(by_file)
    moved = path.rename(path.with_name("moved.safetensors"))
    again = expand([*lora, f"init_from={moved}", "seed=1"])[0]
    assert again.row == "lora_from_moved"  # named after the file
    path.write_bytes(moved.read_bytes())
    assert run_id(by_file) == before  # but known by its content
    path.write_bytes(b"another")
    with pytest.raises(UserError, match="is not the file that the record"):
        start_file(by_id)
    swept = expand([*lora, "init_from=123e45678901,000000000000"])  # ids that look like numbers
    assert [run.config["init_from"] for run in swept] == ["123e45678901", "000000000000"]


def test_training_begins_with_the_start_and_a_fresh_head(lora):
    (plain,) = expand(lora)
    trained(lora)
    folder = run_folder(plain.config["output"], run_id(plain))
    kept = load_file(folder / "adapter.safetensors")
    (run,) = expand([*lora, f"init_from={run_id(plain)}", "seed=1"])
    model = Training(run, run_id(run), lambda event: None).raw_model
    attention = model.bert.encoder.layer[0].attention.self.query.changes["whole"]
    assert torch.equal(attention.B, kept["bert.encoder.layer.0.attention.self.query.B"])
    fresh = Training(expand([*lora, "seed=1"])[0], "x", lambda event: None).raw_model
    assert torch.equal(model.classifier.weight, fresh.classifier.weight)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("method.alpha=16", "its alpha is 8, here it is 16"),
        ("method.rank=4", "its rank is 8, here it is 4"),
        ("method=vera", "its kind is lora, here it is vera"),
        ("method=none", "its kind is lora, here it is none"),
    ],
)
def test_a_start_of_other_settings_is_refused_before_anything_starts(change, message, lora):
    """Whether the start has run, or would be done first by the same command."""
    (plain,) = expand(lora)
    trained(lora)
    kept = [word for word in lora if word.partition("=")[0] != change.partition("=")[0]]
    for start in (run_id(plain), "lora@mnli"):
        with pytest.raises(vera.AdapterError, match=message):
            sweep.sweep(with_starts(expand([*kept, change, f"init_from={start}"])))


def test_what_a_start_kept_is_part_of_the_identity(lora):
    """The same run keeps another epoch's values by keep=last: whoever starts there is another run."""
    run = expand(mnli_rows(lora))[0]
    usual = run_id(run)
    assert run.start
    run.start.config["keep"] = "last"
    train(Training(run.start, run_id(run.start), lambda event: None))
    assert run_id(expand(mnli_rows(lora))[0]) != usual


def test_a_start_that_is_not_there_or_damaged_is_one_line(lora, tmp_path):
    file = tmp_path / "none.safetensors"
    for start, words in (("0123456789ab", "waits for run 0123456789ab, which"), (file, f"{file}: no such")):
        with pytest.raises(UserError, match=words) as error:
            sweep.sweep(expand([*lora, f"init_from={start}"]))
        assert "\n" not in str(error.value)
        assert "blocked 1" in text_of([*lora, f"init_from={start}"])
    (first,) = starts(expand(mnli_rows(lora)))
    path = record_path(first.config["output"], run_id(first))
    path.parent.mkdir(parents=True)
    path.write_text("{")
    assert "not a record" in text_of(mnli_rows(lora))


@pytest.mark.usefixtures("process")
def test_a_start_that_failed_or_kept_nothing_blocks_what_comes_after(lora, capsys):
    runs = expand(mnli_rows(lora))
    (first,) = starts(runs)
    sweep.sweep([first])
    path = record_path(first.config["output"], run_id(first))
    record = read_record(path)
    adapter = run_folder(first.config["output"], run_id(first)) / "adapter.safetensors"
    adapter.rename(adapter.with_suffix(".away"))
    assert "which kept none: delete" in text_of(mnli_rows(lora))
    adapter.with_suffix(".away").rename(adapter)
    write_record(first.config["output"], record | {"status": "diverged", "error": "loss became nan"})
    assert f"(run {run_id(first)}), which is diverged (4 runs)" in text_of(mnli_rows(lora))
    capsys.readouterr()
    outcome = sweep.sweep(with_starts(runs))
    assert outcome.exit_code == 1
    assert [error for _, error, _ in outcome.failed] == [
        f"waits for {first.label} (run {run_id(first)}), which is diverged"
    ] * 4
