"""Data from strangers: how each fault of a file, a folder or a setting is named. Any
bytes are tried by tests/attack."""

import json
import shutil

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from bench import PROMPTS, QUESTIONS, write_mt_bench
from running import refused, task_of
from tiny import write_e2e, write_e2e_hub, write_images

import tasks
from tasks.e2e_metrics import read_hypotheses, read_references
from tasks.images.pixels import Preprocessing
from tasks.mt_bench import prompts, read_answers, read_questions, write_answers

pytestmark = pytest.mark.properties

#: Where the sound data of a task come from (texts have none), and the words that its
#: configuration needs.
SOUND = {
    "e2e": "styles",
    "mt_bench": "answered",
    "alpaca": "alpaca",
    "image_folder": "images",
}
SOUND |= {"gsm8k": "maths", "commonsense": "commonsense"}
SOUND |= dict.fromkeys(("rte", "cola", "stsb", "sst2"), "glue")
MODELS = {
    "e2e": "decoder",
    "alpaca": "decoder task.dev_rows=2",
    "image_folder": "vision task.shots=4",
}
MODELS |= {
    "gsm8k": "decoder",
    "sums": "decoder",
    "commonsense": "decoder task.dev_rows=4",
}


@pytest.fixture(scope="module")
def styles(tmp_path_factory):
    """E2E's files in each style, and a folder without and one of two styles."""
    at, mr = (
        write_e2e(tmp_path_factory.mktemp("styles")),
        "name : A | Type : pub||A pub .\n",
    )
    write_e2e_hub(at / "hub")
    for path in (
        "lora/train",
        "lora/valid",
        "lora/test",
        "mixed/train",
        "mixed/valid",
        "empty/x",
    ):
        (at / path).parent.mkdir(exist_ok=True)
        (at / f"{path}.txt").write_text(mr)
    shutil.copy(at / "testset_w_refs.csv", at / "mixed")
    return at


@pytest.fixture(scope="module")
def answered(tmp_path_factory):
    """MT-Bench's files, and an answer to each question."""
    at = write_mt_bench(tmp_path_factory.mktemp("answered"))
    answers = {number: ["a", "b"] for number, *_ in QUESTIONS["mt_bench"]}
    write_answers(at / "own.jsonl", "own", answers, read_questions(at, "mt_bench"))
    return at


def read(task, at, file, changes):
    """Reads the data of a task in a folder. file: the one that something is wrong
    with."""
    if task == "mt_bench":
        questions = read_questions(at, "mt_bench")
        return prompts(
            at, "mt_bench", questions, read_answers(at / "own.jsonl", questions)[1]
        )
    if task == "scores":
        return read_hypotheses(
            at / "hypotheses.txt", len(read_references(at / "references.txt"))
        )
    # each style has a folder
    place = at / file.partition("/")[0] if task == "e2e" and "/" in file else at
    where = {
        "train_file": str(at / file),
        "dev_file": str(at / file),
        "data_dir": str(place),
    }
    where |= {"test_dir": str(at)} if task == "gsm8k" else {}
    where |= {"template": str(at / file)} if file == "t.json" else {}
    of_model = f"model={MODELS.get(task, 'encoder')} model.path=/x".split()
    loaded = tasks.load(task_of(task, *of_model) | where | changes)
    return loaded.prepare(
        Preprocessing((16, 16), (16, 16), False, 2, (0.5,) * 3, (0.5,) * 3)
    )


def emptied(at, *wanted):
    """Leaves these folders of images, each by its split and class, and these files."""
    for path in at.glob("*/*"):
        if path.relative_to(at).as_posix() not in wanted:
            shutil.rmtree(path)


