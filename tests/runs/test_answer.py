"""A run answers MT-Bench's questions and is judged: whatever kills it or shares its batch, the answers are
the same."""

import json
import shutil

import numpy as np
import pytest
import torch
from bench import QUESTIONS
from judge_server import JudgeServer, Reply, error, score
from running import comparable, do, elsewhere, trained
from safetensors.torch import load_file
from tiers import sample
from tiny import save_llama
from transformers import AutoModelForCausalLM, AutoTokenizer

from analysis.tables.__main__ import main as tables
from runs import answer, evaluate, judge, models
from runs.answer import draw, uniforms
from runs.config import expand
from runs.errors import UserError
from runs.identity import run_id
from runs.models import memory
from runs.record import read_record, record_path, run_folder, write_record
from runs.training import decode
from runs.training.loop import Training
from tasks import DataError
from tasks.instruct import OWN_TEMPLATE, read_template
from tasks.mt_bench import read_answers, read_questions

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


def test_a_run_on_instructions(done):
    record, _ = done
    assert record["status"] == "done"
    assert record["result"]["metric"] == "perplexity"
    assert record["curve"]["dev_loss"][1] < record["curve"]["dev_loss"][0]
    assert (record["data"]["train_rows"], record["data"]["dev_rows"]) == (8, 2)
    assert record["config"]["keep"] == "last"
    assert record["cost"]["tokens_per_second"] > 0
    assert record["texts"] is None


def test_what_is_part_of_a_run_on_instructions(alpaca_words, done, tmp_path):
    """Its template, by content; not where the questions lie and how they are answered."""
    forms = {"prompt_input": "{instruction} {input} =", "prompt_no_input": "{instruction} ="}
    for name in "tu":
        (tmp_path / name).write_text(json.dumps(forms))
    questions = ["task.bench=vicuna_bench", "task.top_p=0.5", "task.top_k=null"]
    elsewhere_ = elsewhere(alpaca_words, **{"task.mt_bench_dir": "/other", "task.answer_tokens": 9})

    def identity(words):
        return run_id(expand(words)[0])

    assert identity([*elsewhere_, *questions]) == done[0]["id"]
    assert identity([*alpaca_words, "model.quantise=nf4"]) != done[0]["id"]
    first, second = (identity([*alpaca_words, f"task.template={tmp_path / name}"]) for name in "tu")
    assert first == second != done[0]["id"]


@pytest.mark.parametrize(
    "method", [["method=vera"], ["method=lora"], ["method=adapter_p", "method.bottleneck=4"]]
)
def test_every_adapter_over_4_bit_weights_trains_after_an_evaluation(method, alpaca_words, tmp_path):
    """bitsandbytes packs the weights in an evaluation where the processor has avx512_bf16, and gradients
    would end there."""
    words = [w for w in alpaca_words if not w.startswith("method.")]
    sites = ["method.sites=[all-linear]"] if "adapter" not in method[0] else []
    (run,) = expand([*words, *method, *sites, "model.quantise=nf4"])
    training = Training(run, "0" * 12, lambda event: None)
    linear = [m for m in training.raw_model.modules() if type(m).__name__ == "Linear4bit"]
    assert len(linear) == 2 * 7
    rows = list(range(4))
    # The first step moves LoRA's B and VeRA's b away from zero, where the others have no gradient
    for _ in range(2):
        training.step(rows)
        training.evaluate()
    before = {name: p.detach().clone() for name, p in training.parameters.items()}
    training.scheduler.last_epoch = 1
    for group in training.optimizer.param_groups:
        group["lr"] = 1e-2
    training.step(rows)
    still = [name for name, p in training.parameters.items() if torch.equal(p, before[name])]
    assert before
    assert not still


def test_a_4_bit_model_is_half_a_byte_a_weight_and_full_fine_tuning_of_it_is_refused(
    alpaca_words, tiny_llama
):
    (run,) = expand([*alpaca_words, "model.quantise=nf4"])
    model = Training(run, "0" * 12, lambda event: None).raw_model
    up = model.model.layers[0].mlp.up_proj
    assert getattr(up, "base", up).weight.numel() * 2 == 64 * 128
    with pytest.raises(UserError, match="method=full trains weights that 4 bits cannot hold"):
        expand(
            [*(w for w in alpaca_words if not w.startswith("method")), "method=full", "model.quantise=nf4"]
        )
    with pytest.raises(UserError, match=r"model\.quantise=nf4 is for language models"):
        expand(["model=encoder", "model.path=/x", "task=rte", "model.quantise=nf4"])
    with pytest.raises(UserError, match="should be one of nf4"):
        expand([*alpaca_words, "model.quantise=int8"])


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


