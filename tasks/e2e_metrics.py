"""The five scores of the E2E challenge, equal to those of its own scripts
(tuetschek/e2e-metrics, in Python mode) if every text has at least 4 tokens. For a
shorter text those scripts count a negative number of n-grams, and for an empty one a
token, so their BLEU and NIST differ; here such a text has no n-grams.

    python -m tasks.e2e_metrics REFERENCES HYPOTHESES [--json]

REFERENCES holds a block of lines for each item, with a blank line between items;
HYPOTHESES a line for each item. BLEU, METEOR and ROUGE-L are printed times 100, as
papers do; NIST and CIDEr as they are.

BLEU is sacrebleu's, METEOR 1.5, ROUGE-L and CIDEr are pycocoevalcap's behind its PTB
tokeniser; these three need Java. NIST has no package that agrees with mteval, and is
computed here from its definition."""

import argparse
import contextlib
import json
import math
import os
import shutil
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tasks.base import DataError
from tasks.files import open_text

METRICS = {
    "bleu": "BLEU",
    "nist": "NIST",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
}
NO_JAVA = "no java on this machine (Debian: apt install default-jre-headless; conda: conda install openjdk)"


def scores(
    references: Sequence[Sequence[str]], hypotheses: Sequence[str]
) -> dict[str, Any]:
    """The five scores of a hypothesis for each item, by the keys of METRICS.

    Where Java is missing or fails, the scores that need it are None, with the reasons
    by key under "unavailable". Raises ValueError for other numbers of items, none, or
    one without references."""
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} items")
    if not references or not all(any(r.strip() for r in item) for item in references):
        raise ValueError("an item without references" if references else "no items")
    references = [[_spaced(r) for r in item if r.strip()] for item in references]
    hypotheses = [_spaced(h) for h in hypotheses]
    without_java = {
        "bleu": bleu(references, hypotheses),
        "nist": nist(references, hypotheses),
    }
    return without_java | _with_java(references, hypotheses)


def _spaced(text: str) -> str:
    """The text on one line with single spaces: Java ends lines at more characters than
    Python does."""
    return " ".join(text.split())


def bleu(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> float:
    """BLEU-4 of mteval-13a, lower case, times 100. The reference length: the closest,
    of two the shorter."""
    from sacrebleu import corpus_bleu

    most = max(map(len, references))
    streams: Any = [
        [item[i] if i < len(item) else None for item in references] for i in range(most)
    ]
    settings: Any = {
        "lowercase": True,
        "tokenize": "13a",
        "smooth_method": "none",
        "force": True,
    }
    return float(corpus_bleu(list(hypotheses), streams, **settings).score)


def nist(
    references: Sequence[Sequence[str]], hypotheses: Sequence[str], longest: int = 5
) -> float:
    """NIST-5 of mteval-13a on lower-case text (Doddington 2002).

    The information of an n-gram is log2(count of its first n - 1 words / count of the
    n-gram), counted in all references. The mean information of the matched n-grams is
    summed over n, and multiplied by exp(beta log2(min(1, length ratio))), with beta
    such that a ratio of 2/3 halves the score. The reference length is the mean over an
    item's references. The challenge's Python mode agrees with this; its Perl script
    averages differently where the number of references varies."""
    # For each n, over all items
    counts: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(longest + 1)]
    matched: list[Counter[tuple[str, ...]]] = [Counter() for _ in range(longest + 1)]
    total, reference_length = [0] * (longest + 1), 0.0
    for item, hypothesis in zip(references, hypotheses, strict=True):
        tokens, candidate = [_mteval(r) for r in item], _mteval(hypothesis)
        words = sum(map(len, tokens))
        counts[0][()] += words
        reference_length += words / len(tokens)
        for n in range(1, longest + 1):
            each = [_ngrams(t, n) for t in tokens]
            for grams in each:
                counts[n] += grams
            allowed: Counter[tuple[str, ...]] = Counter()
            for grams in each:
                allowed |= grams  # the most that any one reference has
            own = _ngrams(candidate, n)
            matched[n] += own & allowed
            total[n] += own.total()
    information = 0.0
    for n in range(1, longest + 1):
        before, of = counts[n - 1], counts[n]
        gained = sum(
            k * math.log2(before[gram[:-1]] / of[gram])
            for gram, k in matched[n].items()
        )
        information += gained / total[n] if total[n] else 0.0
    ratio = min(1.0, total[1] / reference_length) if reference_length else 0.0
    beta = math.log(0.5) / math.log(1.5) ** 2
    return information * math.exp(beta * math.log(ratio) ** 2) if ratio else 0.0


def _mteval(text: str) -> list[str]:
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return str(Tokenizer13a()(text)).lower().split()  # type: ignore[no-untyped-call]


def _ngrams(tokens: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(tokens[i:] for i in range(n)), strict=False))


