"""What a CPU can test of runs on a GPU: which devices there are, what is refused, what
is asked of torch; and the training step and evaluation on the device meta."""

import ast
import contextlib
import errno
import itertools
import os
import subprocess
import sys
from collections import Counter
from multiprocessing.context import ForkContext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
import torch
from accelerate.state import AcceleratorState
from running import ROOT, begin, refused
from tiers import slow_except
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from runs import ENVIRONMENT, SPINNING, models
from runs.command.errors import DeviceError, UserError
from runs.config import expand
from runs.machine import gpus
from runs.run.identity import run_id
from runs.sweep import child, pool
from runs.tracking.tracker import Tracking
from runs.training import checkpoint, context, determinism

pytestmark = pytest.mark.properties


def nvml(*cards):
    """A replacement for pynvml: a machine with these GPUs, of which each has a UUID;
    without any, one whose driver does not answer."""
    answers = Mock(NVMLError=type("NVMLError", (Exception,), {}))
    answers.nvmlInit.side_effect = (
        None if cards else answers.NVMLError("Driver Not Loaded")
    )
    answers.nvmlSystemGetDriverVersion.return_value = "550.54"
    answers.nvmlDeviceGetCount.return_value = len(cards)
    answers.nvmlDeviceGetHandleByIndex = lambda index: cards[index]
    answers.nvmlDeviceGetHandleByUUID = answers.nvmlDeviceGetUUID = lambda handle: (
        handle
    )
    answers.nvmlDeviceGetMemoryInfo = lambda handle: SimpleNamespace(
        free=8 if handle == "GPU-aaaa" else 1
    )
    return answers


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with two GPUs that torch can use, by what NVIDIA's library and torch
    say, and what changes them."""
    # so that it is put back at the end, whatever a test does
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(gpus, "DEVICE_FILES", str(tmp_path / "dev" / "nvidia[0-9]*"))

    def usable(answer):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: answer)

    def visible(words):
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)
        os.environ.update({} if words is None else {"CUDA_VISIBLE_DEVICES": words})

    def cards(*names):
        monkeypatch.setattr(gpus, "pynvml", nvml(*names))

    usable(True), visible(None), cards("GPU-aaaa", "GPU-bbbb")
    return SimpleNamespace(usable=usable, visible=visible, cards=cards)


# --- which devices there are


def test_devices_are_those_that_are_visible_and_a_driver_is_asked_and_let_go(
    machine, monkeypatch
):
    for visible, asked, found in (
        (None, "auto", ["GPU-aaaa", "GPU-bbbb"]),
        (None, "cpu", ["cpu"]),
        ("1", "cuda", ["GPU-bbbb"]),
        (" 1, 0 ", "cuda", ["GPU-bbbb", "GPU-aaaa"]),
        ("MIG-1,GPU-aaaa", "auto", ["MIG-1", "GPU-aaaa"]),
    ):
        machine.visible(visible)
        assert gpus.devices(asked) == found
    assert (gpus.free_bytes("GPU-aaaa"), gpus.driver_version()) == (8, "550.54")
    assert gpus.pynvml.nvmlInit.call_count == gpus.pynvml.nvmlShutdown.call_count > 0
    # Another make's GPUs: by their numbers
    machine.cards(), machine.visible("0,1")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert gpus.devices("auto") == ["0", "1"]
    assert (
        gpus.free_bytes("GPU-aaaa"),
        gpus.driver_version(),
        gpus.attribute_of_all("UUID"),
    ) == (
        0,
        None,
        [],
    )


def test_a_gpu_that_torch_cannot_use_is_an_error_and_no_training_on_the_cpu(
    machine, monkeypatch, tmp_path
):
    machine.usable(False)
    for version in (None, "13.0"):
        monkeypatch.setattr(torch.version, "cuda", version)
        told = rf"CUDA {version or 'none'}\) can use no GPU here \(driver 550\.54.*device=cpu$"
        with pytest.raises(DeviceError, match=told):
            gpus.devices("auto")
    for words in ("GPU-cccc", "0"):  # given by a sweep, or by Slurm
        machine.visible(words)
        with pytest.raises(DeviceError, match=f"CUDA_VISIBLE_DEVICES={words}"):
            gpus.uses_cuda("auto")
    for nothing in ("", "-1"):  # the user hides them
        machine.visible(nothing)
        assert gpus.devices("auto") == ["cpu"]
    # The driver does not answer, and yet its device is there
    machine.visible(None), machine.cards()
    assert gpus.devices("auto") == ["cpu"]
    with pytest.raises(DeviceError, match=r"device=cuda: .* \(driver none"):
        gpus.devices("cuda")
    (tmp_path / "dev" / "nvidia0").mkdir(parents=True)
    with pytest.raises(DeviceError, match="device=auto: "):
        gpus.devices("auto")


# --- who has which


def test_two_runs_meet_on_a_device_on_purpose_only(machine):
    held = [gpus.take(["GPU-bbbb", "GPU-aaaa"], share) for share in (1, 1, 1, 2)]
    assert [place and place[0] for place in held] == [
        "GPU-aaaa",
        "GPU-bbbb",
        None,
        "GPU-aaaa",
    ]
    held[1][1].release()
    assert gpus.take(["GPU-bbbb", "GPU-aaaa"], 1)[0] == "GPU-bbbb"
    assert gpus.take([], 1) is None


def test_a_device_that_cannot_be_locked_is_not_free_and_one_line_where_none_can(
    machine, monkeypatch
):
    names, take = ["MIG-GPU-5cb7/3/0", "GPU-aaaa"], gpus.Lock.take

    def protected(lock, seconds):
        if "aaaa" in lock.path.name:
            raise OSError(errno.EACCES, "Permission denied")
        return take(lock, seconds)

    monkeypatch.setattr(gpus.Lock, "take", protected)
    held = gpus.take(names, 1)
    assert held[0] == names[0]
    assert gpus.take(names, 1) is None
    with pytest.raises(
        UserError, match=r"vera-bench-devices .Permission denied.* TMPDIR=$"
    ):
        gpus.take(names[1:], 2)


def test_the_places_of_a_machine(machine):
    both = ["GPU-aaaa", "GPU-bbbb"]
    assert pool.slots_of("auto", 2, all_devices=True) == (4, both, 2)
    assert pool.slots_of("auto", 2, all_devices=False) == (1, both, 2)
    assert pool.slots_of("cpu", 3, all_devices=True) == (3, (), 3)


def test_a_command_says_once_that_it_waits_for_a_device_which_its_run_then_sees(
    machine, words, process, monkeypatch, capsys
):
    """The device is given back with the end of the run's process."""
    monkeypatch.setattr(pool.multiprocessing, "get_context", lambda _: ForkContext())
    monkeypatch.setattr(
        child, "attempt_run", lambda *_: ("failed", os.environ["CUDA_VISIBLE_DEVICES"])
    )
    both, (run,) = ["GPU-aaaa", "GPU-bbbb"], expand(words)
    held, looks = [gpus.take(both, 1), gpus.take(both, 1)], itertools.count(1)

    def other_command_ends(ready, seconds, wait=pool.connection.wait):
        if next(looks) == 3:
            held[1][1].release()
        return wait(ready, 0.01)

    monkeypatch.setattr(pool.connection, "wait", other_command_ends)
    todo = pool.Sweep([pool.Job("it", run, run_id(run))], Tracking("off"))
    todo.do_pending_runs(pool.Slots(1, both, 1))
    assert [error for _, error in todo.failed] == ["GPU-bbbb"]
    out = capsys.readouterr().out
    assert (
        out.count("GPU-aaaa, GPU-bbbb")
        == out.count("launcher.runs_per_device=2 shares them")
        == 1
    )
    assert gpus.take(both, 1)
    # Ctrl-C while a command waits: nothing is there to be saved
    monkeypatch.setattr(pool.connection, "wait", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        pool.Sweep(todo.jobs, Tracking("off")).do_pending_runs(
            pool.Slots(1, ["GPU-aaaa"], 1)
        )
    assert "saving" not in capsys.readouterr().err


# --- what is asked of torch


def test_a_run_is_strictly_deterministic_and_fp32_in_convolutions_too(
    words, monkeypatch
):
    torch.backends.cudnn.allow_tf32 = True  # torch's own default
    training, modes = begin(words), []

    def spy(*given, loss=training.task.loss):
        modes.append(torch.get_deterministic_debug_mode())
        return loss(*given)

    training.task.loss = spy
    training.step([0, 1])
    assert modes == [2]
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert determinism.determinism(torch.device("cpu")) == {
        "deterministic_algorithms": True,
        "strict": True,
        "threads": torch.get_num_threads(),
    }


@pytest.mark.parametrize(
    "change", ["train.precision=fp16", "train.precision=tf32", "device=mps"]
)
def test_a_precision_or_device_that_is_not_here_is_refused(change, words, monkeypatch):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    (run,) = expand([*(word for word in words if change[:3] != word[:3]), change])
    assert "precision" not in change or run_id(run) != run_id(expand(words)[0])
    with refused(f"{change}: "):
        context.make_accelerator(run)


LESS = """
model=roberta_base task=rte method=vera,full,adalora |
model=roberta_base task=rte method=peft:AdaLoraConfig | kthvalue
model=vit_base task=cifar100 method=full task.image_size=384 | bicubic
model=vit_base task=cifar100 method=full |
model=dinov2_small task=cifar100 method=full | bicubic
model=dinov2_small task=cifar100 method=lora |
"""


@pytest.mark.parametrize("line", LESS.strip().splitlines())
def test_two_cases_are_less_than_deterministic_on_a_gpu_and_none_on_a_cpu(line):
    """DINOv2's table of positions is of larger images."""
    words, reason = line.split("|")
    for run in expand(words.split()):
        why = determinism.nondeterminism_notes(run, torch.device("cuda"))
        assert [reason.strip() in each for each in why] == [True] * bool(reason)
        assert not determinism.nondeterminism_notes(run, torch.device("cpu"))
        determinism.set_flags(run, torch.device("cuda"))
        assert torch.get_deterministic_debug_mode() == (1 if reason else 2)


def test_a_checkpoint_keeps_the_generator_of_its_own_gpu_and_goes_on_on_no_other_type(
    tmp_path, monkeypatch
):
    """Eight GPUs were visible where it was written, one is where it goes on."""
    path, parameter = (
        tmp_path / "checkpoint.safetensors",
        torch.nn.Parameter(torch.ones(3)),
    )
    optimizer = torch.optim.AdamW([parameter])
    state = torch.arange(16, dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda: state)
    put, what = [], (path, "a" * 12, {"b": parameter}, optimizer)
    checkpoint.Checkpoint(*what, torch.device("cuda", 5)).save({"step": 3}, {})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_rng_state", put.append)
    loaded, _ = checkpoint.Checkpoint(*what, torch.device("cuda", 0)).load()
    assert loaded == {"step": 3}
    assert [value.tolist() for value in put] == [state.tolist()]
    with pytest.raises(
        DeviceError,
        match="begun on cuda and cannot go on on cpu: go on there, or delete",
    ):
        checkpoint.Checkpoint(*what, torch.device("cpu")).load()


def test_weights_in_4_bit_are_dequantised_to_what_is_computed_in_to_the_same_bits(
    tiny_llama,
):
    from bitsandbytes.functional import dequantize_4bit

    torch.manual_seed(0)
    model, _ = models.load(
        tiny_llama, 0, "", None, "text", torch.bfloat16, torch.device("cpu")
    )
    weight = model.model.layers[0].mlp.up_proj.weight
    assert weight.quant_state.dtype == torch.bfloat16
    straight = dequantize_4bit(weight.data, weight.quant_state)
    weight.quant_state.dtype = torch.float32
    assert straight.dtype == torch.bfloat16
    assert torch.equal(
        straight, dequantize_4bit(weight.data, weight.quant_state).bfloat16()
    )


def test_training_a_decoder_fills_no_cache(alpaca_words, monkeypatch):
    monkeypatch.setattr(
        "transformers.DynamicCache.update", lambda *_, **given: pytest.fail("filled")
    )
    training = begin(alpaca_words)
    training.step([0, 1])
    training.evaluate()


def test_a_loss_that_is_read_a_step_late_ends_in_the_same_record(words):
    records = []
    for behind in (0, 2):
        training = begin(words)
        training.checkpoint.path.unlink(missing_ok=True)
        assert training.max_pending_losses == 0
        training.max_pending_losses = behind
        training.train_and_decode()
        records.append(
            (
                training.state.curve,
                training.state.units,
                training.state.step,
                training.pending_losses,
            )
        )
    assert records[0] == records[1]
    assert records[0][-1] == []


def test_a_loss_that_is_not_finite_is_found_a_step_late_and_named_by_its_own_step(
    words,
):
    training, seen = begin(words), []

    def second_is_nan(rows, step=training.step):
        seen.append(rows)
        return step(rows) * (float("nan") if len(seen) == 2 else 1.0)

    training.max_pending_losses, training.step = 1, second_is_nan
    training.train_and_decode()
    assert (training.state.status, len(seen)) == ("diverged", 3)
    assert training.state.error == "loss became nan at epoch 1, step 2"


def test_the_optimizer_is_fused_on_a_gpu(monkeypatch):
    asked = []
    monkeypatch.setattr(
        torch.optim, "AdamW", lambda groups, **given: asked.append(given["fused"])
    )
    group = {"params": [torch.nn.Parameter(torch.ones(2))]}
    settings = {"adam_eps": 1e-8, "adam_beta2": 0.999}
    for kind, precision, groups in (
        ("cuda", "bf16", [group]),
        ("cuda", "fp16", [group]),  # it would skip a step unseen
        ("cpu", "fp32", [group]),
        ("cuda", "fp32", []),
    ):
        checkpoint.make_optimizer(
            groups, {**settings, "precision": precision}, torch.device(kind)
        )
    assert asked == [True, None, None, None]


def test_accelerates_variables_change_no_loss_and_nothing_frozen_is_broadcast(
    words, monkeypatch
):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "64")
    accelerator = context.make_accelerator(expand(words)[0])
    assert accelerator.gradient_accumulation_steps == 1
    assert accelerator.ddp_handler.broadcast_buffers is False


