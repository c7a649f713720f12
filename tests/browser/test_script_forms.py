"""What the script does for any form with ``data-idempotent``."""

from __future__ import annotations

import time
import uuid
from email.utils import formatdate

import pytest
from playwright.sync_api import expect

from .site import NOTE, broken_off, busy

pytestmark = pytest.mark.browser

FAST = "Object.assign(Idempotent.options, {backoff: 1, tries: 3})"


@pytest.fixture
def site(site_and_page):
    return site_and_page[0]


@pytest.fixture
def page(site_and_page):
    return site_and_page[1]


def send(page):
    page.get_by_role("button", name="Send").click(no_wait_after=True)


def status(page):
    return expect(page.get_by_role("status"))


def usable(page):
    expect(page.get_by_role("button", name="Send").first).to_be_enabled()


def heard(page):
    return page.evaluate("heard")


def stored(page):
    return page.evaluate("Object.values({...sessionStorage}).map((value) => JSON.parse(value))")


# --- What is sent -------------------------------------------------------------------------------------------------


def test_a_form_leads_where_its_answer_leads(site, page):
    page.goto(site.form())
    rendered = page.locator("[name=idempotency_key]").input_value()
    send(page)
    page.wait_for_url("**/done")
    assert site.keys == site.runs == [rendered]
    assert site.asked[0].form == [("note", "tea")]


@pytest.mark.parametrize("enctype", ["application/x-www-form-urlencoded", "multipart/form-data"])
def test_what_the_script_sends_is_what_the_browser_sends(site, page, enctype):
    inside = '<textarea name="note">a\nb &amp; ü</textarea><input type="checkbox" name="x" checked>'
    inside += '<input type="file" name="file">'
    page.goto(site.form(inside, attributes=f'data-idempotent enctype="{enctype}"'))
    chosen = {"name": "fünf.txt", "mimeType": "text/plain", "buffer": b"line\nline"}
    page.locator("[type=file]").set_input_files(chosen)
    page.evaluate("document.addEventListener('idempotent:done', (event) => event.preventDefault())")
    key = page.locator("[name=idempotency_key]").input_value()
    send(page)
    usable(page)
    page.evaluate(  # the browser by itself
        """(key) => {
             const form = document.querySelector("form");
             form.idempotency_key.value = key;
             form.submit();
           }""",
        key,
    )
    page.wait_for_url("**/done")
    assert site.asked[0] == site.asked[1]
    assert site.runs == [key]


def test_the_button_that_was_pressed_says_what_it_says(site, page):
    buttons = '<button name="action" value="draft" formaction="/other?draft">Draft</button>'
    page.goto(site.form(NOTE + buttons))
    page.get_by_role("button", name="Draft").click()
    page.wait_for_url("**/done")
    [asked] = site.asked
    assert (asked.path, asked.form) == ("/other?draft", [("note", "tea"), ("action", "draft")])


def test_fields_may_have_any_name(site, page):
    names = ("action", "method", "target", "enctype", "submit", "elements", "id", "name")
    page.goto(site.form("".join(f'<input name="{name}" value="1">' for name in names)))
    send(page)
    page.wait_for_url("**/done")
    assert site.asked[0].form == [(name, "1") for name in names]


def test_the_app_may_call_header_and_field_what_it_likes(make_site):
    site, page = make_site(IDEMPOTENCY_HEADER="X-Once", IDEMPOTENCY_FORM_FIELD="once")
    page.goto(site.form())
    with page.expect_request("**/done") as sent:
        send(page)
    page.wait_for_url("**/done")
    assert f"once={sent.value.headers['x-once']}" in sent.value.post_data
    assert site.runs == [sent.value.headers["x-once"]]


def test_a_form_without_the_field_gets_a_key_all_the_same(site, page):
    path = site.form()
    site.forms["0"] = site.forms["0"].replace("{{ idempotency_field() }}", "")
    page.goto(path)
    send(page)
    page.wait_for_url("**/done")
    assert uuid.UUID(site.runs[0])


@pytest.mark.parametrize(
    "attributes",
    ['data-idempotent target="frame"', 'data-idempotent enctype="text/plain"', ""],
    ids=["another window", "plain text", "not asked for"],
)
def test_other_forms_are_left_to_the_browser(site, page, attributes):
    page.goto(site.form(NOTE + '<iframe name="frame"></iframe>', attributes=attributes))
    with page.expect_request("**/done") as sent:
        send(page)
    assert sent.value.is_navigation_request()
    assert "idempotency-script" not in sent.value.headers


def test_a_form_that_the_page_holds_back_is_not_sent(site, page):
    page.goto(site.form())
    page.evaluate("document.querySelector('form').addEventListener('submit', (event) => event.preventDefault())")
    send(page)
    usable(page)
    assert site.asked == []


