"""Where a method acts: the linear layers of a model, its transformer blocks, and its
classification head."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from vera.errors import AdapterError

#: The roles of an attention's inputs, and the last part of the names of the modules
#: that have each of them.
ALIASES = {
    "query": ("query", "q_proj", "q_lin", "query_proj", "q"),
    "key": ("key", "k_proj", "k_lin", "key_proj", "k"),
    "value": ("value", "v_proj", "v_lin", "value_proj", "v"),
}
BLOCKS = ("query", "key", "value")
#: Fused layers, by name, and the attention classes in which query, key and value are
#: three equal blocks of their outputs, in this order: GPT-2 and its kin (by their
#: Conv1D), timm's ViT and Swin, ModernBERT. Other classes with the same layer names
#: interleave the three by head.
FUSED = {
    "c_attn": ("transformers.GPT2Attention",),
    "qkv": ("timm.Attention", "timm.WindowAttention"),
    "Wqkv": ("transformers.ModernBertAttention",),
}
#: Fused layers whose order or sizes differ from model to model.
MIXED = ("query_key_value", "qkv_proj", "W_pack", "in_proj")
#: The second matrix of the feed-forward, by the end of its path.
FEED_FORWARD_OUT = "feed_forward_out"
FEED_FORWARD_ENDS = (
    "output.dense",  # BERT, RoBERTa, ELECTRA, DeBERTa, MPNet
    "mlp.fc2",  # ViT, DINOv2, timm
    # GPT-2, Llama and its relatives, DistilBERT, ModernBERT
    *("mlp.c_proj", "mlp.down_proj", "ffn.lin2", "mlp.Wo"),
)
#: Layers of one module that read the same input: those of an attention, and Llama's
#: gated feed-forward.
SAME_INPUT = (
    tuple(name for names in ALIASES.values() for name in names),
    ("gate_proj", "up_proj"),
)
ALL_LINEAR = "all-linear"
WHOLE = "whole"

#: The adapted blocks of a layer's outputs, by name.
Blocks = dict[str, slice]


def find_sites(model: nn.Module, sites: tuple[str, ...]) -> dict[str, Blocks]:
    """The linear layers that `sites` name, by module path in the model's order, with
    the blocks of each.

    A site is a role ("query", "key", "value", "feed_forward_out"), the end of a
    module's path ("dense", "mlp.fc1"), or "all-linear": every linear layer but the head
    and the output embedding. A role in a fused layer is a block of its outputs
    ({"query": slice(0, 768), "value": slice(1536, 2304)}); any other site is {"whole":
    slice(0, out)}. Raises AdapterError, listing the model's own names, where a site
    matches no linear layer."""
    if not sites:
        raise AdapterError("sites names no matrix to adapt, such as [query,value]")
    output = _output_embedding(model)
    linears = {
        path: m
        for path, m in outside_head(model)
        if path and is_linear(m) and m is not output
    }
    fused = {path for path, layer in linears.items() if _is_fused(model, path, layer)}
    targets: dict[str, Blocks] = {}
    for site in sites:
        matches = _matches(linears, site, fused)
        if not matches:
            raise AdapterError(_no_match(linears, site, fused))
        for path, block in matches.items():
            targets.setdefault(path, {}).update(block)
    for path, blocks in targets.items():
        if WHOLE in blocks and len(blocks) > 1:
            parts = ", ".join(blocks.keys() - {WHOLE})
            raise AdapterError(
                f"sites names {path} both whole and by its blocks {parts}"
            )
    first = {linears[path]: path for path in targets}
    for path, m in model.named_modules(remove_duplicate=False):
        if first.get(m, path) != path:
            raise AdapterError(
                f"{first[m]} and {path} are one and the same layer: not adapted"
            )
    ordered = {
        path: sorted(blocks.items(), key=lambda b: b[1].start)
        for path, blocks in targets.items()
    }
    return {path: dict(ordered[path]) for path in linears if path in ordered}


def _is_fused(model: nn.Module, path: str, layer: nn.Module) -> bool:
    parent, _, name = path.rpartition(".")
    inputs, outputs = size(layer)
    if name not in FUSED or outputs != 3 * inputs:
        return False
    attention = type(model.get_submodule(parent))
    kind = f"{attention.__module__.partition('.')[0]}.{attention.__name__}"
    return kind in FUSED[name] or (name == "c_attn" and is_transposed(layer))


def _matches(
    linears: dict[str, nn.Module], site: str, fused: set[str]
) -> dict[str, Blocks]:
    """The layers that one site names, with the block of each."""
    matches: dict[str, Blocks] = {}
    for path, layer in linears.items():
        inputs, outputs = size(layer)
        if site in BLOCKS and path in fused:
            start = inputs * BLOCKS.index(site)
            matches[path] = {site: slice(start, start + inputs)}
        elif (
            site == ALL_LINEAR
            or path.rpartition(".")[2] in ALIASES.get(site, ())
            or f".{path}".endswith(f".{site}")
            or (site == FEED_FORWARD_OUT and is_feed_forward_out(path))
        ):
            matches[path] = {WHOLE: slice(0, outputs)}
    return matches


def _no_match(linears: dict[str, nn.Module], site: str, fused: set[str]) -> str:
    names = {path.rpartition(".")[2] for path in linears}
    mixed = sorted(names & {*MIXED, *FUSED})
    if site in BLOCKS and mixed:
        return (
            f"this model's {site} is a part of {mixed[0]}, in an order that is not known here. "
            f"Its whole matrix can be adapted: sites=[{mixed[0]}]"
        )
    if not names:
        return "this model has no linear layer inside that could be adapted"
    options = ", ".join([*(BLOCKS if fused else ()), *sorted(names), ALL_LINEAR])
    return f"no linear layer is a {site!r} site of this model. It has: {options}"


def is_feed_forward_out(path: str) -> bool:
    """Whether the linear layer of this path is the second matrix of a feed-forward."""
    # In BERT and its kin, attention's own output has the same end
    return (
        f".{path}".endswith(tuple(f".{e}" for e in FEED_FORWARD_ENDS))
        and "attention.output" not in path
    )


def same_input(paths: Iterable[str]) -> list[tuple[str, list[str]]]:
    """Splits paths of layers into groups that read the same input, each with the path
    of their module."""
    groups: dict[tuple[str, int | str], list[str]] = {}
    for path in paths:
        parent, _, name = path.rpartition(".")
        kind: int | str = next(
            (i for i, names in enumerate(SAME_INPUT) if name in names), name
        )
        groups.setdefault((parent, kind), []).append(path)
    return [(parent, members) for (parent, _), members in groups.items()]


def is_linear(module: nn.Module) -> bool:
    """Whether this is a linear layer: torch's (and its 4-bit form), or transformers'
    Conv1D."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """Whether this is transformers' Conv1D (GPT-2), whose weight is stored as (in,
    out). By the class's name: this library does not need transformers."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def size(layer: Any) -> tuple[int, int]:
    """Inputs and outputs of a linear layer."""
    return (
        (layer.nx, layer.nf)
        if is_transposed(layer)
        else (layer.in_features, layer.out_features)
    )


