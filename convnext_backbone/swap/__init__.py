"""Puts a ConvNeXt in the place of the backbone of any config of mmdet or mmseg, and proves that it trains."""

from .plan import Change, Plan, Refused, plan_swap
from .proof import prove
from .source import Source, read_source
from .text import config_text

__all__ = ['Change', 'Plan', 'Refused', 'Source', 'config_text', 'plan_swap', 'prove', 'read_source']
