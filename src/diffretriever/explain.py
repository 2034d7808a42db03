"""Explanation: which slots and which terms made the score of one passage for one query.

MaxSim and the product of the pooled vectors are sums over query slots (docs/method.md, 5 and 6), the sparse score is a
sum over shared terms and a hybrid score one over two rankings, so all split into contributions that add up to them.
Masked positions predict words: they say what each slot stands for.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from diffretriever.errors import InputError
from diffretriever.fusion import DEPTH, RRF_K, FusionName, Ranking, fuse, minmax
from diffretriever.representations import Representations, SlotWord

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class SlotMatch:
    """What one query slot found in the passage.

    Attributes:
        query_slot: index of the query slot, from 0.
        passage_slot: index of the most similar passage slot; None when the passage has no vectors.
        similarity: cosine of the two unit vectors.
        contribution: its part of MaxSim, a negative similarity counting 0.
        share: contribution over MaxSim, 0 to 1.
        query_words: what the query slot predicts, best first; empty when words were not asked for.
        passage_words: what the passage slot predicts.
    """

    query_slot: int
    passage_slot: int | None
    similarity: float
    contribution: float
    share: float
    query_words: tuple[SlotWord, ...]
    passage_words: tuple[SlotWord, ...]


@dataclass(frozen=True)
class PooledMatch:
    """What one query slot adds to the product of the pooled vectors.

    Attributes:
        query_slot: index of the query slot, from 0.
        similarity: its product with the passage's pooled vector.
        contribution: its part of the score: the similarity over the number of query slots and the length of their
            mean (the latter not under the paper protocol), and an equal part of what rounding the query's pooled
            vector changed.
        query_words: what the query slot predicts, best first; empty when words were not asked for.
    """

    query_slot: int
    similarity: float
    contribution: float
    query_words: tuple[SlotWord, ...]


@dataclass(frozen=True)
class TermMatch:
    """A term that query and passage share.

    Attributes:
        term_id: its vocabulary id.
        term: its readable text.
        query_weight: its weight in the query.
        passage_weight: its weight in the passage.
        contribution: product of the weights, its part of the sparse score.
        share: contribution over the sparse score, 0 to 1.
    """

    term_id: int
    term: str
    query_weight: float
    passage_weight: float
    contribution: float
    share: float


@dataclass(frozen=True)
class FusedPart:
    """One ranking's part in a hybrid score.

    Attributes:
        name: "MaxSim" or "sparse".
        weight: its weight in the fusion.
        score: the passage's score in this ranking; None when the ranking does not hold it.
        rank: the passage's rank in it, from 1.
        low: the score that counts 0; None with reciprocal ranks.
        high: the score that counts 1; None with reciprocal ranks.
        contribution: weight times the score's place between low and high, or the reciprocal of 60 + rank.
    """

    name: str
    weight: float
    score: float | None
    rank: int | None
    low: float | None
    high: float | None
    contribution: float


@dataclass(frozen=True)
class Explanation:
    """Why a passage scores as it does for a query.

    Attributes:
        query: the query's text.
        passage_id: the passage's id.
        maxsim: the score by MaxSim, sum of the contributions of `slots`.
        single: the score by pooled vectors, sum of the contributions of `pooled`.
        sparse: the sparse score, sum of the contributions of `terms`.
        slots: one match per query slot, in slot order.
        pooled: what each query slot adds to the single score.
        terms: shared terms, largest contribution first.
        fused: how both scores made the hybrid score, whose parts add up to it; empty when that was not asked for.
    """

    query: str
    passage_id: str
    maxsim: float
    single: float
    sparse: float
    slots: tuple[SlotMatch, ...]
    pooled: tuple[PooledMatch, ...]
    terms: tuple[TermMatch, ...]
    fused: tuple[FusedPart, ...] = ()

    @property
    def hybrid(self) -> float:
        """The hybrid score, sum of the contributions of `fused`."""
        return sum(part.contribution for part in self.fused)

    def to_json(self) -> str:
        """Return the explanation as a JSON object with the attribute names as keys."""
        plain = asdict(self)
        for slot in [*plain["slots"], *plain["pooled"]]:
            # A NamedTuple would come out as a bare list.
            for side in {"query_words", "passage_words"} & slot.keys():
                slot[side] = [{"word": word, "probability": probability} for word, probability in slot[side]]
        return json.dumps(plain, ensure_ascii=False, indent=1)

    def to_rich(self) -> RenderableType:
        """Return tables for a terminal: how the rankings were fused, slots, pooled vectors, terms."""
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        tables = []
        for title, head, rows in self._tables():
            table = Table(title=title, title_justify="left")
            for name in head:
                table.add_column(name, justify="left" if name in _TEXT_COLUMNS else "right", overflow="fold")
            for row in rows:
                # Text, not str: predicted words may hold what rich would read as markup.
                table.add_row(*(Text(printable(cell)) for cell in row))
            tables.append(table)
        return Group(*tables)

    def to_html(self) -> str:
        """Return a small page that needs no other file; all text is escaped."""
        parts = [_HTML_HEAD, f"<h1>{escape(self.query)}</h1><p>passage <code>{escape(self.passage_id)}</code></p>"]
        for title, head, rows in self._tables():
            parts.append(f"<table><caption>{escape(title)}</caption><tr>")
            parts.extend(f"<th>{escape(name)}</th>" for name in head)
            parts.append("</tr>")
            for row in rows:
                parts.append("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>")
            parts.append("</table>")
        return "\n".join([*parts, "</body></html>", ""])

    def _tables(self) -> list[tuple[str, list[str], list[list[str]]]]:
        slots = [
            [
                str(match.query_slot + 1),
                words_text(match.query_words),
                "-" if match.passage_slot is None else str(match.passage_slot + 1),
                words_text(match.passage_words),
                f"{match.similarity:.3f}",
                f"{match.contribution:.3f}",
                f"{match.share:.0%}",
            ]
            for match in self.slots
        ]
        terms = [
            [m.term, f"{m.query_weight:.3f}", f"{m.passage_weight:.3f}", f"{m.contribution:.3f}", f"{m.share:.0%}"]
            for m in self.terms
        ]
        pooled = [
            [str(m.query_slot + 1), words_text(m.query_words), f"{m.similarity:.3f}", f"{m.contribution:.4f}"]
            for m in self.pooled
        ]
        tables = [
            (f"MaxSim {self.maxsim:.4f} = sum over query slots", _SLOT_HEAD, slots),
            (f"Single {self.single:.4f} = sum over query slots of what each adds", _POOLED_HEAD, pooled),
            (f"Sparse {self.sparse:.4f} = sum over shared terms", _TERM_HEAD, terms),
        ]
        return [*([self._fusion_table()] if self.fused else []), *tables]

    def _fusion_table(self) -> tuple[str, list[str], list[list[str]]]:
        by_ranks = all(part.low is None for part in self.fused)
        how = (
            "reciprocal ranks, 1 / (60 + rank)" if by_ranks else "weighted scores, each placed between its list's ends"
        )
        rows = [
            [
                part.name,
                f"{part.weight:.2f}",
                _number(part.score),
                "-" if part.rank is None else f"{part.rank:,}",
                _number(part.low),
                _number(part.high),
                f"{part.contribution:.4f}",
            ]
            for part in self.fused
        ]
        return f"Hybrid {self.hybrid:.4f} = {how}", _PART_HEAD, rows


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


_PART_HEAD = ["part", "weight", "score", "rank", "counts 0", "counts 1", "adds"]
_POOLED_HEAD = ["slot", "query words", "similarity", "adds"]
_SLOT_HEAD = ["slot", "query words", "matched", "passage words", "similarity", "adds", "share"]
_TERM_HEAD = ["term", "in query", "in passage", "adds", "share"]
_TEXT_COLUMNS = {"query words", "passage words", "term", "part"}
_HTML_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>Explanation</title><style>
body{font-family:sans-serif;margin:2em}table{border-collapse:collapse;margin:1em 0}
caption{text-align:left;font-weight:bold}td,th{border:1px solid #ccc;padding:.2em .6em;text-align:left}
</style></head><body>"""


