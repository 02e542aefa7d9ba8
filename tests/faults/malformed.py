"""200 malformed turns as real models write them, and how each should be read.

Control tokens are spelled out in the texts; the test encodes them as control tokens. Expected is the code of the recovered
calls, `Final` for a final text, or `Told` for a word of the reason that the model gets.
"""

# ruff: noqa: E501 (one turn, one line)

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Final:
    """The turn is a final text."""

    text: str


@dataclass(frozen=True)
class Told:
    """The model gets a reason that contains `word`."""

    word: str


Expected = tuple[str, ...] | Final | Told
Rows = list[tuple[str, str, Expected]]


@dataclass(frozen=True)
class Fault:
    """One turn and how it should be read; a tuple lists the code of the recovered calls."""

    family: str
    what: str
    text: str
    expected: Expected


_CALL = "<|tool_call>call:python{"
_Q = '<|"|>'
_END = "<tool_call|><|tool_response>"
_THINK = "<|channel>thought\nhm\n<channel|>"

GEMMA: Rows = [
    # how the call begins
    ("no 'call'", f"<|tool_call>:python{{code:{_Q}a=1{_Q}}}{_END}", ("a=1",)),
    ("no 'call:'", f"<|tool_call>python{{code:{_Q}a=1{_Q}}}{_END}", ("a=1",)),
    ("spaces around the name", f"<|tool_call> call: python {{code:{_Q}a=1{_Q}}}{_END}", ("a=1",)),
    ("another tool's name", f"<|tool_call>call:python_interpreter{{code:{_Q}a=1{_Q}}}{_END}", ("a=1",)),
    ("a name with a dot", f"<|tool_call>call:functions.python{{code:{_Q}a=1{_Q}}}{_END}", ("a=1",)),
    ("a name with a colon", f"<|tool_call>call:default_api:python{{code:{_Q}a=1{_Q}}}{_END}", ("a=1",)),
    ("no name", f"<|tool_call>call:{{code:{_Q}a=1{_Q}}}{_END}", ("a=1",)),
    ("parentheses for braces", f"<|tool_call>call:python(code:{_Q}a=1{_Q}){_END}", ("a=1",)),
    ("keyword arguments", f"<|tool_call>call:python(code={_Q}a=1{_Q}){_END}", ("a=1",)),
    ("keyword arguments in plain quotes", f'<|tool_call>call:python(code="print(1)"){_END}', ("print(1)",)),
    ("two braces", f"<|tool_call>call:python{{{{code:{_Q}a=1{_Q}}}}}{_END}", ("a=1",)),
    # keys
    ("the key in quotes", f"{_CALL}{_Q}code{_Q}:{_Q}a=1{_Q}}}{_END}", ("a=1",)),
    ("the key in plain quotes", f'{_CALL}"code":{_Q}a=1{_Q}}}{_END}', ("a=1",)),
    ("another key", f"{_CALL}source:{_Q}a=1{_Q}}}{_END}", ("a=1",)),
    ("an invented key", f"{_CALL}python_script:{_Q}a=1{_Q}}}{_END}", ("a=1",)),
    ("no key", f"{_CALL}{_Q}a=1{_Q}}}{_END}", ("a=1",)),
    ("an equals sign for the colon", f"{_CALL}code={_Q}a=1{_Q}}}{_END}", ("a=1",)),
    ("a second argument", f"{_CALL}timeout:5,code:{_Q}a=1{_Q}}}{_END}", ("a=1",)),
    ("a second argument that is a string", f"{_CALL}code:{_Q}a=1{_Q},note:{_Q}x{_Q}}}{_END}", ("a=1",)),
    # quotes
    ("no quotes", f"{_CALL}code:print(1, 2)}}{_END}", ("print(1, 2)",)),
    ("no quotes, with a dict", f"{_CALL}code:d = {{1: 2}}\nprint(d)}}{_END}", ("d = {1: 2}\nprint(d)",)),
    ("plain quotes", f'{_CALL}code:"print(1)"}}{_END}', ("print(1)",)),
    ("plain quotes with escapes", f'{_CALL}code:"print(1)\\nprint(2)"}}{_END}', ("print(1)\nprint(2)",)),
    ("triple quotes", f'{_CALL}code:"""\nprint(1)\n"""}}{_END}', ("\nprint(1)\n",)),
    ("JSON arguments", f'{_CALL}"code": "print(1)\\nprint(\\"a\\")"}}{_END}', ('print(1)\nprint("a")',)),
    ("quote tokens as Python's quotes", f"{_CALL}code:{_Q}print({_Q}a{_Q}){_Q}}}{_END}", ('print("a")',)),
    ("no quote at the end", f"{_CALL}code:{_Q}print(1)}}{_END}", ("print(1)",)),
    ("no quote at the end of a dict", f"{_CALL}code:{_Q}d = {{1: 2}}}}{_END}", ("d = {1: 2}",)),
    ("no quote at the beginning", f"{_CALL}code:print(1){_Q}}}{_END}", ("print(1)",)),
    ("two quotes at the end", f"{_CALL}code:{_Q}print(1){_Q}{_Q}}}{_END}", ("print(1)",)),
    ("fences inside the quotes", f"{_CALL}code:{_Q}```python\nprint(1)\n```{_Q}}}{_END}", ("print(1)",)),
    ("a fence that does not close", f"{_CALL}code:{_Q}```python\nprint(1)\n{_Q}}}{_END}", ("print(1)",)),
    # ends
    ("no brace at the end", f"{_CALL}code:{_Q}a=1{_Q}{_END}", ("a=1",)),
    ("two braces at the end", f"{_CALL}code:{_Q}a=1{_Q}}}}}{_END}", ("a=1",)),
    ("end of turn for end of call", f"{_CALL}code:{_Q}a=1{_Q}}}<turn|>", ("a=1",)),
    ("end of text for end of call", f"{_CALL}code:{_Q}a=1{_Q}}}<eos>", ("a=1",)),
    ("no end at all", f"{_CALL}code:{_Q}print(1)", ("print(1)",)),
    ("the result's marker for the end of call", f"{_CALL}code:{_Q}a=1{_Q}}}<|tool_response>", ("a=1",)),
    ("text behind the call", f"{_CALL}code:{_Q}a=1{_Q}}}<tool_call|>\nI wait.<turn|>", ("a=1",)),
    ("a call inside a call", f"{_CALL}code:{_Q}a=1{_Q}}}{_CALL}code:{_Q}b=2{_Q}}}{_END}", ("a=1", "b=2")),
    # places
    ("a call inside the thought", f"<|channel>thought\nhm {_CALL}code:{_Q}a=1{_Q}}}{_END}", ("a=1",)),
    ("a call in words", "call:python{code:print(1)}<turn|>", ("print(1)",)),
    ("a call in words with plain quotes", 'Now call:python{code:"print(1)"}<turn|>', ("print(1)",)),
    ("a call in an old model's tags", "<call>python{code:print(1)}<turn|>", ("print(1)",)),
    ("a block instead of a call", f"{_THINK}I run\n```python\nprint(1)\n```\n<turn|>", ("print(1)\n",)),
    ("two blocks instead of a call", "```python\na=1\n```\nand\n```py\nprint(a)\n```<turn|>", ("a=1\n", "print(a)\n")),
    # nothing to recover
    ("an empty call", f"<|tool_call>{_END}", Told("no code")),
    ("no arguments", f"{_CALL}}}{_END}", Told("no code")),
    ("empty code", f"{_CALL}code:{_Q}  \n{_Q}}}{_END}", Told("no code")),
    ("nothing", "<turn|>", Told("empty")),
    ("only a thought", f"{_THINK}<turn|>", Told("empty")),
    ("a thought that does not end", "<|channel>thought\nI think \\boxed{1}<turn|>", Told("thought")),
    ("the label without the channel", "thought\nhm <channel|>It is \\boxed{1}<turn|>", Final("It is \\boxed{1}")),
    ("two thoughts", f"{_THINK}{_THINK}It is \\boxed{{1}}<turn|>", Final("It is \\boxed{1}")),
    ("an answer outside every box", f"{_THINK}It is 1.<turn|>", Final("It is 1.")),
    ("padding in the text", f"{_THINK}<pad>It is \\boxed{{1}}<pad><turn|>", Final("It is \\boxed{1}")),
    # an answer beside something else
    ("the beginning of a call behind the answer", f"{_THINK}It is \\boxed{{1}}<|tool_call><turn|>", Final("It is \\boxed{1}")),
    ("an empty call behind the answer", f"{_THINK}It is \\boxed{{1}}{_CALL}}}{_END}", Final("It is \\boxed{1}")),
    (
        "an unreadable call behind the answer",
        f"{_THINK}It is \\boxed{{1}}<|tool_call>call:search{{query:{_Q}x{_Q}}}{_END}",
        Final("It is \\boxed{1}"),
    ),
    (
        "a mention of a tag beside the answer",
        f"{_THINK}Without a <|tool_call>, it is \\boxed{{1}}<turn|>",
        Final("Without a , it is \\boxed{1}"),
    ),
    ("a thought behind the answer", f"{_THINK}It is \\boxed{{1}}<|channel>thought\nhm<turn|>", Final("It is \\boxed{1}")),
    ("a guess before a thought", f"{_THINK}Maybe \\boxed{{1}}?<|channel>thought\nhm<turn|>", Told("thought")),
    # other tools
    ("a query", f"<|tool_call>call:search{{query:{_Q}primes{_Q}}}{_END}", Told("no tool search")),
    ("a query that compiles", f"<|tool_call>call:search{{query:{_Q}gcd(4, 6){_Q}}}{_END}", Told("no tool search")),
    ("a query in plain quotes", f'<|tool_call>call:search{{query:"primes"}}{_END}', Told("no tool search")),
    ("a query without quotes", f"<|tool_call>call:search{{query:primes}}{_END}", Told("no tool search")),
    ("a word for another tool", f"<|tool_call>call:search{{input:{_Q}primes{_Q}}}{_END}", Told("no tool search")),
    ("numbers for another tool", f"<|tool_call>call:oeis{{input:{_Q}1, 1, 2, 3{_Q}}}{_END}", Told("no tool oeis")),
    ("a query in JSON", f'<|tool_call>{{"name": "search", "arguments": {{"input": "primes"}}}}{_END}', Told("no tool search")),
    (
        "two calls in a list",
        f'<|tool_call>[{{"name": "python", "arguments": {{"code": "a=1"}}}}, {{"name": "python", "arguments": {{"code": "b=2"}}}}]{_END}',
        ("a=1", "b=2"),
    ),
]

