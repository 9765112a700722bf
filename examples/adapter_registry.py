"""The adapters that examples/serve.py serves: read from folders, by name, and replaced
while they answer."""

import contextlib
import copy
import glob
import hashlib
import json
import os
import secrets
import sys
import threading
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import vera
from vera.checked_file import read_file
from vera.errors import first_line
from vera.head_file import HEAD_FORMAT
from vera.sites import head_parameters

LONGEST_NAME = 255  # characters
#: The files of a run's folder.
ADAPTER = "adapter.safetensors"
HEAD = "head.safetensors"
#: How many names `report` prints.
NAMES_SHOWN = 5


@dataclass(frozen=True)
class BaseModel:
    """A base model with its tokenizer. has_head: whether it has a trained head of its
    own."""

    model: Any
    tokenizer: Any
    has_head: bool


def load(folder: str) -> BaseModel:
    """Loads a base model.

    Args:
        folder: The model's folder, or its name on the hub.

    Raises:
        OSError, ValueError or SafetensorError: The folder holds no such model.
    """
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    for tensor in [*model.parameters(), *model.buffers()]:
        # transformers maps the file: writing to it would change answers, cutting it
        # would kill the server.
        tensor.data = tensor.data.clone()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return BaseModel(model.eval(), tokenizer, not report["missing_keys"])


@dataclass(eq=False)
class Resident:
    """An adapter in memory.

    adapters: the model that it is on, with other adapters. key: its name there, which is
    new for each version of an adapter; None stands for the base model itself. classes: the
    names of its classes, where it has some. hashes: the SHA-256 of its files, by their
    names."""

    adapters: vera.Adapters
    key: str | None
    classes: list[str] | None
    hashes: dict[str, str]


class Registry:
    """The adapters by name. Those of one method with equal settings and as many labels
    are on one model; all models share the base model's weights. Any thread may call a
    method.

    alone: the base model without an adapter. models: by a text of method, settings and
    number of labels. residents: the adapters by name; a change replaces this dictionary,
    so that other threads can read it at any time. folders_put: the folders of adapters that
    came by `put`, by name. compute_thread: the one thread that uses the models, which take
    one call at a time."""

    def __init__(
        self,
        base: Any,
        own_head: bool,
        patterns: Sequence[str] = (),
        root: Path | None = None,
    ) -> None:
        """Holds no adapter before `read`.

        Args:
            base: The base model.
            own_head: Whether the base model has a trained head, and so answers, too.
            patterns: [NAME=]FOLDER, for `read`; FOLDER may be a pattern such as runs/*.
            root: The folder below which `put` finds adapters.
        """
        self.base = base
        self.own_head = own_head
        self.patterns = patterns
        self.root = root
        # The name of a parameter of the last layer; its first dimension is the labels
        self.output_parameter = list(head_parameters(base))[-1]
        self.alone = Resident(vera.Adapters(base), None, _class_names(base), {})
        self.models: dict[str, vera.Adapters] = {}
        self.residents: dict[str, Resident] = {}
        self.folders_put: dict[str, Path] = {}
        self.change_lock = threading.RLock()  # one change of the adapters at a time
        self.compute_thread = ThreadPoolExecutor(1)
        # Held while an adapter is looked up and its texts are submitted, and while an
        # adapter is replaced. So the old one leaves after the texts that were meant for
        # it.
        self.order_lock = threading.Lock()

    def read(self) -> None:
        """Reads the folders again: adds new and changed adapters, and removes those that
        are gone. If one cannot be read, the adapter of its name stays as it was, and a
        line on stderr says why."""
        with self.change_lock:
            residents_before = self.residents
            folders = self._folders()
            for name in residents_before:
                if name not in folders or not os.path.isfile(folders[name] / ADAPTER):
                    self.replace(name)
            for name, folder in folders.items():
                try:
                    if name in self.folders_put:
                        self.put(name, folder)
                    else:
                        self.add(name, folder)
                except (OSError, ValueError, RuntimeError) as error:
                    # Also an AdapterError, and a loop of links
                    state = "left out"
                    if name in self.residents:
                        state = "left as it was"
                    print(f"{state}: {first_line(error)}", file=sys.stderr, flush=True)
            report(self.residents, f"on {self.base.device}")
            if residents_before:
                # The names that are new or gone, or have another adapter now
                changes = {*residents_before.items()} ^ {*self.residents.items()}
                report({name for name, _ in changes}, "changed")

    def _folders(self) -> dict[str, Path]:
        """The folder of each name: those of the command line, and those of `put`, which
        come first where both have a name. Forgets those of `put` that are gone."""
        folders = {}
        for pattern in self.patterns:
            for path in sorted(glob.glob(pattern)) or [pattern]:
                name, folder = named_folder(path)
                folders[name] = folder
        for name, folder in list(self.folders_put.items()):
            if not os.path.isfile(folder / ADAPTER):
                del self.folders_put[name]
        return folders | self.folders_put

    def put(self, name: str, folder: str | Path) -> None:
        """Serves an adapter from a folder below the root, in place of another one of its
        name.

        Args:
            name: What requests call it.
            folder: Relative to the root. It and its files must be below the root once
                links are resolved.

        Raises:
            AdapterError: It is elsewhere, or see `add`.
        """
        if self.root is None:
            raise vera.AdapterError(
                "started without --adapters-root: no folder is read"
            )
        root = self.root.resolve()
        resolved = (root / folder).resolve()
        paths = resolved, (resolved / ADAPTER).resolve(), (resolved / HEAD).resolve()
        if not all(root in path.parents for path in paths):
            raise vera.AdapterError("folder: not below --adapters-root")
        with self.change_lock:
            self.add(name, resolved)
            self.folders_put[name] = resolved

    def add(self, name: str, folder: Path) -> None:
        """Serves a folder's adapter, in place of another one of its name. Does nothing if
        the files are those that it serves already. For `read` and `put`, which hold the
        lock.

        Args:
            name: What requests call it.
            folder: A run's.

        Raises:
            AdapterError or OSError: The name or the adapter does not fit. Nothing is
                changed then.
        """
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise vera.AdapterError(
                f"{name[:40]!a}: a name has at most {LONGEST_NAME} printable characters"
            )
        hashes = check_record(folder)
        if name in self.residents and self.residents[name].hashes == hashes:
            return
        file = folder / ADAPTER
        head = folder / HEAD if HEAD in hashes else None
        if ADAPTER not in hashes:  # A run of the head alone, of all weights, or a trial
            raise vera.AdapterError(f"{folder}: no {ADAPTER}")
        if not (self.own_head or head):
            raise vera.AdapterError(
                f"{folder}: no {HEAD}, nor a head in the base model"
            )
        labels = self.base.config.num_labels
        classes = self.alone.classes
        if head:
            shape = read_file(head, HEAD_FORMAT).shapes.get(self.output_parameter)
            labels = shape[0] if shape else labels
            classes = vera.read_classes(head)
        # Adapters may share a model though their dropout and their start of d differ:
        # answers depend on neither
        settings = vera.read_method(file).settings() | {"dropout": 0, "d_init": 0}
        kind = f"{labels} {sorted(settings.items())}"
        key = secrets.token_hex(8)
        adapters = self.models.get(kind)
        # Nothing is computed by a new model yet, so this thread may add to it
        if adapters is None:
            adapters = vera.Adapters(
                share_weights(self.base, self.output_parameter, labels)
            )
            adapters.add(key, file, head)
            self.models[kind] = adapters
        else:
            self.compute_thread.submit(adapters.add, key, file, head).result()
        self.replace(name, Resident(adapters, key, classes, hashes))

    def replace(self, name: str, successor: Resident | None = None) -> bool:
        """Puts an adapter in the place of another one. The old one leaves its model after
        the requests that were meant for it.

        Args:
            name: The name of both.
            successor: The new adapter; None only takes the old one away.

        Returns:
            Whether there was an adapter of this name.
        """
        with self.change_lock, self.order_lock:
            predecessor = self.residents.get(name)
            residents = self.residents | {name: successor}
            self.residents = {n: r for n, r in residents.items() if r}
            self.folders_put.pop(name, None)
            if predecessor:
                self.compute_thread.submit(predecessor.adapters.remove, predecessor.key)
        return predecessor is not None


