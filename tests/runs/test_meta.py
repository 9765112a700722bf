"""The harness's own training step and evaluation on torch's device `meta`, as on a GPU: no two devices meet,
and each value that has to be read, for which a GPU is waited for, is counted. And what must not ask for a
GPU.

A tensor on `meta` has a shape and no values: whatever reads a value has to be answered."""

import contextlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.state import AcceleratorState
from running import ROOT
from tiers import sample
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from runs import SEVERAL
from runs.config import expand
from runs.training.loop import Training

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


VERA = ["method=vera", "method.rank=8"]
#: Ways in which VeRA is computed, and the other rows.
METHODS = {
    "VeRA, factor": [*VERA, "method.path=factor"],
    "VeRA, hybrid, kept": [*VERA, "method.path=hybrid", "method.weights=keep"],
    "VeRA, hybrid, anew": [*VERA, "method.path=hybrid", "method.weights=recompute"],
    "VeRA, merged, kept": [*VERA, "method.path=materialised", "method.weights=keep"],
    "VeRA, merged, anew": [*VERA, "method.path=materialised", "method.weights=recompute"],
    "VeRA, unique, dropout": [*VERA, "method.projections=unique", "method.dropout=0.1"],
    "LoRA": ["method=lora"],
    "BitFit": ["method=bitfit"],
    "full": ["method=full"],
    "adapter": ["method=adapter_p"],
}
#: Of each family: the fixture with its words, and how much a training step and an evaluation's batch read,
#: whatever the method. They may fall: then lower them here.
READS = {
    "text": ("words", 1, 3),
    "E2E": ("e2e_words", 4, 6),
    "instructions": ("alpaca_words", 4, 6),
    "images": ("image_words", 0, 2),
}


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


def counted(words, family, rows=(0, 1, 2, 3), **changes):
    """A training, and what a steady step and an evaluation read."""
    words = [w for w in words if not w.startswith(("device=", "method", "eval_batch="))]
    (run,) = expand([*words, *family, "device=auto", "eval_batch=64"])
    training = Training(run, "0" * 12, lambda event: None)
    training.reached = True  # without values, no gradient would be seen
    watches = []
    for work in (
        *[lambda: training.step(list(rows))] * 3,
        training.evaluate,
    ):
        with Watch() as watch:
            work()
        watches.append(watch)
    return training, watches[-2], watches[-1]


PAIRS = [(family, name) for family in READS for name in METHODS]
PAIRS.remove(("instructions", "BitFit"))  # Llama has no biases
FAST = [(family, name) for family in READS for name in ("VeRA, hybrid, kept", "VeRA, merged, kept", "LoRA")]


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize(("family", "name"), sample(PAIRS, *FAST))
def test_a_step_and_an_evaluation_mix_no_devices_and_read_as_little_as_they_do(family, name, request):
    fixture, of_step, of_evaluation = READS[family]
    none = ["task.forgetting_text=none"] if family in ("E2E", "instructions") else []  # read before training
    training, step, evaluation = counted(request.getfixturevalue(fixture), [*METHODS[name], *none])
    assert training.accelerator.device.type == "meta"
    assert {p.device.type for p in training.parameters.values()} == {"meta"}
    assert not step.mixes
    assert not evaluation.mixes
    assert step.reads.total() == of_step, step.reads
    assert evaluation.reads.total() == of_evaluation, evaluation.reads


@pytest.mark.usefixtures("meta")
def test_each_micro_batch_reads_as_often_as_a_batch(words):
    whole, halves = (counted([*words, f"micro_batch={size}"], ["method=lora"])[1] for size in (4, 2))
    assert halves.reads.total() == 2 * whole.reads.total()


@pytest.mark.usefixtures("meta")
def test_the_watch_sees_what_it_is_for():
    x, here = torch.ones(3, device="meta"), torch.ones(3)
    with Watch() as watch:
        assert float(x.sum()) == 0.0
        assert x.tolist() == [0.0] * 3
        assert not torch.equal(x, x)
        assert x.cpu().tolist() == [0.0] * 3
        assert x[x > 0].shape == (0,)
        assert x.nonzero().shape == (0, 1)
        float(here.sum())  # of the host's own there is nothing to wait for
    assert watch.reads.total() == 6, watch.reads
    assert not watch.mixes
    with Watch() as watch, pytest.raises(RuntimeError):
        x + here
    assert watch.mixes.total() == 1
    with Watch() as watch:
        x + here.sum()  # a number
    assert not watch.mixes


#: Of the server that runs are forked from: a process that CUDA has begun in cannot be forked. Its code is
#: that of its start: a later commit is not what runs.
SERVER = """
import gc, sys, torch
asked = []
for name in ("is_available", "device_count", "_lazy_init", "init", "current_device", "get_device_properties"):
    setattr(torch.cuda, name, lambda *given, name=name: asked.append(name) or 0)
import runs.preload
print(*sys.modules)
assert not torch.cuda.is_initialized() and not asked
assert gc.isenabled() and gc.get_freeze_count()
from runs.provenance import code_state, versions
assert code_state.cache_info().currsize == versions.cache_info().currsize == 1
"""


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.usefixtures("process")
def test_what_runs_are_forked_from_asks_for_no_gpu_and_imports_what_they_need_first(several):
    """Several share what each of them needs later, too: it is imported once."""
    command = [sys.executable, "-W", "ignore", "-c", SERVER]
    env = {key: value for key, value in os.environ.items() if key != SEVERAL} | (
        {SEVERAL: "1"} if several else {}
    )
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, check=True)
    imported = set(done.stdout.split())
    assert {"torch", "transformers.modeling_utils", "runs.training.loop"} <= imported
    assert not imported & {"hydra", "omegaconf", "runs.config"}
    assert several == ("sklearn.metrics" in imported) == ("evaluate" in imported)
