from __future__ import annotations

import numpy as np
import pytest
import torch

from diffretriever.scoring import maxsim_blocks, top_k
from diffretriever.studies.searching import SearchPlan, best, measure_search
from diffretriever.studies.timing import Schedule


def unit(*shape, seed):
    vectors = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=-1)


@pytest.mark.parametrize("pair", [(1, 1), (4, 4), (4, 16)])
def test_what_is_timed_finds_what_the_scoring_finds(pair):
    queries, index = unit(3, pair[0], 16, seed=1), unit(50, pair[1], 16, seed=2)
    offsets = [np.arange(n + 1) * k for n, k in ((3, pair[0]), (50, pair[1]))]
    flat = [t.reshape(-1, 16).numpy() for t in (queries, index)]
    scores = torch.cat([s for _, s in maxsim_blocks((flat[0], offsets[0]), (flat[1], offsets[1]))], dim=1)
    assert best(queries, index, 10).tolist() == top_k(scores, 10).positions.tolist()


def test_an_index_that_does_not_fit_is_left_out_and_said():
    skipped, done = [], []
    plan = SearchPlan(dim=8, slots=((1, 1), (4, 16)), sizes=(100, 10**12), batch=2, seed=1)
    points = measure_search(plan, Schedule(3, 1, 1.0), torch.device("cpu"), skipped, done.append)
    assert [(p.variant, p.passages) for p in points] == [("single", 100), ("multi", 100)]
    assert points[1].vector_bytes == 100 * 16 * 8 * 4
    assert len(skipped) == 2
    assert "1,000,000,000,000 passages with (1, 1)" in skipped[0]
    assert len(done) == 4
