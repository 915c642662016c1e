"""Reports a model that cannot be built, where the config is to blame and not this machine."""

import ast
from pathlib import Path

from mmengine.config import Config

from ..errors import UserError, being_built, build_error_text, message
from ..findings import Findings
from ..measure import build_model, without_weights

MISTAKES = (  # what constructors raise for settings that they cannot take
    UserError,
    TypeError,
    LookupError,
    ValueError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    RuntimeError,
)
OF_THE_MACHINE = (OSError, ImportError, MemoryError, NotImplementedError)  # files, network, packages
PLACEHOLDERS = (None, False, object)  # of what could not be imported
WORDS = ('install', 'memory', 'cuda', 'nvidia')  # of messages about the machine


def check_build(cfg: Config, findings: Findings) -> bool:
    """Report that a model cannot be built, at the key of the part that cannot.

    It is built on the CPU: some models cannot be built on the meta device that otherwise can.

    Args:
        cfg: of a run.
        findings: gets an error (kind ``build``) if training would stop there, too, unless there is one for
            this part already; a note if a package, a file or the network is missing.

    Returns:
        Whether the config has such an error.
    """
    try:
        build_model(cfg, 'cpu')
        return False
    except Exception as error:  # whatever constructors raise
        reason = error
    key, kind = being_built(reason, without_weights(cfg))
    missing = [] if isinstance(reason, UserError) else _missing_packages(reason)
    if missing or not _is_mistake(reason):
        text = f'the model could not be built here, nor its parts compared: {build_error_text(reason)}'
        text += f'; not to be imported: {", ".join(missing)}' if missing else ''
        findings.add('note', 'build', key or 'model', text)
        return False
    if _is_known(key, findings):
        return True
    own = isinstance(reason, UserError)  # ours say all that is needed
    text = ' '.join(message(reason).split()) if own else build_error_text(reason)
    findings.add('error', 'build', key or 'model', text if own else f'{kind or "it"} cannot be built: {text}')
    return True


def _is_mistake(error: BaseException) -> bool:
    """Return whether an error is that of the config: nothing in its chain is about the machine."""
    causes, cause = [], error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__ or cause.__context__
    if any(isinstance(cause, OF_THE_MACHINE) for cause in causes) or not isinstance(error, MISTAKES):
        return False
    return not any(word in message(error).lower() for word in WORDS)


def _missing_packages(error: BaseException) -> list[str]:
    """Return packages that the file which raised an error goes without: it could not import them."""
    frame = error.__traceback__
    while frame.tb_next is not None:
        frame = frame.tb_next
    given = frame.tb_frame.f_globals
    try:
        tree = ast.parse(Path(frame.tb_frame.f_code.co_filename).read_text(encoding='utf-8'))
    except (OSError, SyntaxError, ValueError):
        return []
    missing = []
    for node in tree.body:
        for line in node.body if isinstance(node, ast.Try) else ():
            if not isinstance(line, (ast.Import, ast.ImportFrom)) or getattr(line, 'level', 0):
                continue
            for alias in line.names:
                name = alias.asname or alias.name.partition('.')[0]
                if any(given.get(name) is value for value in PLACEHOLDERS):
                    missing.append((getattr(line, 'module', None) or alias.name).partition('.')[0])
    return list(dict.fromkeys(missing))


def _is_known(key: str, findings: Findings) -> bool:
    """Return whether another check has reported an error of a part, or of one whose key is unknown."""
    places = [finding.where for finding in findings.of('error')]
    if not key:
        return any(place.startswith('model.') for place in places)
    return any(place == key or key != 'model' and place.startswith(f'{key}.') for place in places)
