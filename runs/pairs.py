"""Whether a method can be put on a model: told from the model's configuration, before anything runs.

The method is installed on the model without its weights. What only weights can tell (an SVD, say) is not told
here."""

import contextlib
import io
import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from runs import models
from runs.config import Run
from runs.errors import UserError
from runs.rates import patterns_of

#: Methods that ask more of a model than linear layers: any of peft's; a patch embedding; rows and columns.
CHECKED = ("peft", "ssf", "lora_xs")


def refusal(run: Run) -> str | None:
    """Why a run's method and model do not go together, in one line; None where they do, or where it cannot be
    told here.

    Of peft's methods, of the few of this library's own that not every model takes, and of train.lr_by, which
    names parameters: the rest need no other layer than a linear one, and importing torch takes seconds."""
    rates = run.config["train"].get("lr_by") or {}
    if run.method["kind"] not in CHECKED and not rates:
        return None
    model = run.config["model"]
    try:
        folder = models.locate(model)
    except UserError:  # which has its own message
        return None
    if folder is None and not model["architecture"]:
        return None
    words = {key: model[key] for key in ("architecture", "settings", "modality", "label")}
    return _refusal(
        json.dumps(words), str(folder) if folder else None, json.dumps(run.method), json.dumps(rates)
    )


@cache
def _refusal(model: str, folder: str | None, method: str, rates: str) -> str | None:
    import vera

    words: dict[str, Any] = json.loads(model)
    try:
        adapter = vera.make_method(**json.loads(method))
    except vera.AdapterError as error:
        return str(error)
    try:
        outline = models.skeleton(words, 2, Path(folder) if folder else None)
    except Exception:  # an architecture that transformers does not know, say: loading it has its own message
        return None
    try:
        # Peft's are for the run itself
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            adapter.adapt(outline)
    except vera.AdapterError as error:
        # Without values some computations fail that would not otherwise, and torch says so.
        return None if "meta" in str(error.__context__) else f"{words['label']}: {error}"
    except Exception:
        return None
    groups = adapter.parameter_groups(outline).values()
    try:
        patterns_of([name for parameters in groups for name in parameters], json.loads(rates))
    except UserError as error:
        return f"{words['label']}: {error}"
    return None
