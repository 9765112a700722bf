"""Serves many adapters over HTTP, VeRA's and LoRA's: requests for different ones are
answered in one batch.

    pip install -e '.[serve]'
    # under the ids of the runs, or one under a name
    python examples/serve.py --model FOLDER 'outputs/runs/*'
    python examples/serve.py --model FOLDER films=outputs/runs/ID
    # one text, or a list of them, which is answered in its order
    curl localhost:8000/classify -H 'content-type: application/json' \
      -d '{"adapter": "films", "text": "A lovely film."}'
    curl localhost:8000/classify -H 'content-type: application/json' \
      -d '{"adapter": "films", "text": ["A lovely film.", "A dull one."]}'

A folder is a run's. It holds adapter.safetensors, and head.safetensors with the names
of the classes, which answers have (numbers where it has no names). An adapter without a
head uses the base model's. If that has none either, the server leaves the adapter out,
and refuses requests that name no adapter.

SIGHUP (kill -HUP) reads the folders again: new, changed and gone adapters. With a token
in VERA_SERVE_TOKEN or --token-file, `PUT /adapters/NAME {"folder": ...}` and `DELETE
/adapters/NAME` change them over HTTP. A request keeps the adapter that it began with,
and a damaged adapter leaves the one that was there.

Requests that arrive while a batch is computed form the next one: there is no timer, and
no delay without load. A full queue answers 503, a body over a megabyte 413. Questions
need no token: put a login before it.
"""

import argparse
import asyncio
import contextlib
import copy
import glob
import hashlib
import json
import os
import secrets
import signal
import sys
import threading
from collections import deque
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from pydantic import BaseModel, Field, model_validator
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

import vera
from vera.checked_file import read_file
from vera.errors import first_line
from vera.head_file import HEAD_FORMAT
from vera.sites import head_parameters

LARGEST_BATCH, LONGEST_QUEUE = 64, 256  # texts
LARGEST_BODY = 1_000_000  # bytes
LONGEST_NAME = 255  # characters
ADAPTER, HEAD = "adapter.safetensors", "head.safetensors"


Text = Annotated[str, Field(max_length=100_000)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=LONGEST_QUEUE)]


class Question(BaseModel, extra="forbid"):
    adapter: str | None = Field(
        None, max_length=LONGEST_NAME, description="its name; null: the base model"
    )
    text: Text | Texts = Field(
        description="one text, or a list of them, which is answered in its order"
    )
    text_pair: Text | Texts | None = Field(
        None, description="the second text of a pair; of a list, one for each text"
    )

    @model_validator(mode="after")
    def check_pairs(self) -> "Question":
        if self.text_pair is not None and _length(self.text) != _length(self.text_pair):
            raise ValueError("text_pair needs one text for each in text")
        return self

    def parts(self) -> list["Asked"]:
        """What is asked of each text."""
        texts = self.text if isinstance(self.text, list) else [self.text]
        pairs: Sequence[str | None] = [None] * len(texts)
        if isinstance(self.text_pair, list):
            pairs = self.text_pair
        elif self.text_pair is not None:
            pairs = [self.text_pair]
        return [
            Asked(self.adapter, text, pair)
            for text, pair in zip(texts, pairs, strict=True)
        ]


def _length(texts: str | list[str]) -> int | None:
    """How many texts a list has; None of one text that is in no list."""
    return len(texts) if isinstance(texts, list) else None


@dataclass(frozen=True)
class Asked:
    """One text, or one pair, and who is to answer."""

    adapter: str | None
    text: str
    text_pair: str | None


class Answer(BaseModel):
    adapter: str | None = Field(description="who answered; null: the base model")
    label: str | int | None = Field(
        None, description="the class's name, or its number where it has none"
    )
    probabilities: dict[str, float] | list[float] | None = Field(
        None, description="by name, or in order"
    )
    score: float | None = Field(
        None, description="the number of a regression, in place of a class"
    )


class Health(BaseModel):
    status: str
    adapters: int
    waiting: int = Field(description="texts that wait for a batch")


