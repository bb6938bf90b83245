"""Memory that runs out, told in words: what was being done, and which settings help."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from minionerec.errors import TrainingError

# What a failed allocation says: torch's allocators for CPUs and GPUs, CUDA's own, cuBLAS and cuDNN, the C++ library.
_SIGNS = ("out of memory", "allocate memory", "_alloc_failed", "bad_alloc")


@contextmanager
def enough_memory(doing: Callable[[], tuple[str, str]]) -> Iterator[None]:
    """Turn an allocation that fails inside into an error that helps; one that was turned further inside passes.

    Args:
        doing: asked when it happens: where it was, such as `at step 3`, and what to do about it, in whole sentences.

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
