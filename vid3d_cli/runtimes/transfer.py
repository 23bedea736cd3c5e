"""Clips to where a network runs, and its answers back; with a GPU, beside the work on the batch before.

host      stack | stack |       | answers 1       | answers 2
copies           clips 1 | clips 2 |
network                  | batch 1     | batch 2     |
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Arrays = list[NDArray[Any]]


class Transfer:
    """Copies in step with the network, which then is as good as done when it has been called.

    Args:
        device: where the network runs; the CPU itself, or a device without streams of copies.
    """

    num_in_flight = 1
    """Batches that are worth having in work at a time; see `base.Runtime`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def stack(self, clips: Sequence[NDArray[Any]]) -> Tensor:
        """N arrays of one shape and type → one tensor (N, …) of that type, in memory that `upload` likes."""
        return torch.from_numpy(np.stack(clips))

    def upload(self, batch: Tensor) -> Tensor:
        """The same on the device, for work that is started from now on."""
        return batch.to(self._device)

    def download(self, tensors: Sequence[Tensor]) -> Callable[[], Arrays]:
        """Returns what waits for tensors of the device, and gives them as arrays that own their memory."""
        return lambda: [tensor.cpu().numpy() for tensor in tensors]

    def drain(self) -> None:
        """Wait for all that was started, and give back the memory that it used; needed before a smaller attempt."""


class CudaTransfer(Transfer):
    """Copies of a CUDA GPU: clips on a stream of their own, answers behind the work; the host waits for none.

    Page-locked memory is what `non_blocking` needs. PyTorch keeps what was used and gives it out again, once the copies
    that it was used for are over, so a buffer may be let go of while it is still being read.

    Args:
        device: of type "cuda".

    Source: PyTorch, "CUDA semantics"; `at::cuda::CachingHostAllocator`.
    """

    num_in_flight = 2  # one that is being computed, and one that lies ready behind it

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def stack(self, clips: Sequence[NDArray[Any]]) -> Tensor:
        dtype = torch.from_numpy(np.empty(0, clips[0].dtype)).dtype
        batch = torch.empty((len(clips), *clips[0].shape), dtype=dtype, pin_memory=True)
        np.stack(clips, out=batch.numpy())  # no copy in between: a call of `pin_memory` would be one
        return batch

    def upload(self, batch: Tensor) -> Tensor:
        network = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._copies):
            uploaded = batch.to(self._device, non_blocking=True)
        network.wait_stream(self._copies)
        uploaded.record_stream(network)  # else the next clips might be copied over it before it was used
        return uploaded

    def download(self, tensors: Sequence[Tensor]) -> Callable[[], Arrays]:
        downloaded = [
            torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor.contiguous(), non_blocking=True)
            for tensor in tensors
        ]
        # Whoever waits sleeps: the core is a reader's.
        done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        done.record(torch.cuda.current_stream(self._device))

        def wait() -> Arrays:
            done.synchronize()
            return [tensor.numpy().copy() for tensor in downloaded]  # page-locked memory is not for keeping

        return wait

    def drain(self) -> None:
        torch.cuda.synchronize(self._device)
        torch.cuda.empty_cache()


def create_transfer(device: torch.device) -> Transfer:
    """The way to a device and back that suits it."""
    return CudaTransfer(device) if device.type == "cuda" else Transfer(device)
