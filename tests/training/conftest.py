from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel

from diffretriever.training.config import Recipe, Source
from diffretriever.training.student import Student, backbone_from_encoder
from diffretriever.training.teacher import Teacher
from diffretriever.training.trainer import Trainer

TOPICS = [
    ["heart", "lung", "blood"],
    ["star", "galaxy", "orbit"],
    ["bread", "yeast", "dough"],
    ["river", "rain", "cloud"],
    ["music", "piano", "violin"],
]
SPECIAL = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """A mean-pooling BERT encoder of two layers, as a folder in the published layout."""
    folder = tmp_path_factory.mktemp("base")
    tokens = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        ".",
        "the",
        "of",
        *(word for topic in TOPICS for word in topic),
    ]
    rust = Tokenizer(models.WordPiece({t: i for i, t in enumerate(tokens)}, unk_token="[UNK]"))
    rust.normalizer = normalizers.BertNormalizer()
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.add_special_tokens(tokens[:5])
    rust.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(SPECIAL | {"mask_token": "[MASK]"}), encoding="utf-8")
    config = {
        "model_type": "bert",
        "vocab_size": len(tokens),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
    }
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    torch.manual_seed(0)
    model = BertModel(BertConfig(**config))
    save_file(dict(model.state_dict()), str(folder / "model.safetensors"))
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    rows = [(TOPICS[i % 5][i % 3], TOPICS[i % 5][(i // 5) % 3]) for i in range(60)]
    pairs = {"query": [f"the {a}" for a, _ in rows], "positive": [f"{b} of the {a}. the {b}" for a, b in rows]}
    pq.write_table(pa.table(pairs), folder / "pairs.parquet")
    return folder


@pytest.fixture
def make_recipe(data, tmp_path):
    def make(**changes):
        small = {
            "data": str(data),
            "output": str(tmp_path / "run"),
            "sources": (Source("pairs.parquet", 1.0),),
            "steps": 6,
            "batch": 8,
            "group": 2,
            "pool": 2,
            "chunk": 3,
            "query_slots": 2,
            "passage_slots": 3,
            "max_query_length": 16,
            "max_passage_length": 24,
            "query_tokens": 8,
            "passage_tokens": (12, 8),
            "bf16": False,
            "checkpoint_every": 3,
        }
        return Recipe(**small | changes)

    return make


@pytest.fixture
def make_trainer(base):
    def make(recipe):
        torch.manual_seed(recipe.seed)
        backbone = backbone_from_encoder(base)
        student = Student(backbone, recipe.settings(), recipe.chunk)
        return Trainer(recipe, student, Teacher(backbone), backbone.tokenizer)

    return make
