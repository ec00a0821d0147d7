"""Chat templates as onnxruntime-genai renders them end in bounded time."""

from __future__ import annotations

import pytest

import lowbit
from lowbit.chat.template import at_most
from lowbit.export.genai_differences import template_differences
from lowbit.export.genai_template import genai_text

NAMES = {"messages": [{"role": "user", "content": "x"}], "add_generation_prompt": True}
LARGE = "{% set s = 'ab' * 500000 %}{% set a = range(90000) | list %}"


@pytest.mark.parametrize(
    "expression",
    ["-1 in a", "s == s + ''", "s[1:]", "a[1:]", "s.title()", "s.strip('ab')", "s | indent", "s | length",
     "a | selectattr('x')", "s.startswith(s)"],
)  # fmt: skip
def test_what_is_read_costs_steps(expression: str) -> None:
    template = LARGE + f"{{% for i in range(1000) %}}{{% set x = {expression} %}}{{% endfor %}}"
    with at_most(200_000), pytest.raises(lowbit.FormatError, match="more than 200000 steps"):
        genai_text(template, NAMES)


@pytest.mark.parametrize("indent", [10**6, 10**10])
def test_a_wide_indent(indent: int) -> None:
    with pytest.raises(lowbit.FormatError, match="wider than 100"):
        genai_text(f"{{{{ messages | tojson(indent={indent}) }}}}", NAMES)


def test_a_comparison_takes_few_steps() -> None:
    """It renders a template 200 times. One that takes long is not compared."""
    many = "{% for i in range(COUNT) %}{{ none }}{% endfor %}"
    (found,) = template_differences({"default": many.replace("COUNT", "1000")}, {})
    assert found.rule == "none"
    assert template_differences({"default": many.replace("COUNT", "100000")}, {}) == []
    (found,) = template_differences({"default": "{{ none }}" + " " * 70000}, {})
    assert "was not compared" in str(found)
