"""A pickle read as data: a small stack machine over ``pickletools.genops`` that imports nothing and calls nothing.

A pickle is a program that may name any function of the interpreter and call it. This reader has no way to do so: a
global name is looked up in a table of inert stand-ins, any other name is refused, and the only functions ever called
are the stand-ins' own. So there is no ``find_class``, ``__setstate__`` or ``__reduce__`` to be tricked.
"""

from __future__ import annotations

import io
import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from edm_ray.errors import InputError

MAX_STEPS = 1_000_000
"""Opcodes (and items copied). The largest released network takes about 100,000, a training state twice that."""
MAX_STACK = 100_000
MAX_MARKS = 500
"""Nested containers."""


@dataclass(frozen=True, eq=False)
class Inert:
    """What stands for a global in an allowed pickle. It is of no use but to be called or instantiated *here*."""

    name: str
    call: Callable[..., Any] | None = None
    """Takes the pickle's arguments; checks them."""
    new: Callable[[], Any] | None = None
    """Makes an empty instance, without arguments."""


class Holder:
    """An instance of a class that is not there: the class's name, and the state that its pickle gives it."""

    def __init__(self, class_name: str, state: dict[str, Any] | None = None) -> None:
        self.class_name, self.state = class_name, state

    def build(self, state: object) -> None:
        """The BUILD opcode: keep the state, once."""
        if self.state is not None or not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
            raise InputError(f"the state of a {shown(self.class_name)} is not one dictionary with names as keys")
        self.state = state


class OrderedItems(dict):  # type: ignore[type-arg]
    """Stands for OrderedDict and other dictionaries with attributes; the attributes are dropped."""

    def build(self, state: object) -> None:
        if not isinstance(state, dict):
            raise InputError("the attributes of an OrderedDict are not a dictionary")


class Budget:
    """What one file may cost: steps, and bytes of copies made while reading. Shared by the pickles inside it."""

    def __init__(self, steps: int, copied_bytes: int) -> None:
        self.steps, self.copied_bytes = steps, copied_bytes

    def step(self, count: int = 1) -> None:
        self.steps -= count
        if self.steps < 0:
            raise InputError(f"more than {MAX_STEPS:,} steps: not a network")

    def copy(self, count: int) -> None:
        self.copied_bytes -= count
        if self.copied_bytes < 0:
            raise InputError("what it unpacks to is several times larger than the file: a decompression bomb")


def shown(value: object) -> str:
    """A foreign name for a message: printable, on one line, short."""
    text = ascii(value)[1:-1] if isinstance(value, str) else type(value).__name__
    return text if len(text) <= 120 else text[:117] + "..."


def read_pickle(
    stream: io.BytesIO,
    allowed: Mapping[tuple[str, str], object],
    budget: Budget,
    persistent: Callable[[object], object] | None = None,
) -> Any:
    """The object that the pickle at the stream's position describes; the stream is left behind its end.

    allowed: (module, name) -> stand-in. persistent: resolves persistent ids, which are refused without it.
    Raises InputError for whatever is not allowed, naming it and the byte offset; and for damaged pickles.
    """
    machine = Machine(allowed, budget, persistent)
    position = 0
    try:
        for opcode, argument, at in pickletools.genops(stream):
            position = at or 0
            budget.step()
            machine.do(opcode.name, argument)
        return machine.result()
    except InputError as error:
        raise InputError(f"refused at byte {position}: {error}") from None
    except (ValueError, IndexError, TypeError, KeyError, struct.error, OverflowError, UnicodeError) as error:
        # Text of the standard library's own parser; never of the file's objects.
        reason = shown(str(error)) or type(error).__name__
        raise InputError(f"damaged, truncated or not a pickle (after byte {position}): {reason}") from None


