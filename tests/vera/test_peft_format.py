"""To peft's format and back: an exported adapter answers the same under peft.PeftModel,
alone and beside others, one trained with peft imports, and one whose configuration was
edited is refused."""

import dataclasses
import json
import shutil
from dataclasses import replace

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import adapt_and_shake, refused_unchanged
from tiers import pair_up, slow_except
from tiny import ARCHITECTURES, answer, shake, tiny, tiny_model

import vera
from vera.peft_format.importing import DESCRIPTIVE_KEYS
from vera.peft_format.layout import PROJECTION_KEY, layout_of

pytestmark = pytest.mark.parity

WEIGHTS = "adapter_model.safetensors"
METHODS = {
    "lora": vera.LoRA(rank=4, alpha=6.0),
    "lora on all linear layers": vera.LoRA(rank=4, sites=("all-linear",)),
    "lora on value": vera.LoRA(rank=4, sites=("value",)),
    "lora_fa": vera.LoRA(rank=4, freeze_a=True),
    # VeRA on each of its paths, which are no part of what an adapter is
    "vera": vera.VeRA(rank=12, projection_seed=3, path="hybrid", weights="keep"),
    "vera on all linear layers": vera.VeRA(
        rank=12, sites=("all-linear",), path="materialised"
    ),
    "vera on value": vera.VeRA(rank=12, sites=("value",)),
    "vera_only_b": vera.VeRA(rank=12, vectors=("b",)),
    "vera_only_d": vera.VeRA(rank=12, vectors=("d",), d_init=0.0),
    "vera, peft's draw": vera.VeRA(
        12, init="peft", projection_seed=8, path="hybrid", weights="recompute"
    ),
    "vera, kaiming_normal": vera.VeRA(
        12, init="kaiming_normal", path="materialised", weights="recompute"
    ),
}


@pytest.mark.parametrize(("name", "architecture"), pair_up(METHODS, ARCHITECTURES))
def test_exported_it_is_the_same_under_peft_and_comes_back_whole(
    name, architecture, tmp_path
):
    """Outputs, gradients and merged weights, in float64."""
    method, base = METHODS[name], tiny(architecture).double()
    model = adapt_and_shake(tiny(architecture).double(), method)
    vera.export_peft(model, tmp_path)
    of_peft = {"autocast_adapter_dtype": False, "is_trainable": True}
    theirs = (
        peft.PeftModel.from_pretrained(tiny(architecture).double(), tmp_path, **of_peft)
        .double()
        .eval()
    )
    outputs = [answer(theirs.base_model.model), answer(model)]
    assert torch.allclose(*outputs, rtol=0, atol=1e-10)
    assert not torch.allclose(answer(base), outputs[1], rtol=0, atol=1e-3)

    for output in outputs:
        output.square().sum().backward()
    of_theirs, compared = dict(theirs.named_parameters()), 0
    for key, part in layout_of(model, method).tensors.items():
        their = of_theirs.get(
            key.replace(".weight", ".default.weight"), of_theirs.get(f"{key}.default")
        )
        for piece in part.pieces:
            mine = piece.value
            if isinstance(mine, torch.nn.Parameter) and mine.requires_grad:
                assert mine.grad.abs().max() > 0
                their_gradient = their.grad[piece.place]
                assert torch.allclose(mine.grad, their_gradient, rtol=1e-10, atol=1e-10)
                compared += 1
    assert compared == len(method.adapter_parameters(model))
    method.merge(model)
    theirs.merge_adapter()
    for path, layer in model.named_modules():
        if hasattr(layer, "changes"):
            their = theirs.get_submodule(f"base_model.model.{path}").get_base_layer()
            assert torch.allclose(layer.base.weight, their.weight, rtol=0, atol=1e-10)
    method.unmerge(model)

    assert vera.import_peft(base, tmp_path) == method
    ours, back = method.saved(model), method.saved(base)
    assert all(torch.equal(ours[n], back[n]) for n in ours)
    assert torch.allclose(answer(base), answer(model), rtol=0, atol=1e-12)


