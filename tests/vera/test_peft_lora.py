"""Converted to LoRA: exact at the rank of the change, the best approximation below it, and refused where
there is no such LoRA."""

import peft
import pytest
import torch
from safetensors.torch import load_file
from support import moved, refused
from tiers import pairs, sample
from tiny import ARCHITECTURES, answer, quantise, tiny

import vera
from vera.sites import head_parameters

pytestmark = pytest.mark.parity

METHODS = {
    "vera": vera.VeRA(rank=6),
    "vera on all linear layers": vera.VeRA(rank=6, sites=("all-linear",)),
    "vera_only_d": vera.VeRA(rank=6, vectors=("d",), d_init=0.0),
    "of peft's": vera.Peft("FourierFTConfig", {"n_frequency": 50}),
}


def changes_of(model, method):
    """The change of each adapted weight (outputs, inputs), by merging."""
    layers = {path: module for path, module in model.named_modules() if hasattr(module, "changes")}
    before = {path: layer.weight().clone() for path, layer in layers.items()}
    method.merge(model)
    return {path: (layer.weight() - before[path]).detach() for path, layer in layers.items()}


@pytest.mark.parametrize(
    ("name", "architecture"), [*pairs(list(METHODS)[:3], ARCHITECTURES), ("of peft's", "BERT")]
)
def test_at_the_rank_of_the_change_nothing_is_lost(name, architecture, tmp_path):
    model = moved(tiny(architecture).double(), METHODS[name])
    expected, base = answer(model), dict(tiny(architecture).double().named_parameters())
    norms = vera.export_lora(model, tmp_path, 32 if "peft" in name else 12, "owner/base", "abc")
    assert max(lost / whole for lost, whole in norms.values()) < 1e-6
    left = dict(model.named_parameters())  # the plain base model, with the head
    assert left.keys() == base.keys()
    head = head_parameters(model)
    assert all(torch.equal(left[name], base[name]) for name in base if name not in head)
    fresh = tiny(architecture).double()
    theirs = peft.PeftModel.from_pretrained(fresh, tmp_path, autocast_adapter_dtype=False)
    with torch.no_grad():
        assert torch.allclose(answer(theirs.eval().double().base_model.model), expected, atol=1e-5)
    again = tiny(architecture).double()  # and this project reads it as any LoRA of peft's
    assert vera.import_peft(again, tmp_path).kind == "lora"
    assert torch.allclose(answer(again), expected, atol=1e-5)


@pytest.mark.parametrize("architecture", sample(["BERT", "GPT-2"], "GPT-2"))
@pytest.mark.parametrize("rank", [2, 0.5])
def test_below_it_the_largest_singular_values_stay(architecture, rank, tmp_path):
    norms = vera.export_lora(moved(tiny(architecture).double(), METHODS["vera"]), tmp_path, rank)
    changes = changes_of(moved(tiny(architecture).double(), METHODS["vera"]), METHODS["vera"])
    assert norms.keys() == changes.keys()
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    for path, change in changes.items():
        values = torch.linalg.svdvals(change)
        kept = len(tensors[f"base_model.model.{path}.lora_A.weight"])
        if rank == 2:
            assert kept == 2
        else:
            shares = values.square().cumsum(0) / values.square().sum()
            assert kept == int((shares < rank).sum()) + 1
        lost, whole = norms[path]
        assert whole == pytest.approx(float(values.norm()), rel=1e-5)
        assert lost == pytest.approx(float(values[kept:].norm()), rel=1e-4)


def test_over_four_bit_weights_the_change_is_the_same(tmp_path):
    model = moved(quantise(tiny("Llama")), METHODS["vera"])
    norms = vera.export_lora(model, tmp_path, 12)
    assert 0 < max(lost / whole for lost, whole in norms.values()) < 1e-5


@pytest.mark.parametrize(
    ("method", "rank", "message"),
    [
        *((vera.LoRA(rank=2), 2, "LoRA already"), (vera.NoLA(rank=4, bases=6), 2, "nola")),
        *((vera.NoMethod(), 2, "none"), (vera.VeRA(rank=6), 33, "rank 33")),
        (vera.Peft("IA3Config"), 2, "rank 2"),
        (vera.Peft("LoraConfig", {"use_dora": True}), 8, "DoRA"),
        (vera.Peft("MissConfig", {"r": 8}), 8, "MiSS"),
    ],
)
def test_what_is_no_lora_is_refused_and_nothing_is_written(method, rank, message, tmp_path):
    model = moved(tiny("BERT"), method)
    with refused(message):
        vera.export_lora(model, tmp_path / "out", rank)
    assert not (tmp_path / "out").exists()
    vera.unload(model)  # where there still is an adapter: nothing of peft's is left in the model
    assert [n for n, _ in model.named_modules()] == [n for n, _ in tiny("BERT").named_modules()]
