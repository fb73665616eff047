"""An encoder on its devices: texts in, vectors of length one out, a program for each shape."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tokenizers import Tokenizer

from jaxrecipes.checkpoint.encoder import ImportedEncoder
from jaxrecipes.errors import ConfigError
from jaxrecipes.models.encoder import encode, encoder_layout
from jaxrecipes.models.encoder_config import EncoderConfig
from jaxrecipes.models.execution import Execution
from jaxrecipes.models.pooling import PoolingMode, normalize, pool
from jaxrecipes.neighbors.batches import Batch, plan_batches
from jaxrecipes.params.layout import to_runtime
from jaxrecipes.sharding.mesh import BATCH_AXES, MeshShape, make_mesh

# Tokens of a batch for each device. On a CPU a batch's activations should stay in the cache (2048
# tokens were 20 % faster than 8192); an accelerator needs many rows to be busy.
CPU_TOKENS, ACCELERATOR_TOKENS = 2048, 65_536


@dataclass(frozen=True)
class Embedder:
    """An encoder that is on its devices and ready; made by ``make_embedder``.

    Attributes:
        config: What it computes.
        params: Run-time tree, on the devices, in the compute dtype.
        tokenizer: Cuts texts at `max_tokens`.
        prompt: Put before every text.
        pooling: How a text's hidden states become one vector.
        max_tokens: Tokens of a text that are read, special ones included.
        tokens_per_batch: Tokens of a batch, padding included.
        compute_dtype: dtype of activations and products.
        mesh: The devices that share a batch's rows; None for one.
    """

    config: EncoderConfig
    params: Any
    tokenizer: Tokenizer
    prompt: str
    pooling: PoolingMode
    max_tokens: int
    tokens_per_batch: int
    compute_dtype: jnp.dtype
    mesh: Mesh | None

    def tokenize(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Returns the token ids of each text, int32, at most `max_tokens`, prompt included."""
        encodings = self.tokenizer.encode_batch_fast([self.prompt + text for text in texts])
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def vectors(
        self, token_ids: Sequence[np.ndarray], progress: Callable[[int], None] | None = None
    ) -> np.ndarray:
        """Embeds tokenized texts.

        Args:
            token_ids: Token ids of each text, none of them empty.
            progress: Called with the number of texts of each batch that is done.

        Returns:
            float32 [texts, width], of length one.
        """
        lengths = np.array([len(ids) for ids in token_ids], np.int64)
        devices = 1 if self.mesh is None else self.mesh.size
        results = np.empty((len(token_ids), self.config.hidden_size), np.float32)
        waiting: list[tuple[Batch, jax.Array]] = []

        def collect() -> None:
            batch, vectors = waiting.pop(0)
            results[batch.members] = np.asarray(vectors)[: len(batch.members)]
            if progress is not None:
                progress(len(batch.members))

        plan = plan_batches(
            lengths,
            longest=self.max_tokens,
            tokens_per_batch=self.tokens_per_batch,
            devices=devices,
        )
        for batch in plan:
            # The next batch is dispatched before the result of the one before it is waited for.
            waiting.append((batch, self._compute(batch, token_ids)))
            if len(waiting) > 1:
                collect()
        while waiting:
            collect()
        return results

    def _compute(self, batch: Batch, token_ids: Sequence[np.ndarray]) -> jax.Array:
        rows = np.full((batch.rows, batch.length), self.config.pad_token_id, np.int32)
        lengths = np.zeros(batch.rows, np.int32)
        for row, member in enumerate(batch.members.tolist()):
            ids = token_ids[member]
            rows[row, : len(ids)] = ids
            lengths[row] = len(ids)
        arrays = (rows, lengths)
        if self.mesh is not None:
            by_row = NamedSharding(self.mesh, PartitionSpec(BATCH_AXES))
            arrays = jax.device_put(arrays, by_row)
        # float32 means float32: GPUs and TPUs would use products of fewer bits otherwise.
        exact = self.compute_dtype == jnp.float32
        with jax.default_matmul_precision("highest") if exact else nullcontext():
            return _embed_rows(
                self.params,
                *arrays,
                config=self.config,
                pooling=self.pooling,
                compute_dtype=self.compute_dtype,
                execution=Execution(self.mesh),
            )


