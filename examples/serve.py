"""Serves many adapters over HTTP. One batch answers requests for different ones.

    pip install -e '.[serve]'
    # under the ids of the runs, or one under a name
    vera-bench serve --model FOLDER 'outputs/runs/*'
    vera-bench serve --model FOLDER films=outputs/runs/ID
    # "text" may also be a list
    curl localhost:8000/classify -H 'content-type: application/json' \\
      -d '{"adapter": "films", "text": "A lovely film."}'

A folder is a run's, with adapter.safetensors and head.safetensors. SIGHUP
(kill -HUP) reads the folders again. With a token, PUT and DELETE
/adapters/NAME change them over HTTP. Questions need no token: put a login
before it. docs/serving.md has answers, errors and limits.

examples/adapter_registry.py, which reads the folders, belongs beside this file.
"""

import argparse
import asyncio
import os
import secrets
import signal
import sys
import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import uvicorn
from adapter_registry import LONGEST_NAME, Registry, Resident, load, report
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from pydantic import BaseModel, Field, model_validator
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from vera.errors import first_line

LARGEST_BATCH = 64  # texts
LONGEST_QUEUE = 256  # texts
LARGEST_BODY = 1_000_000  # bytes
#: How many sizes of batches are remembered.
BATCHES_REMEMBERED = 1000

Text = Annotated[str, Field(max_length=100_000)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=LONGEST_QUEUE)]


class Question(BaseModel, extra="forbid"):
    """The body of POST /classify."""

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
        """Refuses pairs that do not fit the texts."""
        if self.text_pair is not None and _length(self.text) != _length(self.text_pair):
            raise ValueError("text_pair needs one text for each in text")
        return self

    def items(self) -> list["Item"]:
        """The question, taken apart into single texts or pairs."""
        texts = self.text if isinstance(self.text, list) else [self.text]
        pairs: Sequence[str | None] = [None] * len(texts)
        if isinstance(self.text_pair, list):
            pairs = self.text_pair
        elif self.text_pair is not None:
            pairs = [self.text_pair]
        items = []
        for text, pair in zip(texts, pairs, strict=True):
            items.append(Item(self.adapter, text, pair))
        return items


def _length(texts: str | list[str]) -> int | None:
    """How many texts a list has; None for a single text."""
    return len(texts) if isinstance(texts, list) else None


@dataclass(frozen=True)
class Item:
    """One text, or one pair, and the name of the adapter that is to answer; None for the
    base model."""

    adapter: str | None
    text: str
    text_pair: str | None


class Answer(BaseModel):
    """The answer to one text."""

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
    """The answer of GET /health."""

    status: str
    adapters: int
    waiting: int = Field(description="texts that wait for a batch")


class Source(BaseModel, extra="forbid"):
    """The body of PUT /adapters/NAME."""

    folder: str = Field(
        max_length=4096, description="of an adapter, below --adapters-root"
    )


# --- batches


@dataclass(frozen=True)
class Waiting:
    """An item that waits for its answer. resident: the adapter that its name stood for when
    it came. future: gets the answer."""

    item: Item
    resident: Resident
    future: asyncio.Future[Answer]


