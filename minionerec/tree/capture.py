"""Functions on fixed tensors that are recorded once and run again: as CUDA graphs, or, without a GPU, by calling them again.

A kernel launch costs a GPU's host some microseconds, and a beam search is thousands of small kernels: for one prompt the GPU
waits most of the time. A CUDA graph launches them all at once. It reads and writes the addresses that it was recorded with.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import torch

Outputs = tuple[torch.Tensor, ...]
_WARM_UPS = 2  # libraries choose and load their kernels in the first call, which cannot be recorded; the second proves it


class Recording(NamedTuple):
    """A recorded function.

    Attributes:
        replay: runs it again on what its inputs now hold.
        outputs: what it returned; each replay, of any recording of the same recorder, writes over them.
    """

    replay: Callable[[], None]
    outputs: Outputs


class Recorder(Protocol):
    """Records functions. Its recordings share memory, so one at a time is replayed, and its outputs copied at once."""

    def record(self, function: Callable[[], Outputs]) -> Recording:
        """Record a function without arguments that reads and writes the same tensors in every call.

        Raises:
            RuntimeError: the function does something that cannot be recorded.
        """

    def begin(self) -> None:
        """Wait, on the device, until what the last `end` follows is done: before inputs are written for a replay."""

    def end(self) -> None:
        """The outputs of a replay are copied."""


class CudaRecorder:
    """Recordings are CUDA graphs of one device, with one pool of memory for all of them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._pool, self._stream, self._copied = torch.cuda.graph_pool_handle(), torch.cuda.Stream(), torch.cuda.Event()

    def record(self, function: Callable[[], Outputs]) -> Recording:
        """Warm up on a side stream, and capture there. `Recorder` has the rest."""
        with torch.cuda.device(self._device):
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                for _ in range(_WARM_UPS):
                    function()
            torch.cuda.current_stream().wait_stream(self._stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads of a service may use the GPU meanwhile: what they do is not this capture's business.
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
                outputs = function()
        return Recording(graph.replay, outputs)

    def begin(self) -> None:
        """Wait on the current stream, which may be another one than the last replay's."""
        torch.cuda.current_stream(self._device).wait_event(self._copied)

    def end(self) -> None:
        """Mark the copies on the current stream."""
        self._copied.record(torch.cuda.current_stream(self._device))


class CallRecorder:
    """A recording calls the function again and writes the results over the first ones: what a graph does, without a GPU.

    For tests and for runs of the GPU benchmarks on a CPU. It refuses results of another shape, which a graph cannot have.
    """

    def record(self, function: Callable[[], Outputs]) -> Recording:
        """Call the function once, and again at each replay."""
        outputs = function()

        def replay() -> None:
            for output, again in zip(outputs, function(), strict=True):
                if output.shape != again.shape or output.dtype != again.dtype:
                    raise RuntimeError(f"A replay gave {again.dtype} of shape {tuple(again.shape)}, not {tuple(output.shape)}.")
                output.copy_(again)

        return Recording(replay, outputs)

    def begin(self) -> None:
        """Nothing runs beside the host."""

    def end(self) -> None:
        """Nothing runs beside the host."""
