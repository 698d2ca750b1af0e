"""Finds the code of every problem that a source tree can make, by reading the source."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Function = ast.FunctionDef  # nothing here is async


@dataclass(frozen=True)
class Use:
    """A literal that becomes the code of a problem."""

    code: str
    path: Path
    line: int


@dataclass
class Codes:
    """Every use of a code, and every place where a code could not be followed to a literal."""

    uses: set[Use] = field(default_factory=set)
    computed: set[str] = field(default_factory=set)

    def under(self, folder: Path) -> set[str]:
        """The codes used in a folder."""
        return {use.code for use in self.uses if use.path.is_relative_to(folder)}


@dataclass(frozen=True)
class _Maker:
    """A callable that passes an argument on as a code: its position and name, and where it may be called from."""

    name: str
    position: int
    argument: str
    module: Path | None  # None: anywhere


def codes_used(roots: Sequence[Path]) -> Codes:
    """Every code of a ``Problem`` made in the trees, followed through helpers, constants, tables and tuples."""
    modules = [_Module(path) for root in roots for path in sorted(root.rglob("*.py"))]
    codes, makers, known = Codes(), list(_MAKERS), 0
    while known < len(makers):  # a helper that passes its parameter on is a maker of its own
        maker, known = makers[known], known + 1
        for module in modules:
            if maker.module in (None, module.path):
                makers += [new for new in module.follow(maker, codes) if new not in makers]
    return codes


_MAKERS = (
    _Maker("Problem", 0, "code", None),
    _Maker("refuse", 0, "code", None),
    _Maker("replace", 99, "code", None),  # of dataclasses: by name alone
)


class _Module:
    def __init__(self, path: Path) -> None:
        self.path, self.tree = path, ast.parse(path.read_text("utf-8"))
        self.calls = list(_calls(self.tree, None))
        self.functions = {node.name: node for node in ast.walk(self.tree) if isinstance(node, Function)}
        self.constants = dict(_constants(self.tree.body))

    def follow(self, maker: _Maker, codes: Codes) -> Iterator[_Maker]:
        """Notes the codes of every call of a maker; yields the functions that get theirs from a parameter."""
        if maker.name in ("Problem", "refuse"):
            codes.computed |= {f"{self.path}:{line} {maker.name} escapes" for line in self._escapes(maker)}
        for function, call in self.calls:
            code = _argument(call, maker) if _name(call.func) == maker.name else None
            if isinstance(code, ast.Name) and function is not None and code.id in (names := _parameters(function)):
                yield self._maker(function, names, code.id, codes)
            elif code is not None and not (isinstance(code, ast.Attribute) and code.attr == "code"):
                self._note(code, function, codes)  # that of another problem was noted where that was made

    def _escapes(self, maker: _Maker) -> Iterator[int]:
        """Lines where a maker is called without a code that can be read, passed on as a value, or renamed."""
        for _, call in self.calls:
            if _name(call.func) == maker.name and _argument(call, maker) is None:
                yield call.lineno
            if _name(call.func) != "isinstance" and any(_name(argument) == maker.name for argument in call.args):
                yield call.lineno
        for node in ast.walk(self.tree):
            if isinstance(node, ast.alias) and node.name == maker.name and node.asname not in (None, maker.name):
                yield node.lineno

    def _maker(self, function: Function, names: list[str], argument: str, codes: Codes) -> _Maker:
        if (default := _default(argument, function)) is not None:
            self._note(default, None, codes)
        private = function.name.startswith("_")
        return _Maker(function.name, names.index(argument), argument, self.path if private else None)

    def _note(self, code: ast.expr, function: Function | None, codes: Codes) -> None:
        try:
            codes.uses |= {Use(found.value, self.path, found.lineno) for found in self._literals(code, None, function)}
        except LookupError as error:
            codes.computed.add(f"{self.path}:{code.lineno} {error.args[0]}")

    def _literals(self, value: ast.expr, index: int | None, function: Function | None) -> Iterator[ast.Constant]:
        """The literals that an expression may be; ``index``: that of each tuple which it may be."""
        match value:
            case ast.Constant(value=str()) if index is None:
                yield value
            case ast.Constant(value=None) if index is not None:
                return  # no fault was found
            case ast.Tuple(elts=elements) if index is not None:
                yield from self._literals(elements[index], None, function)
            case ast.IfExp(body=one, orelse=other):
                yield from self._literals(one, index, function)
                yield from self._literals(other, index, function)
            case ast.BoolOp(values=values):
                for one in values:
                    yield from self._literals(one, index, function)
            case ast.Subscript(value=ast.Name(id=name)) if name in self.constants:
                yield from self._rows(name, index)
            case ast.Call(func=ast.Name(id="next"), args=[ast.GeneratorExp(elt=ast.Tuple(elts=elements)) as rows, *_]):
                element, loop = elements[index or 0], rows.generators[0]
                yield from self._rows(_name(loop.iter), _index(_name(element), loop.target))
            case ast.Call(func=ast.Name(id=name)) if name in self.functions:
                for node in ast.walk(self.functions[name]):
                    if isinstance(node, ast.Return | ast.Yield) and node.value is not None:
                        yield from self._literals(node.value, index, self.functions[name])
            case ast.Name(id=name):
                yield from self._named(name, index, function)
            case _:
                raise LookupError(f"{ast.unparse(value)} is not followed to a literal")

    def _named(self, name: str, index: int | None, function: Function | None) -> Iterator[ast.Constant]:
        bound = list(_bound(name, function)) if function is not None else []
        for value, at in bound:
            yield from self._literals(value, index if at is None else at, function)
        if not bound and name in self.constants:
            constant = self.constants[name]
            if isinstance(constant, ast.Constant):
                yield from self._literals(constant, index, None)
            else:
                yield from self._rows(name, index)
        elif not bound:
            raise LookupError(f"{name} comes from elsewhere")

    def _rows(self, name: str, index: int | None) -> Iterator[ast.Constant]:
        """Element ``index`` of every row of a table, or of every value of a dict of them."""
        table = self.constants.get(name)
        rows = table.values if isinstance(table, ast.Dict) else getattr(table, "elts", None)
        if rows is None:
            raise LookupError(f"{name} is no table")
        for row in rows:
            yield from self._literals(row, index, None)


def _name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _calls(tree: ast.AST, function: Function | None) -> Iterator[tuple[Function | None, ast.Call]]:
    """Each call, with the innermost function around it."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Call):
            yield function, node
        yield from _calls(node, node if isinstance(node, Function) else function)


