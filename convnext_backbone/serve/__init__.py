"""Serves a model to browsers and programs: a page to try it on images, and JSON."""

from .answers import Answers, Refused
from .server import Server

__all__ = ['Answers', 'Refused', 'Server']
