// The administrator's page: one stream, drawn into tables.

import { alertBox, api, call, duration, el, failed, language, path, stream, t, time } from "./moorage.js";

let state = { sessions: [], systems: [], tunnels: [], residue: [], audit: [] };
const at = (id) => document.getElementById(id);

async function act(action, subject, question) {
  if (question && !window.confirm(question)) return;
  try {
    const answer = await call("POST", api("admin", "actions", action), { subject });
    alertBox("success", answer.outcome || t("admin.done"));
  } catch (error) { failed(error); }
}

function button(key, label, onclick, kind = "btn-outline-secondary") {
  return el("button", { type: "button", class: `btn btn-sm ${kind} me-1`, "aria-label": label, onclick }, t(key));
}

/** A button that does one action to a system. */
function action(name, system) {
  return button(`admin.${name}`, `${t(`admin.${name}`)}: ${system}`, () => act(name, system));
}

function table(id, label, heads, rows) {
  const body = rows.length ? rows : [el("tr", {}, el("td", { colspan: heads.length, class: "text-body-secondary" }, t("admin.nothing")))];
  // A table that is wider than the screen scrolls, also by keyboard.
  at(id).tabIndex = 0;
  at(id).replaceChildren(el("table", { class: "table table-sm align-middle" }, el("caption", { class: "visually-hidden" }, label),
    el("thead", {}, el("tr", {}, ...heads.map((head) => el("th", { scope: "col" }, head)))), el("tbody", {}, ...body)));
}

const cell = (...content) => el("td", {}, ...content.map((each) => (each === null || each === undefined ? "" : each)));

/** When the system last told what its jobs do; what it said instead, if it failed since. */
function observed(system) {
  const age = system.observed_s === null || system.observed_s === undefined ? "–" : t("admin.ago", { age: seconds(system.observed_s) });
  return system.failed ? el("span", {}, age, el("div", { class: "moorage-quiet text-danger" }, system.failed)) : age;
}

function seconds(number) {
  return number < 120 ? `${Math.round(number)} s` : duration(number * 1000);
}

/** The share of calls that failed since this Hub was started, and behind it what was called how often. */
function failures(outcomes) {
  const entries = Object.entries(outcomes).sort();
  const bad = entries.filter(([name]) => name.endsWith(" failed")).reduce((sum, [, count]) => sum + count, 0);
  const all = entries.filter(([name]) => !name.endsWith(" failed")).reduce((sum, [, count]) => sum + count, 0);
  if (!all) return "–";
  const share = new Intl.NumberFormat(language, { style: "percent", maximumFractionDigits: 1 }).format(bad / all);
  return el("details", {}, el("summary", {}, t("admin.share", { share, bad, all })),
    el("div", { class: "moorage-quiet" }, entries.map(([name, count]) => `${name} ${count}`).join(", ")));
}

function drawSystems() {
  table("admin-systems", t("admin.systems"),
    [t("home.where"), t("admin.kind"), t("admin.sessions"), t("admin.breaker"), t("admin.observed"), t("admin.calls"), t("admin.failures"), t("home.actions")],
    state.systems.map((system) => {
      const marks = [system.drained && t("admin.drained"), system.maintenance && t("admin.in_maintenance")].filter(Boolean);
      const count = state.sessions.filter((session) => session.system === system.name).length;
      return el("tr", { data: { system: system.name } },
        el("th", { scope: "row", title: system.closed }, system.name, ...marks.map((mark) => el("span", { class: "badge text-bg-warning ms-1" }, mark))),
        cell(system.kind), cell(String(count)), cell(system.breaker && el("span", { class: `badge text-bg-${system.breaker === "closed" ? "success" : "danger"}` }, t(`breaker.${system.breaker}`))),
        cell(observed(system)), cell(`${system.calls ?? 0} / ${system.waiting ?? 0}`), cell(failures(system.outcomes ?? {})),
        el("td", { class: "moorage-actions" }, action(system.drained ? "undrain" : "drain", system.name), action(system.maintenance ? "maintenance_off" : "maintenance_on", system.name),
          button("admin.stop_all", `${t("admin.stop_all")}: ${system.name}`, () => act("stop_all", system.name, t("admin.confirm_stop_all", { system: system.name })), "btn-outline-danger")));
    }));
}

