"""Checks that what is public has a docstring, and that it begins with a sentence with a verb.

Such a sentence can be read and searched, a fragment cannot.
"""

import ast
from pathlib import Path

import pytest

import convnext_backbone

PACKAGE = Path(convnext_backbone.__file__).parent
FRAGMENTS = {'Of', 'What', 'Whether', 'As', 'By', 'See'}
OF_FUNCTIONS = FRAGMENTS | {'From', 'To', 'Into', 'With', 'Where', 'How', 'A', 'An', 'The'}


def fragments(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = (ast.get_docstring(node) or '').split('\n')[0]
            is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
            word = first.split(' ')[0].rstrip(',.:;')
            no_word = is_function and first and not first[0].isalpha()
            if no_word or word in (OF_FUNCTIONS if is_function else FRAGMENTS):
                found.append(f'{getattr(node, "name", "module")}: {first}')
    return found


def undocumented(source: str) -> list[str]:
    """Public classes, functions and methods without a docstring, by their dotted names."""
    found, inner = [], [('', ast.parse(source))]
    if not ast.get_docstring(inner[0][1]):
        found.append('module')
    while inner:
        prefix, node = inner.pop()
        for child in node.body:
            if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                if child.name.startswith('_'):
                    continue
                if not ast.get_docstring(child):
                    found.append(f'{prefix}{child.name}')
                if isinstance(child, ast.ClassDef):
                    inner.append((f'{prefix}{child.name}.', child))
    return sorted(found)


FILES = pytest.mark.parametrize(
    'file', sorted(PACKAGE.rglob('*.py')), ids=lambda file: str(file.relative_to(PACKAGE))
)


@FILES
def test_docstrings_begin_with_a_sentence(file):
    assert fragments(file.read_text()) == []


def test_a_fragment_is_found():
    texts = dict(f='Of the file.', g='(N,) -> (M,).', h='Return it.')
    source = ''.join(f'def {name}():\n    "{text}"\n' for name, text in texts.items())
    assert fragments(source) == ['f: Of the file.', 'g: (N,) -> (M,).']


@FILES
def test_what_is_public_has_a_docstring(file):
    assert undocumented(file.read_text()) == []


def test_what_has_no_docstring_is_found():
    methods = '    def f(self): ...\n    def _g(self): ...\n'
    source = f'"Does."\nclass A:\n    "Is."\n{methods}def h(): "Do."\ndef i(): ...'
    assert undocumented(source) == ['A.f', 'i']
    assert undocumented('x = 1') == ['module']
