"""How far the adapters of finished runs have moved (VeRA paper, figure 3), and how
similar the weight differences of two runs are (figure 5)."""

import re
from collections.abc import Mapping
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from runs.command.errors import UserError
from runs.evaluate import kept_file
from runs.machine.hashes import files_sha256
from runs.measures.contract import MeasuredValues, columns
from runs.record.schema import MeasuredRun, Record

if TYPE_CHECKING:
    import torch

Matrix = np.ndarray[tuple[int, ...], np.dtype[np.float64]]
#: The cosines of `similarity`: each has the names of the two matrices that it compares.
COSINES = ("lora_vera", "lora_random", "vera_random")


class RunAdapter:
    """The adapter of a finished run, read from its file.

    Attributes:
        path: of the file.
        header: of the file.
        method: the adapter's method, with its settings.
        matrices: what is trained of each adapted matrix, in float64: for the matrix's
            path its tensors by name ("A", "B", "d", "b"). In the order of layers and
            sites.
        run: how a measure describes the run and its adapter.

    Raises:
        UserError: for a run of another kind or without an adapter.
        AdapterError: for a damaged file.
    """

    def __init__(self, record: Record, output: str, kind: str) -> None:
        """Reads the adapter from the run's files in `output`. kind: the method that the
        run must have."""
        from vera.adapter_file import FORMAT, method_of
        from vera.checked_file import read_file

        if record["config"]["method"]["kind"] != kind:
            raise UserError(
                f"run {record['id']} is {record['label']['row']}: a run of the kind "
                f"{kind} is wanted here"
            )
        self.path = kept_file("adapter.safetensors", record, output)
        file = read_file(self.path, FORMAT)
        self.header = file.header
        self.method = cast(Any, method_of(file))
        if getattr(self.method, "shared_b", False):
            raise UserError(
                f"run {record['id']} has one b for all layers (method.shared_b), and "
                "this measure compares each layer's own"
            )
        matrices: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in file.tensors().items():
            path, _, part = name.rpartition(".")
            matrices.setdefault(path, {})[part] = tensor.double()
        paths = sorted(matrices, key=layer_and_site)
        self.matrices = {path: matrices[path] for path in paths}
        self.run: MeasuredRun = {
            "id": record["id"],
            "cell": record["cell"],
            "label": record["label"],
            "adapter": self._adapter_of(record),
        }

    def _adapter_of(self, record: Record) -> dict[str, object]:
        """Which adapter of the run is measured: a hash of its file, and its epoch."""
        fingerprint = files_sha256(self.path)[:16]
        # keep=both puts the best epoch's into a file of its own
        if record["config"]["keep"] in ("last", "both"):
            last_epoch = record["curve"]["epoch"][-1]
            return {"fingerprint": fingerprint, "which": "last", "epoch": last_epoch}
        best_epoch = record["result"]["best_epoch"]
        return {"fingerprint": fingerprint, "which": "best", "epoch": best_epoch}


def layer_and_site(path: str) -> tuple[int, str]:
    """The layer (-1 outside of layers) and the site of an adapted matrix, by its path:
    (3, "query") for "encoder.layer.3.attention.self.query". The site of a matrix that is
    no query, key or value is its path in the layer."""
    from vera.sites import ALIASES

    layer = -1
    path_in_layer = path
    match = re.search(r"(?:^|\.)(\d+)\.(.+)$", path)
    if match:
        layer, path_in_layer = int(match[1]), match[2]
    name = path_in_layer.rpartition(".")[2]
    for role, names in ALIASES.items():
        if name in names:
            return layer, role
    return layer, path_in_layer


def magnitude(_: int, output: str, record: Record) -> MeasuredValues:
    """The L2 norm of the change of d and of b from their initial values, for each
    adapted matrix (VeRA paper, figure 3); None for a vector that the method lacks. It
    takes a seed as every measure does, and draws nothing.

    Raises UserError for a run that started from another adapter: its initial values
    are not the method's."""
    if record.get("start"):
        raise UserError(
            f"run {record['id']} started from another adapter: its change from d_init "
            "is not its own"
        )
    adapter = RunAdapter(record, output, "vera")
    d_init = adapter.method.d_init
    # rounded to float32 as in training, so that a d that never moved has changed by 0
    initial_values = {"d": float(np.float32(d_init)), "b": 0.0}
    rows = []
    norms: dict[str, list[float]] = {"d": [], "b": []}
    for path, vectors in adapter.matrices.items():
        layer, site = layer_and_site(path)
        row: dict[str, object] = {"layer": layer, "site": site}
        for name, initial_value in initial_values.items():
            row[name] = None
            if name in vectors:
                norm = float((vectors[name] - initial_value).norm())
                row[name] = norm
                norms[name].append(norm)
        rows.append(row)
    summary = {}
    for name, norms_of_vector in norms.items():
        if norms_of_vector:
            summary[f"mean change of {name}"] = fmean(norms_of_vector)
    return {
        "of": [adapter.run],
        "settings": {
            "d_init": d_init,
            "precision": record["config"]["adapter_precision"],
        },
        "seeds": {},
        "values": columns(rows),
        "summary": summary,
    }


