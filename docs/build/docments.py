"""Add the comments at the end of lines, which explain parameters, results and fields, to the docstrings."""

import ast
import re
from html import escape
from io import StringIO
from tokenize import COMMENT, generate_tokens

import griffe


def comments(source):
    "Return line number -> comment at the end of the line"
    return {
        t.start[0]: t.string.lstrip("# ").strip()
        for t in generate_tokens(StringIO(source).readline)
        if t.type == COMMENT and t.line.strip()[0] != "#"
    }


def told(function, said):
    "Return (parameter -> its comment, the result's comment) of a function's signature"
    result = said.get(function.returns.end_lineno, "") if function.returns else ""
    arguments = [
        *function.args.posonlyargs,
        *function.args.args,
        *function.args.kwonlyargs,
        *filter(None, (function.args.vararg, function.args.kwarg)),
    ]
    lines = [a.lineno for a in arguments if a.arg != "self"]
    last = function.returns.end_lineno if function.returns else function.body[0].lineno
    return {
        a.arg: said[a.lineno]
        for a in arguments
        if a.arg != "self" and a.lineno in said and lines.count(a.lineno) == 1 and (a.lineno != last or not result)
    }, result


def google(parameters, result):
    "Format both as sections of a docstring"
    text = ""
    if parameters:
        text += "\n\nArgs:\n" + "\n".join(
            f"    {name}: {escape(what, quote=False)}" for name, what in parameters.items()
        )
    if result:
        text += f"\n\nReturns:\n    {escape(result, quote=False)}"
    return text


class Docments(griffe.Extension):
    "Extension of griffe that reads trailing comments"

    def on_module_instance(self, *, node, mod, agent, **_):
        self.said = comments(source := mod.filepath.read_text("utf-8"))
        self.notebook = re.search(r"File to edit: (?:\.\./)+nbs/([\w/]+)\.ipynb|$", source)[1]

    def on_function_instance(self, *, node, func, agent, **_):
        self._tell(func, self._cell(func) + google(*told(node, self.said)))

    def on_class_instance(self, *, node, cls, agent, **_):
        self._tell(cls, self._cell(cls))

    def on_attribute_instance(self, *, node, attr, agent, **_):
        if isinstance(node, (ast.Assign, ast.AnnAssign)) and not attr.docstring:
            self._tell(attr, escape(self.said.get(node.end_lineno, ""), quote=False))

    def _cell(self, thing):
        "Return a link to the cell that defines an object"
        if not self.notebook or not thing.parent.is_module or thing.name.startswith("_"):
            return ""
        return f"\n\nIn the notebook: [{self.notebook}][cell.{thing.parent.path.removeprefix('macular.')}.{thing.name}]"

    @staticmethod
    def _tell(thing, text):
        if not text:
            return
        if thing.docstring:
            thing.docstring.value += text
        else:
            thing.docstring = griffe.Docstring(text.strip(), parent=thing)
