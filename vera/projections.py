"""The frozen random pair A and B of VeRA, made from a seed and the same on every
machine, version and device.

Philox4x64-10 (Salmon et al. 2011) is a counter-based generator: numpy exposes its raw
64-bit words, which have not changed since numpy 1.17. Each element takes the word at
its own place in the counter, and plain IEEE arithmetic maps the word to a number. The
default scheme uses nothing else: no log and no cos (their last bits differ between
processors), as kaiming_normal does, and no torch generator (not guaranteed across
versions and devices), as init="peft" does.

Element (i, j) is a pure function of (seed, matrix_key, i, j): a smaller matrix is the
leading slice of a larger one. Only the scale depends on the shape, so adapters of any
rank and width can share one stored pair."""

import hashlib
import math
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float32]

#: The version of the bits, stored in every adapter file. Whoever changes the bits
#: changes it.
SCHEME = "philox-1"
#: The distributions of A and B: see ProjectionSpec.
Init = Literal["kaiming_uniform", "kaiming_normal", "uniform", "peft"]
INITS: tuple[Init, ...] = get_args(Init)
#: Which of the two matrices a word belongs to: the last bit of `matrix_key`, Philox's
#: second key word.
A, B = 0, 1


def unit_uniform(seed: int, matrix_key: int, rows: int, columns: int) -> Matrix:
    """Uniform numbers in (-1, 1), float32, shape (rows, columns).

    Row i starts at counter (0, i, 0, 0) under the key (seed, matrix_key). The top 24 bits k
    of a word become (2k + 1 - 2^24) / 2^24: symmetric, never 0, and exact in float32.

    Raises ValueError for a seed outside [0, 2^64).
    """
    if not 0 <= seed < 2**64:
        raise ValueError(f"projection_seed must be in [0, 2^64), got {seed}")
    key = np.array([seed, matrix_key], dtype=np.uint64)
    values = np.empty((rows, columns), dtype=np.float32)
    for i in range(rows):
        counter = np.array([0, i, 0, 0], dtype=np.uint64)
        words = np.random.Philox(counter=counter, key=key).random_raw(columns)
        odd = (words >> np.uint64(40)).astype(np.int64) * 2 + 1 - 2**24
        values[i] = odd.astype(np.float32) * np.float32(2.0**-24)
    return values


def unit_normal(seed: int, matrix_key: int, rows: int, columns: int) -> Matrix:
    """Standard normal numbers, float32, shape (rows, columns), by Box and Muller from
    two words each.

    log and cos differ in the last bits of float64 between processors. Rounding to
    float32 hides nearly all of these differences; the fingerprint in the adapter file
    shows the rest."""
    uniform = unit_uniform(seed, matrix_key, rows, 2 * columns).astype(np.float64)
    # (u + 1) / 2 is in (0, 1): u is never -1
    radius = np.sqrt(-2 * np.log((uniform[:, 0::2] + 1) / 2))
    return (radius * np.cos(np.pi * uniform[:, 1::2])).astype(np.float32)


@dataclass(frozen=True)
class ProjectionSpec:
    """What A and B depend on.

    inputs and outputs are the widest over all matrices that share the pair; a narrower one uses the leading
    slice. init, by the paper's section 3.3 and table 6:
      kaiming_uniform  the paper's default: bound sqrt(6 / fan_in), PyTorch's fan_in mode with gain sqrt(2)
      kaiming_normal   standard deviation sqrt(2 / fan_in)
      uniform          on [0, 0.1]
      peft             kaiming_uniform as huggingface/peft draws it, from one torch generator, bit-equal for
                       the same key and shapes (for parity and interchange only: torch does not promise those
                       bits across versions)
    fan_in is `inputs` for A and `rank` for B. pair: the name of the pair; "" is the one that all share."""

    seed: int
    rank: int
    inputs: int
    outputs: int
    init: str = "kaiming_uniform"
    pair: str = ""

    def make(self) -> tuple[Matrix, Matrix]:
        """A (rank, inputs) and B (outputs, rank), float32. Raises ValueError for an
        unknown init."""
        if self.init not in INITS:
            raise ValueError(
                f"init must be one of {', '.join(INITS)}, got {self.init!r}"
            )
        if self.init == "peft":
            return self._draw_as_peft()
        matrix_a = self._draw(A, self.rank, self.inputs)
        matrix_b = self._draw(B, self.outputs, self.rank)
        return matrix_a, matrix_b

    def _draw(self, factor: int, rows: int, fan_in: int) -> Matrix:
        """One matrix of the pair, (rows, fan_in). factor: A or B."""
        pair_key = 0  # of the shared pair
        if self.pair:
            digest = hashlib.sha256(self.pair.encode()).digest()
            pair_key = int.from_bytes(digest[:8], "little") >> 1  # 63 bits
        matrix_key = 2 * pair_key + factor
        if self.init == "kaiming_normal":
            unit = unit_normal(self.seed, matrix_key, rows, fan_in)
            return unit * np.float32(math.sqrt(2 / fan_in))
        unit = unit_uniform(self.seed, matrix_key, rows, fan_in)
        if self.init == "uniform":
            return (unit + np.float32(1)) * np.float32(0.05)
        return unit * np.float32(math.sqrt(6 / fan_in))

    def _draw_as_peft(self) -> tuple[Matrix, Matrix]:
        """The pair that peft draws from the same seed."""
        import torch  # only here: the scheme above needs nothing but numpy

        generator = torch.Generator(device="cpu").manual_seed(self.seed)
        pair = []
        for rows, columns in ((self.rank, self.inputs), (self.outputs, self.rank)):
            # peft's own expression, for the same last bit
            bound = math.sqrt(3.0) * (math.sqrt(2.0) / math.sqrt(columns))
            matrix = torch.empty(rows, columns)
            matrix.uniform_(-bound, bound, generator=generator)
            pair.append(matrix.numpy())
        return pair[0], pair[1]

    @property
    def scheme(self) -> str:
        """The name, for the adapter file, of the way in which the bits are drawn."""
        return "peft" if self.init == "peft" else SCHEME


def fingerprint(*matrices: Matrix) -> str:
    """SHA-256 of the bytes of the matrices (A, then B; little-endian float32, row by
    row), 64 hex digits."""
    digest = hashlib.sha256()
    for matrix in matrices:
        digest.update(np.ascontiguousarray(matrix, dtype="<f4").data)
    return digest.hexdigest()
