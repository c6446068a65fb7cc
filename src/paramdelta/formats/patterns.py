r"""Regular expressions from files, matched in linear time.

PEFT looks a module's name up in patterns, which are regular expressions. Whoever writes the file
writes the patterns, and with Python's `re` one of 20 characters can take hours. So the patterns are
compiled to an automaton here. Each character of a name is one step from a state to the next, and
states are made when they are needed and counted: patterns that need too many are refused.

Supported are literals, ``.``, classes, ``\d`` ``\w`` ``\s``, groups, ``|``, ``* + ? {m,n}`` and
``^`` ``$``. Not supported are look-around, references, ``\b`` and flags.

Source: Thompson, "Regular Expression Search Algorithm", CACM 11(6), 1968.
"""

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

MAX_STATES = 600_000  # of all patterns together; a character of a pattern is about one
MAX_WORK = 4_000_000  # steps; one takes about 0.1 µs
_MAX_LENGTH = 50_000  # characters of one pattern
_MAX_DEPTH = 40  # groups in groups
_MAX_COUNT = 1000  # of a repetition
_TOKEN = re.compile(
    r"\\(?:[dDwWsS]|[^0-9A-Za-z])"  # an escape
    r"|\[\^?\]?(?:\\.|[^\]\\])*\]"  # a class
    r"|[^\\\[(){}|*+?^$]|[{}]"  # a character, or the dot
)
_TEXT = re.compile(r"[^\\\[(){}|*+?^$.]+(?![*+?{])")
_COUNT = re.compile(r"\{(?!\})(\d*)(,?)(\d*)\}")

_Node: TypeAlias = "tuple[Any, ...]"


class PatternError(ValueError):
    """A pattern is not a regular expression, or needs more than is supported.

    ``pattern``: which one; None where they take too much work together.
    """

    pattern: str | None = None


