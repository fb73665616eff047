"""Heads of encoder checkpoints against `transformers`, and what is drawn anew."""

import jax
import numpy as np
import pytest

from jaxrecipes.checkpoint.encoder import import_encoder
from jaxrecipes.checkpoint.encoder_heads import import_classifier, import_masked_head
from jaxrecipes.checkpoint.export_encoder import export_encoder
from jaxrecipes.errors import CheckpointError
from jaxrecipes.models.encoder import encode
from jaxrecipes.models.heads import (
    ClassificationHead,
    classify,
    family_head,
    masked_logits,
    masked_states,
    mean_head,
)
from tests.encoders import write_encoder

torch = pytest.importorskip("torch", reason="transformers computes with torch")

KEY = jax.random.key(0)
POSITIONS = np.tile(np.arange(12, dtype=np.int32), (3, 1))
SEGMENTS = (np.array([12, 7, 3])[:, None] > POSITIONS).astype(np.int32)
TOKENS = np.random.default_rng(0).integers(5, 50, (3, 12)).astype(np.int32)
TYPES = (POSITIONS > 4).astype(np.int32) * SEGMENTS
LABELS = ("bad", "fair", "good", "great")


def write_classifier(folder, kind):
    """A tiny classifier with noise everywhere, as transformers writes it."""
    from transformers import AutoModelForSequenceClassification

    write_encoder(folder, kind)
    model = AutoModelForSequenceClassification.from_pretrained(
        folder, id2label=dict(enumerate(LABELS)), attn_implementation="eager"
    ).eval()
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def their_logits(model, **extra):
    with torch.no_grad():
        inputs = torch.tensor(TOKENS, dtype=torch.long), torch.tensor(SEGMENTS)
        return model(input_ids=inputs[0], attention_mask=inputs[1], **extra).logits.numpy()


def our_states(encoder, **options):
    positions = POSITIONS * SEGMENTS
    return encode(encoder.config, encoder.params, TOKENS, SEGMENTS, positions, **options)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
def test_classifiers_are_those_of_transformers(kind, tmp_path):
    model = write_classifier(tmp_path, kind)
    encoder = import_encoder(tmp_path)
    head = family_head(encoder.config.family, 4)
    found = import_classifier(encoder, head, LABELS, KEY)
    assert not found.drawn
    ours = classify(head, found.params, our_states(encoder), SEGMENTS)
    np.testing.assert_allclose(ours[:, 0], their_logits(model), atol=1e-5)


def test_the_second_text_of_a_pair_has_its_type(tmp_path):
    model = write_classifier(tmp_path, "bert")
    encoder = import_encoder(tmp_path)
    head = family_head("bert", 4)
    found = import_classifier(encoder, head, LABELS, KEY)
    theirs = their_logits(model, token_type_ids=torch.tensor(TYPES, dtype=torch.long))
    ours = classify(head, found.params, our_states(encoder, type_ids=TYPES), SEGMENTS)
    np.testing.assert_allclose(ours[:, 0], theirs, atol=1e-5)
    assert not np.allclose(theirs, their_logits(model), atol=1e-3)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta", "minilm"])
def test_masked_heads_are_those_of_transformers(kind, tmp_path):
    from transformers import AutoModelForMaskedLM

    write_encoder(tmp_path, kind, head=True)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    encoder = import_encoder(tmp_path)
    found = import_masked_head(encoder, KEY)
    assert not found.drawn
    states = masked_states(encoder.config, found.params, our_states(encoder))
    table = encoder.params["embedding"]["token"]["table"]
    ours = masked_logits(states.reshape(36, -1), table, found.params["bias"]).reshape(3, 12, -1)
    inside = SEGMENTS > 0
    np.testing.assert_allclose(ours[inside], their_logits(model)[inside], atol=2e-5)


def test_what_a_checkpoint_lacks_is_drawn_and_named(tmp_path):
    write_encoder(tmp_path, "bert")
    encoder = import_encoder(tmp_path)
    head = family_head("bert", 4)
    found = import_classifier(encoder, head, LABELS, KEY)
    assert found.drawn == ("classifier/output/kernel", "classifier/output/bias")
    assert "drawn anew" in found.origin
    assert "classifier/output/kernel" in found.origin
    # The pooler is there.
    again = import_classifier(encoder, head, LABELS, jax.random.key(1))
    np.testing.assert_array_equal(found.params["dense"]["kernel"], again.params["dense"]["kernel"])
    assert np.any(found.params["output"]["kernel"] != again.params["output"]["kernel"])
    masked = import_masked_head(encoder, KEY)
    assert len(masked.drawn) == 5
    mean = import_classifier(encoder, mean_head(4), LABELS, KEY)
    assert mean.drawn == ("classifier/output/kernel", "classifier/output/bias")


