"""Measures what figures 3, 5 and 6 show: from the adapters that finished runs have kept, or by a fit that
takes seconds.

python -m runs.measure magnitude [RUN ...]       how far each d and b has moved (VeRA paper, figure 3); no
                                                 RUN: every VeRA run
python -m runs.measure similarity [LORA VERA]    cosine of two runs' weight differences (figure 5); none
                                                 named: every pair of one model, task, seed and rank
python -m runs.measure matrix_fit [seed=0]       random 10 x 10 matrices, fitted by LoRA and by VeRA (figure
                                                 6), on the CPU

A RUN is a run id (or its beginning). Each measure is a file in outputs/measures, see runs/record; the same
command again replaces it. Nothing here needs a base model or data: an adapter file is enough.
"""

import itertools
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from runs.command import OfRecords, entry_point, one_of, open_ledger, read, setting
from runs.errors import UserError, is_users
from runs.evaluate import find
from runs.identity import hash_of
from runs.record import (
    MEASURE_SCHEMA,
    Record,
    is_trial,
    measure_path,
    measure_text,
    run_folder,
    write_atomically,
)
from runs.record.text import describe

if TYPE_CHECKING:
    from torch import Tensor

    from vera import VeRA

#: Figure 6 (VeRA paper, appendix E). The paper's size; the other settings are this project's choice.
FIT: dict[str, Any] = {
    "size": 10,
    "matrices": 20,
    "steps": 1000,
    "lr": 0.1,
    "optimizer": "adam, linear to zero",
    "target": "normal(0, 1)",
}
#: VeRA has rank + 10 parameters and LoRA 20 rank: VeRA at each of LoRA's counts, and at some that LoRA cannot
#: have.
FIT["ranks"] = {"lora": tuple(range(1, 11)), "vera": (1, 2, 5, *range(10, 191, 20))}


@dataclass(frozen=True)
class Settings(OfRecords):
    """Of matrix_fit, the seed."""

    seed: int = setting(0, "of the random matrices of similarity and matrix_fit")


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, names="MEASURE [RUN ...]")
    (kind, *names), output, seed = line.names, line.settings.output, line.settings.seed
    one_of("measure", kind, ("magnitude", "similarity", "matrix_fit"))
    if kind == "magnitude" and "seed" in line.given:
        raise UserError(f"seed={seed}: magnitude draws no random numbers")
    if seed < 0:
        raise UserError(f"seed={seed}: should be at least 0")
    if kind == "matrix_fit":
        if names:
            raise UserError(f"matrix_fit measures no run: {names[0]!r} is too much")
        _report(output, matrix_fit(seed))
        return 0
    if kind == "similarity" and len(names) not in (0, 2):
        raise UserError("similarity compares two runs: python -m runs.measure similarity LORA VERA")
    named = [find(name, output) for name in names]
    jobs = [named] if kind == "similarity" else [[run] for run in named]
    jobs = jobs if names else list(_all(kind, output))
    if not jobs:
        pair = "pair of a LoRA and a VeRA run of one model, task, seed and rank"
        lacking = "finished VeRA run that kept its adapter" if kind == "magnitude" else pair
        raise UserError(f"{output}/records has no {lacking} to measure")
    done = 0
    for runs in jobs:
        try:
            one, other = runs[0], runs[-1]
            found = magnitude(one, output) if kind == "magnitude" else similarity(one, other, output, seed)
        except Exception as error:
            if names or not is_users(error):
                raise
            print(f"left out: {describe(error)}")  # of all runs, those that kept no adapter are many
            continue
        _report(output, found)
        done += 1
    if not done:
        raise UserError(f"none of {len(jobs)} could be measured")
    return 0


def _all(kind: str, output: str) -> Iterator[list[Record]]:
    """What there is to measure: VeRA's finished runs, or LoRA's with VeRA's of the same model, task, seed and
    rank; without those that were told to keep no adapter, and without trials."""
    kept = [
        r
        for r in open_ledger(output, published=False)
        if r["status"] == "done" and r["config"]["keep"] != "none"
    ]
    done = [r for r in kept if not is_trial(r["config"])]
    vera, lora = ([r for r in done if r["config"]["method"]["kind"] == method] for method in ("vera", "lora"))
    if kind == "magnitude":
        yield from ([run] for run in vera)
    else:
        yield from (
            [one, other] for one, other in itertools.product(lora, vera) if _alike(one) == _alike(other)
        )


