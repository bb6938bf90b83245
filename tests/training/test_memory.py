import numpy as np
import pytest
import torch

from minionerec.errors import TrainingError
from minionerec.training.memory import enough_memory


def real(_):
    return torch.empty(1 << 55)


def numpys(_):
    return np.empty(1 << 55)


def told(message, kind=RuntimeError):
    def fail(_):
        raise kind(message)

    return fail


@pytest.mark.parametrize(
    "allocate",
    [
        real,
        numpys,
        told("", MemoryError),
        told("CUDA out of memory. Tried to allocate 2.00 GiB.", torch.OutOfMemoryError),
        told("CUDA error: out of memory"),
        told("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        told("std::bad_alloc"),
    ],
)
def test_a_failed_allocation_says_where_and_what_to_do(allocate):
    with (
        pytest.raises(TrainingError, match=r"^Out of memory at step 3 \(.+\)\. Buy some\.$"),
        enough_memory(lambda: ("outside", "Nothing.")),
        enough_memory(lambda: ("at step 3", "Buy some.")),  # the innermost speaks
    ):
        allocate(None)


@pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("out of memory"), KeyboardInterrupt()])
def test_other_errors_pass(error):
    with pytest.raises(type(error)), enough_memory(lambda: ("", "")):
        raise error