def share_weights(base: Any, output_parameter: str, labels: int) -> Any:
    """A copy of a model with the same weights in memory. Its last layer is new, and zero,
    if the copy gets another number of outputs.

    Args:
        base: The base model.
        output_parameter: The name of a parameter of its last layer.
        labels: How many outputs the copy gets.
    """
    model = copy.deepcopy(base, {id(p): p for p in base.parameters()})
    if labels != base.config.num_labels:
        layer = model.get_submodule(output_parameter.rpartition(".")[0])
        for name, parameter in list(layer.named_parameters(recurse=False)):
            zeros = parameter.new_zeros(labels, *parameter.shape[1:])
            setattr(layer, name, nn.Parameter(zeros, requires_grad=False))
    return model


def _class_names(base: Any) -> list[str] | None:
    """The names of the base model's classes, by index; None where they have none."""
    labels = base.config.id2label
    # transformers calls a class without a name LABEL_1
    if labels.get(0) == "LABEL_0":
        return None
    return [labels[number] for number in range(len(labels))]


def report(names: Collection[str], where: str) -> None:
    """Prints how many adapters there are, and the first of their names. where: the words
    after "adapters", such as "from PUT"."""
    listed = ", ".join(map(ascii, sorted(names)[:NAMES_SHOWN])) or "none"
    if len(names) > NAMES_SHOWN:
        listed += ", ..."
    noun = "adapter" if len(names) == 1 else "adapters"
    print(f"{len(names)} {noun} {where}: {listed}", flush=True)


def named_folder(argument: str) -> tuple[str, Path]:
    """The name and the folder of NAME=FOLDER, or of FOLDER, whose last part is its
    name."""
    name, equals, folder = argument.partition("=")
    # An = may also be a part of FOLDER itself
    if equals and name and "/" not in name and not Path(argument).exists():
        return name, Path(folder)
    return Path(os.path.abspath(argument)).name, Path(argument)


def check_record(folder: Path) -> dict[str, str]:
    """Compares a folder's files with the run's record, if there is one.

    Args:
        folder: A run's.

    Returns:
        The SHA-256 of the adapter and of the head, by their files' names; only of those
        that are there.

    Raises:
        AdapterError: The record has another hash for a file.
    """
    run = folder.resolve()
    # outputs/runs/ID has the record outputs/records/ID.json
    path = run.parent.parent / "records" / f"{run.name}.json"
    recorded: dict[str, str] = {}
    # There may be no record, or an older one
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        recorded = dict(json.loads(path.read_bytes())["files"])
    hashes = {}
    for name in (ADAPTER, HEAD):
        file = folder / name
        if file.is_file():
            hashes[name] = hashlib.sha256(file.read_bytes()).hexdigest()
            if recorded.get(name, hashes[name]) != hashes[name]:
                raise vera.AdapterError(
                    f"{file}: not the file that the run's record names"
                )
    return hashes
