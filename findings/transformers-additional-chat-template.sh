#!/usr/bin/env bash
# One file in additional_chat_templates/ takes away the chat template of tokenizer_config.json.
#
# transformers looks for template files first: chat_template.jinja (the one named "default") and the files of
# additional_chat_templates/. Where there is any, `chat_template` of tokenizer_config.json is not read. A folder whose
# default template stands there, and to which somebody adds additional_chat_templates/tool_use.jinja, has no default any
# more. `apply_chat_template` ends with an error unless tools are given. Nothing is said while the tokenizer is loaded.
#
# Likely guess: what is called additional is added to the template that is there. A list of named templates in
# tokenizer_config.json would lose no more than the name that a file has.
#
# Versions: transformers 5.24.0, tokenizers 0.23.3, jinja2 3.1.6. Output:
#   tokenizer_config.json alone: 'from config'
#   and additional_chat_templates/tool_use.jinja: {'tool_use': 'from tool_use.jinja'}
#   apply_chat_template: ValueError
#   list of default and rag, and chat_template.jinja: 'from chat_template.jinja'
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check transformers==5.24.0 tokenizers==0.23.3 jinja2==3.1.6
cat > "$folder/show.py" <<'PYTHON'
import json
import sys
from pathlib import Path

from tokenizers import Tokenizer, models
from transformers import AutoTokenizer


def load(name, template, files):
    folder = Path(sys.argv[1]) / name
    (folder / "additional_chat_templates").mkdir(parents=True)
    Tokenizer(models.BPE(vocab={"<unk>": 0, "a": 1}, merges=[], unk_token="<unk>")).save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": template}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    for file in files:
        (folder / file).write_text(f"from {Path(file).name}")
    return AutoTokenizer.from_pretrained(folder)


seen = [f"tokenizer_config.json alone: {load('alone', 'from config', []).chat_template!r}"]

tokenizer = load("additional", "from config", ["additional_chat_templates/tool_use.jinja"])
seen.append(f"and additional_chat_templates/tool_use.jinja: {tokenizer.chat_template!r}")
try:
    told = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
except Exception as error:
    told = type(error).__name__
seen.append(f"apply_chat_template: {told}")

templates = [{"name": name, "template": f"from {name}"} for name in ("default", "rag")]
tokenizer = load("list", templates, ["chat_template.jinja"])
seen.append(f"list of default and rag, and chat_template.jinja: {tokenizer.chat_template!r}")

print("\n".join(seen))
sys.exit(
    seen
    != [
        "tokenizer_config.json alone: 'from config'",
        "and additional_chat_templates/tool_use.jinja: {'tool_use': 'from tool_use.jinja'}",
        "apply_chat_template: ValueError",
        "list of default and rag, and chat_template.jinja: 'from chat_template.jinja'",
    ]
)
PYTHON
"$folder/venv/bin/python" "$folder/show.py" "$folder"
