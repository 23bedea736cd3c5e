"""Tells whether an error means that a device, or the host, ran out of memory. Imports no torch."""

from __future__ import annotations

_MESSAGES = (
    "out of memory",  # CUDA, HIP and MPS allocators; cudaMalloc, cudaHostAlloc and kernel launches: "CUDA error: …"
    "can't allocate memory",  # torch's CPU allocator
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
