// One session: facts, history, log.

import { data, el, t, time } from "./moorage.js";

const { row, steps, user } = data();
document.getElementById("session-text").textContent = row.text;
const facts = [
  [t("session.owner"), user], [t("session.id"), row.session], [t("session.asked"), time(row.asked_at)],
  [t("form.partition"), row.partition], [t("session.job_node"), row.node],
];
document.getElementById("session-facts").replaceChildren(...facts.filter(([, value]) => value).flatMap(([name, value]) => [
  el("dt", { class: "col-sm-3" }, name), el("dd", { class: "col-sm-9" }, value),
]));
document.getElementById("session-steps").replaceChildren(...steps.map((step) => el("tr", {},
  el("td", {}, el("time", { datetime: new Date(step.at).toISOString() }, time(step.at))), el("td", {}, el("code", {}, step.event)), el("td", {}, step.text))));
document.getElementById("session-log").textContent = row.log || t("session.no_log");
