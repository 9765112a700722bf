"""Adapter files from strangers, as tests/attack makes them: each is refused in one line, in little time and
memory, and the model is as it was."""

import pytest

pytestmark = [pytest.mark.properties, pytest.mark.slow]


def test_no_file_made_by_hand_hangs_exhausts_or_changes_anything(tmp_path):
    from attack.cases import run
    from attack.files import cases

    problems = list[str]()
    for case in cases(tmp_path):
        if case.kind in ("adapters, sound", "adapters, by hand"):
            problems += run(case, tmp_path)[1]
    assert problems == []
