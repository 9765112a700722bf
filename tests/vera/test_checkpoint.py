"""The adapter file: small, loads anywhere to the same output, and refuses what does not fit in one line."""

import json
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import tiny_model

import vera
from vera.methods.base import adapted_layers


def ids() -> torch.Tensor:
    return torch.randint(3, 30, (4, 9), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def trained(tmp_path):
    """A model with a VeRA adapter away from its start, and its files."""
    model, method = tiny_model(), vera.VeRA(rank=12, projection_seed=3)
    method.adapt(model)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in method.adapter_parameters(model).values():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
        model.classifier.weight.add_(1.0)
    vera.save(model, method, tmp_path / "adapter.safetensors")
    vera.save_head(model, tmp_path / "head.safetensors")
    return model, method, tmp_path / "adapter.safetensors"


@pytest.mark.parametrize("method", [vera.VeRA(rank=12), vera.LoRA(rank=4), vera.BitFit(), vera.Full()], ids=lambda m: m.kind)
def test_saved_and_loaded_gives_the_same_output(method, tmp_path):
    model = tiny_model()
    method.adapt(model)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.1
    vera.save(model, method, tmp_path / "a.safetensors")
    vera.save_head(model, tmp_path / "h.safetensors")
    again = tiny_model()
    assert vera.load(again, tmp_path / "a.safetensors") == method
    vera.load_head(again, tmp_path / "h.safetensors")
    assert torch.equal(again(ids()).logits, model(ids()).logits)


def test_the_file_holds_vectors_only_and_little_else(trained):
    model, method, path = trained
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert len(tensors) == 8
    assert all(t.ndim == 1 for t in tensors.values())
    assert "bert.encoder.layer.0.attention.self.query.b" in tensors
    assert path.stat().st_size <= 4 * method.count(model) + 160 * len(tensors) + 1024


def test_the_header_says_what_the_adapter_relies_on(trained):
    with safe_open(trained[2], "pt") as file:
        header = json.loads(file.metadata()["header"])
    assert header["method"] == {"kind": "vera", **trained[1].config()}
    pair = trained[0].vera_projections
    assert header["fixed"] == {
        "scheme": "philox-1",
        "seed": 3,
        "inputs": 32,
        "outputs": 32,
        "fingerprint": vera.fingerprint(pair.A.numpy(), pair.B.numpy()),
    }


def test_adapters_load_one_after_another_whatever_their_rank_and_seed(tmp_path):
    outputs = {}
    for rank, seed in ((12, 0), (3, 0), (20, 5)):
        model, method = tiny_model(), vera.VeRA(rank=rank, projection_seed=seed)
        method.adapt(model)
        for layer in adapted_layers(model):
            torch.nn.init.normal_(layer.b, generator=torch.Generator().manual_seed(rank))
        vera.save(model, method, tmp_path / f"{rank}.safetensors")
        outputs[rank] = model(ids()).logits
    for rank in (20, 3, 12, 20):
        model = tiny_model()
        vera.load(model, tmp_path / f"{rank}.safetensors")
        assert torch.equal(model(ids()).logits, outputs[rank])


def rewrite(path, change):
    """The file again, with its header changed."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["header"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(header, tensors)
    save_file(tensors, path, {"header": json.dumps(header)})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h, t: h["fixed"].update(fingerprint="0" * 64), r"projections 00000000 .*this model makes [0-9a-f]{8}"),
        (lambda h, t: h["fixed"].update(inputs=64), r"largest 32x64\), this model makes"),
        (lambda h, t: h["fixed"].update(scheme="philox-9"), "scheme 'philox-9', this version makes 'philox-1'"),
        (lambda h, t: h.update(format="other"), "not a file of the format"),
        (lambda h, t: h.pop("method"), "describes no method"),
        (lambda h, t: t.pop(next(iter(t))), "lacks"),
        (lambda h, t: t.update(extra=torch.ones(2)), "holds extra, which this model lacks"),
        (lambda h, t: t.update({next(iter(t)): torch.ones(5)}), r"is \[5\] in the file"),
        (lambda h, t: next(iter(t.values())).fill_(float("nan")), "not finite numbers"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(trained, change, words):
    rewrite(trained[2], change)
    model = tiny_model()
    vera.VeRA(rank=12, projection_seed=3).adapt(model)
    before = [layer.b.clone() for layer in adapted_layers(model)]
    with pytest.raises(vera.AdapterError, match=words) as error:
        vera.load(model, trained[2])
    assert "\n" not in str(error.value)
    assert all(torch.equal(layer.b, b) for layer, b in zip(adapted_layers(model), before, strict=True))


def test_another_models_adapter_is_refused(trained):
    other = tiny_model(hidden_size=48)
    with pytest.raises(vera.AdapterError, match="Same base model"):
        vera.load(other, trained[2])
    with pytest.raises(vera.AdapterError, match="Same base model"):
        vera.load(tiny_model(num_hidden_layers=3), trained[2])


def test_missing_and_truncated_files(trained, tmp_path):
    with pytest.raises(vera.AdapterError, match="no such file"):
        vera.load(tiny_model(), tmp_path / "none.safetensors")
    whole = trained[2].read_bytes()
    for length in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        trained[2].write_bytes(whole[:length])
        with pytest.raises(vera.AdapterError, match="damaged") as error:
            vera.load(tiny_model(), trained[2])
        assert "\n" not in str(error.value)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_a_changed_header_never_loads_silently_with_other_settings(trained, data):
    """A byte of the header changed: refused in one line, or the same adapter (a byte that carries no meaning)."""
    whole = trained[2].read_bytes()
    (size,) = struct.unpack("<Q", whole[:8])
    place = data.draw(st.integers(0, 8 + size - 1))
    byte = data.draw(st.integers(0, 255))
    mutated = trained[2].with_name("mutated.safetensors")
    mutated.write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
    model = tiny_model()
    try:
        vera.load(model, mutated)
    except vera.AdapterError as error:
        message = str(error)
    else:
        message = ""
        vera.load_head(model, trained[2].with_name("head.safetensors"))
        assert torch.equal(model(ids()).logits, trained[0](ids()).logits)
    assert "\n" not in message


def test_a_full_disk_leaves_the_old_file_and_says_so(trained, monkeypatch):
    from safetensors import SafetensorError

    def full(*_):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    before = trained[2].read_bytes()
    monkeypatch.setattr("vera.checkpoint.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        vera.save(trained[0], trained[1], trained[2])
    assert trained[2].read_bytes() == before
    assert sorted(p.name for p in trained[2].parent.iterdir()) == ["adapter.safetensors", "head.safetensors"]
