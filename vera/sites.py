"""Where a method acts: the linear layers of a model, its transformer blocks, and its
classification head."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from vera.errors import AdapterError

#: For each role in an attention, the names that models give to its linear layer: the last
#: part of its path.
ALIASES = {
    "query": ("query", "q_proj", "q_lin", "query_proj", "q"),
    "key": ("key", "k_proj", "k_lin", "key_proj", "k"),
    "value": ("value", "v_proj", "v_lin", "value_proj", "v"),
}
QKV = ("query", "key", "value")
#: Fused layers, by name, and the attention classes in which their outputs are query, key
#: and value, in this order and of equal size: GPT-2 and its kin (by their Conv1D), timm's
#: ViT and Swin, ModernBERT. Other classes with the same layer names interleave the three
#: by head.
FUSED_LAYERS = {
    "c_attn": ("transformers.GPT2Attention",),
    "qkv": ("timm.Attention", "timm.WindowAttention"),
    "Wqkv": ("transformers.ModernBertAttention",),
}
#: Names of fused layers in which the order or the sizes of query, key and value differ
#: from model to model.
MIXED_LAYERS = ("query_key_value", "qkv_proj", "W_pack", "in_proj")
#: The site of the second matrix of a feed-forward, and how the paths of such layers end.
FEED_FORWARD_OUT = "feed_forward_out"
FEED_FORWARD_ENDS = (
    "output.dense",  # BERT, RoBERTa, ELECTRA, DeBERTa, MPNet
    "mlp.fc2",  # ViT, DINOv2, timm
    "mlp.c_proj",  # GPT-2
    "mlp.down_proj",  # Llama and its relatives
    "ffn.lin2",  # DistilBERT
    "mlp.Wo",  # ModernBERT
)
#: Layers of one module that read the same input: those of an attention, and Llama's
#: gated feed-forward.
LAYERS_OF_ONE_INPUT = (
    tuple(name for names in ALIASES.values() for name in names),
    ("gate_proj", "up_proj"),
)
#: The site that names every linear layer.
ALL_LINEAR = "all-linear"
#: The name of the slice that is all of a layer's outputs.
WHOLE = "whole"

#: The adapted slices of a layer's outputs, by name.
OutputSlices = dict[str, slice]


def find_sites(model: nn.Module, sites: tuple[str, ...]) -> dict[str, OutputSlices]:
    """Finds the linear layers that sites name.

    A site is a role ("query", "key", "value", "feed_forward_out"), the end of a
    module's path ("dense", "mlp.fc1"), or "all-linear": every linear layer but the head
    and the output embedding.

    Args:
        model: A base model.
        sites: The sites.

    Returns:
        The slices of each layer, by its path in the model's order. A role in a fused
        layer is a slice of its outputs ({"query": slice(0, 768), "value": slice(1536,
        2304)}); any other site is {"whole": slice(0, outputs)}.

    Raises:
        AdapterError: A site matches no linear layer; the model's own names are listed.
            Or a layer is named twice, or is in two places of the model.
    """
    if not sites:
        raise AdapterError("sites names no matrix to adapt, such as [query,value]")
    linears = _adaptable_layers(model)
    fused = {path for path, layer in linears.items() if _is_fused(model, path, layer)}
    targets: dict[str, OutputSlices] = {}
    for site in sites:
        matches = _matches(linears, site, fused)
        if not matches:
            raise AdapterError(_no_match_message(linears, site, fused))
        for path, slices in matches.items():
            targets.setdefault(path, {}).update(slices)
    for path, slices in targets.items():
        if WHOLE in slices and len(slices) > 1:
            roles = ", ".join(slices.keys() - {WHOLE})
            raise AdapterError(
                f"sites names {path} both whole and by its parts {roles}"
            )
    _refuse_shared_layers(model, {linears[path]: path for path in targets})
    sorted_targets: dict[str, OutputSlices] = {}
    for path in linears:
        if path in targets:
            named_slices = targets[path].items()
            by_start = sorted(named_slices, key=lambda item: item[1].start)
            sorted_targets[path] = dict(by_start)
    return sorted_targets


def _adaptable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers but those of the head and the output embedding, by path."""
    output = _output_embedding(model)
    layers = {}
    for path, module in outside_head(model):
        # The path "" is the model itself
        if path and is_linear(module) and module is not output:
            layers[path] = module
    return layers


def _refuse_shared_layers(model: nn.Module, targets: dict[nn.Module, str]) -> None:
    """Raises AdapterError for a layer that is in two places of the model.

    targets: the path of each layer that is to be adapted."""
    for path, module in model.named_modules(remove_duplicate=False):
        first_path = targets.get(module, path)
        if first_path != path:
            raise AdapterError(
                f"{first_path} and {path} are one and the same layer: not adapted"
            )


