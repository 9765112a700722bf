"""Base weights in bfloat16, with an adapter in float32 (model.dtype)."""

import importlib

import pytest
import torch
from ledgers import ledger, seed_records
from running import (
    begin,
    comparable,
    output_of,
    refused,
    replace_words,
    straight_and_resumed,
    trained,
)
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from analysis import frame
from runs import evaluate, export, models
from runs.config import expand
from runs.plan import plan, plan_text
from runs.publishing.adapter_folder import loading_settings
from runs.publishing.result_file import train_config
from runs.record.folder import RecordFolder
from runs.record.text import megabytes
from runs.run.identity import run_id

# the package has its function of that name
load_module = importlib.import_module("runs.models.load")
pytestmark = pytest.mark.properties

BF16 = "model.dtype=bf16"
#: No forgetting and no texts: they take as long as the training.
SHORT = ["task.forgetting_text=none", "method=vera", "method.sites=[all-linear]"]


@pytest.fixture
def llama_words(alpaca_words):
    return [*alpaca_words, *SHORT, BF16]


def dtypes(model):
    """The dtypes of what trains, and of what does not."""
    trained = {p.dtype for p in model.parameters() if p.requires_grad}
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad}
    return trained, frozen


# --- what is computed in which dtype


def test_the_base_is_bf16_and_the_adapter_float32(llama_words):
    model = begin(llama_words).raw_model
    assert dtypes(model) == ({torch.float32}, {torch.bfloat16})
    pairs = {name: b.dtype for name, b in model.named_buffers() if name.endswith(".A")}
    assert set(pairs.values()) == {torch.float32}


def test_beside_4_bit_weights_all_others_are_bf16_and_products_too(llama_words):
    model = begin([*llama_words, "model.quantise=nf4"]).raw_model
    layer = model.model.layers[0].mlp.up_proj.base
    assert layer.weight.quant_state.dtype == torch.bfloat16
    assert layer.compute_dtype == torch.bfloat16
    assert model.model.embed_tokens.weight.dtype == torch.bfloat16
    assert model.model.norm.weight.dtype == torch.bfloat16


def test_a_new_head_and_values_in_place_train_in_float32_under_autocast(words):
    """A classifier whose biases train: the head and they are float32."""
    words = [word for word in words if not word.startswith("method.")]
    words += ["method=bitfit", BF16, "train.precision=bf16", "train.max_steps=2"]
    training = begin(words)
    model = training.raw_model
    assert dtypes(model)[0] == {torch.float32}
    assert model.bert.encoder.layer[0].output.dense.weight.dtype == torch.bfloat16
    before = {n: p.detach().clone() for n, p in training.parameters.items()}
    training.step([0, 1, 2])
    training.step([3, 4, 5])
    moved = [n for n, p in training.parameters.items() if not torch.equal(p, before[n])]
    assert any(name.startswith("classifier") for name in moved)
    assert any(name.endswith("query.bias") for name in moved)


def test_full_fine_tuning_trains_the_weights_in_their_own_dtype(alpaca_words):
    words = [word for word in alpaca_words if not word.startswith("method.")]
    words += ["method=full", BF16, "train.max_steps=1", "task.forgetting_text=none"]
    training = begin(words)
    assert dtypes(training.raw_model) == ({torch.bfloat16}, set())
    assert torch.isfinite(training.step([0, 1]))


def test_values_in_place_without_autocast_are_refused(alpaca_words, tiny_gpt2):
    """A bias in float32 beside weights in bf16."""
    words = replace_words(alpaca_words, **{"model.path": tiny_gpt2})
    words = [word for word in words if not word.startswith("method.")]
    words += ["method=bitfit", BF16, "task.forgetting_text=none"]
    with refused("model.dtype=bf16", "BitFit", "ln_1.bias", "train.precision=bf16"):
        begin(words)
    assert begin([*words, "train.precision=bf16"]).step([0, 1]).isfinite()


# --- a run, and what is done with it


