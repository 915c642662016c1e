"""Finds, reads and checks configs, and fits them to the machine. Nothing here knows the engine."""

from .adapt import (
    choose_device,
    choose_precision,
    choose_tiles,
    choose_views,
    divide_model,
    for_testing,
    set_batch,
    skip_corrupt_images,
    use_plain_batch_norm,
    write_details,
)
from .data import (
    check_classes,
    class_counts,
    datasets,
    num_classes,
    set_data_root,
    transform_of,
    without_annotations,
)
from .files import CONFIGS, check_new_config, check_work_dir, config_names, find_config, published, sizes
from .keys import apply_options, check_keys, dicts, hooks_of, nodes
from .read import read_config
from .stand_ins import add_default_hooks, use_preprocessors, use_stand_ins
from .task import image_format, task_of
from .weights import PRETRAINED, drop_pretrained, set_pretrained, start_from

__all__ = [
    'CONFIGS',
    'PRETRAINED',
    'add_default_hooks',
    'apply_options',
    'check_classes',
    'class_counts',
    'check_keys',
    'check_new_config',
    'check_work_dir',
    'choose_device',
    'choose_precision',
    'choose_tiles',
    'choose_views',
    'config_names',
    'datasets',
    'dicts',
    'divide_model',
    'drop_pretrained',
    'find_config',
    'for_testing',
    'hooks_of',
    'image_format',
    'nodes',
    'num_classes',
    'published',
    'read_config',
    'set_batch',
    'set_data_root',
    'set_pretrained',
    'sizes',
    'skip_corrupt_images',
    'start_from',
    'task_of',
    'transform_of',
    'use_plain_batch_norm',
    'use_preprocessors',
    'use_stand_ins',
    'without_annotations',
    'write_details',
]
