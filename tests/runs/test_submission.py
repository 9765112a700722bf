"""A stranger's result as one zip: what is in it, what is wrong with it, and what is not
read at all."""

import hashlib
import json
import os
import stat
import subprocess
import zipfile

import pytest
from ledgers import record, seeds
from running import call_here, output_of, refused, trained

import tasks
from analysis.frame import cells, runs
from runs import provenance, publish, submission
from runs.config import expand
from runs.record import cell_id, ledger, read_ledger, write_record, write_sweep
from runs.submission import problems, read
from runs.sweep.sweep import preflight

pytestmark = pytest.mark.properties

SOURCES = {"method": "vera/methods/vera.py", "task": "tasks/glue.py"}
# VeRA's b and d of rank 8 in RoBERTa-base's queries and values
TRAINED = 24 * (768 + 8)


def git(root, *words):
    who = ["-c", "user.name=n", "-c", "user.email=e"]
    done = subprocess.run(
        ["git", "-C", str(root), *who, *words],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone of a project, with a commit that the project has; in it somebody has
    added a method."""
    project, root = tmp_path / "project", tmp_path / "clone"
    for name in (
        *SOURCES.values(),
        "runs/run.py",
        "conf/config.yaml",
        "runs/records/s/records.jsonl",
    ):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(f"{name}\n")
    git(tmp_path, "init", "-q", "-b", "main", str(project))
    git(project, "add", ".")
    git(project, "commit", "-qm", "one")
    git(tmp_path, "clone", "-q", str(project), str(root))
    (root / "vera/methods/mine.py").write_text("mine\n")
    monkeypatch.setattr(provenance, "ROOT", root)
    forget()
    yield root
    forget()


def forget():
    """What was asked of git, as by a command of its own."""
    for known in (
        submission.in_history,
        submission.tree,
        submission._content,
        provenance.code_state,
    ):
        known.cache_clear()


def sha(text):
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def sound(clone, method="vera/methods/vera.py", row="vera"):
    """Two seeds of a run in the clone."""
    made = seeds(
        row=row,
        bests=(0.8, 0.81),
        protocol=tasks.protocol({"family": "glue", "name": "rte"}),
    )
    for one in made:
        files = {"method": method, "task": SOURCES["task"]}
        sources = {
            part: {"file": file, "sha256": sha((clone / file).read_text())}
            for part, file in files.items()
        }
        one["overrides"], one["code"] = (
            ["task=rte"],
            provenance.code_state() | {"sources": sources},
        )
        one["parameters"] |= {"adapter": TRAINED, "formula": TRAINED}
    return made


def zipped(clone, records, name="mine"):
    path = clone.parent / f"{name}.zip"
    path.with_suffix(".md").write_text("On a laptop.\n")
    submission.write(path, name, records, None)
    return path


def members(path):
    with zipfile.ZipFile(path) as file:
        return {one.filename: file.read(one) for one in file.infolist()}


def rewritten(path, changes):
    """The zip with other contents of some members; None: without it."""
    now = {
        name: text
        for name, text in (members(path) | changes).items()
        if text is not None
    }
    with zipfile.ZipFile(path, "w") as file:
        for name, content in now.items():
            file.writestr(name, content)
    return path


def test_a_zip_has_records_sources_notes_and_the_projects_commit(clone):
    base = git(clone, "rev-parse", "HEAD")
    mine = sound(clone, "vera/methods/mine.py", row="mine")
    assert provenance.code_state() == {
        "commit": base,
        "dirty": True,
        "upstream": base,
        "altered": [],
    }
    path = zipped(clone, mine)
    inside = members(path)
    assert inside["sources/vera/methods/mine.py"] == b"mine\n"
    ids = [json.loads(line)["id"] for line in inside["records.jsonl"].splitlines()]
    about = json.loads(inside["about.json"])
    assert (ids, about["author"], about["commit"]) == (
        [one["id"] for one in mine],
        "mine",
        base,
    )
    assert "runs/records/s/records.jsonl" not in about["files"]
    assert problems(read(path)) == []
    # Committed in the clone it is no commit of the project's, and still an added file
    git(clone, "add", ".")
    git(clone, "commit", "-qm", "my method")
    forget()
    state = provenance.code_state()
    assert state["commit"] != base
    assert state == {
        "commit": state["commit"],
        "upstream": base,
        "dirty": False,
        "altered": [],
    }
    assert (
        problems(read(zipped(clone, sound(clone, "vera/methods/mine.py", row="mine"))))
        == []
    )
    before = path.read_bytes()
    assert (
        zipped(clone, sound(clone, "vera/methods/mine.py", row="mine")).read_bytes()
        == before
    )


MINE = "vera/methods/mine.py"
FOREIGN = ["which the zip does not", f"{MINE}, as it was run, is neither"]
#: What is planted in a record of the first seed, below its keys, or in the zip, and
#: what is said of it.
FAULTS = [
    (
        {"code": {"altered": ["runs/run.py"]}},
        "changed files of the project itself (runs/run.py): 1 run",
    ),
    (
        {"code": {"altered": None, "dirty": True}},
        "changed files of the project itself (?): 1 run",
    ),
    ({"code": {"upstream": "f" * 40}}, "commit ffffffffffff is not in"),
    ({"code": {"upstream": "--all"}}, "commit --all is not in"),
    ({"code": {"upstream": None}}, "no commit is named"),
    ({"code": {"sources": {"method": {"file": MINE, "sha256": "0" * 16}}}}, FOREIGN[1]),
    ({"protocol": 99}, "protocol 99 of rte"),
    ({"data": {"content": "other"}}, "task rte: of 2 contents"),
    ({"model": "other"}, "model roberta_base: of 2 contents"),
    ({"cell": {"seed": 1}, "config": {"seed": 1}}, "seed 1 twice: 2 runs"),
    ({"result": {"protocols": {"paper": {"best": 0.9}}}}, "its curve does not hold"),
    ({"result": {"last": 0.9}}, "its curve does not hold"),
    (
        {"config": {"train": {"lr": 0.1, "epochs": 3, "max_steps": 3}}},
        "not a finished result: 1 run",
    ),
    ({"overrides": []}, "without overrides"),
    ({f"sources/{MINE}": None}, f"{MINE}: missing", *FOREIGN),
    ({f"sources/{MINE}": b"other"}, f"{MINE}: changed", *FOREIGN),
    ({"sources/more.py": b""}, "sources/more.py: changed"),
    ({"NOTES.md": submission.TEMPLATE.encode()}, "NOTES.md is still the template"),
    ({"records.jsonl": b""}, "has no record"),
    ({"records.jsonl": b"{\n"}, "records.jsonl line 1: not a record", "has no record"),
]


@pytest.mark.parametrize(
    ("planted", "named"), [(planted, named) for planted, *named in FAULTS]
)
def test_a_planted_fault_is_found_in_a_line(planted, named, clone):
    made, inside = (
        sound(clone, MINE, row="mine"),
        {k: of for k, of in planted.items() if "." in k},
    )
    for key, of in () if inside else planted.items():
        made[0][key] = made[0][key] | of if isinstance(of, dict) else of
    found = problems(read(rewritten(zipped(clone, made), inside)))
    assert len(found) == len(named), found
    assert [sum(words in line for line in found) for words in named] == [1] * len(
        named
    ), found
    assert "\n" not in "".join(found)


@pytest.mark.parametrize("there", [True, False])
def test_a_changed_file_of_the_project_is_named_in_the_files_and_the_records(
    there, clone
):
    (clone / "runs/run.py").write_text("edited\n") if there else (
        clone / "runs/run.py"
    ).unlink()
    lines = problems(read(zipped(clone, sound(clone))))
    assert [line.count("runs/run.py") for line in lines] == [1, 1]
    assert "(runs/run.py): 2 runs" in "".join(lines)
    # And before the hours, by the sweep
    assert provenance.code_state()["altered"] == ["runs/run.py"]


def test_a_count_is_the_methods_own(clone):
    """Of this project's methods in models of conf/model; of others, and of settings out
    of bounds, none."""
    made = sound(clone)
    made[1]["parameters"]["adapter"] += 1
    other_count, _ = problems(read(zipped(clone, made)))
    assert "count() says 18,624 of 18,625 parameters" in other_count
    made[1]["parameters"]["formula"] += 1
    (line,) = problems(read(zipped(clone, made)))
    assert "18,625 trained parameters, where VeRA" in line
    assert "has 18,624: 1 run" in line
    for settings in (
        {"kind": "peft"},
        {"kind": "a.B"},
        {"kind": "none"},
        {"rank": 10**9},
        {"rank": -1},
    ):
        made[1]["config"]["method"] |= settings
        assert problems(read(zipped(clone, made))) == [], settings


def test_what_the_history_lacks_is_not_compared_and_a_package_is_not_checked(
    clone, monkeypatch, capsys
):
    path = zipped(clone, sound(clone))
    git(clone, "checkout", "-q", "--orphan", "another")
    git(clone, "commit", "-qm", "another project's")
    forget()
    assert [
        "is not in this project's history" in line for line in problems(read(path))
    ] == [True, True]
    monkeypatch.setattr(ledger, "INSTALLED", True)
    monkeypatch.setattr(provenance, "INSTALLED", True)
    made = [
        one | {"code": {"commit": "c0ffee", "dirty": False}} for one in sound(clone)
    ]
    path = zipped(clone, made, "wheel")
    assert json.loads(members(path)["about.json"])["files"] is None
    assert publish.main([f"check={path}"]) == 0
    assert "not checked: " in capsys.readouterr().out


# --- zips that are not read


def odd_zip(name="records.jsonl", content=b"", kind=zipfile.ZIP_DEFLATED, mode=0):
    """A member more in a sound zip; an X in its name is a zero byte."""

    def write(path):
        with zipfile.ZipFile(path, "a") as file:
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            file.writestr(info, content, kind)
        path.write_bytes(path.read_bytes().replace(b"aXb", b"a\0b"))

    return write


def lying(path):
    """A member larger than its size says."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
        file.writestr("sources/a", b"0" * 10**6)
    content = path.read_bytes()
    path.write_bytes(
        content.replace((10**6).to_bytes(4, "little"), (10).to_bytes(4, "little"))
    )


def encrypted(path):
    content = path.read_bytes()
    at = content.index(b"PK\x01\x02") + 8
    path.write_bytes(content[:at] + b"\x01" + content[at + 1 :])


def instead(**changes):
    return lambda path: rewritten(
        path, {f"{name}": text for name, text in changes.items()}
    )


ABOUT = b'{"schema": 1, "author": "%s", "commit": null, "files": null, "sources": {}}'
UNSAFE = {
    "an absolute path": odd_zip("/etc/passwd"),
    "a climbing path": odd_zip("sources/../../x"),
    "a name in two": odd_zip("sources/aXb.py"),
    "a hidden file": odd_zip("sources/.bashrc"),
    "a link": odd_zip("sources/a", b"/etc/passwd", mode=stat.S_IFLNK | 0o777),
    "a bomb": odd_zip("sources/a", b"0" * 10**7),
    "a bomb by another method": odd_zip("sources/a", b"0" * 1000, zipfile.ZIP_LZMA),
    "a size that lies": lying,
    "a password": encrypted,
    "many members": lambda path: rewritten(
        path, {f"sources/{i}": b"" for i in range(submission.MEMBERS)}
    ),
    "half a zip": lambda path: path.write_bytes(path.read_bytes()[:-40]),
    "no about": instead(**{"about.json": None}),
    "an about that is a list": instead(**{"about.json": b"[]"}),
    "a deep about": instead(**{"about.json": b"[" * 10**5}),
    "an author that is a path": instead(**{"about.json": ABOUT % b"../x"}),
    "hidden characters": instead(**{"NOTES.md": b"\x1b]0;x\x07"}),
    "notes that are no text": instead(**{"NOTES.md": b"\xff"}),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
}


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", [*UNSAFE, "two members of one name"])
def test_a_zip_that_is_not_safe_is_refused_in_a_line(kind, clone, monkeypatch):
    monkeypatch.setattr(submission, "BYTES", 5 * 10**6)
    path = zipped(clone, sound(clone))
    UNSAFE.get(kind, odd_zip())(path)
    before = {*clone.parent.rglob("*")}
    with refused(path.name):
        read(path)
    assert {*clone.parent.rglob("*")} == before


def test_a_hostile_label_is_no_record_and_reaches_no_terminal(clone):
    made = sound(clone)
    text = ledger.record_text(made[0]).replace('"VeRA', '"\\u001b[2J')
    found = problems(
        read(rewritten(zipped(clone, made), {"records.jsonl": text.encode()}))
    )
    assert ["label: holds a control character" in line for line in found] == [
        True,
        False,
    ]
    assert "\x1b" not in "".join(found)


def test_the_command_writes_a_zip_takes_the_notes_in_and_judges_it(
    words, tmp_path, monkeypatch
):
    """From the first run to a zip with nothing to mend; on a tree without changes of
    the project's files."""
    monkeypatch.setattr(provenance, "altered", list)
    provenance.code_state.cache_clear()
    output, path = output_of(words), tmp_path / "mine.zip"
    one, two = (trained([*words, f"seed={seed}"]) for seed in (0, 1))
    trained([*words, "train.max_steps=1"])  # a trial, which is left out
    write_sweep(output, "alone", [one["id"]])
    said = call_here("runs.publish", f"out={path}", f"output={output}", check=1).stdout
    assert "NOTES.md is still the template" in said
    assert f"{path}: 2 records of mine, " in said
    path.with_suffix(".md").write_text("On a laptop.\n")
    command = ["runs.publish", f"out={path}", f"output={output}", "author=me"]
    own = [word for word in words if not word.startswith("output=")]
    for more, count in (
        (["sweep=last"], "1 record"),
        ([*own, "seed=0,1"], "2 records"),
    ):
        said = call_here(*command, *more, check=None).stdout
        assert f"{count} of me, " in said
        assert "NOTES.md" not in said
    assert str(tmp_path) not in members(path)["records.jsonl"].decode()
    assert {r["id"] for r in read(path).records} == {one["id"], two["id"]}
    for bad in (
        "out=a.tar",
        "out=a-b.zip",
        "check=a.zip seed=1",
        "check=none.zip",
        "out=a.zip sweep=no",
    ):
        assert (
            call_here(
                "runs.publish", *bad.split(), f"output={output}", check=2
            ).stderr.count("\n")
            == 1
        )


def test_a_sweep_says_before_its_runs_that_code_was_changed(words, monkeypatch, capsys):
    for others, told in (([], False), (["runs/run.py", "vera/check.py"], True)):
        monkeypatch.setattr(
            "runs.sweep.sweep.code_state", lambda of=others: {"altered": of}
        )
        preflight(expand(words))
        assert ("runs/run.py and 1 more" in capsys.readouterr().out) == told


def test_what_is_filed_is_shown_by_its_author_and_in_no_cell_of_others(
    clone, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(ledger, "PUBLISHED", tmp_path / "published")
    path, own = zipped(clone, sound(clone), "somebody"), record(seed=2)
    write_record(tmp_path, own)
    assert publish.main([f"add={path}"]) == 0
    assert not ledger.study_folders()
    assert [*read_ledger(tmp_path)] == [own | {"cell_id": cell_id(own)}]
    shown = cells(runs(read_ledger(tmp_path, community=True)))
    assert [*zip(shown.row, shown.n, strict=True)] == [
        ("vera", 1),
        ("vera (somebody)", 2),
    ]
    assert {*shown.origins} == {("ours",), ("community/somebody",)}
    with refused("community/somebody is there already"):
        publish.main([f"add={path}"])
    faulty = rewritten(zipped(clone, sound(clone), "faulty"), {"NOTES.md": b""})
    assert publish.main([f"add={faulty}"]) == 1
    assert [folder.name for folder in ledger.study_folders(community=True)] == [
        "somebody"
    ]
