"""Collections of the package `ir_datasets`, by their ids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from diffretriever.corpus import Passage, Query
from diffretriever.errors import CorpusError, DiffRetrieverError, MissingExtraError
from diffretriever.evaluation.qrels import Qrel

PREFIX = "ir_datasets:"

T = TypeVar("T")


@dataclass(frozen=True)
class DatasetPassages:
    """The passages of a dataset, read anew at every iteration."""

    name: str
    documents: Callable[[], Iterable[Any]]

    def __iter__(self) -> Iterator[Passage]:
        """Yield the passages.

        Raises:
            CorpusError: the dataset cannot be fetched or read.
        """
        documents = iter(_explained(self.name, self.documents))
        while (document := _explained(self.name, lambda: next(documents, None))) is not None:
            yield _passage(document)


@dataclass(frozen=True)
class Dataset:
    """What `ir_datasets` has under an id."""

    passages: DatasetPassages
    queries: list[Query]
    qrels: list[Qrel]


def read_dataset(name: str, *, judged: bool = True, asked: bool = True) -> Dataset:
    """Return the dataset of an id, fetching what is not there yet.

    Args:
        name: id, such as "beir/scifact/test".
        judged: whether its judgements are needed.
        asked: whether its queries are needed.

    Raises:
        MissingExtraError: `ir_datasets` is not installed.
        CorpusError: there is no such dataset, a part is missing, or it cannot be fetched; says what ir_datasets said.
    """
    try:
        import ir_datasets
    except ImportError as error:
        raise MissingExtraError("ir-datasets", "eval", f"reading {PREFIX}{name}") from error
    dataset = _explained(name, lambda: ir_datasets.load(name))
    wanted = [("docs", True), ("queries", asked), ("qrels", judged)]
    if missing := [part for part, needed in wanted if needed and not getattr(dataset, f"has_{part}")()]:
        raise CorpusError(f"{PREFIX}{name} has no {' and no '.join(missing)}; choose a dataset that has, or give files")
    queries = _explained(name, lambda: [_query(q) for q in dataset.queries_iter()]) if asked else []
    qrels = _explained(name, lambda: [_qrel(q) for q in dataset.qrels_iter()]) if judged else []
    return Dataset(DatasetPassages(name, lambda: dataset.docs_iter()), queries, qrels)


def _explained(name: str, read: Callable[[], T]) -> T:
    """Return what `read` returns; any failure of ir_datasets becomes a CorpusError that says what it said."""
    try:
        return read()
    except DiffRetrieverError:
        raise
    except KeyError as error:
        raise CorpusError(f"{PREFIX}{name}: ir_datasets knows no dataset {error}; see ir-datasets.com") from error
    except Exception as error:
        # Downloads, archives and parsers of ir_datasets fail with exceptions of many libraries.
        reason = f"{type(error).__name__}: {error}"
        raise CorpusError(f"{PREFIX}{name}: ir_datasets could not provide it ({reason})") from error


def _passage(document: Any) -> Passage:  # noqa: ANN401 - a named tuple of the dataset's own
    title, text = getattr(document, "title", "") or "", getattr(document, "text", None)
    if text is None:
        title, text = "", document.default_text()
    return Passage(str(document.doc_id), text, title)


def _query(query: Any) -> Query:  # noqa: ANN401 - a named tuple of the dataset's own
    text = getattr(query, "text", None)
    return Query(str(query.query_id), query.default_text() if text is None else text)


def _qrel(qrel: Any) -> Qrel:  # noqa: ANN401 - a named tuple of the dataset's own
    return Qrel(str(qrel.query_id), str(qrel.doc_id), int(qrel.relevance))
