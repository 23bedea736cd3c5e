"""Copies to and from a GPU whose streams run as late, or as early, as allowed."""

import weakref

import numpy as np
import pytest
import torch
from late_gpu import LateGpu

from vid3d_cli.device_memory import page_locked
from vid3d_cli.runtimes.transfer import CudaTransfer, Transfer


def make_clip(value):
    """A clip in memory that is overwritten as soon as the last view of it is gone."""
    memory = np.full((2, 3), value, np.float32)
    view = memory[:]
    weakref.finalize(view, memory.fill, -1)
    return view


@pytest.mark.parametrize("are_copies_early", [False, True])
def test_no_memory_is_read_before_or_used_again_after_its_time(monkeypatch, are_copies_early):
    gpu = LateGpu(monkeypatch, are_copies_early)
    transfer = CudaTransfer(torch.device("cpu"))
    waiting, answers = [], []
    for i in range(7):
        num_done = gpu.networks.num_done
        uploaded = transfer.upload(transfer.stack([make_clip(2 * i), make_clip(2 * i + 1)]))
        doubled = uploaded * 2
        del uploaded
        waiting.append(transfer.download([doubled + 1, doubled]))
        del doubled
        assert gpu.networks.num_done == num_done, "the host waits for the networks"
        if len(waiting) > CudaTransfer.num_in_flight:
            answers.append(waiting.pop(0)())
    answers += [wait() for wait in waiting]
    for i, (odd, even) in enumerate(answers):
        np.testing.assert_array_equal(even, np.array([4 * i, 4 * i + 2])[:, None, None] + np.zeros((2, 3)))
        np.testing.assert_array_equal(odd, even + 1)
        assert odd.flags.owndata and even.flags.owndata, "answers hold page-locked memory"
    assert sum(map(len, gpu.free.values())) < 7 * 5, "no memory was used again"


@pytest.mark.parametrize(("device", "is_view"), [("cpu", True), ("mps", False)])
def test_only_a_cpu_reads_a_clip_where_it_is(device, is_view):
    """A GPU's batch is kept until its answer is there, and a clip must not be."""
    clip = make_clip(3)
    assert np.shares_memory(Transfer(torch.device(device)).stack([clip]).numpy(), clip) == is_view


def test_memory_that_cannot_be_locked_is_ordinary_memory(monkeypatch):
    empty = torch.empty

    def create_empty(*args, pin_memory=False, **options):
        if pin_memory:
            raise RuntimeError(error)
        return empty(*args, **options)

    monkeypatch.setattr(torch, "empty", create_empty)
    error = "CUDA error: out of memory"
    assert page_locked((2, 3), torch.uint8).shape == (2, 3)
    error = "Found no NVIDIA driver on your system"
    with pytest.raises(RuntimeError, match="no NVIDIA driver"):
        page_locked((2, 3), torch.uint8)