def test_a_model_that_cannot_fit_is_told_before_it_is_loaded(alpaca_words, monkeypatch, tiny_llama):
    loaded = []
    monkeypatch.setattr(models, "load", lambda *_: loaded.append(1))
    monkeypatch.setattr(memory, "free_memory", lambda device: 26.0e6)
    (run,) = expand(alpaca_words)
    with pytest.raises(
        UserError,
        match=r"its weights alone take 26 MB, and 26 MB are free on cpu. model.quantise=nf4 takes 26",
    ):
        Training(run, "0" * 12, lambda event: None)
    monkeypatch.setattr(memory, "free_memory", lambda device: 1e6)
    # 4 bits would not do
    with pytest.raises(UserError, match=r"and 1\.0 MB are free on cpu\. Choose a smaller model"):
        Training(run, "0" * 12, lambda event: None)
    (run,) = expand([*(w for w in alpaca_words if not w.startswith("method.")), "method=full"])
    with pytest.raises(UserError, match="weights, gradients and AdamW's moments take"):
        Training(run, "0" * 12, lambda event: None)
    assert not loaded


def test_the_estimate_is_what_the_weights_take(tiny_llama, alpaca_words, monkeypatch):
    """In whole and in 4 bit, of the model that is loaded; bitsandbytes keeps a little more for its tables."""
    for quantise in ("null", "nf4"):
        (run,) = expand([*alpaca_words, f"model.quantise={quantise}"])
        model = models.load(
            tiny_llama, 0, "generation", quantise=torch.float32 if quantise == "nf4" else None
        )[0]
        taken = sum(p.numel() * p.element_size() for p in model.parameters())
        for free, fits in ((taken * 1.02, True), (taken * 0.98, False)):
            monkeypatch.setattr(memory, "free_memory", lambda device, free=free: free)
            if fits:
                models.check_memory(tiny_llama, run.config, torch.device("cpu"))
            else:
                with pytest.raises(UserError):
                    models.check_memory(tiny_llama, run.config, torch.device("cpu"))


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    whole = memory.free_memory(torch.device("cpu"))
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    (tmp_path / "memory.stat").write_text("anon 600\nfile 300\nkernel 100\n")
    assert memory.free_memory(torch.device("cpu")) == 2300
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.free_memory(torch.device("cpu")) > whole / 2


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


def test_batches_change_no_answer(done):
    record, output = done
    one = asked(record, output, "eval_batch=1")
    for path in run_folder(output, record["id"]).glob("mt_bench*"):
        path.unlink()
    assert asked(record, output, "eval_batch=16") == one


def test_a_kill_changes_no_answer_and_nothing_is_asked_twice(done, monkeypatch):
    record, output = done
    whole = asked(record, output)
    folder = run_folder(output, record["id"])
    (folder / "mt_bench.jsonl").unlink()
    (first,), (second,) = (list(folder.glob(f"mt_bench_turn{turn}_*.jsonl")) for turn in (1, 2))
    second.unlink()
    lines = first.read_text().splitlines(keepends=True)
    first.write_text("".join(lines[:-1]) + lines[-1][:9])  # a kill cut the last line
    batches, sample = [], answer._sample
    monkeypatch.setattr(
        answer,
        "_sample",
        lambda t, rows, how: batches.append([(q.id, n) for q, n, _ in rows]) or sample(t, rows, how),
    )
    assert asked(record, output) == whole
    assert sum(turn == 0 for batch in batches for _, turn in batch) == 1  # COUNT is 4: batches of 3 and 1
    assert sum(turn == 1 for batch in batches for _, turn in batch) == COUNT


def test_other_settings_are_answered_anew_and_lose_nothing(done, monkeypatch):
    record, output = done
    first = asked(record, output)
    shorter = asked(record, output, "task.answer_tokens=2")
    assert shorter != first
    monkeypatch.setattr(answer, "_sample", None)  # what was answered is there
    assert asked(record, output) == first
    about = json.loads((run_folder(output, record["id"]) / "mt_bench.json").read_text())
    assert (about["answer_tokens"], about["top_p"], about["top_k"], about["without_room"]) == (6, 1.0, 50, 0)


