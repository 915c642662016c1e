"""Holds the commands of ``convnext``: one module each.

Each has ``parse_args`` and a ``main`` that takes arguments.
"""
