"""The adapter file: small, loads anywhere to the same output, and refuses what does not
fit in one line."""

import errno
import itertools
import os

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import adapt_and_shake, refused_unchanged
from tiers import slow_except
from tiny import answer, tiny_model

import vera
from vera.adapter_file import FORMAT
from vera.budget import Budget
from vera.checked_file import read_file, write_file
from vera.head_file import HEAD_FORMAT
from vera.methods.layers import adapted_layers, layer_changes
from vera.methods.vera import projection_pairs

pytestmark = pytest.mark.properties


@pytest.fixture
def trained(tmp_path):
    """A model with a VeRA adapter away from its start, and its files."""
    model, method = tiny_model(), vera.VeRA(rank=12, projection_seed=3)
    adapt_and_shake(model, method)
    vera.save(model, method, tmp_path / "adapter.safetensors")
    vera.save_head(model, tmp_path / "head.safetensors", ("bad", "good"))
    return model, method, tmp_path / "adapter.safetensors"


def test_the_file_holds_vectors_and_what_they_rely_on_and_the_head_its_classes(
    trained, tmp_path
):
    (model, method, path), (pair,) = trained, projection_pairs(trained[0])
    file = read_file(path, FORMAT)
    assert {tuple(t.shape) for t in file.tensors().values()} == {(12,), (32,)}
    assert "bert.encoder.layer.0.attention.self.query.b" in file.shapes
    assert (
        path.stat().st_size <= 4 * method.count(model) + 160 * len(file.shapes) + 1024
    )
    assert file.header["method"] == {"kind": "vera", **method.settings()}
    fingerprint = vera.fingerprint(pair.A.numpy(), pair.B.numpy())
    shape = {"inputs": 32, "outputs": 32, "fingerprint": fingerprint}
    assert file.header["fixed"] == {"scheme": "philox-1", "seed": 3, **shape}
    head = tmp_path / "head.safetensors"
    assert vera.read_classes(head) == ["bad", "good"]
    tensors = read_file(head, HEAD_FORMAT).tensors()
    for classes in ("ab", [0, 1], ["a"] * 3):
        write_file(head, tensors, {"format": HEAD_FORMAT, "classes": classes})
        with refused_unchanged("classes"):
            vera.read_classes(head)
    vera.save_head(model, head)
    assert vera.read_classes(head) is None


def test_a_head_of_scaled_labels_answers_labels_or_stays_as_it_was_trained(tmp_path):
    models = [
        tiny_model(num_labels=1),
        *(tiny_model(seed=seed, num_labels=1) for seed in (1, 2)),
    ]
    trained, scaled, plain = (model.eval() for model in models)
    path = tmp_path / "head.safetensors"
    vera.save_head(trained, path, scaling=(170_000.0, 40_000.0))
    for model, as_trained in ((scaled, True), (plain, False)):
        model.load_state_dict(
            {k: v for k, v in trained.state_dict().items() if "bert" in k}, strict=False
        )
        vera.load_head(model, path, as_trained)
    assert torch.equal(answer(scaled), answer(trained))
    assert torch.allclose(answer(plain), 170_000 + 40_000 * answer(trained), rtol=1e-6)
    tensors = read_file(path, HEAD_FORMAT).tensors()
    for scaling in (
        "ab",
        [1.0],
        [1.0, "x"],
        [1.0, float("nan")],
        [10**400, 1],
        {"mean": 1},
        3,
    ):
        write_file(path, tensors, {"format": HEAD_FORMAT, "scaling": scaling})
        with refused_unchanged("head.safetensors"):
            vera.load_head(plain, path)
    plain.classifier.bias = None
    with refused_unchanged("scale_labels"):
        vera.output_layer(plain)


def rewrite(path, change):
    """The file again with its header or tensors changed, and a checksum that is right:
    what a hostile hand would make."""
    file = read_file(path, FORMAT)
    header, tensors = file.header, file.tensors()
    change(header, tensors)
    write_file(path, tensors, header)


def first(change):
    """Changes the first tensor of a file to what `change` makes of it."""
    return lambda h, t: t.update({next(iter(t)): change(next(iter(t.values())))})


