"""How a pretrained model is adapted: VeRA, LoRA and the methods they are compared with,
on torch alone.

    from vera import VeRA, load, save

    method = VeRA(rank=256)
    method.adapt(model)                        # in place; only b, d and the head train
    groups = method.parameter_groups(model)    # {"adapter": {name: parameter}, "head": {...}}
    save(model, method, "adapter.safetensors")
    load(base_model, "adapter.safetensors")    # on a fresh copy of the base model
    method.merge(model)
    unload(model, merge=True)                  # a plain model again, the adapter in its weights

    adapters = Adapters(base_model)            # many at once: each sample names its own
    adapters.add("alice", "alice.safetensors")
    base_model(**batch, adapter_names=["alice", None])
"""

from vera.adapter_file import check_start, load, read_method, save, start_from
from vera.base_weights import base_fingerprint
from vera.check import check
from vera.errors import AdapterError
from vera.head_file import load_head, output_layer, read_classes, save_head, unscale
from vera.kernels import unchanged
from vera.methods import METHODS, Method, disable, frozen_extra, make_method, unload
from vera.methods.adalora import AdaLoRA
from vera.methods.adapter import Adapter
from vera.methods.dylora import DyLoRA
from vera.methods.lora import LoRA
from vera.methods.lora_xs import LoRAXS
from vera.methods.nola import NoLA
from vera.methods.peft import Peft
from vera.methods.plain import BitFit, Full, Head, NoMethod
from vera.methods.ssf import SSF
from vera.methods.tied_lora import TiedLoRA
from vera.methods.vera import VeRA
from vera.methods.vera_plus import VeRAPlus
from vera.peft_format import (
    Conversion,
    LayerConversion,
    export_lora,
    export_peft,
    import_peft,
)
from vera.projections import ProjectionSpec, fingerprint
from vera.serving import Adapters
