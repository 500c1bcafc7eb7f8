/**
 * Read the event stream in a response of fetch, as an EventSource would:
 *
 *     const controller = new AbortController();
 *     const { signal } = controller;
 *     const response = await fetch(url, { method: "POST", body, signal });
 *     for await (const event of readEventStream(response, controller)) {
 *       console.log(event.type, event.data);
 *     }
 *
 * Each event is { type, data, lastEventId, retry }: what a browser dispatches,
 * and the reconnection time in milliseconds where the event sets one. An event
 * that the stream ends in the middle of is dropped. Leaving the loop or the page
 * aborts `controller`, which closes the connection. Without one, Firefox closes
 * it only when more bytes arrive. The loop throws what reading throws: an abort
 * or a lost connection. The caller checks status and Content-Type.
 *
 * Standard: https://html.spec.whatwg.org/multipage/server-sent-events.html
 */
export async function* readEventStream(response, controller) {
  let data = [];
  let type = "";
  let lastEventId = "";
  let retry;
  for await (const line of readLines(response, controller)) {
    if (line === "") {
      if (data.length > 0) {
        type ||= "message";
        yield { type, data: data.join("\n"), lastEventId, retry };
      }
      data = [];
      type = "";
      retry = undefined;
      continue;
    }
    // Up to the first colon, and without the one space that may follow it.
    const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (field === "data") data.push(value);
    else if (field === "event") type = value;
    else if (field === "id" && !value.includes("\0")) lastEventId = value;
    else if (field === "retry" && /^\d+$/.test(value)) retry = Number(value);
  }
}

/** Yield each line that CRLF, LF or CR has ended, however it is cut up. */
async function* readLines({ body }, controller) {
  if (!body) return;
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  const end = () => controller?.abort();
  let line = "";
  let afterCR = false;
  try {
    // The stream is lost if Back restores the page from the cache.
    addEventListener("pagehide", end);
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const text = afterCR ? value.replace(/^\n/, "") : value;
      afterCR = value.endsWith("\r");
      const lines = text.split(/\r\n|\r|\n/);
      lines[0] = line + lines[0];
      line = lines.pop();
      yield* lines;
    }
  } finally {
    removeEventListener("pagehide", end);
    end();
    await reader.cancel();
  }
}