class Machine:
    """The stack, the marks and the memo of one pickle."""

    def __init__(
        self,
        allowed: Mapping[tuple[str, str], object],
        budget: Budget,
        persistent: Callable[[object], object] | None,
    ) -> None:
        self.allowed, self.budget, self.persistent = allowed, budget, persistent
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}
        self.stopped = False

    def do(self, name: str, argument: Any) -> None:
        """One opcode."""
        if name in _PUSH_ARGUMENT:
            self.push(argument)
        elif name in _PUSH_CONSTANT:
            self.push(_PUSH_CONSTANT[name]())
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.top()
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = self.top()
        elif name in ("BINGET", "LONG_BINGET"):
            if argument not in self.memo:
                raise InputError(f"it refers to entry {argument} of the memo, which is not there")
            self.push(self.memo[argument])
        elif (action := _ACTIONS.get(name)) is not None:
            action(self, argument)
        elif name not in ("PROTO", "FRAME"):
            self.refuse(name, argument)

    def refuse(self, name: str, argument: Any) -> NoReturn:
        if name in ("EXT1", "EXT2", "EXT4"):
            raise InputError(f"copyreg extension {argument}, which stands for a global without naming it")
        if name in ("INST", "OBJ", "NEWOBJ_EX"):
            named = f" ({shown(argument.replace(' ', '.'))})" if isinstance(argument, str) else ""
            raise InputError(f"opcode {name}{named}, which makes an object from arguments")
        raise InputError(f"opcode {name}, which no network needs")

    def push(self, value: Any) -> None:
        if len(self.stack) >= MAX_STACK:
            raise InputError(f"more than {MAX_STACK:,} values on the stack: nested too deep")
        self.stack.append(value)

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise InputError("it takes a value from an empty stack")
        return self.stack.pop()

    def top(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise InputError("it looks at an empty stack")
        return self.stack[-1]

    def mark(self, _: Any) -> None:
        if len(self.marks) >= MAX_MARKS:
            raise InputError(f"containers nested deeper than {MAX_MARKS}")
        self.marks.append(len(self.stack))

    def to_mark(self) -> list[Any]:
        if not self.marks:
            raise InputError("a mark is missing")
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def resolve(self, module: object, name: object) -> None:
        """A global: the stand-in from the table, or a refusal that names it."""
        if not isinstance(module, str) or not isinstance(name, str):
            raise InputError("a global whose name is not text")
        if (module, name) not in self.allowed:
            what = f"the global {shown(module)}.{shown(name)} is not allowed in a network file"
            raise InputError(f"{what}; nothing of the file was executed")
        self.push(self.allowed[module, name])

    def global_(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self.resolve(module, name)

    def stack_global(self, _: Any) -> None:
        name, module = self.pop(), self.pop()
        self.resolve(module, name)

    def reduce(self, _: Any) -> None:
        arguments, function = self.pop(), self.pop()
        if not isinstance(function, Inert) or function.call is None or not isinstance(arguments, tuple):
            raise InputError(f"it calls {shown(getattr(function, 'name', function))}, which is not a known function")
        try:
            self.push(function.call(*arguments))
        except TypeError:
            raise InputError(f"it calls {function.name} with arguments that do not fit") from None

    def newobj(self, _: Any) -> None:
        arguments, cls = self.pop(), self.pop()
        if not isinstance(cls, Inert) or cls.new is None or arguments != ():
            raise InputError(f"it makes a {shown(getattr(cls, 'name', cls))} from arguments, or no known class")
        self.push(cls.new())

    def build(self, _: Any) -> None:
        state, target = self.pop(), self.top()
        if not hasattr(type(target), "build"):
            raise InputError(f"it sets the state of a {shown(target)}")
        target.build(state)

    def binpersid(self, argument: Any) -> None:
        identity = self.pop()
        if self.persistent is None:
            raise InputError(f"persistent id {shown(identity) if isinstance(identity, str) else ''}".strip())
        self.push(self.persistent(identity))

    def persid(self, argument: Any) -> None:
        raise InputError(f"persistent id {shown(argument)}")

    def tuple_(self, count: int | None) -> None:
        if count is None:
            self.push(tuple(self.to_mark()))
            return
        self.push(tuple(reversed([self.pop() for _ in range(count)])))

    def append(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is not list:
            raise InputError(f"it appends to a {shown(target)}")
        target.extend(items)

    def set_items(self, pairs: list[Any]) -> None:
        target = self.top()
        if type(target) not in (dict, OrderedItems) or len(pairs) % 2:
            raise InputError(f"it sets items of a {shown(target)}, or an odd number of them")
        for key, value in zip(pairs[::2], pairs[1::2], strict=True):
            target[checked_key(key)] = value

    def add_items(self, items: list[Any]) -> None:
        target = self.top()
        if type(target) is not set:
            raise InputError(f"it adds items to a {shown(target)}")
        target.update(checked_key(item) for item in items)

    def set_item(self, _: Any) -> None:
        value, key = self.pop(), self.pop()
        self.set_items([key, value])

    def stop(self, _: Any) -> None:
        self.stopped = True

    def result(self) -> Any:
        if not self.stopped or len(self.stack) != 1 or self.marks:
            raise InputError("it does not end with one object")
        return self.stack[0]


def checked_key(key: object) -> object:
    """Keys of dictionaries and sets: text or small whole numbers, whose hashes cannot be made to collide at will."""
    if not isinstance(key, str) and not (isinstance(key, int) and abs(key) < 2**31):
        raise InputError(f"a dictionary or set with a {shown(key) if not isinstance(key, int) else 'huge int'} as key")
    return key


_PUSH_ARGUMENT = frozenset(
    ("BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINFLOAT")
    + ("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8")
)
_PUSH_CONSTANT: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": set,
    "EMPTY_TUPLE": tuple,
}
_ACTIONS: dict[str, Callable[[Machine, Any], None]] = {
    "MARK": Machine.mark,
    "STOP": Machine.stop,
    "POP": lambda machine, _: _discard(machine.pop()),
    "POP_MARK": lambda machine, _: _discard(machine.to_mark()),
    "GLOBAL": Machine.global_,
    "STACK_GLOBAL": Machine.stack_global,
    "REDUCE": Machine.reduce,
    "NEWOBJ": Machine.newobj,
    "BUILD": Machine.build,
    "PERSID": Machine.persid,
    "BINPERSID": Machine.binpersid,
    "TUPLE": lambda machine, _: machine.tuple_(None),
    "TUPLE1": lambda machine, _: machine.tuple_(1),
    "TUPLE2": lambda machine, _: machine.tuple_(2),
    "TUPLE3": lambda machine, _: machine.tuple_(3),
    "APPEND": lambda machine, _: machine.append([machine.pop()]),
    "APPENDS": lambda machine, _: machine.append(machine.to_mark()),
    "SETITEM": Machine.set_item,
    "SETITEMS": lambda machine, _: machine.set_items(machine.to_mark()),
    "ADDITEMS": lambda machine, _: machine.add_items(machine.to_mark()),
}


def _discard(value: object) -> None:
    del value
