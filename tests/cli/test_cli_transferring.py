from __future__ import annotations

import pytest
from qdrant_client.models import UpdateResult
from tests.index.qdrant_server import Server


@pytest.fixture
def server():
    started = Server()
    yield started
    started.stop()


def test_push_search_change_and_pull(cli, finished_index, tmp_path, server):
    address, pulled = server.url("c"), tmp_path / "pulled"
    outcome = cli("push", finished_index, address, "--shards", "2", "--replicas", "1")
    assert outcome.code == 0
    assert outcome.out == ""
    assert f"copying {finished_index} to {address}" in outcome.err
    assert "10 passages copied, 0 were there already" in outcome.err
    assert "both hold 10 passages, checksum 10-" in outcome.err

    here, there = (cli("search", place, "violin history", "--json").json for place in (finished_index, address))
    assert [h["passage_id"] for h in there["hits"]] == [h["passage_id"] for h in here["hits"]]
    assert [h["score"] for h in there["hits"]] == pytest.approx([h["score"] for h in here["hits"]], abs=1e-4)
    assert cli("explain", address, "violin", "p4", "--json").code == 0
    info = cli("info", address, "--json").json
    assert (info["backend"], info["passages"], info["path"]) == ("cluster", 10, address)
    assert cli("check", address).code == 0

    assert cli("delete", address, "p1").code == 0
    outcome = cli("pull", address, pulled, "--backend", "exact")
    assert outcome.code == 0
    assert "both hold 9 passages" in outcome.err
    assert cli("info", pulled, "--json").json["backend"] == "exact"
    assert cli("search", pulled, "violin history", "--json").json["hits"][0]["title"] == there["hits"][0]["title"]


def test_a_second_copy_only_brings_what_changed(cli, index_folder, tmp_path):
    copy = tmp_path / "copy"
    assert "10 passages copied" in cli("copy", index_folder, copy).err
    assert cli("delete", index_folder, "p3").code == 0
    outcome = cli("copy", index_folder, copy)
    assert outcome.code == 1
    assert "0 passages copied, 9 were there already" in outcome.err
    assert f"{copy} also holds 1 passages that {index_folder} does not" in outcome.err
    outcome = cli("copy", index_folder, copy, "--delete")
    assert outcome.code == 0
    assert "0 passages copied, 9 were there already, 1 removed" in outcome.err
    assert "both hold 9 passages" in outcome.err


def test_a_copy_that_differs_is_an_error(cli, finished_index, server, monkeypatch):
    upsert = server.engine.upsert
    done = UpdateResult(operation_id=0, status="completed")
    monkeypatch.setattr(server.engine, "upsert", lambda name, p: upsert(name, p[:-1]) if len(p) > 1 else done)
    outcome = cli("push", finished_index, server.url("c"))
    assert outcome.code == 1
    assert "error: the copy differs: source 10-" in outcome.err
    assert ", target 9-" in outcome.err


def test_wrong_places(cli, finished_index, corpus, tmp_path, server):
    outcome = cli("push", finished_index, tmp_path / "other")
    assert outcome.code == 1
    assert "is not the address of a server" in outcome.err
    assert "diffretriever copy" in outcome.err
    outcome = cli("pull", server.url("a"), server.url("b"))
    assert outcome.code == 1
    assert "where a folder is wanted" in outcome.err
    outcome = cli("index", corpus, "--out", server.url("c"))
    assert outcome.code == 1
    assert "make the index in a folder and use diffretriever push" in outcome.err
    outcome = cli("pull", server.url("nothing"), tmp_path / "other")
    assert outcome.code == 1
    assert "holds no collection of that name" in outcome.err
    assert not (tmp_path / "other").exists()
    outcome = cli("push", finished_index, "qdrant://secret@host/c")
    assert outcome.code == 1
    assert "secret" not in outcome.err
