"""A run answers MT-Bench's questions and is judged: after a kill the answers are the same."""

import importlib
import json
import re
import shutil

import pytest
import torch
from bench import QUESTIONS
from judge_server import JudgeServer, error, score
from running import comparable, do, elsewhere, refused, trained
from safetensors.torch import load_file
from tiers import sample
from tiny import save_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from analysis.tables.__main__ import main as tables
from runs import answer, evaluate, judge, models
from runs.config import expand
from runs.errors import UserError
from runs.identity import run_id
from runs.record import read_record, record_path, run_folder, write_record
from runs.training.loop import Training
from tasks import DataError
from tasks.instruct import OWN_TEMPLATE, read_template
from tasks.mt_bench import read_answers, read_questions

memory = importlib.import_module("runs.models.load")  # the package has its function of that name
pytestmark = pytest.mark.determinism

COUNT = len(QUESTIONS["mt_bench"])


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
    """Part of it is its template, by content; not where the questions lie and how they are answered."""
    record, _ = done
    assert record["status"] == "done"
    assert record["result"]["metric"] == "perplexity"
    assert record["curve"]["dev_loss"][1] < record["curve"]["dev_loss"][0]
    assert (record["data"]["train_rows"], record["data"]["dev_rows"]) == (8, 2)
    assert record["config"]["keep"] == "last"
    assert record["cost"]["tokens_per_second"] > 0
    assert record["texts"] is None
    forms = {"prompt_input": "{instruction} {input} =", "prompt_no_input": "{instruction} ="}
    for name in "tu":
        (tmp_path / name).write_text(json.dumps(forms))
    questions = ["task.bench=vicuna_bench", "task.top_p=0.5", "task.top_k=null"]
    elsewhere_ = elsewhere(alpaca_words, **{"task.mt_bench_dir": "/other", "task.answer_tokens": 9})

    def identity(words):
        return run_id(expand(words)[0])

    assert identity([*elsewhere_, *questions]) == record["id"]
    assert identity([*alpaca_words, "model.quantise=nf4"]) != record["id"]
    first, second = (identity([*alpaca_words, f"task.template={tmp_path / name}"]) for name in "tu")
    assert first == second != record["id"]


def test_a_4_bit_model_is_half_a_byte_a_weight_and_full_fine_tuning_of_it_is_refused(alpaca_words):
    (run,) = expand([*alpaca_words, "model.quantise=nf4"])
    model = Training(run, "0" * 12, lambda event: None).raw_model
    up = model.model.layers[0].mlp.up_proj
    assert getattr(up, "base", up).weight.numel() * 2 == 64 * 128
    plain = [w for w in alpaca_words if not w.startswith("method")]
    for words, message in (
        ([*plain, "method=full", "model.quantise=nf4"], "method=full trains weights that 4 bits cannot"),
        (["model=encoder", "model.path=/x", "task=rte", "model.quantise=nf4"], "is for language models"),
        ([*plain, "model.quantise=int8"], "should be 'nf4'"),
    ):
        with pytest.raises(UserError, match=message):
            expand(words)


@pytest.mark.parametrize("method", sample(["vera", "lora"], "vera"))
def test_checkpointing_and_micro_batches_change_no_gradient(method, alpaca_words, tmp_path):
    words = [*alpaca_words, f"method={method}", "method.sites=[all-linear]"]
    plain = trained(words)
    other = do(elsewhere([*words, "gradient_checkpointing=true", "micro_batch=2"], output=tmp_path / "other"))
    assert other["id"] == plain["id"]
    assert other["curve"]["dev_loss"] == pytest.approx(plain["curve"]["dev_loss"], rel=1e-5)
    assert other["curve"]["train_loss"] == pytest.approx(plain["curve"]["train_loss"], rel=1e-5)