def _alike(record: Record) -> list[Any]:
    cell, method = record["cell"], record["config"]["method"]
    return [
        record["model"],
        cell["task"],
        record["data"]["content"],
        cell["seed"],
        method["rank"],
        method["sites"],
    ]


def _report(output: str, measure: Record) -> None:
    path = measure_path(output, measure["id"])
    write_atomically(path, measure_text(measure))
    of = " and ".join(
        f"{run['label']['row']} on {run['label']['task']}, seed {run['cell']['seed']}"
        for run in measure["of"]
    )
    words = ", ".join(f"{key} {value:.3g}" for key, value in measure["summary"].items())
    print(f"{measure['kind']}{' of ' + of if of else ''}: {words} -> {path}")


def _measure(
    kind: str,
    started: float,
    of: list[dict[str, Any]],
    settings: dict[str, Any],
    seeds: dict[str, Any],
    values: dict[str, list[Any]],
    summary: dict[str, float],
) -> Record:
    """A measure as it is written. Its id: what was measured, and how."""
    import torch

    from runs.training.provenance import code_state, machine, versions

    name = hash_of([kind, [[run["id"], run["adapter"]] for run in of], settings, seeds])[:12]
    return {
        "schema": MEASURE_SCHEMA,
        "id": name,
        "kind": kind,
        "of": of,
        "settings": settings,
        "seeds": seeds,
        "code": code_state(),
        "versions": versions(),
        "device": machine(torch.device("cpu")),
        "seconds": round(time.monotonic() - started, 3),
        "values": values,
        "summary": summary,
    }


# --- adapters


