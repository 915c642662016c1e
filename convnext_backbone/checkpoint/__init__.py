"""Reads files of weights safely, recognises them, loads them completely."""

from .load import CheckpointMismatch, LoadReport, Pretrained, load_checkpoint, load_trained
from .read import UnreadableCheckpoint, close_unsafe_reader, read_checkpoint

__all__ = [
    'CheckpointMismatch',
    'LoadReport',
    'Pretrained',
    'UnreadableCheckpoint',
    'close_unsafe_reader',
    'load_checkpoint',
    'load_trained',
    'read_checkpoint',
]
