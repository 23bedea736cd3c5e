"""Disks for tests: one that does not wait, and one that is full."""

import contextlib
import os

import pytest


@pytest.fixture(autouse=True)
def _fast_disk(monkeypatch):
    """Nothing here loses power: waiting for the disk would take most of the time."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@contextlib.contextmanager
def file_size_limit(num_bytes):
    """The operating system refuses to make any file longer, as a full disk does."""
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