def _is_fused(model: nn.Module, path: str, layer: nn.Module) -> bool:
    """Whether a layer's outputs are query, key and value, in three equal slices."""
    parent, _, name = path.rpartition(".")
    inputs, outputs = layer_widths(layer)
    if name not in FUSED_LAYERS or outputs != 3 * inputs:
        return False
    attention = type(model.get_submodule(parent))
    library = attention.__module__.partition(".")[0]
    if f"{library}.{attention.__name__}" in FUSED_LAYERS[name]:
        return True
    # GPT-2's kin, whichever class their attention is
    return name == "c_attn" and is_transposed(layer)


def _matches(
    linears: dict[str, nn.Module], site: str, fused: set[str]
) -> dict[str, OutputSlices]:
    """The layers that one site names, by path, with the slice of each.

    linears: the layers to choose from, by path. fused: the paths of those whose outputs
    are query, key and value."""
    matches: dict[str, OutputSlices] = {}
    for path, layer in linears.items():
        inputs, outputs = layer_widths(layer)
        if site in QKV and path in fused:
            start = inputs * QKV.index(site)
            matches[path] = {site: slice(start, start + inputs)}
        elif _names_layer(site, path):
            matches[path] = {WHOLE: slice(0, outputs)}
    return matches


def _names_layer(site: str, path: str) -> bool:
    """Whether a site names the whole layer of a path."""
    if site == ALL_LINEAR or f".{path}".endswith(f".{site}"):
        return True
    if site == FEED_FORWARD_OUT:
        return is_feed_forward_out(path)
    return path.rpartition(".")[2] in ALIASES.get(site, ())


def _no_match_message(linears: dict[str, nn.Module], site: str, fused: set[str]) -> str:
    """The error message for a site that matches nothing: why, and what the model has
    instead. The arguments are those of `_matches`."""
    names = {path.rpartition(".")[2] for path in linears}
    if not names:
        return "this model has no linear layer inside that could be adapted"
    mixed = sorted(names & {*MIXED_LAYERS, *FUSED_LAYERS})
    if site in QKV and mixed:
        return (
            f"this model's {site} is a part of {mixed[0]}, in an order that is not known here. "
            f"Its whole matrix can be adapted: sites=[{mixed[0]}]"
        )
    options = [*sorted(names), ALL_LINEAR]
    if fused:
        options = [*QKV, *options]
    return f"no linear layer is a {site!r} site of this model. It has: {', '.join(options)}"


def is_feed_forward_out(path: str) -> bool:
    """Whether the linear layer of this path is the second matrix of a feed-forward."""
    if "attention.output" in path:
        return False  # in BERT and its kin, the output of attention has the same end
    ends = tuple(f".{end}" for end in FEED_FORWARD_ENDS)
    return f".{path}".endswith(ends)


def group_by_input(paths: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Splits paths of layers into groups that read the same input.

    Args:
        paths: Paths of linear layers.

    Returns:
        For each group the path of the module that holds its layers, and their paths.
    """
    groups: dict[tuple[str, int | str], list[str]] = {}
    for path in paths:
        parent, _, name = path.rpartition(".")
        # Layers in one row of the table share its number; any other is a group by itself
        group: int | str = name
        for number, names in enumerate(LAYERS_OF_ONE_INPUT):
            if name in names:
                group = number
        groups.setdefault((parent, group), []).append(path)
    return [(parent, members) for (parent, _), members in groups.items()]


def is_linear(module: nn.Module) -> bool:
    """Whether this is a linear layer: torch's (and its 4-bit form), or transformers'
    Conv1D."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Whether this is transformers' Conv1D (GPT-2), whose weight is stored as (inputs,
    outputs). By the class's name: this library does not need transformers."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def layer_widths(layer: Any) -> tuple[int, int]:
    """The inputs and the outputs of a linear layer."""
    if is_transposed(layer):
        return layer.nx, layer.nf
    return layer.in_features, layer.out_features


@dataclass(frozen=True)
class Layout:
    """The submodules of a transformer block, by their paths in it.

    The outputs of `attention` and `feed_forward` are what the block adds to its
    residual stream. norm: its last LayerNorm, where that comes after the residual sum;
    None where it comes before."""

    attention: str
    feed_forward: str
    norm: str | None = None


