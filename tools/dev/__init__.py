"""Contains programs for maintainers: `python -m tools.dev.NAME` from the root of the checkout."""
