"""Each benchmark runs whole on a small model; what it counts is right. Nothing here
asserts a time."""

import itertools
import json
import time

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import commands, many_runs, reward, serving, training
from benchmarks.training import Shape, base_model, batch_of, loss_of, stepper, variant
from runs.command.errors import UserError
from runs.record.ledger import PUBLISHED, read_ledger

pytestmark = pytest.mark.parity

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}
SMALL |= {"vocab_size": 90}
ROBERTA = Shape("RoBERTa, small", 48, training.ROBERTA | SMALL, sequence=16)
LLAMA = Shape(
    "a small Llama block", 48, training.LLAMA | SMALL | {"num_hidden_layers": 1}, 16
)
VARIANTS = (*training.METHODS, *training.MORE_METHODS)


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command on small models: its rows and its tables."""
    for module in (training, serving):
        monkeypatch.setattr(module, "SHAPES", (ROBERTA,))

    def call(part, *words):
        assert command.main([part, f"output={tmp_path}", *words]) == 0
        text = (tmp_path / "bench" / f"{part}.md").read_text()
        assert text.strip() in capsys.readouterr().out
        result = json.loads((tmp_path / "bench" / f"{part}.json").read_text())
        assert {"machine", "threads", "date", "versions", "code"} < result.keys()
        return result["rows"], text

    return call


def test_the_pieces_take_turns_and_each_round_is_a_ratio(monkeypatch):
    clock, calls = itertools.accumulate(itertools.cycle([0, 1.0, 0, 2.0])), []
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    work = {name: lambda name=name: calls.append(name) for name in "ab"}
    a, b = training.time_in_turns(work, 2, {"part": "p"})
    assert calls == [*"ab", *"ba", *"ab"]
    # the first round does not count
    assert (a["seconds"], b["seconds"]) == ([2.0, 1.0], [1.0, 2.0])
    assert (a["ratios"], b["ratios"]) == ([1.0, 1.0], [0.5, 2.0])
    (own,) = training.time_in_turns({"own": lambda: 7.0}, 1, {"part": "p"}, warm_up=0)
    assert own["seconds"] == [7.0]
    assert "| b | 1 s | 1.5 s | 1.25 | 0.50 to 2.00 |" in training.markdown([a, b])


@pytest.mark.usefixtures("process")  # its memory is measured in one
def test_training_times_every_variant_beside_peft_s_lora(run):
    rows, text = run("training", "full=true")
    steps = [row for row in rows if row["part"] == "training"]
    assert len(steps) == 4 * len(VARIANTS)
    assert all(len(row["seconds"]) == len(row["ratios"]) == 5 for row in steps)
    assert all(
        set(row["ratios"]) == {1.0}
        for row in steps
        if row["variant"] == training.METHODS[0]
    )
    peaks = [row["bytes"] for row in rows if row["part"] == "memory"]
    assert len(peaks) == len(training.METHODS)
    assert min(peaks) > 1e7
    assert all(f"| {name} | " in text for name in VARIANTS)


@pytest.mark.slow  # every round of it, with peft
def test_serving_counts_adapters_and_their_files_and_leaves_the_shared_weights_alone(
    run, monkeypatch
):
    outputs, time_in_turns = {}, serving.time_in_turns

    def watched(work, *arguments, **more):
        for name in (
            "base model",
            "VeRA, one adapter, merged",
            "VeRA, one adapter, not merged",
        ):
            if name in work:
                outputs.setdefault(name, work[name]()[0])
        return time_in_turns(work, *arguments, **more)

    monkeypatch.setattr(serving, "time_in_turns", watched)
    monkeypatch.setattr(serving, "RESIDENT", (64, 70))
    rows, text = run("serving")
    variants = (
        "VeRA, 64 of 64 adapters",
        "VeRA, 64 of 70 adapters",
        "peft VeRA, batch split",
        "mixed batch",
    )
    assert [words for words in variants if words not in text] == []
    (resident,) = (row for row in rows if row["part"] == "resident")
    # 70 adapters, float32, 4 matrices
    assert resident["bytes"] == 70 * 4 * 4 * (32 + 48)
    files = {row["variant"]: row for row in rows if row["part"] == "adapter file"}
    counts = {name: row["parameters"] for name, row in files.items()}
    assert counts == {"VeRA r=48": 4 * (32 + 48), "LoRA r=8": 4 * 8 * 64}
    # the header
    assert all(
        0 < row["bytes"] - 4 * row["parameters"] < 4_000 for row in files.values()
    )
    base, merged, unmerged = outputs.values()
    assert torch.allclose(merged, unmerged, rtol=0, atol=1e-6)
    assert not torch.allclose(merged, base, rtol=0, atol=1e-4)


@pytest.mark.slow  # two models, both ways
def test_decoding_times_both_searches(run, monkeypatch):
    small = serving.GPT2 | {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 90}
    monkeypatch.setattr(serving, "MODELS", {"a small GPT-2": small, "another": small})
    rows, _ = run("decoding", "full=true")
    assert [(len(row["seconds"]), row["items"]) for row in rows] == [(3, 8)] * 4


def test_contention_times_each_way_of_waiting_idle_and_beside_busy_processes(
    run, monkeypatch
):
    epochs = []

    def epoch(waits, busy):
        epochs.append((waits, busy))
        return float(len(epochs))

    monkeypatch.setattr(training, "_epoch", epoch)
    rows, _ = run("contention")
    assert [row["seconds"] for row in rows] == [[float(n)] for n in range(2, 8)]
    assert [waits for waits, _ in epochs[1:]] == [*training.WAITS.values()] * 2
    assert [busy for _, busy in epochs[1:]] == [0] * 3 + [training.BUSY] * 3


@pytest.mark.parametrize("shape", [ROBERTA, LLAMA], ids=lambda shape: shape.label)
def test_every_variant_starts_from_the_same_loss_and_trains_what_it_says(shape):
    base = base_model(shape)
    batch = batch_of(shape, base, 64)
    made = {name: variant(name, base, shape) for name in VARIANTS}
    losses = [float(loss_of(model, batch).detach()) for model in made.values()]
    assert max(losses) - min(losses) < 1e-5
    for model in made.values():
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        trained = {n for n, p in model.named_parameters() if p.requires_grad}
        stepper(model)(batch)
        moved = {
            n for n, p in model.named_parameters() if not torch.equal(p, before[n])
        }
        assert moved
        assert moved <= trained


@pytest.mark.slow
def test_reward_times_a_step_beside_trl(run, tiny_llama, monkeypatch):
    monkeypatch.setattr(reward, "smollm2", lambda: tiny_llama)
    monkeypatch.setattr(reward, "SIZES", ((2, 4, 3), (2, 4, 1)))
    monkeypatch.setattr(reward, "ROUNDS", 1)
    rows, text = run("reward")
    assert [row["variant"] for row in rows] == ["TRL", "vera-bench"] * 2
    assert all(row["seconds"][0] > 0 for row in rows)
    assert "| SmolLM2-135M |" in text


def test_many_runs_are_measured_at_1_10_and_each_hundred():
    assert many_runs.marks_up_to(3) == [1, 3]
    assert many_runs.marks_up_to(250) == [1, 10, 100, 200, 250]
    assert many_runs.marks_up_to(300) == [1, 10, 100, 200, 300]


@pytest.mark.usefixtures("process")
def test_many_runs_cost_more_than_their_training(run):
    rows, text = run("runs", "number=2")
    assert rows[-1]["runs"] == 2
    assert sum(row["new runs"] for row in rows) == 2
    for row in rows:
        assert row["seconds a run"] > row["of them training"] > 0
        assert row["parent's RSS, MB"] >= row["parent's PSS, MB"] > 10
    assert "| overhead a run, s |" in text


def test_the_records_of_commands_are_other_runs_than_the_published_ones(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(commands, "SETTLED_S", 0)
    study = PUBLISHED / "sums"
    monkeypatch.setattr(commands, "study_folders", lambda: [study])
    published = len((study / "records.jsonl").read_bytes().splitlines())
    commands.write_records(tmp_path, published + 3)
    made = read_ledger(tmp_path)
    own = [run for run, origin in made.origin.items() if origin == "ours"]
    assert made.problems == []
    assert len(own) == published + 3
    cells = {
        (made.records[run]["cell_id"], made.records[run]["config"]["seed"])
        for run in own
    }
    assert len(cells) == len(own)


@pytest.mark.slow  # each command is a process, twice
def test_commands_are_measured_as_processes_first_and_repeated(run, monkeypatch):
    monkeypatch.setattr(commands, "study_folders", lambda: [PUBLISHED / "sums"])
    monkeypatch.setattr(commands, "SIZES", (0, 3, 5))
    monkeypatch.setattr(commands, "ROUNDS", 1)
    monkeypatch.setattr(commands, "COMMANDS", {"table table2": ("table", "table2")})
    rows, text = run("commands")
    assert [row["records"] for row in rows] == [0, 3]
    for row in rows:
        assert len(row["seconds"]) == 1
        assert row["seconds"][0] < float(row["first"].removesuffix(" s"))
        # that of Python with pandas, and not that of this process, which has torch
        assert 50e6 < row["bytes"] < 300e6
    assert "| table table2 |" in text


def test_a_command_that_fails_is_no_measure(tmp_path):
    measured = commands.MeasuredCommand(
        ("table", "tabel2"), tmp_path, tmp_path / "cache"
    )
    with pytest.raises(UserError, match="tabel2"):
        measured()