# --- scores that need Java


def _with_java(
    references: Sequence[Sequence[str]], hypotheses: Sequence[str]
) -> dict[str, Any]:
    """METEOR, ROUGE-L, CIDEr on PTB-tokenised text without punctuation; None, and why,
    where Java fails."""
    by_key: dict[str, Any] = dict.fromkeys(("meteor", "rouge_l", "cider"))
    try:
        if shutil.which("java") is None:
            raise JavaError(NO_JAVA)
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge

        expected = _ptb(dict(enumerate(references)))
        given = _ptb(dict(enumerate([h] for h in hypotheses)))
        by_key["rouge_l"] = 100 * float(Rouge().compute_score(expected, given)[0])
        by_key["cider"] = float(Cider().compute_score(expected, given)[0])
        by_key["meteor"] = 100 * _meteor(expected, given)
    except JavaError as error:
        by_key["unavailable"] = {
            key: str(error) for key, score in by_key.items() if score is None
        }
    return by_key


class JavaError(Exception):
    """Java is missing or has failed. The message is one line."""


Tokenised = dict[int, list[str]]


def _ptb(texts: dict[int, Sequence[str]]) -> Tokenised:
    """Texts as the PTB tokeniser of pycocoevalcap splits them, lower case, without
    punctuation."""
    from pycocoevalcap.tokenizer import ptbtokenizer

    # The wrapper does not notice missing lines. A last line of our own shows that all
    # came.
    end = -1
    marked = {
        key: [{"caption": text} for text in lines] for key, lines in texts.items()
    }
    marked[end] = [{"caption": "end"}]

    with _quietly("the PTB tokeniser"):
        tokenised: Tokenised = ptbtokenizer.PTBTokenizer().tokenize(marked)
    if tokenised.pop(end, None) != ["end"]:
        raise JavaError(
            "java ended before the PTB tokeniser was done (out of memory, or older than 8?)"
        )
    return tokenised


def _meteor(expected: Tokenised, given: Tokenised) -> float:
    from pycocoevalcap.meteor import meteor

    with _quietly("METEOR"):
        scorer = meteor.Meteor()
        try:
            return float(scorer.compute_score(expected, given)[0])
        finally:
            # an error leaves it locked, and the scorer's end would wait for ever
            if scorer.lock.locked():
                scorer.lock.release()


@contextlib.contextmanager
def _quietly(what: str) -> Iterator[None]:
    """Silences a wrapper of a Java program. Its various errors become a JavaError."""
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)  # the tokeniser reports its speed there
        yield
    except (OSError, ValueError, IndexError, AssertionError) as error:
        detail = (
            error.strerror
            if isinstance(error, OSError) and error.strerror
            else "it gave no score"
        )
        raise JavaError(f"java failed in {what}: {detail}") from None
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


# --- files


def read_references(path: Path) -> list[list[str]]:
    """The items of a file: blocks of lines with a blank line between them, or, in a
    file without blank lines, one line each. Raises DataError for an item without
    references."""
    text = "\n".join(line.strip() for line in _lines(path))
    blocks = "\n\n" in f"{text}\n"
    items = [
        block.split("\n")
        for block in text.rstrip("\n").split("\n\n" if blocks else "\n")
    ]
    for number, item in enumerate(items, 1):
        if not all(item):
            raise DataError(
                f"{path}: item {number} has no references (one blank line ends an item)"
            )
    return items


def read_hypotheses(path: Path, items: int) -> list[str]:
    """A line for each item; an empty line is an empty text. Raises DataError for
    another number of lines."""
    lines = _lines(path)
    if len(lines) == items + 1 and not lines[-1].strip():
        lines.pop()
    if len(lines) != items:
        raise DataError(
            f"{path}: {len(lines)} hypotheses for {items} items of references"
        )
    return [line.strip() for line in lines]


def _lines(path: Path) -> list[str]:
    with open_text(path) as file:
        text = file.read()
    return text.removesuffix("\n").replace("\r\n", "\n").split("\n")


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tasks.e2e_metrics",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("references", type=Path)
    parser.add_argument("hypotheses", type=Path)
    parser.add_argument(
        "--json", action="store_true", help="one JSON object instead of a table"
    )
    options = parser.parse_args(arguments)
    try:
        references = read_references(options.references)
        by_key = scores(
            references, read_hypotheses(options.hypotheses, len(references))
        )
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(by_key))
        return 0
    print(f"{len(references)} items, {sum(map(len, references))} references")
    for key, name in METRICS.items():
        value = by_key[key]
        print(f"  {name:<8}" + (f"{value:>9.4f}" if value is not None else f"{'-':>9}"))
    for reason in dict.fromkeys(by_key.get("unavailable", {}).values()):
        print(f"  -: {reason}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
