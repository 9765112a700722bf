"""Computes the measures behind figures 3, 5 and 6: from the adapters of finished runs,
or by a fit that takes seconds.

vera-bench measure magnitude [RUN ...]
    how far each d and b has moved (VeRA paper, figure 3); without RUN for
    every VeRA run
vera-bench measure similarity [LORA VERA]
    cosine of two runs' weight differences (figure 5); without runs for every
    pair of one model, task, seed and rank
vera-bench measure matrix_fit [seed=0]
    random 10 x 10 matrices, fitted by LoRA and by VeRA on the CPU (figure 6)

RUN is a run id, or its beginning. Each measure is a file in outputs/measures, which
the same command replaces. Adapter files are enough: you need neither the base model
nor the data.
"""

import itertools
import math
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean
from typing import Any, cast

import numpy as np

from runs.command.errors import UserError, is_users
from runs.command.parser import (
    OfRecords,
    entry_point,
    one_of,
    open_ledger,
    read,
    setting,
)
from runs.evaluate import find, kept_file
from runs.machine.hashes import digest
from runs.record.cell import hash_of, is_trial
from runs.record.ledger import write_record
from runs.record.schema import MEASURE_SCHEMA, Record
from runs.record.text import describe

#: The pairs of matrices whose cosine `similarity` has.
PAIRS = ("lora_vera", "lora_random", "vera_random")
#: Figure 6 (VeRA paper, appendix E). The size is the paper's, the other settings are
#: this project's choice. VeRA has rank + 10 parameters and LoRA 20 rank: VeRA's ranks
#: give LoRA's counts, and some beyond those.
FIT: dict[str, Any] = {
    "size": 10,
    "matrices": 20,
    "steps": 1000,
    "lr": 0.1,
    "optimizer": "adam, linear to zero",
    "target": "normal(0, 1)",
    "ranks": {"lora": tuple(range(1, 11)), "vera": (1, 2, 5, *range(10, 191, 20))},
}


@dataclass(frozen=True)
class Settings(OfRecords):
    seed: int = setting(0, "of the random matrices of similarity and matrix_fit")


def main(arguments: list[str]) -> int:
    line = read(arguments, Settings, names="MEASURE [RUN ...]")
    (kind, *names), output, seed = line.names, line.settings.output, line.settings.seed
    measure, count = MEASURES[one_of("measure", kind, MEASURES)]
    if seed < 0 or (kind == "magnitude" and "seed" in line.given):
        raise UserError(f"seed={seed}: should be at least 0, and magnitude takes none")
    if names and (not count or (count == 2 and len(names) != 2)):
        raise UserError(
            f"{kind} is of {'two' if count else 'no'} runs, not of {', '.join(names)}"
        )
    named = [find(name, output) for name in names]
    jobs = [*zip(*[iter(named)] * count, strict=True)] if names else _all(kind, output)
    if not jobs:
        raise UserError(
            f"{output}/records has no runs for {kind}, finished and with their adapters (--help)"
        )
    import torch

    from runs.run.provenance import code_state, machine, versions

    about = {
        "code": code_state(),
        "versions": versions(),
        "device": machine(torch.device("cpu")),
    }
    done = 0
    for job in jobs:
        started = time.monotonic()
        try:
            found = measure(seed, output, *job)
        except Exception as error:
            if names or not is_users(error):
                raise
            # many of all runs have kept no adapter
            print(f"left out: {describe(error)}")
            continue
        found |= {
            "schema": MEASURE_SCHEMA,
            "id": measure_id(kind, found),
            "kind": kind,
            **about,
        }
        path = write_record(
            output, found | {"seconds": round(time.monotonic() - started, 3)}, "measure"
        )
        runs = ((run["label"], run["cell"]["seed"]) for run in found["of"])
        of = [
            f"{label['row']} on {label['task']}, seed {number}"
            for label, number in runs
        ]
        words = ", ".join(
            f"{key} {value:.3g}" for key, value in found["summary"].items()
        )
        print(f"{kind}{' of ' if of else ''}{' and '.join(of)}: {words} -> {path}")
        done += 1
    if not done:
        raise UserError(f"none of {len(jobs)} could be measured")
    return 0


