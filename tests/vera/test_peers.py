"""VeRA's peers against their formulas, written out, in float64; and what each of them
alone can do or refuses."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from support import adapt_and_shake, refused_unchanged
from tiny import answer, quantise, tiny, tiny_model
from torch import nn

import vera
from vera.adapter_file import FORMAT
from vera.checked_file import read_file
from vera.methods.dylora import draw_rank
from vera.methods.layers import adapted_layers, base_weight, layer_changes
from vera.methods.lora_xs import rounded_hash, singular_factors
from vera.projections import ProjectionSpec, unit_uniform
from vera.sites import find_sites

pytestmark = pytest.mark.contract

IMAGES = ("ViT", "DINOv2", "ViT of timm", "ViT of timm in transformers")


def adapted(method, architecture="BERT"):
    return adapt_and_shake(tiny(architecture).double(), method)


def numbers(tensor):
    return tensor.detach().numpy()


# --- the formulas: the change of the weight (out, in), from the parameters of a change


def drawn(*matrices):
    return [torch.from_numpy(matrix).double() for matrix in matrices]


def vera_plus(change, method):
    a, b = drawn(*ProjectionSpec(method.projection_seed, method.rank, 64, 64).make())
    a, b = a[:, : len(change.c)], b[: len(change.b)]
    scale = method.alpha / math.sqrt(method.rank)
    return scale * torch.einsum("i,ir,r,rj,j->ij", change.b, b, change.d, a, change.c)


def lora_xs(change, method):
    """By the singular vectors of W0 as numpy gives them: the signs cancel in no entry
    of R, so they are taken from the definition, the largest entry of each right one
    being positive."""
    u, s, vt = np.linalg.svd(change.weight_before)
    rank = method.rank
    sign = np.array([np.sign(row[np.abs(row).argmax()]) for row in vt[:rank]])
    a, b = drawn((s[:rank] * sign)[:, None] * vt[:rank], u[:, :rank] * sign)
    return method.alpha / rank * b @ change.R @ a


def tied_lora(change, method):
    (pair,) = change._shared
    a, b = (
        pair.A[:, : len(change.weight_before[0])],
        pair.B[: len(change.weight_before)],
    )
    return (
        method.alpha
        / method.rank
        * torch.einsum("i,ir,r,rj->ij", change.v, b, change.u, a)
    )


def nola(change, method):
    k, r, (out, n) = method.bases, method.rank, change.weight_before.shape
    keys = zip((2, 3, 4), (r, k * r, k * r), strict=True)
    start, of_a, of_b = drawn(
        *(unit_uniform(method.basis_seed, key, rows, 64) for key, rows in keys)
    )
    a = torch.einsum("i,irn->rn", change.a, of_a.view(k, r, 64)[..., :n]) / math.sqrt(k)
    b = torch.einsum("i,iro->or", change.b, of_b.view(k, r, 64)[..., :out]) / math.sqrt(
        k
    )
    return method.alpha / r * b @ (a + start[:, :n] / math.sqrt(n))


def dylora(change, method):
    """At the rank that is drawn; the rest of A and B has no gradient. Frozen, the last
    of them alone has."""
    used = change.drawn_rank if change.training else method.rank
    number = torch.arange(method.rank)
    trains = number == used - 1 if change.training and method.frozen else number < used
    a = (
        torch.where(trains[:, None], change.A, change.A.detach())
        * (number < used)[:, None]
    )
    b = torch.where(trains, change.B, change.B.detach()) * (number < used)
    return method.alpha / used * b @ a


def adalora(change, method):
    return (
        method.alpha
        / (method.init_rank + 1e-5)
        * change.B
        @ torch.diag(change.E[:, 0])
        @ change.A
    )


SITES = ("query", "dense")
FORMULAS = {
    "vera_plus": (vera.VeRAPlus(rank=12, alpha=3.0, sites=SITES), vera_plus),
    "lora_xs": (vera.LoRAXS(rank=4, alpha=6.0, sites=SITES), lora_xs),
    "tied_lora": (vera.TiedLoRA(rank=4, alpha=6.0, sites=SITES), tied_lora),
    "nola": (vera.NoLA(rank=3, bases=5, alpha=2.0, sites=SITES, basis_seed=7), nola),
    "dylora": (vera.DyLoRA(rank=4, alpha=6.0, sites=SITES), dylora),
    "dylora_frozen": (vera.DyLoRA(rank=4, alpha=6.0, sites=SITES, frozen=True), dylora),
    "adalora": (vera.AdaLoRA(rank=2, init_rank=4, alpha=6.0, sites=SITES), adalora),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_outputs_gradients_and_merged_weights_are_the_formulas(name):
    """Of each matrix by itself: 32 x 32, 64 x 32 and 32 x 64."""
    method, formula = FORMULAS[name]
    model, shapes = adapted(method).train(), set()
    method.before_training(model, 10)
    for layer in adapted_layers(model):
        change = layer.changes["whole"]
        change.weight_before = numbers(layer.weight()).copy()
        shapes.add(change.weight_before.shape)
        x, g = (
            torch.randn(5, n, dtype=torch.float64)
            for n in (change.inputs, change.outputs)
        )
        shared = [
            p
            for of_pair in getattr(change, "_shared", ())
            for p in of_pair.parameters()
        ]
        trained = [*change.parameters(), *shared]
        outputs = layer(x), layer.base(x) + x @ formula(change, method).T
        assert torch.allclose(*outputs, rtol=0, atol=1e-10)
        of_both = (torch.autograd.grad(y, trained, g) for y in outputs)
        for mine, wanted in zip(*of_both, strict=True):
            assert wanted.abs().max() > 1e-8
            assert torch.allclose(mine, wanted, rtol=0, atol=1e-10)
        layer.eval()
        merged = change.weight_before + numbers(formula(change, method))
        layer.merge()
        assert np.allclose(numbers(layer.weight()), merged, rtol=0, atol=1e-10)
    assert shapes == {(32, 32), (64, 32), (32, 64)}


# --- LoRA-XS


def test_each_sign_is_that_of_the_largest_entry_and_a_fingerprint_sees_no_last_bits():
    weight = torch.randn(40, 30, generator=torch.Generator().manual_seed(3))
    a, b = singular_factors(weight, 5)
    assert (a.gather(1, a.abs().argmax(1, keepdim=True)) > 0).all()
    assert torch.allclose(b.T @ b, torch.eye(5, dtype=torch.float64), atol=1e-12)
    largest, generator = float(a.norm(dim=1).max()), torch.Generator().manual_seed(4)
    noise = 1e-13 * torch.randn(a.shape, generator=generator, dtype=torch.float64)
    assert rounded_hash(a + noise, largest) == rounded_hash(a, largest)
    for other in (-a, a.flip(0), a + 1e-4 * largest):
        assert rounded_hash(other, largest) != rounded_hash(a, largest)


def changed_base(model):
    """The same model, with one query's weight changed."""
    layer = next(
        m for n, m in model.named_modules() if n.endswith("attention.self.query")
    )
    with torch.no_grad():
        layer.weight += 0.01 * torch.randn(
            layer.weight.shape, generator=torch.Generator().manual_seed(8)
        )
    return model


