/**
 * Send JSON, and return the response:
 *
 *     const response = await sendJson("POST", "/jobs", { steps: 100 });
 *
 * Throws an Error with a sentence to show: the server's `error` if it refuses,
 * or what fetch says if the server cannot be reached or `signal` is aborted.
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
