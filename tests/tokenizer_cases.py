"""Cut-down vocabularies and the ids that llama.cpp gives for them, from tests/make_tokenizer_reference.py."""

import numpy as np
from stored import stored

REFERENCE = stored("tokenizers")

#: One vocabulary of each kind, for tests that take long.
KINDS = ("llama-bpe", "llama-spm", "phi-3", "gemma-4", "bert-bge", "nomic-bert-moe")


def metadata(name: str) -> dict:
    """Tokenizer metadata as a GGUF reader gives it: numeric arrays are ndarrays."""
    fields = dict(REFERENCE[name]["metadata"])
    for key, dtype in (("token_type", np.int32), ("scores", np.float32)):
        if f"tokenizer.ggml.{key}" in fields:
            fields[f"tokenizer.ggml.{key}"] = np.array(fields[f"tokenizer.ggml.{key}"], dtype)
    return fields
