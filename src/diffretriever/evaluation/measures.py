"""Measures: the quality of a run, computed by ir_measures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

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
    """

    tag: str
    queries: int
    values: tuple[MeasureValue, ...]

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
    require_ir_measures()
    import ir_measures

    try:
        parsed = [ir_measures.parse_measure(name) for name in measures]
    except (NameError, ValueError, SyntaxError) as error:
        raise InputError(f"{error}; use names of ir_measures, such as nDCG@10 or R@100") from error
    judged = run.without_own_ids() if drop_own_ids else run
    means = ir_measures.calc_aggregate(
        parsed,
        [ir_measures.Qrel(q.query_id, q.passage_id, q.relevance) for q in qrels],
        [ir_measures.ScoredDoc(q, p.passage_id, p.score) for q, ranking in judged.rankings.items() for p in ranking],
    )
    values = tuple(MeasureValue(name, float(means[m])) for name, m in zip(measures, parsed, strict=True))
    return Evaluation(run.tag, len({q.query_id for q in qrels}), values)


def require_ir_measures() -> None:
    """Raise MissingExtraError unless ir_measures is installed."""
    try:
        import ir_measures  # noqa: F401
    except ImportError as error:
        raise MissingExtraError("ir-measures", "eval", "computing measures") from error
