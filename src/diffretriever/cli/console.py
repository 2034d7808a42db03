"""Console: results go to standard output, everything said about the work to standard error."""

from __future__ import annotations

import typer
from rich.console import Console, RenderableType


def message(text: str) -> None:
    """Say something about the work, on standard error."""
    typer.echo(text, err=True)


def result(text: str) -> None:
    """Give a result, on standard output."""
    typer.echo(text)


def show(*renderables: RenderableType) -> None:
    """Give a result that is laid out for people, on standard output."""
    console = Console()
    for renderable in renderables:
        console.print(renderable)


def size_text(count: float) -> str:
    """Return a number of bytes in a readable unit."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" or count >= 10 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def time_text(seconds: float) -> str:
    """Return a duration in a readable unit."""
    if seconds < 90:
        return f"{seconds:.0f} s" if seconds >= 1 else "1 s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
