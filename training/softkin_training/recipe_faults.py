"""What pydantic finds wrong with a recipe, in plain words: key, value, what is allowed, and the remedy."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

Loc = Sequence[int | str]
"""Where a value stands: keys, and places in lists."""
LOWER_NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
_PATTERNS = {
    LOWER_NAME: "1 to 63 lower-case letters, digits, '_' or '-', the first a letter or a digit",
    NAME: "1 to 63 letters, digits, '.', '_' or '-', the first a letter or a digit",
}
_KINDS = {"integer": "a whole number", "number": "a number", "string": "text", "boolean": "true or false"}
_BOUNDS = {
    "minimum": "of at least",
    "exclusiveMinimum": "of more than",
    "maximum": "at most",
    "exclusiveMaximum": "less than",
}


def describe(
    fault: Any,
    raw: Mapping[str, Any],
    name: str | Path,
    texts: Mapping[tuple[int | str, ...], str],
    recipe: type[BaseModel],
) -> str:
    """One fault in one line.

    Args:
        fault: of `ValidationError.errors()`.
        raw: the recipe as it was read, overrides included.
        name: of the recipe, as it was given.
        texts: overrides by where they stand.
        recipe: the model that refused it.
    """
    loc, own_words = list(fault["loc"]), ""
    if fault["type"] == "value_error":
        key, bar, own_words = str(fault["ctx"]["error"]).rpartition("|")
        loc += key.split(".") if bar else []
    dotted = "".join(f"[{x}]" if isinstance(x, int) else f".{x}" for x in loc).lstrip(".")
    where = f"{name}{' with --set' if tuple(loc) in texts else ''}: {dotted}"
    if fault["type"] == "extra_forbidden":
        keys = _keys(recipe, loc[:-1])
        return f"{where} is unknown; {_nearest_key(str(loc[-1]), keys, recipe)}allowed keys: {', '.join(keys)}"
    if fault["type"] == "missing":
        return f"{where} is missing; it has no default: {_remedy_of_missing(recipe, loc, dotted)}"
    value = value_at(raw, loc)
    message = own_words or allowed(fault, recipe, value)
    if fault["type"] in ("list_type", "tuple_type") and isinstance(value, str):
        message += f"; write {dotted} = {json.dumps([value])}"
    if fault["type"] in ("int_type", "float_type") and _reads_as_number(value):
        message += f"; write {dotted} = {value}, without quotes"
    return f"{where} is {'not set' if value is None else repr(value)}: {message}"


def allowed(fault: Any, model: type[BaseModel], value: object) -> str:
    """What a key takes, as `must be ...`, with the nearest choice where that is likely meant.

    Args:
        fault: of `ValidationError.errors()`, other than an unknown or a missing key.
        model: that refused it.
        value: that was refused.
    """
    schema = _schema_at(model, fault["loc"])
    words = _words(schema)
    if not words:
        return str(fault["msg"])
    if fault["type"] == "finite_number":
        words = words.replace("a number", "a finite number", 1)
    close = difflib.get_close_matches(str(value), [str(c) for c in schema.get("enum", ())], n=1)
    return f"must be {words}" + (f"; did you mean {close[0]!r}?" if close else "")


def value_at(raw: Any, loc: Loc) -> Any:
    """The value of a key; None where the recipe leaves it to its default, for TOML has no such value."""
    for key in loc:
        try:
            raw = raw[key]
        except (KeyError, IndexError, TypeError):
            return None
    return raw


def _remedy_of_missing(recipe: type[BaseModel], loc: Loc, dotted: str) -> str:
    schema = _schema_at(recipe, loc)
    if "properties" in schema:
        return f"add the section [{dotted}]"
    return f"set it to {_words(schema) or 'a value'}"


def _nearest_key(key: str, keys: Iterable[str], recipe: type[BaseModel]) -> str:
    """A suggestion: a key spelled alike, or the section that has one of this name."""
    if close := difflib.get_close_matches(key, list(keys), n=1):
        return f"did you mean {close[0]!r}? "
    sections = [s for s in recipe.model_fields if key in _schema_at(recipe, [s]).get("properties", {})]
    return f"did you mean {' or '.join(f'{s}.{key}' for s in sections)}? " if sections else ""


def _keys(recipe: type[BaseModel], section: Loc) -> list[str]:
    return list(_schema_at(recipe, section).get("properties", {}))


def _schema_at(model: type[BaseModel], loc: Loc) -> Mapping[str, Any]:
    """JSON schema of what stands somewhere in a model; empty where nothing is known of it."""
    root = model.model_json_schema()
    schema: Mapping[str, Any] = root
    for key in loc:
        if isinstance(key, int):
            schema = schema.get("items", {})
        else:
            found = schema.get("properties", {}).get(key, schema.get("additionalProperties"))
            schema = found if isinstance(found, dict) else {}
        if "$ref" in schema:
            schema = root["$defs"][schema["$ref"].rpartition("/")[2]]
    return schema


def _words(schema: Mapping[str, Any]) -> str:
    """What a schema takes; empty where it says nothing."""
    if "enum" in schema:
        *others, last = map(repr, schema["enum"])
        return f"{', '.join(others)} or {last}" if others else last
    if "properties" in schema:
        return f"a section with the keys {', '.join(schema['properties'])}"
    kind = schema.get("type")
    if kind == "array":
        item = _words(schema["items"])
        return f"a list, each entry {item}" if item else "a list"
    if kind == "object":
        item = _words(schema["additionalProperties"]) if isinstance(schema.get("additionalProperties"), dict) else ""
        return f"a table, each value {item}" if item else "a table"
    if "pattern" in schema:
        return _PATTERNS[schema["pattern"]]
    bounds = [f"{text} {schema[key]}" for key, text in _BOUNDS.items() if key in schema]
    return " ".join([_KINDS.get(str(kind), ""), " and ".join(bounds)]).strip()


def _reads_as_number(value: object) -> bool:
    if not isinstance(value, str):
        return False
    try:
        float(value)
    except ValueError:
        return False
    return True