@pytest.mark.parametrize("architecture", ["GPT-2", "Llama"])
def test_a_b_that_layers_share_is_exported_to_each_of_them(architecture, tmp_path):
    method, base = vera.VeRA(rank=12, shared_b=True), tiny(architecture).double()
    model = adapt_and_shake(tiny(architecture).double(), method)
    vera.export_peft(model, tmp_path)
    of_peft = {"autocast_adapter_dtype": False}
    theirs = peft.PeftModel.from_pretrained(
        tiny(architecture).double(), tmp_path, **of_peft
    )
    theirs = theirs.double().eval().base_model.model
    assert torch.allclose(answer(theirs), answer(model), rtol=0, atol=1e-10)
    assert vera.import_peft(base, tmp_path) == method
    assert torch.allclose(answer(base), answer(model), rtol=0, atol=1e-12)
    assert method.count(base) == len(
        torch.cat([p.flatten() for p in method.adapter_parameters(base).values()])
    )


def test_the_base_model_is_named_and_no_path_of_this_machine(tmp_path):
    model = adapt_and_shake(tiny("BERT").double(), METHODS["vera"])
    for loaded, given, expected in (
        ("/somewhere/models/my-bert", {}, ("my-bert", None)),
        (str(tmp_path), {}, (tmp_path.name, None)),
        ("owner/name", {}, ("owner/name", None)),
        ("", {}, (None, None)),
        (
            "/somewhere/snapshots/0123",
            {"base": "owner/name", "revision": "0123"},
            ("owner/name", "0123"),
        ),
    ):
        model.config._name_or_path = loaded
        vera.export_peft(model, tmp_path / "out", **given)
        config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
        assert (config["base_model_name_or_path"], config["revision"]) == expected


QV = {"target_modules": ["query", "value"]}
CONFIGS = {
    "vera": peft.VeraConfig(r=12, **QV, projection_prng_key=5, vera_dropout=0.1),
    "vera without its projections": peft.VeraConfig(
        r=12, **QV, projection_prng_key=5, save_projection=False
    ),
    "vera on other sites": peft.VeraConfig(
        r=12, target_modules=["query", "output.dense"]
    ),
    "lora": peft.LoraConfig(r=4, lora_alpha=6, **QV),
    "rank-stabilised lora": peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, **QV),
    "lora with its head": peft.LoraConfig(r=4, task_type="SEQ_CLS", **QV),
    "lora by a pattern": peft.LoraConfig(
        r=4, target_modules=r".*\.layer\.1\..*\.(query|value)"
    ),
}


FUSED = {"GPT-2": "c_attn", "ViT of timm": "qkv"}  # which peft adapts whole


@pytest.mark.parametrize(
    ("name", "architecture", "dtype"),
    slow_except(
        [
            *((name, "BERT", torch.float32) for name in CONFIGS),
            ("vera", "BERT", torch.bfloat16),  # peft rounds A and B with the base
            *(("vera", architecture, torch.float32) for architecture in FUSED),
        ],
        ("vera", "BERT", torch.bfloat16),
        *(
            ("vera", "GPT-2", torch.float32),
            ("lora with its head", "BERT", torch.float32),
        ),
        ("lora by a pattern", "BERT", torch.float32),
    ),
)
def test_one_trained_with_peft_imports(name, architecture, dtype, tmp_path):
    site, base = FUSED.get(architecture), (lambda: tiny(architecture).to(dtype))
    theirs = peft.get_peft_model(
        base(), peft.VeraConfig(r=12, target_modules=[site]) if site else CONFIGS[name]
    )
    shake(theirs)
    theirs.eval().save_pretrained(tmp_path)
    ours, again = base(), base()
    method = vera.import_peft(ours, tmp_path)
    assert isinstance(method, vera.VeRA if "vera" in name else vera.LoRA)
    assert method.sites == (site,) or not site
    near = 1e-5 if dtype is torch.float32 else 0.1
    assert torch.allclose(
        answer(ours), answer(theirs.base_model.model), rtol=0, atol=near
    )
    assert not torch.allclose(answer(ours), answer(again), rtol=0, atol=1e-4)
    # from here on it is one of ours
    vera.save(ours, method, tmp_path / "adapter.safetensors")
    assert vera.load(again, tmp_path / "adapter.safetensors") == method


# --- beside other adapters on one PeftModel


