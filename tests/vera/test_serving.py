"""Many adapters in one batch: each sample's answer is that of its adapter alone."""

import copy
from collections import OrderedDict

import pytest
import torch
from support import modules, refused_unchanged, write_adapter
from tiers import pair_up
from tiny import tiny, tiny_model
from torch import nn

import vera
from vera.methods.layers import adapted_layers

pytestmark = pytest.mark.contract


def ids(rows: int = 6, tokens: int = 9) -> torch.Tensor:
    return torch.randint(
        3, 30, (rows, tokens), generator=torch.Generator().manual_seed(1)
    )


def logits(output) -> torch.Tensor:
    return output if isinstance(output, torch.Tensor) else output.logits


def train_one(base: nn.Module, seed: int, folder, kind=vera.VeRA, **settings):
    return write_adapter(
        base, kind(**{"rank": 12, **settings}), folder / str(seed), seed
    )


@pytest.mark.parametrize(
    ("settings", "architecture"),
    pair_up(
        [
            *(
                {},
                {"vectors": ["b"]},
                {"shared_b": True},
                {"projections": "unique"},
                {"sites": ["all-linear"]},
            ),
            *(
                {"kind": vera.LoRA, **more}
                for more in ({}, {"sites": ["all-linear"]}, {"freeze_a": True})
            ),
        ],
        ["BERT", "RoBERTa", "GPT-2", "Llama", "ViT", "ViT of timm"],
    ),
)
def test_a_mixed_batch_is_each_adapter_alone(architecture, settings, tmp_path):
    """The dropout of each and the start of its d do not matter."""
    base = tiny(architecture)
    x, model = (
        torch.randn(6, 3, 16, 16) if "ViT" in architecture else ids(),
        copy.deepcopy(base),
    )
    adapters, alone = vera.Adapters(model), {None: base}
    for seed, name in enumerate(("a", "b", "c")):
        starts_alike = {"vectors", "kind"} & settings.keys()
        own = {"dropout": seed / 10} | (
            {} if starts_alike else {"d_init": 0.1 + seed / 5}
        )
        alone[name], path, head = train_one(base, seed, tmp_path, **settings, **own)
        has_head = bool(dict(vera.sites.head_parameters(base)))
        adapters.add(name, path, head if has_head else None)
    names = ["b", "a", None, "b", "c", None]
    with torch.no_grad():
        mixed = logits(model(x, adapter_names=names))
        for i, name in enumerate(names):
            single = logits(alone[name](x[i : i + 1]))
            assert torch.allclose(
                mixed[i : i + 1], single, rtol=0, atol=1e-6 * (1 + single.abs().max())
            )
        assert torch.allclose(logits(model(x)), logits(base(x)), rtol=0, atol=1e-6)
        alike = logits(model(x[:1].expand_as(x), adapter_names=names))
    # One input, six names: equal where the names are, and only there, but for rounding
    # that hangs on the place in the batch.
    apart = torch.tensor([[(a - b).abs().max() for b in alike] for a in alike])
    assert torch.equal(
        apart > 1e-3, torch.tensor([[a != b for b in names] for a in names])
    )


@pytest.fixture
def two(tmp_path):
    base = tiny_model()
    model = copy.deepcopy(base)
    adapters = vera.Adapters(model)
    files = {}
    for seed, name in enumerate(("alice", "bob")):
        _, files[name], _ = train_one(base, seed, tmp_path)
        adapters.add(name, files[name])
    return base, model, adapters, files


def same(one, other):
    assert torch.allclose(one, other, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("beams", "kind"), [(1, vera.VeRA), (3, vera.VeRA), (3, vera.LoRA)]
)
def test_generating_with_another_adapter_for_each_prompt(beams, kind, tmp_path):
    base = tiny("GPT-2")
    model, alone = copy.deepcopy(base), {}
    adapters = vera.Adapters(model)
    for seed in range(3):
        alone[str(seed)], path, _ = train_one(base, seed, tmp_path, kind)
        adapters.add(str(seed), path)
    settings = {
        "max_new_tokens": 12,
        "min_new_tokens": 12,
        "do_sample": False,
        "pad_token_id": 0,
    }
    settings["num_beams"] = beams
    prompts, names = ids(3, 5), ["2", "0", "1"]
    with adapters.use(names):
        together = model.generate(
            prompts, attention_mask=torch.ones_like(prompts), **settings
        )
    for i, name in enumerate(names):
        one = alone[name].generate(
            prompts[i : i + 1], attention_mask=torch.ones(1, 5).long(), **settings
        )
        assert torch.equal(together[i : i + 1], one)
    assert torch.allclose(model(prompts).logits, base(prompts).logits, atol=1e-6)