class Source(BaseModel, extra="forbid"):
    folder: str = Field(
        max_length=4096, description="of an adapter, below --adapters-root"
    )


def load(folder: str) -> tuple[Any, Any, bool]:
    """The base model, its tokenizer, and whether it has a trained head of its own.
    Raises OSError, ValueError or SafetensorError where the folder holds no such
    model."""
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, output_loading_info=True
    )
    for tensor in [*model.parameters(), *model.buffers()]:
        # transformers maps the file: writing to it would change answers, cutting it
        # would kill the server.
        tensor.data = tensor.data.clone()
    return (
        model.eval(),
        AutoTokenizer.from_pretrained(folder),
        not report["missing_keys"],
    )


def sharing(base: Any, output: str, labels: int) -> Any:
    """A copy with the same weights in memory, but for its last layer, which gets so
    many outputs."""
    model = copy.deepcopy(base, {id(p): p for p in base.parameters()})
    if labels != base.config.num_labels:
        layer = model.get_submodule(output.rpartition(".")[0])
        for name, p in list(layer.named_parameters(recurse=False)):
            setattr(
                layer,
                name,
                nn.Parameter(p.new_zeros(labels, *p.shape[1:]), requires_grad=False),
            )
    return model


@dataclass(eq=False)
class Resident:
    """An adapter in memory; without a key, the base model."""

    adapters: vera.Adapters
    key: str | None
    classes: list[str] | None
    hashes: dict[str, str]


