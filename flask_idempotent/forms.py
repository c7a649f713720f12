"""The key of an HTML form."""

from __future__ import annotations

from uuid import uuid4

from markupsafe import Markup


def idempotency_field(name: str = "idempotency_key", key: str | None = None) -> Markup:
    """Render a hidden field with a new key, for a form without JavaScript. It is a global of the app's templates.

    Each rendering makes a key of its own, so a page with it must not be shared by a cache.

    :param name: of the field; in templates it is the app's ``IDEMPOTENCY_FORM_FIELD``.
    :param key: the key to send instead of a new one, for a form that is shown again after an error of its own.
    """
    return Markup('<input type="hidden" name="{}" value="{}">').format(name, key or uuid4())