_A = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
_TO = "<|channel|>analysis to=python code<|message|>"

HARMONY: Rows = [
    # headers
    ("no content type", f"{_A}<|channel|>analysis to=python<|message|>a=1<|end|>", ("a=1",)),
    ("the final channel", f"{_A}<|channel|>final to=python code<|message|>a=1<|call|>", ("a=1",)),
    ("an unknown channel", f"{_A}<|channel|>comment to=python code<|message|>a=1<|call|>", ("a=1",)),
    ("no channel", f"{_A} to=python<|message|>a=1<|call|>", ("a=1",)),
    ("no recipient, sent off as a call", f"{_A}<|channel|>analysis code<|message|>a=1<|call|>", ("a=1",)),
    ("no recipient and no content type", f"{_A}<|channel|>commentary<|message|>a=1<|call|>", ("a=1",)),
    ("no recipient, marked as code", f"{_A}<|channel|>commentary <|constrain|>code<|message|>a=1<|end|>", ("a=1",)),
    ("two channels", f"{_A}<|channel|>commentary<|channel|>analysis to=python code<|message|>a=1<|end|>", ("a=1",)),
    ("noise in the channel", f"{_A}<|channel|>––commentary to=python code<|message|>a=1<|end|>", ("a=1",)),
    ("noise behind the channel", f"{_A}<|channel|>commentary?? to=python code<|message|>a=1<|end|>", ("a=1",)),
    ("the recipient twice", f"{_A} to=python<|channel|>analysis to=python code<|message|>a=1<|end|>", ("a=1",)),
    ("a space behind to=", f"{_A}<|channel|>analysis to= python code<|message|>a=1<|end|>", ("a=1",)),
    ("the channel stuck to the recipient", f"{_A}<|channel|>analysis to=python<|channel|>commentary<|message|>a=1<|end|>", ("a=1",)),
    ("a role repeated in the header", f"{_A}<|channel|>analysis to=python assistant<|message|>a=1<|end|>", ("a=1",)),
    ("constrain stuck to the recipient", f"{_A}<|channel|>commentary to=python<|constrain|>code<|message|>a=1<|end|>", ("a=1",)),
    # unknown recipients
    ("a recipient that does not exist", f"{_A}<|channel|>commentary to=container.exec code<|message|>a = 1\nprint(a)<|call|>", ("a = 1\nprint(a)",)),
    ("a function of python", f"{_A}<|channel|>commentary to=python.run code<|message|>print(1)<|call|>", ("print(1)",)),
    ("jupyter", f"{_A}<|channel|>analysis to=jupyter code<|message|>print(1)<|call|>", ("print(1)",)),
    ("an invented function", f'{_A}<|channel|>commentary to=functions.execute json<|message|>{{"code": "print(1)"}}<|call|>', ("print(1)",)),
    ("repo_browser", f'{_A}<|channel|>commentary to=repo_browser.open json<|message|>{{"path": "x"}}<|call|>', Told("repo_browser.open")),
    ("the browser", f'{_A}<|channel|>analysis to=browser.search code<|message|>{{"query": "imo 2025 p6"}}<|call|>', Told("browser.search")),
    ("a shell command", f'{_A}<|channel|>analysis to=container.exec code<|message|>{{"cmd": ["bash", "-lc", "ls"]}}<|call|>', Told("container.exec")),
    ("words for a tool that does not exist", f"{_A}<|channel|>analysis to=wolfram<|message|>integrate x^2 from 0<|call|>", Told("wolfram")),
    # bodies
    ("JSON to python", f'{_A}{_TO}{{"code": "print(1)"}}<|call|>', ("print(1)",)),
    ("JSON with another key", f'{_A}{_TO}{{"script": "print(1)"}}<|call|>', ("print(1)",)),
    ("JSON with raw newlines", f'{_A}{_TO}{{"code": "a=1\nprint(a)"}}<|call|>', ("a=1\nprint(a)",)),
    ("JSON without its last brace", f'{_A}{_TO}{{"code": "print(1)"<|call|>', ("print(1)",)),
    ("JSON cut in its string", f'{_A}{_TO}{{"code": "print(1)<|call|>', ("print(1)",)),
    ("JSON inside fences", f'{_A}{_TO}```json\n{{"code": "print(1)"}}\n```<|call|>', ("print(1)",)),
    ("fences", f"{_A}{_TO}```python\nprint(1)\n```<|call|>", ("print(1)",)),
    ("a fence without its end", f"{_A}{_TO}```python\nprint(1)\n<|call|>", ("print(1)",)),
    ("a fence without a language", f"{_A}{_TO}```\nprint(1)\n```<|call|>", ("print(1)",)),
    # ends
    ("the end of a message", f"{_A}{_TO}a=1<|end|>", ("a=1",)),
    ("the return", f"{_A}{_TO}a=1<|return|>", ("a=1",)),
    ("the end of text", f"{_A}{_TO}a=1<|endoftext|>", ("a=1",)),
    ("no end", f"{_A}{_TO}a=1", ("a=1",)),
    ("another message without an end before it", f"{_A}{_TO}a=1<|start|>assistant{_TO}b=2<|call|>", ("a=1", "b=2")),
    ("another channel without an end before it", f"{_A}{_TO}a=1<|channel|>analysis<|message|>wait<|end|>", ("a=1",)),
    ("two calls in one turn", f"{_A}{_TO}a=1<|end|><|start|>assistant{_TO}print(a)<|end|>", ("a=1", "print(a)")),
    ("a result made up behind the call", f"{_A}{_TO}print(1)<|end|><|start|>python<|channel|>analysis<|message|>7<|end|>", ("print(1)",)),
    ("an answer behind the call", f"{_A}{_TO}a=1<|end|><|start|>assistant<|channel|>final<|message|>\\boxed{{1}}<|return|>", ("a=1",)),
    # code elsewhere
    ("a block in the final text", f"{_A}<|channel|>final<|message|>I run\n```python\nprint(1)\n```<|return|>", ("print(1)\n",)),
    ("a block in the commentary", f"{_A}<|channel|>commentary<|message|>```python\nprint(1)\n```<|return|>", ("print(1)\n",)),
    ("a block in the analysis", "<|channel|>analysis<|message|>so\n```python\nprint(1)\n```\n<|return|>", ("print(1)\n",)),
    # nothing to recover
    ("empty code", f"{_A}{_TO} <|call|>", Told("no code")),
    ("nothing", "<|return|>", Told("without a call")),
    ("only analysis", "<|channel|>analysis<|message|>It is \\boxed{1}<|end|>", Told("final channel")),
    ("a header without a message", "<|channel|>final", Told("without a call")),
    ("an empty final text", f"{_A}<|channel|>final<|message|> <|return|>", Told("final channel")),
    ("the user's next message made up", f"{_A}<|end|><|start|>user<|message|>\\boxed{{3}}<|end|>", Told("final channel")),
    # final texts
    ("the final text in the commentary", f"{_A}<|channel|>commentary<|message|>It is \\boxed{{1}}<|return|>", Final("It is \\boxed{1}")),
    ("the final text without a channel", f"{_A}<|message|>It is \\boxed{{1}}<|return|>", Final("It is \\boxed{1}")),
    ("the final text ended like a message", f"{_A}<|channel|>final<|message|>\\boxed{{1}}<|end|>", Final("\\boxed{1}")),
    ("the final text constrained", f"{_A}<|channel|>final <|constrain|>text<|message|>\\boxed{{1}}<|return|>", Final("\\boxed{1}")),
    ("two final texts", "<|channel|>final<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>\\boxed{1}<|return|>", Final("a\n\\boxed{1}")),
    # an answer beside something else
    ("the final text sent off as a call", f"{_A}<|channel|>final<|message|>It is \\boxed{{1}}<|call|>", Final("It is \\boxed{1}")),
    ("a number sent off as a call", f"{_A}<|channel|>final<|message|>42<|call|>", Final("42")),
    ("an empty call behind the answer", f"{_A}<|channel|>final<|message|>It is \\boxed{{1}}<|end|><|start|>assistant{_TO}<|call|>", Final("It is \\boxed{1}")),
    ("an unreadable call before the answer", f"{_A}<|channel|>analysis to=wolfram<|message|>the sum of x<|end|><|start|>assistant<|channel|>final<|message|>\\boxed{{1}}<|return|>", Final("\\boxed{1}")),
    ("a mention of a tag beside the answer", f"{_A}<|channel|>final<|message|>In the<|channel|> I found \\boxed{{1}}<|return|>", Final("In the\n<|channel|> I found \\boxed{1}")),
    ("a thought behind the answer", f"{_A}<|channel|>final<|message|>It is \\boxed{{1}}<|end|><|start|>assistant<|channel|>analysis<|message|>hm<|end|>", Final("It is \\boxed{1}")),
    ("half a thought without a header", "maybe \\boxed{1}? let me check<|return|>", Told("final channel")),
    ("half a thought without a channel", "<|message|>maybe \\boxed{1}? let me check<|end|>", Told("final channel")),
    # other tools
    ("a word for the browser", f"{_A}<|channel|>analysis to=browser.search code<|message|>primes<|call|>", Told("no tool browser.search")),
    ("numbers for the browser", f"{_A}<|channel|>analysis to=browser.search code<|message|>1, 1, 2, 3<|call|>", Told("no tool browser.search")),
    ("a query for the browser", f'{_A}<|channel|>analysis to=browser.search<|message|>query: "primes"<|call|>', Told("no tool browser.search")),
    ("a word in JSON for the browser", f'{_A}<|channel|>analysis to=browser.search code<|message|>{{"input": "primes"}}<|call|>', Told("no tool browser.search")),
    ("a word for no tool", f"{_A}<|channel|>commentary<|message|>done<|call|>", Told("no code")),
    ("two calls in a list", f'{_A}<|channel|>commentary to=functions.python json<|message|>[{{"code": "a=1"}}, {{"code": "b=2"}}]<|call|>', ("a=1", "b=2")),
    ("a role of its own", "<|channel|>analysis<|message|>x<|end|><|start|>final<|message|>\\boxed{1}<|return|>", Final("\\boxed{1}")),
]  # fmt: skip

