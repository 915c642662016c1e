"""Contains the commands of ``convnext``: one module each, with ``parse_args`` and ``main``."""
