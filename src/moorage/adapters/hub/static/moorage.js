// What the pages share. Everything that is shown goes through textContent: nothing from a site becomes HTML.

const texts = JSON.parse(document.getElementById("moorage-texts")?.textContent ?? "{}");
export const base = window.jhdata?.base_url ?? "/hub/";
export const language = document.documentElement.lang || "en";

/** The reader's own way of writing times, as far as it is of the page's language. */
const locale = navigator.languages.find((one) => one.startsWith(language)) ?? language;

export function t(key, values = {}) {
  const text = texts[key] ?? key;
  return text.replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

/** An element; properties that begin with "on" are listeners, "data" and "aria" are objects, children are nodes or texts. */
export function el(name, properties = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "class") element.className = value;
    else if (key === "data") Object.assign(element.dataset, value);
    else if (key === "aria") for (const [n, v] of Object.entries(value)) element.setAttribute(`aria-${n}`, v);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function data() {
  return JSON.parse(document.getElementById("moorage-data").textContent);
}

export function path(...parts) {
  return base + parts.map((part) => encodeURIComponent(part)).join("/");
}

export function api(...parts) {
  return path("moorage", "api", ...parts);
}

/** A call to the Hub; throws an error whose message people can read. */
export async function call(method, url, body) {
  const headers = { "X-XSRFToken": window.jhdata.xsrf_token, Accept: "application/json" };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  const answer = await fetch(url, {
    method, headers, credentials: "same-origin", body: body === undefined ? undefined : JSON.stringify(body),
  });
  const text = await answer.text();
  let content = null;
  try { content = JSON.parse(text); } catch { /* the Hub answers some calls with plain text */ }
  if (!answer.ok) throw new Error(content?.message ?? `${answer.status} ${answer.statusText}`);
  return content;
}

/** The event stream at `url`; `onData` gets each message, `onLost` whether the stream is interrupted. */
export function stream(url, onData, onLost = () => {}) {
  const source = new EventSource(`${url}${url.includes("?") ? "&" : "?"}_xsrf=${encodeURIComponent(window.jhdata.xsrf_token)}`);
  source.onmessage = (event) => { onLost(false); onData(JSON.parse(event.data)); };
  source.onerror = () => {
    onLost(true);
    // A stream that was refused (the Hub is being restarted) is not opened again by the browser.
    if (source.readyState === EventSource.CLOSED) setTimeout(() => { stop = stream(url, onData, onLost); }, 2000);
  };
  let stop = () => source.close();
  window.addEventListener("pagehide", () => stop());
  return () => stop();
}

export function time(milliseconds) {
  if (!milliseconds) return "";
  const date = new Date(milliseconds);
  const today = date.toDateString() === new Date().toDateString();
  const form = today ? { timeStyle: "medium" } : { dateStyle: "medium", timeStyle: "short" };
  return new Intl.DateTimeFormat(locale, form).format(date);
}

export function duration(milliseconds) {
  const minutes = Math.max(0, Math.floor(milliseconds / 60000));
  const hours = Math.floor(minutes / 60);
  if (hours >= 48) return hours % 24 ? `${Math.floor(hours / 24)} d ${hours % 24} h` : `${hours / 24} d`;
  if (!hours) return `${minutes} min`;
  return minutes % 60 ? `${hours} h ${minutes % 60} min` : `${hours} h`;
}

/** Steps that read the same are one, with how often it was said. */
export function condensed(steps) {
  const shown = [];
  for (const step of steps) {
    const before = shown.at(-1);
    if (before && before.text === step.text) { before.times += 1; before.until = step.at; }
    else shown.push({ ...step, times: 1, until: step.at });
  }
  return shown;
}

export function alertBox(kind, text) {
  const box = document.getElementById("moorage-alerts");
  box?.replaceChildren(el("div", { class: `alert alert-${kind}`, role: kind === "danger" ? "alert" : "status" }, text));
}

export function failed(error) {
  alertBox("danger", t("action.failed", { why: error.message }));
}
