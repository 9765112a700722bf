"""The demo's data: movie-review snippets with mean human ratings (Hutto and Gilbert
2014, MIT licence).

They are in the source archive of the Python package vaderSentiment 0.5. It is fetched
from pip's index, checked by hash and never built, so the demo needs a package index and
no hub. Ratings are in [-4, 4]; the sign is the label. Left out are ratings between -0.5
and 0.5, and, for a short demo, more than 20 words."""

import hashlib
import io
import tarfile
import zipfile

from tasks import fetch
from tasks.base import DataError, Source
from tasks.tables import DataTable, Row

PACKAGE = "vaderSentiment"
ARCHIVE = "vaderSentiment-0.5.zip"
ARCHIVE_SHA256 = "5d97c37f3ef6e24eef331122e055dbedafeb6a56abfce0608b326701116ea49a"
INNER_ARCHIVE = "additional_resources/hutto_ICWSM_2014.tar.gz"
MEMBER = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
#: How far from 0 a rating must be, on a scale from -4 to 4.
MIN_RATING = 0.5
MAX_WORDS = 20


def source() -> Source:
    """The archive's hash, which pins the content before anything is fetched."""
    return Source(pinned=f"sha256:{ARCHIVE_SHA256}")


def splits(train_rows: int, dev_rows: int) -> dict[str, DataTable]:
    """The rows of both splits, with the columns text and label. Raises DataError where
    there are too few reviews."""
    rows: list[Row] = [
        (number, {"text": text, "label": label})
        for number, (text, label) in enumerate(select_reviews(_ratings()), 1)
    ]
    if train_rows + dev_rows > len(rows):
        raise DataError(
            f"task.train_rows and dev_rows are more than the {len(rows)} reviews"
        )
    return {
        "train": DataTable("reviews:train", rows[dev_rows:][:train_rows]),
        "dev": DataTable("reviews:dev", rows[:dev_rows]),
    }


def select_reviews(lines: str) -> list[tuple[str, str]]:
    """The texts of at most MAX_WORDS words whose rating is clear enough, each once and
    with its label. Their order is that of the texts' hashes: a fixed shuffle.

    lines: the file's text. A line has id, rating and text, separated by tabs."""
    label_by_text = {}
    for line in lines.splitlines():
        _, rating, text = line.split("\t", 2)
        if abs(float(rating)) >= MIN_RATING and len(text.split()) <= MAX_WORDS:
            label_by_text[text.strip()] = (
                "positive" if float(rating) > 0 else "negative"
            )
    return sorted(label_by_text.items(), key=_text_hash)


def _text_hash(row: tuple[str, str]) -> bytes:
    """The SHA-256 of a row's text. row: (text, label)."""
    return hashlib.sha256(row[0].encode()).digest()


def _ratings() -> str:
    """The text of the ratings' file."""
    path = fetch.cache_folder() / ARCHIVE
    fetch.fetch_package(PACKAGE, ARCHIVE_SHA256, path)  # 2.4 MB; it is not built
    with zipfile.ZipFile(path) as outer:
        names = outer.namelist()
        inner = outer.read(next(name for name in names if name.endswith(INNER_ARCHIVE)))
    with tarfile.open(fileobj=io.BytesIO(inner)) as archive:
        member = archive.extractfile(MEMBER)
        return member.read().decode("utf-8") if member else ""
