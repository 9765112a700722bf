"""The adapter file: small, loads anywhere to the same output, and refuses what does not fit in one line."""

import errno
import hashlib
import itertools
import json
import os
import random
import struct

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from tiny import shake, tiny_model

import vera
from vera.adapter_file import FORMAT, HEAD_FORMAT
from vera.checked_file import read_file, write_file
from vera.methods.layers import changes
from vera.methods.vera_layer import projections


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


@pytest.mark.parametrize(
    "method", [vera.VeRA(rank=12), vera.LoRA(rank=4), vera.BitFit(), vera.Full()], ids=lambda m: m.kind
)
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


def test_a_head_has_the_names_of_its_classes(tmp_path):
    model, path = tiny_model(), tmp_path / "h.safetensors"
    vera.save_head(model, path)
    assert vera.read_classes(path) is None
    vera.save_head(model, path, ("bad", "good"))
    assert vera.read_classes(path) == ["bad", "good"]
    tensors = read_file(path, HEAD_FORMAT)[1]
    for classes, words in (("ab", "no list of names"), ([0, 1], "no list of names"), (["a"] * 3, "3 names")):
        write_file(path, tensors, {"format": HEAD_FORMAT, "classes": classes})
        with pytest.raises(vera.AdapterError, match=words):
            vera.read_classes(path)


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
    assert header["method"] == {"kind": "vera", **trained[1].settings()}
    (pair,) = projections(trained[0])
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
        for layer in changes(model):
            torch.nn.init.normal_(layer.b, generator=torch.Generator().manual_seed(rank))
        vera.save(model, method, tmp_path / f"{rank}.safetensors")
        outputs[rank] = model(ids()).logits
    for rank in (20, 3, 12, 20):
        model = tiny_model()
        vera.load(model, tmp_path / f"{rank}.safetensors")
        assert torch.equal(model(ids()).logits, outputs[rank])


def rewrite(path, change):
    """The file again with its header or tensors changed, and a checksum that is right: what a hostile hand
    would make."""
    header, tensors = read_file(path, FORMAT)
    change(header, tensors)
    write_file(path, tensors, header)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda h, t: h["fixed"].update(fingerprint="0" * 64),
            r"projections 00000000 .*this model makes [0-9a-f]{8}",
        ),
        (lambda h, t: h["fixed"].update(inputs=64), r"largest 32x64\), this model makes"),
        (
            lambda h, t: h["fixed"].update(scheme="philox-9"),
            "scheme 'philox-9', this version makes 'philox-1'",
        ),
        (lambda h, t: h.update(format="other"), "not a file of the format"),
        (lambda h, t: h.pop("method"), "describes no method"),
        (lambda h, t: h.update(method=["vera"]), "describes no method"),
        (lambda h, t: h["method"].update(kind="exec"), "no method of kind 'exec'"),
        (lambda h, t: h["method"].update(rank=10**12), "rank 1000000000000 is beyond sense"),
        (lambda h, t: h["method"].update(rank="12"), "rank must be a whole number, got '12'"),
        (lambda h, t: h["method"].update(d_init=float("nan")), "d_init must be a finite number"),
        (lambda h, t: h["method"].update(d_init=1e300), "d_init must be a finite number"),
        (lambda h, t: h["method"].update(d_init=10**400), "d_init must be a finite number"),
        (lambda h, t: h["method"].update(vectors=["b\nd"]), "vectors must be"),
        (lambda h, t: h["method"].pop("rank"), "method vera needs rank"),
        (lambda h, t: h["method"].update(kind=["vera"]), "no method of kind"),
        (lambda h, t: h["fixed"].update(seed="1\n2"), "trained with projections"),
        (lambda h, t: t.update({"a\nb": torch.ones(1)}), "holds a b, which this model lacks"),
        (
            lambda h, t: t.update({next(iter(t)): next(iter(t.values())).double() * 1e300}),
            "not finite numbers",
        ),
        (
            lambda h, t: t.update({next(iter(t)): next(iter(t.values())).to(torch.float8_e4m3fn)}),
            "not finite numbers",
        ),
        (lambda h, t: t.update({next(iter(t)): next(iter(t.values())).long()}), "not finite numbers"),
        (lambda h, t: h["method"].update(sites=[["query"]]), "sites must be a list of words"),
        (lambda h, t: h["method"].update(sites=["qeury"]), "no linear layer is a 'qeury' site"),
        (lambda h, t: h["method"].update(projection_seed=4), "fingerprint|trained with projections"),
        (lambda h, t: h.pop("base"), "other base weights"),
        (lambda h, t: h["base"].update(bfloat16="0" * 16, float16="0" * 16), "other base weights"),
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
    before = [layer.b.clone() for layer in changes(model)]
    with pytest.raises(vera.AdapterError, match=words) as error:
        vera.load(model, trained[2])
    assert "\n" not in str(error.value)
    assert all(torch.equal(layer.b, b) for layer, b in zip(changes(model), before, strict=True))
    base = tiny_model()
    with pytest.raises(vera.AdapterError, match=words):
        vera.load(base, trained[2])
    assert [n for n, _ in base.named_modules()] == [n for n, _ in tiny_model().named_modules()]
    assert all(p.requires_grad for p in base.parameters())


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
    for length in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):  # a copy that broke off
        trained[2].write_bytes(whole[:length])
        with pytest.raises(vera.AdapterError, match="damaged") as error:
            vera.load(tiny_model(), trained[2])
        assert "\n" not in str(error.value)


