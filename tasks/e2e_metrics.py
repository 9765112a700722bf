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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NotRequired, TypedDict

from tasks.base import DataError
from tasks.files import open_text

#: The names of the scores as they are printed, by their keys.
METRICS = {
    "bleu": "BLEU",
    "nist": "NIST",
    "meteor": "METEOR",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
}
NO_JAVA = (
    "no java on this machine (Debian: apt install default-jre-headless; "
    "conda: conda install openjdk)"
)


class JavaScores(TypedDict):
    """The scores that need Java: None where it fails, with the reasons by key under
    "unavailable"."""

    meteor: float | None
    rouge_l: float | None
    cider: float | None
    unavailable: NotRequired[dict[str, str]]


class Scores(JavaScores):
    """All five scores, by the keys of METRICS."""

    bleu: float
    nist: float


def e2e_scores(
    references: Sequence[Sequence[str]], hypotheses: Sequence[str]
) -> Scores:
    """The five scores of a corpus.

    Args:
        references: the texts that each item is compared with.
        hypotheses: the text that was written for each item.

    Raises ValueError where the two have different numbers of items, for no items, and for
    an item without references."""
    if len(references) != len(hypotheses):
        raise ValueError(f"{len(hypotheses)} hypotheses for {len(references)} items")
    if not references:
        raise ValueError("no items")
    spaced_references = []
    for item in references:
        texts = [_spaced(reference) for reference in item]
        texts = [text for text in texts if text]
        if not texts:
            raise ValueError("an item without references")
        spaced_references.append(texts)
    hypotheses = [_spaced(hypothesis) for hypothesis in hypotheses]
    return {
        "bleu": bleu(spaced_references, hypotheses),
        "nist": nist(spaced_references, hypotheses),
        **_with_java(spaced_references, hypotheses),
    }


def _spaced(text: str) -> str:
    """The text on one line with single spaces: Java ends lines at more characters than
    Python does."""
    return " ".join(text.split())


def bleu(references: Sequence[Sequence[str]], hypotheses: Sequence[str]) -> float:
    """BLEU-4 of mteval-13a, in lower case, times 100. The brevity penalty takes, for each
    item, the length of the reference that is closest to the hypothesis in length; of two
    equally close ones the shorter."""
    from sacrebleu import corpus_bleu

    # sacrebleu takes the first reference of all items, then the second of all, and so on
    streams = []
    for number in range(max(len(item) for item in references)):
        streams.append(
            [item[number] if number < len(item) else None for item in references]
        )
    result = corpus_bleu(
        list(hypotheses),
        streams,  # type: ignore[arg-type]  # None stands for no reference
        lowercase=True,
        tokenize="13a",
        smooth_method="none",
        force=True,
    )
    return float(result.score)


#: How often each n-gram occurs.
Counts = Counter[tuple[str, ...]]


def nist(
    references: Sequence[Sequence[str]], hypotheses: Sequence[str], longest: int = 5
) -> float:
    """NIST-5 of mteval-13a on lower-case text (Doddington 2002).

    The information of an n-gram is log2(count of its first n - 1 words / count of the
    n-gram), counted in all references. For each n, the information of the matched
    n-grams is summed and divided by the number of the hypotheses' n-grams. The sum of
    these over n is multiplied by exp(beta log2(min(1, length ratio))), with beta
    such that a ratio of 2/3 halves the score. The reference length is the mean over an
    item's references. The challenge's Python mode agrees with this; its Perl script
    averages differently where the number of references varies."""
    reference_tokens = []
    word_count = 0
    for item in references:
        tokens_of_item = [_mteval_tokens(reference) for reference in item]
        reference_tokens.append(tokens_of_item)
        word_count += sum(len(words) for words in tokens_of_item)
    candidates = [_mteval_tokens(hypothesis) for hypothesis in hypotheses]
    # The counts of the n-grams that are one word shorter. For n = 1 that is the empty
    # n-gram, which precedes each word
    shorter_counts: Counts = Counter({(): word_count})
    information = 0.0
    for n in range(1, longest + 1):
        counts, matched, total = _matches(reference_tokens, candidates, n)
        information_of_n = 0.0
        for gram, number in matched.items():
            ratio = shorter_counts[gram[:-1]] / counts[gram]
            information_of_n += number * math.log2(ratio)
        if total:
            information += information_of_n / total
        shorter_counts = counts
    return information * _brevity_penalty(reference_tokens, candidates)


