"""VeRA and LoRA against huggingface/peft with copied weights, and the behaviours that any method must have."""

import copy

import peft
import pytest
import torch
from tiny import shake, tiny_model
from torch import nn

import vera
from vera.methods.base import adapted_layers, changes

METHODS = {
    "full": vera.Full(),
    "head": vera.Head(),
    "bitfit": vera.BitFit(),
    "lora": vera.LoRA(rank=4, alpha=6.0),
    "vera": vera.VeRA(rank=12, projection_seed=3),
}
LOW_RANK = ["lora", "vera"]


def ids(rows: int = 4, tokens: int = 9) -> torch.Tensor:
    return torch.randint(3, 30, (rows, tokens), generator=torch.Generator().manual_seed(1))


def adapted(name: str, kind: str = "bert", dtype: torch.dtype = torch.float32):
    model = tiny_model(kind).to(dtype)
    METHODS[name].adapt(model)
    shake(model)
    return model


# --- parity with peft, float64, 1e-10


def peft_pair(name: str, kind: str):
    """Our model and peft's on the same base weights, with our A, B, b and d copied into peft's."""
    base = tiny_model(kind).double()
    ours = copy.deepcopy(base)
    METHODS[name].adapt(ours)
    shake(ours)
    sites = {"target_modules": ["query", "value"]}
    if name == "vera":
        config = peft.VeraConfig(r=12, projection_prng_key=0, **sites)
    else:
        config = peft.LoraConfig(r=4, lora_alpha=6, **sites)
    theirs = peft.get_peft_model(copy.deepcopy(base), config, autocast_adapter_dtype=False)
    theirs.base_model.classifier.load_state_dict(ours.classifier.state_dict())
    if kind == "bert":
        theirs.base_model.model.bert.pooler.load_state_dict(ours.bert.pooler.state_dict())
    layers = [m for m in theirs.modules() if isinstance(m, peft.tuners.tuners_utils.BaseTunerLayer)]
    pairs = list(zip(adapted_layers(ours), layers, strict=True))
    assert len(pairs) == 4
    with torch.no_grad():
        for our, their in pairs:
            our = our.changes["whole"]
            if name == "vera":
                their.vera_A["default"], their.vera_B["default"] = our.A.clone(), our.B.clone()
                their.vera_lambda_b["default"].copy_(our.b)
                their.vera_lambda_d["default"].copy_(our.d)
            else:
                their.lora_A["default"].weight.copy_(our.A)
                their.lora_B["default"].weight.copy_(our.B)
    return ours, theirs, pairs


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("name", LOW_RANK)
def test_outputs_gradients_and_merged_weights_equal_pefts(name, kind):
    ours, theirs, pairs = peft_pair(name, kind)
    outputs = [model.eval()(ids()).logits for model in (ours, theirs)]
    assert torch.allclose(*outputs, rtol=0, atol=1e-10)
    for output in outputs:
        output.square().sum().backward()
    for layer, their in pairs:
        our = layer.changes["whole"]
        if name == "vera":
            gradients = [(our.b, their.vera_lambda_b["default"]), (our.d, their.vera_lambda_d["default"])]
        else:
            gradients = [(our.A, their.lora_A["default"].weight), (our.B, their.lora_B["default"].weight)]
        for mine, other in gradients:
            assert mine.grad.abs().max() > 0
            assert torch.allclose(mine.grad, other.grad, rtol=0, atol=1e-10)
    METHODS[name].merge(ours)
    theirs.merge_adapter()
    for our, their in pairs:
        assert torch.allclose(our.base.weight, their.get_base_layer().weight, rtol=0, atol=1e-10)


def test_the_peft_init_is_pefts_model_as_it_comes():
    base = tiny_model()
    ours = copy.deepcopy(base)
    vera.VeRA(rank=12, init="peft", projection_seed=9).adapt(ours)
    theirs = peft.get_peft_model(base, peft.VeraConfig(r=12, projection_prng_key=9, target_modules=["query", "value"]))
    layer = next(m for m in theirs.modules() if isinstance(m, peft.tuners.vera.Linear))
    first = next(changes(ours))
    assert torch.equal(first.A, layer.vera_A["default"])
    assert torch.equal(first.B, layer.vera_B["default"])


