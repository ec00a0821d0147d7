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

ZEPHYR = (
    "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + eos_token + '\n' }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}{% endfor %}"
)

QWEN3 = """{%- set first = messages[0] if messages and messages[0].role == 'system' else none %}
{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if first %}{{- first.content + '\n\n' }}{% endif %}
    {{- "# Tools\n\nYou may call these functions:\n<tools>" }}
    {%- for tool in tools %}{{ "\n" }}{{ tool | tojson }}{% endfor %}
    {{- "\n</tools><|im_end|>\n" }}
{%- elif first %}
    {{- '<|im_start|>system\n' + first.content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(open=true, last_query=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.open and message.role == "user" and not (message.content is string and
            message.content.startswith('<tool_response>')) %}
        {%- set ns.open = false %}{% set ns.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content if message.content is string else '' %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
    {%- elif message.role == "assistant" %}
        {%- set thought = message.reasoning_content if message.reasoning_content is string else '' %}
        {%- if not thought and '</think>' in content %}
            {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\n') %}
        {%- endif %}
        {{- '<|im_start|>assistant\n' }}
        {%- if loop.index0 > ns.last_query and (loop.last or thought) %}
            {{- '<think>\n' + thought.strip('\n') + '\n</think>\n\n' }}
        {%- endif %}
        {{- content }}
        {%- for call in message.tool_calls or [] %}
            {%- set call = call.function or call %}
            {{- '\n<tool_call>\n{"name": "' ~ call.name ~ '", "arguments": ' }}
            {{- call.arguments if call.arguments is string else call.arguments | tojson }}{{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{% endif %}
        {{- '\n<tool_response>\n' + content + '\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\n' }}{% endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{% endif %}
{%- endif %}
"""

GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] %}
    {%- set prefix = (system if system is string else system[0]['text']) + '\n\n' %}{% set rest = messages[1:] %}
{%- else %}
    {%- set prefix = '' %}{% set rest = messages %}
{%- endif %}
{%- for message in rest %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception("Conversation roles must alternate user/assistant/...") }}
    {%- endif %}
    {{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' }}
    {{- prefix if loop.first else '' }}
    {%- if message['content'] is string %}{{ message['content'] | trim }}
    {%- elif message['content'] is iterable %}
        {%- for item in message['content'] %}
            {{- '<start_of_image>' if item['type'] == 'image' else item['text'] | trim }}
        {%- endfor %}
    {%- else %}{{ raise_exception("Invalid content type") }}
    {%- endif %}
    {{- '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}
"""

PHI3 = (
    "{% for m in messages %}{% if m['role'] in ['system', 'user', 'assistant'] and m['content'] %}"
    "{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)

PHI4 = (
    "{% for m in messages %}{% if m['role'] == 'system' and 'tools' in m and m['tools'] is not none %}"
    "{{ '<|system|>' + m['content'] + '<|tool|>' + m['tools'] + '<|/tool|><|end|>' }}"
    "{% else %}{{ '<|' + m['role'] + '|>' + m['content'] + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}"
)

BITNET = (
    "{% for m in messages %}{{ (bos_token if loop.first else '') + m['role'] | capitalize + ': ' + m['content'] | trim"
    " + '<|eot_id|>' }}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)

#: The formats of model families, stated again.
FAMILIES = {
    "ChatML": CHATML,
    "SmolLM": CHATML,
    "Qwen2": CHATML,
    "Qwen3": QWEN3,
    "TinyLlama": ZEPHYR,
    "Llama-3": LLAMA3,
    "Mistral": MISTRAL,
    "gemma": GEMMA,
    "Phi-3": PHI3,
    "Phi-4": PHI4,
    "bitnet": BITNET,
}

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
