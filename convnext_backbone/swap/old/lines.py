"""Names what a translation leaves out, and looks up what the installed packages take."""

import inspect

from mmengine.registry import Registry

# Old settings that say what every new training does anyway: of one value, or of any (...).
ALWAYS = {
    'evaluation.pre_eval': True,
    'evaluation.efficient_test': ...,  # how results were kept in memory
    'optimizer_config.coalesce': ...,  # how gradients are sent
    'optimizer_config.bucket_size_mb': ...,
    'optimizer_config.distributed': ...,
    'checkpoint_config.create_symlink': ...,  # the file last_checkpoint says where the last one is
    'checkpoint_config.meta': ...,  # version and classes
    'log_config.by_epoch': ...,
}
LOST = 'has no counterpart and does not hold any more'


class Lines(list):
    """Holds a line for each old setting that has no true counterpart: key, value, what to do."""

    def name(self, key: str, value, advice: str) -> None:
        """Add a line."""
        line = f'{key}={short(value)}: {advice}'
        if line not in self:
            self.append(line)

    def left(self, place: str, node: dict, advice: str = LOST) -> None:
        """Name what nothing took from an old dict; ``None`` was no setting."""
        for key, value in node.items():
            if key == 'type' or value is None or ALWAYS.get(f'{place}.{key}') in (..., value):
                continue
            self.name(f'{place}.{key}', value, advice)


def short(value) -> str:
    """Return a value as it is shown in a line."""
    text = repr(value)
    return text if len(text) <= 60 else f'{text[:57]}...'


def several(value) -> list:
    """Return a list of one or more values."""
    return list(value) if isinstance(value, (list, tuple)) else [value]


def found(registry: Registry, scope: str, kind) -> type | None:
    """Return the class of a type in the registries of a package; ``None`` if there is none."""
    with registry.switch_scope_and_registry(scope) as inner:
        return inner.get(kind) if isinstance(kind, str) else kind


def takes(cls: type, key: str) -> bool:
    """Return whether a class takes an argument, or passes it on to one that it inherits from."""
    for base in inspect.getmro(cls):
        init = base.__dict__.get('__init__')
        if init is None or base is object:
            continue
        parameters = inspect.signature(init).parameters
        if key in parameters:
            return True
        if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return False
    return False
