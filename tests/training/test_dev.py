from __future__ import annotations

import json

import pytest

from diffretriever import open_system
from diffretriever.corpus import Passage, Query
from diffretriever.errors import InputError
from diffretriever.evaluation.collections import Collection
from diffretriever.evaluation.qrels import Qrel
from diffretriever.training import dev as dev_module
from diffretriever.training.dev import DevCollection, dev_value
from diffretriever.training.run import prepare, train
from diffretriever.training.settings import EvaluationSettings
from tests.training.conftest import TOPICS


@pytest.fixture(scope="module")
def collection(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dev")
    passages = [{"_id": f"p{i}", "title": "", "text": f"the {t[0]} of the {t[1]}"} for i, t in enumerate(TOPICS)]
    queries = [{"_id": f"q{i}", "text": f"the {t[0]}"} for i, t in enumerate(TOPICS)]
    (folder / "qrels").mkdir()
    for name, rows in (("corpus", passages), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    lines = "".join(f"q{i}\tp{i}\t1\n" for i in range(len(TOPICS)))
    (folder / "qrels" / "dev.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines, encoding="utf-8")
    return folder


def wanted(collection, **changes):
    return {"collection": str(collection), "every": 2, **changes}


def scores(folder):
    return json.loads((folder / "dev.json").read_text(encoding="utf-8"))["scores"]


def planned(monkeypatch, values):
    """Let the measured values be these, so that better and worse come when a test wants them."""
    rest = iter(values)
    monkeypatch.setattr(dev_module, "dev_value", lambda *args, **kwargs: next(rest))


def test_a_part_of_a_collection_keeps_all_judged_passages():
    passages = [Passage(f"p{i}", f"text {i}") for i in range(20)]
    whole = Collection("c", passages, [Query("a", "x"), Query("b", "y")], [Qrel("a", "p15", 1), Qrel("b", "p19", 1)])
    part = DevCollection.of(whole, queries=1, passages=4)
    assert [p.passage_id for p in part.passages] == ["p0", "p1", "p2", "p15"]
    assert [q.query_id for q in part.queries] == ["a"]
    assert [q.passage_id for q in part.qrels] == ["p15"]
    assert len(DevCollection.of(whole).passages) == 20


@pytest.mark.parametrize("mode", ["multi_dense", "fusion"])
def test_the_value_is_that_of_the_evaluation_of_the_saved_model(make_settings, collection, tmp_path, mode):
    from diffretriever.evaluation import evaluate
    from diffretriever.evaluation.runs import Run
    from diffretriever.index import Index

    settings = make_settings(evaluation=wanted(collection, mode=mode), optimisation={"steps": 2})
    train(settings)
    model = open_system(tmp_path / "run" / "checkpoint-2", dtype="float32", device="cpu")
    loaded = Collection.load(collection)
    with Index.create(None, model, backend="exact", storage="float32") as index:
        index.add(loaded.passages)
        names = {"multi_dense": "multi", "single_dense": "single", "fusion": "hybrid"}
        hits = index.search_batch([q.text for q in loaded.queries], 5, names.get(mode, mode))
    value = evaluate(Run.of([q.query_id for q in loaded.queries], hits), loaded.qrels, ["nDCG@10"])["nDCG@10"]
    assert [s["step"] for s in scores(tmp_path / "run")] == [0, 2]
    assert scores(tmp_path / "run")[-1]["value"] == pytest.approx(value, abs=1e-6)


def test_the_best_checkpoint_becomes_the_model(make_settings, collection, tmp_path, monkeypatch):
    from safetensors.torch import load_file

    planned(monkeypatch, [0.1, 0.5, 0.9, 0.2, 0.3])
    settings = make_settings(
        evaluation=wanted(collection, every=1), optimisation={"steps": 4, "save_every": 4, "keep": 1}
    )
    model = train(settings)
    assert [s["value"] for s in scores(tmp_path / "run")] == [0.1, 0.5, 0.9, 0.2, 0.3]
    best = load_file(tmp_path / "run" / "checkpoint-2" / "model.safetensors")
    last = load_file(tmp_path / "run" / "checkpoint-4" / "model.safetensors")
    name = "bert.encoder.layer.0.output.dense.weight"
    finished = load_file(model / "model.safetensors")[name]
    assert (finished == best[name].half()).all()
    assert not (finished == last[name].half()).all()


def test_training_stops_when_nothing_gets_better(make_settings, collection, tmp_path, monkeypatch):
    planned(monkeypatch, [0.1, 0.5, 0.4, 0.5, 0.9])
    train(make_settings(evaluation=wanted(collection, every=1, patience=2), optimisation={"steps": 6}))
    assert [s["step"] for s in scores(tmp_path / "run")] == [0, 1, 2, 3]
    assert len((tmp_path / "run" / "log.jsonl").read_text().splitlines()) == 3


def test_a_resumed_run_knows_the_best_of_before(make_settings, collection, tmp_path, monkeypatch):
    planned(monkeypatch, [0.1, 0.9, 0.2])
    settings = make_settings(evaluation=wanted(collection, every=1), optimisation={"steps": 4, "save_every": 2})
    trainer, _ = prepare(settings)

    def stopping(model, inputs, *rest):
        if trainer.state.global_step == 2:
            raise KeyboardInterrupt
        return type(trainer).training_step(trainer, model, inputs, *rest)

    trainer.training_step = stopping
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    planned(monkeypatch, [0.3, 0.4])
    train(settings)
    assert [s["value"] for s in scores(tmp_path / "run")] == [0.1, 0.9, 0.2, 0.3, 0.4]
    assert (tmp_path / "run" / "checkpoint-1").is_dir()


def test_measuring_moves_no_weight_and_knows_its_modes(make_settings, make_trainer, collection):
    module = make_trainer(optimisation={"steps": 1}).module
    asked = EvaluationSettings(**wanted(collection))
    part = DevCollection.of(Collection.load(collection))
    before = [p.detach().clone() for p in module.parameters()]
    assert 0 <= dev_value(module, part, asked) == dev_value(module, part, asked) <= 1
    assert dev_value(module, part, asked, bf16=True) == pytest.approx(dev_value(module, part, asked), abs=0.5)
    assert all((a == b).all() for a, b in zip(before, module.parameters(), strict=True))
    assert all(p.grad is None for p in module.parameters())
    with pytest.raises(InputError, match=r"evaluation\.mode"):
        train(make_settings(evaluation=wanted(collection, mode="hybrid")))
    with pytest.raises(InputError, match="measure"):
        train(make_settings(evaluation=wanted(collection, measure="nDCG of ten")))


def test_the_card_says_what_made_the_model(make_settings, collection, tmp_path):
    import yaml

    model = train(make_settings(evaluation=wanted(collection), optimisation={"steps": 2}))
    card = (model / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "diffretriever"
    assert "multi-vector" in front["tags"]
    about = json.loads((tmp_path / "run" / "run.json").read_text(encoding="utf-8"))
    for fact in ("system `diffretriever`", "2 query and 3 passage slots", "pairs.parquet", "nDCG@10"):
        assert fact.lower() in card.lower()
    assert about["data_sha256"]["pairs.parquet"] in card
    assert f"| torch | {about['versions']['torch']} |" in card
    code = card.split("```python\n")[1].split("```")[0].replace("FOLDER", str(model))
    code = code.replace('"my-index"', f'"{tmp_path / "index"}"')
    exec(compile(code, "card", "exec"), {})  # the shown example runs
