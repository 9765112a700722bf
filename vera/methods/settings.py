"""Checks of a method's settings: each has the type of its field, and a size that makes
sense."""

from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

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
    own = [field.name for field in fields(method)]
    if any(
        get_origin(hint) is not ClassVar
        for name, hint in hints.items()
        if name not in own
    ):
        raise AdapterError(
            f"{method.__name__}: its settings need @dataclass(frozen=True) above the class"
        )
    return {name: hints[name] for name in own}


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
            annotation = next(
                kind for kind in get_args(annotation) if kind is not NoneType
            )
        kind: Any = get_origin(annotation) or annotation
        kind = tuple if kind is list else kind
        words = value if kind is tuple and isinstance(value, tuple) else ()
        if kind is Literal:
            if value not in get_args(annotation):
                options = ", ".join(map(str, get_args(annotation)))
                raise AdapterError(f"{name} must be one of {options}, got {value!r}")
        elif kind not in NAMES:
            raise AdapterError(f"{name}: a setting of type {annotation} is not known")
        elif isinstance(value, bool) is not (kind is bool) or not isinstance(
            value, (int, float) if kind is float else kind
        ):
            raise AdapterError(f"{name} must be {NAMES[kind]}, got {value!r}")
        elif kind is int and name.endswith("_seed") and not 0 <= value < 2**64:
            raise AdapterError(f"{name} must be in [0, 2^64), got {value}")
        elif kind is float and not abs(value) <= LARGEST:
            raise AdapterError(f"{name} must be a finite number, of at most 2^53")
        elif len(words) > MOST_WORDS or any(
            not isinstance(w, str) or len(w) > MOST_WORDS for w in words
        ):
            raise AdapterError(
                f"{name} must be a list of words: at most {MOST_WORDS}, of as many letters"
            )
        elif name in COUNTS and value < 1:
            raise AdapterError(
                f"{name} must be a whole number of at least 1, got {value}"
            )
        elif name == "dropout" and not 0 <= value < 1:
            raise AdapterError(f"dropout must be in [0, 1), got {value}")


def check_rank(name: str, rank: int, widest: int) -> None:
    """Raises AdapterError for a rank that is far beyond the widest matrix."""
    if rank > SENSE * widest:
        raise AdapterError(
            f"{name} {rank} is beyond sense for matrices of at most {widest} rows or columns"
        )
