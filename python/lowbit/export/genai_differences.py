"""What onnxruntime-genai 0.18 does differently with a model's tokenizer and chat template.

Each difference has an input, and both results: lowbit's, which are those of tokenizers and Jinja, and genai's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from tokenizers import AddedToken, models

from lowbit.base.errors import FormatError, InputError
from lowbit.base.quoting import quoted
from lowbit.chat.template import at_most, render_chat
from lowbit.export.genai_syntax import GenaiRefusalError
from lowbit.export.genai_template import ALL, RULES, genai_text
from lowbit.export.genai_tokenizer import PRE_TOKENIZERS, GenaiTokenizer, is_known_regex
from lowbit.tokenizer.differences import TEXTS
from lowbit.tokenizer.limits import state
from lowbit.tokenizer.load import Tokenizer

#: Most characters of a text, and most ids, in a message.
_MOST_TEXT, _MOST_IDS = 50, 8
#: Characters before the first difference of two texts that a message shows.
_BEFORE = 10
#: Most added tokens of each kind in a probe.
_MOST_ADDED = 4
#: Of a template that is compared, and steps of each of the 200 renderings. The longest templates have 30,000
#: characters, and take some hundred steps.
_MOST_CHARACTERS, _MOST_STEPS = 1 << 16, 20_000
_FLAGS = ("lstrip", "rstrip", "single_word", "normalized")
#: Short texts that show a cause alone.
_PROBES = (
    "a", " a", "Hello World", "a 123456 b", "don't  stop\n\n", "e\u0301 \ufb01 \uff21", "ABC", "a, b. (c)",
    "\u65e5\u672ca",
)  # fmt: skip

_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Its name."}},
            "required": ["city"],
        },
    },
}
_SYSTEM = {"role": "system", "content": "You are brief."}
_USER = {"role": "user", "content": " How is it in Graz, n\u00e9? "}
_ANSWER = {"role": "assistant", "content": "Well."}
_THOUGHT = {"role": "assistant", "content": "<think>\nHm.\n</think>\n\nWell."}
_CALL = {
    "role": "assistant",
    "content": "",
    "tool_calls": [
        {"id": "call00001", "type": "function", "function": {"name": "weather", "arguments": {"city": "Graz"}}}
    ],
}
_RESULT = {"role": "tool", "name": "weather", "tool_call_id": "call00001", "content": "Rain."}


@dataclass(frozen=True)
class GenaiDifference:
    """A difference of onnxruntime-genai.

    rule: a short name. what: what genai does. probe: an input, a text or a template's inputs. expected, found: lowbit's
    and genai's result for it, ids or a text; None if genai has no result, or one that lowbit does not compute.
    """

    rule: str
    what: str
    probe: Any = None
    expected: list[int] | str | None = None
    found: list[int] | str | None = None

    def __str__(self) -> str:
        text = f"onnxruntime-genai {self.what}"
        if self.expected is None or self.found is None:
            return text
        expected, found = self.expected, self.found
        pairs = enumerate(zip(expected, found, strict=False))
        same = next((i for i, (a, b) in pairs if a != b), min(len(expected), len(found)))
        if isinstance(expected, str) and isinstance(found, str):
            start = max(same - _BEFORE, 0)
            found, expected = (quoted(repr(part[start:])[1:-1], _MOST_TEXT) for part in (found, expected))
            return f"{text}: {found} instead of {expected}"
        where = f"the ids of {quoted(self.probe, _MOST_TEXT)}" + (f" from token {same} on" if same else "")
        return f"{text}: {where} are {found[same : same + _MOST_IDS]} instead of {expected[same : same + _MOST_IDS]}"


# --- tokenizers


def tokenizer_differences(tokenizer: Tokenizer, tokenizer_class: str) -> list[GenaiDifference]:
    """The differences in ids and decoded texts, one for each cause. tokenizer_class: of tokenizer_config.json."""
    whole = tokenizer.backend
    if not isinstance(whole.model, models.BPE):
        kind = type(whole.model).__name__
        return [GenaiDifference("model", f"refuses a tokenizer of the type {kind}, or gives other ids")]
    types = _types(state(whole.pre_tokenizer))
    if unknown := [kind for kind in types if kind not in PRE_TOKENIZERS]:
        return [GenaiDifference("pre_tokenizer", f"refuses a tokenizer with the pre-tokenizer {unknown[0]}")]
    genai = GenaiTokenizer(whole, tokenizer_class.startswith("Gemma"))
    if unknown := [regex for regex in genai.regexes if not is_known_regex(regex)]:
        what = (
            f"has no exact form of the pre-tokenizer's pattern {quoted(unknown[0])}: it refuses the tokenizer, fails "
        )
        return [GenaiDifference("regex", what + "at some texts, or gives other ids")]
    return [*_id_differences(tokenizer, genai), *_frame_differences(tokenizer, genai)]


def _id_differences(tokenizer: Tokenizer, genai: GenaiTokenizer) -> Iterator[GenaiDifference]:
    """The first difference in ids of each cause, without tokens around a text."""
    causes = set()
    for text in (*_PROBES, *_with_added(genai), *TEXTS):
        expected, found = tokenizer.encode(text, add_special_tokens=False), genai.encode(text)
        if expected == found:
            continue
        rule, what = _cause(genai, text)
        if rule not in causes:
            causes.add(rule)
            yield GenaiDifference(rule, what, text, expected, found)


def _with_added(genai: GenaiTokenizer) -> Iterator[str]:
    """Texts with added tokens, some of them with each flag."""
    tokens = [token for token in genai.added.values() if token.content.strip()]
    for flag in _FLAGS:
        for token in islice((token for token in tokens if getattr(token, flag)), _MOST_ADDED):
            yield from (f"a  {token.content}  b", f"a{token.content}b", f"{token.content} a")
    for token in islice(tokens, _MOST_ADDED):
        yield f"a{token.content}b {token.content} c"


def _cause(genai: GenaiTokenizer, text: str) -> tuple[str, str]:
    """Why the ids of a text differ: a rule's name, and what genai does."""
    whole = genai.whole
    flagged = [token for token in genai.added.values() if token.content in text and _has_unread_flag(token)]
    if flagged:
        return "added", f"does not obey the flags lstrip, single_word and normalized of {quoted(flagged[0].content)}"
    normalizer = state(whole.normalizer)
    if normalizer is not None and not genai.is_spm and whole.normalizer.normalize_str(text) != text:
        return "normalizer", f"does not obey the normalizer {'+'.join(_types(normalizer))}"
    types = _types(state(whole.pre_tokenizer))
    name = "+".join(types) or "none"
    if genai.is_spm:
        what = "cuts a text into words, with a space before each part between added tokens"
    elif "Split" in types:
        what = f"obeys Split of the pre-tokenizer {name}, as Isolated, and none of the other steps"
    else:
        what = f"splits a text as GPT-2 does and does not obey the pre-tokenizer {name}"
    return "pre_tokenizer", what


