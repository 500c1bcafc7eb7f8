// Reports what observe.js records: the state in words, whether the browser has
// a connection left, and sentences for screen readers.

const state = document.querySelector("#state");
const crowd = document.querySelector("#crowd");
const sentences = document.querySelector("#sentences");
const STUCK_MS = 2000; // after that, a request may wait for a connection
const SAY_MS = 2000; // between two sentences
const MOST_SENTENCES = 20;
const MOST_STREAMS = 6; // of a host, over HTTP/1.1

const tabs = new BroadcastChannel("open streams");
const tab = crypto.getRandomValues(new Uint32Array(1))[0];
const openElsewhere = new Map();
const said = new WeakMap();
let saying = [];
let openHere = 0;
let timer;

const all = () => observed.lanes.flatMap(({ connections }) => connections);
const isOpen = ({ opened, ended }) => opened && !ended;
const isPending = ({ opened, ended, isWaiting }) =>
  !opened && !ended && !isWaiting;
const isStream = ({ kind, opened, ended }) =>
  kind === "EventSource" || (kind !== "WebSocket" && (opened || !ended));

function stateOf({ opened, ended, how, isWaiting }) {
  if (how === "failed") return "failed";
  if (ended) return "closed";
  if (opened) return "open";
  return isWaiting ? "reconnecting" : "connecting";
}

function showState() {
  const streams = all().filter(isStream);
  const live = streams.filter(({ ended }) => !ended).map(stateOf);
  const counts = Object.entries(Object.groupBy(live, (word) => word));
  const words = live.length > 1
    ? counts.map(([word, { length }]) => `${length} ${word}`).join(", ")
    : live[0] ?? stateOf(streams.at(-1) ?? { how: "closed", ended: 1 });
  if (state.textContent === words) return;
  state.textContent = words;
  state.className = /\bopen\b|\w+$/.exec(words)[0];
}

// Tabs report to each other, and to a new tab, how many streams they hold.
function tell(count) {
  openHere = count;
  tabs.postMessage([tab, count]);
}

tabs.onmessage = ({ data: [other, count] }) => {
  if (!openElsewhere.has(other)) tell(openHere);
  openElsewhere.set(other, count);
  showCrowd();
};

// A request that waits for a connection looks like one to a slow server.
function showCrowd() {
  const now = performance.now();
  const isStuck = (one) => isPending(one) && now - one.begun > STUCK_MS;
  const elsewhere = [...openElsewhere.values()].reduce((a, b) => a + b, 0);
  const count = openHere + elsewhere;
  const words = count >= MOST_STREAMS && all().some(isStuck)
    ? `No connection is left: ${count} streams are open in this browser, ` +
      `which opens at most ${MOST_STREAMS} to a host.`
    : "";
  if (crowd.textContent !== words) crowd.textContent = words;
}

function sentence({ kind, events, opened, ended, how, ...connection }) {
  const { isWaiting, lastEventId } = connection;
  if (kind !== "EventSource" || !(opened || ended)) return "";
  const id = lastEventId ? ` with Last-Event-ID ${lastEventId}` : "";
  if (how === "lost") return `Connection lost. Events received: ${events}.`;
  if (how === "failed") return "The connection failed for good.";
  if (ended) return `Closed. Events received: ${events}.`;
  return isWaiting ? `Reconnected${id}.` : "Open.";
}

function speak() {
  timer = undefined;
  if (saying.length === 0) return;
  const line = document.createElement("p");
  line.textContent = saying.slice(-3).join(" ");
  saying = [];
  sentences.append(line);
  if (sentences.children.length > MOST_SENTENCES) {
    sentences.firstElementChild.remove();
  }
  timer = setTimeout(speak, SAY_MS);
}

function update(connection) {
  const open = all().filter(isOpen).length;
  if (open !== openHere) tell(open);
  showState();
  showCrowd();
  if (isPending(connection)) setTimeout(showCrowd, STUCK_MS + 100);
  const words = sentence(connection);
  if (!words || said.get(connection) === words) return;
  said.set(connection, words);
  saying.push(words);
  saying = saying.slice(-3);
  if (!timer) speak();
}

observed.listeners.push((connection, news) => {
  if (news !== "event") update(connection);
});
addEventListener("pagehide", () => tell(0));
addEventListener("pageshow", () => tell(all().filter(isOpen).length));
