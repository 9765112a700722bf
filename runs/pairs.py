"""Whether a method fits a model, checked before a run by installing it on the model without weights. Methods
that compute on the weights (an SVD, say) pass here, and fail in the run if they fail."""

import contextlib
import io
import json
import warnings
from functools import cache
from pathlib import Path
from typing import Any

from runs import models
from runs.errors import UserError
from runs.methods import make_method
from runs.rates import BASES, patterns_of
from runs.run import Run

#: Methods that ask more of a model than linear layers: any of peft's; a patch embedding; rows and columns.
CHECKED = ("peft", "ssf", "lora_xs")


def refusal(run: Run) -> str | None:
    """Why a run's method does not fit its model, in one line; None where it does, or where that is not known.

    This checks peft's methods, the few of our own that not every model takes, and train.lr_by and decay_by,
    which name parameters. The rest need linear layers only, and importing torch takes seconds."""
    rates = {key: run.config["train"].get(key) or {} for key in BASES}
    if run.method["kind"] not in CHECKED and not any(rates.values()):
        return None
    model = run.config["model"]
    try:
        folder = models.locate(model)
    except UserError:  # the run itself raises it
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
        adapter = make_method(json.loads(method))
    except (vera.AdapterError, UserError) as error:
        return str(error)
    try:
        outline = models.skeleton(words, 2, Path(folder) if folder else None)
    except Exception:  # such as an architecture that transformers lacks: loading it raises that again
        return None
    try:
        # The run itself shows peft's warnings
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            adapter.adapt(outline)
    except vera.AdapterError as error:
        # On the meta device some computations fail that work on weights, and torch names the device
        return None if "meta" in str(error.__context__) else f"{words['label']}: {error}"
    except Exception:
        return None
    groups = adapter.parameter_groups(outline).values()
    try:
        for key, by in json.loads(rates).items():
            patterns_of([name for parameters in groups for name in parameters], by, key)
    except UserError as error:
        return f"{words['label']}: {error}"
    return None
