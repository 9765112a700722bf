"""Finds out what each method can do on each architecture, by doing it. Writes
docs/methods.md: make methods

tests/vera/test_support.py does the same and compares the results with the page, so that the
page stays true. These pairs are tried there and nowhere else."""

import contextlib
import copy
import functools
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import peft
import torch
from tiny import ARCHITECTURES, answer, dequantised, quantise, shake, tiny
from torch import nn
from transformers import RobertaConfig, RobertaForSequenceClassification

import vera
from vera.adapter_file import file_tensors
from vera.head_file import fill
from vera.methods.peft_settings import DEFAULT_SITES
from vera.sites import head_parameters

# --- every class of the installed peft

#: By architecture, the layer that computes query, key and value together, if there is one.
FUSED = {"GPT-2": "c_attn", "ViT of timm": "qkv", "ViT of timm in transformers": "qkv"}
#: By architecture, the layer that embeds tokens, if there is one.
EMBEDDINGS = {
    "BERT": "word_embeddings",
    "RoBERTa": "word_embeddings",
    "GPT-2": "wte",
    "Llama": "embed_tokens",
}
#: Settings that a class needs to fit matrices of 32 x 32.
SMALL = {
    "C3AConfig": {"block_size": 8},
    "FourierFTConfig": {"n_frequency": 50},
    "MissConfig": {"r": 4},
    "PsoftConfig": {"r": 8},
    "RoadConfig": {"group_size": 16},
    "ShiraConfig": {"r": 4},
    "VBLoRAConfig": {"vector_length": 16, "num_vectors": 8, "r": 2},
    "WaveFTConfig": {"n_frequency": 64},
}


def classes() -> list[str]:
    """The names of all of peft's configuration classes, also of those that vera refuses."""
    names = {c.__name__ for c in peft.PEFT_TYPE_TO_CONFIG_MAPPING.values()}
    return sorted(names, key=str.lower)


def sites_on(name: str, architecture: str) -> tuple[str, ...]:
    """The sites of a class on an architecture: its default ones, where a fused projection
    stands for query, key and value, since peft cannot adapt a part of it."""
    fused = FUSED.get(architecture)
    sites = []
    for site in DEFAULT_SITES.get(name, DEFAULT_SITES["others"]):
        is_fused = fused and site in ("query", "key", "value")
        sites.append(fused if is_fused else site)
    return tuple(dict.fromkeys(sites))


def peft_method(name: str, **config) -> Callable[[str], vera.Method]:
    """A function that makes a method of peft's for an architecture. name: of the
    configuration class. config: its settings."""
    return lambda architecture: vera.Peft(name, config, sites_on(name, architecture))


def default_method(name: str) -> Callable[[str], vera.Method]:
    """As `peft_method`, with the class's defaults as far as they fit a tiny model."""
    if name != "TrainableTokensConfig":
        return peft_method(name, **SMALL.get(name, {}))

    def two_tokens(architecture: str) -> vera.Method:
        """TrainableTokens needs to be told which tokens train, and in which layer."""
        config: dict[str, Any] = {"token_indices": [3, 4]}
        if architecture in EMBEDDINGS:
            config["target_modules"] = [EMBEDDINGS[architecture]]
        return vera.Peft(name, config)

    return two_tokens


@functools.cache
def roberta_base() -> nn.Module:
    """A model with RoBERTa-base's layers and random values. Its vocabulary has only 64
    words, since of all classes only TrainableTokens looks at the embeddings."""
    torch.manual_seed(0)
    sizes = {"max_position_embeddings": 514, "vocab_size": 64, "type_vocab_size": 1}
    return RobertaForSequenceClassification(RobertaConfig(**sizes))


def class_facts(name: str) -> list[str]:
    """The columns of docs/methods.md for a class at its defaults on RoBERTa-base: its sites,
    how many parameters train without the head, the bytes of the adapter file, and the names
    of the frozen tensors that the file lacks, since peft draws them again. Raises
    AdapterError for a class that is refused."""
    method = vera.Peft(name)
    if name == "TrainableTokensConfig":
        method = default_method(name)("RoBERTa")
    model = roberta_base()
    torch.manual_seed(0)
    method.adapt(model)
    with tempfile.TemporaryDirectory() as folder:
        vera.save(model, method, f"{folder}/adapter")
        size = os.path.getsize(f"{folder}/adapter")
    redrawn_names = {*method.redrawn(model), *model._peft.hidden}
    count = method.count(model)
    try:
        vera.unload(model)
    except vera.AdapterError:  # such as OSF, which changes the base weights
        roberta_base.cache_clear()
    # vera_A for ...query.vera_A.default: the layers' names would be too many
    last_parts = {
        re.sub(r"\.default\b", "", redrawn).split(".")[-1] for redrawn in redrawn_names
    }
    sites = ", ".join(DEFAULT_SITES.get(name, DEFAULT_SITES["others"]))
    return [
        sites or "named in config",
        f"{count:,}",
        f"{size:,}",
        ", ".join(sorted(last_parts)) or "nothing",
    ]


