// Event streams with Express, written as in most articles.

const http = require("node:http");
const express = require("express");

const [port, upstream] = process.argv.slice(2);
const app = express();

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

const readers = new Set();
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
}, 1000 / process.env.EVENTS_PER_SECOND);

app.get("/idle", (req, res) => open(res));

const headers = { "Content-Type": "application/json" };
const options = { method: "POST", headers };

// Parse each delta, and write its text as an event.
app.get("/completion", (req, res) => {
  const messages = [{ role: "user", content: req.query.prompt }];
  http
    .request(upstream + "/chat/completions", options, async (answer) => {
      open(res);
      answer.setEncoding("utf8");
      let rest = "";
      for await (const text of answer) {
        const lines = (rest + text).split("\n");
        rest = lines.pop();
        for (const line of lines) {
          if (!line.startsWith("data: {")) continue;
          const { delta } = JSON.parse(line.slice(6)).choices[0];
          if (delta.content) res.write(`data: ${delta.content}\n\n`);
        }
      }
      res.end("event: done\ndata:\n\n");
    })
    .end(JSON.stringify({ model: "any", messages, stream: true }));
});

// Pass on the bytes unchanged.
app.post("/v1/chat/completions", (req, res) => {
  req.pipe(
    http.request(upstream + "/chat/completions", options, (answer) => {
      open(res);
      answer.pipe(res);
    }),
  );
});

app.listen(Number(port), "127.0.0.1");
