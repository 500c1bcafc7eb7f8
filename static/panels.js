// The Wire panel and the copy buttons of a lesson's page.

const wire = document.querySelector("#wire");
const bytes = wire.querySelector("pre");
const { path, body } = wire.querySelector("form").elements;
const MAX_ROWS = 200;
const MAX_CHARACTERS = 2000;
const SHORT_ESCAPES = { "\n": "\\n", "\r": "\\r", "\t": "\\t" };
let controller = new AbortController();

// Control characters, and the BOM, as the escapes that code has for them.
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

function addRow(label, ...content) {
  const row = document.createElement("div");
  const time = document.createElement("b");
  time.textContent = label;
  row.append(time, "\n", ...content);
  const atEnd = bytes.scrollHeight - bytes.scrollTop - bytes.clientHeight < 8;
  bytes.append(row);
  if (bytes.children.length > MAX_ROWS) bytes.firstElementChild.remove();
  if (atEnd) bytes.scrollTop = bytes.scrollHeight;
}

// What the form says: a POST of JSON where it has a body, else a GET.
function request() {
  if (!body) return {};
  const headers = { "Content-Type": "application/json" };
  return { method: "POST", headers, body: body.value };
}

async function send() {
  controller.abort();
  controller = new AbortController();
  bytes.replaceChildren();
  const { signal } = controller;
  const start = performance.now();
  const seconds = () => `${((performance.now() - start) / 1000).toFixed(3)} s`;
  try {
    let response = await fetch(path.value, { ...request(), signal });
    const tell = () => {
      const type = response.headers.get("Content-Type") ?? "no content";
      addRow(`${seconds()}, status ${response.status}, ${type}`);
    };
    tell();
    const place = response.headers.get("Location");
    if (place) {
      const text = await response.text();
      addRow(`${seconds()}, ${text.length} bytes`, visible(text));
      addRow(`${seconds()}, GET ${place}`);
      response = await fetch(place, { signal });
      tell();
    }
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    const reader = response.body?.getReader();
    for (;;) {
      const { done, value } = (await reader?.read()) ?? { done: true };
      if (done) break;
      const text = decoder.decode(value, { stream: true });
      const rest = text.length > MAX_CHARACTERS ? " …" : "";
      const shown = visible(text.slice(0, MAX_CHARACTERS));
      addRow(`${seconds()}, ${value.length} bytes`, shown, rest);
    }
    addRow(`${seconds()}, the response has ended`);
  } catch (error) {
    if (!signal.aborted) addRow(`${seconds()}, ${error.message}`);
  }
}

wire.addEventListener("toggle", () => {
  if (wire.open) send();
  else controller.abort();
});
addEventListener("pagehide", () => controller.abort());
wire.querySelector("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});

for (const button of document.querySelectorAll("[data-copies]")) {
  button.addEventListener("click", async () => {
    const text = document.getElementById(button.dataset.copies);
    try {
      await navigator.clipboard.writeText(text.textContent);
      button.textContent = "Copied";
    } catch {
      // No clipboard without permission or on plain HTTP: select it instead.
      getSelection().selectAllChildren(text);
      button.textContent = "Selected";
    }
  });
}
