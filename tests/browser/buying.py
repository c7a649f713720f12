"""What a buyer does and sees on the shop's pages."""

from __future__ import annotations

import time
from typing import Any

from playwright.sync_api import LocatorAssertions, Page, Request, expect

MUG = "/products/morning-mug?quantity=2"


def buy_button(page: Page) -> Any:
    return page.get_by_role("button", name="Buy")


def press_buy(page: Page) -> None:
    """Press Buy and leave it at that: without JavaScript, a click would wait for the next page."""
    buy_button(page).click(no_wait_after=True)


def message(page: Page) -> LocatorAssertions:
    return expect(page.locator("#message"))


def messages(page: Page) -> list[str]:
    """What the page's message says from now on, however short it is there; for :func:`await_message`."""
    said: list[str] = []
    page.expose_binding("noteMessage", lambda _source, text: said.append(text))
    page.add_init_script(
        """addEventListener("DOMContentLoaded", () => {
             const message = document.getElementById("message");
             const note = () => noteMessage(message.textContent);
             if (message) new MutationObserver(note).observe(message, {childList: true});
           });"""
    )
    return said


def await_message(page: Page, said: list[str], words: str) -> None:
    """Wait until the message has said some words."""
    deadline = time.monotonic() + 30
    while not any(words in text for text in said):
        assert time.monotonic() < deadline, f"{words!r} did not come in time, but {said}"
        page.wait_for_timeout(20)  # in which the browser's news arrive


def badge(page: Page) -> LocatorAssertions:
    return expect(page.locator("#badge"))


def await_payment_page(page: Page) -> str:
    page.wait_for_url("**/pay/*")
    return page.url


def pay(page: Page) -> None:
    """Pay on the payment page, and be told so by the shop."""
    page.get_by_role("button", name="Pay").click()
    page.wait_for_url("**/orders/*")
    badge(page).to_have_text("Paid")


def keys_sent(page: Page, path: str = "/buy") -> list[str]:
    """The idempotency keys of the POSTs that the page's browser sends from now on, header or field."""
    keys: list[str] = []

    def note(request: Request) -> None:
        if request.method == "POST" and request.url.endswith(path):
            header = request.headers.get("idempotency-key")
            field = (request.post_data or "").partition("idempotency_key=")[2].partition("&")[0]
            keys.append(header or field)

    page.on("request", note)
    return keys


def intents(page: Page) -> list[dict[str, Any]]:
    """The intents in the tab's storage that are not over."""
    stored = page.evaluate("Object.values({...sessionStorage}).map((value) => JSON.parse(value))")
    return [intent for intent in stored if intent["state"] == "open"]