class Patterns:
    """Patterns by their order, each for the last parts of a name.

    Raises:
        PatternError: one cannot be compiled.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self._automaton = _Automaton()
        self._work = 0
        entries = [self._automaton.add(pattern, n) for n, pattern in enumerate(patterns)]
        # States of the deterministic automaton: sets of states, and by character the next one.
        self._sets: list[tuple[int, ...]] = []
        self._next: list[dict[str, int]] = []
        self._numbers: dict[tuple[int, ...], int] = {}
        self._ends: dict[int, list[int]] = {}
        self._first = self._numbered(entries, start=True)
        self._later = self._numbered(entries, start=False)

    def first(self, name: str) -> int | None:
        r"""The number of the first pattern p of which ``(.*\.)?(p)$`` matches the name, if any.

        A name that is empty or ends in a line feed is not looked up as `re` would do it.

        Raises:
            PatternError: all look-ups so far took too much work.
        """
        found: list[int] = []
        begin, line = 0, name.find("\n")
        while begin >= 0 and not 0 <= line < begin:  # the dot of (.*\.)? does not match it
            self._spend(3)
            state = self._later if begin else self._first
            for position in range(begin, len(name)):
                if not self._sets[state]:
                    break
                step = self._next[state].get(name[position])
                state = self._step(state, name[position]) if step is None else step
                self._spend(1)
            found += self._accepted(state)
            begin = name.find(".", begin) + 1 or -1
        return min(found, default=None)

    def _accepted(self, state: int) -> list[int]:
        """The least number of a pattern that ends in this state, if there is one."""
        if state not in self._ends:
            number = self._automaton.accepted(self._sets[state])
            self._spend(len(self._sets[state]))
            self._ends[state] = [] if number is None else [number]
        return self._ends[state]

    def _step(self, state: int, character: str) -> int:
        reached = [
            self._automaton.after[number]
            for number in self._sets[state]
            if self._automaton.consumes(number, character)
        ]
        self._spend(4 * len(self._sets[state]))
        self._next[state][character] = result = self._numbered(reached, start=False)
        return result

    def _numbered(self, states: Sequence[int], start: bool) -> int:
        """The number of the set of what can be reached from these states without a character."""
        reached = self._automaton.closed(states, start)
        self._spend(4 * len(reached))
        if reached not in self._numbers:
            self._numbers[reached] = len(self._sets)
            self._sets.append(reached)
            self._next.append({})
        return self._numbers[reached]

    def _spend(self, work: int) -> None:
        self._work += work
        if self._work > MAX_WORK:
            raise PatternError("the patterns take too much work on these names")


@dataclass(frozen=True)
class _Kind:
    """What a state does besides consuming a character."""

    name: str


_SPLIT, _START, _END, _ACCEPT = map(_Kind, ("split", "start", "end", "accept"))


class _Automaton:
    """States in arrays: what each does, and the state or states after it."""

    def __init__(self) -> None:
        self.does: list[str | _Kind] = []
        self.after: list[Any] = []

    def add(self, pattern: str, number: int) -> int:
        """Compile one pattern; gives the state that it begins with. Raises PatternError."""
        try:
            return self._made(_Parser(pattern).parse(), self._state(_ACCEPT, number))
        except PatternError as error:
            error.pattern = pattern
            raise

    def consumes(self, state: int, character: str) -> bool:
        """Whether a state is one that consumes this character."""
        token = self.does[state]
        return isinstance(token, str) and _matches(token, character)

    def closed(self, states: Sequence[int], start: bool) -> tuple[int, ...]:
        """All states that can be reached without a character; ``start``: at the name's start."""
        seen, waiting = set(states), list(states)
        while waiting:
            state = waiting.pop()
            does = self.does[state]
            if does is _SPLIT or (does is _START and start):
                more = self.after[state] if does is _SPLIT else (self.after[state],)
                for other in more:
                    if other not in seen:
                        seen.add(other)
                        waiting.append(other)
        return tuple(sorted(seen))

    def accepted(self, states: Sequence[int]) -> int | None:
        """The least number of a pattern that ends here, at the name's end."""
        seen, waiting = set(states), [s for s in states if not isinstance(self.does[s], str)]
        found: int | None = None
        while waiting:
            state = waiting.pop()
            does = self.does[state]
            if does is _ACCEPT:
                found = min(self.after[state], self.after[state] if found is None else found)
            elif does is _SPLIT or does is _END:
                more = self.after[state] if does is _SPLIT else (self.after[state],)
                waiting += [other for other in more if other not in seen]
                seen.update(more)
        return found

    def _state(self, does: str | _Kind, after: Any) -> int:
        if len(self.does) >= MAX_STATES:
            raise PatternError("too long, together with the others")
        self.does.append(does)
        self.after.append(after)
        return len(self.does) - 1

    def _made(self, node: _Node, then: int) -> int:
        """States for a part of a pattern, before the state ``then``; gives their first."""
        kind, *rest = node
        if kind == "each":
            for part in reversed(rest[0]):
                then = self._made(part, then)
            return then
        if kind == "either":
            return self._state(_SPLIT, tuple(self._made(part, then) for part in rest[0]))
        if kind == "text":
            for character in reversed(rest[0]):
                then = self._state(character, then)
            return then
        if kind == "repeat":
            return self._repeated(node, then)
        return self._state({"start": _START, "end": _END}.get(kind) or rest[0], then)

    def _repeated(self, node: _Node, then: int) -> int:
        _, part, least, most = node
        if most is None:
            loop = self._state(_SPLIT, ())
            self.after[loop] = (self._made(part, loop), then)
            then = loop
        else:
            end = then
            for _ in range(most - least):
                then = self._state(_SPLIT, (self._made(part, then), end))
        for _ in range(least):
            then = self._made(part, then)
        return then


@cache
def _compiled(token: str) -> "re.Pattern[str]":
    return re.compile(token)