class Adapter:
    """The adapter that a finished run kept, as its file has it. Raises UserError where there is none,
    AdapterError for a damaged one."""

    def __init__(self, record: Record, output: str, kind: str) -> None:
        from vera.adapter_file import FORMAT, method_of
        from vera.checked_file import read_file

        if record["config"]["method"]["kind"] != kind:
            raise UserError(
                f"run {record['id']} is {record['label']['row']}: a run of the kind {kind} is wanted here"
            )
        path = run_folder(output, record["id"]) / "adapter.safetensors"
        if not path.is_file():
            kept = record["config"]["keep"] != "none"
            why = "kept one, where it was done" if kept else "kept no adapter (keep=best keeps it)"
            raise UserError(f"{path} is not there: run {record['id']} {why}")
        self.record, self.path = record, path
        self.header, tensors = read_file(path, FORMAT)
        self.method: Any = method_of(path, self.header)
        # By the adapted matrix's path: its vectors or matrices
        self.matrices: dict[str, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            matrix, _, part = name.rpartition(".")
            self.matrices.setdefault(matrix, {})[part] = tensor.double()
        self.matrices = dict(sorted(self.matrices.items(), key=lambda item: place(item[0])))

    def told(self) -> dict[str, Any]:
        """Which run, and which of its adapters."""
        record = self.record
        which = "last" if record["config"]["keep"] in ("last", "both") else "best"
        epoch = record["result"].get("best_epoch") if which == "best" else record["curve"]["epoch"][-1]
        return {
            **{key: record[key] for key in ("id", "cell", "label")},
            "adapter": {"fingerprint": _fingerprint(self.path), "which": which, "epoch": epoch},
        }


def _fingerprint(path: Path) -> str:
    import hashlib

    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def place(matrix: str) -> tuple[int, str]:
    """Layer (-1 where there is none) and site of an adapted matrix, from its path:
    "encoder.layer.3.attention.self.query" is (3, "query"), a site that is no role keeps its path in the
    layer."""
    from vera.sites import ALIASES

    found = re.search(r"(?:^|\.)(\d+)\.(.+)$", matrix)
    layer, inner = (int(found[1]), found[2]) if found else (-1, matrix)
    last = inner.rpartition(".")[2]
    return layer, next((role for role, names in ALIASES.items() if last in names), inner)


def magnitude(record: Record, output: str) -> Record:
    """The L2 length of the change of d and of b from their initial values, for each adapted matrix (VeRA
    paper, figure 3).

    A vector that the method leaves out is null. Raises UserError for a run that started from another adapter,
    whose initial values are not the method's."""
    started = time.monotonic()
    adapter = Adapter(record, output, "vera")
    if record.get("start"):
        raise UserError(
            f"run {record['id']} started from another adapter: its change from d_init is not its own"
        )
    # As float32 had it, or a d that never moved would have moved by a rounding.
    initial = {"d": float(np.float32(adapter.method.d_init)), "b": 0.0}
    values: dict[str, list[Any]] = {"layer": [], "site": [], "d": [], "b": []}
    for matrix, vectors in adapter.matrices.items():
        layer, site = place(matrix)
        values["layer"].append(layer)
        values["site"].append(site)
        for name, start in initial.items():
            values[name].append(float((vectors[name] - start).norm()) if name in vectors else None)
    means = {f"mean change of {n}": fmean(values[n]) for n in initial if None not in values[n]}
    settings = {"d_init": adapter.method.d_init, "precision": record["config"]["adapter_precision"]}
    return _measure("magnitude", started, [adapter.told()], settings, {}, values, means)


def similarity(one: Record, other: Record, output: str, seed: int) -> Record:
    """Cosine of the flattened weight differences of a LoRA and a VeRA run, matrix by matrix, and of each with
    a random matrix (VeRA paper, figure 5). Random: normal, of the matrix's shape, drawn anew for each from
    `seed`.

    Raises UserError unless both adapt the same matrices of the same base.
    """
    from vera.base_weights import same_base

    started = time.monotonic()
    if one["config"]["method"]["kind"] == "vera":
        one, other = other, one
    lora, vera = Adapter(one, output, "lora"), Adapter(other, output, "vera")
    if not same_base(lora.header.get("base"), vera.header.get("base") or {}):
        raise UserError(
            f"runs {one['id']} and {other['id']} adapt other base weights: their changes cannot be compared"
        )
    if differing := sorted(lora.matrices.keys() ^ vera.matrices.keys()):
        raise UserError(
            f"runs {one['id']} and {other['id']} adapt other matrices: {differing[0]} is in one alone"
        )
    draw = vera_change(vera)
    values: dict[str, list[Any]] = {
        key: [] for key in ("layer", "site", "lora_vera", "lora_random", "vera_random")
    }
    for index, (matrix, parts) in enumerate(lora.matrices.items()):
        first = (lora.method.alpha / lora.method.rank) * (parts["B"] @ parts["A"])
        second = draw(matrix, (parts["B"].shape[0], parts["A"].shape[1]))
        noise = np.random.default_rng([seed, index]).standard_normal(tuple(first.shape))
        flat = [np.asarray(m).ravel() for m in (first, second, noise)]
        cosines = (_cosine(flat[i], flat[j]) for i, j in ((0, 1), (0, 2), (1, 2)))
        for key, value in zip(values, (*place(matrix), *cosines), strict=True):
            values[key].append(value)
    # The paper's means are over the query matrices; where none is called so, over all.
    chosen = [i for i, site in enumerate(values["site"]) if site == "query"] or range(len(values["site"]))
    means: dict[str, float] = {}
    for key in ("lora_vera", "lora_random", "vera_random"):
        numbers = [values[key][i] for i in chosen if values[key][i] is not None]
        means |= {f"mean {key}": fmean(numbers)} if numbers else {}
    over = "query" if "query" in values["site"] else "all"
    settings = {"random": "normal(0, 1)", "mean over": over, "ranks": [lora.method.rank, vera.method.rank]}
    return _measure(
        "similarity", started, [lora.told(), vera.told()], settings, {"random": seed}, values, means
    )


def _cosine(a: Any, b: Any) -> float | None:
    """None where one is zero: a change that never moved has no direction."""
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / length if length else None


def vera_change(adapter: Adapter) -> Any:
    """A function from a matrix's path and shape (out, in) to VeRA's change of it, (b * B) @ (d * A), in
    float64.

    Raises UserError where A and B are not one shared pair, or not those that the file was trained with.
    """
    from vera.projections import ProjectionSpec, fingerprint

    method: VeRA = adapter.method
    fixed = adapter.header["fixed"]
    if method.projections != "shared":
        raise UserError(
            f"run {adapter.record['id']}: similarity reads VeRA with shared projections, not"
            f" {method.projections}"
        )
    pair = ProjectionSpec(
        method.projection_seed, method.rank, fixed["inputs"], fixed["outputs"], method.init
    ).make()
    if fingerprint(*pair) != fixed["fingerprint"]:
        raise UserError(f"{adapter.path}: trained with projections that this version does not make")
    a, b = (matrix.astype(np.float64) for matrix in pair)

    def change(matrix: str, shape: tuple[int, int]) -> Any:
        vectors = {name: np.asarray(tensor) for name, tensor in adapter.matrices[matrix].items()}
        left, right = b[: shape[0]], a[:, : shape[1]]
        left = vectors["b"][:, None] * left if "b" in vectors else left
        return left @ (vectors["d"][:, None] * right if "d" in vectors else right)

    return change


# --- figure 6


def matrix_fit(seed: int, **changes: Any) -> Record:
    """Fits random square matrices M by LoRA's P Q and by VeRA's (b * B)(d * A) and keeps the mean squared
    error of each (VeRA paper, appendix E). Both start as in training (P and b at zero), and train P and Q, or
    d and b.

    A and B are VeRA's (Kaiming uniform), a pair of their own for each matrix. `best` is the least error that
    a matrix of LoRA's rank can have, by singular values: it tells whether the fit has converged. changes: to
    FIT."""
    import torch

    started = time.monotonic()
    settings: dict[str, Any] = FIT | changes
    n, size = settings["matrices"], settings["size"]
    generator = torch.Generator().manual_seed(seed)

    def uniform(bound: float, *shape: int) -> "Tensor":
        return torch.empty(*shape).uniform_(-bound, bound, generator=generator)

    targets = torch.randn(n, size, size, generator=generator)
    tails = torch.linalg.svdvals(targets) ** 2
    values: dict[str, list[Any]] = {key: [] for key in ("method", "rank", "parameters", "mse", "best")}
    for method, rank in [(name, rank) for name in ("lora", "vera") for rank in settings["ranks"][name]]:
        if method == "lora":
            trained = [torch.zeros(n, size, rank), uniform(1 / math.sqrt(size), n, rank, size)]
            frozen, count, best = [], 2 * size * rank, (tails[:, rank:].sum(1) / size**2).tolist()
        else:
            trained = [torch.zeros(n, size, 1), torch.full((n, rank, 1), 0.1)]
            frozen = [
                uniform(math.sqrt(6 / rank), n, size, rank),
                uniform(math.sqrt(6 / size), n, rank, size),
            ]
            count, best = size + rank, None
        errors = _fit(trained, frozen, targets, settings["steps"], settings["lr"])
        for key, value in zip(values, (method, rank, count, errors, best), strict=True):
            values[key].append(value)
    mean = {
        (m, c): fmean(e)
        for m, c, e in zip(*(values[key] for key in ("method", "parameters", "mse")), strict=True)
    }
    counts = [count for name, count in mean if name == "lora" and ("vera", count) in mean]
    summary = {
        f"{name} at {count} parameters": mean[name, count]
        for count in counts[:1]
        for name in ("lora", "vera")
    }
    return _measure("matrix_fit", started, [], settings, {"random": seed}, values, summary)


def _fit(
    trained: list["Tensor"], frozen: list["Tensor"], targets: "Tensor", steps: int, lr: float
) -> list[float]:
    """The mean squared error of each matrix after training by Adam, the rate falling linearly to zero.

    trained: P and Q, or b and d, which scale the rows of the frozen B and A.
    """
    import torch

    def errors() -> "Tensor":
        left, right = (
            trained if not frozen else (scale * matrix for scale, matrix in zip(trained, frozen, strict=True))
        )
        return (left @ right - targets).square().mean((1, 2))

    for tensor in trained:
        tensor.requires_grad_(True)
    optimizer = torch.optim.Adam(trained, lr)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / steps)
        optimizer.zero_grad()
        errors().sum().backward()  # type: ignore[no-untyped-call] # a sum over matrices: each is fitted as if it were alone
        optimizer.step()
    found: list[float] = errors().tolist()
    return found


if __name__ == "__main__":
    entry_point(main)
