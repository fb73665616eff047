"""Reading and writing models, tokenizers and training states."""

from jaxrecipes.checkpoint.delta import read_delta, write_delta
from jaxrecipes.checkpoint.huggingface import (
    Imported,
    export_checkpoint,
    import_checkpoint,
    read_model_config,
)
from jaxrecipes.checkpoint.tokenizer import load_tokenizer, tokenizer_fingerprint
from jaxrecipes.checkpoint.training_state import TrainingStates

__all__ = [
    "Imported",
    "TrainingStates",
    "export_checkpoint",
    "import_checkpoint",
    "load_tokenizer",
    "read_delta",
    "read_model_config",
    "tokenizer_fingerprint",
    "write_delta",
]