def similarity(seed: int, output: str, left: Record, right: Record) -> MeasuredValues:
    """The cosines of the flattened weight differences of a LoRA and a VeRA run, for
    each matrix: with each other, and of each with a random normal matrix, drawn from
    `seed` (VeRA paper, figure 5); None where one of the two is zero.

    Raises UserError unless both runs adapt the same matrices of the same base, and
    all of VeRA's matrices share one pair A, B."""
    if left["config"]["method"]["kind"] == "vera":
        left, right = right, left
    lora = RunAdapter(left, output, "lora")
    vera = RunAdapter(right, output, "vera")
    _check_same_matrices(lora, vera, f"runs {left['id']} and {right['id']}")
    pair = _shared_pair(vera)
    sites = []
    cosines: dict[str, list[float | None]] = {key: [] for key in COSINES}
    scale = lora.method.alpha / lora.method.rank
    for index, (path, factors) in enumerate(lora.matrices.items()):
        lora_change = np.asarray(scale * (factors["B"] @ factors["A"]))
        vera_change = pair.change(vera.matrices[path], lora_change.shape)
        generator = np.random.default_rng([seed, index])
        noise = generator.standard_normal(lora_change.shape)
        sites.append(layer_and_site(path))
        cosines["lora_vera"].append(_cosine(lora_change, vera_change))
        cosines["lora_random"].append(_cosine(lora_change, noise))
        cosines["vera_random"].append(_cosine(vera_change, noise))
    # the paper's means are over the query matrices; without any, these are over all
    has_query = any(site == "query" for _, site in sites)
    summary = {}
    for key in COSINES:
        averaged = []
        for (_, site), cosine in zip(sites, cosines[key], strict=True):
            if cosine is not None and (site == "query" or not has_query):
                averaged.append(cosine)
        if averaged:
            summary[f"mean {key}"] = fmean(averaged)
    return {
        "of": [lora.run, vera.run],
        "settings": {
            "random": "normal(0, 1)",
            "mean over": "query" if has_query else "all",
            "ranks": [lora.method.rank, vera.method.rank],
        },
        "seeds": {"random": seed},
        "values": {
            "layer": [layer for layer, _ in sites],
            "site": [site for _, site in sites],
            **cosines,
        },
        "summary": summary,
    }


def _check_same_matrices(lora: RunAdapter, vera: RunAdapter, runs: str) -> None:
    """Raises UserError where two adapters are of other matrices, or of another base.
    runs: names both."""
    from vera.base_weights import same_base

    if not same_base(lora.header.get("base"), vera.header.get("base") or {}):
        raise UserError(
            f"{runs} adapt other base weights: their changes cannot be compared"
        )
    differing = sorted(lora.matrices.keys() ^ vera.matrices.keys())
    if differing:
        raise UserError(f"{runs} adapt other matrices: {differing[0]} is in one alone")


class SharedPair(NamedTuple):
    """The frozen matrices A and B that all of an adapter's matrices share."""

    a: Matrix
    b: Matrix

    def change(
        self, vectors: Mapping[str, "torch.Tensor"], shape: tuple[int, ...]
    ) -> Matrix:
        """VeRA's change of a weight of this shape by its trained d and b. A method may
        lack one of the two."""
        outputs, inputs = shape
        a = self.a[:, :inputs]
        b = self.b[:outputs]
        if "d" in vectors:
            a = np.asarray(vectors["d"])[:, None] * a
        if "b" in vectors:
            b = np.asarray(vectors["b"])[:, None] * b
        return cast(Matrix, b @ a)


def _shared_pair(vera: RunAdapter) -> SharedPair:
    """The pair A, B that all matrices of an adapter share. Raises UserError where they
    do not share one."""
    from vera.projections import ProjectionSpec, fingerprint

    method = vera.method
    fixed = vera.header["fixed"]
    if method.projections == "shared":
        spec = ProjectionSpec(
            method.projection_seed,
            method.rank,
            fixed["inputs"],
            fixed["outputs"],
            method.init,
        )
        a, b = spec.make()
        if fingerprint(a, b) == fixed["fingerprint"]:
            return SharedPair(a.astype(np.float64), b.astype(np.float64))
    raise UserError(
        f"{vera.path}: not trained with one shared pair of projections of this version"
    )


def _cosine(left: Matrix, right: Matrix) -> float | None:
    """The cosine of two flattened matrices; None where one is zero."""
    norms = float(np.linalg.norm(left) * np.linalg.norm(right))
    return float(left.ravel() @ right.ravel()) / norms if norms else None
