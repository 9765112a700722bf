"""Serves many VeRA adapters over HTTP: requests for different adapters are answered in one batch.

    pip install -e '.[serve]'
    python examples/serve.py --model FOLDER outputs/runs/*                # under the ids of the runs
    python examples/serve.py --model FOLDER films=outputs/runs/ID ...     # under a name
    curl localhost:8000/adapters
    curl localhost:8000/health
    curl localhost:8000/classify -H 'content-type: application/json' \
      -d '{"adapter": "films", "text": "A lovely film."}'

A folder is a run's. It holds adapter.safetensors, and head.safetensors with the names of the classes. An
answer has the class by name, or by number where the head has no names. An adapter without a head uses the
base model's. If that has none either, the server leaves the adapter out, and refuses requests that name no
adapter.

Requests that arrive while a batch is computed wait and form the next batch: there is no timer, and no delay
without load. A full queue answers 503, and a body over a megabyte 413. There is no login: other machines need
a proxy that has one.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import sys
from collections import deque
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse
from pydantic import BaseModel, Field
from safetensors import SafetensorError
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging as transformers_logging

import vera
from vera.errors import first_line

LARGEST_BATCH = 64  # requests
LONGEST_QUEUE = 256  # requests
LARGEST_BODY = 1_000_000  # bytes


class Question(BaseModel, extra="forbid"):
    adapter: str | None = Field(None, max_length=255, description="its name; null: the base model")
    text: str = Field(max_length=100_000)
    text_pair: str | None = Field(None, max_length=100_000)


class Answer(BaseModel):
    adapter: str | None = Field(description="who answered; null: the base model")
    label: str | int | None = Field(None, description="the class's name, or its number where it has none")
    probabilities: dict[str, float] | list[float] | None = Field(None, description="by name, or in order")
    score: float | None = Field(None, description="the number of a regression, in place of a class")


class Health(BaseModel):
    status: str
    adapters: int
    waiting: int = Field(description="requests that wait for a batch")


def load(folder: str, labels: int) -> tuple[Any, Any, bool]:
    """The base model, its tokenizer, and whether it has a trained head of its own.

    Raises OSError, ValueError or SafetensorError where the folder holds no such model.
    """
    from_pretrained = AutoModelForSequenceClassification.from_pretrained
    model, report = from_pretrained(folder, num_labels=labels, output_loading_info=True)
    for tensor in [*model.parameters(), *model.buffers()]:
        # transformers maps the file: writing to it would change answers, cutting it would kill the server.
        tensor.data = tensor.data.clone()
    return model.eval(), AutoTokenizer.from_pretrained(folder), not report["missing_keys"]


def build(model: Any, tokenizer: Any, adapters: vera.Adapters, own_head: bool = True) -> FastAPI:
    """The application around a model whose adapters are resident; `own_head`: the base model answers, too."""
    waiting: asyncio.Queue[tuple[Question, asyncio.Future[Answer]]] = asyncio.Queue(LONGEST_QUEUE)

    # RoBERTa's and MPNet's positions begin after the padding index
    tables = [m for name, m in model.named_modules() if name.endswith("position_embeddings")]
    padding = getattr(tables[0], "padding_idx", None) if tables else None
    first = 0 if padding is None else padding + 1
    limit = min(tokenizer.model_max_length, model.config.max_position_embeddings - first)
    labels = model.config.id2label
    # transformers calls a class without a name LABEL_1
    base_classes = None if labels.get(0) == "LABEL_0" else [labels[i] for i in range(len(labels))]

    def answer(name: str | None, outputs: torch.Tensor) -> Answer:
        if len(outputs) == 1:
            return Answer(adapter=name, score=float(outputs))
        row = outputs.softmax(-1).tolist()
        best = max(range(len(row)), key=row.__getitem__)
        own = name in adapters.heads
        classes = adapters.classes.get(name) if own else base_classes
        if classes is None:
            return Answer(adapter=name, label=best, probabilities=row)
        return Answer(adapter=name, label=classes[best], probabilities=dict(zip(classes, row, strict=True)))

    def compute(questions: Sequence[Question]) -> list[Answer]:
        # Each text is tokenised by itself, then padded: one request cannot change another's answer.
        texts = [[q.text] if q.text_pair is None else [q.text, q.text_pair] for q in questions]
        batch = tokenizer.pad(
            [tokenizer(*t, truncation=True, max_length=limit) for t in texts], return_tensors="pt"
        )
        with torch.inference_mode():
            logits = model(**batch.to(model.device), adapter_names=[q.adapter for q in questions]).logits
        return [answer(q.adapter, row) for q, row in zip(questions, logits.float().cpu(), strict=True)]

    def compute_each(questions: Sequence[Question]) -> list[Answer | Exception]:
        """One question that cannot be computed fails alone."""
        try:
            return list(compute(questions))
        except Exception as error:
            return [error] if len(questions) == 1 else [compute_each([question])[0] for question in questions]

    async def work() -> None:
        while True:
            batch = [await waiting.get()]
            while len(batch) < LARGEST_BATCH and not waiting.empty():
                batch.append(waiting.get_nowait())
            app.state.batches.append(len(batch))
            answers = await asyncio.to_thread(compute_each, [question for question, _ in batch])
            for (_, future), answer in zip(batch, answers, strict=True):
                if future.done():  # nobody waits for it any more
                    continue
                if isinstance(answer, Exception):
                    future.set_exception(answer)
                else:
                    future.set_result(answer)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(work())
        yield
        worker.cancel()

    app = FastAPI(title="VeRA adapters", lifespan=lifespan, max_body_size=LARGEST_BODY)
    app.state.batches, app.state.waiting = deque(maxlen=1000), waiting  # to look at

    @app.exception_handler(RequestValidationError)
    async def refuse(http: Request, error: RequestValidationError) -> JSONResponse:
        """FastAPI's own answer repeats the input, which fails for NaN and lone surrogates: not JSON."""
        problems = [{key: problem[key] for key in ("loc", "msg", "type")} for problem in error.errors()]
        return JSONResponse({"detail": problems}, 422)

    @app.get("/", include_in_schema=False)
    async def start() -> RedirectResponse:
        return RedirectResponse("/docs")

    @app.get("/health")
    async def health() -> Health:
        return Health(status="ok", adapters=len(adapters), waiting=waiting.qsize())

    @app.get("/adapters")
    async def names() -> list[str]:
        return list(adapters)

    @app.post("/classify", response_model_exclude_none=True)
    async def classify(question: Question) -> Answer:
        if question.adapter is None and not own_head:
            raise HTTPException(422, "name an adapter: GET /adapters lists them (the base model has no head)")
        if question.adapter is not None and question.adapter not in adapters:
            known = f"GET /adapters lists the {len(adapters)} here"
            raise HTTPException(404, f"no adapter {question.adapter!r}: {known}")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        try:
            waiting.put_nowait((question, future))
        except asyncio.QueueFull:
            refusal = f"{LONGEST_QUEUE} requests wait already"
            raise HTTPException(503, refusal, {"Retry-After": "1"}) from None
        return await future

    return app


