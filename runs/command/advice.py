"""What a message about a wrong word says: what is wrong in one line, and the nearest right
name."""

import difflib
import re
from collections.abc import Collection, Mapping

from pydantic import ValidationError

from runs.command.errors import UserError
from runs.record.ledger import in_conf
from runs.record.override import as_override_value


def did_you_mean(name: str, right_names: Collection[str], suffix: str = "") -> str:
    """A sentence with the nearest right names, to be appended to a message; "" where
    none is near. suffix: what is put after each name, such as "="."""
    # such as train.lr for learning_rate, its name in transformers
    our_name = in_conf("other_names.yaml").get(name.rpartition(".")[2], name)
    nearest = [
        f"{right}{suffix}" for right in _nearest_names(str(our_name), right_names)
    ]
    return f" Did you mean {' or '.join(nearest)}?" if nearest else ""


def _nearest_names(name: str, right_names: Collection[str]) -> list[str]:
    """The names that someone who wrote `name` may have meant, by the first rule that
    finds any: the same in another case, longer names, the same last part in a group, the
    same letters in another order, similar letters."""
    last_part = name.rpartition(".")[2]
    in_other_case = [right for right in right_names if right.lower() == name.lower()]
    longer = [right for right in right_names if right.startswith(f"{name}_")]
    in_a_group = [right for right in right_names if right.endswith(f".{last_part}")]
    swapped_letters = [right for right in right_names if sorted(right) == sorted(name)]
    for names in (in_other_case, longer[:4], in_a_group[:1], swapped_letters[:1]):
        if names:
            return names
    return difflib.get_close_matches(name, right_names, 1, 0.75)


def describe_mistake(
    error: ValidationError,
    keys: Mapping[str, str] | None = None,
    parent_key: str = "",
) -> str:
    """The first mistake that pydantic has found, in one line: the override that is
    wrong, what it should be, and the nearest right name.

    Args:
        error: What pydantic raised.
        keys: What is typed for a field, by the field's name, where that differs.
        parent_key: The key of the checked mapping within the configuration, if it is
            only a part of it.
    """
    first = error.errors(include_url=False)[0]
    kind = first["type"]
    context = first.get("ctx", {})
    path = [parent_key] if parent_key else []
    for part in first["loc"]:
        path.append((keys or {}).get(str(part), str(part)))
    key = ".".join(path)
    if kind == "value_error":  # one of our own checks raised it
        return str(context["error"])
    if kind == "missing":
        return f"{key} is missing"
    if kind == "extra_forbidden":
        return f"no key {key!r}"
    # the values of a Literal, which pydantic lists in quotes
    allowed = re.findall(r"'([^']*)'", str(context.get("expected", "")))
    advice = did_you_mean(str(first["input"]), allowed)
    text = f"{first['msg'].removeprefix('Input ')}.{advice}"
    return f"{key}={as_override_value(first['input'])}: {text}".rstrip(".")


def require_known(kind: str, name: str, right_names: Collection[str]) -> str:
    """The name, if it is one of `right_names`. Otherwise raises UserError with the
    nearest right name and all of them. kind: what it names, such as "card"."""
    if name not in right_names:
        advice = did_you_mean(name, right_names)
        names = ", ".join(right_names)
        raise UserError(f"no {kind} {name!r}.{advice} Known: {names}")
    return name
