"""Converted to LoRA: VeRA loses nothing, at a given rank the LoRA is the best
approximation, and peft answers as the adapter did."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file
from support import adapt_and_shake, modules, refused_unchanged
from tiers import pair_up, slow_except
from tiny import ARCHITECTURES, answer, quantise, tiny

import vera
from vera.methods.layers import adapted_layers, base_weight

pytestmark = pytest.mark.parity

VERA = vera.VeRA(rank=6)
EXACT = {
    "vera": VERA,
    "vera on all linear layers": vera.VeRA(rank=6, sites=("all-linear",)),
    # The tiny models have 32 inputs: the LoRA's rank is the layer's
    "vera of a rank above the layers'": vera.VeRA(rank=48, sites=("all-linear",)),
    "vera_only_b": vera.VeRA(rank=6, vectors=("b",)),
    "vera, b shared by layers": vera.VeRA(rank=6, shared_b=True),
    "vera_only_d": vera.VeRA(rank=6, vectors=("d",), d_init=0.0),
    # Pairs that peft's VeRA has no place for
    "a pair for each shape": vera.VeRA(
        rank=6, sites=("all-linear",), projections="by_shape"
    ),
    "a pair for each matrix": vera.VeRA(rank=6, projections="unique"),
}


def by_peft(base, folder):
    """A base model with the LoRA of a folder, by peft, in the base model's dtype."""
    wrapper = peft.PeftModel.from_pretrained(base, folder, autocast_adapter_dtype=False)
    return wrapper.eval().base_model.model


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