def test_a_head_for_other_classes_is_not_taken(tmp_path):
    write_classifier(tmp_path, "roberta")
    encoder = import_encoder(tmp_path)
    head = family_head("roberta", 4)
    found = import_classifier(encoder, head, LABELS[::-1], KEY)
    assert found.drawn == ("classifier/output/kernel", "classifier/output/bias")
    assert "these classes" in found.origin
    with pytest.raises(CheckpointError, match="3 labels for a head of 4 classes"):
        import_classifier(encoder, head, LABELS[:3], KEY)


def test_an_untied_decoder_is_refused(tmp_path):
    from safetensors.numpy import load_file, save_file

    write_encoder(tmp_path, "bert", head=True)
    tensors = load_file(tmp_path / "model.safetensors")
    table = tensors["bert.embeddings.word_embeddings.weight"]
    tensors["cls.predictions.decoder.weight"] = table + 1.0
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"decoder\.weight is not the token table"):
        import_masked_head(import_encoder(tmp_path), KEY)


def test_heads_that_transformers_does_not_have_are_drawn_whole(tmp_path):
    write_classifier(tmp_path, "bert")
    encoder = import_encoder(tmp_path)
    head = ClassificationHead(4, pooling="mean")
    assert len(import_classifier(encoder, head, LABELS, KEY).drawn) == 4


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlm-roberta"])
def test_an_exported_classifier_is_one_in_transformers(kind, tmp_path):
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    encoder = import_encoder(write_encoder(tmp_path / "source", kind))
    head = family_head(encoder.config.family, 4)
    found = import_classifier(encoder, head, LABELS, KEY)
    params = {**encoder.params, "classifier": jax.tree.map(lambda leaf: leaf + 0.1, found.params)}
    folder = export_encoder(
        tmp_path / "exported", encoder, params, model_card="# it", head=head, labels=LABELS
    )
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, attn_implementation="eager", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert model.config.id2label == dict(enumerate(LABELS))
    assert model.config.label2id["good"] == 2
    ours = classify(head, params["classifier"], our_states(encoder), SEGMENTS)
    np.testing.assert_allclose(ours[:, 0], their_logits(model.eval()), atol=1e-5)
    ids = AutoTokenizer.from_pretrained(folder)("the cat")["input_ids"]
    assert ids == encoder.tokenizer("the cat")["input_ids"]
    again = import_classifier(import_encoder(folder), head, LABELS, KEY)
    assert not again.drawn


@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_an_exported_masked_language_model_is_one_in_transformers(kind, tmp_path):
    from transformers import AutoModelForMaskedLM

    encoder = import_encoder(write_encoder(tmp_path / "source", kind))
    head = jax.tree.map(lambda leaf: leaf + 0.1, import_masked_head(encoder, KEY).params)
    params = {**encoder.params, "masked_head": head}
    folder = export_encoder(tmp_path / "exported", encoder, params, model_card="# it")
    model = AutoModelForMaskedLM.from_pretrained(folder, attn_implementation="eager").eval()
    states = masked_states(encoder.config, head, our_states(encoder))
    table = encoder.params["embedding"]["token"]["table"]
    ours = masked_logits(states.reshape(36, -1), table, head["bias"]).reshape(3, 12, -1)
    inside = SEGMENTS > 0
    np.testing.assert_allclose(ours[inside], their_logits(model)[inside], atol=2e-5)


def test_an_encoder_alone_and_what_cannot_be_exported(tmp_path):
    encoder = import_encoder(write_encoder(tmp_path / "source", "bert"))
    folder = export_encoder(tmp_path / "bare", encoder, encoder.params, model_card="# it")
    assert import_encoder(folder).config == encoder.config
    head = mean_head(2)
    params = {**encoder.params, "classifier": import_classifier(encoder, head, "ab", KEY).params}
    with pytest.raises(CheckpointError, match="mean pooling.*no form in transformers"):
        export_encoder(
            tmp_path / "mean", encoder, params, model_card="", head=head, labels=("a", "b")
        )
    with pytest.raises(CheckpointError, match="a name of its own for each class"):
        export_encoder(
            tmp_path / "mean", encoder, params, model_card="", head=head, labels=("a", "a")
        )
    two = {**params, "masked_head": import_masked_head(encoder, KEY).params}
    with pytest.raises(CheckpointError, match="two heads"):
        export_encoder(tmp_path / "two", encoder, two, model_card="")
    assert not (tmp_path / "mean").exists()