def of_method(**settings):
    return lambda h, t: h["method"].update(settings)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda h, t: h["fixed"].update(fingerprint="0" * 64), "fingerprint 0000"),
        (
            lambda h, t: h["fixed"].update(scheme="philox-9"),
            "scheme philox-9, here philox-1",
        ),
        (lambda h, t: h["fixed"].update(seed="1\n2"), "seed 1"),
        (lambda h, t: h.update(format="other"), "format"),
        *(
            (lambda h, t: h.pop("method"), "no method"),
            (lambda h, t: h.update(method=["vera"]), "no method"),
        ),
        *((of_method(kind="exec"), "'exec'"), (of_method(kind=["vera"]), "kind")),
        *((of_method(rank=10**12), "rank"), (of_method(rank="12"), "rank")),
        (lambda h, t: h["method"].pop("rank"), "rank"),
        *((of_method(d_init=value), "d_init") for value in (float("nan"), 10**400)),
        *(
            (of_method(vectors=["b\nd"]), "vectors"),
            (of_method(projection_seed=4), "seed"),
        ),
        *(
            (of_method(sites=[["query"]]), "sites"),
            (of_method(sites=["qeury"]), "'qeury'"),
        ),
        (lambda h, t: h.pop("base"), "other base weights"),
        (
            lambda h, t: h["base"].update(bfloat16="0" * 16, float16="0" * 16),
            "other base weights",
        ),
        (lambda h, t: t.pop(next(iter(t))), "lacks"),
        (
            lambda h, t: t.update({"a\nb": torch.ones(1)}),
            "holds a b, which this model lacks",
        ),
        (first(lambda t: torch.ones(5)), r"is \[5\] in the file"),
        *(
            (first(lambda t, dtype=of: t.to(dtype)), "finite")
            for of in (torch.float8_e4m3fn, torch.long)
        ),
        *(
            (first(lambda t, to=of: t.double() * to), "finite")
            for of in (1e300, float("nan"))
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(
    trained, change, named
):
    rewrite(trained[2], change)
    model, base = tiny_model(), tiny_model()
    vera.VeRA(rank=12, projection_seed=3).adapt(model)
    for onto in (model, base):
        with refused_unchanged(named, onto):
            vera.load(onto, trained[2])


def test_files_that_are_missing_of_another_kind_or_another_models(trained, tmp_path):
    for path, model, named in (
        (tmp_path / "none.safetensors", tiny_model(), "no such file"),
        (tmp_path, tiny_model(), "a folder.*import_peft"),
        (trained[2], tiny_model(hidden_size=48), "Same base model"),
    ):
        with refused_unchanged(named, model):
            vera.load(model, path)
    with refused_unchanged("labels"):
        vera.load_head(tiny_model(num_labels=3), tmp_path / "head.safetensors")


@settings(
    max_examples=100,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    st.binary(max_size=200), st.booleans(), st.integers(0, 2**31), st.integers(1, 255)
)
def test_any_bytes_any_changed_byte_and_any_cut_are_an_adapter_error(
    trained, content, framed, place, byte
):
    """framed: with a header of the length that the file says."""
    whole, path = trained[2].read_bytes(), trained[2].with_name("any")
    place %= len(whole)
    changed = whole[:place] + bytes([whole[place] ^ byte]) + whole[place + 1 :]
    for made in (
        len(content).to_bytes(8, "little") * framed + content,
        changed,
        whole[:place],
    ):
        path.write_bytes(made)
        with refused_unchanged("damaged"):
            vera.read_method(path)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2)]
)
def test_half_precision_halves_the_file_and_rounds_what_it_can_hold(
    trained, tmp_path, dtype, tolerance
):
    model, method, path = trained
    size = vera.save(model, method, tmp_path / "half", dtype)
    # the header is padded to 8 bytes
    assert abs(path.stat().st_size - size - 2 * method.count(model)) <= 8
    again, expected = tiny_model(), answer(model)
    vera.load(again, tmp_path / "half")
    vera.load_head(again, tmp_path / "head.safetensors")
    assert next(iter(method.adapter_parameters(again).values())).dtype == torch.float32
    assert 0 < (answer(again) - expected).abs().max() < tolerance * expected.abs().max()
    for value, to in ((1e6, torch.float16), (float("nan"), None)):
        with torch.no_grad():
            next(layer_changes(model)).b.fill_(value)
        with refused_unchanged(r"query\.b .* not saved"):
            vera.save(model, method, tmp_path / "none", to)
    assert not (tmp_path / "none").exists()


# --- base weights


@pytest.mark.parametrize(
    ("carries", "change"),
    [
        (True, lambda model: vera.unload(model, merge=True)),
        # .data counts no change
        (
            True,
            lambda model: model.bert.encoder.layer[1].output.dense.weight.data.mul_(2),
        ),
        (
            False,
            lambda model: model.bert.embeddings.word_embeddings.weight.data[7, 3].add_(
                0.01
            ),
        ),
    ],
)
def test_other_base_weights_are_refused_unless_allowed(trained, carries, change):
    other = tiny_model()
    if carries:
        vera.load(other, trained[2])
    change(other)
    with refused_unchanged("other base weights"):
        vera.load(other, trained[2])
    vera.load(other, trained[2], allow_other_base=True)
    assert list(layer_changes(other))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_and_a_finetuned_head_make_no_other_base(trained, dtype):
    model = tiny_model().to(dtype)
    with torch.no_grad():
        model.classifier.weight.add_(1)
        model.bert.pooler.dense.weight.add_(1)
    with torch.inference_mode(dtype == torch.float32):
        vera.load(model, trained[2])
    assert next(layer_changes(model)).b.dtype == torch.float32


