"""An error for memory that runs out: it says at which point, and which settings help."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from minionerec.errors import TrainingError

# In the messages of failed allocations, by torch's allocators for CPUs and GPUs, CUDA, cuBLAS and cuDNN, and the C++ library.
_SIGNS = ("out of memory", "allocate memory", "_alloc_failed", "bad_alloc")


@contextmanager
def enough_memory(doing: Callable[[], tuple[str, str]]) -> Iterator[None]:
    """Turn an allocation that fails inside into an error that helps. If blocks are nested, the innermost one speaks.

    Args:
        doing: called when memory runs out; returns at which point that was, such as `at step 3`, and what to do, in whole
            sentences.

    Raises:
        TrainingError: the memory does not suffice.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:  # on a GPU torch.OutOfMemoryError, on a CPU nothing more specific
        if not isinstance(error, MemoryError) and not any(sign in str(error).lower() for sign in _SIGNS):
            raise
        where, advice = doing()
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TrainingError(f"Out of memory {where} ({reason}). {advice}") from error
