"""Checks of a method's settings: each has the type of its field, and a size that makes sense."""

from dataclasses import fields
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vera.errors import AdapterError

#: What a setting of each type is called in an error message.
NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a word",
    tuple: "a list",
    dict: "a mapping",
}
#: A rank of more than this many times the widest matrix is a slip of the keyboard.
SENSE = 64
#: No setting needs a larger number, more words, or more letters in a word; a stranger's file might have them.
LARGEST = 2.0**53
MOST_WORDS = 1_000


def check_settings(method: Any) -> None:
    """Makes lists tuples. Raises AdapterError for a setting of the wrong type, or out of range."""
    try:
        hints = get_type_hints(type(method))
    except NameError as error:
        raise AdapterError(f"annotations of {type(method).__name__}: {error}") from None
    for field in fields(method):
        if isinstance(getattr(method, field.name), list):
            object.__setattr__(method, field.name, tuple(getattr(method, field.name)))
        value, annotation = getattr(method, field.name), hints[field.name]
        if get_origin(annotation) in (UnionType, Union):  # int | None, or Optional[int]
            if value is None:
                continue
            annotation = next(kind for kind in get_args(annotation) if kind is not NoneType)
        if get_origin(annotation) is Literal:
            if value not in get_args(annotation):
                options = ", ".join(map(str, get_args(annotation)))
                raise AdapterError(f"{field.name} must be one of {options}, got {value!r}")
            continue
        kind: Any = get_origin(annotation) or annotation
        kind = tuple if kind is list else kind
        if kind not in NAMES:
            known = ", ".join(known.__name__ for known in NAMES)
            raise AdapterError(f"{field.name}: a setting of type {annotation}; known: {known}")
        number = kind is float and isinstance(value, int)
        if isinstance(value, bool) is not (kind is bool) or not (isinstance(value, kind) or number):
            raise AdapterError(f"{field.name} must be {NAMES[kind]}, got {value!r}")
        if kind is int and field.name.endswith("_seed") and not 0 <= value < 2**64:
            raise AdapterError(f"{field.name} must be in [0, 2^64), got {value}")
        if kind is float and not abs(value) <= LARGEST:
            raise AdapterError(f"{field.name} must be a finite number, of at most 2^53")
        if kind is tuple and not all(isinstance(word, str) for word in value):
            raise AdapterError(f"{field.name} must be a list of words, got {list(value)}")
        if kind is tuple and (len(value) > MOST_WORDS or any(len(word) > MOST_WORDS for word in value)):
            raise AdapterError(f"{field.name} has at most {MOST_WORDS} words, of as many letters")
    rank, dropout = getattr(method, "rank", 1), getattr(method, "dropout", 0.0)
    if rank is not None and rank < 1:
        raise AdapterError(f"rank must be a whole number of at least 1, got {rank}")
    if not 0 <= dropout < 1:
        raise AdapterError(f"dropout must be in [0, 1), got {dropout}")


def check_rank(name: str, rank: int, widest: int) -> None:
    """Raises AdapterError for a rank that is far beyond the widest matrix."""
    if rank > SENSE * widest:
        raise AdapterError(f"{name} {rank} is beyond sense for matrices of at most {widest} rows or columns")