@pytest.mark.parametrize("store", [False, True])
def test_the_file_holds_r_alone_or_a_pair_that_goes_onto_other_weights(store, tmp_path):
    method, model, other = (
        vera.LoRAXS(rank=4, store=store),
        tiny_model(),
        changed_base(tiny_model()),
    )
    adapt_and_shake(model, method)
    vera.save(model, method, tmp_path / "a")
    file = read_file(tmp_path / "a", FORMAT)
    header, tensors = file.header, file.tensors()
    assert sum(t.numel() for t in tensors.values()) == 4 * (16 + store * 2 * 4 * 32)
    assert set(header["fixed"]) == set("" if store else "AB")
    for allowed in (False,) if store else (False, True):
        with refused_unchanged(
            "other base weights" if store else f"{header['fixed']['A']}.*store=true",
            other,
        ):
            vera.load(other, tmp_path / "a", allow_other_base=allowed)
    if store:
        vera.load(other, tmp_path / "a", allow_other_base=True)
        pairs = zip(layer_changes(model), layer_changes(other), strict=True)
        assert all(
            torch.equal(ours.weight(), theirs.weight()) for ours, theirs in pairs
        )
    with refused_unchanged("unquantised"):
        vera.load(quantise(tiny_model()), tmp_path / "a")


def test_a_rank_beyond_the_matrix_is_refused_and_a_fused_blocks_pair_is_of_that_block():
    with refused_unchanged(r"rank 33 is above .*query, 32 x 32"):
        vera.LoRAXS(rank=33).adapt(tiny_model())
    vera.LoRAXS(rank=32).adapt(tiny_model())
    model = tiny("GPT-2").double()
    found = find_sites(model, ("query", "value")).items()
    places = [
        (model.get_submodule(path), rows)
        for path, blocks in found
        for rows in blocks.values()
    ]
    weights = [base_weight(*place).clone() for place in places]
    vera.LoRAXS(rank=4).adapt(model)
    for change, weight in zip(layer_changes(model), weights, strict=True):
        assert all(map(torch.equal, (change.A, change.B), singular_factors(weight, 4)))


