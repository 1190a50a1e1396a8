// The table of sessions: drawn from one event stream, so that every row is live.

import { alertBox, api, call, duration, el, failed, path, stream, t } from "./moorage.js";

const home = document.getElementById("moorage-home");
const body = document.getElementById("moorage-rows");
const user = home.dataset.user;
const soon = 15 * 60 * 1000;
const busy = new Set();
let rows = [];

const actions = {
  open: (row) => link(row.url, "btn-primary", "action.open"),
  watch: (row) => (row.hub === "spawn" ? link(row.pending_url, "btn-outline-primary", "action.watch") : null),
  start: (row) => button(row, "btn-primary", "action.start", async () => {
    await call("POST", path("api", "users", user, ...server(row)));
    window.location = row.pending_url;
  }),
  change: (row) => (row.can.includes("start")
    ? link(row.form, "btn-outline-secondary", "action.change") : link(row.form, "btn-primary", "action.choose")),
  stop: (row) => button(row, "btn-outline-danger", "action.stop", () => {
    if (window.confirm(t("home.confirm_stop", { name: row.name }))) return stop(row);
  }),
  cancel: (row) => button(row, "btn-outline-danger", "action.cancel", () => stop(row)),
  delete: (row) => button(row, "btn-outline-danger", "action.delete", () => {
    if (window.confirm(t("home.confirm_delete", { name: row.name })))
      return call("DELETE", path("api", "users", user, ...server(row)), { remove: true });
  }),
};

function server(row) {
  return row.server ? ["servers", row.server] : ["server"];
}

function stop(row) {
  if (row.hub) return call("DELETE", path("api", "users", user, ...server(row)));
  return call("DELETE", api("users", user, "sessions", row.session));
}

function link(href, kind, key) {
  return el("a", { class: `btn btn-sm ${kind}`, href, role: "button" }, t(key));
}

function button(row, kind, key, act) {
  const mark = `${row.server}/${key}`;
  return el("button", {
    type: "button", class: `btn btn-sm ${kind}`, disabled: busy.has(mark), "aria-label": `${t(key)}: ${row.name}`,
    onclick: async () => {
      busy.add(mark);
      draw();
      try { await act(); } catch (error) { failed(error); }
      busy.delete(mark);
      draw();
    },
  }, t(key));
}

function left(row) {
  if (!row.going || row.state === "queued" || row.state === "waiting") return "";
  return row.ends_at ? duration(row.ends_at - Date.now()) : "";
}

function bar(row) {
  if (row.percent <= 0 || row.percent >= 100 || !row.going) return null;
  return el("div", { class: "progress", role: "progressbar", aria: { valuenow: row.percent, valuemin: 0, valuemax: 100, label: row.text } },
    el("div", { class: `progress-bar bg-${row.tone}`, style: `width: ${row.percent}%` }));
}

/** What the word for the state does not say. */
function more(row) {
  if (row.state === "ready") return row.node ? t("home.on", { node: row.node }) : "";
  return row.text === t(`state.${row.state}`) ? "" : row.text;
}

function rowOf(row) {
  const where = [row.system, row.partition].filter(Boolean).join(" / ");
  const details = row.session
    ? el("a", { href: path("moorage", "users", user, "sessions", row.session), class: "small", "aria-label": `${t("action.details")}: ${row.name}` }, t("action.details"))
    : null;
  return el("tr", { data: { server: row.server, state: row.state } },
    el("th", { scope: "row", data: { label: t("home.name") } }, row.name),
    el("td", { class: "moorage-where", data: { label: t("home.where") } }, where, row.service ? el("div", { class: "moorage-quiet" }, row.service) : null),
    el("td", { class: "moorage-state", data: { label: t("home.state") } },
      el("span", { class: `badge text-bg-${row.tone} me-2` }, t(`state.${row.state}`).split(";")[0]), details, bar(row),
      el("div", { class: "moorage-quiet moorage-short", title: more(row) }, more(row)),
      row.line ? el("div", { class: "moorage-line", title: `${t("home.line")}: ${row.line}` }, row.line) : null),
    el("td", { class: "moorage-left", data: { label: t("home.left") } }, left(row)),
    el("td", { class: "moorage-actions", data: { label: t("home.actions") } }, ...row.can.map((name) => actions[name](row))));
}

function draw() {
  const focused = document.activeElement?.getAttribute("aria-label");
  body.replaceChildren(...(rows.length ? rows.map(rowOf) : [el("tr", {}, el("td", { colspan: 5 }, t("home.empty")))]));
  if (focused) [...body.querySelectorAll("[aria-label]")].find((each) => each.getAttribute("aria-label") === focused)?.focus();
  warn();
}

let warned = "";
function warn() {
  const ending = rows.filter((row) => row.going && row.ends_at && row.ends_at - Date.now() < soon && row.ends_at > Date.now());
  const text = ending.map((row) => t("home.ends_soon", { name: row.name, left: duration(row.ends_at - Date.now()) })).join(" ");
  if (text && text !== warned) alertBox("warning", text);
  if (!text && warned) document.querySelector("#moorage-alerts .alert-warning")?.remove();
  warned = text;
}

function slug(name) {
  const plain = name.normalize("NFKD").replace(/[\u0300-\u036f]/g, "").toLowerCase();
  return plain.replace(/[^a-z0-9]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 30).replace(/-+$/, "");
}

document.getElementById("moorage-new")?.addEventListener("submit", (event) => {
  event.preventDefault();
  const name = document.getElementById("moorage-new-name").value.trim();
  const problem = document.getElementById("moorage-new-problem");
  const server = slug(name);
  if (!server) problem.textContent = t("home.bad_name");
  else if (rows.some((row) => row.server === server)) problem.textContent = t("home.name_taken");
  else window.location = `${path("spawn", user, server)}?display_name=${encodeURIComponent(name)}`;
});

/** A default session that was never used is no news to somebody who has others. */
function shown(all) {
  return all.filter((row) => row.server || row.hub || row.state !== "none" || all.length === 1);
}

let lost = false;
stream(api("users", user, "events"), (message) => { rows = shown(message.rows); draw(); }, (now) => {
  if (now && !lost) alertBox("secondary", t("home.offline"));
  if (!now && lost) document.getElementById("moorage-alerts").replaceChildren();
  lost = now;
});
setInterval(draw, 30000);
