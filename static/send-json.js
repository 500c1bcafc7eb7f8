/**
 * Send JSON, and return the response:
 *
 *     const response = await sendJson("POST", "/jobs", { steps: 100 });
 *
 * Throws an Error whose message you can show: the server's `error`. If the
 * server is unreachable or `signal` is aborted, it throws fetch's own error.
 */
export async function sendJson(method, url, value, signal) {
  const headers = { "Content-Type": "application/json" };
  const body = JSON.stringify(value);
  const response = await fetch(url, { method, headers, body, signal });
  if (response.ok) return response;
  const { error } = await response.json().catch(() => ({}));
  const sentence = error?.message ?? error; // OpenAI's is an object
  throw Error(sentence ?? `The server answered ${response.status}.`);
}
