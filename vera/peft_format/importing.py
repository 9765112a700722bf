"""Puts an adapter in peft's format onto a base model of ours."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from vera.base_weights import without_weights
from vera.checked_file import check_finite, check_shapes
from vera.errors import AdapterError, first_line
from vera.head_file import fill
from vera.methods import Method, make_method
from vera.methods.adapted import adaptation, unload
from vera.methods.layers import widest_shape
from vera.methods.lora import LoRA
from vera.methods.peft_settings import REWRITING_INITS
from vera.methods.vera import VeRA
from vera.peft_format.folder import (
    CONFIG,
    PREFIX,
    WEIGHTS,
    Config,
    PeftFolder,
    head_modules,
    read_folder,
)
from vera.peft_format.layout import (
    PAIR,
    PAIR_A,
    PAIR_B,
    PROJECTION_KEY,
    SETTINGS,
    PeftLayout,
    layout_of,
    projection_key,
)
from vera.projections import INITS, Init, ProjectionSpec
from vera.sites import (
    ALIASES,
    find_sites,
    head_parameters,
    head_prefixes,
    outside_head,
)

#: By type of adapter, how the name of a tensor ends that it has for every layer.
TENSOR_OF_LAYER = {"LORA": ".lora_A.weight", "VERA": ".vera_lambda_d"}
#: Settings of peft's LoRA that make it another method than LoRA here.
OTHER_METHOD_KEYS = (
    "use_dora",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "megatron_config",
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "loftq_config",
    "corda_config",
    "lora_ga_config",
)
#: Keys of a configuration that do not change what the model answers. fan_in_fan_out is
#: among them since peft itself corrects it, layer by layer.
DESCRIPTIVE_KEYS = {
    "auto_mapping",
    "base_model_name_or_path",
    "fan_in_fan_out",
    "inference_mode",
    "peft_version",
    "revision",
    "task_type",
}
#: What peft writes for settings that an export of ours never sets; nothing for others.
PEFT_DEFAULTS: Config = {
    "init_lora_weights": True,
    "init_weights": True,
    "megatron_core": "megatron.core",
    "qalora_group_size": 16,
}
#: Settings that choose some layers among those that target_modules names.
LAYER_CHOICE_KEYS = ("exclude_modules", "layers_pattern", "layers_to_transform")
#: How many projection seeds are tried for an A and B without a known seed: an export that
#: peft has read and written again has lost ours.
TRIED_SEEDS = 1000


def import_peft(model: nn.Module, folder: str | Path) -> Method:
    """Adapts a base model with a VeRA or LoRA adapter in peft's format, and fills in
    its head if the folder holds one.

    Args:
        model: A base model without an adapter. It is adapted in place.
        folder: With adapter_config.json and adapter_model.safetensors.

    Returns:
        The method on the model, with the settings of the folder's adapter.

    Raises:
        AdapterError: The folder holds another kind of adapter, one that does not fit
            the model, or one whose adapter_config.json was changed after `export_peft`.
            The model is then unchanged.
    """
    if adaptation(model):
        raise AdapterError(
            "this model is adapted already: unload it, or take a fresh copy of the base model"
        )
    source = read_folder(Path(folder))
    _check_kind(source)
    trial = without_weights(model)
    method = _adapt_trial(source, trial)
    layout = layout_of(trial, method)
    _check_configuration(source, model, method, layout)
    needed = _expected_tensors(source, trial, layout)
    shapes = {name: list(tensor.shape) for name, tensor in source.tensors.items()}
    check_shapes(source.path, needed, shapes)
    check_finite(source.path, needed, source.tensors)
    method.adapt(model)
    try:
        _fill_adapter(source, layout_of(model, method))
    except AdapterError:
        unload(model)
        raise
    head = {PREFIX + name: p for name, p in head_parameters(model).items()}
    fill(head, {name: source.tensors[name] for name in head if name in source.tensors})
    return method


def _adapt_trial(source: PeftFolder, trial: nn.Module) -> VeRA | LoRA:
    """Adapts `trial`, a copy of the model without weights, by the folder's method, and
    returns that method. Raises AdapterError where it does not fit the model."""
    try:
        if source.settings:
            settings = dict(source.settings)
            method = make_method(str(settings.pop("kind", None)), **settings)
        else:
            method = _method_of_peft(trial, source)
        if not isinstance(method, VeRA | LoRA):
            raise AdapterError(
                f"an adapter of type {method.kind}; VERA and LORA are read here"
            )
        method.adapt(trial)
    except (AdapterError, TypeError, OverflowError) as error:
        file = source.path / (WEIGHTS if source.settings else CONFIG)
        raise AdapterError(
            f"{file} describes no adapter for this model: {first_line(error)}"
        ) from None
    return method


# --- which method it is


def _check_kind(source: PeftFolder) -> None:
    """Raises AdapterError for other methods of peft than VeRA and plain LoRA."""
    config = source.config
    kind = source.config.get("peft_type")
    if str(kind) not in SETTINGS:
        raise AdapterError(
            f"{source.path}: an adapter of type {kind}; VERA and LORA are read here"
        )
    other_keys = [key for key in OTHER_METHOD_KEYS if config.get(key)]
    if config.get("bias", "none") not in ("none", None, False):
        other_keys.append("bias")
    if str(config.get("init_lora_weights")).lower().startswith(REWRITING_INITS):
        other_keys.append("init_lora_weights")
    if other_keys:
        key = other_keys[0]
        raise AdapterError(
            f"{source.path}: {kind} with {key}={config[key]} is another method here"
        )


def _method_of_peft(model: nn.Module, source: PeftFolder) -> Method:
    """The method of an adapter that peft itself wrote."""
    config = source.config
    kind = str(source.config["peft_type"])
    ending = TENSOR_OF_LAYER[kind]
    paths = []
    for name in source.tensors:
        if name.endswith(ending):
            paths.append(name.removeprefix(PREFIX).removesuffix(ending))
    sites = _sites_of(model, paths)
    # A stranger's configuration may hold anything: make_method checks the values
    settings = {
        setting.ours: config.get(setting.peft, setting.default)
        for setting in SETTINGS[kind]
    }
    if kind == "LORA":
        method = make_method("lora", sites=sites, **settings)
        if config.get("use_rslora") and isinstance(method, LoRA):
            # rsLoRA scales by alpha / sqrt(rank)
            method = replace(method, alpha=method.alpha * method.rank**0.5)
        return method
    # peft draws A and B from a seed that it calls a key
    seed = config.get(PROJECTION_KEY, 0)
    method = make_method("vera", sites=sites, projection_seed=seed, **settings)
    assert isinstance(method, VeRA)
    return _with_projections(method, model, source)


def _with_projections(method: VeRA, model: nn.Module, source: PeftFolder) -> VeRA:
    """The method with the seed and the distribution that draw the A and B of the folder;
    of a folder without them, those by which peft draws. Raises AdapterError where no seed
    that is tried draws them."""
    vera_a = source.tensors.get(PAIR_A)
    vera_b = source.tensors.get(PAIR_B)
    if vera_a is None and vera_b is None:
        return replace(method, init="peft")
    inputs, outputs = widest_shape(model, find_sites(model, method.sites))
    if (
        vera_a is not None
        and vera_b is not None
        and vera_a.shape == (method.rank, inputs)
    ):
        for seed, init in _likely_draws(method.projection_seed):
            spec = ProjectionSpec(seed, method.rank, inputs, outputs, init)
            if _draws_pair(spec, vera_a, vera_b):
                return replace(method, projection_seed=seed, init=init)
    raise AdapterError(
        f"neither its {PROJECTION_KEY} nor a seed below {TRIED_SEEDS:,} draws its A and B"
        " here. Of another version of torch?"
    )


def _likely_draws(key: int) -> Iterator[tuple[int, Init]]:
    """Seeds and distributions of projections to try, the likeliest first: peft draws from
    the key, and our earlier exports wrote their seed as the key."""
    for init in reversed(INITS):  # peft's is the last
        yield key, init
    for seed in range(TRIED_SEEDS):
        for init in INITS:
            if init != "peft":
                yield seed, init


def _draws_pair(spec: ProjectionSpec, vera_a: Tensor, vera_b: Tensor) -> bool:
    """Whether a specification draws this pair of matrices."""
    if spec.init != "peft":
        # The first row nearly always decides, and costs little for many seeds.
        first_row, _ = replace(spec, rank=1, outputs=1).make()
        if not equal_when_rounded(vera_a[:1], torch.from_numpy(first_row)):
            return False
    drawn_a, drawn_b = map(torch.from_numpy, spec.make())
    return equal_when_rounded(vera_a, drawn_a) and equal_when_rounded(vera_b, drawn_b)


def _sites_of(model: nn.Module, paths: list[str]) -> tuple[str, ...]:
    """The shortest sites that name the layers of these paths and no others: roles, or the
    last parts of the paths, or whole paths. Raises AdapterError where there are none."""
    names = list(dict.fromkeys(path.rpartition(".")[2] for path in paths))
    role_of_name: dict[str, str] = {}
    for role, aliases in ALIASES.items():
        role_of_name |= dict.fromkeys(aliases, role)
    roles = dict.fromkeys(role_of_name.get(name, name) for name in names)
    for sites in (tuple(roles), tuple(names), tuple(paths)):
        try:
            if sites and set(find_sites(model, sites)) == set(paths):
                return sites
        except AdapterError:
            continue
    head = head_prefixes(model)
    in_head = [path for path in paths if f"{path}.".startswith(head)]
    raise AdapterError(
        f"no sites here, head apart, are {', '.join(in_head or paths)}. Same base model?"
    )


# --- whether the configuration describes the weights: peft obeys the configuration


def _check_configuration(
    source: PeftFolder, model: nn.Module, method: Method, layout: PeftLayout
) -> None:
    """Raises AdapterError if the configuration describes another adapter than that of the
    weights: peft would load that one.

    An export of ours is compared in every key that changes answers. Of a folder that
    peft wrote only the adapted layers can be compared, since nothing but the
    configuration says the rest."""
    if source.settings is None:
        chooses_layers = any(source.config.get(key) for key in LAYER_CHOICE_KEYS)
        has_names = isinstance(source.config.get("target_modules"), list)
        if has_names and not chooses_layers:
            _check_targets(source, model, layout)
        return
    expected = layout.config | {"modules_to_save": head_modules(model)}
    for key in sorted(source.config.keys() | expected.keys()):
        if key in DESCRIPTIVE_KEYS:
            continue
        if key == "target_modules":
            _check_targets(source, model, layout)
        elif key == PROJECTION_KEY:
            _check_projection_key(source, method, layout)
        elif key == "modules_to_save":
            _check_saved_modules(source, model)
        else:
            default = PEFT_DEFAULTS.get(key)
            value = source.config.get(key, default)
            expected_value = expected.get(key, default)
            # False, 0 and an empty list say the same as a missing key
            both_empty = not value and not expected_value
            if not both_empty and value != expected_value:
                raise _edited_error(source, key)


def _edited_error(source: PeftFolder, key: str) -> AdapterError:
    """The error for a configuration that does not describe the folder's weights."""
    value = str(source.config.get(key))[:80]
    return AdapterError(
        f"{source.path}: {CONFIG} says {key}={value}, not its weights. Export it again"
    )


