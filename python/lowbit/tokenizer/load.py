"""Text to token ids and back, for Hugging Face folders and GGUF files."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import tokenizers
from tokenizers import models, processors

from lowbit import gguf
from lowbit.base import arguments
from lowbit.base.errors import Error, FileError, FormatError, InputError, UnsupportedError
from lowbit.base.files import read_bytes
from lowbit.base.foreign import named, of_file
from lowbit.base.log import log_notes
from lowbit.base.paths import AnyPath, is_dir, is_file
from lowbit.base.progress import ProgressLike, steps
from lowbit.base.quoting import listed, quoted, reason, shown
from lowbit.hf.checkpoint import MAX_JSON_BYTES
from lowbit.hf.hub import resolve
from lowbit.tokenizer.backend import Backend, LibraryBackend
from lowbit.tokenizer.chat_files import folder_templates, template_names
from lowbit.tokenizer.limits import check_growth, state
from lowbit.tokenizer.special import ROLES, id_key, known_ends, listed_ends
from lowbit.tokenizer.stream import TextStream, piece_decoder
from lowbit.tokenizer.tokenizer_json import merged_config, named_text, read_optional


@contextlib.contextmanager
def _contained(error: type[Error], what: str, path: Path | None = None) -> Iterator[None]:
    """Converts errors of the tokenizers library to lowbit's errors. Its panics derive from BaseException."""
    try:
        yield
    except (Error, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as cause:
        raise error(f"{what}: {reason(cause)}", path=path) from cause


class Tokenizer:
    """Made by `lowbit.load_tokenizer`.

    Attributes:
        bos_id, eos_id, pad_id: int or None.
        eos_ids: every id that ends a generation, `eos_id` included.
        vocab_size: number of ids; ids without a token decode to nothing.
        chat_templates: name -> Jinja source.
        notes: on ignored contents of the files, one sentence each.
    """

    def __init__(
        self,
        backend: Backend,
        roles: Mapping[str, int],
        *,
        eos_ids: Iterable[int] = (),
        vocab_size: int = 0,
        chat_templates: Mapping[str, str] | None = None,
        notes: Iterable[str] = (),
    ) -> None:
        self._backend = backend
        self._decoder = state(backend.parts.decoder)
        check_growth(backend.parts)
        added = backend.added
        self._special = frozenset(i for i, t in added.items() if t.special)
        self._added = {i: t.content for i, t in added.items()}
        self._roles = dict(roles)
        self.bos_id = self._roles.get("bos")
        self.eos_id = self._roles.get("eos")
        self.pad_id = self._roles.get("pad")
        ends = known_ends({t.content: i for i, t in added.items()}) | set(eos_ids)
        self.eos_ids = frozenset(ends if self.eos_id is None else ends | {self.eos_id})
        self.vocab_size = vocab_size or backend.num_ids(0)
        self.chat_templates = dict(chat_templates or {})
        self.notes = list(notes)

    def __repr__(self) -> str:
        return f"<lowbit.Tokenizer of {self.vocab_size} tokens>"

    def encode(self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True) -> list[int]:
        """Ids of `text`.

        `add_special_tokens` adds BOS and EOS if the model was trained with them. With `parse_special=False` a special
        token in `text` is plain text. Raises InputError if `text` is not a string of Unicode characters (a lone
        surrogate is invalid).
        """
        if not isinstance(text, str):
            raise arguments.wrong("text", "a str", text)
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:  # for example a byte that is not UTF-8, from the command line or a pipe
            raise InputError(f"text has no Unicode character at {error.start}: {text[error.start]!r}") from None
        with _contained(InputError, "text cannot be tokenized"):
            return self._backend.encode(text, add_special_tokens, parse_special)

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = False) -> str:
        """Text of `ids` (ints or an integer array). Raises InputError for ids outside of the vocabulary."""
        checked = [self._checked(token_id) for token_id in arguments.items("ids", ids)]
        if arguments.flag("skip_special_tokens", skip_special_tokens):
            # By id: the library compares texts, so it would keep special tokens with the flag `normalized`.
            checked = [i for i in checked if i not in self._special]
        return self._decode_tokens([piece for piece in self._backend.pieces(checked) if piece is not None])

    def stream(self, *, skip_special_tokens: bool = False, continuation: bool = False) -> TextStream:
        """A decoder for ids that come one by one; its pieces together are `decode(ids)`.

        `continuation`: the ids go on from an earlier text, so the space in front of the first word stays.
        """
        skips = arguments.flag("skip_special_tokens", skip_special_tokens)
        pieces = piece_decoder(self._decoder, self._decode_tokens, arguments.flag("continuation", continuation))
        return TextStream(pieces, self._piece, self._special if skips else frozenset())

    def token(self, token_id: int) -> str:
        """The token as spelled in the vocabulary; "" for an id without a token. Raises InputError out of range."""
        piece = self._piece(token_id)
        return self._added.get(token_id, piece)

    def id(self, token: str) -> int:
        """Id of a token as spelled in the vocabulary. Raises InputError if there is none."""
        found = self._backend.id(arguments.text("token", token))
        if found is None:
            raise InputError(f"token {quoted(token)} is not in the vocabulary")
        return found

    @property
    def backend(self) -> tokenizers.Tokenizer:
        """The same as a `tokenizers.Tokenizer`. For a GGUF file it is built at first use. From then on it encodes, so
        changes of it are seen."""
        if not isinstance(self._backend, LibraryBackend):
            self._backend = LibraryBackend(self._backend.whole)
        return self._backend.whole

    @property
    def special_ids(self) -> frozenset[int]:
        """Ids that `skip_special_tokens` skips."""
        return self._special

    @property
    def added_tokens(self) -> dict[int, str]:
        """Texts of the tokens that are matched in a text before it is cut into words, by id."""
        return dict(self._added)

    @property
    def special_tokens(self) -> dict[str, str]:
        """The special tokens for templates: "bos_token" -> its text, and so on."""
        return {f"{role}_token": self.token(i) for role, i in self._roles.items()}

    @property
    def chat_template(self) -> str | None:
        """The default template."""
        return self.chat_templates.get("default")

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt for `messages`.

        chat_template: a template's name; by default "tool_use" where tools are given, else "default".
        tools: JSON schemas, or functions with type hints and a docstring in Google's style. `variables` are what else
        the template reads, or `continue_final_message=True`: the prompt ends where the last message does.
        The template writes BOS itself, so encode the result with `add_special_tokens=False`, or use `encode_chat`.
        Raises UnsupportedError if there is no such template, InputError if it refuses the messages, FormatError if it
        is broken.
        """
        from lowbit.chat.template import render_chat

        if chat_template is not None:
            chat_template = arguments.text("chat_template", chat_template)
        name = chat_template or ("tool_use" if tools is not None and "tool_use" in self.chat_templates else "default")
        source = self.chat_templates.get(name)
        if source is None:
            if not self.chat_templates:
                raise UnsupportedError(
                    "this model has no chat template: let it continue a text (lowbit run), or set a template "
                    "(lowbit metadata FILE set tokenizer.chat_template)"
                )
            has = listed(sorted(self.chat_templates), 9)
            raise UnsupportedError(f"this model has no chat template {quoted(name)}, only {has}")
        variables = {**self.special_tokens, **variables}
        return render_chat(source, messages, add_generation_prompt=add_generation_prompt, tools=tools, **variables)

    def encode_chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None = None,
        chat_template: str | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[int]:
        """Ids of the text that `apply_chat_template` gives for the same arguments: never with a second BOS."""
        text = self.apply_chat_template(
            messages,
            tools=tools,
            chat_template=chat_template,
            add_generation_prompt=add_generation_prompt,
            **variables,
        )
        return self.encode(text, add_special_tokens=False)

    def _checked(self, token_id: int) -> int:
        try:
            value = token_id.__index__()
        except (AttributeError, TypeError):
            raise InputError("token ids:", expected="integers", found=type(token_id).__name__) from None
        if not 0 <= value < self.vocab_size:
            raise InputError(f"token id {shown(value)}", expected=f"0 to {self.vocab_size - 1}", found=value)
        return value

    def _piece(self, token_id: int) -> str:
        return self._backend.pieces([self._checked(token_id)])[0] or ""

    def _decode_tokens(self, tokens: list[str]) -> str:
        decoder = self._backend.parts.decoder
        with _contained(InputError, "ids cannot be decoded"):
            return " ".join(tokens) if decoder is None else str(decoder.decode(tokens))


def _surround(backend: Backend, first: int | None, last: int | None) -> None:
    """Makes `backend` add these tokens before and after a text."""
    added = backend.added
    named = {i: added[i].content if i in added else backend.pieces([i])[0] for i in (first, last) if i is not None}
    single = [*([named[first]] if first in named else []), "$A", *([named[last]] if last in named else [])]
    backend.parts.post_processor = processors.TemplateProcessing(
        single=single, pair=[*single, "$B"], special_tokens=[(token, token_id) for token_id, token in named.items()]
    )


class _HasMetadata(Protocol):
    @property
    def metadata(self) -> Mapping[str, Any]: ...


def load_tokenizer(path: AnyPath | _HasMetadata, *, progress: ProgressLike = None) -> Tokenizer:
    """The tokenizer of a Hugging Face folder or hub id, a GGUF file, or an open `lowbit.gguf` file.

    Ignored contents of the files, for example ids without a token, are listed in `Tokenizer.notes` and logged as
    warnings of the logger "lowbit". progress: of a download, then the tokens.

    Raises FileError for missing files, FormatError for damaged ones, UnsupportedError for other kinds of tokenizers.
    """
    with steps("load tokenizer", "tokens", progress) as advance:
        tokenizer = read_tokenizer(path, progress)
        advance(tokenizer.vocab_size, tokenizer.vocab_size)
    log_notes(tokenizer.notes)
    return tokenizer


def read_tokenizer(path: AnyPath | _HasMetadata, progress: ProgressLike = None) -> Tokenizer:
    """`load_tokenizer` without logging the notes."""
    if not isinstance(path, (str, bytes, os.PathLike)):
        if not isinstance(getattr(path, "metadata", None), Mapping):
            raise InputError(expected="a path or an open GGUF file", found=type(path).__name__)
        with of_file(path.path) if isinstance(path, gguf.File) else contextlib.nullcontext():
            return from_metadata(path.metadata)
    where, _ = resolve(path, weights=False, progress=progress)
    if is_dir(where):
        return _from_folder(where)
    if not is_file(where):
        raise FileError("no such file or folder", path=where, errno=errno.ENOENT)
    with gguf.open(where) as file, of_file(where):
        return from_metadata(file.metadata)


def from_metadata(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer of GGUF metadata (`tokenizer.ggml.*`, `tokenizer.chat_template*`)."""
    from lowbit.tokenizer.definition import DEFINITION_KEY, EOS_IDS_KEY, build_defined
    from lowbit.tokenizer.gguf import Vocab, build, family

    vocab = Vocab(metadata)
    with _contained(FormatError, "tokenizer.ggml"):
        defaults, first, last = family(vocab)
        backend, is_framed = build_defined(vocab) if vocab.has(DEFINITION_KEY) else (build(vocab), False)
        ids = {role: vocab.token_id(id_key(role), defaults.get(role)) for role in ROLES}
        roles = {role: token_id for role, token_id in ids.items() if token_id is not None}
        add_bos = vocab.flag("tokenizer.ggml.add_bos_token", first == "bos")
        add_eos = vocab.flag("tokenizer.ggml.add_eos_token", last == "eos")
        if not is_framed:
            end = roles.get("eos") if add_eos else roles.get(last) if last != "eos" else None
            _surround(backend, roles.get("bos") if add_bos else None, end)
        ends = [i for name in ("eot", "eom") if (i := vocab.token_id(id_key(name))) is not None]
        ends += vocab.token_ids(EOS_IDS_KEY)
        templates = {name: vocab.text(key) for key, name in template_names(metadata).items()}
        size = len(vocab)
        if len(backend) != size:  # equal sizes: the ids are those of the file; listing them would be slow
            size = backend.num_ids(size)
        return Tokenizer(backend, roles, eos_ids=ends, vocab_size=size, chat_templates=templates, notes=vocab.notes)


