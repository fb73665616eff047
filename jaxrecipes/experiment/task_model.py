"""The model of the adaptive recipes: an encoder or a decoder, behind the same few functions."""

from __future__ import annotations

import json
from collections.abc import Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from jaxrecipes import __version__
from jaxrecipes.checkpoint.encoder import ImportedEncoder, import_encoder
from jaxrecipes.checkpoint.encoder_heads import import_masked_head
from jaxrecipes.checkpoint.huggingface import import_checkpoint
from jaxrecipes.checkpoint.random_model import ENCODER_PRESETS, write_random_encoder
from jaxrecipes.checkpoint.reference import resolve_reference
from jaxrecipes.checkpoint.sentence_folder import read_sentence_settings
from jaxrecipes.data.plain_texts import PlainText
from jaxrecipes.data.text_batches import TokenizedTexts, tokenize_texts
from jaxrecipes.data.tokenize import end_token
from jaxrecipes.errors import ConfigError
from jaxrecipes.experiment.base_model import RANDOM_PREFIX, locate_base
from jaxrecipes.models.config import ModelConfig
from jaxrecipes.models.encoder import encoder_layout
from jaxrecipes.models.encoder_config import ENCODER_FAMILIES, EncoderConfig
from jaxrecipes.models.heads import ClassificationHead, family_head, mean_head
from jaxrecipes.models.stacking import Layout
from jaxrecipes.params.layout import plan_layout
from jaxrecipes.params.paths import Tree
from jaxrecipes.params.rules import label
from jaxrecipes.stages import run_stage
from jaxrecipes.train.backbone import Backbone, decoder_backbone, encoder_backbone
from jaxrecipes.train.masking import MaskingSettings
from jaxrecipes.train.objectives import Objective, causal_objective, masked_objective


@dataclass(frozen=True)
class TaskModel:
    """A model in memory, with what phases need to know of it.

    Attributes:
        config: What it computes.
        params: Canonical tree, float32.
        tokenizer: Its tokenizer.
        layout: Runtime layout of the tree; all leaves train.
        max_tokens: Longest row that it can read.
        pad_token_id: Fills a row.
        fingerprint: Hash of weights, configuration and tokenizer.
        compute_dtype: dtype of activations and products.
        encoder: The same as an encoder; None for a decoder.
    """

    config: EncoderConfig | ModelConfig
    params: Tree
    tokenizer: Any
    layout: Layout
    max_tokens: int
    pad_token_id: int
    fingerprint: str
    compute_dtype: Any = jnp.float32
    encoder: ImportedEncoder | None = None

    @property
    def objective_name(self) -> str:
        """What it is pretrained with: "masked" or "causal"."""
        return "causal" if self.encoder is None else "masked"

    def backbone(self, dropout: float) -> Backbone:
        """Returns the model up to its hidden states; decoders have no dropout."""
        dtype = self.compute_dtype
        if isinstance(self.config, EncoderConfig):
            return encoder_backbone(
                self.config, layout=self.layout, dropout=dropout, compute_dtype=dtype
            )
        return decoder_backbone(self.config, layout=self.layout, compute_dtype=dtype)

    def head(self, kind: str, classes: int, dropout: float) -> ClassificationHead:
        """Returns a classification head.

        Args:
            kind: "family" or "mean".
            classes: Number of classes.
            dropout: Of an encoder's head.

        Raises:
            ConfigError: A decoder's mean: early tokens have not seen the text.
        """
        if kind == "mean":
            if self.encoder is None:
                raise ConfigError(
                    "model.head: mean is for encoders; the tokens of a decoder have seen what is "
                    "before them only. Take family, which reads the last token"
                )
            return mean_head(classes, dropout=dropout)
        return family_head(self.config.family, classes, dropout=dropout)

    def refuse_unread(self, given: Set[str], where: str) -> None:
        """Refuses options of encoders for a decoder, which would not read them.

        Args:
            given: Names of the options that were given.
            where: What they were given to, for the message.

        Raises:
            ConfigError: The model is a decoder, and there is such an option.
        """
        unread = sorted(given & {"masking", "dropout"})
        if self.encoder is None and unread:
            raise ConfigError(
                f"{where}: a decoder does not read {' and '.join(unread)}; remove it from the phase"
            )

    def tokenize_labelled(
        self, texts: Sequence[tuple[str, ...]], max_tokens: int
    ) -> TokenizedTexts:
        """Tokenizes the texts of labelled rows, one row each; what is longer is cut."""
        return self._tokenize(texts, max_tokens, split_long=False, end=None)

    def tokenize_plain(self, texts: Sequence[PlainText], max_tokens: int) -> TokenizedTexts:
        """Tokenizes texts for pretraining: long ones become several rows, none is cut.

        A decoder's end with the token that ends a text.
        """
        end = None
        if self.encoder is None:
            end = end_token(self.tokenizer, self.config.vocab_size)
        return self._tokenize([text.texts for text in texts], max_tokens, split_long=True, end=end)

    def _tokenize(
        self,
        texts: Sequence[tuple[str, ...]],
        max_tokens: int,
        *,
        split_long: bool,
        end: int | None,
    ) -> TokenizedTexts:
        if max_tokens > self.max_tokens:
            raise ConfigError(
                f"max_tokens is {max_tokens}; the model reads {self.max_tokens} tokens at most"
            )
        types = isinstance(self.config, EncoderConfig) and self.config.type_vocab_size > 1
        if self.encoder is None:  # a decoder's tokenizer would put a pair together without a border
            texts = [("\n\n".join(text),) for text in texts]
        return tokenize_texts(
            self.tokenizer.backend_tokenizer,
            texts,
            max_tokens=max_tokens,
            split_long=split_long,
            types=types,
            end_token_id=end,
        )

    def with_pretraining_head(self, params: Tree, seed: int) -> tuple[Tree, str]:
        """Adds the head of masked language modelling where there is none yet.

        Args:
            params: Canonical tree.
            seed: Of leaves that are drawn.

        Returns:
            The tree, and a sentence that says what was read and what was drawn; "" for decoders,
            whose head is their own, and where there was one already.
        """
        if self.encoder is None or "masked_head" in params:
            return params, ""
        read = import_masked_head(self.encoder, jax.random.key(seed))
        return {**params, "masked_head": read.params}, read.origin

    def pretraining_objective(
        self, dropout: float, *, rate: float, mask_share: float, random_share: float, whole: bool
    ) -> Objective:
        """Returns what pretraining minimises; the arguments are those of `MaskingSettings`.

        Raises:
            ConfigError: An encoder's tokenizer has no mask token.
        """
        if isinstance(self.config, ModelConfig):
            return causal_objective(
                self.config, layout=self.layout, compute_dtype=self.compute_dtype
            )
        mask = self.tokenizer.mask_token_id
        if mask is None:
            raise ConfigError(
                "model.checkpoint: its tokenizer has no mask token, which masked language "
                "modelling needs; set mask_token in tokenizer_config.json"
            )
        masking = MaskingSettings(
            int(np.asarray(mask)),
            self.config.vocab_size,
            tuple(self.tokenizer.all_special_ids),
            rate=rate,
            mask_share=mask_share,
            random_share=random_share,
            whole_words=whole,
        )
        return masked_objective(self.backbone(dropout), self.config, masking)


