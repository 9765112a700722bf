"""VeRA's paths against plain autograd, what they share and keep, and the model of their
cost."""

import copy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from support import adapt_and_shake, refused_unchanged
from tiers import slow_except
from tiny import ARCHITECTURES, answer, quantise, tiny, tiny_config, tiny_model
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import BertModel
from transformers.pytorch_utils import Conv1D

import vera
from vera.kernels import Group, KernelPlan, Workload, added_flops, choose_plan, merged
from vera.kernels.group import float32_slowdown
from vera.methods.adapted import remove_hooks
from vera.methods.layers import adapted_layers, layer_changes

pytestmark = pytest.mark.parity

FORCED = [
    ("factor", "auto"),
    *product(("hybrid", "materialised"), ("keep", "recompute")),
]


class Attention(nn.Module):
    """Reads one input three times; the key is never adapted."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(inputs, outputs), nn.Linear(inputs, 6)
        self.value = nn.Linear(inputs, outputs + 3, bias=False)

    def forward(self, x):
        return [torch.tanh(self.query(x)), self.key(x), self.value(x)]


class Fused(nn.Module):
    """GPT-2's form: query, key and value are blocks of one transposed matrix."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.c_attn = Conv1D(3 * width, width)

    def forward(self, x):
        return [torch.tanh(self.c_attn(x))]


def attend(model, x):
    """A scalar in which every output counts differently."""
    weighed = (y * torch.arange(1, y.shape[-1] + 1).to(y) for y in model(x))
    return sum((i + 1) * y.square().sum() for i, y in enumerate(weighed))


def plainly(model):
    """Replaces every adapted layer's forward pass by the formula, term by term, for
    plain autograd."""
    remove_hooks(model, model._adaptation.hooks)
    for layer in adapted_layers(model):

        def forward(x, layer=layer):
            y = layer.base(x)
            added = torch.zeros_like(y)
            for name, c in layer.changes.items():
                u = torch.einsum("rn,...n->...r", c.A, x)
                v = torch.einsum("mr,...r->...m", c.B, u if c.d is None else u * c.d)
                rows = layer.output_slices[name]
                own = v if c.b is None else v * c.b
                added = added + F.pad(own, (rows.start, y.shape[-1] - rows.stop))
            return y + added

        layer.forward = forward
    return model


def pair(build, rank, path, weights, **settings):
    """A float64 model on a forced path, and the same with the formula in plain
    autograd."""
    torch.manual_seed(0)
    model = adapt_and_shake(
        build().double(), vera.VeRA(rank=rank, path=path, weights=weights, **settings)
    )
    return model, plainly(copy.deepcopy(model))


def same_of_parameters(ours, theirs) -> None:
    for (name, mine), (_, other) in zip(
        ours.named_parameters(), theirs.named_parameters(), strict=True
    ):
        assert (mine.grad is None) == (other.grad is None), name
        if mine.grad is not None:
            assert other.grad.abs().max() > 0
            assert torch.allclose(
                mine.grad, other.grad, rtol=0, atol=1e-10 * other.grad.abs().max()
            ), name


def same_gradients(ours, theirs, x, needs_x: bool = True) -> None:
    inputs = [x.clone().requires_grad_(needs_x) for _ in range(2)]
    losses = [attend(model, i) for model, i in zip((ours, theirs), inputs, strict=True)]
    assert torch.allclose(*losses, rtol=1e-10)
    for loss in losses:
        loss.backward()
    if needs_x:
        assert torch.allclose(
            inputs[0].grad,
            inputs[1].grad,
            rtol=0,
            atol=1e-10 * inputs[1].grad.abs().max(),
        )
    same_of_parameters(ours, theirs)


CASES = [  # the model and its sizes, VeRA's settings, and the layer that does not train
    *(
        (Attention, 8, 8, {"rank": 1}, None),
        (Attention, 8, 8, {"rank": 1, "projections": "unique"}, None),
    ),
    *((Attention, 24, 7, {"rank": 5}, None), (Attention, 6, 24, {"rank": 40}, None)),
    (Attention, 6, 24, {"rank": 40, "projections": "unique"}, None),
    *(
        (Fused, 8, 8, {"sites": sites}, None)
        for sites in (("key",), ("query", "key", "value"), ("c_attn",))
    ),
    *((Fused, 8, 8, {}, None), (Attention, 8, 6, {"vectors": ("b",)}, None)),
    (Attention, 8, 6, {"vectors": ("d",), "d_init": 0.0}, None),
    *((Attention, 8, 6, {}, "query"), (Attention, 8, 6, {}, "value")),
]


#: Each path with every fifth case, and each case on two paths; the rest is slow.
FAST = [
    (FORCED[(i + more) % len(FORCED)], case)
    for i, case in enumerate(CASES)
    for more in (0, 2)
]


