"""The decoder families that can be read: what a `model_type` means, and which keys it may have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Family:
    """What a `model_type` means beyond the numbers in its config file.

    Attributes:
        name: `ModelConfig.family`.
        architecture: The transformers class that a checkpoint of the family names.
        defaults: Values that transformers takes for keys that the file leaves out.
        activation_key: The key that names the activation.
        gemma: Norms scale by 1 + w, sandwich norms, scaled embeddings, `query_pre_attn_scalar`.
        query_key_norm: Query and key heads are normalised.
        biases: "none", "query_key_value" (always), or "option" (the key `attention_bias`, which
            covers the output projection too).
        windows: Which layers slide: "never", "always", "from_max_window_layers" or "pattern".
    """

    name: str
    architecture: str
    defaults: Mapping[str, Any]
    activation_key: str = "hidden_act"
    gemma: bool = False
    query_key_norm: bool = False
    biases: str = "option"
    windows: str = "never"


_GEMMA_DEFAULTS = {
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "tie_word_embeddings": True,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}
_QWEN_DEFAULTS = {"sliding_window": 4096, "max_window_layers": 28, "use_sliding_window": False}

FAMILIES: dict[str, Family] = {
    "llama": Family("llama", "LlamaForCausalLM", {}),
    "mistral": Family(
        "mistral",
        "MistralForCausalLM",
        {"sliding_window": 4096},
        biases="none",
        windows="always",
    ),
    "qwen2": Family(
        "qwen2",
        "Qwen2ForCausalLM",
        _QWEN_DEFAULTS,
        biases="query_key_value",
        windows="from_max_window_layers",
    ),
    "qwen3": Family(
        "qwen3",
        "Qwen3ForCausalLM",
        {**_QWEN_DEFAULTS, "head_dim": 128},
        query_key_norm=True,
        windows="from_max_window_layers",
    ),
    "gemma2": Family(
        "gemma2",
        "Gemma2ForCausalLM",
        {
            **_GEMMA_DEFAULTS,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
            "sliding_window_pattern": 2,
        },
        activation_key="hidden_activation",
        gemma=True,
        windows="pattern",
    ),
    "gemma3_text": Family(
        "gemma3",
        "Gemma3ForCausalLM",
        {
            **_GEMMA_DEFAULTS,
            "rope_theta": 1_000_000.0,
            "rope_local_base_freq": 10_000.0,
            "sliding_window_pattern": 6,
        },
        activation_key="hidden_activation",
        gemma=True,
        query_key_norm=True,
        windows="pattern",
    ),
}


# Book-keeping, training-time and generation-time settings: a forward pass does not read them.
INERT_KEYS = frozenset(
    {
        *("_name_or_path", "architectures", "transformers_version", "torch_dtype", "dtype"),
        *("model_type", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id"),
        *("decoder_start_token_id", "tokenizer_class", "initializer_range", "use_cache"),
        *("pretraining_tp", "return_dict", "output_attentions", "output_hidden_states"),
        *("chunk_size_feed_forward", "id2label", "label2id", "problem_type", "num_labels"),
        *("prefix", "task_specific_params", "attention_dropout", "hidden_dropout"),
        *("mlp_dropout", "embd_pdrop", "resid_pdrop", "classifier_dropout"),
        *("cache_implementation", "attn_implementation", "_attn_implementation"),
        *("_attn_implementation_autoset", "is_llama_config", "transformers.js_config"),
        *("unsloth_version", "unsloth_fixed", "finetuning_task", "torchscript", "max_length"),
        *("min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups"),
        *("diversity_penalty", "temperature", "top_k", "top_p", "typical_p"),
        *("repetition_penalty", "length_penalty", "no_repeat_ngram_size"),
        *("encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences"),
        *("output_scores", "return_dict_in_generate", "forced_bos_token_id"),
        *("forced_eos_token_id", "remove_invalid_values", "exponential_decay_length_penalty"),
        *("suppress_tokens", "begin_suppress_tokens"),
    }
)
READ_KEYS = frozenset(
    {
        *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"),
        *("num_attention_heads", "num_key_value_heads", "head_dim", "max_position_embeddings"),
        *("rms_norm_eps", "tie_word_embeddings", "rope_theta", "rope_scaling"),
        *("rope_parameters",),
    }
)
# Read as well, but only by the families that have them: elsewhere a value that is set is an error.
FAMILY_KEYS = {
    "llama": {"hidden_act", "attention_bias", "mlp_bias"},
    "mistral": {"hidden_act", "sliding_window"},
    "qwen2": {"hidden_act", "sliding_window", "max_window_layers", "use_sliding_window"},
    "qwen3": {
        *("hidden_act", "attention_bias"),
        *("sliding_window", "max_window_layers", "use_sliding_window"),
    },
    # Gemma's early files name the activation twice; `hidden_activation` is the one that counts.
    "gemma2": {
        *("hidden_act", "hidden_activation", "attention_bias", "query_pre_attn_scalar"),
        *("sliding_window", "sliding_window_pattern"),
        *("attn_logit_softcapping", "final_logit_softcapping"),
    },
    "gemma3": {
        *("hidden_act", "hidden_activation", "attention_bias", "query_pre_attn_scalar"),
        *("sliding_window", "sliding_window_pattern", "_sliding_window_pattern"),
        # Gemma 3 has no soft-cap on attention logits; transformers reads the key and ignores it.
        *("final_logit_softcapping", "rope_local_base_freq"),
    },
}
