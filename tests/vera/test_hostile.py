"""Adapter files from strangers, as tests/attack makes them: each is refused in one line, in little time and
memory, and the model is as it was."""

import pytest

pytestmark = [pytest.mark.properties, pytest.mark.slow]


def test_no_file_made_by_hand_hangs_exhausts_or_changes_anything(tmp_path):
    from attack.cases import Home, run
    from attack.files import cases

    home, problems = Home(tmp_path, 0, short=False), list[str]()
    for case in cases(home):
        if case.kind in ("adapters, sound", "adapters, by hand"):
            problems += run(case, home)[1]
    assert problems == []
