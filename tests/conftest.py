"""What the tests share: see tiny.py."""

import builtins
import errno
import gc
import importlib
import io
import os

# Before any library reads it: no test may reach a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
# Nor does a run tell Weights & Biases anything, whoever is logged in here:
# test_tracking.py says otherwise for its own.
os.environ["WANDB_MODE"] = "disabled"
# The tests have the cores among them: whatever one starts takes a single one.
os.environ["OMP_NUM_THREADS"] = "1"

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import write_mt_bench
from tiers import declared, java, network, process, ray, real_model  # noqa: F401 - fixtures

# A shell that starts the tests in the background has them ignore Ctrl-C, and what they
# start, too: some are stopped by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session) -> None:
    """Before the tests, torch and transformers are imported; xdist's process that hands
    the tests out imports none of them."""
    if session.config.pluginmanager.has_plugin("dsession"):
        return
    gc.disable()  # till then
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_xdist_auto_num_workers(config):
    """One more with the slow tests, which wait for processes and servers for a fifth of
    their time."""
    return (yield) + (config.option.markexpr != "not slow")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items) -> None:
    for item in items:
        if declared(item):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop():
    """What is imported is looked through no more, at each run's end and as tests make
    objects: half of a tiny run's time."""
    gc.freeze()
    gc.enable()
    return (yield)


