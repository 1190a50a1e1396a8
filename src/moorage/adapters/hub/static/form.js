// The form: fields that depend on those before them, drawn from the choice tree of the user.
// The server checks every field against the same tree (core/catalog.py, `validate`): this only helps to choose.

import { alertBox, api, base, call, data, duration, el, failed, t, time } from "./moorage.js";

const { tree, last, presets: kept, user, name: known } = data();
const frame = document.getElementById("moorage-form");
const start = document.getElementById("moorage-start");
const RESOURCES = ["nodes", "cores", "memory_mib", "gpus", "walltime_s"];
const LISTS = ["kernels", "extensions"];
const LOOK_MS = 20000;
let loads = {};
let loadsAt = 0;
let presets = kept;
let choice = {};
let because = "";

// What may be had ---------------------------------------------------------------------------------------------------

const open = (list) => list.filter((each) => !each.why);
const named = (list, name) => list.find((each) => each.name === name);

/** The alternative that is wished for if it may be had, else the proposed one. */
function one(list, wish, preferred = () => false) {
  const found = named(list, wish);
  if (found && !found.why) return found;
  return open(list).find(preferred) ?? open(list)[0] ?? null;
}

/** Every field, nearest to what is wished for; also the lists from which each was taken. `seen`: what could be ticked so far. */
function fit(wish, seen = {}) {
  const now = { lists: {}, ranges: {}, seen: { ...seen } };
  const take = (name, list, preferred) => {
    now.lists[name] = list;
    const found = one(list, wish[name], preferred);
    now[name] = found?.name ?? "";
    return found;
  };
  const service = take("service", tree.services, (each) => each.preferred);
  const places = service?.places ?? [];
  const systems = places.map((place) => ({ ...named(tree.systems, place.name), why: place.why }));
  const system = take("system", systems);
  const place = named(places, system?.name);
  const account = take("account", system?.accounts ?? []);
  const project = take("project", account?.projects ?? []);
  const partition = take("partition", narrowed(project ? tree.partitions[project.partitions] : [], place?.partitions));
  now.service_ = service; now.system_ = system; now.partition_ = partition;
  now.lists.reservation = partition?.reservations ?? [];
  const reservation = named(now.lists.reservation, wish.reservation);
  now.reservation = reservation && !reservation.why ? reservation.name : "";
  for (const name of RESOURCES) {
    const range = partition?.resources[name];
    now.ranges[name] = range;
    if (!range) continue;
    const wished = Number(wish[name]);
    const fits = wish[name] !== undefined && wish[name] !== "" && Number.isInteger(wished) && wished >= range[0] && wished <= range[1];
    now[name] = fits ? wished : range[2];
  }
  for (const name of LISTS) {
    now.lists[name] = place ? tree.extras[place[name]] : [];
    const can = open(now.lists[name]);
    const wished = Array.isArray(wish[name]) ? wish[name] : null;
    // Where nothing can be ticked the wish is kept for the next service; what was not there to tick is as proposed.
    const asked = (each) => wished && (!seen[name] || seen[name].includes(each.name));
    if (can.length) now.seen[name] = [...(seen[name] ?? []), ...can.map((each) => each.name)];
    now[name] = can.length ? can.filter((each) => (asked(each) ? wished.includes(each.name) : each.ticked)).map((each) => each.name) : wished;
  }
  return now;
}

function narrowed(partitions, only) {
  if (!only) return partitions;
  return partitions.map((each) => (each.why || only.includes(each.name) ? each : { ...each, why: { text: t("lack.not_here") } }));
}

// Drawing -----------------------------------------------------------------------------------------------------------

function why(each) {
  if (!each.why) return "";
  const until = each.why.until ? ` (${t("form.until", { until: time(each.why.until) })})` : "";
  return t("form.unavailable", { why: each.why.text + until });
}

function label(each) {
  const shown = each.description && each.name ? `${each.name} – ${each.description}` : each.name || each.description || "–";
  return each.why ? `${shown} (${why(each)})` : shown;
}

/** Services, kernels and extensions are known by what they are; their names are for files. */
function plain(each) {
  const version = each.version ? ` – ${t("form.version", { version: each.version })}` : "";
  const shown = `${each.description || each.name}${version}${each.deprecated ? ` – ${t("form.old")}` : ""}`;
  return each.why ? `${shown} (${why(each)})` : shown;
}

