"""How does a chat template write each beginning of a chat? All of them read off three renderings of the whole.

Rendering every beginning by itself takes time that grows with the square of the turns. Most templates write a chat
message by message, and what they write of one depends on nothing that follows. Where that is shown, by the template's
syntax tree and by what it read while it ran, the beginnings are cut out of the whole. Where it is not, there is no
answer here, and each beginning is to be rendered by itself. `docs/decisions/0008-chat-templates.md` has the argument.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from jinja2 import Environment, Template, nodes
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import _compile_jinja_template  # its environment is what templates run in

Messages = Sequence[dict[str, str]]

_STEPS, _DONE = "wmss_steps", "wmss_done"
_PLAIN_NODES = (
    nodes.Output,
    nodes.TemplateData,
    nodes.If,
    nodes.For,
    nodes.Assign,
    nodes.AssignBlock,
    nodes.Macro,
    nodes.Name,
    nodes.NSRef,
    nodes.Const,
    nodes.Getattr,
    nodes.Getitem,
    nodes.Slice,
    nodes.Filter,
    nodes.Test,
    nodes.Call,
    nodes.Keyword,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
    nodes.Add,
    nodes.Sub,
    nodes.Mul,
    nodes.Mod,
    nodes.Neg,
    nodes.Concat,
    nodes.CondExpr,
    nodes.List,
    nodes.Tuple,
    nodes.Dict,
    nodes.Pair,
    nodes.Break,
    nodes.Continue,
)
_PLAIN_FILTERS = frozenset(
    {"trim", "tojson", "default", "d", "length", "count", "string", "lower", "upper", "capitalize", "title"}
    | {"replace", "int", "join", "list", "first", "last"}
)
"""Those that keep nothing between two uses, as a generator would that is read in parts."""
_PLAIN_FUNCTIONS = frozenset({"raise_exception", "strftime_now", "namespace", "range", "dict"})
_LOOP_FIELDS = frozenset({"index", "index0", "first", "last", "length"})
"""`last` and `length` look ahead, which `_Steps` notices; `previtem` and `changed` remember, and are not among them."""
_GENERATION_BLOCK = "_generation_support"
"""transformers' `{% generation %}`, which writes its body as it stands."""


class Prefixes(NamedTuple):
    """The texts of a chat's beginnings."""

    whole: str
    """The chat, with what the template writes at its end."""
    ends: list[int]
    """By k: of the whole, the characters up to the end of message k - 1, what ends the chat excluded."""
    tail: str
    """What ends a chat."""
    generation_tail: str
    """The same with the generation prompt."""
    marked: list[str]
    """By message: what is written of it when its text is the mark."""

    def text(self, length: int, *, generation_prompt: bool = False) -> str:
        """The first `length` messages as the template renders them."""
        return self.whole[: self.ends[length]] + (self.generation_tail if generation_prompt else self.tail)

    def marked_text(self, length: int) -> str:
        """The first `length` messages, the last of them with the mark for its text."""
        return self.whole[: self.ends[length - 1]] + self.marked[length - 1] + self.tail


def prefixes(tokenizer: PreTrainedTokenizerBase, messages: Messages, *, mark: str) -> Prefixes | None:
    """Beginnings of a chat as `apply_chat_template` renders each, or None where the template does not show that.

    Args:
        messages: at least two, the first of them not the assistant's; those asked for have one or more.
        mark: stands for the text of each message of the assistant in `Prefixes.marked`.
    """
    if type(tokenizer).apply_chat_template is not PreTrainedTokenizerBase.apply_chat_template:
        return None
    try:
        source = tokenizer.get_chat_template()
        stepwise = _stepwise(source)
        if stepwise is None:
            return None
        names = tokenizer.special_tokens_map
        whole = _rendered(stepwise, messages, names, generation_prompt=False)
        prompting = _rendered(stepwise, messages, names, generation_prompt=True)
        marks = [each | {"content": mark} if each["role"] == "assistant" else each for each in messages]
        marked = _rendered(stepwise, marks, names, generation_prompt=False)
    except Exception:  # whatever it is, the template meets it again when each beginning is rendered by itself
        return None
    if whole is None or prompting is None or marked is None or whole.skipped != marked.skipped:
        return None
    end = whole.ends[-1]
    if whole.ends != prompting.ends or whole.text[:end] != prompting.text[:end]:
        return None
    if whole.text != tokenizer.apply_chat_template(list(messages), tokenize=False):
        return None
    none = whole.skipped
    return Prefixes(
        whole=whole.text,
        ends=[whole.ends[0]] * none + whole.ends,
        tail=whole.text[end:],
        generation_tail=prompting.text[end:],
        marked=[""] * none + [marked.text[a:b] for a, b in zip(marked.ends, marked.ends[1:], strict=False)],
    )


class _Rendering(NamedTuple):
    text: str
    ends: list[int]
    """Characters written before the first message of the loop, then up to the end of each."""
    skipped: int
    """Messages before the loop's first: 1 where the template takes the system's turn out."""


def _rendered(
    template: Template, messages: Messages, names: Mapping[str, Any], *, generation_prompt: bool
) -> _Rendering | None:
    """A chat rendered step by step; None where what was written of a message may depend on what follows it."""
    pieces: list[str] = []
    steps = _Steps(messages, pieces)
    variables: dict[str, Any] = {
        **names,
        "messages": _Messages(steps, messages),
        "tools": None,
        "documents": None,
        "add_generation_prompt": generation_prompt,
        _STEPS: steps.of,
        _DONE: steps.done,
    }
    for piece in template.generate(variables):
        pieces.append(piece)
    if steps.looked_ahead or not steps.ended:
        return None
    lengths = [0]
    for piece in pieces:
        lengths.append(lengths[-1] + len(piece))
    return _Rendering("".join(pieces), [lengths[count] for count in steps.written], steps.skipped)


