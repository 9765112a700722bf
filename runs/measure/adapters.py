"""Measures of the adapters of finished runs: how far vectors have moved (figure 3), and how similar the
weight differences of two runs are (figure 5)."""

import hashlib
import re
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from runs.errors import UserError
from runs.evaluate import check_file
from runs.record import Record, run_folder

if TYPE_CHECKING:
    from torch import Tensor

    from vera import VeRA

#: The pairs of matrices whose cosine `similarity` has.
PAIRS = ("lora_vera", "lora_random", "vera_random")


class Adapter:
    """The adapter of a finished run, from its file. kind: the method's. Raises UserError for a run of another
    kind or without an adapter, and AdapterError for a damaged file."""

    def __init__(self, record: Record, output: str, kind: str) -> None:
        from vera.adapter_file import FORMAT, method_of
        from vera.checked_file import read_file

        if record["config"]["method"]["kind"] != kind:
            row = record["label"]["row"]
            raise UserError(f"run {record['id']} is {row}: a run of the kind {kind} is wanted here")
        path = run_folder(output, record["id"]) / "adapter.safetensors"
        check_file(path, record, output)
        self.record, self.path = record, path
        file = read_file(path, FORMAT)
        self.header, self.method = file.header, cast(Any, method_of(file))
        # The vectors or matrices of each adapted matrix, by its path
        self.matrices: dict[str, dict[str, Tensor]] = {}
        for name, tensor in file.tensors().items():
            matrix, _, part = name.rpartition(".")
            self.matrices.setdefault(matrix, {})[part] = tensor.double()
        self.matrices = dict(sorted(self.matrices.items(), key=lambda item: layer_and_site(item[0])))

    def described(self) -> dict[str, Any]:
        """The run and its adapter, for the measure."""
        record = self.record
        which = "last" if record["config"]["keep"] in ("last", "both") else "best"
        epoch = record["result"].get("best_epoch") if which == "best" else record["curve"]["epoch"][-1]
        fingerprint = hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]
        adapter = {"fingerprint": fingerprint, "which": which, "epoch": epoch}
        return {key: record[key] for key in ("id", "cell", "label")} | {"adapter": adapter}


def layer_and_site(matrix: str) -> tuple[int, str]:
    """Layer (-1 if none) and site of an adapted matrix, from its path: "encoder.layer.3.attention.self.query"
    is (3, "query"). A site without a role is its path in the layer."""
    from vera.sites import ALIASES

    match = re.search(r"(?:^|\.)(\d+)\.(.+)$", matrix)
    layer, inner = (int(match[1]), match[2]) if match else (-1, matrix)
    last = inner.rpartition(".")[2]
    return layer, next((role for role, names in ALIASES.items() if last in names), inner)


def magnitude(record: Record, output: str) -> Record:
    """The L2 norm of the change of d and of b from their initial values, for each adapted matrix (VeRA paper,
    figure 3); None for a vector that the method lacks. Raises UserError for a run that started from another
    adapter, whose initial values are not the method's."""
    adapter, rows = Adapter(record, output, "vera"), list[dict[str, Any]]()
    if record.get("start"):
        problem = "its change from d_init is not its own"
        raise UserError(f"run {record['id']} started from another adapter: {problem}")
    # Rounded to float32 as in training, so that a d that never moved has changed by 0
    initial = {"d": float(np.float32(adapter.method.d_init)), "b": 0.0}
    for matrix, vectors in adapter.matrices.items():
        row: dict[str, Any] = dict(zip(("layer", "site"), layer_and_site(matrix), strict=True))
        for name, start in initial.items():
            row[name] = float((vectors[name] - start).norm()) if name in vectors else None
        rows.append(row)
    means = {f"mean change of {n}": fmean(r[n] for r in rows) for n in initial if rows[0][n] is not None}
    settings = {"d_init": adapter.method.d_init, "precision": record["config"]["adapter_precision"]}
    of = [adapter.described()]
    return {"of": of, "settings": settings, "seeds": {}, "values": columns(rows), "summary": means}


