"""The behaviours that any method must have, and the methods of the paper by their
formulas."""

import copy
from collections import OrderedDict
from dataclasses import replace
from itertools import cycle, product

import peft
import pytest
import support
import timm
import torch
from support import adapt_and_shake, modules, refused_unchanged
from tiers import pair_up, slow_except
from tiny import ARCHITECTURES, answer, quantise, shake, tiny, tiny_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    Qwen3Config,
    Qwen3ForCausalLM,
)

import vera
from vera.methods.layers import adapted_layers, layer_changes
from vera.methods.vera import projection_pairs
from vera.sites import find_sites, head_parameters

pytestmark = pytest.mark.contract

#: What docs/methods.md has no row for.
VARIANTS = {
    "Adapter, but not in the first layer": lambda a: vera.Adapter(4, drop_layers=1),
    "Adapter, shared": lambda a: vera.Adapter(4, share=True),
    "VeRA, A and B by shape": lambda a: vera.VeRA(rank=12, projections="by_shape"),
    "VeRA, normal": lambda a: vera.VeRA(rank=12, init="kaiming_normal"),
    "DyLoRA, frozen": lambda a: vera.DyLoRA(rank=4, frozen=True),
    # LNTuning's merge swaps tensors, DEFT's adds one
    **{
        f"{name} (peft)": support.default_method(f"{name}Config")
        for name in ("LNTuning", "Deft", "IA3", "VBLoRA")
    },
    "AdaLoRA (peft)": support.peft_method("AdaLoraConfig", init_r=6, target_r=2),
}
MAKERS = support.METHODS | VARIANTS
METHODS = {name: make("BERT") for name, make in MAKERS.items()}
BLOCKS = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}


def adapted(name: str, architecture: str = "BERT"):
    return adapt_and_shake(tiny(architecture), MAKERS[name](architecture))


#: Those that add a Change to layers.
LOW_RANK = [
    name for name in METHODS if name != "SSF" and any(adapted_layers(adapted(name)))
]


# --- any method


#: Those that begin at random values, away from the base model.
ELSEWHERE = ("SSF", "Adapter", "VBLoRA", "Deft")


#: Each method on BERT, which SSF is refused on, and on one other architecture, VeRA on
#: all; every pair is in test_support.py.
FAST = [*product(METHODS, ["BERT"]), ("SSF", "ViT of timm")]
TRIED = {*FAST, *product(["VeRA"], ARCHITECTURES), *zip(METHODS, cycle(ARCHITECTURES))}


@pytest.mark.parametrize(("name", "architecture"), slow_except(sorted(TRIED), *FAST))
def test_a_method_does_what_is_relied_on(name, architecture, tmp_path):
    """And: merged, only the adapted layers have other weights, it saves the same file,
    and unloads to a plain model; switched off, it is not merged."""
    method, base = MAKERS[name](architecture), tiny(architecture)
    try:
        method.adapt(model := copy.deepcopy(base))
    except vera.AdapterError:
        return  # which pairs are refused: docs/methods.md and its test
    starts = (
        10.0
        if name.startswith(ELSEWHERE)
        else 1e-3
        if name.startswith("LoRA-XS")
        else 0.0
    )
    reads_text = getattr(base, "main_input_name", "") == "input_ids"
    images = None if reads_text else torch.randn(4, 3, 16, 16)
    merges = method.kind not in support.IN_PLACE | {"adapter"}
    assert vera.check(method, base, images, starts) is merges
    groups = method.parameter_groups(model)
    trains = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trains == {*groups["adapter"], *groups["head"]}
    assert set(groups["head"]) == (
        set() if name == "none" else set(head_parameters(model))
    )
    if not merges:
        return

    shake(model)
    weights, files, answers = (
        {n: p.detach().clone() for n, p in model.named_parameters()},
        [],
        [],
    )
    for number in range(2):
        vera.save(model, method, path := tmp_path / str(number))
        files.append(path.read_bytes())
        method.merge(model)  # twice is once
        answers.append(merged := answer(model))
    assert files[0] == files[1]
    assert torch.equal(*answers)
    changed = [n for n, p in model.named_parameters() if not torch.equal(p, weights[n])]
    assert len(changed) == len(list(adapted_layers(model))) or method.kind in (
        "peft",
        "ssf",
    )
    left = copy.deepcopy(model)
    vera.unload(left, merge=True)
    assert torch.equal(answer(left), merged)
    assert modules(left) == modules(base)
    assert left.state_dict().keys() == base.state_dict().keys()
    vera.disable(model)  # which takes a merge back
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())
    with refused_unchanged(r"switched off|not linear"):
        method.merge(model)


