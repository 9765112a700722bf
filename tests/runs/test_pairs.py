"""What cannot work is said by the plan, and before a sweep starts."""

import re
from pathlib import Path

import pytest

from runs import methods
from runs.config import expand
from runs.errors import UserError
from runs.plan import plan
from runs.record import Ledger
from runs.sweep import sweep

pytestmark = pytest.mark.contract


@pytest.fixture
def decoder_words(e2e_words) -> list[str]:
    return [word for word in e2e_words if not word.startswith("method.")]


FUSED = "decoder: peft adapts transformer.h.0.attn.c_attn as a whole: name it, sites=[c_attn]"


def test_a_pair_that_cannot_work_is_refused_by_the_plan_and_before_a_sweep_starts(decoder_words):
    runs = expand([*decoder_words, "method=lora,peft"])
    planned = plan(runs, Ledger())
    assert [(p.state, p.why) for p in planned] == [("missing", ""), ("blocked", FUSED)]
    with pytest.raises(UserError, match=re.escape(FUSED)) as error:
        sweep.sweep(runs)
    assert "\n" not in str(error.value)
    assert not (Path(runs[0].config["output"]) / "runs").exists()
    (run,) = expand([*decoder_words, "method=peft", "method.sites=[c_attn]"])
    assert methods.refusal(run) is None


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("TrainableTokensConfig", "needs to be told what it trains: name target_modules in config"),
        ("XLoraConfig", "needs a forward pass of its own"),
        ("LoraKonfig", "Did you mean LoraConfig?"),
        ("FrodConfig", None),  # which computes with the weights: what they alone could tell is not told
        ("ShiraConfig", "more shira params than the total number"),
        ("ShiraConfig method.config={r:4}", None),
        ("LNTuningConfig", None),
        ("method=ssf", "has no patch embedding: SSF is for image models"),
        ("method=lora_xs method.rank=33", "rank 33 is above that of bert.encoder.layer.0"),
        ("method=lora_xs method.rank=32", None),
    ],
)
def test_what_a_method_needs_is_told_from_the_configuration_alone(method, why, words):
    plain = [word for word in words if not word.startswith("method.")]
    peft = [] if method.startswith("method=") else ["method=peft"]
    (run,) = expand([*plain, *peft, *(method if not peft else f"method.config_class={method}").split()])
    told = methods.refusal(run)
    assert (told is None) == (why is None)
    assert (why or "") in (told or "")


def test_a_refusal_of_pefts_own_is_told(decoder_words):
    for name, words in (
        ("BOFTConfig", "is not supported"),
        ("LilyConfig", "does not support target modules of type"),
    ):
        (run,) = expand(
            [*decoder_words, "method=peft", f"method.config_class={name}", "method.sites=[c_attn]"]
        )
        assert words in methods.refusal(run)


def test_a_model_that_is_not_here_is_judged_by_the_files_word_or_not_at_all():
    (run,) = expand(["model=gpt2_medium", "task=e2e", "method=peft"])
    assert methods.refusal(run) == FUSED.replace("decoder", "GPT-2 medium")
    (run,) = expand(["model=decoder", "model.hub=owner/name", "task=e2e", "method=peft"])
    assert methods.refusal(run) is None


def test_without_a_method_of_pefts_nothing_is_asked(words, monkeypatch):
    monkeypatch.setattr(methods, "_refusal", lambda *_: pytest.fail("built a model"))
    (run,) = expand(words)
    assert methods.refusal(run) is None
