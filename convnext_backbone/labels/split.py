"""Draws the images to validate on: of every class, and never nearly the same as one that is trained on."""

import random
from collections import defaultdict

import numpy as np

from ..datasets.near import groups_of
from ..errors import UserError
from .reading import Draft, Reading

EMPTY = -1  # the class of images without any


def draw(
    reading: Reading, drafts: list[Draft], labels: list[frozenset[int]], share: float, seed: int
) -> list[str]:
    """Return ``train`` or ``val`` for each image.

    The classes take their part in turn, the rarest first. Groups of near-identical images stay together.

    Args:
        drafts: in the order of their names.
        labels: the classes of each image.
        share: of the images that is for validation.
        seed: of the order in which groups are drawn.

    Raises:
        UserError: there are fewer than two images that differ.
    """
    groups = groups_of([reading.path(draft.image) for draft in drafts])
    members: dict[int, list[int]] = defaultdict(list)
    for number, group in enumerate(groups.tolist()):
        members[group].append(number)
    if len(members) < 2:
        raise UserError(
            f'{reading.root} has {len(drafts)} images that are nearly the same, which cannot be split into '
            'those to train and to validate on: add images'
        )
    together = len(drafts) - len(members)
    if together:
        pair = next(m for m in members.values() if len(m) > 1)
        reading.note(
            f'{together} images are nearly the same as another and stay on its side of the split (first: '
            f'{drafts[pair[0]].image}, {drafts[pair[1]].image})'
        )
    order = list(members)
    random.Random(seed).shuffle(order)
    side = _assign(order, members, labels, share)
    return [side[group] for group in groups.tolist()]


def _assign(order: list[int], members: dict[int, list[int]], labels: list, share: float) -> dict[int, str]:
    """Return the side of each group."""
    holds: dict[int, dict[int, int]] = defaultdict(dict)  # class -> group -> images
    for group in order:
        for number in members[group]:
            for label in labels[number] or (EMPTY,):
                holds[label][group] = holds[label].get(group, 0) + 1
    side: dict[int, str] = {}
    for label in sorted(holds, key=lambda label: (sum(holds[label].values()), label)):
        _share_out(holds[label], side, share)
    if len(set(side.values())) < 2:  # every class is in one group alone
        wanted = 'val' if 'train' in side.values() else 'train'
        side[min(order, key=lambda group: (len(members[group]), group))] = wanted
    return side


def _share_out(sizes: dict[int, int], side: dict[int, str], share: float) -> None:
    """Give the groups of one class that have no side yet to one of the two."""
    free = [group for group in sizes if group not in side]
    have = sum(size for group, size in sizes.items() if side.get(group) == 'val')
    want = max(1, round(share * sum(sizes.values()))) if len(sizes) > 1 else 0
    trained = any(side.get(group) == 'train' for group in sizes)
    for place, group in enumerate(free):
        last = not trained and place == len(free) - 1
        if not last and have < want and have + sizes[group] <= want + want // 2:
            side[group], have = 'val', have + sizes[group]
        else:
            side[group], trained = 'train', True
    if want and not have and len(free) > 1:  # each is larger than the share: the smallest
        side[min(free, key=sizes.get)] = 'val'


def note_leaks(reading: Reading, drafts: list[Draft]) -> None:
    """Tell of images to validate or test on that are nearly the same as one that is trained on."""
    groups = groups_of([reading.path(draft.image) for draft in drafts])
    trained = {}
    for number, (group, draft) in enumerate(zip(groups.tolist(), drafts)):
        if draft.split == 'train':
            trained.setdefault(group, number)
    for split in ('val', 'test'):
        own = [i for i, draft in enumerate(drafts) if draft.split == split]
        leaks = [i for i in np.array(own, int) if groups[i] in trained]
        if leaks:
            first = drafts[trained[groups[leaks[0]]]].image
            reading.note(
                f'{len(leaks)} of {len(own)} images of {split} are nearly the same as one of train, which '
                f'flatters the metric (first: {drafts[leaks[0]].image}, {first})'
            )
