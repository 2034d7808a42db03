"""Progress: a bar with an estimate on a terminal, silence elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], None]


@contextmanager
def progress_bar(description: str, total: int | None, *, enabled: bool = True) -> Iterator[Advance]:
    """Show a progress bar on standard error and give a function that advances it by so many items.

    Nothing is shown when `enabled` is false or standard error is no terminal, so logs stay clean.

    Args:
        description: words before the bar.
        total: number of items, or None when it is not known.
        enabled: whether to show anything at all.

    Example:
        >>> with progress_bar("encoding", total=3, enabled=False) as advance:
        ...     for _ in range(3):
        ...         advance(1)
    """
    if not enabled:
        yield _nothing
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(description, total=total)
        yield lambda count: bar.advance(task, count)


def _nothing(count: int) -> None:
    """Take the place of a bar that is not shown."""