function options(list, chosen, shown = label) {
  return list.map((each) => el("option", { value: each.name, disabled: Boolean(each.why), selected: each.name === chosen }, shown(each)));
}

function select(name, list, chosen, help = []) {
  const id = `moorage-${name}`;
  const groups = name !== "partition" ? options(list, chosen, name === "service" ? plain : label) : [
    group("form.login", list.filter((each) => each.login), chosen), group("form.batch", list.filter((each) => !each.login), chosen),
  ].filter(Boolean);
  const notes = [...help];
  if (list.length === 1 && !list[0].why) notes.push(t("form.only"));
  return field(name, id, el("select", { class: "form-select", id, name, "aria-describedby": `${id}-help`, onchange: changed }, ...groups), notes);
}

function group(key, list, chosen) {
  return list.length ? el("optgroup", { label: t(key) }, ...options(list, chosen)) : null;
}

function field(name, id, control, notes = []) {
  const mark = marked.has(name);
  return el("div", { class: `mb-3 moorage-field${mark ? " moorage-changed" : ""}`, data: { field: name } },
    el("label", { class: "form-label", for: id, data: { mark: t("form.changed_mark") } }, t(`form.${name}`)), control,
    el("div", { class: "form-text", id: `${id}-help` }, ...notes.filter(Boolean).map((note) => el("div", {}, note)),
      mark ? el("div", {}, t("form.changed", { because: t(`form.${because}`) })) : null));
}

/** How a resource is shown: in which unit, and how many of ours one of it is. */
function unit(name, range) {
  if (name === "walltime_s") return range[0] % 60 === 0 && range[1] >= 60 ? [60, t("form.minutes")] : [1, "s"];
  if (name === "memory_mib") return range[0] % 1024 === 0 && range[1] % 1024 === 0 ? [1024, t("form.gib")] : [1, t("form.mib")];
  return [1, ""];
}

function amount(name, range) {
  const id = `moorage-${name}`;
  const [factor, word] = unit(name, range);
  const [least, most] = [Math.ceil(range[0] / factor), Math.floor(range[1] / factor)];
  const value = Math.round(choice[name] / factor);
  const problem = el("div", { class: "invalid-feedback", id: `${id}-problem`, role: "alert" });
  const hidden = el("input", { type: "hidden", name, value: choice[name] });
  const spoken = el("div", { class: "form-text", "aria-live": "polite" });
  const speak = () => { spoken.textContent = name === "walltime_s" && choice[name] >= 3600 ? `= ${duration(choice[name] * 1000)}` : ""; };
  const input = el("input", {
    class: "form-control", id, type: "number", inputmode: "numeric", min: least, max: most, step: 1, value, required: true,
    readonly: least === most, "aria-describedby": `${id}-help ${id}-problem`,
    oninput: () => {
      const number = Number(input.value);
      const fine = input.value !== "" && Number.isInteger(number) && number >= least && number <= most;
      input.classList.toggle("is-invalid", !fine);
      input.setAttribute("aria-invalid", String(!fine));
      problem.textContent = fine ? "" : t("form.out_of_range", { least, most });
      if (fine) hidden.value = choice[name] = Math.min(Math.max(number * factor, range[0]), range[1]);
      if (fine) speak(); else spoken.textContent = "";
    },
  });
  speak();
  const shown = most >= 8760 * 60 && name === "walltime_s" ? "" : least === most ? t("form.exactly", { least }) : t("form.range", { least, most });
  const box = word ? el("div", { class: "input-group has-validation" }, input, el("span", { class: "input-group-text" }, word), problem) : el("div", {}, input, problem);
  return el("div", { class: "col-sm-6 col-md-4" }, field(name, id, el("div", {}, box, hidden, spoken), [shown]));
}

