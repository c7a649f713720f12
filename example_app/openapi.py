"""What the shop's HTTP interface takes and gives, as an OpenAPI 3.1 document at ``/openapi.json``."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from flask import Blueprint

from flask_idempotent.config import Settings
from flask_idempotent.openapi import PROBLEM_SCHEMA, describe

from .catalog import PRODUCTS
from .orders import Status
from .purchase import MAX_LINES, MAX_QUANTITY

_ORDER_ID: Mapping[str, Any] = MappingProxyType(
    {"name": "order_id", "in": "path", "required": True, "schema": {"type": "string"}}
)

openapi = Blueprint("openapi", __name__)


@openapi.get("/openapi.json")
def show_document() -> dict[str, Any]:
    """Return the document."""
    return {
        "openapi": "3.1.0",
        "info": {"title": "Once, a shop that sells each thing once", "version": "1"},
        "paths": {
            "/checkout": {"post": describe(_checkout(), Settings(required=True))},
            "/health": {"get": _health()},
            "/orders/{order_id}.json": {"get": _order_status()},
            "/orders/{order_id}/refund": {"post": describe(_refund(), Settings(required=True))},
        },
    }


def _checkout() -> dict[str, Any]:
    line = {
        "type": "object",
        "required": ["product", "quantity"],
        "additionalProperties": False,
        "properties": {
            "product": {"type": "string", "enum": list(PRODUCTS)},
            "quantity": {"type": "integer", "minimum": 1, "maximum": MAX_QUANTITY},
        },
    }
    cart = {
        "type": "object",
        "required": ["items"],
        "additionalProperties": False,
        "properties": {
            "items": {"type": "array", "minItems": 1, "maxItems": MAX_LINES, "items": line},
            "return_url": {"type": "string", "format": "uri", "description": "A page of this shop."},
        },
    }
    session = {
        "type": "object",
        "required": ["id", "url"],
        "properties": {"id": {"type": "string"}, "url": {"type": ["string", "null"]}},
    }
    return {
        "operationId": "checkout",
        "summary": "Order something, and get the page to pay it on",
        "requestBody": {"required": True, "content": {"application/json": {"schema": cart}}},
        "responses": {
            "200": _answer("A Checkout Session", session),
            "402": _problem("The card was declined"),
        },
    }


def _health() -> dict[str, Any]:
    health = {
        "type": "object",
        "required": ["status", "message", "stats"],
        "properties": {
            "status": {"enum": ["healthy", "degraded", "unhealthy"]},
            "message": {"type": "string"},
            "stats": {
                "type": "object",
                "required": ["isRedisAvailable", "inMemoryCacheSize", "cacheType"],
                "properties": {
                    "isRedisAvailable": {"type": "boolean"},
                    "inMemoryCacheSize": {"type": "integer", "minimum": 0},
                    "cacheType": {"enum": ["redis", "memory"]},
                },
            },
            "since": {"type": ["string", "null"], "format": "date-time"},
            "waiting": {"type": "integer", "minimum": 0},
            "breaker": {"enum": ["open", "closed", None]},
            "warnings": {"type": "array", "items": {"type": "string"}},
        },
    }
    return {
        "operationId": "health",
        "summary": "How the idempotency store is doing",
        "responses": {"200": _answer("It serves", health), "503": _answer("It refuses new keys", health)},
    }


def _status_schema() -> dict[str, Any]:
    return {
        "type": "object",
        "required": ["status", "label", "note", "final", "shipped", "refundable", "session", "payment_url"],
        "properties": {
            "status": {"enum": [status.value for status in Status]},
            "label": {"type": "string"},
            "note": {"type": "string"},
            "final": {"type": "boolean"},
            "shipped": {"type": "boolean"},
            "refundable": {"type": "boolean"},
            "session": {"type": ["string", "null"]},
            "payment_url": {"type": ["string", "null"]},
        },
    }


def _order_status() -> dict[str, Any]:
    return {
        "operationId": "orderStatus",
        "summary": "The status of an order and its payment",
        "parameters": [dict(_ORDER_ID)],
        "responses": {
            "200": _answer("The status", _status_schema()),
            "404": {"description": "No such order", "content": {"text/html": {}}},
        },
    }


def _refund() -> dict[str, Any]:
    return {
        "operationId": "refundOrder",
        "summary": "Send the money of a paid order back, once",
        "parameters": [dict(_ORDER_ID)],
        "responses": {
            "200": _answer("The status", _status_schema()),
            "303": {"description": "The same for a browser: back to the order's page"},
            "404": {"description": "No such order", "content": {"text/html": {}}},
        },
    }


def _answer(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _problem(description: str) -> dict[str, Any]:
    return {"description": description, "content": {"application/problem+json": {"schema": PROBLEM_SCHEMA}}}
