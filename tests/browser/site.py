"""A small site of forms and calls, for what the script does on any page."""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from flask import Flask, Response, redirect, render_template_string, request
from flask.typing import ResponseReturnValue

from flask_idempotent import Idempotency, current_idempotency, idempotent

PAGE = """<!doctype html>
<title>{{ title }}</title>
<h1>{{ title }}</h1>
{{ idempotency_script() }}
{{ body | safe }}
"""
FORM = """<form method="post" action="{action}" {attributes}>{field}{inside}<button>Send</button></form>"""
NOTE = '<label>Note <input name="note" value="tea"></label>'


class Asked(NamedTuple):
    """One POST as it came in."""

    path: str
    key: str | None
    form: list[tuple[str, str]]
    files: list[tuple[str, str, bytes]]


class Site:
    """The app and what it saw.

    :ivar asked: every POST, whatever was answered.
    :ivar runs: the keys that the view ran under.
    :ivar first: answers to the next POSTs, given before the guard is asked, as a proxy would.
    """

    def __init__(self, **config: Any) -> None:
        self.asked: list[Asked] = []
        self.runs: list[str | None] = []
        self.first: deque[Callable[[], Response]] = deque()
        self.forms: dict[str, str] = {}
        self.app = app = Flask("site")
        app.config.update(config)
        Idempotency(app)
        app.before_request(self._note)
        app.get("/form/<name>")(self._form)
        own = idempotent(self._run(lambda: redirect("/done", 303)))
        app.post("/form/<name>", endpoint="own")(lambda name: own())
        app.get("/done")(lambda: render_template_string(PAGE, title="Done", body=""))
        for path, answer in ANSWERS.items():
            app.post(path, endpoint=path)(idempotent(self._run(answer)))

    @property
    def keys(self) -> list[str | None]:
        return [asked.key for asked in self.asked]

    def form(self, inside: str = NOTE, *, attributes: str = "data-idempotent", action: str = "/done") -> str:
        """Put a form on the site; returns the path of its page."""
        name = str(len(self.forms))
        self.forms[name] = FORM.format(
            action=action, attributes=attributes, inside=inside, field="{{ idempotency_field() }}"
        )
        return f"/form/{name}"

    def _form(self, name: str) -> str:
        return render_template_string(PAGE, title="Form", body=render_template_string(self.forms[name]))

    def _note(self) -> Response | None:
        if request.method != "POST":
            return None
        files = [(name, file.filename or "", file.read()) for name, file in request.files.items(multi=True)]
        for file in request.files.values():
            file.seek(0)
        key = request.headers.get("Idempotency-Key") or request.form.get("idempotency_key")
        form = [pair for pair in request.form.items(multi=True) if pair[0] != "idempotency_key"]
        self.asked.append(Asked(request.full_path.rstrip("?"), key, form, files))
        return self.first.popleft()() if self.first else None

    def _run(self, answer: Any) -> Any:
        def view() -> ResponseReturnValue:
            self.runs.append(current_idempotency.key)
            return answer() if callable(answer) else answer

        return view


def broken_off() -> Response:
    """An answer whose connection breaks in the middle."""
    connection = request.environ["werkzeug.socket"]

    def half() -> Iterator[bytes]:
        yield b"half of it"
        connection.shutdown(socket.SHUT_RDWR)

    return Response(half(), headers={"Content-Length": "1000"})


def busy(status: int = 503, **headers: str) -> Callable[[], Response]:
    """An answer without a body, with headers such as ``Retry_After``."""
    return lambda: Response(status=status, headers={name.replace("_", "-"): value for name, value in headers.items()})


ANSWERS: dict[str, Any] = {
    "/done": lambda: redirect("/done", 303),
    "/other": lambda: redirect("/done", 303),
    "/again": lambda: redirect(request.headers["Referer"] + "#sent", 303),
    "/evil": lambda: redirect("javascript:document.title='evil'", 303),
    "/nothing": ("", 204),
    "/made": lambda: ({"made": len(request.get_data())}, 201),
    "/refused": lambda: ({"detail": "Write more."}, 400),
    "/conflict": ("taken", 409),
    "/new-key": lambda: ({"detail": "Taken."}, 422),
    "/page": lambda: (render_template_string(PAGE, title="Wrong", body="<p>Write more.</p>"), 200),
    "/wrong-page": lambda: (
        render_template_string(
            PAGE, title="Wrong", body=FORM.format(action="/done", attributes="data-idempotent", inside=NOTE, field="")
        ),
        422,
    ),
}
