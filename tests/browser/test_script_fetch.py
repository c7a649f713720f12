"""``Idempotent.fetch``: fetch with a key, and with patience."""

from __future__ import annotations

import pytest
from playwright.sync_api import Error

from .site import broken_off, busy

pytestmark = pytest.mark.browser

FAST = "Object.assign(Idempotent.options, {backoff: 1, tries: 3})"


@pytest.fixture
def site(site_and_page):
    return site_and_page[0]


@pytest.fixture
def page(site, site_and_page):
    page = site_and_page[1]
    page.goto(site.form())
    page.evaluate(FAST)
    return page


def call(page, path="/made", body="{'tea': 1}", how="", **options):
    """What ``Idempotent.fetch`` gives for a POST, as status and text."""
    about = "{" + ", ".join(f"{name}: {value}" for name, value in options.items()) + "}"
    return page.evaluate(
        f"""async () => {{
            const body = typeof ({body}) === "string" ? {body} : JSON.stringify({body});
            const headers = {{"Content-Type": "application/json"}};
            const init = {{method: "POST", body, headers, {how}}};
            const answer = await Idempotent.fetch("{path}", init, {about});
            return [answer.status, await answer.text()];
        }}"""
    )


def stored(page):
    return page.evaluate("Object.values({...sessionStorage}).map((value) => JSON.parse(value))")


def test_a_call_has_a_key_and_ends_with_its_answer(site, page):
    assert call(page) == [201, '{"made":9}\n']
    assert stored(page) == []
    call(page)
    assert len(set(site.keys)) == len(site.runs) == 2


def test_calls_for_one_intent_that_come_at_once_are_one_request(site, page):
    texts = page.evaluate(
        """async () => {
             const call = () => Idempotent.fetch("/made", {method: "POST", body: "tea"});
             return Promise.all([call(), call(), call()].map(async (answer) => (await answer).text()));
           }"""
    )
    assert texts == ['{"made":3}\n'] * 3
    assert len(site.asked) == 1


def test_it_is_sent_again_with_the_same_key_until_there_is_an_answer(site, page):
    page.evaluate("Idempotent.options.tries = 10")
    site.first.extend([busy(502), busy(503), busy(504), busy(409, Retry_After="1"), broken_off])
    assert call(page)[0] == 201
    assert len(site.asked) == 6
    assert len(set(site.keys)) == len(site.runs) == 1


def test_when_the_tries_are_used_up_the_last_answer_is_given_and_the_intent_goes_on(site, page):
    site.first.extend([busy(503)] * 3)
    assert call(page)[0] == 503
    assert len(site.asked) == 3
    assert [intent["state"] for intent in stored(page)] == ["open"]
    page.reload()
    assert call(page)[0] == 201
    assert len(set(site.keys)) == 1


def test_when_there_is_no_answer_at_all_it_rejects_as_fetch_does_and_the_intent_goes_on(site, page):
    site.first.extend([broken_off] * 3)
    with pytest.raises(Error, match="TypeError"):
        call(page)
    assert len(site.asked) == 3
    call(page)
    assert len(set(site.keys)) == len(site.runs) == 1


def test_one_call_can_have_limits_of_its_own(site, page):
    site.first.extend([busy(503)] * 3)
    assert call(page, tries="1")[0] == 503
    assert len(site.asked) == 1


@pytest.mark.parametrize("path", ["/refused", "/new-key"])
def test_a_refusal_is_given_at_once_and_ends_the_intent(site, page, path):
    for _ in range(2):
        assert call(page, path)[0] in (400, 422)
    assert len(set(site.keys)) == len(site.asked) == 2
    assert stored(page) == []


@pytest.mark.parametrize("code", [408, 409, 425, 429, 500])
def test_what_is_no_answer_yet_is_given_at_once_and_the_intent_goes_on(site, page, code):
    site.first.append(busy(code))
    assert call(page)[0] == code
    assert call(page)[0] == 201
    assert len(set(site.keys)) == 1


def test_a_conflict_that_the_view_finds_is_final_once_its_replay_is_there(site, page):
    for _ in range(3):
        assert call(page, "/conflict") == [409, "taken"]
    first, again, new = site.keys
    assert first == again != new


def fail(site, page, **options):
    """Call, with a failure as answer; returns the key that was sent."""
    site.first.append(busy(500))
    call(page, **options)
    return site.keys[-1]


