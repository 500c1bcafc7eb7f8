"use strict"; // keeps the functions below out of the page's scope

// Records what the page's connections do, for the timeline. The live part must
// find the observed classes, so this is not a module: it runs before the body.
const observed = { lanes: [], listeners: [], fetch: window.fetch.bind(window) };

{
  const WINDOW_MS = 20_000; // what the timeline shows
  const MERGE_MS = 100; // events this close to one another share a mark
  const MOST_CONNECTIONS = 100; // per lane: some pages reconnect forever
  const MOST_ATTEMPTS = 50;
  // A browser shows an event only to listeners of its type. The page listens
  // to all types but this one, which may carry the first id.
  const UNHEARD = ["begin"];
  const Native = { EventSource, WebSocket };

  function tell(connection, news) {
    for (const listener of observed.listeners) listener(connection, news);
  }

  // One lane for each URL, or more if some of its connections overlap.
  function begin(kind, method, url, properties) {
    const { pathname } = new URL(url, location.href);
    const title = `${method} ${pathname}`;
    const isFree = (lane) =>
      lane.title === title && lane.connections.at(-1).ended;
    let lane = observed.lanes.find(isFree);
    if (!lane) observed.lanes.push(lane = { title, connections: [] });
    const connection = {
      kind,
      url,
      lane,
      begun: performance.now(),
      events: 0,
      marks: [],
      newest: {},
      attempts: [],
      ...properties,
    };
    lane.connections.push(connection);
    if (lane.connections.length > MOST_CONNECTIONS) lane.connections.shift();
    tell(connection, "begin");
    return connection;
  }

  function open(connection) {
    connection.opened = performance.now();
    tell(connection, "open");
  }

  // how: "closed" by the page, "ended" by the server, "lost", or "failed".
  function end(connection, how) {
    if (connection.ended) return;
    connection.ended = performance.now();
    connection.how = how;
    tell(connection, "end");
  }

  function mark(connection, type, id) {
    const now = performance.now();
    const { marks, newest } = connection;
    connection.events += 1;
    if (newest[type]?.time > now - MERGE_MS) {
      newest[type].count += 1;
      newest[type].id = id;
      return;
    }
    newest[type] = { time: now, type, id, count: 1 };
    marks.push(newest[type]);
    while (marks[0].time < now - WINDOW_MS) marks.shift();
    tell(connection, "event");
  }

  window.EventSource = class EventSource extends Native.EventSource {
    #connection;
    #lastEventId = "";
    #types = new Set();

    constructor(url, options) {
      super(url, options);
      this.#connection = begin("EventSource", "GET", this.url);
      super.addEventListener("open", () => open(this.#connection));
      super.addEventListener("error", () => this.#lose());
      for (const type of ["message", ...UNHEARD]) this.#observe(type);
    }

    #observe(type) {
      if (["open", "error"].includes(type) || this.#types.has(type)) return;
      this.#types.add(type);
      super.addEventListener(type, ({ lastEventId }) => {
        const id = lastEventId === this.#lastEventId ? "" : lastEventId;
        this.#lastEventId = lastEventId;
        mark(this.#connection, type, id);
      });
    }

    #lose() {
      if (this.readyState === Native.EventSource.CLOSED) {
        end(this.#connection, "failed");
      } else if (this.#connection.isWaiting && !this.#connection.opened) {
        const { attempts } = this.#connection;
        attempts.push(performance.now());
        if (attempts.length > MOST_ATTEMPTS) attempts.shift();
      } else {
        end(this.#connection, "lost");
        const lastEventId = this.#lastEventId;
        const properties = { isWaiting: true, lastEventId };
        this.#connection = begin("EventSource", "GET", this.url, properties);
      }
    }

    addEventListener(type, ...rest) {
      this.#observe(type); // before a listener of the page can close it
      super.addEventListener(type, ...rest);
    }

    close() {
      super.close();
      end(this.#connection, "closed");
    }
  };

  window.WebSocket = class WebSocket extends Native.WebSocket {
    constructor(...parameters) {
      super(...parameters);
      const connection = begin("WebSocket", "GET", this.url);
      this.addEventListener("open", () => open(connection));
      this.addEventListener("message", () => mark(connection, "message", ""));
      this.addEventListener("close", () => end(connection, "closed"));
    }
  };

  // The page reads the same bytes, through a stream that records each chunk.
  function watch(connection, response) {
    const type = response.headers.get("Content-Type") ?? "";
    if (!type.startsWith("text/event-stream")) {
      end(connection, response.ok ? "ended" : "failed");
      return response;
    }
    open(connection);
    const body = response.body.pipeThrough(new TransformStream({
      transform(chunk, controller) {
        mark(connection, "bytes", "");
        controller.enqueue(chunk);
      },
      flush: () => end(connection, "ended"),
    }));
    return new Response(body, response);
  }

  window.fetch = async (resource, options = {}) => {
    const url = resource.url ?? String(resource);
    const method = options.method ?? resource.method ?? "GET";
    const connection = begin("fetch", method, url);
    const isAborted = () => (options.signal ?? resource.signal)?.aborted;
    const stop = () => end(connection, isAborted() ? "closed" : "failed");
    options.signal?.addEventListener("abort", stop, { once: true });
    try {
      return watch(connection, await observed.fetch(resource, options));
    } catch (error) {
      stop();
      throw error;
    }
  };

  // A frame's document has no class to observe, so check it regularly.
  function watchFrame(frame) {
    let page = frame.contentDocument;
    let connection;
    setInterval(() => {
      const { contentDocument: current } = frame;
      if (current !== page && current.URL !== "about:blank") {
        page = current;
        if (connection) end(connection, "closed");
        connection = begin("frame", "GET", page.URL);
        open(connection);
        watchStop(frame.contentWindow, connection);
        const parts = new MutationObserver(() => mark(connection, "part", ""));
        parts.observe(page, { childList: true, subtree: true });
      }
      // In Firefox, a document that broke off is never complete.
      if (connection && page.readyState !== "loading") {
        end(connection, "ended");
      }
    }, MERGE_MS);
  }

  // In WebKit, a stopped document is never complete.
  function watchStop(page, connection) {
    const stop = page.stop.bind(page);
    page.stop = () => {
      stop();
      end(connection, "closed");
    };
  }

  addEventListener("DOMContentLoaded", () => {
    for (const frame of document.querySelectorAll("iframe")) watchFrame(frame);
  });
}