# --- every method

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
#: By its name on the page, a function that makes a method for an architecture.
METHODS: dict[str, Callable[[str], vera.Method]] = {
    "none": lambda a: vera.NoMethod(),
    "full": lambda a: vera.Full(),
    "head": lambda a: vera.Head(),
    "BitFit": lambda a: vera.BitFit(),
    "Adapter H": lambda a: vera.Adapter(4, "houlsby", "gelu"),
    "Adapter P": lambda a: vera.Adapter(4),
    "Adapter L": lambda a: vera.Adapter(4, "lin"),
    "AdapterDrop": lambda a: vera.Adapter(4, drop_per_batch=True),
    "LoRA": lambda a: vera.LoRA(rank=4),
    "LoRA-FA": lambda a: vera.LoRA(rank=4, freeze_a=True),
    "VeRA": lambda a: vera.VeRA(rank=12),
    "VeRA, all linear layers": lambda a: vera.VeRA(rank=12, sites=("all-linear",)),
    "VeRA, only b": lambda a: vera.VeRA(rank=12, vectors=("b",)),
    "VeRA, only d": lambda a: vera.VeRA(rank=12, vectors=("d",), d_init=0.0),
    "VeRA, b shared by layers": lambda a: vera.VeRA(rank=12, shared_b=True),
    "VeRA, unique A and B": lambda a: vera.VeRA(rank=12, projections="unique"),
    "VeRA+": lambda a: vera.VeRAPlus(rank=12),
    "LoRA-XS": lambda a: vera.LoRAXS(rank=4),
    "LoRA-XS, stored": lambda a: vera.LoRAXS(rank=4, store=True),
    "Tied-LoRA": lambda a: vera.TiedLoRA(rank=4),
    "NoLA": lambda a: vera.NoLA(rank=4, bases=6),
    "DyLoRA": lambda a: vera.DyLoRA(rank=4),
    "AdaLoRA": lambda a: vera.AdaLoRA(rank=2, init_rank=4),
    "SSF": lambda a: vera.SSF(),
    "DoRA (peft)": peft_method("LoraConfig", use_dora=True, r=4),
}


#: Kinds that train weights of the model's own, which cannot be switched off.
IN_PLACE = {"none", "full", "head", "bitfit"}


def adapt_and_shake(
    model: nn.Module, method: vera.Method, size: float = 0.3
) -> nn.Module:
    """Adapts a model, and moves all that trains away from its start. Returns the model."""
    method.adapt(model)
    shake(model, size)
    return model


def write_adapter(
    base: nn.Module, method: vera.Method, folder: Path, seed=2, size=0.3, labels=None
):
    """Makes a copy of a model with an adapter and a head, both moved away from their start,
    and saves them in a folder. Returns the copy and the paths of the adapter and the head.

    labels: the names of the classes, for the head's file."""
    model = copy.deepcopy(base)
    method.adapt(model)
    shake(model, size, seed)
    folder.mkdir(exist_ok=True)
    paths = folder / "adapter.safetensors", folder / "head.safetensors"
    vera.save(model, method, paths[0])
    vera.save_head(model, paths[1], labels)
    return model.eval(), *paths


def modules(model: nn.Module) -> list[tuple[str, type, int, int]]:
    """For each module of a model its name, its type, and how many forward hooks and forward
    pre-hooks it has."""
    described = []
    for name, module in model.named_modules():
        hooks = len(module._forward_hooks)
        pre_hooks = len(module._forward_pre_hooks)
        described.append((name, type(module), hooks, pre_hooks))
    return described


def state(model: nn.Module) -> tuple[Any, dict[str, tuple[torch.Tensor, bool]]]:
    """What `refused_unchanged` compares: a model's modules, and by name the value of each
    parameter and whether it trains."""
    parameters = {
        name: (p.detach().clone(), p.requires_grad)
        for name, p in model.named_parameters()
    }
    return modules(model), parameters


