from __future__ import annotations

from diffretriever.studies.published import published


def test_the_papers_points_are_whole():
    paper = published()
    assert "2605.07210" in paper.source
    assert len(paper.points) == 22
    best = max(paper.points, key=lambda p: p.effectiveness)
    assert (best.system, best.variant, best.training, best.effectiveness) == (
        "DiffRetriever Dream", "multi", "fine-tuned", 0.671,
    )  # fmt: skip
    assert [p.system for p in paper.points if p.latency_ms is None] == ["BM25"]
    ratio = paper.ratio("PromptReps N=20 / N=1")
    assert (ratio.low, ratio.high) == (15, 18)
