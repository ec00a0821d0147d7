"""The files beside a model for onnxruntime-genai 0.18: its configuration and the tokenizer.

| file | from a checkpoint | from a GGUF file |
| --- | --- | --- |
| tokenizer.json | copied; made if there is only tokenizer.model, or vocab.json and merges.txt | made |
| tokenizer_config.json | with a class that genai accepts and one chat template, in it | made |
| genai_config.json | made | made |
| config.json, which genai does not read, for `lowbit convert` | copied | made, if it can express the network |
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import models

from lowbit import gguf
from lowbit.arch import of_metadata
from lowbit.base.errors import UnsupportedError
from lowbit.base.files import read_bytes
from lowbit.base.foreign import of_file
from lowbit.base.paths import is_file
from lowbit.conversion.export_hf import generation_config
from lowbit.export.genai_config import GraphFacts, genai_config
from lowbit.export.genai_differences import GenaiDifference, template_differences, tokenizer_differences
from lowbit.export.source import Source
from lowbit.gguf.source import gguf_tensors
from lowbit.hf.checkpoint import MAX_JSON_BYTES
from lowbit.hf.hub import resolve
from lowbit.tokenizer.files import rebuilt_definition
from lowbit.tokenizer.load import Tokenizer, read_tokenizer
from lowbit.tokenizer.special import id_key
from lowbit.tokenizer.to_hf import tokenizer_files
from lowbit.tokenizer.tokenizer_json import merged_config, read_optional

#: Classes of tokenizer_config.json that genai accepts and treats as their tokenizer.json says, without "Fast".
_CLASSES = ("CodeGenTokenizer", "GPT2Tokenizer", "GemmaTokenizer", "LlamaTokenizer", "Qwen2Tokenizer")
_ANY_CLASS = "PreTrainedTokenizerFast"
#: The class with which genai reads a unigram vocabulary.
_UNIGRAM_CLASS = "T5Tokenizer"


class GenaiFiles(NamedTuple):
    """files: name -> content. differences: what genai does differently with the tokenizer and the chat template."""

    files: dict[str, bytes]
    differences: list[GenaiDifference]


def genai_files(
    source: Source, graph: GraphFacts, provider: Mapping[str, Mapping[str, str]] | None = None
) -> GenaiFiles:
    """All files of the folder but the model.

    source: the network that the model computes. Others: as for `genai_config`. Raises the errors of
    `lowbit.load_tokenizer`.
    """
    read = _read_gguf if source.is_gguf else _read_checkpoint
    tokenizer, definition, config, generation, network = read(source)
    config = _config(config, tokenizer)
    settings = genai_config(source.spec, generation, graph, provider)
    differences = [
        *_end_differences(settings["model"]),
        *tokenizer_differences(tokenizer, config["tokenizer_class"]),
        *template_differences(tokenizer.chat_templates, tokenizer.special_tokens),
    ]
    files = {"genai_config.json": _json(settings), "tokenizer.json": definition, "tokenizer_config.json": _json(config)}
    return GenaiFiles(files if network is None else {**files, "config.json": network}, differences)


class _Read(NamedTuple):
    """A source's tokenizer, tokenizer.json, tokenizer_config.json, generation_config.json, and config.json."""

    tokenizer: Tokenizer
    definition: bytes
    config: dict[str, Any]
    generation: dict[str, Any]
    network: bytes | None


def _read_gguf(source: Source) -> _Read:
    with gguf.open(source.path) as file, of_file(source.path):
        tokenizer, files = tokenizer_files(file.metadata, source.spec.context_length)
        generation = generation_config(file.metadata, tokenizer)
        sources = {name: tensor.weights() for name, tensor in gguf_tensors(file).items()}
        try:
            network = _json(of_metadata(file.metadata, file.infos).hf_config(file.metadata, sources))
        except UnsupportedError:  # config.json cannot express it
            network = None
    return _Read(tokenizer, _json(files["tokenizer.json"]), files["tokenizer_config.json"], generation, network)


def _read_checkpoint(source: Source) -> _Read:
    folder, _ = resolve(source.path, weights=False)
    tokenizer = read_tokenizer(folder)
    config = merged_config(folder, [])
    generation = generation_config(source.metadata, tokenizer)
    for role in ("bos", "pad"):  # which config.json can name alone
        generation.setdefault(f"{role}_token_id", source.metadata.get(id_key(role)))
    generation["do_sample"] = read_optional(folder / "generation_config.json").get("do_sample") is True
    network = read_bytes(folder / "config.json", MAX_JSON_BYTES)
    return _Read(tokenizer, _definition(folder, config, tokenizer), config, generation, network)


def _definition(folder: Path, config: Mapping[str, Any], tokenizer: Tokenizer) -> bytes:
    """tokenizer.json of a checkpoint."""
    path = folder / "tokenizer.json"
    if is_file(path) and rebuilt_definition(folder, config) is None:
        return read_bytes(path, MAX_JSON_BYTES)
    return tokenizer.backend.to_str().encode()


def _config(config: Mapping[str, Any], tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer_config.json with one template: genai reads neither a list of them nor several files, and this file
    before chat_template.jinja."""
    result = {**config, **tokenizer.special_tokens, "tokenizer_class": _accepted_class(config, tokenizer)}
    result.pop("chat_template", None)
    return result if tokenizer.chat_template is None else {**result, "chat_template": tokenizer.chat_template}


def _accepted_class(config: Mapping[str, Any], tokenizer: Tokenizer) -> str:
    if isinstance(tokenizer.backend.model, models.Unigram):
        return _UNIGRAM_CLASS
    name = str(config.get("tokenizer_class", ""))
    return name if name.removesuffix("Fast") in _CLASSES else _ANY_CLASS


def _end_differences(model: Mapping[str, Any]) -> list[GenaiDifference]:
    if "eos_token_id" in model:
        return []
    token_id = model.get("pad_token_id", 0)
    return [
        GenaiDifference("eos", f"ends every text at token {token_id}, because the model names no token that ends one")
    ]


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
