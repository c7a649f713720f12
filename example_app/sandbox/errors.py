"""Stripe's error object, as an exception that the routes turn into an answer."""

from __future__ import annotations

from typing import Any


class ApiError(Exception):
    """A request that Stripe would answer with ``{"error": {...}}``."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
    ) -> None:
        """Describe the answer.

        :param status: the HTTP status.
        :param message: what is wrong and what to send instead, for the developer.
        :param type: Stripe's error type, such as ``invalid_request_error`` or ``card_error``.
        :param code: Stripe's error code, such as ``parameter_missing``; None when it has none.
        :param param: the parameter at fault in bracket notation; None when no single one is.
        """
        super().__init__(message)
        self.status = status
        self.message = message
        self.type = type
        self.code = code
        self.param = param

    def body(self) -> dict[str, Any]:
        """Return the JSON body of the answer."""
        return {"error": {"type": self.type, "code": self.code, "message": self.message, "param": self.param}}


def missing(param: str) -> ApiError:
    """Return the error for a required parameter that is absent or empty."""
    return ApiError(400, f"Missing required param: {param}.", code="parameter_missing", param=param)


def invalid(param: str, message: str, code: str = "parameter_invalid") -> ApiError:
    """Return the error for a parameter whose value cannot be used; ``message`` says what would be."""
    return ApiError(400, message, code=code, param=param)


def no_such(param: str, object_id: str) -> ApiError:
    """Return the 404 for an id that this sandbox never handed out; ``param`` says of what kind."""
    message = f"No such {param}: {object_id}. Everything lives in memory and ends with the sandbox."
    return ApiError(404, message, code="resource_missing", param=param)