def test_a_long_prompt_shortens_no_answer_beside_it(alpaca_words, tiny_llama, mt_bench, tmp_path, capsys):
    """In a model of few positions each answer has what its own prompt leaves, whatever it is batched with."""
    shutil.copytree(mt_bench, tmp_path / "long")
    path = tmp_path / "long" / "mt_bench" / "question.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[0]["turns"][0] = "Tell of a boat. " * 20
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    tokenizer, template = AutoTokenizer.from_pretrained(tiny_llama), read_template(OWN_TEMPLATE)
    prompts = {
        row["question_id"]: len(tokenizer(template.prompt(row["turns"][0]))["input_ids"]) for row in rows
    }
    positions = max(prompts.values())  # the long one fills them
    assert len(set(prompts.values())) > 2
    small = save_llama(tmp_path / "small", max_position_embeddings=positions)
    words = elsewhere(alpaca_words, **{"model.path": small, "task.mt_bench_dir": tmp_path / "long"})
    record, output = do(words), tmp_path / "outputs"
    one = asked(record, output, "eval_batch=1", "task.answer_tokens=90")
    assert (
        f"({1 + COUNT} cut short or left empty: the model has no more positions)" in capsys.readouterr().out
    )
    assert asked(record, output, "eval_batch=16", "task.answer_tokens=90") == one
    for q, length in prompts.items():
        assert (one[q][0] == "") == (length == positions)
    assert (
        json.loads((run_folder(output, record["id"]) / "mt_bench.json").read_text())["without_room"]
        == 1 + COUNT
    )


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


def test_the_second_turn_sees_the_first_answer(done, monkeypatch):
    record, output = done
    prompts, sample = {}, answer._sample
    monkeypatch.setattr(
        answer,
        "_sample",
        lambda t, rows, how: prompts.update({(q.id, n): ids for q, n, ids in rows}) or sample(t, rows, how),
    )
    texts = asked(record, output)
    tokenizer = AutoTokenizer.from_pretrained(record["config"]["model"]["path"])
    for number, _, turns in QUESTIONS["mt_bench"]:
        shown = tokenizer.decode(prompts[number, 1], clean_up_tokenization_spaces=False)
        assert shown.startswith(
            tokenizer.decode(prompts[number, 0], clean_up_tokenization_spaces=False)
            + texts[number][0]
            + "</s>"
        )
        assert shown.endswith(f"### Instruction:\n{turns[1]}\n\n### Response:\n")


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
        ("task.answer_tokens=0", "should be a whole number of at least 1"),
        ("device=xyz", "should be one of auto, cpu, cuda, mps"),
        ("task.top_p=0", "should be above 0 and at most 1"),
        ("task.top_k=-1", "should be a whole number of at least 1, or null"),
        ("task.mt_bench_dir=/nowhere", "no judge_prompts.jsonl in it"),
        ("task.topk=1", r"no setting task.topk=. Did you mean task.top_k=\?"),
    ],
)
def test_wrong_words_are_one_line(word, message, done):
    record, output = done
    with pytest.raises((UserError, DataError), match=message) as refused:
        answer.main([record["id"], f"output={output}", word])
    assert "\n" not in str(refused.value)


def test_a_question_with_a_turn_too_few_is_told_before_the_model_is_loaded(
    done, mt_bench, tmp_path, monkeypatch
):
    record, output = done
    shutil.copytree(mt_bench, tmp_path / "short")
    path = tmp_path / "short" / "mt_bench" / "question.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows[1]["turns"].pop()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(models, "load", None)
    with pytest.raises(DataError, match="line 2: question 101 has 1 turn, mt_bench has 2"):
        answer.main([record["id"], f"output={output}", f"task.mt_bench_dir={tmp_path / 'short'}"])


# --- sampling


def test_drawn_tokens_follow_the_distribution():
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(0)) * 2
    numbers = torch.from_numpy(uniforms(81, 0, 0, 40000))
    temperatures = torch.full((40000,), 0.7, dtype=torch.float64)
    drawn = draw(logits.expand(40000, -1), temperatures, 1.0, None, numbers)
    shares = torch.bincount(drawn, minlength=12) / 40000
    torch.testing.assert_close(shares, (logits[0] / 0.7).softmax(-1), atol=0.01, rtol=0)


def test_top_p_and_top_k_leave_the_likeliest():
    logits = torch.log(torch.tensor([[0.1, 0.4, 0.2, 0.3]])).expand(2000, -1)
    numbers, warm = torch.from_numpy(uniforms(1, 0, 0, 2000)), torch.ones(2000, dtype=torch.float64)
    for top_p, top_k, left in (
        (1.0, 2, {1: 4 / 7, 3: 3 / 7}),
        (0.65, None, {1: 4 / 7, 3: 3 / 7}),
        (0.4, None, {1: 1.0}),
    ):
        drawn = draw(logits, warm, top_p, top_k, numbers)
        assert {int(token) for token in drawn} == set(left)
        assert float((drawn == 1).float().mean()) == pytest.approx(left[1], abs=0.04)


