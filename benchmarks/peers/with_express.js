// Event streams with Express, written as in most articles.

const http = require("node:http");
const express = require("express");

const [port, upstream] = process.argv.slice(2);
const app = express();
const readers = new Set();

function open(res) {
  res.writeHead(200, {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-cache",
  });
  res.flushHeaders();
}

app.get("/timer", (req, res) => {
  open(res);
  let id = 0;
  const timer = setInterval(() => {
    id += 1;
    const data = JSON.stringify({ id, number: Date.now() });
    res.write(`id: ${id}\ndata: ${data}\n\n`);
  }, 50);
  req.on("close", () => clearInterval(timer));
});

app.get("/broadcast", (req, res) => {
  open(res);
  readers.add(res);
  req.on("close", () => readers.delete(res));
});

setInterval(() => {
  const data = JSON.stringify({
    ALFA: 120.123,
    BRVO: 48.512,
    CHLI: 310.205,
    DLTA: 9.607,
    ECHO: 75.111,
  });
  const event = `id: ${Date.now()}-0\ndata: ${data}\n\n`;
  for (const res of readers) res.write(event);
}, 50);

app.get("/idle", (req, res) => open(res));

// The simplest relay: pass on the upstream bytes unchanged.
app.get("/completion", (req, res) => {
  const messages = [{ role: "user", content: req.query.prompt }];
  const headers = { "Content-Type": "application/json" };
  http
    .request(upstream + "/chat/completions", { method: "POST", headers })
    .on("response", (answer) => {
      open(res);
      answer.pipe(res);
    })
    .end(JSON.stringify({ model: "any", messages, stream: true }));
});

app.listen(Number(port), "127.0.0.1");
