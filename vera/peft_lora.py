"""Adapters converted to LoRA by huggingface/peft's own conversion, for servers that know only LoRA.

Of each layer's change the best approximation at a rank, by SVD: exact from the rank of the change on."""

import json
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vera.errors import AdapterError
from vera.methods.adapted import unload
from vera.peft_format import CONFIG, PREFIX, export_peft, plain, write_peft
from vera.sites import is_transposed


@torch.no_grad()
def export_lora(
    model: nn.Module,
    folder: str | Path,
    rank: int | float,
    base: str | None = None,
    revision: str | None = None,
) -> dict[str, tuple[float, float]]:
    """Writes an adapted model's adapter, converted to LoRA, and its head as peft does. The model is the plain
    base model afterwards, with its head, as after `unload`: save the adapter first.

    rank: an int, of every layer; or a float up to 1, the share of each layer's squared singular values that
    is kept, which gives each layer a rank of its own. base, revision: as for `export_peft`. Returns for each
    layer the Frobenius norms of what the LoRA lacks of the change, and of the change.

    Raises AdapterError, and writes nothing, where peft has no such adapter or cannot convert it."""
    import peft
    from peft.tuners.lora.conversion import convert_to_lora

    with tempfile.TemporaryDirectory() as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # peft's, of a base model that it cannot look up
        export_peft(model, place)
        settings = json.loads((Path(place) / CONFIG).read_text(encoding="utf-8"))
        if settings.get("use_dora"):
            raise AdapterError("a LoRA cannot hold DoRA's magnitudes: export_peft writes it as it is")
        if settings["peft_type"] == "LORA":
            raise AdapterError("this adapter is a LoRA already: export_peft writes it without loss")
        if settings["peft_type"] == "MISS":
            raise AdapterError("peft converts MiSS to a LoRA of another rank than the one asked for")
        unload(model)
        # The head stays the model's own: peft takes only wrappers of single layers off again
        bare = settings | {"modules_to_save": None, "task_type": None}
        (Path(place) / CONFIG).write_text(json.dumps(bare), encoding="utf-8")
        wrapped = peft.PeftModel.from_pretrained(model, place)
    try:
        config, tensors = convert_to_lora(wrapped, rank=rank)
        norms = _norms(wrapped, tensors)
    except (ValueError, TypeError, NotImplementedError, AttributeError) as error:
        raise AdapterError(f"peft converts this adapter to no LoRA of rank {rank}: {error}") from None
    finally:
        wrapped.unload()
    # Of a head of several layers peft's conversion keeps one tensor: the head is written from the model
    own = {name: tensor for name, tensor in tensors.items() if ".lora_" in name}
    transposed = any(is_transposed(model.get_submodule(path)) for path in norms)
    write_peft(model, folder, plain(config) | {"fan_in_fan_out": transposed}, own, base, revision)
    return norms


def _norms(wrapped: Any, tensors: dict[str, Tensor]) -> dict[str, tuple[float, float]]:
    """What `export_lora` returns."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    norms = {}
    layers: Any = [(n, m) for n, m in wrapped.named_modules() if isinstance(m, BaseTunerLayer)]
    for name, layer in layers:
        change = layer.get_delta_weight("default").double()
        change = change.T if is_transposed(layer.get_base_layer()) else change
        a, b = (tensors[f"{name}.lora_{part}.weight"].double() for part in "AB")
        norms[name.removeprefix(PREFIX)] = float((change - b @ a).norm()), float(change.norm())
    return norms