@contextlib.contextmanager
def refused_unchanged(named: str, *models: nn.Module) -> Iterator[None]:
    """Asserts that the with block raises an AdapterError of one line that the pattern `named`
    matches, and that it leaves the models as they were."""
    states_before = [state(model) for model in models]
    message = None
    try:
        yield
    except vera.AdapterError as error:
        message = str(error)
    assert message is not None, f"is not refused: {named}"
    assert re.search(named, message), message
    assert "\n" not in message
    for model, (modules_before, parameters_before) in zip(
        models, states_before, strict=True
    ):
        modules_after, parameters_after = state(model)
        assert modules_before == modules_after
        assert parameters_before.keys() == parameters_after.keys()
        for name, (value, trains) in parameters_before.items():
            value_after, trains_after = parameters_after[name]
            assert torch.equal(value_after, value)
            assert trains_after is trains


def adapted(
    architecture: str, method: vera.Method, four_bit: bool = False
) -> nn.Module:
    """A tiny model with an adapter that is moved away from its start, ready to train.
    four_bit: whether the base weights are quantised."""
    base = tiny(architecture)
    if four_bit:
        base = quantise(base)
    model = adapt_and_shake(base, method)
    method.before_training(model, 10)
    return model


def tolerance_for(model: nn.Module, method: vera.Method) -> float:
    """How far an answer may be from the model's to count as the same: a thousandth of what
    the adapter changes in it. Asserts that this change is itself above a thousandth, since
    otherwise the comparison would show nothing."""
    if method.kind in IN_PLACE:
        return 1e-6
    expected = answer(model)
    vera.disable(model)
    effect = float((answer(model) - expected).detach().abs().max())
    vera.disable(model, False)
    assert torch.equal(answer(model), expected), (
        "switched off and on, it answers otherwise"
    )
    assert effect > 1e-3, f"the adapter changes the answer by {effect} only"
    return effect / 1000


def train(model: nn.Module, method: vera.Method, architecture: str = "") -> None:
    """Asserts that training steps after an evaluation change no frozen parameter, reach
    each trainable one with a gradient, and lower the loss. Raises AdapterError for a method
    that trains nothing.

    architecture: not used; all of BEHAVIOURS take it."""
    with torch.no_grad():
        answer(model)
    values_before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    if method.kind == "none":
        assert not trainable, "something trains"
        raise vera.AdapterError("nothing trains, which is its purpose")
    torch.manual_seed(0)
    model.train()
    losses, optimizer = [], torch.optim.Adam(trainable, lr=1e-3)
    for step in range(1, 4):
        loss = (answer(model).float() - 1).square().mean()
        loss.backward()
        if step == 1:
            assert all(p.grad is not None for p in trainable), (
                "a parameter got no gradient"
            )
            reached = any(
                p.grad.any() for p in method.adapter_parameters(model).values()
            )
            assert reached or method.kind == "head", "no gradient"
        optimizer.step()
        method.after_step(model, step)
        optimizer.zero_grad()
        losses.append(loss.item())
    settings = method.settings()
    is_random = (
        method.kind == "dylora"
        or settings.get("drop_per_batch") is True
        or settings.get("config_class") == "PveraConfig"
    )
    # A method that draws something in each step may have drawn a worse case last
    assert losses[-1] < losses[0] or is_random, (
        f"the loss went from {losses[0]} to {losses[-1]}"
    )
    for name, parameter in model.named_parameters():
        is_same = torch.equal(parameter, values_before[name])
        assert is_same or parameter.requires_grad, "a frozen parameter moved"
    model.eval()


def merge(model: nn.Module, method: vera.Method, architecture: str) -> None:
    """Asserts that the merged model answers the same, and that unmerging restores every
    weight bit for bit."""
    weights_before = {n: p.clone() for n, p in model.named_parameters()}
    expected = answer(model)
    tolerance = tolerance_for(model, method)
    method.merge(model)
    assert torch.allclose(answer(model), expected, rtol=0, atol=tolerance), (
        "merged, it answers otherwise"
    )
    method.unmerge(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, weights_before[name]), (
            "unmerged, a weight differs"
        )
    assert torch.equal(answer(model), expected), "unmerged, it answers otherwise"


def reloaded(model: nn.Module, method: vera.Method, onto: nn.Module) -> nn.Module:
    """Saves the adapter and the head of a model, and loads them onto another base model,
    which is returned."""
    with tempfile.TemporaryDirectory() as folder:
        vera.save(model, method, f"{folder}/adapter")
        vera.save_head(model, f"{folder}/head")
        torch.manual_seed(9)
        vera.load(onto, f"{folder}/adapter")
        vera.load_head(onto, f"{folder}/head")
    return onto