# --- The answer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("action", "code"), [("/page", 200), ("/wrong-page", 422)])
def test_a_page_as_answer_takes_the_place_of_the_form(site, page, action, code):
    page.goto(site.form(action=action))
    with page.expect_response(f"**{action}") as answered:
        send(page)
    expect(page.get_by_role("heading")).to_have_text("Wrong")
    assert answered.value.status == code
    assert len(site.runs) == 1
    if code == 422:  # the form in the new page works like the first one
        send(page)
        page.wait_for_url("**/done")
        assert len(set(site.runs)) == 2


def test_an_answer_that_leads_back_to_the_page_loads_it_anew(site, page):
    page.goto(site.form(action="/again"))
    page.evaluate("window.mark = true")
    send(page)
    page.wait_for_function("location.hash === '#sent' && !window.mark && document.readyState === 'complete'")
    usable(page)
    assert len(site.runs) == 1


def test_an_address_that_is_no_page_is_not_opened(site, page):
    page.goto(site.form(action="/evil"))
    send(page)
    status(page).to_have_text("The answer leads to an address that cannot be opened.")
    usable(page)
    assert page.title() == "Form"


def test_an_answer_without_a_page_ends_the_intent(site, page):
    page.goto(site.form(action="/nothing"))
    for _ in range(2):
        send(page)
        status(page).to_have_text("Done.")
        usable(page)
    assert len(set(site.runs)) == len(site.asked) == 2


def test_a_page_that_deals_with_the_answer_itself_stays(site, page):
    page.goto(site.form())
    page.evaluate("document.addEventListener('idempotent:done', (event) => event.preventDefault())")
    for _ in range(2):
        send(page)
        usable(page)
        page.wait_for_function("heard.at(-1).type === 'done'")
    assert page.url.endswith("/form/0")
    assert len(set(site.runs)) == 2


def test_a_refusal_ends_the_intent_and_says_why(site, page):
    page.goto(site.form(action="/refused"))
    for _ in range(2):
        send(page)
        status(page).to_have_text("Write more.")
        usable(page)
    assert len(set(site.runs)) == 2


# --- Retries ------------------------------------------------------------------------------------------------------


def test_it_is_sent_again_with_the_same_key_until_there_is_an_answer(site, page):
    page.goto(site.form())
    page.evaluate("Object.assign(Idempotent.options, {backoff: 1})")
    site.first.extend([busy(502), busy(503), busy(504), busy(409, Retry_After="1"), broken_off])
    send(page)
    page.wait_for_url("**/done")
    assert len(site.asked) == 6
    assert len(set(site.keys)) == len(site.runs) == 1


def test_a_server_that_asks_for_patience_gets_it(site, page):
    page.goto(site.form())
    page.evaluate("Object.assign(Idempotent.options, {backoff: 1})")
    site.first.extend([busy(Retry_After="1"), busy(Retry_After=formatdate(time.time() + 5, usegmt=True))])
    began = time.monotonic()
    send(page)
    status(page).to_contain_text("Trying again in 1 s (2 of 10); it counts once.")
    page.wait_for_url("**/done")
    assert time.monotonic() - began > 3  # an HTTP date has whole seconds, so it is 4 to 5 from when it was written
    assert len(site.runs) == 1


def test_patience_has_an_end(site, page):
    page.goto(site.form())
    site.first.append(busy(Retry_After="3600"))
    send(page)
    status(page).to_have_text("The server could not finish this. Send it again: it counts once, however often you do.")
    usable(page)
    assert len(site.asked) == 1
    send(page)
    page.wait_for_url("**/done")
    assert len(set(site.keys)) == 1


def test_an_answer_that_does_not_come_in_time_is_asked_for_again(site, page):
    page.goto(site.form())
    page.evaluate("Object.assign(Idempotent.options, {backoff: 1, timeout: 3000})")
    sent = []
    page.route("**/done", lambda route: sent.append(route) if not sent else route.continue_())
    send(page)
    page.wait_for_url("**/done")
    assert len(sent) == len(site.runs) == 1


@pytest.mark.parametrize("code", [408, 425, 429, 500, 501])
def test_what_is_no_answer_yet_is_not_repeated_and_the_next_try_has_the_same_key(site, page, code):
    page.goto(site.form())
    site.first.append(busy(code, Retry_After="1"))
    send(page)
    status(page).to_contain_text("The server could not finish this.")
    usable(page)
    assert len(site.asked) == 1
    send(page)
    page.wait_for_url("**/done")
    assert len(set(site.keys)) == 1


# --- Intents ------------------------------------------------------------------------------------------------------


def fail_once(site, page):
    """Send the form; it stays without an answer, and usable."""
    site.first.append(busy(500))
    send(page)
    status(page).to_contain_text("The server could not finish this.")
    usable(page)


