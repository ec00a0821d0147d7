"""The parts of a tokenizer.json that `tokenizer.ggml.*` cannot represent, in a separate key.

GGUF has a name for the pre-tokenizer (`tokenizer.ggml.pre`), tokens, scores and merges. It loses a normalizer, white
space that added tokens absorb, unusual special tokens around a text, and pre-tokenizers without a name.
`lowbit.tokenizer.definition` has the tokenizer.json without its vocabulary, as JSON:

   normalizer, pre_tokenizer, decoder      as in tokenizer.json
   post_processor                          if it adds more than BOS and EOS around a text
   model                                   its options, without vocab and merges
   added_tokens                            [first id, number, names of the set flags], for consecutive ids
   contents                                id -> text of added tokens that differ from `tokenizer.ggml.tokens`

The vocabulary stays in its usual keys, with one exception: in a file with scores, the BPE merges do not always follow
from the scores; then they are in `lowbit.tokenizer.merges`. `lowbit.tokenizer.eos_token_ids` has all ids that end a
text, if config.json or generation_config.json lists more than GGUF has keys for. Other programs ignore these keys.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np
import tokenizers
from tokenizers import AddedToken, models

from lowbit.base.errors import FormatError, UnsupportedError
from lowbit.base.quoting import quoted
from lowbit.tokenizer.backend import Backend, BpeModel, backend_of
from lowbit.tokenizer.gguf import Vocab
from lowbit.tokenizer.sentencepiece import UNUSED
from lowbit.tokenizer.special import wrong_key

DEFINITION_KEY = "lowbit.tokenizer.definition"
MERGES_KEY = "lowbit.tokenizer.merges"
#: All ids that end a text, if GGUF's keys have only some.
EOS_IDS_KEY = "lowbit.tokenizer.eos_token_ids"
# Character maps (Precompiled) are the largest part: 300 KB.
_MAX_DEFINITION = 4 << 20
_PARTS = ("normalizer", "pre_tokenizer", "decoder")
#: Flags of an added token in tokenizer.json.
FLAGS = ("special", "single_word", "lstrip", "rstrip", "normalized")
_MODEL_OPTIONS = {
    "BPE": ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk", "byte_fallback",
            "ignore_merges"),
    "Unigram": ("unk_id", "byte_fallback"),
}  # fmt: skip

#: Options that the core has too, besides unk_token.
_CORE_OPTIONS = {"fuse_unk", "byte_fallback", "ignore_merges"}


def definition(tokenizer: dict[str, Any], metadata: Mapping[str, Any], with_frame: bool) -> str:
    """The key's value for a tokenizer.json whose vocabulary is in `metadata`. with_frame: includes post_processor."""
    tokens = metadata["tokenizer.ggml.tokens"]
    added = sorted((t for t in tokenizer.get("added_tokens") or [] if t["id"] < len(tokens)), key=lambda t: t["id"])
    # For consecutive ids, the difference from the position in the list is constant.
    rows = groupby(enumerate(added), lambda item: (item[1]["id"] - item[0], [f for f in FLAGS if item[1].get(f)]))
    groups = [([token for _, token in group], flags) for (_, flags), group in rows]
    value = {
        **{part: tokenizer.get(part) for part in _PARTS},
        **({"post_processor": tokenizer.get("post_processor")} if with_frame else {}),
        "model": {name: value for name, value in tokenizer["model"].items() if name not in ("vocab", "merges")},
        "added_tokens": [[group[0]["id"], len(group), flags] for group, flags in groups],
        "contents": {t["id"]: t["content"] for t in added if tokens[t["id"]] != t["content"]},
    }
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def build_defined(vocab: Vocab) -> tuple[Backend, bool]:
    """The backend of the file's definition, and whether it adds the special tokens around texts."""
    value = _read(vocab.text(DEFINITION_KEY))
    skeleton: dict[str, Any] = {
        "version": "1.0",
        "added_tokens": [],
        "model": {"type": "BPE", "vocab": {}, "merges": []},
        **{part: value.get(part) for part in (*_PARTS, "post_processor")},
    }
    contents: dict[int, str] = {}
    for token_id, text in _object(value, "contents").items():
        if not token_id.isdecimal() or not int(token_id) < len(vocab) or not isinstance(text, str):
            raise _error(f"contents has {quoted(token_id, 40)}", expected=f"ids below {len(vocab)}", found=token_id)
        contents[int(token_id)] = text
    vocab = vocab.spelled(contents)
    steps = tokenizers.Tokenizer.from_str(json.dumps(skeleton))
    model = _model(vocab, _object(value, "model"))
    return backend_of(steps, model, _added(value.get("added_tokens"), vocab)), value.get("post_processor") is not None


