"""The arrows of imports: nothing points up, and there is no circle (docs/architecture.md)."""

import ast
from pathlib import Path

from conftest import ROOT

PACKAGE = ROOT / 'convnext_backbone'
LEVELS = {  # of the parts of the package; a part may import only from lower levels
    'errors': 0, 'html': 0, 'registry': 0, 'heads': 0,
    'findings': 1, 'mmcv_ops': 1, 'ops': 1, 'backbones': 2,
    'checkpoint': 3, 'classification': 4, 'datasets': 5, 'transforms': 6, 'config': 5, 'measure': 6,
    'pretraining': 4, 'inputs': 6, 'tiles': 6,
    'checks': 7, 'predictions': 7, 'preannotations': 8, 'labels': 6, 'report': 7,
    'swap': 8, 'page': 8, 'new': 9, 'engine': 8, 'inference': 8, 'complexity': 8, 'hub': 8, 'shapes': 8,
    'plan': 8, 'export': 9, 'classify': 9, 'features': 9, 'contest': 9, 'gpu': 10, 'serve': 8, 'cli': 10,
    'commands': 11, '__main__': 12,
}  # fmt: skip


def arrows():
    """(importing part, imported part, place) for each relative import, within functions too."""
    for file in PACKAGE.rglob('*.py'):
        relative = file.relative_to(PACKAGE)
        own = relative.parts[0].removesuffix('.py')
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level and own != '__init__':
                base = Path(*relative.parent.parts[: len(relative.parent.parts) - node.level + 1])
                if base.parts:
                    continue  # within the part
                names = [node.module.split('.')[0]] if node.module else [alias.name for alias in node.names]
                for name in names:
                    if name not in ('__version__', own):
                        yield own, name, f'{relative}:{node.lineno}'


def test_no_import_points_up():
    wrong = [f'{place} imports {name}' for own, name, place in arrows() if LEVELS[name] >= LEVELS[own]]
    assert wrong == []


def test_the_engine_is_not_loaded_where_nothing_is_trained():
    above = ('cli', 'commands', '__main__')
    importers = {own for own, name, _ in arrows() if name == 'engine'}
    assert importers <= set(above)