def _matches(
    references: Sequence[Sequence[list[str]]], candidates: Sequence[list[str]], n: int
) -> tuple[Counts, Counts, int]:
    """Counts over all items: the n-grams in the references; the n-grams of the candidates
    that match a reference of their item; and how many n-grams the candidates have in
    all."""
    counts: Counts = Counter()
    matched: Counts = Counter()
    total = 0
    for item, candidate in zip(references, candidates, strict=True):
        allowed: Counts = Counter()
        for text in item:
            grams = _ngrams(text, n)
            counts += grams
            allowed |= grams  # the larger count: the most that any one reference has
        candidate_grams = _ngrams(candidate, n)
        matched += candidate_grams & allowed
        total += candidate_grams.total()
    return counts, matched, total


def _brevity_penalty(
    references: Sequence[Sequence[list[str]]], candidates: Sequence[list[str]]
) -> float:
    """NIST's factor for the length: below 1 where the candidates together are shorter than
    the references (see `nist`)."""
    reference_length = 0.0
    for item in references:
        reference_length += sum(len(text) for text in item) / len(item)
    length = sum(len(candidate) for candidate in candidates)
    ratio = min(1.0, length / reference_length) if reference_length else 0.0
    if not ratio:
        return 0.0
    # With this beta a ratio of 2/3 gives 0.5: log(2/3) is -log(1.5)
    beta = math.log(0.5) / math.log(1.5) ** 2
    return math.exp(beta * math.log(ratio) ** 2)


def _mteval_tokens(text: str) -> list[str]:
    """The words of a text in lower case, as mteval-13a splits it."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return str(Tokenizer13a()(text)).lower().split()  # type: ignore[no-untyped-call]


def _ngrams(tokens: Sequence[str], n: int) -> Counts:
    """How often each n-gram occurs in a text."""
    shifted = (tokens[start:] for start in range(n))
    return Counter(zip(*shifted, strict=False))


# --- scores that need Java


def _with_java(
    references: Sequence[Sequence[str]], hypotheses: Sequence[str]
) -> JavaScores:
    """METEOR, ROUGE-L and CIDEr on PTB-tokenised text without punctuation. Where Java fails
    the remaining scores are None, with the reason."""
    scores: JavaScores = {"meteor": None, "rouge_l": None, "cider": None}
    try:
        if shutil.which("java") is None:
            raise JavaError(NO_JAVA)
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.rouge.rouge import Rouge

        reference_tokens = _tokenise_by_ptb(dict(enumerate(references)))
        written_tokens = _tokenise_by_ptb(
            {key: [text] for key, text in enumerate(hypotheses)}
        )
        scores["rouge_l"] = 100 * float(
            Rouge().compute_score(reference_tokens, written_tokens)[0]
        )
        scores["cider"] = float(
            Cider().compute_score(reference_tokens, written_tokens)[0]
        )
        scores["meteor"] = 100 * _meteor(reference_tokens, written_tokens)
    except JavaError as error:
        missing = [key for key, score in scores.items() if score is None]
        scores["unavailable"] = dict.fromkeys(missing, str(error))
    return scores


class JavaError(Exception):
    """Java is missing or has failed. The message is one line."""


#: By an item's number its texts, with tokens between single spaces.
Tokenised = dict[int, list[str]]


def _tokenise_by_ptb(texts: Mapping[int, Sequence[str]]) -> Tokenised:
    """Texts as the PTB tokeniser of pycocoevalcap splits them, in lower case and without
    punctuation. texts: by the item's number. Raises JavaError."""
    from pycocoevalcap.tokenizer import ptbtokenizer

    # The wrapper does not notice missing lines. An item of our own at the end shows that
    # no line is missing
    end = -1
    captions = {
        key: [{"caption": text} for text in lines] for key, lines in texts.items()
    }
    captions[end] = [{"caption": "end"}]

    with _silenced("the PTB tokeniser"):
        tokenised: Tokenised = ptbtokenizer.PTBTokenizer().tokenize(captions)
    if tokenised.pop(end, None) != ["end"]:
        raise JavaError(
            "java ended before the PTB tokeniser was done (out of memory, or older than "
            "8?)"
        )
    return tokenised


