"""The fixed text: where it comes from, how it is cut, and its cross-entropy by another
computation."""

import hashlib

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tasks import DataError, forgetting
from tasks.forgetting import OWN_TEXT, FixedText, fixed_text

pytestmark = pytest.mark.parity


def of(value):
    return fixed_text({"forgetting_text": value})


def test_the_projects_text_ships_and_its_hash_is_the_files():
    text = of(None)
    assert (text.name, text.sha256) == (
        "shipped",
        hashlib.sha256(OWN_TEXT.read_bytes()).hexdigest(),
    )
    assert 400 <= len(text.text.split()) <= 600
    assert fixed_text({}).sha256 == text.sha256  # older records lack the key
    assert of("none") is None


def test_a_path_is_read_and_the_ends_of_its_lines_do_not_count(tmp_path):
    (tmp_path / "a.txt").write_bytes("One é.\nTwo.\n".encode())
    (tmp_path / "b.txt").write_bytes("\ufeffOne é.\r\nTwo.\r\n".encode())
    one, other = of(str(tmp_path / "a.txt")), of(str(tmp_path / "b.txt"))
    assert one.text == "One é.\nTwo.\n"
    assert (one.name, other.name) == ("a.txt", "b.txt")
    assert one.sha256 == other.sha256


def test_a_file_on_the_hub(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        forgetting, "snapshot", lambda *arguments: asked.append(arguments) or tmp_path
    )
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "t.txt").write_text("Read.")
    text = of("hub:owner/texts/in/t.txt@v1.0")
    assert (text.text, text.name) == ("Read.", "hub:owner/texts/in/t.txt@v1.0")
    assert asked[0][:4] == ("owner/texts", "v1.0", ["in/t.txt"], "dataset")
    assert of("hub:owner/texts/in/t.txt").text == "Read."
    assert asked[1][1] is None
    with pytest.raises(DataError, match=r"hub:owner/texts/gone.txt: no such file"):
        of("hub:owner/texts/gone.txt")


# --- the loss


def by_hand(path, ids, window):
    """The mean of -log p in float64: each token after those of its window, one after
    the other."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()
    total, start = 0.0, 0
    for place in range(1, len(ids)):
        if place - start == window:
            start = place - 1
        with torch.no_grad():
            logits = model(torch.tensor([ids[start:place]])).logits[0, -1]
        total += float(torch.logsumexp(logits, 0) - logits[ids[place]])
    return total / (len(ids) - 1)


WORDS = "A tower stands on a rock in the sea, and its lamp turns. "


@pytest.mark.parametrize(
    ("window", "positions"), [(512, None), (8, 256), (512, 11), (2, 256)]
)
def test_the_loss_is_that_of_each_token_after_its_window(
    tiny_gpt2, window, positions, monkeypatch
):
    monkeypatch.setattr(forgetting, "WINDOW", window)
    tokenizer, text = (
        AutoTokenizer.from_pretrained(tiny_gpt2),
        FixedText("t", WORDS * 2),
    )
    text.prepare(tokenizer, positions)
    ids = tokenizer(WORDS * 2)["input_ids"]
    assert text.tokens == len(ids) - 1
    model = AutoModelForCausalLM.from_pretrained(tiny_gpt2).eval()
    with torch.no_grad():
        loss = text.loss(model)
    assert loss == pytest.approx(
        by_hand(tiny_gpt2, ids, min(window, positions or window)), rel=1e-6
    )


def test_a_begin_token_that_the_tokenizer_writes_is_given_and_an_end_token_is_not_read(
    tiny_llama,
):
    tokenizer, text = AutoTokenizer.from_pretrained(tiny_llama), FixedText("t", WORDS)
    text.prepare(tokenizer, 256)
    ids = tokenizer(WORDS)["input_ids"]
    assert (ids[0], text.tokens) == (tokenizer.bos_token_id, len(ids) - 1)

    def with_end(texts, **settings):
        return {"input_ids": [*ids, tokenizer.eos_token_id]}

    with_end.eos_token_id = tokenizer.eos_token_id
    other = FixedText("t", WORDS)
    other.prepare(with_end, 256)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama).eval()
    with torch.no_grad():
        assert (
            text.loss(model)
            == other.loss(model)
            == pytest.approx(by_hand(tiny_llama, ids, 256), rel=1e-6)
        )


@pytest.mark.parametrize("words", ["", "a"])
def test_a_text_of_fewer_than_two_tokens_is_refused(words, tiny_gpt2):
    with pytest.raises(
        DataError,
        match=r"^task.forgetting_text=t: a text of [01] tokens, two are needed$",
    ):
        FixedText("t", words).prepare(AutoTokenizer.from_pretrained(tiny_gpt2), 160)