@pytest.mark.parametrize(("how", "case"), slow_except(product(FORCED, CASES), *FAST))
def test_every_path_is_plain_autograd(how, case):
    """In inference; and in training after it, which what inference kept does no harm
    to."""
    (path, weights), (model, inputs, outputs, settings, frozen) = how, case
    of_path = {"path": path, "weights": weights, "rank": 12, **settings}
    ours, theirs = pair(lambda: model(inputs, outputs), **of_path)
    for model in (ours, theirs) if frozen else ():
        getattr(model, frozen).requires_grad_(False)
    x = torch.randn(3, 5, inputs).double()
    for guard in (torch.no_grad, torch.inference_mode, torch.no_grad):
        with guard():
            for mine, other in zip(ours(x), theirs(x), strict=True):
                assert torch.allclose(mine, other, rtol=0, atol=1e-12)
    for needs_x in (True, False):
        same_gradients(ours, theirs, x, needs_x)


@pytest.mark.parametrize(("path", "weights"), FORCED)
def test_an_output_that_is_not_used_has_no_gradient(path, weights):
    ours, theirs = pair(lambda: Attention(8, 6), 12, path, weights)
    x = torch.randn(3, 5, 8).double()
    for model in (ours, theirs):
        model(x)[2].square().sum().backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        of_both = (
            torch.zeros_like(mine) if p.grad is None else p.grad for p in (mine, other)
        )
        assert torch.allclose(*of_both, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("path", "weights"), FORCED)
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(path, weights, reentrant):
    ours, theirs = pair(lambda: nn.Sequential(Attention(8, 6)), 12, path, weights)
    block = ours[0]
    ours.forward = lambda x: checkpoint(
        lambda y: tuple(block(y)), x, use_reentrant=reentrant
    )
    same_gradients(ours, theirs, torch.randn(3, 5, 8).double())


@pytest.mark.parametrize(("path", "weights"), FORCED)
def test_bf16_autocast_is_float32_to_its_precision(path, weights):
    torch.manual_seed(0)
    model = adapt_and_shake(
        Attention(64, 48), vera.VeRA(rank=96, path=path, weights=weights), 0.1
    )
    x, results = torch.randn(4, 16, 64), []
    for half in (False, True):
        copied, inputs = copy.deepcopy(model), x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
            outputs = copied(inputs)
        if half:
            assert outputs[0].dtype == outputs[2].dtype == torch.bfloat16
        sum(o.float().square().mean() for o in outputs).backward()
        gradients = [p.grad for p in copied.parameters() if p.requires_grad]
        assert all(g.dtype == torch.float32 for g in gradients)
        results.append(
            [*(o.detach().float() for o in outputs), inputs.grad, *gradients]
        )
    for full, rough in zip(*results, strict=True):
        assert (full - rough).norm() < 0.01 * full.norm()


# --- accumulation


@pytest.mark.parametrize("weights", ["keep", "recompute"])
@pytest.mark.parametrize("path", ["hybrid", "materialised"])
def test_accumulation_is_the_whole_batch_and_merges_once(path, weights, monkeypatch):
    merges, merge = [], merged.merge
    monkeypatch.setattr(merged, "merge", lambda *a: merges.append(a[0]) or merge(*a))
    ours, theirs = pair(lambda: Attention(8, 6), 12, path, weights)
    x = torch.randn(6, 5, 8).double()
    with vera.unchanged(ours):
        with vera.unchanged(ours):
            ours(x)  # the outer one holds
        for part in x.split(2):
            attend(ours, part.clone().requires_grad_()).backward()
        assert len(ours.query.group.kept_weights) == (2 if weights == "keep" else 0)
    # Query and value: a forward pass; and forward and backward of 3 micro-batches
    assert len(merges) == {"keep": 2, "recompute": 2 + 12}[weights]
    assert ours.query.group.kept_weights is None
    attend(theirs, x).backward()
    same_of_parameters(ours, theirs)
    for model in (ours, theirs):  # and nothing that was merged outlives a change
        next(layer_changes(model)).b.data.add_(0.1)
        model.query.base.weight.data.mul_(2)
        model.zero_grad()
    same_gradients(ours, theirs, x)


@pytest.mark.parametrize(
    ("weights", "change"), [("keep", "b"), ("recompute", "b"), ("recompute", "merge")]
)
def test_a_change_between_forward_and_backward_is_an_error_as_in_plain_torch(
    weights, change
):
    model, method = Attention(8, 6), vera.VeRA(rank=12, path="hybrid", weights=weights)
    adapt_and_shake(model, method)
    loss = attend(model, torch.randn(3, 5, 8, requires_grad=True))
    with torch.no_grad():
        method.merge(model) if change == "merge" else next(layer_changes(model)).b.add_(
            0.1
        )
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


# --- groups


