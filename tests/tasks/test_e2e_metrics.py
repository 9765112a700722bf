"""E2E's scores: golden values of the challenge's own scripts, files in its format, and
Java that is missing or dies."""

import json
import os
import shutil
import stat

import pytest
from running import call

from tasks import e2e_metrics
from tasks.e2e_metrics import METRICS, bleu, e2e_scores, nist

pytestmark = pytest.mark.parity

#: Items of our own, with 3, 1, 2 and 4 references, and what a system might have
#: written.
REFERENCES = [
    [
        "Grey Goat is a Thai pub near the river , for adults only .",
        "Near the river there is a Thai pub called Grey Goat .",
        "The Grey Goat serves Thai food by the riverside .",
    ],
    ["Last Inn has a low customer rating of 1 out of 5 ."],
    [
        "Blue Door is a kid - friendly coffee shop .",
        "Bring the children to Blue Door , a coffee shop .",
    ],
    [
        "The Oak costs £ 20 - 25 and has a high rating .",
        "The Oak , rated highly , has meals for £ 20 - 25 .",
        "With prices of £ 20 - 25 The Oak is rated high by its customers .",
        "The Oak is in the £ 20 - 25 price range .",
    ],
]
HYPOTHESES = [
    "Grey Goat is a Thai pub near the river .",
    "Last Inn has a customer rating of 1 out of 5 .",
    "Blue Door is a family friendly coffee shop .",
    "The Oak is a highly rated place in the £ 20 - 25 price range .",
]
#: BLEU and NIST by the challenge's Python scorer (pymteval), the rest by its METEOR
#: 1.5, ROUGE-L and CIDEr.
GOLDEN = {
    "bleu": 70.895054,
    "nist": 6.02146916,
    "meteor": 49.111726,
    "rouge_l": 87.9713,
    "cider": 4.76991,
}


@pytest.mark.parametrize(
    "hypotheses", [HYPOTHESES, [h.upper() for h in HYPOTHESES]], ids=["", "upper"]
)
def test_bleu_and_nist_are_those_of_the_challenge_whatever_the_case(hypotheses):
    assert bleu(REFERENCES, hypotheses) == pytest.approx(GOLDEN["bleu"], abs=1e-4)
    assert nist(REFERENCES, hypotheses) == pytest.approx(GOLDEN["nist"], abs=1e-6)


def test_bleu_is_not_smoothed_and_nothing_scores_nothing():
    """Six of seven words, and no four in a row: the product of the four precisions is
    0."""
    assert bleu([["a b c d e f g"]], ["a b c x e f g"]) == 0
    assert nist([["a b c"], ["a b d"]], ["", ""]) == 0


@pytest.mark.usefixtures("java")
def test_texts_that_java_would_read_as_more_or_fewer_lines(tmp_path, monkeypatch):
    """Empty ones, also at the end, and characters that end a line for Java but not for
    Python."""
    references = [["A pub .\u2028By the river ."], ["A shop ."], ["An inn ."]]
    found = e2e_scores(references, ["A pub . By the river .", "", ""])
    assert found["rouge_l"] == pytest.approx(100 / 3)
    assert found["meteor"] > 0
    without_meteor(tmp_path, monkeypatch)  # which takes seconds to start
    assert e2e_scores(references, ["", "", ""])["rouge_l"] == 0


def test_what_cannot_be_scored():
    for references, hypotheses in (
        ([["a"]], []),
        ([], []),
        ([["a"], [" "]], ["a", "b"]),
    ):
        with pytest.raises(ValueError, match="item"):
            e2e_scores(references, hypotheses)


# --- Java


def fake_java(folder, script, monkeypatch):
    """A `java` of our own, first on the path."""
    real = shutil.which("java")
    java = folder / "java"
    java.write_text(f"#!/bin/sh\nREAL={real}\n{script}\n")
    java.chmod(java.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}/usr/bin{os.pathsep}/bin")


def without_meteor(folder, monkeypatch, script="exit 1"):
    fake_java(
        folder,
        f'case "$*" in *PTBTokenizer*) exec "$REAL" "$@";; esac\n{script}',
        monkeypatch,
    )