def _error(text: str, **fields: Any) -> FormatError:
    return FormatError(f"{DEFINITION_KEY}: {text}", key=DEFINITION_KEY, **fields)


def _read(text: str) -> dict[str, Any]:
    if len(text) > _MAX_DEFINITION:
        raise _error(f"{len(text)} characters", expected=f"at most {_MAX_DEFINITION}", found=len(text))
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise _error(f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise wrong_key(DEFINITION_KEY, "an object", type(value).__name__)
    return value


def _object(value: dict[str, Any], name: str) -> dict[str, Any]:
    part = value.get(name, {})
    if not isinstance(part, dict):
        raise _error(f"{name}:", expected="an object", found=type(part).__name__)
    return part


def _model(vocab: Vocab, options: dict[str, Any]) -> BpeModel | models.Model:
    kind = options.get("type")
    if kind not in _MODEL_OPTIONS:
        raise UnsupportedError(
            f"{DEFINITION_KEY}: unsupported model {quoted(kind, 40)}",
            key=DEFINITION_KEY,
            expected="BPE or Unigram",
            found=kind,
        )
    known = {name: options[name] for name in _MODEL_OPTIONS[kind] if options.get(name) is not None}
    if kind == "Unigram":
        return models.Unigram(list(zip(vocab.texts(), vocab.scores().tolist(), strict=True)), **known)
    # The file also numbers rows of the embedding that have no token.
    unused = np.flatnonzero(vocab.types == UNUSED).tolist()
    pairs = zip(unused, vocab.texts(unused), strict=True)
    vocab = vocab.spelled({i: "" for i, text in pairs if text == f"[PAD{i}]"})
    key = next((key for key in (MERGES_KEY, "tokenizer.ggml.merges") if vocab.has(key)), None)
    model = BpeModel(vocab.index, vocab.score_merges() if key is None else vocab.merges(key))
    unknown = known.pop("unk_token", None)
    unknown_id = vocab.index.find(unknown) if isinstance(unknown, str) else None
    known = {name: value for name, value in known.items() if value != ""}  # a prefix or suffix
    in_core = known.keys() <= _CORE_OPTIONS and all(isinstance(value, bool) for value in known.values())
    if in_core and (unknown is None or unknown_id is not None):
        return replace(model, unknown=unknown_id, **known)
    return model.in_library(unk_token=unknown, **known)


def _added(rows: Any, vocab: Vocab) -> list[AddedToken]:
    added: list[AddedToken] = []
    for row in rows if isinstance(rows, list) else []:
        match row:
            case [int(first), int(count), [*flags]] if first >= 0 and 0 <= count <= len(vocab) - first:
                if len(added) + count > len(vocab):
                    raise _error("added_tokens: too many", expected=f"at most {len(vocab)}, the number of tokens")
                set_flags = {flag: flag in flags for flag in FLAGS}
                added += [AddedToken(token, **set_flags) for token in vocab.texts(range(first, first + count))]
            case _:
                raise _error(
                    "added_tokens:", expected=f"[first id, count, flags] of {len(vocab)} tokens", found=quoted(row, 60)
                )
    return added
