"""The wheel: what is in it, and that it works in an environment of its own, away from the checkout."""

import os
import re
import site
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
from conftest import ROOT

from convnext_backbone.cli import COMMANDS


def run(*line, **options) -> subprocess.CompletedProcess:
    environment = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME')}
    environment.update(OMP_NUM_THREADS='1')
    return subprocess.run(
        [str(word) for word in line],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
        **options,
    )


@pytest.fixture(scope='module')
def wheel(tmp_path_factory) -> Path:
    """Built from a copy of the tracked files, so that nothing else can slip in."""
    source, out = tmp_path_factory.mktemp('source'), tmp_path_factory.mktemp('wheel')
    for name in ('convnext_backbone', 'configs', 'setup.cfg', 'pyproject.toml', 'README.md', 'LICENSE'):
        run('cp', '-r', ROOT / name, source, check=True)
    result = run(
        *(sys.executable, '-m', 'pip', 'wheel', '-q', '--no-deps', '--no-index', '--no-build-isolation'),
        *('-w', out, source),
    )
    assert result.returncode == 0, result.stdout
    (file,) = out.glob('*.whl')
    return file


@pytest.fixture(scope='module')
def installed(wheel, tmp_path_factory) -> Path:
    """The folder of an environment's commands: the wheel, and below it what this environment has."""
    folder = tmp_path_factory.mktemp('environment') / 'venv'
    run(sys.executable, '-m', 'venv', folder, check=True)
    packages = next(folder.glob('lib/python*/site-packages'))
    (packages / 'below.pth').write_text('\n'.join(site.getsitepackages()))
    result = run(folder / 'bin/python', '-m', 'pip', 'install', '-q', '--no-deps', '--no-index', wheel)
    assert result.returncode == 0, result.stdout
    return folder / 'bin'


def test_the_wheel_has_every_file_of_the_package_and_the_configs(wheel):
    packed = set(zipfile.ZipFile(wheel).namelist())
    tracked = [
        path
        for folder in ('convnext_backbone', 'configs')
        for path in (ROOT / folder).rglob('*')
        if path.is_file() and '__pycache__' not in path.parts
    ]
    for path in tracked:
        name = path.relative_to(ROOT).as_posix()
        assert (f'convnext_backbone/{name}' if name.startswith('configs') else name) in packed
    assert not any(name.startswith(('tests', 'tools', 'configs')) for name in packed)


def test_the_metadata_names_no_distribution_of_mmengine_and_every_import(wheel):
    archive = zipfile.ZipFile(wheel)
    file = next(name for name in archive.namelist() if name.endswith('METADATA'))
    metadata = Parser().parsestr(archive.read(file).decode())
    required = [line for line in metadata.get_all('Requires-Dist') if 'extra ==' not in line]
    names = {re.match(r'[\w.-]+', line)[0].lower() for line in required}
    assert not {name for name in names if name.startswith(('mm', 'onedl'))}
    assert {'torch', 'torchvision', 'timm', 'numpy', 'pillow', 'opencv-python', 'pycocotools'} <= names
    assert {'openmmlab', 'onedl', 'onnx', 'classification'} <= set(metadata.get_all('Provides-Extra'))


def test_the_command_works_away_from_the_checkout(installed, tmp_path):
    result = run(installed / 'convnext', 'configs', 'detection', cwd=tmp_path)
    assert 'cascade_convnext_t ' in result.stdout
    assert 'convnext_backbone/configs;' in result.stdout
    assert str(ROOT / 'configs') not in result.stdout
    for command in COMMANDS:
        assert command in run(installed / 'convnext', '--help', cwd=tmp_path).stdout


def test_a_config_named_without_a_path_trains_two_steps_from_the_wheel(installed, shapes, tmp_path):
    line = [installed / 'convnext', 'train', 'classifier_shapes', '--data-root', shapes / 'classification']
    options = ['train_cfg.max_iters=2', 'train_cfg.val_interval=2', 'default_hooks.checkpoint.interval=2']
    options += ['train_dataloader.batch_size=4', 'train_dataloader.num_workers=0']
    options += ['train_dataloader.persistent_workers=False', 'default_hooks.logger.interval=1']
    result = run(*line, '--device', 'cpu', '--cfg-options', *options, cwd=tmp_path)
    assert result.returncode == 0, result.stdout
    assert 'Iter(train) [2/2]' in result.stdout
    assert (tmp_path / 'work_dirs/classifier_shapes/iter_2.pth').is_file()


def test_python_m_is_the_command(installed, tmp_path):
    result = run(installed / 'python', '-m', 'convnext_backbone', 'trian', cwd=tmp_path)
    assert result.returncode == 1
    assert (
        result.stdout.strip()
        == "error: convnext has no command 'trian'; did you mean 'train'?; see convnext --help"
    )
