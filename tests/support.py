"""What each method can do on each architecture, found by doing it. Writes
docs/methods.md: make methods

tests/vera/test_support.py does the same and compares, so that the page cannot lie: a
pair is tried there, and nowhere else."""

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

#: The layer that holds query, key and value, where one does.
FUSED = {"GPT-2": "c_attn", "ViT of timm": "qkv", "ViT of timm in transformers": "qkv"}
WORDS = "word_embeddings"
EMBEDDINGS = {"BERT": WORDS, "RoBERTa": WORDS, "GPT-2": "wte", "Llama": "embed_tokens"}
#: Settings without which a class does not fit 32 x 32 matrices.
SMALL = {
    "C3AConfig": {"block_size": 8},
    "FourierFTConfig": {"n_frequency": 50},
    "MissConfig": {"r": 4},
}
SMALL |= {
    "PsoftConfig": {"r": 8},
    "RoadConfig": {"group_size": 16},
    "ShiraConfig": {"r": 4},
}
SMALL |= {"VBLoRAConfig": {"vector_length": 16, "num_vectors": 8, "r": 2}}
SMALL["WaveFTConfig"] = {"n_frequency": 64}


def classes() -> list[str]:
    """The names of all configuration classes, also of those that are refused here."""
    return sorted(
        {c.__name__ for c in peft.PEFT_TYPE_TO_CONFIG_MAPPING.values()}, key=str.lower
    )


def sites_on(name: str, architecture: str) -> tuple[str, ...]:
    """A class's own sites; a fused projection as a whole, since peft adapts no part of
    it."""
    fused = FUSED.get(architecture)
    own = DEFAULT_SITES.get(name, DEFAULT_SITES["others"])
    found = (
        fused if fused and site in ("query", "key", "value") else site for site in own
    )
    return tuple(dict.fromkeys(found))


def peft_method(name: str, **config) -> Callable[[str], vera.Method]:
    """A method of peft's for each architecture."""
    return lambda a: vera.Peft(name, config, sites_on(name, a))


def default_method(name: str) -> Callable[[str], vera.Method]:
    """A class at its defaults, where these fit a tiny model."""
    if name != "TrainableTokensConfig":
        return peft_method(name, **SMALL.get(name, {}))

    def two_tokens(architecture: str) -> vera.Method:
        named = (
            {"target_modules": [EMBEDDINGS[architecture]]}
            if architecture in EMBEDDINGS
            else {}
        )
        return vera.Peft(name, {**named, "token_indices": [3, 4]})

    return two_tokens


@functools.cache
def roberta_base() -> nn.Module:
    """Its matrices, with random values; and 64 words, at which no class but
    TrainableTokens looks."""
    torch.manual_seed(0)
    sizes = {"max_position_embeddings": 514, "vocab_size": 64, "type_vocab_size": 1}
    return RobertaForSequenceClassification(RobertaConfig(**sizes))


def class_facts(name: str) -> list[str]:
    """Of a class at its defaults on RoBERTa-base: its own sites, the parameters that
    train without the head, the bytes of the adapter file, and the last names of the
    frozen tensors that peft draws again and the file lacks. Raises AdapterError for a
    class that is refused."""
    method = (
        vera.Peft(name)
        if name != "TrainableTokensConfig"
        else default_method(name)("RoBERTa")
    )
    model = roberta_base()
    torch.manual_seed(0)
    method.adapt(model)
    with tempfile.TemporaryDirectory() as folder:
        vera.save(model, method, f"{folder}/adapter")
        size = os.path.getsize(f"{folder}/adapter")
    names, count = {*method.redrawn(model), *model._peft.hidden}, method.count(model)
    try:
        vera.unload(model)
    except vera.AdapterError:  # such as OSF, which changes the base weights
        roberta_base.cache_clear()
    # Such as vera_A of ...query.vera_A.default; peft also names tensors by their module
    last = {re.sub(r"\.default\b", "", name).split(".")[-1] for name in names}
    sites = (
        ", ".join(DEFAULT_SITES.get(name, DEFAULT_SITES["others"])) or "named in config"
    )
    return [sites, f"{count:,}", f"{size:,}", ", ".join(sorted(last)) or "nothing"]


# --- every method

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
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
    """A model with an adapter of a method, away from its start."""
    method.adapt(model)
    shake(model, size)
    return model


def write_adapter(
    base: nn.Module, method: vera.Method, folder: Path, seed=2, size=0.3, labels=None
):
    """A copy of a model with an adapter and a head away from their start, and their
    files."""
    model = copy.deepcopy(base)
    method.adapt(model)
    shake(model, size, seed)
    folder.mkdir(exist_ok=True)
    paths = folder / "adapter.safetensors", folder / "head.safetensors"
    vera.save(model, method, paths[0])
    vera.save_head(model, paths[1], labels)
    return model.eval(), *paths


def modules(model: nn.Module) -> list[tuple[str, type, int, int]]:
    """A model's modules: names, types, and how many hooks they have."""
    hooks = ("_forward_hooks", "_forward_pre_hooks")
    return [
        (name, type(m), *(len(getattr(m, of)) for of in hooks))
        for name, m in model.named_modules()
    ]


def state(model: nn.Module) -> tuple[Any, dict[str, tuple[torch.Tensor, bool]]]:
    """A model's modules; the values of its parameters, and which train."""
    values = {
        name: (p.detach().clone(), p.requires_grad)
        for name, p in model.named_parameters()
    }
    return modules(model), values


