// The progress page. It is a view of the session's history, so a reload shows the same.

import { api, call, condensed, el, failed, path, stream, t, time } from "./moorage.js";

const page = document.getElementById("moorage-progress");
const { user, server } = page.dataset;
const bar = document.getElementById("progress-bar");
const message = document.getElementById("progress-message");
const log = document.getElementById("progress-log");
const options = document.getElementById("moorage-options");
let row = null;
let leaving = false; // after a cancel we go home; a reload at the same moment would win over that

function show({ rows, steps, report }) {
  row = rows.find((each) => each.server === server);
  if (!row) { window.location = path("home"); return; }
  if (message.textContent !== row.text) message.textContent = row.text;
  if (page.dataset.stopping) { if (row.hub !== "stop") window.location = path("home"); return; }
  bar.style.width = `${row.percent}%`;
  bar.setAttribute("aria-valuenow", row.percent);
  bar.setAttribute("aria-valuetext", t("progress.percent", { percent: row.percent }));
  bar.textContent = `${row.percent} %`;
  drawSteps(steps, report?.steps ?? []);
  drawLog(report?.log ?? "");
  drawOptions();
  // Ready, or over: the Hub's own page for either is at this very address.
  if (!leaving && (row.hub === "ready" || (!row.hub && !row.going))) window.location.reload();
  if (row.hub === "stop") cancelling();
}

function cancelling() {
  message.textContent = t("progress.cancelling");
  document.getElementById("progress-leave")?.remove(); // it says that the session goes on
}

function entry(step) {
  return el("li", {}, el("time", { datetime: new Date(step.at).toISOString() }, time(step.at)), ` ${step.text}`);
}

/** What the machine saw, and below the newest of it what the launcher says of its node. */
function drawSteps(steps, boot) {
  const entries = condensed(steps).map(entry);
  if (boot.length) entries.at(-1)?.append(el("ol", { class: "moorage-steps", "aria-label": t("progress.boot") }, ...boot.map(entry)));
  log.replaceChildren(...entries);
}

function drawLog(text) {
  const box = document.getElementById("progress-tail");
  box.hidden = !text;
  const shown = box.querySelector("pre");
  if (shown.textContent === text) return;
  shown.textContent = text;
  shown.scrollTop = shown.scrollHeight;
}

function drawOptions() {
  options.replaceChildren(...Object.entries(row.options).flatMap(([name, value]) => [
    el("dt", { class: "col-sm-4" }, t(`form.${name}`)), el("dd", { class: "col-sm-8" }, Array.isArray(value) ? value.join(", ") : String(value)),
  ]));
}

document.getElementById("moorage-cancel")?.addEventListener("click", async (event) => {
  event.target.disabled = leaving = true;
  cancelling();
  try {
    if (row?.hub) await call("DELETE", path("api", "users", user, ...(server ? ["servers", server] : ["server"])));
    else if (row?.session) await call("DELETE", api("users", user, "sessions", row.session));
    window.location = path("home");
  } catch (error) {
    failed(error);
    event.target.disabled = leaving = false;
  }
});

stream(`${api("users", user, "events")}?server=${encodeURIComponent(server)}`, show);