def similarity(one: Record, other: Record, output: str, seed: int) -> Record:
    """The cosine of the flattened weight differences of a LoRA and a VeRA run, for each matrix, and of each
    with a random normal matrix, drawn from `seed` (VeRA paper, figure 5). Raises UserError unless both adapt
    the same matrices of the same base."""
    from vera.base_weights import same_base

    if one["config"]["method"]["kind"] == "vera":
        one, other = other, one
    lora, vera = Adapter(one, output, "lora"), Adapter(other, output, "vera")
    both = f"runs {one['id']} and {other['id']} adapt other"
    if not same_base(lora.header.get("base"), vera.header.get("base") or {}):
        raise UserError(f"{both} base weights: their changes cannot be compared")
    if differing := sorted(lora.matrices.keys() ^ vera.matrices.keys()):
        raise UserError(f"{both} matrices: {differing[0]} is in one alone")
    change, rows = vera_change(vera), list[dict[str, Any]]()
    for index, (matrix, parts) in enumerate(lora.matrices.items()):
        layer, site = layer_and_site(matrix)
        first = np.asarray((lora.method.alpha / lora.method.rank) * (parts["B"] @ parts["A"]))
        noise = np.random.default_rng([seed, index]).standard_normal(first.shape)
        second = change(matrix, first.shape)
        cosines = {"lora_vera": _cosine(first, second), "lora_random": _cosine(first, noise)}
        cosines |= {"vera_random": _cosine(second, noise)}
        rows.append({"layer": layer, "site": site, **cosines})
    # The paper's means are over the query matrices. Without any, they are over all.
    over = "query" if any(row["site"] == "query" for row in rows) else "all"
    means: dict[str, float] = {}
    for key in PAIRS:
        numbers = [row[key] for row in rows if row[key] is not None and over in (row["site"], "all")]
        means |= {f"mean {key}": fmean(numbers)} if numbers else {}
    settings = {"random": "normal(0, 1)", "mean over": over, "ranks": [lora.method.rank, vera.method.rank]}
    of = [lora.described(), vera.described()]
    seeds = {"random": seed}
    return {"of": of, "settings": settings, "seeds": seeds, "values": columns(rows), "summary": means}


def columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Rows of the same keys as columns, which a measure's file has."""
    return {key: [row[key] for row in rows] for key in rows[0]}


def _cosine(a: Any, b: Any) -> float | None:
    """None if one is zero: it has no direction."""
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a.ravel() @ b.ravel()) / length if length else None


def vera_change(adapter: Adapter) -> Any:
    """A function of a matrix's path and shape (out, in) that returns VeRA's change, (b * B) @ (d * A), in
    float64. Raises UserError if A and B are not one shared pair, or not those of the training."""
    from vera.projections import ProjectionSpec, fingerprint

    method: VeRA = adapter.method
    fixed = adapter.header["fixed"]
    if method.projections != "shared":
        problem = f"similarity reads VeRA with shared projections, not {method.projections}"
        raise UserError(f"run {adapter.record['id']}: {problem}")
    shape = method.rank, fixed["inputs"], fixed["outputs"]
    pair = ProjectionSpec(method.projection_seed, *shape, method.init).make()
    if fingerprint(*pair) != fixed["fingerprint"]:
        raise UserError(f"{adapter.path}: trained with projections that this version does not make")
    a, b = (matrix.astype(np.float64) for matrix in pair)

    def change(matrix: str, shape: tuple[int, int]) -> Any:
        vectors = {name: np.asarray(tensor) for name, tensor in adapter.matrices[matrix].items()}
        left, right = b[: shape[0]], a[:, : shape[1]]
        left = vectors["b"][:, None] * left if "b" in vectors else left
        return left @ (vectors["d"][:, None] * right if "d" in vectors else right)

    return change