def test_a_killed_run_resumes_bit_for_bit(llama_words, tmp_path):
    straight, resumed = straight_and_resumed(llama_words, tmp_path, "step", 3)
    assert comparable(resumed) == comparable(straight)
    assert straight["config"]["model"]["dtype"] == "bf16"


def test_it_is_evaluated_merged_and_exported_as_it_was_trained(llama_words, tmp_path):
    record, output = trained(llama_words), output_of(llama_words)
    context = evaluate.restore(record, output)
    assert dtypes(context.raw_model) == ({torch.float32}, {torch.bfloat16})
    assert context.score() == pytest.approx(record["curve"]["metric"][-1], rel=1e-6)
    assert loading_settings(context)["dtype"] == "bfloat16"
    assert train_config(record)["dtype"] == "bf16"
    for form in ("peft", "merged", "lora"):
        folder = str(tmp_path / form)
        assert export.main([record["id"], form, folder, f"output={output}"]) == 0
    # the whole model is the bf16 base, with the change in float32
    base = AutoModelForCausalLM.from_pretrained(
        record["config"]["model"]["path"], dtype=torch.bfloat16
    ).state_dict()
    merged = load_file(tmp_path / "merged" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    site = context.raw_model.get_submodule(name.removesuffix(".weight"))
    change = site.changes["whole"].weight()
    assert merged[name].dtype == torch.float32
    assert torch.allclose(merged[name], base[name].float() + change, atol=1e-6)
    assert torch.equal(merged["model.norm.weight"], base["model.norm.weight"].float())


# --- which run it is


def test_the_default_is_in_no_id_and_another_dtype_is_another_run(alpaca_words):
    def made(*more):
        (run,) = expand([*alpaca_words, *more])
        return run, run_id(run)

    (_, plain), (_, fp32), (run, bf16) = made(), made("model.dtype=fp32"), made(BF16)
    assert plain == fp32 != bf16
    assert BF16 in [str(line) for line in run.changed]
    # as in records from before there was the key
    assert "dtype" not in expand([*alpaca_words, "model.dtype=fp32"])[0].config["model"]


def test_a_table_says_where_rows_have_other_base_weights():
    """Their scores and costs are not compared."""
    lines = [
        *seed_records("vera", "rte", [0.70, 0.71]),
        *seed_records("lora", "rte", [0.72, 0.73]),
    ]
    for record in lines[2:]:
        record["config"]["model"] = {**record["config"]["model"], "dtype": "bf16"}
    cells = frame.cells(frame.runs(ledger(*lines))).set_index("row")
    assert cells.measurement_text["lora"] == "bf16 base weights"
    assert cells.measurement_text["vera"] == ""
    assert cells.cell["vera"] != cells.cell["lora"]
    costs = frame.comparable_costs(cells.reset_index())
    assert costs.seconds.isna().all()


# --- what it takes


def test_the_plan_and_the_check_before_loading_count_two_bytes(
    alpaca_words, tiny_llama, monkeypatch
):
    values = sum(p.numel() for p in models.load(tiny_llama, 0, "")[0].parameters())
    plain = [word for word in alpaca_words if not word.startswith("method.")]
    records = RecordFolder("nowhere")
    for words, held in (
        ([], f"in fp32: {megabytes(4 * values)} for its weights alone"),
        ([BF16], f"in bf16: {megabytes(2 * values)} for its weights alone"),
        (
            ["method=full", BF16],
            f"in bf16: {megabytes(8 * values)} for its weights, gradients and",
        ),
    ):
        runs = expand([*plain, *words])
        assert held in plan_text(plan(runs, records), records)
    (run,) = expand([*alpaca_words, BF16])
    device = torch.device("cpu")
    for free, fits in ((2.02 * values, True), (1.98 * values, False)):
        monkeypatch.setattr(load_module, "free_memory", lambda _, free=free: free)
        if fits:
            models.check_memory(tiny_llama, run.config, device)
        else:
            with refused("are free on cpu", "model.quantise=nf4"):
                models.check_memory(tiny_llama, run.config, device)
