"""Chat templates in the styles that models ship, written for these tests."""

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nBe helpful.<|im_end|>\n"
    "{% endif %}<|im_start|>{{ m['role'] }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

LLAMA3 = """{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif %}
{%- macro head(role) -%}<|start_header_id|>{{ role }}<|end_header_id|>\n\n{% endmacro -%}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{{- head("system") + "Today: " ~ date_string ~ "\n" ~ system }}
{%- if tools is not none %}
    {{- "\nTools:\n" }}
    {%- for t in tools %}{{ t | tojson(indent=4) }}{{ "\n\n" }}{% endfor %}
{%- endif %}<|eot_id|>
{%- for message in messages %}
    {%- if 'tool_calls' in message %}
        {%- if message.tool_calls|length != 1 %}{{ raise_exception("one tool call at a time") }}{% endif %}
        {%- set call = message.tool_calls[0].function %}
        {{- head(message.role) ~ '{"name": "' ~ call.name ~ '", "parameters": ' ~ call.arguments | tojson ~ "}" }}
    {%- else %}
        {{- head(message.role) + message.content | trim }}
    {%- endif %}<|eot_id|>
{%- endfor %}
{%- if add_generation_prompt %}{{ head("assistant") }}{% endif %}
"""

MISTRAL = """{%- set loop_messages = messages[1:] if messages[0].role == "system" else messages %}
{%- set ns = namespace(index=0, last=-1) %}
{%- for m in loop_messages %}{% if m.role == "user" %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}
{{- bos_token }}
{%- for m in loop_messages %}
    {%- if m.role not in ["user", "assistant", "tool"] %}{% continue %}{% endif %}
    {%- if m.role == "user" %}
        {%- if (ns.index % 2) != 0 %}
            {{- raise_exception("roles must alternate") }}
        {%- endif %}
        {%- if tools and loop.index0 == ns.last %}
            {{- "[AVAILABLE_TOOLS] [" }}
            {%- for tool in tools -%}
                {%- set f = tool.function -%}
                {{- '{"function": {' }}
                {%- for key, val in f.items() if key != "return" %}
                    {{- '"%s": ' | format(key) }}{{ val | tojson if val is not string else '"' + val + '"' }}
                    {%- if not loop.last %}{{ ", " }}{% endif %}
                {%- endfor %}{{- "}}" }}{% if not loop.last %}, {% endif %}
            {%- endfor %}{{ "][/AVAILABLE_TOOLS]" }}
        {%- endif %}
        {{- "[INST] " + (messages[0].content + "\n\n" if messages[0].role == "system" and loop.last else "") }}
        {{- m.content + "[/INST]" }}
        {%- set ns.index = ns.index + 1 %}
    {%- elif m.role == "assistant" %}
        {%- generation %}{{ " " ~ m.content.split("</think>")[-1].lstrip("\n") ~ eos_token }}{% endgeneration %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
"""

REASONING = """{% for m in messages[::-1] | reverse %}
{{ m.role | upper }}: {% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}
{{ m.content }}
    {# white space is part of this test #}
  {% if loop.last and enable_thinking is defined and not enable_thinking %}  no thinking
  {% endif %}
{% endfor %}
{{ messages | selectattr("role", "equalto", "user") | map(attribute="content") | join(" / ") }}
{{ {"a": [1, 2.5, none, true], "b": "<&'\\">é"} | tojson }}"""

TEMPLATES = {"chatml": CHATML, "llama3": LLAMA3, "mistral": MISTRAL, "reasoning": REASONING}

MESSAGES = [
    {"role": "system", "content": ' You are "kind" & <brief>. '},
    {"role": "user", "content": "Hi,  how are you?\n"},
    {"role": "assistant", "content": "<think>é</think>\n\nFine.", "reasoning": "é 你好"},
    {"role": "user", "content": "Weather in 東京?"},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather <now> & 'later' in a città",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
        },
    }
]
CALLS = [
    {"role": "user", "content": "Weather?"},
    {"role": "assistant", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Köln"}}}]},
    {"role": "tool", "content": "{}"},
]
