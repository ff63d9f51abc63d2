"""Measure the demo model's held-out bits per byte, through a server or with torch.

    python -m weights.demo.score --serve
    python -m weights.demo.score --url http://127.0.0.1:8000
    python -m weights.demo.score --offline

The first form starts a Quire server for the purpose, the second takes any served OpenAI-style
endpoint; both ask it to echo the prompt's log-probabilities and need `tokenizers` and the
standard library. The third runs the trainer's own model.
All score every token of every held-out file once, and end with status 1 when the model
is not below `xz -9` on the same files.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tokenizers import Tokenizer

from weights.demo.corpus import read_heldout
from weights.demo.own_server import own_server
from weights.demo.tokenizer import END_OF_TEXT_ID, load_tokenizer
from weights.demo.windows import Window, bits_per_byte, windows, xz_bits_per_byte

CHECKPOINT = Path(__file__).parent / "checkpoint"

Scorer = Callable[[Window], float]


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--serve", action="store_true", help="start a server for the purpose")
    which.add_argument("--url", help="root of the server, without /v1")
    which.add_argument("--offline", action="store_true", help="score with the trainer's model")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT)
    parser.add_argument("--model", help="model name to send; the server's first by default")
    parser.add_argument("--window", type=int, default=1024)
    parser.add_argument("--stride", type=int, default=512)
    parser.add_argument("--parallel", type=int, default=4, help="requests in flight at once")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for one request")
    return parser.parse_args()


def ask(url: str, body: dict[str, object] | None, timeout: float) -> dict[str, object]:
    """Send one request, a POST where there is a body, and return the JSON that comes back."""
    if not url.startswith(("http://", "https://")):
        raise ValueError("the url must begin with http:// or https://")
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as response:
        answer = json.load(response)
    if not isinstance(answer, dict):
        raise ValueError(f"{url} did not answer with an object")
    return answer


def first_model(url: str, timeout: float) -> str:
    """Name of the first model the server lists."""
    match ask(f"{url}/v1/models", None, timeout):
        case {"data": [{"id": str(name)}, *_]}:
            return name
    raise ValueError("the server lists no model")


def token_logprobs(answer: dict[str, object], expected: int) -> list[float]:
    """Take the echoed log-probabilities, without the first token's, out of an answer."""
    match answer:
        case {"choices": [{"logprobs": {"token_logprobs": [None, *values]}}]}:
            numbers = [float(value) for value in values if isinstance(value, (int, float))]
            if len(values) == len(numbers) == expected - 1 and all(map(math.isfinite, numbers)):
                return numbers
    raise ValueError(f"the answer does not hold log-probabilities for {expected} tokens")


def served(url: str, model: str, timeout: float) -> Scorer:
    """Score windows through a server."""

    def scorer(window: Window) -> float:
        body: dict[str, object] = {
            "model": model,
            "prompt": window.ids,
            "max_tokens": 0,
            "echo": True,
            "logprobs": 0,
            "temperature": 0,
        }
        answer = ask(f"{url}/v1/completions", body, timeout)
        logprobs = token_logprobs(answer, len(window.ids))
        return -math.fsum(logprobs[window.first_scored - 1 :])

    return scorer


def offline(checkpoint: Path) -> Scorer:
    """Score windows with the trainer's model, in float32."""
    # Imported here so that scoring a server asks for no torch.
    from weights.demo.checkpoint import load_exported
    from weights.demo.train import window_nats

    model = load_exported(checkpoint)
    return lambda window: window_nats(model, window)


def document_windows(
    tokenizer: Tokenizer, texts: Sequence[str], length: int, stride: int
) -> list[Window]:
    """Windows of all texts, each text behind the mark that training documents began with."""
    rows = (tokenizer.encode(text, add_special_tokens=False).ids for text in texts)
    return [window for row in rows for window in windows([END_OF_TEXT_ID, *row], length, stride)]


def served_nats(url: str, options: argparse.Namespace, work: Sequence[Window]) -> float:
    """Negative log-likelihood of all windows through the server at ``url``."""
    model = options.model or first_model(url, options.timeout)
    with ThreadPoolExecutor(options.parallel) as pool:
        return math.fsum(pool.map(served(url, model, options.timeout), work))


def main() -> int:
    """Score, print both figures, and say by the exit status whether the model is below xz."""
    options = parse()
    documents = read_heldout()
    tokenizer = load_tokenizer(options.checkpoint)
    texts = [document.text for document in documents]
    work = document_windows(tokenizer, texts, options.window, options.stride)
    if options.offline:
        nats = math.fsum(map(offline(options.checkpoint), work))
    elif options.serve:
        with own_server(options.checkpoint) as url:
            nats = served_nats(url, options, work)
    else:
        nats = served_nats(options.url.rstrip("/"), options, work)
    files = [text.encode() for text in texts]
    size = sum(map(len, files))
    ours, xz = bits_per_byte(nats, size), xz_bits_per_byte(files)
    tokens = sum(len(window.ids) - window.first_scored for window in work)
    print(f"held out: {len(files)} files, {size} bytes, {tokens} tokens scored once each")
    print(f"model: {ours:.4f} bits per byte")
    print(f"xz -9: {xz:.4f} bits per byte")
    return 0 if ours < xz else 1


if __name__ == "__main__":
    sys.exit(main())
