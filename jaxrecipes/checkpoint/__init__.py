"""Reading and writing models, tokenizers and training states."""
