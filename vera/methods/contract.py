"""The contract of an adaptation method.

A method is a small frozen dataclass of its settings. The model carries all the state:
`adapt` changes the model in place, and every later call reads what it needs from the
model. lora.py is the example of a low-rank method, on the layers of layers.py."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from types import NoneType, UnionType
from typing import (
    Any,
    ClassVar,
    Literal,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import torch
from torch import Tensor, nn

from vera.errors import AdapterError, first_line
from vera.methods.adapted import adapt_with, adaptation
from vera.methods.layers import AdaptedLinear, Added, adapted_layers
from vera.methods.merging import check_mergeable, try_merges
from vera.sites import head_parameters

#: Every method by its kind. Filled as the files of this folder are imported.
METHODS: dict[str, type["Method"]] = {}


@dataclass(frozen=True)
class Method(ABC):
    """One way of adapting a pretrained model. Subclasses: `class VeRA(Method,
    kind="vera")`; AdapterError where another class has the kind."""

    kind: ClassVar[str]
    #: Ends the error message of a file whose `fixed` differs from the model's: what the
    #: user can do about it.
    hint: ClassVar[str] = "Same base model and version?"

    def __init_subclass__(cls, kind: str = "", **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if kind:
            registered = _full_name(METHODS.get(kind, cls))
            # The same class may come again: a reloaded module, a notebook's cell,
            # dataclass(slots=True)
            if registered != _full_name(cls):
                raise AdapterError(f"kind {kind!r} is taken by {registered}")
            cls.kind = kind
            METHODS[kind] = cls

    def __post_init__(self) -> None:
        check_settings(self)

    def settings(self) -> dict[str, Any]:
        """The settings as plain values, with the kind; `make_method(**settings)` gives
        an equal method.

        Fields with `compare=False` are left out: they change how the result is
        computed, not the result."""
        values = asdict(self)
        settings: dict[str, Any] = {"kind": self.kind}
        for field in fields(self):
            if field.compare:
                value = values[field.name]
                settings[field.name] = (
                    list(value) if isinstance(value, tuple) else value
                )
        return settings

    # --- a model's life with the method

    def adapt(self, model: nn.Module) -> None:
        """Freezes the model, installs the method in place, and leaves its parameters
        and the head trainable.

        Raises AdapterError, with the model unchanged, where it is adapted already or
        lacks the method's sites."""
        adapt_with(model, self)

    @abstractmethod
    def install(self, model: nn.Module) -> None:
        """Adds the method's own parameters to a frozen model, or unfreezes those it
        trains."""

    def remove(self, model: nn.Module) -> None:
        """Takes out the modules that `install` added; `unload` takes out its hooks.
        Values that the method trained in place stay as they are."""
        self.unmerge(model)
        # Innermost first: an adapted layer may be inside another one's change
        for path, module in reversed(list(model.named_modules())):
            parent, _, name = path.rpartition(".")
            if isinstance(module, AdaptedLinear):
                model.set_submodule(path, module.base)
            elif isinstance(module, Added):
                delattr(model.get_submodule(parent), name)

    @abstractmethod
    def count(self, model: nn.Module) -> int:
        """Trainable parameters without the head: the method's closed formula on an
        adapted model's shapes."""

    # --- training

    def adapter_parameters(self, model: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters that the method trains, by name, without the head's; also
        while they are frozen."""
        adapted = adaptation(model)
        if adapted is None:
            return {}
        named = model.named_parameters()
        return {name: p for name, p in named if name in adapted.trained}

    def parameter_groups(self, model: nn.Module) -> dict[str, dict[str, nn.Parameter]]:
        """Trainable parameters by name in two groups, each with its own learning rate:
        "adapter", "head"."""
        head = head_parameters(model).items()
        trained_head = {name: p for name, p in head if p.requires_grad}
        return {"adapter": self.adapter_parameters(model), "head": trained_head}

    def before_training(self, model: nn.Module, total_steps: int) -> None:  # noqa: B027 - most methods need nothing here
        """For a schedule of the method's own: called when training begins or is
        resumed. total_steps: the number of optimizer steps of the whole training."""

    def penalty(self, model: nn.Module) -> Tensor | None:
        """A term of the method's own, added to the loss of each forward pass; None for
        most."""
        return None

    def after_step(self, model: nn.Module, step: int) -> None:  # noqa: B027
        """For methods that change as they train: called after each optimizer step (from
        1), before the gradients are cleared."""

    def training_state(self, model: nn.Module) -> dict[str, Tensor]:
        """What the method must remember of the steps so far, for a training checkpoint;
        nothing for most methods."""
        return {}

    def load_training_state(self, model: nn.Module, state: dict[str, Tensor]) -> None:  # noqa: B027
        """Puts `training_state` back."""

    # --- files and inference

    def saved(self, model: nn.Module) -> dict[str, Tensor]:
        """The tensors of the adapter file by name: what trains, and what `install`
        cannot compute again (such as LoRA-FA's frozen A). The model's own tensors, not
        copies: a file's values are copied into them."""
        return dict(self.adapter_parameters(model))

    def redrawn(self, model: nn.Module) -> frozenset[str]:
        """The names, as in the adapter file, of those tensors of `saved` that `install`
        draws again bit for bit: no file needs to hold them."""
        return frozenset()

    def fixed(
        self, model: nn.Module, left_out: frozenset[str] = frozenset()
    ) -> dict[str, Any]:
        """What the adapter relies on and neither trains nor saves, such as the
        fingerprint of projections. The adapter file holds it, and loading compares it
        (the hash of the base weights is compared for every method). It may depend on
        settings, names and shapes alone (but see `reads_weights`), since it is called
        on a copy of the model on the meta device.

        left_out: the names of `redrawn` that the file does not hold."""
        return {}

    @property
    def reads_weights(self) -> bool:
        """Whether `fixed` depends on the values of the base weights, too. Loading then
        tries a file on a whole copy of the model, once its names and shapes are known
        to fit."""
        return False

    def merge(self, model: nn.Module) -> None:
        """Folds the adapter into the base weights: inference costs what the base model
        costs. A merged model stays as it is.

        Raises AdapterError, with the model unchanged, where the adapter cannot be
        merged.
        """
        adapted = adaptation(model)
        if adapted is None:
            raise AdapterError("this model carries no adapter: nothing to merge")
        if adapted.weights_before_merge:
            return
        layers = list(self.merge_targets(model))
        check_mergeable(model, layers)
        changed_ids = set()
        for layer, _ in layers:
            changed_ids |= {id(p) for p in layer.parameters(recurse=False)}
        for name, parameter in model.named_parameters():
            if id(parameter) in changed_ids:
                adapted.weights_before_merge[name] = parameter.detach().clone()
        try:
            self.fold(model)
        except BaseException:
            self.unmerge(model)
            raise

    def merge_targets(self, model: nn.Module) -> Iterable[tuple[nn.Module, bool]]:
        """The base model's layers whose parameters a merge changes, each with whether
        its adapter is on."""
        return ((layer.base, layer.enabled) for layer in adapted_layers(model))

    def fold(self, model: nn.Module) -> None:
        """Adds the changes to the weights of `merge_targets`. Where it raises, `merge`
        puts the weights back."""
        try_merges(f"method {self.kind}", adapted_layers(model))
        for layer in adapted_layers(model):
            layer.merge()

    def unfold(self, model: nn.Module) -> None:
        """Makes the layers compute their changes again. `unmerge` calls it before it puts
        the weights back."""
        for module in model.modules():
            if isinstance(module, Added):
                module.merged = False

    @torch.no_grad()
    def unmerge(self, model: nn.Module) -> None:
        """Puts the base weights back, bit for bit."""
        adapted = adaptation(model)
        if adapted and adapted.weights_before_merge:
            self.unfold(model)
            # Copies, since subtracting the changes would be off by a rounding
            for name, weight in adapted.weights_before_merge.items():
                model.get_parameter(name).copy_(weight)
            adapted.weights_before_merge.clear()

    def disable(self, model: nn.Module, disabled: bool) -> None:
        """See `vera.disable`."""
        if disabled:
            self.unmerge(model)
        for module in model.modules():
            if isinstance(module, Added):
                module.enabled = not disabled


def _full_name(method_class: type[Method]) -> str:
    """The module and the name of a class."""
    return f"{method_class.__module__}.{method_class.__qualname__}"


# --- checks of settings: each has the type of its field, and a size that makes sense


#: What a setting of each type is called in an error message.
TYPE_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a word",
    tuple: "a list",
    dict: "a mapping",
}
#: Settings that must be 1 at least, in any method that has them.
POSITIVE_SETTINGS = ("rank", "bottleneck", "bases")
#: A rank above this many times the widest matrix is a typing error.
MAX_RANK_PER_WIDTH = 64
#: No setting needs a larger number, more words, or more letters in a word, but a
#: stranger's file might have them.
LARGEST_NUMBER = 2.0**53
MAX_WORDS = 1_000
MAX_LETTERS = 1_000


def setting_types(method_class: Any) -> dict[str, Any]:
    """The type of each setting of a method's class. Raises AdapterError for a type that
    cannot be resolved, and for a class that is not a dataclass but has settings."""
    try:
        hints = get_type_hints(method_class)
    except Exception as error:  # an annotation is code, which may raise anything
        raise AdapterError(
            f"{method_class.__name__}: the type of a setting: {first_line(error)}"
        ) from None
    names = [field.name for field in fields(method_class)]
    for name, hint in hints.items():
        if name not in names and get_origin(hint) is not ClassVar:
            raise AdapterError(
                f"{method_class.__name__}: its settings need @dataclass(frozen=True) above the class"
            )
    return {name: hints[name] for name in names}


def check_settings(method: Any) -> None:
    """Checks the settings of a method, and replaces lists among them by tuples. Raises
    AdapterError for a setting of the wrong type, or out of range."""
    for name, annotation in setting_types(type(method)).items():
        value = getattr(method, name)
        if isinstance(value, list):
            value = tuple(value)
            object.__setattr__(method, name, value)
        if get_origin(annotation) in (UnionType, Union):  # int | None, or Optional[int]
            if value is None:
                continue
            alternatives = get_args(annotation)
            annotation = next(kind for kind in alternatives if kind is not NoneType)
        _check_type(name, value, annotation)
        _check_range(name, value)


def _check_type(name: str, value: object, annotation: Any) -> None:
    """Raises AdapterError for a setting whose value does not have the type of its
    annotation, or is larger than any setting needs."""
    setting_type: Any = get_origin(annotation) or annotation
    if setting_type is list:  # check_settings has made the value a tuple
        setting_type = tuple
    if setting_type is Literal:
        options = get_args(annotation)
        if value not in options:
            listed = ", ".join(map(str, options))
            raise AdapterError(f"{name} must be one of {listed}, got {value!r}")
        return
    if setting_type not in TYPE_NAMES:
        raise AdapterError(f"{name}: a setting of type {annotation} is not known")
    accepted_types = (int, float) if setting_type is float else setting_type
    # Python takes True and False for whole numbers, too: no setting does
    is_bool = isinstance(value, bool)
    needs_bool = setting_type is bool
    if is_bool != needs_bool or not isinstance(value, accepted_types):
        raise AdapterError(f"{name} must be {TYPE_NAMES[setting_type]}, got {value!r}")
    if setting_type is float and not abs(cast(float, value)) <= LARGEST_NUMBER:
        raise AdapterError(f"{name} must be a finite number, of at most 2^53")
    if setting_type is tuple and isinstance(value, tuple) and not _are_words(value):
        raise AdapterError(
            f"{name} must be a list of words: at most {MAX_WORDS}, of as many letters"
        )


def _are_words(values: tuple[object, ...]) -> bool:
    """Whether these are words, not too many and not too long."""
    if len(values) > MAX_WORDS:
        return False
    return all(isinstance(word, str) and len(word) <= MAX_LETTERS for word in values)


def _check_range(name: str, value: Any) -> None:
    """Raises AdapterError for a value that makes no sense in a setting of this name, in
    whichever method."""
    if isinstance(value, int) and name.endswith("_seed") and not 0 <= value < 2**64:
        raise AdapterError(f"{name} must be in [0, 2^64), got {value}")
    if name in POSITIVE_SETTINGS and value < 1:
        raise AdapterError(f"{name} must be a whole number of at least 1, got {value}")
    if name == "dropout" and not 0 <= value < 1:
        raise AdapterError(f"dropout must be in [0, 1), got {value}")


def check_rank(name: str, rank: int, widest: int) -> None:
    """Raises AdapterError for a rank that is far beyond the widest matrix.

    name: of the setting. widest: the most rows or columns of a matrix to be adapted."""
    if rank > MAX_RANK_PER_WIDTH * widest:
        raise AdapterError(
            f"{name} {rank} is beyond sense for matrices of at most {widest} rows or columns"
        )