def test_another_content_is_another_intent_and_the_first_one_again_is_the_first(site, page):
    page.goto(site.form())
    for note in ("tea", "coffee", "tea"):
        page.locator("[name=note]").fill(note)
        fail_once(site, page)
    tea, coffee, again = site.keys
    assert tea == again != coffee


def test_forms_with_names_of_their_own_have_intents_of_their_own(site, page):
    paths = [site.form(attributes=f'data-idempotent="{name}"') for name in ("one", "two")]
    for path in (*paths, paths[0]):
        page.goto(path)
        fail_once(site, page)
    one, two, again = site.keys
    assert one == again != two
    assert {intent["name"] for intent in stored(page)} == {"one", "two"}


def test_after_a_reload_the_form_says_that_an_answer_is_missing_and_sends_nothing_by_itself(site, page):
    page.goto(site.form('<input type="hidden" name="csrf_token" value="{{ range(10**9) | random }}">' + NOTE))
    fail_once(site, page)
    page.reload()
    status(page).to_have_text(
        "This was sent before, and its answer has not come. Send it again to get it: it counts once."
    )
    assert [event["type"] for event in heard(page)] == ["recall"]
    assert len(site.asked) == 1
    send(page)
    page.wait_for_url("**/done")
    assert len(set(site.keys)) == 1
    tokens = [dict(asked.form)["csrf_token"] for asked in site.asked]
    assert tokens[0] != tokens[1]


def test_an_intent_that_was_answered_is_over_for_a_new_page(site, page):
    path = site.form()
    for _ in range(2):
        page.goto(path)
        send(page)
        page.wait_for_url("**/done")
    assert len(set(site.runs)) == 2


@pytest.mark.parametrize("memory", [True, False], ids=["page in memory", "page loaded anew"])
def test_what_is_sent_again_after_going_back_is_the_same_intent(make_site, memory):
    site, page = make_site(memory=memory)
    page.goto(site.form())
    page.locator("[name=note]").fill("coffee")
    fail_once(site, page)
    page.locator("[name=note]").fill("tea")  # so that this intent has a key that was made by the script
    page.evaluate("window.setTimeout = () => 0")  # and that no time that passes makes the form usable again
    for _ in range(2):
        send(page)
        page.wait_for_url("**/done")
        page.go_back(wait_until="commit")
        usable(page)
    assert len(site.asked) == 3
    assert len(site.runs) == 1
    page.locator("[name=note]").fill("milk")
    send(page)
    page.wait_for_url("**/done")
    assert len(set(site.runs)) == 2


@pytest.mark.parametrize("memory", [True, False], ids=["page in memory", "page loaded anew"])
def test_going_back_to_a_form_that_posts_to_its_own_address_is_the_same_intent(make_site, memory):
    """The answer to a POST makes the browser drop the page from its cache: it comes back with a new key."""
    site, page = make_site(memory=memory)
    page.goto(site.form(action=""))
    for _ in range(2):
        send(page)
        page.wait_for_url("**/done")
        page.go_back(wait_until="commit")
        usable(page)
    assert (len(site.asked), len(site.runs)) == (2, 1)
    page.goto(site.form(action=""))
    send(page)
    page.wait_for_url("**/done")
    assert len(site.runs) == 2


def test_an_intent_that_is_kept_goes_on_until_the_page_ends_it(site, page):
    path = site.form(attributes='data-idempotent="note" data-idempotent-keep')
    for _ in range(2):
        page.goto(path)
        send(page)
        page.wait_for_url("**/done")
    assert len(site.runs) == 1
    page.goto(path)
    fail_once(site, page)  # which takes nothing away from what is known
    [intent] = stored(page)
    assert intent["location"].endswith("/done")
    page.evaluate("Idempotent.end(({ location }) => location.endsWith('/elsewhere'))")
    page.evaluate("Idempotent.end('another')")
    send(page)
    page.wait_for_url("**/done")
    assert len(site.runs) == 1
    page.evaluate("Idempotent.end('note')")
    page.goto(path)
    send(page)
    page.wait_for_url("**/done")
    assert len(site.runs) == 2


def test_nothing_that_was_typed_is_stored(site, page):
    page.goto(site.form('<input name="note" value="a secret">'))
    fail_once(site, page)
    [intent] = stored(page)
    assert intent == {"name": "/done", "key": site.keys[0], "page": site.keys[0], "state": "open"}
    assert "secret" not in page.evaluate("JSON.stringify({...sessionStorage})")


# --- Where the browser offers less --------------------------------------------------------------------------------


