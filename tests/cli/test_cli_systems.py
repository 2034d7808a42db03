"""Every system from the shell: an index remembers what made it, and search opens it again."""

from __future__ import annotations

import json

import pytest
from cli_samples import MODEL

LLAMA = MODEL.parent / "tiny-llama"


@pytest.mark.parametrize(
    ("model", "system", "options"),
    [
        (MODEL, "diffembed", []),
        (LLAMA, "repllama", []),
        (LLAMA, "promptreps", ["--query-slots", 2, "--passage-slots", 3]),
    ],
)
def test_index_search_and_explain(cli, corpus, tmp_path, model, system, options):
    folder = tmp_path / "index"
    done = cli("index", corpus, "--out", folder, "--model", model, "--system", system, *options)
    assert done.code == 0, done.err
    provenance = cli("info", folder, "--json").json["provenance"]
    assert provenance["system"] == system
    found = cli("search", folder, "the violin", "--json")
    assert len(found.json["hits"]) == 10
    hit = found.json["hits"][0]
    assert (hit["sparse"] is not None) == (system == "promptreps")
    assert bool(hit["slot_words"]) == (system == "promptreps")
    explained = cli("explain", folder, "the violin", hit["passage_id"], "--json").json
    assert explained["maxsim"] == pytest.approx(hit["dense"], abs=1e-4)
    assert len(cli("explain", folder, "the violin", hit["passage_id"]).out) > 100
    if system != "promptreps":
        refused = cli("search", folder, "the violin", "--mode", "sparse")
        assert (refused.code, "use mode='multi'" in refused.err) == (1, True)


def test_a_causal_model_is_read_by_promptreps_unless_said_otherwise(cli, corpus, tmp_path):
    assert cli("encode", corpus, "--out", tmp_path / "encoded", "--model", LLAMA).code == 0
    about = json.loads((tmp_path / "encoded" / "part-00000" / "representations.json").read_text())
    assert (about["provenance"]["system"], about["provenance"]["query_slots"]) == ("promptreps", 1)


def test_an_index_from_before_systems_had_names_still_opens(cli, index_folder):
    path = index_folder / "manifest.json"
    about = json.loads(path.read_text())
    assert about["provenance"].pop("system") == "diffretriever"
    del about["checksum"]
    from diffretriever.index.manifest import _checksum

    path.write_text(json.dumps(about | {"checksum": _checksum(about)}))
    assert cli("search", index_folder, "the violin", "--json").code == 0


@pytest.mark.parametrize("command", ["index", "encode"])
def test_bm25_is_not_offered_where_it_has_nothing_to_keep(cli, corpus, tmp_path, command):
    assert "bm25" not in cli(command, "--help").out
    assert cli(command, corpus, "--out", tmp_path / "out", "--system", "bm25").code == 2
    assert not (tmp_path / "out").exists()
