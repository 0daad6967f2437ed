"""One thread for small matrices."""

from __future__ import annotations

from contextlib import AbstractContextManager

from threadpoolctl import threadpool_limits

__all__ = ["one_thread"]


def one_thread() -> AbstractContextManager[object]:
    """BLAS on one thread: on matrices this small more of them only wait for each other, ten times longer when the
    machine is busy; and sums come out the same on every number of cores.
    """
    limits: AbstractContextManager[object] = threadpool_limits(limits=1, user_api="blas")
    return limits
