"""The syntax tree of a chat template, changed so that Jinja runs it as onnxruntime-genai 0.18 does.

Operators become calls of the environment's methods. What genai cannot parse is refused.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from jinja2 import nodes
from jinja2.visitor import NodeTransformer

from lowbit.base.errors import UnsupportedError
from lowbit.chat.template import environment_call

#: Tests after `is`.
TESTS = frozenset(
    ("defined", "undefined", "none", "boolean", "false", "true", "integer", "float", "string", "mapping", "number",
     "sequence", "iterable")
)  # fmt: skip
_TAGS = {
    nodes.CallBlock: "call", nodes.Block: "block", nodes.Include: "include", nodes.Import: "import",
    nodes.FromImport: "from", nodes.With: "with", nodes.ScopedEvalContextModifier: "autoescape",
    nodes.Extends: "extends",
}  # fmt: skip
#: The start of the names of variables that this module adds.
_OWN = "lowbit_"
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}


class GenaiRefusalError(UnsupportedError):
    """onnxruntime-genai cannot render a template. The text says what it lacks."""


def checked_tokens(tokens: Iterator[tuple[int, str, str]]) -> Iterator[tuple[int, str, str]]:
    """The lexer's tokens. Raises GenaiRefusalError for those that genai's parser does not know."""
    last = ""
    for token in tokens:
        _, kind, text = token
        if kind == "raw_begin":
            raise GenaiRefusalError("it has no tag raw")
        if (kind == "block_begin" and text.endswith("+")) or (kind == "block_end" and text.startswith("+")):
            raise GenaiRefusalError("it has no {%+ and no +%}")
        if kind == "operator" and text in ("]", "}") and last == ",":
            raise GenaiRefusalError("it allows no comma after the last item of a list or mapping")
        if kind not in ("whitespace", "comment"):
            last = text
        yield token


def with_genai_escapes(tokens: Iterator[tuple[int, str, str]]) -> Iterator[tuple[int, str, str]]:
    """The lexer's tokens, with quoted texts spelled so that Jinja reads from them what genai does."""
    for line, kind, text in tokens:
        if kind == "string":
            quote = text[0]
            read = re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), text[1:-1], flags=re.DOTALL)
            text = quote + read.encode("unicode_escape").decode("ascii").replace(quote, "\\" + quote) + quote
        yield line, kind, text