def measure_id(kind: str, found: Record) -> str:
    """A hash of the kind, the runs, the settings and the seeds."""
    of = [[run["id"], run["adapter"]] for run in found["of"]]
    return hash_of([kind, of, found["settings"], found["seeds"]])[:12]


def _all(kind: str, output: str) -> list[tuple[Record, ...]]:
    """The runs of each measure: VeRA's finished runs, or LoRA's and VeRA's of the same
    model, task, data, seed, rank and sites; without trials and runs with keep=none."""
    if kind == "matrix_fit":
        return [()]
    done = [r for r in open_ledger(output, published=False) if r["status"] == "done"]
    kept = [
        r for r in done if r["config"]["keep"] != "none" and not is_trial(r["config"])
    ]
    vera, lora = (
        [r for r in kept if r["config"]["method"]["kind"] == method]
        for method in ("vera", "lora")
    )
    if kind == "magnitude":
        return [(run,) for run in vera]

    def shared(record: Record) -> list[object]:
        cell, method, content = (
            record["cell"],
            record["config"]["method"],
            record["data"]["content"],
        )
        return [
            record["model"],
            cell["task"],
            content,
            cell["seed"],
            method["rank"],
            method["sites"],
        ]

    return [
        pair
        for pair in itertools.product(lora, vera)
        if shared(pair[0]) == shared(pair[1])
    ]


def made(
    rows: list[Record],
    of: list[Record],
    summary: Record,
    settings: Record,
    **seeds: int,
) -> Record:
    """What all measures hold. rows: of the same keys; of: the runs, as `Adapter.about`
    has them."""
    values = {key: [row[key] for row in rows] for key in rows[0]}
    return {
        "of": of,
        "settings": settings,
        "seeds": seeds,
        "values": values,
        "summary": summary,
    }


# --- figures 3 and 5, from adapters


class Adapter:
    """The adapter of a finished run, from its file: the file's header, its method, and
    of each adapted matrix, by its path, the vectors or matrices. about: the run and its
    adapter, for the measure.

    Raises UserError for a run of another kind or without an adapter, AdapterError for a
    damaged file."""

    def __init__(self, record: Record, output: str, kind: str) -> None:
        from vera.adapter_file import FORMAT, method_of
        from vera.checked_file import read_file

        if record["config"]["method"]["kind"] != kind:
            row = record["label"]["row"]
            raise UserError(
                f"run {record['id']} is {row}: a run of the kind {kind} is wanted here"
            )
        self.path = kept_file("adapter.safetensors", record, output)
        file = read_file(self.path, FORMAT)
        self.header, self.method, self.matrices = (
            file.header,
            cast(Any, method_of(file)),
            dict[str, Any](),
        )
        tensors = [
            (*name.rpartition("."), tensor.double())
            for name, tensor in file.tensors().items()
        ]
        for path, _, part, tensor in sorted(
            tensors, key=lambda found: layer_and_site(found[0])
        ):
            self.matrices.setdefault(path, {})[part] = tensor
        which = "last" if record["config"]["keep"] in ("last", "both") else "best"
        epoch = (
            record["result"].get("best_epoch")
            if which == "best"
            else record["curve"]["epoch"][-1]
        )
        adapter = {
            "fingerprint": digest(self.path)[:16],
            "which": which,
            "epoch": epoch,
        }
        self.about = {key: record[key] for key in ("id", "cell", "label")} | {
            "adapter": adapter
        }


def layer_and_site(matrix: str) -> tuple[int, str]:
    """Layer (-1 if none) and site of an adapted matrix, from its path:
    "encoder.layer.3.attention.self.query" is (3, "query"). A site without a role is its
    path in the layer."""
    from vera.sites import ALIASES

    match = re.search(r"(?:^|\.)(\d+)\.(.+)$", matrix)
    layer, inner = (int(match[1]), match[2]) if match else (-1, matrix)
    last = inner.rpartition(".")[2]
    return layer, next(
        (role for role, names in ALIASES.items() if last in names), inner
    )


