"""What torch makes of this machine, and how each precision computes."""

import pytest
import torch

from gpu_check import DEVICE, GPU_ONLY
from runs.config import expand
from runs.machine import gpus
from runs.training.determinism import determinism, set_flags

pytestmark = [pytest.mark.parity, pytest.mark.slow]


@pytest.mark.parametrize("precision", ["fp32", "tf32", "bf16"])
def test_tf32_in_products_and_convolutions_is_on_in_tf32_alone_and_determinism_is_strict(
    precision, found
):
    words = [
        "model=roberta_base",
        "task=rte",
        "method=vera",
        "seed=0",
        f"train.precision={precision}",
    ]
    set_flags(expand(words)[0], torch.device(DEVICE))
    found(str(determinism(torch.device(DEVICE))))
    assert (
        torch.backends.cuda.matmul.allow_tf32
        == torch.backends.cudnn.allow_tf32
        == (precision == "tf32")
    )
    assert torch.get_deterministic_debug_mode() == 2


@GPU_ONLY
def test_torch_and_the_driver_see_the_same_cards(found):
    """By UUID; of slices (MIG) torch names the card that they are of."""
    driver = [uuid.lower() for uuid in gpus.visible_uuids()]
    seen = [
        torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())
    ]
    found(
        f"{len(seen)} of {', '.join(sorted({one.name for one in seen}))}; driver {gpus.driver_version()}"
    )
    same = [f"gpu-{one.uuid}".lower() for one in seen] == driver
    assert seen
    assert same or any(uuid.startswith("mig") for uuid in driver)
