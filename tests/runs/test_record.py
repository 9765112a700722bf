"""A record is checked once, when it is read: what is none is named by every reader, and
the rest is shown. What strangers' records may not do to a terminal. And what a record
says by each protocol."""

import itertools
import json
import math
import os
import re
import tempfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import metric_fields, record, seed_records, text_record
from running import ODD, refused

from analysis import frame
from runs import models
from runs.command.records import open_ledger
from runs.record.cell import ReportedMetric, best_and_last, cell_id, crossfit
from runs.record.ledger import (
    read_ledger,
    read_record,
    read_study,
    record_path,
    record_text,
    write_record,
    write_study,
)
from runs.record.redaction import without_paths
from runs.record.schema import SCHEMA, FailedRecord
from runs.record.text import describe, is_hidden, printable
from runs.record.validation import check_record
from runs.run.definition import overrides_of

pytestmark = pytest.mark.properties


def changed(path, value):
    """A record with another value at a path such as curve.metric; ... takes the key
    out."""
    made = record()
    *parents, key = path.split(".")
    place = made
    for parent in parents:
        place = place[parent]
    if value is ...:
        del place[key]
    else:
        place[key] = value
    return made


def failed():
    """The record of a run that ended with an error: the keys that every record has."""
    made = record() | {"status": "failed", "error": "out of memory"}
    return {key: made[key] for key in FailedRecord.__annotations__ if key in made}


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("status", ..., "status: field required"),
        (
            "curve.metric",
            ["a", 0.5, 0.5],
            "curve.metric.0: input should be a valid number",
        ),
        ("curve.metric", [0.5], "curve: columns differ in length"),
        (
            "data.dev_rows",
            0,
            "data.dev_rows: input should be greater than or equal to 1",
        ),
        ("config", {}, "config.model: field required, and 5 more"),
        (
            "config.method.rank",
            "NaN",
            "config.method.rank: a rank of vera is a whole number",
        ),
        (
            "judged",
            [{"bench": "mt_bench"}],
            "judged.0.judge: field required, and 8 more",
        ),
    ],
)
def test_a_record_of_another_shape_is_refused_in_one_line(path, value, says):
    with pytest.raises(ValueError, match=f"^{re.escape(says)}$"):
        check_record(changed(path, value))


def test_a_done_run_has_an_epoch_and_a_failed_one_needs_no_more_than_its_name_and_error():
    for made in (
        record(values=[], status="diverged"),
        failed(),
        record() | {"status": "failed"},
    ):
        check_record(made)
    with pytest.raises(ValueError, match="done, and without an epoch"):
        check_record(record(values=[]))
    with pytest.raises(
        ValueError, match=r"^curve: input should be a valid dictionary$"
    ):
        check_record(failed() | {"curve": 5})


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    """Or a run of hours would be done again and again: its record would never count."""
    with pytest.raises(ValueError, match=r"curve\.metric\.0"):
        write_record(tmp_path, changed("curve.metric", [[], 0.5, 0.5]))
    with pytest.raises(ValueError, match="not JSON compliant"):
        record_text(changed("cost.train_seconds", float("nan")))
    assert not list(tmp_path.rglob("*.json"))
    write_record(tmp_path, record())
    assert read_record(record_path(tmp_path, record()["id"])) == record()


#: Any value of JSON, as a stranger may have written it.
ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=6,
)


@st.composite
def stranger(draw):
    """A record with another value, or none, at one to three places of any depth; or any
    JSON at all."""
    made = draw(
        st.sampled_from([record(), text_record(), failed(), record() | {"schema": 2}])
    )
    for _ in range(draw(st.integers(1, 3))):
        place = made
        while keys := [*place] if isinstance(place, dict) else [*range(len(place))]:
            key = draw(st.sampled_from(keys))
            if not isinstance(place[key], dict | list) or draw(st.booleans()):
                place[key] = draw(ANY)
                if isinstance(place, dict) and draw(st.booleans()):
                    del place[key]
                break
            place = place[key]
    return draw(st.sampled_from([made, made, made, draw(ANY)]))


@settings(max_examples=100, deadline=None)
@given(stranger())
def test_any_json_is_a_record_that_frames_take_or_a_problem_that_names_its_file(made):
    with tempfile.TemporaryDirectory() as folder:
        path = record_path(folder, "one")
        path.parent.mkdir()
        path.write_text(
            json.dumps(made | {"id": "one"} if isinstance(made, dict) else made)
        )
        found = read_ledger(folder, published=False)
        assert len(found.records) + len(found.problems) == 1
        for problem in found.problems:
            assert problem.startswith(f"{path}: ")
            assert "\n" not in problem
        assert len(frame.runs(found)) == len(found.records)


