"""Adapters in huggingface/peft's format: VeRA and LoRA to it and back without loss,
peft's own methods to it; and converted to LoRA by peft's own conversion, for servers
that know only LoRA.

A folder with adapter_config.json and adapter_model.safetensors, the head in it. peft
adapts a fused projection (GPT-2's c_attn) as one matrix; our separate query and value
adapters of rank r are one of rank 2r there, with zeros for the key:

    LoRA   A' = [A_q; A_v]    B' = [[B_q, 0], [0, 0], [0, B_v]]
    VeRA   A' = [A; A]        B' = [[B, 0], [0, 0], [0, B]]    d' = [d_q; d_v]    b' = [b_q; 0; b_v]

A and B of VeRA are stored: peft cannot draw ours."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from vera.adapter_file import fill
from vera.base_weights import without_weights
from vera.checked_file import check_finite, check_shapes
from vera.errors import AdapterError, first_line
from vera.methods import Method, make_method
from vera.methods.adapted import adaptation, taken_back, unload
from vera.methods.layers import AdaptedLinear, widest
from vera.methods.lora import LoRA
from vera.methods.peft_install import installed
from vera.methods.peft_settings import REWRITES_BASE
from vera.methods.vera import VeRA
from vera.projections import INITS, ProjectionSpec
from vera.sites import (
    ALIASES,
    WHOLE,
    find_sites,
    head_parameters,
    head_prefixes,
    is_transposed,
    size,
)

CONFIG, WEIGHTS, PREFIX = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "base_model.model.",
)
PAIR = {"base_model.vera_A", "base_model.vera_B"}
#: What peft's conversion does not turn into a LoRA of the rank asked for, by its type.
NO_LORA = {
    "LORA": "this adapter is a LoRA already: export_peft writes it without loss",
    "MISS": "peft converts MiSS to a LoRA of another rank than the one asked for",
}
#: peft's task types, by the end of the model class's name.
TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
}
#: Our settings by peft's names, and peft's defaults. r and lora_alpha count all blocks
#: of a fused layer.
SETTINGS = {
    "LORA": {
        "r": ("rank", None),
        "lora_alpha": ("alpha", 8),
        "lora_dropout": ("dropout", 0.0),
    },
    "VERA": {
        "r": ("rank", None),
        "d_initial": ("d_init", 0.1),
        "vera_dropout": ("dropout", 0.0),
        "projection_prng_key": ("projection_seed", 0),
    },
}
#: A tensor that each kind has of every layer.
OF_LAYER = {"LORA": ".lora_A.weight", "VERA": ".vera_lambda_d"}
#: Settings of peft's LoRA that make it another method than the one here, where they are
#: set.
OTHER_LORA = (
    *(
        "use_dora",
        "lora_bias",
        "rank_pattern",
        "alpha_pattern",
        "megatron_config",
        "trainable_token_indices",
    ),
    *(
        "target_parameters",
        "layer_replication",
        "alora_invocation_tokens",
        "use_qalora",
        "use_bdlora",
    ),
    *(
        "arrow_config",
        "kasa_config",
        "velora_config",
        "monteclora_config",
        "loftq_config",
        "corda_config",
    ),
    "lora_ga_config",
)
#: Others that change which layers are adapted, or how far, and that an export never
#: sets.
UNSET = ("use_rslora", "layers_to_transform", "exclude_modules")


def export_peft(
    model: nn.Module,
    folder: str | Path,
    base: str | None = None,
    revision: str | None = None,
) -> None:
    """Writes an adapted model's adapter and head as peft does:
    `peft.PeftModel.from_pretrained(base, folder)` reads it.

    base, revision: the base model's name on the hub, for adapter_config.json. Without
    it, the name that the model was loaded by; of a local folder the last part alone, so
    that no path of this machine is published.

    Raises AdapterError where peft has no such adapter: bottlenecks, several pairs of
    projections, methods without an adapter."""
    config, tensors, settings = _described(model)
    _write(model, folder, config, tensors, base, revision, settings)


@torch.no_grad()
def export_lora(
    model: nn.Module,
    folder: str | Path,
    rank: int | float,
    base: str | None = None,
    revision: str | None = None,
) -> dict[str, tuple[float, float]]:
    """Writes an adapted model's adapter, converted to LoRA, and its head as peft does.
    The model is the plain base model afterwards, with its head, as after `unload`: save
    the adapter first.

    rank: an int, of every layer; or a float up to 1, the share of each layer's squared
    singular values that is kept, which gives each layer a rank of its own. Of each
    change this is the best approximation at a rank, by SVD: exact from the rank of the
    change on. base, revision: as for `export_peft`. Returns for each layer the
    Frobenius norms of what the LoRA lacks of the change, and of the change.

    Raises AdapterError, and writes nothing, where peft has no such adapter or cannot
    convert it."""
    import peft
    from peft.tuners.lora.conversion import convert_to_lora
    from peft.tuners.tuners_utils import BaseTunerLayer

    config, tensors, _ = _described(model)
    if config.get("use_dora"):
        raise AdapterError(
            "a LoRA cannot hold DoRA's magnitudes: export_peft writes it as it is"
        )
    if config["peft_type"] in NO_LORA:
        raise AdapterError(NO_LORA[config["peft_type"]])
    unload(model)
    # The head stays the model's own: of one of several layers peft's conversion keeps
    # one tensor
    wrapped = peft.get_peft_model(model, peft.get_peft_config(config))
    norms = {}
    try:
        # peft's, of a base model that it cannot look up
        with warnings.catch_warnings(action="ignore"):
            peft.set_peft_model_state_dict(wrapped, tensors)
            converted, lora = convert_to_lora(wrapped, rank=rank)
        layers: Any = [
            (n, m) for n, m in wrapped.named_modules() if isinstance(m, BaseTunerLayer)
        ]
        for name, layer in layers:
            change = layer.get_delta_weight("default").double()
            change = change.T if is_transposed(layer.get_base_layer()) else change
            a, b = (lora[f"{name}.lora_{part}.weight"].double() for part in "AB")
            norms[name.removeprefix(PREFIX)] = (
                float((change - b @ a).norm()),
                float(change.norm()),
            )
    except (ValueError, TypeError, NotImplementedError, AttributeError) as error:
        raise AdapterError(
            f"peft converts this adapter to no LoRA of rank {rank}: {error}"
        ) from None
    finally:
        wrapped.unload()
    transposed = any(is_transposed(model.get_submodule(path)) for path in norms)
    _write(
        model,
        folder,
        _plain(converted) | {"fan_in_fan_out": transposed},
        lora,
        base,
        revision,
    )
    return norms


def _described(
    model: nn.Module,
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Of an adapted model: its configuration and its tensors as peft has them, without
    the head, and its method's settings."""
    adapted = adaptation(model)
    kind = adapted.method.kind if adapted else "none"
    if adapted is None or kind not in ("vera", "lora", "peft"):
        raise AdapterError(
            f"peft's format has no place for method {kind}: only vera, lora and peft's own"
        )
    with taken_back(model, adapted):
        if kind == "peft":
            import peft

            wrapper = installed(model).wrapper
            tensors = peft.get_peft_model_state_dict(
                wrapper, save_embedding_layers=False
            )
            config = _plain(wrapper.peft_config["default"])
        else:
            config, places = _parts(model, adapted.method)
            tensors = {name: _assembled(*place) for name, place in places.items()}
        own = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        return config, own, adapted.method.settings()


