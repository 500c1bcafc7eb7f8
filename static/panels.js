// The Wire panel, the Copy buttons, and the keys of a lesson's page.

const wire = document.querySelector("#wire");
const isBeside = wire.matches("section");
const bytes = wire.querySelector("pre");
const form = wire.querySelector("form");
const { path, body } = form.elements;
const MAX_ROWS = 100;
const MAX_CHARACTERS = 2000;
const LAG_MS = 1000; // the panel's stream begins, and so ends, a bit later
const SHORT_ESCAPES = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };
// The server's comment before a chunk: the line at which its generator stands.
const LINE = /^(?:: |<!-- )(demos\/\w+\.py) (\d+)(?: -->)?\n/gm;
let controller = new AbortController();
let rows = [];
let frame;
let line = ""; // the latest that the server has reported
let closing;
let followed;

// Control characters, and the BOM, as escape sequences.
function visible(text) {
  const row = document.createDocumentFragment();
  for (const part of text.split(/([\0-\x1f\x7f\ufeff])/)) {
    if (!/^[\0-\x1f\x7f\ufeff]$/.test(part)) {
      row.append(part);
      continue;
    }
    const code = part.charCodeAt(0).toString(16).padStart(4, "0");
    const mark = document.createElement("mark");
    mark.textContent = SHORT_ESCAPES[part] ?? `\\u${code}`;
    row.append(mark, part === "\n" ? "\n" : "");
  }
  return row;
}

// Draw rows once a frame, and only the newest if there are many.
function addRow(label, text = "", line = "") {
  rows.push({ label, text, line });
  if (rows.length > MAX_ROWS) rows.shift();
  frame ??= requestAnimationFrame(drawRows);
}

function drawRows() {
  frame = undefined;
  const atEnd = bytes.scrollHeight - bytes.scrollTop - bytes.clientHeight < 8;
  for (const { label, text, line } of rows) {
    const row = document.createElement("div");
    const heading = document.createElement("b");
    heading.textContent = line ? `${label}, line ${line.split(":")[1]}` : label;
    const rest = text.length > MAX_CHARACTERS ? " …" : "";
    row.append(heading, "\n", visible(text.slice(0, MAX_CHARACTERS)), rest);
    bytes.append(row);
  }
  while (bytes.children.length > MAX_ROWS) bytes.firstElementChild.remove();
  if (atEnd) bytes.scrollTop = bytes.scrollHeight;
  highlight(rows.findLast(({ line }) => line)?.line);
  rows = [];
}

function highlight(id) {
  if (!id) return;
  document.querySelector(".line.runs")?.classList.remove("runs");
  const line = document.getElementById(id);
  line?.classList.add("runs");
  const box = line?.closest(".source > .panel");
  if (!box) return;
  const { top, bottom } = line.getBoundingClientRect();
  const bounds = box.getBoundingClientRect();
  if (top < bounds.top || bottom > bounds.bottom) {
    box.scrollTop += top - bounds.top - bounds.height / 2;
  }
}

/** Split a chunk at its line comments, and add a row for each piece. */
function addChunk(seconds, text) {
  const [first, ...pieces] = text.split(LINE);
  if (first) addRow(seconds, first, line);
  for (let n = 0; n < pieces.length; n += 3) {
    line = `${pieces[n]}:${pieces[n + 1]}`;
    if (pieces[n + 2]) addRow(seconds, pieces[n + 2], line);
  }
}

