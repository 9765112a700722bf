"""MT-Bench: files in FastChat's formats, the choice of prompts, scores by hand, and a
judge that fails in every way."""

import itertools
import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from bench import QUESTIONS, jsonl, write_mt_bench
from running import ROOT, refused
from servers import DROP, JudgeServer, Reply, error_reply, score_reply

from tasks.mt_bench import (
    Judge,
    bench_folder,
    bench_summary,
    bench_table,
    prompts,
    rating,
    read_answers,
    read_judgments,
    read_questions,
    write_answers,
)
from tasks.mt_bench.__main__ import main
from tasks.mt_bench.judging import Judgment

pytestmark = pytest.mark.parity

KEY = "sk-quite-secret-0123456789"
SAVED = Path("outputs/judgments/gpt-4.jsonl")


@pytest.fixture
def data(tmp_path):
    return write_mt_bench(tmp_path / "data")


def answers_of(model, bench="mt_bench"):
    return {
        n: [f"{model} on {n}.{i + 1}" for i in range(len(turns))]
        for n, _, turns in QUESTIONS[bench]
    }


@pytest.fixture
def answers(data, tmp_path):
    """An answer file of the model "own"."""
    write_answers(
        tmp_path / "own.jsonl",
        "own",
        answers_of("own"),
        read_questions(data, "mt_bench"),
    )
    return tmp_path / "own.jsonl"


@pytest.fixture(autouse=True)
def _surroundings(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)


# --- files


def rewrite(path, **values):
    rows = [json.loads(line) | values for line in path.read_text().splitlines()]
    jsonl(path, rows)


