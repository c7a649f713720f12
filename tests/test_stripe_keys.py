"""The guard of the tests themselves: a real account's key never leaves this computer."""

from __future__ import annotations

import os

import pytest
import stripe


def client(key: str, base: str) -> stripe.StripeClient:
    return stripe.StripeClient(key, base_addresses={"api": base}, http_client=stripe.RequestsClient(timeout=1))


@pytest.mark.parametrize("key", ["sk_live_1", "rk_live_1", "pk_test_1", "sk_1"])
def test_a_key_that_is_no_test_key_is_not_used(key: str) -> None:
    with pytest.raises(pytest.fail.Exception, match="no test key"):
        client(key, "http://127.0.0.1:1").v1.checkout.sessions.list()


@pytest.mark.parametrize("key", ["sk_test_1", "rk_test_1"])
def test_stripe_itself_is_not_asked(key: str) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"about to ask api\.stripe\.com"):
        client(key, "https://api.stripe.com").v1.checkout.sessions.list()
    with pytest.raises(stripe.APIConnectionError):
        client(key, "http://127.0.0.1:1").v1.checkout.sessions.list()


def test_the_environment_of_the_developer_is_out_of_reach() -> None:
    assert not [name for name in os.environ if name.startswith("STRIPE_")]
