"""Which coroutines are the tree's own, and what class a name stands for, as far as annotations and calls say it.

No inference beyond that: what cannot be told counts as foreign, and a foreign wait needs a deadline.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

# Contexts whose value is what they are given.
_GIVES_BACK = {"closing", "aclosing", "enter_context", "enter_async_context"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass
class OwnClass:
    """What is known of a class of the tree; classes of one name are taken together."""

    bases: set[str] = field(default_factory=set)
    coroutines: set[str] = field(default_factory=set)
    returns: dict[str, str] = field(default_factory=dict)
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass
class Index:
    """All classes and functions of the checked files, by their simple names."""

    classes: dict[str, OwnClass] = field(default_factory=dict)
    coroutines: set[str] = field(default_factory=set)
    returns: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    """The classes of what modules assign to their own names."""

    @classmethod
    def of(cls, modules: dict[Path, ast.Module]) -> "Index":
        """Reads the classes first: what an attribute holds is known only when they are."""
        index = cls()
        for module in modules.values():
            for node in ast.walk(module):
                if isinstance(node, ast.ClassDef):
                    index._add_class(node)
            methods = {id(each) for node in ast.walk(module) if isinstance(node, ast.ClassDef) for each in node.body}
            for node in ast.walk(module):
                if isinstance(node, Function) and id(node) not in methods:
                    index._add_function(node, index.coroutines, index.returns)
        for module in modules.values():
            for statement in module.body:
                for target, value in _bound(statement):
                    if found := index.type_of(value, {}):
                        index.values[target] = found
        for module in modules.values():
            for node in ast.walk(module):
                if isinstance(node, ast.ClassDef):
                    index._add_attributes(node)
        return index

    def has_coroutine(self, class_name: str, name: str) -> bool:
        """Whether the class, or a base of it in the tree, has a coroutine of this name."""
        known = self.classes.get(class_name)
        if known is None:
            return False
        return name in known.coroutines or any(self.has_coroutine(base, name) for base in known.bases - {class_name})

    def attribute(self, class_name: str, name: str) -> str:
        """The class that an attribute holds; empty when nobody says."""
        known = self.classes.get(class_name)
        if known is None:
            return ""
        found = known.attributes.get(name, "")
        for base in known.bases - {class_name}:
            found = found or self.attribute(base, name)
        return found

    def type_of(self, node: ast.expr, names: dict[str, str]) -> str:
        """The class of an expression's value among those of the tree; empty when nobody says."""
        match node:
            case ast.Await(value=value) | ast.Subscript(value=value) | ast.ListComp(elt=value):
                return self.type_of(value, names)
            case ast.List(elts=[first, *_]):
                return self.type_of(first, names)
            case ast.Name(id=name):
                return names.get(name, self.values.get(name, ""))
            case ast.Attribute(value=value, attr=name):
                return self.attribute(self.type_of(value, names), name)
            case ast.Call(func=ast.Name(id=("cls") as name)):
                return names.get(name, "")
            case ast.Call(func=ast.Name(id=name)):
                return name if name in self.classes else self.returns.get(name, "")
            case ast.Call(func=ast.Attribute(attr=name), args=[given]) if name in _GIVES_BACK:
                return self.type_of(given, names)
            case ast.Call(func=ast.Attribute(value=value, attr=name)):
                owner = names.get(value.id, value.id) if isinstance(value, ast.Name) else self.type_of(value, names)
                if name in self.classes:
                    return name
                return self.classes[owner].returns.get(name, "") if owner in self.classes else ""
        return ""

    def is_own(self, call: ast.Call, names: dict[str, str]) -> bool:
        """Whether a call starts a coroutine (or asynchronous generator) of the tree, whose body is checked itself."""
        match call.func:
            case ast.Name(id=name):
                return name in self.coroutines and name not in names
            case ast.Attribute(value=ast.Name(id=owner), attr=name) if owner in self.classes:
                return self.has_coroutine(owner, name)
            case ast.Attribute(value=value, attr=name):
                return self.has_coroutine(self.type_of(value, names), name)
        return False

    def names_in(self, function: Function, owner: str) -> dict[str, str]:
        """The classes of a function's names: its parameters, and what it assigns and binds."""
        names: dict[str, str] = {}
        arguments = function.args
        for argument in [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]:
            if argument.arg in ("self", "cls"):
                names[argument.arg] = owner
            else:
                names[argument.arg] = annotated(argument.annotation)
        for node in ast.walk(function):
            for target, value in _bound(node):
                names[target] = self.type_of(value, names) or names.get(target, "")
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                names[node.target.id] = annotated(node.annotation)
        return names

    def _add_class(self, node: ast.ClassDef) -> None:
        known = self.classes.setdefault(node.name, OwnClass())
        known.bases |= {base.id for base in node.bases if isinstance(base, ast.Name)}
        for each in node.body:
            if isinstance(each, Function):
                self._add_function(each, known.coroutines, known.returns)
            elif isinstance(each, ast.AnnAssign) and isinstance(each.target, ast.Name):
                known.attributes[each.target.id] = annotated(each.annotation)

    @staticmethod
    def _add_function(node: Function, coroutines: set[str], returns: dict[str, str]) -> None:
        if isinstance(node, ast.AsyncFunctionDef):
            coroutines.add(node.name)
        if name := annotated(node.returns):
            returns[node.name] = name

    def _add_attributes(self, node: ast.ClassDef) -> None:
        known = self.classes[node.name]
        for method in (each for each in node.body if isinstance(each, Function)):
            if any(isinstance(each, ast.Name) and each.id == "property" for each in method.decorator_list):
                known.attributes.setdefault(method.name, annotated(method.returns))
            names = self.names_in(method, node.name)
            for each in ast.walk(method):
                if isinstance(each, ast.AnnAssign) and (name := _own_attribute(each.target)):
                    known.attributes[name] = annotated(each.annotation) or known.attributes.get(name, "")
                for target, value in _assigned(each):
                    if (name := _own_attribute(target)) and (found := self.type_of(value, names)):
                        known.attributes.setdefault(name, found)


