"""What strangers' records and folders may not do to a terminal or a model card, and how they are refused."""

import json
import sys

import pytest
from ledgers import record as made_record

from analysis.tables.__main__ import main as tables
from runs import models
from runs.command import entry_point
from runs.errors import UserError
from runs.export import folder
from runs.record import Ledger, read_ledger, read_record, record_path, write_record
from runs.record.text import HIDDEN, LONGEST, describe
from tasks import DataError
from vera.errors import AdapterError

pytestmark = pytest.mark.properties

#: A terminal's title, a cleared screen, a return, a C1 sequence, turned directions, a mark, half a character.
EVIL = ["\x1b]0;PWN\x07", "\x1b[2J", "a\rb", "\x9b31m", "\x7f", "\u202eabc", "\u2066", "\u200f", "\ud800"]


def put(folder, record):
    """A record as a stranger writes it."""
    path = record_path(folder, record["id"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(json.dumps(record, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    return path


@pytest.mark.parametrize("escaped", [True, False])
@pytest.mark.parametrize("evil", EVIL[:-1], ids=ascii)  # the last one is no JSON
def test_a_record_with_a_character_that_a_terminal_obeys_is_refused(evil, escaped, tmp_path):
    changes = {
        "label": lambda r: r["label"].update(task=evil),
        "cell": lambda r: r["cell"].update(row=evil),
        "error": lambda r: r.update(error=evil),
        "tries": lambda r: r.update(tries=[evil]),
        "deviations": lambda r: r["deviations"].append(evil),
        "versions": lambda r: r["versions"].update({evil: "1"}),
    }
    for key, change in changes.items():
        one = made_record()
        change(one)
        path = put(tmp_path, one)
        if escaped:
            path.write_text(json.dumps(one))
        with pytest.raises(ValueError, match="not a record") as error:
            read_record(path)
        if escaped or min(evil) >= " ":  # the others are no JSON
            assert f"({key}: holds a control character" in str(error.value)
        assert not HIDDEN.search(str(error.value))


def test_a_table_beside_it_shows_the_sound_ones_and_no_such_character(tmp_path, capsys):
    for seed in range(2):
        put(tmp_path, made_record(seed=seed, row="lora"))
    bad = made_record(seed=3)
    bad["label"] = dict.fromkeys(bad["label"], EVIL[0] + EVIL[5])
    name = put(tmp_path, bad).name
    put(tmp_path, made_record() | {"id": "x\x1b[2J\u202e"})
    tables(["table2", f"output={tmp_path}", "save=true", "published=false"])
    out, errors = capsys.readouterr()
    assert "LoRA" in out
    assert name in errors
    assert r"x\x1b[2J\u202e.json" in errors
    saved = "".join(path.read_text() for path in (tmp_path / "table2").iterdir() if path.suffix != ".png")
    assert not HIDDEN.search(out + errors + saved)


def test_this_projects_own_records_are_written_so_that_they_are_read(tmp_path):
    for evil in EVIL:
        one = made_record() | {"error": f"Error: {evil}\tand\nmore é", "tries": [evil]}
        one["label"]["row"] = one["config"]["method"]["label"] = evil
        path = write_record(tmp_path, one)
        again = read_record(path)
        assert again["error"] == f"Error: {ascii(evil)[1:-1]}\tand\nmore é"
        assert again["label"]["row"] == again["tries"][0] == ascii(evil)[1:-1]
        assert read_ledger(tmp_path, published=False).problems == []
    made = made_record()
    assert read_record(write_record(tmp_path, made)) == made  # nothing else is changed


def test_a_librarys_colours_are_escaped_in_the_words_of_an_error():
    assert describe(RuntimeError("\x1b[31mred\x1b[0m")) == r"\x1b[31mred\x1b[0m"
    assert describe(FileNotFoundError(2, "No such file", "a\x1b\n.txt")) == r"a\x1b .txt: No such file"


def test_a_card_is_not_forged_by_a_records_texts():
    forged = "VeRA\n\n# FORGED\n\n<script>alert(1)</script>"
    one = made_record(deviations=[forged])
    one["config"]["method"]["label"] = one["label"]["task"] = one["device"]["name"] = forged
    one["result"]["metric"] = one["recipe"]["source"] = forged
    one["config"]["model"]["modality"] = "text"
    ledger = Ledger({one["id"]: one}, {one["id"]: "ours"})
    body = folder.card(one, ledger, "mine", None, "mit", {}).split("---\n", 2)[2]
    headings = [line for line in body.splitlines() if line.startswith("#")]
    assert headings == ["# mine", "## Results", "## Use", "## How it was made"]
    assert "<" not in body
    assert "VeRA # FORGED &lt;script>" in body


@pytest.mark.parametrize("kind", [UserError, DataError, AdapterError])
def test_a_refusal_is_one_line_of_500_characters(kind, monkeypatch, capsys):
    def main(arguments):
        raise kind(f"file.json:\n{'x' * 10**6}. Get it again")

    monkeypatch.setattr(sys, "argv", ["x"])
    with pytest.raises(SystemExit):
        entry_point(main)
    errors = capsys.readouterr().err
    assert errors.count("\n") == 1
    assert len(errors) <= 500
    assert errors.startswith("error: file.json: xxx")
    assert errors.endswith("xxx. Get it again\n")
    assert len(str(AdapterError("x" * 10**6))) == LONGEST


def test_a_model_file_that_may_not_be_read_says_so(tiny_bert, closed):
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        folder = closed(tiny_bert, name)
        for of in (models.locate, models.fetch):
            with pytest.raises(UserError, match="permission denied") as error:
                of({"path": str(folder), "modality": "text", "architecture": None, "sha256": None})
            assert str(error.value).startswith(f"{folder / name}: ")
