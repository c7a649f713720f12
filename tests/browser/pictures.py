"""Take the pictures of the shop for the README, at the width of a phone and of a desktop.

    python -m tests.browser.pictures

writes ``docs/images/*.png``. Look at them before they are committed.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from playwright.sync_api import Page, expect, sync_playwright

from example_app import create_app, idempotency
from example_app.sandbox import Sandbox
from example_app.serving import Server

from .conftest import ARGUMENTS

IMAGES = Path(__file__).parents[2] / "docs" / "images"
SIZES = {"phone": (390, 844), "desktop": (1280, 900)}  # CSS pixels


def main() -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory, Sandbox() as sandbox, Server() as server:
        shop = create_app(
            {
                "SQLALCHEMY_DATABASE_URI": f"sqlite:///{directory}/shop.db",
                "STRIPE_API_KEY": "sk_test_sandbox",
                "STRIPE_API_BASE": sandbox.url,
                "STRIPE_WEBHOOK_SECRET": sandbox.add_webhook(f"{server.url}/webhook"),
            }
        )
        server.start(shop)
        with sync_playwright() as driver:
            chromium = driver.chromium.launch(executable_path=shutil.which("chromium"), args=ARGUMENTS)
            for name, (width, height) in SIZES.items():
                context = chromium.new_context(
                    base_url=server.url, viewport={"width": width, "height": height}, color_scheme="light"
                )
                take(context.new_page(), name)
                context.close()
            chromium.close()
        idempotency.close(shop)


def take(page: Page, size: str) -> None:
    """Walk through a purchase and keep what the buyer sees."""

    def keep(name: str) -> None:
        page.screenshot(path=IMAGES / f"{name}-{size}.png", animations="disabled")

    page.goto("/")
    keep("catalog")
    page.goto("/products/reading-lamp?quantity=2")
    page.route("**/buy", lambda route: route.abort("connectionreset"))
    page.get_by_role("button", name="Buy").click()
    expect(page.locator("#message")).to_contain_text("The connection was lost. Trying again")
    keep("retry")
    page.unroute("**/buy")
    page.wait_for_url("**/pay/*")
    page.get_by_role("button", name="Pay").click()
    page.wait_for_url("**/orders/*")
    expect(page.locator("#badge")).to_have_text("Paid")
    expect(page.locator("#refund")).to_be_visible()
    keep("order")


if __name__ == "__main__":
    main()
