"""Where a method acts: the adapted matrices of a model, its blocks, and what counts as its head."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from torch import nn

from vera.errors import AdapterError

#: A site's name and the last part of the module names that it stands for, over the architectures known so
#: far.
ALIASES = {
    "query": ("query", "q_proj", "q_lin", "query_proj", "q"),
    "key": ("key", "k_proj", "k_lin", "key_proj", "k"),
    "value": ("value", "v_proj", "v_lin", "value_proj", "v"),
}
BLOCKS = ("query", "key", "value")
#: Layers that hold query, key and value as three equal blocks of outputs, in this order, and the attention
#: classes where that is known to be so: GPT-2 and its kin (by their Conv1D), timm's ViT and Swin, ModernBERT.
#: Others of the same names interleave the three by head.
FUSED = {
    "c_attn": ("transformers.GPT2Attention",),
    "qkv": ("timm.Attention", "timm.WindowAttention"),
    "Wqkv": ("transformers.ModernBertAttention",),
}
#: Fused in an order, or in sizes, that differ from model to model.
MIXED = ("query_key_value", "qkv_proj", "W_pack", "in_proj")
#: The second matrix of the feed-forward, by the end of its path; attention's own output ends alike in BERT
#: and its kin.
FEED_FORWARD_OUT = "feed_forward_out"
FEED_FORWARD_ENDS = (
    "output.dense",  # BERT, RoBERTa, ELECTRA, DeBERTa, MPNet
    "mlp.fc2",  # ViT, DINOv2, timm
    # GPT-2, Llama and its relatives, DistilBERT, ModernBERT
    *("mlp.c_proj", "mlp.down_proj", "ffn.lin2", "mlp.Wo"),
)
NORMS = "norms"
ALL_LINEAR = "all-linear"
WHOLE = "whole"

Blocks = dict[str, slice]


def find_sites(model: nn.Module, sites: tuple[str, ...]) -> dict[str, Blocks]:
    """The linear layers that `sites` name, by module path, in the model's own order, and which of their
    outputs.

    A site is a role ("query", "key", "value", "feed_forward_out"), the end of a module's path ("dense",
    "mlp.fc1"), or "all-linear": every linear layer but the head and the output embedding. A role in a fused
    layer is a block of its outputs ({"query": slice(0, 768), "value": slice(1536, 2304)}); any other site is
    {"whole": slice(0, out)}. Raises AdapterError, listing the model's real names, where a site matches no
    linear layer."""
    if not sites:
        raise AdapterError("sites names no matrix to adapt, such as [query,value]")
    head, output = tuple(head_prefixes(model)), getattr(model, "get_output_embeddings", lambda: None)()
    linears = {
        path: m
        for path, m in model.named_modules()
        if path and is_linear(m) and m is not output and not (head and f"{path}.".startswith(head))
    }
    fused = {path for path, layer in linears.items() if _is_fused(model, path, layer)}
    paths = [(id(m), path) for path, m in model.named_modules(remove_duplicate=False) if is_linear(m)]
    found: dict[str, Blocks] = {}
    for site in sites:
        matches = _matches(linears, site, fused)
        if not matches:
            raise AdapterError(_no_match(linears, site, fused))
        for path, block in matches.items():
            found.setdefault(path, {}).update(block)
    for path, blocks in found.items():
        if WHOLE in blocks and len(blocks) > 1:
            raise AdapterError(
                f"sites names {path} both whole and by its blocks {', '.join(blocks.keys() - {WHOLE})}"
            )
        twins = [other for layer, other in paths if layer == id(linears[path]) and other != path]
        if twins:
            raise AdapterError(
                f"{path} and {twins[0]} are one and the same layer: it cannot be adapted in one place alone"
            )
    return {
        path: dict(sorted(found[path].items(), key=lambda b: b[1].start)) for path in linears if path in found
    }


def _is_fused(model: nn.Module, path: str, layer: nn.Module) -> bool:
    parent, _, name = path.rpartition(".")
    inputs, outputs = size(layer)
    if name not in FUSED or outputs != 3 * inputs:
        return False
    attention = type(model.get_submodule(parent))
    kind = f"{attention.__module__.partition('.')[0]}.{attention.__name__}"
    return kind in FUSED[name] or (name == "c_attn" and is_transposed(layer))


def _matches(linears: dict[str, nn.Module], site: str, fused: set[str]) -> dict[str, Blocks]:
    matches: dict[str, Blocks] = {}
    for path, layer in linears.items():
        inputs, outputs = size(layer)
        name = path.rpartition(".")[2]
        if site in BLOCKS and path in fused:
            start = inputs * BLOCKS.index(site)
            matches[path] = {site: slice(start, start + inputs)}
        elif (
            site == ALL_LINEAR
            or name in ALIASES.get(site, ())
            or f".{path}".endswith(f".{site}")
            or (site == FEED_FORWARD_OUT and is_feed_forward_out(path))
        ):
            matches[path] = {WHOLE: slice(0, outputs)}
    return matches


def is_feed_forward_out(path: str) -> bool:
    """Whether a linear layer is the second matrix of a feed-forward, by its path."""
    return (
        f".{path}".endswith(tuple(f".{end}" for end in FEED_FORWARD_ENDS)) and "attention.output" not in path
    )


def find_norms(model: nn.Module) -> list[str]:
    """The paths of every LayerNorm and RMSNorm outside the head. Raises AdapterError where there is none."""
    head = tuple(head_prefixes(model))
    found = [
        path
        for path, m in model.named_modules()
        if (isinstance(m, nn.LayerNorm) or type(m).__name__.lower().endswith("rmsnorm"))
        and not (head and f"{path}.".startswith(head))
        and any(True for _ in m.parameters(recurse=False))
    ]
    if not found:
        raise AdapterError(f"a {type(model).__name__} has no LayerNorm and no RMSNorm")
    return found


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
    roles = BLOCKS if fused else ()
    return (
        f"no linear layer is a {site!r} site of this model. It has: {', '.join([*roles, *sorted(names)])},"
        " all-linear"
    )


#: Layers that read the input of the module they are in: those of an attention, and Llama's gated
#: feed-forward.
TOGETHER = (tuple(name for names in ALIASES.values() for name in names), ("gate_proj", "up_proj"))


def same_input(paths: Iterable[str]) -> Iterator[tuple[str, list[str]]]:
    """Splits paths of layers into groups that read the same input, each with the path of the module they are
    in."""
    groups: dict[tuple[str, int | str], list[str]] = {}
    for path in paths:
        parent, _, name = path.rpartition(".")
        kind: int | str = next((i for i, names in enumerate(TOGETHER) if name in names), name)
        groups.setdefault((parent, kind), []).append(path)
    for (parent, _), members in groups.items():
        yield parent, members


def is_linear(module: nn.Module) -> bool:
    """A linear layer: torch's (and its 4-bit form), or transformers' Conv1D, whose weight is stored
    transposed."""
    return isinstance(module, nn.Linear) or is_transposed(module)


def is_transposed(module: nn.Module) -> bool:
    """transformers' Conv1D (GPT-2): weight (in, out). By its name, since this library does without
    transformers."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def size(layer: nn.Module) -> tuple[int, int]:
    """Inputs and outputs of a linear layer."""
    if is_transposed(layer):
        return int(layer.nx), int(layer.nf)  # type: ignore[arg-type]
    return int(layer.in_features), int(layer.out_features)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Layout:
    """Where a transformer block ends its two sub-layers, and its last LayerNorm where that comes after the
    residual.

    Paths inside a block. The outputs of `attention` and `feed_forward` are what the block adds to its
    residual stream."""

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