def export_of(folder, method, architecture="BERT"):
    """The answers of an adapter that is exported to a folder."""
    model = adapt_and_shake(tiny(architecture).double(), method)
    vera.export_peft(model, folder)
    return answer(model)


def answer_of(wrapper, name):
    wrapper.set_adapter(name)
    with torch.no_grad():
        return answer(wrapper.eval().double().base_model.model)


def key_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())[PROJECTION_KEY]


@pytest.mark.parametrize(
    ("method", "architecture"),
    [
        (vera.VeRA(rank=12, projection_seed=3), "BERT"),
        (vera.VeRA(rank=12), "GPT-2"),
        (vera.VeRA(rank=12, init="peft", projection_seed=8), "BERT"),
    ],
)
def test_adapters_of_one_pair_load_together(method, architecture, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    answers = [export_of(folder, method, architecture) for folder in (first, second)]
    answers[1] = export_of(second, replace(method, dropout=0.3), architecture)
    assert key_of(first) == key_of(second)

    wrapper = peft.PeftModel.from_pretrained(
        tiny(architecture).double(), first, "first", autocast_adapter_dtype=False
    )
    wrapper.load_adapter(second, "second", autocast_adapter_dtype=False)
    for name, expected in zip(("first", "second"), answers, strict=True):
        assert torch.allclose(answer_of(wrapper, name), expected, rtol=0, atol=1e-10)


OTHER_PAIRS = {
    "another seed": vera.VeRA(rank=12, projection_seed=4),
    "another distribution": vera.VeRA(rank=12, init="kaiming_normal"),
    "peft's draw of the same seed": vera.VeRA(rank=12, init="peft"),
    "another rank": vera.VeRA(rank=6),
    "other sites": vera.VeRA(rank=12, sites=("all-linear",)),
}


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
@pytest.mark.parametrize("name", [*OTHER_PAIRS, "an adapter that peft made"])
def test_peft_refuses_adapters_of_another_pair(name, order, tmp_path):
    """It would replace the first adapter's pair in silence if the keys were equal, as
    they were when a key was our seed."""
    folders = [tmp_path / "ours", tmp_path / "other"]
    answers = [export_of(folders[0], vera.VeRA(rank=12))]
    if name in OTHER_PAIRS:
        answers.append(export_of(folders[1], OTHER_PAIRS[name]))
    else:
        config = peft.VeraConfig(r=12, **QV, projection_prng_key=0)
        theirs = peft.get_peft_model(tiny("BERT").double(), config)
        shake(theirs)
        theirs.save_pretrained(folders[1])
        answers.append(answer_of(theirs, "default"))
    first, second = order
    wrapper = peft.PeftModel.from_pretrained(
        tiny("BERT").double(), folders[first], "first", autocast_adapter_dtype=False
    )
    with pytest.raises(ValueError, match="key must be the same"):
        wrapper.load_adapter(folders[second], "second")
    assert torch.allclose(
        answer_of(wrapper, "first"), answers[first], rtol=0, atol=1e-10
    )


def test_the_pair_that_peft_draws_itself_keeps_its_key(tmp_path):
    """And loads beside an adapter that peft made with this key."""
    method = vera.VeRA(rank=12, init="peft", projection_seed=8)
    expected = export_of(tmp_path / "ours", method)
    assert key_of(tmp_path / "ours") == 8

    config = peft.VeraConfig(r=12, **QV, projection_prng_key=8)
    wrapper = peft.get_peft_model(
        tiny("BERT").double(), config, autocast_adapter_dtype=False
    )
    wrapper.load_adapter(tmp_path / "ours", "ours", autocast_adapter_dtype=False)
    assert torch.allclose(answer_of(wrapper, "ours"), expected, rtol=0, atol=1e-10)


def test_of_a_fused_layer_the_pair_is_not_the_one_that_peft_draws(tmp_path):
    export_of(tmp_path, vera.VeRA(rank=12, init="peft", projection_seed=8), "GPT-2")
    assert key_of(tmp_path) > 2**32


def test_a_folder_with_our_seed_as_its_key_still_imports(tmp_path):
    """As exports were before the key named the pair."""
    expected = export_of(tmp_path, METHODS["vera"])
    edit(tmp_path, "edited", {PROJECTION_KEY: METHODS["vera"].projection_seed}, "vera")
    base = tiny("BERT").double()
    assert vera.import_peft(base, tmp_path) == METHODS["vera"]
    assert torch.allclose(answer(base), expected, rtol=0, atol=1e-12)


def test_a_pair_that_our_seed_does_not_draw_is_refused(tmp_path):
    """Also where the key was changed with it."""
    export_of(tmp_path, METHODS["vera"])
    edit(tmp_path, "tensors", lambda t: add_to(t, "vera_A", 0.1), "vera")
    edit(tmp_path, "edited", {PROJECTION_KEY: METHODS["vera"].projection_seed}, "vera")
    refuses(tmp_path, "A differs")


@pytest.mark.parametrize(
    "method",
    [
        vera.VeRA(rank=12, projection_seed=999),
        vera.VeRA(rank=12, init="kaiming_normal"),
        vera.VeRA(rank=12, init="uniform", projection_seed=5),
    ],
)
def test_a_small_seed_is_found_where_peft_wrote_the_folder_again(method, tmp_path):
    """peft drops this project's metadata, which hold the seed."""
    expected = export_of(tmp_path / "ours", method)
    theirs = peft.PeftModel.from_pretrained(tiny("BERT").double(), tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    base = tiny("BERT").double()
    back = vera.import_peft(base, tmp_path / "theirs")
    assert (back.projection_seed, back.init) == (method.projection_seed, method.init)
    assert torch.allclose(answer(base), expected, rtol=0, atol=1e-5)


def test_a_large_seed_is_not_found_there_and_the_refusal_says_what_was_tried(tmp_path):
    export_of(tmp_path / "ours", vera.VeRA(rank=12, projection_seed=1000))
    theirs = peft.PeftModel.from_pretrained(tiny("BERT").double(), tmp_path / "ours")
    theirs.save_pretrained(tmp_path / "theirs")
    refuses(tmp_path / "theirs", "a seed below 1,000", tiny("BERT").double())


# --- what is refused


def exported(folder, name="vera", architecture="BERT"):
    model = adapt_and_shake(tiny(architecture).double(), METHODS[name])
    vera.export_peft(model, folder)
    return model


def refuses(folder, named, model=None):
    model = model or tiny_model()
    with refused_unchanged(named, model):
        vera.import_peft(model, folder)


def of_peft(config):
    return lambda folder: peft.get_peft_model(tiny_model(), config).save_pretrained(
        folder
    )


def own_peft(*method):
    def make(folder):
        vera.Peft(*method).adapt(model := tiny_model())
        vera.export_peft(model, folder)

    return make


def damaged(how):
    return lambda folder: (exported(folder), how(folder / WEIGHTS))


#: Settings of peft's LoRA that make it another method.
OTHERS = [
    *({"use_dora": True}, {"bias": "all"}, {"init_lora_weights": "pissa"}),
    *({"rank_pattern": {"query": 2}}, {"alpha_pattern": {"query": 2}}),
]
REFUSED = [
    (lambda folder: None, "adapter_config.json"),
    (of_peft(peft.IA3Config(target_modules=["key"], feedforward_modules=[])), "IA3"),
    (
        of_peft(peft.LoraConfig(target_modules=["query", "pooler.dense"])),
        "bert.pooler.dense",
    ),
    *(
        (of_peft(peft.LoraConfig(r=4, target_modules=["query"], **of)), next(iter(of)))
        for of in OTHERS
    ),
    (own_peft("LoraConfig", {"use_dora": True}), "use_dora=True is another method"),
    (own_peft("AdaLoraConfig"), "an adapter of type ADALORA"),
    (damaged(lambda path: path.rename(path.with_suffix(".bin"))), "pickled"),
    (damaged(lambda path: path.write_bytes(path.read_bytes()[:100])), "damaged"),
]


@pytest.mark.parametrize(("make", "named"), REFUSED)
def test_other_kinds_and_broken_folders_are_refused(make, named, tmp_path):
    make(tmp_path)
    refuses(tmp_path, named)


def ending(tensors, *ends):
    return next(tensors[key] for key in tensors if key.endswith(ends))


def add_to(tensors, end, value):
    ending(tensors, end).flatten()[-1] += value


#: What is done to an export, and what the refusal names. edited: keys of its
#: configuration, which peft obeys, while the weights' metadata say another adapter;
#: alone: the same without these metadata, or values that no adapter has; own: others in
#: their place; tensors: a function of them.
EDITS = {
    "lora": [
        *(
            (("edited", {key: value}), key)
            for key, value in (("lora_alpha", 80), ("use_rslora", True))
        ),
        *(
            (("edited", {key: value}), ".")
            for key, value in (("lora_dropout", 0.5), ("peft_type", "VERA"))
        ),
    ],
    "vera": [
        (("edited", {"peft_type": "LORA"}), "."),
        *(
            (("edited", {key: value}), key)
            for key, value in (("d_initial", 1), ("projection_prng_key", 4))
        ),
        (("edited", {"save_projection": False}), "save_projection"),
        (("tensors", lambda t: add_to(t, "vera_A", 0.1)), "projection_prng_key"),
        (("tensors", lambda t: add_to(t, "lambda_b", float("inf"))), "finite"),
        (("tensors", lambda t: t.update(other=torch.ones(1))), "holds other"),
        (
            (
                "tensors",
                lambda t: t.pop(next(key for key in t if key.endswith("lambda_d"))),
            ),
            "lacks",
        ),
    ],
}
EDITS_OF_BOTH = [
    *(
        (("edited", {key: value}), key)
        for key, value in (("r", 8), ("r", None), ("bias", "all"))
    ),
    *(
        (("edited", {key: value}), key)
        for key, value in (("use_dora", True), ("layers_to_transform", [1]))
    ),
    (("edited", {"exclude_modules": ["query"]}), "exclude_modules"),
    *(
        (("edited", {"target_modules": names}), "target_modules")
        for names in (["key"], ["query"], r".*\.(query|value)", None, [], [1])
    ),
    (("alone", {"target_modules": ["key"]}), "target_modules"),
    *(
        (("edited", {"modules_to_save": names}), "modules_to_save")
        for names in (None, [], ["classifier"], "classifier")
    ),
    *(
        (("edited", of), ".")
        for of in ({"init_lora_weights": "pissa"}, {"peft_type": "PROMPT_TUNING"})
    ),
    *((("alone", {"r": value}), "adapter_config.json") for value in (10**7, -4)),
    *((("alone", {"r": value}), ".") for value in ("4", None, 2, True, [4])),
    *(
        (("alone", {"lora_alpha": value, "d_initial": value}), ".")
        for value in ("x", None, 10**400)
    ),
    *(
        (("alone", {"projection_prng_key": v, "use_dora": True}), ".")
        for v in (2**70, "a", None, True)
    ),
    (("alone", {"lora_dropout": "a", "vera_dropout": "a"}), "."),
    (("alone", {"lora_alpha": None, "use_rslora": True, "r": 3}), "."),
    *((("alone", {"peft_type": value}), ".") for value in ("X\nY", ["LORA"])),
    (("alone", {"bias": "all\nlines"}), "."),
    *(
        (("own", of), ".")
        for of in (
            [1],
            {"rank": 4},
            {"kind": ["x"]},
            {"kind": "vera"},
            {"kind": "full"},
        )
    ),
    *(
        (("own", {"kind": kind, "rank": rank}), ".")
        for kind, rank in (("vera", "x"), ("tied_lora", 4))
    ),
]


def edit(folder, what, change, name):
    config, weights, ours = (
        folder / "adapter_config.json",
        folder / WEIGHTS,
        METHODS[name].settings(),
    )
    if what in ("edited", "alone"):
        config.write_text(json.dumps(json.loads(config.read_text()) | change))
    if what != "edited":
        tensors = load_file(weights)
        if what == "tensors":
            change(tensors)
        ours = {"vera_bench": json.dumps(change if what == "own" else ours)}
        save_file(tensors, weights, None if what == "alone" else ours)


@pytest.mark.parametrize(
    "name", slow_except(["lora", "vera", "vera, peft's draw"], "lora", "vera")
)
def test_an_export_that_was_changed_is_refused_in_one_line(name, tmp_path):
    exported(tmp_path / "as it was", name)
    for number, (change, named) in enumerate([*EDITS_OF_BOTH, *EDITS.get(name, [])]):
        edit(
            shutil.copytree(tmp_path / "as it was", tmp_path / f"{number}"),
            *change,
            name,
        )
        refuses(tmp_path / f"{number}", named)
    free = {
        "base_model_name_or_path": "x/y",
        "revision": "1",
        "inference_mode": False,
        "task_type": None,
    }
    edit(
        tmp_path / "as it was",
        "edited",
        free | {"auto_mapping": None, "peft_version": "9", "new": None},
        name,
    )
    assert (
        vera.import_peft(tiny_model().double(), tmp_path / "as it was") == METHODS[name]
    )


@pytest.mark.parametrize("name", ["vera", "lora"])
def test_each_setting_of_peft_is_compared(name, tmp_path):
    """Also those that a newer peft may add: it obeys the configuration."""
    exported(tmp_path / "as it was", name)
    config_class = peft.LoraConfig if name == "lora" else peft.VeraConfig
    keys = {field.name for field in dataclasses.fields(config_class)} | {"added_later"}
    for key in keys - DESCRIPTIVE_KEYS:
        folder = shutil.copytree(tmp_path / "as it was", tmp_path / key)
        edit(folder, "edited", {key: "other"}, name)
        refuses(folder, ".")


@pytest.mark.parametrize("name", ["vera", "lora"])
def test_nothing_of_a_fused_adapter_is_dropped_in_silence(name, tmp_path):
    """A value in the key's slice has no place in query and value adapters: refused, not
    cut off."""
    exported(tmp_path, name, "GPT-2")
    in_key = (
        "tensors",
        lambda t: ending(t, "vera_lambda_b", "lora_B.weight")[40].fill_(0.5),
    )
    edit(tmp_path, *in_key, name)
    refuses(tmp_path, "holds more than the slices that were adapted", tiny("GPT-2"))


@pytest.mark.parametrize(
    ("method", "architecture", "named"),
    [
        (vera.VeRA(rank=12, projections="unique"), "BERT", "projections=unique"),
        *(
            (vera.Adapter(bottleneck=4), "BERT", "adapter"),
            (vera.BitFit(), "BERT", "bitfit"),
        ),
        *(
            (vera.NoLA(4, 6), "BERT", "nola"),
            (vera.LoRA(4, ("query", "value", "c_fc")), "GPT-2", "fused"),
        ),
        (vera.VeRA(12, ("value", "c_fc")), "GPT-2", "fused"),
    ],
)
def test_what_peft_has_no_place_for_is_not_exported(
    method, architecture, named, tmp_path
):
    with refused_unchanged(named):
        vera.export_peft(
            adapt_and_shake(tiny(architecture).double(), method), tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "architecture"),
    pair_up(
        ["lora", "vera", "vera on all linear layers", "lora on all linear layers"],
        ["BERT", "GPT-2"],
    ),
)
def test_what_peft_writes_again_is_not_an_edit(name, architecture, tmp_path):
    """peft writes all of its keys, and of 20 names and more their shortest ends."""

    def make():
        return (
            tiny("GPT-2")
            if architecture == "GPT-2"
            else tiny_model(num_hidden_layers=4)
        )

    model = adapt_and_shake(make(), METHODS[name])
    vera.export_peft(model, tmp_path)
    theirs = peft.PeftModel.from_pretrained(make(), tmp_path)
    theirs.save_pretrained(tmp_path / "again")  # without this project's metadata
    # beside the weights with it
    theirs.peft_config["default"].save_pretrained(tmp_path)
    if "all" in name and architecture == "BERT":
        assert (
            len(
                json.loads((tmp_path / "adapter_config.json").read_text())[
                    "target_modules"
                ]
            )
            < 20
        )
    # whose A and B only the metadata explain
    fused = architecture == "GPT-2" and "vera" in name
    for folder in [tmp_path] if fused else [tmp_path, tmp_path / "again"]:
        vera.import_peft(again := make(), folder)
        assert torch.allclose(answer(again), answer(model), rtol=0, atol=1e-6)


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_file_that_may_not_be_read_says_so(file, tmp_path, closed):
    exported(tmp_path, "lora")
    closed(f"/{file}")
    refuses(tmp_path, f"{file}: permission denied")
