r"""Gemma 4's turns: a thought channel, calls with ``<|"|>`` strings, and results inside the model's own turn.

    <bos><|turn>system\n<|think|>\n{system}<|tool>{declaration}<tool|><turn|>\n<|turn>user\n{problem}<turn|>\n<|turn>model\n
    <|channel>thought\n...<channel|><|tool_call>call:python{code:<|"|>...<|"|>}<tool_call|><|tool_response>
    response:python{value:<|"|>...<|"|>}<tool_response|> ... the final text<turn|>

The model ends a call by sampling ``<|tool_response>``. Source: ai.google.dev/gemma/docs/core/prompt-formatting-gemma4 and the
chat template published with the models.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from aimo_solver.chat import prompts
from aimo_solver.chat.gemma_call import QUOTE, code_of
from aimo_solver.chat.model_folder import ModelFolder
from aimo_solver.chat.prompts import PARAMETER_DESCRIPTION, TOOL, TOOL_PARAMETER, Prompt, close_box, no_result
from aimo_solver.chat.reading import has_answer, read_calls, read_text
from aimo_solver.chat.salvage import calls_in_json
from aimo_solver.chat.turns import MAX_CALLS, Malformed, Turn
from aimo_solver.errors import ModelError

_SPELLED_CALL = re.compile(rf"(?:<call>|(?:^|\s)call:)({TOOL}\s*+[{{(].*+)", re.DOTALL)
CONTROLS = (
    *("<|turn>", "<turn|>", "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>"),
    *('<|"|>', "<bos>"),
)
_MOST_QUOTES = 1_000  # in one call; real ones have two


@dataclass(frozen=True, slots=True)
class _Split:
    """The parts of a turn.

    Attributes:
        content: the text outside thoughts and calls.
        calls: the tokens of each call, and whether it has its end.
        fault: what was wrong around the calls.
    """

    content: str
    calls: list[tuple[list[int], bool]]
    in_thought: bool
    saw_channel: bool
    fault: str | None


class GemmaFormat:
    """Gemma 4. A system turn switches thinking on; without one (`bare`) the prompt is the user turn alone."""

    name = "gemma"
    stop_strings: tuple[str, ...] = ()

    def __init__(self, folder: ModelFolder) -> None:
        """Raises ModelError if the tokenizer lacks one of the format's control tokens."""
        self._tokenizer = folder.tokenizer
        controls = self._tokenizer.controls
        for name in CONTROLS:
            if name not in controls:
                raise ModelError(folder.path, f"its tokenizer has no {name}, which the gemma format needs")
        self._turn, self._end_turn = controls["<|turn>"], controls["<turn|>"]
        self._channel, self._end_channel = controls["<|channel>"], controls["<channel|>"]
        self._call, self._end_call = controls["<|tool_call>"], controls["<tool_call|>"]
        self._response, self._quote = controls["<|tool_response>"], controls['<|"|>']
        self._controls = frozenset(controls.values())
        self.stop_token_ids = folder.end_tokens("<turn|>", "<|tool_response>", "<eos>")
        # Newer templates open a thought after a tool's result when thinking is on; older ones leave it to the model.
        self._thinks_after_tool = "== 'tool_response' and enable_thinking" in folder.template

    def prompt(self, prompt: Prompt) -> list[int]:
        template, plain = self._tokenizer.encode_template, self._tokenizer.encode
        tokens = template("<bos>")
        if prompt.instructions or prompt.tool is not None:
            thinking = "<|think|>\n" if "<|think|>" in self._tokenizer.controls else ""
            tokens += template(f"<|turn>system\n{thinking}") + plain(prompt.instructions)
            tokens += template("" if prompt.tool is None else _declare_tool(prompt.tool)) + template("<turn|>\n")
        return [*tokens, *template("<|turn>user\n"), *plain(prompt.user.strip()), *template("<turn|>\n<|turn>model\n")]

    def parse(self, sampled: Sequence[int]) -> Turn:
        split = self._split(sampled)
        if split.calls:
            return read_calls(split.calls, self._split_call, code_of, lambda: self._beside_calls(split), split.fault)
        if split.in_thought and not has_answer(split.content):
            return Malformed("Your turn ended inside the thought channel, without a call and without a final text.")
        return read_text(split.content, _spelled_call, code_of)

    def tool_results(self, sampled: Sequence[int], outputs: Sequence[str]) -> list[int]:
        split = self._split(sampled)
        if not split.calls:
            return self._user_turn(sampled, "\n".join(f"```output\n{output.rstrip()}\n```" for output in outputs))
        tokens = self._responses(sampled, outputs)
        if self._thinks_after_tool and split.saw_channel:
            tokens += self._tokenizer.encode_template("<|channel>thought\n")
        return tokens

    def complaint(self, sampled: Sequence[int], reason: str) -> list[int]:
        text = prompts.COMPLAINT.format(reason=reason)
        if sampled and sampled[-1] in (self._response, self._end_call):
            return self._responses(sampled, [text])
        return self._user_turn(sampled, text)

    def ask_answer(self, sampled: Sequence[int], why: str = prompts.TIME_UP) -> list[int]:
        template, plain = self._tokenizer.encode_template, self._tokenizer.encode
        split = self._split(sampled)
        if self._ended(sampled) and sampled[-1] != self._response:
            tokens = self._user_turn(sampled, prompts.ANSWER_NOW.format(why=why))
        elif split.calls:
            close = [] if split.calls[-1][1] else template('<|"|>}<tool_call|>')
            tokens = [*close, *self._responses([*sampled, *close], [no_result(why)] * min(len(split.calls), MAX_CALLS))]
        elif split.in_thought or (self._thinks_after_tool and not split.saw_channel):
            tokens = [*plain(f"\n\n{prompts.END_THOUGHTS.format(why=why)}\n"), self._end_channel]
        else:
            tokens = plain("\n\n") if sampled else []
        return [*tokens, *plain(prompts.FINAL_ANSWER)]

    def answer_text(self, sampled: Sequence[int]) -> str:
        return close_box(prompts.FINAL_ANSWER + self._split(sampled).content, ended=self._ended(sampled))

    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens)

    def _ended(self, sampled: Sequence[int]) -> bool:
        return bool(sampled) and sampled[-1] in self.stop_token_ids

    def _split(self, sampled: Sequence[int]) -> _Split:
        content: list[int] = []
        calls: list[tuple[list[int], bool]] = []
        state = "content"
        saw_channel = False
        fault: str | None = None
        for token in sampled:
            if token == self._channel:
                state, saw_channel = "thought", True
            elif token == self._end_channel:
                if not saw_channel:
                    content.clear()  # the thought was opened before this turn
                state, saw_channel = "content", True
            elif token == self._call:
                if state != "content":
                    fault = f"a call inside a {state}"
                state = "call"
                calls.append(([], False))
            elif token == self._end_call:
                state = "content"
                if calls:
                    calls[-1] = (calls[-1][0], True)
            elif token == self._turn or token in self.stop_token_ids:
                break
            elif state == "call":
                calls[-1][0].append(token)
            elif state == "content" and token not in self._controls:
                content.append(token)
                if calls:
                    fault = "text after the call"
        return _Split(self.decode(content), calls, state == "thought", saw_channel, fault)

    def _beside_calls(self, split: _Split) -> str:
        """The text outside thoughts and calls, with a last call that has no end: the text may only mention its tag."""
        tokens, ended = split.calls[-1]
        return split.content if ended else split.content + self.decode(tokens)

    def _split_call(self, tokens: Sequence[int]) -> list[str]:
        """The texts of the calls in one, with `QUOTE` for the quote token."""
        if tokens.count(self._quote) > _MOST_QUOTES:  # the text between two quotes is decoded by itself
            return [""]
        parts: list[list[int]] = [[]]
        for token in tokens:
            if token == self._quote:
                parts.append([])
            else:
                parts[-1].append(token)
        return calls_in_json(QUOTE.join(map(self.decode, parts)))

    def _responses(self, sampled: Sequence[int], outputs: Sequence[str]) -> list[int]:
        """One response per output, as a continuation of the model's turn."""
        template, plain = self._tokenizer.encode_template, self._tokenizer.encode
        tokens = self._open_response(sampled)
        for index, output in enumerate(outputs):
            tokens += [*[self._response] * (index > 0), *template(f'response:{TOOL}{{value:<|"|>')]
            tokens += [*plain(output), *template('<|"|>}<tool_response|>')]
        return tokens

    def _open_response(self, sampled: Sequence[int]) -> list[int]:
        """The tokens after the turn up to ``<|tool_response>``."""
        if sampled and sampled[-1] == self._response:
            return []
        if sampled and sampled[-1] == self._end_call:
            return [self._response]
        return [*self._close_turn(sampled), *self._tokenizer.encode_template("\n<|turn>model\n<|tool_response>")]

    def _user_turn(self, sampled: Sequence[int], text: str) -> list[int]:
        template, plain = self._tokenizer.encode_template, self._tokenizer.encode
        opening = [*self._close_turn(sampled), *template("\n<|turn>user\n")]
        return [*opening, *plain(text), *template("<turn|>\n<|turn>model\n")]

    def _close_turn(self, sampled: Sequence[int]) -> list[int]:
        return [] if self._ended(sampled) else [self._end_turn]


def _spelled_call(text: str) -> list[str]:
    """A call written in plain text."""
    place = _SPELLED_CALL.search(text)
    return [place.group(1)] if place else []


def _declare_tool(description: str) -> str:
    def quoted(text: str) -> str:
        return f'<|"|>{text}<|"|>'

    parameter = f"{TOOL_PARAMETER}:{{description:{quoted(PARAMETER_DESCRIPTION)},type:{quoted('STRING')}}}"
    parameters = f"properties:{{{parameter}}},required:[{quoted(TOOL_PARAMETER)}],type:{quoted('OBJECT')}"
    return f"<|tool>declaration:{TOOL}{{description:{quoted(description)},parameters:{{{parameters}}}}}<tool|>"
