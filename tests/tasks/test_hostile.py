"""Files from strangers, changed at random: what reads them takes them, or refuses them in a line that names
the file."""

import shutil

import pytest
import yaml
from bench import answer_row, jsonl
from hypothesis import given, settings
from hypothesis import strategies as st

import tasks
from runs.config import CONF
from tasks import DataError
from tasks import mt_bench as benches
from tasks.e2e_metrics import read_hypotheses, read_references
from tasks.instruct import OWN_TEMPLATE, read_template

pytestmark = pytest.mark.properties

#: Bytes that stand for something somewhere: ends of fields, lines and texts, numbers that are none, half a
#: character, depth, placeholders.
ODD = [
    *(b"\0", b'"', b"\t", b"\n", b"\r", b",", b"\\", b"||", b"[", b"]", b"{", b"}", b"null", b"NaN", b"-1"),
    *(b"1e400", b"9" * 400, b"\xff", b"\xef\xbb\xbf", b"\xed\xa0\x80", b"\\ud800", b"\xe2\x80\xa8"),
    *(b"[" * 300, b'{"a":' * 300, b"{0.x}", b"{question!r}", b'"turns": []', b'"mr,', b"x" * 2000),
]


def load(name, **changes):
    of_task = yaml.safe_load((CONF / "task" / f"{name}.yaml").read_text())
    shared = {"family": "glue", "length_grouped": True, "holdout": None, "dev_rows": None}
    return tasks.load(shared | of_task | {"name": name, "length_grouped": True} | changes)


def answers(path, data):
    return benches.read_answers(path, benches.read_questions(data, "mt_bench"))


def prompts(path, data):
    questions = benches.read_questions(data, "mt_bench")
    benches.prompts(data, "mt_bench", questions, {q.id: ["x"] * len(q.turns) for q in questions})


LABELS = "text,label\na b,1.5\nb c,0.1\nc,1.2\nd,0.3\ne,1.4\n"
WORDS = '{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n{"text": "c", "label": "x"}\n'
#: A file in a folder of data, and what reads it, by the path and the folder.
TARGETS = {
    "scores.csv": lambda path, data: load("text", train_file=str(path), dev_file=str(path)),
    "words.jsonl": lambda path, data: load("text", train_file=str(path)),
    "glue/RTE/dev.tsv": lambda path, data: load("rte", data_dir=str(data / "glue")),
    "glue/STS-B/train.tsv": lambda path, data: load("stsb", data_dir=str(data / "glue")),
    "e2e/devset.csv": lambda path, data: load("e2e", data_dir=str(data / "e2e"), **E2E),
    "alpaca/alpaca_own.json": lambda path, data: load("alpaca", data_dir=str(data / "alpaca"), dev_rows=2),
    "template.json": lambda path, data: read_template(path),
    "mt_bench/question.jsonl": prompts,
    "judge_prompts.jsonl": prompts,
    "mt_bench/reference_answer/gpt-4.jsonl": prompts,
    "answers.jsonl": answers,
    "judgments.jsonl": lambda path, data: benches.read_judgments(path),
    "references.txt": lambda path, data: read_references(path),
    "hypotheses.txt": lambda path, data: read_hypotheses(path, 3),
}
E2E = {"decode": "none", "label_smoothing": 0.1}


@pytest.fixture(scope="module")
def data(glue, e2e, alpaca, mt_bench, tmp_path_factory):
    """A folder with a sound file of each target."""
    folder = shutil.copytree(mt_bench, tmp_path_factory.mktemp("hostile") / "data")
    for name, source in (("glue", glue), ("e2e", e2e), ("alpaca", alpaca)):
        shutil.copytree(source, folder / name)
    shutil.copy(OWN_TEMPLATE, folder / "template.json")
    for name, text in (
        ("scores.csv", LABELS),
        ("words.jsonl", WORDS),
        ("references.txt", "a\nb\n\nc\n\nd\n"),
    ):
        (folder / name).write_text(text)
    (folder / "hypotheses.txt").write_text("a\nb\nc\n")
    jsonl(folder / "answers.jsonl", [answer_row(n, ["a", "b"], "own") for n in (81, 101, 111, 151)])
    judgment = {"key": "k", "reply": "[[3]]", "prompt_tokens": 1, "completion_tokens": 1}
    jsonl(folder / "judgments.jsonl", [judgment, judgment | {"key": "l"}])
    return folder


@pytest.mark.parametrize("name", TARGETS)
def test_it_is_taken_or_refused_in_a_line_that_names_it(name, data):
    path = data / name
    sound = path.read_bytes()
    TARGETS[name](path, data)

    @settings(max_examples=80, deadline=None, database=None, derandomize=True)
    @given(st.data())
    def changed(draws):
        content = sound
        for _ in range(draws.draw(st.integers(1, 3))):
            spot = draws.draw(st.integers(0, len(content)))
            after = spot + draws.draw(st.sampled_from([0, 0, 1, 5, len(content)]))
            content = content[:spot] + draws.draw(st.sampled_from(ODD)) + content[after:]
        path.write_bytes(content)
        words = ""
        try:
            TARGETS[name](path, data)
        except DataError as error:
            words = f"{error} "
        assert not words or str(path) in words or "task." in words
        assert "\n" not in words
        assert len(words) < len(str(path)) + 1500

    try:
        changed()
    finally:
        path.write_bytes(sound)