def parquet(labels, *folders):
    """A training and a test split in parquet files of these folders, and no images
    beside them."""

    def write(at):
        table = pyarrow.table(
            {"image": [{"bytes": b"x", "path": None}] * len(labels), "label": labels}
        )
        for split in ("train", "test"):
            shutil.rmtree(at / split)
            for folder in folders or ("",):
                (at / folder).mkdir(exist_ok=True)
                pyarrow.parquet.write_table(table, at / folder / f"{split}.parquet")

    return write


def broken(at):
    (at / "test/ant/gone.png").symlink_to(at / "nowhere.png")
    (at / "test/ant/ant_002.png").write_bytes(
        (at / "test/ant/ant_002.png").read_bytes()[:99]
    )


def broken_class(at):
    for path in at.glob("train/bee/*"):
        path.write_bytes(b"\x89PNG broken")


SCORES = "text,label\n" + "".join(f"text {i},{i / 7}\n" for i in range(20))
ROW = '{"text": "x", "label": 1}\n'
TEMPLATE = {"prompt_input": "{instruction}{input}", "prompt_no_input": "{instruction}"}
PAIR = '["a", "b"]'

#: By task and file, or task, file and settings: what is done to the file (a text, bytes
#: or nothing in its place, words that others replace, or to the folder of an image
#: set), and how the fault is named.
FAULTS = {
    "text a.csv": [
        ("text,label\nx,1\ny\n", "a.csv line 3: 1 of 2 columns"),
        (
            "text,label\nx,1\nwell, yes,1\n",
            "a.csv line 3: 3 columns instead of 2. Put a text with a comma into",
        ),
        ("words,label\nx,1\n", "a.csv: no column 'text'. It has: words, label"),
        ("text,label\nx,1\ny,2\nlost,\n", "a.csv line 4: nothing in column 'label'"),
        *(
            ("text,label\n", "a.csv: no rows"),
            ("text,label\nx,1\ny,1\n", "a.csv: only one label"),
        ),
        *(
            ('text,label\n"x,1\n', "a.csv line 2"),
            (None, "a.csv: no such file (task.train_file)"),
        ),
        ('text,label\nx,a\n"' + "words\n" * 2_000_000, "field larger than field limit"),
        *(
            (f"{SCORES}x,{x}\n", "a.csv line 22: label ")
            for x in ("NaN", "-Infinity", "1e39", "n/a")
        ),
        (
            "text,label\nx,0\nx,1\nx,nan\n",
            "line 4: label 'nan' is not a finite number, and others are",
        ),
    ],
    "text a.csv regression=true": [
        *((f"{SCORES}x,{x}\n", "a.csv line 22: label ") for x in ("b", "9" * 400))
    ],
    "text a.csv metric=accuracy": [
        ("text,label\nx,0.5\ny,1.5\n", "a.csv: its labels are numbers")
    ],
    "text a.csv metric=pearson": [
        ("text,label\nx,a\ny,b\n", "a.csv: its labels are classes")
    ],
    "text a.csv metric=f1": [
        ("text,label\nx,1\ny,2\n", "no metric 'f1' (task.metric)")
    ],
    "text a.csv dev_file=null": [("text,label\nx,1\n", "a.csv: one row")],
    "text a.jsonl": [
        (ROW + '{"words": "x"}', "a.jsonl line 2: no column 'text'. It has: words"),
        ('{"text": "x", "label": null}', "a.jsonl line 1: nothing in column 'label'"),
        *(
            (ROW + '{"text": ', "a.jsonl line 2: Invalid JSON"),
            ("[1]", "a.jsonl line 1: Input "),
        ),
        (
            ROW.replace("1", '"yes"') + ROW.replace("1", "NaN"),
            "a.jsonl line 2: label nan is not",
        ),
    ],
    **{f"text {name}": [("x", name)] for name in ("a.txt", "a.parquet")},
    "rte RTE/train.tsv": [
        (("entailment", "maybe"), "train.tsv line 2: label 'maybe'"),
        (("\n0\t", "\n0 "), "train.tsv line 2: 3 of 4 columns"),
    ],
    "rte RTE/dev.tsv": [
        *(
            (None, "RTE: no dev.tsv"),
            ("", "dev.tsv: no rows"),
            (b"\xff\xfe\0bad", "dev.tsv: not UTF-8"),
        )
    ],
    "rte . name=wnli": [((), "wnli")],
    "cola CoLA/train.tsv": [
        (("own\t", "own\t2"), "line 1: label '2"),
        (("own\t", ""), "line 1: 3 of 4 col"),
    ],
    "stsb STS-B/train.tsv": [
        (("\t4.", "\t7."), ": score 7."),
        (("\t4.", "\t[?]"), ": label '[?]"),
    ],
    "sst2 SST-2/train.tsv": [
        (("sentence", "text"), "train.tsv: no column 'sentence'. It has: text, label")
    ],
    "e2e trainset.csv": [
        ("MR,text\na,b\n", "trainset.csv: no column 'mr'. It has: MR, text"),
        (
            'mr,ref\n"name[A], view[sea]",x\n',
            "trainset.csv line 2: unknown attribute 'view'",
        ),
        ("mr,ref\nname[A],  \n", "trainset.csv line 2: an empty reference"),
        *(
            ("mr,ref\nname[A]\n", "line 2: 1 of 2 columns"),
            ("mr,ref\n", "trainset.csv: no rows"),
        ),
        (f"mr,ref\n{'A pub' * 1000},x\n", "line 2: the MR 'A pub"),
    ],
    "e2e devset.csv": [(None, "data: no devset.csv")],
    "e2e lora/train.txt": [
        (("||", ", "), "train.txt line 1: no ||"),
        (("Type", "View"), "train.txt line 1: unknown attribute 'View'"),
        (("A pub .", ""), "train.txt line 1: an empty reference"),
    ],
    **{
        f"e2e {name}/x": [("", f"{name}: no trainset.csv")]
        for name in ("mixed", "empty")
    },
    "alpaca alpaca_own.json": [
        *(
            ("[{", "alpaca_own.json"),
            ('{"a": 1}', "alpaca_own.json"),
            ('["x"]', "alpaca_own.json: 0: "),
        ),
        (('"A penguin cannot fly."', "3"), "alpaca_own.json: 0.output"),
        (("A penguin cannot fly.", " "), "alpaca_own.json: 0.output"),
        *(
            ('[{"instruction": "x", "output": "y"}]', "task.dev_rows=2"),
            (None, "no *.json"),
        ),
    ],
    "alpaca more.json": [("[]", "alpaca_own.json, more.json")],
    "alpaca t.json": [
        *(
            (json.dumps(TEMPLATE | {"prompt_input": v}), ": prompt_input")
            for v in (None, "{instruction}")
        ),
        *(
            (json.dumps(TEMPLATE | {"prompt_no_input": v}), ": prompt_no_input")
            for v in ("{question}", "{")
        ),
        (
            json.dumps(TEMPLATE | {"prompt_no_input": "{instruction:d}"}),
            ": prompt_no_input",
        ),
        (json.dumps(TEMPLATE | {"stop": ""}), "t.json (task.template): stop"),
        (None, "t.json"),
    ],
    "gsm8k test.jsonl": [
        (
            '{"question": "q", "answer": "none"}',
            "test.jsonl line 1: no answer in the solution 'none'",
        ),
        *(
            ('{"question": "q"}', "test.jsonl line 1: "),
            ("", "the test set gsm8k has no rows"),
        ),
        (None, "no test.jsonl"),
    ],
    "gsm8k train.jsonl": [
        ('{"question": " ", "answer": "#### 1"}', "train.jsonl line 1: ")
    ],
    "gsm8k MetaMathQA.json": [
        *(("[]", "task.max_characters"), (None, "3 files where")),
    ],
    "gsm8k MATH_test.jsonl tests=[math]": [
        (None, "no MATH_test.jsonl or MATH/test"),
        ("{}", "line 1: "),
    ],
    "commonsense dataset/boolq/test.json": [
        (
            '[{"instruction": "x", "output": "y", "answer": "maybe"}]',
            "json row 0: answer: 'maybe' should be",
        ),
        *(
            ("[]", "test set boolq has no rows"),
            ("[{}]", "test.json: 0."),
            (None, "no boolq/test.json"),
        ),
    ],
    "commonsense . train_set=commonsense_15k": [((), "no commonsense_15k.json")],
    "image_folder .": [
        (
            lambda at: [path.unlink() for path in at.glob("train/bee/*[1-9].png")],
            "class bee has 1 training images",
        ),
        (
            lambda at: write_images(at, classes=("dog",), train=0, test=2),
            "only test has dog",
        ),
        (
            lambda at: (at / "test/cow").rename(at / "test/kow"),
            "only train has cow; only test has kow",
        ),
        (lambda at: emptied(at, "train/cow", "test/cow"), "one class, cow"),
        (emptied, "no images in folders. It should hold train/CLASS/"),
        (
            lambda at: write_images(at, classes=("bus", "car"), test=0),
            "is train a split or a class",
        ),
        (
            lambda at: [(at / x).rename(at / f"{x}_set") for x in ("train", "test")],
            "_set holds folders of images",
        ),
        (
            lambda at: [path.unlink() for path in at.glob("*/bee/*")],
            "train/bee: a class's folder without an",
        ),
        (parquet([0, 1] * 4, "a", "b"), "several configurations: a, b"),
        (parquet(["ant", None, "bee", "bee"]), "train.parquet row 1: label None"),
        (parquet([0, 1, 0, -1]), "labels -1 to 1, but 2 class names"),
        (parquet([]), "a split without rows"),
        (broken_class, "image_folder: 4 images cannot be read: train/bee/bee_00"),
        (broken, "image_folder: 2 images cannot be read: test/ant/ant_002.png ("),
    ],
    **{
        f"image_folder . dev_rows=null shots={n}": [
            (lambda at: shutil.rmtree(at / "test"), "no test split")
        ]
        for n in ("null", 6)
    },
    "image_folder . image_column=photo": [
        (parquet([0, 1]), "no column 'photo'. It has: image, label")
    ],
    "image_folder . shots=1 holdout=0.4": [((), "leaves nothing to train on")],
    "mt_bench mt_bench/question.jsonl": [
        *(("", "question.jsonl: no questions"), (None, "question.jsonl: No such file")),
        (('"category": "writing", ', ""), "question.jsonl line 1: category"),
        (('"question_id": 101', '"question_id": 81'), "line 2: question 81"),
        (('"Now make it rhyme."', '"a", "b"'), "line 1: question 81 has 3 turns"),
        *((('"Now make it rhyme."', odd), "line 1: turns.1") for odd in ('" "', "2")),
        *(
            ((" 81", f" {number}"), "line 1: question_id")
            for number in ('"81"', 10**4000)
        ),
    ],
    "mt_bench own.jsonl": [
        (('"own"', '"other"'), "line 2: an answer of 'own', not of 'other'"),
        (
            lambda path: path.write_text(path.read_text().split("\n")[0]),
            "to 3 of 4 questions: 101, 111, 151",
        ),
        (
            ('"question_id": 101', '"question_id": 200'),
            "line 2: the bench has no question 200",
        ),
        (
            ('"question_id": 101', '"question_id": 81'),
            "own.jsonl line 2: an answer to question 81 a second",
        ),
        ((PAIR, '["a"]'), "line 1: 1 turns for question 81"),
        ((PAIR, '["a", null]'), "line 1: choices.0.turns.1"),
        ((f'[{{"index": 0, "turns": {PAIR}}}]', "[]"), "own.jsonl line 1: choices"),
    ],
    "mt_bench judge_prompts.jsonl": [
        *(
            (("plain: {question}", template), "judge_prompts.jsonl: prompt 'single-v1'")
            for template in ("{reference}", "{}", "{question.x}", "{question:>9}", "}")
        ),
        *(
            ((f'"name": "{name}"', '"name": "x"'), f"no prompt '{name}'")
            for name in PROMPTS
        ),
        (('"You are single-v1."', "null"), "judge_prompts.jsonl line 1"),
    ],
    "mt_bench mt_bench/reference_answer/gpt-4.jsonl": [
        *(
            (('["Bo.", "Neither."]', '["Bo."]'), "turn of question 101"),
            (None, "gpt-4.jsonl: No such file"),
        )
    ],
    "scores references.txt": [
        ("a\n\n\n\nb\n", "references.txt: item 2 has no references"),
        (None, "references.txt: No such file"),
    ],
}
#: By task, settings that cannot be, each of which its refusal names.
SETTINGS = {
    "e2e": "length_penalty=[1,1.0] holdout=0.2 data_dir=/nowhere forgetting_text=gone.txt "
    "forgetting_text=/ forgetting_text=hub:x forgetting_text=hub:owner/texts forgetting_text=/bin/sh "
    "forgetting_text=hub:owner/texts/*.txt",
    "gsm8k": "prompt=x decode=dev holdout=0.2 data_dir=/nowhere test_dir=/nowhere reader=x reader=math.floor",
    "commonsense": "tests=[boolq,copa] dev_rows=1 dev_rows=15 decode=dev holdout=0.2 data_dir=null "
    "data_dir=/nowhere template=/nowhere.json",
    "sums": "train_rows=3078 decode=dev holdout=0.2",
    "image_folder": "data_dir=/nowhere data_dir=/bin/sh data_dir=null",
    "alpaca": "dev_rows=1 data_dir=/nowhere",
    "rte": "data_dir=/nowhere data_dir=null",
    "text": "train_file=null",
}
CASES = [
    (*f"{key} ".split(" ", 2), *fault)
    for key, faults in FAULTS.items()
    for fault in faults
]
WORDS = [(task, word) for task, words in SETTINGS.items() for word in words.split()]
CASES += [
    (task, ".", word, (), f"task.{word.partition('=')[0]}") for task, word in WORDS
]