_H = "<think>\nhm\n</think>\n\n"
_T, _E = "<tool_call>\n", "\n</tool_call><|im_end|>"


def _args(code: str) -> str:
    return '{"name": "python", "arguments": {"code": "' + code + '"}}'


def _call(code: str) -> str:
    """A turn with one call; the code stands between the quotes as it is."""
    return f"{_H}{_T}{_args(code)}{_E}"


HERMES: Rows = [
    # JSON
    ("raw newlines", _call("a=1\nprint(a)"), ("a=1\nprint(a)",)),
    ("raw tabs", _call("if 1:\\n\tprint(1)"), ("if 1:\n\tprint(1)",)),
    ("backslashes not escaped", _call(r"print(r'\d+')"), (r"print(r'\d+')",)),
    ("LaTeX not escaped", _call(r"# \sqrt and \(x\)\nprint(1)"), ("# \\sqrt and \\(x\\)\nprint(1)",)),
    ("quotes not escaped", _call('print("a")'), ('print("a")',)),
    ("quotes not escaped, newlines escaped", _call(r'x = "a"\nprint(x)'), ('x = "a"\nprint(x)',)),
    ("a brace missing", f'{_H}{_T}{{"name": "python", "arguments": {{"code": "print(1)"}}{_E}', ("print(1)",)),
    ("two braces missing", f'{_H}{_T}{{"name": "python", "arguments": {{"code": "print(1)"{_E}', ("print(1)",)),
    ("a brace too much", f"{_H}{_T}{_args('print(1)')}}}{_E}", ("print(1)",)),
    ("a quote and braces missing", f'{_H}{_T}{{"name": "python", "arguments": {{"code": "print(1){_E}', ("print(1)",)),
    ("a comma too much", f'{_H}{_T}{{"name": "python", "arguments": {{"code": "print(1)",}},}}{_E}', ("print(1)",)),
    ("single quotes", f"{_H}{_T}{{'name': 'python', 'arguments': {{'code': 'print(1)'}}}}{_E}", ("print(1)",)),
    ("keys without quotes", f'{_H}{_T}{{name: "python", arguments: {{code: "print(1)"}}}}{_E}', ("print(1)",)),
    ("triple quotes", f'{_H}{_T}{{"name": "python", "arguments": {{"code": """\nprint(1)\n"""}}}}{_E}', ("\nprint(1)\n",)),
    ("backquotes", f'{_H}{_T}{{"name": "python", "arguments": {{"code": `print(1)`}}}}{_E}', ("print(1)",)),
    ("text behind the JSON", f"{_H}{_T}{_args('print(1)')}\nI wait.{_E}", ("print(1)",)),
    ("text before the JSON", f"{_H}{_T}json\n{_args('print(1)')}{_E}", ("print(1)",)),
    ("fences around the JSON", f"{_H}{_T}```json\n{_args('print(1)')}\n```{_E}", ("print(1)",)),
    ("two objects in one call", f"{_H}{_T}{_args('a=1')}\n{_args('b=2')}{_E}", ("a=1", "b=2")),
    ("two objects in a list", f"{_H}{_T}[{_args('a=1')}, {_args('b=2')}]{_E}", ("a=1", "b=2")),
    ("two objects in a list without tags", f"{_H}[{_args('a=1')}, {_args('b=2')}]<|im_end|>", ("a=1", "b=2")),
    ("two functions in one call", f"{_H}{_T}<function=python>\n<parameter=code>\na=1\n</parameter>\n</function>\n<function=python>\n<parameter=code>\nb=2\n</parameter>\n</function>{_E}", ("a=1", "b=2")),
    ("a list around the object", f"{_H}{_T}[{_args('print(1)')}]{_E}", ("print(1)",)),
    # shapes
    ("parameters for arguments", f'{_H}{_T}{{"name": "python", "parameters": {{"code": "print(1)"}}}}{_E}', ("print(1)",)),
    ("arguments in a string", f'{_H}{_T}{{"name": "python", "arguments": "{{\\"code\\": \\"print(1)\\"}}"}}{_E}', ("print(1)",)),
    ("the code as arguments", f'{_H}{_T}{{"name": "python", "arguments": "print(1)"}}{_E}', ("print(1)",)),
    ("no arguments around the code", f'{_H}{_T}{{"name": "python", "code": "print(1)"}}{_E}', ("print(1)",)),
    ("only the arguments", f'{_H}{_T}{{"code": "print(1)"}}{_E}', ("print(1)",)),
    ("another key", f'{_H}{_T}{{"name": "python", "arguments": {{"script": "print(1)"}}}}{_E}', ("print(1)",)),
    ("another name", f'{_H}{_T}{{"name": "code_interpreter", "arguments": {{"code": "print(1)"}}}}{_E}', ("print(1)",)),
    ("OpenAI's shape", f'{_H}{_T}{{"type": "function", "function": {{"name": "python", "arguments": {{"code": "print(1)"}}}}}}{_E}', ("print(1)",)),
    ("lines in a list", f'{_H}{_T}{{"name": "python", "arguments": {{"code": ["a=1", "print(a)"]}}}}{_E}', ("a=1\nprint(a)",)),
    ("fences inside the code", _call(r"```python\nprint(1)\n```"), ("print(1)",)),
    ("bare code", f"{_H}{_T}print(1)\nprint(2){_E}", ("print(1)\nprint(2)",)),
    ("bare code in fences", f"{_H}{_T}```python\nprint(1)\n```{_E}", ("print(1)",)),
    ("XML without its end of parameter", f"{_H}{_T}<function=python>\n<parameter=code>\nprint(1)\n</function>{_E}", ("print(1)",)),
    ("XML without any end", f"{_H}{_T}<function=python>\n<parameter=code>\nprint(1){_E}", ("print(1)",)),
    ("XML with another key", f"{_H}{_T}<function=python>\n<parameter=script>\nprint(1)\n</parameter>\n</function>{_E}", ("print(1)",)),
    ("XML with another name", f"{_H}{_T}<function=run>\n<parameter=code>\nprint(1)\n</parameter>\n</function>{_E}", ("print(1)",)),
    ("XML with spaces", f"{_H}{_T}<function = python>\n< parameter = code >\nprint(1)\n</parameter>\n</function >{_E}", ("print(1)",)),
    ("XML in capitals of the key", f"{_H}{_T}<function=python>\n<parameter=Code>\nprint(1)\n</parameter>\n</function>{_E}", ("print(1)",)),
    # tags
    ("no end of call", f"{_H}{_T}{_args('print(1)')}<|im_end|>", ("print(1)",)),
    ("a beginning for the end of call", f"{_H}{_T}{_args('print(1)')}\n<tool_call><|im_end|>", ("print(1)",)),
    ("the beginning twice", f"{_H}<tool_call><tool_call>\n{_args('print(1)')}{_E}", ("print(1)",)),
    ("the end of text", f"{_H}{_T}{_args('print(1)')}<|endoftext|>", ("print(1)",)),
    ("no tags", f"{_H}{_args('print(1)')}<|im_end|>", ("print(1)",)),
    ("XML without tags of a call", f"{_H}<function=python>\n<parameter=code>\nprint(1)\n</parameter>\n</function><|im_end|>", ("print(1)",)),
    ("a block instead of a call", f"{_H}I run\n```python\nprint(1)\n```<|im_end|>", ("print(1)\n",)),
    ("a result made up behind the call", f"{_H}{_T}{_args('print(1)')}\n<tool_response>\n7\n</tool_response><|im_end|>", ("print(1)",)),
    ("a call inside the thoughts", f"<think>\nhm {_T}{_args('print(1)')}<|im_end|>", ("print(1)",)),
    ("two calls, one without its end", f"{_H}{_T}{_args('a=1')}\n{_T}{_args('b=2')}{_E}", ("a=1", "b=2")),
    # nothing to recover
    ("an empty call", f"{_H}{_T}{_E}", Told("could not be read")),
    ("empty code", f"{_H}{_T}{_args('')}{_E}", Told("could not be read")),
    ("no code in the arguments", f'{_H}{_T}{{"name": "python", "arguments": {{}}}}{_E}', Told("could not be read")),
    ("words in a call", f"{_H}{_T}please compute the sum{_E}", Told("could not be read")),
    ("nothing", "<|im_end|>", Told("empty")),
    ("only thoughts", f"{_H}<|im_end|>", Told("empty")),
    ("thoughts that do not end", "<think>\nIt is \\boxed{1}<|im_end|>", Told("thoughts")),
    # final texts
    ("the end of the thoughts twice", f"{_H}</think>\nIt is \\boxed{{1}}<|im_end|>", Final("It is \\boxed{1}")),
    # an answer beside something else
    ("the beginning of a call behind the answer", f"{_H}It is \\boxed{{1}}<tool_call><|im_end|>", Final("It is \\boxed{1}")),
    ("an empty call behind the answer", f"{_H}It is \\boxed{{1}}{_T}{_E}", Final("It is \\boxed{1}")),
    ("an unreadable call behind the answer", f"{_H}It is \\boxed{{1}}{_T}please compute the sum{_E}", Final("It is \\boxed{1}")),
    ("a mention of a tag beside the answer", f"{_H}Without a <tool_call>, it is \\boxed{{1}}<|im_end|>", Final("Without a , it is \\boxed{1}")),
    ("a mention of a tag in the thoughts", "<think>\nNo <tool_call> here\n</think>\n\nIt is \\boxed{1}<|im_end|>", Final("It is \\boxed{1}")),
    ("a thought behind the answer", f"{_H}It is \\boxed{{1}}\n<think>\nhm<|im_end|>", Final("It is \\boxed{1}")),
    ("a guess before a thought", f"{_H}Maybe \\boxed{{1}}?\n<think>\nlet me check<|im_end|>", Told("thoughts")),
    # other tools
    ("a query", f'{_H}{_T}{{"name": "search", "arguments": {{"query": "primes"}}}}{_E}', Told("no tool search")),
    ("a word for another tool", f'{_H}{_T}{{"name": "search", "arguments": {{"input": "primes"}}}}{_E}', Told("no tool search")),
    ("a word as arguments", f'{_H}{_T}{{"name": "search", "arguments": "primes"}}{_E}', Told("no tool search")),
    ("a query in XML", f"{_H}{_T}<function=search>\n<parameter=query>\nprimes\n</parameter>\n</function>{_E}", Told("no tool search")),
    ("a query in XML that compiles", f"{_H}{_T}<function=search>\n<parameter=query>\ngcd(4, 6)\n</parameter>\n</function>{_E}", Told("no tool search")),
    ("a word in XML", f"{_H}{_T}<function=search>primes</function>{_E}", Told("no tool search")),
    ("a word in a call", f"{_H}{_T}primes{_E}", Told("could not be read")),
    ("a query without tags", f'{_H}{{"name": "search", "arguments": {{"input": "primes"}}}}<|im_end|>', Final('{"name": "search", "arguments": {"input": "primes"}}')),
    ("a call and a query in a list", f'{_H}{_T}[{_args("a=1")}, {{"name": "search", "arguments": {{"query": "x"}}}}]{_E}', Told("no tool search")),
    ("thoughts without a beginning", "hm\n</think>\n\nIt is \\boxed{1}<|im_end|>", Final("It is \\boxed{1}")),
]  # fmt: skip