def test_checkpointing_does_recompute(alpaca_words):
    (run,) = expand([*alpaca_words, "gradient_checkpointing=true"])
    training = Training(run, "0" * 12, lambda event: None)
    calls = []
    training.raw_model.model.layers[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    training.step([0, 1])
    assert len(calls) == 2


def test_a_model_that_cannot_fit_is_told_before_it_is_loaded(alpaca_words, monkeypatch):
    monkeypatch.setattr(models, "load", None)
    full = [*(w for w in alpaca_words if not w.startswith("method.")), "method=full"]
    for words, free, message in (
        (alpaca_words, 26e6, "26 MB, and 26 MB are free on cpu. model.quantise=nf4 takes 26"),
        (alpaca_words, 1e6, "1.0 MB are free on cpu. Choose a smaller model"),  # 4 bits would not do
        (full, 1e6, "weights, gradients and AdamW's moments take"),
    ):
        monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
        (run,) = expand(words)
        with pytest.raises(UserError, match=re.escape(message)):
            Training(run, "0" * 12, lambda event: None)


@pytest.mark.parametrize("quantise", ["null", "nf4"])
def test_the_estimate_is_what_the_weights_take(quantise, tiny_llama, alpaca_words, monkeypatch):
    """In whole and in 4 bit, of the model that is loaded; bitsandbytes keeps a little more for its tables."""
    (run,) = expand([*alpaca_words, f"model.quantise={quantise}"])
    dtype = torch.float32 if quantise == "nf4" else None
    model = models.load(tiny_llama, 0, "generation", quantise=dtype)[0]
    taken = sum(p.numel() * p.element_size() for p in model.parameters())
    monkeypatch.setattr(memory, "free_memory", lambda device: taken * 1.02)
    models.check_memory(tiny_llama, run.config, torch.device("cpu"))
    monkeypatch.setattr(memory, "free_memory", lambda device: taken * 0.98)
    with pytest.raises(UserError):
        models.check_memory(tiny_llama, run.config, torch.device("cpu"))


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    for name, text in (("max", "3000"), ("current", "1000"), ("stat", "anon 600\nfile 300\nkernel 100")):
        (tmp_path / f"memory.{name}").write_text(f"{text}\n")
    assert memory.free_memory(torch.device("cpu")) == 2300
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory(torch.device("cpu")) > 2300


# --- answers


def test_every_turn_is_answered_in_fastchats_format(done, mt_bench):
    record, output = done
    texts = asked(record, output)
    questions = read_questions(mt_bench, "mt_bench")
    model, found = read_answers(run_folder(output, record["id"]) / "mt_bench.jsonl", questions)
    assert model == record["id"]
    assert found == texts == {q.id: found[q.id] for q in questions}
    assert all(len(turns) == 2 for turns in texts.values())
    assert len({text for turns in texts.values() for text in turns}) > COUNT


@pytest.fixture
def batches(monkeypatch):
    """The questions of each batch that a model answers, with their turn and prompts."""
    found, sample = [], answer._sample

    def seen(context, turn, questions, prompts, rooms):
        found.append([(q.id, turn, ids) for q, ids in zip(questions, prompts, strict=True)])
        return sample(context, turn, questions, prompts, rooms)

    monkeypatch.setattr(answer, "_sample", seen)
    return found


def test_a_kill_changes_no_answer_and_nothing_is_asked_twice(done, batches):
    record, output = done
    whole = asked(record, output)
    folder = run_folder(output, record["id"])
    (folder / "mt_bench.jsonl").unlink()
    (first,), (second,) = (list(folder.glob(f"mt_bench_turn{turn}_*.jsonl")) for turn in (1, 2))
    second.unlink()
    lines = first.read_text().splitlines(keepends=True)
    first.write_text("".join(lines[:-1]) + lines[-1][:9])  # a kill cut the last line
    batches.clear()
    assert asked(record, output) == whole
    assert [len(batch) for batch in batches if batch[0][1] == 0] == [1]  # of one temperature each: 2, 1 and 1
    assert sum(len(batch) for batch in batches if batch[0][1] == 1) == COUNT


def test_other_settings_are_answered_anew_and_lose_nothing(done, batches):
    record, output = done
    first = asked(record, output)
    shorter = asked(record, output, "task.answer_tokens=2")
    assert shorter != first
    batches.clear()
    assert asked(record, output) == first
    assert not batches  # what was answered is there
    about = json.loads((run_folder(output, record["id"]) / "mt_bench.json").read_text())
    assert (about["answer_tokens"], about["top_p"], about["top_k"], about["without_room"]) == (6, 1.0, 50, 0)


def test_answers_are_drawn_by_the_runs_seed_and_greedy_ones_are_not(done, mt_bench):
    record, output = done
    first = asked(record, output)
    other = asked(record, output, "task.top_p=0.5", "eval_batch=1")
    greedy = {number for number, category, _ in QUESTIONS["mt_bench"] if category in ("reasoning", "math")}
    assert {number for number in first if first[number][0] == other[number][0]} == greedy
    context = evaluate.restore(record, output)
    question = read_questions(mt_bench, "mt_bench")[0]
    prompt = context.task.conversation(question.turns[:1], [])
    drawn = []
    for seed, turn in ((0, 0), (0, 0), (1, 0), (0, 1)):
        context.config["seed"] = seed
        drawn += answer._sample(context, turn, [question], [prompt], [6])
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 3


def test_a_long_prompt_shortens_no_answer_beside_it(alpaca_words, tiny_llama, mt_bench, tmp_path, capsys):
    """In a model of few positions each answer has what its own prompt leaves, whatever it is batched with."""
    shutil.copytree(mt_bench, tmp_path / "long")
    path = tmp_path / "long" / "mt_bench" / "question.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1]["turns"][0] = "Tell of a boat. " * 20
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer, template = AutoTokenizer.from_pretrained(tiny_llama), read_template(OWN_TEMPLATE)
    prompts = {
        row["question_id"]: len(tokenizer(template.prompt(row["turns"][0]))["input_ids"]) for row in rows
    }
    positions = max(prompts.values())  # the long one fills them
    small = save_llama(tmp_path / "small", max_position_embeddings=positions)
    words = elsewhere(alpaca_words, **{"model.path": small, "task.mt_bench_dir": tmp_path / "long"})
    record, output = do(words), tmp_path / "outputs"
    one = asked(record, output, "eval_batch=1", "task.answer_tokens=90")
    note = f"({1 + COUNT} cut short or left empty: the model has no more positions)"
    assert note in capsys.readouterr().out
    several = asked(record, output, "eval_batch=16", "task.answer_tokens=90")
    for number, category, _ in QUESTIONS["mt_bench"]:
        assert (one[number][0] == "") == (several[number][0] == "") == (prompts[number] == positions)
        if category in ("reasoning", "math"):  # greedy
            assert one[number][0] == several[number][0]
    about = json.loads((run_folder(output, record["id"]) / "mt_bench.json").read_text())
    assert about["without_room"] == 1 + COUNT


def test_words_that_have_changed_since_are_refused(alpaca_words, tmp_path):
    forms = {"prompt_input": "{instruction} {input} =", "prompt_no_input": "{instruction} ="}
    (tmp_path / "t.json").write_text(json.dumps(forms))
    record = do([*alpaca_words, f"task.template={tmp_path / 't.json'}"])
    (tmp_path / "t.json").write_text(json.dumps({**forms, "prompt_no_input": "{instruction} ->"}))
    with pytest.raises(
        UserError,
        match=r"t.json or the rows have changed since run .*: the model was trained on",
    ):
        answer.main([record["id"], f"output={tmp_path / 'outputs'}"])


def test_the_second_turn_sees_the_first_answer(done, batches):
    record, output = done
    texts = asked(record, output)
    prompts = {(number, turn): ids for batch in batches for number, turn, ids in batch}
    tokenizer = AutoTokenizer.from_pretrained(record["config"]["model"]["path"])
    for number, _, turns in QUESTIONS["mt_bench"]:
        one, two = (
            tokenizer.decode(prompts[number, turn], clean_up_tokenization_spaces=False) for turn in (0, 1)
        )
        assert two.startswith(one + texts[number][0] + "</s>")
        assert two.endswith(f"### Instruction:\n{turns[1]}\n\n### Response:\n")


def test_greedy_answers_are_transformers_own(done, tiny_llama):
    """Of reasoning and math, which have temperature 0, from the base model with the adapter merged in."""
    record, output = done
    texts = asked(record, output)
    training = evaluate.restore(record, output)
    tokenizer, task = training.task.tokenizer, training.task
    for number, category, turns in QUESTIONS["mt_bench"]:
        if category not in ("reasoning", "math"):
            continue
        ids = torch.tensor([task.conversation(turns[:1], [])])
        with torch.no_grad():
            row = training.raw_model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=6,
                do_sample=False,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=0,
            )
        assert texts[number][0] == tokenizer.decode(row[0, ids.shape[1] :], skip_special_tokens=True).strip()


