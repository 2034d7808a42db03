from __future__ import annotations

import json

import pytest

from diffretriever import DiffRetriever, Index, Passage
from diffretriever.corpus import Query
from diffretriever.errors import CorpusError, InputError
from diffretriever.scoring import maxsim
from diffretriever.systems.bm25 import BM25
from diffretriever.training import mining
from diffretriever.training.mining import MiningSettings, choose_negatives, mine, read_mined_rows
from diffretriever.training.rankers import BM25Ranker, Candidate, IndexRanker, MinedRow, Ranked, RowPassage
from diffretriever.training.rows import open_rows

CORPUS = [
    Passage("p0", "The tilt of the axis of the earth causes the seasons.", "Seasons"),
    Passage("p1", "Winter is the cold season of the year.", "Winter"),
    Passage("p2", "The earth moves around the sun in one year.", "Orbit"),
    Passage("p3", "Bread dough rises because yeast makes gas.", "Bread"),
    Passage("p4", "Yeast is a fungus that lives on sugar.", "Yeast"),
    Passage("p5", "THE TILT of the axis of the earth  causes the seasons.", "Seasons"),
    Passage("p6", "A violin has four strings.", "Violin"),
]
ROWS = [
    {"query_id": "q0", "query": "what causes the seasons of the earth", "positive_passages": [
        {"docid": "p0", "title": "Seasons", "text": CORPUS[0].text}]},
    {"query_id": "q1", "query": "why does bread with yeast rise", "positive_passages": [
        {"docid": "p3", "title": "Bread", "text": CORPUS[3].text}], "negative_passages": []},
    {"query": "why does bread with yeast rise", "positive": CORPUS[4].text},
]  # fmt: skip


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def model():
    return DiffRetriever.from_pretrained("mini")


@pytest.fixture(scope="module")
def index(model):
    with Index.create(None, model, backend="exact", storage="float32") as made:
        made.add(CORPUS)
        yield made