FENCED: Rows = [
    ("an unclosed last block", "hm\n```python\nprint(1)\n<|end|>", ("print(1)\n",)),
    ("an unclosed block without a newline", "hm\n```python\nprint(1)<|end|>", ("print(1)",)),
    ("a block in a list", "1. Compute:\n   ```python\n   a = 1\n   print(a)\n   ```<|end|>", ("a = 1\nprint(a)\n",)),
    ("a block behind a bullet", "- ```python\n  print(1)\n  ```<|end|>", ("print(1)\n",)),
    ("a block with a tab", "\t```python\n\tprint(1)\n\t```<|end|>", ("print(1)\n",)),
    ("less indentation inside than the fence has", "   ```python\n print(1)\n   ```<|end|>", ("print(1)\n",)),
    ("the fence closes with another indentation", "   ```python\n   print(1)\n```<|end|>", ("print(1)\n",)),
    ("tildes", "~~~python\nprint(1)\n~~~<|end|>", ("print(1)\n",)),
    ("four backquotes", "````python\nprint(1)\n````<|end|>", ("print(1)\n",)),
    ("more backquotes at the end", "```python\nprint(1)\n`````<|end|>", ("print(1)\n",)),
    ("a space before the language", "``` python\nprint(1)\n```<|end|>", ("print(1)\n",)),
    ("capitals", "```Python\nprint(1)\n```<|end|>", ("print(1)\n",)),
    ("python3", "```python3\nprint(1)\n```<|end|>", ("print(1)\n",)),
    ("attributes behind the language", "```python title=a.py\nprint(1)\n```<|end|>", ("print(1)\n",)),
    ("the language in braces", "```{python}\nprint(1)\n```<|end|>", ("print(1)\n",)),
    ("a code tag", "<code>\nprint(1)\n</code><|end|>", ("print(1)",)),
    ("a code tag on one line", "I run <code>print(1)</code><|end|>", ("print(1)",)),
    ("a call's tag around bare code", "<tool_call>\nprint(1)\n</tool_call><|end|>", ("print(1)",)),
    ("an output made up behind the block", "```python\nprint(1)\n```\n```output\n7\n```\nSo 7.<|end|>", ("print(1)\n",)),
    ("the block closes by opening its output", "```python\nprint(1)\n```output<|end|>", ("print(1)\n",)),
    ("Windows' newlines", "```python\r\nprint(1)\r\n```<|end|>", ("print(1)\r\n",)),
    ("two blocks", "```python\na=1\n```\nthen\n```python\nprint(a)\n```<|end|>", ("a=1\n", "print(a)\n")),
    ("the second block is not closed", "```python\na=1\n```\nthen\n```python\nprint(a)<|end|>", ("a=1\n", "print(a)")),
    ("a block behind the thoughts", "hm\n</think>\n```python\nprint(1)\n```<|end|>", ("print(1)\n",)),
    ("a block inside the thoughts", "hm\n```python\nprint(1)\n```\nwait<|end|>", ("print(1)\n",)),
    ("a boxed word before the block", "It is \\boxed{?}\n```python\nprint(1)\n```<|end|>", ("print(1)\n",)),
    ("an empty block", "```python\n\n```<|end|>", Told("thoughts")),
    ("nothing", "<|end|>", Told("thoughts")),
    ("only thoughts", "hm<|end|>", Told("thoughts")),
    ("thoughts that begin again", "hm</think>It is 1 <think>or \\boxed{2}<|end|>", Told("thoughts")),
    ("an end of thoughts and nothing", "hm</think><|end|>", Told("empty")),
    ("a block of text only", "hm</think>```text\nnot code\n```\nIt is \\boxed{1}<|end|>", Final("```text\nnot code\n```\nIt is \\boxed{1}")),
    ("a thought behind the answer", "hm</think>It is \\boxed{1}\n<think>hm<|end|>", Final("It is \\boxed{1}")),
    ("a guess before a thought", "hm</think>Maybe \\boxed{1}?\n<think>hm<|end|>", Told("thoughts")),
    ("half a thought with a box", "maybe \\boxed{1}? let me check<|end|>", Told("thoughts")),
    ("a box but no end of the thoughts", "It is \\boxed{1}<|end|>", Final("It is \\boxed{1}")),
]  # fmt: skip

MALFORMED = [
    Fault(family, what, text, expected)
    for family, rows in (
        ("gemma", GEMMA),
        ("harmony", HARMONY),
        ("hermes", HERMES),
        ("fenced", FENCED),
    )
    for what, text, expected in rows
]