@pytest.mark.parametrize(("task", "file", "words", "change", "named"), CASES)
def test_a_fault_is_one_line(task, file, words, change, named, tmp_path, request):
    at, path = tmp_path / "data", tmp_path / "data" / file
    if task in SOUND:
        shutil.copytree(request.getfixturevalue(SOUND[task]), at)
    else:
        at.mkdir()
        (at / "references.txt").write_text("a\n\nb\n")
    if callable(change):
        change(path)
    elif change is None:
        path.unlink(missing_ok=True)
    elif isinstance(change, tuple) and change:
        before = path.read_text()
        path.write_text(before.replace(*change, 1))
        assert path.read_text() != before
    elif change != ():
        path.write_bytes(change if isinstance(change, bytes) else change.encode())
    pairs = (word.partition("=") for word in words.split())
    longest = 1500 if task == "image_folder" else 400  # which names some of the images
    with refused(named, longest=len(str(tmp_path)) * 2 + longest):
        read(task, at, file, {key: yaml.safe_load(value) for key, _, value in pairs})


@pytest.mark.parametrize(
    "name",
    [
        "../../evil",
        "metrics.accuracy",
        "base",
        "",
        None,
        ".text",
        "text.py",
        ["text"],
        {},
    ],
)
def test_of_a_family_by_another_name_nothing_is_imported(name, monkeypatch):
    """Names come from records that others have written, too."""
    monkeypatch.setattr(
        tasks.importlib, "import_module", lambda name: pytest.fail(f"imported {name}")
    )
    with refused("no task family", f"it is one of {', '.join(tasks.FAMILIES)}"):
        tasks.family({"family": name})
