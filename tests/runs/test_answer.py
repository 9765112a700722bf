"""A run answers MT-Bench's questions and is judged: after a kill the answers are the
same."""

import contextlib
import importlib
import json
import shutil

import pytest
import torch
from bench import QUESTIONS
from running import comparable, refused, replace_words, train_here, trained
from safetensors.torch import load_file
from servers import JudgeServer, error_reply, score_reply
from tiny import save_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from runs import answer, evaluate, export, judge, models
from runs.config import expand
from runs.record.ledger import read_record, record_path, run_folder, write_record
from runs.run.identity import run_id
from runs.training.loop import Training
from tasks.instruct import OWN_TEMPLATE, read_template
from tasks.mt_bench import read_answers, read_questions

# the package has its function of that name
load_module = importlib.import_module("runs.models.load")
pytestmark = pytest.mark.determinism

COUNT = len(QUESTIONS["mt_bench"])
GREEDY = ("reasoning", "math")  # temperature 0
FORMS = {
    "prompt_input": "{instruction} {input} =",
    "prompt_no_input": "{instruction} =",
}


@pytest.fixture
def done(alpaca_words, tmp_path):
    """A finished run: its record and its output folder."""
    return trained(alpaca_words), tmp_path / "outputs"


def asked(record, output, *words):
    assert answer.main([record["id"], f"output={output}", *words]) == 0
    return read(record, output)


def read(record, output, bench="mt_bench"):
    path = run_folder(output, record["id"]) / f"{bench}.jsonl"
    return {
        row["question_id"]: row["choices"][0]["turns"]
        for row in map(json.loads, path.read_text().splitlines())
    }


# --- training


def test_a_run_on_instructions(alpaca_words, done, tmp_path):
    """Part of it is its template, by content; not where the questions lie and how they
    are answered."""
    record, _ = done
    assert record["curve"]["dev_loss"][1] < record["curve"]["dev_loss"][0]
    for name in "tu":
        (tmp_path / name).write_text(json.dumps(FORMS))
    other = replace_words(
        alpaca_words, **{"task.mt_bench_dir": "/other", "task.answer_tokens": 9}
    )
    plus = [
        [],
        ["model.quantise=nf4"],
        *([f"task.template={tmp_path / name}"] for name in "tu"),
    ]
    ids = [run_id(expand([*alpaca_words, *words])[0]) for words in plus]
    assert (
        ids[0]
        == record["id"]
        == run_id(expand([*other, "task.bench=vicuna_bench", "task.top_p=0.5"])[0])
    )
    assert (len({*ids}), ids[2]) == (3, ids[3])


def test_checkpointing_recomputes_and_with_micro_batches_changes_no_gradient(
    alpaca_words, tmp_path
):
    words = [
        *alpaca_words,
        "method=vera",
        "method.sites=[all-linear]",
        "task.forgetting_text=none",
    ]
    plain = trained(words)
    other = train_here(
        replace_words(
            [*words, "gradient_checkpointing=true", "micro_batch=2"],
            output=tmp_path / "other",
        )
    )
    assert other["id"] == plain["id"]
    for loss in ("dev_loss", "train_loss"):
        assert other["curve"][loss] == pytest.approx(plain["curve"][loss], rel=1e-5)
    training = Training(
        expand([*words, "gradient_checkpointing=true"])[0], "0" * 12, lambda event: None
    )
    calls = []
    training.raw_model.model.layers[0].mlp.register_forward_pre_hook(
        lambda *_: calls.append(1)
    )
    training.step([0, 1])
    assert len(calls) == 2


def test_a_model_that_cannot_fit_is_told_before_it_is_loaded(
    tiny_llama, alpaca_words, monkeypatch
):
    """By what the weights take, in whole and in 4 bit."""
    (run,), device = expand(alpaca_words), torch.device("cpu")
    values = sum(
        p.numel() for p in models.load(tiny_llama, 0, "generation")[0].parameters()
    )
    taken = {None: 4 * values, "nf4": 0.516 * values}
    monkeypatch.setattr(models, "load", None)
    for quantise, kind, free, named in (
        (None, "full", 1e6, "weights, gradients and AdamW's moments"),
        (None, "vera", 1e6, "1.0 MB are free on cpu"),
        *((quantise, "vera", size * 1.02, None) for quantise, size in taken.items()),
        *(
            (quantise, "vera", size * 0.98, "are free on cpu")
            for quantise, size in taken.items()
        ),
    ):
        monkeypatch.setattr(load_module, "free_memory", lambda device, free=free: free)
        run.config["model"]["quantise"], run.config["method"]["kind"] = quantise, kind
        with refused(named) if named else contextlib.nullcontext():
            models.check_memory(tiny_llama, run.config, device)
    with refused("are free on cpu"):
        Training(run, "0" * 12, lambda event: None)


