/*
 * The browser's side of "once": one idempotency key per intent, kept until the intent ends, sent with every attempt.
 *
 *   <form method="post" data-idempotent> {{ idempotency_field() }} … </form>     works without this script, too
 *   const answer = await Idempotent.fetch("/orders", { method: "POST", body }, { intent: "order" });
 *
 * An intent is an address, a name that the page may give to it (data-idempotent="name"), and the content: another
 * cart is another intent. What an answer means for it:
 *
 *   answer                                      sent again by itself     the intent
 *   2xx, 3xx                                    no                       ends (with "keep": when the page ends it)
 *   none, 502, 503, 504, 409 with Retry-After   yes; Retry-After counts  goes on
 *   the same with "retryable": false            no                       goes on
 *   408, 425, 429, other 409 and 5xx            no                       goes on: the user's next try has its key
 *   any other 4xx, such as 422 key-reused       no                       ends: the user's next try has a new key
 *
 * (A 409 without Retry-After is the view's own. When its replay comes, it is known to be final, and the intent ends.)
 *
 * Intents are in sessionStorage, so a reload goes on with them. That storage belongs to one tab: another tab has intents
 * of its own. A browser copies it when the user duplicates a tab, and then both go on with the same intents: the form
 * that the second tab shows is the one that the first has sent.
 *
 * Nothing is sent that the user has not sent: after a reload the form says that an answer is missing, and waits.
 */
