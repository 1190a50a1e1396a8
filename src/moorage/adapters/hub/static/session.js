// One session: facts, log, history; and the sessions that the same server had before.

import { api, call, condensed, data, el, path, t, time } from "./moorage.js";

const { user, ...first } = data();
const LOOK_MS = 5000;
const at = (id) => document.getElementById(id);
let now = first;

function draw() {
  const { row, report } = now;
  at("session-name").textContent = row.server || t("home.default");
  at("session-badge").className = `badge text-bg-${row.tone}`;
  at("session-badge").textContent = t(`state.${row.state}`).split(";")[0];
  at("session-text").textContent = row.text;
  const facts = [
    [t("session.owner"), user], [t("form.service"), row.service], [t("form.system"), [row.system, row.partition].filter(Boolean).join(" / ")],
    [t("session.job_node"), row.node], [t("session.asked"), time(row.asked_at)], [t("session.ends"), time(row.ends_at)], [t("session.id"), row.session],
  ];
  at("session-facts").replaceChildren(...facts.filter(([, value]) => value).flatMap(([name, value]) => [
    el("dt", { class: "col-sm-3" }, name), el("dd", { class: "col-sm-9" }, value),
  ]));
  const log = row.log || report.log || t(row.going ? "session.no_log_yet" : "session.no_log");
  const box = at("session-log");
  if (box.textContent !== log) { box.textContent = log; box.scrollTop = box.scrollHeight; }
  drawSteps();
}

function drawSteps() {
  const every = at("session-every").checked;
  const shown = every ? now.steps.map((step) => ({ ...step, times: 1 })) : condensed(now.steps);
  at("session-steps").replaceChildren(...shown.map((step) => el("tr", {},
    el("td", {}, el("time", { datetime: new Date(step.at).toISOString() }, time(step.at))),
    el("td", {}, step.text, step.times > 1 ? el("span", { class: "moorage-quiet" }, ` ${t("session.times", { times: step.times })}`) : null),
    el("td", {}, el("code", {}, step.event)))));
}

async function look() {
  if (document.hidden || !now.row.going) return;
  try {
    now = await call("GET", api("users", user, "sessions", now.row.session));
    draw();
  } catch { /* the Hub is being restarted, or the page is closed: the next look tells */ }
}

async function drawEarlier() {
  const { starts } = await call("GET", api("users", user, "servers", now.row.server, "starts"));
  const others = starts.filter((each) => each.session !== now.row.session);
  at("session-earlier").hidden = !others.length;
  at("session-earlier").querySelector("ul").replaceChildren(...others.map((each) => el("li", { class: "mb-1" },
    el("a", { href: path("moorage", "users", user, "sessions", each.session) }, time(each.asked_at)), " ",
    el("span", { class: `badge text-bg-${each.tone}` }, t(`state.${each.state}`).split(";")[0]), " ",
    el("span", { class: "moorage-quiet" }, `${each.system} / ${each.service}: ${each.text}`))));
}

at("session-every").addEventListener("input", drawSteps);
draw();
drawEarlier().catch(() => {});
setInterval(look, LOOK_MS);