def test_without_java_three_scores_are_null_with_a_reason(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("PATH", str(tmp_path))
    found = e2e_scores(REFERENCES, HYPOTHESES)
    assert found["bleu"] == pytest.approx(GOLDEN["bleu"], abs=1e-4)
    assert found["meteor"] is found["rouge_l"] is found["cider"] is None
    assert found["unavailable"].keys() == {"meteor", "rouge_l", "cider"}
    assert e2e_metrics.main(written(tmp_path, BLOCKS, "\n".join(HYPOTHESES))) == 0
    table = capsys.readouterr().out
    assert table.count("no java on this machine") == 1
    assert table.splitlines()[0] == "4 items, 10 references"
    assert [line.split()[0] for line in table.splitlines()[1:6]] == list(
        METRICS.values()
    )
    assert [line.split()[1] for line in table.splitlines()[3:6]] == ["-"] * 3


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize(
    "script", ["for last; do :; done; head -n -1 $last", "kill -9 $$"]
)
def test_java_that_dies_in_the_tokeniser_gives_no_score(script, tmp_path, monkeypatch):
    """Also half-way: fewer lines than texts."""
    fake_java(tmp_path, script, monkeypatch)
    found = e2e_scores(REFERENCES, HYPOTHESES)
    assert found["nist"] == pytest.approx(GOLDEN["nist"], abs=1e-6)
    assert found["meteor"] is found["rouge_l"] is found["cider"] is None
    assert "PTB tokeniser" in found["unavailable"]["cider"]


@pytest.mark.usefixtures("java")
@pytest.mark.parametrize(
    "script", ["exit 1", "read a; echo no; read b; echo no; read c; kill -9 $$"]
)
def test_java_that_dies_in_meteor_takes_no_other_score_with_it(
    script, tmp_path, monkeypatch
):
    without_meteor(tmp_path, monkeypatch, script)
    found = e2e_scores(REFERENCES, HYPOTHESES)
    assert found["meteor"] is None
    assert "METEOR" in found["unavailable"]["meteor"]
    assert "\n" not in found["unavailable"]["meteor"]
    for other in ("rouge_l", "cider"):
        assert found[other] == pytest.approx(GOLDEN[other], abs=1e-4)


# --- files


def written(folder, references, hypotheses):
    (folder / "references.txt").write_text(references, encoding="utf-8")
    (folder / "hypotheses.txt").write_text(hypotheses, encoding="utf-8")
    return [str(folder / "references.txt"), str(folder / "hypotheses.txt")]


BLOCKS = "\n\n".join("\n".join(item) for item in REFERENCES) + "\n"


@pytest.mark.usefixtures("java")
def test_the_command_has_all_five_scores_of_files_with_any_ends_of_lines(tmp_path):
    words = written(tmp_path, BLOCKS.replace("\n", "\r\n"), "\r\n".join(HYPOTHESES))
    done = call("tasks.e2e_metrics", *words, "--json", check=0)
    assert done.stderr == ""
    assert json.loads(done.stdout) == pytest.approx(GOLDEN, abs=1e-4)


def test_files_that_do_not_fit_are_one_clear_line(tmp_path, capsys):
    assert e2e_metrics.main(written(tmp_path, BLOCKS, "one\ntwo\nthree\n")) == 2
    said = capsys.readouterr().err
    assert "hypotheses.txt: 3 hypotheses for 4 items of references" in said
    assert said.count("\n") == 1


def test_a_file_without_blank_lines_has_a_reference_a_line(tmp_path):
    path = tmp_path / "r"
    for text, references in (
        ("a\nb\nc\n", [["a"], ["b"], ["c"]]),
        ("a\n\nc", [["a"], ["c"]]),
        ("a \nb\n  \n", [["a", "b"]]),
        ("a\vb\nc\n", [["a\vb"], ["c"]]),  # no line ends at a vertical tab
    ):
        path.write_text(text)
        assert e2e_metrics.read_references(path) == references
    path.write_text("a\n\nc\n")
    assert e2e_metrics.read_hypotheses(path, 3) == ["a", "", "c"]
