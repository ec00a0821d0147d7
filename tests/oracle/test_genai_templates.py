"""Chat templates as lowbit says that onnxruntime-genai renders them, against onnxruntime-genai."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import chat_templates
import pytest
from genai_tokenizers import genai_prompt, genai_tokenizer
from tiny_checkpoint import byte_level_tokenizer

import lowbit
from lowbit.chat.template import render_chat
from lowbit.export.genai_differences import GenaiDifference, template_differences
from lowbit.export.genai_syntax import GenaiRefusalError
from lowbit.export.genai_template import LACKING, RULES, genai_text
from lowbit.tokenizer.naming import QWEN2

pytestmark = pytest.mark.oracle

SPECIAL = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>"}
LINES = "{% for m in messages %}\n  {% if true %}\n{{ m.role }}\n{% endif %}\n{% endfor %}\n"
TOOLS = "{% for t in tools or [] %}{{ t.type }}{{ t.name }}{% endfor %}{{ messages[0].role }}"
KEPT = "{% for m in messages %}{% if loop.first %}{% set x = m.role %}{% endif %}{{ x }};{% endfor %}"
NESTED = (
    "{% for m in messages %}{% for n in [1, 2] %}{% if n == 1 %}{% set x = m.role %}{% endif %}{{ x }};"
    "{% endfor %}{{ x }}{% endfor %}{{ m is defined }}"
)
#: Templates that show one rule each.
DIFFERENT = [
    ("blocks", LINES),
    ("blocks", "a\n  {# c #}\nb"),
    ("in", "{{ 'Graz' in messages[0].content }}"),
    ("in", "{% if 'x' not in 'xyz' %}a{% else %}b{% endif %}"),
    ("division", "{{ 7 / 2 }}"),
    ("division", "{{ -7 // 2 }}"),
    ("division", "{{ -7 % 3 }}"),
    ("none", "{{ none }}"),
    ("none", "{{ none | trim }}"),
    ("inputs", "{% if tools is not none %}a{% endif %}"),
    ("inputs", "{{ documents is none }}"),
    ("inputs", "{{ pad_token }}"),
    ("tools", TOOLS),
    ("truth", "{% if {} %}a{% endif %}"),
    ("truth", "{{ 1 and 2 }}"),
    ("bytes", "{{ messages[0].content | length }}"),
    ("bytes", "{{ '\u00e9x'[:1 + 1] }}"),
    ("bytes", "{{ 'abc'[0] }}"),
    ("scope", KEPT),
    ("scope", "{% for m in messages %}{% endfor %}{{ m is defined }}"),
    ("scope", NESTED),
    ("writing", "{{ [none, 1.5, 'a', \"it's\"] }}"),
    ("writing", "{{ (1, 2) }}"),
    ("writing", "{{ 1.5 ~ 'x' }}"),
    ("escapes", "{{ '\\x41\\u00e9\\q' }}"),
    ("functions", "{{ '\u00c9' | lower }}"),
    ("functions", "{{ 'a\\nb' | indent }}"),
    ("functions", "{{ [[]] | tojson(indent=2) }}"),
    ("functions", "{{ 'AB'.capitalize() }}"),
    ("functions", "{{ '\u2003a'.strip() }}"),
    ("functions", "{{ messages | selectattr('role') | list | length }}{{ \"'\" | e }}"),
    ("types", "{{ 'a' is sequence }}{{ true is number }}"),
    (LACKING, "{{ 'a' | upper }}"),
    (LACKING, "{{ 'a' | replace('a', 'b') }}"),
    (LACKING, "{{ 'a' | title }}"),
    (LACKING, "{{ [1] | first }}"),
    (LACKING, "{{ 'a'.upper() }}"),
    (LACKING, "{{ 'a b'.split() }}"),
    (LACKING, "{{ '%s' % 'a' }}"),
    (LACKING, "{{ 3 is odd }}"),
    (LACKING, "{{ 3 is eq(3) }}"),
    (LACKING, "{{ 'abc' | list }}"),
    (LACKING, "{{ {} | tojson(ensure_ascii=False) }}"),
    (LACKING, "{{ messages | selectattr('role', 'in', ['user']) | list }}"),
    (LACKING, "{{ messages[:9] | length }}"),
    (LACKING, "{{ messages[0].keys() | list }}"),
    (LACKING, "{{ '\u00e9'[:1] }}"),
    (LACKING, "{{ dict(a=1) }}"),
    (LACKING, "{% filter upper %}a{% endfilter %}"),
    (LACKING, "{% macro f() %}{{ caller() }}{% endmacro %}{% call f() %}a{% endcall %}"),
    (LACKING, "{% raw %}a{% endraw %}"),
    (LACKING, "{% with a = 1 %}{{ a }}{% endwith %}"),
    (LACKING, "{%+ if true %}a{% endif %}"),
    (LACKING, "{{ [1, 2,] }}"),
    (LACKING, "{{ range(2)[0] }}"),
]
#: Inputs of a template.
INPUTS: list[dict[str, Any]] = [
    {"messages": chat_templates.MESSAGES[1:2], "add_generation_prompt": True},
    {"messages": chat_templates.MESSAGES[:2], "add_generation_prompt": True},
    {"messages": chat_templates.MESSAGES[:3], "add_generation_prompt": False},
    {"messages": chat_templates.MESSAGES, "add_generation_prompt": True},
    {"messages": chat_templates.MESSAGES[:2], "add_generation_prompt": True, "tools": chat_templates.TOOLS},
    {"messages": chat_templates.CALLS, "add_generation_prompt": True, "tools": chat_templates.TOOLS},
]
EQUAL = [
    "{% for tool in tools or [] %}{{ tool.function.name }}{% endfor %}{% if tools %}{{ tools | tojson }}{% endif %}",
    "{% for m in messages %}{{ m.role }}: {{ m['content'] | trim }}\n{% endfor -%}"
    "{% if add_generation_prompt %}a:{% endif %}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{% macro f(a, b='x') %}{{ a }}{{ b }}{% endmacro %}{{ f(1) }}{{ f(2, b='y') }}",
    "{% for m in messages if m.role == 'user' %}{{ loop.index0 }}{{ loop.last }}{% else %}none{% endfor %}",
    "{{ messages[1:] | length }}{{ messages[-1].role }}{{ messages[::-1][0].role }}{{ 'abc'[1:] }}",
    "{{ messages | map(attribute='role') | join(', ') }}"
    "{{ messages | selectattr('role', 'equalto', 'user') | list | length }}",
    "{{ 'a,b'.split(',')[-1] }}{{ 'ab'.startswith('a') }}{{ ' a '.strip() }}{{ 'ab cd'.title() }}",
    "{{ messages[0] | tojson }}{{ {'a': [1, {'b': true}]} | tojson(indent=2) }}",
    "{{ 'x' | default('y') }}{{ z | default('y') }}",
    "{{ 'user' in ['user'] }}{{ 'role' in messages[0] }}{{ 'x' is string and 1 is integer and z is not defined }}",
    "{{ bos_token }}{{ eos_token }}{{ 7 // 2 }}{{ 7 % 2 }}{{ [3, 1] | sort }}{{ ['a'] | last }}{{ 1 if false }}",
    "{% for m in messages %}{% if loop.index == 2 %}{% continue %}{% endif %}{{ m.role }}{% endfor %}",
    "{% generation %}a{% endgeneration %}",
]


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder: Path = tmp_path_factory.mktemp("genai")
    definition = byte_level_tokenizer(QWEN2, ["<eos>"], None)

    def render(template: str, inputs: dict[str, Any]) -> str | None:
        return genai_prompt(genai_tokenizer(folder, definition, {**SPECIAL, "chat_template": template}), inputs)

    return render


def warned(template: str) -> list[GenaiDifference]:
    return template_differences({"default": template}, SPECIAL)


@pytest.mark.parametrize(("rule", "template"), DIFFERENT)
def test_a_difference(prompts: Any, rule: str, template: str) -> None:
    found = warned(template)
    assert [difference.rule for difference in found] == [rule]
    (difference,) = found
    assert prompts(template, difference.probe) == difference.found
    assert difference.expected != difference.found or rule == LACKING


def test_every_rule_has_a_template() -> None:
    assert {rule for rule, _ in DIFFERENT} == {*RULES, LACKING}


@pytest.mark.parametrize("template", EQUAL)
def test_no_difference(prompts: Any, template: str) -> None:
    assert warned(template) == []
    for inputs in INPUTS:
        assert prompts(template, inputs) == render_chat(template, **inputs, **SPECIAL)


@pytest.mark.parametrize("name", [*chat_templates.TEMPLATES, *chat_templates.FAMILIES])
def test_templates_of_models(prompts: Any, name: str) -> None:
    """Each warning has the prompt that genai writes, and each prompt that differs has a warning."""
    template = {**chat_templates.TEMPLATES, **chat_templates.FAMILIES}[name]
    for difference in warned(template):
        assert prompts(template, difference.probe) == difference.found
    for inputs in INPUTS:
        try:
            expected: str | None = genai_text(template, {**SPECIAL, "tools": None, "documents": None, **inputs})
        except (GenaiRefusalError, lowbit.Error):
            expected = None
        assert prompts(template, inputs) == expected


def test_the_message_shows_both_texts() -> None:
    (difference,) = warned("{{ 7 / 2 }}")
    assert str(difference).endswith(": '3' instead of '3.5'")


def test_no_template() -> None:
    assert [difference.rule for difference in template_differences({}, SPECIAL)] == ["template"]
    two = {"default": "a", "tool_use": "b"}
    assert ["'tool_use'" in str(difference) for difference in template_differences(two, SPECIAL)] == [True]
