"""What an index holds and finds, compared with the definitions and not with another index."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from diffretriever.corpus import Passage
from diffretriever.errors import DiffRetrieverError
from diffretriever.index import Index
from diffretriever.representations import Representations
from tests.index.hashing import HashEncoder

WORDS = [f"w{i}" for i in range(40)]
_TOLERANCE = 1e-4


def make_encoder() -> HashEncoder:
    return HashEncoder(dim=8, query_slots=3, passage_slots=4)


def random_text(rng: random.Random) -> str:
    return " ".join(rng.choices(WORDS, k=rng.choice([0, 1, 3, 6, 12])))


def held_passages(index: Index, *, words: bool = True) -> tuple[dict[str, Passage], list[str]]:
    """Return every passage, and a line for each whose numbers are not those of its text.

    Args:
        index: an open index.
        words: whether one word per slot was stored.
    """
    encoder, wrong = make_encoder(), []
    stored = {passage_id: index.get(passage_id) for passage_id in index}
    held = {passage_id: found.passage for passage_id, found in stored.items()}
    if len(index) != len(held):
        wrong.append(f"torn: the index counts {len(index)} passages and lists {len(held)}")
    expected = encoder.encode_passages(list(held.values()), words=int(words))
    for row, (passage_id, found) in enumerate(stored.items()):
        one, wanted = found.representations, expected.select([row])
        same = (
            np.array_equal(_rounded(one.dense), _rounded(wanted.dense))
            and np.array_equal(_rounded(one.pooled), _rounded(wanted.pooled))
            and np.array_equal(one.sparse.toarray(), wanted.sparse.toarray())
            and [[w.word for w in slot] for slot in one.slot_words(0)]
            == [[w.word for w in slot] for slot in wanted.slot_words(0)]
        )
        if not same:
            wrong.append(f"torn: {passage_id!r} has representations of another text than {held[passage_id]}")
    return held, wrong


def wrong_searches(index: Index, held: Mapping[str, Passage], rng: random.Random, count: int) -> tuple[int, list[str]]:
    """Compare `count` random queries in every mode; returns the number of searches and a line for each wrong one."""
    ids, encoder = list(held), make_encoder()
    passages = encoder.encode_passages([held[i] for i in ids])
    compared, wrong = 0, []
    for _ in range(count):
        text = " ".join(rng.choices(WORDS, k=rng.choice([1, 2, 4])))
        query = encoder.encode_queries([text])
        parity = rng.choice([None, 0, 1])
        fits = np.array([parity is None or held[i].metadata.get("parity") == parity for i in ids], dtype=bool)
        for mode in ("multi", "single", "sparse"):
            compared += 1
            scores, listed = _scores(mode, query, passages)
            k = rng.choice([1, 5, 1000])
            hits = index.search(query, k, mode, where=None if parity is None else f"parity={parity}", exact=True)
            oracle = dict(zip(np.array(ids, object)[listed & fits], scores[listed & fits], strict=True))
            if reason := _disagreement([(h.passage_id, h.score) for h in hits], oracle, k):
                wrong.append(f"wrong search: {mode} {text!r} k={k} parity={parity}: {reason}")
    return compared, wrong


def examine(folder: Path, rng: random.Random, *, searches: int) -> tuple[dict[str, Passage], int, list[str]]:
    """Open a folder and return its passages, the number of searches compared, and everything that is wrong."""
    try:
        with Index.open(folder) as index:
            held, wrong = held_passages(index)
            wrong += [f"check: {problem}" for problem in index.check().problems]
            compared, mistakes = wrong_searches(index, held, rng, searches)
    except DiffRetrieverError as error:
        return {}, 0, [f"unusable: {folder.name}: {type(error).__name__}: {error}"]
    return held, compared, wrong + mistakes


def _scores(mode: str, query: Representations, passages: Representations) -> tuple[np.ndarray, np.ndarray]:
    """Return the score of every passage by definition, in storage precision, and which passages a mode lists."""
    lengths = np.diff(passages.offsets)
    if mode == "sparse":
        scores = (passages.sparse @ query.sparse.T).toarray()[:, 0]
        return scores, scores > 0
    listed = (lengths > 0) & bool(len(query.dense))
    if mode == "single":
        return _rounded(passages.pooled) @ _rounded(query.pooled)[0], listed
    similarities = _rounded(passages.dense) @ _rounded(query.dense).T
    scores = np.zeros(len(passages), np.float32)
    for i in np.flatnonzero(lengths):
        rows = similarities[passages.offsets[i] : passages.offsets[i + 1]]
        scores[i] = np.maximum(rows.max(axis=0), 0).sum() if rows.shape[1] else 0
    return scores, listed


def _disagreement(found: list[tuple[str, float]], oracle: Mapping[str, float], k: int) -> str | None:
    """Return what is wrong with a ranking; passages that tie within rounding may change places."""
    if len(found) != min(k, len(oracle)) or len({i for i, _ in found}) != len(found):
        return f"{len(found)} hits of {len(oracle)} candidates"
    for passage_id, score in found:
        if passage_id not in oracle:
            return f"{passage_id!r} should not be found"
        if abs(score - oracle[passage_id]) > _TOLERANCE:
            return f"{passage_id!r} scored {score}, not {oracle[passage_id]}"
    scores = [score for _, score in found]
    if scores != sorted(scores, reverse=True):
        return "not sorted"
    left_out = [score for passage_id, score in oracle.items() if passage_id not in dict(found)]
    if found and left_out and max(left_out) > scores[-1] + _TOLERANCE:
        return f"a passage of score {max(left_out)} was left out, the last hit has {scores[-1]}"
    return None


def _rounded(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).astype(np.float32)
