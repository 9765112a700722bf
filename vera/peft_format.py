"""Adapters in huggingface/peft's format: VeRA and LoRA to it and back without loss, peft's own methods to it.

A folder with adapter_config.json and adapter_model.safetensors, the head in it. peft adapts a fused
projection (GPT-2's c_attn) as one matrix; our separate query and value adapters of rank r are one of rank 2r
there, with zeros for the key:

    LoRA   A' = [A_q; A_v]    B' = [[B_q, 0], [0, 0], [0, B_v]]
    VeRA   A' = [A; A]        B' = [[B, 0], [0, 0], [0, B]]    d' = [d_q; d_v]    b' = [b_q; 0; b_v]

A and B of VeRA are stored: peft cannot draw ours."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vera.base_weights import without_weights
from vera.checked_file import check_tensors, share, system_error
from vera.errors import AdapterError, first_line
from vera.methods import Method, make_method
from vera.methods.adapted import adaptation, taken_back, unload
from vera.methods.layers import AdaptedLinear
from vera.methods.lora import LoRA, LoRAChange
from vera.methods.peft_settings import rewrites_base
from vera.methods.vera import VeRA
from vera.methods.vera_layer import VeRAChange
from vera.peft_config import CONFIG, OTHER_LORA, check_config, head_modules
from vera.projections import INITS, Init, ProjectionSpec
from vera.sites import (
    ALIASES,
    WHOLE,
    find_sites,
    head_parameters,
    head_prefixes,
    is_linear,
    is_transposed,
    size,
)

WEIGHTS, PREFIX = "adapter_model.safetensors", "base_model.model."
PAIR = {"base_model.vera_A", "base_model.vera_B"}
#: peft's task types, by the end of the model class's name.
TASKS = {"ForSequenceClassification": "SEQ_CLS", "ForCausalLM": "CAUSAL_LM", "LMHeadModel": "CAUSAL_LM"}


def export_peft(
    model: nn.Module, folder: str | Path, base: str | None = None, revision: str | None = None
) -> None:
    """Writes an adapted model's adapter and head as peft does: `peft.PeftModel.from_pretrained(base, folder)`
    reads it.

    base, revision: the base model's name on the hub, for adapter_config.json. Without it, the name that the
    model was loaded by; of a local folder the last part alone, so that no path of this machine is published.

    Raises AdapterError where peft has no such adapter: bottlenecks, several pairs of projections, methods
    without an adapter.
    """
    adapted = adaptation(model)
    kind = adapted.method.kind if adapted else "none"
    if adapted is None or kind not in ("vera", "lora", "peft"):
        raise AdapterError(
            f"peft's format has no place for method {kind}: it takes vera, lora and peft's own"
        )
    with taken_back(model, adapted.method):
        config, tensors = _parts(model, adapted.method)
        write_peft(model, folder, config, tensors, base, revision, adapted.method.settings())


def write_peft(
    model: nn.Module,
    folder: str | Path,
    config: dict[str, Any],
    tensors: Mapping[str, Tensor],
    base: str | None,
    revision: str | None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes an adapter's configuration and tensors with the model's head, and what peft's AutoPeftModel
    loads them by. base, revision: as for `export_peft`. settings: this project's own, of the method."""
    head = head_parameters(model)
    kind = type(model)
    task = next((task for name, task in TASKS.items() if kind.__name__.endswith(name)), None)
    of_transformers = task is None and kind.__module__.startswith("transformers.")
    config |= {
        "task_type": task,
        # Without a task, AutoPeftModel makes the base model by this
        "auto_mapping": {"base_model_class": kind.__name__, "parent_library": kind.__module__}
        if of_transformers
        else None,
        "base_model_name_or_path": base or _base_name(model),
        "revision": revision,
        "modules_to_save": head_modules(model),
        "inference_mode": True,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt"} | ({"vera_bench": json.dumps(settings)} if settings else {})
    whole = {**tensors, **{PREFIX + name: p for name, p in head.items()}}
    stored = {name: tensor.detach().clone().contiguous() for name, tensor in whole.items()}
    try:
        save_file(stored, folder / WEIGHTS, metadata)
    except SafetensorError as error:
        raise system_error(folder / WEIGHTS, error) from None
    share(folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def import_peft(model: nn.Module, folder: str | Path) -> Method:
    """Adapts a base model with a VeRA or LoRA adapter in peft's format, and fills in its head if the folder
    holds one.

    Raises AdapterError in one line, with the model unchanged, for any other kind of adapter, one that does
    not fit, or one whose adapter_config.json was changed after `export_peft`."""
    if adaptation(model):
        raise AdapterError(
            "this model is adapted already: import onto a fresh copy of the base model, or unload it"
        )
    folder = Path(folder)
    config, tensors, ours = _read(folder)
    try:
        method = make_method(**ours) if ours else _method(model, folder, config, tensors)
    except AdapterError:
        raise
    except (TypeError, ValueError, KeyError, OverflowError) as error:
        raise AdapterError(
            f"{folder}: its {CONFIG} describes no adapter ({type(error).__name__}: {error})"
        ) from None
    if not isinstance(method, VeRA | LoRA):
        raise AdapterError(f"{folder}: an adapter of type {method.kind}; VERA and LORA are read here")
    trial = without_weights(model)
    method.adapt(trial)
    described, parts = _parts(trial, method)
    if ours:
        check_config(folder, config, described, model)
    head = {PREFIX + name: p for name, p in head_parameters(trial).items()}
    optional = head.keys() if PAIR & tensors.keys() else head.keys() | PAIR
    needed = {name: t for name, t in (parts | head).items() if name in tensors or name not in optional}
    check_tensors(folder, needed, tensors, "Same base model?")
    method.adapt(model)
    _fill(model, method, tensors)
    for name, expected in _parts(model, method)[1].items():  # the folder must hold nothing more
        if name in tensors and not _alike(tensors[name], expected.detach()):
            unload(model)
            if name in PAIR:
                raise AdapterError(f"{folder}: its {name[-1]} differs from the one that its seed makes here")
            raise AdapterError(f"{folder}: {name} holds more than the blocks that were adapted")
    with torch.no_grad():
        for name, parameter in head_parameters(model).items():
            if PREFIX + name in tensors:
                parameter.copy_(tensors[PREFIX + name])
    return method


# --- out


def _base_name(model: nn.Module) -> str | None:
    """The name that a model was loaded by; the last part of a local folder."""
    name = str(getattr(getattr(model, "config", None), "_name_or_path", None) or "")
    local = name and (Path(name).is_absolute() or name.count("/") > 1 or Path(name).exists())
    return (Path(name).resolve().name if local else name) or None


def _parts(model: nn.Module, method: Method) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """An adapted model's configuration and tensors as peft has them, without the head."""
    if method.kind == "peft":
        return _peft_parts(model)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, AdaptedLinear)}
    config, tensors = _lora_parts(layers, method) if method.kind == "lora" else _vera_parts(layers, method)
    transposed = any(is_transposed(layer.base) for layer in layers.values())
    return config | {"target_modules": sorted(layers), "bias": "none", "fan_in_fan_out": transposed}, tensors


