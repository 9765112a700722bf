"""train.lr_by and decay_by: rates and weight decays of single parameters by patterns of their names."""

import pytest
import torch
from running import do, refused
from safetensors.torch import load_file
from tiny import tiny_model

import vera
from runs import methods
from runs.config import expand
from runs.identity import run_id
from runs.methods import patterns_of
from runs.training.checkpoint import optimizer_groups

pytestmark = pytest.mark.parity

TRAIN = {"lr": 1e-3, "lr_head": 2e-3, "weight_decay": 0.1, "decay_all": False}


def lora(words, *more):
    plain = [word for word in words if not word.startswith("method.")]
    return [*plain, "method=lora", "method.rank=4", *more]


def test_each_parameter_has_one_rate_and_the_groups_are_named_by_it():
    model = tiny_model()
    vera.LoRA(rank=2).adapt(model)
    rates = {"B": 1e-2, "query*.A": 5e-3, "classifier.*": 1e-4}
    groups = optimizer_groups(vera.LoRA(rank=2), model, {**TRAIN, "lr_by": rates})
    assert {group["name"]: (group["lr"], group["weight_decay"]) for group in groups} == {
        "adapter": (1e-3, 0.1),
        "adapter B": (1e-2, 0.1),
        "adapter query*.A": (5e-3, 0.1),
        "head": (2e-3, 0.1),
        "head (no decay)": (2e-3, 0.0),
        "head classifier.*": (1e-4, 0.1),
        "head classifier.* (no decay)": (1e-4, 0.0),
    }
    members = [id(p) for group in groups for p in group["params"]]
    trained = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    assert sorted(members) == sorted(trained)
    of = {group["name"]: {trained[id(p)] for p in group["params"]} for group in groups}
    assert len(of["adapter B"]) == 4
    assert all(name.endswith(".B") for name in of["adapter B"])
    assert all("query" in name and name.endswith(".A") for name in of["adapter query*.A"])
    assert of["head classifier.*"] == {"classifier.weight"}
    for none in ({}, None):
        plain = optimizer_groups(vera.LoRA(rank=2), model, {**TRAIN, "lr_by": none})
        assert [group["name"] for group in plain] == ["adapter", "head", "head (no decay)"]


def test_biases_and_layernorms_do_not_decay():
    model = tiny_model()
    vera.Full().adapt(model)
    spared = {id(p) for p in model.parameters() if p.dim() == 1}
    for group in optimizer_groups(vera.Full(), model, TRAIN):
        assert {id(p) in spared for p in group["params"]} == {group["weight_decay"] == 0.0}, group["name"]


def test_a_decay_by_pattern_stands_before_that_of_the_rest():
    model = tiny_model()
    vera.LoRA(rank=2).adapt(model)
    own = {"A": 0.0, "query*.B": 0.5, "value*.B": 0.3, "bias": 0.2}
    groups = optimizer_groups(vera.LoRA(rank=2), model, {**TRAIN, "lr_by": {"B": 1e-2}, "decay_by": own})
    assert {g["name"]: (g["lr"], g["weight_decay"], len(g["params"])) for g in groups} == {
        "adapter (no decay)": (1e-3, 0.0, 4),
        "adapter B (decay 0.5)": (1e-2, 0.5, 2),
        "adapter B (decay 0.3)": (1e-2, 0.3, 2),
        "head": (2e-3, 0.1, 2),
        "head (decay 0.2)": (2e-3, 0.2, 2),
    }
    both = {"decay_all": True, "decay_by": {"bias": 0.0}}
    groups = optimizer_groups(vera.LoRA(rank=2), model, {**TRAIN, **both})
    assert [group["name"] for group in groups] == ["adapter", "head", "head (no decay)"]


NAMES = [f"layer.{i}.query.{part}" for i in range(12) for part in "AB"]


@pytest.mark.parametrize(
    ("names", "patterns", "told"),
    [
        (
            NAMES,
            "A C",
            "no trained parameter's name ends with 'C'. There are: layer.*.query.A, layer.*.query.B",
        ),
        (NAMES, "uery.B", "'uery.B'"),  # a part of a name is no end of one
        (NAMES, "B query.*", "'B' and 'query.*' both name layer.0.query.B"),
        ([f"{chr(97 + i)}.weight" for i in range(20)], "bias", "l.weight and 8 more"),
        ([], "bias", "There are: none"),
    ],
)
def test_an_unknown_pattern_is_refused_with_the_real_names(names, patterns, told):
    with refused("train.lr_by: ", told):
        patterns_of(names, dict.fromkeys(patterns.split(), 1.0))


def test_a_pattern_of_no_parameter_is_refused_before_the_run(words):
    for key in ("train.lr_by", "train.decay_by"):
        assert methods.refusal(expand(lora(words, f"{key}={{B:1e-2}}"))[0]) is None
        told = methods.refusal(expand(lora(words, "train.lr_by={B:2x}", f"{key}={{Bx:1e-2}}"))[0])
        assert f"{key}: no trained parameter's name ends with 'Bx'. There are: bert.encoder.layer.*" in told


@pytest.mark.parametrize("key", ["train.lr_by", "train.decay_by"])
def test_empty_it_is_no_part_of_the_id(key, words):
    def identity(*more):
        (run,) = expand(lora(words, *more))
        return run_id(run)

    assert identity() == identity(f"{key}={{}}") == identity(f"{key}=null")
    given = identity(f"{key}={{B:1}}")
    assert given == identity(f"{key}={{B:1.0}}") == identity(f"+{key}.B=1")
    assert len({identity(), given, identity(f"{key}={{B:2}}"), identity(f"{key}={{A:1}}")}) == 4
    betas = {identity(f"train.adam_beta2={value}") for value in (0.999, 0.99)}
    assert identity() in betas
    assert len(betas) == 2


def test_a_run_trains_at_these_rates_and_its_record_says_so(words, tmp_path):
    plain = [word for word in words if not word.startswith("output=")]
    record = do(lora(plain, "train.lr_by={B:0,A:3e-2}", f"output={tmp_path}"))
    rates = {group["name"]: (group["lr"], group["parameters"]) for group in record["groups"]}
    assert rates["adapter B"] == (0.0, 4 * 4 * 32)
    assert rates["adapter A"] == (3e-2, 4 * 4 * 32)
    assert "adapter" not in rates
    assert record["config"]["train"]["lr_by"] == {"B": 0.0, "A": 3e-2}
    tensors = load_file(tmp_path / "runs" / record["id"] / "adapter.safetensors")
    of_b = [value for name, value in tensors.items() if name.endswith(".B")]
    assert len(of_b) == 4
    assert not any(torch.any(value) for value in of_b)  # at a rate of zero B stays where it starts
