"""Draws random numbers in a resumed training as the uninterrupted one would have."""

import random

import numpy as np
import torch


def seed_all(*key: int) -> None:
    """Seed Python's, NumPy's and PyTorch's CPU generators from whole numbers, each set its own."""
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])  # noqa: NPY002  what the data pipelines draw from
    torch.default_generator.manual_seed(int(words[2]) << 32 | int(words[3]))


def get_states() -> tuple:
    """Return the states of the random numbers of Python, NumPy, PyTorch on the CPU and the GPU.

    That of this process's GPU is ``None`` if it is not in use.
    """
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
    return random.getstate(), np.random.get_state(), torch.get_rng_state(), cuda  # noqa: NPY002


def set_states(states: tuple) -> None:
    """Restore what :func:`get_states` gave."""
    python, numpy, cpu, cuda = states
    random.setstate(python)
    np.random.set_state(numpy)  # noqa: NPY002
    torch.set_rng_state(cpu)
    if cuda is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(cuda)


class RandomStream:
    """Draws the random numbers of training steps: a stream of its own, whatever is drawn between two steps.

    Validation, a new pass over the data or a hook may draw numbers in one run and not in another; a step
    that runs inside ``with stream:`` does not notice. One per process.

    Args:
        key: whole numbers from which the stream starts, such as seed and rank.
    """

    def __init__(self, *key: int):
        outside = get_states()
        seed_all(*key)
        if torch.cuda.is_initialized():
            torch.cuda.manual_seed(torch.initial_seed())
        self.states = get_states()
        set_states(outside)

    def __enter__(self) -> 'RandomStream':
        self._outside = get_states()
        set_states(self.states)
        return self

    def __exit__(self, *error) -> None:
        self.states = get_states()
        set_states(self._outside)

    def state_dict(self) -> dict:
        """Return numbers and tensors only, so that a checkpoint with it needs no code to be read."""
        (version, words, gauss), (_, numpy, *rest), cpu, cuda = self.states
        return dict(
            python=[version, torch.tensor(words), gauss],
            numpy=[torch.from_numpy(numpy.astype(np.int64)), *rest],
            torch=cpu,
            cuda=cuda,
        )

    def load_state_dict(self, state: dict) -> None:
        """Go on where the stream was whose :meth:`state_dict` this is."""
        version, words, gauss = state['python']
        numpy, *rest = state['numpy']
        self.states = (
            (version, tuple(words.tolist()), gauss),
            ('MT19937', numpy.numpy().astype(np.uint32), *rest),
            state['torch'],
            state['cuda'],
        )
