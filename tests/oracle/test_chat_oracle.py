"""The formats of every model family against transformers' apply_chat_template."""

from __future__ import annotations

from typing import Any

import pytest
import tokenizers
from chat_templates import CALLS, FAMILIES, MESSAGES, TOOLS
from transformers import PreTrainedTokenizerFast

import lowbit
from lowbit.chat import render_chat

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