def of_transformers(kind, **sizes):
    sizes = sizes or {"hidden_size": 32, **BLOCKS}
    return AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model(kind, vocab_size=40, **sizes)
    )


@pytest.mark.parametrize(
    "architecture", ["distilbert", "electra", "deberta-v2", "albert", "mpnet"]
)
def test_other_encoders_have_the_sites_too(architecture):
    """Query and value by the names that these models use, a head that trains, and
    gradients that arrive."""
    own = (
        {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}
        if architecture == "distilbert"
        else {}
    )
    model, method = of_transformers(architecture, **own), vera.VeRA(rank=12)
    method.adapt(model)
    layers = list(layer_changes(model))
    # ALBERT's layers are one
    assert len(layers) == (2 if architecture == "albert" else 4)
    assert method.parameter_groups(model)["head"]
    answer(model).square().sum().backward()
    assert all(layer.b.grad.any() for layer in layers)


def test_bitfit_counts_biases_of_any_name():
    """DeBERTa's attention has q_bias and v_bias."""
    METHODS["BitFit"].adapt(model := of_transformers("deberta"))
    # A layer: q, v, output, its LayerNorm, feed-forward 64 and 32, its LayerNorm
    assert METHODS["BitFit"].count(model) == 32 + 2 * (32 + 32 + 32 + 32 + 64 + 32 + 32)


@torch.no_grad()
@pytest.mark.parametrize(
    ("architecture", "dtype"), [("BERT", torch.float16), ("GPT-2", torch.bfloat16)]
)
@pytest.mark.parametrize("name", LOW_RANK)
def test_a_change_of_half_precision_is_added_in_float32_and_rounded_once(
    name, architecture, dtype
):
    """To the output, and to the weight that it is merged into. GPT-2's projection is
    fused: query and value have a change of their own, and nothing is added to the key's
    slice."""
    model, x = tiny(architecture).to(dtype), torch.randn(64, 32).to(dtype)
    adapt_and_shake(model, METHODS[name], 0.01)
    layer = next(adapted_layers(model))
    assert {p.dtype for p in METHODS[name].adapter_parameters(model).values()} == {
        torch.float32
    }
    assert layer(x).dtype == dtype
    output, weight = layer.base(x), layer.weight().clone()
    for part, rows in layer.output_slices.items():
        change = layer.changes[part]
        added = change(x.float())
        assert added.any()
        output[:, rows] = (output[:, rows].float() + added).to(dtype)
        weight[rows] = (weight[rows].float() + change.weight()).to(dtype)
    assert torch.equal(layer(x), output)
    assert {n.partition(".")[0] for n, _ in layer.changes.named_parameters()} == set(
        layer.output_slices
    )
    METHODS[name].merge(model)
    assert torch.equal(layer.weight(), weight)


#: Settings that make no sense, by method; the refusal names the first of each.
SENSELESS = {
    "vera": [
        *({"rank": 0}, {"rank": 2.5}, {"rank": True}, {"vectors": []}, {"d_init": 0.0}),
        *(
            {"d_init": 0.1, "vectors": ["d"]},
            {"shared_b": True, "vectors": ["d"], "d_init": 0.0},
            {"init": "x"},
            {"dropout": 0.1, "path": "hybrid"},
        ),
        *({"projection_seed": -1}, {"projections": "unique", "init": "peft"}),
    ],
    "lora": [{"ranks": 3}, {"dropout": 1.0}, {"alpha": "8"}, {"freeze_a": 1}],
    "vera_plus": [{"c_init": 0.0}, {"d_init": 0.0}],
    "nola": [{"basis_seed": -1}, {"bases": 0}],
    "adapter": [
        *({"bottleneck": 0}, {"placement": "x"}, {"drop_layers": -1}),
        {"drop_layers": 1, "drop_per_batch": True},
    ],
    "adalora": [
        *({"init_rank": 1}, {"interval": 0}, {"beta1": 1.0}, {"orthogonality": -1.0}),
        *({"final_share": 0.5, "initial_share": share} for share in (0.5, 2e3, -0.1)),
    ],
    "ssf": [{"rank": 4}],
    "verra": [{"kind": "verra"}],
}
NEEDED = {"adapter": {"bottleneck": 4}, "nola": {"rank": 4, "bases": 2}, "ssf": {}}