def test_a_site_without_https_gets_keys_of_the_same_kind(make_site):
    site, page = make_site("shop.test")
    page.goto(site.form(action="/nothing"))
    assert page.evaluate("[isSecureContext, typeof crypto.randomUUID]") == [False, "undefined"]
    for _ in range(2):
        send(page)
        status(page).to_have_text("Done.")
        usable(page)
    made = uuid.UUID(site.runs[1])
    assert (made.version, made.variant) == (4, uuid.RFC_4122)


@pytest.mark.parametrize(
    "init",
    [
        "Object.defineProperty(window, 'sessionStorage', {get() { throw new DOMException('', 'SecurityError'); }})",
        "Storage.prototype.setItem = () => { throw new DOMException('', 'QuotaExceededError'); }",
    ],
    ids=["none", "full"],
)
def test_without_session_storage_the_page_itself_remembers(make_site, init):
    site, page = make_site(init=init)
    page.goto(site.form())
    fail_once(site, page)
    page.evaluate("document.querySelector('[name=idempotency_key]').value = ''")
    send(page)
    page.wait_for_url("**/done")
    assert len(set(site.keys)) == 1


# --- What page and user are told ----------------------------------------------------------------------------------


def test_each_step_is_an_event_of_the_form(site, page):
    page.goto(site.form(action="/nothing", attributes='data-idempotent="note"'))
    page.evaluate(FAST)
    site.first.append(busy(503))
    send(page)
    status(page).to_have_text("Done.")
    start, retry, done = heard(page)
    about = {"intent": "note", "key": site.keys[0], "target": "FORM", "error": None}
    assert start == {"type": "start", "answered": None, "message": "One moment…", **about}
    assert retry.pop("wait") >= 0
    message = "The server is busy. Trying again in 1 s (2 of 3); it counts once."
    again = {"status": 503, "attempt": 2, "tries": 3, "message": message}
    assert retry == {"type": "retry", "answered": None, **again, **about}
    assert done == {"type": "done", "answered": 204, "location": None, "message": "Done.", **about}


def test_a_failure_is_an_event_that_says_whether_the_intent_ended(site, page):
    page.goto(site.form(action="/refused"))
    page.evaluate(FAST)
    site.first.append(busy(429))
    for ended in (False, True):
        send(page)
        usable(page)
        event = heard(page)[-1]
        assert (event["type"], event["ended"], event["answered"]) == ("fail", ended, 400 if ended else 429)


def test_a_page_says_it_in_its_own_words_or_by_itself(site, page):
    page.goto(site.form(action="/nothing"))
    page.evaluate(
        """document.addEventListener("idempotent:start", (event) => event.preventDefault());
           document.addEventListener("idempotent:done", ({ detail }) => { detail.message = "Fertig."; });"""
    )
    page.evaluate(
        """window.said = [];
           const status = document.querySelector("[role=status]");
           new MutationObserver(() => said.push(status.textContent)).observe(status, { childList: true });"""
    )
    send(page)
    status(page).to_have_text("Fertig.")
    assert page.evaluate("said") == ["Fertig."]


def test_the_status_is_a_live_region_before_it_says_anything(site, page):
    page.goto(site.form())
    expect(page.locator("form [role=status][data-idempotent-status]")).to_have_text("")


def test_the_focus_is_where_it_was(site, page):
    page.goto(site.form(action="/nothing"))
    page.get_by_role("button", name="Send").focus()
    page.keyboard.press("Enter")
    status(page).to_have_text("Done.")
    usable(page)
    assert page.evaluate("document.activeElement.textContent") == "Send"


def test_enter_held_down_sends_once_even_when_the_answer_is_quick(site, page):
    page.goto(site.form(action="/refused"))
    page.locator("[name=note]").focus()
    page.keyboard.down("Enter")
    status(page).to_have_text("Write more.")
    for _ in range(5):
        usable(page)
        page.keyboard.down("Enter")
    page.keyboard.up("Enter")
    assert len(site.asked) == 1
    page.keyboard.press("Enter")
    page.wait_for_function("heard.filter(({ type }) => type === 'fail').length === 2")
    assert len(site.asked) == 2


def test_enter_held_down_writes_lines_into_a_text(site, page):
    page.goto(site.form('<textarea name="note"></textarea>'))
    page.locator("textarea").focus()
    for _ in range(3):
        page.keyboard.down("Enter")
    page.keyboard.up("Enter")
    assert page.locator("textarea").input_value() == "\n\n\n"


def test_a_file_that_cannot_be_read_leaves_the_form_usable(site, page, tmp_path):
    gone = tmp_path / "gone.txt"
    gone.write_text("here for now")
    page.goto(site.form('<input type="file" name="file">', attributes='data-idempotent enctype="multipart/form-data"'))
    page.locator("[type=file]").set_input_files(gone)
    gone.unlink()
    send(page)
    status(page).to_have_text("This could not be sent. Try again.")
    usable(page)
    assert site.asked == []
