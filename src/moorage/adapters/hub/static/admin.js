// The administrator's page: one stream, drawn into tables.

import { alertBox, api, call, duration, el, failed, path, stream, t, time } from "./moorage.js";

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

function drawSystems() {
  table("admin-systems", t("admin.systems"),
    [t("home.where"), t("admin.kind"), t("admin.sessions"), t("admin.breaker"), t("admin.calls"), t("admin.waiting"), t("admin.outcomes"), t("home.actions")],
    state.systems.map((system) => {
      const marks = [system.drained && t("admin.drained"), system.maintenance && t("admin.in_maintenance")].filter(Boolean);
      const count = state.sessions.filter((session) => session.system === system.name).length;
      return el("tr", { data: { system: system.name } },
        el("th", { scope: "row", title: system.closed }, system.name, ...marks.map((mark) => el("span", { class: "badge text-bg-warning ms-1" }, mark))),
        cell(system.kind), cell(String(count)), cell(system.breaker && el("span", { class: `badge text-bg-${system.breaker === "closed" ? "success" : "danger"}` }, system.breaker)),
        cell(system.calls), cell(system.waiting), cell(el("span", { class: "moorage-quiet" }, Object.entries(system.outcomes ?? {}).map(([name, count]) => `${name} ${count}`).join(", "))),
        cell(button("admin.stop_all", `${t("admin.stop_all")}: ${system.name}`, () => act("stop_all", system.name, t("admin.confirm_stop_all", { system: system.name })), "btn-outline-danger"),
          action(system.drained ? "undrain" : "drain", system.name), action(system.maintenance ? "maintenance_off" : "maintenance_on", system.name)));
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
  choices(at("admin-system"), new Set(state.systems.map((each) => each.name)));
  choices(at("admin-state"), new Set(state.sessions.map((each) => each.state)));
  drawSystems();
  drawSessions();
  table("admin-tunnels", t("admin.tunnels"), [t("session.id"), t("admin.age"), t("home.state"), t("admin.note")],
    state.tunnels.map((each) => el("tr", {}, cell(el("code", {}, each.session)), cell(each.good_age_s === null ? "" : `${Math.round(each.good_age_s)} s`),
      cell(el("span", { class: `badge text-bg-${each.lost ? "danger" : "success"}` }, each.lost ? "lost" : "up")), cell(each.note))));
  table("admin-residue", t("admin.residue"), [t("admin.owner"), t("home.where"), t("admin.kind"), t("admin.job"), t("admin.since"), t("admin.tries")],
    state.residue.map((each) => el("tr", {}, cell(each.owner), cell(each.system), cell(each.kind), cell(each.job), cell(time(each.since)), cell(String(each.tries)))));
  table("admin-audit", t("admin.audit"), [t("session.when"), t("admin.who"), t("admin.action"), t("admin.subject"), t("admin.outcome")],
    state.audit.map((each) => el("tr", {}, cell(time(each.at)), cell(each.who), cell(each.action), cell(each.subject), cell(each.outcome))));
}

for (const id of ["admin-search", "admin-system", "admin-state"]) at(id).addEventListener("input", drawSessions);
at("admin-reload").addEventListener("click", () => act("reload", ""));
let held = false;  // a table that is redrawn under the pointer swallows clicks
document.addEventListener("pointerdown", () => { held = true; });
document.addEventListener("pointerup", () => setTimeout(() => { held = false; draw(); }, 50));
stream(api("admin", "events"), (message) => { state = message; if (!held) draw(); });