def written(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def names(row):
    return [p["docid"] for p in row["negative_passages"]]


def row_of(*positives, query="a query"):
    return MinedRow("q", query, tuple(RowPassage(i, "", t) for i, t in positives))


def ranked(*scores, positive=10.0):
    return Ranked([Candidate(f"c{i}", "", f"text {i}", s) for i, s in enumerate(scores, 1)], positive)


def chosen(row, found, **options):
    return [c.passage_id for c in choose_negatives(row, found, MiningSettings(**options), 0).negatives]


def test_the_window_counts_ranks_from_one():
    assert chosen(row_of(("x", "t")), ranked(5, 4, 3, 2, 1), first=2, last=4, choice="top") == ["c2", "c3", "c4"]


def test_candidates_near_the_positive_or_above_it_are_left_out():
    row, found = row_of(("x", "t")), ranked(12, 9.6, 9.5, 8.1, 3)
    assert chosen(row, found, choice="top") == ["c3", "c4", "c5"]
    assert chosen(row, found, margin=None, gap=2.0, choice="top") == ["c5"]
    assert chosen(row, found, margin=None, choice="top") == ["c1", "c2", "c3", "c4", "c5"]


def test_without_a_score_of_the_positive_no_margin_applies():
    assert chosen(row_of(("x", "t")), ranked(12, 3, positive=None), choice="top") == ["c1", "c2"]


def test_positives_and_repeated_texts_are_left_out():
    row = row_of(("c1", "another text"), ("x", "Text  3"), query="text 5")
    found = ranked(9, 8, 7, 6, 5, 4)
    found.candidates.append(Candidate("c7", "", "TEXT 2", 3))
    found.candidates.append(Candidate("c8", "a title alone", " ", 2))
    kept = choose_negatives(row, found, MiningSettings(choice="top"), 0)
    assert [c.passage_id for c in kept.negatives] == ["c2", "c4", "c6"]
    assert kept.left_out == {"positive": 3, "repeated": 1, "empty": 1}


def test_draws_depend_on_seed_and_row_alone():
    row, found = row_of(("x", "t")), ranked(*[5.0] * 40)

    def draw(number, seed):
        return choose_negatives(row, found, MiningSettings(negatives=5, seed=seed), number).negatives

    assert draw(3, 1) == draw(3, 1)
    assert len({tuple(draw(n, s)) for n in range(5) for s in (1, 2)}) == 10


def test_an_index_gives_negatives_but_no_positive_and_no_twin(rows, index, tmp_path):
    out = tmp_path / "mined.jsonl"
    report = mine(rows, IndexRanker(index), out, MiningSettings(margin=None, choice="top"))
    mined = written(out)
    assert [row["query_id"] for row in mined] == ["q0", "q1", "2"]
    assert sorted(names(mined[0])) == ["p1", "p2", "p3", "p4", "p6"]  # p5 is p0 in other letters
    # The other row of the same query holds p4's text as a positive, without its id or title.
    assert "p3" not in names(mined[1]) + names(mined[2])
    assert mined[0]["positive_passages"] == ROWS[0]["positive_passages"]
    trained = open_rows(out)[0]
    assert trained.query == ROWS[0]["query"]
    assert trained.positives == (f"Seasons. {CORPUS[0].text}",)
    assert len(trained.negatives) == 5
    assert report.rows == 3
    assert report.left_out["positive"] >= 4


@pytest.mark.parametrize("mode", ["multi", "single", "sparse", "hybrid"])
def test_a_positive_that_no_ranking_holds_gets_the_score_a_search_would_give(index, mode):
    ranker = IndexRanker(index, mode)
    row = next(iter(read_rows_of(ROWS[1])))
    found = ranker.rank([row], len(CORPUS))[0]
    by_search = next((c.score for c in found.candidates if c.passage_id == "p3"), 0.0)
    assert found.positive_score == pytest.approx(by_search, abs=1e-5)
    last = ranker.rank([MinedRow("q", row.query, (RowPassage("p6", "Violin", CORPUS[6].text),))], 1)[0]
    assert len(last.candidates) == 1
    full = {c.passage_id: c.score for c in found.candidates}
    assert last.positive_score == pytest.approx(full.get("p6", 0.0), abs=1e-4)


def read_rows_of(*records):
    for i, record in enumerate(records):
        passages = tuple(RowPassage(p["docid"], p["title"], p["text"]) for p in record["positive_passages"])
        yield MinedRow(str(i), record["query"], passages)


def test_a_positive_outside_the_index_is_encoded(index, model):
    outside = RowPassage("", "", "Seasons come from the tilt.")
    row = MinedRow("q", "what causes the seasons", (outside,))
    score = IndexRanker(index).rank([row], 3)[0].positive_score
    expected = maxsim(model.encode_queries([row.query]), model.encode_passages([outside.text]))
    assert score == pytest.approx(float(expected), abs=1e-5)


def test_bm25_scores_positives_by_id_or_text(rows, tmp_path):
    ranker = BM25Ranker(CORPUS)
    found = ranker.rank(list(read_mined_rows(rows)), 10)
    scores = BM25().index(CORPUS).search([Query("q", ROWS[1]["query"])], 10)[0]
    by_id = dict(zip(scores.passage_ids, scores.scores.tolist(), strict=True))
    assert found[1].positive_score == pytest.approx(by_id["p3"])
    assert found[2].positive_score == pytest.approx(by_id["p4"])  # the row gives the text without the title
    report = mine(rows, ranker, tmp_path / "mined.jsonl", MiningSettings(margin=None, choice="top"))
    assert report.unscored == 0
    assert "p6" not in names(written(tmp_path / "mined.jsonl")[1])  # shares no word


def test_an_interrupted_file_goes_on_to_the_same_bytes(rows, index, tmp_path, monkeypatch):
    settings = MiningSettings(negatives=2, margin=None)
    mine(rows, IndexRanker(index), tmp_path / "whole.jsonl", settings)
    monkeypatch.setattr(mining, "STEP", 1)
    out, calls = tmp_path / "mined.jsonl", []

    class Stopped(IndexRanker):
        def rank(self, rows, depth):
            calls.append(len(rows))
            if len(calls) == 2:
                raise KeyboardInterrupt
            return super().rank(rows, depth)

    with pytest.raises(KeyboardInterrupt):
        mine(rows, Stopped(index), out, settings)
    assert len(written(out)) == 1
    with out.open("a", encoding="utf-8") as file:
        file.write('{"query_id": "q1", "que')  # a line that a killed process left
    mine(rows, Stopped(index), out, settings)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert len(calls) == 4  # the first row was not ranked again


def test_a_file_made_otherwise_is_kept(rows, index, tmp_path):
    out = tmp_path / "mined.jsonl"
    mine(rows, IndexRanker(index), out, MiningSettings(negatives=2))
    with pytest.raises(InputError, match=r"made otherwise \(settings.negatives was 2, now 3\)"):
        mine(rows, IndexRanker(index), out, MiningSettings(negatives=3))
    with pytest.raises(InputError, match=r"ranker\.mode was multi, now single"):
        mine(rows, IndexRanker(index, "single"), out, MiningSettings(negatives=2))
    mine(rows, IndexRanker(index), out, MiningSettings(negatives=3, margin=None), overwrite=True)
    assert len(names(written(out)[0])) == 3


@pytest.mark.parametrize(
    ("line", "message"),
    [("{}", "query"), ('{"query": "a"}', "text"), ('{"query": "a", "positive_passages": []}', "no positive")],
)
def test_a_bad_row_is_named(tmp_path, line, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(f'{{"query": "a", "positive": "b"}}\n{line}\n', encoding="utf-8")
    with pytest.raises(CorpusError, match=rf"rows\.jsonl:2: .*{message}"):
        list(read_mined_rows(path))


def test_settings_that_cannot_be():
    for bad in ({"first": 0}, {"first": 5, "last": 4}, {"negatives": 0}, {"margin": 0.0}, {"choice": "best"}):
        with pytest.raises(InputError):
            MiningSettings(**bad)


def test_a_positive_is_known_without_its_title_and_with_it_in_the_text():
    text = "Emma was written by Jane Austen."
    found = Ranked([Candidate("d1", "Emma", text, 9.0), Candidate("d2", "", f"Emma. {text}", 8.0)], None)
    assert chosen(row_of(("", text)), found, choice="top") == ["d2"]  # how it begins cannot be told from a title
    kept = choose_negatives(row_of(("", f"Emma. {text}")), found, MiningSettings(choice="top"), 0)
    assert (kept.negatives, kept.left_out) == ([], {"positive": 2})
    titled = MinedRow("q", "a query", (RowPassage("", "Emma", text),))
    found.candidates.append(Candidate("d3", "Emma", "It is a novel.", 7.0))
    assert chosen(titled, found, choice="top") == ["d3"]


def test_bm25_scores_a_positive_by_its_text_where_its_id_and_title_are_others():
    ranker = BM25Ranker(CORPUS)
    rows = [
        MinedRow("q", "yeast and sugar", (p,))
        for p in (
            RowPassage("p4", "Yeast", CORPUS[4].text),
            RowPassage("other", "", CORPUS[4].text),
            RowPassage("", "", "else"),
        )
    ]
    scores = [found.positive_score for found in ranker.rank(rows, 3)]
    assert scores[0] == scores[1] > 0
    assert scores[2] is None


def test_a_packed_name_is_refused(rows, tmp_path):
    with pytest.raises(InputError, match="plain text under the name of a packed file"):
        mine(rows, BM25Ranker(CORPUS), tmp_path / "mined.jsonl.gz", MiningSettings())
