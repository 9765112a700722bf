"""method=peft: any method of that library under this one's contract, AdaLoRA as in
peft's own training loop."""

import dataclasses
import functools
import re

import peft
import pytest
import torch
from safetensors.torch import load_file
from support import (
    FUSED,
    SMALL,
    adapt_and_shake,
    classes,
    default_method,
    modules,
    refused_unchanged,
)
from tiers import slow_except
from tiny import ARCHITECTURES, answer, tiny, tiny_model
from torch import nn

import vera
from vera.methods import peft_install
from vera.methods.adapted import plain_names

pytestmark = pytest.mark.contract

#: Those that train at their defaults, or at SMALL: the rest is refused (docs/methods.md
#: and its test).
REFUSED = {
    "AdaptionPromptConfig",
    "PolyConfig",
    "ShadowConfig",
    "TrainableTokensConfig",
    "XLoraConfig",
}
CLASSES = [
    name
    for name in classes()
    if name not in REFUSED
    and not issubclass(getattr(peft, name), peft.PromptLearningConfig)
]


def method_of(name: str, **config) -> vera.Peft:
    return vera.Peft(name, {**SMALL.get(name, {}), **config})


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_feed_forwards_second_matrix_and_the_norms_are_found_everywhere(
    architecture,
):
    model, fused = tiny(architecture), FUSED.get(architecture)
    if fused:
        with refused_unchanged(rf"name it, sites=\[{fused},feed_forward_out\]"):
            vera.Peft("IA3Config").adapt(model)
    method = default_method("IA3Config")(architecture)
    method.adapt(model)
    assert len(method.adapter_parameters(model)) == 2 * (2 if fused else 3)
    vera.unload(model)
    norms = vera.Peft("LNTuningConfig")
    norms.adapt(model)
    # Two a block, and the last one or the embeddings'; timm's blocks have identities
    # called norm, too
    assert (
        len([n for n in norms.adapter_parameters(model) if n.endswith("weight")]) == 5
    )


@pytest.mark.parametrize(
    "name", ["IA3Config", "LNTuningConfig", "TrainableTokensConfig"]
)
def test_where_a_matrix_is_not_known_the_row_is_told_to_name_it(name):
    with refused_unchanged(r"target_modules in config$"):
        vera.Peft(name).adapt(nn.Sequential(nn.Linear(8, 8)))
    where = {"target_modules": ["x"]} | (
        {"feedforward_modules": []} if name == "IA3Config" else {}
    )
    with refused_unchanged("'x'"):
        vera.Peft(name, where).adapt(nn.Sequential(nn.ReLU()))  # without a parameter


def test_a_merge_that_fails_half_way_is_taken_back():
    """BEFT merges into biases: one that is missing shows once the layers before it have
    merged."""
    model, method = tiny_model(), vera.Peft("BeftConfig")
    model.bert.encoder.layer[1].attention.self.value.bias = None
    adapt_and_shake(model, method)
    expected = answer(model)
    with refused_unchanged(
        "BeftConfig cannot be merged: Base layer has no bias", model
    ):
        method.merge(model)
    assert torch.equal(answer(model), expected)
    vera.unload(model)


# --- what is drawn again


def test_what_peft_draws_otherwise_is_refused_by_its_version(tmp_path, monkeypatch):
    model, method = tiny_model(), vera.Peft("VeraConfig")
    adapt_and_shake(model, method)
    with monkeypatch.context() as older:
        older.setattr(peft, "__version__", "0.0.1")
        vera.save(model, method, tmp_path / "older")
    vera.save(model, method, tmp_path / "adapter")
    stored = load_file(tmp_path / "adapter").values()
    # b and d, and neither A nor B
    assert sum(tensor.nbytes for tensor in stored) == 4 * method.count(model)
    fresh = tiny_model()
    real = peft.tuners.vera.model._kaiming_init
    for name, named in (
        ("older", f"peft 0.0.1, here {peft.__version__}"),
        ("adapter", "fingerprint"),
    ):
        if name == "adapter":
            monkeypatch.setattr(
                peft.tuners.vera.model,
                "_kaiming_init",
                lambda *a, **k: real(*a, **k) * 2,
            )
        with refused_unchanged(re.escape(named), fresh):
            vera.load(fresh, tmp_path / name)
    vera.Peft("LoraConfig").adapt(fresh)


def test_what_was_drawn_and_then_changed_is_stored(tmp_path):
    model, method = tiny_model(), vera.Peft("VeraConfig")
    adapt_and_shake(model, method, 0.05)
    drawn = dict(vera.frozen_extra(model))
    with torch.no_grad():
        next(t for n, t in drawn.items() if "vera_A" in n).mul_(2)
    vera.save(model, method, tmp_path / "adapter")
    vera.save_head(model, tmp_path / "head")
    assert sum("vera_A" in name for name in load_file(tmp_path / "adapter")) == 1
    again = tiny_model()
    for _ in range(2):  # the second time onto a model that carries it
        vera.load(again, tmp_path / "adapter")
        vera.load_head(again, tmp_path / "head")
        assert torch.equal(answer(again), answer(model))


