from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diffretriever.corpus import Passage
from diffretriever.errors import InputError
from diffretriever.index import AllOf, AnyOf, Equals, Index, Not, OneOf, Range, parse_filter
from diffretriever.index.filters import matches
from tests.index.hashing import HashEncoder

KEYS = ["k", "a.b", 'quo"te', "br[0]", "é ü", "", "s", "\\", "%41", "new\nline"]
STRINGS = ["x", "y", "1", "true", "", "é", "a.b"]
METADATA: list[dict] = [
    {},
    {"k": "x"},
    {"k": "1"},
    {"k": 1},
    {"k": 1.0},
    {"k": 1.5},
    {"k": True},
    {"k": False},
    {"k": 0},
    {"k": "true"},
    {"k": []},
    {"k": ["x", "y"]},
    {"k": ["1"]},
    {"k": ""},
    {"k": -(2**60)},
    {"k": 0.30000000000000004},
    {"k": 1.1805916207174113e21},
    {"k": 5e-324},
    {"k": -1.5},
    {"k": -0.0},
    {"k": "x", "s": 2, 'quo"te': True},
    {key: "x" for key in KEYS},
    {key: i for i, key in enumerate(KEYS)},
    {"a": "x", "b": "y"},
]

#: Some need all of their 17 digits, which engines read back otherwise.
NUMBERS = [0, 1, 1.0, 1.5, 2, 5, -1.5, -(2**60), 0.3, 0.30000000000000004, 2**70, 1.1805916207174113e21, 5e-324]
scalars = st.one_of(st.sampled_from(STRINGS), st.sampled_from(NUMBERS), st.booleans())
keys = st.sampled_from(KEYS)
bounds = st.sampled_from([None, float("inf"), float("nan"), *NUMBERS])
leaves = st.one_of(
    st.builds(Equals, keys, scalars),
    st.builds(OneOf, keys, st.lists(scalars, max_size=3).map(tuple)),
    st.tuples(keys, bounds, bounds, bounds, bounds)
    .filter(lambda t: any(b is not None for b in t[1:]))
    .map(lambda t: Range(*t)),
)
filters = st.recursive(
    leaves,
    lambda inner: st.one_of(
        st.builds(Not, inner),
        st.builds(AllOf, st.lists(inner, max_size=3).map(tuple)),
        st.builds(AnyOf, st.lists(inner, max_size=3).map(tuple)),
    ),
    max_leaves=6,
)


@pytest.fixture(scope="module")
def indexes(tmp_path_factory, loopback):
    passages = [Passage(f"p{i}", "same text", metadata=metadata) for i, metadata in enumerate(METADATA)]
    made = []
    for place in (tmp_path_factory.mktemp("edge"), tmp_path_factory.mktemp("exact"), loopback.url("filters")):
        backend = "exact" if len(made) == 1 else None
        index = Index.create(place, HashEncoder(), backend=backend)
        index.add(passages)
        made.append(index)
    yield made
    for index in made:
        index.close()


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(condition=filters)
def test_every_backend_finds_exactly_what_matches(indexes, condition):
    expected = {f"p{i}" for i, metadata in enumerate(METADATA) if matches(condition, metadata)}
    for index in indexes:
        for mode in ("multi", "sparse"):
            assert {hit.passage_id for hit in index.search("same", 100, mode, where=condition)} == expected


def test_full_precision_is_kept(tmp_path):
    """A seeded sample of numbers, each found by itself and by the ranges that end at it."""
    rng = np.random.default_rng(0)
    numbers = np.unique(np.concatenate([rng.random(40), 1.7e9 + 1e6 * rng.random(40), -rng.random(20) * 1e25])).tolist()
    with Index.create(tmp_path, HashEncoder()) as index:
        index.add([Passage(f"p{i}", "same", metadata={"x": number}) for i, number in enumerate(numbers)])

        def found(condition):
            return {int(hit.passage_id[1:]) for hit in index.search("same", 200, "sparse", where=condition)}

        for i, number in enumerate(numbers):
            below, above = set(range(i)), set(range(i + 1, len(numbers)))
            assert found(Equals("x", number)) == {i}
            assert (found(Range("x", lt=number)), found(Range("x", gt=number))) == (below, above)
            assert (found(Range("x", lte=number)), found(Range("x", gte=number))) == (below | {i}, above | {i})