def _write(
    model: nn.Module,
    folder: str | Path,
    config: dict[str, Any],
    tensors: Mapping[str, Tensor],
    base: str | None,
    revision: str | None,
    settings: Mapping[str, Any] | None = None,
) -> None:
    """Writes an adapter's configuration and tensors with the model's head, and what
    peft's AutoPeftModel loads them by. settings: this project's own, of the method."""
    head, kind = head_parameters(model), type(model)
    modules = [
        p[:-1] for p in head_prefixes(model) if any(name.startswith(p) for name in head)
    ]
    task = next(
        (task for name, task in TASKS.items() if kind.__name__.endswith(name)), None
    )
    of_transformers = task is None and kind.__module__.startswith("transformers.")
    config |= {
        "task_type": task,
        # Without a task, AutoPeftModel makes the base model by this
        "auto_mapping": {
            "base_model_class": kind.__name__,
            "parent_library": kind.__module__,
        }
        if of_transformers
        else None,
        "base_model_name_or_path": base or _base_name(model),
        "revision": revision,
        "modules_to_save": modules or None,
        "inference_mode": True,
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"format": "pt"} | (
        {"vera_bench": json.dumps(settings)} if settings else {}
    )
    whole = {**tensors, **{PREFIX + name: p for name, p in head.items()}}
    stored = {
        name: tensor.detach().clone().contiguous() for name, tensor in whole.items()
    }
    (folder / WEIGHTS).write_bytes(save(stored, metadata))
    (folder / CONFIG).write_text(
        json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )


