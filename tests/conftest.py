"""Fixtures that all tests share: folders of tiny models and data (made by tiny.py), the
command-line words of small runs, and what keeps tests apart from this machine and from each
other."""

import builtins
import errno
import gc
import importlib
import io
import os

# Set before any library reads them.
# No test may reach a hub.
os.environ["HF_HUB_OFFLINE"] = "1"
# No run may send anything to Weights & Biases, whoever is logged in here. The tests of
# tracking enable it for their own server.
os.environ["WANDB_MODE"] = "disabled"
# Tests run side by side on the cores, so that each process takes a single one.
os.environ["OMP_NUM_THREADS"] = "1"

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench import write_mt_bench
from tiers import java, network, process, ray, real_model, slow_fixtures_of  # noqa: F401 - fixtures

# A shell that starts the tests in the background makes them, and the processes that they
# start, ignore Ctrl-C. Some tests stop a process by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session) -> None:
    """Imports torch and transformers before the tests, which need them. xdist's process
    that hands the tests out to workers ("dsession") does not."""
    if session.config.pluginmanager.has_plugin("dsession"):
        return
    # No garbage collection while so many modules are imported; pytest_runtestloop enables
    # it again
    gc.disable()
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)


@pytest.hookimpl(wrapper=True)
def pytest_xdist_auto_num_workers(config):
    """One worker more than the default with the slow tests: they wait for processes and
    servers for a fifth of their time."""
    return (yield) + (config.option.markexpr != "not slow")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items) -> None:
    """Marks the tests that use a fixture of tiers.SLOW as slow."""
    for item in items:
        if slow_fixtures_of(item):
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtestloop():
    """Exempts all that was imported from garbage collection, which would otherwise look
    through it again and again: that took half of a tiny run's time."""
    gc.freeze()
    gc.enable()
    return (yield)


@pytest.fixture(autouse=True)
def isolated(request, tmp_path_factory) -> Iterator[None]:
    """Hides the published records from a test, except from test_published.py. Unless the
    test has the fixture `process`, no server that runs are forked from is started."""
    # A patch of our own, which a test's monkeypatch.undo() does not undo
    with pytest.MonkeyPatch.context() as patch:
        if request.path.name != "test_published.py":
            patch.setattr(
                "runs.record.ledger.PUBLISHED",
                tmp_path_factory.getbasetemp() / "nothing published",
            )
        if "process" not in slow_fixtures_of(request.node):
            patch.setattr("multiprocessing.forkserver.ensure_running", lambda: None)
        yield


@pytest.fixture(autouse=True, scope="session")
def composed_once() -> Iterator[None]:
    """Every command composes the configuration of conf/ without overrides, beside that of
    its run. All composers of a worker share what the first one has composed of it."""
    from runs.config import Files
    from runs.config.compose import Composer

    init = Composer.__init__
    first_composer = Composer(Files())

    def init_with_shared_defaults(self, files):
        init(self, files)
        if files.folders == first_composer.files.folders:
            self.defaults = first_composer.defaults

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Composer, "__init__", init_with_shared_defaults)
        yield


def call_tiny(function: str, *arguments, **keywords) -> Path:
    """Calls a function of tiny.py by its name. tiny.py is imported only here: it imports
    torch and transformers, which pytest_collection has to import first."""
    return getattr(importlib.import_module("tiny"), function)(*arguments, **keywords)


def folder_fixture(name: str, function: str, *arguments, **keywords):
    """A fixture of the session: a folder that a function of tiny.py has filled. The
    function gets the folder and then these arguments."""

    @pytest.fixture(scope="session", name=name)
    def make_folder(tmp_path_factory) -> Path:
        return call_tiny(
            function, tmp_path_factory.mktemp(name), *arguments, **keywords
        )

    return make_folder


tiny_bert = folder_fixture("tiny_bert", "save_tiny", "bert")
tiny_roberta = folder_fixture("tiny_roberta", "save_tiny", "roberta")
# MiniLM's width, for which the sizes of VeRA's peers are chosen
WIDE = {"num_hidden_layers": 1, "num_attention_heads": 12, "hidden_size": 384}
wide_bert = folder_fixture("wide_bert", "save_tiny", "bert", **WIDE)
tiny_gpt2 = folder_fixture("tiny_gpt2", "save_gpt2")
tiny_llama = folder_fixture("tiny_llama", "save_llama")
# VB-LoRA's vectors of 256 numbers divide its matrices
wide_llama = folder_fixture(
    "wide_llama",
    "save_llama",
    hidden_size=256,
    num_key_value_heads=4,
    intermediate_size=256,
)
tiny_vit = folder_fixture("tiny_vit", "save_vit")
tiny_timm = folder_fixture("tiny_timm", "save_timm")
e2e = folder_fixture("e2e", "write_e2e")
alpaca = folder_fixture("alpaca", "write_alpaca")
commonsense = folder_fixture("commonsense", "write_commonsense")
maths = folder_fixture("maths", "write_maths")
problems = folder_fixture("problems", "write_maths")
glue = folder_fixture("glue", "write_glue")
images = folder_fixture("images", "write_images")


