"""Problems of one's own with exact answers."""

import json

import pytest
from running import refused, task_of, train_here

import tasks
from runs.config import expand
from tasks.problems import find_reader

pytestmark = pytest.mark.properties

ROWS = [
    {"prompt": f"What is {n} + {n}?", "answer": f"It is {2 * n}."} for n in range(1, 21)
]


@pytest.fixture
def files(tmp_path):
    train, test = tmp_path / "train.jsonl", tmp_path / "test.csv"
    train.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    lines = [f'"{row["prompt"]}",{row["answer"]}' for row in ROWS[:3]]
    test.write_text("prompt,answer\n" + "\n".join(lines) + "\n")
    return {"train_file": str(train), "test_file": str(test)}


def load(files, **changes):
    settings = {"reader": "number", "forgetting_text": "none"}
    return tasks.load(task_of("problems") | settings | files | changes)


def test_rows_of_files_and_a_held_out_tenth(files):
    task = load(files)
    assert [prompt for prompt, _ in task.splits["dev"]] == [
        "What is 1 + 1?",
        "What is 11 + 11?",
    ]
    assert len(task.splits["train"]) == 18
    assert task.items[1] == ("What is 2 + 2?", "4", "test")
    formed = load(files, prompt="Q: {prompt}\nA:")
    assert formed.items[0].prompt == "Q: What is 1 + 1?\nA:"


def test_a_fixed_subset_of_the_rows_that_are_left_for_training(files):
    every = load(files).splits
    some = load(files, train_rows=5).splits
    assert some["dev"] == every["dev"]
    assert len(some["train"]) == 5
    assert [row for row in every["train"] if row in some["train"]] == some["train"]
    assert load(files, train_rows=5).splits["train"] == some["train"]
    assert load(files, train_rows=500).splits["train"] == every["train"]


@pytest.mark.parametrize(("preset", "steps"), [("rlmath_peft", 100), ("perl", 1024)])
def test_a_study_by_reward_ends_by_its_rows_so_that_tables_show_its_runs(preset, steps):
    words = ["task.train_file=train.jsonl", "task.test_file=test.jsonl"]
    (run,) = expand([f"experiment={preset}", *words, "method=vera", "seed=0"])
    train = run.config["train"]
    assert train["max_steps"] is None
    rows = run.config["task"]["train_rows"] * train["epochs"]
    assert rows / train["effective_batch"] == steps


@pytest.mark.parametrize(
    ("name", "text", "answer"),
    [
        ("text", " seven \n", "seven"),
        ("text", "  ", None),
        ("number", "4 apples, so 1,234.50.", "1234.5"),
        ("number", "none", None),
        ("boxed", r"so \boxed{\frac12}", r"\frac{1}{2}"),
        ("boxed", "12", None),
    ],
)
def test_readers(name, text, answer):
    assert find_reader(name).answer_in_output(text) == answer


def test_a_plain_answer_equals_a_boxed_one():
    reader = find_reader("boxed")
    assert (
        reader.answer_in_solution("12")
        == reader.answer_in_output(r"so it is \boxed{12}")
        == "12"
    )


def test_the_models_chat_template(files, tokenizer):
    task = load(files, chat_template=True)
    with refused("task.chat_template=true", "no chat template"):
        task.prepare(tokenizer, 64)
    tokenizer.chat_template = (
        "<s>{% for m in messages %}[{{ m.role }}] {{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %} [model]{% endif %}"
    )
    task.prepare(tokenizer, 64)
    exercise = task.exercises("dev")[0]
    assert exercise.prompt == "[user] What is 1 + 1? [model]"
    assert exercise.prompt_ids.count(tokenizer.bos_token_id) == 1
    assert task.items[0].prompt == exercise.prompt


def test_wrong_files_are_refused(files, tmp_path):
    with refused("task.train_file"):
        load(files, train_file=None)
    with refused("task.test_file", "task.decode=none"):
        load(files, test_file=None)
    with refused("task.dev_file=/nowhere"):
        load(files, dev_file="/nowhere")
    with refused("line 1", "column 'answer'"):
        load(files, answer_column="answer", test_file=str(_without(tmp_path)))
    with refused("line 1", "task.reader=boxed"):
        bad = tmp_path / "bad.jsonl"
        bad.write_text(json.dumps({"prompt": "1 + 1", "answer": " "}) + "\n")
        load(files, reader="boxed", train_file=str(bad))


def _without(folder):
    path = folder / "without.jsonl"
    path.write_text(json.dumps({"prompt": "1 + 1"}) + "\n")
    return path


@pytest.mark.parametrize("objective", ["likelihood", "reward"])
def test_a_run_on_files(objective, files, tiny_llama, tmp_path):
    words = [f"task.{key}={path}" for key, path in files.items()]
    record = train_here(
        [
            *words,
            "model=decoder",
            f"model.path={tiny_llama}",
            "task=problems",
            "task.name=mine",
            "task.reader=number",
            "task.max_new_tokens=4",
            f"train.objective={objective}",
            "train.epochs=1",
            "train.effective_batch=6",
            "reward.samples=2",
            "device=cpu",
            f"output={tmp_path / 'outputs'}",
        ]
    )
    assert record["result"]["metric"] == "exact_match"
    assert record["status"] == "done"