/** Send a request, and show its status and its bytes until it ends. */
async function send(url, options) {
  controller.abort();
  controller = new AbortController();
  const { signal } = controller;
  line = "";
  const start = performance.now();
  const seconds = () => `${((performance.now() - start) / 1000).toFixed(3)} s`;
  const headers = { "Show-Lines": "true" };
  const get = async (url, options = {}) => {
    const more = { ...headers, ...options.headers };
    const all = { ...options, headers: more, signal };
    const response = await observed.fetch(url, all);
    const type = response.headers.get("Content-Type") ?? "no content";
    addRow(`${seconds()}, status ${response.status}, ${type}`);
    return response;
  };
  try {
    let response = await get(url, options);
    const place = response.headers.get("Location");
    if (place) {
      const text = await response.text();
      addRow(`${seconds()}, ${text.length} bytes`, text);
      addRow(`${seconds()}, GET ${place}`);
      response = await get(place);
    }
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    const reader = response.body?.getReader();
    for (;;) {
      const { done, value } = (await reader?.read()) ?? { done: true };
      if (done) break;
      const text = decoder.decode(value, { stream: true });
      addChunk(seconds(), text);
    }
    addRow(`${seconds()}, the response has ended`);
  } catch (error) {
    if (!signal.aborted) addRow(`${seconds()}, ${error.message}`);
  }
}

// Send the form: a POST of JSON if it has a body, otherwise a GET.
function sendForm() {
  const headers = { "Content-Type": "application/json" };
  bytes.replaceChildren();
  send(
    path.value,
    body ? { method: "POST", headers, body: body.value } : {},
  );
}

/** Repeat the request of the page's first EventSource once it is open. */
function follow({ kind, url, lane, opened, ended, how, lastEventId }) {
  if (kind !== "EventSource" || lane !== observed.lanes[0]) return;
  if (how === "closed") closing = setTimeout(() => controller.abort(), LAG_MS);
  const time = how === "failed" ? ended : opened;
  if ((ended && how !== "failed") || !time || time === followed) return;
  followed = time;
  clearTimeout(closing);
  const { pathname, search } = new URL(url);
  path.value = pathname + search;
  if (!lastEventId) bytes.replaceChildren();
  const headers = lastEventId ? { "Last-Event-ID": lastEventId } : {};
  const id = lastEventId ? `, Last-Event-ID: ${lastEventId}` : "";
  addRow(`GET ${path.value}${id}`);
  send(path.value, { headers });
}

if (isBeside) {
  observed.listeners.push(follow);
  form.elements.stop.onclick = () => controller.abort();
} else {
  wire.addEventListener("toggle", () => {
    if (wire.open) sendForm();
    else controller.abort();
  });
}
addEventListener("pagehide", () => controller.abort());
form.addEventListener("submit", (event) => {
  event.preventDefault();
  sendForm();
});

for (const button of document.querySelectorAll("[data-copies]")) {
  button.addEventListener("click", async () => {
    const source = document.getElementById(button.dataset.copies);
    const codes = [...source.querySelectorAll("code")];
    const text = codes.map((code) => code.textContent).join("");
    button.textContent = await copy(text || source.textContent)
      ? "Copied"
      : "Press Ctrl+C";
  });
}

/** Return whether a text has been copied. Plain HTTP has no clipboard API. */
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    const field = document.createElement("textarea");
    field.value = text;
    document.body.append(field);
    field.select();
    const isCopied = document.execCommand("copy");
    field.remove();
    return isCopied;
  }
}

const FIELDS = "input, select, textarea, pre, iframe, [tabindex]";

addEventListener("keydown", ({ key, target, altKey, ctrlKey, metaKey }) => {
  if (altKey || ctrlKey || metaKey || target.closest?.(FIELDS)) return;
  const rel = { ArrowLeft: "prev", ArrowRight: "next" }[key];
  if (rel) document.querySelector(`a[rel=${rel}]`)?.click();
});

// A link to a line shows the panel that the line is in.
addEventListener("hashchange", () => {
  const id = decodeURIComponent(location.hash.slice(1));
  const panel = document.getElementById(id)?.closest(".source > .panel");
  if (!panel) return;
  document.getElementById(`tab-${panel.ariaLabel}`).checked = true;
  document.getElementById(id).scrollIntoView({ block: "center" });
});

// Some lessons have many constants: begin where the view is in sight.
const view = [...document.querySelectorAll(".Server .line")].find((line) =>
  line.textContent.startsWith("@bp."));
const server = document.querySelector(".Server");
if (view) {
  const { top } = view.getBoundingClientRect();
  const below = top - server.getBoundingClientRect().top;
  if (below > server.clientHeight / 2) server.scrollTop = below - 60;
}