def import_peft(model: nn.Module, folder: str | Path) -> Method:
    """Adapts a base model with a VeRA or LoRA adapter in peft's format, and fills in
    its head if the folder holds one.

    Raises AdapterError in one line, with the model unchanged, for any other kind of
    adapter, one that does not fit, or one whose adapter_config.json was changed after
    `export_peft`."""
    if adaptation(model):
        raise AdapterError(
            "this model is adapted already: unload it, or take a fresh copy of the base model"
        )
    folder = Path(folder)
    config, tensors, ours = _read(folder)
    try:
        method = make_method(**ours) if ours else _method(model, config, tensors)
        if not isinstance(method, VeRA | LoRA):
            raise AdapterError(
                f"an adapter of type {method.kind}; VERA and LORA are read here"
            )
        trial = without_weights(model)
        method.adapt(trial)
    except (AdapterError, TypeError, OverflowError) as error:
        of = folder / (WEIGHTS if ours else CONFIG)
        raise AdapterError(
            f"{of} describes no adapter for this model: {first_line(error)}"
        ) from None
    described, places = _parts(trial, method)
    # which peft writes in its own way
    same = described.keys() - {"target_modules", "fan_in_fan_out"}
    for key in (*sorted(same), *UNSET) if ours else ():  # peft obeys the configuration
        if (config.get(key) or None) != (described.get(key) or None):
            found = str(config.get(key))[:80]
            raise AdapterError(
                f"{folder}: {CONFIG} says {key}={found}, not its weights. Export it again"
            )
    head = {PREFIX + name: p for name, p in head_parameters(trial).items()}
    optional = head.keys() if PAIR & tensors.keys() else head.keys() | PAIR
    whole: dict[str, Tensor] = {**head} | {
        name: _assembled(*place) for name, place in places.items()
    }
    needed = {
        name: t for name, t in whole.items() if name in tensors or name not in optional
    }
    check_shapes(
        folder, needed, {name: list(tensor.shape) for name, tensor in tensors.items()}
    )
    check_finite(folder, needed, tensors)
    method.adapt(model)
    for name, (shape, pieces) in _parts(model, method)[1].items():
        if name not in tensors:
            continue
        with torch.no_grad():  # without the zeros and ones that peft alone needs
            for at, value in pieces:
                if isinstance(value, nn.Parameter):
                    value.copy_(tensors[name][at])
        if not _alike(tensors[name], _assembled(shape, pieces).detach()):
            unload(model)
            of_seed = "differs from the one that its seed makes here"
            why = (
                of_seed
                if name in PAIR
                else "holds more than the blocks that were adapted"
            )
            raise AdapterError(f"{folder}: {name} {why}")
    own = {PREFIX + name: p for name, p in head_parameters(model).items()}
    fill(own, {name: tensors[name] for name in own.keys() & tensors.keys()})
    return method


# --- out


def _base_name(model: nn.Module) -> str | None:
    """The name that a model was loaded by; the last part of a local folder."""
    name = str(getattr(getattr(model, "config", None), "_name_or_path", None) or "")
    local = name and (
        Path(name).is_absolute() or name.count("/") > 1 or Path(name).exists()
    )
    return (Path(name).resolve().name if local else name) or None


#: Our values in a tensor of peft's, each with its place; by the tensor's name, its
#: shape and these.
Pieces = list[tuple[Any, Tensor]]
Places = dict[str, tuple[tuple[int, ...], Pieces]]


