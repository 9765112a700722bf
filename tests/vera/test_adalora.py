"""AdaLoRA of this library and by peft: peft's own loop step by step, and its
allocation's state."""

import copy
import itertools

import pytest
import torch
from peft import AdaLoraConfig, get_peft_model
from peft.tuners.adalora import RankAllocator
from support import refused_unchanged
from tiny import answer, tiny_model
from torch import nn

import vera
from vera.methods.layers import layer_changes

pytestmark = pytest.mark.parity

STEPS = 12
#: peft's names for the schedule, and ours over STEPS steps.
THEIRS = {
    "init_r": 6,
    "target_r": 2,
    "lora_alpha": 10,
    "tinit": 2,
    "tfinal": 3,
    "deltaT": 2,
}
OURS = vera.AdaLoRA(
    rank=2,
    init_rank=6,
    alpha=10.0,
    initial_share=2 / STEPS,
    final_share=3 / STEPS,
    interval=2,
)
METHODS = [OURS, vera.Peft("AdaLoraConfig", THEIRS)]


def batch():
    ids = torch.randint(3, 30, (4, 9), generator=torch.Generator().manual_seed(1))
    return ids, torch.tensor([0, 1, 1, 0])


def steps(model, method, first, last, optimizer=None):
    """Losses with the penalty, of a loop as the contract asks for."""
    ids, labels = batch()
    optimizer = optimizer or torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=0.1
    )
    losses = []
    for step in range(first, last + 1):
        loss = nn.functional.cross_entropy(model(input_ids=ids).logits, labels) + (
            method.penalty(model) or 0
        )
        loss.backward()
        optimizer.step()
        method.after_step(model, step)
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("method", METHODS)
def test_it_trains_as_pefts_own_loop(method):
    """From the same start: outputs, losses with the penalty, every value, and which
    triplets are left."""
    base = tiny_model().double()
    ours = copy.deepcopy(base)
    method.adapt(ours)
    method.before_training(ours, STEPS)
    # Without a task type, peft leaves the penalty out
    config = AdaLoraConfig(
        target_modules=["query", "value"],
        task_type="SEQ_CLS",
        total_step=STEPS,
        **THEIRS,
    )
    theirs = get_peft_model(copy.deepcopy(base), config)
    layers = {
        n: m for n, m in theirs.base_model.model.named_modules() if hasattr(m, "lora_E")
    }
    mine = {
        p: m
        for p, m in ours.named_modules()
        if hasattr(m, "changes") or hasattr(m, "lora_E")
    }
    assert list(layers) == list(mine)

    def part(layer, name):
        own = hasattr(layer, "changes")
        return (
            getattr(layer.changes["whole"], name)
            if own
            else getattr(layer, f"lora_{name}").default
        )

    pairs = [
        (part(layers[path], name), part(mine[path], name))
        for path in layers
        for name in "AEB"
    ]
    triplets = [part(layer, "E") for layer in mine.values()]
    with torch.no_grad():
        for their, our in pairs:
            assert their.shape == our.shape
            if not our.any():  # E: so that the first forward pass tells something, too
                our.normal_(std=0.1)
            their.data = our.detach().clone()
        for layer in [
            *layers.values(),
            *(m for m in mine.values() if hasattr(m, "ranknum")),
        ]:
            layer.ranknum.default.data = layer.ranknum.default.double()
    for part in (
        theirs.base_model.model.bert.pooler,
        theirs.base_model.model.classifier,
    ):
        part.requires_grad_(True)
    ids, labels = batch()
    assert torch.allclose(
        answer(ours), theirs(input_ids=ids).logits, rtol=0, atol=1e-12
    )
    optimizers = [
        torch.optim.SGD(
            [p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.5
        )
        for model in (ours, theirs)
    ]
    left = []
    for step in range(1, STEPS + 1):
        (loss,) = steps(ours, method, step, step, optimizers[0])
        output = theirs(input_ids=ids, labels=labels).loss
        output.backward()
        optimizers[1].step()
        theirs.base_model.update_and_allocate(step - 1)
        optimizers[1].zero_grad()
        assert loss == pytest.approx(output.item(), abs=1e-10)
        for their, our in pairs:
            assert torch.allclose(their, our, rtol=0, atol=1e-9)
            assert torch.equal(their == 0, our == 0)
        left.append(sum(int((triplet != 0).sum()) for triplet in triplets))
    assert left[:4] == [24] * 4
    assert left[4] < 24
    assert left[-1] == OURS.rank * 4


@pytest.mark.parametrize("shares", [(0, 0), (0, 5), (3, 0), (3, 4), (10, 9)])
def test_the_budget_is_pefts(shares):
    how = {
        "target_modules": ["query"],
        "total_step": 20,
        "tinit": shares[0],
        "tfinal": shares[1],
    }
    model = get_peft_model(tiny_model(), AdaLoraConfig(init_r=6, target_r=2, **how))
    for total, interval in itertools.product((20, 33, 101), (1, 3)):
        allocator = RankAllocator(model, model.peft_config["default"], "default")
        allocator.peft_config.deltaT, allocator.peft_config.total_step = interval, total
        of_all = dict(
            zip(
                ("initial_share", "final_share"),
                (share / total for share in shares),
                strict=True,
            )
        )
        ours = vera.AdaLoRA(2, init_rank=6, interval=interval, **of_all)
        for step in range(total):
            budget, masks = allocator.budget_schedule(step)
            # AdaLoraModel.update_and_allocate forces it
            masks |= step == total - shares[1]
            assert ours.budget(step, total, 2) == (budget if masks else None), (
                total,
                interval,
                step,
            )


@pytest.mark.parametrize("method", [*METHODS, vera.DyLoRA(rank=8)])
def test_its_allocation_goes_on_from_its_state_bit_for_bit(method):
    """Stopped in the middle and put together again, it ends as if it had run through.
    So does DyLoRA."""
    whole, resumed = tiny_model(), tiny_model()
    method.adapt(whole)
    method.before_training(whole, STEPS)
    halves = copy.deepcopy(whole)
    steps(whole, method, 1, STEPS)
    steps(halves, method, 1, 6)
    state = {
        name: tensor.clone() for name, tensor in method.training_state(halves).items()
    }
    # of A, E and B of each matrix
    assert len(state) >= 2 * 3 * 4 or method.kind == "dylora"
    torch.manual_seed(99)
    method.adapt(resumed)
    method.before_training(resumed, STEPS)
    resumed.load_state_dict(halves.state_dict())
    method.load_training_state(resumed, state)
    assert all(
        torch.equal(t, state[name])
        for name, t in method.training_state(resumed).items()
    )
    steps(resumed, method, 7, STEPS)
    for (name, a), (_, b) in zip(
        whole.named_parameters(), resumed.named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name
    of_whole = method.training_state(whole)
    assert all(
        torch.equal(t, of_whole[n]) for n, t in method.training_state(resumed).items()
    )


def test_nothing_is_pruned_where_the_first_rank_is_the_last_which_is_half_as_large_again_by_default():
    """peft asks for the zeroth smallest there."""
    method, model = vera.AdaLoRA(rank=3, init_rank=3), tiny_model()
    method.adapt(model)
    method.before_training(model, 6)
    steps(model, method, 1, 6)
    assert all(change.E.all() for change in layer_changes(model))
    assert [vera.AdaLoRA(rank=r).first_rank for r in (1, 2, 4, 7, 8)] == [
        2,
        3,
        6,
        11,
        12,
    ]


@pytest.mark.parametrize(
    "method", [vera.AdaLoRA(2, initial_share=0.2, final_share=0.75), METHODS[1]]
)
def test_without_steps_enough_for_its_schedule_it_does_not_train(method):
    model = tiny_model()
    method.adapt(model)
    if method.kind == "adalora":
        with refused_unchanged("before_training"):
            steps(model, method, 1, 1)
    with refused_unchanged("leave none of 4 steps"):
        method.before_training(model, 4)