def test_what_does_not_fit_is_refused_with_nothing_changed(two, tmp_path):
    base, model, adapters, files = two
    for words, path, head in (
        (
            "its rank is 20, here it is 12",
            train_one(base, 7, tmp_path, rank=20)[1],
            None,
        ),
        (
            "its projection_seed is 1",
            train_one(base, 8, tmp_path, projection_seed=1)[1],
            None,
        ),
        ("its sites is", train_one(base, 9, tmp_path, sites=["key"])[1], None),
        ("other base weights", train_one(tiny_model(seed=5), 10, tmp_path)[1], None),
        (
            "its kind is lora",
            write_adapter(base, vera.LoRA(rank=4), tmp_path / "lora")[1],
            None,
        ),
        ("not a file of the format", files["bob"], files["bob"]),
    ):
        with refused_unchanged(words, model):
            adapters.add("carol", path, head)
    assert list(adapters) == ["alice", "bob"]
    model(ids(2), adapter_names=["alice", "bob"])


def test_a_first_adapter_that_does_not_fit_leaves_a_plain_model(tmp_path):
    base = tiny_model()
    plain = modules(base)
    adapters = vera.Adapters(base)
    with refused_unchanged("other base weights", base):
        adapters.add("a", train_one(tiny_model(seed=5), 0, tmp_path)[1])
    with refused_unchanged("a bitfit adapter", base):
        adapters.add("a", write_adapter(base, vera.BitFit(), tmp_path / "bitfit")[1])
    adapters.add("b", train_one(tiny_model(), 1, tmp_path)[1])
    adapters.unload()
    assert modules(base) == plain
    vera.VeRA(rank=4).adapt(base)
    with refused_unchanged("carries an adapter"):
        vera.Adapters(base)


def test_an_adapter_takes_the_memory_of_its_vectors(two):
    _, model, adapters, files = two
    before = sum(t.numel() for t in model.state_dict().values())
    for i in range(5):
        adapters.add(f"more {i}", files["bob"])
    own = [vectors.untyped_storage().nbytes() for vectors in adapters.vectors.values()]
    assert own == [4 * adapters.method.count(model)] * 7
    assert sum(t.numel() for t in model.state_dict().values()) == before
    adapters.remove("more 3")
    assert len(adapters) == 6


@torch.no_grad()
def test_use_reaches_parts_of_the_model_and_names_given_to_a_part_are_refused(two):
    base, model, adapters, files = two
    vera.load(alone := copy.deepcopy(base), files["bob"])
    with adapters.use(["bob"]):
        inside = model.bert(ids()).last_hidden_state
    same(inside, alone.bert(ids()).last_hidden_state)
    same(model.bert(ids()).last_hidden_state, base.bert(ids()).last_hidden_state)
    with refused_unchanged("goes to the whole model"):
        model.bert(ids(), adapter_names=["bob"] * 6)