class Batches:
    """The items that wait, and how they are answered in batches.

    waiting: the items, the oldest first. sizes: how many items each of the newest batches
    had. max_input_tokens: where a text is cut."""

    def __init__(self, registry: Registry, tokenizer: Any) -> None:
        self.registry = registry
        self.tokenizer = tokenizer
        self.max_input_tokens = _max_input_tokens(registry.base, tokenizer)
        self.waiting: deque[Waiting] = deque()
        self.sizes: deque[int] = deque(maxlen=BATCHES_REMEMBERED)

    def submit(self, waiting: Waiting) -> None:
        """Makes an item wait, and has the compute thread answer a batch of those that wait
        when it gets there."""
        self.waiting.append(waiting)
        self.registry.compute_thread.submit(self._answer_waiting)

    def _answer_waiting(self) -> None:
        """Answers a batch of the items that wait. There is one such call for each item, so
        that none is forgotten; a call whose item an earlier batch had may find nothing."""
        count = min(len(self.waiting), LARGEST_BATCH)
        batch = [self.waiting.popleft() for _ in range(count)]
        self.sizes.append(len(batch))
        by_model: dict[int, list[Waiting]] = {}
        for waiting in batch:
            by_model.setdefault(id(waiting.resident.adapters), []).append(waiting)
        for batch_of_model in by_model.values():
            answers = self._compute(batch_of_model)
            # The futures belong to the event loop's thread, not to this one
            loop = batch_of_model[0].future.get_loop()
            loop.call_soon_threadsafe(_deliver, batch_of_model, answers)

    def _compute(self, batch: Sequence[Waiting]) -> list[Answer | Exception]:
        """The answers to a batch for one model. If it fails, each item is computed by
        itself, so that only the one at fault gets the error."""
        try:
            logits = self._logits(batch)
            pairs = zip(batch, logits, strict=True)
            return [_answer(waiting, outputs) for waiting, outputs in pairs]
        except Exception as error:
            if len(batch) == 1:
                return [error]
            answers = []
            for waiting in batch:
                answers += self._compute([waiting])
            return answers

    def _logits(self, batch: Sequence[Waiting]) -> torch.Tensor:
        """The outputs for a batch for one model, (items, outputs), on the CPU."""
        adapters = batch[0].resident.adapters
        # Each text is tokenised by itself, then padded: one request cannot change
        # another's answer.
        tokens = []
        for waiting in batch:
            text, pair = waiting.item.text, waiting.item.text_pair
            tokens.append(
                self.tokenizer(
                    text, pair, truncation=True, max_length=self.max_input_tokens
                )
            )
        inputs = self.tokenizer.pad(tokens, return_tensors="pt")
        inputs = inputs.to(self.registry.base.device)
        names = {}
        if len(adapters):  # without any, the model is the plain base model
            names["adapter_names"] = [waiting.resident.key for waiting in batch]
        with torch.inference_mode():
            logits: torch.Tensor = adapters.model(**inputs, **names).logits
            return logits.float().cpu()


def _max_input_tokens(base: Any, tokenizer: Any) -> int:
    """The most tokens that the model reads."""
    # RoBERTa's and MPNet's positions begin after the padding index
    first_position = 0
    for name, module in base.named_modules():
        padding_index = getattr(module, "padding_idx", None)
        if name.endswith("position_embeddings") and padding_index is not None:
            first_position = 1 + padding_index
            break
    positions = base.config.max_position_embeddings - first_position
    return int(min(tokenizer.model_max_length, positions))


def _answer(waiting: Waiting, outputs: torch.Tensor) -> Answer:
    """The answer to an item, from its outputs (classes,), or (1,) for a regression."""
    adapter = waiting.item.adapter
    if len(outputs) == 1:
        return Answer(adapter=adapter, score=float(outputs))
    row = outputs.softmax(-1).tolist()
    number = int(outputs.argmax())
    classes = waiting.resident.classes
    if not classes:
        return Answer(adapter=adapter, label=number, probabilities=row)
    probabilities = dict(zip(classes, row, strict=True))
    return Answer(adapter=adapter, label=classes[number], probabilities=probabilities)


def _deliver(batch: Sequence[Waiting], answers: Sequence[Answer | Exception]) -> None:
    """Gives each item its answer, unless nobody waits for it any more."""
    for waiting, answer in zip(batch, answers, strict=True):
        if waiting.future.done():  # cancelled, for example by a client that left
            continue
        if isinstance(answer, Exception):
            waiting.future.set_exception(answer)
        else:
            waiting.future.set_result(answer)


# --- the application


def build(registry: Registry, tokenizer: Any, token: str | None = None) -> FastAPI:
    """The application around a registry.

    Args:
        registry: The adapters.
        tokenizer: The base model's.
        token: Of those who may change the adapters; None for nobody.
    """
    batches = Batches(registry, tokenizer)
    app = FastAPI(title="VeRA adapters", max_body_size=LARGEST_BODY)
    # For tests and measurements to look at
    app.state.batches = batches.sizes
    app.state.waiting = batches.waiting
    app.add_route("/", lambda _: RedirectResponse("/docs"))

    @app.exception_handler(RequestValidationError)
    async def refuse(http: Request, error: RequestValidationError) -> JSONResponse:
        """Answers a wrong body. FastAPI's own answer would repeat the input, which fails
        for NaN and lone surrogates: they are not JSON."""
        problems = []
        for problem in error.errors():
            problems.append({key: problem[key] for key in ("loc", "msg", "type")})
        return JSONResponse({"detail": problems}, 422)

    @app.get("/health")
    async def health() -> Health:
        waiting = len(batches.waiting)
        return Health(status="ok", adapters=len(registry.residents), waiting=waiting)

    @app.get("/adapters")
    async def names() -> list[str]:
        return list(registry.residents)

    _add_changes(app, registry, token)
    _add_questions(app, registry, batches)
    return app


