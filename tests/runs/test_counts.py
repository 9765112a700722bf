"""The paper's parameter counts, exactly."""

import pytest
import yaml

from runs import counts
from runs.config import CONF

pytestmark = pytest.mark.parity

ENTRIES = yaml.safe_load((CONF / "counts.yaml").read_text())


@pytest.mark.parametrize(
    "cell", [("roberta_base", "vera"), ("vit_base", "lora"), ("gpt2_medium", "full")], ids="/".join
)
def test_a_count_is_exact(cell):
    entry = next(entry for entry in ENTRIES if (entry["model"], entry["method"]) == cell)
    assert counts.count(entry)[1:] == (entry["count"], entry["count"])


@pytest.mark.slow  # 37 skeletons of large models
def test_every_count_is_exact(capsys):
    assert counts.main([]) == 0
    printed = capsys.readouterr().out
    assert len(ENTRIES) == 37
    for entry in ENTRIES:
        assert f"{entry['count']:,}" in printed
    assert "37 counts, 0 wrong" in printed


def test_a_difference_is_a_non_zero_exit(monkeypatch, capsys):
    monkeypatch.setattr(counts, "count", lambda entry: (8, entry["count"], entry["count"] + 1))
    assert counts.main([]) == 1
    assert "DIFFERS" in capsys.readouterr().out