def _matches(atom: str, character: str) -> bool:
    """Whether a token for one character, as `re` has it, is for this one."""
    if len(atom) > 1 or atom == ".":
        return _compiled(atom).fullmatch(character) is not None
    return atom == character


class _Parser:
    """One pattern as a tree: ("one", token), ("text", literal), ("each", parts), ("either", parts),
    ("repeat", part, least, most), ("start",), ("end",).
    """

    def __init__(self, pattern: str) -> None:
        if len(pattern) > _MAX_LENGTH:
            raise PatternError("too long")
        self.pattern = pattern
        self.at = 0

    def parse(self) -> _Node:
        """The whole pattern; raises PatternError."""
        node = self._either(0)
        if self.at < len(self.pattern):
            raise PatternError("a parenthesis too many")
        return node

    def _either(self, depth: int) -> _Node:
        parts = [self._each(depth)]
        while self.pattern.startswith("|", self.at):
            self.at += 1
            parts.append(self._each(depth))
        return ("either", parts) if len(parts) > 1 else parts[0]

    def _each(self, depth: int) -> _Node:
        parts: list[_Node] = []
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            text = _TEXT.match(self.pattern, self.at)
            if text is not None:
                self.at = text.end()
                parts.append(("text", text[0]))
            else:
                parts.append(self._repeat(self._atom(depth)))
        return ("each", parts)

    def _atom(self, depth: int) -> _Node:
        character = self.pattern[self.at]
        if character in "^$":
            self.at += 1
            return ("start",) if character == "^" else ("end",)
        if character == "(":
            return self._group(depth)
        token = _TOKEN.match(self.pattern, self.at)
        if token is None or character in "*+?" or _COUNT.match(self.pattern, self.at):
            raise PatternError(f"not supported: {self.pattern[self.at : self.at + 8]}")
        self.at = token.end()
        text = token[0]
        if len(text) > 1:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("error")  # classes that will mean something else one day
                    _compiled(text)
            except (re.error, Warning) as error:
                raise PatternError(str(error)) from None
            if text[0] == "\\" and text[1] not in "dDwWsS":
                text = text[1] if text[1] != "." else text
        return ("one", text)

    def _group(self, depth: int) -> _Node:
        if depth == _MAX_DEPTH:
            raise PatternError("groups nested too deeply")
        self.at += 3 if self.pattern.startswith("(?:", self.at) else 1
        if self.pattern.startswith("?", self.at):
            raise PatternError(f"not supported: {self.pattern[self.at - 1 : self.at + 2]}")
        node = self._either(depth + 1)
        if not self.pattern.startswith(")", self.at):
            raise PatternError("a group without an end")
        self.at += 1
        return node

    def _repeat(self, node: _Node) -> _Node:
        """A part with the quantifier behind it, if there is one."""
        character = self.pattern[self.at : self.at + 1]
        count = _COUNT.match(self.pattern, self.at)
        if count is not None:
            least, comma, most = count.groups()
            if len(least + most) > 8:
                raise PatternError("a repetition with an impossible count")
            low = int(least or 0)
            high = int(most) if most else None if comma else low
            self.at = count.end()
        elif character and character in "*+?":
            low, high = int(character == "+"), 1 if character == "?" else None
            self.at += 1
        else:
            return node
        if low > _MAX_COUNT or (high is not None and not low <= high <= _MAX_COUNT):
            raise PatternError("a repetition with an impossible count")
        if node[0] in ("start", "end"):
            raise PatternError("nothing to repeat")
        self.at += self.pattern.startswith("?", self.at)  # fewer first: the same names match
        if self.pattern[self.at : self.at + 1] in ("*", "+", "?") and self.at < len(self.pattern):
            raise PatternError("two repetitions in a row")
        if _COUNT.match(self.pattern, self.at):
            raise PatternError("two repetitions in a row")
        return ("repeat", node, low, high)
