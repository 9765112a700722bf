"""The contract of an adaptation method, and the layer that VeRA and LoRA share.

A method is a small frozen dataclass of its settings. The model carries all the state: `adapt` changes the
model in place, and every later call finds what it needs inside the model."""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar, cast, get_origin

import torch
from torch import Tensor, nn

from vera.errors import AdapterError
from vera.sites import WHOLE, Blocks, head_parameters, is_transposed, size

#: Every method by its kind. Filled as the files of this folder are imported.
METHODS: dict[str, type["Method"]] = {}
#: What a setting should be, in words.
NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a word",
    tuple: "a list",
    dict: "a mapping",
}
#: A rank this many times as large as the widest matrix is a slip of the keyboard, not a wish.
SENSE = 64
#: No setting means a larger number, or more words: both may come from a stranger's file.
LARGEST = 2.0**53
MOST_WORDS = 1_000


@dataclass(frozen=True)
class Method(ABC):
    """One way of adapting a pretrained model. Subclasses: `class VeRA(Method, kind="vera")`."""

    kind: ClassVar[str]

    def __init_subclass__(cls, kind: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if kind:
            cls.kind = kind
            METHODS[kind] = cls

    def __post_init__(self) -> None:
        for field in fields(self):
            if isinstance(getattr(self, field.name), list):
                object.__setattr__(self, field.name, tuple(getattr(self, field.name)))
            value, kind = getattr(self, field.name), get_origin(field.type) or field.type
            number = kind is float and isinstance(value, int)
            if isinstance(value, bool) is not (kind is bool) or not (isinstance(value, kind) or number):  # type: ignore[arg-type]
                raise AdapterError(f"{field.name} must be {NAMES[kind]}, got {value!r}")
            if kind is float and not abs(value) <= LARGEST:
                raise AdapterError(f"{field.name} must be a finite number, of at most 2^53")
            if kind is tuple and not all(isinstance(word, str) for word in value):
                raise AdapterError(f"{field.name} must be a list of words, got {list(value)}")
            if kind is tuple and (len(value) > MOST_WORDS or any(len(word) > MOST_WORDS for word in value)):
                raise AdapterError(
                    f"{field.name} has at most {MOST_WORDS} words, none longer than as many letters"
                )
        rank, dropout = getattr(self, "rank", 1), getattr(self, "dropout", 0.0)
        if rank < 1:
            raise AdapterError(f"rank must be a whole number of at least 1, got {rank}")
        if not 0 <= dropout < 1:
            raise AdapterError(f"dropout must be in [0, 1), got {dropout}")

    def settings(self) -> dict[str, Any]:
        """The settings as plain values, with the kind; `make_method(**settings)` gives an equal method.

        Without those that change nothing but the way it is computed (fields that are not compared).
        """
        told = {field.name for field in fields(self) if field.compare}
        return {
            "kind": self.kind,
            **{k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items() if k in told},
        }

    # --- a model's life with the method

    def adapt(self, model: nn.Module) -> None:
        """Freezes the model, installs the method in place, and leaves its parameters and the head trainable.

        Raises AdapterError, with the model unchanged, where it is adapted already, or lacks the method's
        sites."""
        if adaptation(model):
            raise AdapterError(
                "this model is adapted already: start from a fresh copy of the base model, or unload it"
            )
        if any("base_layer" in m._modules for m in model.modules()):
            raise AdapterError(
                "this model carries an adapter of peft's: take it out first (peft_model.unload())"
            )
        # What the base model is, to be remembered, and to be put back where the method refuses half way.
        names = frozenset(name for name, _ in [*model.named_parameters(), *model.named_buffers()])
        head = frozenset(head_parameters(model))
        trainable = frozenset(name for name, p in model.named_parameters() if p.requires_grad)
        children = {module: dict(module._modules) for module in model.modules()}
        weights = [(m, n, p, p.data) for m in children for n, p in m._parameters.items() if p is not None]
        model.requires_grad_(False)
        try:
            self.install(model)
        except BaseException:
            for module, before in children.items():
                module._modules.clear()
                module._modules.update(before)
            # A method of peft may have put others in their place
            for module, name, parameter, data in weights:
                module._parameters[name] = parameter
                if parameter.data_ptr() != data.data_ptr():
                    parameter.data = data
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in trainable)
            raise
        for module in model.modules():
            if module not in children:
                module.training = model.training
        _keep_4bit_unpacked(model)
        for parameter in head_parameters(model).values():
            parameter.requires_grad_(True)
        trained = (
            frozenset(n for n, p in model.named_parameters() if p.requires_grad)
            - head_parameters(model).keys()
        )
        # A plain attribute: it is no part of the state dict, and is copied with the model.
        model._adaptation = Adaptation(self, names, head, trainable, trained)  # type: ignore[assignment]
        model.register_forward_pre_hook(_one_adapter, with_kwargs=True)

    @abstractmethod
    def install(self, model: nn.Module) -> None:
        """Adds the method's own parameters to a frozen model, or unfreezes those it trains."""

    def remove(self, model: nn.Module) -> None:
        """Takes out what `install` added. Values that the method trained in place stay as they are."""
        self.unmerge(model)
        for path, layer in [(p, m) for p, m in model.named_modules() if isinstance(m, AdaptedLinear)]:
            replace(model, path, layer.base)

    @abstractmethod
    def count(self, model: nn.Module) -> int:
        """Trainable parameters without the head, by the method's closed formula, from an adapted model's
        shapes."""

    # --- training

    def adapter_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The method's trainable parameters by name, without the head's (also where someone froze them
        since)."""
        adapted = adaptation(model)
        return {name: p for name, p in model.named_parameters() if adapted and name in adapted.trained}

    def parameter_groups(self, model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
        """Named parameters of an adapted model in two groups, "adapter" and "head", for their own learning
        rates."""
        head = {name: p for name, p in head_parameters(model).items() if p.requires_grad}
        return {"adapter": self.adapter_parameters(model), "head": head}

    def before_training(self, model: nn.Module, total_steps: int) -> None:  # noqa: B027 - most methods need nothing here
        """Called once with the number of optimizer steps, for methods that follow a schedule of their own."""

    def penalty(self, model: nn.Module) -> Tensor | None:
        """A term of the method's own, added to the loss of each forward pass; None for most."""
        return None

    def after_step(self, model: nn.Module, step: int) -> None:  # noqa: B027
        """Called after each optimizer step (from 1) with the gradients still there, for methods that change
        as they train."""

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        """What `after_step` has gathered, for a training checkpoint."""
        return {}

    def load_training_state(self, model: nn.Module, state: dict[str, Tensor]) -> None:  # noqa: B027
        """Puts `training_state` back."""

    # --- files and inference

    def saved(self, model: nn.Module) -> dict[str, Tensor]:
        """The tensors of the adapter file by name: what trains, and what cannot be made anew."""
        return dict(self.adapter_parameters(model))

    def redrawn(self, model: nn.Module) -> frozenset[str]:
        """Those of `saved`, by the file's names, that installing makes again bit for bit: no file needs to
        hold them."""
        return frozenset()

    def fixed(self, model: nn.Module, left_out: frozenset[str] = frozenset()) -> dict[str, Any]:
        """What the adapter relies on and does not train, for the adapter file; compared when it is loaded.

        left_out: those of `redrawn` that the file does not hold.
        """
        return {}

    def merge(self, model: nn.Module) -> None:
        """Folds the adapter into the base weights: inference costs what the base model costs.

        Raises AdapterError, with the model unchanged, where that cannot be.
        """
        if adaptation(model) is None:
            raise AdapterError("this model carries no adapter: nothing to merge")
        layers = list(adapted_layers(model))
        uses = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
        for layer in layers:
            layer.check_mergeable()
            if uses[id(layer.base.weight)] > 1:
                raise AdapterError(
                    "an adapted layer shares its weight with another layer: merged, both would change"
                )
        for layer in layers:
            layer.merge()

    def unmerge(self, model: nn.Module) -> None:
        """Puts the base weights back, bit for bit."""
        for layer in adapted_layers(model):
            layer.unmerge()

    def forget_unmerged(self, model: nn.Module) -> None:
        """Makes the merge final."""
        for layer in adapted_layers(model):
            layer.forget_unmerged()

    def disable(self, model: nn.Module, disabled: bool) -> None:
        """See `vera.disable`."""
        if disabled:
            self.unmerge(model)
        for module in model.modules():
            if isinstance(module, Added):
                module.enabled = not disabled
            if disabled and isinstance(module, AdaptedLinear):
                module.forget_kept()


