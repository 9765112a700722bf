"""How an answer is found in the text of a solution.

A reader returns the answer in the form in which answers are compared, or None if there
is none. Each reader follows the code of its protocol, and a test holds it to what that
code reads."""

import pkgutil
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import NamedTuple

from tasks.base import DataError, quoted
from tasks.files import module_file

#: Finds the answer in a text; None without one.
FindAnswer = Callable[[str], str | None]


class Reader(NamedTuple):
    """Two functions that find an answer: the given one in what a model has written, and
    the expected one in a row's solution."""

    answer_in_output: FindAnswer
    answer_in_solution: FindAnswer


METAMATH_MARKER = "The answer is: "
#: The phrases that may precede an answer, in the order in which peft looks for them.
MARKERS = (
    METAMATH_MARKER,
    "The answer is ",
    "The final answer is: ",
    "The final answer is ",
    "#### ",
)


def peft_answer(text: str) -> str | None:
    """Reads an answer as peft's code does.

    The earliest of MARKERS that occurs anywhere in the text is the one that counts. The
    answer is what follows its last occurrence, up to the end of that line. A number or a
    fraction is returned as a float ("50%" and "100/2" as "50.0"), anything else as it is
    ("1,200" is not read as a number). None for a text without a marker."""
    text = text.strip().rstrip(".!?")
    for marker in MARKERS:
        if marker in text:
            _, _, following = text.rpartition(marker)
            first_line = following.strip().split("\n", 1)[0]
            answer = first_line.strip(" .!?$%")
            number = _as_float(answer)
            return answer if number is None else number
    return None


def _as_float(answer: str) -> str | None:
    """The text of a float for a number, or for a fraction of two numbers: "50.0" for "50"
    and "100/2". None for anything else."""
    try:
        parts = [Decimal(part.strip()) for part in answer.split("/")]
        if len(parts) > 2:
            return None
        value = parts[0] if len(parts) == 1 else parts[0] / parts[1]
        # Adding 0.0 turns -0.0 into 0.0, so that the texts of both are equal.
        return str(float(value) + 0.0)
    except (ArithmeticError, ValueError):
        return None


def metamath_answer(text: str) -> str | None:
    """The first number after the last "The answer is: ", rounded to a whole one (a half
    to an even one). The pattern allows one separator: 1,234,567 reads as 1234.

    MetaMath's code does the same. LoRA-XS's gsm8k_eval.py (commit 3b1ce3b) also accepts
    a hundredth and a hundredfold of the answer, and what is within 0.01% of these."""
    _, marker, answer = text.rpartition(METAMATH_MARKER)
    if not marker:
        return None
    match = re.search(r"[\-+]?\d*[\.,/]?\d+", answer.strip())
    if match is None:
        return None
    # Like MetaMath's code, reads a fraction with the denominator 0 as its numerator
    number = match[0].replace(",", "").removesuffix("/0")
    try:
        return str(round(float(Fraction(number))))
    except (ArithmeticError, ValueError):
        return None


def gsm8k_answer(solution: str) -> str | None:
    """The whole number after the first "#### " of GSM8K's solutions, without thousands
    separators."""
    try:
        return str(int(solution.split("#### ")[1].replace(",", "")))
    except (IndexError, ValueError):
        return None


def math_answer(text: str) -> str | None:
    """The answer to MATH in a model's text, in its normal form: what follows the last
    "The answer is: ", up to a full stop at a line's end."""
    _, marker, answer = text.rpartition(METAMATH_MARKER)
    if not marker:
        return None
    sentence = answer.split(".\n")[0].strip()
    return normal_form(sentence.removesuffix(".").strip())


def boxed_answer(solution: str) -> str | None:
    r"""The answer in one of MATH's solutions, in its normal form: the content of the
    last \boxed{}."""
    _, marker, rest = solution.rpartition(r"\boxed")
    if not marker or not rest.startswith("{"):
        return None
    depth = 0
    for index, letter in enumerate(rest):
        if letter == "{":
            depth += 1
        elif letter == "}":
            depth -= 1
        if depth == 0:
            return normal_form(rest[1:index])
    return None