@dataclass(frozen=True)
class Layout:
    """The submodules of a transformer block, by their paths in it.

    The outputs of `attention` and `feed_forward` are what the block adds to its
    residual stream. norm: its last LayerNorm, where that comes after the residual."""

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


def find_blocks(model: nn.Module) -> list[tuple[nn.Module, Layout]]:
    """The transformer blocks of a model, first to last, each with its layout.

    Raises AdapterError for a model whose blocks have no known layout.
    """
    stacks = [
        m for m in model.modules() if isinstance(m, nn.ModuleList | nn.Sequential)
    ]
    blocks = []
    for block in [block for stack in stacks for block in stack.children()]:
        inside = {path for path, _ in block.named_modules()}
        fits = [
            x
            for x in LAYOUTS
            if {x.attention, x.feed_forward, x.norm or x.attention} <= inside
        ]
        blocks += [(block, layout) for layout in fits[:1]]
    if not blocks:
        raise AdapterError(
            f"the blocks of a {type(model).__name__} are not known here: no adapters fit"
        )
    return blocks


def backbone_prefix(model: nn.Module) -> str:
    """The name of the pretrained part inside a transformers model ("roberta"); "" where
    there is none."""
    prefix = getattr(model, "base_model_prefix", "")
    return prefix if isinstance(prefix, str) and hasattr(model, prefix or " ") else ""


def _output_embedding(model: nn.Module) -> nn.Module | None:
    """A language model's output layer."""
    return getattr(model, "get_output_embeddings", lambda: None)()


def find_norms(model: nn.Module) -> list[str]:
    """The paths of every LayerNorm and RMSNorm outside the head. Raises AdapterError
    where there is none."""
    norms = [
        path
        for path, m in outside_head(model)
        if (isinstance(m, nn.LayerNorm) or type(m).__name__.lower().endswith("rmsnorm"))
        and any(True for _ in m.parameters(recurse=False))
    ]
    if not norms:
        raise AdapterError(f"a {type(model).__name__} has no LayerNorm and no RMSNorm")
    return norms


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
            heads = module.get_classifier()
            # a distilled model has two
            heads = heads if isinstance(heads, tuple) else (heads,)
            named = module.named_modules(prefix=path)
            return tuple(
                f"{name}." for name, m in named if any(m is head for head in heads)
            )
    if _output_embedding(model) is not None:
        return ()
    if backbone := backbone_prefix(model):
        outside = [f"{name}." for name, _ in model.named_children() if name != backbone]
        return (*outside, f"{backbone}.pooler.")
    # CLIP and SigLIP, whose backbone's name is not their prefix
    has_classifier = hasattr(model, "config") and "classifier" in dict(
        model.named_children()
    )
    return ("classifier.",) if has_classifier else ()


def outside_head(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules that are no part of the head, by path."""
    head = head_prefixes(model)
    return [
        (path, m)
        for path, m in model.named_modules()
        if not f"{path}.".startswith(head)
    ]


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The head's parameters by name."""
    prefixes = head_prefixes(model)
    return {
        name: p for name, p in model.named_parameters() if name.startswith(prefixes)
    }
