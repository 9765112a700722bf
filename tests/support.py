"""What each method can do on each architecture, found by doing it. Writes docs/methods.md: make methods

tests/vera/test_support.py does the same and compares, so that the page cannot lie: a pair is tried there, and
nowhere else."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import peft
import torch
from tiny import ARCHITECTURES, answer, quantise, shake, tiny
from torch import nn

import vera

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"
FUSED = {"GPT-2": "c_attn", "ViT of timm": "qkv", "ViT of timm in transformers": "qkv"}


def of_peft(name: str, **config) -> Callable[[str], vera.Method]:
    """A method of peft's, which takes a fused projection as a whole."""
    more = ("feed_forward_out",) if name == "IA3Config" else ()
    return lambda a: vera.Peft(name, config, (FUSED[a], *more) if a in FUSED else ())


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
    "VeRA, unique A and B": lambda a: vera.VeRA(rank=12, projections="unique"),
    "VeRA+": lambda a: vera.VeRAPlus(rank=12),
    "LoRA-XS": lambda a: vera.LoRAXS(rank=4),
    "LoRA-XS, stored": lambda a: vera.LoRAXS(rank=4, store=True),
    "Tied-LoRA": lambda a: vera.TiedLoRA(rank=4),
    "NoLA": lambda a: vera.NoLA(rank=4, bases=6),
    "DyLoRA": lambda a: vera.DyLoRA(rank=4),
    "AdaLoRA": lambda a: vera.AdaLoRA(rank=2, init_rank=4),
    "SSF": lambda a: vera.SSF(),
    "DoRA (peft)": of_peft("LoraConfig", use_dora=True, r=4),
    "AdaLoRA (peft)": of_peft("AdaLoraConfig", init_r=6, target_r=2),
    "IA3 (peft)": of_peft("IA3Config"),
    "VB-LoRA (peft)": of_peft("VBLoRAConfig", vector_length=16, num_vectors=8, r=2),
    "RandLoRA (peft)": of_peft("RandLoraConfig", r=4),
    "FourierFT (peft)": of_peft("FourierFTConfig", n_frequency=50),
    "PVeRA (peft)": of_peft("PveraConfig", r=4),
}


class WrongError(AssertionError):
    """A behaviour that neither works nor is refused."""


def check(condition: bool, what: str) -> None:
    if not condition:
        raise WrongError(what)


def adapted(architecture: str, method: vera.Method, four_bit: bool = False) -> nn.Module:
    """An adapted model, away from its start."""
    model = quantise(tiny(architecture)) if four_bit else tiny(architecture)
    method.adapt(model)
    method.before_training(model, 10)
    shake(model, 0.05)
    return model


def train(architecture: str, method: vera.Method, four_bit: bool = False) -> None:
    """One step after an evaluation moves what should move, and nothing else; the loss falls."""
    model = adapted(architecture, method, four_bit)
    with torch.no_grad():
        answer(model)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    trainable = [p for p in model.parameters() if p.requires_grad]
    if method.kind == "none":
        check(not trainable, "something trains")
        raise vera.AdapterError("nothing trains, which is its purpose")
    torch.manual_seed(0)
    model.train()
    losses, optimizer = [], torch.optim.Adam(trainable, lr=3e-3)
    for step in range(1, 6):
        loss = (answer(model).float() - 1).square().mean()
        loss.backward()
        if step == 1:
            check(all(p.grad is not None for p in trainable), "a parameter got no gradient")
            check(
                any(p.grad.any() for p in method.adapter_parameters(model).values()) or method.kind == "head",
                "no gradient",
            )
        optimizer.step()
        method.after_step(model, step)
        optimizer.zero_grad()
        losses.append(loss.item())
    stochastic = (
        getattr(method, "drop_per_batch", False)
        or getattr(method, "config_class", "") == "PveraConfig"
        or method.kind == "dylora"
    )
    check(losses[-1] < losses[0] or stochastic, f"the loss went from {losses[0]} to {losses[-1]}")
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    check(moved <= {n for n, p in model.named_parameters() if p.requires_grad}, "a frozen parameter moved")


def merge(architecture: str, method: vera.Method) -> None:
    """The merged model answers the same, and unmerging restores every weight bit for bit."""
    model = adapted(architecture, method)
    before, expected = {n: p.clone() for n, p in model.named_parameters()}, answer(model)
    method.merge(model)
    check(torch.allclose(answer(model), expected, atol=1e-4), "merged, it answers otherwise")
    method.unmerge(model)
    check(all(torch.equal(p, before[n]) for n, p in model.named_parameters()), "unmerged, a weight differs")


