"""A fixed text that is not trained on. What a language model loses on it by training is
its forgetting: the mean cross-entropy, in nats a token, after training minus that of
the base model.

task.forgetting_text: null for the text of this project (tasks/texts), the path of a
text file, a file of a data set on the hub (hub:OWNER/NAME/FILE, with @REVISION at its
end), or none."""

import hashlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.base import DataError, Settings
from tasks.fetch import snapshot
from tasks.files import open_text

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KEY = "forgetting_text"
OWN_TEXT = Path(__file__).parent / "texts" / "lighthouses.txt"
HUB_FILE = re.compile(r"hub:([\w.-]+/[\w.-]+)/([^@*?\[]+)(?:@([\w./-]+))?")
#: Tokens that a model reads at once, or as many as it has positions.
WINDOW = 512


class FixedText:
    """A text that a language model's loss is computed on. name: what records call it. Call
    `prepare` before the other methods."""

    def __init__(self, name: str, text: str) -> None:
        self.name = name
        self.text = text
        self.sha256 = hashlib.sha256(text.encode()).hexdigest()
        self._ids: list[int] = []
        self._window = WINDOW

    def prepare(
        self, tokenizer: "PreTrainedTokenizerBase", positions: int | None = None
    ) -> None:
        """Tokenises the text, with the tokenizer's begin token if it writes one.
        positions: how many the model has, None where that is not known. Raises DataError
        for fewer than two tokens: the first one is given, the others are predicted."""
        # verbose=False: no warning that the text is long
        ids = list(tokenizer(self.text, verbose=False)["input_ids"])
        if len(ids) > 1 and ids[-1] == tokenizer.eos_token_id:
            ids = ids[:-1]  # an end token is not part of the text
        if len(ids) < 2:
            raise DataError(
                f"task.{KEY}={self.name}: a text of {len(ids)} tokens, two are needed"
            )
        self._ids = ids
        self._window = min(WINDOW, positions or WINDOW)

    @property
    def tokens(self) -> int:
        """How many tokens are predicted: all but the first."""
        return len(self._ids) - 1

    def for_record(self) -> dict[str, Any]:
        """What a record says about the text."""
        return {"text": self.name, "sha256": self.sha256, "tokens": self.tokens}

    def loss(self, model: "PreTrainedModel") -> float:
        """The mean cross-entropy of the text's tokens, in nats. Each token is predicted
        once, from those before it in its window. Windows overlap by one token: the last
        one of a window is the first one of the next, where it is given."""
        import torch
        from torch.nn.functional import cross_entropy

        device = next(model.parameters()).device
        total = 0.0
        for start in range(0, self.tokens, self._window - 1):
            window = self._ids[start : start + self._window]
            ids = torch.tensor([window], device=device)
            # The last token predicts nothing. No cache: no later call would read it
            logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0].float()
            losses = cross_entropy(logits, ids[0, 1:], reduction="none")
            total += float(losses.detach().cpu().double().sum())
        return total / self.tokens


def fixed_text(settings: Settings) -> FixedText | None:
    """The text that a task's settings name; None for none. Raises DataError for one
    that is not there, or cannot be read. Settings of older records, which lack the key,
    name this project's."""
    setting = settings.get(KEY)
    if setting == "none":
        return None
    if setting is None:
        return _read("shipped", OWN_TEXT, setting)
    if not str(setting).startswith("hub:"):
        return _read(Path(setting).name, Path(setting), setting)
    match = HUB_FILE.fullmatch(setting)
    if match is None:
        raise DataError(
            f"task.{KEY}={setting}: should be hub:OWNER/NAME/FILE, with @REVISION to pin "
            "it"
        )
    repo, file, revision = match.groups()
    instead = f"Give a local copy: task.{KEY}=/where/{Path(file).name}"
    folder = snapshot(repo, revision, [file], "dataset", instead)
    return _read(str(setting), folder / file, setting)


def _read(name: str, path: Path, setting: str | None) -> FixedText:
    """The text in a file. name: of the text, for records. setting: what the user gave, for
    errors."""
    if not path.is_file():
        raise DataError(
            f"task.{KEY}={setting}: no such file (a path, hub:OWNER/NAME/FILE, null or "
            "none)"
        )
    try:
        with open_text(path) as file:
            # The hash is of a text whose lines end in \n, on any system
            return FixedText(name, file.read().replace("\r\n", "\n"))
    except DataError as error:
        raise DataError(f"{error} (task.{KEY}={setting})") from None