class Registry:
    """The adapters by name. Those of one method with equal settings and as many labels
    are on one model; all models share the base model's weights. Any thread may call a
    method."""

    def __init__(
        self,
        base: Any,
        own_head: bool,
        words: Sequence[str] = (),
        root: Path | None = None,
    ):
        """own_head: the base model answers, too. words: [NAME=]FOLDER, for `read`.
        root: for `put`."""
        self.base, self.own_head, self.words, self.root = base, own_head, words, root
        self.output = list(head_parameters(base))[-1]  # (labels, ...)
        labels = base.config.id2label
        # transformers calls a class without a name LABEL_1
        classes = (
            None
            if labels.get(0) == "LABEL_0"
            else [labels[i] for i in range(len(labels))]
        )
        self.alone = Resident(vera.Adapters(base), None, classes, {})
        self.models: dict[str, vera.Adapters] = {}  # by method, settings and labels
        self.residents: dict[str, Resident] = {}
        self.added: dict[str, Path] = {}  # the folders of `put`
        self.changing = threading.RLock()  # one change of the adapters at a time
        # has the models, which take one call at a time, in this order
        self.computing = ThreadPoolExecutor(1)
        self.ordering = threading.Lock()  # of an adapter with what is submitted for it

    def read(self) -> None:
        """Reads the folders: adds new and changed adapters, removes those that are
        gone. One that cannot be read leaves what was there, and a line on stderr says
        why."""
        with self.changing:
            words = [
                path
                for word in self.words
                for path in sorted(glob.glob(word)) or [word]
            ]
            # The command line's folder again where that of `put` is gone
            self.added = {
                name: of
                for name, of in self.added.items()
                if os.path.isfile(of / ADAPTER)
            }
            wanted, before = dict(map(named_folder, words)) | self.added, self.residents
            for name in before:
                if name not in wanted or not os.path.isfile(wanted[name] / ADAPTER):
                    self.replace(name)
            for name, folder in wanted.items():
                try:
                    (self.put if name in self.added else self.add)(name, folder)
                except (OSError, ValueError, RuntimeError) as error:
                    # also an AdapterError, a loop of links
                    kept = "left as it was" if name in self.residents else "left out"
                    print(f"{kept}: {first_line(error)}", file=sys.stderr, flush=True)
            report(self.residents, f"on {self.base.device}")
            if before:
                changes = {*before.items()} ^ {*self.residents.items()}
                report({name for name, _ in changes}, "changed")

    def put(self, name: str, folder: str | Path) -> None:
        """`add`, for a folder that with its files is below the root once links are
        resolved."""
        if self.root is None:
            raise vera.AdapterError(
                "started without --adapters-root: no folder is read"
            )
        inside = (self.root / folder).resolve()
        paths = inside, (inside / ADAPTER).resolve(), (inside / HEAD).resolve()
        if not all(self.root.resolve() in path.parents for path in paths):
            raise vera.AdapterError("folder: not below --adapters-root")
        with self.changing:
            self.add(name, inside)
            self.added[name] = inside

    def add(self, name: str, folder: Path) -> None:
        """Serves a folder's adapter under a name, in place of another one. Raises
        AdapterError or OSError, with nothing changed, where it does not fit. For `read`
        and `put`."""
        if len(name) > LONGEST_NAME or not name.isprintable():
            raise vera.AdapterError(
                f"{name[:40]!a}: a name has at most {LONGEST_NAME} printable characters"
            )
        hashes = check_record(folder)
        if name in self.residents and self.residents[name].hashes == hashes:
            return
        file, head = folder / ADAPTER, folder / HEAD if HEAD in hashes else None
        if ADAPTER not in hashes:  # a run of the head alone, of all weights, or a trial
            raise vera.AdapterError(f"{folder}: no {ADAPTER}")
        if not (self.own_head or head):
            raise vera.AdapterError(
                f"{folder}: no {HEAD}, nor a head in the base model"
            )
        labels, classes = self.base.config.num_labels, self.alone.classes
        if head:
            shape = read_file(head, HEAD_FORMAT).shapes.get(self.output)
            labels, classes = shape[0] if shape else labels, vera.read_classes(head)
        # which may differ
        settings = vera.read_method(file).settings() | {"dropout": 0, "d_init": 0}
        kind, key = f"{labels} {sorted(settings.items())}", secrets.token_hex(8)
        if (adapters := self.models.get(kind)) is None:  # nothing is computed by it yet
            adapters = vera.Adapters(sharing(self.base, self.output, labels))
            adapters.add(key, file, head)
            self.models[kind] = adapters
        else:
            self.computing.submit(adapters.add, key, file, head).result()
        self.replace(name, Resident(adapters, key, classes, hashes))

    def replace(self, name: str, successor: Resident | None = None) -> bool:
        """Whether there was an adapter of this name. It leaves its model after the
        requests that have it."""
        with self.changing, self.ordering:
            before = self.residents.get(name)
            self.residents = {
                n: r for n, r in (self.residents | {name: successor}).items() if r
            }
            self.added.pop(name, None)
            if before:
                self.computing.submit(before.adapters.remove, before.key)
        return before is not None


def report(names: Collection[str], where: str) -> None:
    """Prints how many adapters there are, and the first of their names."""
    shown = ", ".join(map(ascii, sorted(names)[:5])) + ", ..." * (len(names) > 5)
    print(
        f"{len(names)} adapter{'s' * (len(names) != 1)} {where}: {shown or 'none'}",
        flush=True,
    )


def named_folder(word: str) -> tuple[str, Path]:
    """The name and the folder of a word of the command line, NAME=FOLDER or FOLDER."""
    name, equals, folder = word.partition("=")
    if equals and name and "/" not in name and not Path(word).exists():
        return name, Path(folder)
    return Path(os.path.abspath(word)).name, Path(word)


def check_record(folder: Path) -> dict[str, str]:
    """The hashes of a folder's files. Raises AdapterError where the run's record, if
    any, has others."""
    path = folder.resolve().parent.parent / "records" / f"{folder.resolve().name}.json"
    named: dict[str, str] = {}
    # no record, or an older one
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        named = dict(json.loads(path.read_bytes())["files"])
    files = [folder / name for name in (ADAPTER, HEAD)]
    hashes = {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
        if file.is_file()
    }
    for name, digest in hashes.items():
        if named.get(name, digest) != digest:
            raise vera.AdapterError(
                f"{folder / name}: not the file that the run's record names"
            )
    return hashes