def _parts(model: nn.Module, method: Method) -> tuple[dict[str, Any], Places]:
    """Of a model adapted by VeRA or LoRA: its configuration as peft has it, and the
    places of its values in peft's tensors, for the way out and in, without the head.
    Raises AdapterError where peft, which has one rank and one pair for all layers, has
    no place for them."""
    layers = {
        path: m for path, m in model.named_modules() if isinstance(m, AdaptedLinear)
    }
    counts = {len(layer.changes) for layer in layers.values()}
    if len(counts) != 1:
        raise AdapterError(
            "peft has one rank for all sites: blocks of fused layers and whole ones differ"
        )
    count, kind = counts.pop(), method.kind.upper()
    config = {
        theirs: getattr(method, ours) for theirs, (ours, _) in SETTINGS[kind].items()
    }
    config |= {key: count * config[key] for key in ("r", "lora_alpha") if key in config}
    config |= {"peft_type": kind, "target_modules": sorted(layers), "bias": "none"}
    config["fan_in_fan_out"] = any(
        is_transposed(layer.base) for layer in layers.values()
    )
    places: Places = {}
    if kind == "VERA":
        config["save_projection"] = True
        places |= _pair(list(layers.values()), method, config["r"])
    for path, layer in layers.items():
        (inputs, outputs), ranks, blocks = (
            size(layer.base),
            config["r"],
            _blocks(layer, method),
        )
        name = f"{PREFIX}{path}"
        if kind == "LORA":
            places[f"{name}.lora_A.weight"] = (
                (ranks, inputs),
                [(r, c.A) for c, _, r in blocks],
            )
            places[f"{name}.lora_B.weight"] = (
                (outputs, ranks),
                [((rows, r), c.B) for c, rows, r in blocks],
            )
        else:  # a vector that VeRA leaves out is all ones there
            one = blocks[0][0].A.new_ones(())
            b: Pieces = [(rows, one if c.b is None else c.b) for c, rows, _ in blocks]
            d: Pieces = [(r, one if c.d is None else c.d) for c, _, r in blocks]
            places |= {
                f"{name}.vera_lambda_b": ((outputs,), b),
                f"{name}.vera_lambda_d": ((ranks,), d),
            }
    return config, places


def _blocks(layer: AdaptedLinear, method: Any) -> list[tuple[Any, slice, slice]]:
    """A layer's changes, each with its rows of the outputs and its part of peft's
    ranks."""
    ranks = [
        slice(i * method.rank, (i + 1) * method.rank) for i in range(len(layer.changes))
    ]
    return [
        (c, layer.blocks[n], r)
        for (n, c), r in zip(layer.changes.items(), ranks, strict=True)
    ]


def _pair(layers: list[AdaptedLinear], method: Any, ranks: int) -> Places:
    """VeRA's A and B as peft has them, one pair for all layers."""
    if method.projections != "shared":
        raise AdapterError(
            f"peft has one pair A and B: projections={method.projections} does not fit"
        )
    blocks = _blocks(layers[0], method)
    pair = blocks[0][0].pair
    outputs, of_b = len(pair.B), cast(Pieces, [(slice(None), pair.B)])
    if not all(WHOLE in layer.changes for layer in layers):
        if len({(size(layer.base), str(layer.blocks)) for layer in layers}) > 1:
            raise AdapterError(
                "fused layers of several shapes do not fit peft's one pair A and B"
            )
        outputs, of_b = (
            size(layers[0].base)[1],
            [((rows, r), c.B) for c, rows, r in blocks],
        )
    of_a: Pieces = [(r, pair.A) for _, _, r in blocks]
    shapes = (ranks, pair.A.shape[1]), (outputs, ranks)
    return dict(zip(sorted(PAIR), zip(shapes, (of_a, of_b), strict=True), strict=True))


def _assembled(shape: tuple[int, ...], pieces: Pieces) -> Tensor:
    """A tensor with these values at their places, and zeros elsewhere."""
    tensor = pieces[0][1].new_zeros(shape)
    for place, value in pieces:
        tensor[place] = value
    return tensor


def _plain(config: Any) -> dict[str, Any]:
    """A configuration of peft as JSON has it."""
    settings = config.to_dict().items()
    return {
        k: sorted(v) if isinstance(v, set) else getattr(v, "value", v)
        for k, v in settings
    }