function ticks(name, list) {
  if (!list.length) return null;
  return el("fieldset", { class: "mb-3 moorage-field", data: { field: name } }, el("legend", { class: "h6" }, t(`form.${name}`)),
    ...list.map((each) => {
      const id = `moorage-${name}-${each.name}`;
      return el("div", { class: "form-check" },
        el("input", {
          class: "form-check-input", type: "checkbox", id, name: `${name}[]`, value: each.name, disabled: Boolean(each.why), checked: choice[name].includes(each.name),
          onchange: (event) => { choice[name] = event.target.checked ? [...choice[name], each.name] : choice[name].filter((one) => one !== each.name); },
        }), el("label", { class: "form-check-label", for: id }, plain(each)));
    }),
    // An empty value says that the list was there: ticking nothing is a choice.
    el("input", { type: "hidden", name: `${name}[]`, value: "" }));
}

function notice(text, kind = "info") {
  return text ? el("div", { class: `alert alert-${kind} py-2` }, text) : null;
}

let marked = new Set();
const said = el("div", { class: "visually-hidden", "aria-live": "polite", id: "moorage-said" });
frame.after(said);

function draw() {
  const { lists, ranges, service_, system_ } = choice;
  const resources = RESOURCES.filter((name) => ranges[name]).map((name) => amount(name, ranges[name]));
  const planned = (system_?.planned ?? []).slice(0, 3).map((each) => notice(`${t("form.planned", { begins: time(each.begins), ends: time(each.ends) })} ${each.notice}`, "warning"));
  const nothing = !choice.partition_;
  const reservations = [{ name: "", description: t("form.no_reservation") }, ...lists.reservation];
  const several = (name) => lists[name].length > 1 || Boolean(lists[name][0]?.name);
  const children = [
    presetBar(), el("div", { id: "moorage-alerts", role: "status", "aria-live": "polite" }), notice(tree.notice),
    nothing ? notice(t("form.nothing"), "danger") : null,
    select("service", lists.service, choice.service), notice(service_?.deprecated && t("form.deprecated", { why: service_.deprecated }), "warning"),
    select("system", lists.system, choice.system), notice(system_?.notice), ...planned,
    several("account") ? select("account", lists.account, choice.account) : null,
    several("project") ? select("project", lists.project, choice.project) : null,
    several("partition") ? select("partition", lists.partition, choice.partition, [el("span", { id: "moorage-load" })]) : null,
    resources.length ? el("fieldset", {}, el("legend", { class: "h5" }, t("form.resources")), el("div", { class: "row" }, ...resources)) : null,
    lists.reservation.length ? select("reservation", reservations, choice.reservation) : null,
    ticks("kernels", lists.kernels), ticks("extensions", lists.extensions),
  ];
  frame.replaceChildren(...children.filter(Boolean));
  drawLoad();
  start.disabled = nothing;
}

// How full it is ------------------------------------------------------------------------------------------------------

function loadOf(partition) {
  return loads[choice.system]?.partitions[partition];
}

/** The load of the chosen partition with its age, and that of the others in the list. */
function drawLoad() {
  const place = document.getElementById("moorage-load");
  if (!place) return;
  const load = loadOf(choice.partition);
  const age = loads[choice.system] ? loads[choice.system].age_s * 1000 + Date.now() - loadsAt : 0;
  place.textContent = !load ? "" : load.up
    ? t("form.load", { free: load.free, nodes: load.nodes, age: age < 120000 ? `${Math.round(age / 1000)} s` : duration(age) }) : t("form.load_down");
  for (const option of document.querySelectorAll("#moorage-partition option")) {
    const other = loadOf(option.value);
    const each = named(choice.lists.partition, option.value);
    if (other && each) option.textContent = `${label(each)} · ${other.up ? t("form.load_short", { free: other.free, nodes: other.nodes }) : t("form.load_down")}`;
  }
}

async function look() {
  if (document.hidden) return;
  try {
    loads = await call("GET", api("users", user, "load"));
    loadsAt = Date.now();
    drawLoad();
  } catch { /* the form works without */ }
}

function changed(event) {
  const name = event.target.name;
  const before = choice;
  choice = fit({ ...before, [name]: event.target.value }, before.seen);
  because = name;
  marked = new Set(["service", "system", "account", "project", "partition", "reservation", ...RESOURCES].filter(
    (each) => each !== name && before[each] !== undefined && before[each] !== "" && String(before[each]) !== String(choice[each] ?? "") && (choice.ranges[each] || choice.lists[each])));
  draw();
  document.getElementById(`moorage-${name}`)?.focus();
  // The fields carry marks; this is for those who cannot see them.
  said.textContent = [...marked].map((each) => `${t(`form.${each}`)}: ${t("form.changed", { because: t(`form.${because}`) })}`).join(". ");
}

