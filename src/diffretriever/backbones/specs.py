"""BackboneSpec: the registry of model families; a family is a row of data, not a class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from diffretriever.errors import CheckpointError

Attention = Literal["full", "block", "causal"]

LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class BackboneSpec:
    """How one family is written on disk and what it was trained to do.

    Attributes:
        name: name of the row.
        model_types: values of config.json's "model_type" that belong to it.
        architecture: class of the transformers library that computes it.
        attention: "full", "block" (full within a block, causal between blocks) or "causal".
        shift: 1 when position i predicts token i + 1, as in models grown from autoregressive ones; else 0.
        chat: name of the family's chat format (data/chats).
        prompt: template used when none is asked for.
        slots: (K_q, K_p) used when none are asked for; the paper's choice where it made one.
        transform: submodule between the last hidden state and the vocabulary matrix, "" when there is none.
        keys: (pattern, replacement) pairs from published tensor names to those of `architecture`; the first that
            matches applies, tensors that no pattern matches keep their names.
        splits: (pattern, replacements) pairs for fused q/k/v tensors.
        stacks: (pattern, "name:place") pairs for tensors of one expert, whose number is the pattern's second group;
            the place is the half of the stacked tensor's rows that it fills: 0, 1 or all.
        ignored: patterns of tensors that a folder may hold and the retriever does not need.
        config_keys: published config names -> those of `architecture`.
        config_values: config values that the family implies without writing them.
        requires: config values that the native class is right for; another value is refused.
        mask_token: text of the mask token where neither config.json nor the tokeniser names it.
        lora_targets: layers that LoRA adapts, by the native names; never the vocabulary head.
        block_length: tokens per block when the config does not say.
    """

    name: str
    model_types: tuple[str, ...]
    architecture: str
    attention: Attention = "full"
    shift: int = 0
    chat: str = "chatml"
    prompt: str = "few"
    slots: tuple[int, int] = (4, 16)
    transform: str = ""
    keys: tuple[tuple[str, str], ...] = ()
    splits: tuple[tuple[str, tuple[str, str, str]], ...] = ()
    stacks: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = (r".*rotary_emb\.inv_freq",)
    config_keys: Mapping[str, str] = field(default_factory=dict)
    config_values: Mapping[str, object] = field(default_factory=dict)
    requires: Mapping[str, object] = field(default_factory=dict)
    mask_token: str | None = None
    lora_targets: tuple[str, ...] = LORA_TARGETS
    block_length: int = 32


# Names of tensors in GGUF files, of Llama's shape and its relatives'.
_GGUF = (
    (r"token_embd\.", "model.embed_tokens."),
    (r"output_norm\.", "model.norm."),
    (r"output\.", "lm_head."),
    (r"blk\.(\d+)\.attn_norm\.", r"model.layers.\1.input_layernorm."),
    (r"blk\.(\d+)\.ffn_norm\.", r"model.layers.\1.post_attention_layernorm."),
    (r"blk\.(\d+)\.attn_([qkv])\.", r"model.layers.\1.self_attn.\2_proj."),
    (r"blk\.(\d+)\.attn_output\.", r"model.layers.\1.self_attn.o_proj."),
    (r"blk\.(\d+)\.ffn_(gate|up|down)\.", r"model.layers.\1.mlp.\2_proj."),
)
_LLADA_BLOCK = r"model\.transformer\.blocks\.(\d+)\."
_BERT_LAYER = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")

SPECS: tuple[BackboneSpec, ...] = (
    BackboneSpec(
        # Dream-v0, Dream-Coder and DiffuCoder: Qwen2 with full attention.
        name="dream",
        model_types=("Dream", "dream"),
        architecture="Qwen2ForCausalLM",
        shift=1,
        config_values={"attention_bias": True},
        mask_token="<|mask|>",  # noqa: S106
    ),
    BackboneSpec(
        # LLaDA-8B and LLaDA-1.5: Llama with full attention. "ff_out" names two layers: a block's own and the head.
        name="llada",
        model_types=("llada",),
        architecture="LlamaForCausalLM",
        chat="llada",
        slots=(4, 4),
        keys=(
            (r"model\.transformer\.wte\.", "model.embed_tokens."),
            (r"model\.transformer\.ln_f\.", "model.norm."),
            (r"model\.transformer\.ff_out\.", "lm_head."),
            (_LLADA_BLOCK + r"attn_norm\.", r"model.layers.\1.input_layernorm."),
            (_LLADA_BLOCK + r"ff_norm\.", r"model.layers.\1.post_attention_layernorm."),
            (_LLADA_BLOCK + r"([qkv])_proj\.", r"model.layers.\1.self_attn.\2_proj."),
            (_LLADA_BLOCK + r"attn_out\.", r"model.layers.\1.self_attn.o_proj."),
            (_LLADA_BLOCK + r"ff_proj\.", r"model.layers.\1.mlp.gate_proj."),
            (_LLADA_BLOCK + r"up_proj\.", r"model.layers.\1.mlp.up_proj."),
            (_LLADA_BLOCK + r"ff_out\.", r"model.layers.\1.mlp.down_proj."),
        ),
        config_keys={
            "d_model": "hidden_size",
            "n_layers": "num_hidden_layers",
            "n_heads": "num_attention_heads",
            "n_kv_heads": "num_key_value_heads",
            "mlp_hidden_size": "intermediate_size",
            "embedding_size": "vocab_size",
            "max_sequence_length": "max_position_embeddings",
            "activation_type": "hidden_act",
            "weight_tying": "tie_word_embeddings",
        },
        requires={
            "alibi": False,
            "rope": True,
            "layer_norm_type": "rms",
            "block_type": "llama",
            "include_bias": False,
            "include_qkv_bias": False,
            "attention_layer_norm": False,
            "input_emb_norm": False,
            "scale_logits": False,
        },
        mask_token="<|mdm_mask|>",  # noqa: S106
    ),
    BackboneSpec(
        # LLaDA2.0 / 2.1 mini and flash: Glm4Moe with fused q/k/v and one tensor per expert on disk.
        name="llada2_moe",
        model_types=("llada2_moe",),
        architecture="Glm4MoeForCausalLM",
        attention="block",
        chat="llada2",
        keys=(
            (r"model\.word_embeddings\.", "model.embed_tokens."),
            (r"(model\.layers\.\d+)\.attention\.dense\.", r"\1.self_attn.o_proj."),
            (r"(model\.layers\.\d+)\.attention\.query_layernorm\.", r"\1.self_attn.q_norm."),
            (r"(model\.layers\.\d+)\.attention\.key_layernorm\.", r"\1.self_attn.k_norm."),
            (r"(model\.layers\.\d+)\.mlp\.gate\.expert_bias", r"\1.mlp.gate.e_score_correction_bias"),
        ),
        splits=(
            (
                r"(model\.layers\.\d+)\.attention\.query_key_value\.(weight|bias)",
                (r"\1.self_attn.q_proj.\2", r"\1.self_attn.k_proj.\2", r"\1.self_attn.v_proj.\2"),
            ),
        ),
        stacks=(
            (r"(model\.layers\.\d+)\.mlp\.experts\.(\d+)\.gate_proj\.weight", r"\1.mlp.experts.gate_up_proj:0"),
            (r"(model\.layers\.\d+)\.mlp\.experts\.(\d+)\.up_proj\.weight", r"\1.mlp.experts.gate_up_proj:1"),
            (r"(model\.layers\.\d+)\.mlp\.experts\.(\d+)\.down_proj\.weight", r"\1.mlp.experts.down_proj:all"),
        ),
        config_keys={
            "num_experts": "n_routed_experts",
            "num_shared_experts": "n_shared_experts",
            "use_qkv_bias": "attention_bias",
        },
        config_values={"num_mtp_layers": 0, "use_qk_norm": True, "norm_topk_prob": True},
        requires={"use_bias": False, "score_function": "sigmoid"},
        mask_token="<|mask|>",  # noqa: S106
    ),
    BackboneSpec(
        name="a2d-qwen3",
        model_types=("a2d-qwen3",),
        architecture="Qwen3ForCausalLM",
        mask_token="<|mask|>",  # noqa: S106
    ),
    BackboneSpec(
        name="a2d-qwen2",
        model_types=("a2d-qwen2",),
        architecture="Qwen2ForCausalLM",
        config_values={"attention_bias": True},
        mask_token="<|mask|>",  # noqa: S106
    ),
    BackboneSpec(
        # A causal Qwen3 or Llama that `diffretriever adapt` made attend both ways. What Qwen2 becomes is Dream's form.
        name="diffusion-qwen3",
        model_types=("diffusion-qwen3",),
        architecture="Qwen3ForCausalLM",
        shift=1,
        mask_token="<|mask|>",  # noqa: S106
    ),
    BackboneSpec(
        name="diffusion-llama",
        model_types=("diffusion-llama",),
        architecture="LlamaForCausalLM",
        shift=1,
        chat="llama3",
        mask_token="<|mask|>",  # noqa: S106
    ),
    BackboneSpec(
        name="bert",
        model_types=("bert",),
        architecture="BertForMaskedLM",
        chat="bert",
        transform="cls.predictions.transform",
        keys=(
            (r"(.*)LayerNorm\.gamma", r"\1LayerNorm.weight"),
            (r"(.*)LayerNorm\.beta", r"\1LayerNorm.bias"),
            (r"(embeddings|encoder)\.", r"bert.\1."),
        ),
        ignored=(r"(bert\.)?pooler\..*", r"cls\.seq_relationship\..*", r"(bert\.)?embeddings\.position_ids"),
        requires={"position_embedding_type": "absolute", "is_decoder": False},
        mask_token="[MASK]",  # noqa: S106
        lora_targets=_BERT_LAYER,
    ),
    BackboneSpec(
        name="modernbert",
        model_types=("modernbert", "a2d-modernbert"),
        architecture="ModernBertForMaskedLM",
        chat="bert",
        transform="head",
        mask_token="[MASK]",  # noqa: S106
        lora_targets=("Wqkv", "Wo", "Wi"),
    ),
    BackboneSpec(
        name="qwen2",
        model_types=("qwen2",),
        architecture="Qwen2ForCausalLM",
        attention="causal",
        shift=1,
        keys=_GGUF,
        config_values={"attention_bias": True},
    ),
    BackboneSpec(name="qwen3", model_types=("qwen3",), architecture="Qwen3ForCausalLM", attention="causal", shift=1),
    BackboneSpec(
        name="llama",
        model_types=("llama",),
        architecture="LlamaForCausalLM",
        attention="causal",
        shift=1,
        keys=_GGUF,
        chat="llama3",
    ),
)


def spec_for(model_type: str) -> BackboneSpec:
    """Return the row whose `model_types` hold config.json's "model_type".

    Raises:
        CheckpointError: no row does.
    """
    for spec in SPECS:
        if model_type in spec.model_types:
            return spec
    known = ", ".join(t for s in SPECS for t in s.model_types)
    raise CheckpointError(f"config.json says model_type {model_type!r}, which has no row; known are {known}")
