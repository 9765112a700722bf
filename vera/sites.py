"""Where a method acts: the adapted matrices of a model, and what counts as its head."""

from torch import nn

from vera.errors import AdapterError

#: A site's name and the last part of the module names that it stands for, over the architectures known so far.
ALIASES = {
    "query": ("query", "q_proj", "q_lin", "query_proj", "q"),
    "key": ("key", "k_proj", "k_lin", "key_proj", "k"),
    "value": ("value", "v_proj", "v_lin", "value_proj", "v"),
}


def find_sites(model: nn.Module, sites: tuple[str, ...]) -> dict[str, nn.Linear]:
    """The linear layers that `sites` name, by module path, in the model's own order.

    A site is a role ("query", "key", "value") or the last part of a module's name ("dense").
    Raises AdapterError, listing the model's real names, where a site matches no linear layer.
    """
    if not sites:
        raise AdapterError("sites names no matrix to adapt, such as [query,value]")
    linears = {path: m for path, m in model.named_modules() if isinstance(m, nn.Linear)}
    head = tuple(head_prefixes(model))
    found: dict[str, nn.Linear] = {}
    for site in sites:
        names = ALIASES.get(site, (site,))
        matches = {p: m for p, m in linears.items() if p.rpartition(".")[2] in names and not p.startswith(head)}
        if not matches:
            known = sorted({p.rpartition(".")[2] for p in linears if not p.startswith(head)})
            raise AdapterError(f"no linear layer is a {site!r} site of this model. Its linear layers: {', '.join(known)}")
        found |= matches
    return {path: found[path] for path in linears if path in found}


def backbone_prefix(model: nn.Module) -> str:
    """The name of the pretrained part inside a transformers model ("roberta"); "" where there is none."""
    prefix = getattr(model, "base_model_prefix", "")
    return prefix if isinstance(prefix, str) and hasattr(model, prefix or " ") else ""


def head_prefixes(model: nn.Module) -> list[str]:
    """Prefixes of the parameter names that belong to the classification head.

    The head is everything outside the backbone, and BERT's pooler: it plays the part of the dense layer in RoBERTa's
    head. A language model's output layer is no head (it is pretrained), and a plain module has none.
    """
    backbone = backbone_prefix(model)
    output = getattr(model, "get_output_embeddings", lambda: None)()
    if not backbone or output is not None:
        return []
    outside = [f"{name}." for name, _ in model.named_children() if name != backbone]
    return [*outside, f"{backbone}.pooler."]


def head_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """The head's parameters by name."""
    prefixes = tuple(head_prefixes(model))
    return {name: p for name, p in model.named_parameters() if name.startswith(prefixes)} if prefixes else {}