def build(registry: Registry, tokenizer: Any, token: str | None = None) -> FastAPI:
    """The application around a registry; token: of those who may change its
    adapters."""
    waiting: deque[tuple[Asked, Resident, asyncio.Future[Answer]]] = deque()
    # RoBERTa's and MPNet's positions begin after the padding index
    tables = [
        m
        for name, m in registry.base.named_modules()
        if name.endswith("position_embeddings")
    ]
    first = 1 + next(
        (m.padding_idx for m in tables if getattr(m, "padding_idx", None) is not None),
        -1,
    )
    limit = min(
        tokenizer.model_max_length, registry.base.config.max_position_embeddings - first
    )

    def answer(question: Asked, resident: Resident, outputs: torch.Tensor) -> Answer:
        if len(outputs) == 1:
            return Answer(adapter=question.adapter, score=float(outputs))
        row, classes = outputs.softmax(-1).tolist(), resident.classes
        label = (classes or range(len(row)))[int(outputs.argmax())]
        probabilities = dict(zip(classes, row, strict=True)) if classes else row
        return Answer(
            adapter=question.adapter, label=label, probabilities=probabilities
        )

    def compute(work: Sequence[tuple[Asked, Resident]]) -> list[Answer | Exception]:
        """The answers of one model. A text that cannot be computed fails alone."""
        adapters = work[0][1].adapters
        names = (
            {"adapter_names": [resident.key for _, resident in work]}
            if len(adapters)
            else {}
        )
        try:
            # Each text is tokenised by itself, then padded: one request cannot change
            # another's answer.
            tokens = [
                tokenizer(q.text, q.text_pair, truncation=True, max_length=limit)
                for q, _ in work
            ]
            batch = tokenizer.pad(tokens, return_tensors="pt").to(registry.base.device)
            with torch.inference_mode():
                logits = adapters.model(**batch, **names).logits.float().cpu()
            return [answer(*one, row) for one, row in zip(work, logits, strict=True)]
        except Exception as error:
            return [error] if len(work) == 1 else [compute([one])[0] for one in work]

    def answer_waiting() -> None:
        """A batch of those that wait. Each text submits this once, which answers it at
        the latest."""
        batch = [waiting.popleft() for _ in range(min(len(waiting), LARGEST_BATCH))]
        app.state.batches.append(len(batch))
        for adapters in {resident.adapters: None for _, resident, _ in batch}:
            alike = [one for one in batch if one[1].adapters is adapters]
            futures, answers = (
                [one[2] for one in alike],
                compute([one[:2] for one in alike]),
            )
            futures[0].get_loop().call_soon_threadsafe(deliver, futures, answers)

    def deliver(
        futures: Sequence[asyncio.Future[Answer]], answers: Sequence[Answer | Exception]
    ) -> None:
        for future, own in zip(futures, answers, strict=True):
            if not future.done():  # somebody waits for it still
                (
                    future.set_exception
                    if isinstance(own, Exception)
                    else future.set_result
                )(own)

    app = FastAPI(title="VeRA adapters", max_body_size=LARGEST_BODY)
    app.state.batches, app.state.waiting = deque(maxlen=1000), waiting  # to look at
    app.add_route("/", lambda _: RedirectResponse("/docs"))

    @app.exception_handler(RequestValidationError)
    async def refuse(http: Request, error: RequestValidationError) -> JSONResponse:
        """FastAPI's own answer repeats the input, which fails for NaN and lone
        surrogates: not JSON."""
        problems = [
            {key: problem[key] for key in ("loc", "msg", "type")}
            for problem in error.errors()
        ]
        return JSONResponse({"detail": problems}, 422)

    @app.get("/health")
    async def health() -> Health:
        return Health(
            status="ok", adapters=len(registry.residents), waiting=len(waiting)
        )

    @app.get("/adapters")
    async def names() -> list[str]:
        return list(registry.residents)

    def admin(authorization: Annotated[str, Header()] = "") -> None:
        if token is None:
            raise HTTPException(
                403, "this server has no token: nobody changes its adapters over HTTP"
            )
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() != "bearer" or not secrets.compare_digest(
            given.encode("latin-1"), token.encode()
        ):
            raise HTTPException(
                401, "not this server's token", {"WWW-Authenticate": "Bearer"}
            )

    @app.put("/adapters/{name}", status_code=204, dependencies=[Depends(admin)])
    def put(name: str, source: Source) -> None:
        try:
            registry.put(name, source.folder)
            report([name], "from PUT")
        except (OSError, ValueError, RuntimeError) as error:
            # also an AdapterError, a loop of links, a NUL
            raise HTTPException(422, first_line(error)) from None

    @app.delete("/adapters/{name}", status_code=204, dependencies=[Depends(admin)])
    def delete(name: str) -> None:
        if not registry.replace(name):
            raise HTTPException(
                404, f"no adapter {name!r}: GET /adapters lists those here"
            )
        report([name], "taken by DELETE")

    @app.post("/classify", response_model_exclude_none=True)
    async def classify(question: Question) -> Answer | list[Answer]:
        parts = question.parts()
        if question.adapter is None and not registry.own_head:
            raise HTTPException(
                422,
                "name an adapter: GET /adapters lists them (the base model has no head)",
            )
        if len(waiting) + len(parts) > LONGEST_QUEUE:
            raise HTTPException(
                503,
                f"{len(waiting)} texts wait already, of at most {LONGEST_QUEUE}",
                {"Retry-After": "1"},
            )
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Answer]] = [loop.create_future() for _ in parts]
        name = question.adapter
        with registry.ordering:
            resident = registry.alone if name is None else registry.residents.get(name)
            if resident is None:
                raise HTTPException(
                    404, f"no adapter {name!r}: GET /adapters lists those here"
                )
            for part, future in zip(parts, futures, strict=True):
                waiting.append((part, resident, future))
                registry.computing.submit(answer_waiting)
        answers = await asyncio.gather(*futures)
        return answers if isinstance(question.text, list) else answers[0]

    return app