def magnitude(_: int, output: str, record: Record) -> Record:
    """The L2 norm of the change of d and of b from their initial values, for each
    adapted matrix (VeRA paper, figure 3); None for a vector that the method lacks.
    Raises UserError for a run that started from another adapter, whose initial values
    are not the method's."""
    if record.get("start"):
        problem = "its change from d_init is not its own"
        raise UserError(f"run {record['id']} started from another adapter: {problem}")
    adapter, rows = Adapter(record, output, "vera"), list[Record]()
    # Rounded to float32 as in training, so that a d that never moved has changed by 0
    initial = {"d": float(np.float32(adapter.method.d_init)), "b": 0.0}
    for matrix, parts in adapter.matrices.items():
        changes = {
            n: float((parts[n] - at).norm()) if n in parts else None
            for n, at in initial.items()
        }
        rows.append(
            dict(zip(("layer", "site"), layer_and_site(matrix), strict=True)) | changes
        )
    means = {
        f"mean change of {n}": fmean(r[n] for r in rows)
        for n in initial
        if rows[0][n] is not None
    }
    settings = {
        "d_init": adapter.method.d_init,
        "precision": record["config"]["adapter_precision"],
    }
    return made(rows, [adapter.about], means, settings)


def similarity(seed: int, output: str, one: Record, other: Record) -> Record:
    """The cosine of the flattened weight differences of a LoRA and a VeRA run, for each
    matrix, and of each with a random normal matrix, drawn from `seed` (VeRA paper,
    figure 5); None where one is zero. Raises UserError unless both adapt the same
    matrices of the same base, and VeRA's share one pair."""
    from vera.base_weights import same_base
    from vera.projections import ProjectionSpec, fingerprint

    if one["config"]["method"]["kind"] == "vera":
        one, other = other, one
    lora, vera, rows = (
        Adapter(one, output, "lora"),
        Adapter(other, output, "vera"),
        list[Record](),
    )
    both = f"runs {one['id']} and {other['id']} adapt other"
    if not same_base(lora.header.get("base"), vera.header.get("base") or {}):
        raise UserError(f"{both} base weights: their changes cannot be compared")
    if differing := sorted(lora.matrices.keys() ^ vera.matrices.keys()):
        raise UserError(f"{both} matrices: {differing[0]} is in one alone")
    method, fixed = vera.method, vera.header["fixed"]
    pair: tuple[Any, ...] = ()
    if method.projections == "shared":
        shape = method.rank, fixed["inputs"], fixed["outputs"]
        pair = ProjectionSpec(method.projection_seed, *shape, method.init).make()
    if not pair or fingerprint(*pair) != fixed["fingerprint"]:
        raise UserError(
            f"{vera.path}: not trained with one shared pair of projections of this version"
        )
    right, left = (matrix.astype(np.float64) for matrix in pair)

    def cosine(a: Any, b: Any) -> float | None:
        length = float(np.linalg.norm(a) * np.linalg.norm(b))
        return float(a.ravel() @ b.ravel()) / length if length else None

    for index, (matrix, parts) in enumerate(lora.matrices.items()):
        first = np.asarray(
            (lora.method.alpha / lora.method.rank) * (parts["B"] @ parts["A"])
        )
        noise = np.random.default_rng([seed, index]).standard_normal(first.shape)
        vectors = {
            name: np.asarray(tensor) for name, tensor in vera.matrices[matrix].items()
        }
        b, a = left[: first.shape[0]], right[:, : first.shape[1]]
        b = vectors["b"][:, None] * b if "b" in vectors else b
        second = b @ (vectors["d"][:, None] * a if "d" in vectors else a)
        pairs = zip(
            PAIRS, ((first, second), (first, noise), (second, noise)), strict=True
        )
        layer, site = layer_and_site(matrix)
        rows.append(
            {"layer": layer, "site": site} | {name: cosine(*two) for name, two in pairs}
        )
    # The paper's means are over the query matrices. Without any, they are over all.
    over = "query" if any(row["site"] == "query" for row in rows) else "all"
    means = dict[str, float]()
    for key in PAIRS:
        numbers = [
            row[key]
            for row in rows
            if row[key] is not None and over in (row["site"], "all")
        ]
        means |= {f"mean {key}": fmean(numbers)} if numbers else {}
    settings = {
        "random": "normal(0, 1)",
        "mean over": over,
        "ranks": [lora.method.rank, vera.method.rank],
    }
    return made(rows, [lora.about, vera.about], means, settings, random=seed)