# --- answers


@pytest.fixture
def batches(monkeypatch):
    """The questions of each batch that a model answers, with their turn and prompts."""
    found, sample = [], answer._sample

    def seen(context, turn, questions, prompts, rooms):
        found.append(
            [(q.id, turn, ids) for q, ids in zip(questions, prompts, strict=True)]
        )
        return sample(context, turn, questions, prompts, rooms)

    monkeypatch.setattr(answer, "_sample", seen)
    return found


def test_every_turn_is_answered_in_fastchats_format(done, mt_bench, batches):
    """The second turn sees the first answer. Greedy ones (temperature 0) are
    transformers' own."""
    record, output = done
    texts, questions = asked(record, output), read_questions(mt_bench, "mt_bench")
    model, found = read_answers(
        run_folder(output, record["id"]) / "mt_bench.jsonl", questions
    )
    assert model == record["id"]
    assert found == texts == {q.id: found[q.id] for q in questions}
    assert len({text for turns in texts.values() for text in turns}) > COUNT
    prompts = {(number, turn): ids for batch in batches for number, turn, ids in batch}
    model = evaluate.restore(record, output).raw_model
    tokenizer = AutoTokenizer.from_pretrained(record["config"]["model"]["path"])
    for number, category, turns in QUESTIONS["mt_bench"]:
        one, two = (
            tokenizer.decode(prompts[number, turn], clean_up_tokenization_spaces=False)
            for turn in (0, 1)
        )
        assert two.startswith(one + texts[number][0] + "</s>")
        assert two.endswith(f"### Instruction:\n{turns[1]}\n\n### Response:\n")
        if category in GREEDY:
            ids = torch.tensor([prompts[number, 0]])
            how = {
                "max_new_tokens": 6,
                "do_sample": False,
                "eos_token_id": tokenizer.eos_token_id,
            }
            with torch.no_grad():
                row = model.generate(
                    ids, attention_mask=torch.ones_like(ids), pad_token_id=0, **how
                )[0]
            written = tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True)
            assert texts[number][0] == written.strip()


@pytest.mark.slow
def test_a_kill_or_other_settings_change_no_answer_and_nothing_is_asked_twice(
    done, batches, mt_bench
):
    """Answers are drawn by the run's seed; greedy ones are not, and no batch changes
    them."""
    record, output = done
    whole = asked(record, output)
    other = asked(record, output, "task.top_p=0.5", "eval_batch=1")
    greedy = {
        number for number, category, _ in QUESTIONS["mt_bench"] if category in GREEDY
    }
    assert {
        number for number in whole if whole[number][0] == other[number][0]
    } == greedy
    batches.clear()
    assert asked(record, output) == whole
    assert not batches  # what was answered is there
    folder = run_folder(output, record["id"])
    (first,), (second,) = (
        [
            f
            for f in folder.glob(f"mt_bench_turn{turn}_*.jsonl")
            if '"top_p": 1.0' in f.read_text()
        ]
        for turn in (1, 2)
    )
    second.unlink()
    lines = first.read_text().splitlines(keepends=True)
    first.write_text("".join(lines[:-1]) + lines[-1][:9])  # a kill cut the last line
    assert asked(record, output) == whole
    # of one temperature each: 2, 1 and 1
    assert [len(batch) for batch in batches if batch[0][1] == 0] == [1]
    assert sum(len(batch) for batch in batches if batch[0][1] == 1) == COUNT
    context, drawn = evaluate.restore(record, output), []
    question = read_questions(mt_bench, "mt_bench")[0]
    prompt = context.task.conversation(question.turns[:1], [])
    for seed, turn in ((0, 0), (0, 0), (1, 0), (0, 1)):
        context.config["seed"] = seed
        drawn += answer._sample(context, turn, [question], [prompt], [6])
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


