"""What OpenAPI 3 says about a guarded operation."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final

from . import errors
from .config import Settings
from .errors import PROBLEM_JSON, IdempotencyError

PROBLEM_SCHEMA: Final[dict[str, Any]] = {
    "type": "object",
    "required": ["type", "title", "status", "detail", "code", "retryable"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "code": {"type": "string"},
        "retryable": {"type": "boolean"},
    },
}
_ANSWERS: Final[dict[str, tuple[type[IdempotencyError], ...]]] = {
    "400": (errors.KeyMissing, errors.KeyInvalid),
    "409": (errors.RequestInProgress, errors.OutcomeUnknown),
    "422": (errors.KeyReused,),
    "500": (errors.RecordUnreadable,),
    "503": (errors.StoreUnavailable,),
}
_BARE_KEY: Final = "^[!#-+\\--:<-~]+$"  # visible ASCII without quotes, commas and semicolons
_RETRYABLE: Final = ("409", "503")


def describe(operation: Mapping[str, Any], settings: Settings | None = None) -> dict[str, Any]:
    """Add to an OpenAPI 3 operation what ``@idempotent`` adds to its view.

    That is the key's header, the answers 400, 409, 422, 500 and 503 as problem details, and the replay header on the
    operation's own answers. What the operation says itself stays. Goes with apispec:
    ``spec.path(..., operations={"post": describe({...})})``.

    :param operation: an Operation Object; not changed.
    :param settings: of the route, such as ``Settings(required=True)``; by default those of a bare ``@idempotent``.
    :return: a new Operation Object.
    """
    settings = settings or Settings()
    described = copy.deepcopy(dict(operation))
    described.setdefault("parameters", []).append(_parameter(settings))
    responses = described.setdefault("responses", {})
    for answer in responses.values():
        answer.setdefault("headers", {})[settings.replay_header] = _replay_header()
    for status, problems in _ANSWERS.items():
        own = responses.setdefault(status, {"description": "; ".join(problem.title for problem in problems)})
        own.setdefault("content", {}).setdefault(PROBLEM_JSON, {"schema": copy.deepcopy(PROBLEM_SCHEMA)})
        if status in _RETRYABLE:
            own.setdefault("headers", {})["Retry-After"] = {
                "description": "Seconds after which the same request may be sent again.",
                "schema": {"type": "integer", "minimum": 1},
            }
    return described


def _parameter(settings: Settings) -> dict[str, Any]:
    return {
        "name": settings.header,
        "in": "header",
        "required": settings.required,
        "description": "New for each request that is meant, and the same for all its repetitions; a UUID, say.",
        "schema": {
            "type": "string",
            "minLength": 1,
            "maxLength": settings.max_key_length,
            "pattern": "^[!#-+\\--:<-~]+$",
        },
        "example": "8e03978e-40d5-43e8-bc93-6894a57f9324",
    }


def _replay_header() -> dict[str, Any]:
    return {
        "description": "Present when this is the stored answer to an earlier request with the same key.",
        "schema": {"type": "string", "enum": ["true"]},
    }
