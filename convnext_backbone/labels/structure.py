"""Holds what was read from a folder of labels, whatever the format."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

Task = Literal['boxes', 'segments', 'masks', 'classes']
Polygons = tuple[tuple[float, ...], ...]
Box = tuple[float, float, float, float]
IGNORED = 255  # the value of a mask that is no class


class RunLengths(NamedTuple):
    """Holds a mask as COCO's run lengths.

    Attributes:
        size: height and width.
        counts: compressed, or a number for each run.
    """

    size: tuple[int, int]
    counts: str | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Object:
    """Holds one labelled object.

    Attributes:
        label: number of the class.
        box: x1 y1 x2 y2 in pixels, to a hundredth.
        mask: polygons, each x y x y ..., or run lengths; ``None`` without one.
        crowd: neither learned nor counted against a model (COCO's ``iscrowd``, VOC's ``difficult``).
    """

    label: int
    box: Box
    mask: Polygons | RunLengths | None = None
    crowd: bool = False


@dataclass(frozen=True, slots=True)
class Sample:
    """Holds one image and what is known about it.

    Attributes:
        image: where it lies.
        width, height: as seen, after EXIF orientation; 0 for the task ``classes``, which does not need them.
        objects: in the order of the file, for the tasks ``boxes`` and ``segments``.
        mask: file of its mask, for the task ``masks``.
        label: number of its class, for the task ``classes``.
        labels: numbers of all the classes that it has.
    """

    image: Path
    width: int = 0
    height: int = 0
    objects: tuple[Object, ...] = ()
    mask: Path | None = None
    label: int | None = None
    labels: frozenset[int] = frozenset()


@dataclass(frozen=True)
class MaskValues:
    """Holds what the pixels of masks stand for.

    Attributes:
        numbers: value, or colour (red, green, blue), of a pixel -> number of the class, or 255.
        colour: the masks are read as colours.
        usable: they are gray and hold the numbers already, so they can be used where they lie.
    """

    numbers: Mapping
    colour: bool
    usable: bool


@dataclass(frozen=True)
class Labels:
    """Holds the content of a folder of labels.

    Attributes:
        root: the folder.
        format: a name in :data:`convnext_backbone.labels.FORMATS`.
        task: ``boxes``, ``segments`` (boxes with outlines), ``masks`` (a class for each pixel) or ``classes``
            (one for each image).
        classes: their names, in the order of the numbers.
        splits: ``train``, ``val`` and perhaps ``test``, each sorted by name of the image; ``''`` alone if no
            split was wanted.
        given: the splits are those of the folder, not drawn.
        notes: what the user should be told, one line each.
        colours: one for each class, where the labels have them.
        values: what the pixels of masks stand for.
        files: split -> its COCO file and the folder of its images, where that can be used as it lies.
    """

    root: Path
    format: str
    task: Task
    classes: tuple[str, ...]
    splits: Mapping[str, tuple[Sample, ...]]
    given: bool
    notes: tuple[str, ...] = ()
    colours: tuple[tuple[int, int, int], ...] = ()
    values: MaskValues | None = None
    files: Mapping[str, tuple[Path, Path]] = field(default_factory=lambda: MappingProxyType({}))

    def image_folder(self, split: str) -> Path:
        """Return the innermost folder that holds all images of a split."""
        parents = {str(sample.image.parent) for sample in self.splits[split]}
        return Path(os.path.commonpath(parents))

    def samples(self) -> Iterator[Sample]:
        """Yield the samples of all splits."""
        for samples in self.splits.values():
            yield from samples
