"""Chat templates: untrusted Jinja from model files, rendered in a sandbox with limits.

The environment has the same functions as in transformers. Jinja's sandbox protects Python's internals, but it does not
limit time and memory. So loops, calls, operators and filters are counted, and their results measured. The limits are
far above the needs of real conversations.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from lowbit.base.errors import Error, FormatError, InputError
from lowbit.base.quoting import reason
from lowbit.chat.tools import json_schema

_MAX_STEPS = 1_000_000  # loop iterations, calls, operators and filters per rendering
_MAX_SIZE = 16 << 20  # characters or items of one value, and of the output
_MAX_TEMPLATE = 1 << 20
_REASONING = ("reasoning_content", "thinking", "reasoning")
# Functions whose result is longer than their inputs: name -> may reach the product of the sizes.
_GROWING = {
    "batch",
    "center",
    "expandtabs",
    "indent",
    "join",
    "ljust",
    "replace",
    "rjust",
    "slice",
    "wordwrap",
    "zfill",
}
_FORMATTING = {"format", "format_map"}
# Functions that run Python code for each word or line.
_SLOW = {"indent", "pprint", "striptags", "title", "urlize", "wordwrap"}
# Tests that compare values.
_COMPARING = {"!=", "<", "<=", "==", ">", ">=", "eq", "equalto", "ge", "greaterthan", "gt", "in", "le", "lessthan",
              "lt", "ne"}  # fmt: skip
# Filters that iterate over lists and mappings; all others convert them to text.
# fmt: off
_STRUCTURAL = frozenset((
    "attr", "batch", "count", "d", "default", "dictsort", "first", "groupby", "items", "last", "length", "list",
    "map", "max", "min", "random", "reject", "rejectattr", "reverse", "select", "selectattr", "slice", "sort", "sum",
    "unique",
))
# fmt: on
# Appended to the message that is continued. If its final space is missing afterwards, the template trims texts.
_END_MARK = "LOWBIT_END_OF_FINAL_MESSAGE "
_WIDE_FIELD = re.compile(r"\d{6}")

_steps: ContextVar[int] = ContextVar("lowbit_chat_steps", default=0)
_most_steps: ContextVar[int] = ContextVar("lowbit_chat_most_steps", default=_MAX_STEPS)


class _LimitError(Exception):
    """A template exceeds the limits."""


class RefusedError(Exception):
    """The template itself refused the messages, through raise_exception."""


def _step(cost: int = 1) -> None:
    count = _steps.get() + cost
    if count > (most := _most_steps.get()):
        raise _LimitError(f"more than {most} steps")
    _steps.set(count)


@contextlib.contextmanager
def at_most(steps: int) -> Iterator[None]:
    """Allows so many steps in each rendering of the block."""
    most = _most_steps.set(steps)
    try:
        yield
    finally:
        _most_steps.reset(most)


def _size(value: Any) -> int:
    """The size that `value` adds to a result made of it; a number may be a width or a count."""
    if isinstance(value, int):
        return abs(value)
    return len(value) if isinstance(value, (str, bytes, list, tuple, dict, range)) else 1


def _check_size(size: int) -> None:
    if size > _MAX_SIZE:
        raise _LimitError(f"a value larger than {_MAX_SIZE}")


def _cost(value: Any) -> int:
    """The steps that reading or writing `value` takes; parts of its parts aside."""
    if isinstance(value, (str, bytes)):
        return len(value) >> 8
    return len(value) >> 3 if isinstance(value, (list, tuple, dict)) else 0


def made(value: Any) -> Any:
    """Counts a new value: creating it takes time, and it can stay in memory until the rendering ends."""
    if isinstance(value, (str, list, tuple, dict)):
        _check_size(len(value))
        _step(1 + _cost(value))
    return value


def weigh(value: Any) -> Any:
    """Measures `value` before it is compared or converted to text, and returns it. Shared parts count each time,
    because they are read each time."""
    size, waiting = 0, [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            size += len(item)
            _check_size(size)
        elif isinstance(item, (list, tuple, dict)):
            _step(1 + len(item))
            waiting += item
            if isinstance(item, dict):
                waiting += item.values()
    _step(size >> 8)
    return value


def check_call(name: str, args: Sequence[Any]) -> None:
    """Counts what a filter or method `name` reads, and checks before it runs whether its result can be huge."""
    _step(1 + sum(map(_cost, args)))
    if name in _SLOW:
        _step(sum(len(value) >> 2 for value in args if isinstance(value, str)))
    if name in _GROWING:
        size = 1
        for value in args:
            weigh(value)
            size *= max(_size(value), 1)
            _check_size(size)
    elif name in _FORMATTING:
        _check_format(args)


def _check_format(values: Iterable[Any]) -> None:
    for value in values:
        weigh(value)
        if isinstance(value, str) and _WIDE_FIELD.search(value):
            raise _LimitError("a format field wider than 99999")
        if isinstance(value, int) and abs(value) > _MAX_SIZE:
            raise _LimitError("a number too long to format")


def _counted(items: Iterable[Any]) -> Iterator[Any]:
    for item in items:
        _step()
        yield item


class _Tracked(Extension):
    """`{% generation %}` marks answers for training; here it is a plain block."""

    tags = {"generation"}  # noqa: RUF012, as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _Names(Namespace):
    """`namespace()` without names that start with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, *rest = args
        names = dict(*rest, **kwargs)
        for name in names:
            _check_name(name)
        Namespace.__init__(self, names)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace cannot hold {name!r}")


