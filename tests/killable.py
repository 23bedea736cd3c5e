"""Jobs of the command line in processes that can be killed at any instant, forked from one that has loaded everything.

Example:
    job = start_job("extract", "--out", "x.npy", "videos", cwd=tmp_path)
    job.kill()
"""

import multiprocessing
import os
import random
import resource
import signal
import sys
import time
from functools import cache
from multiprocessing.forkserver import ensure_running
from pathlib import Path

import pytest
import torch
from conftest import read_in_thread, tiny_net

import vid3d_cli.api
import vid3d_cli.cli
import vid3d_cli.clips.preprocess
import vid3d_cli.features.stores
import vid3d_cli.jobs.extraction
import vid3d_cli.models.clip_model
import vid3d_cli.models.weights
import vid3d_cli.run.feeds
import vid3d_cli.runtimes
import vid3d_cli.runtimes.torch

CHECKPOINT = "checkpoint.pt"
WRITING = ("pwrite", "fsync", "replace", "ftruncate", "unlink")


def start_job(*args, cwd, die_at=None, has_decoders=False, limits=None):
    """Start a job with a TinyNet.

    Args:
        *args: arguments of the command line.
        cwd: directory of the job; a checkpoint is made there, and messages go to stderr.txt.
        die_at: number of the writing call at which the job kills itself; half of the data may be written first.
        has_decoders: decode in processes as usual, which start slowly; else in threads.
        limits: limits of the operating system, by the names of `resource`.
    """
    (cwd / CHECKPOINT).write_bytes(b"stands in for a verified checkpoint")
    context = _get_context()
    process = context.Process(target=_run, args=([str(arg) for arg in args], cwd, die_at, has_decoders, limits or {}))
    process.start()
    return process


@cache
def _get_context():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "killable_warm"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent))  # before Python 3.13 it ignores our sys.path
        ensure_running()
    return context


def run_job(*args, **options):
    """Run a job to its end and return the exit code, negative for a signal."""
    job = start_job(*args, **options)
    job.join()
    return job.exitcode


def _run(args, cwd, die_at, has_decoders, limits):
    os.chdir(cwd)
    stderr = os.open("stderr.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(stderr, 1)
    os.dup2(stderr, 2)
    use_tiny_net(cwd / CHECKPOINT)
    if not has_decoders:
        decode_in_threads()
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, name), (limit, resource.getrlimit(getattr(resource, name))[1]))
    if die_at is not None:
        _die_at(die_at)
    sys.argv = ["vid3d", *args]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the tests run under nohup, cron or CI
    vid3d_cli.cli.main()


def decode_in_threads():
    """Make jobs decode in threads instead of processes."""
    vid3d_cli.run.feeds.open_clips = read_in_thread


def use_tiny_net(checkpoint):
    """Make every model a TinyNet, in this process."""
    torch.set_num_threads(1)  # forked processes must not use another one's OpenMP

    def create_model(name, *, stream, weights, variant=None):
        return tiny_net(name, stream)

    vid3d_cli.runtimes.has_openvino = lambda: False
    vid3d_cli.models.clip_model.create_model = create_model
    vid3d_cli.models.weights.pull = lambda file, **_: checkpoint


def _die_at(nth):
    """Make the nth call that changes a file kill the process: before it, after it, or with half of its data written."""
    calls = iter(range(1, 10**9))
    chance = random.Random(nth)

    def deadly(real, name):
        def call(*args, **kwargs):
            if next(calls) != nth:
                return real(*args, **kwargs)
            moment = chance.choice(["before", "half", "after"])
            if moment == "half" and name == "pwrite":
                real(args[0], bytes(args[1])[: len(args[1]) // 2], args[2])
            elif moment == "after":
                real(*args, **kwargs)
            os.kill(os.getpid(), signal.SIGKILL)
            raise AssertionError("still alive")

        return call

    for name in WRITING:
        setattr(os, name, deadly(getattr(os, name), name))


def wait_until(condition, job, seconds=60):
    """Wait for a condition; fail if the job ends first, or takes too long."""
    give_up = time.monotonic() + seconds
    while not condition():
        assert job.is_alive() and time.monotonic() < give_up, f"never came: exit code {job.exitcode}"
        time.sleep(0.002)
