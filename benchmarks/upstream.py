"""A fake language model API that sends deltas at a steady rate.

python -m benchmarks.upstream PORT DELTAS
"""

import asyncio
import json
import re
import sys

HEAD = (
    b"HTTP/1.1 200 OK\r\n"
    b"Content-Type: text/event-stream\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n"
)
LENGTH = re.compile(rb"(?i)\r\ncontent-length: *([0-9]+)")
PER_SECOND = 50


def chunk(data: str) -> bytes:
    return f"{len(data):X}\r\n{data}\r\n".encode()


def delta(text: str | None, finish_reason: str | None = None) -> bytes:
    choice = {
        "index": 0,
        "delta": {"content": text} if text else {},
        "finish_reason": finish_reason,
    }
    answer = {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "any",
        "choices": [choice],
    }
    return chunk(f"data: {json.dumps(answer, separators=(',', ':'))}\n\n")


async def serve(port: int, deltas: int) -> None:
    time = asyncio.get_running_loop().time
    word = delta("word ")
    end = delta(None, "stop") + chunk("data: [DONE]\n\n") + b"0\r\n\r\n"

    async def answer(reader, writer):
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if length := LENGTH.search(head):
                    await reader.readexactly(int(length[1]))
                else:  # chunked, as Node sends it
                    await reader.readuntil(b"0\r\n\r\n")
                writer.write(HEAD)
                begin = time()
                for number in range(deltas):
                    await asyncio.sleep(begin + number / PER_SECOND - time())
                    writer.write(word)
                writer.write(end)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port, backlog=1000)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(serve(*map(int, sys.argv[1:])))