@pytest.fixture(autouse=True)
def apart(request, tmp_path_factory) -> Iterator[None]:
    """A test sees the records that it writes, and not those that this project has
    published, but for test_published.py; and without the fixture `process` a sweep that
    is refused has started no server that runs are forked from."""
    # which a test's monkeypatch.undo() does not undo
    with pytest.MonkeyPatch.context() as own:
        if request.path.name != "test_published.py":
            own.setattr(
                "runs.record.ledger.PUBLISHED",
                tmp_path_factory.getbasetemp() / "nothing published",
            )
        if "process" not in declared(request.node):
            own.setattr("multiprocessing.forkserver.ensure_running", lambda: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def composed_once() -> Iterator[None]:
    """A command composes what the files of conf/ say without overrides, beside its run:
    a worker does that once for all tests."""
    from runs.config import Files
    from runs.config.compose import Composer

    real, kept = Composer.__init__, Composer(Files())

    def init(self, files):
        real(self, files)
        if files.folders == kept.files.folders:
            self.defaults = kept.defaults

    with pytest.MonkeyPatch.context() as own:
        own.setattr(Composer, "__init__", init)
        yield


def made(what: str, *where, **how) -> Path:
    """By a function of tiny.py, which imports what pytest_collection has first."""
    return getattr(importlib.import_module("tiny"), what)(*where, **how)


def folder(name: str, what: str, *how, **changes):
    """A session's fixture: a folder that a function of tiny.py has filled."""

    @pytest.fixture(scope="session", name=name)
    def make(tmp_path_factory) -> Path:
        return made(what, tmp_path_factory.mktemp(name), *how, **changes)

    return make


tiny_bert = folder("tiny_bert", "save_tiny", "bert")
tiny_roberta = folder("tiny_roberta", "save_tiny", "roberta")
# Of MiniLM's width, which the sizes of VeRA's peers are made for
WIDE = {"num_hidden_layers": 1, "num_attention_heads": 12, "hidden_size": 384}
wide_bert = folder("wide_bert", "save_tiny", "bert", **WIDE)
tiny_gpt2 = folder("tiny_gpt2", "save_gpt2")
tiny_llama = folder("tiny_llama", "save_llama")
# Whose matrices VB-LoRA's vectors of 256 divide
wide_llama = folder(
    "wide_llama",
    "save_llama",
    hidden_size=256,
    num_key_value_heads=4,
    intermediate_size=256,
)
tiny_vit = folder("tiny_vit", "save_vit")
tiny_timm = folder("tiny_timm", "save_timm")
e2e = folder("e2e", "write_e2e")
alpaca = folder("alpaca", "write_alpaca")
commonsense = folder("commonsense", "write_commonsense")
maths = folder("maths", "write_maths")
problems = folder("problems", "write_maths")
glue = folder("glue", "write_glue")
images = folder("images", "write_images")


@pytest.fixture(scope="session")
def tokenizer(tiny_llama):
    """That of the tiny Llama."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture(scope="session")
def mt_bench(tmp_path_factory) -> Path:
    return write_mt_bench(tmp_path_factory.mktemp("mt_bench"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Each worker its own user cache, so that tests meet neither each other's nor the
    user's."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


def nothing(*_) -> None:
    """One function for all tests: running.trained keeps runs without pictures by it."""


@pytest.fixture(autouse=True)
def predictions_undrawn(request, monkeypatch) -> None:
    """A run in this process draws no pictures of its predictions, which takes a second,
    unless its test has the fixture `drawn`, or starts runs in others, too, which are
    compared with it."""
    if not {"drawn", "process"} & {*request.fixturenames}:
        monkeypatch.setattr("runs.training.predictions.illustrate", nothing)


@pytest.fixture
def drawn() -> None:
    """Pictures of predictions are drawn."""


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Figures are made, and their pictures are empty: drawing one takes half a second a
    form."""
    monkeypatch.setattr(
        "analysis.figures.figure.picture", lambda figure, form: b"<svg/>"
    )


# --- the command-line words of small runs, of two epochs


@pytest.fixture
def e2e_words(tiny_gpt2, e2e, tmp_path) -> list[str]:
    """One that decodes: tiny GPT-2 on own restaurants, two steps an epoch."""
    return [
        *("model=decoder", f"model.path={tiny_gpt2}"),
        "model.settings={embd_pdrop:0.0,attn_pdrop:0.0,resid_pdrop:0.0}",
        *(
            "task=e2e",
            f"task.data_dir={e2e}",
            "task.beams=3",
            "task.max_new_tokens=8",
            "train.epochs=2",
        ),
        *(
            "train.effective_batch=4",
            "train.max_length=64",
            "train.lr=1e-2",
            "method.rank=8",
        ),
        *("device=cpu", "eval_batch=6", f"output={tmp_path / 'outputs'}"),
    ]


@pytest.fixture
def alpaca_words(tiny_llama, alpaca, mt_bench, tmp_path) -> list[str]:
    """Instructions: tiny Llama, eight rows, two steps an epoch."""
    return [
        *(
            "model=decoder",
            f"model.path={tiny_llama}",
            "task=alpaca",
            f"task.data_dir={alpaca}",
        ),
        *(
            "task.dev_rows=2",
            f"task.mt_bench_dir={mt_bench}",
            "task.answer_tokens=6",
            "train.epochs=2",
        ),
        *(
            "train.effective_batch=4",
            "train.max_length=96",
            "train.lr=1e-2",
            "method.rank=8",
        ),
        *("device=cpu", "eval_batch=3", f"output={tmp_path / 'outputs'}"),
    ]


@pytest.fixture
def sums_words(tiny_llama, tmp_path) -> list[str]:
    """Sums, whose answers are decoded and read: tiny Llama, three steps an epoch."""
    return [
        *(
            "model=decoder",
            f"model.path={tiny_llama}",
            "task=sums",
            "task.train_rows=12",
            "task.dev_rows=4",
        ),
        *(
            "task.test_rows=6",
            "train.epochs=2",
            "train.effective_batch=4",
            "train.lr=1e-2",
            "method.rank=8",
        ),
        *("device=cpu", "eval_batch=2", f"output={tmp_path / 'outputs'}"),
    ]


@pytest.fixture
def image_words(tiny_vit, images, tmp_path) -> list[str]:
    """Images: tiny ViT, three classes, four images of each."""
    return [
        *(
            "model=vision",
            f"model.path={tiny_vit}",
            "task=image_folder",
            f"task.data_dir={images}",
        ),
        *(
            "task.shots=4",
            "train.epochs=2",
            "train.effective_batch=4",
            "train.lr=1e-2",
            "method.rank=8",
        ),
        *("device=cpu", f"output={tmp_path / 'outputs'}"),
    ]


@pytest.fixture
def words(tiny_bert, glue, tmp_path) -> list[str]:
    """Texts: tiny BERT on the own RTE rows."""
    return [
        *(
            "model=encoder",
            f"model.path={tiny_bert}",
            "task=rte",
            f"task.data_dir={glue}",
        ),
        *(
            "train.epochs=2",
            "train.effective_batch=8",
            "train.max_length=32",
            "train.lr=1e-2",
        ),
        *("method.rank=8", "device=cpu", f"output={tmp_path / 'outputs'}"),
    ]


@pytest.fixture
def dropout_words(words, tmp_path_factory) -> list[str]:
    """Dropout on, so that torch's generator matters."""
    folder, parts = tmp_path_factory.mktemp("dropout"), ("hidden", "attention_probs")
    made("save_tiny", folder, "bert", **{f"{part}_dropout_prob": 0.1 for part in parts})
    return [f"model.path={folder}" if w.startswith("model.path=") else w for w in words]


@pytest.fixture
def closed(monkeypatch):
    """Makes a function after which no file whose path ends so may be read."""

    def close(end: str) -> None:
        def refusing(real):
            def opened(path, *given, **how):
                if str(path).endswith(end):
                    raise PermissionError(errno.EACCES, "Permission denied", str(path))
                return real(path, *given, **how)

            return opened

        for module in (builtins, io, os):
            monkeypatch.setattr(module, "open", refusing(module.open))

    return close
