#!/usr/bin/env bash
# onnxruntime-genai renders a chat template to another prompt than Jinja does, and says nothing.
#
# `Tokenizer.apply_chat_template` reads the template of tokenizer_config.json with an engine of its own. There `in` looks
# for an element of a list or for a key, and is false for a part of a text. Missing tools are "not none", so a template
# that asks `tools is not none` writes its instructions for tools. Line ends after a block tag stay, which transformers
# drops (`trim_blocks`, `lstrip_blocks`). `/` of integers cuts, `%` has the sign of the left number, and the length of a
# text counts bytes.
#
# Likely guess: templates are Jinja as transformers renders it, and what the engine does not have raises an error.
#
# Versions: onnxruntime-genai 0.18.0, onnxruntime 1.32.0, tokenizers 0.23.3, jinja2 3.1.6. Output:
#   {{ 'ell' in messages[0].content }}: Jinja 'True', genai 'False'
#   {{ 'h' in ['h'] }}: Jinja 'True', genai 'True'
#   {% if tools is not none %}tools{% endif %}: Jinja '', genai 'tools'
#   {% if true %}\nyes\n{% endif %}\n: Jinja 'yes\n', genai '\nyes\n'
#   {{ 7 / 2 }}: Jinja '3.5', genai '3'
#   {{ -7 % 3 }}: Jinja '2', genai '-1'
#   {{ 'é' | length }}: Jinja '1', genai '2'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  onnxruntime-genai==0.18.0 onnxruntime==1.32.0 tokenizers==0.23.3 jinja2==3.1.6
cat > "$folder/show.py" <<'PYTHON'
import json
import sys
from pathlib import Path

import onnxruntime_genai
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer, models, pre_tokenizers

TEMPLATES = (
    "{{ 'ell' in messages[0].content }}",
    "{{ 'h' in ['h'] }}",
    "{% if tools is not none %}tools{% endif %}",
    "{% if true %}\nyes\n{% endif %}\n",
    "{{ 7 / 2 }}",
    "{{ -7 % 3 }}",
    "{{ 'é' | length }}",
)
MESSAGES = [{"role": "user", "content": "Hello"}]

folder = Path(sys.argv[1]) / "model"
folder.mkdir()
vocabulary = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
tokenizer.save(str(folder / "tokenizer.json"))
decoder = {"filename": "model.onnx", "head_size": 16}
model = {"type": "qwen2", "context_length": 64, "vocab_size": len(vocabulary), "decoder": decoder}
(folder / "genai_config.json").write_text(json.dumps({"model": model}))

jinja = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=False)
seen = []
for template in TEMPLATES:
    config = {"tokenizer_class": "Qwen2Tokenizer", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    expected = jinja.from_string(template).render(messages=MESSAGES, tools=None)
    rendered = onnxruntime_genai.Tokenizer(str(folder)).apply_chat_template(
        json.dumps(MESSAGES), add_generation_prompt=False
    )
    shown = template.replace("\n", "\\n")
    seen.append(f"{shown}: Jinja {expected!r}, genai {rendered!r}")

print("\n".join(seen))
sys.exit(
    seen
    != [
        "{{ 'ell' in messages[0].content }}: Jinja 'True', genai 'False'",
        "{{ 'h' in ['h'] }}: Jinja 'True', genai 'True'",
        "{% if tools is not none %}tools{% endif %}: Jinja '', genai 'tools'",
        "{% if true %}\\nyes\\n{% endif %}\\n: Jinja 'yes\\n', genai '\\nyes\\n'",
        "{{ 7 / 2 }}: Jinja '3.5', genai '3'",
        "{{ -7 % 3 }}: Jinja '2', genai '-1'",
        "{{ 'é' | length }}: Jinja '1', genai '2'",
    ]
)
PYTHON
PYTHONUTF8=1 "$folder/venv/bin/python" "$folder/show.py" "$folder"