@pytest.mark.parametrize(
    ("name", "seed"), [("vera_plus", "projection_seed"), ("nola", "basis_seed")]
)
def test_what_a_seed_draws_is_in_no_file_and_has_its_own_fingerprint(name, seed):
    method = FORMULAS[name][0]
    model, second = adapted(method), dataclasses.replace(method, **{seed: 99})
    assert sum(t.numel() for t in method.saved(model).values()) == method.count(model)
    assert (
        second.fixed(adapted(second))["fingerprint"]
        != method.fixed(model)["fingerprint"]
    )


# --- DyLoRA


def test_every_rank_is_drawn_about_as_often_one_for_each_step_by_seed_and_step_alone():
    drawn = [draw_rank(5, step, 8) for step in range(1, 1601)]
    assert drawn == [draw_rank(5, step, 8) for step in range(1, 1601)]
    assert drawn != [draw_rank(6, step, 8) for step in range(1, 1601)]
    assert all(150 < drawn.count(rank) < 250 for rank in range(1, 9))
    method, model, ranks = vera.DyLoRA(rank=8), tiny_model(), set()
    method.adapt(model)
    method.before_training(model, 20)
    for step in range(1, 21):
        (rank,) = {change.drawn_rank for change in layer_changes(model)}
        ranks.add(rank)
        method.after_step(model, step)
    assert 3 < len(ranks) <= 8


# --- SSF


@pytest.mark.parametrize("architecture", IMAGES)
def test_ssf_is_its_formula_with_gradients(architecture):
    """gamma * f(x) + beta after each linear layer, LayerNorm and the patch embedding,
    each by itself."""
    model = adapted(vera.SSF(), architecture)
    base = tiny(architecture).double()
    inside = [(path, m) for path, m in model.named_modules() if hasattr(m, "ssf")]
    linears = find_sites(base, ("all-linear",))
    norms = [path for path, m in base.named_modules() if isinstance(m, nn.LayerNorm)]
    patches = [path for path, m in base.named_modules() if isinstance(m, nn.Conv2d)]
    assert min(map(len, (linears, norms, patches)))
    assert sorted(path for path, _ in inside) == sorted([*linears, *norms, *patches])
    for path, module in inside:
        image = isinstance(module, nn.Conv2d)
        x = torch.randn(
            (2, 3, 16, 16) if image else (2, 5, module.weight.shape[-1]),
            dtype=torch.float64,
        )
        vectors = module.ssf.gamma, module.ssf.beta
        gamma, beta = (v.view(1, -1, 1, 1) if image else v for v in vectors)
        expected = gamma * base.get_submodule(path)(x) + beta
        output = module(x)
        assert torch.allclose(output, expected, rtol=0, atol=1e-12)
        g = torch.randn(expected.shape, dtype=torch.float64)
        of_both = (torch.autograd.grad(y, vectors, g) for y in (output, expected))
        for mine, wanted in zip(*of_both, strict=True):
            assert torch.allclose(mine, wanted, rtol=0, atol=1e-10)


def test_ssf_starts_next_to_the_base_model():
    expected = answer(start := tiny("ViT").double())
    vera.SSF().adapt(start)
    assert 0 < (answer(start) - expected).abs().max() < 0.5


def without_bias(kind):
    """A ViT whose last linear layer, or norms, have no bias to take the shift."""
    model = tiny("ViT")
    for path, m in [*model.named_modules()]:
        if kind == "RMSNorm" and isinstance(m, nn.LayerNorm):
            model.set_submodule(path, nn.RMSNorm(m.normalized_shape))
        elif kind == "Linear" and isinstance(m, nn.Linear):
            m.bias = None
    return model


@pytest.mark.parametrize(
    ("model", "named"),
    [
        *(
            (lambda: without_bias("RMSNorm"), "RMSNorm"),
            (lambda: without_bias("Linear"), "Linear"),
        ),
    ],
)
def test_ssf_refuses_what_it_cannot_merge(model, named):
    model = model()
    vera.SSF().adapt(model)
    with refused_unchanged(named, model):
        vera.SSF().merge(model)