def _peft_parts(model: nn.Module) -> tuple[dict[str, Any], dict[str, Tensor]]:
    import peft

    wrapper: Any = model._peft_wrapper[0]  # type: ignore[index]
    tensors = peft.get_peft_model_state_dict(wrapper, save_embedding_layers=False)
    return plain(wrapper.peft_config["default"]), tensors


def plain(config: Any) -> dict[str, Any]:
    """A configuration of peft as JSON has it."""
    settings = config.to_dict().items()
    return {k: sorted(v) if isinstance(v, set) else getattr(v, "value", v) for k, v in settings}


def _blocks(layers: Mapping[str, AdaptedLinear]) -> int:
    """How many changes each layer has; peft has one rank for all."""
    counts = {len(layer.changes) for layer in layers.values()}
    if len(counts) != 1:
        raise AdapterError(
            "peft has one rank for all sites: blocks of fused layers beside whole layers do not fit"
        )
    return counts.pop()


def _changes(layer: AdaptedLinear) -> list[tuple[Any, slice]]:
    """A layer's changes, each with its rows of the outputs."""
    return [(change, layer.blocks[name]) for name, change in layer.changes.items()]


def _stacked_b(layer: AdaptedLinear, rank: int) -> Tensor:
    """B of all changes of a layer as one matrix, (outputs, changes * rank): [[B_q, 0], [0, 0], [0, B_v]]."""
    changes = _changes(layer)
    b = changes[0][0].B.new_zeros(size(layer.base)[1], len(changes) * rank)
    for i, (change, rows) in enumerate(changes):
        b[rows, i * rank : (i + 1) * rank] = change.B
    return b


