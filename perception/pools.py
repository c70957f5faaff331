"""Chooses where work is done: in processes of this machine, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable

from perception.workers import Pool, State, Workers


def open_pool(
    opened: Callable[[], State],
    jobs: int,
    ray: str | None = None,
    ahead: int = 1,
    died: Callable[[str], None] = lambda item: None,
) -> Pool[State]:
    """Workers: so many processes of this machine, or those of a Ray cluster.

    Args:
        ray: address of the cluster; None: none.
        opened, ahead, died: as in `Workers`.
    """
    if ray is None:
        return Workers(opened, jobs, ahead, died)
    from perception.ray_workers import RayWorkers

    return RayWorkers(opened, ray, died)