@pytest.mark.slow
def test_a_long_prompt_shortens_no_answer_beside_it(
    alpaca_words, tiny_llama, mt_bench, tmp_path, capsys
):
    """In a model of few positions each answer has what its own prompt leaves, whatever
    it is batched with."""
    shutil.copytree(mt_bench, tmp_path / "long")
    path = tmp_path / "long" / "mt_bench" / "question.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1]["turns"][0] = "Tell of a boat. " * 20
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer, template = (
        AutoTokenizer.from_pretrained(tiny_llama),
        read_template(OWN_TEMPLATE),
    )
    prompts = [tokenizer(template.prompt(row["turns"][0]))["input_ids"] for row in rows]
    positions = max(map(len, prompts))  # the long one fills them
    small = save_llama(tmp_path / "small", max_position_embeddings=positions)
    words = replace_words(
        alpaca_words, **{"model.path": small, "task.mt_bench_dir": tmp_path / "long"}
    )
    record, output = train_here([*words, "train.max_steps=1"]), tmp_path / "outputs"
    one = asked(record, output, "eval_batch=1", "task.answer_tokens=90")
    note = f"({1 + COUNT} cut short or left empty: the model has no more positions)"
    assert note in capsys.readouterr().out
    several = asked(record, output, "eval_batch=16", "task.answer_tokens=90")
    for (number, category, _), prompt in zip(
        QUESTIONS["mt_bench"], prompts, strict=True
    ):
        assert (
            (one[number][0] == "")
            == (several[number][0] == "")
            == (len(prompt) == positions)
        )
        assert category not in GREEDY or one[number][0] == several[number][0]