class _LookedAheadError(Exception):
    """The template asked for something that is another for a beginning of the chat."""


class _Steps:
    """Where in the text the loop over the messages stood at each of them, and whether it looked ahead."""

    def __init__(self, messages: Messages, pieces: Sequence[str]) -> None:
        self._messages, self._pieces = messages, pieces
        self.written: list[int] = []
        """Pieces written before the first message of the loop, then up to the end of each."""
        self.skipped = 0
        self.looked_ahead = self.ended = False
        self._open = False

    def of(self, looped: Any) -> Any:
        """What a loop of the template goes through."""
        if not isinstance(looped, _Messages):
            return looped
        if self.written:  # a second loop begins anew, where the first one of a shorter chat would have ended earlier
            return self.look_ahead()
        self.skipped = looped._skipped
        return self._each()

    def _each(self) -> Iterator[dict[str, str]]:
        for message in self._messages[self.skipped :]:
            self._next()
            self._open = True
            yield message
        self._next()
        self.ended = True

    def _next(self) -> None:
        if self._open:  # asked for while the message before is being written
            self.look_ahead()
        self.written.append(len(self._pieces))

    def done(self) -> str:
        """A message has been written to its end."""
        self._open = False
        return ""

    def look_ahead(self) -> Any:
        """Remembered as well as raised: some tests of Jinja swallow errors."""
        self.looked_ahead = True
        raise _LookedAheadError


class _Messages:
    """The messages, or all but the first, as a template sees them.

    The first message, and a loop over all or over all but the first, are the same for every beginning of a chat.
    """

    def __init__(self, steps: _Steps, messages: Messages, skipped: int = 0) -> None:
        self._steps, self._all, self._skipped = steps, messages, skipped

    def __getitem__(self, key: Any) -> Any:
        if self._skipped == 0 and type(key) is int and key == 0:
            return self._all[0]
        if self._skipped == 0 and isinstance(key, slice) and (key.start, key.stop, key.step) == (1, None, None):
            return _Messages(self._steps, self._all, skipped=1)
        return self._steps.look_ahead()

    def __bool__(self) -> bool:
        return True if self._skipped == 0 else bool(self._steps.look_ahead())

    def __getattr__(self, name: str) -> Any:
        return self._steps.look_ahead()

    def _look_ahead(self, *_: Any) -> Any:
        return self._steps.look_ahead()

    __iter__ = __len__ = __contains__ = __eq__ = __hash__ = _look_ahead
    __str__ = __repr__ = __format__ = _look_ahead


@lru_cache(maxsize=8)
def _stepwise(source: str) -> Template | None:
    """The template with steps that are noticed, or None where a loop of it may carry something from message to message
    other than their number."""
    environment: Environment = _compile_jinja_template(source).environment
    tree = environment.parse(source)
    macros = {macro.name for macro in tree.find_all(nodes.Macro)}
    if not all(_is_plain(node, macros) for node in _nodes(tree)):
        return None
    if any(part.find(nodes.NSRef) for part in tree.find_all((nodes.For, nodes.Macro))):
        return None
    if not _loops_are_plain(tree):
        return None
    for loop in _outer_loops(tree.body):
        loop.iter = nodes.Call(nodes.Name(_STEPS, "load"), [loop.iter], [], None, None)
        loop.body.append(nodes.Output([nodes.Call(nodes.Name(_DONE, "load"), [], [], None, None)]))
    nodes.Node.set_environment(tree, environment)
    return Template.from_code(environment, environment.compile(tree), environment.make_globals(None))


def _nodes(node: nodes.Node) -> Iterator[nodes.Node]:
    for child in node.iter_child_nodes():
        yield child
        yield from _nodes(child)


def _is_plain(node: nodes.Node, macros: set[str]) -> bool:
    """Whether what a node gives depends on its parts alone."""
    if isinstance(node, nodes.CallBlock):
        return _is_generation_block(node.call)
    if isinstance(node, nodes.ExtensionAttribute):
        return node.name == _GENERATION_BLOCK
    if isinstance(node, nodes.Filter):
        return node.name in _PLAIN_FILTERS
    if isinstance(node, nodes.For):
        return not node.recursive
    if isinstance(node, nodes.Call) and isinstance(node.node, nodes.Name):
        return node.node.name in _PLAIN_FUNCTIONS | macros
    if isinstance(node, nodes.Call):
        return isinstance(node.node, nodes.Getattr) or _is_generation_block(node)
    return isinstance(node, _PLAIN_NODES)


def _is_generation_block(call: nodes.Node) -> bool:
    called = call.node if isinstance(call, nodes.Call) else None
    return isinstance(called, nodes.ExtensionAttribute) and called.name == _GENERATION_BLOCK


def _loops_are_plain(tree: nodes.Template) -> bool:
    """Whether all that is read of a `loop` is a field of `_LOOP_FIELDS`, and no name hides a function of ours."""
    fields = sum(
        isinstance(each.node, nodes.Name) and each.node.name == "loop" and each.attr in _LOOP_FIELDS
        for each in tree.find_all(nodes.Getattr)
    )
    names = [each.name for each in tree.find_all(nodes.Name)]
    return names.count("loop") == fields and not {_STEPS, _DONE, "self", "caller", "varargs", "kwargs"} & {*names}


def _outer_loops(body: Sequence[nodes.Node]) -> Iterator[nodes.For]:
    """Loops that write where the template writes: in no other loop, macro or block whose text is used elsewhere."""
    for node in body:
        if isinstance(node, nodes.For) and not node.else_:
            yield node
        elif isinstance(node, nodes.If):
            yield from _outer_loops([*node.body, *node.elif_, *node.else_])
