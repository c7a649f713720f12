// The buyer's side of "once". One intent to buy (this product, this quantity, in this tab) has one idempotency key.
// It is kept over reloads and sent with every attempt, so the server can tell a retry from a second purchase.

const ATTEMPTS = 8;
const TIMEOUT = 30_000; // ms for one attempt; a retry after it is safe, because it carries the same key
const LONGEST_WAIT = 60_000; // ms
const RETRIED = new Set([409, 502, 503, 504]); // still running, or not reached: the same request may be sent again
const FOLLOW_EVERY = 3_000; // ms
const FOLLOW_TIMES = 200;

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

// randomUUID exists on https and on localhost only.
const newKey = () =>
  crypto.randomUUID?.() ??
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");

// An intent is {key, session}; the session is known once the server has answered. Where the browser keeps no session
// storage, intents live as long as the page: retries are safe all the same, only a reload starts anew.
const intents = {
  name: (product, quantity) => `intent:${product}:${quantity}`,
  read: (name) => JSON.parse(store.getItem(name)),
  save: (name, intent) => store.setItem(name, JSON.stringify(intent)),
  drop: (name) => store.removeItem(name),
};
const store = (() => {
  try {
    sessionStorage.setItem("probe", "");
    sessionStorage.removeItem("probe");
    return sessionStorage;
  } catch {
    const map = new Map();
    return { getItem: (k) => map.get(k) ?? null, setItem: (k, v) => map.set(k, v), removeItem: (k) => map.delete(k) };
  }
})();

class Refusal extends Error {} // the server said no: nothing was ordered, and the next click is a new intent

// Returns {session, url} or, when the same request should be sent again, {why, wait}.
async function attempt(url, key, order) {
  const answer = await fetch(url, {
    method: "POST",
    headers: { "Idempotency-Key": key, "Content-Type": "application/json", Accept: "application/json" },
    body: JSON.stringify(order),
    signal: AbortSignal.timeout(TIMEOUT),
  });
  const body = await answer.json().catch(() => ({}));
  if (answer.ok) return body.url ? { session: body.id, url: body.url } : { why: "The connection was lost" };
  if (RETRIED.has(answer.status) && body.retryable !== false) {
    const wait = Number(answer.headers.get("Retry-After")) * 1000;
    return { wait, why: answer.status === 409 ? "Your order is being processed" : "The shop is busy" };
  }
  if (answer.status < 500 && answer.status !== 409) throw new Refusal(body.detail ?? "The shop refused this order.");
  throw new Error("Something went wrong on our side. Press Buy to try again: it stays the same order.");
}

async function checkout(url, key, order, say) {
  for (let number = 1; ; number++) {
    const result = await attempt(url, key, order).catch((error) => {
      // fetch's words for a broken connection and for the timeout: the order may exist by now or not.
      if (error instanceof TypeError || error instanceof DOMException) return { why: "The connection was lost" };
      throw error;
    });
    if (result.url) return result;
    if (number === ATTEMPTS) break;
    const backoff = Math.min(500 * 2 ** (number - 1), 8_000) * (0.75 + Math.random() / 2);
    const wait = Math.min(Math.max(result.wait || 0, backoff), LONGEST_WAIT);
    const when = `in ${Math.ceil(wait / 1000)} s (${number + 1} of ${ATTEMPTS})`;
    say(`${result.why}. Trying again ${when}; you will not be charged twice.`);
    await sleep(wait);
  }
  throw new Error("We could not finish this right now. Press Buy to try again: it stays the same order.");
}

function setUpBuying(form) {
  const { product, price, currency, checkout: url } = form.dataset;
  const button = form.querySelector("button");
  const message = document.getElementById("message");
  const money = new Intl.NumberFormat("en", { style: "currency", currency });

  const say = (text, alert = false) => {
    message.textContent = text;
    message.classList.toggle("alert", alert);
  };
  const wait = (waiting) => {
    button.disabled = form.quantity.readOnly = waiting;
    button.setAttribute("aria-busy", waiting);
  };
  const showTotal = () => {
    const total = ((form.quantity.valueAsNumber || 1) * price) / 100;
    document.getElementById("total").textContent = money.format(total);
  };

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const quantity = form.quantity.valueAsNumber;
    const name = intents.name(product, quantity);
    const { key } = intents.read(name) ?? { key: newKey() };
    intents.save(name, { key });
    wait(true);
    say("One moment, we are preparing your order…");
    try {
      const { session, url: page } = await checkout(url, key, { items: [{ product, quantity }] }, say);
      intents.save(name, { key, session });
      say("Taking you to the payment page…");
      location.assign(page);
    } catch (error) {
      if (error instanceof Refusal) intents.drop(name);
      say(error.message, true);
      wait(false);
    }
  });
  form.addEventListener("input", showTotal);
  addEventListener("pageshow", ({ persisted }) => {
    wait(false);
    showTotal(); // browsers restore the quantity after a reload
    if (persisted) say(""); // back from the payment page, straight from memory
  });
}

// The order page follows the payment until it is over one way or the other; then the intent is over, too.
async function follow(order) {
  for (let times = 0; times < FOLLOW_TIMES && !("final" in order.dataset); times++) {
    await sleep(FOLLOW_EVERY);
    const answer = await fetch(order.dataset.follow).catch(() => null);
    if (answer?.ok) show(order, await answer.json());
  }
  const over = "final" in order.dataset;
  if (!over) document.getElementById("note").textContent = "Reload this page to see the latest status.";
  for (const { dataset } of order.querySelectorAll("[data-product]")) {
    const name = intents.name(dataset.product, dataset.quantity);
    if (over && intents.read(name)?.session === order.dataset.session) intents.drop(name);
  }
}

function show(order, { status, label, note, final, session, payment_url: paymentUrl }) {
  if (final) order.dataset.final = "";
  order.dataset.session = session ?? "";
  const [badge, text, payment] = ["badge", "note", "payment"].map((id) => document.getElementById(id));
  badge.className = `badge ${status}`;
  badge.textContent = label;
  if (text.textContent !== note) text.textContent = note; // an unchanged note is not read out again
  payment.hidden = !paymentUrl;
  payment.firstElementChild.href = paymentUrl ?? "";
}

const [form, order] = [document.getElementById("buy"), document.getElementById("order")];
if (form) setUpBuying(form);
if (order) follow(order);
