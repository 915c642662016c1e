"""Writes the config: what it inherits from, and only what the images and the machine make different."""

import math
import os
import shlex
import textwrap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from mmengine.config import Config

from ..backbones.convnext import ARCHITECTURES
from ..checkpoint.zoo import PIXEL_MEAN, RELEASED
from ..config import num_classes
from ..config.keys import walk
from ..config.text import as_written
from ..labels import Labels, write_coco, write_lists, write_masks
from ..swap.plan import Change, groups_of_halves
from ..swap.recipe import DETECTION, SEGMENTATION, SMALL_DROP_PATH
from ..swap.text import WIDTH, assignment, nested
from .models import MODELS
from .pixels import Pixels
from .recipe import MOSAIC, Recipe, milestones

TINY = ARCHITECTURES['tiny'][1]  # the configs that come along with every model
# Starting weights of a classifier that is not pretrained.
FAN_IN = dict(type='Kaiming', layer=['Conv2d', 'Linear'], mode='fan_in', nonlinearity='linear')
SCRATCH_SCALE = (0.5, 1.0)  # least and most of an image that a classifier is shown, without pretraining
SCRATCH_DECAY = 0.05  # weight decay of a classifier, the paper's from scratch; 1e-8 is of fine-tuning
UNFIT = '\'"\\{\n\r'  # in the name of a folder that mmengine puts in place of {{ fileDirname }}, unescaped


def _literal(text: str) -> str:
    """Return a string as written in a config, where mmengine replaces ``{{ ... }}`` beforehand."""
    return repr(text).replace('{{', '{\\x7b')


class _Code(str):
    """Is Python code as a value."""

    def __repr__(self) -> str:
        return str(self)


def _quoted(text: str) -> str:
    """Return a text as written in a docstring of a config."""
    return text.replace('\\', '\\\\').replace('"', '\\"').replace('{{', '{\\x7b')


class _Writer:
    """Collects the lines of one config."""

    def __init__(self, labels: Labels, model: str, base: Config, out: Path, recipe: Recipe, pixels: Pixels):
        self.labels, self.model, self.base, self.out = labels, model, base, out
        self.recipe, self.pixels = recipe, pixels
        self.lines: list[str] = []

    def add(self, text: str = '') -> None:
        """Add lines."""
        self.lines += text.split('\n')

    def path(self, path: Path) -> str:
        """Return a path as written: beside the config from there, elsewhere whole."""
        path, folder = path.absolute(), self.out.absolute().parent
        if path.is_relative_to(folder) and not set(str(folder)) & set(UNFIT):
            text = _literal(f'@/{path.relative_to(folder).as_posix()}')
            return text.replace('@', '{{ fileDirname }}', 1)
        return _literal(str(path))

    @property
    def data_folder(self) -> Path:
        """Return the folder of the files that are written beside the config."""
        return self.out.with_name(f'{self.out.stem}_labels')

    @property
    def rgb(self) -> str:
        return as_written(self.pixels.load)[5:-1]


def write_config(
    labels: Labels,
    model: str,
    arch: str,
    weights: str | None,
    base: Config,
    recipe: Recipe,
    pixels: Pixels,
    anchors: list[Change],
    out: str | os.PathLike,
    command: str,
) -> str:
    """Write the files of labels beside the config, and return the config's text.

    Args:
        labels: what was read.
        model: a name in :data:`convnext_backbone.new.MODELS`.
        arch: of the backbone.
        weights: released name, URL or file; ``None``: random ones.
        base: the config that is inherited from.
        recipe, pixels: what was chosen and measured.
        anchors: changes of the anchor generator.
        out: where the config will lie.
        command: that was given.
    """
    writer = _Writer(labels, model, base, Path(out), recipe, pixels)
    _head(writer, arch, command)
    changes = [*_backbone(writer, arch, weights), *_classes(writer), *anchors]
    if labels.task == 'masks':
        changes += _crop(writer)
    if model == 'dino':
        changes += _queries(writer)
    for name, node in nested(changes).items():
        writer.lines += assignment(name, node, base, f'_base_.{name}')
    if labels.task == 'classes':
        _images(writer, weights is None)
    else:
        dict(boxes=_boxes, segments=_boxes, masks=_masks)[labels.task](writer)
    _schedule(writer, arch, weights is None)
    return '\n'.join(writer.lines).rstrip() + '\n'