(() => {
  "use strict";

  // What the app's settings call things; {{ idempotency_script() }} writes them down where they differ.
  const named = document.currentScript?.dataset ?? {};
  const HEADER = named.header ?? "Idempotency-Key";
  const FIELD = named.field ?? "idempotency_key";
  const REPLAYED = named.replayed ?? "Idempotent-Replayed";
  const IGNORED = new Set([FIELD, ...(named.ignored ?? "csrf_token").split(" ")]);

  // Redirects of a form's answer are reported in a header: fetch could not follow them to another site.
  const REPORT = "Idempotency-Script";
  const LOCATION = "Idempotency-Location";

  const RETRIED = new Set([502, 503, 504]);
  const UNDECIDED = new Set([408, 409, 425, 429]); // these 4xx say nothing about the intent
  const FORM = "form[data-idempotent]";
  const STATUS = "[data-idempotent-status]";
  const LEAVING = 10_000; // ms after which a page that should have been left can be used again

  // Times in ms; each can be given to Idempotent.fetch as well.
  const options = {
    tries: 10,
    patience: 90_000, // for all attempts and the waits between them
    timeout: 30_000, // for one attempt; another one after it is safe, because it has the same key
    backoff: 500, // before the second attempt, then twice as long each time …
    longest: 8_000, // … up to this, unless the server asks for more
  };

  // ---- intents: {name, key, page, state, location} by a digest of address, name and content ----
  //
  // OPEN: not answered, or kept after an answer: goes on whoever asks. ANSWERED: what this very page (known by the key
  // that the server has put into it) sends again is the same intent: pressing the button again after "back" gets the
  // same answer. OVER: never sent again; remembered only so that a page from the browser's cache does not use its key.

  const [OPEN, ANSWERED, OVER] = ["open", "answered", "over"];
  const PREFIX = "idempotent:";

  const memory = new Map(); // for a browser without session storage, or with a full one: as long as the page lives
  const stored = (use) => {
    try {
      return use(sessionStorage);
    } catch {
      return null;
    }
  };

  const intents = {
    read: (slot) => memory.get(slot) ?? stored((storage) => JSON.parse(storage.getItem(PREFIX + slot))),
    save: (slot, intent) => {
      const kept = stored((storage) => (storage.setItem(PREFIX + slot, JSON.stringify(intent)), true));
      if (kept) memory.delete(slot);
      else memory.set(slot, intent);
    },
    drop: (slot) => (memory.delete(slot), stored((storage) => storage.removeItem(PREFIX + slot))),
    slots: () => [
      ...memory.keys(),
      ...Object.keys(stored((storage) => ({ ...storage })) ?? {})
        .filter((name) => name.startsWith(PREFIX))
        .map((name) => name.slice(PREFIX.length)),
    ],
    knows: (key) => intents.slots().some((slot) => intents.read(slot)?.key === key),
  };

  // crypto.randomUUID is there on https and on localhost only.
  function newKey() {
    if (crypto.randomUUID) return crypto.randomUUID();
    const bytes = crypto.getRandomValues(new Uint8Array(16));
    bytes[6] = (bytes[6] & 0x0f) | 0x40; // RFC 9562, section 5.4
    bytes[8] = (bytes[8] & 0x3f) | 0x80;
    const hex = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
    return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
  }

  // 64 bits that tell contents apart without storing them. Two that share a digest would share a key, and the server
  // refuses the second (422); so this needs to be no cryptographic hash, and crypto.subtle is there on https only.
  function digest(...parts) {
    let [a, b] = [0xdeadbeef, 0x41c6ce57];
    const mix = (value) => {
      a = Math.imul(a ^ value, 2654435761);
      b = Math.imul(b ^ value, 1597334677);
      a ^= b >>> 15;
      b ^= a >>> 13;
    };
    for (const part of parts) {
      const bytes = typeof part === "string" ? new TextEncoder().encode(part) : new Uint8Array(part);
      mix(bytes.length);
      bytes.forEach(mix);
    }
    return [a, b].map((half) => (half >>> 0).toString(16).padStart(8, "0")).join("");
  }

  async function fieldsOf(data) {
    const fields = [];
    for (const [name, value] of data) {
      if (IGNORED.has(name)) continue;
      if (typeof value === "string") fields.push([name, value.replace(/\r\n?|\n/g, "\r\n")]);
      else fields.push([name, value.name, value.type, digest(await value.arrayBuffer())]);
    }
    return JSON.stringify(fields);
  }

  async function contentOf(request) {
    const type = request.headers.get("Content-Type") ?? "";
    const copy = request.clone();
    if (/^(multipart\/form-data|application\/x-www-form-urlencoded)\b/.test(type)) {
      return fieldsOf(await copy.formData()); // not by the bytes: each has another boundary
    }
    const bytes = await copy.arrayBuffer();
    if (!/\bjson\b/.test(type)) return bytes;
    try {
      const value = JSON.parse(new TextDecoder().decode(bytes));
      return JSON.stringify(value, (name, inner) => (IGNORED.has(name) ? undefined : inner));
    } catch {
      return bytes;
    }
  }

  // ---- attempts ----

  function verdict(response, problem) {
    if (!response) return "retry";
    const { status, headers } = response;
    if (status < 400) return "done";
    const passes = RETRIED.has(status) || (status === 409 && (headers.has("Retry-After") || problem.retryable === true));
    if (passes && problem.retryable !== false) return "retry";
    const stored = status < 500 && headers.get(REPLAYED) === "true";
    return (status >= 500 || UNDECIDED.has(status)) && !stored ? "later" : "refused";
  }

  // One attempt, with all of its answer: one that breaks off in the middle is none.
  async function attempt({ send, signal }, timeout) {
    const limit = new AbortController();
    const timer = setTimeout(() => limit.abort(new DOMException("There was no answer in time.", "TimeoutError")), timeout);
    const pass = () => limit.abort(signal.reason);
    signal.addEventListener("abort", pass);
    try {
      signal.throwIfAborted();
      const response = await send(limit.signal);
      await response.clone().arrayBuffer();
      return response;
    } finally {
      clearTimeout(timer);
      signal.removeEventListener("abort", pass);
    }
  }

  function waitFor(response, number, { backoff, longest }) {
    const asked = response?.headers.get("Retry-After") ?? "";
    const seconds = /^\d+$/.test(asked) ? Number(asked) : (Date.parse(asked) - Date.now()) / 1000;
    const grown = Math.min(backoff * 2 ** (number - 1), longest) * (0.5 + Math.random() / 2);
    return Math.max(grown, (seconds || 0) * 1000 * (1 + Math.random() / 10)); // those who wait do not all come at once
  }

  const sleep = (ms, signal) =>
    new Promise((resolve) => {
      setTimeout(resolve, signal.aborted ? 0 : ms);
      signal.addEventListener("abort", resolve, { once: true });
    });

  // Send a request, {send, signal}, until it has an answer that is one. Returns {result, response, problem, error}: the
  // result is "done", "refused", or "later" when the intent goes on and it is the user's turn.
  async function deliver(request, limits, tell) {
    const end = performance.now() + limits.patience;
    for (let number = 1; ; number++) {
      let [response, error] = [null, null];
      try {
        response = await attempt(request, limits.timeout);
      } catch (caught) {
        error = caught; // it may have arrived or not
      }
      const problem = await problemOf(response);
      const result = verdict(response, problem);
      if (result !== "retry") return { result, response, problem, error };
      const wait = waitFor(response, number, limits);
      const enough = request.signal.aborted || number >= limits.tries || performance.now() + wait > end;
      if (enough) return { result: "later", response, problem: {}, error };
      tell({ attempt: number + 1, tries: limits.tries, wait, status: response?.status ?? 0 });
      await sleep(wait, request.signal);
    }
  }

  async function problemOf(response) {
    if (!response || response.status < 400 || !/\bjson\b/.test(response.headers.get("Content-Type") ?? "")) return {};
    return (await response.clone().json().catch(() => null)) ?? {};
  }

  // ---- what the page and the user are told ----

  function announce(target, type, detail) {
    const event = new CustomEvent(`idempotent:${type}`, { bubbles: true, cancelable: true, detail });
    return { ...detail, proceed: target.dispatchEvent(event), message: event.detail.message };
  }

  function retryMessage({ attempt, tries, wait, status }) {
    const lost = status === 0 ? "The connection was lost." : "The server is busy.";
    const why = status === 409 ? "This is still being processed." : lost;
    return `${why} Trying again in ${Math.max(Math.round(wait / 1000), 1)} s (${attempt} of ${tries}); it counts once.`;
  }

  function failMessage({ result, response, problem }) {
    if (typeof problem.detail === "string") return problem.detail;
    if (result === "refused") return `The server did not accept this (${response.status}).`;
    const why = response ? "The server could not finish this" : "No answer has come";
    return `${why}. Send it again: it counts once, however often you do.`;
  }

  // ---- Idempotent.fetch ----

  const flights = new Map(); // slot -> the answer that is on its way, for whoever asks meanwhile

  async function idempotentFetch(input, init = {}, { intent = "", keep = false, target = document, ...limits } = {}) {
    const request = new Request(input, init);
    if (request.method === "GET" || request.method === "HEAD") return fetch(request);
    const slot = digest(intent, request.method, request.url, await contentOf(request));
    if (!flights.has(slot)) {
      const flight = fly(request, slot, { intent, keep, target, limits: { ...options, ...limits } });
      flights.set(slot, flight);
      flight.finally(() => flights.delete(slot)).catch(() => {});
    }
    return (await flights.get(slot)).clone();
  }

  async function fly(request, slot, { intent, keep, target, limits }) {
    const known = intents.read(slot);
    const key = request.headers.get(HEADER) ?? (known?.state === OPEN ? known.key : newKey());
    request.headers.set(HEADER, key);
    intents.save(slot, { name: intent, key, state: OPEN });
    announce(target, "start", { intent, key, message: "" });
    const { signal } = request;
    const outcome = await deliver({ send: (limit) => fetch(request.clone(), { signal: limit }), signal }, limits, (news) =>
      announce(target, "retry", { intent, key, ...news, message: retryMessage(news) }),
    );
    const { result, response, error } = outcome;
    if (result === "refused" || (result === "done" && !keep)) intents.drop(slot);
    if (result === "done") announce(target, "done", { intent, key, response: response.clone(), message: "" });
    else {
      const ended = result === "refused";
      announce(target, "fail", { intent, key, response: response?.clone(), error, ended, message: failMessage(outcome) });
    }
    if (!response) throw error;
    return response;
  }

  // ---- forms ----

  const pages = new WeakMap(); // form -> the key that its page came with
  const running = new WeakSet(); // forms that are being sent
  const leaving = new WeakSet(); // … and those of them whose answer leads to another page
  const disabled = new WeakMap(); // form -> its buttons that are disabled meanwhile, and what had the focus

  // Where and how the browser would send a form; null when this is not a POST within the site and this window.
  function planOf(form, submitter) {
    const said = (name) => submitter?.getAttribute(`form${name}`) ?? form.getAttribute(name) ?? "";
    const url = new URL(said("action") || location.href, document.baseURI);
    url.hash = "";
    const enctype = said("enctype").toLowerCase();
    const target = said("target") || (document.querySelector("base[target]")?.target ?? "");
    const ours = said("method").toLowerCase() === "post" && url.origin === location.origin;
    if (!ours || enctype === "text/plain" || !["", "_self"].includes(target.toLowerCase())) return null;
    const data = new FormData(form);
    if (submitter?.name && submitter.type !== "image") data.append(submitter.name, submitter.value);
    return { url: url.href, data, multipart: enctype === "multipart/form-data" };
  }

  function bodyOf({ data, multipart }) {
    if (multipart) return data;
    const body = new URLSearchParams();
    for (const [name, value] of data) {
      body.append(name, (typeof value === "string" ? value : value.name).replace(/\r\n?|\n/g, "\r\n"));
    }
    return body;
  }

  const intentOf = (form, plan) => form.dataset.idempotent || new URL(plan.url).pathname;
  const formSlot = async (name, plan) => digest(name, "POST", plan.url, await fieldsOf(plan.data));

  // The hidden field: rendered with a key of its own, which also is the one that a form without this script sends.
  function fieldOf(form) {
    let field = form.querySelector(`input[name="${CSS.escape(FIELD)}"]`);
    if (!field) {
      field = Object.assign(document.createElement("input"), { type: "hidden", name: FIELD });
      form.append(field);
    }
    return field;
  }

  // What the field held when the page came. A page that is loaded anew from the browser's cache holds it again.
  function pageOf(form) {
    if (!pages.has(form)) pages.set(form, fieldOf(form).value);
    return pages.get(form);
  }

  // To a page that the browser had to load anew, because a POST to its address has made the cached one invalid.
  function cameBack() {
    return performance.getEntriesByType("navigation")[0]?.type === "back_forward";
  }

  function intentFor(form, slot, name) {
    const known = intents.read(slot);
    const [held, page] = [fieldOf(form).value, pageOf(form)];
    const samePage = known?.key === held || (page && known?.page === page) || cameBack();
    if (known?.state === OPEN || (known?.state === ANSWERED && samePage)) return { ...known, page, state: OPEN };
    return { name, key: held && !intents.knows(held) ? held : newKey(), page, state: OPEN };
  }

  async function send(form, plan) {
    rest(form, false);
    const name = intentOf(form, plan);
    const slot = await formSlot(name, plan);
    const intent = intentFor(form, slot, name);
    const { key } = intent;
    intents.save(slot, intent);
    fieldOf(form).value = key;
    plan.data.set(FIELD, key);
    const about = { intent: name, key };
    tell(form, "start", { ...about, message: "One moment…" });
    const headers = { [HEADER]: key, [REPORT]: "1", Accept: "application/problem+json, text/html;q=0.9, */*;q=0.8" };
    const body = bodyOf(plan);
    const request = (signal) => fetch(plan.url, { method: "POST", headers, body, signal });
    const outcome = await deliver({ send: request, signal: new AbortController().signal }, options, (news) =>
      tell(form, "retry", { ...about, ...news, message: retryMessage(news) }),
    );
    if (outcome.result === "done") await succeed(form, slot, about, outcome.response);
    else await fail(form, slot, about, outcome);
  }

  async function succeed(form, slot, about, response) {
    const reported = response.headers.get(LOCATION);
    const location = reported ? new URL(reported, response.url).href : response.redirected ? response.url : undefined;
    const state = "idempotentKeep" in form.dataset ? OPEN : ANSWERED;
    intents.save(slot, { ...intents.read(slot), state, location });
    const message = location ? "Done. One moment…" : "Done.";
    const { proceed } = tell(form, "done", { ...about, response: response.clone(), location, message });
    if (proceed && location) leave(form, location);
    else if (proceed && isPage(response)) await show(response);
    else if (state === OPEN) rest(form);
    else finish(form, slot); // the page stays, and what it sends next is another intent
  }

  async function fail(form, slot, about, outcome) {
    const { result, response, error } = outcome;
    const ended = result === "refused";
    const detail = { ...about, response: response?.clone() ?? null, error, ended, message: failMessage(outcome) };
    const { proceed } = tell(form, "fail", detail);
    if (ended) finish(form, slot);
    else rest(form);
    if (ended && proceed && isPage(response)) await show(response);
  }

  // The intent is over: what the form sends next is another one.
  function finish(form, slot) {
    intents.save(slot, { ...intents.read(slot), state: OVER });
    fieldOf(form).value = newKey();
    rest(form);
  }

  // As the browser goes after a redirect: to the web only, and anew even where just the fragment differs.
  function leave(form, target) {
    const url = new URL(target);
    if (!/^https?:$/.test(url.protocol)) {
      tell(form, "fail", { message: "The answer leads to an address that cannot be opened." });
      return rest(form);
    }
    leaving.add(form);
    setTimeout(() => leaving.has(form) && rest(form), LEAVING);
    const [here, there] = [location.href, url.href].map((address) => address.split("#")[0]);
    location.assign(url.href);
    if (here === there && url.hash) location.reload();
  }

  const isPage = ({ status, headers }) =>
    ![204, 205].includes(status) && /^text\/html\b/.test(headers.get("Content-Type") ?? "");

  // A page as answer (the form again, with what is wrong in it) takes the place of this one.
  async function show(response) {
    const page = await response.text();
    document.open();
    document.write(page);
    document.close();
  }

  // ---- how a form looks while it is being sent ----

  const submits = (form) =>
    [...document.querySelectorAll("button, input")].filter(
      (button) => button.form === form && ["submit", "image"].includes(button.type),
    );

  // rest(form, false): busy. rest(form): usable again.
  function rest(form, ready = true) {
    if (ready) {
      running.delete(form);
      leaving.delete(form);
      const { buttons = [], focus } = disabled.get(form) ?? {};
      for (const button of buttons) {
        button.disabled = false;
        button.removeAttribute("aria-busy");
      }
      if (focus?.isConnected && document.activeElement === document.body) focus.focus({ preventScroll: true });
      return;
    }
    running.add(form);
    const buttons = submits(form).filter((button) => !button.disabled);
    disabled.set(form, { buttons, focus: buttons.find((button) => button === document.activeElement) });
    for (const button of buttons) {
      button.autocomplete = "off"; // or Firefox would keep it disabled over a reload
      button.disabled = true;
      button.setAttribute("aria-busy", "true"); // not the form: that would silence the status in it
    }
  }

  // The live region has to be there before its text changes.
  function statusOf(form) {
    let status = form.querySelector(STATUS);
    if (!status) {
      status = document.createElement("p");
      status.dataset.idempotentStatus = "";
      form.append(status);
    }
    if (!status.hasAttribute("role")) status.setAttribute("role", "status");
    return status;
  }

  function say(form, state, message) {
    const status = statusOf(form);
    status.dataset.idempotentStatus = state;
    if (status.textContent !== message) status.textContent = message;
  }

  // A listener may change detail.message, or prevent the default: then the page speaks for itself.
  function tell(form, type, detail) {
    const told = announce(form, type, detail);
    if (told.proceed) say(form, type, told.message);
    return told;
  }

  async function recall(form) {
    statusOf(form);
    pageOf(form);
    const plan = planOf(form, submits(form)[0]);
    if (!plan || running.has(form)) return;
    const known = intents.read(await formSlot(intentOf(form, plan), plan));
    if (known?.state !== OPEN || known.location || running.has(form)) return;
    const message = "This was sent before, and its answer has not come. Send it again to get it: it counts once.";
    tell(form, "recall", { intent: known.name, key: known.key, message });
  }

  document.addEventListener("submit", (event) => {
    const form = event.target;
    if (event.defaultPrevented || !form.matches(FORM)) return;
    if (running.has(form)) return event.preventDefault();
    const plan = planOf(form, event.submitter);
    if (!plan) return; // the browser sends it, with the key in its field
    event.preventDefault();
    send(form, plan).catch((error) => {
      rest(form); // a file that cannot be read, say
      tell(form, "fail", { response: null, error, ended: false, message: "This could not be sent. Try again." });
    });
  });

  // Enter held down would send a form again as soon as it can be sent.
  document.addEventListener("keydown", (event) => {
    const held = event.key === "Enter" && event.repeat;
    if (held && event.target.form?.matches(FORM) && event.target.type !== "textarea") event.preventDefault();
  });

  function wake() {
    for (const form of document.querySelectorAll(FORM)) {
      if (leaving.has(form)) {
        rest(form); // back from where the answer led, straight from memory
        say(form, "", "");
      }
      recall(form);
    }
  }

  addEventListener("pageshow", wake); // by then the browser has restored what the fields held
  if (document.readyState === "complete") wake();

  // Ends kept or open intents: of a name, or those for which a function of {name, key, location} says so.
  function end(which) {
    const ends = typeof which === "function" ? which : ({ name }) => name === which;
    for (const slot of intents.slots()) {
      const intent = intents.read(slot);
      if (intent?.state === OPEN && ends(intent)) intents.save(slot, { ...intent, state: OVER });
    }
  }

  globalThis.Idempotent = Object.freeze({ fetch: idempotentFetch, end, options });
})();