def main() -> None:
    form = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = form.add_argument
    add(
        "folders",
        nargs="*",
        metavar="[NAME=]FOLDER",
        help="runs, or a quoted pattern for SIGHUP to expand",
    )
    add(
        "--model", required=True, help="the base model's folder, or its name on the hub"
    )
    add(
        "--adapters-root",
        type=Path,
        help="the folder below which PUT may name folders (none: no PUT)",
    )
    add(
        "--token-file",
        type=Path,
        help="has the token of PUT and DELETE (else VERA_SERVE_TOKEN; or none)",
    )
    add(
        "--device", help="cpu, cuda, cuda:1, ...; by default a GPU where torch sees one"
    )
    add(
        "--host",
        default="127.0.0.1",
        help="the address to listen at (127.0.0.1: this machine alone)",
    )
    add(
        "--port",
        type=int,
        default=8000,
        help="the port to listen at (8000; 0: a free one)",
    )
    options = form.parse_args()
    # it would report a missing head; the adapters have heads
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:  # there may be no such file, model or device
        token = options.token_file.read_text().strip() if options.token_file else None
        model, tokenizer, own_head = load(options.model)
        model.to(device)
    except (
        OSError,
        ValueError,
        RuntimeError,
        AssertionError,
        SafetensorError,
    ) as error:
        sys.exit(f"error: --model {options.model} on {device}: {first_line(error)}")
    registry = Registry(model, own_head, options.folders, options.adapters_root)
    signal.signal(
        signal.SIGHUP, lambda *_: threading.Thread(target=registry.read).start()
    )
    registry.read()
    if not (registry.residents or options.adapters_root):
        sys.exit("error: no adapter to serve")
    app = build(
        registry, tokenizer, token or os.environ.get("VERA_SERVE_TOKEN") or None
    )
    uvicorn.run(app, host=options.host, port=options.port, access_log=False)


if __name__ == "__main__":
    main()
