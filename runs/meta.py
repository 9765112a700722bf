"""A run's model and method on torch's device meta, which has shapes and no values: whether the method fits
the model, and how many FLOPs a pass takes. No weights are needed, so a model of 7B costs no memory.

Methods that compute on the weights (an SVD, say) pass here, and fail in the run if they fail."""

import contextlib
import io
import json
import warnings
from functools import cache
from importlib.metadata import version
from typing import Any

from runs import models
from runs.errors import UserError
from runs.identity import hash_of
from runs.methods import BASES, make_method, patterns_of
from runs.record import write_atomically
from runs.run import Run
from tasks.fetch import cache_folder

#: Methods that ask more of a model than linear layers: any of peft's; a patch embedding; rows and columns.
CHECKED = ("peft", "ssf", "lora_xs")
#: The outputs of a model whose data are not read, by modality.
LABELS = {"text": 2, "image": 100, "text generation": 0}


def refusal(run: Run) -> str | None:
    """Why a run's method does not fit its model, in one line; None where it does, or where that is not known.

    This checks peft's methods, the few of our own that not every model takes, and train.lr_by and decay_by,
    which name parameters. The rest need linear layers only, and importing torch takes seconds."""
    rates = {key: run.config["train"].get(key) or {} for key in BASES}
    if run.method["kind"] not in CHECKED and not any(rates.values()):
        return None
    model = words_of(run)
    return _refusal(json.dumps([model, run.method, rates, run.config["model"]["label"]])) if model else None


def words_of(run: Run) -> dict[str, Any]:
    """What models.skeleton builds a run's model from; empty where its architecture is not known."""
    model = run.config["model"]
    with contextlib.suppress(UserError):  # the run itself raises it
        if (folder := models.locate(model)) or model["architecture"]:
            words = {key: model[key] for key in ("architecture", "settings", "modality")}
            labels = LABELS[model["modality"]]
            return {"model": words, "num_labels": labels, "folder": folder and str(folder)}
    return {}


@cache
def _refusal(words: str) -> str | None:
    import vera

    model, method, rates, label = json.loads(words)
    try:
        adapter = make_method(method)
        groups = adapter.parameter_groups(adapted(models.skeleton(**model), adapter)).values()
        for key, by in rates.items():
            patterns_of([name for parameters in groups for name in parameters], by, key)
    except (vera.AdapterError, UserError) as error:
        # On the meta device some computations fail that work on weights, and torch names the device
        return None if "meta" in str(error.__context__) else f"{label}: {error}"
    except Exception:  # such as an architecture that transformers lacks: loading it raises that again
        return None
    return None


def adapted(network: Any, method: Any) -> Any:
    """The network with a method. The run itself shows peft's warnings."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        method.adapt(network)
    return network


def flops(run: Run, rows: int, length: int, predicted: int) -> tuple[float, float] | None:
    """FLOPs of a forward pass over so many rows, and of a training pass, as torch's counter counts them:
    products and attention, nearly everything. None where torch cannot count them.

    length: tokens of a row, padding included. predicted: those that a language model reads out. The count is
    kept in the cache, so a later plan does not import torch."""
    # AdapterDrop counts with every adapter: it drops blocks at random, or more than two of them. VeRA's
    # weights cannot be merged with 4-bit ones
    plain: dict[str, Any] = {"adapter": {"drop_layers": 0, "drop_per_batch": False}}
    plain |= {"vera": {"path": "factor"}} if run.config["model"]["quantise"] else {}
    method, model = run.method | plain.get(run.method["kind"], {}), words_of(run)
    size = (rows, length, predicted, run.config["task"].get("image_size"))
    key = [model, method, size, *map(version, ("torch", "transformers", "peft"))]
    path, counted = cache_folder() / "flops" / f"{hash_of(key)[:24]}.json", None
    with contextlib.suppress(OSError, ValueError):
        kept = json.loads(path.read_bytes())
        return kept and (float(kept[0]), float(kept[1]))
    with contextlib.suppress(Exception):  # of a model's own code, of a method that looks at values
        import torch
        from torch.utils.flop_counter import FlopCounterMode

        whole, counts = models.skeleton(**model), list[tuple[int, int]]()
        depth = whole.config.num_hidden_layers
        for blocks in (1, 2):  # each further block takes what the second one does
            whole.config.num_hidden_layers = blocks
            with torch.device("meta"):
                network = type(whole)(whole.config).train()
            adapted(network, make_method(method))
            with FlopCounterMode(display=False) as counter:
                logits = run_forward(network, *size)
                forward = counter.get_total_flops()
                if logits.requires_grad:
                    logits.sum().backward()
            counts.append((forward, counter.get_total_flops()))
        (one, trained), (two, both) = counts
        counted = float(one + (depth - 1) * (two - one)), float(trained + (depth - 1) * (both - trained))
    with contextlib.suppress(OSError):  # a read-only home costs time, no more
        write_atomically(path, json.dumps(counted))
    return counted


def run_forward(network: Any, rows: int, length: int, predicted: int, image: int | None) -> Any:
    """The logits for random rows, on the network's device. image: pixels of a side; None: the model's."""
    import torch

    config, device = network.config, next(network.parameters()).device
    if hasattr(config, "image_size"):
        side = image or models.image_side(config.model_type, config.image_size)
        settings = {"interpolate_pos_encoding": True} if config.model_type == "vit" and image else {}
        return network(pixel_values=torch.randn(rows, 3, side, side, device=device), **settings).logits
    ids = torch.randint(5, config.vocab_size, (rows, length), device=device)
    return network(input_ids=ids, **({"logits_to_keep": predicted} if predicted else {})).logits
