// Draws what observe.js records: a lane for each URL, a bar for each of its
// connections, a mark for each event.

const svg = document.querySelector("#timeline");
const WINDOW_SECONDS = 20;
const TICK_SECONDS = 2;
const DRAW_MS = 100;
const HINT = "A bar is a connection, a mark is an event.";
const AXIS_HEIGHT = 22;
const CHARACTER_WIDTH = 7; // of a label: measuring each would cost more
const TEXT_HEIGHT = 13;
const MARK_RADIUS = 10;
const SIDE = 15; // half a label of the axis

let isNew = true;
let start; // of the axis, in ms
let drawn = 0;
let timer;

function draw() {
  timer = undefined;
  const now = performance.now();
  drawn = now;
  start ??= now;
  const lanes = visibleLanes(now);
  const { clientWidth: width, clientHeight: height } = svg;
  const shown = Math.min((now - start) / 1000, WINDOW_SECONDS);
  const left = now - shown * 1000;
  const scale = (width - 2 * SIDE) / WINDOW_SECONDS;
  const x = (ms) => SIDE + Math.max((ms - left) / 1000, 0) * scale;
  const parts = drawAxis(left, width, height - AXIS_HEIGHT, x);
  const room = (height - AXIS_HEIGHT) / Math.max(lanes.length, 1);
  const each = Math.min(room, TEXT_HEIGHT * 5);
  const top = (height - AXIS_HEIGHT - each * lanes.length) / 2;
  for (const [number, { title, connections }] of lanes.entries()) {
    const words = each >= TEXT_HEIGHT * 2 ? TEXT_HEIGHT : 0;
    const half = Math.min(MARK_RADIUS, (each - words) / 2 - 1);
    const space = each - words >= 4 * half ? 0 : words / 2;
    const middle = top + each * (number + 0.5) + space;
    const lane = { middle, half, height: each };
    const labels = new Labels(lane, width);
    if (lanes.length > 1) labels.want(1, "above", 0, "title", title);
    for (const one of connections.toReversed()) {
      if (one.ended < left) break;
      parts.push(...drawConnection(one, x, lane, now, labels));
    }
    parts.push(...labels.draw());
  }
  if (lanes.length === 0) {
    parts.push(label("muted", width / 2, height / 2 - SIDE, HINT, "middle"));
  }
  svg.replaceChildren(...parts);
  if (lanes.some(({ connections }) => !connections.at(-1).ended)) schedule();
}

function drawAxis(left, width, bottom, x) {
  const step = width < 400 ? 2 * TICK_SECONDS : TICK_SECONDS;
  const parts = [];
  let second = Math.ceil((left - start) / 1000 / step) * step;
  for (; x(start + second * 1000) < width; second += step) {
    const place = x(start + second * 1000);
    const line = { x1: place, x2: place, y1: 0, y2: bottom };
    parts.push(
      element("line", "grid", line),
      label("axis", place, bottom + 17, `${second} s`, "middle"),
    );
  }
  return parts;
}

function visibleLanes(now) {
  const oldest = now - WINDOW_SECONDS * 1000;
  observed.lanes = observed.lanes.filter(
    ({ connections }) => !(connections.at(-1).ended < oldest),
  );
  return observed.lanes;
}

/** The labels above and below a lane, placed so that none overlap. */
class Labels {
  wanted = [];

  constructor({ middle, half, height }, width) {
    this.rows = {
      above: height >= TEXT_HEIGHT * 2 ? middle - half - 3 : undefined,
      below: height >= TEXT_HEIGHT * 4 ? middle + half + 13 : undefined,
    };
    this.width = width;
  }

  /** Request a label; if two collide, the one with the lower rank is drawn. */
  want(rank, row, x, name, text) {
    this.wanted.push({ rank, row, x, name, text });
  }

  draw() {
    const taken = { above: [], below: [] };
    const drawn = [];
    this.wanted.sort((one, other) => one.rank - other.rank);
    for (const { row, x, name, text } of this.wanted) {
      const length = text.length * CHARACTER_WIDTH;
      const from = Math.max(Math.min(x, this.width - length), 0);
      const to = from + length + 6;
      const covers = ([start, end]) => from < end && start < to;
      if (!this.rows[row] || taken[row].some(covers)) continue;
      taken[row].push([from, to]);
      drawn.push(label(name, from, this.rows[row], text));
    }
    return drawn;
  }
}