def find_blocks(model: nn.Module) -> Iterator[tuple[nn.Module, Layout]]:
    """The transformer blocks of a model, first to last, each with its layout.

    Raises AdapterError for a model whose blocks are not of a known layout.
    """
    found = False
    for stack in model.modules():
        if not isinstance(stack, (nn.ModuleList, nn.Sequential)):
            continue
        for block in stack.children():
            inside = {path for path, _ in block.named_modules()}
            for layout in LAYOUTS:
                if {layout.attention, layout.feed_forward, layout.norm or layout.attention} <= inside:
                    found = True
                    yield block, layout
                    break
    if not found:
        raise AdapterError(
            f"the blocks of a {type(model).__name__} are not known here: adapters have no place"
            " (vera/sites.py)"
        )


def backbone_prefix(model: nn.Module) -> str:
    """The name of the pretrained part inside a transformers model ("roberta"); "" where there is none."""
    prefix = getattr(model, "base_model_prefix", "")
    return prefix if isinstance(prefix, str) and hasattr(model, prefix or " ") else ""


def head_prefixes(model: nn.Module) -> list[str]:
    """Prefixes of the parameter names that belong to the classification head.

    The head is everything outside the backbone, and BERT's pooler: it plays the part of the dense layer in
    RoBERTa's head. A timm model says itself which layer is its head. A language model's output layer is no
    head (it is pretrained), and a plain module has none."""
    backbone = backbone_prefix(model)
    output = getattr(model, "get_output_embeddings", lambda: None)()
    for path, module in model.named_modules():
        # Timm, also inside TimmWrapper
        if hasattr(module, "get_classifier") and hasattr(module, "pretrained_cfg"):
            classifier = module.get_classifier()
            return [f"{name}." for name, m in module.named_modules(prefix=path) if m is classifier]
    if (
        not backbone
        and output is None
        and hasattr(model, "config")
        and "classifier" in dict(model.named_children())
    ):
        return ["classifier."]  # CLIP and SigLIP, whose backbone's name is not their prefix
    if not backbone or output is not None:
        return []
    outside = [f"{name}." for name, _ in model.named_children() if name != backbone]
    return [*outside, f"{backbone}.pooler."]


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The head's parameters by name."""
    prefixes = tuple(head_prefixes(model))
    return {name: p for name, p in model.named_parameters() if name.startswith(prefixes)} if prefixes else {}