def _argument(call: ast.Call, maker: _Maker) -> ast.expr | None:
    named = next((keyword.value for keyword in call.keywords if keyword.arg == maker.argument), None)
    return call.args[maker.position] if maker.position < len(call.args) else named


def _parameters(function: Function) -> list[str]:
    names = [argument.arg for argument in (*function.args.args, *function.args.kwonlyargs)]
    return names[1:] if names[:1] == ["self"] else names


def _default(name: str, function: Function) -> ast.expr | None:
    names = [argument.arg for argument in function.args.args]
    return dict(zip(reversed(names), reversed(function.args.defaults), strict=False)).get(name)


def _constants(body: list[ast.stmt]) -> Iterator[tuple[str, ast.expr]]:
    for node in body:
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            yield _name(node.target), node.value
        elif isinstance(node, ast.Assign):
            yield from ((_name(target), node.value) for target in node.targets)


def _bound(name: str, function: Function) -> Iterator[tuple[ast.expr, int | None]]:
    """What a name is bound to in a function, with its place where it is unpacked from a tuple."""
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
        elif isinstance(node, ast.For | ast.NamedExpr):
            target, value = node.target, node.iter if isinstance(node, ast.For) else node.value
        else:
            continue
        if _name(target) == name:
            yield value, None
        elif isinstance(target, ast.Tuple) and (at := _index(name, target)) is not None:
            yield (value.elts[at], None) if isinstance(value, ast.Tuple) else (value, at)


def _index(name: str, target: ast.expr) -> int | None:
    names = [_name(element) for element in getattr(target, "elts", [])]
    return names.index(name) if name in names else None