def _check_targets(source: PeftFolder, model: nn.Module, layout: PeftLayout) -> None:
    """Raises AdapterError unless target_modules names the layers of the weights, and no
    others outside the head. peft takes each name for the end of a path, and writes the
    shortest names that are enough."""
    names = source.config.get("target_modules")
    if not isinstance(names, list):
        raise _edited_error(source, "target_modules")
    paths = (path for path, _ in outside_head(model))
    if _paths_ending_in(paths, names) != set(layout.paths):
        raise _edited_error(source, "target_modules")


def _check_saved_modules(source: PeftFolder, model: nn.Module) -> None:
    """Raises AdapterError unless modules_to_save names the head and nothing else of the
    model. The modules that the names match are compared, and not the names: peft also
    writes those that classifiers of other models have, and some of them twice."""
    names = source.config.get("modules_to_save") or []
    if not isinstance(names, list):
        raise _edited_error(source, "modules_to_save")
    paths = [path for path, _ in model.named_modules()]
    if _paths_ending_in(paths, names) != _paths_ending_in(paths, head_modules(model)):
        raise _edited_error(source, "modules_to_save")


def _paths_ending_in(paths: Iterable[str], names: list[str]) -> set[str]:
    """The paths that are, or end in, one of the names."""
    ends = tuple(f".{name}" for name in names)
    return {path for path in paths if f".{path}".endswith(ends)}


