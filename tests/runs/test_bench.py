"""The benchmark runs whole on a small model; what it counts is right. Nothing here asserts a time."""

import json

import pytest
import torch
from torch import nn

from analysis import tables
from analysis.tables.claims import COMMAND
from runs.bench import __main__ as command
from runs.bench import contention, decoding, models, serving, training
from runs.bench.__main__ import main
from runs.bench.models import (
    SHAPES,
    Shape,
    base_model,
    batch_of,
    forward,
    saved_bytes,
    sharing,
    stepper,
    variant,
)
from runs.errors import UserError
from runs.record import Ledger, read_serving

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 90,
}
ROBERTA = Shape("RoBERTa, small", 48, {**models.ROBERTA, **SMALL}, sequence=16)
LLAMA = Shape("a small Llama block", 48, {**models.LLAMA, **SMALL, "num_hidden_layers": 1}, sequence=16)


@pytest.fixture
def small(monkeypatch):
    for module in (command, serving):
        monkeypatch.setattr(module, "SHAPES", (ROBERTA, LLAMA))
    monkeypatch.setattr(
        command, "start", lambda: [{"part": "start", "variant": "not here", "seconds": [1.0]}]
    )
    monkeypatch.setattr(command, "memory", lambda shape, names, tokens: [])


@pytest.fixture
def once(monkeypatch):
    """Does each piece of work once. test_serving_writes_its_table does all rounds."""

    def timed(work, rounds, title, about):
        for piece in work.values():
            piece()
        return [about | {"variant": name, "seconds": [1.0] * rounds} for name in work]

    for module in (training, serving, decoding):
        monkeypatch.setattr(module, "timed", timed)


def test_training_writes_both_tables(small, once, tmp_path, capsys):
    assert main(["full=true", f"output={tmp_path}"]) == 0
    text = (tmp_path / "bench" / "training.md").read_text()
    assert text.strip() in capsys.readouterr().out
    for words in (
        "RoBERTa, small",
        "Llama block",
        "VeRA materialised",
        "peft VeRA",
        "peft LoRA r=8",
        "head",
        "full",
        "floor",
    ):
        assert words in text
    result = json.loads((tmp_path / "bench" / "training.json").read_text())
    rows = [row for row in result["rows"] if row["part"] == "training"]
    assert len(rows) == 4 * (9 + 7)
    assert all(len(row["seconds"]) == 5 for row in rows)
    assert {"machine", "threads", "date", "versions", "code"} < result.keys()
    assert "peft" in result["versions"]
    sizes = {row["variant"]: row["bytes"] for row in result["rows"] if row["part"] == "files"}
    assert max(sizes["VeRA, any other"], sizes["peft VeRA, without projections"]) < sizes["peft VeRA"]


@pytest.mark.slow  # every round of it
def test_serving_writes_its_table(small, tmp_path, monkeypatch):
    monkeypatch.setattr(serving, "RESIDENT", (64, 70))
    assert main(["serving", f"output={tmp_path}"]) == 0
    text = (tmp_path / "bench" / "serving.md").read_text()
    for words in (
        "base model",
        "VeRA, 64 of 64 adapters",
        "VeRA, 64 of 70 adapters",
        "peft VeRA, batch split",
        "mixed batch",
        "VeRA, one adapter, merged",
        "| VeRA r=48 | ",
    ):
        assert words in text
    rows = json.loads((tmp_path / "bench" / "serving.json").read_text())["rows"]
    held = next(row for row in rows if row["part"] == "resident")
    assert held["bytes"] == 70 * 4 * 4 * (32 + 48)  # 70 adapters, float32, 4 matrices
    files = {row["variant"]: row for row in rows if row["part"] == "adapter file"}
    assert {name: row["parameters"] for name, row in files.items()} == {
        "VeRA r=48": 4 * (32 + 48),
        "LoRA r=8": 4 * 8 * 64,
    }
    for row in files.values():
        assert 0 < row["bytes"] - 4 * row["parameters"] < 4_000  # the header
    (claims,) = tables.make("claims", Ledger(serving=read_serving(tmp_path)))
    here = {row[0]: row[2] for row in claims.texts}
    name = f"{ROBERTA.label}, VeRA r=48: an adapter's file"
    assert here[name] == f"{files['VeRA r=48']['bytes']:,} bytes (320 parameters)"
    assert here["RoBERTa-base, VeRA merged: time at 32 tokens"].endswith(" ms)")
    assert COMMAND not in str(claims.texts)