def save(architecture: str, method: vera.Method) -> None:
    """Adapter and head load onto a fresh base model, which then answers the same."""
    model, again = adapted(architecture, method), tiny(architecture)
    with tempfile.TemporaryDirectory() as folder:
        vera.save(model, method, f"{folder}/adapter")
        vera.save_head(model, f"{folder}/head")
        torch.manual_seed(9)
        vera.load(again, f"{folder}/adapter")
        vera.load_head(again, f"{folder}/head")
    check(torch.equal(answer(again), answer(model)), "loaded, it answers otherwise")


def export(architecture: str, method: vera.Method) -> None:
    """peft.PeftModel reads the export and answers the same."""
    model = adapted(architecture, method)
    with tempfile.TemporaryDirectory() as folder:
        vera.export_peft(model, folder)
        torch.manual_seed(9)
        theirs = peft.PeftModel.from_pretrained(tiny(architecture), folder).eval()
    check(
        torch.allclose(answer(theirs.base_model.model), answer(model), atol=1e-4),
        "under peft, it answers otherwise",
    )


def four_bit(architecture: str, method: vera.Method) -> None:
    """Training over NF4 weights."""
    train(architecture, method, four_bit=True)


BEHAVIOURS = {"T": train, "M": merge, "S": save, "P": export, "4": four_bit}


def cell(architecture: str, name: str) -> tuple[str, dict[str, str]]:
    """The letters of what works, and the refusal of what does not."""
    letters, refusals = "", {}
    for letter, behaviour in BEHAVIOURS.items():
        method = METHODS[name](architecture)
        try:
            behaviour(architecture, method)
        except vera.AdapterError as error:
            refusals[letter] = str(error)
            letters += "-"
        except Exception as error:
            raise WrongError(f"{name} on {architecture}, {behaviour.__name__}: {error}") from error
        else:
            letters += letter
    return letters, refusals


def page() -> str:
    """docs/methods.md."""
    cells = {(name, a): cell(a, name) for name in METHODS for a in ARCHITECTURES}
    width = max(map(len, METHODS))
    lines = [
        "# Methods and architectures",
        "",
        "`make methods` tries every pair on a tiny model and writes this page; a test compares the two.",
        "",
        (
            "- **T** trains: after an evaluation, gradients reach every parameter of the adapter; nothing"
            " frozen moves."
        ),
        "- **M** merges: the merged model answers the same, and unmerging restores every weight bit for bit.",
        "- **S** saves: adapter and head load onto a fresh base model, which answers the same.",
        "- **P** exports to peft's format: `peft.PeftModel` reads it and answers the same.",
        "- **4** trains over 4-bit (NF4) weights of bitsandbytes.",
        "- **-** is refused, or has no meaning for the method; the reasons are below.",
        "",
        f"| {'':<{width}} | " + " | ".join(ARCHITECTURES) + " |",
        f"|{'-' * (width + 2)}|" + "|".join("-" * (len(a) + 2) for a in ARCHITECTURES) + "|",
    ]
    for name in METHODS:
        row = " | ".join(f"{cells[name, a][0]:<{len(a)}}" for a in ARCHITECTURES)
        lines.append(f"| {name:<{width}} | {row} |")
    reasons: dict[str, list[tuple[str, str, str]]] = {}
    for (name, a), (_, refusals) in cells.items():
        for letter, reason in refusals.items():
            reasons.setdefault(reason, []).append((letter, name, a))
    lines += [
        "",
        "In a fused projection (GPT-2's c_attn, timm's qkv) methods of peft adapt the whole of it. This",
        "library's low-rank methods adapt only the parts that their sites name: query and value here. GPT-2",
        "and Llama are language models here, without a classification head.",
        "",
        "## What is refused",
        "",
    ]
    for reason, found in reasons.items():
        letters, names, where = (dict.fromkeys(triple[i] for triple in found) for i in range(3))
        on = "" if len(where) == len(ARCHITECTURES) else f" on {', '.join(where)}"
        lines.append(f"- **{''.join(letters)}** {', '.join(names)}{on}: {reason}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":  # PYTHONPATH=.:tests python tests/support.py
    PAGE.write_text(page(), encoding="utf-8")
    print(PAGE)