@dataclass(frozen=True)
class Adaptation:
    """What an adapted model remembers: the method; of the base model the names of its parameters and buffers,
    of those of its head, and of those that were trainable; and the names of what the method trains, head
    apart."""

    method: Method
    base_names: frozenset[str]
    head: frozenset[str]
    trainable: frozenset[str]
    trained: frozenset[str]


def adaptation(model: nn.Module) -> Adaptation | None:
    """How a model is adapted; None for a base model."""
    return cast("Adaptation | None", getattr(model, "_adaptation", None))


def unload(model: nn.Module, merge: bool = False) -> None:
    """Makes an adapted model the plain base model again, in place; with `merge`, the adapter stays in its
    weights.

    What was trainable before is so again. A merged model then saves as any model of its library does
    (`model.save_pretrained(folder)`).
    Raises AdapterError where the adapter cannot be merged.
    """
    refuse_many(model)
    adapted = adaptation(model)
    if adapted is None:
        return
    if merge:
        adapted.method.merge(model)
        adapted.method.forget_unmerged(model)
    adapted.method.remove(model)
    remove_hooks(model, _one_adapter)
    del model._adaptation
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in adapted.trainable)


def refuse_many(model: nn.Module) -> None:
    """Raises AdapterError for a model that vera.Adapters holds: what it carries changes from call to call."""
    if "_adapters" in model.__dict__:
        raise AdapterError("this model holds many adapters (vera.Adapters): their unload() comes first")


