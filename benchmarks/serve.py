"""The server against llama-server, both on one machine and in one run; its answers under load against single runs.

`python -m benchmarks.serve MODEL.gguf LLAMA_SERVER [--rounds 5] [--seconds 120] [--threads N] [OPTION ...]`: both
have 8 places and one cache of 16,384 tokens. They are asked in turns: one client, eight clients, 4,000 tokens
while four answers stream. Then ours alone: one system prompt 20 times, and 32 clients, some leaving at random.

Learnt: what a token costs beside llama.cpp's own work is Python's way from the sampler to the socket, and on two cores
it is taken from the threads that compute; so a step hands all its tokens over at once, and JSON is written by msgspec.
Nothing may be computed by a second thread of the process: a warm-up in the main one left OpenMP more threads in its
pools than processors, whose barriers then sleep, and a token of the demo model took 21 ms instead of 12. Attention
passes over all cells of a shared cache up to the last in use: 2,000 tokens of conversations that are idle made a token
of the demo model cost 7 to 9 % more, so they move out. A callback in machine code that nobody needs costs nothing that
can be measured. A seed holds under load with `--no-kv-unified` alone, where each of its tokens is a batch: what n = 1
and n = 2 are multiplied by are other kernels (llamafile's begin at 2), also with `-fa off --no-repack`, where 16 of
102 answers of the demo's model were their single runs; a tiny model, whose rows are too short for that to show, had
342 of 342.
"""

import argparse
import asyncio
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

QUESTION = "Write a story about a lighthouse keeper and number {}."
GREEDY = -1  # in place of a seed
WORDS = ("the", "river", "went", "to", "a", "village", "where", "an", "old", "man", "kept", "his", "dog", "and", "boat")


@dataclass(frozen=True)
class Told:
    """A token with its log probability, and those of the likeliest ones at its place."""

    token: int
    logprob: float
    top: dict[int, float]


@dataclass
class Heard:
    """A streamed answer: when its tokens came, in seconds, the first of `times` being when it was asked.

    `told` are tokens of an answer that was asked for greedily; n_tokens is what the server says that it sent.
    """

    times: list[float] = field(default_factory=list)
    text: str = ""
    told: list[Told] = field(default_factory=list)
    n_tokens: int = 0

    @property
    def first(self) -> float:
        """Seconds until the first token."""
        return self.times[1] - self.times[0]

    @property
    def rate(self) -> float:
        """Tokens a second after the first one."""
        return (len(self.times) - 2) / (self.times[-1] - self.times[1])

    @property
    def gap(self) -> float:
        """The longest pause between two tokens, in seconds."""
        return max(b - a for a, b in zip(self.times[1:], self.times[2:], strict=False))


async def ask(
    port: int, prompt: str, n_tokens: int, seed: int = -1, leave_after: int | None = None, greedy: bool = False
) -> Heard:
    """Ask for a streamed answer over a bare socket, since a client's own work counts on few cores.

    With a seed ours reads a prompt in units of its own, for the same answer under any load: speeds are without one.
    """
    body = json.dumps(
        {
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": n_tokens,
            "seed": seed,
            "temperature": 0 if greedy else 0.8,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
            **({"logprobs": True, "top_logprobs": 8} if greedy else {}),
        }
    ).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**20)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    heard = Heard([time.perf_counter()])
    try:
        async for line in reader:
            if line.startswith(b"HTTP/1.1 ") and b" 200 " not in line:
                raise RuntimeError(line.decode().strip())
            if not line.startswith(b"data: {"):
                if line.startswith(b"data: [DONE]"):
                    break
                continue
            chunk = json.loads(line[6:])
            choices = chunk.get("choices")
            heard.n_tokens = (chunk.get("usage") or {}).get("completion_tokens", 0)
            if choices and greedy:
                heard.told += told(choices[0])
            if choices and choices[0]["delta"].get("content"):
                heard.times.append(time.perf_counter())
                heard.text += choices[0]["delta"]["content"]
                if leave_after is not None and len(heard.times) > leave_after:
                    break
    finally:
        writer.close()
    return heard


def told(choice: dict[str, Any]) -> list[Told]:
    """Return the tokens of a chunk's choice with their log probabilities."""
    entries = (choice.get("logprobs") or {}).get("content") or ()
    return [Told(e["id"], e["logprob"], {top["id"]: top["logprob"] for top in e["top_logprobs"]}) for e in entries]


