"""Copies between host and device. With a GPU, copies of one batch overlap the network's work on the batch before.

    host      stack | stack |       | answers 1       | answers 2
    copies           clips 1 | clips 2 |
    network                  | batch 1     | batch 2     |

`CudaTransfer` does this; `Transfer` copies synchronously.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..device_memory import download, page_locked

Arrays = list[NDArray[Any]]


class Transfer:
    """Synchronous copies, for the CPU and MPS.

    Args:
        device: where the network runs.
    """

    num_in_flight = 1
    """See `base.Runtime`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def stack(self, clips: Sequence[NDArray[Any]]) -> Tensor:
        """Stack N arrays of one shape and type into one host tensor (N, …) of that type; on a CPU, one as a view."""
        is_view = len(clips) == 1 and self._device.type == "cpu"
        # torch takes no array that is read-only or has negative strides.
        return torch.from_numpy(np.require(clips[0], None, ["C", "W"])[np.newaxis] if is_view else np.stack(clips))

    def upload(self, batch: Tensor) -> Tensor:
        """Return a stacked batch on the device, for work that is started from now on."""
        return batch.to(self._device)

    def download(self, tensors: Sequence[Tensor]) -> Callable[[], Arrays]:
        """Return a function that waits for device tensors and returns them as arrays that own their memory."""
        return lambda: [tensor.cpu().numpy() for tensor in tensors]

    def drain(self) -> None:
        """Wait for all started work and free its memory, before a retry with a smaller batch."""


class CudaTransfer(Transfer):
    """Asynchronous copies for a CUDA GPU: clips on a stream of their own, answers behind the network's work.

    Asynchronous copies need page-locked memory. PyTorch reuses a page-locked buffer only when the copies from it are
    over, so a buffer may be dropped while it is still being read. If no memory can be locked, copies wait.

    Args:
        device: of type "cuda".

    Source: PyTorch, "CUDA semantics"; `at::cuda::CachingHostAllocator`.
    """

    num_in_flight = 2  # one batch runs, the next is ready

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def stack(self, clips: Sequence[NDArray[Any]]) -> Tensor:
        dtype = torch.from_numpy(np.empty(0, clips[0].dtype)).dtype
        batch = page_locked((len(clips), *clips[0].shape), dtype)
        np.stack(clips, out=batch.numpy())  # straight into page-locked memory: `pin_memory()` would copy again
        return batch

    def upload(self, batch: Tensor) -> Tensor:
        network = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._copies):
            uploaded = batch.to(self._device, non_blocking=True)
        network.wait_stream(self._copies)
        uploaded.record_stream(network)  # keeps the memory from being reused before the network has read it
        return uploaded

    def download(self, tensors: Sequence[Tensor]) -> Callable[[], Arrays]:
        wait = download(tensors)
        return lambda: [array.copy() for array in wait()]  # results must not hold page-locked memory

    def drain(self) -> None:
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()