SEPARATE = ("BERT", "RoBERTa", "Llama", "ViT", "DINOv2")


@pytest.mark.parametrize(
    ("architecture", "sites", "sizes"),
    [
        *(
            (name, ("query", "value"), [2, 2] if name in SEPARATE else [1, 1])
            for name in ARCHITECTURES
        ),
        ("Llama", ("all-linear",), [3, 1, 2, 1] * 2),  # q k v, o, gate up, down
    ],
)
def test_matrices_of_one_input_compute_together_once_a_block(
    architecture, sites, sizes, monkeypatch
):
    computed, compute = [], Group.compute  # how many layers each computation had
    monkeypatch.setattr(
        Group, "compute", lambda *of: computed.append(len(of[1])) or compute(*of)
    )
    model = tiny(architecture)
    vera.VeRA(rank=12, sites=sites).adapt(model)
    answer(model)
    assert computed == sizes
    assert all(layer.group.call is None for layer in adapted_layers(model))


def test_the_values_of_a_cross_attention_are_of_their_own_input():
    torch.manual_seed(0)
    decoder = BertModel(
        tiny_config("bert", is_decoder=True, add_cross_attention=True)
    ).eval()
    model = adapt_and_shake(decoder.double(), vera.VeRA(rank=12))
    other = plainly(copy.deepcopy(model))
    ids, seen = torch.randint(3, 30, (2, 7)), torch.randn(2, 9, 32).double()
    of_both = [
        m(input_ids=ids, encoder_hidden_states=seen).last_hidden_state
        for m in (model, other)
    ]
    assert torch.allclose(*of_both, rtol=0, atol=1e-10)


@pytest.mark.parametrize("guard", [torch.enable_grad, torch.inference_mode])
def test_an_input_changed_in_place_is_computed_anew(guard):
    class InPlace(Attention):
        def forward(self, x):
            return super().forward(x.mul_(2))

    ours, theirs = pair(lambda: InPlace(8, 6), 12, "auto", "auto")
    x = torch.randn(3, 5, 8).double()
    with guard():
        for mine, other in zip(ours(x.clone()), theirs(x.clone()), strict=True):
            assert torch.allclose(mine, other, rtol=0, atol=1e-12)


def test_nothing_is_left_of_a_call_that_failed():
    class Failing(Attention):
        def forward(self, x):
            super().forward(x)
            raise KeyError("of the model's own")

    model = Failing(8, 6)
    vera.VeRA(rank=12).adapt(model)
    with pytest.raises(KeyError):
        model(torch.randn(2, 8))
    group = model.query.group
    assert group.call is None
    assert group.layers == [model.query, model.value]


def test_transforms_of_torch_func_see_plain_operations():
    ours, theirs = pair(lambda: Attention(64, 48), 96, "auto", "auto")
    ours, theirs = ours.float(), theirs.float()
    for module in theirs.modules():
        module.requires_grad_(False)
    x = torch.randn(600, 64)
    results = [torch.func.grad(lambda x, m=m: attend(m, x))(x) for m in (ours, theirs)]
    assert torch.allclose(*results, rtol=1e-4, atol=1e-2 * results[1].abs().max())


def test_float16_does_not_overflow_where_the_factor_path_does_not():
    torch.manual_seed(0)
    for path in ("factor", "hybrid", "materialised"):
        torch.manual_seed(0)
        model = adapt_and_shake(Attention(64, 48), vera.VeRA(rank=256, path=path))
        with torch.autocast("cpu", dtype=torch.float16):
            loss = (
                sum(o.float().square().sum() for o in model(torch.randn(600, 64))) * 100
            )
        loss.backward()
        assert all(
            torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad
        ), path


# --- combinations that would be wrong


def hooked(model):
    for layer in [m for m in model.modules() if isinstance(m, nn.Linear)]:
        layer.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize("path", ["hybrid", "materialised"])
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (quantise, "quantised"),
        (lambda model: model.to(torch.bfloat16), "bfloat16"),
        (hooked, "hooks"),
    ],
)
def test_a_base_that_cannot_be_merged_takes_the_factor_path_and_no_other(
    path, spoil, words, monkeypatch
):
    model = tiny_model()
    spoil(model)
    with refused_unchanged(words):
        vera.VeRA(rank=40, path=path).adapt(model)
    assert not any(m._forward_pre_hooks for m in model.modules())
    vera.VeRA(rank=40).adapt(model)
    monkeypatch.setattr(merged, "merge", None)
    answer(model)
    spoilt_later = Attention(8, 6)
    vera.VeRA(rank=12, path=path).adapt(spoilt_later)
    spoilt_later.query.base.requires_grad_(True)
    with refused_unchanged("trains"):
        spoilt_later(torch.randn(2, 8))