def mutate(whole: bytes, rng: random.Random) -> bytes:
    """One of the ways in which a file goes wrong: bits, runs of bytes, lengths, order."""
    place, other = sorted(rng.sample(range(len(whole)), 2))
    match rng.randrange(8):
        case 0:
            return whole[:place] + bytes([whole[place] ^ (1 << rng.randrange(8))]) + whole[place + 1 :]
        case 1:
            return whole[:place] + rng.randbytes(other - place) + whole[other:]
        case 2:
            return whole[:place]
        case 3:
            return whole[:place] + whole[other:]
        case 4:
            return whole[:other] + whole[place:]
        case 5:
            return whole + rng.randbytes(rng.randint(1, 64))
        case 6:
            return struct.pack("<Q", rng.choice([0, 1, 2**31, 2**63, 2**64 - 1, len(whole)])) + whole[8:]
        case _:
            return whole[:place] + bytes(len(whole) - place)


def test_200_mutations_are_each_refused_in_one_line(trained):
    """Wherever the change falls, header or values: the checksum covers the whole file."""
    whole, rng, model = trained[2].read_bytes(), random.Random(0), tiny_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    mutated = trained[2].with_name("mutated.safetensors")
    for _ in range(200):
        content = mutate(whole, rng)
        while content == whole:
            content = mutate(whole, rng)
        mutated.write_bytes(content)
        with pytest.raises(vera.AdapterError) as error:
            vera.load(model, mutated)
        assert "\n" not in str(error.value)
        assert str(mutated) in str(error.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.state_dict().keys() == before.keys()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_changed_byte_is_refused(trained, data):
    whole = trained[2].read_bytes()
    place, byte = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(1, 255))
    mutated = trained[2].with_name("mutated.safetensors")
    mutated.write_bytes(whole[:place] + bytes([whole[place] ^ byte]) + whole[place + 1 :])
    with pytest.raises(vera.AdapterError, match="damaged"):
        vera.read_method(mutated)


def hostile(header: bytes) -> bytes:
    """A file with a header of one's own, and a checksum that is right."""
    content = struct.pack("<Q", len(header)) + header + bytes(64)
    digest = hashlib.sha256(content).hexdigest().encode()
    return content.replace(b"0" * 64, digest, 1)


CHECKSUM = b'"__metadata__":{"sha256":"' + b"0" * 64 + b'","header":"%s"}'


@pytest.mark.parametrize(
    "header",
    [
        b"{" + CHECKSUM % (b"[" * 100_000) + b"}",  # nested beyond any parser's stack
        b"{"
        + CHECKSUM % b"{}"
        + b',"x":{"dtype":"F32","shape":[9223372036854775807,4],"data_offsets":[0,64]}}',
        b"{" + CHECKSUM % b"{}" + b',"x":{"dtype":"F32","shape":[16],"data_offsets":[0,64]},' + b"[" * 10_000,
        b"{" + CHECKSUM % b"{}" + b',"x":{"dtype":"PICKLE","shape":[16],"data_offsets":[0,64]}}',
        b"{" + CHECKSUM % b"null" + b"}",
    ],
    ids=["nested", "huge shape", "not JSON", "unknown dtype", "no header"],
)
def test_hostile_headers_are_refused(tmp_path, header):
    path = tmp_path / "hostile.safetensors"
    path.write_bytes(hostile(header))
    with pytest.raises(vera.AdapterError, match=r"damaged|not a file of the format") as error:
        vera.load(tiny_model(), path)
    assert "\n" not in str(error.value)


# --- half precision


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)])
def test_half_precision_halves_the_file_and_rounds(trained, tmp_path, dtype, tolerance):
    model, method, path = trained
    size = vera.save(model, method, tmp_path / "half.safetensors", dtype)
    assert abs(path.stat().st_size - size - 2 * method.count(model)) <= 8  # the header is padded to 8 bytes
    again = tiny_model()
    vera.load(again, tmp_path / "half.safetensors")
    vera.load_head(again, tmp_path / "head.safetensors")
    assert next(iter(method.adapter_parameters(again).values())).dtype == torch.float32
    difference = (again(ids()).logits - model(ids()).logits).abs().max()
    assert 0 < difference < tolerance * model(ids()).logits.abs().max()


