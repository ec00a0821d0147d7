"""The formats of every model family against transformers' apply_chat_template."""

from __future__ import annotations

import json
from enum import Enum
from typing import Any, Literal, Optional, Union

import pytest
import tokenizers
from chat_templates import CALLS, FAMILIES, LLAMA3, MESSAGES, TOOLS
from transformers import PreTrainedTokenizerFast
from transformers.utils import get_json_schema

import lowbit
from lowbit.chat.template import render_chat
from lowbit.chat.tools import json_schema

pytestmark = pytest.mark.oracle

TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
USER, ANSWER = MESSAGES[1], MESSAGES[2]
PARTS = [{"type": "text", "text": " One. "}, {"type": "text", "text": "Two."}]
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln", "days": 2}}}
CONVERSATIONS: dict[str, list[dict[str, Any]]] = {
    "system": MESSAGES,
    "user": [USER],
    "answered": [USER, ANSWER],
    "turns": [USER, {"role": "assistant", "content": "Fine.", "reasoning_content": "é 你好"}, USER],
    "calls": CALLS,
    "two calls": [USER, {"role": "assistant", "content": "", "tool_calls": [CALL, CALL]},
                  {"role": "tool", "content": "1"}, {"role": "tool", "content": "2"}, USER],
    "parts": [{"role": "system", "content": PARTS}, {"role": "user", "content": [{"type": "image"}, *PARTS]}],
    "not in turns": [USER, USER],
    "tools of the system": [{"role": "system", "content": "Be brief.", "tools": "[{}]"}, USER],
}  # fmt: skip


@pytest.fixture(scope="module")
def transformers() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizers.Tokenizer(tokenizers.models.BPE()), **TOKENS)


@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts(transformers: PreTrainedTokenizerFast, family: str, conversation: str) -> None:
    messages, template = CONVERSATIONS[conversation], FAMILIES[family]
    for tools in (None, TOOLS):
        for more in ({}, {"enable_thinking": False}):
            for generation in (True, False):
                options = {"tools": tools, "add_generation_prompt": generation, "date_string": "1 May", **more}
                try:
                    expected = transformers.apply_chat_template(
                        messages, chat_template=template, tokenize=False, **options
                    )
                except Exception:
                    with pytest.raises(lowbit.Error):
                        render_chat(template, messages, **TOKENS, **options)
                    continue
                assert render_chat(template, messages, **TOKENS, **options) == expected


class Unit(Enum):
    """Of temperatures."""

    CELSIUS = "C"
    KELVIN = "K"


def weather(city: str, days: int = 1, unit: Unit = Unit.KELVIN) -> dict[str, float]:
    """
    The weather of a place.

    In words: and on more lines.

    Args:
        city: Where, e.g. Köln (choices: ["Berlin", "Köln "])
        days: How many days
            from today
        unit: Of what is returned

    Returns:
        Temperatures, by day

    Raises:
        ValueError: never
    """
    raise AssertionError(city, days, unit)


def every_kind(
    a: list[int], b: dict[str, list[str]], c: tuple[int, str], d: int | None, e: int | str, f: list[int] | str | None,
    g: Literal["x", 1, None], h: Any, i: list, j: Optional[Union[float, bool]] = None, k: dict = {},  # noqa: B006, UP007, UP045
) -> lowbit.Tokenizer:  # fmt: skip
    """Every kind of hint.

    Args:
        a: a
        b: b
        c: c
        d: d
        e: e
        f: f
        g: g
        h: h
        i: i
        j: j
        k: k
    """
    raise AssertionError(a, b, c, d, e, f, g, h, i, j, k)


class Tools:
    """Methods are tools, too."""

    def now(self) -> str:
        """What time it is."""
        raise AssertionError(self)


@pytest.mark.parametrize("tool", [weather, every_kind, Tools().now, Tools.now])
def test_schema_of_a_function(tool: Any) -> None:
    assert json.dumps(json_schema(tool)) == json.dumps(get_json_schema(tool))
    text = render_chat(LLAMA3, [USER], tools=[tool], date_string="1 May", **TOKENS)
    assert text == render_chat(LLAMA3, [USER], tools=[get_json_schema(tool)], date_string="1 May", **TOKENS)


@pytest.mark.parametrize("family", FAMILIES)
def test_final_message_goes_on(transformers: PreTrainedTokenizerFast, family: str) -> None:
    for end in ("Fine, ", "Fine,"):
        messages = [USER, {"role": "assistant", "content": end}]
        expected = transformers.apply_chat_template(
            messages, chat_template=FAMILIES[family], tokenize=False, continue_final_message=True, date_string="1 May"
        )
        found = render_chat(FAMILIES[family], messages, continue_final_message=True, date_string="1 May", **TOKENS)
        assert found == expected