def test_a_base_that_trains_after_all_gets_its_gradient():
    thawed = Attention(8, 6)
    vera.VeRA(rank=12).adapt(thawed)
    thawed.requires_grad_(True)
    attend(thawed, torch.randn(600, 8)).backward()
    assert thawed.query.base.weight.grad.abs().max() > 0


# --- the cost model


#: Inputs, outputs of the group, rank: RoBERTa-base's and -large's query and value, and
#: a 4096 x 4096 matrix.
BASE, LARGE, SQUARE = (768, 1536, 1024), (1024, 2048, 256), (4096, 4096, 1024)
#: On a GPU under autocast a merge in float32 is dear; many tokens are worth one.
DEAR = float32_slowdown(torch.device("cuda"), autocast=True)


@pytest.mark.parametrize(
    ("shape", "tokens", "slower", "path"),
    [
        *(
            (BASE, 511, 1, "factor"),
            (BASE, 513, 1, "hybrid"),
            (BASE, 1023, 1, "hybrid"),
        ),
        *(
            (BASE, 1025, 1, "materialised"),
            (LARGE, 100_000, 1, "hybrid"),
            (SQUARE, 2047, 1, "factor"),
        ),
        *(
            (SQUARE, 2049, 1, "hybrid"),
            (SQUARE, 100_000, 1, "hybrid"),
            (BASE, 3000, DEAR, "factor"),
        ),
        (BASE, 65536, DEAR, "materialised"),
    ],
)
def test_the_crossovers(shape, tokens, slower, path):
    work = Workload(tokens, *shape, merge_slowdown=slower)
    assert choose_plan(work, weights="keep").path == path
    # where the factor path would need as much
    keeps_weights = choose_plan(work).keep
    assert keeps_weights == (shape[0] * shape[1] <= tokens * (shape[2] + shape[1]))
    if shape is BASE and slower == 1:  # an inference merges from the first crossover on
        inference = Workload(tokens, *shape, training=False)
        assert (choose_plan(inference).path == "factor") == (path == "factor")


@pytest.mark.parametrize("path", ["factor", "hybrid", "materialised"])
@pytest.mark.parametrize("keep", [True, False])
def test_flops_are_those_that_torch_counts(path, keep):
    """Beyond the frozen layers: torch's own counter on a training step with and without
    the adapter."""
    from torch.utils.flop_counter import FlopCounterMode

    tokens, inputs, outputs, rank = 50, 24, 16, 40
    model = Attention(inputs, outputs)
    model.value = nn.Linear(inputs, outputs)
    adapted = copy.deepcopy(model)
    vera.VeRA(rank=rank, path=path, weights="keep" if keep else "recompute").adapt(
        adapted
    )
    model.requires_grad_(False)
    counts = []
    for m in (model, adapted):
        with FlopCounterMode(display=False) as counter:
            attend(m, torch.randn(tokens, inputs, requires_grad=True)).backward()
        counts.append(counter.get_total_flops())
    # C d and C^T b of two matrices, which the model leaves out
    vectors = 2 * 2 * 2 * outputs * rank * (path != "factor")
    measured = counts[1] - counts[0]
    work = Workload(tokens, inputs, 2 * outputs, rank)
    modelled = added_flops(KernelPlan(path, keep), work)
    assert measured - vectors <= modelled <= measured


def test_a_merge_is_as_fast_as_a_product_but_on_a_gpu_under_autocast():
    assert DEAR > 1
    assert float32_slowdown(torch.device("cuda"), autocast=False) == 1
    assert float32_slowdown(torch.device("cpu"), autocast=True) == 1
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        assert float32_slowdown(torch.device("cuda"), autocast=True) == 1
    finally:
        torch.backends.cuda.matmul.allow_tf32 = False


def test_onednn_is_torchs_product():
    torch.manual_seed(0)
    x, weight, bias = torch.randn(300, 96), torch.randn(70, 96), torch.randn(70)
    assert merged.onednn_computes(x, weight)
    # of B the leading rows, which are whole
    assert merged.onednn_computes(x, torch.randn(100, 96)[:32])
    # Of rows that do not follow each other, such as A[:, :in], oneDNN has no fast
    # kernel
    assert not merged.onednn_computes(x, torch.randn(32, 128)[:, :96])
    assert not merged.onednn_computes(
        torch.randn(300, 32), torch.randn(32, 128)[:, :96].T
    )
    for w, b in ((weight, bias), (weight, None), (torch.randn(96, 70).T, bias)):
        assert torch.allclose(
            merged.linear_no_grad(x, w, b), F.linear(x, w, b), rtol=0, atol=1e-4
        )
    inputs = [x.clone().requires_grad_() for _ in range(2)]
    merged.frozen_linear(inputs[0], weight).square().sum().backward()
    F.linear(inputs[1], weight).square().sum().backward()
    assert torch.allclose(inputs[0].grad, inputs[1].grad, rtol=1e-4, atol=1e-2)
