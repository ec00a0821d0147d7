"""Chat templates: rendering, named templates, and templates that mean harm."""

import json
from datetime import datetime

import pytest
from chat_templates import CALLS, CHATML, LLAMA3, MESSAGES, MISTRAL, REASONING, TOOLS

import lowbit
from lowbit.chat.template import at_most, render_chat

USER = [{"role": "user", "content": "x"}]


def test_chatml():
    assert render_chat(CHATML, MESSAGES[1:2]) == (
        "<|im_start|>system\nBe helpful.<|im_end|>\n"
        "<|im_start|>user\nHi,  how are you?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert render_chat(CHATML, MESSAGES, add_generation_prompt=False).endswith("Weather in 東京?<|im_end|>\n")


def test_tools_and_variables():
    text = render_chat(LLAMA3, CALLS, tools=TOOLS, bos_token="<B>", date_string="1 May")
    assert text.startswith("<B><|start_header_id|>system<|end_header_id|>\n\nToday: 1 May\n\nTools:\n{\n    ")
    assert json.loads(text[text.index("{") : text.index("<|eot_id|>")]) == TOOLS[0]
    assert "<now> & 'later' in a città" in text
    assert '{"name": "weather", "parameters": {"city": "Köln"}}<|eot_id|>' in text
    assert datetime.now().strftime("%Y") in render_chat(LLAMA3, USER)


def test_loop_controls_namespaces_and_generation_blocks():
    assert render_chat(MISTRAL, MESSAGES, bos_token="<s>", eos_token="</s>") == (
        '<s>[INST] Hi,  how are you?\n[/INST] Fine.</s>[INST]  You are "kind" & <brief>. \n\nWeather in 東京?[/INST]'
    )


def test_reasoning_has_every_name_and_json_is_not_escaped():
    text = render_chat(REASONING, MESSAGES, enable_thinking=False)
    assert "ASSISTANT: <think>é 你好</think>" in text
    assert "  no thinking\n" in text
    assert text.endswith('{"a": [1, 2.5, null, true], "b": "<&\'\\">é"}')


@pytest.mark.parametrize("messages", ["hello", {"role": "user"}, ["hello"], [{"rol": "user", "content": "x"}]])
def test_what_is_no_message(messages):
    with pytest.raises(lowbit.InputError, match="messages: expected a list of mappings"):
        render_chat(REASONING, messages)


def test_the_messages_stay_as_they_were():
    messages = [dict(message) for message in MESSAGES]
    render_chat(REASONING, messages)
    assert messages == MESSAGES
    with pytest.raises(lowbit.FormatError):
        render_chat("{{ messages[0].update(role='x') }}", messages)


def test_refusal_is_the_callers_error():
    with pytest.raises(lowbit.InputError, match="refused the messages: roles must alternate"):
        render_chat(MISTRAL, [*USER, *USER])
    with pytest.raises(lowbit.InputError, match="list of mappings"):
        render_chat(CHATML, "Hi")
    with pytest.raises(lowbit.InputError, match="JSON values, got object"):
        render_chat(CHATML, [{"role": "user", "content": object()}])


def doubled(expression: str) -> str:
    """A template that makes a value out of two of itself, 60 times."""
    return f"{{% set n = namespace(a=[1], s='ab') %}}{{% for i in range(60) %}}{expression}{{% endfor %}}{{{{ n.a }}}}"


HOSTILE = {
    "syntax": "{% for %}",
    "undefined": "{{ a.b }}",
    "zero division": "{{ 1 / 0 }}",
    "class": "{{ messages.__class__.__mro__ }}",
    "subclasses": "{{ ''.__class__.__base__.__subclasses__() }}",
    "globals": "{{ raise_exception.__globals__.os }}",
    "filter to attribute": "{{ (messages | attr('__class__')).__name__ }}",
    "format to attribute": "{{ '{0.__class__.__mro__[10]}'.format(messages) }}",
    "namespace dunder": "{% set n = namespace(__class__=1) %}",
    "include": "{% include '/etc/passwd' %}",
    "range": "{% for i in range(10**9) %}x{% endfor %}",
    "nested loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "recursive loop": "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "branching recursion": "{% macro f(n) %}{% if n %}{{ f(n-1) }}{{ f(n-1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "repeat": "{{ messages[0].content * 10**10 }}",
    "power": "{{ (messages|length + 9) ** (10**9) }}",
    "growing number": "{% set n = namespace(a=10) %}{% for i in range(60) %}{% set n.a = n.a * n.a %}{% endfor %}",
    "doubling text": doubled("{% set n.s = n.s ~ n.s %}"),
    "doubling sum": doubled("{% set n.s = n.s + n.s %}"),
    "doubling list": doubled("{% set n.a = n.a + n.a %}"),
    "shared parts": doubled("{% set n.a = [n.a, n.a] %}"),
    "shared parts in json": doubled("{% set n.a = [n.a, n.a] %}").replace("n.a }}", "n.a | tojson }}"),
    "shared parts in text": doubled("{% set n.a = [n.a, n.a] %}").replace("n.a }}", "n.a ~ '' }}"),
    "wide center": "{{ messages[0].content | center(10**10) }}",
    "wide ljust": "{{ messages[0].content.ljust(10**10) }}",
    "wide percent": "{{ '%10000000000d' % messages|length }}",
    "wide percent by value": "{{ '%*d' % (10**9, 1) }}",
    "wide format": "{{ '{:>10000000000}'.format(messages) }}",
    "wide format by value": "{{ '{:>{}}'.format(messages, 10**10) }}",
    "wide filter": "{{ '%10000000000d' | format(1) }}",
    "wide indent": "{{ messages | tojson(indent=10**10) }}",
    "replace": "{% set a = 'a' * 100000 %}{{ a.replace('a', a) }}{{ a | replace('a', a) }}",
    "join": "{{ range(99999) | join('a' * 1000000) }}",
    "many wide": "{{ range(99999) | map('center', 100000) | join | length }}",
    "many wide in a list": "{{ range(99999) | map('center', 100000) | list | length }}",
    "batch": "{{ [1] | batch(10**10, 'x') | list }}",
    "lipsum": "{{ lipsum(n=10**9) }}",
    "deep": "{{ " + "(" * 100000 + "1" + ")" * 100000 + " }}",
    "huge": " " * (2 << 20),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_template(name):
    with pytest.raises(lowbit.FormatError, match=r"^chat template: ") as caught:
        render_chat(HOSTILE[name], USER)
    assert "\n" not in str(caught.value)


LARGE = "{% set s = 'ab' * 500000 %}{% set t = s + '' %}{% set a = range(90000) | list %}"
COSTLY = [
    "-1 in a", "-1 is in a", "s == t", "s is eq t", "s < t", "s[1:]", "a[::-1]", "s.count('x')", "s.find('x')",
    "s.strip('ab')", "a.index(89999)", "s | wordcount", "s | title", "a | max", "[s] | select('in', [t]) | list",
]  # fmt: skip


@pytest.mark.parametrize("expression", COSTLY)
def test_what_is_read_costs_steps(expression):
    """Not only what is made: each of these takes a millisecond or more."""
    template = LARGE + f"{{% for i in range(1000) %}}{{% set x = {expression} %}}{{% endfor %}}"
    with at_most(200_000), pytest.raises(lowbit.FormatError, match="more than 200000 steps"):
        render_chat(template, USER)


def test_templates_of_a_folder(tmp_path):
    model = {"type": "BPE", "vocab": {"<s>": 0, "a": 1, "b": 2}, "merges": []}
    special = {"id": 0, "content": "<s>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    tokenizer = {"version": "1.0", "added_tokens": [{**special, "special": True}], "model": model}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    templates = [{"name": "default", "template": "{{ bos_token }}a"}, {"name": "tool_use", "template": "b"}]
    config = {"bos_token": {"content": "<s>"}, "add_bos_token": True, "chat_template": templates}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    t = lowbit.load_tokenizer(tmp_path)
    assert t.encode("a") == [0, 1]
    assert t.apply_chat_template(USER) == "<s>a"
    assert t.encode_chat(USER) == [0, 1]  # and not two BOS
    assert t.apply_chat_template(USER, tools=TOOLS) == "b"
    assert t.apply_chat_template(USER, tools=TOOLS, chat_template="default") == "<s>a"
    with pytest.raises(lowbit.UnsupportedError, match="no chat template 'rag', only default, tool_use"):
        t.apply_chat_template(USER, chat_template="rag")
    (tmp_path / "chat_template.jinja").write_text("{{ eos_token is defined }}")
    assert lowbit.load_tokenizer(tmp_path).apply_chat_template(USER) == "False"


def test_functions_that_are_no_tools():
    def undocumented(a: int): ...

    def untyped(a):
        """Does.

        Args:
            a: it
        """

    def undescribed(a: int):
        """Does."""

    def unknown(a: lowbit.Tokenizer):
        """Does.

        Args:
            a: it
        """

    for tool, message in (
        (undocumented, "undocumented: expected a docstring"),
        (untyped, "untyped: expected a type hint of a"),
        (undescribed, "undescribed: expected a description under Args: of a"),
        (unknown, "unknown: a: the type .* has no JSON schema"),
    ):
        with pytest.raises(lowbit.InputError, match=message):
            render_chat(CHATML, USER, tools=[tool])


def test_a_message_to_go_on_with():
    messages = [*USER, {"role": "assistant", "content": [{"type": "text", "text": "Fine, "}]}]
    template = "{% for m in messages %}[{{ m.content if m.content is string else m.content[0].text }}]{% endfor %}"
    assert render_chat(template, messages, continue_final_message=True) == "[x][Fine, "
    assert render_chat(CHATML, USER, continue_final_message=True).endswith("user\nx")
    for wrong in ([], [{"role": "user"}]):
        with pytest.raises(lowbit.InputError, match="has no text"):
            render_chat(template, wrong, continue_final_message=True)
    with pytest.raises(lowbit.InputError, match="omits the end"):
        render_chat("{{ messages[0].role }}", USER, continue_final_message=True)