@pytest.fixture(scope="session")
def tokenizer(tiny_llama):
    """The tokenizer of the tiny Llama."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_llama)


@pytest.fixture(scope="session")
def mt_bench(tmp_path_factory) -> Path:
    return write_mt_bench(tmp_path_factory.mktemp("mt_bench"))


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Gives each worker a user cache of its own, so that tests see neither the user's nor
    that of other workers."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))


def draw_nothing(*_) -> None:
    """Stands for predictions.illustrate. It is the same function in all tests, since
    running.trained looks up runs by the function that draws."""


@pytest.fixture(autouse=True)
def predictions_undrawn(request, monkeypatch) -> None:
    """A run in this process draws no pictures of its predictions, which would take a second,
    unless its test has the fixture `drawn`, or `process`: runs in other processes do draw,
    and may be compared with it."""
    if not {"drawn", "process"} & {*request.fixturenames}:
        monkeypatch.setattr("runs.training.predictions.illustrate", draw_nothing)


@pytest.fixture
def drawn() -> None:
    """Says that a test's runs draw pictures of their predictions."""


@pytest.fixture
def undrawn(monkeypatch) -> None:
    """Makes figures with empty pictures, since drawing one takes half a second for each
    file format."""
    monkeypatch.setattr(
        "analysis.figures.figure.picture", lambda figure, form: b"<svg/>"
    )


# --- the command-line words of small runs of two epochs


@pytest.fixture
def e2e_words(tiny_gpt2, e2e, tmp_path) -> list[str]:
    """A run that decodes texts: tiny GPT-2 on our own restaurants, two steps an epoch."""
    return [
        "model=decoder",
        f"model.path={tiny_gpt2}",
        "model.settings={embd_pdrop:0.0,attn_pdrop:0.0,resid_pdrop:0.0}",
        "task=e2e",
        f"task.data_dir={e2e}",
        "task.beams=3",
        "task.max_new_tokens=8",
        "train.epochs=2",
        "train.effective_batch=4",
        "train.max_length=64",
        "train.lr=1e-2",
        "method.rank=8",
        "device=cpu",
        "eval_batch=6",
        f"output={tmp_path / 'outputs'}",
    ]


@pytest.fixture
def alpaca_words(tiny_llama, alpaca, mt_bench, tmp_path) -> list[str]:
    """A run of instruction tuning: tiny Llama, eight rows, two steps an epoch."""
    return [
        "model=decoder",
        f"model.path={tiny_llama}",
        "task=alpaca",
        f"task.data_dir={alpaca}",
        "task.dev_rows=2",
        f"task.mt_bench_dir={mt_bench}",
        "task.answer_tokens=6",
        "train.epochs=2",
        "train.effective_batch=4",
        "train.max_length=96",
        "train.lr=1e-2",
        "method.rank=8",
        "device=cpu",
        "eval_batch=3",
        f"output={tmp_path / 'outputs'}",
    ]


@pytest.fixture
def sums_words(tiny_llama, tmp_path) -> list[str]:
    """A run on sums, whose answers are decoded and read: tiny Llama, three steps an
    epoch."""
    return [
        "model=decoder",
        f"model.path={tiny_llama}",
        "task=sums",
        "task.train_rows=12",
        "task.dev_rows=4",
        "task.test_rows=6",
        "train.epochs=2",
        "train.effective_batch=4",
        "train.lr=1e-2",
        "method.rank=8",
        "device=cpu",
        "eval_batch=2",
        f"output={tmp_path / 'outputs'}",
    ]


@pytest.fixture
def image_words(tiny_vit, images, tmp_path) -> list[str]:
    """A run on images: tiny ViT, three classes, four images of each."""
    return [
        "model=vision",
        f"model.path={tiny_vit}",
        "task=image_folder",
        f"task.data_dir={images}",
        "task.shots=4",
        "train.epochs=2",
        "train.effective_batch=4",
        "train.lr=1e-2",
        "method.rank=8",
        "device=cpu",
        f"output={tmp_path / 'outputs'}",
    ]


@pytest.fixture
def words(tiny_bert, glue, tmp_path) -> list[str]:
    """A run on texts: tiny BERT on our own rows in RTE's format."""
    return [
        "model=encoder",
        f"model.path={tiny_bert}",
        "task=rte",
        f"task.data_dir={glue}",
        "train.epochs=2",
        "train.effective_batch=8",
        "train.max_length=32",
        "train.lr=1e-2",
        "method.rank=8",
        "device=cpu",
        f"output={tmp_path / 'outputs'}",
    ]


@pytest.fixture
def dropout_words(words, tmp_path_factory) -> list[str]:
    """The run of `words` with dropout in the model, so that torch's generator matters."""
    folder = tmp_path_factory.mktemp("dropout")
    dropout = {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}
    call_tiny("save_tiny", folder, "bert", **dropout)
    return [f"model.path={folder}" if w.startswith("model.path=") else w for w in words]


@pytest.fixture
def closed(monkeypatch):
    """Gives a function close(end). After its call, opening a file whose path ends with
    `end` is refused: tests may run as root, for whom file permissions do not count."""

    def close(end: str) -> None:
        def refusing(real_open):
            def open_unless_closed(path, *arguments, **keywords):
                if str(path).endswith(end):
                    raise PermissionError(errno.EACCES, "Permission denied", str(path))
                return real_open(path, *arguments, **keywords)

            return open_unless_closed

        for module in (builtins, io, os):
            monkeypatch.setattr(module, "open", refusing(module.open))

    return close
