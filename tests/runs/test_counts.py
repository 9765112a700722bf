"""The paper's parameter counts, exactly."""

import yaml

from runs import counts
from runs.config import CONF, choices

ENTRIES = yaml.safe_load((CONF / "counts.yaml").read_text())


def test_every_count_that_can_be_built_is_exact(capsys):
    assert counts.main([]) == 0
    printed = capsys.readouterr().out
    built = [e for e in ENTRIES if e["model"] in choices("model") and e["method"] in choices("method")]
    assert len(built) >= 6
    for entry in built:
        assert f"{entry['count']:,}" in printed
    assert f"{len(built)} counts, 0 wrong" in printed


def test_a_difference_is_a_non_zero_exit(monkeypatch, capsys):
    monkeypatch.setattr(counts, "count", lambda entry: (entry["count"], entry["count"] + 1))
    assert counts.main([]) == 1
    assert "DIFFERS" in capsys.readouterr().out