def test_parity_holds_where_shapes_differ():
    """A 32 -> 64 and a 64 -> 16 layer share one 64-wide pair; both sides draw it themselves."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.value = nn.Linear(32, 64), nn.Linear(64, 16)

        def forward(self, x):
            return self.value(torch.tanh(self.query(x)))

    torch.manual_seed(0)
    base = Two().double()
    ours = copy.deepcopy(base)
    vera.VeRA(rank=12, init="peft", projection_seed=4).adapt(ours)
    config = peft.VeraConfig(r=12, projection_prng_key=4, target_modules=["query", "value"])
    theirs = peft.get_peft_model(copy.deepcopy(base), config, autocast_adapter_dtype=False).base_model.model.double()
    shake(ours)
    for our, their in zip(changes(ours), (theirs.query, theirs.value), strict=True):
        their.vera_lambda_b["default"].data.copy_(our.b)
        their.vera_lambda_d["default"].data.copy_(our.d)
    x = torch.randn(5, 32, dtype=torch.float64)
    outputs = [model(x) for model in (ours, theirs)]
    assert torch.allclose(*outputs, rtol=0, atol=1e-10)
    for output in outputs:
        output.square().sum().backward()
    for our, their in zip(changes(ours), (theirs.query, theirs.value), strict=True):
        assert torch.allclose(our.b.grad, their.vera_lambda_b["default"].grad, rtol=0, atol=1e-10)
        assert torch.allclose(our.d.grad, their.vera_lambda_d["default"].grad, rtol=0, atol=1e-10)


# --- VeRA as the paper defines it


def test_vera_is_its_formula():
    """h = W0 x + b * (B (d * (A x))), written out."""
    model = adapted("vera", dtype=torch.float64)
    layer = next(adapted_layers(model))
    c = layer.changes["whole"]
    x = torch.randn(3, 32, dtype=torch.float64)
    expected = [layer.base.weight @ row + layer.base.bias + c.b * (c.B @ (c.d * (c.A @ row))) for row in x]
    assert torch.allclose(layer(x), torch.stack(expected), rtol=0, atol=1e-12)


def test_vera_starts_as_the_base_model_with_gradient_in_b_only():
    model = tiny_model().double()
    before = model(ids()).logits
    METHODS["vera"].adapt(model)
    after = model(ids()).logits
    assert torch.equal(before, after)
    after.square().sum().backward()
    for layer in changes(model):
        assert torch.equal(layer.d, torch.full_like(layer.d, 0.1))
        assert not layer.b.any()
        assert not layer.d.grad.any()
        assert layer.b.grad.any()


def test_one_storage_for_a_and_b_and_vectors_of_their_own():
    model = adapted("vera")
    layers = list(changes(model))
    assert len({layer.A.data_ptr() for layer in layers}) == len({layer.B.data_ptr() for layer in layers}) == 1
    assert len({layer.b.data_ptr() for layer in layers} | {layer.d.data_ptr() for layer in layers}) == 2 * len(layers)
    model.double()  # a cast reaches the one pair, and the layers still share it
    assert len({layer.A.data_ptr() for layer in layers}) == 1
    assert layers[0].A.dtype == torch.float64
    copied = list(changes(copy.deepcopy(model)))
    assert len({layer.A.data_ptr() for layer in copied}) == 1


def test_a_narrower_matrix_uses_the_leading_slice():
    """Sites of different shapes: the pair is as large as the widest, as peft does it too."""
    model = tiny_model()
    vera.VeRA(rank=12, sites=("query", "dense")).adapt(model)
    (pair,) = model.vera_projections
    assert (pair.A.shape, pair.B.shape) == ((12, 64), (64, 12))
    for layer in changes(model):
        assert layer.A.shape == (12, layer.inputs)
        assert layer.B.shape == (layer.outputs, 12)
        assert torch.equal(layer.A, pair.A[:, : layer.inputs])
    assert "bert.pooler.dense" not in {n for n, m in model.named_modules() if m in set(adapted_layers(model))}


def test_the_projection_seed_is_apart_from_the_training_seed():
    pairs = []
    for training_seed, projection_seed in ((0, 0), (1, 0), (0, 1)):
        model = tiny_model()
        torch.manual_seed(training_seed)
        vera.VeRA(rank=8, projection_seed=projection_seed).adapt(model)
        pairs.append(model.vera_projections[0].A)
    assert torch.equal(pairs[0], pairs[1])
    assert not torch.equal(pairs[0], pairs[2])


# --- any method


@pytest.mark.parametrize("kind", ["bert", "roberta"])
@pytest.mark.parametrize("name", METHODS)
def test_what_trains_is_counted_by_the_formula_and_the_rest_is_frozen(name, kind):
    model = tiny_model(kind)
    METHODS[name].adapt(model)
    groups = METHODS[name].parameter_groups(model)
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    assert set(groups["adapter"]) | set(groups["head"]) == trainable
    assert not set(groups["adapter"]) & set(groups["head"])
    assert sum(p.numel() for p in groups["adapter"].values()) == METHODS[name].count(model)
    head = {"bert": {"bert.pooler", "classifier"}, "roberta": {"classifier"}}[kind]
    assert {n.rpartition(".")[0].removesuffix(".dense").removesuffix(".out_proj") for n in groups["head"]} == head


@pytest.mark.parametrize("architecture", ["distilbert", "electra", "deberta-v2", "albert", "mpnet"])
def test_other_encoders_have_the_sites_too(architecture):
    """Query and value by the names that these models use, a head that trains, and gradients that arrive."""
    from transformers import AutoConfig, AutoModelForSequenceClassification

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 40}
    if architecture == "distilbert":
        sizes = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 40}
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(architecture, **sizes))
    method = vera.VeRA(rank=12)
    method.adapt(model)
    layers = list(changes(model))
    assert len(layers) == (2 if architecture == "albert" else 4)  # ALBERT's layers are one
    assert method.parameter_groups(model)["head"]
    model(ids(), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    assert all(layer.b.grad.any() for layer in layers)


def test_counts_of_a_small_model():
    """By hand: 2 layers x (query, value) of 32 x 32."""
    counts = {}
    for name, method in METHODS.items():
        model = tiny_model()
        method.adapt(model)
        counts[name] = method.count(model)
    assert counts["vera"] == 4 * (32 + 12)
    assert counts["lora"] == 4 * 4 * (32 + 32)
    assert counts["head"] == 0
    # Biases: embedding LayerNorm 32; a layer: q, k, v, output, its LayerNorm, feed-forward 64 and 32, its LayerNorm.
    assert counts["bitfit"] == 32 + 2 * (4 * 32 + 32 + 64 + 32 + 32)


@pytest.mark.parametrize("name", METHODS)
def test_a_step_changes_what_trains_and_nothing_else(name):
    model = adapted(name)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()(ids(), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    optimizer.step()
    for parameter_name, parameter in model.named_parameters():
        changed = not torch.equal(before[parameter_name], parameter)
        # Gradients of an unused position's embedding row are zero, but AdamW's decay still moves the matrix.
        assert changed == parameter.requires_grad, parameter_name


@pytest.mark.parametrize("name", LOW_RANK)
def test_merge_equals_unmerged_and_unmerge_restores_bit_for_bit(name):
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5), (torch.bfloat16, 0.1)):
        model = adapted(name, dtype=dtype)
        weights = {n: p.detach().clone() for n, p in model.named_parameters()}
        with torch.no_grad():
            before = model(ids()).logits
            METHODS[name].merge(model)
            METHODS[name].merge(model)  # twice is once
            assert torch.allclose(model(ids()).logits, before, rtol=0, atol=tolerance)
            changed = [n for n, p in model.named_parameters() if not torch.equal(p, weights[n])]
            assert len(changed) == 4
            METHODS[name].unmerge(model)
        assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("name", LOW_RANK)
def test_disabled_is_the_base_model(name):
    base = tiny_model()
    model = copy.deepcopy(base)
    METHODS[name].adapt(model)
    shake(model)
    model.load_state_dict({n: p for n, p in base.state_dict().items() if "classifier" in n or "pooler" in n}, strict=False)
    assert not torch.equal(model(ids()).logits, base(ids()).logits)
    vera.disable(model)
    assert torch.equal(model(ids()).logits, base(ids()).logits)
    vera.disable(model, False)
    assert not torch.equal(model(ids()).logits, base(ids()).logits)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", LOW_RANK)
def test_dtype_in_is_dtype_out(name, dtype):
    model = tiny_model().to(dtype)
    METHODS[name].adapt(model)
    layer = next(adapted_layers(model))
    assert layer(torch.randn(2, 32).to(dtype)).dtype == dtype
    # The vectors stay in float32 or better over half-precision weights.
    assert {p.dtype for p in METHODS[name].adapter_parameters(model).values()} == {torch.promote_types(dtype, torch.float32)}


@pytest.mark.parametrize("name", METHODS)
def test_settings_give_the_method_back(name):
    assert vera.make_method(**METHODS[name].settings()) == METHODS[name]


@pytest.mark.parametrize("name", LOW_RANK)
def test_adapting_twice_is_refused(name):
    model = adapted(name)
    with pytest.raises(vera.AdapterError, match="already"):
        METHODS[name].adapt(model)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "verra"}, "no method of kind 'verra'"),
        ({"kind": "vera", "rank": 0}, "rank must be a whole number of at least 1, got 0"),
        ({"kind": "vera", "rank": 2.5}, "rank must be a whole number"),
        ({"kind": "lora", "rank": 4, "dropout": 1.0}, "dropout must be in"),
        ({"kind": "lora", "rank": 4, "ranks": 3}, "no setting 'ranks'"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, words):
    with pytest.raises(vera.AdapterError, match=words):
        vera.make_method(**settings)


def test_a_wrong_site_lists_the_models_own():
    with pytest.raises(vera.AdapterError, match=r"'qeury'.*dense, key, query, value"):
        vera.VeRA(rank=4, sites=("qeury",)).adapt(tiny_model())
    with pytest.raises(vera.AdapterError, match="names no matrix"):
        vera.VeRA(rank=4, sites=()).adapt(tiny_model())


def test_dropout_acts_on_the_adapters_input_in_training_only():
    model = tiny_model()
    vera.VeRA(rank=12, dropout=0.5).adapt(model)
    shake(model)
    layer, x = next(adapted_layers(model)), torch.randn(64, 32)
    assert torch.equal(layer.eval()(x), layer(x))
    assert not torch.equal(layer.train()(x), layer(x))
