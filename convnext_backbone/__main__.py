"""Run a command: ``python -m convnext_backbone train ...`` is ``convnext train ...``."""

from .cli import main

main()
