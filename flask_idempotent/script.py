"""The browser's side: the script ``static/idempotent.js``, served by the app itself, and its tag for templates."""

from __future__ import annotations

import functools
import hashlib
from importlib import resources
from typing import Final

from flask import Flask, Response, request
from markupsafe import Markup

from .config import Settings

PATH: Final = "/_idempotency/idempotent.js"
ENDPOINT: Final = "idempotency_script"
ASKS_HEADER: Final = "Idempotency-Script"  # on what the script sends for a form
LOCATION_HEADER: Final = "Idempotency-Location"
_SEE_OTHER: Final = frozenset({301, 302, 303})  # what a browser follows with GET after a POST; 307 and 308 it repeats
_YEAR: Final = 365 * 86400


def install(app: Flask, settings: Settings) -> None:
    """Let an app serve the script, on every host that it answers to, and its templates name it.

    The address stays the same over versions; the tag adds which one it means.

    :param settings: the app's; where they differ from the defaults, the tag tells the script so.
    """
    app.add_url_rule(PATH, ENDPOINT, _serve)
    if app.url_map.host_matching:
        app.add_url_rule(PATH, ENDPOINT, _serve, host="<_place>")
    elif app.subdomain_matching:
        app.add_url_rule(PATH, ENDPOINT, _serve, subdomain="<_place>")
    app.jinja_env.globals.setdefault("idempotency_script", functools.partial(idempotency_script, settings))
    app.after_request(report_redirect)


def idempotency_script(settings: Settings, nonce: str | None = None) -> Markup:
    """Render the script's tag. It is a global of the app's templates, there without the first parameter.

    :param settings: names of header and fields, as the app has them.
    :param nonce: for a Content-Security-Policy that goes by nonces; ``script-src 'self'`` needs none.
    """
    default = Settings()
    names = {
        "data-header": (settings.header, default.header),
        "data-field": (settings.form_field, default.form_field),
        "data-replayed": (settings.replay_header, default.replay_header),
        "data-ignored": (_listed(settings.ignored_fields), _listed(default.ignored_fields)),
        "nonce": (nonce, None),
    }
    unusual = [(name, value) for name, (value, usual) in names.items() if value not in (None, usual)]
    attributes = Markup().join(Markup(' {}="{}"').format(name, value) for name, value in unusual)
    address = f"{request.script_root}{PATH}?v={_version()}"  # of the page's own host, whichever that is
    return Markup('<script src="{}"{} defer></script>').format(address, attributes)


def report_redirect(response: Response) -> Response:
    """Tell the script where a form's answer leads.

    A script cannot follow a redirect to another site, such as a payment page, and sees nothing of it. The redirect
    itself is stored and replayed as it is; only the script's own request gets it in this form.
    """
    if response.status_code in _SEE_OTHER and ASKS_HEADER in request.headers and response.location:
        response.headers[LOCATION_HEADER] = response.headers.pop("Location")
        response.status_code = 200
    return response


def _serve(_place: str | None = None) -> Response:
    response = Response(_source(), content_type="text/javascript; charset=utf-8")
    response.headers["X-Content-Type-Options"] = "nosniff"
    response.set_etag(_version())
    if request.args.get("v") == _version():
        response.cache_control.public, response.cache_control.max_age = True, _YEAR
        response.cache_control.immutable = True
    else:
        response.cache_control.no_cache = True
    return response.make_conditional(request)  # type: ignore[return-value]


@functools.cache
def _source() -> bytes:
    return resources.files(__package__).joinpath("static", "idempotent.js").read_bytes()


@functools.cache
def _version() -> str:
    return hashlib.sha256(_source()).hexdigest()[:16]


def _listed(names: frozenset[str]) -> str:
    return " ".join(sorted(names))