def _one_adapter(model: nn.Module, arguments: Any, keywords: dict[str, Any]) -> None:
    """A forward pre-hook. transformers' models swallow keywords that they do not know: a choice among several
    adapters, as peft takes it, would be ignored in silence."""
    if "adapter_names" in keywords:
        raise AdapterError(
            "this model carries one adapter: adapter_names chooses among several (vera.Adapters holds them)"
        )


def _keep_4bit_unpacked(model: nn.Module) -> None:
    """On processors with avx512_bf16, bitsandbytes packs 4-bit weights anew in an evaluation, and no gradient
    passes through them from then on, without a word. Switched off here, and undone where it has happened."""
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment]
            if getattr(getattr(module.weight, "quant_state", None), "packing_format_for_cpu", False):
                module.state_dict()  # bitsandbytes unpacks to save, in place


def remove_hooks(module: nn.Module, *ours: Any) -> None:
    """Takes these functions, or methods of any object, out of a module's hooks. Handles would not survive a
    copy."""
    for hooks in (module._forward_hooks, module._forward_pre_hooks):
        for key in [key for key, hook in hooks.items() if getattr(hook, "__func__", hook) in ours]:
            del hooks[key]
            module._forward_pre_hooks_with_kwargs.pop(key, None)
            module._forward_hooks_always_called.pop(key, None)


def frozen_extra(model: nn.Module) -> dict[str, Tensor]:
    """What a method added and does not train, such as VeRA's A and B: parameters and buffers by name."""
    adapted = adaptation(model)
    if adapted is None:
        return {}
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    plain = plain_names(model)
    return {
        n: t for n, t in tensors.items() if n not in adapted.trained and plain[n] not in adapted.base_names
    }


def plain_names(model: nn.Module) -> dict[str, str]:
    """Every parameter's and buffer's name in the base model's own words, with what a method added behind:
    "...query.b"."""
    ours = {path for path, m in model.named_modules() if isinstance(m, AdaptedLinear)}
    pefts = {path for path, m in model.named_modules() if "base_layer" in m._modules}
    names = {}
    for name, _ in [*model.named_parameters(), *model.named_buffers()]:
        parts = name.split(".")
        inserted = set()
        for i in range(1, len(parts)):
            path = ".".join(parts[:i])
            if (path in ours and parts[i] in ("base", "changes")) or (
                path in pefts and parts[i] == "base_layer"
            ):
                inserted.add(i)
                if parts[i : i + 2] == ["changes", WHOLE]:
                    inserted.add(i + 1)
        names[name] = ".".join(part for i, part in enumerate(parts) if i not in inserted)
    return names


class Change(nn.Module):
    """A low-rank change of one matrix, or of one block of a fused one. Subclasses: `forward` and `weight`."""

    inputs: int
    outputs: int

    @property
    def dtype(self) -> torch.dtype:
        """That of its parameters: float32 or better, unless the adapted model was cast since."""
        return next(self.parameters()).dtype

    def forward(self, x: Tensor) -> Tensor:
        """The change of the output for x, (..., inputs) -> (..., outputs)."""
        raise NotImplementedError

    def weight(self) -> Tensor:
        """The change of the weight, (outputs, inputs)."""
        raise NotImplementedError


class Added(nn.Module):
    """A module that a method put into the model, and that can be switched off."""

    enabled = True


