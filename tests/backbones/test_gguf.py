"""GGUF files written here by the package `gguf` from the tiny checkpoints, and read back."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diffretriever.backbones.loading import load_backbone
from diffretriever.errors import CheckpointError, MissingExtraError
from diffretriever.systems.opening import open_system
from diffretriever.tokenizer import Tokenizer
from tests.conftest import CHECKPOINTS

gguf = pytest.importorskip("gguf")

CPU = torch.device("cpu")
NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTSIDE = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}


def gguf_name(native: str) -> str:
    if native in OUTSIDE:
        return OUTSIDE[native]
    if native == "lm_head.weight":
        return "output.weight"
    _, _, layer, *path, leaf = native.split(".")
    return f"blk.{layer}.{NAMES['.'.join(path)]}.{leaf}"


def paired(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """The order that the format keeps q and k of Llama in: a rotary pair's two rows are neighbours."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def write_gguf(source: Path, path: Path, quantised: bool = False, **changed: object) -> Path:
    config = json.loads((source / "config.json").read_text())
    tokenizer = json.loads((source / "tokenizer.json").read_text())
    kind = config["model_type"]
    writer = gguf.GGUFWriter(path, str(changed.get("architecture", kind)))
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    if "scaling" in changed:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    vocabulary = tokenizer["model"]["vocab"] | {t["content"]: t["id"] for t in tokenizer["added_tokens"]}
    special = {t["id"] for t in tokenizer["added_tokens"]}
    tokens = [token for token, _ in sorted(vocabulary.items(), key=lambda item: item[1])]
    tokens += [f"[PAD{i}]" for i in range(len(tokens), config["vocab_size"])]
    writer.add_tokenizer_model(str(changed.get("tokenizer", "gpt2")))
    writer.add_tokenizer_pre(str(changed.get("split", "qwen2")))
    writer.add_token_list(tokens)
    writer.add_token_types([3 if i in special else 1 for i in range(len(tokens))])
    writer.add_token_merges([" ".join(m) if isinstance(m, list) else m for m in tokenizer["model"]["merges"]])
    writer.add_bos_token_id(config["bos_token_id"])
    writer.add_eos_token_id(config["eos_token_id"])
    writer.add_add_bos_token(kind == "llama")
    for name, tensor in load_file(source / "model.safetensors").items():
        value = tensor.float()
        for part, heads in (("q_proj", "num_attention_heads"), ("k_proj", "num_key_value_heads")):
            if kind == "llama" and part in name:
                value = paired(value, config[heads])
        array = value.contiguous().numpy()
        if quantised and array.ndim == 2 and array.shape[1] % 32 == 0:
            writer.add_tensor(
                gguf_name(name),
                gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0),
                raw_dtype=gguf.GGMLQuantizationType.Q8_0,
            )
        elif name not in changed.get("left_out", ()):
            writer.add_tensor(gguf_name(name), array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def hidden(backbone: object, rows: int = 3) -> torch.Tensor:
    ids = torch.randint(0, 1999, (rows, 25), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        return backbone.hidden_states(ids, torch.ones_like(ids).bool())  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["tiny-llama", "tiny-qwen2"])
def test_a_file_computes_what_its_folder_does(name: str, tmp_path: Path) -> None:
    folder = load_backbone(CHECKPOINTS / name, device=CPU)
    file = load_backbone(write_gguf(CHECKPOINTS / name, tmp_path / "model.gguf"), device=CPU)
    torch.testing.assert_close(hidden(file), hidden(folder), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(file.logits(hidden(file)), folder.logits(hidden(folder)), atol=1e-4, rtol=1e-4)
    assert file.special.end_of_sequence == folder.special.end_of_sequence
    assert file.fingerprint != folder.fingerprint


def test_quantised_tensors_are_undone(tmp_path: Path) -> None:
    whole = load_backbone(CHECKPOINTS / "tiny-llama", device=CPU)
    coarse = load_backbone(write_gguf(CHECKPOINTS / "tiny-llama", tmp_path / "q8.gguf", quantised=True), device=CPU)
    cosine = torch.cosine_similarity(hidden(whole), hidden(coarse), dim=-1)
    assert 0.995 < cosine.min() < 1


def test_text_is_read_as_by_the_folder_and_round_trips(tmp_path: Path) -> None:
    path = write_gguf(CHECKPOINTS / "tiny-llama", tmp_path / "model.gguf")
    model = open_system(path, "repllama", device="cpu")
    tokenizer = model.backbone.tokenizer
    texts = ["Caf\u00e9 no. 42 <|eot_id|>", "don't  stop\n\nnow", "\u2603"]
    folder = Tokenizer.from_folder(CHECKPOINTS / "tiny-llama")
    assert tokenizer.encode(texts, parse_special_tokens=True) == folder.encode(texts, parse_special_tokens=True)
    assert tokenizer.around() == folder.around() == ((2000,), ())
    for text, ids in zip(texts, tokenizer.encode(texts, parse_special_tokens=True), strict=True):
        assert tokenizer._parsing.decode(ids, skip_special_tokens=False) == text
    assert 2004 in tokenizer.encode(texts, parse_special_tokens=True)[0]
    assert 2004 not in tokenizer.encode(texts, parse_special_tokens=False)[0]
    model.save_pretrained(tmp_path / "saved")
    again = open_system(tmp_path / "saved", device="cpu")
    np.testing.assert_allclose(
        again.encode_queries("of the seasons").dense, model.encode_queries("of the seasons").dense, atol=1e-5
    )


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"architecture": "bert"}, r"architecture 'bert'; read are llama, qwen2"),
        ({"tokenizer": "llama"}, r"tokeniser of kind 'llama'"),
        ({"split": "jina-de"}, r"text is split as 'jina-de'"),
        ({"scaling": True}, r"rotary positions are scaled"),
        ({"left_out": ["model.layers.2.mlp.up_proj.weight"]}, r"'model.layers.2.mlp.up_proj.weight' is missing"),
    ],
)
def test_what_is_not_read_is_named(changed: dict[str, object], message: str, tmp_path: Path) -> None:
    path = write_gguf(CHECKPOINTS / "tiny-llama", tmp_path / "model.gguf", **changed)
    with pytest.raises(CheckpointError, match=message):
        load_backbone(path, device=CPU)


def test_damaged_files_and_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_gguf(CHECKPOINTS / "tiny-llama", tmp_path / "model.gguf").read_bytes()
    for number, data in enumerate((b"", b"GGUF", whole[:3000], b"X" + whole[1:], whole[:-5000])):
        damaged = tmp_path / f"{number}.gguf"
        damaged.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"restore the file"):
            load_backbone(damaged, device=CPU)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingExtraError, match=r"diffretriever\[gguf\]"):
        load_backbone(tmp_path / "model.gguf", device=CPU)
