// What the shop adds to the script that comes with flask_idempotent: its own words, the total, and a page that follows
// the payment. Everything works without it.

const FOLLOW_FIRST = 500; // ms after which a payment is looked for, then twice as long each time …
const FOLLOW_EVERY = 3_000; // … up to this
const FOLLOW_TIMES = 200;

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function setUpBuying(form) {
  const { price, currency } = form.dataset;
  const total = document.getElementById("total");
  const money = new Intl.NumberFormat("en", { style: "currency", currency });

  const showTotal = () => {
    total.textContent = ` · ${money.format(((form.quantity.valueAsNumber || 1) * price) / 100)}`;
    total.hidden = false;
  };
  const say = (type, words) => form.addEventListener(`idempotent:${type}`, ({ detail }) => words(detail));

  form.addEventListener("input", showTotal);
  addEventListener("pageshow", showTotal); // browsers restore the quantity after a reload
  say("start", (detail) => (detail.message = "One moment, we are preparing your order…"));
  say("done", (detail) => (detail.message = "Taking you to the payment page…"));
  say("recall", (detail) => (detail.message = "You sent this order, but its answer got lost. Press Buy: it stays the same order."));
  say("retry", (detail) => {
    const why = { 0: "The connection was lost", 409: "Your order is being processed" }[detail.status] ?? "The shop is busy";
    const when = `in ${Math.max(Math.round(detail.wait / 1000), 1)} s (${detail.attempt} of ${detail.tries})`;
    detail.message = `${why}. Trying again ${when}; you will not be charged twice.`;
  });
  say("fail", (detail) => {
    if (!detail.ended) detail.message = "We could not finish this right now. Press Buy to try again: it stays the same order.";
  });
}

// The order page follows the payment until it is over one way or the other; then the intent to buy is over, too.
async function follow(order) {
  for (let times = 0; times < FOLLOW_TIMES && !("final" in order.dataset); times++) {
    await sleep(Math.min(FOLLOW_FIRST * 2 ** times, FOLLOW_EVERY));
    const answer = await fetch(order.dataset.follow).catch(() => null);
    if (answer?.ok) await show(order, await answer.json());
  }
  const { session } = order.dataset;
  if (!("final" in order.dataset)) document.getElementById("note").textContent = "Reload this page to see the latest status.";
  else if (session) Idempotent.end(({ location }) => location?.includes(session)); // it led to this order's payment page
}

async function show(order, { status, label, note, final, refundable, session, payment_url: paymentUrl }) {
  order.dataset.session = session ?? "";
  const [badge, text, payment] = ["badge", "note", "payment"].map((id) => document.getElementById(id));
  badge.className = `badge ${status}`;
  badge.textContent = label;
  if (text.textContent !== note) text.textContent = note; // an unchanged note is not read out again
  payment.hidden = !paymentUrl;
  payment.firstElementChild.href = paymentUrl ?? "";
  if (refundable) await offerRefund(order);
  else document.getElementById("refund")?.remove();
  if (final) order.dataset.final = "";
}

// An order that has been paid meanwhile can be sent back: the form for it, with a key of its own, is in the page anew.
async function offerRefund(order) {
  const answer = await fetch(location.href).catch(() => null);
  const page = new DOMParser().parseFromString((await answer?.text()) ?? "", "text/html");
  const refund = page.getElementById("refund");
  if (refund && !document.getElementById("refund")) order.querySelector("table").after(refund);
}

const [form, order] = [document.getElementById("buy"), document.getElementById("order")];
if (form) setUpBuying(form);
if (order) follow(order);