def test_an_answer_ends_at_its_end_token_and_where_it_runs_on(
    done, mt_bench, monkeypatch
):
    record, output = done
    context = evaluate.restore(record, output)
    task, model = context.task, context.raw_model
    yes, more = task.tokenizer(["Yes.\n", "more"], add_special_tokens=False)[
        "input_ids"
    ]
    run_on = task.tokenizer("Yes.\n\n### Instruction:\nNow", add_special_tokens=False)[
        "input_ids"
    ]
    assert answer.text_of(task, [*yes, task.tokenizer.eos_token_id, *more]) == "Yes."
    assert answer.text_of(task, run_on) == "Yes."
    # Nor is more written: with what the model writes in the middle as the marker
    question = read_questions(mt_bench, "mt_bench")[2]  # greedy
    prompt, lengths, generate = (
        task.conversation(question.turns[:1], []),
        [],
        model.generate,
    )

    def counted(**given):
        written = generate(**given)
        lengths.append(written.shape[1] - len(prompt))
        return written

    monkeypatch.setattr(model, "generate", counted)
    (whole,) = answer._sample(context, 0, [question], [prompt], [40])
    task.template = task.template.model_copy(
        update={"stop": whole[len(whole) // 2 :][:8]}
    )
    (cut,) = answer._sample(context, 0, [question], [prompt], [40])
    assert whole.startswith(cut)
    assert lengths[1] < lengths[0] == 40


def test_words_name_the_runs_that_have_finished(alpaca_words, tmp_path, capsys):
    """Of a model as it is, on Vicuna-bench, which has one turn; until its template
    changes."""
    (tmp_path / "t.json").write_text(json.dumps(FORMS))
    plain = [w for w in alpaca_words if not w.startswith("method.")]
    words = [*plain, "method=none", f"task.template={tmp_path / 't.json'}"]
    record, output = train_here(words), tmp_path / "outputs"
    named = [w for w in words if not w.startswith("output=")]
    assert (
        answer.main([*named, "seed=0,1", f"output={output}", "task.bench=vicuna_bench"])
        == 0
    )
    assert "on Alpaca, seed 1 has not finished here" in capsys.readouterr().out
    texts = read(record, output, "vicuna_bench")
    assert {number: len(turns) for number, turns in texts.items()} == {
        1: 1,
        68: 1,
        70: 1,
    }
    (tmp_path / "t.json").write_text(
        json.dumps({**FORMS, "prompt_no_input": "{instruction} ->"})
    )
    for named, *more in (
        ("t.json or the rows have changed since run",),
        ("no judge_prompts.jsonl in it", "task.mt_bench_dir=/nowhere"),
    ):
        with refused(named):
            answer.main([record["id"], f"output={output}", *more])


# --- judging


@pytest.fixture
def judged(done, monkeypatch):
    """A run that is answered: its record, its output folder, and the command that has
    it judged."""
    record, output = done
    monkeypatch.setenv("OPENAI_API_KEY", "any word")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    asked(record, output)
    named = [record["id"], f"output={output}", "judge=own-judge"]
    return (
        record,
        output,
        lambda server, *words: judge.main([*named, f"base_url={server.url}", *words]),
    )


def test_scores_go_into_the_record(judged, capsys):
    record, output, judged_by = judged
    with JudgeServer(
        lambda prompt, nth: error_reply(500) if "known 5" in prompt else score_reply(3)
    ) as server:
        assert judged_by(server, "retries=0") == 1
    assert "1 not judged: HTTP 500" in capsys.readouterr().out
    path = record_path(output, record["id"])
    # a part of the judgments enters no record
    assert not read_record(path).get("judged")
    (output / "judgments" / "own-judge.jsonl").unlink()
    with JudgeServer(
        lambda prompt, nth: score_reply(9 if "known" in prompt else 4)
    ) as server:
        for _ in range(2):
            assert judged_by(server) == 0
            assert sum(server.paid.values()) == 2 * COUNT  # nothing is paid for twice
    again = read_record(path)
    (found,) = again["judged"]
    made = {
        "answer_tokens": 6,
        "top_p": 1.0,
        "top_k": 50,
        "batch": 3,
        "without_room": 0,
    }
    expected = {
        "mean": 6.5,
        "n_valid": 2 * COUNT,
        "judge": "own-judge",
        "bench": "mt_bench",
    }
    generate = found["answering"].pop("generate")
    assert {degree: used["do_sample"] for degree, used in generate.items()} == {
        "0": False,
        "0.1": True,
        "0.7": True,
    }
    assert found.items() >= (expected | {"answering": made}).items()
    assert comparable({**again, "judged": None}) == comparable(
        {**record, "judged": None}
    )


def test_what_changes_while_a_judge_judges_and_what_cannot_be_judged(
    judged, monkeypatch, capsys
):
    record, output, judged_by = judged
    path, folder, real = (
        record_path(output, record["id"]),
        run_folder(output, record["id"]),
        judge.judge_systems,
    )

    def meanwhile(change):
        monkeypatch.setattr(
            judge, "judge_systems", lambda *inputs: change() or real(*inputs)
        )

    with JudgeServer(lambda prompt, nth: score_reply(5)) as server:
        meanwhile(
            lambda: (
                write_record(output, record | {"deviations": ["of somebody else"]})
                and None
            )
        )
        assert judged_by(server) == 0
        again = read_record(path)
        assert (again["deviations"], len(again["judged"])) == (["of somebody else"], 1)
        meanwhile(path.unlink)
        assert judged_by(server) == 1
    assert (
        f"run {record['id']}: {output}/records has no record of it"
        in capsys.readouterr().out
    )
    # as of a run that only a study has
    monkeypatch.setattr(judge, "answerable_records", lambda line: [record])
    with refused(f"{path}: no record"):
        judged_by(server)
    write_record(output, record)
    answers = folder / "mt_bench.jsonl"
    answers.write_text(answers.read_text().replace(record["id"], "another"))
    with refused(f"an answer of 'another', not of '{record['id']}'"):
        judged_by(server)
    (folder / "mt_bench.json").unlink()
    with refused("mt_bench.json: no such file", f"vera-bench answer {record['id']}"):
        judged_by(server)


def test_a_judges_last_scores_count_and_scores_of_other_answers_go():
    def entry(bench, name, answers, passes=1):
        return {"bench": bench, "judge": name, "answers": answers, "passes": passes}

    before = [entry("mt", "a", "x"), entry("mt", "b", "x"), entry("vicuna", "b", "y")]
    for new, left in (
        (entry("mt", "b", "x", 3), [before[0], before[2]]),
        (entry("mt", "b", "z"), [before[2]]),
        (entry("vicuna", "c", "y"), before),
    ):
        assert judge._with_judgement({"judged": before}, new) == {
            "judged": [*left, new]
        }
    assert judge._with_judgement({}, before[0]) == {"judged": [before[0]]}


def test_an_adapter_trained_over_4_bit_weights_is_merged_into_whole_ones(
    alpaca_words, tmp_path
):
    record = train_here([*alpaca_words, "model.quantise=nf4"])
    output, folder = str(tmp_path / "outputs"), tmp_path / "merged"
    up = evaluate.restore(record, output).raw_model.model.layers[0].mlp.up_proj
    # half a byte a weight
    assert getattr(up, "base", up).weight.numel() * 2 == 64 * 128
    assert export.main([record["id"], "merged", str(folder), f"output={output}"]) == 0
    folders = (folder, record["config"]["model"]["path"])
    merged, base = (load_file(f"{path}/model.safetensors") for path in folders)
    changed = {name for name in base if not torch.equal(merged[name], base[name])}
    assert changed == {
        f"model.layers.{i}.self_attn.{m}_proj.weight" for i in range(2) for m in "qv"
    }
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.float32