def _head(writer: _Writer, arch: str, command: str) -> None:
    labels, title = writer.labels, MODELS[writer.model].title
    counts = ', '.join(f'{len(samples)} {split}' for split, samples in labels.splits.items())
    first = (
        f'{title} on ConvNeXt {arch} for {labels.root.name}: {len(labels.classes)} classes; images: {counts}.'
    )
    name = writer.out.name
    rows = [_quoted(first), '', _quoted(f'Written by:  {command}')]
    name = _quoted(shlex.quote(name))
    rows += [f'Check:       convnext check {name}', f'Train:       convnext train {name}', '']
    for what, rule in writer.recipe.told():
        rows += textwrap.wrap(f'{what}: {rule}', WIDTH, subsequent_indent='    ')
    if not labels.given:
        rows.append('split: drawn with a seed, by classes; images that are nearly alike are on one side')
    writer.lines += [f'"""{rows[0]}', *rows[1:], '"""', '']
    base = MODELS[writer.model].bases[labels.task]
    writer.add(f'_base_ = {f"convnext_backbone::{base}"!r}\n')
    writer.lines += _filled('classes = ', list(map(_literal, labels.classes)))
    if labels.task != 'classes':
        palette = f', palette={as_written(list(labels.colours))}' if labels.colours else ''
        writer.add(f'metainfo = dict(classes=classes{palette})')
    writer.add()


def _filled(start: str, items: list[str]) -> list[str]:
    """Return the lines of a tuple, as many items in a line as fit."""
    if len(line := f'{start}({", ".join(items)}{"," * (len(items) == 1)})') <= WIDTH:
        return [line]
    rows = ['   ']
    for item in items:
        if len(rows[-1]) + len(item) + 2 > WIDTH:
            rows.append('   ')
        rows[-1] += f' {item},'
    return [f'{start}(', *rows, ')']


def _backbone(writer: _Writer, arch: str, weights: str | None) -> Iterator[Change]:
    """Yield what another size, other weights and other pixels change."""
    base, fitted = writer.base, f'as ConvNeXt {arch} has'
    widths = ARCHITECTURES[arch][1]
    if arch != 'tiny':
        yield Change('model.backbone.arch', 'tiny', arch, 'as asked for')
        table = SEGMENTATION if writer.labels.task == 'masks' else {k: v[0] for k, v in DETECTION.items()}
        if writer.model not in ('dino', 'classifier'):
            size = arch.removeprefix('v2_')
            why = 'published for this size' if size in table else 'ours: none is published for this size'
            yield Change('model.backbone.drop_path_rate', None, table.get(size, SMALL_DROP_PATH), why)
    if arch.startswith('v2_'):
        yield Change('model.backbone.layer_scale_init_value', None, None, 'V2 has none')
    for key, value in _settings(base, 'in_channels'):
        if widths != TINY and isinstance(value, (list, tuple)) and set(value) <= set(TINY):
            yield Change(key, value, [widths[TINY.index(v)] for v in value], fitted)
        elif widths != TINY and value in TINY and 'auxiliary_head' in key:
            yield Change(key, value, widths[TINY.index(value)], fitted)
    if writer.model == 'rtmdet' and (groups := groups_of_halves(32, widths[1:])) < 32:
        yield Change('model.neck.norm_cfg.num_groups', 32, groups, 'which divides the widths of the neck')
    place = 'model' if writer.model == 'classifier' else 'model.backbone'
    old = base.model.init_cfg if writer.model == 'classifier' else base.model.backbone.init_cfg
    if base.model.get('data_preprocessor', {}).get('batch_augments') and writer.model != 'rtmdet':
        why = 'the images have several sizes'
        yield Change('model.data_preprocessor.batch_augments', None, None, why)
    if weights is None:
        yield from _random(writer, arch, old)
    elif weights != old.checkpoint:
        licence = f'licence {RELEASED[weights].licence}' if weights in RELEASED else 'yours'
        yield Change(f'{place}.init_cfg.checkpoint', old.checkpoint, weights, licence)
    pixels = writer.pixels
    if list(pixels.mean) != PIXEL_MEAN and writer.model != 'classifier':
        if pixels.channels != 3:
            yield Change('model.backbone.in_channels', 3, pixels.channels, 'the stem is fitted to them')
        place = 'model.data_preprocessor'
        yield Change(f'{place}.mean', None, list(pixels.mean), pixels.why)
        yield Change(f'{place}.std', None, list(pixels.std), pixels.why)
        if 'color_type' in pixels.load:
            yield Change(f'{place}.bgr_to_rgb', True, False, 'channels as they lie in the file')


