"""A small HTTP server instead of vLLM's, started by the real supervisor, that fails as scripted.

It is the `python` of an installation of wheels (`installed`), so it gets vLLM's command line. Its model squares numbers: it
computes the square in Python and answers with the output; without Python it answers directly. It enforces `--max-model-len`
as vLLM does, with vLLM's error message.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import sysconfig
import time
from dataclasses import asdict, dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

START, HEALTH, MODELS, COMPLETIONS = "start", "/health", "/v1/models", "/v1/completions"
MODULUS = 100_000
_SQUARE = re.compile(r"square of (\d+)")
_RESULT = re.compile(r'response:python\{value:<\|"\|>\s*(\d+)\s*<\|"\|>\}')


@dataclass(frozen=True)
class Breaking:
    """A request at which the server fails.

    Attributes:
        place: `START`, or a request's path.
        how: a status, or a name in `_Handler.break_off` or `start_broken`.
    """

    place: str
    how: str


def problem(number: int) -> tuple[str, int]:
    """Returns a problem that the model solves, and its answer."""
    return f"What is the square of {number}?", number * number % MODULUS


def installed(folder: Path, breaking: Breaking | None, times: int, model: Path) -> Path:
    """Makes an environment whose Python is this server; `folder`/faults counts failures, `folder`/python results from Python."""
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(folder)}))
    (packages / "vllm" / "engine").mkdir(parents=True)
    (packages / "vllm" / "__init__.py").touch()
    flags = ("--model", "--port", "--max-model-len")
    (packages / "vllm" / "engine" / "arg_utils.py").write_text(", ".join(f'"{flag}"' for flag in flags))
    script = {"breaking": breaking and asdict(breaking), "times": times, "model": str(model)}
    (folder / "script.json").write_text(json.dumps(script))
    (folder / "bin").mkdir()
    python = folder / "bin" / "python"
    python.write_text(f"#!{sys.executable} -E\n{Path(__file__).read_text()}")
    python.chmod(0o755)
    return folder


def reply(prompt: str) -> str:
    """Returns the model's output after `prompt`, in the pocket model's format."""
    number = _SQUARE.search(prompt)
    if number is None:
        return "I only know squares.<turn|>"
    _, known = problem(int(number[1]))
    if prompt.endswith("\\boxed{"):
        return f"{known}}}$.<turn|>"
    if "<|tool_response>" not in prompt:
        code = f"print({number[1]} ** 2 % {MODULUS})"
        return (
            f'<|channel>thought\nA product.<channel|><|tool_call>call:python{{code:<|"|>{code}<|"|>}}<tool_call|><|tool_response>'
        )
    computed = _RESULT.findall(prompt)
    return f"The answer is \\boxed{{{computed[-1] if computed else known}}}.<turn|>"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        if self._breaks(self.path):
            return
        if self.path == MODELS:
            model = {"id": "model", "root": self.server.model, "max_model_len": self.server.context}
            self._send(200, json.dumps({"object": "list", "data": [model]}))
        else:
            self._send(200 if self.path == HEALTH else 404, "")

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._breaks(COMPLETIONS):
            return
        prompt, wanted, context = request["prompt"], request["max_tokens"], self.server.context
        if len(prompt) + wanted > context:
            message = (
                f"This model's maximum context length is {context} tokens. However, you requested {wanted} output tokens and "
                f"your prompt contains at least {context - wanted + 1} input tokens, for a total of at least {context + 1} "
                "tokens."
            )
            self._send(
                400, json.dumps({"error": {"message": message, "type": "BadRequestError", "param": "input_tokens", "code": 400}})
            )
            return
        text = self.server.tokenizer.decode(prompt, skip_special_tokens=False)
        if _RESULT.search(text):
            self.server.computed()
        tokens = self.server.tokenizer.encode(reply(text), add_special_tokens=False).ids[:wanted]
        self._open_stream()
        for start in range(0, len(tokens), 4):
            self._event(
                tokens[start : start + 4], ("length" if len(tokens) == wanted else "stop") if start + 4 >= len(tokens) else None
            )
        self._write(b"data: [DONE]\n\n")
        self.wfile.write(b"0\r\n\r\n")

    def _breaks(self, place: str) -> bool:
        if os.path.exists(os.environ.get("AIMO_ENDURANCE_REFUSING", "")):
            self._send(503, "")
            return True
        if not self.server.breaks(place):
            return False
        how = self.server.how
        if how.isdigit():
            self._send(int(how), json.dumps({"error": {"message": "scripted", "type": "Scripted", "code": int(how)}}))
        else:
            self.break_off(how)
            self.close_connection = True
        return True

    def break_off(self, how: str) -> None:
        match how:
            case "no answer":
                pass
            case "garbage":
                self._send(200, "<html>\x00\xff gateway </html>")
            case "half JSON":
                self._send(200, '{"object": "list", "data": [{"id": "mod')
            case "other JSON":
                self._send(200, json.dumps(["what", {"is": None}, "this"]))
            case "garbage in the stream":
                self._open_stream()
                self._write(b"data: <html>\x00\xff</html>\n\n")
            case "half JSON in the stream":
                self._open_stream()
                self._event([5, 6], None)
                self._write(b'data: {"choices": [{"index": 0, "token_\n\n')
            case "other JSON in the stream":
                self._open_stream()
                self._write(b'data: [1, 2, {"choices": null}]\n\n')
            case "error in the stream":
                self._open_stream()
                self._write(b'data: {"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500}}\n\n')
            case "stream cut":
                self._open_stream()
                self.wfile.write(b"40\r\ndata: {")
            case "stream without an end":
                self._open_stream()
                self._write(b"data: [DONE]\n\n")
                self.wfile.write(b"0\r\n\r\n")
            case "silence":
                if self.command == "POST":
                    self._open_stream()
                time.sleep(3_600)
            case "exit":
                os._exit(1)
            case "SIGKILL" | "SIGSTOP":
                os.kill(os.getpid(), getattr(signal, how))
            case _:
                raise ValueError(how)

    def _open_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _event(self, tokens: list[int], finish: str | None) -> None:
        names = [f"token_id:{token}" for token in tokens]
        logprobs = {"tokens": names, "token_logprobs": [-0.25] * len(tokens), "top_logprobs": [{name: -0.25} for name in names]}
        choice = {"index": 0, "text": "", "logprobs": logprobs, "finish_reason": finish, "token_ids": tokens}
        message = {"id": "cmpl-1", "object": "text_completion", "model": "model", "choices": [choice]}
        self._write(b"data: " + json.dumps(message).encode() + b"\n\n")

    def _write(self, data: bytes) -> None:
        self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
        self.wfile.flush()

    def _send(self, status: int, body: str) -> None:
        data = body.encode("latin-1")
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        print(f"{time.monotonic():.2f}", self.command, self.path, args[1], flush=True)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, folder: Path, arguments: list[str]) -> None:
        script = json.loads((folder / "script.json").read_text())
        self.model = script["model"]
        self.how = (script["breaking"] or {}).get("how", "")
        self.context = int(arguments[arguments.index("--max-model-len") + 1])
        self._place = (script["breaking"] or {}).get("place", "")
        self._times: int = script["times"]
        self._faults, self._computed = folder / "faults", folder / "python"
        if self.breaks(START):
            self.start_broken(self.how)
        from tokenizers import Tokenizer  # a slow import, not needed by a start that fails

        self.tokenizer = Tokenizer.from_file(str(Path(self.model, "tokenizer.json")))
        super().__init__(("127.0.0.1", int(arguments[arguments.index("--port") + 1])), _Handler)

    def breaks(self, place: str) -> bool:
        """Whether this request is to fail; counts it."""
        if place != self._place:
            return False
        return _up(self._faults) <= self._times

    def computed(self) -> None:
        _up(self._computed)

    def start_broken(self, how: str) -> None:
        match how:
            case "CUDA error":
                sys.exit(
                    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.11 "
                    "GiB of which 1.06 GiB is free."
                )
            case "port taken":
                sys.exit("OSError: [Errno 98] Address already in use")
            case "SIGKILL" | "SIGSTOP":
                os.kill(os.getpid(), getattr(signal, how))
            case "silence":
                time.sleep(3_600)
            case _:
                raise ValueError(how)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores clients that have disconnected."""


def _up(path: Path) -> int:
    with path.open("ab") as file:  # one byte each, so that threads need no lock
        file.write(b".")
        return file.tell()


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    if sys.argv[1] == "-c":
        sys.exit()  # an import of vLLM, which succeeds
    folder = Path(sys.argv[0]).parent.parent
    with _Server(folder, sys.argv[1:]) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
