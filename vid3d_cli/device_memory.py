"""Memory of GPUs: errors that mean that it ran out, and copies of answers to the host."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

_MESSAGES = (
    "out of memory",  # CUDA, HIP and MPS allocators; cudaMalloc, cudaHostAlloc and kernel launches: "CUDA error: …"
    "can't allocate memory",  # torch's CPU allocator
    "MemoryError: ",  # of another error, in the words of torch's compilers
    "ALLOC_FAILED",  # CUBLAS_STATUS_, CUDNN_STATUS_
    "ALLOCATION_FAILED",  # CUDNN_STATUS_INTERNAL_ERROR_DEVICE_, …_HOST_
    # No memory left for the workspace of any algorithm, or for the library's handle.
    "unable to find an engine",
    "Unable to find a valid cuDNN algorithm",
    "CUDNN_STATUS_NOT_SUPPORTED",
    "CUDNN_STATUS_NOT_INITIALIZED",
    "CUBLAS_STATUS_NOT_INITIALIZED",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether less work at a time may avoid an error that torch or NumPy raised.

    cuDNN and cuBLAS do not always say that memory is short. If a retry with half the work fails down to a single item,
    the cause may be another: show the error's text.

    >>> is_out_of_memory(RuntimeError("GET was unable to find an engine to execute this computation"))
    True
    >>> is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    False
    """
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(message in str(error) for message in _MESSAGES)


def page_locked(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return an uninitialised host tensor in page-locked memory, or in ordinary memory if none can be locked."""
    try:
        return torch.empty(shape, dtype=dtype, pin_memory=True)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return torch.empty(shape, dtype=dtype)


def download(tensors: Sequence[Tensor]) -> Callable[[], list[NDArray[Any]]]:
    """Start copies to the host behind the work of a GPU's current stream; return a function that waits for them.

    The arrays lie in page-locked memory: copy what is kept.
    """
    host = [page_locked(tensor.shape, tensor.dtype).copy_(tensor.contiguous(), non_blocking=True) for tensor in tensors]
    done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # sleeps, and leaves the core to a reader
    done.record(torch.cuda.current_stream(tensors[0].device))

    def wait() -> list[NDArray[Any]]:
        done.synchronize()
        return [tensor.numpy() for tensor in host]

    return wait