@partial(jax.jit, static_argnames=("config", "pooling", "compute_dtype", "execution"))
def _embed_rows(
    params: Any,
    token_ids: jax.Array,
    lengths: jax.Array,
    *,
    config: EncoderConfig,
    pooling: PoolingMode,
    compute_dtype: Any,
    execution: Execution,
) -> jax.Array:
    """One text a row: int32 [rows, length] and [rows] -> float32 [rows, width]."""
    place = jnp.arange(token_ids.shape[1], dtype=jnp.int32)[None]
    segment_ids = (place < lengths[:, None]).astype(jnp.int32)
    states = encode(
        config,
        params,
        token_ids,
        segment_ids,
        place * segment_ids,
        compute_dtype=compute_dtype,
        layout=encoder_layout(config),
        execution=execution,
    )
    return normalize(pool(states, segment_ids, pooling)[:, 0])


@dataclass(frozen=True)
class EmbedOptions:
    """How texts are embedded; ``choose_options`` fills in what is left out.

    Attributes:
        tokens_per_batch: Tokens of a batch, padding included.
        max_tokens: Tokens of a text that are read, from its beginning, special ones and prompt
            included.
        prompt: Put before every text.
        compute_dtype: dtype of activations and products; float32 is computed with float32 products
            everywhere.
    """

    tokens_per_batch: int
    max_tokens: int
    prompt: str
    compute_dtype: str


def choose_options(
    encoder: ImportedEncoder,
    *,
    tokens_per_batch: int | None = None,
    max_tokens: int | None = None,
    prompt: str | None = None,
    compute_dtype: Any = None,
) -> EmbedOptions:
    """Chooses what is None, where it depends on devices by those of this process.

    Args:
        encoder: The encoder.
        tokens_per_batch: None for what suits the devices.
        max_tokens: None for as many as the encoder is made for.
        prompt: None for what the encoder's folder says.
        compute_dtype: None for float32 on a CPU and bfloat16 on accelerators.

    Raises:
        ConfigError: `max_tokens` is more than the encoder can read, or less than 1; or
            `tokens_per_batch` is less than 1.
    """
    limit = encoder.config.max_tokens
    longest = encoder.max_tokens if max_tokens is None else max_tokens
    if not 1 <= longest <= limit:
        raise ConfigError(
            f"max_tokens is {longest}; the encoder {encoder.source} reads 1 to {limit} tokens"
        )
    tokens = suitable_tokens() if tokens_per_batch is None else tokens_per_batch
    if tokens < 1:
        raise ConfigError(f"tokens_per_batch is {tokens}; it must be at least 1")
    if compute_dtype is None:
        compute_dtype = suitable_dtype()
    return EmbedOptions(
        tokens_per_batch=tokens,
        max_tokens=longest,
        prompt=encoder.default_prompt if prompt is None else prompt,
        compute_dtype=jnp.dtype(compute_dtype).name,
    )


def suitable_tokens() -> int:
    """Returns the tokens of a batch that suit the devices of this process."""
    return (CPU_TOKENS if _on_cpu() else ACCELERATOR_TOKENS) * jax.local_device_count()


def suitable_dtype() -> str:
    """Returns the compute dtype that suits the devices of this process."""
    return "float32" if _on_cpu() else "bfloat16"


def _on_cpu() -> bool:
    return jax.local_devices()[0].platform == "cpu"


def make_embedder(encoder: ImportedEncoder, options: EmbedOptions) -> Embedder:
    """Puts an encoder on the devices of this process."""
    devices = jax.local_devices()
    dtype = jnp.dtype(options.compute_dtype)
    mesh = None if len(devices) == 1 else make_mesh(MeshShape(data=len(devices)), devices)
    placement = devices[0] if mesh is None else NamedSharding(mesh, PartitionSpec())
    params = to_runtime(encoder_layout(encoder.config), encoder.params)
    params = jax.device_put(jax.tree.map(lambda leaf: leaf.astype(dtype), params), placement)
    # A copy: truncation is a state of the tokenizer.
    tokenizer = Tokenizer.from_str(encoder.tokenizer.backend_tokenizer.to_str())
    tokenizer.enable_truncation(options.max_tokens)
    tokenizer.no_padding()
    return Embedder(
        config=encoder.config,
        params=params,
        tokenizer=tokenizer,
        prompt=options.prompt,
        pooling=encoder.pooling,
        max_tokens=options.max_tokens,
        tokens_per_batch=options.tokens_per_batch,
        compute_dtype=dtype,
        mesh=mesh,
    )
