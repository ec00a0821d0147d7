"""Tokenizing by llama.cpp's library, for the scripts that compare with it: one load for many texts."""

import ctypes as c
from pathlib import Path


class _Params(c.Structure):
    """llama_model_params, as of September 2026; only `vocab_only` is changed, and its place is checked."""

    _fields_ = [
        ("pointers", c.c_void_p * 2),
        ("numbers", c.c_int32 * 5),
        ("more", c.c_void_p * 4),
        ("vocab_only", c.c_bool),
        ("flags", c.c_bool * 5),
    ]


class LlamaVocabulary:
    """The vocabulary of a GGUF file. library: a path to libllama.so."""

    def __init__(self, library: str, path: Path) -> None:
        self._library = llama = c.CDLL(library)
        llama.llama_log_set(_SILENT, None)
        llama.llama_model_default_params.restype = _Params
        llama.llama_model_load_from_file.argtypes = [c.c_char_p, _Params]
        llama.llama_model_load_from_file.restype = c.c_void_p
        llama.llama_model_get_vocab.argtypes = [c.c_void_p]
        llama.llama_model_get_vocab.restype = c.c_void_p
        llama.llama_tokenize.argtypes = [c.c_void_p, c.c_char_p, c.c_int32, c.c_void_p, c.c_int32, c.c_bool, c.c_bool]
        llama.llama_model_free.argtypes = [c.c_void_p]
        llama.llama_backend_init()
        params = llama.llama_model_default_params()
        params.vocab_only = True
        self._model = llama.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self._vocab = llama.llama_model_get_vocab(self._model)

    def encode(self, text: str, special: bool) -> list[int]:
        """Ids of `text`: with BOS and special tokens, or as plain text."""
        data = text.encode()
        ids = (c.c_int32 * (len(data) + 16))()
        count = self._library.llama_tokenize(self._vocab, data, len(data), ids, len(ids), special, special)
        return list(ids[:count])

    def close(self) -> None:
        """Frees the model."""
        self._library.llama_model_free(self._model)


_SILENT = c.CFUNCTYPE(None, c.c_int, c.c_char_p, c.c_void_p)(lambda *_: None)
