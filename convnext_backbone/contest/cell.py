"""Describes one comparison of the benchmark: everything but who runs it."""

from dataclasses import dataclass

IMAGES = dict(classify=(224, 224), mask_rcnn=(800, 1280), upernet=(512, 512))  # height and width in pixels


@dataclass
class Cell:
    """Describes one comparison.

    Attributes:
        task: ``'classify'``, ``'mask_rcnn'`` or ``'upernet'``; or ``'IMAGESxHEIGHTxWIDTH'``, the maps of the
            backbone.
        compiled: by ``torch.compile``.
        captured: a step is a CUDA graph, which one call launches: the GPU's time alone.
    """

    size: str
    task: str
    mode: str
    precision: str
    compiled: bool
    batch: int
    device: str
    captured: bool = False

    @property
    def image(self) -> tuple[int, int]:
        """Return height and width of the images in pixels."""
        return IMAGES.get(self.task) or tuple(map(int, self.task.split('x')[1:]))

    @property
    def whole(self) -> bool:
        """Return whether it is about whole detectors or segmenters, not only about backbones."""
        return self.task in IMAGES and self.task != 'classify'

    def __str__(self) -> str:
        how = ' '.join(['compiled' if self.compiled else 'eager'] + ['captured'] * self.captured)
        height, width = self.image
        what = f'{self.task} {self.size}' if self.whole else self.size
        return f'{what} {self.mode} {self.batch} x {height} x {width} {self.precision} {how}'