def named_folder(word: str) -> tuple[str, Path]:
    """The name and the folder of a word of the command line, NAME=FOLDER or FOLDER."""
    name, equals, folder = word.partition("=")
    if equals and name and "/" not in name and not Path(word).exists():
        return name, Path(folder)
    return Path(word).resolve().name, Path(word)


def check_record(folder: Path) -> None:
    """Raises AdapterError where a file of a run is not the one that its record, if it lies beside, names."""
    path = folder.resolve().parents[1] / "records" / f"{folder.resolve().name}.json"
    files: dict[str, str] = {}
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no record, or an older one
        named = json.loads(path.read_bytes()).get("files")
        files = named if isinstance(named, dict) else {}
    for name in {"adapter.safetensors", "head.safetensors"} & files.keys():
        if hashlib.sha256((folder / name).read_bytes()).hexdigest() != files[name]:
            raise vera.AdapterError(f"{folder / name}: not the file that the run's record names")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "folders",
        nargs="+",
        metavar="[NAME=]FOLDER",
        help="folders of runs; NAME: under which the adapter is served (otherwise the folder's)",
    )
    parser.add_argument("--model", required=True, help="the base model's folder, or its name on the hub")
    parser.add_argument("--labels", type=int, default=2, help="classes of the head, 1 for a regression (2)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ...; by default a GPU where torch sees one")
    parser.add_argument(
        "--host", default="127.0.0.1", help="the address to listen at (127.0.0.1: this machine alone)"
    )
    parser.add_argument("--port", type=int, default=8000, help="the port to listen at (8000; 0: a free one)")
    options = parser.parse_args()
    transformers_logging.set_verbosity_error()  # it would report a missing head; the adapters have heads
    transformers_logging.disable_progress_bar()
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        model, tokenizer, own_head = load(options.model, options.labels)
        model.to(device)
    except (OSError, ValueError, RuntimeError, AssertionError, SafetensorError) as error:
        # No such model or device, or a head of another size
        asked = f"--model {options.model} --labels {options.labels} on {device}"
        sys.exit(f"error: {asked}: {first_line(error)}")
    adapters = vera.Adapters(model)
    for name, folder in map(named_folder, options.folders):
        file, head = folder / "adapter.safetensors", folder / "head.safetensors"
        try:
            if not file.is_file():  # a run of the head alone, of all weights, or a trial
                raise vera.AdapterError(f"{folder}: no adapter.safetensors")
            if not (own_head or head.is_file()):
                raise vera.AdapterError(f"{folder}: no head.safetensors, nor a head in the base model")
            check_record(folder)
            adapters.add(name, file, head if head.is_file() else None)
        except (vera.AdapterError, OSError) as error:
            print(f"left out: {error}", file=sys.stderr)
    if not adapters:
        sys.exit("error: no adapter to serve")
    shown = ", ".join(list(adapters)[:5]) + (", ..." if len(adapters) > 5 else "")
    print(f"{len(adapters)} adapter{'s' * (len(adapters) != 1)} on {device}: {shown}", flush=True)
    app = build(model, tokenizer, adapters, own_head)
    uvicorn.run(app, host=options.host, port=options.port, access_log=False)


if __name__ == "__main__":
    main()