LAYOUTS = (
    # BERT, RoBERTa, ELECTRA, DeBERTa
    Layout("attention.output.dropout", "output.dropout", "output.LayerNorm"),
    Layout("attention.dropout", "output.dropout", "output.LayerNorm"),  # MPNet
    Layout("attention", "ffn", "output_layer_norm"),  # DistilBERT
    Layout("attn", "mlp"),  # GPT-2, timm's ViT
    Layout("self_attn", "mlp"),  # Llama and its relatives
    Layout("layer_scale1", "layer_scale2"),  # DINOv2, which scales what it adds
    Layout("attention", "mlp"),  # transformers' ViT
)


def find_transformer_blocks(model: nn.Module) -> list[tuple[nn.Module, Layout]]:
    """The transformer blocks of a model, first to last, each with its layout.

    Raises:
        AdapterError: The model's blocks have no known layout.
    """
    blocks = []
    for stack in model.modules():
        if isinstance(stack, nn.ModuleList | nn.Sequential):
            for block in stack.children():
                layout = _layout_of_block(block)
                if layout is not None:
                    blocks.append((block, layout))
    if not blocks:
        raise AdapterError(
            f"the blocks of a {type(model).__name__} are not known here: no adapters fit"
        )
    return blocks


def _layout_of_block(block: nn.Module) -> Layout | None:
    """The first layout whose submodules a block has; None where it has those of none."""
    paths = {path for path, _ in block.named_modules()}
    for layout in LAYOUTS:
        needed_paths = {layout.attention, layout.feed_forward}
        if layout.norm is not None:
            needed_paths.add(layout.norm)
        if needed_paths <= paths:
            return layout
    return None


def backbone_prefix(model: nn.Module) -> str:
    """The name of the pretrained part inside a transformers model ("roberta"); "" where
    there is none."""
    prefix = getattr(model, "base_model_prefix", "")
    if isinstance(prefix, str) and prefix and hasattr(model, prefix):
        return prefix
    return ""


def _output_embedding(model: nn.Module) -> nn.Module | None:
    """A language model's output layer; None of another model."""
    return getattr(model, "get_output_embeddings", lambda: None)()


def find_norms(model: nn.Module) -> list[str]:
    """The paths of every LayerNorm and RMSNorm outside the head.

    Raises:
        AdapterError: There is none.
    """
    norms = []
    for path, module in outside_head(model):
        has_parameters = next(module.parameters(recurse=False), None) is not None
        if has_parameters and _is_norm(module):
            norms.append(path)
    if not norms:
        raise AdapterError(f"a {type(model).__name__} has no LayerNorm and no RMSNorm")
    return norms


def _is_norm(module: nn.Module) -> bool:
    """Whether this is a LayerNorm or an RMSNorm, of which most models have a class of
    their own."""
    is_rms_norm = type(module).__name__.lower().endswith("rmsnorm")
    return is_rms_norm or isinstance(module, nn.LayerNorm)


def head_prefixes(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of the parameter names that belong to the classification head, for
    str.startswith.

    The head is everything outside the backbone, and BERT's pooler: it plays the part of
    the dense layer in RoBERTa's head. A timm model names the layers that are its head.
    A language model's output layer is no head (it is pretrained), and a plain module
    has none."""
    for path, module in model.named_modules():
        # Timm, also inside TimmWrapper
        if hasattr(module, "get_classifier") and hasattr(module, "pretrained_cfg"):
            return _prefixes_of_timm(path, module)
    if _output_embedding(model) is not None:
        return ()
    children = [name for name, _ in model.named_children()]
    backbone = backbone_prefix(model)
    if backbone:
        outside = [f"{name}." for name in children if name != backbone]
        return (*outside, f"{backbone}.pooler.")
    # CLIP and SigLIP, whose backbone's name is not their prefix
    if hasattr(model, "config") and "classifier" in children:
        return ("classifier.",)
    return ()


def _prefixes_of_timm(path: str, module: Any) -> tuple[str, ...]:
    """The prefixes of the parameter names of a timm model's heads.

    module: the timm model. path: its path in the whole model."""
    heads = module.get_classifier()
    if not isinstance(heads, tuple):  # a distilled model has a tuple of two heads
        heads = (heads,)
    submodules = module.named_modules(prefix=path)
    return tuple(f"{name}." for name, submodule in submodules if submodule in heads)


def outside_head(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that are no part of the head, each with its path."""
    prefixes = head_prefixes(model)
    modules = []
    for path, module in model.named_modules():
        if not f"{path}.".startswith(prefixes):
            modules.append((path, module))
    return modules


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The head's parameters by name."""
    prefixes = head_prefixes(model)
    named = model.named_parameters()
    return {name: p for name, p in named if name.startswith(prefixes)}