# --- in


def _read(
    folder: Path,
) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any] | None]:
    """The configuration, the tensors, and this project's own settings where it was the
    writer."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise AdapterError(
                f"{folder}: no {name}. One that is pickled is saved as safetensors first"
            )
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        # one that may not be read is not there, as safetensors says
        open(folder / WEIGHTS, "rb").close()
        with safe_open(folder / WEIGHTS, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        ours = json.loads(metadata["vera_bench"]) if "vera_bench" in metadata else None
        if not isinstance(config, dict) or not isinstance(ours, dict | None):
            raise ValueError("not a mapping")
        if ours and ours.get("kind") == "peft":
            ours = None  # peft's own method, exported
        kind, init = config.get("peft_type"), config.get("init_lora_weights")
    except PermissionError as error:
        raise AdapterError(
            f"{error.filename}: permission denied. Its owner can let you read it"
        ) from None
    except (SafetensorError, ValueError, OSError, RecursionError) as error:
        raise AdapterError(
            f"{folder}: damaged ({first_line(error)}). Get the adapter again"
        ) from None
    if str(kind) not in SETTINGS:
        raise AdapterError(
            f"{folder}: an adapter of type {kind}; VERA and LORA are read here"
        )
    plain = {"bias": config.get("bias", "none") == "none"}
    plain |= {"init_lora_weights": not str(init).lower().startswith(REWRITES_BASE)}
    for key in [*OTHER_LORA, *plain]:
        if config.get(key) and not plain.get(key):
            raise AdapterError(
                f"{folder}: {kind} with {key}={config[key]} is another method here"
            )
    return config, tensors, ours


def _method(
    model: nn.Module, config: dict[str, Any], tensors: dict[str, Tensor]
) -> Method:
    """The method of an adapter that peft itself wrote."""
    kind = config["peft_type"]
    ending = OF_LAYER[kind]
    paths = [
        name.removeprefix(PREFIX).removesuffix(ending)
        for name in tensors
        if name.endswith(ending)
    ]
    sites = _sites(model, paths)
    known = SETTINGS[kind].items()
    settings: dict[str, Any] = {
        ours: config.get(theirs, default) for theirs, (ours, default) in known
    }
    if kind == "LORA" and config.get("use_rslora"):
        settings["alpha"] *= settings["rank"] ** 0.5
    method = make_method(kind.lower(), sites=sites, **settings)
    if not isinstance(method, VeRA):
        return method
    pair = [tensors[name] for name in sorted(PAIR & tensors.keys())]
    if not pair:
        return replace(method, init="peft")
    shape = widest(model, find_sites(model, sites))
    # peft's own is the last
    for init in reversed(INITS) if pair[0].shape == (method.rank, shape[0]) else ():
        made = ProjectionSpec(method.projection_seed, method.rank, *shape, init).make()
        if len(pair) == 2 and all(map(_alike, pair, map(torch.from_numpy, made))):
            return replace(method, init=init)
    raise AdapterError(
        "its seed draws another A and B here. Of another version of torch?"
    )


def _sites(model: nn.Module, paths: list[str]) -> tuple[str, ...]:
    """The shortest sites that name just these modules: roles, or last parts of names,
    or whole paths."""
    names = list(dict.fromkeys(path.rpartition(".")[2] for path in paths))
    roles = {name: role for role, aliases in ALIASES.items() for name in aliases}
    for sites in (
        tuple(dict.fromkeys(roles.get(name, name) for name in names)),
        tuple(names),
        tuple(paths),
    ):
        try:
            if sites and set(find_sites(model, sites)) == set(paths):
                return sites
        except AdapterError:
            continue
    which = [
        path for path in paths if f"{path}.".startswith(head_prefixes(model))
    ] or paths
    raise AdapterError(
        f"no sites here, head apart, are {', '.join(which)}. Same base model?"
    )


def _alike(theirs: Tensor, ours: Tensor) -> bool:
    """Equal, or equal once rounded as peft rounds over a half-precision base."""
    dtypes = (ours.dtype, torch.float32, torch.bfloat16, torch.float16)
    return any(
        torch.equal(theirs.cpu().double(), ours.cpu().to(dtype).double())
        for dtype in dtypes
    )
