"""Serves many VeRA adapters over HTTP: requests for different adapters are answered in one batch.

    pip install -e '.[serve]'
    python examples/serve.py --model FOLDER outputs/runs/*            # each folder holds adapter.safetensors, and its head
    curl localhost:8000/adapters
    curl localhost:8000/classify -H 'content-type: application/json' -d '{"adapter": "ID", "text": "A lovely film."}'

Requests that arrive while a batch is computed wait and form the next one: no timer, and no delay where there is no load.
"""

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel, Field
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

import vera

LARGEST_BATCH = 64


class Request(BaseModel):
    adapter: str | None = Field(None, description="the name of an adapter; null: the base model")
    text: str = Field(max_length=100_000)
    text_pair: str | None = Field(None, max_length=100_000)


class Answer(BaseModel):
    label: int
    probabilities: list[float]


def build(model: Any, tokenizer: Any, adapters: vera.Adapters) -> FastAPI:
    """The application around a model whose adapters are resident."""
    waiting: asyncio.Queue[tuple[Request, asyncio.Future[Answer]]] = asyncio.Queue()

    positions = model.config.max_position_embeddings - 2 * ("roberta" in model.config.model_type)
    limit = min(tokenizer.model_max_length, positions)

    def compute(requests: list[Request]) -> list[Answer]:
        # Each by itself, then padded: what one request holds changes nothing for another.
        texts = [[r.text] if r.text_pair is None else [r.text, r.text_pair] for r in requests]
        batch = tokenizer.pad([tokenizer(*t, truncation=True, max_length=limit) for t in texts], return_tensors="pt")
        with torch.inference_mode():
            logits = model(**batch.to(model.device), adapter_names=[r.adapter for r in requests]).logits
        rows = logits.float().softmax(-1).tolist()
        return [Answer(label=max(range(len(row)), key=row.__getitem__), probabilities=row) for row in rows]

    def compute_each(requests: list[Request]) -> list[Answer | Exception]:
        """One request that cannot be computed fails alone."""
        try:
            return list(compute(requests))
        except Exception as error:
            return [error] if len(requests) == 1 else [compute_each([request])[0] for request in requests]

    async def work() -> None:
        while True:
            jobs = [await waiting.get()]
            while len(jobs) < LARGEST_BATCH and not waiting.empty():
                jobs.append(waiting.get_nowait())
            app.state.batches.append(len(jobs))
            answers = await asyncio.to_thread(compute_each, [request for request, _ in jobs])
            for (_, future), answer in zip(jobs, answers, strict=True):
                if not future.done():  # the client may be gone
                    future.set_exception(answer) if isinstance(answer, Exception) else future.set_result(answer)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        worker = asyncio.create_task(work())
        yield
        worker.cancel()

    app = FastAPI(title="VeRA adapters", lifespan=lifespan)
    app.state.batches = []

    @app.get("/adapters")
    async def names() -> list[str]:
        return list(adapters)

    @app.post("/classify")
    async def classify(request: Request) -> Answer:
        if request.adapter is not None and request.adapter not in adapters:
            raise HTTPException(404, f"no adapter {request.adapter!r}: GET /adapters lists the {len(adapters)} here")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        await waiting.put((request, future))
        return await future

    return app


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="folders with adapter.safetensors and head.safetensors")
    parser.add_argument("--model", required=True, help="the base model's folder, or its name on the hub")
    parser.add_argument("--labels", type=int, default=2)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    options = parser.parse_args()
    logging.set_verbosity_error()  # its report of a head that is missing: the adapters bring theirs
    try:
        model = AutoModelForSequenceClassification.from_pretrained(options.model, num_labels=options.labels).eval()
        tokenizer = AutoTokenizer.from_pretrained(options.model)
    except (OSError, ValueError) as error:
        sys.exit(f"error: {options.model}: {str(error).splitlines()[0]}")
    adapters = vera.Adapters(model)
    kept = [folder for folder in options.folders if (folder / "adapter.safetensors").is_file()]
    if len(kept) < len(options.folders):  # runs of the head alone, of all weights, and trials
        print(f"left out: {len(options.folders) - len(kept)} folders without adapter.safetensors", file=sys.stderr)
    for folder in kept:
        head = folder / "head.safetensors"
        try:
            adapters.add(folder.name, folder / "adapter.safetensors", head if head.is_file() else None)
        except vera.AdapterError as error:
            print(f"left out: {error}", file=sys.stderr)
    if not adapters:
        sys.exit("error: no adapter to serve")
    print(f"{len(adapters)} adapters: {', '.join(list(adapters)[:5])}{', ...' if len(adapters) > 5 else ''}", flush=True)
    uvicorn.run(build(model, tokenizer, adapters), host=options.host, port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
