"""Errors that a smaller batch may avoid, in the words of torch, CUDA, cuDNN, cuBLAS and Metal."""

import numpy as np
import pytest
import torch

from vid3d_cli.device_memory import is_out_of_memory


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of"),
        torch.cuda.OutOfMemoryError("HIP out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
        RuntimeError("MPS backend out of memory (MPS allocated: 17.5 GB, other allocations: 1 GB, max allowed: 18 GB)"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if the input is not contiguous"),
        RuntimeError("FIND was unable to find an engine to execute this computation"),
        RuntimeError("Unable to find a valid cuDNN algorithm to run convolution"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`"),
        MemoryError(),
    ],
)
def test_a_smaller_batch_may_help(error):
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered"),
        RuntimeError("CUDA error: no kernel image is available for execution on the device"),
        RuntimeError("CUDA error: device-side assert triggered"),
        ValueError("out of memory"),
        KeyboardInterrupt("out of memory"),
    ],
)
def test_a_smaller_batch_does_not_help(error):
    assert not is_out_of_memory(error)


@pytest.mark.parametrize("allocate", [lambda n: torch.empty(n), lambda n: np.empty(n)])
def test_what_the_libraries_raise_when_memory_is_short(allocate):
    with pytest.raises((RuntimeError, MemoryError)) as error:
        allocate(2**56)  # more than the address space
    assert is_out_of_memory(error.value)
