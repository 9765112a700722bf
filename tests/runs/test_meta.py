"""The harness's own training step and evaluation on torch's device `meta`, as on a GPU: no two devices meet,
and each value that has to be read, for which a GPU is waited for, is counted. And what must not ask for a
GPU."""

import os
import subprocess
import sys

import pytest
import torch
from running import ROOT
from tiers import sample
from watch import Watch, on_meta

from runs import SEVERAL
from runs.config import expand
from runs.training.loop import Training

pytestmark = pytest.mark.properties

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
def meta():
    with on_meta():
        yield


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