@pytest.mark.slow  # loads peft
def test_a_merged_adapter_leaves_the_shared_base_weights_alone(small, monkeypatch):
    monkeypatch.setattr(serving, "RESIDENT", (64, 65))
    outputs: dict[str, list[torch.Tensor]] = {}

    def timed(work, rounds, title, about):
        for name in ("base model", "VeRA, one adapter, merged", "VeRA, one adapter, not merged"):
            if name in work:
                outputs.setdefault(name, []).append(work[name]().logits)
        return []

    monkeypatch.setattr(serving, "timed", timed)
    torch.manual_seed(0)
    serving.serving(False)
    base, merged, unmerged = (of[0] for of in outputs.values())
    assert torch.allclose(merged, unmerged, rtol=0, atol=1e-7)
    assert not torch.allclose(merged, base, rtol=0, atol=1e-5)


@pytest.mark.slow  # two models, every way
def test_decoding_writes_its_table(once, tmp_path, monkeypatch):
    small = decoding.GPT2 | {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 90}
    monkeypatch.setattr(decoding, "MODELS", {"a small GPT-2": small, "another": small})
    assert main(["decoding", "full=true", f"output={tmp_path}"]) == 0
    text = (tmp_path / "bench" / "decoding.md").read_text()
    for words in (
        "model.generate",
        "this project's search",
        "an MR at a time",
        "a small GPT-2: 8 MRs, 10 beams, 64 tokens",
    ):
        assert words in text
    rows = json.loads((tmp_path / "bench" / "decoding.json").read_text())["rows"]
    assert [len(row["seconds"]) for row in rows] == [3] * 6


def test_contention_times_each_way_of_waiting_idle_and_beside_busy_processes(tmp_path, monkeypatch):
    epochs = []

    def epoch(folder, seed, waits):
        epochs.append((seed, waits))
        return float(len(epochs))

    monkeypatch.setattr(contention, "_epoch", epoch)
    monkeypatch.setattr(contention, "BUSY", 0)
    assert main(["contention", f"output={tmp_path}"]) == 0
    assert len({seed for seed, _ in epochs}) == 7  # each a run of its own
    assert [waits for _, waits in epochs[1:]] == [*contention.WAITS.values()] * 2
    assert len(contention.contention(full=True)[0]["seconds"]) == 3
    assert len({seed for seed, _ in epochs[7:]}) == 1 + 3 * 6
    text = (tmp_path / "bench" / "contention.md").read_text()
    assert "| OpenMP's default, idle | 2.0 s | 1.00 |" in text
    assert "| the harness's, beside 0 busy processes | 6.0 s | 3.00 |" in text


@pytest.mark.usefixtures("process")
def test_busy_processes_end_with_what_they_are_beside(monkeypatch):
    with contention._busy(2) as others:
        assert [other.poll() for other in others] == [None, None]
    assert [other.poll() for other in others] == [-9, -9]


def test_every_variant_starts_from_the_same_loss_and_trains_what_it_says():
    base = base_model(ROBERTA)
    batch = batch_of(ROBERTA, base, 64)
    names = [
        "VeRA",
        "VeRA factor",
        "VeRA hybrid",
        "VeRA materialised",
        "peft VeRA",
        "peft LoRA r=8",
        "head",
        "full",
        "floor",
    ]
    models = {name: variant(name, base, ROBERTA) for name in names}
    losses = [float(forward(name, model, batch)) for name, model in models.items()]
    assert max(losses) - min(losses) < 1e-5
    for name, model in models.items():
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        trains = {n for n, p in model.named_parameters() if p.requires_grad}
        stepper(name, model)(batch)
        moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        assert moved <= trains
        assert bool(moved) == (name != "floor")


def test_copies_share_their_weights_and_full_has_its_own():
    base = base_model(ROBERTA)
    places = {p.data_ptr() for p in base.parameters()}
    assert {p.data_ptr() for p in sharing(base).parameters()} == places
    assert not places & {p.data_ptr() for p in variant("full", base, ROBERTA).parameters()}


def test_saved_bytes_are_those_of_the_activations():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 16), nn.Linear(16, 4)

        def forward(self, inputs_embeds):
            return [self.b(torch.tanh(self.a(inputs_embeds)))]

    model, x = Model(), torch.randn(10, 8, requires_grad=True)
    # x for a's weight, tanh's output for itself and for b's weight; the square keeps b's output
    assert saved_bytes("VeRA", model, {"inputs_embeds": x}) == 4 * 10 * (8 + 16 + 4)
    model.requires_grad_(False)
    assert saved_bytes("VeRA", model, {"inputs_embeds": x}) == 4 * 10 * (16 + 4)


def test_an_unknown_option_is_one_line():
    with pytest.raises(UserError, match=r"no option --fast\. Settings are words: "):
        main(["--fast"])
    with pytest.raises(UserError, match=r"no part 'serve'\. Did you mean serving\? Known: training"):
        main(["serve"])
    assert [shape.rank for shape in SHAPES] == [1024, 256, 1024]