@pytest.mark.parametrize(
    ("kind", "settings"),
    [(kind, one) for kind, every in SENSELESS.items() for one in every],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(kind, settings):
    key, value = next(iter(settings.items()))
    needed = NEEDED.get(kind, {"rank": 4})
    with refused_unchanged(str(value) if key == "kind" else key):
        vera.make_method(**({"kind": kind} | needed | settings))


def linears(**sizes) -> nn.Module:
    return nn.ModuleDict({name: nn.Linear(*size) for name, size in sizes.items()})


class AttentionCl(nn.Module):
    """As timm's of this name, which splits each head into three."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)


def same_layer_twice():
    layer = nn.Linear(8, 8)
    return nn.ModuleDict({key: nn.ModuleDict({"query": layer}) for key in "ab"})


def with_child(model, end, name):
    """A model with a child of its own in the modules whose path ends so."""
    for path, module in model.named_modules():
        if path.endswith(end):
            module.add_module(name, nn.Identity())
    return model


def of_peft():
    return peft.get_peft_model(tiny_model(), peft.LoraConfig(target_modules=["query"]))


def shared_weight():
    model = linears(query=(8, 8), value=(8, 8))
    model["value"].weight = model["query"].weight
    return model


def carrying(model):
    METHODS["VeRA"].adapt(model)
    return model


VERA, ADAPTER = vera.VeRA(4), vera.Adapter(4)


@pytest.mark.parametrize(
    ("act", "model", "named"),
    [
        (
            vera.VeRA(4, ("qeury",)).adapt,
            tiny_model,
            r"'qeury'.*dense, key, query, value, all-linear",
        ),
        (vera.VeRA(4, ()).adapt, tiny_model, "sites"),
        (
            VERA.adapt,
            lambda: linears(query_key_value=(8, 24)),
            r"sites=\[query_key_value\]",
        ),
        (VERA.adapt, lambda: nn.Sequential(AttentionCl()), r"sites=\[qkv\]"),
        (vera.VeRA(4, ("query",)).adapt, same_layer_twice, r"a\.query and b\.query"),
        (vera.VeRA(4, ("c_attn", "query")).adapt, lambda: tiny("GPT-2"), "whole"),
        *(
            (VERA.adapt, lambda: nn.Linear(3, 3), "no linear layer"),
            (VERA.adapt, of_peft, "peft"),
        ),
        *(
            (method(3000).adapt, tiny_model, "3000")
            for method in (vera.VeRA, vera.LoRA, vera.Adapter)
        ),
        *(
            (ADAPTER.adapt, lambda: nn.Linear(3, 3), "Linear"),
            (VERA.merge, tiny_model, "nothing to merge"),
        ),
        (vera.Adapter(4, drop_layers=2).adapt, tiny_model, "drop_layers=2"),
        (vera.Full().adapt, lambda: quantise(tiny_model()), "quantised"),
        (
            ADAPTER.adapt,
            lambda: with_child(tiny_model(), "LayerNorm", "adapter"),
            "'adapter' of its own",
        ),
        (
            vera.SSF().adapt,
            lambda: with_child(tiny("ViT"), "q_proj", "ssf"),
            "'ssf' of its own",
        ),
        (METHODS["VeRA"].merge, lambda: carrying(quantise(tiny_model())), "quantised"),
        (METHODS["VeRA"].merge, lambda: carrying(shared_weight()), "shares its weight"),
        (METHODS["LoRA"].adapt, lambda: carrying(tiny_model()), "already"),
    ],
)
def test_a_model_that_a_method_does_not_fit_is_refused_and_left_as_it_was(
    act, model, named
):
    model = model()
    with refused_unchanged(named, model):
        act(model)


DROPPING = {
    of: replace(METHODS[of], dropout=0.5)
    for of in LOW_RANK
    if hasattr(METHODS[of], "dropout")
}


@torch.no_grad()
@pytest.mark.parametrize("name", DROPPING)
def test_dropout_acts_on_the_adapters_input_in_training_only(name):
    x, seen = torch.randn(64, 32), []
    layer = next(adapted_layers(adapt_and_shake(tiny_model(), DROPPING[name]))).eval()
    (change,) = layer.changes.values()
    torch.testing.assert_close(layer(x), layer.base(x) + change(x), rtol=0, atol=1e-5)
    change.dropout.register_forward_hook(
        lambda _, inputs, output: seen.append((inputs[0], output))
    )
    output = layer.train()(x)
    ((before, after),) = seen
    assert torch.equal(before, x)
    kept = after != 0
    assert 0.4 < kept.float().mean() < 0.6
    assert torch.equal(after[kept], 2 * x[kept])
    change.dropout = nn.Identity()
    torch.testing.assert_close(output, layer.base(x) + change(after), rtol=0, atol=1e-5)


# --- sites by architecture

SITES = {  # architecture: (query's path in a layer, value's, all linear layers)
    "BERT": ("bert.encoder.layer.{}.attention.self.query", "value", 12),
    "RoBERTa": ("roberta.encoder.layer.{}.attention.self.query", "value", 12),
    "GPT-2": ("transformer.h.{}.attn.c_attn", "c_attn", 8),
    "Llama": ("model.layers.{}.self_attn.q_proj", "v_proj", 14),
    "ViT": ("vit.layers.{}.attention.q_proj", "v_proj", 12),
    "DINOv2": ("dinov2.encoder.layer.{}.attention.q_proj", "v_proj", 12),
    "ViT of timm": ("blocks.{}.attn.qkv", "qkv", 8),
    "ViT of timm in transformers": ("timm_model.blocks.{}.attn.qkv", "qkv", 8),
}


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_query_and_value_of_each_architecture(architecture):
    query, value, everything = SITES[architecture]
    found = find_sites(tiny(architecture), ("query", "value"))
    of_both = (query, f"{query.rpartition('.')[0]}.{value}")
    assert list(found) == list(
        dict.fromkeys(path.format(layer) for layer in (0, 1) for path in of_both)
    )
    if architecture in support.FUSED:
        assert all(
            blocks == {"query": slice(0, 32), "value": slice(64, 96)}
            for blocks in found.values()
        )
    linears = find_sites(tiny(architecture), ("all-linear",))
    assert len(linears) == everything
    assert not [
        path
        for path in linears
        if path.rpartition(".")[2] in ("lm_head", "classifier", "head")
    ]


# --- what VeRA shares


def test_b_starts_at_zero_and_d_at_its_start_and_where_both_train_b_alone_has_a_gradient_at_first():
    for name, start in (("VeRA", 0.1), ("VeRA, only b", None), ("VeRA, only d", 0.0)):
        METHODS[name].adapt(model := tiny_model())
        answer(model).square().sum().backward()
        for b, d in ((change.b, change.d) for change in layer_changes(model)):
            assert b is None or (not b.any() and b.grad.any())
            assert (d is None) is (start is None) or torch.equal(
                d, torch.full_like(d, start)
            )
            assert d is None or bool(d.grad.any()) is (b is None)


def test_layers_that_share_b_train_it_once_and_keep_it_alike(tmp_path):
    method = vera.VeRA(rank=8, sites=("all-linear",), shared_b=True)
    model = adapt_and_shake(tiny("Llama"), method)
    own = vera.VeRA(rank=8, sites=("all-linear",))
    own.adapt(apart := tiny("Llama"))
    vectors = [change.b for change in layer_changes(model)]
    # the tiny model's two layers
    half = len(vectors) // 2
    for first, second in zip(vectors[:half], vectors[half:], strict=True):
        assert first is second
    assert len({id(vector) for vector in vectors}) == half
    saved_values = sum(vector.numel() for vector in vectors[:half])
    assert own.count(apart) - method.count(model) == saved_values

    # as if each layer had a copy of its own
    for layer in adapted_layers(apart):
        twin = model.get_submodule(layer.path)
        for name, change in layer.changes.items():
            change.b.data.copy_(twin.changes[name].b.data)
            change.d.data.copy_(twin.changes[name].d.data)
    assert torch.equal(answer(model), answer(apart))

    copied = [change.b for change in layer_changes(copy.deepcopy(model).double())]
    for first, second in zip(copied[:half], copied[half:], strict=True):
        assert first is second

    path = tmp_path / "adapter"
    vera.save(model, method, path)
    vera.load(loaded := tiny("Llama"), path)
    assert torch.equal(answer(loaded), answer(model))
    vera.load(apart, path)
    assert torch.equal(answer(apart), answer(model))


def test_one_storage_for_a_and_b_of_a_seed_of_its_own_or_pairs_by_shape_or_unique():
    seeded, pairs = [], {}
    for training_seed, projection_seed in ((0, 0), (1, 0), (0, 1)):
        model = tiny_model()
        torch.manual_seed(training_seed)
        vera.VeRA(rank=8, projection_seed=projection_seed).adapt(model)
        seeded.append(projection_pairs(model)[0].A)
        # a cast reaches the one pair, and the layers still share it; as those of a copy
        # do
        model.double()
        for layers in (
            list(layer_changes(model)),
            list(layer_changes(copy.deepcopy(model))),
        ):
            assert len({layer.A.data_ptr() for layer in layers}) == 1
            assert layers[0].A.dtype == torch.float64
    assert torch.equal(seeded[0], seeded[1])
    assert not torch.equal(seeded[0], seeded[2])
    # query and attention.output 32 x 32, intermediate 64 x 32, output 32 x 64
    for sharing, count in (("shared", 1), ("by_shape", 3), ("unique", 8)):
        vera.VeRA(12, ("query", "dense"), projections=sharing).adapt(
            model := tiny_model()
        )
        found = list(layer_changes(model))
        pairs[sharing] = [change.A for change in found]
        assert (
            len({(change.A.data_ptr(), change.B.data_ptr()) for change in found})
            == count
        )
        shapes = [(change.A.shape, change.B.shape) for change in found]
        assert shapes == [
            ((12, change.inputs), (change.outputs, 12)) for change in found
        ]
    # Only the shared pair is scaled by the widest matrix.
    assert pairs["by_shape"][0].abs().max() > 1.3 * pairs["shared"][0].abs().max()
    assert not torch.equal(pairs["unique"][0], pairs["unique"][1])
    vera.VeRA(12, ("query",), projections="unique").adapt(alone := tiny_model())
    # whatever else is adapted
    assert torch.equal(next(layer_changes(alone)).A, pairs["unique"][0])


# --- bottleneck adapters as their papers define them


LAYER = "bert.encoder.layer.{}."
#: The modules of a block whose outputs change. GPT-2 norms before its sub-layers, BERT
#: after them.
PLACES = {
    ("Adapter H", "BERT"): [
        LAYER + "attention.output.dropout",
        LAYER + "output.dropout",
    ],
    ("Adapter P", "BERT"): [LAYER + "output.LayerNorm"],
    ("Adapter L", "BERT"): [LAYER.rstrip(".")],
    ("Adapter H", "GPT-2"): ["transformer.h.{}.attn", "transformer.h.{}.mlp"],
    ("Adapter P", "GPT-2"): ["transformer.h.{}"],
    ("Adapter L", "GPT-2"): ["transformer.h.{}"],
}


@pytest.mark.parametrize(("name", "architecture"), PLACES)
def test_adapters_are_their_papers_formulas(name, architecture):
    """x + A(x), with Lin's own LayerNorm in A; and Pfeiffer's LN(x + A(LN(x))), where x
    is the sum of the residual stream and a sub-layer."""
    model, h = (
        adapted(name, architecture).double(),
        torch.randn(2, 5, 32, dtype=torch.float64),
    )
    found = [path for path, m in model.named_modules() if hasattr(m, "adapter")]
    assert found == [
        path.format(layer) for layer in (0, 1) for path in PLACES[name, architecture]
    ]
    for module in map(model.get_submodule, found):
        adapter, functional = module.adapter, nn.functional

        def bottleneck(x, adapter=adapter, functional=functional):
            if name == "Adapter L":
                x = functional.layer_norm(
                    x, (32,), adapter.norm.weight, adapter.norm.bias
                )
            activation = functional.gelu if name == "Adapter H" else torch.relu
            return adapter.up(activation(adapter.down(x)))

        of_both = [
            of(h)[0] if isinstance(of(h), tuple) else of(h)
            for of in (module, module.forward)
        ]
        output, x = of_both
        expected = x + bottleneck(x)
        if isinstance(module, nn.LayerNorm):
            expected = functional.layer_norm(
                h + bottleneck(x), (32,), module.weight, module.bias, 1e-12
            )
        assert torch.allclose(output, expected, rtol=0, atol=1e-10)
        assert not torch.allclose(output, x, atol=1e-2)


def test_adapters_start_near_the_identity():
    vera.Adapter(512).adapt(wide := tiny_model(hidden_size=256))
    adapter = wide.bert.encoder.layer[0].output.LayerNorm.adapter
    assert not torch.cat([adapter.down.bias, adapter.up.bias]).any()
    assert adapter.up.weight.detach().std() == pytest.approx(0.02, rel=0.02)


def test_adapterdrop_draws_a_number_of_first_blocks_for_each_training_batch_only():
    model = adapt_and_shake(tiny_model(num_hidden_layers=4), METHODS["AdapterDrop"])
    adapters = [layer.output.LayerNorm.adapter for layer in model.bert.encoder.layer]
    alone = {}  # the answers with the first blocks' adapters off
    for count in range(4):
        for i, adapter in enumerate(adapters):
            adapter.enabled = i >= count
        alone[count] = answer(model.eval())
        assert not any(adapter.dropped for adapter in adapters)
    vera.disable(model, False)
    drawn = []
    for draw in range(80):
        if draw % 40 == 0:
            torch.manual_seed(1)
        output, first = answer(model.train()), [adapter.dropped for adapter in adapters]
        assert first == sorted(first, reverse=True)
        assert torch.equal(output, alone[sum(first)])
        drawn.append(sum(first))
    assert set(drawn) == {0, 1, 2, 3}  # from none to all but the last
    assert drawn[:40] == drawn[40:]


# --- gradients arrive where activations are checkpointed


@pytest.mark.parametrize(
    ("architecture", "name"),
    pair_up(
        ["BERT", "GPT-2", "Llama", "ViT"],
        ["LoRA", *list(METHODS)[4:8], "NoLA", "DyLoRA"],
    ),
)
def test_activation_checkpointing_gives_the_same_gradients(architecture, name):
    gradients = []
    for checkpointing in (False, True):
        model = adapted(name, architecture).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(3)
        answer(model).square().sum().backward()
        trained = METHODS[name].adapter_parameters(model).values()
        gradients.append([p.grad for p in trained if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


# --- what goes wrong in other people's models


def test_a_module_of_the_models_own_called_base_keeps_its_name(tmp_path):
    torch.manual_seed(0)
    inner = nn.Sequential(OrderedDict(query=nn.Linear(8, 8), changes=nn.Linear(8, 8)))
    model = nn.Sequential(OrderedDict(base=inner))
    fresh, method = copy.deepcopy(model), vera.LoRA(rank=2, sites=("query",))
    adapt_and_shake(model, method)
    vera.save(model, method, tmp_path / "a")
    vera.load(fresh, tmp_path / "a")
    assert torch.equal(fresh(torch.ones(2, 8)), model(torch.ones(2, 8)))
    vera.unload(fresh)
    with torch.no_grad():
        fresh.base.changes.weight.add_(1)
    with refused_unchanged("other base weights"):
        vera.load(fresh, tmp_path / "a")


def test_adapters_fit_blocks_whose_first_norm_is_not_the_residual_streams():
    """Qwen3 norms queries and keys; timm's Swin grows wider from stage to stage."""
    sizes = {
        "hidden_size": 32,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 40,
    }
    qwen = Qwen3ForCausalLM(Qwen3Config(**BLOCKS, **sizes))
    sizes = {"img_size": 56, "embed_dim": 16, "depths": (1, 1), "num_heads": (2, 2)}
    swin = timm.create_model("swin_tiny_patch4_window7_224", **sizes)
    for name in ("Adapter H", "Adapter P", "Adapter L"):
        for model, run in (
            (qwen, answer),
            (swin, lambda m: m(torch.randn(2, 3, 56, 56))),
        ):
            METHODS[name].adapt(model)
            run(model)
            trained = METHODS[name].adapter_parameters(model).values()
            assert sum(p.numel() for p in trained) == METHODS[name].count(model)
            vera.unload(model)
    with refused_unchanged("several widths"):
        METHODS["Adapter, shared"].adapt(swin)


def test_modules_that_were_in_evaluation_stay_so():
    model = tiny_model().train()
    model.bert.embeddings.eval()
    METHODS["VeRA"].adapt(model)
    assert not model.bert.embeddings.training
    assert all(layer.training for layer in adapted_layers(model))
    assert not any(layer.training for layer in adapted_layers(adapted("VeRA")))


def test_both_heads_of_a_distilled_model_train():
    sizes = {"depth": 1, "embed_dim": 12, "num_heads": 3, "img_size": 32}
    model = timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3, **sizes)
    vera.VeRA(rank=4, sites=("all-linear",)).adapt(model)
    heads = {
        n
        for n, p in model.named_parameters()
        if p.requires_grad and n.startswith("head")
    }
    assert heads == {"head.weight", "head.bias", "head_dist.weight", "head_dist.bias"}