def _check_projection_key(
    source: PeftFolder, method: Method, layout: PeftLayout
) -> None:
    """Raises AdapterError unless the folder's key is the hash of its own A and B, or our
    projection seed, which older exports wrote as the key."""
    vera_a = source.tensors.get(PAIR_A)
    vera_b = source.tensors.get(PAIR_B)
    if not isinstance(method, VeRA) or vera_a is None or vera_b is None:
        raise _edited_error(source, PROJECTION_KEY)
    key = projection_key(method, layout.slice_count, vera_a, vera_b)
    if source.config.get(PROJECTION_KEY) not in (key, method.projection_seed):
        raise _edited_error(source, PROJECTION_KEY)


# --- the tensors


def _expected_tensors(
    source: PeftFolder, trial: nn.Module, layout: PeftLayout
) -> dict[str, Tensor]:
    """The tensors that are read from the folder, by name: on the meta device, with shapes
    and no values. Optional ones are among them if the folder holds them: the head, and
    A and B of an adapter of peft's, which peft can draw from its key again."""
    head: dict[str, Tensor] = {}
    for name, parameter in head_parameters(trial).items():
        head[PREFIX + name] = parameter
    optional = set(head)
    if source.settings is None and not PAIR & source.tensors.keys():
        optional |= PAIR
    tensors = dict(head)
    for name, peft_tensor in layout.tensors.items():
        tensors[name] = peft_tensor.assemble()
    needed = {}
    for name, tensor in tensors.items():
        if name in source.tensors or name not in optional:
            needed[name] = tensor
    return needed


def _fill_adapter(source: PeftFolder, layout: PeftLayout) -> None:
    """Copies the folder's values into an adapted model. Raises AdapterError where peft's
    tensors hold other values than ours, once these are filled, would give: something
    outside the adapted slices, or another A and B."""
    for name, peft_tensor in layout.tensors.items():
        if name not in source.tensors:
            continue
        tensor = source.tensors[name]
        peft_tensor.fill_from(tensor)
        if not equal_when_rounded(tensor, peft_tensor.assemble().detach()):
            reason = "holds more than the slices that were adapted"
            if name in PAIR:
                reason = "differs from the one that its seed makes here"
            raise AdapterError(f"{source.path}: {name} {reason}")


def equal_when_rounded(theirs: Tensor, ours: Tensor) -> bool:
    """Whether two tensors are equal, or become so when ours is rounded to float32,
    bfloat16 or float16: over a base in half precision peft has rounded theirs."""
    values = theirs.cpu().double()
    for dtype in (ours.dtype, torch.float32, torch.bfloat16, torch.float16):
        if torch.equal(values, ours.cpu().to(dtype).double()):
            return True
    return False
