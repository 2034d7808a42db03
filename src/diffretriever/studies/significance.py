"""Significance: which rows of a board differ from its baseline, task by task."""

from __future__ import annotations

from diffretriever.errors import InputError
from diffretriever.evaluation.significance import holm, randomisation_test
from diffretriever.studies.effectiveness import Board, Row

#: Level at which a difference is marked.
LEVEL = 0.05


def marks_against(board: Board, baseline: Row, *, seed: int = 0) -> tuple[dict[tuple[str, str], str], str]:
    """Return what differs significantly from the baseline, and the sentence that explains the marks.

    The test is the paired randomisation test; all comparisons of the board are corrected together by Holm's method.

    Args:
        board: the rows.
        baseline: the row that all others are compared with.
        seed: seed of the random exchanges.

    Raises:
        InputError: two rows were judged over different queries of one task.
    """
    tested: list[tuple[str, str]] = []
    gaps: list[float] = []
    p_values: list[float] = []
    for row in board.rows:
        for task in board.tasks:
            if row is baseline or task not in row.entries or task not in baseline.entries:
                continue
            ours, theirs = row.per_query(task, board.measure), baseline.per_query(task, board.measure)
            if ours.keys() != theirs.keys():
                raise InputError(f"{row.name} and {baseline.name} were judged over different queries of {task}")
            left, right = list(ours.values()), [theirs[query] for query in ours]
            tested.append((row.name, task))
            gaps.append(sum(left) - sum(right))
            p_values.append(randomisation_test(left, right, seed=seed))
    marks = {
        key: ("better" if gap > 0 else "worse") if corrected < LEVEL else ""
        for key, gap, corrected in zip(tested, gaps, holm(p_values), strict=True)
    }
    note = (
        f"▲ significantly better, ▽ significantly worse than {baseline.name}: paired two-sided randomisation test over "
        f"queries, p < {LEVEL:g} after Holm's correction over {len(tested)} comparisons."
    )
    return marks, note if tested else ""