@pytest.fixture
def odd(tmp_path):
    """A folder of records with five seeds of a row, and beside them everything that is
    no record; and the odd ones' names."""
    for one in seed_records():
        write_record(tmp_path, one)
    records = tmp_path / "records"
    shapes = {
        "curved": changed("curve.metric", "0.5") | {"id": "curved"},
        "future": record() | {"schema": 99, "id": "future"},
        "nothing": None,
    }
    for name, shape in shapes.items():
        (records / f"{name}.json").write_text(json.dumps(shape))
    with open(os.fsencode(records) + b"/\xff.json", "wb"):  # a name that is no text
        pass
    (records / "deep.json").write_text("[" * 100_000)
    (records / "large.json").write_text('{"schema": 2, "id": "large", "a": 1e999}')
    for name, make in zip(
        ("folder", "pipe", "device", "loop"), ODD.values(), strict=True
    ):
        make(records / f"{name}.json")
    (records / "gone.json").symlink_to("nowhere")
    (records / "huge.json").touch()
    os.truncate(records / "huge.json", 64 * 2**20 + 1)
    (tmp_path / "measures").mkdir()
    (tmp_path / "measures" / "halved.json").write_text(
        '{"schema": 1, "id": "halved", "kind": "magnitude"}'
    )
    names = [
        *shapes,
        r"\udcff",
        "deep",
        "large",
        "folder",
        "pipe",
        "device",
        "loop",
        "gone",
        "huge",
    ]
    return tmp_path, [*names, "halved"]


def test_a_ledger_names_each_odd_file_once_and_keeps_the_rest(odd, capsys):
    folder, names = odd
    found = open_ledger(folder, published=False)  # as every command does
    said = capsys.readouterr().err
    assert sorted(found.records) == sorted(one["id"] for one in seed_records())
    assert not found.measures
    assert len(found.problems) == len(names)
    assert "huge.json: larger than 67,108,864 bytes" in said  # and not read
    for name in names:
        (problem,) = [
            problem for problem in found.problems if f"/{name}.json: " in problem
        ]
        assert "\n" not in problem
        assert len(problem) < 300
        assert f"left out: {problem}\n" in said


def test_a_new_run_of_a_study_is_a_line_more_and_a_damaged_line_is_named_alone(
    tmp_path,
):
    path, (one, two, three, *_) = tmp_path / "records.jsonl", seed_records()
    older = json.dumps(one | {"schema": 2}) + "\n"  # as another version wrote it
    path.write_text(older + record_text(three))
    for added in (two, two | {"deviations": ["some"]}):
        write_study(tmp_path, [added])
        assert path.read_text() == older + record_text(added) + record_text(three)
    path.write_text(f"{older[:-9]}\n\nnull\n{record_text(three)}[")
    found = read_study(tmp_path)
    assert [*found.records] == [three["id"]]
    assert [of.partition(": ")[0] for of in found.problems] == [
        f"{path} line {i}" for i in (1, 3, 5)
    ]
    assert not read_study(tmp_path / "none").problems


# --- what a terminal or a card obeys


#: A terminal's title, a cleared screen, a return, a C1 sequence, turned directions, a
#: mark, half a character.
EVIL = [
    "\x1b]0;PWN\x07",
    "\x1b[2J",
    "a\rb",
    "\x9b31m",
    "\x7f",
    "\u202eabc",
    "\u2066",
    "\u200f",
    "\u061c",
    "a\u2028b",
    "\u2029",
    "zero\u200bwidth",
    "\u2060",
    "\ufeff",
    "\u00ad",
    "\U000e0041",
    "\ue000",
    "\ud800",
]


def test_a_text_that_is_shown_as_it_is_stays():
    for text in (
        "a\tb\nc",
        "e\u0301",
        "10\u00a0%",
        "\u65e5\u672c",
        "\U0001f600",
        "\u03b1",
    ):
        assert printable(text) == text
    assert printable("a\u2028b\x1b") == "a\\u2028b\\x1b"


def put(folder, made):
    """A record as a stranger writes it."""
    path = record_path(folder, made["id"])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        json.dumps(made, ensure_ascii=False).encode("utf-8", "surrogatepass")
    )
    return path