def test_a_random_number_at_the_end_draws_a_possible_token():
    logits, warm = torch.tensor([[5.0, 1.0, -torch.inf]]), torch.ones(1, dtype=torch.float64)
    for number in (0.0, np.nextafter(1.0, 0.0)):
        assert int(draw(logits, warm, 1.0, None, torch.tensor([number], dtype=torch.float64))) in (0, 1)
    assert int(draw(logits, 0 * warm, 1.0, None, torch.tensor([0.99]))) == 0


def test_each_answer_has_random_numbers_of_its_own():
    streams = [uniforms(q, t, s, 4).tolist() for q in (81, 82) for t in (0, 1) for s in (0, 1)]
    assert len({tuple(stream) for stream in streams}) == 8
    assert uniforms(81, 0, 0, 9)[:4].tolist() == streams[0]


def test_an_answer_ends_at_its_end_token_and_where_it_runs_on(done):
    task = evaluate.restore(*done).task
    yes, more = task.tokenizer(["Yes.\n", "more"], add_special_tokens=False)["input_ids"]
    run_on = task.tokenizer("Yes.\n\n### Instruction:\nNow", add_special_tokens=False)["input_ids"]
    assert answer._text(task, [*yes, task.tokenizer.eos_token_id, *more]) == "Yes."
    assert answer._text(task, run_on) == "Yes."


def test_a_run_on_answer_stops_being_written(done, mt_bench, monkeypatch):
    """A model that only ever writes Alpaca's marker is not asked for all of answer_tokens."""
    record, output = done
    training = evaluate.restore(record, output)
    task = training.task
    marker = task.tokenizer("### Instruction", add_special_tokens=False)["input_ids"]
    steps = []

    def forced(logits, temperatures, top_p, top_k, numbers):
        steps.append(1)
        return torch.full((len(logits),), marker[(len(steps) - 1) % len(marker)])

    monkeypatch.setattr(answer, "draw", forced)
    question = read_questions(mt_bench, "mt_bench")[0]
    how = {**record["config"]["task"], "answer_tokens": 60}
    assert list(
        answer._sample(training, [(question, 0, task.conversation(question.turns[:1], []))], how)
    ) == [""]
    assert len(steps) == len(marker)


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
    expected = {"mean": 6.5, "n_valid": 2 * COUNT, "judge": "own-judge", "bench": "mt_bench"}
    assert found.items() >= expected.items()
    assert comparable({**again, "judged": None}) == comparable({**record, "judged": None})
    capsys.readouterr()
    assert tables(["table4", f"output={output}"]) == 0
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if line.startswith("| VeRA r=8"))
    *cells, forgetting, verdict = [cell.strip() for cell in line.split("|")[4:-1]]
    interval = f"{found['low']:.2f} to {found['high']:.2f}"
    assert cells == ["6.50", interval, "6.50 / 6.50", "8 of 8", "own-judge"]
    text = again["result"]["forgetting"]
    assert (forgetting, verdict) == (f"{text['after'] - text['before']:+.3f}", "ours")
    assert "A judge that is no GPT-4" in printed


def test_scores_that_came_while_a_judge_judged_stay(done, key, monkeypatch, capsys):
    record, output = done
    asked(record, output)
    real = judge.judge

    def slow(*inputs, **how):
        outcome = real(*inputs, **how)
        mine = read_record(record_path(output, record["id"]))
        write_record(output, {**mine, "deviations": [*mine["deviations"], "of somebody else"]})
        return outcome

    monkeypatch.setattr(judge, "judge", slow)
    with JudgeServer(lambda prompt, nth: score(5)) as server:
        assert judged(server, record["id"], f"output={output}") == 0
        again = read_record(record_path(output, record["id"]))
        assert (again["deviations"][-1], len(again["judged"])) == ("of somebody else", 1)

        def gone(*inputs, **how):
            record_path(output, record["id"]).unlink()
            return real(*inputs, **how)

        monkeypatch.setattr(judge, "judge", gone)
        assert judged(server, record["id"], f"output={output}") == 1
    assert f"run {record['id']}: its record is gone, and gets no scores" in capsys.readouterr().out


def test_a_reply_without_a_score_enters_no_mean_and_a_part_of_the_judgments_no_record(done, key, capsys):
    record, output = done
    asked(record, output)
    with JudgeServer(
        lambda prompt, nth: Reply("I cannot say.") if "known 5" in prompt else score(4)
    ) as server:
        assert judged(server, record["id"], f"output={output}") == 0
    (found,) = read_record(record_path(output, record["id"]))["judged"]
    assert (found["n"], found["n_valid"], found["mean"]) == (8, 7, 4.0)
    with JudgeServer(lambda prompt, nth: error(500) if "known 5" in prompt else score(3)) as server:
        words = [record["id"], f"output={output}", f"base_url={server.url}", "judge=other", "retries=0"]
        assert judge.main(words) == 1
    assert "1 not judged: HTTP 500" in capsys.readouterr().out
    assert [j["judge"] for j in read_record(record_path(output, record["id"]))["judged"]] == ["own-judge"]