# --- figure 6, a fit


def matrix_fit(seed: int, output: str = "", **changes: Any) -> Record:
    """The mean squared errors of random square matrices, fitted by LoRA's P Q and by
    VeRA's (b * B)(d * A) (VeRA paper, appendix E). Both start as in training, with P
    and b at zero, and train P and Q, or d and b.

    A and B are Kaiming uniform like VeRA's, another pair for each matrix. `best` is the
    least possible error at LoRA's rank, by singular values: it shows whether the fit
    has converged. changes: of FIT, for tests."""
    import torch

    settings, rows = FIT | changes, list[Record]()
    n, size = settings["matrices"], settings["size"]
    generator = torch.Generator().manual_seed(seed)

    def uniform(bound: float, *shape: int) -> torch.Tensor:
        return torch.empty(*shape).uniform_(-bound, bound, generator=generator)

    targets = torch.randn(n, size, size, generator=generator)
    tails = torch.linalg.svdvals(targets) ** 2
    for method, rank in [
        (name, rank) for name in ("lora", "vera") for rank in settings["ranks"][name]
    ]:
        row, fixed = {"method": method, "rank": rank}, list[Any]([1, 1])
        if method == "lora":
            trained = [
                torch.zeros(n, size, rank),
                uniform(1 / math.sqrt(size), n, rank, size),
            ]
            count, best = 2 * size * rank, (tails[:, rank:].sum(1) / size**2).tolist()
        else:
            trained, count, best = (
                [torch.zeros(n, size, 1), torch.full((n, rank, 1), 0.1)],
                size + rank,
                None,
            )
            b = uniform(math.sqrt(6 / rank), n, size, rank)
            fixed = [b, uniform(math.sqrt(6 / size), n, rank, size)]
        parameters = [tensor.requires_grad_(True) for tensor in trained]
        optimizer = torch.optim.Adam(parameters, settings["lr"])
        for step in range(settings["steps"] + 1):
            left, right = (
                one * other for one, other in zip(trained, fixed, strict=True)
            )
            errors = (left @ right - targets).square().mean((1, 2))
            if step < settings["steps"]:
                optimizer.param_groups[0]["lr"] = settings["lr"] * (
                    1 - step / settings["steps"]
                )
                optimizer.zero_grad()
                errors.sum().backward()  # a sum: each matrix is fitted on its own
                optimizer.step()
        rows.append(row | {"parameters": count, "mse": errors.tolist(), "best": best})
    mean = {(row["method"], row["parameters"]): fmean(row["mse"]) for row in rows}
    common = next(
        (
            count
            for method, count in mean
            if method == "lora" and ("vera", count) in mean
        ),
        None,
    )
    summary = {
        f"{of} at {count} parameters": value
        for (of, count), value in mean.items()
        if count == common
    }
    return made(rows, [], summary, settings, random=seed)


#: Each measure, and how many runs it is of. It takes the seed, the output folder and
#: their records.
MEASURES: dict[str, tuple[Callable[..., Record], int]] = {
    "magnitude": (magnitude, 1),
    "similarity": (similarity, 2),
    "matrix_fit": (matrix_fit, 0),
}

if __name__ == "__main__":
    entry_point(main)
