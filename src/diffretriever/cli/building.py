"""Building: what an unfinished index, or folder of encodings, is made of, so that the same command can go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from diffretriever.errors import IndexFormatError, InputError

if TYPE_CHECKING:
    from diffretriever.encoder import Encoder
    from diffretriever.idf import Idf
    from diffretriever.index import Index, Storage
    from diffretriever.index.manifest import Backend
    from diffretriever.representations import Representations

BUILD_NOTE = "build.json"


@dataclass(frozen=True)
class Build:
    """What an index, or a folder of encodings, is made of, kept beside it.

    Attributes:
        source: the input as it was named.
        options: everything that decides what it will hold, in words.
        finished: whether all of the input is in it.
    """

    source: str
    options: Mapping[str, str]
    finished: bool = False

    @staticmethod
    def of(source: str, encoder: Encoder, **options: object) -> Build:
        """Return the build of an input with these options."""
        made = {name: str(value) for name, value in asdict(encoder.provenance).items()}
        chosen = {name.replace("_", " "): str(value) for name, value in options.items()}
        return Build(source, {**made, **chosen})

    @staticmethod
    def read(folder: Path) -> Build | None:
        """Return what a folder says of its build; None when it says nothing.

        Raises:
            IndexFormatError: it cannot be read.
        """
        path = folder / BUILD_NOTE
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
            return Build(about["source"], dict(about["options"]), bool(about["finished"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
            raise IndexFormatError(f"{path} cannot be read ({error}); begin anew with --overwrite") from error

    def write(self, folder: Path) -> None:
        """Keep it beside the index."""
        from diffretriever.index.manifest import replace_file

        replace_file(folder / BUILD_NOTE, json.dumps(asdict(self), indent=1) + "\n")

    def differences(self, other: Build) -> list[str]:
        """Return what differs, one line each."""
        mine, others = ({"input": b.source, **b.options} for b in (self, other))
        return [
            f"{name}: {mine.get(name, '-')} against {others.get(name, '-')}"
            for name in dict.fromkeys([*mine, *others])
            if mine.get(name) != others.get(name)
        ]


def refuse_finished(folder: Path) -> None:
    """Raise, before a model is loaded, if the folder holds anything but an index that was never finished.

    Raises:
        InputError: it does.
    """
    from diffretriever.index.cluster.location import is_cluster
    from diffretriever.index.folder.folder import strangers
    from diffretriever.index.manifest import MANIFEST_FILE

    is_cluster(folder)  # refuses an address, which would become a strange folder
    if folder.is_dir() and (folder / MANIFEST_FILE).is_file():
        build = Build.read(folder)
        taken = build is not None and build.finished
    else:
        taken = folder.is_file() or (folder.is_dir() and bool(strangers(folder)))
    if taken:
        raise _taken(folder)


def begin(
    folder: Path,
    build: Build,
    encoder: Encoder,
    backend: Backend,
    storage: Storage,
    idf: Idf,
    *,
    sample: Callable[[], Representations],
    overwrite: bool,
    durable: bool,
) -> Index:
    """Return the index to be filled: a new one, or the one that the same command began.

    Args:
        folder: its folder.
        build: what it is made of.
        encoder: what encodes its passages.
        backend: its engine.
        storage: in what form it keeps vectors.
        idf: see `Index.create`.
        sample: gives representations of some of the passages; called when the storage needs them.
        overwrite: replace an index that is there.
        durable: see `Index.open`.

    Raises:
        InputError: there is one that was begun otherwise, or is finished.
    """
    from diffretriever.index import Index
    from diffretriever.index.manifest import MANIFEST_FILE

    if overwrite or not (folder / MANIFEST_FILE).is_file():
        storage.check(encoder.dim, backend)
        new = Index.create(
            folder,
            encoder,
            backend=backend,
            storage=storage,
            sample=None if storage.pca is None else sample(),
            overwrite=overwrite,
            durable=durable,
            idf=idf,
        )
        build.write(folder)
        return new
    begun = Build.read(folder)
    if begun is not None and (different := begun.differences(build)):
        raise InputError(
            f"{folder} holds an index that was begun with other options (then against now): {'; '.join(different)}. "
            "Repeat the command with those options, or begin anew with --overwrite"
        )
    old = Index.open(folder, encoder, durable=durable)
    # An index was created and the process ended before the note was written.
    unmarked = begun is None and (len(old) > 0 or (old.manifest.backend, old.manifest.storage) != (backend, storage))
    if unmarked or (begun is not None and begun.finished):
        old.close()
        raise _taken(folder)
    build.write(folder)
    return old


def finish(folder: Path, build: Build) -> None:
    """Mark what was built as finished."""
    Build(build.source, build.options, finished=True).write(folder)


def _taken(folder: Path) -> InputError:
    return InputError(
        f"{folder} exists already; choose another folder, add to it (diffretriever add), or replace it with --overwrite"
    )