class GenaiSyntax(NodeTransformer):
    """Applies rules of genai_template.RULES."""

    def __init__(self, rules: frozenset[str], lacking: bool) -> None:
        self._rules = rules
        self._lacking = lacking
        self._loops = 0

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        """Changes the parts of a node."""
        tag = next((tag for kind, tag in _TAGS.items() if isinstance(node, kind)), None)
        if self._lacking and tag is not None:
            raise GenaiRefusalError(f"it has no tag {tag}")
        return super().generic_visit(node, *args, **kwargs)

    def visit_Test(self, node: nodes.Test) -> nodes.Node:
        """Tests after `is` get names of their own: those of selectattr are others."""
        self.generic_visit(node)
        if self._lacking and node.args:
            raise GenaiRefusalError(f"it has no test {node.name} with an argument")
        if self._lacking and node.name not in TESTS:
            return environment_call("refuse", nodes.Const(f"test {node.name}"))
        if node.name in TESTS:
            node.name = f"is {node.name}"
        return node

    def visit_Getattr(self, node: nodes.Getattr) -> nodes.Node:
        """An attribute."""
        self._check_owner(node.node)
        return self.generic_visit(node)

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        """An item or a slice."""
        self._check_owner(node.node)
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            parts = (part or nodes.Const(None) for part in (node.arg.start, node.arg.stop, node.arg.step))
            return environment_call("sliced", node.node, *parts)
        return node

    def _check_owner(self, owner: nodes.Node) -> None:
        if self._lacking and isinstance(owner, nodes.Call) and isinstance(owner.node, nodes.Name):
            raise GenaiRefusalError(f"nothing may follow the call of {owner.node.name} but with parentheses around it")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        """`in` and `not in`."""
        self.generic_visit(node)
        first = node.ops[0]
        if "in" in self._rules and len(node.ops) == 1 and first.op in ("in", "notin"):
            found = environment_call("contains", first.expr, node.expr)
            return nodes.Not(found) if first.op == "notin" else found
        return node

    def visit_And(self, node: nodes.And) -> nodes.Node:
        """`and` gives True or False."""
        self.generic_visit(node)
        return environment_call("as_boolean", node) if "truth" in self._rules else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        """A mapping is true."""
        self.generic_visit(node)
        return environment_call("mapping", node) if "truth" in self._rules else node

    def visit_Div(self, node: nodes.BinExpr) -> nodes.Node:
        """Integers stay integers."""
        self.generic_visit(node)
        return environment_call("divided", nodes.Const(node.operator), node.left, node.right)

    visit_FloorDiv = visit_Mod = visit_Div

    def visit_For(self, node: nodes.For) -> nodes.Node | list[nodes.Node]:
        """Variables that the body sets are in an object of the loop. The loop's own is set once more after it."""
        self.generic_visit(node)
        if "scope" not in self._rules:
            return node
        self._loops += 1
        space, items = (f"{_OWN}{name}{self._loops}" for name in ("loop", "items"))
        targets = _names(node.target)
        if names := frozenset(name for name in _assigned(node.body) if not name.startswith(_OWN)) - targets:
            node.body = [_LoopVariables(space, names).visit(part) for part in node.body]
        listed = nodes.Assign(nodes.Name(items, "store"), environment_call("listed", node.iter))
        node.iter = nodes.Name(items, "load")
        last = nodes.Getitem(nodes.Name(items, "load"), nodes.Const(-1), "load")
        after = nodes.If(nodes.Name(items, "load"), [nodes.Assign(_copied(node.target), last)], [], [])
        return [nodes.Assign(nodes.Name(space, "store"), environment_call("loop_variables")), listed, node, after]


class _LoopVariables(NodeTransformer):
    """Reads and sets variables in the object `space` of a loop."""

    def __init__(self, space: str, names: frozenset[str]) -> None:
        self._space = space
        self._names = names

    def visit_Name(self, node: nodes.Name) -> nodes.Node:
        """A variable that the loop sets."""
        if node.name not in self._names:
            return node
        if node.ctx == "store":
            return nodes.NSRef(self._space, f"v_{node.name}")
        return environment_call("loop_variable", nodes.Name(self._space, "load"), nodes.Const(f"v_{node.name}"), node)

    def visit_For(self, node: nodes.For) -> nodes.Node:
        """A loop inside: its own variable hides one of this loop."""
        node.iter = self.visit(node.iter)
        inner = _LoopVariables(self._space, self._names - _names(node.target))
        node.body = [inner.visit(part) for part in node.body]
        node.test = node.test and inner.visit(node.test)
        node.else_ = [self.visit(part) for part in node.else_]
        return node

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:
        """A macro has its own variables."""
        return node


def _names(target: nodes.Node) -> frozenset[str]:
    """The variables of an assignment's left side."""
    if isinstance(target, nodes.Name):
        return frozenset((target.name,))
    return frozenset(name.name for name in target.find_all(nodes.Name))


def _copied(target: nodes.Node) -> nodes.Node:
    if isinstance(target, nodes.Tuple):
        return nodes.Tuple([_copied(item) for item in target.items], "store")
    return nodes.Name(target.name, "store") if isinstance(target, nodes.Name) else target


def _assigned(body: list[nodes.Node]) -> Iterator[str]:
    """The variables that a loop's body sets, without those of loops and macros inside."""
    for node in body:
        if isinstance(node, (nodes.Assign, nodes.AssignBlock)):
            if not isinstance(node.target, nodes.NSRef):
                yield from _names(node.target)
        elif not isinstance(node, (nodes.For, nodes.Macro, nodes.CallBlock)):
            yield from _assigned([part for part in node.iter_child_nodes() if isinstance(part, nodes.Stmt)])