def strayed(under_load: Heard, alone: Heard) -> tuple[int, float, float]:
    """Compare two greedy answers: how many tokens are the same, and in nats the largest difference among them.

    Last, how much less likely than its own choice the single run holds the first other token, infinite for one that is
    not among the likeliest: a token of somebody else's answer, or, unless llama.cpp computes alike under load (see
    above), one of another turn that this answer took.
    """
    worst = 0.0
    for n_same, (one, other) in enumerate(zip(under_load.told, alone.told, strict=True)):
        if one.token != other.token:
            return n_same, worst, other.logprob - other.top.get(one.token, -math.inf)
        worst = max(worst, abs(one.logprob - other.logprob))
    return len(alone.told), worst, 0.0


async def get(port: int, path: str) -> str:
    """Return the body of a page."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n".encode())
    found = (await reader.read()).decode()
    writer.close()
    return found.partition("\r\n\r\n")[2]


@contextmanager
def serving(command: list[str], ready: str) -> Iterator[tuple[int, int]]:
    """Run a server; give its port and process id once its stderr says so."""
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        assert process.stderr
        try:
            found = next(match for line in process.stderr if (match := re.search(ready, line)))
            drain = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
            yield int(found[1]), process.pid
            process.terminate()
            process.wait()
            drain.wait()
        finally:
            process.kill()


async def one_client(port: int, number: int) -> tuple[float, float]:
    """Return milliseconds until the first token, and tokens a second."""
    heard = await ask(port, QUESTION.format(number), 128)
    return 1000 * heard.first, heard.rate


async def eight_clients(port: int, number: int) -> float:
    """Return tokens a second in all."""
    started = time.perf_counter()
    heard = await asyncio.gather(*(ask(port, QUESTION.format(number * 8 + k), 96) for k in range(8)))
    return sum(len(each.times) - 1 for each in heard) / (time.perf_counter() - started)


async def long_prompt(port: int, number: int) -> tuple[float, float]:
    """Return the longest pause of four answers while 4,000 tokens are read, and the seconds that takes."""
    words = random.Random(number)
    long = " ".join(words.choice(WORDS) for _ in range(3900))
    streams = [asyncio.ensure_future(ask(port, QUESTION.format(900 + number * 4 + k), 400)) for k in range(4)]
    await asyncio.sleep(1)
    late = await ask(port, long, 8)
    return max(heard.gap for heard in await asyncio.gather(*streams)), late.first


async def same_system(port: int) -> tuple[int, int]:
    """Ask 20 questions that begin alike; return the tokens of all their prompts, and those that were read."""
    before = counted(await get(port, "/metrics"))
    system = "You are the keeper of a lighthouse. " + " ".join(WORDS * 20)
    await asyncio.gather(*(ask(port, f"{system} Question {k}?", 4) for k in range(20)))
    after = counted(await get(port, "/metrics"))
    n_read, n_cached = (after[key] - before[key] for key in ("prompt_tokens_total", "prompt_tokens_cached_total"))
    return int(n_read + n_cached), int(n_read)


def counted(text: str) -> dict[str, float]:
    """Return Prometheus' numbers by name."""
    return {key: float(value) for key, value in re.findall(r"^llamacpp:(\w+) (\S+)$", text, re.M)}