def explain(
    queries: Representations,
    passages: Representations,
    *,
    term: Callable[[int], str],
    query: str = "",
    passage_id: str = "",
    fused: tuple[FusedPart, ...] = (),
) -> Explanation:
    """Return the explanation of one passage's score for one query.

    Args:
        queries: representations of exactly one query.
        passages: representations of exactly one passage, encoded alike.
        term: readable text of a vocabulary id, such as `Encoder.term`.
        query: the query's text, to show.
        passage_id: the passage's id, to show.
        fused: how hybrid search fused this passage's scores, from `explain_fusion`.

    Raises:
        InputError: there is not exactly one of each, or they were encoded differently.
    """
    if len(queries) != 1 or len(passages) != 1:
        raise InputError(f"explain takes one query and one passage, got {len(queries)} and {len(passages)}")
    if different := queries.provenance.differences(passages.provenance):
        raise InputError("query and passage were encoded differently: " + "; ".join(different))
    slots, pooled = _slot_matches(queries, passages), _pooled_matches(queries, passages)
    terms = _term_matches(queries, passages, term)
    maxsim, single, sparse = (sum(m.contribution for m in matches) for matches in (slots, pooled, terms))
    return Explanation(query, passage_id, maxsim, single, sparse, slots, pooled, terms, fused)


