"""How answers are read, held to what the code of peft, MetaMath and MATH reads, of
which answers.yaml has the verdicts; and readers of one's own."""

import itertools
from pathlib import Path

import pytest
import yaml
from running import refused

from tasks.answers import MARKERS, MATH, METAMATH_MARKER, READERS, reader

pytestmark = pytest.mark.parity

THEIRS = yaml.safe_load(
    (Path(__file__).parent / "answers.yaml").read_text(encoding="utf-8")
)
NUMBERS = (5, 18, 42, 1234)


def found(text):
    return [find(text) for find, _ in READERS.values()]


def test_texts_are_read_as_theirs():
    cases = 0
    for peft, metamath, forms in THEIRS["forms"]:
        for form, n, marker, before in itertools.product(
            forms, NUMBERS, MARKERS, ("", "First 3 + 4 = 7. ")
        ):
            mine = form if peft == "same" else peft
            theirs = [mine, metamath if marker == METAMATH_MARKER else None]
            theirs = [answer and answer.replace("{n}", str(n)) for answer in theirs]
            assert found(f"{before}{marker}{form.replace('{n}', str(n))}") == theirs, (
                form,
                marker,
            )
            cases += 1
    for *theirs, texts in THEIRS["texts"]:
        for text in texts:
            assert found(text) == theirs, text
    assert cases > 200


#: Of solutions in GSM8K's form. A number with separators is none to peft.
ENDINGS = (
    "#### {}",
    "#### {} ",
    "#### {}\n",
    "#### {:,}",
    "So 3 + 4 = <<3+4=7>>7.\n#### {}",
)


@pytest.mark.parametrize("ending", ENDINGS)
def test_solutions_are_read_as_theirs(ending):
    for number in [*range(-5, 30), 250_000, 1_498_470, 995, -1_000, 1_000, 12_345]:
        solution = f"It is <<{number}={number}>>{number}.\n{ending.format(number)}"
        peft = f"{number:,}" if "," in ending.format(number) else f"{number}.0"
        assert [expected(solution) for _, expected in READERS.values()] == [
            peft,
            str(number),
        ]


def test_answers_to_maths_are_equal_where_theirs_are():
    find, expected = MATH
    classes, answers = [*THEIRS["math"], *([form] for form in THEIRS["alone"])], []
    for forms in classes:
        ends = itertools.product(forms, (".", " .\nIt is.", ".\n\nNext."))
        written = {find(f"So.\nThe answer is: {form}{end}") for form, end in ends}
        (answer,) = written | {
            expected(f"We find $\\boxed{{{form}}}$.") for form in forms
        }
        answers.append(answer)
    assert len({*answers}) == len(classes)
    assert None not in answers


def test_the_last_answer_to_maths_is_taken_and_there_may_be_none():
    find, expected = MATH
    assert expected(r"First $\boxed{1}$, then $\boxed{{2}}$") == "{2}"
    assert find("The answer is: 9\nThe answer is: {2}") == "{2}"
    for solution in (r"$\boxed 5$", r"$\fbox{5}$", "no box", r"$\boxed{5$", ""):
        assert expected(solution) is None
    for text in ("it is 5", "the answer is: 5", ""):
        assert find(text) is None
    assert find("The answer is: 5.") == find("The answer is: 5") == "5"


# --- readers of one's own


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Makes a reader of one's own; its name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def make(body):
        name = f"own_{abs(hash(body))}"  # imported once in a process
        (tmp_path / f"{name}.py").write_text(body + "\n")
        return f"{name}.find"

    return make


RETURNS = (f"def find(text):\n    return {of}" for of in ("text[0]", "3"))


@pytest.mark.parametrize("body", ["find = 3", "import nothing", *RETURNS])
def test_a_reader_of_ones_own_that_cannot_read_is_refused_before_training(body, own):
    with refused(f"task.reader={(name := own(body))}"):
        reader(name)


@pytest.mark.parametrize("name", ["", "nowhere.find", "sys.intern", "tasks.metrics"])
def test_a_reader_is_one_of_ours_or_a_function_in_a_file(name):
    with refused(f"task.reader={name}"):
        reader(name)


def test_a_reader_of_ones_own_that_fails_at_a_text_names_it(own):
    find, expected = reader(
        own("def find(text):\n    return int(text) if 'odd' in text else text or None")
    )
    assert (find("1200"), expected("1200"), find("")) == ("1200", "1200", None)
    with refused("odd one"):
        find("odd one")
