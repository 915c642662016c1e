"""Checks how docstrings begin: a sentence with a verb can be read and searched, a fragment cannot."""

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


@pytest.mark.parametrize(
    'file', sorted(PACKAGE.rglob('*.py')), ids=lambda file: str(file.relative_to(PACKAGE))
)
def test_docstrings_begin_with_a_sentence(file):
    assert fragments(file.read_text()) == []


def test_a_fragment_is_found():
    texts = dict(f='Of the file.', g='(N,) -> (M,).', h='Return it.')
    source = ''.join(f'def {name}():\n    "{text}"\n' for name, text in texts.items())
    assert fragments(source) == ['f: Of the file.', 'g: (N,) -> (M,).']