def annotated(node: ast.expr | None) -> str:
    """The class that an annotation names: `X`, `"X"`, `module.X`, `X | None`, `list[X]`, `Iterator[X]`."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Constant(value=str(text)) if text.isidentifier():
            return text
        case ast.BinOp(left=left, right=ast.Constant(value=None)):
            return annotated(left)
        case ast.Subscript(slice=ast.Tuple(elts=[first, *_])):
            return annotated(first)
        case ast.Subscript(slice=inner):
            return annotated(inner)
    return ""


def _own_attribute(node: ast.expr) -> str:
    match node:
        case ast.Attribute(value=ast.Name(id="self"), attr=name):
            return name
    return ""


def _assigned(node: ast.AST) -> Iterator[tuple[ast.expr, ast.expr]]:
    """(target, value) of an assignment, one pair for each of `a, b = c, d`."""
    match node:
        case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)) if len(targets) == len(values):
            yield from zip(targets, values, strict=True)
        case ast.Assign(targets=targets, value=value):
            yield from ((target, value) for target in targets)
        case ast.NamedExpr(target=target, value=value):
            yield target, value


def _bound(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    """(name, what it stands for) of assignments, `with … as`, and loops (over what an annotation calls `list[X]`)."""
    for target, value in _assigned(node):
        if isinstance(target, ast.Name):
            yield target.id, value
    match node:
        case ast.With(items=items) | ast.AsyncWith(items=items):
            for item in items:
                if isinstance(item.optional_vars, ast.Name):
                    yield item.optional_vars.id, item.context_expr
        case ast.For(target=ast.Name(id=name), iter=value) | ast.comprehension(target=ast.Name(id=name), iter=value):
            yield name, value
