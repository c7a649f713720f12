"""The shop's OpenAPI document, and what a fuzzer that believes it finds out about the shop."""

from __future__ import annotations

from collections import Counter

import pytest
import schemathesis
from apispec import APISpec
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from flask_idempotent.config import Settings
from flask_idempotent.openapi import describe


@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [
        ("/checkout", "POST", GenerationMode.POSITIVE),
        ("/checkout", "POST", GenerationMode.NEGATIVE),
        ("/health", "GET", GenerationMode.POSITIVE),
        ("/orders/{order_id}.json", "GET", GenerationMode.POSITIVE),
        ("/orders/{order_id}/refund", "POST", GenerationMode.POSITIVE),
    ],
)
def test_whatever_comes_the_answer_is_a_documented_one(
    shop: Flask, path: str, method: str, mode: GenerationMode
) -> None:
    api = schemathesis.openapi.from_wsgi("/openapi.json", shop)
    answers: Counter[int] = Counter()

    @given(case=api[path][method].as_strategy(generation_mode=mode))
    @settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    def fuzz(case: schemathesis.Case) -> None:
        response = case.call()
        answers[response.status_code] += 1
        # A schema cannot say that each product is listed once, that 2.0 is no whole number, or what our own pages are.
        case.validate_response(response, excluded_checks=[positive_data_acceptance])

    fuzz()
    assert sum(answers.values()) > 0
    assert 500 not in answers


def test_the_checkout_says_what_the_guard_adds(browser: FlaskClient) -> None:
    document = browser.get("/openapi.json").json
    checkout = document["paths"]["/checkout"]["post"]
    (key,) = checkout["parameters"]
    assert (key["name"], key["in"], key["required"]) == ("Idempotency-Key", "header", True)
    assert set(checkout["responses"]) == {"200", "400", "402", "409", "422", "500", "503"}
    assert "Idempotent-Replayed" in checkout["responses"]["200"]["headers"]
    assert "Retry-After" in checkout["responses"]["409"]["headers"]


def test_an_operation_keeps_what_it_says_itself_and_is_not_changed() -> None:
    own = {"summary": "pay", "responses": {"409": {"description": "sold out"}}}
    described = describe(own, Settings(header="X-Key", max_key_length=36))
    assert own == {"summary": "pay", "responses": {"409": {"description": "sold out"}}}
    assert described["responses"]["409"]["description"] == "sold out"
    assert described["parameters"][0]["name"] == "X-Key"
    assert described["parameters"][0]["schema"]["maxLength"] == 36


def test_it_goes_with_apispec() -> None:
    spec = APISpec("shop", "1", "3.1.0")
    spec.path("/pay", operations={"post": describe({"responses": {"201": {"description": "paid"}}})})
    assert {"201", "400", "409", "422", "503"} <= set(spec.to_dict()["paths"]["/pay"]["post"]["responses"])
