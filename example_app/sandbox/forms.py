"""The bracket notation in which Stripe's clients send nested parameters as a flat form.

``line_items[0][price_data][currency]=eur`` becomes
``{"line_items": {"0": {"price_data": {"currency": "eur"}}}}``.
Everything stays a dict of strings here, because only the reader of a parameter knows whether it is a list
(``line_items[0]``) or a map whose keys happen to be numbers (``metadata[0]``): :func:`as_list` makes lists.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TypeAlias

from .errors import ApiError, invalid

Node: TypeAlias = "str | dict[str, Node]"
Tree: TypeAlias = "dict[str, Node]"

MAX_DEPTH = 8
_NAME = re.compile(r"(?P<head>[^\[\]]+)(?P<tail>(?:\[[^\[\]]*\])*)")
_BRACKET = re.compile(r"\[([^\[\]]*)\]")
_INDEX = re.compile(r"[0-9]{1,4}")


def decode(pairs: Iterable[tuple[str, str]]) -> Tree:
    """Turn the form's pairs into a tree.

    :param pairs: decoded names and values, in the order in which they were sent.
    :return: Nested dicts with the values, as strings, at the leaves.
    :raises ApiError: 400 when a name is malformed, nested too deeply, given twice, or both a value and a map.
    """
    tree: Tree = {}
    for name, value in pairs:
        _insert(tree, _path(name), name, value)
    return tree


def as_list(node: Node, param: str) -> list[Node]:
    """Return the entries of a list parameter in the order of their indexes.

    :param node: what :func:`decode` found under the parameter.
    :param param: its name in bracket notation, for the error.
    :raises ApiError: 400 when the parameter is no list.
    """
    if isinstance(node, str) or not all(map(_INDEX.fullmatch, node)):
        raise invalid(param, f"Invalid array: send {param}[0], {param}[1] and so on.")
    return [node[index] for index in sorted(node, key=int)]


def as_map(node: Node, param: str, known: frozenset[str] | None = None) -> Tree:
    """Return the entries of a map parameter.

    :param node: what :func:`decode` found under the parameter.
    :param param: its name in bracket notation, for the error; empty for the whole request.
    :param known: the names that may occur; None allows any.
    :raises ApiError: 400 when the parameter is no map, or holds a name that is not known.
    """
    if isinstance(node, str):
        raise invalid(param, f"Invalid object: send {param}[name]=value.")
    for name in node:
        if known is not None and name not in known:
            full = f"{param}[{name}]" if param else name
            raise invalid(full, f"Received unknown parameter: {full}", code="parameter_unknown")
    return node


def as_text(node: Node, param: str, max_length: int) -> str:
    """Return a scalar parameter of at most ``max_length`` characters, else raise a 400 ApiError."""
    if not isinstance(node, str):
        raise invalid(param, f"Invalid string: {param} takes one value.")
    if len(node) > max_length:
        raise invalid(param, f"Invalid string: {param} takes at most {max_length} characters.")
    return node


def _path(name: str) -> list[str]:
    match = _NAME.fullmatch(name)
    if match is None:
        raise ApiError(400, "A parameter's name is malformed: write it like line_items[0][quantity].")
    path = [match["head"], *_BRACKET.findall(match["tail"])]
    if "" in path[:-1]:  # "expand[]=…" appends; in the middle nobody could say which entry is meant
        raise invalid(name, f"{name} needs an index in every bracket but the last.")
    if len(path) > MAX_DEPTH:
        raise invalid(path[0], f"A parameter is nested more than {MAX_DEPTH} levels deep.")
    return path


def _insert(tree: Tree, path: list[str], name: str, value: str) -> None:
    for step in path[:-1]:
        child = tree.setdefault(step, {})
        if isinstance(child, str):
            raise invalid(name, f"{name} is given both as a value and as an object.")
        tree = child
    leaf = path[-1] or str(len(tree))
    if leaf in tree:
        raise invalid(name, f"{name} is given twice.")
    tree[leaf] = value