@pytest.mark.parametrize("evil", EVIL[:-1], ids=ascii)  # the last one is no JSON
def test_a_record_with_a_character_that_a_terminal_obeys_is_refused(evil, tmp_path):
    changes = {"label": {"task": evil}, "cell": {"row": evil}, "versions": {evil: "1"}}
    changes |= {"error": evil, "tries": [evil], "deviations": [evil]}
    for (key, value), escaped in itertools.product(changes.items(), (True, False)):
        one = record()
        one[key] = one[key] | value if isinstance(value, dict) else value
        path = put(tmp_path, one)
        if escaped:
            path.write_text(json.dumps(one))
        with pytest.raises(ValueError, match="not a record") as error:
            read_record(path)
        if escaped or min(evil) >= " ":  # the others are no JSON
            assert f"({key}: holds a control character" in str(error.value)
        assert not any(map(is_hidden, str(error.value)))


def test_this_projects_own_records_are_written_so_that_they_are_read(tmp_path):
    for evil in EVIL:
        one = record() | {"error": f"Error: {evil}\tand\nmore é", "tries": [evil]}
        one["label"]["row"] = one["config"]["method"]["label"] = evil
        path = write_record(tmp_path, one)
        again = read_record(path)
        assert again["error"] == f"Error: {ascii(evil)[1:-1]}\tand\nmore é"
        assert again["label"]["row"] == again["tries"][0] == ascii(evil)[1:-1]
        assert read_ledger(tmp_path, published=False).problems == []
    made = record()
    assert read_record(write_record(tmp_path, made)) == made  # nothing else is changed
    # Nor does an error of a library colour anything
    assert describe(RuntimeError("\x1b[31mred\x1b[0m")) == r"\x1b[31mred\x1b[0m"
    assert (
        describe(FileNotFoundError(2, "No such file", "a\x1b\n.txt"))
        == r"a\x1b .txt: No such file"
    )


def test_a_model_file_that_may_not_be_read_says_so(tiny_bert, closed):
    closed("/model.safetensors")
    with refused(f"{tiny_bert / 'model.safetensors'}: ", "permission denied"):
        models.fetch(
            {
                "path": str(tiny_bert),
                "modality": "text",
                "architecture": None,
                "sha256": None,
            }
        )


# --- protocols

ACCURACY, PERPLEXITY = (
    ReportedMetric("accuracy"),
    ReportedMetric("perplexity", higher_is_better=False, scale=1.0),
)


