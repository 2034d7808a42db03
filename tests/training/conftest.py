from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import BertConfig, BertModel

from diffretriever.training.recipes import build
from diffretriever.training.run import prepare
from diffretriever.training.settings import TrainingSettings

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
    # Rows with none, one or two hard negatives.
    negatives = [[f"{TOPICS[(i + n) % 5][0]} of the" for n in (1, 2)[: i % 3]] for i in range(60)]
    pq.write_table(pa.table(pairs | {"negative": negatives}), folder / "negatives.parquet")
    return folder


def merged(base, changes):
    """A mapping with nested changes, `section={...}`, applied."""
    whole = {**base}
    for key, value in changes.items():
        both = isinstance(value, dict) and isinstance(base.get(key), dict)
        whole[key] = merged(base[key], value) if both else value
    return whole


@pytest.fixture
def make_settings(data, base, tmp_path):
    def make(**changes):
        small = {
            "output": str(tmp_path / "run"),
            "model": {
                "base": str(base),
                "prompt": "plain",
                "query_slots": 2,
                "passage_slots": 3,
                "max_query_length": 16,
                "max_passage_length": 24,
                "slot_embeddings": True,
            },
            "teacher": {"base": str(base), "system": "diffembed"},
            "data": {
                "folder": str(data),
                "sources": [{"path": "pairs.parquet"}],
                "group": 2,
                "pool": 2,
                "query_tokens": 8,
                "passage_tokens": [12, 8],
            },
            "loss": {"scores": 1.0, "vectors": 2.0, "words": 0.2, "terms": 4.0, "temperature": 0.02},
            "optimisation": {
                "steps": 6,
                "batch": 8,
                "chunk": 3,
                "learning_rate": 2e-4,
                "head_learning_rate": 2e-3,
                "bf16": False,
                "save_every": 3,
            },
        }
        return build(TrainingSettings, merged(small, changes), "")

    return make


@pytest.fixture
def make_trainer(make_settings):
    def make(**changes):
        return prepare(make_settings(**changes))[0]

    return make