# --- what is set, and what is asked of a GPU, as a process starts


def python(script, keep=lambda name: True, **own) -> str:
    """What a script prints in a process of its own, with these variables of the
    environment."""
    env = {key: value for key, value in os.environ.items() if keep(key)} | own
    command = [sys.executable, "-W", "ignore", "-c", script]
    return subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.usefixtures("process")
def test_the_environment_is_set_before_torch_starts_unless_the_user_has_set_it():
    names = {*ENVIRONMENT, *SPINNING, "OMP_WAIT_POLICY", "KMP_BLOCKTIME"}
    script = "import os, runs; print({k: os.environ.get(k) for k in (*runs.ENVIRONMENT, *runs.SPINNING)})"

    def environment(**own):
        return ast.literal_eval(python(script, lambda name: name not in names, **own))

    assert environment() == ENVIRONMENT | SPINNING
    assert environment(OMP_WAIT_POLICY="ACTIVE")["GOMP_SPINCOUNT"] is None
    assert (
        environment(CUDA_DEVICE_ORDER="FASTEST_FIRST")["CUDA_DEVICE_ORDER"]
        == "FASTEST_FIRST"
    )


#: Of the server that runs are forked from: a process that CUDA has begun in cannot be
#: forked. Its code is that of its start: a later commit is not what runs.
SERVER = """
import gc, sys, torch
asked = []
for name in ("is_available", "device_count", "_lazy_init", "init", "current_device", "get_device_properties"):
    setattr(torch.cuda, name, lambda *given, name=name: asked.append(name) or 0)
import runs.machine.preload
print(*sys.modules)
assert not torch.cuda.is_initialized() and not asked
assert gc.isenabled() and gc.get_freeze_count()
from runs.run.provenance import code_state, versions
assert code_state.cache_info().currsize == versions.cache_info().currsize == 1
"""


