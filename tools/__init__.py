"""Holds what users type; each file is one command of `convnext`."""