def _raise_exception(message: Any = "") -> None:
    raise RefusedError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)


def check_widths(*widths: Any) -> None:
    """Of an indent, or what is between values."""
    if max(map(_size, widths)) > 100:
        raise _LimitError("an indent or separator wider than 100")


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    check_widths(indent, *(separators or ()))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


class ChatEnvironment(ImmutableSandboxedEnvironment):
    """Jinja as in transformers. Counts every loop iteration, call, operator and filter, and measures their results."""

    intercepted_binops = frozenset(["+", "*", "**", "%"])

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[_Tracked, loopcontrols], finalize=_written)
        self.filters["tojson"] = _tojson
        self.filters = {name: measured(name, function) for name, function in self.filters.items()}
        self.globals.pop("lipsum")
        self.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now, dict=_dict, namespace=_Names)
        self.tests |= {name: _weighed(test) for name, test in self.tests.items() if name in _COMPARING}
        self.counted, self.joined, self.made, self.weighed = _counted, _joined, made, weigh

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree: nodes.Template = _Measured().visit(super()._parse(source, name, filename))
        for node in tree.find_all(nodes.Node):
            node.lineno = node.lineno or 1
        tree.set_environment(self)
        return tree

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A call in a template."""
        # The sandbox wraps str.format; the method is inside the wrapper.
        owner = getattr(getattr(function, "__wrapped__", function), "__self__", None)
        name = getattr(function, "__name__", "")
        extra = [owner] if isinstance(owner, (str, list, tuple)) else []
        check_call(name if extra or name not in _GROWING else "", [*extra, *args, *kwargs.values()])
        return made(super().call(context, function, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operator of `intercepted_binops`."""
        _step()
        numbers = isinstance(left, (int, float)) and isinstance(right, (int, float))
        if operator == "**":
            if abs(left) > 2**64 or abs(right) > 64:
                raise _LimitError("a power too large")
        elif operator == "%" and isinstance(left, str):
            _check_format([left, *(right if isinstance(right, tuple) else [right])])
            if "*" in left:
                raise _LimitError("a format field with a width from its arguments")
        elif numbers:
            if max(abs(left), abs(right)) > 2**1024:
                raise _LimitError("a number too large")
        elif operator == "*":
            _check_size(_size(left) * _size(right))
        elif operator == "+":
            _check_size(_size(left) + _size(right))
        return made(super().call_binop(context, operator, left, right))


