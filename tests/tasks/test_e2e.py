"""E2E's protocol: how rows are read, written, masked and averaged. Each of its traps is
a test here."""

import time

import numpy as np
import pytest
import torch
import yaml
from running import refused
from tiny import write_e2e_hub

import tasks
from runs import models
from runs.config import CONF
from tasks.e2e_files import linearise, local_files, tokenise

pytestmark = pytest.mark.properties

SETTINGS = yaml.safe_load((CONF / "task" / "e2e.yaml").read_text())
SETTINGS |= {
    "name": "e2e",
    "label_smoothing": 0.1,
    "length_grouped": False,
    "decode": "test",
    "beams": 3,
}
SETTINGS |= {"length_penalty": [0.9, 0.8], "max_new_tokens": 8, "hub": None}
END = 50256


def load(folder, **changes):
    return tasks.load({**SETTINGS, "data_dir": str(folder), **changes})


def table(text):
    return [line.split(" = ") for line in text.strip().splitlines()]


@pytest.fixture(scope="module")
def loaded(tiny_gpt2):
    """A GPT-2 with GPT-2's own tokenizer, without dropout."""
    return models.load(
        tiny_gpt2,
        0,
        "generation",
        {"embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0},
    )


@pytest.fixture
def task(e2e, loaded):
    task = load(e2e)
    task.prepare(loaded[1], 64)
    return task


def test_training_mrs_take_the_dev_sets_place(tmp_path):
    """task.holdout: an MR's references stay together, and no row of the dev file is
    there."""
    lines = {"train": [(f"name : A {i % 10}", f"It is {i} .") for i in range(40)]}
    lines |= {
        "valid": [("name : Poison", "It is poison .")] * 3,
        "test": [("name : A", "It is .")],
    }
    for name, pairs in lines.items():
        (tmp_path / f"{name}.txt").write_text(
            "".join(f"{mr}||{reference}\n" for mr, reference in pairs)
        )
    task, again = (load(tmp_path, decode="none", holdout=0.2) for _ in range(2))
    assert task.splits == again.splits
    assert sorted(task.splits["train"] + task.splits["dev"]) == sorted(lines["train"])
    kept, held = ({mr for mr, _ in task.splits[split]} for split in ("train", "dev"))
    assert (len(kept), len(held), kept & held) == (8, 2, set())
    assert any("8 of 40 training rows (2 of 10 MRs)" in note for note in task.notes)


# --- text


def test_an_mr_is_written_as_in_loras_files():
    """MR = line."""
    for mr, line in table("""
name[Inn], eatType[pub], priceRange[more than £30] = name : Inn | Type : pub | price : more than £ 30
customer rating[5 out of 5], near[Café Adriatic] = customer rating : 5 out of 5 | near : Café Adriatic
name[A], food[Fast food], priceRange[£20-25] = name : A | food : Fast food | price : £ 20 - 25
area[city centre], familyFriendly[no], name[B-C] = area : city centre | family friendly : no | name : B-C
"""):
        assert linearise(mr) == line


def test_mrs_are_recognised_in_linear_time():
    began = time.process_time()
    for mr in (
        " " * 300_000,
        "name[a]" + " " * 300_000 + "x",
        "name[a]," * 50_000 + "x",
    ):
        with pytest.raises(ValueError, match="is not written as") as error:
            linearise(mr)
        assert len(str(error.value)) < 300
    assert time.process_time() - began < 5


def test_references_are_tokenised_and_keep_their_case():
    """Reference = tokens, which stay as they are."""
    for reference, tokens in table("""
It's a kid-friendly place; cheap, too. = It 's a kid - friendly place ; cheap , too .
A 5-star pub isn't cheap:  £20-25, or £20-£25. = A 5-star pub is n't cheap : £ 20 - 25 , or £ 20-£25 .
You'd pay £10.50 at Café Rouge (near 'The Oak')! = You 'd pay £ 10.50 at Café Rouge ( near ' The Oak ' ) !
"""):
        assert tokenise(reference) == tokenise(tokens) == tokens


# --- rows


def test_a_row_is_mr_separator_reference_end(task, loaded):
    tokenizer = loaded[1]
    ids = task.collate("train", [2])["input_ids"][0].tolist()
    prompt = tokenizer("name : Blue Door | Type : coffee shop | area : riverside")[
        "input_ids"
    ]
    reference = tokenizer(" Blue Door is a coffee shop by the riverside .")["input_ids"]
    assert ids == [*prompt, END, *reference, END]
    # GPT-2's own ids: nothing before the MR, and a space before the reference's first
    # word.
    assert ids[:3] == [3672, 1058, 4518]
    assert reference[:2] == [4518, 19821]
    assert task.ends == (END, 628)


def test_a_vocabulary_without_gpt_2s_separator_gives_its_own(e2e):
    class Other:
        eos_token = "</s>"

        def __call__(self, texts, add_special_tokens):
            return {
                "input_ids": [[len(text)] for text in texts]
                if isinstance(texts, list)
                else [1, 2]
            }

        def get_vocab(self):
            return {"</s>": 7}

        def convert_tokens_to_ids(self, token):
            return self.get_vocab()[token]

    task = load(e2e, forgetting_text="none")
    task.prepare(Other(), 64)
    assert task.ends == (7,)  # a blank line is two tokens there
    mr, reference = (
        "name : Blue Door | customer rating : 5 out of 5",
        " Blue Door has a 5-star rating .",
    )
    assert task.collate("train", [3])["input_ids"].tolist() == [
        [len(mr), 7, len(reference), 7]
    ]
    Other.eos_token = None
    with refused("no end-of-text token"):
        load(e2e).prepare(Other(), 64)


def test_only_what_predicts_the_reference_and_its_end_has_a_loss(task):
    batch = task.collate("train", [2, 3])
    for ids, targets, mask in zip(
        *(batch[key] for key in ("input_ids", "targets", "attention_mask")), strict=True
    ):
        length = int(mask.sum())
        separator = ids.tolist().index(END)
        assert (targets[:separator] == -100).all()
        assert (
            targets[separator : length - 1].tolist()
            == ids[separator + 1 : length].tolist()
        )
        assert targets[length - 2] == END
        assert (targets[length - 1 :] == -100).all()
    assert task.weight("train", [2, 3]) == (batch["targets"] != -100).sum()


def test_long_rows_are_cut_on_the_right_and_texts_that_would_not_fit_are_refused(
    e2e, loaded
):
    cut, whole = load(e2e), load(e2e)
    cut.prepare(loaded[1], 32)
    whole.prepare(loaded[1], 512)
    ids, all_ids = (
        task.collate("train", [0])["input_ids"][0].tolist() for task in (cut, whole)
    )
    assert ids == all_ids[:32]
    assert ids[-1] != END
    load(e2e).prepare(loaded[1], 64, 40)
    for limits, named in (((20,), "max_length=20"), ((64, 20), "20 positions")):
        with refused(named):
            load(e2e).prepare(loaded[1], *limits)


def test_the_loss_is_the_mean_over_the_batchs_tokens_smoothed_over_the_vocabulary(
    task, loaded
):
    """Against the formula, a row at a time and without padding; a mean over rows would
    be another number."""
    model, rows = loaded[0].eval(), [0, 2, 5]

    def arrays(batch):
        return {key: torch.from_numpy(value) for key, value in batch.items()}

    smoothed, plain, each = [], [], []
    with torch.no_grad():
        for row in rows:
            batch = arrays(task.collate("train", [row]))
            logits = model(batch["input_ids"]).logits[0].double()
            log_p = logits - logits.logsumexp(-1, keepdim=True)
            for position, target in enumerate(batch["targets"][0].tolist()):
                if target != -100:
                    plain.append(-log_p[position, target])
                    smoothed.append(0.9 * plain[-1] + 0.1 * -log_p[position].mean())
            each.append(
                torch.stack(smoothed[-int(task.weight("train", [row])) :]).mean()
            )
        batch = arrays(task.collate("train", rows))
        assert float(task.loss(model, batch)) == pytest.approx(
            float(torch.stack(smoothed).mean()), abs=1e-5
        )
        loss, answers = task.answers(model, batch)
    assert loss == pytest.approx(float(torch.stack(plain).mean()), abs=1e-5)
    assert (
        abs(float(torch.stack(each).mean()) - float(torch.stack(smoothed).mean()))
        > 1e-4
    )
    assert answers[:, 1].tolist() == [task.weight("train", [row]) for row in rows]
    assert task.score(answers, np.zeros(3)) == pytest.approx(
        float(torch.stack(plain).mean().exp()), rel=1e-5
    )


# --- the three formats


def as_lora(task, folder):
    folder.mkdir()
    for split, name in (("train", "train"), ("dev", "valid")):
        lines = [f"{mr}||{reference} \n" for mr, reference in task.splits[split]]
        (folder / f"{name}.txt").write_text("".join(lines), encoding="utf-8")
    lines = [
        f"{mr}||{reference} \n"
        for mr, references in task.items
        for reference in references
    ]
    (folder / "test.txt").write_text("".join(lines), encoding="utf-8")
    return folder


def test_the_challenges_files_loras_and_the_hubs_give_the_same_rows(e2e, tmp_path):
    task = load(e2e)
    for other in (
        load(as_lora(task, tmp_path / "lora")),
        load(write_e2e_hub(tmp_path / "hub")),
    ):
        assert (other.splits, other.items) == (task.splits, task.items)


def test_distinct_mrs_are_decoded_once_in_order_with_all_their_references(e2e):
    thai = ["Grey Goat is a Thai pub .", "The pub Grey Goat serves Thai food ."]
    assert load(e2e).items == [
        ("name : Grey Goat | Type : pub | food : Thai", thai),
        ("name : Grey Goat | Type : coffee shop", ["Grey Goat is a coffee shop ."]),
        ("name : Last Inn | customer rating : low", ["Last Inn has a low rating ."]),
    ]
    assert len(load(e2e, decode="dev").items) == 2
    assert (load(e2e, decode="none").items, load(e2e, decode="none").decodes) == (
        [],
        False,
    )
    some = load(e2e, items=2).items
    assert some == load(e2e, items=2).items
    assert len(some) == 2


def test_notes_say_what_differs_from_the_published_data_and_settings(e2e, tmp_path):
    other = as_lora(load(e2e), tmp_path / "lora")
    few = (
        "4 rows (a fixed subset of 8)",
        "not on the test set",
        "1 MRs are decoded",
        "task.beams=3",
        "spaCy",
    )
    search = {"search": "transformers", "length_grouped": True}
    for task, *told in (
        (load(e2e, train_rows=4, decode="dev", items=1), *few),
        (load(e2e, length_penalty=[0.8]), "length penalty 0.8"),
        (load(e2e, decode="none", length_penalty=[0.5]), "no texts"),
        (load(other, **search), "own beam search", "batches of like lengths"),
    ):
        notes = " ".join(task.notes)
        assert [part for part in told if part not in notes] == []
        assert ("beams" in notes) is (told != ["no texts"])
        assert ("spaCy" in notes) is (task.task_settings["data_dir"] != str(other))


def test_a_machine_without_java_is_told_so_before_a_run(e2e, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "no java on this machine" in load(e2e).advice[0]
    assert not load(e2e, decode="none").advice


# --- decoding


def test_texts_end_before_the_first_end_and_the_first_blank_line(task, loaded):
    for written, text in (
        (" A pub .<|endoftext|> More", "A pub ."),
        (" A pub .\n\nMore<|endoftext|>", "A pub ."),
        (" A pub .\nMore ", "A pub .\nMore"),
        ("<|endoftext|>", ""),
    ):
        assert task.text(loaded[1](written)["input_ids"]) == text


def test_a_folder_of_several_styles_is_read_in_the_first_that_is_complete(tmp_path):
    texts = ["train.txt", "valid.txt", "test.txt"]
    for name in ("trainset.csv", "devset.csv", *texts):
        (tmp_path / name).touch()
    assert [path.name for path in local_files(tmp_path, "test").values()] == texts
    assert [path.name for path in local_files(tmp_path, "none").values()] == [
        "trainset.csv",
        "devset.csv",
    ]
