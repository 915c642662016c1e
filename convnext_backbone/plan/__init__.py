"""Says what a training needs before it is started: memory, time, disk, by a few real steps."""

from .cluster import BUCKET, INFINIBAND, NODE, NVLINK, Row, Step, estimate, reduce_seconds
from .length import Disk, Length, averages, disk_of, length_of
from .loading import images_per_second, parts_of_an_image, worker_counts
from .needs import CARDS, Line, batches, helps, least_batch, variants
from .shape import Largest, largest_shape
from .steps import MARGIN, LiveBytes, Sheet, largest_batch, measure_steps, memory_here, search

__all__ = [
    'BUCKET',
    'CARDS',
    'Disk',
    'INFINIBAND',
    'Largest',
    'Length',
    'Line',
    'LiveBytes',
    'MARGIN',
    'NODE',
    'NVLINK',
    'Row',
    'Sheet',
    'Step',
    'averages',
    'batches',
    'disk_of',
    'estimate',
    'helps',
    'images_per_second',
    'largest_batch',
    'largest_shape',
    'least_batch',
    'length_of',
    'measure_steps',
    'memory_here',
    'parts_of_an_image',
    'reduce_seconds',
    'search',
    'variants',
    'worker_counts',
]