def of_encoder(encoder: ImportedEncoder, compute_dtype: Any = jnp.float32) -> TaskModel:
    """Makes an imported encoder a model for phases."""
    return TaskModel(
        config=encoder.config,
        params=jax.tree.map(lambda leaf: leaf.astype(jnp.float32), encoder.params),
        tokenizer=encoder.tokenizer,
        layout=encoder_layout(encoder.config),
        # Not what a sentence encoder's folder recommends, but what its position table holds.
        max_tokens=encoder.config.max_tokens,
        pad_token_id=encoder.config.pad_token_id,
        fingerprint=encoder.fingerprint,
        compute_dtype=compute_dtype,
        encoder=encoder,
    )


def read_task_model(
    checkpoint: str,
    revision: str | None,
    output: Path,
    *,
    compute_dtype: str,
    seed: int,
    console: Console,
) -> TaskModel:
    """Reads the model of an experiment.

    Args:
        checkpoint: The config's `model.checkpoint`.
        revision: Commit, tag or branch of a hub id.
        output: The run folder, where a random model is drawn and a GGUF file converted.
        compute_dtype: Name of the dtype of activations and products.
        seed: Of a random model.
        console: Where to say what is done.

    Returns:
        The model: an encoder where its family is one, else a decoder.

    Raises:
        CheckpointError: There is no usable checkpoint.
        ConfigError: An unknown random preset.
    """
    dtype = jnp.dtype(compute_dtype)
    preset = checkpoint.removeprefix(RANDOM_PREFIX)
    if checkpoint.startswith(RANDOM_PREFIX) and preset in ENCODER_PRESETS:
        drawn = run_stage(
            output / "base",
            {"random": preset, "seed": seed, "code": __version__},
            lambda target: write_random_encoder(target / "model", preset, seed=seed),
        )
        return of_encoder(import_encoder(drawn.folder / "model"), dtype)
    if not checkpoint.startswith(RANDOM_PREFIX):
        source = resolve_reference(checkpoint, revision=revision)
        if _is_encoder(source):
            return of_encoder(import_encoder(source), dtype)
    base = locate_base(checkpoint, revision, output, seed=seed, console=console)
    imported = import_checkpoint(base.folder, dtype=np.float32)
    pad = base.tokenizer.pad_token_id
    pad = base.tokenizer.eos_token_id if pad is None else pad
    return TaskModel(
        config=imported.config,
        params=imported.params,
        tokenizer=base.tokenizer,
        layout=plan_layout(imported.config, label(imported.params, [(".*", True)])),
        max_tokens=imported.config.max_position_embeddings,
        pad_token_id=0 if pad is None else int(pad),
        fingerprint=base.fingerprint,
        compute_dtype=dtype,
    )


def _is_encoder(source: Path) -> bool:
    if source.is_file():
        return False
    path = read_sentence_settings(source).folder / "config.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("model_type") in ENCODER_FAMILIES
    except (OSError, ValueError, AttributeError):
        return False  # reading it as a decoder says what is wrong with it
