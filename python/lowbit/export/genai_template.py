"""Chat templates as onnxruntime-genai 0.18 renders them.

It has an engine of its own, which differs from Jinja as transformers runs it. `genai_text` renders with Jinja and these
differences. Each has a name in `RULES` and can be applied alone, so that a difference of two texts has a cause.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.lexer import TokenStream
from jinja2.runtime import Undefined
from jinja2.utils import Namespace

from lowbit.chat.template import ChatEnvironment, check_call, check_widths, limited, made, measured, rendered, weigh
from lowbit.export.genai_syntax import TESTS, GenaiRefusalError, GenaiSyntax, checked_tokens, with_genai_escapes

#: What genai does differently, for a message.
RULES = {
    "blocks": "keeps the line end after a block tag and the spaces before it (no trim_blocks, no lstrip_blocks)",
    "in": "finds no text in a text: 'x' in 'xyz' is false",
    "division": "cuts divisions of integers: 7 / 2 is 3, -7 // 2 is -3, -7 % 3 is -1",
    "none": "writes nothing for none",
    "inputs": "has only messages, tools if they are given, add_generation_prompt, bos_token and eos_token; others are "
    "undefined, not none",
    "tools": 'rewrites tools: there is no "function" around each, and no "properties" in its parameters',
    "truth": "takes an empty mapping as true, and gives True or False for `and`",
    "bytes": "counts bytes in a text's length, slices and loops, and has no text[0]",
    "scope": "keeps variables that a loop sets for its next pass, and a loop's variable after its end",
    "writing": "writes lists and mappings with null and tuples as lists, and joins floats with six digits",
    "escapes": "reads no escapes but \\n, \\r, \\t, \\b and \\f in a quoted text",
    "functions": "has other versions of lower, trim, strip, capitalize, indent, escape, get, tojson with an indent, "
    "and selectattr without a test",
    "types": "takes a text for no sequence, and true for no number",
}
#: Where genai fails, the rendering does too.
LACKING = "lacking"
ALL = frozenset(RULES) | {LACKING}

_FILTERS = frozenset(
    ("count", "default", "dictsort", "e", "escape", "indent", "int", "items", "join", "last", "length", "list", "lower",
     "map", "reject", "rejectattr", "safe", "select", "selectattr", "sort", "string", "tojson", "trim", "unique")
)  # fmt: skip
#: Filters that take lists, and filters that take texts and none.
_LIST_FILTERS = ("join", "last", "list", "sort", "unique")
_TEXT_FILTERS = ("e", "escape", "indent", "lower", "trim")
#: Filter -> most arguments.
_MOST_ARGUMENTS = {"dictsort": 0, "join": 1, "list": 0, "trim": 0, "unique": 0}
_SELECTING = ("selectattr", "rejectattr")
_GLOBALS = frozenset(("raise_exception", "strftime_now", "namespace", "range", "joiner"))
#: Methods by type -> fewest and most arguments.
_METHODS: dict[type, dict[str, tuple[int, int]]] = {
    str: {"capitalize": (0, 0), "endswith": (1, 1), "lstrip": (0, 1), "rstrip": (0, 1), "split": (1, 1),
          "startswith": (1, 1), "strip": (0, 1), "title": (0, 0)},
    list: {"append": (1, 1), "insert": (2, 2), "pop": (0, 1)},
    dict: {"get": (1, 2), "items": (0, 0), "pop": (1, 1)},
}  # fmt: skip
#: Templates with one of these, spaces aside, get tools as they are.
_PLAIN_TOOLS = ("tool.function", "tool|tojson", "tools|tojson")
_SPACES = " \t\n\r"
#: Arguments that Jinja adds to calls in loops.
_OF_JINJA = {"_loop_vars", "_block_vars"}
_CAPITALS = {code: code + 32 for code in range(ord("A"), ord("Z") + 1)}


def genai_text(template: str, names: Mapping[str, Any], rules: Iterable[str] = ALL) -> str:
    """What genai renders. names: the template's inputs as transformers passes them, JSON values.

    Raises GenaiRefusalError if genai cannot render the template, InputError if the template refuses the input,
    FormatError if it is wrong.
    """
    rules = frozenset(rules)
    with limited():
        text = rendered(_compiled(template, rules), _inputs(template, names, rules))
    return _decoded(text)


@functools.lru_cache(maxsize=64)
def _compiled(template: str, rules: frozenset[str]) -> jinja2.Template:
    return _GenaiEnvironment(rules).from_string(template)


def _inputs(template: str, names: Mapping[str, Any], rules: frozenset[str]) -> dict[str, Any]:
    values = dict(names)
    if "inputs" in rules:
        known = [
            "messages",
            "add_generation_prompt",
            "bos_token",
            "eos_token",
            *(["tools"] if names.get("tools") else []),
        ]
        values = {name: value for name, value in values.items() if name in known}
    if "tools" in rules and values.get("tools") and not any(text in "".join(template.split()) for text in _PLAIN_TOOLS):
        values["tools"] = [_rewritten_tool(tool) for tool in values["tools"]]
    return {name: _with_mappings(value) for name, value in values.items()} if "truth" in rules else values


def _rewritten_tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """A function's schema as genai passes it to a template."""
    function = tool.get("function") if tool.get("type") == "function" else None
    if function is None:
        return tool
    parameters = function.get("parameters", {})
    if "properties" in parameters:
        parameters = {name: _rewritten_schema(schema) for name, schema in parameters["properties"].items()}
    return {"name": function.get("name", ""), "description": function.get("description", ""), "parameters": parameters}


