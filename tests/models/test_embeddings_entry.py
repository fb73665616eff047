"""Word embeddings as an entry to the models, against `transformers`' `inputs_embeds`."""

import jax
import numpy as np
import pytest

from jaxrecipes.checkpoint.encoder import import_encoder
from jaxrecipes.checkpoint.huggingface import import_checkpoint
from jaxrecipes.models.decoder import (
    embed,
    hidden_states,
    hidden_states_of_embeddings,
    logits,
)
from jaxrecipes.models.encoder import encode, encode_embeddings
from tests.encoders import write_encoder
from tests.tiny import packed_batch, tiny_config, tiny_params

TOKENS = np.random.default_rng(0).integers(0, 50, (2, 12)).astype(np.int32)
ONES, POSITIONS = np.ones_like(TOKENS), np.tile(np.arange(12, dtype=np.int32), (2, 1))


@pytest.mark.parametrize("kind", ["llama", "sandwich"])
def test_a_decoder_from_its_own_embeddings_is_itself(kind):
    config = tiny_config(kind)
    params, batch = tiny_params(config), packed_batch(config)
    places = batch["segment_ids"], batch["positions"]
    plain = jax.jit(lambda: hidden_states(config, params, batch["token_ids"], *places))()
    embeddings = embed(config, params, batch["token_ids"], np.float32)
    entered = jax.jit(lambda: hidden_states_of_embeddings(config, params, embeddings, *places))()
    np.testing.assert_allclose(entered, plain, atol=1e-6)


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_a_perturbed_decoder_is_that_of_transformers(family, tiny_checkpoint):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    folder = tiny_checkpoint(family)
    imported = import_checkpoint(folder)
    noise = 0.1 * np.random.default_rng(1).normal(size=(2, 12, 32)).astype(np.float32)
    embeddings = embed(imported.config, imported.params, TOKENS, np.float32) + noise
    states = hidden_states_of_embeddings(
        imported.config, imported.params, embeddings, ONES, POSITIONS
    )
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        theirs = model(inputs_embeds=torch.tensor(np.asarray(embeddings))).logits
    ours = logits(imported.config, imported.params, states)
    np.testing.assert_allclose(ours, theirs, atol=2e-4)


def test_a_perturbed_encoder_adds_positions_and_norm_once(tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModel

    folder = write_encoder(tmp_path / "bert", "bert")
    encoder = import_encoder(folder)
    noise = 0.1 * np.random.default_rng(1).normal(size=(2, 12, 32)).astype(np.float32)
    embeddings = np.asarray(encoder.params["embedding"]["token"]["table"])[TOKENS] + noise
    ours = encode_embeddings(encoder.config, encoder.params, embeddings, ONES, POSITIONS)
    model = AutoModel.from_pretrained(folder, attn_implementation="eager")
    with torch.no_grad():
        theirs = model(inputs_embeds=torch.tensor(embeddings)).last_hidden_state
    np.testing.assert_allclose(ours, theirs, atol=2e-4)
    plain = encode(encoder.config, encoder.params, TOKENS, ONES, POSITIONS)
    assert np.abs(np.asarray(plain) - np.asarray(ours)).max() > 1e-2
