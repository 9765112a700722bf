"""What VeRA costs beside peft and the base model: ratios of interleaved medians, measured in one process.

python -m runs.bench               training steps of RoBERTa-base, memory, files, start-up: under 5 minutes on
                                   2 cores
python -m runs.bench full=true     every model, length and variant
python -m runs.bench serving       64 adapters in one batch (full=true: 10,000 resident, more lengths)
python -m runs.bench decoding      beam search for E2E beside transformers' own, GPT-2 small (full=true:
                                   medium, too)

Weights are random: time does not depend on them. float32 on a CPU, bfloat16 autocast on a GPU; no dropout.
"""

import copy
import gc
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vera
from runs.command import Common, entry_point, one_of, read, setting
from runs.config import expand
from runs.errors import UserError
from runs.record import write_atomically
from runs.training.provenance import code_state, machine, versions
from tasks.beam import Search, beam_search
from tasks.e2e import transformers_search
from tasks.parent import end_with, tied
from vera.methods.layers import changes

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
REFERENCE = "peft LoRA r=8"
Row = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    """A model to time: its transformers configuration, VeRA's rank, and how long its sequences are."""

    label: str
    rank: int
    config: dict[str, Any]
    sequence: int = 128


ROBERTA: dict[str, Any] = {
    "model_type": "roberta",
    "vocab_size": 50265,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "pad_token_id": 1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "num_labels": 2,
}
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
LLAMA = {"model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 1, "num_attention_heads": 32}
SHAPES = (
    Shape("RoBERTa-base", 1024, ROBERTA),
    Shape("RoBERTa-large", 256, {**ROBERTA, **LARGE}),
    Shape("a Llama block", 1024, {**LLAMA, "intermediate_size": 11008, "vocab_size": 256}, sequence=512),
)
#: How many adapters are resident where 64 of them are asked; the last only with full=true.
RESIDENT = (64, 1000, 10_000)
PATHS = ("factor", "hybrid", "materialised")


# --- variants of a model


def base_model(shape: Shape) -> nn.Module:
    import transformers

    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(**shape.config)
    build: Any = (
        transformers.AutoModel
        if "llama" in shape.label.lower()
        else transformers.AutoModelForSequenceClassification
    )
    return build.from_config(config).to(DEVICE)


def sharing(base: nn.Module) -> nn.Module:
    """A copy that shares the weights: many variants fit in the memory of one."""
    memo: dict[int, Any] = {id(p): nn.Parameter(p.data, requires_grad=False) for p in base.parameters()}
    return copy.deepcopy(base, memo)


def variant(name: str, base: nn.Module, shape: Shape) -> nn.Module:
    """The base model as a variant trains it."""
    if name == "full":
        return copy.deepcopy(base).requires_grad_(True)
    model, llama = sharing(base), "llama" in shape.label.lower()
    if name.startswith("peft"):
        import peft

        sites = ["q_proj", "v_proj"] if llama else ["query", "value"]
        task: Any = {"target_modules": sites, "task_type": None if llama else "SEQ_CLS"}
        vera_ = name == "peft VeRA"
        config: Any = peft.VeraConfig(r=shape.rank, **task) if vera_ else peft.LoraConfig(r=8, **task)
        return peft.get_peft_model(model, config)
    if name == "head":
        vera.Head().adapt(model)
    elif name != "floor":
        path = name.removeprefix("VeRA").strip() or "auto"
        vera.VeRA(rank=shape.rank, path=path).adapt(model)
    return model


def batch_of(shape: Shape, base: nn.Module, tokens: int) -> dict[str, Tensor]:
    sequence = min(shape.sequence, tokens)
    ids = torch.randint(3, shape.config["vocab_size"], (tokens // sequence, sequence), device=DEVICE)
    if "llama" in shape.label.lower():  # a block in the middle of a stack: its input needs a gradient
        return {"inputs_embeds": base.get_input_embeddings()(ids).detach().requires_grad_()}  # type: ignore[operator]
    return {"input_ids": ids, "labels": torch.randint(0, 2, (len(ids),), device=DEVICE)}


def forward(name: str, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """The loss. "floor" is the frozen model and the gradient of its first block's input: less, no adapter can
    do."""
    with torch.autocast(DEVICE, dtype=torch.bfloat16, enabled=DEVICE == "cuda"):
        if name == "floor" and "input_ids" in batch:
            roberta: Any = model.roberta
            states = roberta.embeddings(batch["input_ids"]).detach().requires_grad_()
            logits = model.classifier(roberta.encoder(states)[0])  # type: ignore[operator]
            return nn.functional.cross_entropy(logits, batch["labels"])
        output = model(**batch)
        return output.loss if "labels" in batch else output[0].float().square().mean()


def stepper(name: str, model: nn.Module) -> Callable[[dict[str, Tensor]], None]:
    """A whole training step."""
    trained = [p for p in model.train().parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained or [nn.Parameter(torch.zeros(1))], lr=1e-4)

    def step(batch: dict[str, Tensor]) -> None:
        forward(name, model, batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


def saved_bytes(name: str, model: nn.Module, batch: dict[str, Tensor]) -> int:
    """What a forward pass keeps for the backward pass, weights apart, each storage once."""
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward(name, model, batch)
    del loss
    return sum(kept.values())


# --- measuring


def interleaved(work: dict[str, Callable[[], Any]], rounds: int, say: str) -> dict[str, list[float]]:
    """Seconds of each piece of work, in turns, so that a slow minute of the machine hits all alike."""
    from tqdm import tqdm

    seconds: dict[str, list[float]] = {name: [] for name in work}
    names = list(work)
    bar = tqdm(total=rounds * len(names), desc=say, leave=False, disable=None)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            started = time.perf_counter()
            work[name]()
            if DEVICE == "cuda":
                torch.cuda.synchronize()
            seconds[name].append(time.perf_counter() - started)
            bar.update()
    bar.close()
    return seconds


def training(shape: Shape, names: list[str], lengths: list[int], rounds: int) -> list[Row]:
    """Whole training steps, and the bytes that a forward pass keeps."""
    base, rows = base_model(shape), []
    models = {name: variant(name, base, shape) for name in names}
    steps = {name: stepper(name, model) for name, model in models.items()}
    for tokens in lengths:
        batch = batch_of(shape, base, tokens)
        saved = {name: saved_bytes(name, model, batch) for name, model in models.items() if name != "full"}
        work: dict[str, Callable[[], Any]] = {name: partial(step, batch) for name, step in steps.items()}
        interleaved(work, 1, "warming up")  # kernels are made for each length
        seconds = interleaved(work, rounds, f"{shape.label}, {tokens} tokens")
        rows += [
            {
                "part": "training",
                "model": shape.label,
                "tokens": tokens,
                "variant": name,
                "seconds": s,
                "saved": saved.get(name),
            }
            for name, s in seconds.items()
        ]
    return rows


def _peak(name: str, shape: Shape, tokens: int) -> int:
    base = base_model(shape)
    step, batch = stepper(name, variant(name, base, shape)), batch_of(shape, base, tokens)
    for _ in range(2):
        step(batch)
    if DEVICE == "cuda":
        return torch.cuda.max_memory_allocated()
    from runs.training.result import peak_memory

    return peak_memory()


def memory(shape: Shape, names: list[str], tokens: int) -> list[Row]:
    """The peak of a process that trains one variant for two steps: each in a process of its own."""
    rows = []
    for name in names:
        with multiprocessing.get_context("spawn").Pool(1, end_with, (os.getpid(),)) as pool:
            peak = pool.apply(_peak, (name, shape, tokens))
        rows.append(
            {"part": "memory", "model": shape.label, "tokens": tokens, "variant": name, "bytes": peak}
        )
    return rows


def peft_from(base: nn.Module, folder: Path) -> Any:
    import peft

    return peft.PeftModel.from_pretrained(sharing(base), folder)


def files(shape: Shape) -> list[Row]:
    """An adapter on disk, and how long it takes onto a base model in memory."""
    import peft

    base, rows = base_model(shape), []

    def row(name: str, size: int, load: Callable[[], Any], times: int = 3) -> None:
        seconds = []
        for _ in range(times):
            started = time.perf_counter()
            load()
            seconds.append(time.perf_counter() - started)
        rows.append(
            {"part": "files", "model": shape.label, "variant": name, "bytes": size, "seconds": seconds}
        )

    with tempfile.TemporaryDirectory() as folder:
        method, model = vera.VeRA(rank=shape.rank), sharing(base)
        method.adapt(model)
        ours = Path(folder) / "adapter.safetensors"
        size = vera.save(model, method, ours)
        fresh = sharing(base)
        row("VeRA, first on this base (its weights are hashed)", size, lambda: vera.load(fresh, ours), 1)
        row("VeRA, any other", size, lambda: vera.load(fresh, ours))
        for name, stored in (("peft VeRA", True), ("peft VeRA, without projections", False)):
            config: Any = peft.VeraConfig(
                r=shape.rank, target_modules=["query", "value"], save_projection=stored
            )
            theirs = Path(folder) / name
            peft.get_peft_model(sharing(base), config).save_pretrained(theirs)
            size = (theirs / "adapter_model.safetensors").stat().st_size
            row(name, size, partial(peft_from, base, theirs))
    return rows


def start() -> list[Row]:
    """From the command to the first training step: the demo's model and data, which are fetched before."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        for i in range(4):  # the first one fetches
            command = [sys.executable, "-m", "runs", "train.max_steps=1", f"seed={i}", f"output={folder}"]
            started = time.perf_counter()
            run = subprocess.Popen(
                command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, **tied()
            )
            taken = None
            while run.poll() is None and taken is None:
                logs = sorted(Path(folder).glob("runs/*/log.txt"), key=lambda p: p.stat().st_mtime)
                if len(logs) == i + 1 and "first step" in logs[-1].read_text():
                    taken = time.perf_counter() - started
                time.sleep(0.01)
            _, error = run.communicate()
            if run.returncode or taken is None:
                raise UserError(
                    "the run that is timed failed:"
                    f" {error.strip().splitlines()[-1] if error.strip() else 'no step'}"
                )
            if i:
                seconds.append(taken)
    return [{"part": "start", "variant": "python -m runs: to the first step, MiniLM", "seconds": seconds}]


def epoch(data: str) -> list[Row]:
    """An epoch on RTE as the harness trains it, and padded to 512 tokens as microsoft/LoRA does: the same
    losses."""
    from torch.nn.functional import pad

    from runs.identity import run_id
    from runs.training.build import epoch_batches
    from runs.training.loop import Training

    class Padded(Training):
        def batch(self, split: str, rows: Sequence[int]) -> dict[str, Tensor]:
            batch = super().batch(split, rows)
            more = 512 - batch["input_ids"].shape[1]
            return {k: pad(v, (0, more)) if v.dim() == 2 else v for k, v in batch.items()}

    seconds, losses = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, kind in (("to the longest of the batch", Training), ("to 512", Padded)):
            run = expand(["task=rte", f"task.data_dir={data}", "train.max_length=512", f"output={folder}"])[0]
            loop = kind(run, run_id(run) or "", lambda event: None)
            for module in loop.raw_model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
            batches = epoch_batches(loop.lengths, loop.settings["effective_batch"], 0, 0)
            started = time.perf_counter()
            losses[name] = [loop.step(rows) for rows in batches]
            seconds[name] = time.perf_counter() - started
    short, long = losses.values()
    apart = max(abs(a - b) for a, b in zip(short, long, strict=True))
    return [
        {"part": "epoch", "variant": f"padded {n}", "seconds": [s], "losses_apart": apart}
        for n, s in seconds.items()
    ]


def split(model: Any, ids: Tensor) -> None:
    """peft's way for VeRA: a forward pass for each adapter."""
    for i in range(len(ids)):
        model.set_adapter(str(i))
        model(ids[i : i + 1])


def serving(full: bool) -> list[Row]:
    """Short requests in one batch of 64, each for another adapter, against the base model."""
    import peft

    shape, rows = SHAPES[0], []
    base, count = base_model(shape).eval(), RESIDENT[0]
    one, method = sharing(base), vera.VeRA(rank=shape.rank)
    method.adapt(one)
    with torch.no_grad():
        for change in changes(one):
            for vector in change.parameters():
                vector.normal_(0, 0.1)
    many = sharing(base)
    adapters = vera.Adapters(many)
    # No task type: peft's mixed batch cannot do with RoBERTa's head
    sites: Any = {"target_modules": ["query", "value"]}
    theirs: dict[str, Any] = {}
    for name, config in (
        ("VeRA", peft.VeraConfig(r=shape.rank, **sites)),
        ("LoRA", peft.LoraConfig(r=8, **sites)),
    ):
        theirs[name] = peft.get_peft_model(sharing(base), config, "0")
        for i in range(1, count):
            theirs[name].add_adapter(str(i), config)
        theirs[name].eval()
    names = [str(i) for i in range(count)]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        vera.save(one, method, path)
        for name in names:
            adapters.add(name, path)
        lengths = (16, 32, 64) if full else (32,)
        for resident in RESIDENT if full else RESIDENT[:2]:
            for i in range(len(adapters), resident):
                adapters.add(str(i), path)
            for length in lengths:
                ids = torch.randint(3, shape.config["vocab_size"], (count, length), device=DEVICE)

                work: dict[str, Callable[[], Any]] = {
                    "base model": partial(base, ids),
                    f"VeRA, {count} of {resident:,} adapters": partial(many, ids, adapter_names=names),
                }
                if resident == count:
                    work |= {
                        "VeRA, one adapter, not merged": partial(one, ids),
                        f"peft LoRA r=8, mixed batch of {count}": partial(
                            theirs["LoRA"], ids, adapter_names=names
                        ),
                        f"peft VeRA, batch split over {count}": partial(split, theirs["VeRA"], ids),
                    }
                with torch.no_grad():
                    interleaved(work, 1, "warming up")
                    seconds = interleaved(work, 5, f"{resident} adapters, {length} tokens")
                rows += [
                    {"part": "serving", "tokens": length, "resident": resident, "variant": name, "seconds": s}
                    for name, s in seconds.items()
                ]
        held = sum(vector.untyped_storage().nbytes() for vector in adapters.vectors.values())
        rows.append({"part": "resident", "variant": f"{len(adapters):,} adapters in memory", "bytes": held})
    return rows


# --- decoding

GPT2: dict[str, Any] = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024}
DECODERS = {"GPT-2 small": GPT2, "GPT-2 medium": GPT2 | {"n_embd": 1024, "n_layer": 24, "n_head": 16}}


def decoding(full: bool) -> list[Row]:
    """MRs of 20 to 50 tokens, 10 beams, no end token: every search goes to the last step, whatever the
    weights are."""
    import transformers

    rows, steps = [], 64 if full else 32
    count = 8 if full else 4
    for label, shape in DECODERS.items():
        if label != next(iter(DECODERS)) and not full:
            continue
        torch.manual_seed(0)
        config = transformers.AutoConfig.for_model(**shape)
        model = transformers.AutoModelForCausalLM.from_config(config).to(DEVICE).eval()  # type: ignore[no-untyped-call]
        prompts = [
            torch.randint(3, shape["vocab_size"], (n,)).tolist()
            for n in torch.randint(20, 50, (count,)).tolist()
        ]
        how = {"beams": 10, "length_penalty": [0.9], "no_repeat_ngram": 4, "max_new_tokens": steps}
        none = shape["vocab_size"]  # an end token that is never written
        search = Search(10, (0.9,), 4, steps, (none,))
        work: dict[str, Callable[[], Any]] = {
            "model.generate": partial(transformers_search, model, prompts, how, (none,)),
            "this project's search": partial(beam_search, model, prompts, search),
            "this project's search, an MR at a time": partial(one_by_one, model, prompts, search),
        }
        interleaved(work, 1, "warming up")
        seconds = interleaved(work, 3, f"{label}, decoding")
        rows += [
            {
                "part": "decoding",
                "model": label,
                "items": count,
                "steps": steps,
                "variant": name,
                "seconds": s,
            }
            for name, s in seconds.items()
        ]
    return rows


def one_by_one(model: nn.Module, prompts: list[list[int]], search: Search) -> None:
    for prompt in prompts:
        beam_search(model, [prompt], search)


# --- tables


def median(row: Row) -> float:
    return statistics.median(row["seconds"])


def table(head: list[str], lines: list[list[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in [head, rule, *lines])


def megabytes(size: float | None) -> str:
    return "-" if size is None else f"{size / 1e6:,.0f} MB"


def markdown(rows: list[Row]) -> str:
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(row["part"], []).append(row)
    blocks = []
    trained = parts.get("training", [])
    for model in dict.fromkeys(row["model"] for row in trained):
        mine = {(row["variant"], row["tokens"]): row for row in trained if row["model"] == model}
        names, lengths = (list(dict.fromkeys(key[i] for key in mine)) for i in (0, 1))
        head = [
            f"{model}, a training step",
            *(f"{t} tokens" for t in lengths),
            *(f"saved at {t}" for t in lengths),
        ]
        lines = []
        for name in names:
            found = [mine.get((name, t)) for t in lengths]
            times = [
                f"{median(r) / median(mine[REFERENCE, r['tokens']]):.2f} ({median(r):.2f} s)" if r else "-"
                for r in found
            ]
            lines.append([name, *times, *(megabytes(r["saved"] if r else None) for r in found)])
        blocks.append(f"Time against {REFERENCE}; what the forward pass keeps.\n\n" + table(head, lines))
    if "memory" in parts:
        lines = [[r["variant"], str(r["tokens"]), megabytes(r["bytes"])] for r in parts["memory"]]
        blocks.append(table(["peak memory of a training process", "tokens", "memory"], lines))
    if "files" in parts:
        lines = [[r["variant"], f"{r['bytes']:,}", f"{median(r):.2f} s"] for r in parts["files"]]
        blocks.append(table(["an adapter on disk (RoBERTa-base)", "bytes", "time to load"], lines))
    for part in ("start", "epoch"):
        if part in parts:
            first = median(parts[part][0])
            lines = [[r["variant"], f"{median(r):.1f} s", f"{median(r) / first:.2f}"] for r in parts[part]]
            title = {"start": "the harness", "epoch": "an epoch on RTE, MiniLM, VeRA"}[part]
            blocks.append(table([title, "time", "ratio"], lines))
            if part == "epoch":
                blocks[-1] += f"\n\nLosses of the two differ by at most {parts[part][0]['losses_apart']:.1e}."
    decoded = parts.get("decoding", [])
    for model in dict.fromkeys(row["model"] for row in decoded):
        mine_ = [row for row in decoded if row["model"] == model]
        lines = [[r["variant"], f"{median(r):.1f} s", f"{median(r) / median(mine_[0]):.2f}"] for r in mine_]
        blocks.append(
            table(
                [f"{model}: {mine_[0]['items']} MRs, 10 beams, {mine_[0]['steps']} tokens", "time", "ratio"],
                lines,
            )
        )
    served = parts.get("serving", [])
    if served:
        base = {(r["tokens"], r["resident"]): median(r) for r in served if r["variant"] == "base model"}
        lines = [
            [
                r["variant"],
                str(r["tokens"]),
                f"{median(r) * 1e3:,.0f} ms",
                f"{median(r) / base[r['tokens'], r['resident']]:.2f}",
            ]
            for r in served
        ]
        blocks.append(
            table(["a batch of 64 requests, RoBERTa-base", "tokens each", "time", "against the base"], lines)
        )
        blocks[-1] += "".join(f"\n\n{r['variant']}: {megabytes(r['bytes'])}." for r in parts["resident"])
    return "\n\n".join(blocks)


@dataclass(frozen=True)
class Settings(Common):
    full: bool = setting(False, "everything, and not what five minutes allow")
    data: str | None = setting(None, "a folder with GLUE's data: adds an epoch on RTE")
    output: str = setting("outputs", "the tables go to bench/ in this folder")


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, names="[PART]")
    name = one_of("part", "".join(line.names) or "training", ("training", "serving", "decoding"))
    full, data = line.settings.full, line.settings.data
    if name == "serving":
        rows = serving(full)
    elif name == "decoding":
        rows = decoding(full)
    else:
        rows = []
        variants = ["VeRA", REFERENCE, "peft VeRA"]
        for shape in SHAPES if full else SHAPES[:1]:
            if full:
                heads = [] if "Llama" in shape.label else ["head", "full"]
                paths = [f"VeRA {path}" for path in PATHS]
                variants = ["VeRA", *paths, REFERENCE, "peft VeRA", *heads, "floor"]
            rows += training(
                shape, variants, [512, 1024, 2048, 4096] if full else [512, 1024, 2048], 5 if full else 3
            )
            gc.collect()
            rows += memory(shape, ["VeRA", REFERENCE, "peft VeRA"], 2048 if full else 1024)
        rows += files(SHAPES[0])
        rows += start()
        rows += epoch(data) if data else []
    text = markdown(rows)
    made = {"machine": machine(torch.device(DEVICE)), "threads": torch.get_num_threads()}
    made |= {"date": time.strftime("%Y-%m-%d"), "versions": versions(), "code": code_state()}
    folder = Path(line.settings.output) / "bench"
    write_atomically(folder / f"{name}.json", json.dumps({**made, "rows": rows}, indent=1) + "\n")
    write_atomically(folder / f"{name}.md", text + "\n")
    print(f"{text}\n\nThe numbers behind it: {folder / name}.json")
    return 0


if __name__ == "__main__":
    entry_point(main)