def _rewritten_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: schema[key] for key in ("type", "description") if key in schema}
    if isinstance(kept.get("type"), list):
        kept["type"] = next((kind for kind in kept["type"] if kind != "null"), "null")
    return {**kept, "type": "str"} if kept.get("type") == "string" else kept


class _Mapping(dict[Any, Any]):
    """A mapping that is true even if it is empty."""

    def __bool__(self) -> bool:
        return True


def _with_mappings(value: Any) -> Any:
    if isinstance(value, dict):
        return _Mapping((key, _with_mappings(item)) for key, item in value.items())
    return [_with_mappings(item) for item in value] if isinstance(value, list) else value


class _GenaiEnvironment(ChatEnvironment):
    """Jinja with the given rules. Its public methods are called by the code of templates (see genai_syntax.py)."""

    def __init__(self, rules: frozenset[str]) -> None:
        super().__init__()
        self.rules = rules
        self.optimized = False  # nothing is computed while a template is compiled
        self.trim_blocks = self.lstrip_blocks = "blocks" not in rules
        self.finalize = self._finalized
        self._base_joined, self.joined = self.joined, self._joined
        self._base_counted, self.counted = self.counted, self._counted
        self.tests = {**self.tests, **{f"is {name}": self.tests[name] for name in TESTS}}
        self._change_functions()
        if LACKING in rules:
            self.filters = {name: self._limited_filter(name, function) for name, function in self.filters.items()}
            lacking = {name: self._lacking(f"test {name}") for name in self.tests if not name.startswith("is ")}
            self.tests = {**self.tests, **lacking, **{name: self.tests[name] for name in ("equalto", "==")}}
            self.globals = {name: value for name, value in self.globals.items() if name in _GLOBALS}

    def _change_functions(self) -> None:
        if "functions" in self.rules:
            self.filters |= {name: measured(name, function) for name, function in _FUNCTIONS.items()}
            self.filters |= {name: self._attributes(self.filters[name]) for name in _SELECTING}
        if "bytes" in self.rules:
            self.filters |= dict.fromkeys(("length", "count"), measured("length", _length))
        if "writing" in self.rules:
            self.filters |= dict.fromkeys(("string", "safe"), measured("string", _text))
            self.filters["join"] = measured("join", lambda items, d="": d.join(map(_text, items)))
        if "none" in self.rules:
            for name in ("trim", "lower"):
                self.filters[name] = _unless_none(self.filters[name])
        if "types" in self.rules:
            self.tests["is sequence"] = lambda value: isinstance(value, (list, tuple))
            self.tests["is number"] = lambda value: isinstance(value, (int, float)) and not isinstance(value, bool)

    # --- syntax

    def _tokenize(self, source: str, name: str | None, filename: str | None = None, state: Any = None) -> TokenStream:
        tokens = self.lexer.tokeniter(source, name, filename, state)
        tokens = checked_tokens(tokens) if LACKING in self.rules else tokens
        tokens = with_genai_escapes(tokens) if "escapes" in self.rules else tokens
        return TokenStream(self.lexer.wrap(tokens, name, filename), name, filename)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = GenaiSyntax(self.rules, LACKING in self.rules).visit(
            super()._parse(source, name, filename)
        )
        for node in tree.find_all(nodes.Node):
            node.lineno = node.lineno or 1
        tree.set_environment(self)
        return tree

    # --- what genai lacks

    def refuse(self, what: str) -> None:
        """Ends the rendering."""
        raise GenaiRefusalError(f"it has no {what}")

    def _lacking(self, what: str) -> Callable[..., None]:
        return lambda *args, **kwargs: self.refuse(what)

    def _limited_filter(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        if name not in _FILTERS:
            return self._lacking(f"filter {name}")
        passed = 1 if getattr(function, "jinja_pass_arg", None) is not None else 0

        @functools.wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            value, others = args[passed], len(args) - passed - 1 + len(kwargs)
            is_wrong = others > _MOST_ARGUMENTS.get(name, others) or (name == "default" and not others)
            if is_wrong or (name == "tojson" and kwargs.keys() - {"indent"}):
                self.refuse(f"filter {name} with these arguments")
            is_other = (
                isinstance(value, (str, dict, Undefined)) or value is None
                if name in _LIST_FILTERS
                else name in _TEXT_FILTERS and not isinstance(value, (str, Undefined)) and value is not None
            )
            if is_other:
                self.refuse(f"filter {name} of a {type(value).__name__}")
            return function(*args, **kwargs)

        return run

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Calls a function or method."""
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        kind = next((kind for kind in _METHODS if isinstance(owner, kind)), None)
        if kind is None:
            return super().call(context, function, *args, **kwargs)
        name = function.__name__
        if LACKING in self.rules:
            fewest, most = _METHODS[kind].get(name, (1, 0))
            if (
                not fewest <= len(args) <= most
                or kwargs.keys() - _OF_JINJA
                or any(isinstance(value, tuple) for value in args)
            ):
                self.refuse(f"method {name} of a {kind.__name__} with these arguments")
        if "functions" in self.rules and kind is str and name in _TEXT_METHODS:
            check_call(name, [owner, *args])
            return made(_TEXT_METHODS[name](owner, *args))
        if "functions" in self.rules and isinstance(owner, dict) and name == "get" and len(args) == 1:
            return owner[args[0]] if args[0] in owner else self.undefined()
        return super().call(context, function, *args, **kwargs)

    # --- values

    def _finalized(self, value: Any) -> Any:
        if value is None and "none" in self.rules:
            return ""
        weigh(value)
        return _dumped(value) if "writing" in self.rules and isinstance(value, (list, tuple, dict, range)) else value

    def _joined(self, *parts: Any) -> str:
        weigh(parts)
        return self._base_joined(*map(_text, parts) if "writing" in self.rules else parts)

    def _counted(self, items: Any) -> Iterator[Any]:
        if isinstance(items, str) and "bytes" in self.rules:
            items = [bytes([byte]).decode("utf-8", "surrogateescape") for byte in _encoded(items)]
        return self._base_counted(() if items is None and "none" in self.rules else items)

    def getitem(self, obj: Any, argument: Any) -> Any:
        """An item of a value."""
        if isinstance(obj, str) and isinstance(argument, int) and "bytes" in self.rules:
            return self.undefined()
        return super().getitem(obj, argument)

    def sliced(self, value: Any, start: int | None, stop: int | None, step: int | None) -> Any:
        """value[start:stop:step]."""
        if isinstance(value, str) and "bytes" in self.rules:
            return _encoded(value)[start:stop:step].decode("utf-8", "surrogateescape")
        if isinstance(value, list) and LACKING in self.rules:
            step = step or 1
            first, last = (len(value) - 1, -1) if step < 0 else (0, len(value))
            first, last = (
                end if place is None else place + len(value) if place < 0 else place
                for place, end in ((start, first), (stop, last))
            )
            wanted = range(first, last, step)
            if wanted and not 0 <= min(wanted[0], wanted[-1]) <= max(wanted[0], wanted[-1]) < len(value):
                self.refuse("slice that goes beyond a list's ends")
        return value[start:stop:step]

    def contains(self, whole: Any, part: Any) -> bool:
        """`part in whole`."""
        return isinstance(whole, (list, tuple, dict, range)) and part in whole

    def as_boolean(self, value: Any) -> bool:
        """The result of `and`."""
        return bool(value)

    def mapping(self, value: dict[Any, Any]) -> _Mapping:
        """A mapping that the template writes."""
        return _Mapping(value)

    def divided(self, operator: str, left: Any, right: Any) -> Any:
        """`left / right`, `left // right` or `left % right`."""
        numbers = all(isinstance(value, (int, float)) for value in (left, right))
        if LACKING in self.rules and not numbers:
            self.refuse(f"{operator} of a {type(left).__name__}")
        integers = all(isinstance(value, int) for value in (left, right))
        if "division" in self.rules and right and (integers or (numbers and operator != "/")):
            left, right = int(left), int(right)
            quotient = abs(left) // abs(right) * (1 if (left < 0) == (right < 0) else -1)
            return left - quotient * right if operator == "%" else quotient
        return self.call_binop(None, operator, left, right)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """`+` and others."""
        if operator == "+" and "writing" in self.rules and (isinstance(left, str) or isinstance(right, str)):
            return self._joined(left, right)
        return super().call_binop(context, operator, left, right)

    def listed(self, items: Iterable[Any]) -> list[Any]:
        """The items of a loop."""
        return list(items)

    def loop_variables(self) -> Namespace:
        """The variables that a loop sets."""
        return Namespace()

    def loop_variable(self, variables: Namespace, name: str, outer: Any) -> Any:
        """A variable in a loop. outer: its value if the loop has not set it."""
        return getattr(variables, name, outer)

    def _attributes(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """selectattr and rejectattr: without a test, they give the attributes."""

        @functools.wraps(function)
        def run(context: Any, items: Any, *args: Any, **kwargs: Any) -> Any:
            if len(args) == 1:
                return [self.getitem(item, args[0]) for item in self._base_counted(items)]
            return function(context, items, *args, **kwargs)

        return run


# --- functions


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _decoded(text: str) -> str:
    try:
        return _encoded(text).decode()
    except UnicodeDecodeError:
        raise GenaiRefusalError("it cuts a text inside a character") from None


def _length(value: Any) -> int:
    if isinstance(value, Undefined):
        raise GenaiRefusalError("it has no length of an undefined value")
    return len(_encoded(value)) if isinstance(value, str) else len(value)


def _unless_none(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda value, *args, **kwargs: None if value is None else function(value, *args, **kwargs)


def _text(value: Any) -> str:
    """A value as a part of a text."""
    if value is None or isinstance(value, Undefined):
        return "None"
    if isinstance(value, float):
        return f"{value:f}"
    return _dumped(value) if isinstance(value, (list, tuple, dict, range)) else str(value)


def _dumped(value: Any) -> str:
    """A value inside a list or mapping."""
    if value is None or isinstance(value, Undefined):
        return "null"
    if isinstance(value, (list, tuple, range)):
        return f"[{', '.join(map(_dumped, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{_dumped_key(key)}: {_dumped(item)}' for key, item in value.items())}}}"
    return _quoted(value) if isinstance(value, str) else str(value)


def _dumped_key(key: Any) -> str:
    return _quoted(key) if isinstance(key, str) else f"'{json.dumps(key)}'"


def _quoted(text: str) -> str:
    quoted = json.dumps(text, ensure_ascii=False)
    return quoted if "'" in text else "'" + quoted[1:-1].replace('\\"', '"') + "'"


def _tojson(value: Any, indent: int = -1, level: int = 0) -> str:
    check_widths(indent)
    line = "\n" + " " * (indent * (level + 1)) if indent > 0 else ""
    between = ", " if indent < 0 else "," + line
    end = "\n" + " " * (indent * level) if indent > 0 else ""
    if isinstance(value, (list, tuple, range)):
        return "[" + line + between.join(_tojson(item, indent, level + 1) for item in value) + end + "]"
    if isinstance(value, dict):
        items = (
            f"{json.dumps(str(key), ensure_ascii=False)}: {_tojson(item, indent, level + 1)}"
            for key, item in value.items()
        )
        return "{" + line + between.join(items) + end + "}"
    return "null" if isinstance(value, Undefined) else json.dumps(value, ensure_ascii=False)


def _indent(text: str, indent: int = 0, first: bool = False) -> str:
    lines = text.split("\n")
    return "\n".join(
        " " * indent * (first or i > 0) * bool(line or i < len(lines) - 1) + line for i, line in enumerate(lines)
    )


def _escape(text: str) -> str:
    signs = (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&#34;"), ("'", "&apos;"))
    return functools.reduce(lambda done, sign: done.replace(*sign), signs, text)


def _title(text: str) -> str:
    return "".join(
        _upper(character) if not i or text[i - 1].isspace() else character.translate(_CAPITALS)
        for i, character in enumerate(text)
    )


def _upper(character: str) -> str:
    return character.upper() if character.isascii() else character


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "e": _escape,
    "escape": _escape,
    "indent": _indent,
    "lower": lambda text: str(text).translate(_CAPITALS),
    "tojson": _tojson,
    "trim": lambda text: str(text).strip(_SPACES),
}
_TEXT_METHODS: dict[str, Callable[..., Any]] = {
    "capitalize": lambda text: _upper(text[:1]) + text[1:],
    "lstrip": lambda text, signs=_SPACES: text.lstrip(signs),
    "rstrip": lambda text, signs=_SPACES: text.rstrip(signs),
    "strip": lambda text, signs=_SPACES: text.strip(signs),
    "title": _title,
}
