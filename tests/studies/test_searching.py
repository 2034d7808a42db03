from __future__ import annotations

import pytest
import torch

from diffretriever.studies.searching import SearchPlan, _in_memory, best, measure_search
from diffretriever.studies.timing import Schedule


def unit(*shape, seed):
    vectors = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(vectors, dim=-1)


@pytest.mark.parametrize("pair", [(1, 1), (4, 4), (4, 16)])
def test_what_is_timed_on_a_gpu_finds_what_the_search_in_memory_finds(pair):
    queries, index = unit(3, pair[0], 16, seed=1), unit(50, pair[1], 16, seed=2)
    expected = _in_memory(index, "single" if pair == (1, 1) else "multi")(queries)
    assert best(queries, index, 10).tolist() == expected.tolist()


def test_an_index_that_does_not_fit_is_left_out_and_said():
    skipped: list[str] = []
    plan = SearchPlan(dim=8, slots=((1, 1), (4, 16)), sizes=(100, 10**12), batch=2, seed=1)
    points = list(measure_search(plan, Schedule(3, 1, 1.0), torch.device("cpu"), skipped))
    assert [(p.variant, p.passages) for p in points] == [("single", 100), ("multi", 100)]
    assert points[1].vector_bytes == 100 * 16 * 8 * 4
    assert len(skipped) == 2
    assert "1,000,000,000,000 passages with (1, 1)" in skipped[0]