def test_only_what_the_model_carries_is_saved(trained, tmp_path):
    for model, method, dtype, named in (
        (
            trained[0],
            vera.VeRA(rank=8, projection_seed=3),
            None,
            "'rank': 12.*, not vera with .*'rank': 8",
        ),
        (trained[0], vera.LoRA(rank=4), None, "not lora"),
        (trained[0], trained[1], torch.int8, "dtype"),
        (tiny_model(), trained[1], None, "no adapter"),
    ):
        with refused_unchanged(named):
            vera.save(model, method, tmp_path / "x", dtype)
    assert not (tmp_path / "x").exists()


# --- adapters that take turns on a model

#: What peft gets wrong with VeRA (0.21.2): smaller shapes after larger ones silently
#: use other A and B; a smaller rank crashes; a larger rank, larger shapes or another
#: seed are refused.
TURNS = [
    *(
        vera.VeRA(8, sites=("query", "dense")),
        vera.VeRA(8),
        vera.VeRA(3),
        vera.VeRA(40),
    ),
    *(
        vera.VeRA(8, projection_seed=9),
        vera.VeRA(8, init="peft"),
        vera.VeRA(8, projections="unique"),
    ),
    *(
        vera.Peft("LoraConfig", {"use_dora": True}),
        vera.Adapter(4),
        vera.Peft("IA3Config"),
        vera.BitFit(),
    ),
    vera.Full(),
]


@pytest.mark.parametrize("steps", slow_except([range(1, 2), range(2, 7)], range(1, 2)))
def test_whatever_was_on_the_model_what_is_loaded_answers_as_it_was_saved(
    steps, tmp_path
):
    outputs = []
    for number, method in enumerate(TURNS):
        trained = adapt_and_shake(tiny_model(), method, 0.05)
        vera.save(trained, method, tmp_path / f"{number}")
        vera.save_head(trained, tmp_path / f"{number} head")
        outputs.append(answer(trained))
    # Or an adapter would count twice, be off, or not train
    changed = itertools.cycle(
        (vera.disable, lambda model: model.requires_grad_(False), None)
    )
    # After each of the first seven those so many steps on; BitFit and Full leave other
    # base weights
    every = [(step * n) % 7 for step in steps for n in range(7)]
    for turns in ([*every, 0, 7, 0, 7, 8, 7, 9, 7, 10], [7, 11]):
        model = tiny_model()
        for number in turns:
            vera.load(model, tmp_path / f"{number}")
            vera.load_head(model, tmp_path / f"{number} head")
            assert torch.equal(answer(model), outputs[number])
            change = next(changed) or (
                TURNS[number].merge if number < 8 else vera.disable
            )
            change(model)


# --- one adapter as the start of another


def test_an_adapter_starts_another_of_the_same_settings(trained):
    model = tiny_model(num_labels=3)
    method = vera.VeRA(rank=12, projection_seed=3, dropout=0.1)
    method.adapt(model)
    method.merge(model)  # which the start takes back
    vera.start_from(model, trained[2])
    assert not any(layer.merged for layer in adapted_layers(model))
    assert all(
        torch.equal(a.b, b.b)
        for a, b in zip(layer_changes(model), layer_changes(trained[0]), strict=True)
    )
    other = tiny_model()
    vera.VeRA(rank=12, projection_seed=3, d_init=0.2).adapt(other)
    with refused_unchanged(r"its d_init is 0\.1, here it is 0\.2"):
        vera.start_from(other, trained[2])
    assert not any(change.b.any() for change in layer_changes(other))


def test_a_full_disk_leaves_the_old_file_and_says_so(trained, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = trained[2].read_bytes()
    monkeypatch.setattr("vera.checked_file.os.fsync", full)
    with pytest.raises(OSError, match="No space left") as raised:
        vera.save(trained[0], trained[1], trained[2])
    # by which a run's executor knows that it may wait for room
    assert raised.value.errno == errno.ENOSPC
    assert trained[2].read_bytes() == before
    assert sorted(p.name for p in trained[2].parent.iterdir()) == [
        "adapter.safetensors",
        "head.safetensors",
    ]


def test_a_file_that_changed_after_its_check_is_not_read(tmp_path):
    path = tmp_path / "a.safetensors"
    write_file(path, {"w": torch.ones(3)}, {"format": FORMAT})
    file = read_file(path, FORMAT)
    write_file(path, {"w": torch.ones(1)}, {"format": FORMAT})
    with pytest.raises(vera.AdapterError, match="changed while it was read"):
        file.tensors({"w": torch.zeros(3)})


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.empty(2**40),
        lambda: torch.eye(2**20),
        lambda: torch.linspace(0, 1, 2**40),
        lambda: torch.arange(2**40),
        lambda: torch.arange(-1, 1, 2.0**-40),
    ],
)
def test_a_tensor_larger_than_any_adapter_is_refused_before_it_takes_memory(make):
    with refused_unchanged("rank and counts"), Budget(tiny_model()):
        make()


def test_small_ranges_are_within_the_budget():
    with Budget(tiny_model()):
        assert len(torch.arange(2**20, 2**20 + 3)) == 3
        assert len(torch.arange(10**9, 0, -(10**9))) == 1
