"""Function calls as text: read from a completion, and compared with the Berkeley answers (BFCL).

The rules are those of BFCL's `ast_checker` for Python, single turn: parameter names and types must
be right, every value must be one of the possible ones, and strings are compared without case,
blanks and some punctuation. Nothing is evaluated: completions are parsed as literals.
"""

import ast
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Call = tuple[str, dict[str, Any]]

SYSTEM = (
    "You are an expert in composing functions. You are given a question and a set of possible "
    "functions. Based on the question, you will need to make one or more function/tool calls to "
    "achieve the purpose. If none of the functions can be used, point it out. If the given "
    "question lacks the parameters required by the function, also point it out. You should only "
    "return the function calls in your response.\n\nIf you decide to invoke any of the "
    "function(s), you MUST put it in the format of [func_name1(params_name1=params_value1, "
    "params_name2=params_value2...), func_name2(params)]. You SHOULD NOT include any other text in "
    "the response.\n\nHere is a list of functions in JSON format that you can invoke.\n"
)

_TYPES: dict[str, type] = {
    "integer": int,
    "float": float,
    "boolean": bool,
    "string": str,
    "any": str,
    "array": list,
    "tuple": list,
    "dict": dict,
}
_IGNORED = re.compile(r"[ ,./\-_*^]")
_ARITHMETIC: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_MOST = 20_000  # characters of a completion that are parsed


def is_right(
    text: str, functions: Sequence[Mapping[str, Any]], answers: Sequence[Mapping[str, Any]]
) -> bool:
    """Whether a completion makes the calls of ``answers``, in any order.

    Without answers, no call is the right answer (BFCL's set "irrelevance").
    """
    found = parse(text)
    if not answers:
        return not found
    if found is None or len(found) != len(answers):
        return False
    left = list(found)
    for answer in answers:
        match = next((call for call in left if _matches(call, answer, functions)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def parse(text: str) -> list[Call] | None:
    """The calls of a completion, ``[f(a=1), g.h(b="x")]``; None if it is anything else."""
    text = text.strip("`\n ")
    if len(text) > _MOST:
        return None
    text = text if text.startswith("[") else f"[{text}"
    text = text if text.endswith("]") else f"{text}]"
    try:
        body = ast.parse(text.strip().strip("'"), mode="eval").body
        found = body.elts if isinstance(body, ast.List | ast.Tuple) else [body]
        return [_call(item) for item in found]
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError):
        return None


def _call(node: ast.expr) -> Call:
    if not isinstance(node, ast.Call):
        raise ValueError("not a call")
    values = {k.arg: _value(k.value) for k in node.keywords if k.arg is not None}
    return ast.unparse(node.func), values


def _value(node: ast.expr) -> Any:
    """A literal. Names, and what else is text to BFCL, as text."""
    match node:
        case ast.Constant(value):
            return "..." if value is Ellipsis else value
        case ast.UnaryOp(ast.USub(), ast.Constant(int() | float() as value)):
            return -value
        case ast.BinOp(left, sign, right) if type(sign) in _ARITHMETIC:
            numbers = _value(left), _value(right)
            if all(isinstance(number, int | float) for number in numbers):
                return _ARITHMETIC[type(sign)](*numbers)
        case ast.List(items) | ast.Tuple(items):
            return [_value(item) for item in items]
        case ast.Dict(keys, items):
            names = [_value(key) if key is not None else None for key in keys]
            return dict(zip(names, map(_value, items), strict=True))
        case ast.Name() | ast.Subscript():
            return ast.unparse(node)
        case ast.Call():
            name, values = _call(node)
            return {name: values} if values else ast.unparse(node)
    raise ValueError("not a literal")


def _matches(call: Call, answer: Mapping[str, Any], functions: Sequence[Mapping[str, Any]]) -> bool:
    name, values = call
    ((wanted, possible),) = answer.items()
    described = next((f for f in functions if f["name"] == wanted), None)
    if name != wanted or described is None:
        return False
    properties = described["parameters"].get("properties", {})
    if any(key not in values for key in described["parameters"].get("required", [])):
        return False
    for key, value in values.items():
        if key not in properties or key not in possible:
            return False
        if not _fits(value, properties[key], possible[key]):
            return False
    return all(key in values or "" in options for key, options in possible.items())


def _fits(given: Any, kind: Mapping[str, Any], options: Sequence[Any]) -> bool:
    """Whether a value has the right type, and is one of the possible ones."""
    expected = _TYPES.get(str(kind.get("type")), str)
    inner = None
    if expected is list:
        inner = _TYPES.get(str(kind.get("items", {}).get("type")), str)
    value: Any = float(given) if kind.get("type") == "float" and type(given) is int else given
    possible = _type_of(options)
    as_text = possible is not None and possible is not expected  # a variable, not a value
    kind_of_value = type(value)
    if kind_of_value is expected:
        if inner is not None and not _items_fit(value, inner, options):
            return False
    elif kind_of_value is not possible:
        return False
    else:
        as_text = True
    if as_text:
        return value in options
    if expected is dict:
        return any(isinstance(o, dict) and _dict_fits(value, o) for o in options)
    if inner is dict:
        return any(isinstance(o, list) and _dicts_fit(value, o) for o in options)
    return _plain(value) in [_plain(option) for option in options]


def _type_of(options: Sequence[Any]) -> type | None:
    return next((type(option) for option in options if option != ""), None)


def _items_fit(value: Sequence[Any], inner: type, options: Sequence[Any]) -> bool:
    """Whether all items have the right type, or that of a possible list's items."""
    return any(
        not isinstance(option, list)
        or all(type(item) in (inner, _type_of(option)) for item in value)
        for option in options
    )


def _dicts_fit(value: Sequence[Any], option: Sequence[Any]) -> bool:
    return len(value) == len(option) and all(
        isinstance(item, dict) and isinstance(one, dict) and _dict_fits(item, one)
        for item, one in zip(value, option, strict=True)
    )


def _dict_fits(value: Mapping[str, Any], option: Mapping[str, Any]) -> bool:
    for key, item in value.items():
        if key not in option or _plain(item) not in [_plain(one) for one in option[key]]:
            return False
    return all(key in value or "" in options for key, options in option.items())


def _plain(value: Any) -> Any:
    """A value as it is compared: strings, also in a list, without case, blanks, punctuation."""
    if isinstance(value, str):
        return _IGNORED.sub("", value).lower().replace("'", '"')
    if isinstance(value, list):
        return [_plain(item) if isinstance(item, str) else item for item in value]
    return value