@pytest.mark.usefixtures("process")
def test_what_runs_are_forked_from_asks_for_no_gpu_and_imports_what_they_need_first():
    imported = set(python(SERVER).split())
    assert {"torch", "transformers.modeling_utils", "runs.training.loop"} <= imported
    assert not imported & {"hydra", "omegaconf", "runs.config", "sklearn.metrics"}


# --- a training step and an evaluation on torch's device `meta`, as on a GPU: no two devices meet, and each
# value that has to be read, for which a GPU is waited for, is counted. There a tensor has no values.

ROOMS = tuple(str(ROOT / room) + os.sep for room in ("vera", "tasks", "runs"))
#: Operations that move to another device.
COPIES = {"aten._to_copy.default", "aten.copy_.default"}


class Watch(TorchDispatchMode):
    """Counts by the line of this project that causes them. reads: of values on `meta`,
    answered by zeros (by an operation that is not among these, `meta` fails). mixes:
    operations on tensors of two devices."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.mixes: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = str(func), kwargs or {}
        tensors = [
            x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)
        ]
        # a number of the host may meet any device
        devices = {x.device.type for x in tensors if x.dim()}
        if len(devices) > 1 and name not in COPIES:
            self.mixes[f"{name} at {line()}"] += 1
        if not any(x.device.type == "meta" for x in tensors):
            return func(*args, **kwargs)
        first, answer, masks = args[0], None, []
        # the host has to know how many rows
        if name in ("aten.index.Tensor", "aten.index_put.default"):
            masks = [i for i in args[1] if i is not None and i.dtype == torch.bool]
        if name == "aten._local_scalar_dense.default":
            answer = torch.zeros((), dtype=first.dtype).item()
        elif name == "aten._to_copy.default" and str(kwargs.get("device")) == "cpu":
            answer = torch.zeros(first.shape, dtype=kwargs.get("dtype") or first.dtype)
        elif masks and name == "aten.index.Tensor":
            answer = first.new_empty((0, *first.shape[masks[0].dim() :]))
        elif masks:
            answer = torch.empty_like(first)
        else:
            return func(*args, **kwargs)
        self.reads[f"{name.split('.')[1]} at {line()}"] += 1
        return answer


def line() -> str:
    """The innermost line of this project on the stack, without its number: that
    changes."""
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
}
#: Of each family by the fixture with its words: how much a training step and an
#: evaluation's batch read, whatever the method. They may fall: then lower them here.
READS = {
    "words": (1, 3),
    "e2e_words": (4, 6),
    "alpaca_words": (4, 6),
    "image_words": (0, 2),
}


@pytest.fixture
def meta(monkeypatch):
    """device=auto means `meta`, for which torch has no autocast: it fails where it is
    asked."""
    enabled, autocast = torch.is_autocast_enabled, torch.autocast
    monkeypatch.setenv("ACCELERATE_TORCH_DEVICE", "meta")
    monkeypatch.setattr(
        torch, "is_autocast_enabled", lambda of="cuda": of != "meta" and enabled(of)
    )
    none = contextlib.nullcontext()
    monkeypatch.setattr(
        torch,
        "autocast",
        lambda of, *a, **b: none if of == "meta" else autocast(of, *a, **b),
    )
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def watched(words, method, *more):
    """A training, and what a steady step and an evaluation do."""
    words = [w for w in words if not w.startswith(("device=", "method", "eval_batch="))]
    # The fixed text is read before training
    none = ["task.forgetting_text=none"] * any(
        w in ("task=e2e", "task=alpaca") for w in words
    )
    training = begin(
        [
            *words,
            *f"method={method}".split(),
            *none,
            *more,
            "device=auto",
            "eval_batch=64",
        ]
    )
    for _ in range(2):
        with Watch() as step:
            training.step([0, 1, 2, 3])
    with Watch() as evaluation:
        training.evaluate()
    return training, step, evaluation


KEPT = "VeRA, hybrid, kept"
PAIRS = [
    *((family, KEPT) for family in READS),
    *(("words", name) for name in METHODS if name != KEPT),
]
PAIRS += [("e2e_words", "VeRA, merged, kept")]


@pytest.mark.usefixtures("meta")
@pytest.mark.parametrize(
    ("family", "name"), slow_except(PAIRS, *PAIRS[:4], ("words", "LoRA"), PAIRS[-1])
)
def test_a_step_and_an_evaluation_mix_no_devices_and_read_as_little_as_they_do(
    family, name, request
):
    training, *watches = watched(request.getfixturevalue(family), METHODS[name])
    assert {
        p.device.type for p in (training.accelerator, *training.parameters.values())
    } == {"meta"}
    assert [watch.mixes for watch in watches] == [{}, {}]
    assert tuple(watch.reads.total() for watch in watches) == READS[family], [
        w.reads for w in watches
    ]


@pytest.mark.usefixtures("meta")
def test_each_micro_batch_reads_as_often_as_a_batch(words):
    assert (
        watched(words, "lora", "micro_batch=2")[1].reads.total()
        == 2 * READS["words"][0]
    )


@pytest.mark.usefixtures("meta")
def test_the_watch_sees_what_it_is_for():
    x, here = torch.ones(3, device="meta"), torch.ones(3)
    with Watch() as watch:
        assert (float(x.sum()), x.cpu().tolist(), len(x[x > 0])) == (0.0, [0.0] * 3, 0)
        # of the host's own numbers there is nothing to wait for
        x + float(here.sum()) + here.sum()
    assert (watch.reads.total(), watch.mixes) == (3, {}), watch.reads
    with watch, pytest.raises(RuntimeError):
        x + here
    assert watch.mixes.total() == 1