def _random(writer: _Writer, arch: str, old) -> Iterator[Change]:
    """Yield what random weights change; of a classifier so that a short training learns something.

    Not of detectors and segmenters, which pad images: where all channels are 0 the gradient grows up to a
    thousandfold in every norm, and with weights by fan-in beyond what float32 holds.
    """
    if writer.model != 'classifier':
        yield Change('model.backbone.init_cfg', old, None, 'random weights, as asked for')
        name = 'pad_val' if writer.labels.task == 'masks' else 'pad_value'
        yield Change(f'model.data_preprocessor.{name}', 0, 1.0, 'of zeros their gradients would be huge')
        return
    yield Change('model.init_cfg', old, None, 'random weights, as asked for')
    yield Change('model.head_init_scale', writer.base.model.head_init_scale, 1.0, 'of a new network')
    if not arch.startswith('v2_'):
        small = 'not 1e-6, from which a short training hardly gets away'
        yield Change('model.backbone.layer_scale_init_value', None, 1.0, small)
    yield Change('model.backbone.init_cfg', None, [FAN_IN], 'by fan-in: 0.02 suits long training')


def _classes(writer: _Writer) -> Iterator[Change]:
    """Yield the number of classes of every head, and what follows from it."""
    count = len(writer.labels.classes)
    for key, value in num_classes(writer.base.model, 'model'):
        if value != count:
            yield Change(key, value, count, 'of this set')
    for key, value in _settings(writer.base, 'num_things_classes', 'class_weight'):
        if not isinstance(value, list):
            yield Change(key, value, count, 'of this set')
        elif len(value) != count + 1:
            yield Change(key, value, _Code(f'[1.0] * {count} + [{value[-1]}]'), 'the last is of no object')


def _settings(base: Config, *names: str) -> Iterator[tuple[str, object]]:
    """Yield key and value of every setting of the model that has one of these names."""
    for place, node in walk(base.model.to_dict(), 'model'):
        for name in names:
            if node.get(name) is not None:
                yield f'{place}.{name}', node[name]


