"""Uploads: jobs done by several threads, with no more of them waiting than there is use for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait


def in_parallel(jobs: Iterable[Callable[[], None]], threads: int, *, stop: Callable[[], None]) -> None:
    """Do all jobs, in any order, and return when the last is done.

    Jobs are taken from the iterable as threads come free, with as many again ready to be started: a slow receiver slows
    the maker of the jobs and fills no memory.

    Args:
        jobs: what to do.
        threads: how many at a time; 1 does them here.
        stop: called when a job has failed or the caller is interrupted, to make those that run end soon.

    Raises:
        BaseException: the first error of a job; those not begun are dropped, those running have ended.
    """
    if threads == 1:
        for job in jobs:
            job()
        return
    pending: set[Future[None]] = set()
    with ThreadPoolExecutor(threads, thread_name_prefix="diffretriever-upload") as pool:
        try:
            for job in jobs:
                while len(pending) >= 2 * threads:
                    pending = _settle(pending)
                pending.add(pool.submit(job))
            while pending:
                pending = _settle(pending)
        except BaseException:
            stop()
            pool.shutdown(cancel_futures=True)
            raise


def _settle(pending: set[Future[None]]) -> set[Future[None]]:
    done, left = wait(pending, return_when=FIRST_COMPLETED)
    for future in done:
        future.result()
    return left
