"""Checks of a method's settings: each has the type of its field, and a size that makes
sense."""

from dataclasses import fields
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

from vera.errors import AdapterError, first_line

#: What a setting of each type is called in an error message.
NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a word",
    tuple: "a list",
    dict: "a mapping",
}
#: Settings of which there must be one at least.
COUNTS = ("rank", "bottleneck", "bases")
#: A rank of more than this many times the widest matrix is a slip of the keyboard.
SENSE = 64
#: No setting needs a larger number, more words, or more letters in a word; a stranger's
#: file might have them.
LARGEST = 2.0**53
MOST_WORDS = 1_000


def types_of(method: Any) -> dict[str, Any]:
    """The type of each setting of a method's class. Raises AdapterError for one whose
    name means nothing, and for settings that no dataclass makes."""
    try:
        hints = get_type_hints(method)
    except Exception as error:  # of any kind: an annotation is code
        raise AdapterError(
            f"{method.__name__}: the type of a setting: {first_line(error)}"
        ) from None
    names = [field.name for field in fields(method)]
    for name, hint in hints.items():
        if name not in names and get_origin(hint) is not ClassVar:
            raise AdapterError(
                f"{method.__name__}: its settings need @dataclass(frozen=True) above the class"
            )
    return {name: hints[name] for name in names}


def check_settings(method: Any) -> None:
    """Makes lists tuples. Raises AdapterError for a setting of the wrong type, or out
    of range."""
    for name, annotation in types_of(type(method)).items():
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
    kind: Any = get_origin(annotation) or annotation
    kind = tuple if kind is list else kind
    if kind is Literal:
        options = get_args(annotation)
        if value not in options:
            listed = ", ".join(map(str, options))
            raise AdapterError(f"{name} must be one of {listed}, got {value!r}")
        return
    if kind not in NAMES:
        raise AdapterError(f"{name}: a setting of type {annotation} is not known")
    accepted = (int, float) if kind is float else kind
    # True is an int for Python
    is_right_bool = isinstance(value, bool) is (kind is bool)
    if not is_right_bool or not isinstance(value, accepted):
        raise AdapterError(f"{name} must be {NAMES[kind]}, got {value!r}")
    if kind is float and not abs(cast(float, value)) <= LARGEST:
        raise AdapterError(f"{name} must be a finite number, of at most 2^53")
    if kind is tuple and isinstance(value, tuple) and not _are_words(value):
        raise AdapterError(
            f"{name} must be a list of words: at most {MOST_WORDS}, of as many letters"
        )


def _are_words(values: tuple[object, ...]) -> bool:
    """Whether these are words, not too many and not too long."""
    if len(values) > MOST_WORDS:
        return False
    return all(isinstance(word, str) and len(word) <= MOST_WORDS for word in values)


def _check_range(name: str, value: Any) -> None:
    if isinstance(value, int) and name.endswith("_seed") and not 0 <= value < 2**64:
        raise AdapterError(f"{name} must be in [0, 2^64), got {value}")
    if name in COUNTS and value < 1:
        raise AdapterError(f"{name} must be a whole number of at least 1, got {value}")
    if name == "dropout" and not 0 <= value < 1:
        raise AdapterError(f"dropout must be in [0, 1), got {value}")


def check_rank(name: str, rank: int, widest: int) -> None:
    """Raises AdapterError for a rank that is far beyond the widest matrix."""
    if rank > SENSE * widest:
        raise AdapterError(
            f"{name} {rank} is beyond sense for matrices of at most {widest} rows or columns"
        )
