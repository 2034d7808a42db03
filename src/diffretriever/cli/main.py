"""The command `diffretriever`.

Exit codes: 0 done; 1 an error this package explains, or bad lines that were reported; 2 the command was not
understood; 130 stopped by Ctrl-C. Results go to standard output, everything else to standard error.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer
from typer.core import TyperGroup

from diffretriever.cli.console import message, result
from diffretriever.errors import DiffRetrieverError

FAILED = 1
INTERRUPTED = 130


class GuardedGroup(TyperGroup):
    """The commands, with errors that are ours shown as one message and not as a traceback."""

    def invoke(self, ctx: typer.Context) -> object:  # type: ignore[override]
        """Run the command asked for."""
        try:
            return super().invoke(ctx)
        except DiffRetrieverError as error:
            message(f"error: {error}")
            raise typer.Exit(FAILED) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            message(f"error: {error}")
            raise typer.Exit(FAILED) from error
        except KeyboardInterrupt:
            message("stopped")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=GuardedGroup,
    name="diffretriever",
    help="Search with diffusion language models: dense, multi-vector and sparse retrieval from one forward pass.",
    epilog="Exit codes: 0 done; 1 error, or bad lines reported; 2 wrong usage; 130 stopped by Ctrl-C.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(asked: bool) -> None:
    if asked:
        from diffretriever.version import __version__

        result(f"diffretriever {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and stop.")
    ] = False,
) -> None:
    """Take the options that stand before a command."""


def _register() -> None:
    from diffretriever.cli import (
        adapting,
        benchmarking,
        checking,
        comparing,
        demo,
        encoding,
        evaluating,
        explaining,
        indexing,
        mining,
        recalling,
        reporting,
        searching,
        sweeping,
        timing,
        training,
        transferring,
    )

    app.command("index")(indexing.index)
    app.command("search")(searching.search)
    app.command("explain")(explaining.explain)
    app.command("add")(indexing.add)
    app.command("delete")(indexing.delete)
    app.command("info")(indexing.info)
    app.command("check")(checking.check)
    app.command("recall")(recalling.recall)
    app.command("copy")(transferring.copy)
    app.command("push")(transferring.push)
    app.command("pull")(transferring.pull)
    app.command("encode")(encoding.encode)
    app.command("evaluate")(evaluating.evaluate)
    app.command("compare")(comparing.compare)
    app.command("tune")(comparing.tune)
    app.command("adapt")(adapting.adapt)
    app.command("mine")(mining.mine)
    app.command("demo")(demo.demo)
    app.command("bench")(benchmarking.bench)
    app.command("latency")(timing.latency)
    app.command("sweep")(sweeping.sweep)
    app.command("report")(reporting.report)
    app.command("train")(training.train)


_register()


def main() -> None:
    """Run the command line; the entry point of the console script."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