def curve(a, b, rows=10):
    """A curve whose halves of dev are these: A of rows // 2 rows, B of the others."""
    share = (rows // 2) / rows
    whole = [share * of_a + (1 - share) * of_b for of_a, of_b in zip(a, b, strict=True)]
    return {
        "epoch": [i + 1.0 for i in range(len(a))],
        "metric": whole,
        "metric_select": list(a),
        "metric_report": list(b),
    }


@pytest.mark.parametrize(
    ("a", "b", "rows", "metric", "best", "epochs", "last", "optimism"),
    [
        # 5 rows: two in A and three in B. By A the first epoch, where B has 1/3; by B
        # the third, where A has 1/2. On the whole, epochs 1 and 3 have three of five
        # rows right
        ((1, 0.5, 0.5), (1 / 3, 1 / 3, 2 / 3), 5, ACCURACY, 0.4, [1, 3], 0.6, 0.2),
        # the earliest of equals
        ((0.9, 0.9, 0.1), (0.2, 0.8, 0.8), 10, ACCURACY, 0.55, [1, 2], 0.45, 0.3),
        # less is better
        ((3, 2, 2), (3, 2.8, 2), 10, PERPLEXITY, 2.4, [2, 3], 2.0, 0.4),
        ((0.5, 0.9), (0.4, 0.7), 10, ACCURACY, 0.8, [2, 2], 0.8, 0),
        ((0.5,), (0.4,), 10, ACCURACY, 0.45, [1, 1], 0.45, 0),
    ],
)
def test_cross_fitting_by_hand(a, b, rows, metric, best, epochs, last, optimism):
    found = crossfit(curve(a, b, rows), rows, metric)
    numbers = [found["best"], *found["best_epoch"], found["last"], found["optimism"]]
    assert numbers == pytest.approx([best, *epochs, last, optimism])


ONE, TWO = (
    {"epoch": [1.0], "metric": [0.5]},
    {"epoch": [1.0, 2.0], "metric": [0.5, 0.6]},
)


@pytest.mark.parametrize(
    "odd",
    [
        {"epoch": [], "metric": [], "metric_select": [], "metric_report": []},
        ONE,  # a curve without halves
        TWO | {"metric_select": [0.5, 0.6], "metric_report": [0.5]},
        TWO | {"metric_select": [0.5, None], "metric_report": [0.5, 0.5]},
    ],
)
def test_a_curve_without_halves_has_no_cross_fitted_number(odd):
    assert crossfit(odd, 10, ACCURACY) is None
    record = {
        "curve": odd,
        "data": {"dev_rows": 10},
        "result": metric_fields("accuracy"),
    }
    assert best_and_last(record, "crossfit") == best_and_last(record, "half") == {}
    # of a run that diverged before its first epoch
    assert best_and_last(record, "paper") == {}


def test_a_record_of_before_cross_fitting_says_it_from_its_curve():
    paper = {"best": 0.75, "best_epoch": 2.0, "last": 0.75}
    record = {
        "curve": curve((0.6, 0.9, 0.7), (0.5, 0.6, 0.8)),
        "data": {"dev_rows": 10},
    }
    record["result"] = metric_fields("accuracy") | {"select": "paper"}
    record["result"]["protocols"] = {"paper": paper, "unbiased": {"best": 0.6}}
    assert best_and_last(record, "paper") == paper
    assert best_and_last(record, "crossfit")["best"] == pytest.approx(0.65)
    assert math.isclose(best_and_last(record, "crossfit")["optimism"], 0.1)
    # Half A chooses the second epoch, of which half B says 0.6; as perplexities the
    # first
    assert best_and_last(record, "half") == {"best": 0.6, "last": 0.8}
    assert (
        best_and_last(record | {"result": metric_fields("perplexity")}, "half")["best"]
        == 0.5
    )


def test_an_older_record_gets_its_metric_and_the_reported_epoch_when_it_is_read(
    tmp_path,
):
    """Of texts that are written; of the other families there are published ones
    (tests/test_published.py)."""
    older = record() | {"schema": 2}
    older["config"]["task"]["family"] = "e2e"
    kept = {
        key: older["result"][key] for key in ("select", "best", "best_epoch", "last")
    }
    older["result"] = kept | {"metric": "perplexity"}
    (tmp_path / "older.json").write_text(json.dumps(older))
    read = read_record(tmp_path / "older.json")
    assert (read["schema"], read["result"]["reported"]) == (SCHEMA, "last")
    assert ReportedMetric.of_record(read) == PERPLEXITY


PUBLISHED = {
    "task.data_dir=/home/alice/glue": "task.data_dir=glue",
    "task.data_dir='~/my data'": "task.data_dir='my data'",
    "init_from=../of others/a.safetensors": "init_from=a.safetensors",
    **{
        word: word
        for word in (
            "model.path=null",
            "init_from=lora@mnli",
            "method.sites=[query,value]",
        )
    },
    "task.forgetting_text=hub:a/b/c.txt": "task.forgetting_text=hub:a/b/c.txt",
}


def test_what_is_published_is_without_the_places_of_this_machine():
    error = "/home/alice/bad/model.st: cannot be read (see ~/notes/x.txt, 5 tokens/s)"
    tries = ["../up/checkpoint.safetensors: No space left on device. https://a.org/b/c"]
    made = record() | {"overrides": [*PUBLISHED], "error": error, "tries": tries}
    made["config"] |= {"output": "/home/alice/outputs", "init_from": None}
    clean = without_paths(made)
    assert overrides_of(clean) == [*PUBLISHED.values(), "seed=0"]
    assert clean["error"] == "model.st: cannot be read (see x.txt, 5 tokens/s)"
    assert clean["tries"] == [
        "checkpoint.safetensors: No space left on device. https://a.org/b/c"
    ]
    assert without_paths(record())["error"] is None


def test_what_follows_the_seed_is_no_other_cell_and_another_order_of_the_rows_is(
    tmp_path,
):
    """The draw of images, and A and B where they are drawn anew for each seed."""

    def ids(redrawn, **task):
        made = [record() for _ in range(2)]
        for seed, one in enumerate(made):
            one["config"]["method"] |= {"projection_seed": seed, "redrawn": redrawn}
            one["config"]["task"] |= dict.fromkeys(task, seed)
        return len({cell_id(one) for one in made})

    assert ids(redrawn=True) == ids(redrawn=True, draw_seed=True) == 1
    assert ids(redrawn=True, train_rows=True) == ids(redrawn=False) == 2
    made = [record() for _ in range(4)]
    for one, data_seed in zip(made[1:], (made[0]["config"]["seed"], 8, 7), strict=True):
        one["config"]["data_seed"] = data_seed
    assert [cell_id(one) == cell_id(made[0]) for one in made] == [
        True,
        True,
        False,
        False,
    ]
    assert cell_id(made[2]) != cell_id(made[3])
    for number, one in enumerate(made[1:3]):
        write_record(
            tmp_path, one | {"id": f"{number:012}", "cell_id": "another version's"}
        )
    assert len({cell_id(each) for each in read_ledger(tmp_path, published=False)}) == 2
