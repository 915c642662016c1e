"""The documentation is true: its Python runs, its commands, options, configs, files and links exist."""

import contextlib
import io
import re
import shlex
from functools import cache

import pytest
from conftest import ROOT
from mmengine.config import Config

from convnext_backbone.cli import COMMANDS, module_of
from convnext_backbone.config import find_config, read_config
from convnext_backbone.swap import read_source

PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted(ROOT.glob('docs/*.md'))]
PYTHON = re.compile(r'```python\n(.*?)```', re.DOTALL)
BLOCKS = [
    pytest.param(code, id=f'{page.stem}-{number}')
    for page in PAGES
    for number, code in enumerate(PYTHON.findall(page.read_text()), 1)
]
PROGRAM = re.compile(r'(convnext|make|torchrun|python -m tools\.|(python )?tools/)\b')
PLACEHOLDERS = {'NAME.py', 'bloodcells.py', 'CONFIG', 'NAME'}


def shown_commands(text: str) -> list[str]:
    """Return the commands in indented or fenced lines, comments removed, continued lines joined."""
    text = PYTHON.sub('', text).replace('\\\n', ' ')
    fenced = '\n'.join(re.findall(r'```\w*\n(.*?)```', text, re.DOTALL))
    lines = [*re.findall(r'^ {4}(\S.*)$', text, re.MULTILINE), *fenced.splitlines()]
    return [line.partition(' #')[0].strip() for line in lines if PROGRAM.match(line)]


def inline_code(text: str) -> list[str]:
    """Return what stands between backticks outside of code blocks."""
    return re.findall(r'`([^`\n]+)`', re.sub(r'```.*?```', '', text, flags=re.DOTALL))


SHOWN = [
    pytest.param(line, id=f'{page.stem}: {line}')
    for page in PAGES
    for line in shown_commands(page.read_text())
]
INLINE = sorted({code for page in PAGES for code in inline_code(page.read_text())})


@pytest.mark.parametrize('code', BLOCKS)
def test_python_in_the_documentation_runs(code, capsys):
    exec(compile(code, 'documentation', 'exec'), {'__name__': 'documentation'})
    printed = capsys.readouterr().out.splitlines()
    promised = re.findall(r'print\(.*\)  # (.+)', code)
    assert printed[: len(promised)] == promised


@pytest.mark.parametrize('code', [block for block in BLOCKS if '_base_ =' in block.values[0]])
def test_configs_in_the_documentation_are_read(code, tmp_path):
    file = tmp_path / 'config.py'
    file.write_text(code.replace("'configs/", f"'{ROOT}/configs/"))
    assert isinstance(read_config(file), Config)


def test_links_in_the_documentation_lead_somewhere():
    broken = []
    for page in PAGES:
        for target, place in re.findall(r'\]\(([^)#]*)#?([^)]*)\)', page.read_text()):
            file = page.parent / target if target else page
            if '://' in target or (file.exists() and (not place or place in anchors(file.read_text()))):
                continue
            broken.append(f'{page.name}: {target}#{place}'.rstrip('#'))
    assert not broken


def anchors(text: str) -> list[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    headings = re.findall(r'^#+ (.+)$', text, re.MULTILINE)
    return [re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-') for heading in headings]


@pytest.mark.parametrize('line', SHOWN)
def test_commands_in_the_documentation_are_accepted(line):
    check_command(shlex.split(line))


def check_command(words: list[str]) -> None:
    """Parse a command as its program would; the config and the script that it names must exist."""
    program, *arguments = words
    if program == 'python' and arguments[0] == '-m':
        (file,) = ROOT.glob(f'tools/**/{arguments[1].rpartition(".")[2]}.py')
        own = arguments[2 : arguments.index('--')] if '--' in arguments else arguments[2:]
        assert all(f"'{word}'" in file.read_text() for word in own if word.startswith('--'))
        if own and not own[0].startswith('-'):
            check_config(own[0])
    elif program == 'python':
        check_command(['convnext', arguments[0].removeprefix('tools/').removesuffix('.py'), *arguments[1:]])
    elif program == 'torchrun':
        check_command(['convnext', *arguments[arguments.index('convnext_backbone') + 1 :]])
    elif program == 'make':
        assert re.search(rf'^{re.escape(arguments[0])}:', (ROOT / 'Makefile').read_text(), re.MULTILINE)
    elif program == 'convnext':
        name, *options = arguments
        assert name in COMMANDS
        args = vars(module_of(name).parse_args(options))
        for config in filter(None, [args.get('config'), *args.get('configs', [])]):
            if name == 'swap':  # of mmdet's and mmseg's, too
                assert config in PLACEHOLDERS or read_source(config)
            else:
                check_config(config)
    else:
        check_script(program, arguments)


def check_script(program: str, arguments: list[str]) -> None:
    """Check the options of a launch script by its text, those behind them by the command that it starts."""
    text = (ROOT / program).read_text()
    if '--' in arguments:  # sbatch's own before it
        arguments = arguments[arguments.index('--') + 1 :]
        assert (ROOT / arguments[0]).is_file(), 'slurm_train.sh takes the path of a config'
    else:
        del arguments[2 if 'dist_test' in program else 1]  # the number of processes
        text = (ROOT / 'tools/dist_train.sh').read_text()
    for option in ('--nnodes', '--max-restarts', '--rdzv-id'):
        if option in arguments:
            assert option in text
            place = arguments.index(option)
            del arguments[place : place + 2]
    check_command(['convnext', 'test' if 'test' in program else 'train', *arguments])


def check_config(name: str) -> None:
    assert name in PLACEHOLDERS or find_config(name)


@cache
def help_of(command: str) -> str:
    """Return what ``convnext COMMAND --help`` prints."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):
        module_of(command).parse_args(['--help'])
    return out.getvalue()


@pytest.mark.parametrize('code', [code for code in INLINE if PROGRAM.match(code)])
def test_commands_in_the_text_exist(code):
    """Within sentences commands may be abbreviated: their names and options are known."""
    program, *words = code.partition(' #')[0].split()
    if program == 'convnext':
        assert not words or words[0] in COMMANDS
        assert all(word in help_of(words[0]) for word in words if word.startswith('--'))
    elif program == 'make':
        check_command([program, *words])
    elif program.startswith('tools/'):
        assert '{' in program or (ROOT / program).exists()


def test_options_in_the_text_exist():
    known = ' '.join(help_of(command) for command in COMMANDS)
    known += ' '.join(file.read_text() for file in ROOT.glob('tools/**/*') if file.suffix in ('.py', '.sh'))
    for code in INLINE:
        if code.startswith('--'):
            for option in re.findall(r'--[\w-]+', code):
                assert option in known, f'{code}: no command has {option}'


def test_files_in_the_text_exist():
    """Paths from the checkout's root."""
    for code in INLINE:
        if re.fullmatch(r'(convnext_backbone|configs|docs|tests|tools)/[\w./]*', code):
            assert (ROOT / code).exists(), f'{code} is not there'
