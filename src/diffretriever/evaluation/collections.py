"""Collections: passages, queries, and the judgements that say which passages answer which query."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from diffretriever.corpus import Passage, Query, read_passages, read_queries
from diffretriever.corpus.rows import find_jsonl
from diffretriever.errors import CorpusError
from diffretriever.evaluation.ir_datasets import PREFIX, read_dataset
from diffretriever.evaluation.qrels import Qrel, Repeats, read_qrels
from diffretriever.evaluation.topics import TopicField, read_topics

#: Split of a collection whose judgements come from a file of no split.
GIVEN = "given"


@dataclass(frozen=True)
class Collection:
    """A test collection.

    Attributes:
        name: name of the collection.
        passages: its corpus, a stream that can be read again.
        queries: the queries that have a judgement, in the order of their file.
        qrels: the judgements.
        split: which split of the judgements these are.
        source: folder, file or id that it was read from.
        qrels_source: file or id that the judgements were read from.
        unjudged_queries: number of queries that this split does not judge; they are left out.
    """

    name: str
    passages: Iterable[Passage]
    queries: list[Query]
    qrels: list[Qrel]
    split: str = "test"
    source: str = ""
    qrels_source: str = ""
    unjudged_queries: int = 0

    @staticmethod
    def load(
        folder: str | Path,
        split: str | None = None,
        *,
        topics: str | Path | None = None,
        qrels: str | Path | None = None,
        topic_field: TopicField = "title",
        repeats: Repeats = "refuse",
    ) -> Collection:
        """Return the BEIR collection of a folder: its corpus, queries.jsonl and qrels/{split}.tsv.

        Args:
            folder: the folder; or a corpus file, with `topics` and `qrels`.
            split: split of the judgements; by default "test", or the only one there is.
            topics: file of queries instead of the folder's, in any format of `read_topics`.
            qrels: file of judgements instead of the folder's, in BEIR's or TREC's format.
            topic_field: which field of an SGML topic is the query.
            repeats: what becomes of a pair that is judged more than once.

        Raises:
            CorpusError: a file is missing or holds a bad line, no query is judged, or the split must be chosen.
        """
        folder = Path(folder)
        if not folder.exists():
            raise CorpusError(f"{folder}: no such collection; give a BEIR folder, a corpus file, or {PREFIX}ID")
        is_folder = folder.is_dir()
        if not is_folder and (topics is None or qrels is None):
            raise CorpusError(f"{folder} is a file: give its queries and judgements too, as topics and qrels")
        if is_folder and find_jsonl(folder, "corpus") is None:
            raise CorpusError(f"{folder}: no corpus.jsonl in this folder; give a folder in BEIR's layout")
        judgements, chosen = (Path(qrels), split or GIVEN) if qrels is not None else _split(folder, split)
        return _judged(
            name=folder.name if is_folder else folder.name.split(".")[0],
            passages=read_passages(folder, file_format="beir" if is_folder else None),
            queries=read_queries(folder) if topics is None else read_topics(topics, topic_field),
            qrels=read_qrels(judgements, repeats),
            split=chosen,
            source=str(folder),
            qrels_source=str(judgements),
        )


def open_collection(
    source: str,
    split: str | None = None,
    *,
    topics: str | Path | None = None,
    qrels: str | Path | None = None,
    topic_field: TopicField = "title",
    repeats: Repeats = "refuse",
) -> Collection:
    """Return a collection: a BEIR folder, a corpus file, `ir_datasets:ID`, or "scifact" (bundled).

    Raises:
        CorpusError: it cannot be read or fetched, or no query is judged.
        MissingExtraError: `ir_datasets` is asked for and not installed.
    """
    if source.startswith(PREFIX):
        data = read_dataset(source.removeprefix(PREFIX), judged=qrels is None, asked=topics is None)
        return _judged(
            name=source.removeprefix(PREFIX).replace("/", "-"),
            passages=data.passages,
            queries=data.queries if topics is None else read_topics(topics, topic_field),
            qrels=data.qrels if qrels is None else read_qrels(qrels, repeats),
            split=split or GIVEN,
            source=source,
            qrels_source=source if qrels is None else str(qrels),
        )
    if source == "scifact" and not Path(source).exists():
        source = str(_SCIFACT)
    return Collection.load(source, split, topics=topics, qrels=qrels, topic_field=topic_field, repeats=repeats)


_SCIFACT = Path(str(files("diffretriever"))) / "data" / "scifact"


def scifact() -> Collection:
    """Return SciFact (5,183 abstracts, 300 test claims), which ships with the package."""
    return Collection.load(_SCIFACT)


def _split(folder: Path, split: str | None) -> tuple[Path, str]:
    """Return the file of judgements of a split and its name; None is "test", or the only split."""
    there = sorted(path.stem for path in (folder / "qrels").glob("*.tsv"))
    if split is None:
        if "test" not in there and len(there) != 1:
            what = f"has the splits {', '.join(there)}; choose one" if there else "holds no .tsv; give the judgements"
            raise CorpusError(f"{folder / 'qrels'}: {what}")
        split = "test" if "test" in there else there[0]
    elif split not in there:
        known = f"there are {', '.join(there)}: choose one as the split (--split)" if there else "there are none at all"
        raise CorpusError(f"{folder / 'qrels'}: no split {split!r}; {known}")
    return folder / "qrels" / f"{split}.tsv", split


def _judged(
    *,
    name: str,
    passages: Iterable[Passage],
    queries: Sequence[Query],
    qrels: list[Qrel],
    split: str,
    source: str,
    qrels_source: str,
) -> Collection:
    """Return the collection with the queries that are judged."""
    judged = {qrel.query_id for qrel in qrels}
    asked = [query for query in queries if query.query_id in judged]
    if not asked:
        raise CorpusError(f"{qrels_source}: judges none of the queries in {source}; check that both belong together")
    return Collection(name, passages, asked, qrels, split, source, qrels_source, len(queries) - len(asked))