#: Spellings that normal_form replaces first, in this order.
SPELLINGS = (
    ("\n", ""),
    ("\\!", ""),
    ("\\\\", "\\"),
    ("tfrac", "frac"),
    ("dfrac", "frac"),
    ("\\left", ""),
    ("\\right", ""),
    ("^{\\circ}", ""),
    ("^\\circ", ""),
    ("\\$", ""),
)


def normal_form(answer: str) -> str:
    """An answer to MATH in the spelling in which answers are compared: two answers are
    equal if their normal forms are. This is how hendrycks/math@940d1bf compares them
    (modeling/math_equivalence.py). Where that code raises an error, it compares the
    answers as they are: then the answer is returned unchanged.

    The copies of that code in MetaMath and LoRA-XS differ in one case, which they count
    as wrong where it is written in another form: an answer with one slash that is no
    fraction of whole numbers, such as x/2. They catch the wrong exception there."""
    text = answer
    for spelling, replacement in SPELLINGS:
        text = text.replace(spelling, replacement)
    text, *units = text.split("\\text{ ")
    if len(units) > 1:  # that code fails at two units
        return answer
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    if text.startswith("."):
        text = f"0{text}"
    # A short name in front, such as "x=", does not count
    name, equals, value = text.partition("=")
    if equals and "=" not in value and len(name) <= 2:
        text = value
    if re.search(r"\\sqrt($|\\sqrt)", text):  # that code fails
        return answer
    text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text).replace(" ", "")
    if re.search(r"\\frac($|\\frac)", text):  # that code fails
        return answer
    # Adds the braces that \frac12 and \frac1{2} lack. A \frac with a single letter after
    # it has no denominator, at which that code leaves all fractions as they are.
    if not re.search(r"\\frac[^{]($|\\frac)", text):
        text = re.sub(r"\\frac([^{])([^{])", r"\\frac{\1}{\2}", text)
        text = re.sub(r"\\frac([^{]){", r"\\frac{\1}{", text)
    if text == "0.5":
        text = "\\frac{1}{2}"
    # 1/2 is \frac{1}{2}
    return re.sub(r"^(0|-?[1-9][0-9]*)/(0|-?[1-9][0-9]*)$", r"\\frac{\1}{\2}", text)


#: The readers that task.reader may name.
READERS = {
    "peft": Reader(peft_answer, peft_answer),
    "metamath": Reader(metamath_answer, gsm8k_answer),
}
#: MATH is always read by this one, whatever task.reader says.
MATH = Reader(math_answer, boxed_answer)


def reader(name: str) -> Reader:
    """The reader of this name: one of READERS, or module.function, which reads the
    expected answers as well.

    Raises DataError for a function that is in no file, cannot be imported, raises an
    error, or returns anything but a text or None. The first call is made here, before
    training; the function may still fail at a later text."""
    if name in READERS:
        return READERS[name]
    path = module_file(name)
    if not path or path.suffix != ".py":
        expected = (
            f"one of {', '.join(READERS)}, or module.function, "
            "of a .py file whose folder is on PYTHONPATH"
        )
        raise DataError(f"task.reader={name}: should be {expected}")

    def find(text: str) -> str | None:
        """Calls the user's function. An error of its module or of the function counts as
        a wrong result, which the DataError shows."""
        try:
            result = pkgutil.resolve_name(name)(text)
        except Exception as error:  # the user's code may raise anything
            result = error
        if result is None or isinstance(result, str):
            return result
        raise DataError(
            f"task.reader={name}: {quoted(result)}, "
            f"where of the text {quoted(text)} it should find a text or None"
        )

    text_without_answer = ""
    find(text_without_answer)
    return Reader(find, find)