def measured(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter whose inputs are checked and whose result is counted."""
    passed = 1 if getattr(function, "jinja_pass_arg", None) is not None else 0

    @functools.wraps(function)  # keeps the attribute with which Jinja passes its context or environment
    def run(*args: Any, **kwargs: Any) -> Any:
        values = [*args[passed:], *kwargs.values()]
        if name == "join" and len(args) > passed and not isinstance(args[passed], (str, list, tuple)):
            values[0] = list(_counted(args[passed]))
            args = (*args[:passed], values[0], *args[passed + 1 :])
        if name not in _STRUCTURAL:
            weigh(values)
        check_call(name, values)
        result = function(*args, **kwargs)
        return _counted(result) if isinstance(result, Iterator) else made(result)

    return run


def _joined(*parts: Any) -> str:
    weigh(parts)
    return str(made("".join(map(str, parts))))


def _written(value: Any) -> Any:
    if not isinstance(value, str):
        weigh(value)
    return value


def _weighed(test: Any) -> Callable[..., Any]:
    return lambda *args: test(*map(weigh, args))


class _Measured(NodeTransformer):
    """Makes calls of the environment's methods of what Jinja compiles to plain Python."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """Each pass is a step."""
        if node.recursive:
            raise _LimitError("a recursive loop")
        node.iter = environment_call("counted", node.iter)
        return self.generic_visit(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        """`a ~ b`."""
        self.generic_visit(node)
        return environment_call("joined", *node.nodes)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        """Slices are new values."""
        self.generic_visit(node)
        return environment_call("made", node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        """`==`, `<`, `in` and others read their operands."""
        self.generic_visit(node)
        node.expr = environment_call("weighed", node.expr)
        for operand in node.ops:
            operand.expr = environment_call("weighed", operand.expr)
        return node


def environment_call(method: str, *args: nodes.Node) -> nodes.Call:
    """A call of a method of the environment."""
    return nodes.Call(nodes.EnvironmentAttribute(method), [*args], [], None, None)


def _plain(value: Any) -> Any:
    """A copy of JSON types only, so that a template gets no object with its own methods."""
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (Sequence, set, frozenset)) and not isinstance(value, (bytes, bytearray)):
        return [_plain(item) for item in value]
    raise InputError("chat messages, tools and variables:", expected="JSON values", found=type(value).__name__)


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message, with its reasoning under each name that templates use."""
    plain: dict[str, Any] = _plain(message)
    reasoning = next((plain[name] for name in _REASONING if plain.get(name) is not None), None)
    return plain if reasoning is None else {"thinking": reasoning, **plain, "reasoning_content": reasoning}


@functools.lru_cache(maxsize=16)
def _compiled(template: str) -> jinja2.Template:
    return ChatEnvironment().from_string(template)


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any] | Callable[..., Any]] | None = None,
    continue_final_message: bool = False,
    **variables: Any,
) -> str:
    """The prompt for `messages`, rendered by `template` as in transformers' `apply_chat_template`.

    `tools` are JSON schemas, or functions (see `chat/tools.py`). With `continue_final_message` the prompt ends at the
    end of the last message's text, so that the model continues it. `variables` are further inputs of the template
    (`bos_token`, `enable_thinking`, ...). Raises InputError if the template refuses the messages, FormatError if the
    template is wrong or exceeds the limits.
    """
    if not isinstance(template, str) or len(template) > _MAX_TEMPLATE:
        raise FormatError("chat template:", expected=f"a string of at most {_MAX_TEMPLATE} characters")
    is_list = isinstance(messages, Iterable) and not isinstance(messages, (str, Mapping))
    if not is_list or not all(isinstance(m, Mapping) and "role" in m for m in messages):
        raise InputError("messages:", expected="a list of mappings such as {'role': 'user', 'content': '...'}")
    with limited():
        names = {**_plain(variables), "messages": [_message(message) for message in messages]}
        names["tools"] = None if tools is None else [_tool(tool) for tool in tools]
        names.setdefault("documents", None)
        if continue_final_message:
            add_generation_prompt = False
            _mark_end(names["messages"])
        text = rendered(_compiled(template), {**names, "add_generation_prompt": add_generation_prompt})
        return _cut_at_mark(text) if continue_final_message else text


def rendered(template: jinja2.Template, names: Mapping[str, Any]) -> str:
    """The text of a template of a ChatEnvironment."""
    pieces, size = [], 0
    for piece in template.generate(names):
        size += len(piece)
        _check_size(size)
        pieces.append(piece)
    return "".join(pieces)


@contextlib.contextmanager
def limited() -> Iterator[None]:
    """Counts the steps of one rendering.

    Raises InputError if the template refuses its input, FormatError if it is wrong or exceeds the limits.
    """
    count = _steps.set(0)
    try:
        yield
    except Error:
        raise
    except RefusedError as cause:
        raise InputError(f"chat template refused the messages: {reason(cause)}") from None
    except Exception as cause:  # templates can raise any error, also MemoryError and RecursionError
        raise FormatError(f"chat template: {reason(cause)}") from cause
    finally:
        _steps.reset(count)


def _tool(value: Any) -> Any:
    return json_schema(value) if inspect.isfunction(value) or inspect.ismethod(value) else _plain(value)


def _mark_end(messages: list[dict[str, Any]]) -> None:
    """Adds the mark after the text of the last message."""
    content = messages[-1].get("content") if messages else None
    if isinstance(content, str):
        messages[-1]["content"] = content + _END_MARK
        return
    part = next((p for p in reversed(content or []) if isinstance(p, dict) and isinstance(p.get("text"), str)), None)
    if part is None:
        raise InputError("continue_final_message: the last message has no text")
    part["text"] += _END_MARK


def _cut_at_mark(text: str) -> str:
    """The text before the mark. If the template trims texts, the spaces before it are removed too."""
    place = text.rfind(_END_MARK.strip())
    if place < 0:
        raise InputError("continue_final_message: the template omits the end of the last message")
    is_whole = text.startswith(_END_MARK, place)
    return text[:place] if is_whole else text[:place].rstrip()


def template_warnings(template: str) -> list[str]:
    """What is wrong with a template, found by rendering one message."""
    try:
        render_chat(template, [{"role": "user", "content": "Hello"}])
    except FormatError as error:
        return [str(error)]
    except InputError:
        pass  # a template may need more than one message
    return []