async def crowd(port: int, pid: int, seconds: float) -> dict[str, Any]:
    """Let 32 clients ask for a while, a third of them leaving; compare what the others heard with single runs.

    Half of the questions come with a seed, the others are answered greedily, with log probabilities.
    """
    end = time.perf_counter() + seconds
    chance = random.Random(0)
    heard: dict[tuple[int, int], list[Heard]] = {}
    counts = {"answers": 0, "left": 0, "errors": 0, "short": 0}

    async def client(number: int) -> None:
        while time.perf_counter() < end:
            key = (chance.randrange(16), chance.choice((GREEDY, 1)))
            leaves = chance.randrange(1, 20) if number % 3 == 0 else None
            try:
                answer = await question(port, key, leaves)
            except (OSError, RuntimeError):
                counts["errors"] += 1
                continue
            counts["left" if leaves else "answers"] += 1
            if not leaves:
                counts["short"] += answer.n_tokens != 24 or len(answer.told) not in (0, 24)
                heard.setdefault(key, []).append(answer)

    memory = {0.0: resident(pid)}
    clients = asyncio.gather(*map(client, range(32)))
    while not clients.done():
        await asyncio.sleep(min(5, seconds / 4))
        memory[time.perf_counter() - end + seconds] = resident(pid)
    await clients
    single = {key: await question(port, key) for key in heard}
    pairs = [(answer, single[key]) for key, answers in heard.items() for answer in answers]
    same = [answer.text == one.text for answer, one in pairs if not one.told]
    astray = [strayed(answer, one) for answer, one in pairs if one.told]
    return counts | {
        "seeded_equal": f"{sum(same)} of {len(same)}",
        "greedy_equal": f"{sum(n == 24 for n, _, _ in astray)} of {len(astray)}",
        "same_tokens": sum(n for n, _, _ in astray),
        "largest_difference_nats": max((worst for _, worst, _ in astray), default=0.0),
        "lost_races_nats": sorted(round(gap, 3) for n, _, gap in astray if n < 24)[-5:],
        "memory_mb": {round(at): megabytes for at, megabytes in memory.items()},
    }


async def question(port: int, key: tuple[int, int], leave_after: int | None = None) -> Heard:
    """Ask the question of a number with a seed, or greedily."""
    return await ask(port, QUESTION.format(key[0]), 24, key[1], leave_after, key[1] == GREEDY)


def resident(pid: int) -> int:
    """Return a process's memory, in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") // 10**6


def show(name: str, ours: list[float], theirs: list[float]) -> None:
    """Print medians of both sides and their ratio."""
    one, two = statistics.median(ours), statistics.median(theirs)
    print(f"{name:34} ours {one:9.2f}   llama-server {two:9.2f}   ratio {one / two:.3f}", flush=True)


async def compare(ports: tuple[int, int], rounds: int) -> None:
    """Ask both servers in turns and print what they took."""
    single: list[list[tuple[float, float]]] = [[], []]
    eight: list[list[float]] = [[], []]
    for number in range(rounds + 1):  # the first round warms up
        for side in (0, 1) if number % 2 else (1, 0):
            single[side].append(await one_client(ports[side], number))
            eight[side].append(await eight_clients(ports[side], number))
    for index, name in ((0, "one client: first token, ms"), (1, "one client: tokens a second")):
        show(name, *([each[index] for each in one[1:]] for one in single))
    show("eight clients: tokens a second", eight[0][1:], eight[1][1:])
    alone = statistics.median(each[1] for each in single[0][1:])
    print(f"eight clients against one, ours: {statistics.median(eight[0][1:]) / alone:.2f} times", flush=True)
    for name, port in zip(("ours", "llama-server"), ports, strict=True):
        gap, first = await long_prompt(port, 1)
        print(
            f"4,000 tokens while 4 stream, {name}: longest pause {gap:.3f} s, its answer after {first:.1f} s",
            flush=True,
        )


async def ours_alone(port: int, pid: int, seconds: float) -> None:
    """Print what the load test finds."""
    n_all, n_read = await same_system(port)
    print(f"20 prompts of one system message: {n_all} tokens, {n_read} read", flush=True)
    print(f"32 clients, {seconds:g} s: {await crowd(port, pid, seconds)}", flush=True)


def main() -> None:
    """Run both servers and ask them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("llama_server")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--threads", type=int, default=2)
    given, more = parser.parse_known_args()
    common = ["-t", str(given.threads), "-c", "16384", "-np", "8"]
    ours = [sys.executable, "-c", "from moe_gguf.cli import main; main()", "serve", given.model, "--port", "0"]
    theirs = [given.llama_server, "-m", given.model, "--port", "18090", "--kv-unified"]
    with ExitStack() as stack:
        our_port, pid = stack.enter_context(serving([*ours, *common, *more], r"listening on http://.*:(\d+)"))
        if given.rounds:
            port, _ = stack.enter_context(serving([*theirs, *common], r"listening on http://127\.0\.0\.1:(\d+)"))
            asyncio.run(compare((our_port, port), given.rounds))
        asyncio.run(ours_alone(our_port, pid, given.seconds))


if __name__ == "__main__":
    main()
