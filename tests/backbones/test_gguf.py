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
            writer.add_tensor(gguf_name(name), changed.get("tensors", {}).get(gguf_name(name), array))
    for key, value in changed.get("fields", {}).items():
        fields = writer.kv_data[0]
        if value is None:
            del fields[key]
        elif key in fields:
            fields[key].value = value(fields[key].value) if callable(value) else value
        else:
            writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
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
        ({"fields": {"llama.rope.scaling.type": "yarn"}}, r"llama.rope.scaling.type is 'yarn'"),
        ({"fields": {"llama.rope.scaling.factor": 4.0}}, r"llama.rope.scaling.factor is 4.0"),
        ({"fields": {"llama.rope.scale_linear": 2.0}}, r"llama.rope.scale_linear is 2.0"),
        ({"fields": {"llama.rope.scaling.attn_factor": 2.0}}, r"llama.rope.scaling.attn_factor is 2.0"),
        ({"fields": {"llama.rope.dimension_count": 4}}, r"llama.rope.dimension_count is 4, .* only 16 is read"),
        ({"left_out": ["model.layers.2.mlp.up_proj.weight"]}, r"'model.layers.2.mlp.up_proj.weight' is missing"),
    ],
)
def test_what_is_not_read_is_named(changed: dict[str, object], message: str, tmp_path: Path) -> None:
    path = write_gguf(CHECKPOINTS / "tiny-llama", tmp_path / "model.gguf", **changed)
    with pytest.raises(CheckpointError, match=message):
        load_backbone(path, device=CPU)


def test_rotary_facts_that_change_nothing_are_read(tmp_path: Path) -> None:
    plain = {"rope.scaling.type": "none", "rope.scaling.factor": 1.0, "rope.scale_linear": 0.0}
    fields = {f"llama.{key}": value for key, value in (plain | {"rope.dimension_count": 16}).items()}
    folder = load_backbone(CHECKPOINTS / "tiny-llama", device=CPU)
    file = load_backbone(write_gguf(CHECKPOINTS / "tiny-llama", tmp_path / "model.gguf", fields=fields), device=CPU)
    torch.testing.assert_close(hidden(file), hidden(folder), atol=1e-5, rtol=1e-5)


TOKENS = "tokenizer.ggml."


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"fields": {TOKENS + "tokens": lambda old: [b"\xff\xfe", *old[1:]]}}, r"UnicodeDecodeError"),
        ({"fields": {"general.architecture": b"\xff"}}, r"UnicodeDecodeError"),
        ({"fields": {TOKENS + "merges": lambda old: [*old, "moon shine"]}}, r"`moon` out of vocabulary"),
        ({"fields": {TOKENS + "bos_token_id": None}}, r"the field 'tokenizer.ggml.bos_token_id' is missing"),
        ({"fields": {TOKENS + "bos_token_id": 99999}}, r"bos_token_id is 99999, but there are \d+ tokens"),
        ({"fields": {TOKENS + "token_type": lambda old: old[:-1]}}, r"not a readable GGUF file: ValueError"),
        ({"fields": {"llama.attention.head_count": 0}}, r"num_attention_heads is 0, not a number above 0"),
        ({"fields": {"llama.attention.head_count": 3}}, r"llama|LlamaConfig|attn_"),
        ({"fields": {"llama.attention.head_count_kv": lambda old: old * 99}}, r"attn_k|LlamaConfig|shape"),
        ({"tensors": {"blk.0.attn_q.weight": np.zeros((63, 64), np.float32)}}, r"'blk.0.attn_q.weight' cannot be read"),
        ({"tensors": {"blk.0.ffn_up.weight": np.zeros((64, 64), np.int8)}}, r"'blk.0.ffn_up.weight' cannot be read"),
    ],
)
def test_damaged_content_is_named(changed: dict[str, object], message: str, tmp_path: Path) -> None:
    path = write_gguf(CHECKPOINTS / "tiny-llama", tmp_path / "model.gguf", **changed)
    with pytest.raises(CheckpointError, match=rf"model\.gguf: .*({message})") as caught:
        load_backbone(path, device=CPU)
    assert "rror" not in message or caught.value.__cause__ is not None


def test_tokens_that_text_may_spell_are_found_in_it(tmp_path: Path) -> None:
    """As llama.cpp reads the type "user-defined", and as the folder reads an added token that is not special."""
    tokens = {"[PAD2010]": "<tool_call>"}
    fields = {
        TOKENS + "tokens": lambda old: [tokens.get(t, t) for t in old],
        TOKENS + "token_type": lambda old: [4 if i == 2010 else kind for i, kind in enumerate(old)],
    }
    path = write_gguf(CHECKPOINTS / "tiny-qwen2", tmp_path / "model.gguf", fields=fields)
    tokenizer = load_backbone(path, device=CPU).tokenizer
    for parsed in (True, False):
        assert tokenizer.encode(["a <tool_call> b"], parse_special_tokens=parsed)[0].count(2010) == 1
    assert 2010 not in tokenizer.special_ids


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
