"""Pretrains networks without labels."""

from .fcmae import FCMAE
from .hook import ReconstructionHook

__all__ = ['FCMAE', 'ReconstructionHook']