@pytest.mark.parametrize(
    ("condition", "metadata", "expected"),
    [
        (Equals("k", 1), {"k": 1.0}, True),
        (Equals("k", 1), {"k": True}, False),
        (Equals("k", True), {"k": 1}, False),
        (Equals("k", 1), {"k": "1"}, False),
        (Equals("k", "x"), {"k": ["x", "y"]}, True),
        (Equals("k", "x"), {}, False),
        (Not(Equals("k", "x")), {}, True),
        (OneOf("k", ("a", 2)), {"k": 2}, True),
        (OneOf("k", ()), {"k": 2}, False),
        (Range("k", gte=2, lt=3), {"k": 2}, True),
        (Range("k", gte=2, lt=3), {"k": 3}, False),
        (Range("k", gt=0), {"k": True}, False),
        (Range("k", gt=0), {"k": "5"}, False),
        (AllOf(()), {}, True),
        (AnyOf(()), {}, False),
    ],
)
def test_what_matches(condition, metadata, expected):
    assert matches(condition, metadata) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lang=en", Equals("lang", "en")),
        ("lang == en", Equals("lang", "en")),
        ("lang!=en", Not(Equals("lang", "en"))),
        ("year=2020", OneOf("year", ("2020", 2020.0))),
        ('year="2020"', Equals("year", "2020")),
        ("open=true", OneOf("open", ("true", True))),
        ("x=nan", Equals("x", "nan")),
        ("year>=2020", Range("year", gte=2020.0)),
        ("year < -1.5e3", Range("year", lt=-1500.0)),
        ("tag in a,b", OneOf("tag", ("a", "b"))),
        ('tag in "a, b" , c', OneOf("tag", ("a, b", "c"))),
        ("tag not in a", Not(OneOf("tag", ("a",)))),
        ("cannot in a", OneOf("cannot", ("a",))),
        ("origin in en", OneOf("origin", ("en",))),
        ('"tag"in"a",b', OneOf("tag", ("a", "b"))),
        ('"tag"not in a', Not(OneOf("tag", ("a",)))),
        ('"my key"=a b', Equals("my key", "a b")),
        ('title="this and that"', Equals("title", "this and that")),
        ("a=1 and b>2", AllOf((OneOf("a", ("1", 1.0)), Range("b", gt=2.0)))),
        ("  a=x   and   b=y  ", AllOf((Equals("a", "x"), Equals("b", "y")))),
        ("index=in", Equals("index", "in")),
        ("a=x or b=y", AnyOf((Equals("a", "x"), Equals("b", "y")))),
        (
            "a=x and b=y or not c=z",
            AnyOf((AllOf((Equals("a", "x"), Equals("b", "y"))), Not(Equals("c", "z")))),
        ),
        ("a=x and (b=y or c=z)", AllOf((Equals("a", "x"), AnyOf((Equals("b", "y"), Equals("c", "z")))))),
        ("not (a=x and b=y)", Not(AllOf((Equals("a", "x"), Equals("b", "y"))))),
        ("not(tag in a,b)", Not(OneOf("tag", ("a", "b")))),
        ("not not a=x", Not(Not(Equals("a", "x")))),
        ("not=x and or=y", AllOf((Equals("not", "x"), Equals("or", "y")))),
        ("not in a", OneOf("not", ("a",))),
        ('a="(b or c)"', Equals("a", "(b or c)")),
        ("a=orange or b=andor", AnyOf((Equals("a", "orange"), Equals("b", "andor")))),
    ],
)
def test_parsing(text, expected):
    assert parse_filter(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "year", "=5", "year>", "a=1 and", "a=1 and ", "a=1 and and b=2", 'a="x', "tag in"),
        *("a=1 or", "or a=1", "a=1 or or b=2"),
        *("origin en", "margin 5", "cannotin a", "built in-house", "tag notin a"),
        *("(a=1", "a=1)", "()", "not", "not ", "not (a=1", "a=(1", "a=1 (b=2)", "a=1 not b=2"),
    ],
)
def test_what_cannot_be_parsed(text):
    with pytest.raises(InputError, match="cannot read the filter"):
        parse_filter(text)


def test_a_deeply_nested_text_is_refused():
    assert parse_filter("(" * 49 + "a=x" + ")" * 49) == Equals("a", "x")
    with pytest.raises(InputError, match="nests deeper than 50"):
        parse_filter("not " * 100_000 + "a=x")


def test_ranges_compare_numbers_and_have_a_bound():
    with pytest.raises(InputError, match="'new' is no number"):
        parse_filter("year>new")
    with pytest.raises(InputError, match="no bound"):
        Range("year")
