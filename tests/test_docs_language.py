"""How readable the documentation is, in numbers: words that the project does not use,
the length of pages and sentences, and how often a guide addresses its reader. Whether a
sentence is clear, a reader decides."""

import re
from pathlib import Path

import pytest
from running import ROOT

pytestmark = pytest.mark.properties

#: What other words say better, such as "VeRA minus LoRA" for "VeRA less LoRA".
AVOIDED = (
    r"\bless (VeRA|LoRA|the other|full|Adapter)\b",
    r"\bcounted like any other\b",
    r"\bat chance\b",
    r"\bof like counts?\b",
    r"\bnear (at|by) \w+ (margin|point)",
    r"\b(is|are) told\b",
    r"\bset aside\b",
    r"\bthe spread leaves out\b",
    r"\bit depends\b",
    r"^(Or|Else|Which)\b",
)
#: Guides tell a story in steps, and so talk to the reader.
GUIDES = (
    "quickstart",
    "own_method",
    "own_task",
    "sweeps",
    "serving",
    "publishing",
    "tracking",
    "lm_eval",
    "reward",
)
#: Words of prose on a page.
LONGEST_PAGE = 1_500
#: Words in a sentence, and how many sentences of all pages have more.
LONG_SENTENCE = 30
LONG_SENTENCES = 10
#: The share of a guide's sentences with "you".
ADDRESSED = 0.2
#: Words of prose on the pages of all studies, and words of the changelog. The first
#: number grew from 5,400 with the page of how_small.
STUDIES = 5_800
CHANGELOG = 1_500

#: Characters of a note below a table, and of a line in a cell of the results.
NOTE = 200
CELL = 40

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(ROOT.glob("docs/*.md"))]
STUDY_PAGES = sorted(ROOT.glob("docs/results/*.md"))


def sentences(text: str) -> list[str]:
    """The sentences of a page, without code, tables, headings and links' targets."""
    text = re.sub(r"```.*?```|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"`[^`]*`", "CODE", text)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    found = []
    for block in re.split(r"\n\s*\n|\n(?=[-*] )", text):
        lines = block.splitlines()
        prose = [line for line in lines if not re.match(r"\s*(\||#|!\[|<)", line)]
        joined = " ".join(" ".join(prose).split())
        for sentence in re.split(r"(?<=[.!?])\s+(?=[A-Z`\[(*])", joined):
            if len(re.findall(r"[A-Za-z]+", sentence)) >= 3:
                found.append(sentence.removeprefix("- "))
    return found


def words(pages: list[str]) -> int:
    return sum(len(sentence.split()) for sentence in pages)


def page_sentences(path: Path) -> list[str]:
    return sentences(path.read_text(encoding="utf-8"))


def avoided(sentence: str) -> bool:
    return any(re.search(word, sentence, re.IGNORECASE) for word in AVOIDED)


@pytest.mark.parametrize("page", [*PAGES, *STUDY_PAGES], ids=lambda page: page.stem)
def test_a_page_is_short_and_uses_the_projects_words(page):
    prose = page_sentences(page)
    assert [sentence for sentence in prose if avoided(sentence)] == []
    assert words(prose) <= LONGEST_PAGE


@pytest.mark.parametrize("pages", [PAGES, STUDY_PAGES], ids=["docs", "studies"])
def test_few_sentences_are_long(pages):
    long = [
        (page.name, sentence)
        for page in pages
        for sentence in page_sentences(page)
        if len(sentence.split()) > LONG_SENTENCE
    ]
    assert len(long) <= LONG_SENTENCES, long


def test_guides_address_the_reader():
    guides = [page for page in PAGES if page.stem in GUIDES]
    assert len(guides) == len(GUIDES)
    prose = [sentence for page in guides for sentence in page_sentences(page)]
    addressed = [s for s in prose if re.search(r"\byou(r|rs)?\b", s, re.IGNORECASE)]
    assert len(addressed) >= ADDRESSED * len(prose)


def test_studies_and_the_changelog_are_short():
    prose = [sentence for page in STUDY_PAGES for sentence in page_sentences(page)]
    assert words(prose) <= STUDIES
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert len(changelog.split()) <= CHANGELOG


def notes_of(page: Path) -> list[str]:
    """The lists below the tables of a page, without the targets of links."""
    notes = []
    is_below = False
    for line in page.read_text(encoding="utf-8").splitlines():
        is_note = line.startswith("- ")
        if is_below and is_note:
            notes.append(re.sub(r"\]\([^)]*\)", "]", line.removeprefix("- ")))
        is_below = line.startswith("|") or (is_below and (is_note or not line))
    return notes


def cells_of(page: Path) -> list[str]:
    """The lines in the cells of a page's tables, as a reader sees them."""
    lines = []
    for line in page.read_text(encoding="utf-8").splitlines():
        if line.startswith("|") and not re.match(r"\|[ :|-]+$", line):
            text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", line).replace("&lt;", "<")
            for cell in re.split(r"(?<!\\)\|", text)[1:-1]:
                lines += [part.strip() for part in cell.split("<br>")]
    return lines


@pytest.mark.parametrize(
    "page", [ROOT / "docs/results.md", *STUDY_PAGES], ids=lambda page: page.stem
)
def test_notes_and_cells_of_results_are_short(page):
    assert [note for note in notes_of(page) if len(note) > NOTE] == []
    assert [cell for cell in cells_of(page) if len(cell) > CELL] == []


def test_notes_and_cells_are_what_a_reader_sees(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "- no note\n\n| a | [b](c.md)<br>c |\n| --- | ---: |\n\n- [note](x.md)\n\ntext\n\n- no note\n"
    )
    assert notes_of(page) == ["[note]"]
    assert cells_of(page) == ["a", "b", "c"]


def test_code_tables_and_headings_are_no_sentences():
    text = "# A title of words\n\n```sh\nmake it so\n```\n\n| a | b c d |\n\nThis is one. It has two."
    assert sentences(text) == ["This is one.", "It has two."]


@pytest.mark.parametrize(
    "sentence", ["The mean is VeRA less LoRA.", "A run at chance.", "Or it waits here."]
)
def test_a_word_to_avoid_is_noticed(sentence):
    assert avoided(sentence)
    assert not avoided("The mean is VeRA minus LoRA, and no run waits.")
