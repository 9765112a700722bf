"""A seed gives the same A and B bit for bit, whatever the numpy, the processor's
features, or the shape asked for."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vera.projections import (
    A,
    B,
    ProjectionSpec,
    fingerprint,
    unit_normal,
    unit_uniform,
)

pytestmark = pytest.mark.determinism

UNIFORM = "kaiming_uniform"
#: Fingerprints of (seed, rank, inputs, outputs[, init[, pair]]). They change only
#: together with projections.SCHEME.
GOLDEN = {
    (
        0,
        1024,
        768,
        768,
    ): "62ab1d188aa89ff1841ebcee8f4e1771d1082f6f459d1f9b7eff89c37003d03e",
    (
        0,
        256,
        1024,
        1024,
    ): "b23ef5d2e62941d16560189f9ccd71eeb56c970b31e4d5f0d2ca4c5ef3fb73c9",
    (1, 7, 13, 5): "8ab6b471064b702a97a322d94caaef81a8f254eea3ff0191ae684df326270506",
    (
        0,
        64,
        96,
        48,
        "uniform",
    ): "e11a07ac5e831977cca7b3f3191bf6201c075af9b047aa5db2a3300b06135d8e",
    (
        5,
        64,
        96,
        48,
        UNIFORM,
        "48x96",
    ): "2211f6a1d38454e3a2a7b1a76454f253060b3dc6c0180a886da37dff76ed8ed6",
    (
        2**64 - 1,
        16,
        384,
        1536,
    ): "8139f351d6d3aa71003006f04856bcf3c765d58729c4d84646e7a996e5c821bb",
}
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("key", "expected"), GOLDEN.items())
def test_golden(key, expected):
    a, b = ProjectionSpec(*key).make()
    assert (
        fingerprint(a, b)
        == hashlib.sha256(a.tobytes() + b.tobytes()).hexdigest()
        == expected
    )


def test_words_are_philoxs_own():
    """The definition, from the generator's published algorithm: Philox4x64-10 written
    out in plain integers."""

    def philox(counter, key):
        c, k, mask = list(counter), list(key), 2**64 - 1
        for _ in range(10):
            low, high = c[0] * 0xD2E7470EE14C6C93, c[2] * 0xCA5A826395121157
            c = [
                (high >> 64) ^ c[1] ^ k[0],
                high & mask,
                (low >> 64) ^ c[3] ^ k[1],
                low & mask,
            ]
            k = [(k[0] + 0x9E3779B97F4A7C15) & mask, (k[1] + 0xBB67AE8584CAA73B) & mask]
        return c

    seed, row = 5, 3
    # numpy counts up before it makes a block: the first four words of a row belong to
    # counter 1.
    words = [word for block in (1, 2) for word in philox([block, row, 0, 0], [seed, B])]
    expected = [(2 * (word >> 40) + 1 - 2**24) / 2**24 for word in words]
    assert unit_uniform(seed, B, row + 1, 8)[row].tolist() == expected


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**64 - 1),
    st.sampled_from([A, B]),
    st.integers(1, 12),
    st.integers(1, 40),
)
def test_a_smaller_matrix_is_a_slice_of_a_larger_one(seed, matrix, rows, columns):
    large = unit_uniform(seed, matrix, 13, 41)
    assert np.array_equal(
        unit_uniform(seed, matrix, rows, columns), large[:rows, :columns]
    )


ROOT_3 = np.sqrt(3)


@pytest.mark.parametrize(
    ("init", "law", "least", "most"),
    [
        ("kaiming_uniform", stats.uniform(-ROOT_3, 2 * ROOT_3), -ROOT_3, ROOT_3),
        *(("kaiming_normal", stats.norm(), -7, 7), ("uniform", stats.uniform(), 0, 1)),
    ],
)
def test_the_distributions(init, law, least, most):
    """Kaiming's have a standard deviation of sqrt(2 / fan_in), as torch's
    kaiming_uniform_ with gain sqrt(2); the paper's uniform one is on 0 to 0.1."""
    for matrix, fan_in in zip(
        ProjectionSpec(3, 512, 384, 768, init).make(), (384, 512), strict=True
    ):
        unit = matrix.ravel() * (10 if init == "uniform" else np.sqrt(fan_in / 2))
        assert stats.kstest(unit, law.cdf).pvalue > 1e-3
        assert unit.std() == pytest.approx(law.std(), rel=0.01)
        assert least - 1e-6 <= unit.min() < unit.max() <= most + 1e-6
    small = unit_normal(3, A, 5, 7)
    # a slice of a larger one, here too
    assert np.array_equal(small, unit_normal(3, A, 13, 41)[:5, :7])


@pytest.mark.parametrize(
    ("seed", "init", "named"),
    [(0, "xavier", "init must be one of"), (2**64, UNIFORM, "projection_seed")],
)
def test_an_unknown_distribution_or_seed_is_refused(seed, init, named):
    with pytest.raises(ValueError, match=named):
        ProjectionSpec(seed, 2, 2, 2, init).make()


def test_peft_draws_the_same_for_the_same_key():
    from peft.tuners.vera.model import _kaiming_init
    from torch import Generator

    generator = Generator().manual_seed(11)
    expected = [
        _kaiming_init(shape, generator=generator).numpy()
        for shape in ((16, 24), (40, 16))
    ]
    made = ProjectionSpec(11, 16, 24, 40, init="peft").make()
    assert all(
        np.array_equal(ours, theirs)
        for ours, theirs in zip(made, expected, strict=True)
    )


DIGEST = """
import sys; sys.path.insert(0, {root!r})
import importlib.util, numpy
spec = importlib.util.spec_from_file_location("projections", {file!r})
module = importlib.util.module_from_spec(spec)
sys.modules["projections"] = module; spec.loader.exec_module(module)
print(numpy.__version__, *(module.fingerprint(*module.ProjectionSpec(*key).make()) for key in {keys!r}))
"""


def digest_elsewhere(environment: dict[str, str]) -> list[str]:
    """numpy's version and the golden fingerprints, as another process sees them. It
    imports nothing but numpy."""
    code = DIGEST.format(
        root=str(ROOT), file=str(ROOT / "vera" / "projections.py"), keys=list(GOLDEN)
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


#: Older ones that have wheels for this Python.
OLDER = ["1.26.4", "2.0.2"] if sys.version_info < (3, 13) else ["2.1.0"]


@pytest.mark.parametrize("numpy", OLDER)
def test_the_same_under_older_numpy(network, numpy, tmp_path):
    quiet = ["-q", "--disable-pip-version-check", "--no-deps", "--only-binary", ":all:"]
    command = [sys.executable, "-m", "pip", "install", *quiet]
    subprocess.run(
        [*command, "--target", str(tmp_path), f"numpy=={numpy}"],
        check=True,
        timeout=300,
    )
    version, *digests = digest_elsewhere({"PYTHONPATH": str(tmp_path)})
    assert version == numpy
    assert digests == list(GOLDEN.values())


def test_the_same_without_vector_instructions(process):
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    off = [name for name in __cpu_dispatch__ if __cpu_features__.get(name)]
    assert digest_elsewhere({"NPY_DISABLE_CPU_FEATURES": " ".join(off)})[1:] == list(
        GOLDEN.values()
    )
