"""The wrong answers of a run, printed."""

import json

import pytest
from ledgers import exact, record, texts
from running import call_here, output_of, refused, trained

from runs.mistakes import main
from runs.record import run_folder, write_record

pytestmark = pytest.mark.properties


def test_a_runs_wrong_answers_with_what_was_read_and_expected(sums_words, monkeypatch):
    made, output = trained(sums_words), output_of(sums_words)
    file = run_folder(output, made["id"]) / "last_greedy.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    wrong = {n: row for n, row in enumerate(rows, 1) if not row["right"]}
    monkeypatch.setenv("COLUMNS", "60")

    def printed(*words):
        return call_here("runs.mistakes", made["id"], f"output={output}", *words, check=0).stdout.splitlines()

    *lines, last = printed()
    assert last.startswith(f"{len(wrong)} of {len(rows)} answers are wrong")
    heads, prompts, answers = lines[::3], lines[1::3], lines[2::3]
    for (number, row), head, prompt, text in zip(wrong.items(), heads, prompts, answers, strict=True):
        assert head.startswith(f"row {number}, sums: ")
        assert head.endswith(f", expected {row['expected']}: {row['reason']}")
        assert ("no answer" in head) == (row["read"] is None)
        assert (row["prompt"] in prompt, len(text) <= 60) == (True, True)
    assert len(printed("limit=2", "part=sums")) == 2 * 3 + 1
    assert any(row["text"] in "\n".join(printed("whole=true")) for row in wrong.values())
    with refused("maths", "sums"):
        main([made["id"], f"output={output}", "part=maths"])
    file.write_text('{"part": 1}\n')
    with refused("last_greedy.jsonl", "redo=true"):  # it is not what the record names
        main([made["id"], f"output={output}"])


def test_a_run_without_such_texts_is_refused(tmp_path):
    of_e2e = texts() | {"curve": record()["curve"]}
    for made, why in ((record(), "predictions.csv"), (of_e2e, "answers"), (exact(), "last_greedy.jsonl")):
        write_record(tmp_path, made)
        with refused(made["id"], why):
            main([made["id"], f"output={tmp_path}"])