// Presets and links --------------------------------------------------------------------------------------------------

function wanted() {
  const lists = LISTS.filter((name) => choice.lists[name].length);
  const names = ["service", "system", "account", "project", "partition", "reservation", ...RESOURCES.filter((name) => choice.ranges[name]), ...lists];
  return Object.fromEntries(names.filter((name) => choice[name] !== "" && choice[name] !== undefined).map((name) => [name, choice[name]]));
}

function presetBar() {
  const names = Object.keys(presets).sort();
  const chooser = el("select", { class: "form-select", id: "moorage-preset", "aria-label": t("form.presets"), onchange: (event) => {
    if (event.target.value) { use(presets[event.target.value]); document.getElementById("moorage-preset").value = event.target.value; }
  } }, el("option", { value: "" }, t("form.preset_choose")), ...names.map((name) => el("option", { value: name }, name)));
  const name = el("input", { class: "form-control", id: "moorage-preset-name", maxlength: 60, placeholder: t("form.preset_name"), "aria-label": t("form.preset_name") });
  const save = () => keep(async () => {
    const wish = name.value.trim();
    presets = (await call("POST", api("users", user, "presets"), { name: wish, options: wanted() })).presets;
    draw();
    document.getElementById("moorage-preset").value = wish;
    alertBox("success", t("form.preset_saved", { name: wish }));
  });
  const remove = () => keep(async () => {
    const wish = document.getElementById("moorage-preset").value;
    if (!wish) return;
    presets = (await call("DELETE", `${api("users", user, "presets")}?name=${encodeURIComponent(wish)}`)).presets;
    draw();
    alertBox("success", t("form.preset_deleted", { name: wish }));
  });
  const link = el("button", { type: "button", class: "btn btn-outline-secondary", id: "moorage-link", onclick: copy }, t("form.link"));
  return el("details", { class: "mb-3", open: names.length > 0 }, el("summary", {}, t("form.presets")),
    el("div", { class: "row g-2 mt-1" },
      names.length ? el("div", { class: "col-md" }, el("div", { class: "input-group" }, chooser, el("button", { type: "button", class: "btn btn-outline-secondary", onclick: remove }, t("form.delete")))) : null,
      el("div", { class: "col-md" }, el("div", { class: "input-group" }, name, el("button", { type: "button", class: "btn btn-outline-secondary", onclick: save }, t("form.save")))),
      el("div", { class: "col-md-auto" }, link)));
}

/** A link for everybody: it fills in the form of whoever follows it, and starts nothing. */
async function copy() {
  const query = new URLSearchParams(Object.entries(wanted()).map(([key, value]) => [key, String(value)]));
  const address = new URL(`${base}spawn?${query}`, window.location.href).href;
  try {
    await navigator.clipboard.writeText(address);
    alertBox("success", t("form.link_copied"));
  } catch {
    alertBox("info", address); // the browser does not let pages copy: to be copied by hand
  }
}

async function keep(work) {
  try { await work(); } catch (error) { failed(error); }
}

function use(wish) {
  marked = new Set();
  choice = fit(wish);
  draw();
}

// Beginning ----------------------------------------------------------------------------------------------------------

const fragment = new URLSearchParams(window.location.hash.slice(1));
const wish = { ...last };
for (const [name, value] of fragment) wish[name] = LISTS.includes(name) ? value.split(",").filter(Boolean) : value;
const display = new URLSearchParams(window.location.search).get("display_name") || known;
if (display) document.getElementById("moorage-form-title").textContent = t("form.title_named", { name: display });
use(wish);
if ([...fragment].length) alertBox("info", t("form.prefilled"));

document.getElementById("spawn_form").addEventListener("submit", (event) => {
  const wrong = frame.querySelector(".is-invalid");
  if (wrong) { event.preventDefault(); wrong.focus(); return; }
  start.disabled = true;
});
look();
setTimeout(look, 2000); // the first look asks, this one sees
setInterval(look, LOOK_MS);
window.addEventListener("pageshow", () => { start.disabled = !choice.partition_; });