def test_judging_again_with_fewer_passes_or_other_answers(done, key, capsys):
    """More passes of the same answers stay; what judged other answers goes."""
    record, output = done
    asked(record, output)
    with JudgeServer(lambda prompt, nth: score(4 + nth % 2)) as server:
        words = [record["id"], f"output={output}", f"base_url={server.url}"]
        for more in (["judge=a", "passes=3"], ["judge=a"], ["judge=b"]):
            assert judge.main([*words, *more]) == 0
        found = {j["judge"]: j for j in read_record(record_path(output, record["id"]))["judged"]}
        assert {name: j["passes"] for name, j in found.items()} == {"a": 3, "b": 1}
        assert "has 3 passes of a already" in capsys.readouterr().out
        made = {"answer_tokens": 6, "top_p": 1.0, "top_k": 50, "batch": 3, "without_room": 0}
        assert found["a"]["answering"] == made
        asked(record, output, "task.answer_tokens=2")
        assert judge.main([*words, "judge=b"]) == 0
    (only,) = read_record(record_path(output, record["id"]))["judged"]
    assert (only["judge"], only["answering"]["answer_tokens"]) == ("b", 2)
    capsys.readouterr()
    assert tables(["table4", f"output={output}"]) == 0
    assert "answer_tokens 2 instead of" in capsys.readouterr().out


def test_what_cannot_be_judged_is_one_line(done, key, monkeypatch):
    record, output = done
    with pytest.raises(UserError, match=r"has no answers yet. First: python -m runs.answer"):
        judge.main([record["id"], f"output={output}"])
    asked(record, output)
    path = run_folder(output, record["id"]) / "mt_bench.jsonl"
    text = path.read_text()
    path.write_text(text.replace(record["id"], "another"))
    with pytest.raises(DataError, match=f"an answer of 'another', not of '{record['id']}'"):
        judge.main([record["id"], f"output={output}"])
    path.write_text(text)
    with (
        JudgeServer(lambda prompt, nth: error(404, code="model_not_found")) as server,
        pytest.raises(UserError, match="knows no judge"),
    ):
        judged(server, record["id"], f"output={output}")
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match="Set OPENAI_API_KEY"):
        judge.main([record["id"], f"output={output}"])


def test_the_papers_score_stands_beside_a_gpt_4s(alpaca_words, key, capsys, tmp_path):
    """A difference is shown with a judge that is a GPT-4, for a run of the paper's own row."""
    words = [
        "experiment=table4_llama_7b",
        *(w for w in alpaca_words if not w.startswith(("model=", "task=", "method", "train."))),
    ]
    record = do([*words, "method=vera", "model.architecture=null", "model.quantise=null"])
    output = tmp_path / "outputs"
    asked(record, output)
    with JudgeServer(lambda prompt, nth: score(5)) as server:
        assert judge.main([record["id"], f"output={output}", f"base_url={server.url}"]) == 0
    capsys.readouterr()
    assert tables(["table4", f"output={output}"]) == 0
    assert "ours, another size: not compared" in capsys.readouterr().out  # a tiny Llama
    path = record_path(output, record["id"])
    judged = json.loads(path.read_text())
    judged["parameters"]["adapter"] = 1_589_248
    path.write_text(json.dumps(judged))
    assert tables(["table4", f"output={output}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    place = next(i for i, line in enumerate(lines) if line.startswith("| VeRA r=1024"))
    assert "5.00" in lines[place]
    assert "+0.23" in lines[place + 1]


def test_texts_of_e2e_go_the_same_way(e2e_words, monkeypatch):
    """write_down serves both: of another header nothing is taken up."""
    monkeypatch.setattr("tasks.e2e_metrics.shutil.which", lambda name: None)
    record = do([*e2e_words, "task.items=2"])
    (run,) = expand([*e2e_words, "task.items=2"])
    path = run_folder(run.config["output"], record["id"]) / "decoded_last.jsonl"
    header = json.loads(path.read_text().splitlines()[0])
    assert decode._saved(path, header, ["0.9"]).keys() == {0, 1}
    assert decode._saved(path, {**header, "weights": "other"}, ["0.9"]) == {}


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