def save(model: nn.Module, method: vera.Method, architecture: str) -> None:
    """Asserts that adapter and head load onto a fresh base model, which then answers the
    same."""
    again = reloaded(model, method, tiny(architecture))
    assert torch.equal(answer(again), answer(model)), "loaded, it answers otherwise"


def export(model: nn.Module, method: vera.Method, architecture: str) -> None:
    """Asserts that peft.PeftModel reads the export and answers the same."""
    with tempfile.TemporaryDirectory() as folder:
        vera.export_peft(model, folder)
        torch.manual_seed(9)
        theirs = peft.PeftModel.from_pretrained(tiny(architecture), folder).eval()
    same = torch.allclose(
        answer(theirs.base_model.model),
        answer(model),
        rtol=0,
        atol=tolerance_for(model, method),
    )
    assert same, "under peft, it answers otherwise"


def four_bit(model: nn.Module, method: vera.Method, architecture: str) -> None:
    """Asserts that an adapter trains over NF4 weights, and answers over the dequantised
    weights as it does over them. (tests/vera/test_support.py asserts that its file loads
    there.) model: quantised."""
    train(model, method)
    full_model = dequantised(architecture)
    method.adapt(full_model)
    fill(head_parameters(full_model), head_parameters(model))
    fill(file_tensors(full_model, method), file_tensors(model, method))
    same = torch.allclose(
        answer(model),
        answer(full_model),
        rtol=0,
        atol=tolerance_for(full_model, method),
    )
    assert same, "over dequantised weights, it answers otherwise"


#: What a method may be able to do, by its letter on the page. Each function takes an adapted
#: model, its method and its architecture, and raises AdapterError where vera refuses it.
BEHAVIOURS = {"T": train, "M": merge, "S": save, "P": export, "4": four_bit}


def cell(architecture: str, name: str) -> str:
    """A cell of the page's table: the letters of BEHAVIOURS, with "-" for one that is refused
    in one line, and "?" for one that is refused in several lines.

    name: of METHODS, or of one of peft's classes."""
    make_method = METHODS.get(name) or default_method(name)
    method = make_method(architecture)
    letters = ""

    # One model is trained, then merged, saved and exported; another one is in 4 bit
    @functools.cache
    def model_of(in_4_bit: bool) -> nn.Module:
        return adapted(architecture, method, in_4_bit)

    for letter, behaviour in BEHAVIOURS.items():
        try:
            behaviour(model_of(behaviour is four_bit), method, architecture)
        except vera.AdapterError as error:
            letters += "?" if "\n" in str(error) else "-"
        except Exception as error:
            raise AssertionError(
                f"{name} on {architecture}, {behaviour.__name__}: {error}"
            ) from error
        else:
            letters += letter
    return letters


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """The lines of a table in Markdown, with columns of equal width."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        " | ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True))
        for row in [head, *rows]
    ]
    rule = "|".join("-" * (w + 2) for w in widths)
    return [f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])]


def page() -> str:
    """docs/methods.md with new contents of its three tables and with peft's version. The
    other text is taken from the page as it is."""
    own_rows = [cells_of_row(name) for name in METHODS]
    peft_rows = [cells_of_row(name) for name in classes()]
    fact_rows = []
    for name, *cells in peft_rows:
        if any(cell.startswith("T") for cell in cells):
            fact_rows.append([name, *class_facts(name)])
    tables = iter(
        [
            table(["", *ARCHITECTURES], own_rows),
            table(["", *ARCHITECTURES], peft_rows),
            table(["", "sites", "trains", "file", "drawn again"], fact_rows),
        ]
    )
    blocks = []
    for block in PAGE.read_text(encoding="utf-8").split("\n\n"):
        is_table = block.startswith("|")
        blocks.append("\n".join(next(tables)) if is_table else block)
    text = "\n\n".join(blocks).rstrip()
    version = f"class of peft {peft.__version__}"
    return re.sub(r"class of peft [\d.]+\d", version, text) + "\n"


def cells_of_row(name: str) -> list[str]:
    """A row of the page's tables: a method's name, and its cell for each architecture."""
    return [name, *(cell(architecture, name) for architecture in ARCHITECTURES)]


if __name__ == "__main__":  # PYTHONPATH=.:tests python tests/support.py
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