def _has_unread_flag(token: AddedToken) -> bool:
    return token.lstrip or token.single_word or (token.normalized and not token.special)


def _types(part: Mapping[str, Any] | None) -> list[str]:
    """The types of a part's steps."""
    if part is None:
        return []
    children = next((part[name] for name in ("pretokenizers", "normalizers") if name in part), None)
    return [part["type"]] if children is None else [kind for child in children for kind in _types(child)]


def _frame_differences(tokenizer: Tokenizer, genai: GenaiTokenizer) -> Iterator[GenaiDifference]:
    """Tokens around a text, and the space at the start of a decoded text."""
    text = "a"
    ids = genai.encode(text)
    framed = tokenizer.encode(text)
    if (plain := tokenizer.encode(text, add_special_tokens=False)) != framed:
        what = f"adds no tokens around a text ({framed} has {len(framed) - len(plain)})"
        yield GenaiDifference("frame", f"{what}, unless it gets the option add_special_tokens", text, framed, ids)
    if genai.keeps_first_space and (decoded := tokenizer.decode(ids)) != f" {decoded}":
        yield GenaiDifference("decode", "keeps the space at the start of a decoded text", ids, decoded, f" {decoded}")


# --- chat templates


def template_differences(templates: Mapping[str, str], special_tokens: Mapping[str, str]) -> list[GenaiDifference]:
    """The differences in prompts, one for each cause. templates, special_tokens: see `lowbit.Tokenizer`."""
    template = templates.get("default")
    if template is None:
        return [
            GenaiDifference("template", "gets no chat template, because the model has none: apply_chat_template fails")
        ]
    others = sorted(templates.keys() - {"default"})
    if len(template) > _MOST_CHARACTERS:
        what = f"gets a chat template of {len(template)} characters; it was not compared, as it has over"
        found = [GenaiDifference("template", f"{what} {_MOST_CHARACTERS}")]
    else:
        with at_most(_MOST_STEPS):
            found = [*_prompt_differences(template, special_tokens)]
    if others:
        what = f"knows one chat template: {', '.join(map(quoted, others))} are left out"
        found.append(GenaiDifference("template", what))
    return found


def _prompt_differences(template: str, special_tokens: Mapping[str, str]) -> Iterator[GenaiDifference]:
    rules = set()
    for names in _conversations(template):
        inputs = {**special_tokens, "tools": None, "documents": None, **names}
        try:
            expected = render_chat(template, **{**special_tokens, **names})
        except (InputError, FormatError):
            continue
        for difference in _causes(template, inputs, expected):
            if difference.rule not in rules:
                rules.add(difference.rule)
                yield difference


def _conversations(template: str) -> Iterator[dict[str, Any]]:
    """A template's inputs."""
    answer = _THOUGHT if "</think>" in template else _ANSWER
    for messages in ([_USER], [_SYSTEM, _USER], [_USER, answer, _USER]):
        yield {"messages": messages, "add_generation_prompt": True}
    yield {"messages": [_USER, answer], "add_generation_prompt": False}
    if "tool" in template:
        yield {"messages": [_SYSTEM, _USER], "tools": [_TOOL], "add_generation_prompt": True}
        yield {"messages": [_USER, _CALL, _RESULT], "tools": [_TOOL], "add_generation_prompt": True}


def _causes(template: str, inputs: Mapping[str, Any], expected: str) -> Iterator[GenaiDifference]:
    """The rules that change a prompt."""
    try:
        found = genai_text(template, inputs)
    except GenaiRefusalError as refusal:
        yield GenaiDifference("lacking", f"refuses the chat template: {refusal}", inputs)
        return
    except (InputError, FormatError) as error:
        yield GenaiDifference("lacking", f"refuses the chat template: {error}", inputs)
        return
    if found == expected:
        return
    for rule, what in RULES.items():
        if _text(template, inputs, [rule]) != expected or _text(template, inputs, ALL - {rule}) != found:
            yield GenaiDifference(rule, what, inputs, expected, found)


def _text(template: str, inputs: Mapping[str, Any], rules: Any) -> str | None:
    try:
        return genai_text(template, inputs, rules)
    except (GenaiRefusalError, InputError, FormatError):
        return None
