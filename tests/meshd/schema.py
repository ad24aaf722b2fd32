"""JSON Schemas, in tests: an answer has what they say, and nothing else."""

from __future__ import annotations

from typing import Any

from jsonschema import Draft202012Validator


def closed(schema: Any) -> Any:
    """The same, but fields that it does not name are wrong: whoever adds one has to describe it."""
    if isinstance(schema, list):
        return [closed(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: closed(value) for key, value in schema.items()}
    return made | {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else made


def validate(instance: Any, schema: Any) -> None:
    """Raises jsonschema.ValidationError, also for a schema that is none."""
    Draft202012Validator.check_schema(schema)
    Draft202012Validator(schema).validate(instance)
