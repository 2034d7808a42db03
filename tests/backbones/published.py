"""Tiny random checkpoints of every family, written under the names their authors publish."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file

from diffretriever.backbones.specs import BackboneSpec, spec_for
from tests.conftest import CHECKPOINTS

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 2048,
    "max_position_embeddings": 512,
}
IDS = {"mask_token_id": 2002, "eos_token_id": 2001, "pad_token_id": 2001}

CONFIGS: dict[str, dict[str, object]] = {
    "dream": {"model_type": "Dream", **SMALL, "rope_theta": 1e6, "tie_word_embeddings": False},
    "llada": {
        "model_type": "llada",
        "d_model": 32,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 4,
        "mlp_hidden_size": 48,
        "embedding_size": 2048,
        "max_sequence_length": 512,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500000.0,
        "weight_tying": False,
        "alibi": False,
        "rope": True,
    },
    "llada2_moe": {
        "model_type": "llada2_moe",
        **SMALL,
        "num_hidden_layers": 3,
        "head_dim": 8,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "num_shared_experts": 1,
        "moe_intermediate_size": 16,
        "first_k_dense_replace": 1,
        "n_group": 4,
        "topk_group": 2,
        "routed_scaling_factor": 2.5,
        "norm_topk_prob": True,
        "partial_rotary_factor": 0.5,
        "rope_theta": 600000,
        "tie_word_embeddings": False,
        "use_bias": False,
        "use_qkv_bias": False,
    },
    "a2d-qwen3": {"model_type": "a2d-qwen3", **SMALL, "head_dim": 8, "rope_theta": 1e6, "tie_word_embeddings": True},
    "a2d-qwen2": {"model_type": "a2d-qwen2", **SMALL, "rope_theta": 1e6, "tie_word_embeddings": True},
    "bert": {"model_type": "bert", **{k: v for k, v in SMALL.items() if k != "num_key_value_heads"}},
    "modernbert": {
        "model_type": "modernbert",
        **{k: v for k, v in SMALL.items() if k != "num_key_value_heads"},
        "num_hidden_layers": 4,
        "local_attention": 8,
        "global_attn_every_n_layers": 3,
        "cls_token_id": 2000,
        "sep_token_id": 2001,
        "bos_token_id": 2000,
    },
    "qwen2": {"model_type": "qwen2", **SMALL, "rope_theta": 1e6, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **SMALL, "head_dim": 8, "rope_theta": 1e6, "tie_word_embeddings": True},
    "llama": {"model_type": "llama", **SMALL, "rope_theta": 5e5, "tie_word_embeddings": False},
}


def native_model(name: str, seed: int = 0) -> transformers.PreTrainedModel:
    """A random model of the native class, built from its own config, not through the code under test."""
    raw = CONFIGS[name]
    values = {k: v for k, v in raw.items() if k not in ("model_type", "alibi", "rope", "use_bias")}
    spec = spec_for(str(raw["model_type"]))
    values = {spec.config_keys.get(k, k): v for k, v in values.items()} | IDS
    theta = values.pop("rope_theta", None)
    if theta is not None:
        partial = {k: values[k] for k in ("partial_rotary_factor",) if k in values}
        values["rope_parameters"] = {"rope_type": "default", "rope_theta": theta, **partial}
    if name == "llada2_moe":
        values |= {"use_qk_norm": True, "num_mtp_layers": 0}
    torch.manual_seed(seed)
    architecture = getattr(transformers, spec.architecture)
    model = architecture(architecture.config_class(**values, attn_implementation="sdpa")).eval()
    for parameter in model.parameters():
        # Larger than the usual initialisation, so that every tensor leaves a mark on the output.
        torch.nn.init.normal_(parameter, std=0.3 if parameter.dim() > 1 else 0.1)
    for norm_name, parameter in model.named_parameters():
        if "norm" in norm_name.lower() and norm_name.endswith("weight"):
            torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
    model.tie_weights()
    return model


def published_tensors(name: str, model: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    """The model's tensors under the published names of its family."""
    tied = set(model._tied_weights_keys or ()) if model.config.tie_word_embeddings else set()
    tensors = {k: v.clone() for k, v in model.state_dict().items() if k not in tied}
    if name == "llada":
        return {_llada_name(k): v for k, v in tensors.items()}
    return _llada2(tensors) if name == "llada2_moe" else tensors


def write(
    name: str, folder: Path, model: transformers.PreTrainedModel, tensors: dict[str, torch.Tensor] | None = None
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIGS[name], **IDS, "auto_map": {"AutoModel": "evil.Model"}, "transformers_version": "4.54.0"}
    (folder / "config.json").write_text(json.dumps(config))
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(CHECKPOINTS / "tiny-llada" / file, folder / file)
    save_file(tensors or published_tensors(name, model), str(folder / "model.safetensors"))
    return folder


def spec_of(name: str) -> BackboneSpec:
    return spec_for(str(CONFIGS[name]["model_type"]))


_LLADA = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}


def _llada_name(native: str) -> str:
    fixed = {
        "model.embed_tokens.weight": "wte.weight",
        "model.norm.weight": "ln_f.weight",
        "lm_head.weight": "ff_out.weight",
    }
    if native in fixed:
        return f"model.transformer.{fixed[native]}"
    match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", native)
    assert match is not None, native
    return f"model.transformer.blocks.{match[1]}.{_LLADA[match[2]]}.weight"


def _llada2(native: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    out: dict[str, torch.Tensor] = {}
    for name, tensor in native.items():
        new = name.replace("model.embed_tokens", "model.word_embeddings")
        new = new.replace("self_attn.o_proj", "attention.dense")
        new = new.replace("self_attn.q_norm", "attention.query_layernorm")
        new = new.replace("self_attn.k_norm", "attention.key_layernorm")
        new = new.replace("gate.e_score_correction_bias", "gate.expert_bias")
        if name.endswith("experts.gate_up_proj"):
            for e, rows in enumerate(tensor):
                gate, up = rows.chunk(2)
                out[new.replace("gate_up_proj", f"{e}.gate_proj.weight")] = gate.clone()
                out[new.replace("gate_up_proj", f"{e}.up_proj.weight")] = up.clone()
        elif name.endswith("experts.down_proj"):
            for e, rows in enumerate(tensor):
                out[new.replace("down_proj", f"{e}.down_proj.weight")] = rows.clone()
        elif "self_attn.q_proj" in name:
            parts = [native[name.replace("q_proj", p)] for p in ("q_proj", "k_proj", "v_proj")]
            out[new.replace("self_attn.q_proj", "attention.query_key_value")] = torch.cat(parts)
        elif "self_attn.k_proj" not in name and "self_attn.v_proj" not in name:
            out[new] = tensor
    return out