def explain_fusion(
    passage_id: str,
    dense: Ranking,
    sparse: Ranking,
    *,
    method: FusionName = "minmax",
    alpha: float = 0.5,
    names: tuple[str, str] = ("MaxSim", "sparse"),
) -> tuple[FusedPart, ...]:
    """Return how a fusion (docs/method.md, 9) makes a passage's score from two rankings.

    Args:
        passage_id: the passage; in a ranking that does not hold it, it gets nothing.
        dense: ranking by vectors, cut to the depth of the fusion.
        sparse: ranking by terms, likewise.
        method: "minmax" (interpolation) or "rrf" (reciprocal ranks).
        alpha: weight of the dense side with "minmax".
        names: what the two rankings are called.

    Raises:
        InputError: the method is unknown, or alpha lies outside 0..1.
    """
    total = fuse(dense, sparse, method=method, alpha=alpha)
    weights = (alpha, 1.0 - alpha) if method == "minmax" else (1.0, 1.0)
    parts = tuple(
        _fused_part(name, weight, passage_id, ranking, method)
        for name, weight, ranking in zip(names, weights, (dense, sparse), strict=True)
    )
    return parts if passage_id in total.passage_ids else ()


def _fused_part(name: str, weight: float, passage_id: str, ranking: Ranking, method: FusionName) -> FusedPart:
    scores = ranking.scores.tolist()
    at = list(ranking.passage_ids).index(passage_id) if passage_id in ranking.passage_ids else None
    score, rank = (None, None) if at is None else (scores[at], at + 1)
    if method == "rrf":
        return FusedPart(name, weight, score, rank, None, None, 0.0 if rank is None else 1 / (RRF_K + rank))
    floor = ranking.floor if len(ranking) < DEPTH else None
    ends = scores + [floor] * (floor is not None) or [0.0]
    place = 0.0 if at is None else float(minmax(ranking.scores, floor)[at])
    return FusedPart(name, weight, score, rank, min(ends), max(ends), weight * place)


def _pooled_matches(queries: Representations, passages: Representations) -> tuple[PooledMatch, ...]:
    vectors, pooled, words = queries.vectors(0), passages.pooled[0], queries.slot_words(0)
    if not len(vectors):
        return ()
    similarities = vectors @ pooled
    # The pooled vectors are what is compared: they may be rounded, and have length 1 but for the paper protocol.
    mean = float(np.linalg.norm(vectors.mean(axis=0)))
    share = (float(np.linalg.norm(queries.pooled[0])) / mean if mean > 0 else 0.0) / len(vectors)
    rounding = (float(queries.pooled[0] @ pooled) - share * float(similarities.sum())) / len(vectors)
    return tuple(
        PooledMatch(i, s, share * s + rounding, tuple(words[i]) if words else ())
        for i, s in enumerate(similarities.tolist())
    )


def _slot_matches(queries: Representations, passages: Representations) -> tuple[SlotMatch, ...]:
    query_words, passage_words = queries.slot_words(0), passages.slot_words(0)
    left, right = queries.vectors(0), passages.vectors(0)
    if len(right) == 0:
        best, similarity = np.zeros(len(left), np.int64), np.zeros(len(left), np.float32)
    else:
        similarities = left @ right.T
        best, similarity = similarities.argmax(axis=1), similarities.max(axis=1)
    floored = np.maximum(similarity, 0.0)
    total = float(floored.sum())
    return tuple(
        SlotMatch(
            query_slot=i,
            passage_slot=j if len(right) else None,
            similarity=float(similarity[i]),
            contribution=float(floored[i]),
            share=float(floored[i]) / total if total else 0.0,
            query_words=tuple(query_words[i]) if query_words else (),
            passage_words=tuple(passage_words[j]) if passage_words else (),
        )
        for i, j in enumerate(best.tolist())
    )


def _term_matches(
    queries: Representations, passages: Representations, term: Callable[[int], str]
) -> tuple[TermMatch, ...]:
    left, right = queries.sparse, passages.sparse
    weights = dict(zip(right.indices.tolist(), right.data.tolist(), strict=True))
    shared = [
        (t, w, weights[t]) for t, w in zip(left.indices.tolist(), left.data.tolist(), strict=True) if t in weights
    ]
    total = sum(w * v for _, w, v in shared)
    matches = [TermMatch(t, term(t), w, v, w * v, w * v / total if total else 0.0) for t, w, v in shared]
    return tuple(sorted(matches, key=lambda m: (-m.contribution, m.term_id)))


def words_text(words: tuple[SlotWord, ...] | list[SlotWord], count: int = 3) -> str:
    """Return the first words of a slot in one line."""
    return ", ".join(printable(word.word) for word in words[:count])


def printable(text: str) -> str:
    """Return text without control characters and outer spaces, so that it cannot move a terminal's cursor."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