def _meteor(reference_tokens: Tokenised, written_tokens: Tokenised) -> float:
    """METEOR as a fraction. Raises JavaError."""
    from pycocoevalcap.meteor import meteor

    with _silenced("METEOR"):
        scorer = meteor.Meteor()
        try:
            return float(scorer.compute_score(reference_tokens, written_tokens)[0])
        finally:
            # An error leaves the scorer locked, and its destructor would wait forever
            if scorer.lock.locked():
                scorer.lock.release()


#: The file descriptor of stderr, which Java programs inherit.
STDERR = 2


@contextlib.contextmanager
def _silenced(program: str) -> Iterator[None]:
    """Hides what a Java program prints on stderr in the with block, and turns the various
    errors of its Python wrapper into a JavaError. program: its name, for the message."""
    stderr = os.dup(STDERR)
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, STDERR)  # the tokeniser reports its speed there
        yield
    except (OSError, ValueError, IndexError, AssertionError) as error:
        detail = getattr(error, "strerror", None) or "it gave no score"
        raise JavaError(f"java failed in {program}: {detail}") from None
    finally:
        os.dup2(stderr, STDERR)
        os.close(stderr)
        os.close(null)


# --- files


def read_references(path: Path) -> list[list[str]]:
    """The references of each item: a block of lines, with a blank line between blocks. In a
    file without blank lines each line is an item. Raises DataError for an item without
    references."""
    text = "\n".join(line.strip() for line in _lines(path))
    separator = "\n\n" if "\n\n" in f"{text}\n" else "\n"
    items = [item.split("\n") for item in text.rstrip("\n").split(separator)]
    for number, item in enumerate(items, 1):
        if not all(item):
            raise DataError(
                f"{path}: item {number} has no references (one blank line ends an item)"
            )
    return items


def read_hypotheses(path: Path, items: int) -> list[str]:
    """The text of each item, from a file with a line for each; an empty line is an empty
    text. items: how many there are. Raises DataError for another number of lines."""
    lines = _lines(path)
    if len(lines) == items + 1 and not lines[-1].strip():  # a blank line at the end
        lines.pop()
    if len(lines) != items:
        raise DataError(
            f"{path}: {len(lines)} hypotheses for {items} items of references"
        )
    return [line.strip() for line in lines]


def _lines(path: Path) -> list[str]:
    """The lines of a file. Only \\n and \\r\\n end a line: str.splitlines knows more ends."""
    with open_text(path) as file:
        text = file.read()
    return text.removesuffix("\n").replace("\r\n", "\n").split("\n")


def _parser() -> argparse.ArgumentParser:
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
    return parser


def main(arguments: list[str]) -> int:
    """Prints the scores of a file of hypotheses. Returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        references = read_references(options.references)
        hypotheses = read_hypotheses(options.hypotheses, len(references))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    result = e2e_scores(references, hypotheses)
    if options.json:
        print(json.dumps(result))
        return 0
    print(f"{len(references)} items, {sum(map(len, references))} references")
    print(_table(result))
    return 0


def _table(scores: Mapping[str, object]) -> str:
    """A line for each score, and one for each reason why scores are missing."""
    lines = []
    for key, name in METRICS.items():
        score = scores[key]
        number = "-" if score is None else f"{score:.4f}"
        lines.append(f"  {name:<8}{number:>9}")
    reasons = scores.get("unavailable")
    if isinstance(reasons, dict):
        lines += [f"  -: {reason}" for reason in dict.fromkeys(reasons.values())]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
