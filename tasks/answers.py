"""How an answer is found in the text of a solution, in the form in which answers are compared; None for none.
Each way follows the code of its protocol, and a test holds it to what that code reads."""

import contextlib
import importlib
import importlib.util
import re
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

from tasks.base import DataError, first_line, quoted

Find = Callable[[str], str | None]
METAMATH = "The answer is: "
#: In the order in which peft looks for them.
MARKERS = (METAMATH, "The answer is ", "The final answer is: ", "The final answer is ", "#### ")


class Reader(NamedTuple):
    """find: reads a text. expected: reads a row's solution. with_prompt: the prompt is a part of the text."""

    find: Find
    expected: Find
    with_prompt: bool = False


def peft_answer(text: str) -> str | None:
    """The rest of the line after the last marker, of the first kind that the text has. Numbers and fractions
    compare as floats, other words as they are: 1,200 is no number, and 50% is 50."""
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
    """The first number after the last "The answer is: ", rounded to a whole one (a half to an even one), with
    at most one separator: 1,234,567 reads as 1234. As MetaMath's code: LoRA-XS's gsm8k_eval.py (commit
    3b1ce3b) also takes a hundredth and a hundredfold of the answer, and what is within 0.01% of these."""
    _, marker, answer = text.rpartition(METAMATH)
    found = re.search(r"[\-+]?\d*[\.,/]?\d+", answer.strip()) if marker else None
    if not found:
        return None
    above, slash, below = found[0].partition("/")
    try:
        if not slash or below == "0":
            return str(round(float(above.replace(",", ""))))
        return str(round(float(Fraction(int(above), int(below)))))
    except (ArithmeticError, ValueError):
        return None


def gsm8k_answer(solution: str) -> str | None:
    """The whole number after the first "#### " of GSM8K's solutions, without thousands separators."""
    try:
        return str(int(solution.split("#### ")[1].replace(",", "")))
    except (IndexError, ValueError):
        return None


def first_number(text: str) -> str | None:
    """The first whole number."""
    found = re.search(r"-?\d+", text)
    return found[0] if found else None


def math_answer(text: str) -> str | None:
    """For MATH: what follows the last "The answer is: ", up to a full stop at a line's end."""
    _, marker, answer = text.rpartition(METAMATH)
    return same_form(answer.split(".\n")[0].strip().removesuffix(".").strip()) if marker else None


def boxed_answer(solution: str) -> str | None:
    r"""The content of the last \boxed{} of one of MATH's solutions."""
    depth, begin = 0, solution.rfind(r"\boxed")
    for end in range(begin, len(solution)) if begin >= 0 else ():
        depth += {"{": 1, "}": -1}.get(solution[end], 0)
        if solution[end] == "}" and depth == 0:
            whole = solution[begin : end + 1]
            return same_form(whole[7:-1]) if whole.startswith(r"\boxed{") else None
    return None


#: What same_form takes out or writes alike, in this order.
ALIKE = (
    *(("\n", ""), ("\\!", ""), ("\\\\", "\\"), ("tfrac", "frac"), ("dfrac", "frac"), ("\\left", "")),
    *(("\\right", ""), ("^{\\circ}", ""), ("^\\circ", ""), ("\\$", "")),
)


def same_form(answer: str) -> str:
    """The form in which two answers to MATH are equal, as hendrycks/math@940d1bf compares them
    (modeling/math_equivalence.py). What that code fails at stays as it is."""
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
    begin, *fractions = text.split("\\frac")
    if not all(fractions):
        return answer
    if all(len(part) > 1 or part == "{" for part in fractions):
        text = begin + "".join(f"\\frac{_braced(part)}" for part in fractions)
    text = "\\frac{1}{2}" if text == "0.5" else text
    return re.sub(r"^(0|-?[1-9][0-9]*)/(0|-?[1-9][0-9]*)$", r"\\frac{\1}{\2}", text)


def _braced(part: str) -> str:
    """What follows a \\frac, with its numerator and denominator in braces where they are single letters."""
    if part[0] == "{":
        return part
    return f"{{{part[0]}}}{part[1:] if part[1] == '{' else f'{{{part[1]}}}{part[2:]}'}"


READERS = {
    "peft": Reader(peft_answer, peft_answer, with_prompt=True),
    "metamath": Reader(metamath_answer, gsm8k_answer),
    "number": Reader(first_number, first_number),
}
MATH = Reader(math_answer, boxed_answer)


def own_file(name: str) -> Path | None:
    """The file of a reader outside of this project (module.function), without importing it; None for one of
    READERS. Raises DataError where there is none."""
    if name in READERS:
        return None
    with contextlib.suppress(Exception):  # of a package's own code, too
        spec = importlib.util.find_spec(str(name).rpartition(".")[0])
        if spec and (path := Path(spec.origin or "")).suffix == ".py":
            return path
    mend = f"one of {', '.join(READERS)}, or module.function, of a .py file whose folder is on PYTHONPATH"
    raise DataError(f"task.reader={name}: should be {mend}")


def reader(name: str) -> Reader:
    """The reader of this name. One outside of this project reads the expected answers as well. Raises
    DataError for one that cannot be imported, and, at once or as it reads, for one that raises an error or
    finds another thing than a text or None."""
    if name in READERS:
        return READERS[name]
    module, _, function = name.rpartition(".")

    def find(text: str) -> str | None:
        try:
            answer = getattr(importlib.import_module(module), function)(text)
            if answer is None or isinstance(answer, str):
                return answer
            problem = f"finds {quoted(answer)}, which is neither a text nor None"
        except Exception as error:  # of the module's own code, too
            problem = f"{type(error).__name__} ({first_line(error)})"
        raise DataError(f"task.reader={name}: {problem}, with the text {quoted(text)}")

    find("")  # before training: a text without an answer
    return Reader(find, find)
