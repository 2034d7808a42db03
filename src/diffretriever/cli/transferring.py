"""Commands that copy an index to another place without encoding anything: copy, push, pull."""

from __future__ import annotations

import time
from typing import Annotated

import typer

from diffretriever.cli.console import message, time_text
from diffretriever.cli.indexing import Backend

Source = Annotated[str, typer.Argument(metavar="SOURCE", help="Folder or address of the index to copy.")]
Target = Annotated[str, typer.Argument(metavar="TARGET", help="Folder or address of the copy; made if need be.")]
Address = Annotated[str, typer.Argument(metavar="SERVER", help="Address, such as qdrant://host:6333/name.")]
Folder = Annotated[str, typer.Argument(metavar="DIR", help="Folder of the index.")]
Delete = Annotated[bool, typer.Option("--delete", help="Remove from the target what the source does not hold.")]
NewBackend = Annotated[
    Backend | None,
    typer.Option("--backend", help="Engine of a new folder: edge (default) or exact.", show_default=False),
]
Shards = Annotated[
    int | None,
    typer.Option(
        min=1, help="Parts that a new collection is spread over; by default as the server decides.", show_default=False
    ),
]
Replicas = Annotated[
    int | None,
    typer.Option(min=1, help="Copies of each part; a write waits for most of them.", show_default=False),
]


def copy(
    source: Source,
    target: Target,
    backend: NewBackend = None,
    shards: Shards = None,
    replicas: Replicas = None,
    delete: Delete = False,
) -> None:
    """Copy an index between folders and servers; the same command goes on after an interruption."""
    _copy(source, target, backend=backend, shards=shards, replicas=replicas, delete=delete)


def push(
    folder: Folder,
    server: Address,
    shards: Shards = None,
    replicas: Replicas = None,
    delete: Delete = False,
) -> None:
    """Copy an index from a folder to a server; the same command goes on after an interruption."""
    _check_sides(folder, server)
    _copy(folder, server, shards=shards, replicas=replicas, delete=delete)


def pull(server: Address, folder: Folder, backend: NewBackend = None, delete: Delete = False) -> None:
    """Copy an index from a server to a folder; the same command goes on after an interruption."""
    _check_sides(folder, server)
    _copy(server, folder, backend=backend, delete=delete)


def _copy(
    source: str,
    target: str,
    *,
    backend: Backend | None = None,
    shards: int | None = None,
    replicas: int | None = None,
    delete: bool = False,
) -> None:
    from diffretriever.index.cluster.location import ClusterLocation, is_cluster
    from diffretriever.index.transfer import copy_index

    # Before anything is shown: an address that is refused may hold a key.
    for place in filter(is_cluster, (source, target)):
        ClusterLocation.parse(place)
    message(f"copying {source} to {target}")
    started = time.monotonic()
    try:
        done = copy_index(
            source,
            target,
            backend=None if backend is None else backend.value,
            shards=shards,
            replicas=replicas,
            delete=delete,
            progress=True,
        )
    except KeyboardInterrupt:
        message("stopped: what was copied stays; the same command goes on")
        raise typer.Exit(130) from None
    removed = f", {done.removed:,} removed" if done.removed else ""
    took = time_text(time.monotonic() - started)
    mended = f", {done.mended:,} of these were damaged and written anew" if done.mended else ""
    message(f"{done.written:,} passages copied, {done.unchanged:,} were there already{mended}{removed}, in {took}")
    if done.source != done.target:
        message(f"error: the copy differs: source {done.source}, target {done.target}; repeat the command")
    if done.extra:
        message(
            f"error: {target} also holds {done.extra:,} passages that {source} does not; "
            "repeat the command with --delete to remove them"
        )
    if not done.complete:
        raise typer.Exit(1)
    message(f"both hold {done.source.passages:,} passages, checksum {done.source}")


def _check_sides(folder: str, server: str) -> None:
    from diffretriever.errors import InputError
    from diffretriever.index.cluster.location import ClusterLocation, is_cluster

    if is_cluster(folder):
        raise InputError(
            f"{ClusterLocation.parse(folder)} is the address of a server where a folder is wanted; between servers, "
            "use diffretriever copy"
        )
    if not is_cluster(server):
        raise InputError(
            f"{server} is not the address of a server, such as qdrant://host:6333/name; between folders, use "
            "diffretriever copy"
        )
