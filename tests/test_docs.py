"""The code in the documentation runs as it stands there."""

import re

import pytest
from conftest import ROOT

BLOCKS = [
    pytest.param(code, id=f'{file.stem}-{number}')
    for file in sorted(ROOT.glob('docs/*.md'))
    for number, code in enumerate(re.findall(r'```python\n(.*?)```', file.read_text(), re.DOTALL), 1)
]


@pytest.mark.parametrize('code', BLOCKS)
def test_python_in_the_documentation_runs(code, capsys):
    exec(compile(code, 'documentation', 'exec'), {'__name__': 'documentation'})
    printed = capsys.readouterr().out.splitlines()
    promised = re.findall(r'print\(.*\)  # (.+)', code)
    assert printed[: len(promised)] == promised


def test_links_in_the_documentation_lead_somewhere():
    for file in [*ROOT.glob('docs/*.md'), ROOT / 'README.md', ROOT / 'CONTRIBUTING.md']:
        for target in re.findall(r'\]\(([^)#]+)[^)]*\)', file.read_text()):
            if '://' not in target:
                assert (file.parent / target).exists(), f'{file.name} links to {target}'
