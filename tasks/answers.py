"""How an answer is found in the text of a solution, in the form in which answers are
compared; None for none. Each way follows the code of its protocol, and a test holds it
to what that code reads."""

import itertools
import pkgutil
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction

from tasks.base import DataError, quoted
from tasks.files import module_file

Find = Callable[[str], str | None]
#: How a text is read, and how a row's solution is.
Reader = tuple[Find, Find]
METAMATH = "The answer is: "
#: In the order in which peft looks for them.
MARKERS = (
    METAMATH,
    "The answer is ",
    "The final answer is: ",
    "The final answer is ",
    "#### ",
)


def peft_answer(text: str) -> str | None:
    """The rest of the line after the last marker, of the first kind that the text has.
    Numbers and fractions compare as floats, other words as they are: 1,200 is no
    number, and 50% is 50."""
    text = text.strip().rstrip(".!?")
    if (marker := next((marker for marker in MARKERS if marker in text), None)) is None:
        return None
    answer = text.rpartition(marker)[2].strip().split("\n", 1)[0].strip(" .!?$%")
    try:
        above, *below = map(Decimal, map(str.strip, answer.split("/")))
        if len(below) < 2:
            return str(float(above / below[0] if below else above) + 0.0)  # -0.0 is 0.0
    except (ArithmeticError, ValueError):
        pass
    return answer


def metamath_answer(text: str) -> str | None:
    """The first number after the last "The answer is: ", rounded to a whole one (a half
    to an even one), with at most one separator: 1,234,567 reads as 1234. As MetaMath's
    code: LoRA-XS's gsm8k_eval.py (commit 3b1ce3b) also takes a hundredth and a
    hundredfold of the answer, and what is within 0.01% of these."""
    _, marker, answer = text.rpartition(METAMATH)
    found = re.search(r"[\-+]?\d*[\.,/]?\d+", answer.strip()) if marker else None
    try:
        return (
            str(round(float(Fraction(found[0].replace(",", "").removesuffix("/0")))))
            if found
            else None
        )
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
    """For MATH: what follows the last "The answer is: ", up to a full stop at a line's
    end."""
    _, marker, answer = text.rpartition(METAMATH)
    return (
        same_form(answer.split(".\n")[0].strip().removesuffix(".").strip())
        if marker
        else None
    )


def boxed_answer(solution: str) -> str | None:
    r"""The content of the last \boxed{} of one of MATH's solutions."""
    _, marker, rest = solution.rpartition(r"\boxed")
    depths = itertools.accumulate({"{": 1, "}": -1}.get(letter, 0) for letter in rest)
    end = next((place for place, depth in enumerate(depths) if depth == 0), None)
    return same_form(rest[1:end]) if marker and end and rest[0] == "{" else None


#: What same_form takes out or writes alike, in this order.
ALIKE = (
    *(
        ("\n", ""),
        ("\\!", ""),
        ("\\\\", "\\"),
        ("tfrac", "frac"),
        ("dfrac", "frac"),
        ("\\left", ""),
    ),
    *(("\\right", ""), ("^{\\circ}", ""), ("^\\circ", ""), ("\\$", "")),
)


def same_form(answer: str) -> str:
    """The form in which two answers to MATH are equal, as hendrycks/math@940d1bf
    compares them (modeling/math_equivalence.py). What that code fails at stays as it
    is."""
    text = answer
    for old, new in ALIKE:
        text = text.replace(old, new)
    text, *units = text.split("\\text{ ")
    text = text.replace("\\%", "").replace(" .", " 0.").replace("{.", "{0.")
    text = f"0{text}" if text.startswith(".") else text
    name, equals, value = text.partition("=")
    text = value if equals and "=" not in value and len(name) <= 2 else text
    if len(units) > 1 or re.search(r"\\sqrt($|\\sqrt)", text):
        return answer
    text = re.sub(r"\\sqrt([^{])", r"\\sqrt{\1}", text).replace(" ", "")
    if re.search(r"\\frac($|\\frac)", text):
        return answer
    # single letters: \frac12, \frac1{2}
    if not re.search(r"\\frac[^{]($|\\frac)", text):
        text = re.sub(r"\\frac([^{])([^{])", r"\\frac{\1}{\2}", text)
        text = re.sub(r"\\frac([^{]){", r"\\frac{\1}{", text)
    text = "\\frac{1}{2}" if text == "0.5" else text
    return re.sub(r"^(0|-?[1-9][0-9]*)/(0|-?[1-9][0-9]*)$", r"\\frac{\1}{\2}", text)


READERS: dict[str, Reader] = {
    "peft": (peft_answer, peft_answer),
    "metamath": (metamath_answer, gsm8k_answer),
}
MATH: Reader = (math_answer, boxed_answer)


def reader(name: str) -> Reader:
    """The reader of this name: one of READERS, or module.function, which reads the
    expected answers as well. Raises DataError for one that has no file or cannot be
    imported, and, at once or as it reads, for one that raises an error or finds another
    thing than a text or None."""
    if name in READERS:
        return READERS[name]
    if not (path := module_file(name)) or path.suffix != ".py":
        mend = f"one of {', '.join(READERS)}, or module.function, of a .py file whose folder is on PYTHONPATH"
        raise DataError(f"task.reader={name}: should be {mend}")

    def find(text: str) -> str | None:
        try:
            answer = pkgutil.resolve_name(name)(text)
        except Exception as error:  # of the module's own code, too
            answer = error
        if answer is None or isinstance(answer, str):
            return answer
        should = f"of the text {quoted(text)} it should find a text or None"
        raise DataError(f"task.reader={name}: {quoted(answer)}, where {should}")

    find("")  # before training: a text without an answer
    return find, find
