"""Gemma 4's turns: a thought channel, calls with ``<|"|>`` strings, and results inside the model's own turn.

    <bos><|turn>system\\n<|think|>\\n{system}<|tool>{declaration}<tool|><turn|>\\n<|turn>user\\n{problem}<turn|>\\n<|turn>model\\n
    <|channel>thought\\n...<channel|><|tool_call>call:python{code:<|"|>...<|"|>}<tool_call|><|tool_response>
    response:python{value:<|"|>...<|"|>}<tool_response|> ... the final text<turn|>

The model ends a call by sampling ``<|tool_response>`` itself. Source: ai.google.dev/gemma/docs/core/prompt-formatting-gemma4
and the chat template published with the models.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from aimo_solver.chat.gemma_call import QUOTE, code_of
from aimo_solver.chat.model_folder import ModelFolder
from aimo_solver.chat.prompts import ANSWER_NOW, COMPLAINT, FINAL_ANSWER, NOT_RUN, OUT_OF_TIME, PYTHON_TOOL
from aimo_solver.chat.salvage import python_blocks
from aimo_solver.chat.turns import MAX_CALLS, FinalText, Malformed, ToolCall, ToolCalls, Turn
from aimo_solver.errors import ModelError

_SPELLED_CALL = re.compile(rf"(?:<call>|(?:^|\s)call:)({PYTHON_TOOL.name}\s*+[{{(].*+)", re.DOTALL)
_MOST_QUOTES = 1_000  # in one call; real ones have two


@dataclass(frozen=True, slots=True)
class _Split:
    """A sampled turn, taken apart.

    Attributes:
        content: the text outside thoughts and calls.
        calls: the decoded insides of the first `MAX_CALLS` calls; None for one with more than `_MOST_QUOTES` quotes.
        left_out: how many calls follow those.
        fault: what was wrong around the calls.
        open_call: the last call lacks its end.
    """

    content: str
    calls: list[str | None]
    left_out: int
    in_thought: bool
    saw_channel: bool
    open_call: bool
    fault: str | None


class GemmaFormat:
    """Gemma 4. Thinking is on whenever there is a system turn; without one (`bare`) the prompt is the user turn alone."""

    name = "gemma"
    stop_strings: tuple[str, ...] = ()

    def __init__(self, folder: ModelFolder) -> None:
        """Raises ModelError if the tokenizer lacks one of the format's control tokens."""
        self._tokenizer = folder.tokenizer
        self._turn, self._end_turn = self._control(folder, "<|turn>"), self._control(folder, "<turn|>")
        self._channel, self._end_channel = self._control(folder, "<|channel>"), self._control(folder, "<channel|>")
        self._call, self._end_call = self._control(folder, "<|tool_call>"), self._control(folder, "<tool_call|>")
        self._response, self._end_response = self._control(folder, "<|tool_response>"), self._control(folder, "<tool_response|>")
        self._quote = self._control(folder, '<|"|>')
        self._control(folder, "<bos>")
        self._controls = frozenset(self._tokenizer.controls.values())
        eos = self._tokenizer.control("<eos>")
        ends = (self._end_turn, self._response, *(() if eos is None else (eos,)), *folder.stop_ids)
        self.stop_token_ids = tuple(dict.fromkeys(ends))
        self._ends = frozenset((self._turn, *self.stop_token_ids))
        # Newer templates open a thought after a tool's result when thinking is on; older ones leave it to the model.
        self._thinks_after_tool = "== 'tool_response' and enable_thinking" in folder.template

    def prompt(self, system: str, user: str, *, tools: bool) -> list[int]:
        template, plain = self._tokenizer.encode_template, self._tokenizer.encode
        tokens = template("<bos>")
        if system or tools:
            thinking = "<|think|>\n" if self._tokenizer.control("<|think|>") is not None else ""
            tokens += template(f"<|turn>system\n{thinking}") + plain(system.strip())
            tokens += template(_declaration() if tools else "") + template("<turn|>\n")
        return [*tokens, *template("<|turn>user\n"), *plain(user.strip()), *template("<turn|>\n<|turn>model\n")]

    def parse(self, sampled: Sequence[int], *, cut: bool) -> Turn:
        split = self._split(sampled)
        if split.calls:
            return self._tool_calls(split, cut=cut)
        if cut:
            return Malformed("Your turn was cut off by the length limit before its end.")
        text = split.content.strip()
        if split.in_thought:
            return Malformed("Your turn ended inside the thought channel, without a call and without a final text.")
        if "\\boxed" not in text:
            spelled = _SPELLED_CALL.search(text)
            code = code_of(spelled.group(1)) if spelled else None
            blocks = [code.text] if code else python_blocks(text)
            if blocks:
                return ToolCalls.first_of(blocks, "code in the text instead of a tool call")
        if not text:
            return Malformed("Your turn was empty.")
        return FinalText(text)

    def tool_results(self, sampled: Sequence[int], outputs: Sequence[str]) -> list[int]:
        template = self._tokenizer.encode_template
        split = self._split(sampled)
        if not split.calls:
            text = "\n".join(f"```output\n{output.rstrip()}\n```" for output in outputs)
            return self._user_turn(sampled, text)
        tokens: list[int] = self._open_response(sampled)
        for index, output in enumerate(outputs):
            if index:
                tokens.append(self._response)
            tokens += self._result(output)
        if self._thinks_after_tool and split.saw_channel:
            tokens += template("<|channel>thought\n")
        return tokens

    def complaint(self, sampled: Sequence[int], reason: str) -> list[int]:
        text = COMPLAINT.format(reason=reason)
        if sampled and sampled[-1] in (self._response, self._end_call):
            return [*self._open_response(sampled), *self._result(text)]
        return self._user_turn(sampled, text)

    def ask_answer(self, sampled: Sequence[int]) -> list[int]:
        template, plain = self._tokenizer.encode_template, self._tokenizer.encode
        split = self._split(sampled)
        ended = bool(sampled) and sampled[-1] in self.stop_token_ids and sampled[-1] != self._response
        if ended:
            tokens = self._user_turn(sampled, ANSWER_NOW)
        elif split.calls:
            close = template('<|"|>}<tool_call|>') if split.open_call else []
            tokens = [*close, *self._open_response([*sampled, *close])]
            for index in range(len(split.calls)):
                tokens += [self._response] * (index > 0) + self._result(NOT_RUN)
        elif split.in_thought or (self._thinks_after_tool and not split.saw_channel):
            tokens = [*plain(f"\n\n{OUT_OF_TIME}\n"), self._end_channel]
        else:
            tokens = plain("\n\n") if sampled else []
        return [*tokens, *plain(FINAL_ANSWER)]

    def answer_text(self, sampled: Sequence[int]) -> str:
        text = FINAL_ANSWER + self._split(sampled).content
        ended = bool(sampled) and sampled[-1] in self.stop_token_ids
        return text + "}" if ended and text.count("{") > text.count("}") else text

    def decode(self, tokens: Sequence[int]) -> str:
        return self._tokenizer.decode(tokens)

    def _control(self, folder: ModelFolder, text: str) -> int:
        number = self._tokenizer.control(text)
        if number is None:
            raise ModelError(folder.path, f"its tokenizer has no {text}, which the gemma format needs")
        return number

    def _split(self, sampled: Sequence[int]) -> _Split:
        content: list[int] = []
        calls: list[list[int]] = []
        state = "content"
        saw_channel = open_call = False
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
                state, open_call = "call", True
                calls.append([])
            elif token == self._end_call:
                state, open_call = "content", False
            elif token in self._ends:
                break
            elif state == "call":
                calls[-1].append(token)
            elif state == "content" and token not in self._controls:
                content.append(token)
                if calls:
                    fault = "text behind the call"
        return _Split(
            content=self._tokenizer.decode(content),
            calls=[self._call_text(call) for call in calls[:MAX_CALLS]],
            left_out=max(0, len(calls) - MAX_CALLS),
            in_thought=state == "thought",
            saw_channel=saw_channel,
            open_call=open_call,
            fault=fault,
        )

    def _call_text(self, tokens: Sequence[int]) -> str | None:
        if tokens.count(self._quote) > _MOST_QUOTES:  # each part between them is decoded by itself
            return None
        parts: list[list[int]] = [[]]
        for token in tokens:
            if token == self._quote:
                parts.append([])
            else:
                parts[-1].append(token)
        return QUOTE.join(self._tokenizer.decode(part) for part in parts)

    def _tool_calls(self, split: _Split, *, cut: bool) -> Turn:
        calls: list[ToolCall] = []
        notes = [split.fault] if split.fault else []
        for index, text in enumerate(split.calls):
            if cut and split.open_call and not split.left_out and index == len(split.calls) - 1:
                if not calls:
                    return Malformed("Your call was cut off by the length limit; send shorter code.")
                notes.append("a second call was cut off")
                break
            code = None if text is None else code_of(text)
            if code is None:
                return Malformed('Your call holds no code. Write it as call:python{code:<|"|>...<|"|>}.')
            calls.append(ToolCall(code.text))
            if code.mended:
                notes.append(code.mended)
        if split.open_call and not cut:
            notes.append("the call's end was missing")
        return ToolCalls(tuple(calls), "; ".join(dict.fromkeys(notes)) or None, split.left_out)

    def _open_response(self, sampled: Sequence[int]) -> list[int]:
        """From the sampled end to just behind ``<|tool_response>``."""
        if sampled and sampled[-1] == self._response:
            return []
        if sampled and sampled[-1] == self._end_call:
            return [self._response]
        end = [] if sampled and sampled[-1] in self.stop_token_ids else [self._end_turn]
        return [*end, *self._tokenizer.encode_template("\n<|turn>model\n<|tool_response>")]

    def _result(self, output: str) -> list[int]:
        template = self._tokenizer.encode_template
        opening = template(f'response:{PYTHON_TOOL.name}{{value:<|"|>')
        return [*opening, *self._tokenizer.encode(output), *template('<|"|>}<tool_response|>')]

    def _user_turn(self, sampled: Sequence[int], text: str) -> list[int]:
        template = self._tokenizer.encode_template
        end = [] if sampled and sampled[-1] in self.stop_token_ids else [self._end_turn]
        return [*end, *template("\n<|turn>user\n"), *self._tokenizer.encode(text), *template("<turn|>\n<|turn>model\n")]


def _declaration() -> str:
    tool = PYTHON_TOOL

    def quoted(text: str) -> str:
        return f'<|"|>{text}<|"|>'

    parameter = f"{tool.parameter}:{{description:{quoted(tool.parameter_description)},type:{quoted('STRING')}}}"
    parameters = f"properties:{{{parameter}}},required:[{quoted(tool.parameter)}],type:{quoted('OBJECT')}"
    return f"<|tool>declaration:{tool.name}{{description:{quoted(tool.description)},parameters:{{{parameters}}}}}<tool|>"