def _lora_parts(layers: Mapping[str, AdaptedLinear], method: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    count, rank = _blocks(layers), method.rank
    tensors: dict[str, Tensor] = {}
    for path, layer in layers.items():
        tensors[f"{PREFIX}{path}.lora_A.weight"] = torch.cat([change.A for change, _ in _changes(layer)])
        tensors[f"{PREFIX}{path}.lora_B.weight"] = _stacked_b(layer, rank)
    # alpha / rank is the scale on both sides.
    config = {
        "peft_type": "LORA",
        "r": count * rank,
        "lora_alpha": count * method.alpha,
        "lora_dropout": method.dropout,
    }
    return config, tensors


def _vera_parts(layers: Mapping[str, AdaptedLinear], method: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    count, rank = _blocks(layers), method.rank
    if method.projections != "shared":
        raise AdapterError(
            f"peft has one pair A and B for all sites: projections={method.projections} does not fit its"
            " format"
        )
    first = next(iter(layers.values()))
    pair = _changes(first)[0][0].pair
    if all(WHOLE in layer.changes for layer in layers.values()):
        a, b = pair.A, pair.B
    else:
        if len({(size(layer.base), str(layer.blocks)) for layer in layers.values()}) > 1:
            raise AdapterError("fused layers of several shapes do not fit peft's one pair A and B")
        a, b = torch.cat([pair.A] * count), _stacked_b(first, rank)
    tensors = {"base_model.vera_A": a, "base_model.vera_B": b}
    for path, layer in layers.items():
        vector = torch.zeros(size(layer.base)[1], dtype=a.dtype, device=a.device)
        for change, rows in _changes(layer):
            vector[rows] = 1.0 if change.b is None else change.b
        ones = a.new_ones(rank)
        tensors[f"{PREFIX}{path}.vera_lambda_b"] = vector
        tensors[f"{PREFIX}{path}.vera_lambda_d"] = torch.cat(
            [ones if c.d is None else c.d for c, _ in _changes(layer)]
        )
    config = {
        "peft_type": "VERA",
        "r": count * rank,
        "d_initial": method.d_init,
        "vera_dropout": method.dropout,
        "projection_prng_key": method.projection_seed,
        "save_projection": True,
    }
    return config, tensors


# --- in


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any] | None]:
    """The configuration, the tensors, and this project's own settings where it was the writer."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            hint = "Not an adapter of peft?"
            if name == WEIGHTS and (folder / "adapter_model.bin").is_file():
                hint = "adapter_model.bin is pickled: save it as safetensors"
            raise AdapterError(f"{folder}: no {name}. {hint}")
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        open(folder / WEIGHTS, "rb").close()  # one that may not be read is not there, as safetensors says
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        ours = json.loads(metadata["vera_bench"]) if "vera_bench" in metadata else None
        if not isinstance(config, dict) or not isinstance(ours, dict | None):
            raise ValueError("not a mapping")
        if ours and ours.get("kind") == "peft":
            ours = None  # peft's own method, exported
    except PermissionError as error:
        raise AdapterError(f"{error.filename}: permission denied. Its owner can let you read it") from None
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise AdapterError(f"{folder}: damaged ({first_line(error)}). Get the adapter again") from None
    return config, tensors, ours


def _method(model: nn.Module, folder: Path, config: dict[str, Any], tensors: dict[str, Tensor]) -> Method:
    """The method of an adapter that peft itself wrote."""
    kind = config.get("peft_type")
    if kind not in ("LORA", "VERA"):
        raise AdapterError(
            f"{folder}: an adapter of type {kind}; VERA and LORA are read here (others train as method=peft)"
        )
    ending = ".lora_A.weight" if kind == "LORA" else ".vera_lambda_d"
    # (rank, ...)
    a_or_d = {name: tensor for name, tensor in tensors.items() if name.endswith(ending)}
    paths = [name.removeprefix(PREFIX).removesuffix(ending) for name in a_or_d]
    sites = _sites(model, paths, folder)
    others = ["bias"] if config.get("bias", "none") != "none" else []
    others += [key for key in OTHER_LORA if kind == "LORA" and config.get(key)]
    if others:
        name, key = {"LORA": "LoRA", "VERA": "VeRA"}[kind], others[0]
        raise AdapterError(f"{folder}: {name} with {key}={config[key]} is another method than {name} here")
    if kind == "LORA" and rewrites_base(config.get("init_lora_weights")):
        raise AdapterError(
            f"{folder}: init_lora_weights={config['init_lora_weights']} changed the base weights too"
        )
    rank, ranks = config["r"], {len(tensor) for tensor in a_or_d.values() if tensor.ndim}
    if ranks != {rank}:
        own = ", ".join(map(str, sorted(ranks))) or "nothing"
        raise AdapterError(f"{folder}: its {CONFIG} says r={rank}, its tensors {own}")
    if kind == "LORA":
        alpha = float(config.get("lora_alpha", 8)) * (rank**0.5 if config.get("use_rslora") else 1)
        return LoRA(rank, sites, alpha, float(config.get("lora_dropout", 0.0)))
    shapes = [size(model.get_submodule(path)) for path in find_sites(model, sites)]
    seed = config.get("projection_prng_key", 0)
    widest = max(i for i, _ in shapes), max(o for _, o in shapes)
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise AdapterError(f"{folder}: its {CONFIG} says projection_prng_key={seed!r}, which is no seed")
    init = _init_of(tensors, seed, rank, *widest)
    if init is None:
        raise AdapterError(
            f"{folder}: its A and B are of no known scheme for seed {seed}. Drawn by another version of"
            " torch?"
        )
    return VeRA(
        rank, sites, float(config.get("d_initial", 0.1)), float(config.get("vera_dropout", 0.0)), init, seed
    )


def _sites(model: nn.Module, paths: list[str], folder: Path) -> tuple[str, ...]:
    """The shortest sites that name just these modules: roles, or last parts of names, or whole paths."""
    names = list(dict.fromkeys(path.rpartition(".")[2] for path in paths))
    roles = {name: role for role, aliases in ALIASES.items() for name in aliases}
    for sites in (tuple(dict.fromkeys(roles.get(name, name) for name in names)), tuple(names), tuple(paths)):
        try:
            if sites and set(find_sites(model, sites)) == set(paths):
                return sites
        except AdapterError:
            continue
    head = [path for path in paths if f"{path}.".startswith(head_prefixes(model))]
    if head:
        raise AdapterError(
            f"{folder}: adapts {head[0]}, a part of the head, which trains as a whole here: cannot be"
            " imported"
        )
    linear = {path for path, m in model.named_modules() if is_linear(m)}
    lacking = next((path for path in paths if path not in linear), None)
    if lacking is None:  # find_sites leaves out a language model's output layer
        raise AdapterError(f"{folder}: adapts {', '.join(paths)}, which no sites name: cannot be imported")
    raise AdapterError(f"{folder}: this model lacks a linear layer {lacking}. Same base model?")


def _init_of(tensors: dict[str, Tensor], seed: int, rank: int, inputs: int, outputs: int) -> Init | None:
    if not PAIR & tensors.keys():
        return "peft"
    stored = [tensors.get(name, torch.zeros(0)) for name in sorted(PAIR)]
    for init in reversed(INITS):  # peft's own is the last
        pair = map(torch.from_numpy, ProjectionSpec(seed, rank, inputs, outputs, init).make())
        if all(map(_alike, stored, pair)):
            return init
    return None


@torch.no_grad()
def _fill(model: nn.Module, method: Method, tensors: dict[str, Tensor]) -> None:
    """Copies checked tensors into an adapted model, without the zeros and ones that peft alone needs."""
    rank = cast(Any, method).rank
    for path, layer in ((n, m) for n, m in model.named_modules() if isinstance(m, AdaptedLinear)):
        for i, (change, rows) in enumerate(_changes(layer)):
            ranks, name = slice(i * rank, (i + 1) * rank), f"{PREFIX}{path}"
            if isinstance(change, LoRAChange):
                change.A.copy_(tensors[f"{name}.lora_A.weight"][ranks])
                change.B.copy_(tensors[f"{name}.lora_B.weight"][rows, ranks])
            if isinstance(change, VeRAChange) and change.d is not None:
                change.d.copy_(tensors[f"{name}.vera_lambda_d"][ranks])
            if isinstance(change, VeRAChange) and change.b is not None:
                change.b.copy_(tensors[f"{name}.vera_lambda_b"][rows])


def _alike(theirs: Tensor, ours: Tensor) -> bool:
    """Equal, or equal once rounded as peft rounds over a half-precision base."""
    theirs, ours = theirs.cpu().double(), ours.cpu()
    return any(
        torch.equal(theirs, ours.to(dtype).double())
        for dtype in (ours.dtype, torch.float32, torch.bfloat16, torch.float16)
    )
