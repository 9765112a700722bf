"""What the adapters of finished runs say: how far vectors have moved (figure 3), and how alike the weight
differences of two runs are (figure 5)."""

import re
import time
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from runs.errors import UserError
from runs.record import (
    Record,
    run_folder,
)

if TYPE_CHECKING:
    from torch import Tensor

    from vera import VeRA
from runs.measure.record import new_measure


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
    return new_measure("magnitude", started, [adapter.told()], settings, {}, values, means)


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
    return new_measure(
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
