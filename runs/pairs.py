"""Whether a method of peft fits a model, checked before any run: the method is installed on the model without
weights. Methods that compute on the weights (an SVD, say) pass here, and fail in the run if they fail."""

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


def refusal(run: Run) -> str | None:
    """Why a run's method does not fit its model, in one line; None where it does, or where that is not known.

    This checks peft's methods alone: our own need linear layers only, and importing peft takes seconds."""
    if run.method["kind"] != "peft":
        return None
    model = run.config["model"]
    try:
        folder = models.locate(model)
    except UserError:  # the run itself raises it
        return None
    if folder is None and not model["architecture"]:
        return None
    words = {key: model[key] for key in ("architecture", "settings", "modality", "label")}
    return _refusal(json.dumps(words), str(folder) if folder else None, json.dumps(run.method))


@cache
def _refusal(model: str, folder: str | None, method: str) -> str | None:
    import vera

    words: dict[str, Any] = json.loads(model)
    try:
        adapter = vera.make_method(**json.loads(method))
    except vera.AdapterError as error:
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
    return None
