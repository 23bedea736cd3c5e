"""The engines that run a plan: this machine, or a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..errors import UsageError
from ..suggest import check_known
from . import local

Run = Callable[..., local.Results]
"""Has the signature of `local.run`."""

ENGINES = ("local", "ray")


def check_engine(name: str) -> None:
    """Raise UsageError for an unknown engine."""
    check_known(name, ENGINES, f"unknown engine '{name}'")


@contextmanager
def open_engine(name: str, ray_address: str | None = None) -> Iterator[Run]:
    """Yield the function that runs a plan over videos: `local.run`, or `run` of a Ray cluster.

    Args:
        name: one of `ENGINES`.
        ray_address: address of the cluster; see `ray.Cluster`.

    Raises:
        UsageError: an unknown name, an address without a cluster, or Ray is not installed.
    """
    check_engine(name)
    if name == "local":
        if ray_address is not None:
            raise UsageError("--ray-address needs --engine ray")
        yield local.run
        return
    from .ray import Cluster

    with Cluster(ray_address) as cluster:
        yield cluster.run