def _from_folder(folder: Path) -> Tokenizer:
    notes: list[str] = []
    config = merged_config(folder, notes)
    with named(folder / "tokenizer.json"), _contained(FormatError, "tokenizer", folder):
        whole, defaults = _backend(folder, config)
        config = {**defaults, **config}
        whole.no_padding()
        whole.no_truncation()
        backend = LibraryBackend(whole)
        roles = _roles(whole, config)
        if whole.post_processor is None:  # an existing one overrides the configuration, as in transformers 5
            first, last = (roles.get(r) if config.get(f"add_{r}_token") is True else None for r in ("bos", "eos"))
            _surround(backend, first, last)
        size = read_optional(folder / "config.json").get("vocab_size")
        vocab_size = backend.num_ids(size if type(size) is int and size < 1 << 31 else 0)
        ends = listed_ends(folder, vocab_size, notes)
        templates = folder_templates(folder, config, notes)
        return Tokenizer(backend, roles, eos_ids=ends, vocab_size=vocab_size, chat_templates=templates, notes=notes)


def _backend(folder: Path, config: Mapping[str, Any]) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """A folder's backend, and the defaults of its kind of file for tokenizer_config.json."""
    from lowbit.tokenizer.files import added_tokens, byte_level_definition, rebuilt_definition, sentencepiece_tokenizer

    if is_file(folder / "tokenizer.json"):
        rebuilt = rebuilt_definition(folder, config)
        content = read_bytes(folder / "tokenizer.json", MAX_JSON_BYTES) if rebuilt is None else _packed(rebuilt)
        backend = tokenizers.Tokenizer.from_buffer(content)
        there = backend.get_added_tokens_decoder()
        is_old = "added_tokens_decoder" not in config
        more = {i: t for i, t in added_tokens(folder, config).items() if not (is_old and i in there)}
        backend.add_tokens([token for i, token in more.items() if repr(token) not in map(repr, there.values())])
        return backend, {}
    if is_file(folder / "tokenizer.model"):
        backend = sentencepiece_tokenizer(folder, config)
        names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
        framed = "add_bos_token" if isinstance(backend.model, models.BPE) else "add_eos_token"
        return backend, {**names, framed: True}
    if is_file(folder / "vocab.json"):
        return tokenizers.Tokenizer.from_buffer(_packed(byte_level_definition(folder, config))), {}
    raise UnsupportedError("no tokenizer.json, tokenizer.model or vocab.json", path=folder)


def _packed(definition: Mapping[str, Any]) -> bytes:
    return json.dumps(definition).encode()


def _roles(backend: tokenizers.Tokenizer, config: Mapping[str, Any]) -> dict[str, int]:
    """Ids of the tokens in the configuration, each a text or {"content": text}."""
    roles = {}
    for role in ROLES:
        token = named_text(config.get(f"{role}_token"))
        if token is not None and (token_id := backend.token_to_id(token)) is not None:
            roles[role] = token_id
    return roles