@torch.no_grad()
def test_names_come_as_any_list_and_must_be_known_one_for_each_sample(two):
    base, model, adapters, files = two
    vera.load(alone := copy.deepcopy(base), files["bob"])
    expected = model(ids(), adapter_names=["bob"] * 6).logits
    same(expected, alone(ids()).logits)  # by the model's own head
    assert torch.equal(model(ids(), adapter_names=iter(["bob"] * 6)).logits, expected)
    with adapters.use(name for name in ["bob"] * 6):
        assert torch.equal(model(ids()).logits, expected)
        other = model(
            position_ids=torch.arange(9)[None],
            input_ids=ids(),
            adapter_names=["alice"] * 6,
        ).logits
        assert not torch.allclose(other, expected)
        assert torch.equal(model(ids()).logits, expected)
    vera.VeRA(rank=4).adapt(single := tiny_model())
    for act, named in (
        (
            lambda: model(ids(), adapter_names=["alise"] * 6),
            "no adapter 'alise' among the 2 here",
        ),
        (lambda: model(ids(), adapter_names=[3] * 6), "adapter 3"),
        *(
            (
                lambda n=n: model(ids(), adapter_names=["alice"] * n),
                f"{n} adapter names for 6 samples",
            )
            for n in (5, 3, 0)
        ),
        *(
            (lambda names=names: adapters.use(names).__enter__(), "no adapter")
            for names in ([], ["x"])
        ),
        (lambda: adapters.add("bob", "nowhere"), "already"),
        (lambda: adapters.remove("x"), "no adapter 'x'"),
        (lambda: single(ids(), adapter_names=["a"] * 6), r"vera\.Adapters"),
    ):
        with refused_unchanged(named, model):
            act()
    same(model(ids()).logits, base(ids()).logits)  # nothing is left


@torch.no_grad()
def test_a_call_that_fails_or_is_interrupted_leaves_the_base_model_for_the_next(two):
    base, model, _, _ = two

    def interrupt(*arguments):
        raise KeyboardInterrupt

    with pytest.raises(IndexError):
        model(torch.full((2, 3), 10**6), adapter_names=["alice", "bob"])
    assert all(
        c.sample_parameters is None
        for layer in adapted_layers(model)
        for c in layer.changes.values()
    )
    hook = model.bert.encoder.layer[1].register_forward_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        model(ids(), adapter_names=["alice"] * 6)
    hook.remove()
    same(model(ids()).logits, base(ids()).logits)


def test_a_model_that_holds_many_is_not_loaded_or_unloaded_otherwise(two, tmp_path):
    base, model, adapters, files = two
    for change in (
        *(vera.unload, vera.Adapters, lambda m: vera.load(m, files["bob"])),
        lambda m: vera.start_from(m, files["bob"]),
    ):
        with refused_unchanged("holds many adapters"):
            change(model)
    for name in list(adapters):
        adapters.remove(name)
    # after the last one, of another rank
    adapters.add("wide", train_one(base, 5, tmp_path, rank=20)[1])
    model(ids(2), adapter_names=["wide", None])
    adapters.unload()
    vera.load(model, files["bob"])


@torch.no_grad()
def test_a_model_cast_afterwards_answers_in_its_new_precision(two):
    _, model, _, _ = two
    names = ["alice", "bob"] * 3
    expected = model(ids(), adapter_names=names).logits
    model.double()
    near = {"rtol": 0, "atol": 1e-5}
    assert torch.allclose(
        model(ids(), adapter_names=names).logits.float(), expected, **near
    )
    assert model.classifier(input=torch.zeros(1, 32).double()).shape == (1, 2)


class Folding(nn.Module):
    """Its layers read each token as a sample."""

    def __init__(self):
        super().__init__()
        self.query = nn.Linear(8, 8)

    def forward(self, x):
        return self.query(x.reshape(-1, 8))


class NeverCalled(nn.Module):
    """A model that reaches into its head and never calls it."""

    base_model_prefix = "body"

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(OrderedDict(query=nn.Linear(8, 8)))
        self.heads = nn.ModuleList([nn.Linear(8, 3)])

    def forward(self, x):
        return self.heads[0](self.body(x))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (Folding, "10 samples, for 2 adapter names"),
        (NeverCalled, "own head was never called"),
    ],
)
def test_what_does_not_keep_samples_or_heads_apart_is_no_silent_answer(
    build, words, tmp_path
):
    base = build()
    model = copy.deepcopy(base)
    _, path, head = train_one(base, 0, tmp_path, sites=["query"])
    vera.Adapters(model).add("a", path, head if build is NeverCalled else None)
    with refused_unchanged(words):
        model(torch.randn(2, 5, 8), adapter_names=["a", "a"])