def _add_changes(app: FastAPI, registry: Registry, token: str | None) -> None:
    """Adds the requests that change adapters, for those who have the token."""

    def admin(authorization: Annotated[str, Header()] = "") -> None:
        """Refuses a request without the token."""
        if token is None:
            raise HTTPException(
                403, "this server has no token: nobody changes its adapters over HTTP"
            )
        scheme, _, secret = authorization.partition(" ")
        is_token = secrets.compare_digest(secret.encode("latin-1"), token.encode())
        if scheme.lower() != "bearer" or not is_token:
            raise HTTPException(
                401, "not this server's token", {"WWW-Authenticate": "Bearer"}
            )

    @app.put("/adapters/{name}", status_code=204, dependencies=[Depends(admin)])
    def put(name: str, source: Source) -> None:
        try:
            registry.put(name, source.folder)
            report([name], "from PUT")
        except (OSError, ValueError, RuntimeError) as error:
            # Also an AdapterError, a loop of links, a NUL
            raise HTTPException(422, first_line(error)) from None

    @app.delete("/adapters/{name}", status_code=204, dependencies=[Depends(admin)])
    def delete(name: str) -> None:
        if not registry.replace(name):
            raise HTTPException(
                404, f"no adapter {name!r}: GET /adapters lists those here"
            )
        report([name], "taken by DELETE")


def _add_questions(app: FastAPI, registry: Registry, batches: Batches) -> None:
    """Adds the request that asks for an answer."""

    @app.post("/classify", response_model_exclude_none=True)
    async def classify(question: Question) -> Answer | list[Answer]:
        items = question.items()
        name = question.adapter
        if name is None and not registry.own_head:
            raise HTTPException(
                422,
                "name an adapter: GET /adapters lists them (the base model has no head)",
            )
        waiting = len(batches.waiting)
        if waiting + len(items) > LONGEST_QUEUE:
            raise HTTPException(
                503,
                f"{waiting} texts wait already, of at most {LONGEST_QUEUE}",
                {"Retry-After": "1"},
            )
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Answer]] = []
        # While it is held, the adapter cannot be replaced
        with registry.order_lock:
            resident = registry.alone if name is None else registry.residents.get(name)
            if resident is None:
                raise HTTPException(
                    404, f"no adapter {name!r}: GET /adapters lists those here"
                )
            for item in items:
                future = loop.create_future()
                futures.append(future)
                batches.submit(Waiting(item, resident, future))
        answers = await asyncio.gather(*futures)
        return answers if isinstance(question.text, list) else answers[0]


# --- the command


def read_options() -> argparse.Namespace:
    """The options of the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
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
        metavar="FOLDER",
        help="the folder below which PUT may read adapters (default: PUT is refused)",
    )
    add(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="has the token that PUT and DELETE need (default: VERA_SERVE_TOKEN)",
    )
    add("--device", help="cpu, cuda, cuda:1, ... (default: a GPU, if any)")
    add(
        "--host",
        default="127.0.0.1",
        help="the address to listen at (default: 127.0.0.1, this machine alone)",
    )
    add(
        "--port",
        type=int,
        default=8000,
        help="the port to listen at (default: 8000; 0: a free one)",
    )
    return parser.parse_args()


def main() -> None:
    """Loads the base model and the adapters, and serves them until it is stopped."""
    options = read_options()
    # transformers would report that the head is missing, which the adapters bring
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    token = os.environ.get("VERA_SERVE_TOKEN")
    try:  # There may be no such file, model or device
        if options.token_file:
            token = options.token_file.read_text().strip() or token
        base = load(options.model)
        base.model.to(device)
    except (
        OSError,
        ValueError,
        RuntimeError,
        AssertionError,
        SafetensorError,
    ) as error:
        sys.exit(f"error: --model {options.model} on {device}: {first_line(error)}")
    registry = Registry(
        base.model, base.has_head, options.folders, options.adapters_root
    )

    def read_again(*signal_and_frame: object) -> None:
        """Reads the folders in a thread, so that the server answers meanwhile."""
        threading.Thread(target=registry.read).start()

    signal.signal(signal.SIGHUP, read_again)
    registry.read()
    if not (registry.residents or options.adapters_root):
        sys.exit("error: no adapter to serve")
    # An empty token would let everybody in
    app = build(registry, base.tokenizer, token or None)
    uvicorn.run(app, host=options.host, port=options.port, access_log=False)


if __name__ == "__main__":
    main()
