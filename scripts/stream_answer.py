#!/usr/bin/env python3
"""Waits for a llama-server on 127.0.0.1, asks it one question and prints the answer as it streams. Fails if it comes in one piece.

    scripts/stream_answer.py PORT QUESTION
"""
import json
import sys
import time
import urllib.error
import urllib.request

WAIT_SECONDS = 120

base, question = f"http://127.0.0.1:{int(sys.argv[1])}", sys.argv[2]
deadline = time.monotonic() + WAIT_SECONDS
while True:
    try:
        urllib.request.urlopen(f"{base}/health", timeout=10).close()
        break
    except (urllib.error.URLError, ConnectionError):
        if time.monotonic() > deadline:
            sys.exit(f"no server at {base} after {WAIT_SECONDS} s")
        time.sleep(0.1)

body = {"messages": [{"role": "user", "content": question}], "max_tokens": 24, "stream": True}
request = urllib.request.Request(f"{base}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
pieces = 0
with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as answer:
    for line in answer:
        if not line.startswith(b"data: {"):
            continue
        text = json.loads(line[len("data: ") :])["choices"][0]["delta"].get("content")
        if text:
            pieces += 1
            print(text, end="", flush=True)
print()
sys.exit(0 if pieces > 1 else f"the answer came in {pieces} pieces: it was not streamed")