def _crop(writer: _Writer) -> Iterator[Change]:
    """Yield the size of a segmenter's crops, where it is not that of the base."""
    side = writer.recipe.short
    if side != 512:
        why = 'the size of the crops'
        yield Change('model.data_preprocessor.size', (512, 512), (side, side), why)
        if writer.base.model.test_cfg.get('mode') == 'slide':
            stride = (side * 2 // 3,) * 2
            yield Change('model.test_cfg.crop_size', None, (side, side), why)
            yield Change('model.test_cfg.stride', None, stride, 'two thirds of it')


def _load(writer: _Writer) -> str:
    more = f', {writer.rgb}' if writer.pixels.load else ''
    return f"dict(type='LoadImageFromFile'{more})"


def _loaders(writer: _Writer, rows: dict[str, list[str]], val_batch: int = 1, more: str = '') -> None:
    """Add the data loaders; ``rows`` are the arguments of the datasets, by split."""
    recipe = writer.recipe
    for split, name in (
        ('train', 'train_dataloader'),
        ('val', 'val_dataloader'),
        ('test', 'test_dataloader'),
    ):
        if split not in rows:
            continue
        batch = recipe.batch if split == 'train' else val_batch
        given = f'batch_size={batch}, num_workers={recipe.workers},{more if split == "train" else ""}'
        inner = '\n'.join(f'        {row},' for row in rows[split])
        writer.add(f'{name} = dict(\n    {given}\n    dataset=dict(\n{inner}\n    ),\n)')
    if 'test' not in rows:
        writer.add('test_dataloader = val_dataloader')


def _boxes(writer: _Writer) -> None:
    """Add pipelines, data and metric of a detector."""
    labels = writer.labels
    masks = writer.base.val_evaluator.metric != 'bbox'
    if writer.model != 'rtmdet' or not writer.pixels.usual:
        _detector_pipelines(writer, masks)
        own = True
    else:
        own = _mosaic_pipelines(writer)
    files = write_coco(labels, writer.data_folder)
    rows = {
        split: [
            "data_root=''",
            f'ann_file={writer.path(part.ann_file)}',
            f'data_prefix=dict(img={writer.path(part.image_folder)})',
            'metainfo=metainfo',
        ]
        for split, part in files.items()
    }
    if own:
        for split, row in rows.items():
            row.append(f'pipeline={"train" if split == "train" else "test"}_pipeline')
    rows['train'].append('filter_cfg=dict(_delete_=True, filter_empty_gt=False)')
    _loaders(writer, rows)
    val, test = files['val'], files.get('test')
    writer.add(f'val_evaluator = dict(ann_file={writer.path(val.ann_file)})')
    if test:
        writer.add(f'test_evaluator = dict(ann_file={writer.path(test.ann_file)})')
    else:
        writer.add('test_evaluator = val_evaluator')
    writer.add()


def _detector_pipelines(writer: _Writer, masks: bool) -> None:
    short, long = writer.recipe.short, writer.recipe.long
    shorts = _shorts(short)
    annotations = f"dict(type='LoadAnnotations', with_bbox=True{', with_mask=True' if masks else ''})"
    writer.add(f'scales = [(side, {long}) for side in {as_written(shorts)}]')
    writer.add(f"""train_pipeline = [
    {_load(writer)},
    {annotations},
    dict(type='RandomChoiceResize', scales=scales, keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    {_load(writer)},
    dict(type='Resize', scale=({long}, {short}), keep_ratio=True),
    {annotations},
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]""")


def _shorts(side: int) -> list[int]:
    """Return the short sides from which the training chooses, the largest of which is ``side``."""
    return sorted({max(32, round(side * part / 32) * 32) for part in (0.6, 0.7, 0.8, 0.9, 1.0)})


def _queries(writer: _Writer) -> Iterator[Change]:
    """Yield fewer queries where the maps of a small image have fewer places: DINO takes the best of these."""
    places = sum(math.ceil(_shorts(writer.recipe.short)[0] / stride) ** 2 for stride in (8, 16, 32, 64))
    given, most = writer.base.model.num_queries, writer.base.model.test_cfg.max_per_img
    if places < given:
        yield Change('model.num_queries', given, places, 'places in the maps of the smallest images')
        if (boxes := places * len(writer.labels.classes)) < most:
            yield Change('model.test_cfg.max_per_img', most, boxes, 'as many boxes as there are at most')


def _mosaic_pipelines(writer: _Writer) -> bool:
    """Add RTMDet's pipelines where the size is not theirs, and return whether it is not."""
    base, side = writer.base, writer.recipe.short
    if side == MOSAIC:
        return False
    sizes = {(MOSAIC, MOSAIC): 'size', (2 * MOSAIC, 2 * MOSAIC): '(2 * size[0], 2 * size[1])'}
    writer.add(f'size = ({side}, {side})')
    hook = next(i for i, hook in enumerate(base.custom_hooks) if 'switch_pipeline' in hook)
    for name, place, steps in (
        ('train_pipeline', 'train_dataloader.dataset.pipeline', base.train_dataloader.dataset.pipeline),
        ('last_pipeline', f'custom_hooks[{hook}].switch_pipeline', base.custom_hooks[hook].switch_pipeline),
        ('test_pipeline', 'val_dataloader.dataset.pipeline', base.val_dataloader.dataset.pipeline),
    ):
        writer.add(f'{name} = [')
        for number, step in enumerate(steps):
            new = [f'{k}={sizes[v]}' for k, v in step.items() if isinstance(v, tuple) and v in sizes]
            item = f'_base_.{place}[{number}]'
            line = f'    dict({item}, {", ".join(new)}),' if new else f'    {item},'
            writer.add(f'{line}  # {step.type}')
        writer.add(']')
    return True


def _masks(writer: _Writer) -> None:
    """Add pipelines, data and metric of a segmenter."""
    labels, side = writer.labels, writer.recipe.short
    sides = np.median([sorted((s.width, s.height)) for s in labels.samples() if s.width], axis=0)
    scale = (writer.recipe.long, max(side, round(writer.recipe.long * float(sides[0] / sides[1]))))
    writer.add(f"""crop_size = ({side}, {side})
train_pipeline = [
    {_load(writer)},
    dict(type='LoadAnnotations', reduce_zero_label=False),
    dict(type='RandomResize', scale={scale}, ratio_range=(0.5, 2.0), keep_ratio=True),
    dict(type='RandomCrop', crop_size=crop_size, cat_max_ratio=0.75),
    dict(type='RandomFlip', prob=0.5),{_distortion(writer)}
    dict(type='PackSegInputs'),
]
test_pipeline = [
    {_load(writer)},
    dict(type='Resize', scale={scale}, keep_ratio=True),
    # the labels come after the resize: they are compared at the original size
    dict(type='LoadAnnotations', reduce_zero_label=False),
    dict(type='PackSegInputs'),
]
tta_model = None
tta_pipeline = None""")
    files = write_masks(labels, writer.data_folder)
    rows = {
        split: [
            "_delete_=True, type='BaseSegDataset', data_root=''",
            f'ann_file={writer.path(part.ann_file)}',
            f'data_prefix=dict(img_path={writer.path(part.image_folder)}, '
            f'seg_map_path={writer.path(part.mask_folder)})',
            f'img_suffix={_literal(part.img_suffix)}, '
            f'seg_map_suffix={_literal(part.seg_map_suffix)}, metainfo=metainfo',
            f'pipeline={"train" if split == "train" else "test"}_pipeline',
        ]
        for split, part in files.items()
    }
    _loaders(writer, rows, more=" sampler=dict(type='DefaultSampler', shuffle=True), drop_last=True,")
    writer.add()


def _distortion(writer: _Writer) -> str:
    usual = writer.pixels.channels == 3 and 'color_type' not in writer.pixels.load
    return "\n    dict(type='PhotoMetricDistortion')," if usual else ''


def _images(writer: _Writer, scratch: bool) -> None:
    """Add data of a classifier."""
    labels, side = writer.labels, writer.recipe.short
    files = write_lists(labels, writer.data_folder)
    writer.add('class_index = {name: number for number, name in enumerate(classes)}')
    rows = {}
    for split, part in files.items():
        row = [
            f'data_root={writer.path(part.data_root)}, split={_literal(part.split)}, class_index=class_index'
        ]
        if part.images:
            row.append(f'images={writer.path(part.images)}')
        changes = dict(input_size=side) if side != 224 else {}
        if list(writer.pixels.mean) != PIXEL_MEAN:
            values = ((name, getattr(writer.pixels, name)) for name in ('mean', 'std'))
            changes |= {name: tuple(round(value / 255, 5) for value in pixel) for name, pixel in values}
        if scratch and split == 'train':
            changes['scale'] = SCRATCH_SCALE
        if changes:
            row.append(f'transform={as_written(changes)}')
        rows[split] = row
    batch = writer.recipe.batch
    smallest = min(len(labels.splits['val']), batch)
    _loaders(writer, rows, val_batch=max(1, smallest))
    writer.add()


def _schedule(writer: _Writer, arch: str, scratch: bool) -> None:
    """Add the schedule: length, decay of the learning rate, and what is kept."""
    recipe, base = writer.recipe, writer.base
    every = max(1, recipe.epochs // 12)
    end = recipe.epochs
    loop = f"type='EpochBasedTrainLoop', max_epochs={end}, val_interval={every}"
    writer.add(f'train_cfg = dict(_delete_=True, {loop})')
    first = f"type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end={recipe.warm_up}"
    falls = milestones(end)
    shapes = dict(
        steps=f"type='MultiStepLR', begin=0, end={end}, milestones={as_written(falls)}, gamma=0.1",
        poly=f"type='PolyLR', power=1.0, eta_min=0.0, begin=0, end={end}, convert_to_iter_based=True",
        cosine=f"type='CosineAnnealingLR', begin=0, end={end}, T_max={end}, eta_min_ratio=0.01, "
        'convert_to_iter_based=True',
    )
    second = shapes[MODELS[writer.model].shape]
    second = f'\n    dict({second}),' if falls or MODELS[writer.model].shape != 'steps' else ''
    writer.add(f'param_scheduler = [\n    dict({first}),{second}\n]')
    decay = ''
    layered = 'decay_rate' in (base.optim_wrapper.get('paramwise_cfg') or {})
    if scratch and layered:
        decay = ', paramwise_cfg=dict(decay_rate=1.0)'
    elif (
        writer.labels.task in ('boxes', 'segments')
        and layered
        and writer.model != 'rtmdet'
        and arch != 'tiny'
    ):
        rate = DETECTION.get(arch.removeprefix('v2_'), (0, DETECTION['tiny'][1]))[1]
        decay = f', paramwise_cfg=dict(decay_rate={rate})'
    count = ', accumulative_counts=1' if base.optim_wrapper.get('accumulative_counts') else ''
    optimizer = f'lr={recipe.rate!r}'
    if scratch and writer.labels.task == 'classes':
        optimizer += f', weight_decay={SCRATCH_DECAY}'
    writer.add(f'optim_wrapper = dict(optimizer=dict({optimizer}){decay}{count})')
    kept = f"by_epoch=True, interval={every}, max_keep_ckpts=2, save_best='auto'"
    writer.add(f'default_hooks = dict(checkpoint=dict({kept}))')
    writer.add('log_processor = dict(by_epoch=True)')
    writer.add(f'auto_scale_lr = dict(base_batch_size={recipe.batch * recipe.gpus})')
    if writer.model == 'rtmdet':
        last = f'switch_epoch={max(1, recipe.epochs - 10)}'
        if recipe.short != MOSAIC:
            last += ', switch_pipeline=last_pipeline'
        writer.add(f'custom_hooks = [_base_.custom_hooks[0], dict(_base_.custom_hooks[1], {last})]')
