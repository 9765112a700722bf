"""A fixed text that is not trained on. What a language model loses on it by training is
its forgetting: the mean cross-entropy, in nats a token, after training less that of the
base model.

task.forgetting_text: null for the text of this project (tasks/texts), the path of a
text file, a file of a data set on the hub (hub:OWNER/NAME/FILE, with @REVISION at its
end), or none."""

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.base import DataError
from tasks.fetch import snapshot
from tasks.files import open_text

KEY = "forgetting_text"
OWN_TEXT = Path(__file__).parent / "texts" / "lighthouses.txt"
#: Tokens that a model reads at once, or as many as it has positions.
WINDOW = 512


class FixedText:
    """A text, its name and its sha256; once it is tokenised, its token ids and their
    windows."""

    def __init__(self, name: str, text: str) -> None:
        self.name, self.text = name, text
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()
        self._ids: list[int] = []
        self._window = WINDOW

    def prepare(self, tokenizer: Any, positions: int | None = None) -> None:
        """Tokenises the text, with the tokenizer's begin token if it writes one.
        positions: the model's. Raises DataError for fewer than two tokens: the first
        one is given, the others are predicted."""
        # no warning that it is long
        ids = list(tokenizer(self.text, verbose=False)["input_ids"])
        self._ids = (
            ids[:-1] if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id else ids
        )
        self._window = min(WINDOW, positions or WINDOW)
        if len(self._ids) < 2:
            raise DataError(
                f"task.{KEY}={self.name}: a text of {len(self._ids)} tokens, two are needed"
            )

    @property
    def tokens(self) -> int:
        """How many tokens are predicted: all but the first."""
        return len(self._ids) - 1

    def about(self) -> dict[str, Any]:
        """What a record says of the text."""
        return {"text": self.name, "sha256": self.sha256, "tokens": self.tokens}

    def loss(self, model: Any) -> float:
        """The mean cross-entropy of the tokens, in nats. Each is predicted once, from
        the tokens before it in its window. A window begins with the last token of the
        one before."""
        import torch
        from torch.nn.functional import cross_entropy

        device, total = next(model.parameters()).device, 0.0
        step = self._window - 1
        for start in range(0, self.tokens, step):
            ids = torch.tensor([self._ids[start : start + self._window]], device=device)
            # The last token predicts nothing; no cache, which no call would read
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0].float()
            total += float(
                cross_entropy(logits, ids[0, 1:], reduction="none")
                .detach()
                .cpu()
                .double()
                .sum()
            )
        return total / self.tokens


def fixed_text(settings: Mapping[str, Any]) -> FixedText | None:
    """The text that a task's settings name; None for none. Raises DataError for one
    that is not there, or cannot be read. Settings of older records, which lack the key,
    name this project's."""
    where = settings.get(KEY)
    if where == "none":
        return None
    of_hub = re.fullmatch(
        r"hub:([\w.-]+/[\w.-]+)/([^@*?\[]+)(?:@([\w./-]+))?", where or ""
    )
    path, name = (
        (OWN_TEXT, "shipped") if where is None else (Path(where), Path(where).name)
    )
    if of_hub:
        repo, file, revision = of_hub.groups()
        instead = f"Give a local copy: task.{KEY}=/where/{Path(file).name}"
        path, name = (
            snapshot(repo, revision, [file], "dataset", instead) / file,
            str(where),
        )
    elif str(where).startswith("hub:"):
        raise DataError(
            f"task.{KEY}={where}: should be hub:OWNER/NAME/FILE, with @REVISION to pin it"
        )
    if not path.is_file():
        raise DataError(
            f"task.{KEY}={where}: no such file (a path, hub:OWNER/NAME/FILE, null or none)"
        )
    try:
        with open_text(path) as opened:
            # as hashes count it
            return FixedText(name, opened.read().replace("\r\n", "\n"))
    except DataError as error:
        raise DataError(f"{error} (task.{KEY}={where})") from None