class AdaptedLinear(Added):
    """A frozen linear layer `base` plus a low-rank change of each of some blocks of its outputs (or of all of
    them).

    Shapes: x (..., in), output (..., out). The dtype of the output is the base layer's; the change is
    computed in float32 or better, so that small updates do not round away over half-precision weights.
    Outputs outside the blocks (the keys of a fused projection) are passed on untouched."""

    def __init__(self, base: nn.Module, changes: dict[str, Change], blocks: Blocks) -> None:
        super().__init__()
        self.base = base
        self.changes = nn.ModuleDict(changes)
        self.blocks = blocks
        #: Computes this layer's output, together with those of others that read the same input
        #: (kernels.Group).
        self.group: Any = None
        self._unmerged_weight: Tensor | None = None

    @property
    def merged(self) -> bool:
        return self._unmerged_weight is not None

    def forward(self, x: Tensor) -> Tensor:
        if self.merged or not self.enabled:
            return cast(Tensor, self.base(x))
        if self.group is not None:
            return cast(Tensor, self.group.output(self, x))
        y = self.base(x)
        x = x.to(cast(Change, next(iter(self.changes.values()))).dtype)
        return self.add(y, {name: change(x) for name, change in self.changes.items()})

    def add(self, y: Tensor, updates: dict[str, Tensor]) -> Tensor:
        """The base layer's output with the changes' in their blocks."""
        if WHOLE in updates:
            return (y + updates[WHOLE]).to(y.dtype)
        pieces, end = [], 0
        for name, rows in self.blocks.items():
            pieces += [y[..., end : rows.start], (y[..., rows] + updates[name]).to(y.dtype)]
            end = rows.stop
        return torch.cat([*pieces, y[..., end:]], dim=-1)

    def weight(self) -> Tensor:
        """The base weight as (out, in), a view."""
        weight = cast(Tensor, self.base.weight)
        return weight.T if is_transposed(self.base) else weight

    def check_mergeable(self) -> None:
        """Raises AdapterError where the base weight cannot take the change."""
        if not cast(Tensor, self.base.weight).is_floating_point():
            raise AdapterError(
                "a quantised base cannot be merged into: load the adapter onto the unquantised base model"
            )

    @torch.no_grad()
    def merge(self) -> None:
        if not self.enabled:
            raise AdapterError(
                "this adapter is switched off: vera.disable(model, False) comes before a merge"
            )
        if not self.merged:
            self.forget_kept()
            self.check_mergeable()
            self._unmerged_weight = cast(Tensor, self.base.weight).detach().clone()
            weight = self.weight()
            for name, change in self.changes.items():
                rows = self.blocks[name]
                weight[rows] = (weight[rows].to(adapter_dtype(self.base)) + cast(Change, change).weight()).to(
                    weight.dtype
                )

    @torch.no_grad()
    def unmerge(self) -> None:
        # The weight itself was kept: subtracting the change again would be off by a rounding.
        if self._unmerged_weight is not None:
            cast(Tensor, self.base.weight).copy_(self._unmerged_weight)
            self._unmerged_weight = None

    def forget_unmerged(self) -> None:
        """Makes the merge final."""
        self._unmerged_weight = None

    def forget_kept(self) -> None:
        """Frees the merged weight that its group keeps from call to call."""
        if self.group is not None:
            self.group.kept.pop(self, None)


def adapter_dtype(base: nn.Module) -> torch.dtype:
    """The dtype of what a method adds to a layer: float32, or float64 over float64."""
    dtype = cast(Tensor, base.weight).dtype
    return torch.float64 if dtype == torch.float64 else torch.float32


def adapted_layers(model: nn.Module) -> Iterator[AdaptedLinear]:
    """The adapted layers of a model, in its own order."""
    return (m for m in model.modules() if isinstance(m, AdaptedLinear))


def changes(model: nn.Module) -> Iterator[Change]:
    """The changes of all adapted matrices of a model, in its own order."""
    return (cast(Change, change) for layer in adapted_layers(model) for change in layer.changes.values())


def wrap(model: nn.Module, found: dict[str, Blocks], make: Any) -> None:
    """Puts an AdaptedLinear in the place of each layer found; `make(path, block, base, inputs, outputs)`
    gives a Change."""
    for path, blocks in found.items():
        base = model.get_submodule(path)
        inputs, _ = size(base)
        parts = {
            name: make(path, name, base, inputs, rows.stop - rows.start) for name, rows in blocks.items()
        }
        replace(model, path, AdaptedLinear(base, parts, blocks))


def check_rank(name: str, rank: int, widest: int) -> None:
    """Raises AdapterError for a rank beyond sense."""
    if rank > SENSE * widest:
        raise AdapterError(f"{name} {rank} is beyond sense for matrices of at most {widest} rows or columns")


def replace(model: nn.Module, path: str, layer: nn.Module) -> None:
    """Puts `layer` where the module `path` was."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)


def disable(model: nn.Module, disabled: bool = True) -> None:
    """Switches the adapter off (the base model answers; a merge is taken back) or on again. Values trained in
    place stay."""
    adapted = adaptation(model)
    if adapted is not None:
        adapted.method.disable(model, disabled)