@contextlib.contextmanager
def refused_unchanged(named: str, *models: nn.Module) -> Iterator[None]:
    """What is done here is an AdapterError of one line that names this (a pattern), and
    the models are as they were."""
    before = [state(model) for model in models]
    words = None
    try:
        yield
    except vera.AdapterError as error:
        words = f"{error}"
    assert words is not None, f"is not refused: {named}"
    assert re.search(named, words), words
    assert "\n" not in words
    for (were, values), (are, now) in zip(before, map(state, models), strict=True):
        assert were == are
        assert values.keys() == now.keys()
        assert all(
            torch.equal(now[name][0], value) for name, (value, _) in values.items()
        )
        assert all(now[name][1] is trains for name, (_, trains) in values.items())


def adapted(
    architecture: str, method: vera.Method, four_bit: bool = False
) -> nn.Module:
    """An adapted model, away from its start."""
    model = adapt_and_shake(
        quantise(tiny(architecture)) if four_bit else tiny(architecture), method
    )
    method.before_training(model, 10)
    return model


def tolerance_for(model: nn.Module, method: vera.Method) -> float:
    """How near an answer must come to the model's to count as the same: a thousandth of
    what the adapter changes. That is at least a thousandth itself, or a comparison
    would show nothing."""
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
    """One step after an evaluation moves what should move, and nothing else; the loss
    falls."""
    with torch.no_grad():
        answer(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
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
    known = {method.kind, *map(str, method.settings().items())}
    stochastic = known & {
        "dylora",
        "('drop_per_batch', True)",
        "('config_class', 'PveraConfig')",
    }
    assert losses[-1] < losses[0] or stochastic, (
        f"the loss went from {losses[0]} to {losses[-1]}"
    )
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved <= {n for n, p in model.named_parameters() if p.requires_grad}, (
        "a frozen parameter moved"
    )
    model.eval()


def merge(model: nn.Module, method: vera.Method, architecture: str) -> None:
    """The merged model answers the same, and unmerging restores every weight bit for
    bit."""
    before, expected = (
        {n: p.clone() for n, p in model.named_parameters()},
        answer(model),
    )
    tolerance = tolerance_for(model, method)
    method.merge(model)
    assert torch.allclose(answer(model), expected, rtol=0, atol=tolerance), (
        "merged, it answers otherwise"
    )
    method.unmerge(model)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters()), (
        "unmerged, a weight differs"
    )
    assert torch.equal(answer(model), expected), "unmerged, it answers otherwise"


def reloaded(model: nn.Module, method: vera.Method, onto: nn.Module) -> nn.Module:
    """Another base model with the adapter and the head of this one, through their
    files."""
    with tempfile.TemporaryDirectory() as folder:
        vera.save(model, method, f"{folder}/adapter")
        vera.save_head(model, f"{folder}/head")
        torch.manual_seed(9)
        vera.load(onto, f"{folder}/adapter")
        vera.load_head(onto, f"{folder}/head")
    return onto


def save(model: nn.Module, method: vera.Method, architecture: str) -> None:
    """Adapter and head load onto a fresh base model, which then answers the same."""
    again = reloaded(model, method, tiny(architecture))
    assert torch.equal(answer(again), answer(model)), "loaded, it answers otherwise"


def export(model: nn.Module, method: vera.Method, architecture: str) -> None:
    """peft.PeftModel reads the export and answers the same."""
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
    """Training over NF4 weights; and the adapter answers as over the same weights
    dequantised. (That its file loads there: tests/vera/test_support.py.)"""
    train(model, method)
    method.adapt(whole := dequantised(architecture))
    for of in (head_parameters, functools.partial(file_tensors, method=method)):
        fill(of(whole), of(model))
    same = torch.allclose(
        answer(model), answer(whole), rtol=0, atol=tolerance_for(whole, method)
    )
    assert same, "over dequantised weights, it answers otherwise"


BEHAVIOURS = {"T": train, "M": merge, "S": save, "P": export, "4": four_bit}


def cell(architecture: str, name: str) -> str:
    """The letters of what works; what does not is refused in a line. One model is
    trained, then merged, saved and exported; another has weights in 4 bit."""
    letters, method = "", (METHODS.get(name) or default_method(name))(architecture)

    @functools.cache
    def model(in_4_bit: bool) -> nn.Module:
        return adapted(architecture, method, in_4_bit)

    for letter, behaviour in BEHAVIOURS.items():
        try:
            behaviour(model(behaviour is four_bit), method, architecture)
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
    """The lines of a table in Markdown."""
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    lines = [
        " | ".join(f"{c:<{w}}" for c, w in zip(row, widths, strict=True))
        for row in [head, *rows]
    ]
    rule = "|".join("-" * (w + 2) for w in widths)
    return [f"| {lines[0]} |", f"|{rule}|", *(f"| {line} |" for line in lines[1:])]


def page() -> str:
    """docs/methods.md with its three tables tried anew; its words are written there."""
    own, theirs = (
        [[name, *(cell(a, name) for a in ARCHITECTURES)] for name in of]
        for of in (METHODS, classes())
    )
    works = [
        [row[0], *class_facts(row[0])]
        for row in theirs
        if any(cell[0] == "T" for cell in row[1:])
    ]
    made = [table(["", *ARCHITECTURES], rows) for rows in (own, theirs)]
    tables = iter([*made, table(["", "sites", "trains", "file", "drawn again"], works)])
    blocks = PAGE.read_text(encoding="utf-8").split("\n\n")
    text = "\n\n".join(
        "\n".join(next(tables)) if block.startswith("|") else block for block in blocks
    )
    return (
        re.sub(
            r"class of peft [\d.]+\d",
            f"class of peft {peft.__version__}",
            text.rstrip(),
        )
        + "\n"
    )


if __name__ == "__main__":  # PYTHONPATH=.:tests python tests/support.py
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
