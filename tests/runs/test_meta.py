"""The harness's own training step and evaluation on torch's device `meta`, as on a GPU: no two devices meet,
and each value that has to be read, for which a GPU is waited for, is counted.

A tensor on `meta` has a shape and no values: whatever reads a value has to be answered."""

import contextlib
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from running import ROOT, begin
from tiers import sample
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytestmark = pytest.mark.properties

ROOMS = tuple(str(ROOT / room) + os.sep for room in ("vera", "tasks", "runs"))
#: Operations that give the host a value, and those that move to it.
VALUES = {"aten._local_scalar_dense.default", "aten.equal.default", "aten.is_nonzero.default"}
COPIES = {"aten._to_copy.default", "aten.copy_.default"}
#: Operations whose result has as many rows as a mask has marks: the host has to know that number.
MARKED = {"aten.nonzero.default", "aten.masked_select.default"}
INDEXED = {"aten.index.Tensor", "aten.index_put.default", "aten.index_put_.default"}
INDEXED |= {"aten._index_put_impl_.default", "aten._unsafe_index_put.default"}


class Watch(TorchDispatchMode):
    """Counts by the line of this project that causes them. reads: of values on `meta`; all are answered by
    zeros. mixes: operations on tensors of two devices."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.mixes: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = str(func), kwargs or {}
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        devices = {x.device.type for x in tensors if x.dim()}  # a number of the host may meet any device
        if len(devices) > 1 and name not in COPIES:
            self.mixes[f"{name} at {line()}"] += 1
        if not any(x.device.type == "meta" for x in tensors):
            return func(*args, **kwargs)
        answered, answer = answer_to(func, name, args, kwargs)
        if answered:
            self.reads[f"{name.split('.')[1]} at {line()}"] += 1
            return answer
        return func(*args, **kwargs)


def answer_to(func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[bool, Any]:
    """Whether an operation has to read a value, and zeros in its place."""
    first = args[0]
    if name in VALUES:
        return True, torch.zeros((), dtype=torch.bool if "equal" in name else first.dtype).item()
    if name == "aten._to_copy.default" and str(kwargs.get("device")) == "cpu":
        return True, torch.zeros(first.shape, dtype=kwargs.get("dtype") or first.dtype)
    if name == "aten.copy_.default" and first.device.type == "cpu":
        return True, first.zero_()
    if name in MARKED:
        shape = (0, first.dim()) if "nonzero" in name else (0,)
        return True, torch.empty(shape, dtype=torch.long if "nonzero" in name else first.dtype, device="meta")
    masks = [i for i in args[1] if i is not None and i.dtype == torch.bool] if name in INDEXED else []
    if masks and name == "aten.index.Tensor":
        return True, first.new_empty((0, *first.shape[masks[0].dim() :]))
    if masks:
        return True, first if "_." in name or "_impl_" in name else torch.empty_like(first)
    return False, None


def line() -> str:
    """The innermost line of this project on the stack, without its number: that changes."""
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(ROOMS):
            return f"{Path(path).relative_to(ROOT)} {frame.f_code.co_name}"
        frame = frame.f_back
    return "?"


#: Ways in which VeRA is computed, and the other rows.
METHODS = {
    "VeRA, factor": "vera method.rank=8 method.path=factor",
    "VeRA, hybrid, kept": "vera method.rank=8 method.path=hybrid method.weights=keep",
    "VeRA, hybrid, anew": "vera method.rank=8 method.path=hybrid method.weights=recompute",
    "VeRA, merged, kept": "vera method.rank=8 method.path=materialised method.weights=keep",
    "VeRA, merged, anew": "vera method.rank=8 method.path=materialised method.weights=recompute",
    "VeRA, unique, dropout": "vera method.rank=8 method.projections=unique method.dropout=0.1",
    "LoRA": "lora",
    "BitFit": "bitfit",
    "full": "full",
    "adapter": "adapter_p",
}
#: Of each family by the fixture with its words: how much a training step and an evaluation's batch read,
#: whatever the method. They may fall: then lower them here.
READS = {"words": (1, 3), "e2e_words": (4, 6), "alpaca_words": (4, 6), "image_words": (0, 2)}


@pytest.fixture
def meta(monkeypatch):
    """device=auto means `meta`, for which torch has no autocast: it fails where it is asked."""
    enabled, autocast = torch.is_autocast_enabled, torch.autocast
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda of="cuda": of != "meta" and enabled(of))
    none = contextlib.nullcontext()
    monkeypatch.setattr(
        torch, "autocast", lambda of, *a, **b: none if of == "meta" else autocast(of, *a, **b)
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def watched(words, method, *more):
    """A training, and what a steady step and an evaluation do."""
    words = [w for w in words if not w.startswith(("device=", "method", "eval_batch="))]
    # The fixed text is read before training
    none = ["task.forgetting_text=none"] * any(w in ("task=e2e", "task=alpaca") for w in words)
    training = begin([*words, *f"method={method}".split(), *none, *more, "device=auto", "eval_batch=64"])
    for _ in range(3):
        with Watch() as step:
            training.step([0, 1, 2, 3])
    with Watch() as evaluation:
        training.evaluate()
    return training, step, evaluation


PAIRS = [(family, name) for family in READS for name in METHODS]
PAIRS.remove(("alpaca_words", "BitFit"))  # Llama has no biases
FAST = [*((family, "VeRA, hybrid, kept") for family in READS), ("words", "LoRA")]
FAST += [("words", "VeRA, merged, kept"), ("e2e_words", "VeRA, merged, kept")]


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize(("family", "name"), sample(PAIRS, *FAST))
def test_a_step_and_an_evaluation_mix_no_devices_and_read_as_little_as_they_do(family, name, request):
    training, *watches = watched(request.getfixturevalue(family), METHODS[name])
    assert {p.device.type for p in (training.accelerator, *training.parameters.values())} == {"meta"}
    assert [watch.mixes for watch in watches] == [{}, {}]
    assert tuple(watch.reads.total() for watch in watches) == READS[family], [w.reads for w in watches]


@pytest.mark.usefixtures("meta")
def test_each_micro_batch_reads_as_often_as_a_batch(words):
    whole, halves = (watched(words, "lora", f"micro_batch={size}")[1] for size in (4, 2))
    assert halves.reads.total() == 2 * whole.reads.total()


@pytest.mark.usefixtures("meta")
def test_the_watch_sees_what_it_is_for():
    x, here = torch.ones(3, device="meta"), torch.ones(3)
    with Watch() as watch:
        values = (float(x.sum()), x.tolist(), torch.equal(x, x), x.cpu().tolist())
        assert (*values, len(x[x > 0]), len(x.nonzero())) == (0.0, [0.0] * 3, False, [0.0] * 3, 0, 0)
        float(here.sum())  # of the host's own there is nothing to wait for
    assert watch.reads.total() == 6, watch.reads
    assert not watch.mixes
    with Watch() as watch, pytest.raises(RuntimeError):
        x + here
    assert watch.mixes.total() == 1
    with Watch() as watch:
        x + here.sum()  # a number
    assert not watch.mixes
