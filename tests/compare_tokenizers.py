"""Every vocabulary of llama.cpp, whole, against its ids; and every chat template against transformers. By hand.

    compare_tokenizers.py LLAMA_DIR

LLAMA_DIR is a llama.cpp checkout: models/ggml-vocab-*.gguf with their .inp (texts) and .out (ids), models/templates.
Prints one line a vocabulary (kind, pre-tokenizer, tokens, texts, how many differ, seconds to load) and one a template
(renderings, how many differ); exits with 1 if anything differs.
"""

from __future__ import annotations

import itertools
import sys
import time
from pathlib import Path
from typing import Any

from chat_templates import CALLS, MESSAGES, TOOLS
from transformers.utils.chat_template_utils import render_jinja_template

import lowbit
from lowbit.chat.template import render_chat

SEPARATOR = "\n__ggml_vocab_test__\n"
TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
PARTS = [{"type": "text", "text": "One. "}, {"type": "text", "text": "Two."}]
ANSWER = {"role": "assistant", "content": "Fine.", "reasoning_content": "é 你好"}
CALL = {"id": "abc123456", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    MESSAGES,
    MESSAGES[1:2],
    CALLS,
    [MESSAGES[1], ANSWER],
    [MESSAGES[1], ANSWER, MESSAGES[3]],
    [{"role": "system", "content": PARTS}, {"role": "user", "content": PARTS}],
    [{"role": "user", "content": [{"type": "image"}, *PARTS]}],
    [MESSAGES[1], {"role": "assistant", "content": "", "tool_calls": [CALL]},
     {"role": "tool", "name": "weather", "tool_call_id": "abc123456", "content": '{"t": 20}'}],
    [MESSAGES[1], {"role": "assistant", "content": None, "tool_calls": [CALL, CALL]},
     {"role": "tool", "tool_call_id": "abc123456", "content": "20"}, ANSWER],
    [MESSAGES[1], MESSAGES[1]],
    [ANSWER, MESSAGES[1]],
    [],
    [{"role": "developer", "content": "Be brief."}, MESSAGES[1]],
    [{"role": "ipython", "content": "x"}],
]  # fmt: skip
VARIABLES: list[dict[str, Any]] = [
    {},
    {"enable_thinking": False},
    {"documents": [{"title": "T", "text": "words"}]},
    {"date_string": "1 May 2026"},
]


def vocabulary(path: Path) -> bool:
    """One line about a vocabulary; whether all is equal."""
    start = time.perf_counter()
    with lowbit.gguf.open(path) as file:
        tokenizer = lowbit.load_tokenizer(file)
        kind = file.metadata["tokenizer.ggml.model"], file.metadata.get("tokenizer.ggml.pre", "default")
    seconds = time.perf_counter() - start
    if not (given := Path(f"{path}.inp")).is_file():
        print(f"{path.stem}: {' '.join(kind)}, {tokenizer.vocab_size} tokens, no texts, {seconds:.2f} s")
        return True
    texts = given.read_bytes().decode().split(SEPARATOR)
    lines = Path(f"{path}.out").read_text().split("\n")[: len(texts)]
    expected = [[int(i) for i in line.split()] for line in lines]
    found = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    differing = sum(a != b for a, b in zip(found, expected, strict=True))
    print(f"{path.stem}: {' '.join(kind)}, {tokenizer.vocab_size} tokens, {len(texts)} texts, {differing} differ, "
          f"{seconds:.2f} s")  # fmt: skip
    return differing == 0


def rendered(render: Any) -> str | None:
    """What `render` gives, None where it refuses."""
    try:
        return str(render())
    except Exception:
        return None


def template(path: Path) -> bool:
    """One line about a chat template; whether all is equal."""
    source = path.read_text()
    count = differing = 0
    for messages, tools, variables, generation in itertools.product(
        CONVERSATIONS, (None, TOOLS), VARIABLES, (True, False)
    ):
        options = {"tools": tools, "add_generation_prompt": generation, **TOKENS, **variables}

        def theirs(messages: Any = messages, options: Any = options) -> Any:
            return render_jinja_template([messages], chat_template=source, **{"documents": None, **options})[0][0]

        def ours(messages: Any = messages, options: Any = options) -> str:
            return render_chat(source, messages, **options)

        count += 1
        differing += rendered(theirs) != rendered(ours)
    print(f"{path.name}: {count} renderings, {differing} differ")
    return differing == 0


def main() -> None:
    """All vocabularies, then all templates."""
    models = Path(sys.argv[1]) / "models"
    equal = [vocabulary(path) for path in sorted(models.glob("ggml-vocab-*.gguf"))]
    equal += [template(path) for path in sorted((models / "templates").glob("*.jinja"))]
    sys.exit(not all(equal))


if __name__ == "__main__":
    main()
