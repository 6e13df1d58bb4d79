"""Arithmetic in published YAML: ``${eval:'${obs_dim} * ${cond_steps}'}``, ``${round_up:x}``, ``${round_down:x}``.

The original hands the text to Python's ``eval``, so a configuration can run anything. Here it is parsed, and only numbers,
``+ - * / // % **``, brackets and a few functions of numbers are computed. The project's own YAML may not use it.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable
from typing import Any

from omegaconf import OmegaConf
from omegaconf.base import Container

from agent.compat.targets import is_published
from agent.errors import UsageError

LONGEST = 200  # characters of an expression
LARGEST = (
    1e15  # magnitude of any number in it: nothing that is configured comes near, and no power can grow without end
)
_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}
_UNARY: dict[type, Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "abs": abs,
    "float": float,
    "int": int,
    "max": max,
    "min": min,
    "round": round,
    "ceil": math.ceil,
    "floor": math.floor,
}


def compute(expression: str) -> int | float:
    """The value of an arithmetic expression.

    Raises:
        UsageError: it is longer than ``LONGEST``, is no arithmetic, or does not come out (division by zero, a number beyond
            ``LARGEST``); says which part.
    """
    text = str(expression).strip()
    if len(text) > LONGEST:
        raise UsageError(f"${{eval:...}}: expected at most {LONGEST} characters of arithmetic, found {len(text)}")
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise _refusal(text, text) from None
    try:
        return _value(tree.body, text)
    except (ArithmeticError, TypeError, ValueError) as error:
        if isinstance(error, UsageError):
            raise
        raise UsageError(f"${{eval:{text}}}: {error}") from None


def _value(node: ast.AST, text: str) -> int | float:
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return _small(node.value, text)
    if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
        return _UNARY[type(node.op)](_value(node.operand, text))
    if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
        left, right = _value(node.left, text), _value(node.right, text)
        if isinstance(node.op, ast.Pow) and abs(right) > 64:
            raise UsageError(f"${{eval:{text}}}: expected exponents of at most 64, found {right}")
        return _small(_BINARY[type(node.op)](left, right), text)
    if isinstance(node, ast.Call) and not node.keywords and _name(node.func) in _FUNCTIONS:
        return _small(_FUNCTIONS[_name(node.func)](*(_value(part, text) for part in node.args)), text)
    raise _refusal(text, ast.get_source_segment(text, node) or text)


def _name(node: ast.AST) -> str | None:
    """``round`` of ``round`` and of ``math.round``; anything else that is called has no name here."""
    if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "math":
        return node.attr
    return node.id if isinstance(node, ast.Name) else None


def _small(value: Any, text: str) -> int | float:
    if type(value) not in (int, float) or not abs(value) <= LARGEST:
        shown = "a larger number" if type(value) in (int, float) else repr(value)
        raise UsageError(f"${{eval:{text}}}: expected numbers of at most {LARGEST:g}, found {shown}")
    return value


def _refusal(text: str, part: str) -> UsageError:
    return UsageError(
        f"${{eval:{text}}}: only arithmetic is computed (numbers, + - * / // % **, brackets, {', '.join(_FUNCTIONS)}), "
        f"found {part!r}. Write the number itself"
    )


def register() -> None:
    """Make ``${eval:...}``, ``${round_up:x}`` and ``${round_down:x}`` known to OmegaConf, for published files only."""
    resolvers = {
        "eval": compute,
        "round_up": lambda x: compute(f"ceil({x})"),
        "round_down": lambda x: compute(f"floor({x})"),
    }
    for name, resolve in resolvers.items():
        OmegaConf.register_new_resolver(name, _guarded(name, resolve), replace=True)


def _guarded(name: str, resolve: Callable[[str], Any]) -> Callable[..., Any]:
    def guarded(*parts: Any, _root_: Container) -> Any:
        if not is_published(_root_):
            raise UsageError(
                f"${{{name}:...}} works in published (DPPO, D2PPO) files only; use ${{product:a,b}} or a number"
            )
        return resolve(",".join(str(part) for part in parts))

    return guarded