def test_what_half_precision_cannot_hold_is_not_saved(trained, tmp_path):
    model, method, _ = trained
    with torch.no_grad():
        next(changes(model)).b.fill_(1e6)
    with pytest.raises(vera.AdapterError, match=r"beyond the range of torch\.float16"):
        vera.save(model, method, tmp_path / "half.safetensors", torch.float16)
    with torch.no_grad():
        next(changes(model)).b.fill_(float("nan"))
    with pytest.raises(vera.AdapterError, match="not finite: not saved"):
        vera.save(model, method, tmp_path / "nan.safetensors")
    assert not list(tmp_path.glob("*nan*")) + list(tmp_path.glob("*half*"))


# --- base weights


def test_other_base_weights_are_refused_unless_allowed(trained):
    other = tiny_model(seed=1)
    with pytest.raises(vera.AdapterError, match="other base weights"):
        vera.load(other, trained[2])
    assert not list(changes(other))
    vera.load(other, trained[2], allow_other_base=True)
    assert list(changes(other))
    one_number = tiny_model()
    with torch.no_grad():
        one_number.bert.embeddings.word_embeddings.weight[7, 3] += 0.01
    with pytest.raises(vera.AdapterError, match="other base weights"):
        vera.load(one_number, trained[2])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_same_weights_in_half_precision_are_the_same_base(trained, dtype):
    half = tiny_model().to(dtype)
    vera.load(half, trained[2])
    assert next(changes(half)).b.dtype == torch.float32


def test_a_finetuned_head_makes_no_other_base(trained):
    model = tiny_model()
    with torch.no_grad():
        model.classifier.weight.add_(1)
        model.bert.pooler.dense.weight.add_(1)
    vera.load(model, trained[2])


def test_loading_takes_a_merge_back_first(trained):
    """Or the adapter would count twice: for the same adapter, for another, and for a start."""
    expected = trained[0](ids()).logits
    model = tiny_model()
    vera.load(model, trained[2])
    vera.load_head(model, trained[2].with_name("head.safetensors"))
    for _ in range(2):
        trained[1].merge(model)
        vera.load(model, trained[2])
        assert torch.equal(model(ids()).logits, expected)
    trained[1].merge(model)
    vera.start_from(model, trained[2])
    assert torch.equal(model(ids()).logits, expected)


def test_an_adapter_merged_for_good_makes_other_base_weights(trained):
    model = tiny_model()
    vera.load(model, trained[2])
    vera.unload(model, merge=True)
    with pytest.raises(vera.AdapterError, match="other base weights"):
        vera.load(model, trained[2])


def test_base_weights_changed_behind_torchs_back_are_seen(trained):
    model = tiny_model()
    vera.load(model, trained[2])
    model.bert.encoder.layer[1].output.dense.weight.data.mul_(2)  # .data counts no change
    with pytest.raises(vera.AdapterError, match="other base weights"):
        vera.load(model, trained[2])
    with torch.inference_mode():
        vera.load(tiny_model(), trained[2])


def test_a_frozen_or_thawed_model_saves_and_loads_the_same(trained, tmp_path):
    """An inference server freezes its model, and swaps adapters all the same."""
    model, method, path = trained
    expected = model(ids()).logits
    for frozen in (True, False):
        model.requires_grad_(not frozen)
        assert vera.save(model, method, tmp_path / "again") == path.stat().st_size
        vera.load(model, tmp_path / "again")
        assert torch.allclose(model(ids()).logits, expected, atol=1e-6)  # a thawed base takes another path


