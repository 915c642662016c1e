"""Shows what a model does right and wrong: a page for each evaluation that asks for one."""

from .metric import Report, make_report

__all__ = ['Report', 'make_report']