def test_a_look_at_what_is_drawn_moves_no_random_number():
    """Whether the second installation was needed or had been done before."""
    starts = []
    peft_install._REPRODUCED.clear()
    for _ in range(2):
        torch.manual_seed(3)
        model, method = tiny_model(seed=3), vera.Peft("PsoftConfig")
        method.adapt(model)
        starts.append((torch.rand(3), *method.adapter_parameters(model).values()))
    assert all(torch.equal(a, b) for a, b in zip(*starts, strict=True))


def nested(depth):
    return functools.reduce(lambda inside, _: [inside], range(depth), 1)


#: Settings of peft's LoRA, and what the refusal names.
OF_LORA = [
    *(
        ({"rank": 4}, "'rank'"),
        ({"r": 0}, "BertForSequenceClassification"),
        ({"bias": "all"}, "bias=all"),
    ),
    ({"r": {4}}, "config"),
    ({"target_modules": "("}, "target_modules"),
    ({"lora_alpha": 10**400}, "lora_alpha"),
    *(
        ({"task_type": "SEQ_CLS"}, "task_type"),
        ({"modules_to_save": ["classifier"]}, "modules_to_save"),
    ),
    ({"layer_replication": [[0, 2]]}, "layer_replication"),
    ({"trainable_token_indices": [1, 2]}, "trainable_token_indices"),
    ({"corda_config": {"cache_file": "x"}}, "corda"),
    *(
        ({"init_lora_weights": init}, f"{init} rewrites base weights")
        for init in ("pissa", "OLoRA")
    ),
    *(
        ({"target_modules": nested(depth)}, "config|target_modules")
        for depth in (20, 600, 950, 2000)
    ),
]


@pytest.mark.parametrize(
    ("name", "config", "named"),
    [
        *(("LoraConfig", *of) for of in OF_LORA),
        *(
            (name, {}, r"Did you mean LoraConfig\?")
            for name in ("LoraKonfig", "loraconfig")
        ),
        *(
            ("get_peft_model", {}, "'get_peft_model'"),
            ("PromptTuningConfig", {}, "the input, not the model"),
        ),
        ("VBLoRAConfig", {}, "vector_length"),
        ("XLoraConfig", {"adapters": {"a": "owner/name"}}, "forward"),
        *(
            ("AdaLoraConfig", {"total_step": 3}, "total_step"),
            ("AdamssConfig", {"use_asa": True}, "use_asa"),
        ),
    ],
)
def test_what_cannot_be_is_one_line(name, config, named):
    model = tiny_model()
    with refused_unchanged(named, model):
        vera.make_method("peft", config_class=name, config=config).adapt(model)


# --- base weights


def inits(name):
    """Every initial value that a class of peft lists, in two ways to write it."""
    for field in dataclasses.fields(getattr(peft, name)):
        if "init" not in field.name:
            continue
        if "bool" in str(field.type):
            yield from ((field.name, value) for value in (True, False))
        for word in re.findall(r"'([a-z_]+)", str(field.type)):
            word = f"{word}2" if word.endswith("niter_") else word
            yield from ((field.name, way) for way in (word, word.upper()))


@pytest.mark.parametrize("name", slow_except(CLASSES, *CLASSES[::9], "LoraConfig"))
def test_no_class_and_no_initial_value_changes_a_base_weight(name):
    for field, value in [(None, None), *inits(name)]:
        model = tiny_model()
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        fingerprint, refused = vera.base_fingerprint(model), False
        try:
            method_of(name, **({field: value} if field else {})).adapt(model)
        except vera.AdapterError:
            refused = True
        plain = plain_names(model)
        after = {plain[n]: p for n, p in model.named_parameters()}
        assert all(torch.equal(p, after[n]) for n, p in before.items()), (field, value)
        del model.__dict__["_base_fingerprint"]
        base = vera.base_fingerprint(model)
        assert base == fingerprint, (field, value)
        assert not refused or "_adaptation" not in model.__dict__
        if field is None:
            assert not refused
            vera.unload(model)
            assert modules(model) == modules(tiny_model())


def test_base_weights_that_were_changed_after_adapting_do_not_leave_in_silence():
    model = tiny_model()
    vera.Peft("LoraConfig", {"target_modules": ["intermediate.dense"]}).adapt(model)
    layers = {n for n, m in model.named_modules() if "base_layer" in m._modules}
    assert layers == {f"bert.encoder.layer.{i}.intermediate.dense" for i in (0, 1)}
    with torch.no_grad():
        model.get_submodule(min(layers)).base_layer.weight.add_(0.1)
    with refused_unchanged("has changed the base weights"):
        vera.unload(model)