def test_vicuna_bench_and_a_model_as_it_is(alpaca_words, tmp_path):
    record = do([*(w for w in alpaca_words if not w.startswith("method.")), "method=none"])
    output = tmp_path / "outputs"
    assert answer.main([record["id"], f"output={output}", "task.bench=vicuna_bench"]) == 0
    texts = read(record, output, "vicuna_bench")
    assert {number: len(turns) for number, turns in texts.items()} == {1: 1, 68: 1, 70: 1}


def test_words_that_name_runs_answer_those_that_have_finished(alpaca_words, done, capsys):
    record, output = done
    words = [w for w in alpaca_words if not w.startswith("output=")]
    assert answer.main([*words, "seed=0,1", f"output={output}"]) == 0
    printed = capsys.readouterr().out
    assert "left out: VeRA r=8 on Alpaca, seed 1 has not finished here" in printed
    assert len(read(record, output)) == COUNT


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("task.bench=mmlu", "should be one of mt_bench, vicuna_bench"),
        ("device=xyz", "device=xyz: should be"),
        ("task.top_p=0", "should be above 0 and at most 1"),
        ("task.mt_bench_dir=/nowhere", "no judge_prompts.jsonl in it"),
        ("task.topk=1", r"task.topk=1: no such setting. Did you mean task.top_k=\?"),
    ],
)
def test_wrong_words_are_one_line(word, message, done):
    record, output = done
    with pytest.raises((UserError, DataError), match=message) as refused:
        answer.main([record["id"], f"output={output}", word])
    assert "\n" not in str(refused.value)


