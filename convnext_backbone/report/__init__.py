"""Shows what a model does right and wrong: a page for each evaluation that asks for one."""

from .metric import Report, add_report

__all__ = ['Report', 'add_report']
