"""Files of data from strangers: any bytes are data, or are refused in a line that names the file."""

import pytest
from attack.cases import HOSTILE
from hypothesis import given, settings
from hypothesis import strategies as st

from runs.config import expand
from runs.errors import UserError
from tasks import DataError

pytestmark = pytest.mark.properties

KINDS = ("tables of texts", "data sets", "MT-Bench", "texts to be scored")
ODD = st.binary(max_size=9) | st.sampled_from([text.encode() for text in HOSTILE["odd_bytes"]])
TARGETS = {name: target for name, target in HOSTILE["targets"].items() if target["kind"] in KINDS}


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    from attack.files import write_sound

    write_sound(at := tmp_path_factory.mktemp("sound"), "")
    return at


@pytest.mark.parametrize(("name", "file"), [(name, f) for name in TARGETS for f in TARGETS[name]["files"]])
def test_any_bytes_are_data_or_refused_in_a_line_that_names_the_file(name, file, sound):
    from attack.files import read

    target, path = TARGETS[name], sound / name / file
    before, words = path.read_bytes(), target.get("task", "task=rte model=encoder").split()
    config = expand([*words, "model.path=/x"])[0].config["task"]
    read(target, config, sound, sound / name)

    @settings(max_examples=60, deadline=None, database=None, derandomize=True)
    @given(st.integers(0, len(before)), ODD, st.integers(0, len(before)))
    def changed(start, odd, end):
        path.write_bytes(before[:start] + odd + before[end:])
        line = "task."
        try:
            read(target, config, sound, sound / name)
        except (DataError, UserError) as error:
            line = str(error)
        assert "\n" not in line
        assert str(sound / name) in line or "task." in line

    try:
        changed()
    finally:
        path.write_bytes(before)