function drawSessions() {
  const word = at("admin-search").value.trim().toLowerCase();
  const [system, wanted] = [at("admin-system").value, at("admin-state").value];
  const shown = state.sessions.filter((row) => (!system || row.system === system) && (!wanted || row.state === wanted)
    && (!word || [row.owner, row.server, row.session, row.system, row.node, row.text].some((each) => String(each).toLowerCase().includes(word))));
  at("admin-count").textContent = t("admin.count", { shown: shown.length, all: state.sessions.length + (state.more ?? 0) });
  table("admin-sessions", t("admin.sessions"),
    [t("admin.owner"), t("admin.server"), t("home.where"), t("home.state"), t("session.asked"), t("home.left"), t("home.actions")],
    shown.slice(0, 300).map((row) => el("tr", { data: { session: row.session } }, cell(row.owner), cell(row.server || t("home.default")),
      cell([row.system, row.partition].filter(Boolean).join(" / ")),
      cell(el("span", { class: `badge text-bg-${row.tone}` }, t(`state.${row.state}`).split(";")[0]), el("div", { class: "moorage-quiet" }, row.text)),
      cell(time(row.asked_at)), cell(row.ends_at ? duration(row.ends_at - Date.now()) : ""),
      cell(el("a", { class: "btn btn-sm btn-outline-secondary me-1", href: path("moorage", "users", row.owner, "sessions", row.session), "aria-label": `${t("admin.timeline")}: ${row.owner}` }, t("admin.timeline")),
        row.going ? button("admin.stop", `${t("admin.stop")}: ${row.owner} ${row.server}`, () => act("stop", row.session, t("admin.confirm_stop", { owner: row.owner })), "btn-outline-danger") : ""))));
}

function choices(select, names) {
  const have = new Set([...select.options].map((option) => option.value));
  for (const name of names) if (!have.has(name)) select.append(el("option", { value: name }, select.id === "admin-state" ? t(`state.${name}`).split(";")[0] : name));
}

function draw() {
  const open = new Set([...document.querySelectorAll("#admin-systems details[open]")].map((each) => each.closest("tr").dataset.system));
  redraw();
  for (const name of open) document.querySelector(`#admin-systems tr[data-system="${CSS.escape(name)}"] details`)?.setAttribute("open", "");
}

function redraw() {
  choices(at("admin-system"), new Set(state.systems.map((each) => each.name)));
  choices(at("admin-state"), new Set(state.sessions.map((each) => each.state)));
  drawSystems();
  drawSessions();
  const owners = new Map(state.sessions.map((row) => [row.session, row]));
  table("admin-tunnels", t("admin.tunnels"), [t("admin.owner"), t("admin.server"), t("home.where"), t("admin.age"), t("home.state"), t("admin.note")],
    state.tunnels.map((each) => {
      const row = owners.get(each.session);
      return el("tr", {}, cell(row ? row.owner : el("code", {}, each.session)), cell(row && (row.server || t("home.default"))), cell(row?.system),
        cell(each.good_age_s === null ? "–" : t("admin.ago", { age: seconds(each.good_age_s) })),
        cell(el("span", { class: `badge text-bg-${each.lost ? "danger" : "success"}` }, t(each.lost ? "admin.lost" : "admin.up"))), cell(each.note));
    }));
  table("admin-residue", t("admin.residue"), [t("admin.owner"), t("home.where"), t("admin.kind"), t("admin.job"), t("admin.since"), t("admin.tries")],
    state.residue.map((each) => el("tr", {}, cell(each.owner), cell(each.system), cell(t(`left.${each.kind}`)), cell(each.job), cell(time(each.since)), cell(String(each.tries)))));
  table("admin-audit", t("admin.audit"), [t("session.when"), t("admin.who"), t("admin.action"), t("admin.subject"), t("admin.outcome")],
    state.audit.map((each) => el("tr", {}, cell(time(each.at)), cell(each.who), cell(each.action), cell(each.subject), cell(each.outcome))));
}

for (const id of ["admin-search", "admin-system", "admin-state"]) at(id).addEventListener("input", drawSessions);
at("admin-reload").addEventListener("click", () => act("reload", ""));
let held = false;  // a table that is redrawn under the pointer swallows clicks
document.addEventListener("pointerdown", () => { held = true; });
document.addEventListener("pointerup", () => setTimeout(() => { held = false; draw(); }, 50));
stream(api("admin", "events"), (message) => { state = message; if (!held) draw(); });
