"""Measures: the quality of a run, computed by ir_measures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from diffretriever.errors import InputError, MissingExtraError
from diffretriever.evaluation.qrels import Qrel
from diffretriever.evaluation.runs import Run

DEFAULT_MEASURES = ("nDCG@10", "R@100")


class MeasureValue(NamedTuple):
    """The mean of a measure over the judged queries."""

    measure: str
    value: float


@dataclass(frozen=True)
class Evaluation:
    """The measures of one run.

    Attributes:
        tag: name of the run.
        queries: number of judged queries, those the run does not answer among them (they count 0).
        values: one mean per measure, in the order asked for.
        per_query: measure -> query id -> value, of every judged query, in the order of the judgements.
    """

    tag: str
    queries: int
    values: tuple[MeasureValue, ...]
    per_query: dict[str, dict[str, float]] = field(default_factory=dict, repr=False)

    def __getitem__(self, measure: str) -> float:
        """Return the mean of one measure."""
        for name, value in self.values:
            if name == measure:
                return value
        raise InputError(f"{measure!r} was not computed; there are {', '.join(v.measure for v in self.values)}")


def evaluate(
    run: Run, qrels: Sequence[Qrel], measures: Sequence[str] = DEFAULT_MEASURES, *, drop_own_ids: bool = False
) -> Evaluation:
    """Return the means of some measures over all judged queries.

    Args:
        run: rankings to judge.
        qrels: judgements; a query of these without a ranking counts 0.
        measures: names as ir_measures writes them, such as "nDCG@10", "R@100" or "RR(rel=2)@10".
        drop_own_ids: leave out passages that carry their query's id, as BEIR does for ArguAna and Quora.

    Raises:
        InputError: a measure is unknown.
        MissingExtraError: the extra `eval` is not installed.
    """
    parsed = parse_measures(measures)
    import ir_measures

    judged = run.without_own_ids() if drop_own_ids else run
    query_ids = list(dict.fromkeys(q.query_id for q in qrels))
    per_query: dict[str, dict[str, float]] = {name: dict.fromkeys(query_ids, 0.0) for name in measures}
    names = {measure: name for name, measure in zip(measures, parsed, strict=True)}
    for metric in _computed(
        parsed,
        [ir_measures.Qrel(q.query_id, q.passage_id, q.relevance) for q in qrels],
        [ir_measures.ScoredDoc(q, p.passage_id, p.score) for q, ranking in judged.rankings.items() for p in ranking],
    ):
        per_query[names[metric.measure]][metric.query_id] = float(metric.value)
    values = tuple(MeasureValue(name, math.fsum(per_query[name].values()) / len(query_ids)) for name in measures)
    return Evaluation(run.tag, len(query_ids), values, per_query)


def parse_measures(measures: Sequence[str]) -> list[Any]:
    """Return the measures of ir_measures by their names, tried on a ranking of one passage.

    Raises:
        InputError: there is none, one is unknown or cannot be computed here, or one comes twice.
        MissingExtraError: the extra `eval` is not installed.
    """
    require_ir_measures()
    import ir_measures

    parsed = []
    for name in measures:
        try:
            measure = ir_measures.parse_measure(name)
            measure.validate_params()  # type: ignore[no-untyped-call]
        except (NameError, ValueError, SyntaxError, KeyError, AssertionError) as error:
            raise InputError(f"measure {name!r}: {error}; use names of ir_measures, as nDCG@10 or R@100") from error
        # trec_eval ends the whole process at such a cutoff.
        if (cutoff := measure.params.get("cutoff")) is not None and cutoff < 1:
            raise InputError(f"measure {name!r} looks at the first {cutoff} passages; it must be 1 or more")
        parsed.append(measure)
    if not parsed or len(set(parsed)) < len(parsed):
        raise InputError(f"measures must be given, each once; got {', '.join(measures) or 'none'}")
    # What a measure needs besides its name shows only when it is computed, which may be after hours of encoding.
    _computed(parsed, [ir_measures.Qrel("1", "1", 1)], [ir_measures.ScoredDoc("1", "1", 1.0)])
    return parsed


def _computed(measures: Sequence[Any], qrels: Sequence[Any], scored: Sequence[Any]) -> list[Any]:
    """Return the value of every measure and query; an error of the program behind a measure names the measures."""
    import ir_measures

    try:
        return list(ir_measures.iter_calc(measures, qrels, scored))
    except Exception as error:  # of any kind: some measures are computed by programs of others
        names = ", ".join(map(str, measures))
        raise InputError(f"{names} cannot be computed by ir_measures: {error}; leave out what is not needed") from error


def require_ir_measures() -> None:
    """Raise MissingExtraError unless ir_measures is installed."""
    try:
        import ir_measures  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("ir-measures", "eval", "computing measures") from error