def test_where_the_data_are(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    assert [
        bench_folder({"mt_bench_dir": str(given)}) for given in (data, tmp_path)
    ] == [data, data]
    for act, named in (
        (
            lambda: bench_folder({"mt_bench_dir": str(data / "mt_bench")}),
            "judge_prompts.jsonl",
        ),
        (lambda: bench_folder({}), "task.mt_bench_dir="),
        (lambda: read_questions(data, "arena"), "arena"),
    ):
        with refused(named):
            act()


def test_answers_are_read_as_they_were_written(data, answers, tmp_path):
    questions, before = read_questions(data, "mt_bench"), answers.read_bytes()
    odd = answers_of("own") | {81: ["", 'Curly {braces} "quotes"\n\u2028é 🚣 [[9]]']}
    write_answers(tmp_path / "new" / "odd.jsonl", "own", odd, questions)
    assert read_answers(tmp_path / "new" / "odd.jsonl", questions, "own") == (
        "own",
        odd,
    )
    with refused("line 1", "'mine'"):
        read_answers(answers, questions, "mine")
    row = json.loads(before.splitlines()[0])
    assert row.keys() == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    assert row["choices"] == [{"index": 0, "turns": ["own on 81.1", "own on 81.2"]}]
    for wrong in ({81: ["a", "b"]}, answers_of("own") | {151: ["a", object()]}):
        with pytest.raises((ValueError, TypeError)):
            write_answers(answers, "own", wrong, questions)
    assert answers.read_bytes() == before
    assert not [p.name for p in answers.parent.iterdir() if p.name.startswith(".")]


# --- prompts and ratings


def asked_for(data, bench="mt_bench", given=None):
    questions = read_questions(data, bench)
    return prompts(data, bench, questions, given or answers_of("own", bench))


def test_each_category_and_turn_has_its_prompt(data):
    found = asked_for(data)
    assert list(found) == [
        (number, turn) for number in (81, 101, 111, 151) for turn in (1, 2)
    ]
    assert found[81, 1][0] == {"role": "system", "content": "You are single-v1."}
    every_bench = (found | asked_for(data, "vicuna_bench")).items()
    last = {place: messages[-1]["content"] for place, messages in every_bench}
    assert len(last) == 8 + 3
    for place, text in {
        (81, 1): "plain: Tell of a {red} boat. / own on 81.1",
        (
            81,
            2,
        ): "plain 2: Tell of a {red} boat. / own on 81.1 / Now make it rhyme. / own on 81.2",
        (111, 1): "known 5: What is 2 + 3? / own on 111.1",
        (
            111,
            2,
        ): "known 2 5, 10: What is 2 + 3? / own on 111.1 / And twice that? / own on 111.2",
        (101, 1): "known Bo.: Ann is older than Bo. Who is younger? / own on 101.1",
        (151, 1): "plain: Who was Ashoka? / own on 151.1",
        (1, 1): "plain: How do I save time? / own on 1.1",
        (70, 1): "known print('a {line}'): Print a line. / own on 70.1",
    }.items():
        assert last[place] == text
    odd = asked_for(
        data, given=answers_of("own") | {81: ["{answer} {0} {", "{question_1} }}{{"]}
    )
    assert odd[81, 1][-1]["content"].endswith("/ {answer} {0} {")
    assert odd[81, 2][-1]["content"].endswith("rhyme. / {question_1} }}{{")
    rewrite(
        data / "judge_prompts.jsonl",
        prompt_template="{{question}} }}{{",
        system_prompt="",
    )
    # An empty system prompt is left out
    assert asked_for(data)[81, 1] == [{"role": "user", "content": "{question} }{"}]


def test_ratings_are_those_of_fastchats_expressions_in_linear_time():
    """On random replies made of what the expressions look at. FastChat's would take an
    hour of 300,000 digits."""
    patterns = [
        re.compile(pattern, re.ASCII)
        for pattern in (r"\[\[(\d+\.?\d*)\]\]", r"\[(\d+\.?\d*)\]")
    ]
    draw, seen = random.Random(0), Counter()
    for _ in range(30_000):
        reply = "".join(draw.choices("[[[[]]]]175.\n\u0667", k=draw.randrange(16)))
        match = next(
            filter(None, (pattern.search(reply) for pattern in patterns)), None
        )
        value = float(match[1]) if match else None
        assert rating(reply) == (
            value if value is not None and 1 <= value <= 10 else None
        ), repr(reply)
        seen[value] += 1
    assert seen[None] > 3000
    assert len([value for value, count in seen.items() if value and count > 3]) > 20
    began = time.process_time()
    for reply in ("[[{0}", "[[{0}.{0}", "[{0}", "[[{0}.]" * 2, "[[" * 100_000 + "{0}"):
        assert rating(reply.format("1" * 300_000)) is None
    assert time.process_time() - began < 5


# --- scores


def scored(data, by, scores):
    """The summary of judgments with a reply [[x]] from scores[question, turn, pass];
    None: a reply without rating; absent: not judged."""
    saved, given = {}, answers_of("own")
    for (number, turn), messages in asked_for(data).items():
        for sitting, key in enumerate(by.keys(messages), 1):
            if (number, turn, sitting) in scores:
                value = scores[number, turn, sitting]
                reply = "no" if value is None else f"[[{value}]]"
                saved[key] = Judgment(
                    key=key, reply=reply, prompt_tokens=10, completion_tokens=3
                )
    return bench_summary(data, "mt_bench", given, by, saved)


def test_scores_by_hand(data):
    scores = {
        (81, 1, 1): 8,
        (81, 1, 2): 7,
        (81, 2, 1): 6,
        (81, 2, 2): 5,
        (101, 1, 1): 2,
        (101, 1, 2): None,
    }
    scores |= {
        (101, 2, 1): None,
        (111, 1, 1): 3,
        (111, 1, 2): 4,
        (111, 2, 1): 1,
        (111, 2, 2): None,
    }
    found = scored(data, Judge("j", passes=2), scores)
    counts = {
        "n": 16,
        "judged": 11,
        "n_valid": 8,
        "bench": "mt_bench",
        "judge": "j",
        "passes": 2,
    }
    counts["tokens"] = {"prompt": 110, "completion": 33}
    assert {key: found[key] for key in counts} == counts
    assert found["mean"] == pytest.approx((8 + 7 + 6 + 5 + 2 + 3 + 4 + 1) / 8)
    assert found["turns"] == pytest.approx(
        {"1": (8 + 7 + 2 + 3 + 4) / 5, "2": (6 + 5 + 1) / 3}
    )
    of_all = {
        "writing": 6.5,
        "reasoning": 2.0,
        "math": pytest.approx(8 / 3),
        "humanities": None,
    }
    assert found["categories"] == of_all
    assert found["pass_means"] == pytest.approx(
        [(8 + 6 + 2 + 3 + 1) / 5, (7 + 5 + 4) / 3]
    )
    for scores in ({}, {(81, 1, 1): None}):  # nothing valid
        found = scored(data, Judge(), scores)
        assert [found[key] for key in ("mean", "low", "high", "n_valid", "n")] == [
            None,
            None,
            None,
            0,
            8,
        ]
        of_all = {
            *found["turns"].values(),
            *found["categories"].values(),
            *found["pass_means"],
        }
        assert (of_all, found["judged"]) == ({None}, len(scores))
        assert "None" not in bench_table([{"model": "own", **found}])


def test_the_interval_pools_what_is_drawn(data):
    """Questions with 1 to 4 scores, held beside all 256 draws of four questions, each
    as likely."""
    values = {81: [2], 101: [9, 9, 9, 9], 111: [4, 5], 151: [7, 7, 6]}
    places = [(1, 1), (1, 2), (2, 1), (2, 2)]
    scores = {
        (n, *place): v
        for n, some in values.items()
        for place, v in zip(places, some, strict=False)
    }
    found = scored(data, Judge(passes=2), scores)
    draws = itertools.product(values.values(), repeat=4)
    means = sorted(
        np.mean([value for some in draw for value in some]) for draw in draws
    )
    assert (found["low"], found["high"]) == (
        pytest.approx(means[6]),
        pytest.approx(means[-7]),
    )


def test_a_judgment_is_of_its_request_and_a_summary_of_its_answers(data):
    message = [{"role": "user", "content": "x"}]
    judges = [Judge(passes=2), Judge("other"), Judge(max_tokens=9)]
    keys = [key for by in judges for key in by.keys(message)] + Judge().keys(
        [{**message[0], "content": "y"}]
    )
    assert len({*keys}) == 5
    assert Judge().keys(message) == Judge(passes=2).keys(list(message))[:1]
    assert Judge("org/judge:7b").file() == Path("outputs/judgments/org_judge_7b.jsonl")
    own = answers_of("own")
    each = (own, dict(reversed(own.items())), own | {81: ["", ""]})
    first, same, other = (
        bench_summary(data, "mt_bench", of, Judge(), {})["answers"] for of in each
    )
    assert first == same != other


# --- judging


def run(data, server, *words):
    """The judge command in this process: 0 or more answer files and options."""
    url = server if isinstance(server, str) else server.url
    fast = [
        "--data",
        str(data),
        "--base-url",
        url,
        "--retries",
        "1",
        "--timeout",
        "5",
        "--judge",
        "gpt-4",
    ]
    return main(["judge", *fast, *map(str, words)])


NOWHERE = "http://127.0.0.1:9/v1"


def test_a_model_is_judged_and_shown(data, answers, monkeypatch, capsys):
    scores = iter([8, 6, 5, 5, 9, 3, 7, 7])
    with JudgeServer(lambda prompt, nth: score_reply(next(scores))) as server:
        assert run(data, server, answers, "--concurrency", "1") == 0
    first, *shown = capsys.readouterr().out.splitlines()
    assert first.startswith(
        "8 judged anew, 0 taken from outputs/judgments/gpt-4.jsonl, 0 failed"
    )
    cells = shown[1].split()
    assert cells[:3] == ["own", "gpt-4", "6.25"]
    assert cells[6:] == ["7.25", "5.25", "7.00", "5.00", "6.00", "7.00", "8", "of", "8"]
    assert len(shown) == 2
    assert [r["messages"] for r in server.requests] == list(asked_for(data).values())
    fixed = {"model": "gpt-4", "temperature": 0, "max_tokens": 2048}
    assert all(
        {k: v for k, v in r.items() if k != "messages"} == fixed
        for r in server.requests
    )
    assert server.keys == {f"Bearer {KEY}"}
    row, *_ = [json.loads(line) for line in SAVED.read_text().splitlines()]
    assert row["reply"] == "A fair answer, as far as it goes. Rating: [[8]]"
    assert [row[k] for k in ("rating", "prompt_tokens", "completion_tokens")] == [
        8.0,
        100,
        20,
    ]
    # Shown again without a server, and without a key.
    monkeypatch.delenv("OPENAI_API_KEY")
    assert main(["show", str(answers), "--data", str(data)]) == 0
    assert capsys.readouterr().out.splitlines() == shown
    assert main(["show", str(answers), "--data", str(data), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["models"]
    assert [found[k] for k in ("model", "mean", "file")] == ["own", 6.25, str(answers)]
    assert found["tokens"] == {"prompt": 800, "completion": 160}
    # Judged again: nothing to pay, so no key, and no server.
    assert run(data, NOWHERE, answers) == 0
    assert capsys.readouterr().out.startswith("0 judged anew, 8 taken from")


def test_passes_are_asked_anew_and_kept_apart(data, answers, monkeypatch, capsys):
    with JudgeServer(lambda prompt, nth: score_reply(nth)) as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert main(["judge", str(answers), "--data", str(data)]) == 0
        server.answer = lambda prompt, nth: Reply(f"[[{nth}]]", wait=0.15)
        assert (
            run(data, server, answers, "--passes", "3", "--json", "--concurrency", "3")
            == 0
        )
        assert set(server.paid.values()) == {3}
        assert server.busiest == 3
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [found["judging"][k] for k in ("asked", "cached")] == [16, 8]
    (model,) = found["models"]
    assert (model["pass_means"][0], model["mean"], model["n"]) == (1, 2, 24)


# --- a server that misbehaves


#: What the server does with one prompt, and the reason in the refusal; and with all but
#: the first three.
ONE_FAILS = [
    (error_reply(422, "x" * 190 + KEY), f"HTTP 422: {'x' * 190}***"),
    (error_reply(429, "slower"), "HTTP 429: slower"),
    (Reply(body=b"[" * 200_000), "the reply is no chat completion"),
    (
        Reply(body={"choices": [{"message": {"content": [7]}}]}),
        "the reply is no chat completion",
    ),
    *((Reply(wait=2.0), "no reply in time"), (DROP, "the connection broke off")),
    (
        Reply(body=b"\n<b>bad\ngateway", status=502, headers={"retry-after": "0.01"}),
        "HTTP 502",
    ),
]
ALL_FAIL = [
    *(
        (error_reply(code, f"wrong key {KEY}"), f"OPENAI_API_KEY (HTTP {code})")
        for code in (401, 403)
    ),
    (error_reply(404, "no such model"), "'gpt-4' (HTTP 404)"),
    (error_reply(400, "no such model", "model_not_found"), "'gpt-4' (HTTP 400)"),
    (error_reply(429, "pay first", "insufficient_quota"), "quota"),
]


@pytest.mark.parametrize(("trouble", "named"), [*ONE_FAILS, *ALL_FAIL])
def test_what_fails_is_a_line_and_what_dooms_all_stops_at_once_and_keeps_what_is_saved(
    trouble, named, data, answers, capsys
):
    all_fail = (trouble, named) in ALL_FAIL

    def answer(prompt, nth):
        fails = len(server.requests) > 3 if all_fail else prompt.endswith("own on 81.1")
        return trouble if fails else score_reply(7)

    words = [
        "--json",
        "--timeout",
        "0.3" if trouble.wait else "5",
        *["--concurrency", "1"] * all_fail,
    ]
    with JudgeServer(answer) as server:
        assert run(data, server, answers, *words) == 1 + all_fail
        if all_fail:
            assert len(server.requests) == 3 + 1 + (trouble.status == 429)
            assert len(read_judgments(SAVED)) == 3
            asked = len(server.requests)
            assert run(data, server, answers) == 2  # and the first is asked once, alone
            assert len(server.requests) == asked + 1
    said = capsys.readouterr()
    assert KEY[:8] not in said.out + said.err
    if all_fail:
        lines = said.err.splitlines()
        assert [
            line.startswith(f"error: {server.url}") and named in line for line in lines
        ] == [True, True]
        return
    found = json.loads(said.out)["judging"]
    (told,) = found["reasons"]
    assert (found["asked"], told.startswith(named), "\n" in told) == (7, True, False)


@pytest.mark.parametrize(
    ("url", "key", "words", "named"),
    [
        *((url, KEY, [], "address") for url in ("localhost:8000", "ftp://x/v1")),
        (NOWHERE, KEY, [], f"nothing listens at {NOWHERE} ("),
        *(
            (url, KEY, [], "")
            for url in ("http://user:hidden@a b/v1", "http://user:hidden@x/v1")
        ),
        *((NOWHERE, key, [], "OPENAI_API_KEY") for key in (" ", "ключ")),
        *(
            (NOWHERE, KEY, [f"--{name}", "0"], "above 0")
            for name in ("passes", "concurrency", "timeout")
        ),
        *(
            (NOWHERE, KEY, words, "above 0")
            for words in (["--retries", "-1"], ["--judge", ""])
        ),
        (
            NOWHERE,
            KEY,
            ["--judgments", "own.jsonl"],
            "own.jsonl line 1: not a judgment",
        ),
        (NOWHERE, KEY, ["--judgments", "."], "Is a directory"),
        (NOWHERE, KEY, ["--judgments", "own.jsonl/below.jsonl"], "Not a directory"),
    ],
)
def test_what_no_judge_can_be_asked_with_is_one_line(
    url, key, words, named, data, answers, monkeypatch, capsys
):
    before = answers.read_bytes()
    monkeypatch.setenv("OPENAI_API_KEY", key)
    assert run(data, url, answers, "--retries", "0", *words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert named in said
    assert (said.count("\n"), "hidden" in said) == (1, False)
    assert answers.read_bytes() == before


# --- the file of judgments, and processes


def test_a_line_that_was_cut_off_is_asked_again_and_spoils_no_other(
    data, answers, capsys
):
    with JudgeServer() as server:
        assert run(data, server, answers) == 0
        whole = SAVED.read_bytes()
        SAVED.write_bytes(whole[:-30])
        assert main(["show", str(answers), "--data", str(data)]) == 0
        assert "7 of 8 judged" in capsys.readouterr().out
        for _ in range(2):
            assert run(data, server, answers) == 0
        assert sorted(server.paid.values()) == [1] * 7 + [2]
    assert SAVED.read_bytes().startswith(whole[:-30] + b"\n{")
    assert b"\n\n" not in SAVED.read_bytes()
    before = read_judgments(SAVED)  # the first of two counts
    SAVED.write_bytes(SAVED.read_bytes() + whole.replace(b"[[7]]", b"[[9]]"))
    assert read_judgments(SAVED) == before


def start(data, server, *words):
    command = [
        sys.executable,
        "-m",
        "tasks.mt_bench",
        "judge",
        *words,
        "--data",
        data,
        "--timeout",
        "20",
    ]
    how = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "cwd": ROOT,
    }
    return subprocess.Popen([*map(str, command), "--base-url", server.url], **how)


def ended(running, begins):
    """That it ended well, and how its output begins."""
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    assert out.startswith(begins)


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_run_that_is_stopped_goes_on_and_pays_for_nothing_twice(
    how, data, answers, tmp_path
):
    file, free, count = tmp_path / "saved.jsonl", threading.Event(), itertools.count()

    def hold(prompt, nth):
        """Five are answered, the others held until they are let go, unpaid."""
        if next(count) < 5 or free.is_set():
            return score_reply(7)
        free.wait(30)
        return DROP

    with JudgeServer(hold) as server:
        running = start(
            data, server, answers, "--judgments", file, "--concurrency", "2"
        )
        while (
            not file.exists()
            or len(read_judgments(file)) < 5
            or len(server.requests) < 6
        ):
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(how)
        _, err = running.communicate(timeout=20)
        free.set()
        if how == signal.SIGINT:
            assert running.returncode == 130
            assert str(file) in err.splitlines()[-1]
            assert "Traceback" not in err
        ended(
            start(data, server, answers, "--judgments", file),
            "3 judged anew, 5 taken from",
        )
        assert len(server.paid) == 8
        assert set(server.paid.values()) == {1}


@pytest.mark.usefixtures("process")
def test_two_processes_share_a_file(data, tmp_path):
    questions, file = read_questions(data, "mt_bench"), tmp_path / "saved.jsonl"
    paths = [tmp_path / f"{name}.jsonl" for name in "ab"]
    for path in paths:
        long = {
            n: [t + "x" * 9000 for t in turns]
            for n, turns in answers_of(path.stem).items()
        }
        write_answers(path, path.stem, long, questions)
    with JudgeServer(
        lambda prompt, nth: Reply("y" * 20000 + "[[7]]", wait=0.02)
    ) as server:
        for running in [
            start(data, server, p, "--judgments", file, "--passes", "4") for p in paths
        ]:
            ended(running, "32 judged anew, 0 taken from")
    # see tasks.mt_bench.judging.append_line
    lines = [line for line in file.read_text().splitlines() if line]
    assert len(lines) == len(read_judgments(file)) == 64