function drawConnection(connection, x, lane, now, labels) {
  const { begun, opened, ended, how, isWaiting, lastEventId } = connection;
  const { middle, half } = lane;
  const from = x(begun);
  const at = x(opened ?? ended ?? now);
  const to = x(ended ?? now);
  const parts = [];
  if (at > from) {
    const name = isWaiting ? "waiting" : "request";
    parts.push(
      element("line", name, { x1: from, x2: at, y1: middle, y2: middle }),
    );
  }
  if (isWaiting) {
    const seconds = (((opened ?? ended ?? now) - begun) / 1000).toFixed(1);
    const words = `connection lost for ${seconds} s`;
    labels.want(0, "below", from - half, "lost", words);
  }
  for (const attempt of connection.attempts) {
    parts.push(cross(x(attempt), middle, half / 2));
  }
  if (opened) {
    const id = lastEventId ? `, Last-Event-ID: ${lastEventId}` : "";
    if (isWaiting) labels.want(0, "above", at, "back", `reconnected${id}`);
    else labels.want(2, "above", at, "muted", "open");
    const box = { x: at, y: middle - half, height: 2 * half, rx: half };
    parts.push(
      element("rect", "bar", { ...box, width: Math.max(to - at, 2) }),
      ...drawMarks(connection, x, lane, labels),
    );
  }
  if (how === "lost" || how === "failed") {
    if (how === "failed") labels.want(0, "above", to, "lost", "failed");
    parts.push(cross(to, middle, half));
  } else if (ended) {
    const line = { x1: to, x2: to, y1: middle - half, y2: middle + half };
    parts.push(element("line", "end", line));
  }
  return parts;
}

// A disc for a message, a square for any other type; ticks where they crowd.
function drawMarks({ marks }, x, { middle, half }, labels) {
  const parts = [];
  let ticks = "";
  let last = -Infinity;
  let lastType;
  for (const [number, { time, type, id, count }] of marks.entries()) {
    const place = x(time);
    const next = marks[number + 1] ? x(marks[number + 1].time) : Infinity;
    const text = count > 1 ? `×${count}` : id;
    const room = Math.min(place - last, next - place);
    last = place;
    if (place <= SIDE && number < marks.length - 1) continue;
    if (type !== "message" && type !== "bytes" && type !== lastType) {
      labels.want(1, "below", place - half, "muted", type);
    }
    lastType = type;
    if (room < half) {
      ticks += `M${place.toFixed(1)} ${middle - half * 0.7}v${half * 1.4}`;
      continue;
    }
    const short = text.length <= 3 && room > 2 * half ? text : "";
    const size = short ? half : half * 0.55;
    const shape = type === "message"
      ? element("circle", "mark", { cx: place, cy: middle, r: size })
      : element("rect", "mark", {
        x: place - size, y: middle - size, width: 2 * size, height: 2 * size,
        rx: 3,
      });
    const title = element("title", "", {});
    title.textContent = `${type}${id ? `, id ${id}` : ""}`;
    shape.append(title);
    parts.push(shape);
    if (short) parts.push(label("id", place, middle + 4.5, short, "middle"));
  }
  if (ticks) parts.unshift(element("path", "ticks", { d: ticks }));
  return parts;
}

function cross(x, y, size) {
  const d = `M${x - size * 0.6} ${y - size}l${size * 1.2} ${2 * size}` +
    `m0 ${-2 * size}l${-size * 1.2} ${2 * size}`;
  return element("path", "cross", { d });
}

function element(tag, name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  if (name) made.setAttribute("class", name);
  for (const [key, value] of Object.entries(attributes)) {
    made.setAttribute(key, value);
  }
  return made;
}

function label(name, x, y, text, anchor = "") {
  const made = element("text", name, { x, y });
  if (anchor) made.setAttribute("text-anchor", anchor);
  made.textContent = text;
  return made;
}

function schedule() {
  const wait = Math.max(drawn + DRAW_MS - performance.now(), 0);
  timer ??= setTimeout(() => requestAnimationFrame(draw), wait);
}

observed.listeners.push(() => {
  const now = performance.now();
  if (isNew || now - drawn > WINDOW_SECONDS * 1000) start = now;
  isNew = false;
  schedule();
});
draw();
