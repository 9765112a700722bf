"""The frozen random pair A and B of VeRA, made from a seed and the same on every machine, version and device.

Philox4x64-10 (Salmon et al. 2011) is a counter-based generator: numpy exposes its raw 64-bit words, which have
not changed since numpy 1.17. Each element takes the word at its own place in the counter, and plain IEEE
arithmetic maps the word to a number. Nothing else is used: no log and no cos (their last bits differ between
processors), no torch generator (not guaranteed across versions and devices).

Element (i, j) is a pure function of (seed, matrix, i, j): a smaller matrix is the leading slice of a larger one.
Only the scale depends on the shape, so adapters of any rank and width can share one stored pair.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]

#: Raised by hand when the bits change; stored in every adapter file.
SCHEME = "philox-1"
#: The counter's second key word: which of the two matrices a word belongs to.
A, B = 0, 1


def unit_uniform(seed: int, matrix: int, rows: int, columns: int) -> Matrix:
    """Uniform numbers in (-1, 1), float32, shape (rows, columns).

    Row i starts at counter (0, i, 0, 0) under the key (seed, matrix). The top 24 bits k of a word become
    (2k + 1 - 2^24) / 2^24: symmetric, never 0, and exact in float32.

    Raises ValueError for a seed outside [0, 2^64).
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"projection_seed must be in [0, 2^64), got {seed}")
    key = np.array([seed, matrix], dtype=np.uint64)
    out = np.empty((rows, columns), dtype=np.float32)
    for i in range(rows):
        counter = np.array([0, i, 0, 0], dtype=np.uint64)
        words = np.random.Philox(counter=counter, key=key).random_raw(columns)
        odd = (words >> np.uint64(40)).astype(np.int64) * 2 + 1 - 2**24
        out[i] = odd.astype(np.float32) * np.float32(2.0**-24)
    return out


@dataclass(frozen=True)
class ProjectionSpec:
    """What A and B depend on.

    inputs and outputs are the widest over all adapted matrices; a narrower matrix uses the leading slice.
    init "kaiming_uniform" is the paper's, from Philox. init "peft" draws the same distribution as huggingface/peft
    does, from one torch generator, bit-equal for the same key and shapes (for parity and interchange only: torch
    does not promise those bits across versions).
    """

    seed: int
    rank: int
    inputs: int
    outputs: int
    init: str = "kaiming_uniform"

    def make(self) -> tuple[Matrix, Matrix]:
        """A (rank, inputs) and B (outputs, rank), float32, Kaiming uniform: bound sqrt(6 / fan_in), which is
        PyTorch's fan_in mode with gain sqrt(2). fan_in is `inputs` for A and `rank` for B (paper, section 3.3)."""
        if self.init == "peft":
            return self._make_peft()
        if self.init != "kaiming_uniform":
            raise ValueError(f"init must be kaiming_uniform or peft, got {self.init!r}")
        a = unit_uniform(self.seed, A, self.rank, self.inputs) * np.float32(math.sqrt(6 / self.inputs))
        b = unit_uniform(self.seed, B, self.outputs, self.rank) * np.float32(math.sqrt(6 / self.rank))
        return a, b

    def _make_peft(self) -> tuple[Matrix, Matrix]:
        import torch  # only here, so that the scheme above needs nothing but numpy

        generator = torch.Generator(device="cpu").manual_seed(self.seed)
        pair = []
        for rows, columns in ((self.rank, self.inputs), (self.outputs, self.rank)):
            bound = math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(columns))
            pair.append(torch.empty(rows, columns).uniform_(-bound, bound, generator=generator).numpy())
        return pair[0], pair[1]

    @property
    def scheme(self) -> str:
        return SCHEME if self.init == "kaiming_uniform" else "peft"


def fingerprint(a: Matrix, b: Matrix) -> str:
    """SHA-256 of the bytes of A and B (little-endian float32, row by row), 64 hex digits."""
    digest = hashlib.sha256()
    for matrix in (a, b):
        digest.update(np.ascontiguousarray(matrix, dtype="<f4").data)
    return digest.hexdigest()