def test_only_what_the_model_carries_is_saved(trained, tmp_path):
    model = trained[0]
    for method, dtype, words in (
        (
            vera.VeRA(rank=8, projection_seed=3),
            None,
            "this model carries vera with .*'rank': 12.*, not vera with .*'rank': 8",
        ),
        (vera.LoRA(rank=4), None, "this model carries vera with"),
        (trained[1], torch.int8, "dtype must be"),
        (trained[1], "fp16", "dtype must be"),
    ):
        with pytest.raises(vera.AdapterError, match=words):
            vera.save(model, method, tmp_path / "x", dtype)
    with pytest.raises(vera.AdapterError, match="this model carries no adapter"):
        vera.save(tiny_model(), trained[1], tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_a_switched_off_adapter_is_on_again_once_loaded(trained):
    model = trained[0]
    expected = model(ids()).logits
    vera.disable(model)
    vera.load(model, trained[2])
    assert torch.equal(model(ids()).logits, expected)


def test_the_wrong_kind_of_file_is_told(trained, tmp_path):
    vera.export_peft(trained[0], tmp_path / "peft")
    with pytest.raises(vera.AdapterError, match=r"vera\.import_peft reads its folder"):
        vera.load(tiny_model(), tmp_path / "peft" / "adapter_model.safetensors")
    with pytest.raises(vera.AdapterError, match="a folder, not an adapter file"):
        vera.load(tiny_model(), tmp_path)
    with pytest.raises(vera.AdapterError, match="Same number of labels"):
        vera.load_head(tiny_model(num_labels=3), tmp_path / "head.safetensors")


# --- what peft gets wrong with VeRA (measured in 0.21.2), one test each


class Two(torch.nn.Module):
    """Two layers of different shapes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.query, self.value = torch.nn.Linear(16, 16), torch.nn.Linear(16, 48)

    def forward(self, x):
        return self.value(torch.tanh(self.query(x)))


def write_adapter(folder, name, **settings):
    """An adapter away from its start over the two layers, and its output."""
    model, method = Two(), vera.VeRA(**{"rank": 8, **settings})
    method.adapt(model)
    shake(model)
    vera.save(model, method, folder / name)
    return model(torch.ones(3, 16)).detach()


ADAPTERS = {
    "both": {},
    "narrow": {"sites": ("query",)},
    "small rank": {"rank": 3},
    "large rank": {"rank": 40},
    "other seed": {"projection_seed": 9},
    "peft's draw": {"init": "peft"},
    "unique": {"projections": "unique"},
}


@pytest.mark.parametrize("order", list(itertools.permutations(ADAPTERS, 2)), ids=" then ".join)
def test_a_second_adapter_is_the_one_that_was_saved(tmp_path, order):
    """peft: smaller shapes after larger ones silently use other A and B; a smaller rank crashes in the
    forward pass; a larger rank, larger shapes or another seed are refused."""
    outputs = {name: write_adapter(tmp_path, name, **ADAPTERS[name]) for name in order}
    model = Two()
    for name in (*order, order[0]):
        vera.load(model, tmp_path / name)
        assert torch.equal(model(torch.ones(3, 16)), outputs[name])


def test_a_narrow_models_projections_are_a_prefix_of_a_wide_ones():
    """peft: they are not, so that A and B depend on which layers are adapted."""
    pairs = []
    for sites in (("query",), ("query", "value")):
        model = Two()
        vera.VeRA(rank=8, sites=sites).adapt(model)
        pairs.append((next(changes(model)).A.clone(), next(changes(model)).B.clone()))
    assert all(torch.equal(narrow, wide) for narrow, wide in zip(*pairs, strict=True))


def test_adapter_names_are_not_ignored(trained):
    """peft: `adapter_names=` in forward is silently ignored. A model here carries one adapter and says so."""
    with pytest.raises(vera.AdapterError, match="adapter_names"):
        trained[0](ids(), adapter_names=["a", "b", "a", "b"])


def test_merging_and_unmerging_half_precision_restores_the_weights(trained):
    """peft: off by 1e-3 in bfloat16."""
    model = tiny_model().to(torch.bfloat16)
    before = {name: value.clone() for name, value in model.named_parameters()}
    method = vera.load(model, trained[2])
    method.merge(model)
    vera.unload(model)
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())


# --- one adapter as the start of another


def test_an_adapter_starts_another_of_the_same_settings(trained):
    model = tiny_model(num_labels=3)
    vera.VeRA(rank=12, projection_seed=3, dropout=0.1).adapt(model)
    vera.start_from(model, trained[2])
    assert all(torch.equal(a.b, b.b) for a, b in zip(changes(model), changes(trained[0]), strict=True))
    other = tiny_model()
    vera.VeRA(rank=12, projection_seed=3, d_init=0.2).adapt(other)
    with pytest.raises(vera.AdapterError, match=r"its d_init is 0\.1, here it is 0\.2"):
        vera.start_from(other, trained[2])
    assert not any(change.b.any() for change in changes(other))


def test_a_full_disk_leaves_the_old_file_and_says_so(trained, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = trained[2].read_bytes()
    monkeypatch.setattr("vera.checked_file.os.fsync", full)
    with pytest.raises(OSError, match="No space left") as raised:
        vera.save(trained[0], trained[1], trained[2])
    assert raised.value.errno == errno.ENOSPC  # by which a run's executor knows that it may wait for room
    assert trained[2].read_bytes() == before
    assert sorted(p.name for p in trained[2].parent.iterdir()) == ["adapter.safetensors", "head.safetensors"]


def test_equal_adapters_are_equal_files(trained, tmp_path):
    """safetensors writes the metadata of each file in an order of its own."""
    for number in range(8):
        vera.save(trained[0], trained[1], tmp_path / "again" / str(number))
    assert len({path.read_bytes() for path in (tmp_path / "again").iterdir()}) == 1