def test_other_content_another_name_and_another_address_are_other_intents(site, page):
    calls = [{}, {"body": "{'tea': 2}"}, {"intent": "'mine'"}, {"path": "/other"}, {"how": "method: 'PATCH'"}]
    keys = [fail(site, page, **options) for options in calls]
    assert len(set(keys[:4])) == 4
    assert [fail(site, page, **options) for options in calls[:4]] == keys[:4]


def test_a_token_of_the_page_is_no_part_of_the_content(site, page):
    bodies = ["{'tea': 1, 'csrf_token': 'a'}", "{'tea': 1, 'csrf_token': 'b'}", "{'tea': 2, 'csrf_token': 'b'}"]
    one, two, other = [fail(site, page, body=body) for body in bodies]
    assert one == two != other


@pytest.mark.parametrize(
    "body",
    [
        "new URLSearchParams({tea: n})",
        "Object.entries({tea: n, csrf_token: Math.random()}).reduce((f, p) => (f.append(...p), f), new FormData())",
        "(() => { const f = new FormData(); f.append('file', new File([`tea ${n}`], 'tea.txt')); return f; })()",
        "new Blob([`tea ${n}`])",
        "new TextEncoder().encode(`tea ${n}`)",
        "`tea ${n}`",
    ],
    ids=["fields", "form", "file", "blob", "bytes", "text"],
)
@pytest.mark.parametrize("wrapped", [False, True], ids=["address", "Request"])
def test_the_same_content_is_the_same_intent_whatever_it_is_made_of(site, page, body, wrapped):
    site.first.extend([busy(500)] * 3)
    arguments = "new Request('/made', init)" if wrapped else "'/made', init"
    for n in (1, 1, 2):
        page.evaluate(
            f"async (n) => {{ const init = {{method: 'POST', body: {body}}}; await Idempotent.fetch({arguments}); }}", n
        )
    one, again, other = site.keys
    assert one == again != other


def test_an_intent_that_is_kept_goes_on_until_the_page_ends_it(site, page):
    for _ in range(2):
        call(page, keep="true", intent="'tea'")
    assert len(site.runs) == 1
    page.evaluate("Idempotent.end('tea')")
    call(page, keep="true", intent="'tea'")
    assert len(site.runs) == 2


def test_who_calls_can_give_it_up_and_the_intent_goes_on(site, page):
    site.first.append(busy(503, Retry_After="300"))
    name = page.evaluate(
        """async () => {
             const giveUp = new AbortController();
             document.addEventListener("idempotent:retry", () => giveUp.abort(), {once: true});
             const init = {method: "POST", body: "tea", signal: giveUp.signal};
             const call = Idempotent.fetch("/made", init, {patience: 600_000});
             const late = new Promise((resolve) => setTimeout(resolve, 30_000, "nothing in time"));
             return Promise.race([late, call.then((answer) => answer.status, (error) => error.name)]);
           }"""
    )
    assert name == "AbortError"
    assert len(site.asked) == 1
    page.evaluate("Idempotent.fetch('/made', {method: 'POST', body: 'tea'})")
    assert len(set(site.keys)) == len(site.runs) == 1


def test_an_answer_that_does_not_come_in_time_is_asked_for_again(site, page):
    sent = []
    page.route("**/made", lambda route: sent.append(route) if not sent else route.continue_())
    assert call(page, timeout="3000")[0] == 201
    assert len(sent) == len(site.runs) == 1


def test_a_key_of_the_callers_own_is_sent(site, page):
    page.evaluate("Idempotent.fetch('/made', {method: 'POST', headers: {'Idempotency-Key': 'mine'}})")
    assert site.runs == ["mine"]


def test_what_changes_nothing_needs_no_key(site, page):
    with page.expect_request("**/done") as asked:
        page.evaluate("Idempotent.fetch('/done')")
    assert "idempotency-key" not in asked.value.headers
    assert stored(page) == []


def test_each_step_is_an_event(site, page):
    page.evaluate("window.heard.length = 0")
    site.first.append(busy(503))
    call(page, intent="'tea'")
    call(page, "/refused", target="document.querySelector('form')")
    start, retry, done, second, fail = page.evaluate("heard")
    assert [start["type"], retry["type"], done["type"]] == ["start", "retry", "done"]
    assert {event["key"] for event in (start, retry, done)} == set(site.runs[:1])
    assert (start["intent"], retry["status"], done["answered"]) == ("tea", 503, 201)
    assert (start["target"], second["target"], fail["target"]) == ("#document", "FORM", "FORM")
    assert (fail["type"], fail["answered"], fail["ended"], fail["message"]) == ("fail", 400, True, "Write more.")