@pytest.mark.parametrize(("name", "architecture"), pair_up(EXACT, ARCHITECTURES))
def test_vera_is_a_lora_without_loss(name, architecture, tmp_path):
    """In float64 to 1e-10 through peft, and the model stays as it was."""
    model = adapt_and_shake(tiny(architecture).double(), EXACT[name])
    expected = answer(model)
    conversion = vera.export_lora(model, tmp_path, base="owner/base", revision="abc")
    assert conversion.error <= 1e-14 * conversion.change
    assert torch.equal(answer(model), expected)

    theirs = by_peft(tiny(architecture).double(), tmp_path)
    with torch.no_grad():
        assert torch.allclose(answer(theirs), expected, rtol=0, atol=1e-10)
    ranks = {layer.rank for layer in conversion.layers.values()}
    assert ranks == {conversion.rank} == {config_of(tmp_path)["r"]}
    # and this project reads it as any LoRA of peft's
    again = tiny(architecture).double()
    assert vera.import_peft(again, tmp_path).kind == "lora"
    assert torch.allclose(answer(again), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(
    "architecture", slow_except(["BERT", "GPT-2", "Llama"], "GPT-2")
)
def test_in_float32_it_is_the_same_up_to_rounding(architecture, tmp_path):
    model = adapt_and_shake(tiny(architecture), EXACT["vera on all linear layers"])
    expected = answer(model)
    vera.export_lora(model, tmp_path)
    with torch.no_grad():
        off = (answer(by_peft(tiny(architecture), tmp_path)) - expected).abs().max()
    assert off <= 1e-5 * expected.abs().max()


def test_the_rank_is_that_of_the_widest_change(tmp_path):
    """One for all layers, as servers want it: narrower changes are padded with
    zeros."""
    model = adapt_and_shake(
        tiny("Llama").double(), vera.VeRA(40, ("q_proj", "mlp.down_proj"))
    )
    conversion = vera.export_lora(model, tmp_path)
    smallest = [min(layer.base.weight.shape) for layer in adapted_layers(model)]
    assert conversion.rank == max(smallest) < 40
    for name, tensor in load_file(tmp_path / "adapter_model.safetensors").items():
        if "lora_A" in name:
            assert len(tensor) == conversion.rank


def test_over_four_bit_weights_only_a_merge_has_an_error(tmp_path):
    """The LoRA is VeRA's change itself; to be merged, the sum is rounded to 4 bits."""
    model = adapt_and_shake(quantise(tiny("Llama")), VERA)
    expected = answer(model)
    conversion = vera.export_lora(model, tmp_path)
    assert conversion.error <= 1e-6 * conversion.change

    base = quantise(tiny("Llama"))
    for layer in base.modules():
        # Some processors would repack layers of another size than the tiny model's
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False
    theirs = peft.PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.no_grad():
        unmerged = (answer(theirs.base_model.model) - expected).abs().max()
        theirs.merge_adapter()
        merged = (answer(theirs.base_model.model) - expected).abs().max()
    assert unmerged <= 1e-5 * expected.abs().max()
    assert merged > 100 * unmerged


# --- at a rank


OF_PEFT = vera.Peft("FourierFTConfig", {"n_frequency": 50})


@pytest.mark.parametrize(
    ("method", "architecture", "rank"),
    [
        *((VERA, architecture, 12) for architecture in ("BERT", "GPT-2")),
        (OF_PEFT, "BERT", 32),
    ],
)
def test_at_the_rank_of_the_change_nothing_is_lost(
    method, architecture, rank, tmp_path
):
    model = adapt_and_shake(tiny(architecture).double(), method)
    expected = answer(model)
    conversion = vera.export_lora(model, tmp_path, rank, "owner/base", "abc")
    assert conversion.error < 1e-6 * conversion.change
    assert torch.equal(answer(model), expected)
    config = config_of(tmp_path)
    assert (config["base_model_name_or_path"], config["revision"]) == (
        "owner/base",
        "abc",
    )
    with torch.no_grad():
        theirs = by_peft(tiny(architecture).double(), tmp_path).double()
        assert torch.allclose(answer(theirs), expected, atol=1e-5)


@pytest.mark.parametrize("architecture", slow_except(["BERT", "GPT-2"], "GPT-2"))
@pytest.mark.parametrize("rank", [2, 0.5])
def test_below_it_the_largest_singular_values_stay(architecture, rank, tmp_path):
    model = adapt_and_shake(tiny(architecture).double(), VERA)
    conversion = vera.export_lora(model, tmp_path, rank)
    VERA.merge(model)
    base = tiny(architecture).double()
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    merged = {
        path: module.weight().detach()
        for path, module in model.named_modules()
        if hasattr(module, "changes")
    }
    assert conversion.layers.keys() == merged.keys()
    for path, weight in merged.items():
        change = weight - base_weight(base.get_submodule(path)).detach()
        values = torch.linalg.svdvals(change)
        remaining = len(tensors[f"base_model.model.{path}.lora_A.weight"])
        if rank == 2:
            assert remaining == 2
        else:
            shares = values.square().cumsum(0) / values.square().sum()
            assert remaining == int((shares < rank).sum()) + 1
        layer = conversion.layers[path]
        assert layer.rank == remaining
        assert layer.change == pytest.approx(float(values.norm()), rel=1e-5)
        lost = float(values[remaining:].norm())
        assert layer.error == pytest.approx(lost, rel=1e-4)


def test_by_a_share_each_layer_has_a_rank_that_peft_reads(tmp_path):
    """Their scale is 1, whatever the rank."""
    model = adapt_and_shake(tiny("BERT").double(), VERA)
    expected = answer(model)
    conversion = vera.export_lora(model, tmp_path, 0.999)
    theirs = by_peft(tiny("BERT").double(), tmp_path)
    with torch.no_grad():
        assert torch.allclose(answer(theirs), expected, rtol=0, atol=0.1)
    assert len({layer.rank for layer in conversion.layers.values()}) > 1


@pytest.mark.parametrize(
    ("method", "rank", "message"),
    [
        (vera.LoRA(rank=2), 2, "LoRA already"),
        (vera.LoRA(rank=2), None, "LoRA already"),
        (vera.NoLA(rank=4, bases=6), 2, "nola"),
        (vera.NoMethod(), 2, "none"),
        (VERA, 33, "rank 33"),
        (VERA, 0, "rank 0"),
        (VERA, 1.5, "rank 1.5"),
        (OF_PEFT, None, "needs a rank"),
        (vera.Peft("IA3Config"), 2, "rank 2"),
        (vera.Peft("LoraConfig", {"use_dora": True}), 8, "DoRA"),
        (vera.Peft("MissConfig", {"r": 8}), 8, "MiSS"),
    ],
)
def test_what_is_no_lora_is_refused_and_nothing_is_written(
    method, rank, message, tmp_path
):
    model = adapt_and_shake(tiny("BERT"), method)
    with refused_unchanged(message):
        vera.export_lora(model, tmp_path / "out", rank)
    assert not (tmp_path / "out").exists()
    vera.unload(model)  # The adapter was still there, and nothing of peft's is left.
    assert modules(model) == modules(tiny("BERT"))