def test_an_answer_ends_at_its_end_token_and_where_it_runs_on(done, mt_bench, monkeypatch):
    record, output = done
    context = evaluate.restore(record, output)
    task, model = context.task, context.raw_model
    yes, more = task.tokenizer(["Yes.\n", "more"], add_special_tokens=False)["input_ids"]
    run_on = task.tokenizer("Yes.\n\n### Instruction:\nNow", add_special_tokens=False)["input_ids"]
    assert answer.text_of(task, [*yes, task.tokenizer.eos_token_id, *more]) == "Yes."
    assert answer.text_of(task, run_on) == "Yes."
    # Nor is more written: with what the model writes in the middle as the marker
    question = read_questions(mt_bench, "mt_bench")[2]  # greedy
    prompt, lengths, generate = task.conversation(question.turns[:1], []), [], model.generate

    def counted(**given):
        written = generate(**given)
        lengths.append(written.shape[1] - len(prompt))
        return written

    monkeypatch.setattr(model, "generate", counted)
    (whole,) = answer._sample(context, 0, [question], [prompt], [40])
    task.template = task.template.model_copy(update={"stop": whole[len(whole) // 2 :][:8]})
    (cut,) = answer._sample(context, 0, [question], [prompt], [40])
    assert whole.startswith(cut)
    assert lengths[1] < lengths[0] == 40


# --- judging


def judged(server, *words):
    return judge.main([*words, f"base_url={server.url}", "judge=own-judge"])


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "any word")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_scores_go_into_the_record_and_the_table(done, key, capsys):
    record, output = done
    asked(record, output)
    with JudgeServer(lambda prompt, nth: score(9 if "known" in prompt else 4)) as server:
        assert judged(server, record["id"], f"output={output}") == 0
        assert sum(server.paid.values()) == 2 * COUNT
        assert judged(server, record["id"], f"output={output}") == 0
        assert sum(server.paid.values()) == 2 * COUNT  # nothing is paid for twice
    again = read_record(record_path(output, record["id"]))
    (found,) = again["judged"]
    made = {"answer_tokens": 6, "top_p": 1.0, "top_k": 50, "batch": 3, "without_room": 0}
    expected = {"mean": 6.5, "n_valid": 2 * COUNT, "judge": "own-judge", "bench": "mt_bench"}
    assert found.items() >= (expected | {"answering": made}).items()
    assert comparable({**again, "judged": None}) == comparable({**record, "judged": None})
    capsys.readouterr()
    assert tables(["table4", f"output={output}"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| VeRA r=8"))
    interval = f"{found['low']:.2f} to {found['high']:.2f}"
    cells = [cell.strip() for cell in line.split("|")[4:9]]
    assert cells == ["6.50", interval, "6.50 / 6.50", "8 of 8", "own-judge"]


def test_scores_that_came_while_a_judge_judged_stay(done, key, monkeypatch, capsys):
    record, output = done
    asked(record, output)
    path, real = record_path(output, record["id"]), judge.judge

    def meanwhile(change):
        monkeypatch.setattr(judge, "judge", lambda *inputs, **how: change() or real(*inputs, **how))

    with JudgeServer(lambda prompt, nth: score(5)) as server:
        meanwhile(lambda: write_record(output, record | {"deviations": ["of somebody else"]}) and None)
        assert judged(server, record["id"], f"output={output}") == 0
        again = read_record(path)
        assert (again["deviations"], len(again["judged"])) == (["of somebody else"], 1)
        meanwhile(path.unlink)
        assert judged(server, record["id"], f"output={output}") == 1
    assert f"run {record['id']}: {output}/records has no record of it" in capsys.readouterr().out


def test_a_part_of_the_judgments_enters_no_record(done, key, capsys):
    record, output = done
    asked(record, output)
    with JudgeServer(lambda prompt, nth: error(500) if "known 5" in prompt else score(3)) as server:
        assert judged(server, record["id"], f"output={output}", "retries=0") == 1
    assert "1 not judged: HTTP 500" in capsys.readouterr().out
    assert not read_record(record_path(output, record["id"])).get("judged")


def test_a_judges_last_scores_count_and_scores_of_other_answers_go():
    def entry(bench, name, answers, passes=1):
        return {"bench": bench, "judge": name, "answers": answers, "passes": passes}

    before = [entry("mt", "a", "x"), entry("mt", "b", "x"), entry("vicuna", "b", "y")]
    for new, left in (
        (entry("mt", "b", "x", 3), [before[0], before[2]]),
        (entry("mt", "b", "z"), [before[2]]),
        (entry("vicuna", "c", "y"), before),
    ):
        assert judge._with_scores({"judged": before}, new) == {"judged": [*left, new]}
    assert judge._with_scores({}, before[0]) == {"judged": [before[0]]}


def test_what_cannot_be_judged_is_one_line(done, key, monkeypatch):
    record, output = done
    with refused("mt_bench.json: no such file", f"First: python -m runs.answer {record['id']}"):
        judge.main([record["id"], f"output={output}"])
    asked(record, output)
    monkeypatch.setattr(judge, "records_of", lambda line: [record])
    own = record_path(output, record["id"])
    own.rename(own.with_suffix(".aside"))  # as of a run that only a study has
    with refused(f"{own}: no record"):
        judge.main([record["id"], f"output={output}"])
    own.with_suffix(".aside").rename(own)
    path = run_folder(output, record["id"]) / "mt_bench.jsonl"
    path.write_text(path.read_text().replace(record["id"], "another"))
    with pytest.raises(DataError, match=f"an answer of 'another', not of '{record['id']}'"):
        judge.main([record["id"], f"output={output}"])


def test_an_adapter_trained_over_4_bit_weights_is_merged_into_whole_ones(alpaca_words, tmp_path):
    from runs.export import __main__ as export

    record = do([*alpaca_words, "model.quantise=nf4"])
    output, folder = tmp_path / "outputs", tmp_path / "merged"
    assert export.main([record["id"], "merged", str(folder), f"output={output}"]) == 0
    merged, base = (
        load_file(folder / "model.safetensors"),
        load_file(f"{record['config']['model']['path']}/model.safetensors"),
    )
    changed = {name for name in base if not torch.equal(merged[name], base[name])}
    assert changed == {f"model.layers.{i}.self_attn.{m}_proj.weight" for i in range(2) for m in "qv"}
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.float32
