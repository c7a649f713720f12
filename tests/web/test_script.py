"""The browser's script: how the app serves it, and how its templates name it. What it does: tests/browser."""

from __future__ import annotations

import re

import pytest
from flask import Flask, redirect, render_template_string

from flask_idempotent import Idempotency, idempotent

PATH = "/_idempotency/idempotent.js"
BY_THE_SCRIPT = {"Idempotency-Script": "1"}


def make_app(app=None, **config):
    app = app or Flask("shop")
    app.config.update(config)
    Idempotency(app)
    return app


def tag(app, expression="idempotency_script()", **options):
    with app.test_request_context("/", **options):
        return render_template_string("{{ " + expression + " }}")


def address(app):
    return re.search(r'src="([^"]+)"', tag(app))[1]


def test_it_is_served_as_a_script():
    answer = make_app().test_client().get(PATH)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "text/javascript; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "globalThis.Idempotent" in answer.text


def test_the_tag_loads_it_without_holding_up_the_page():
    app = make_app()
    assert re.fullmatch(rf'<script src="{PATH}\?v=[0-9a-f]{{16}}" defer></script>', tag(app))
    assert app.test_client().get(address(app)).status_code == 200


def test_the_version_in_the_tag_may_be_kept_for_ever_and_no_other():
    app = make_app()
    client = app.test_client()
    assert client.get(address(app)).headers["Cache-Control"] == "public, max-age=31536000, immutable"
    for other in (PATH, f"{PATH}?v=0123456789abcdef"):
        assert client.get(other).headers["Cache-Control"] == "no-cache"


def test_who_has_it_already_does_not_get_it_again():
    client = make_app().test_client()
    etag = client.get(PATH).headers["ETag"]
    again = client.get(PATH, headers={"If-None-Match": etag})
    assert (again.status_code, again.data, again.headers["ETag"]) == (304, b"", etag)
    assert client.get(PATH, headers={"If-None-Match": '"other"'}).status_code == 200


def test_it_is_only_to_be_read():
    client = make_app().test_client()
    assert client.head(PATH).status_code == 200
    assert client.post(PATH).status_code == 405


def test_where_the_app_is_mounted_the_tag_says_so():
    assert f'src="/below{PATH}?v=' in tag(make_app(), base_url="http://localhost/below")


@pytest.mark.parametrize(
    ("options", "hosts"),
    [
        ({"host_matching": True, "static_host": "static.test"}, ["a.test", "b.test:5000"]),
        ({"subdomain_matching": True}, ["shop.test", "x.shop.test", "y.x.shop.test"]),
    ],
)
def test_each_host_of_the_app_serves_it(options, hosts):
    app = make_app(Flask("shop", **options), SERVER_NAME="shop.test")
    for host in hosts:
        assert f'src="{PATH}' in tag(app, base_url=f"http://{host}")
        assert app.test_client().get(PATH, base_url=f"http://{host}").status_code == 200


def test_the_tag_tells_the_script_what_the_settings_call_things():
    app = make_app(
        IDEMPOTENCY_HEADER="X-Once",
        IDEMPOTENCY_FORM_FIELD="once",
        IDEMPOTENCY_REPLAY_HEADER="X-Again",
        IDEMPOTENCY_IGNORED_FIELDS=["token", "a<b"],
    )
    attributes = 'data-header="X-Once" data-field="once" data-replayed="X-Again" data-ignored="a&lt;b token"'
    assert f" {attributes} defer>" in tag(app)


def test_the_tag_can_have_a_nonce():
    assert ' nonce="r4nd0m" defer>' in tag(make_app(), "idempotency_script(nonce='r4nd0m')")


def test_a_template_global_of_the_hosts_own_is_left_alone():
    app = Flask("shop")
    app.jinja_env.globals["idempotency_script"] = "mine"
    assert tag(make_app(app), "idempotency_script") == "mine"


@pytest.mark.parametrize("code", [301, 302, 303])
def test_the_script_is_told_where_a_form_leads_and_the_replay_is_a_redirect_all_the_same(code, bare_app):
    app = make_app(bare_app())

    @app.post("/")
    @idempotent
    def view():
        return redirect("https://pay.test/1", code)

    send = app.test_client().post
    told = send("/", headers={"Idempotency-Key": "k", **BY_THE_SCRIPT})
    assert (told.status_code, told.location, told.headers["Idempotency-Location"]) == (200, None, "https://pay.test/1")
    led = send("/", headers={"Idempotency-Key": "k"})
    assert (led.status_code, led.location, led.headers["Idempotent-Replayed"]) == (code, "https://pay.test/1", "true")
    assert "Idempotency-Location" not in led.headers
    again = send("/", headers={"Idempotency-Key": "k", **BY_THE_SCRIPT})
    assert (again.status_code, again.headers["Idempotency-Location"]) == (200, "https://pay.test/1")


@pytest.mark.parametrize("code", [307, 308])
def test_a_redirect_that_repeats_the_post_is_left_to_the_browser(code):
    app = make_app()
    app.post("/")(lambda: redirect("/other", code))
    answer = app.test_client().post("/", headers=BY_THE_SCRIPT)
    assert (answer.status_code, answer.location) == (code, "/other")


def test_an_answer_that_leads_nowhere_stays_as_it_is():
    app = make_app()
    app.post("/")(lambda: ("made", 201, {"Location": "/orders/1"}))
    answer = app.test_client().post("/", headers=BY_THE_SCRIPT)
    assert (answer.status_code, answer.location) == (201, "/orders/1")
