"""Translates configs of mmdet 2.x and mmseg 0.x into those of mmengine, and names what cannot be."""

import copy

from mmengine.config import Config
from mmengine.registry import MODELS

from ..config.foreign import OURS, PACKAGES, divided_imports, own_backbones
from ..config.keys import READ, dicts, nodes, set_at, unread
from ..config.legacy import TOP, old_task
from ..registry import type_name
from .old.data import Data
from .old.lines import LOST, Lines, found, takes
from .old.run import runtime
from .old.schedule import length_of, loops, optimizer, schedule

# Types of mmdet 2.x whose settings were arranged anew for mmdet 3.x.
REMADE = {
    *('DETR', 'DeformableDETR', 'ConditionalDETR', 'DABDETR', 'MaskFormer', 'Mask2Former'),
    *('DETRHead', 'DeformableDETRHead', 'MaskFormerHead', 'Mask2FormerHead'),
}
COSTS = ('cls_cost', 'reg_cost', 'iou_cost', 'mask_cost', 'dice_cost')  # of assigners: now a list
FOREIGN = (*PACKAGES, 'mmcv_custom')  # the last for the optimizer of ConvNeXt


def translated(cfg: Config) -> tuple[Config, list[str]]:
    """Translate a config of mmdet 2.x or mmseg 0.x.

    Args:
        cfg: the old config, with all that it inherits.

    Returns:
        A config of mmengine as plain settings, and a line for each old setting that has no true counterpart:
        key, value, and what to do.
    """
    old, lines = copy.deepcopy(cfg.to_dict()), Lines()
    detection = old_task(old) != 'segmentation'
    scope = 'mmdet' if detection else 'mmseg'
    variables = _variables(cfg, old)
    old.pop('img_norm_cfg', None)  # stands in the pipelines, too
    model = _model(old, scope, lines)
    evaluation = dict(old.pop('evaluation', None) or {})
    data = Data(detection, old.get('data_root'), lines)
    by_epoch, length = length_of(old, lines)
    new_loops = loops(old, by_epoch, length, evaluation, lines)
    loaders = data.loaders(old.pop('data', None) or {}, by_epoch)
    new = dict(default_scope=scope, model=_with_images(model, data))
    new |= loaders | data.evaluators(evaluation, loaders)
    new |= new_loops if 'val_dataloader' in loaders else dict(train_cfg=new_loops['train_cfg'])
    new |= optimizer(old, type_name(model.get('backbone')) == OURS, lines)
    new['param_scheduler'] = schedule(old, by_epoch, length, lines)
    new |= runtime(old, detection, by_epoch, evaluation, data.prefix, lines)
    lines.left('evaluation', evaluation)
    if data.steps.views:
        test = model.get('test_cfg') or {}
        test = test.get('rcnn') or test
        merged = {key: test[key] for key in ('nms', 'max_per_img') if key in test}
        new['tta_model'] = dict(type='DetTTAModel', tta_cfg=merged) if detection else dict(type='SegTTAModel')
        new['tta_pipeline'] = data.steps.views
    if imports := _imports(old.pop('custom_imports', None), lines):
        new['custom_imports'] = imports
    for key, value in old.items():
        if key in READ and value is not None:
            new[key] = value
        elif value is not None and key not in variables:
            lines.name(key, value, LOST)
    return Config(new, filename=cfg.filename), lines


def _variables(cfg: Config, old: dict) -> set[str]:
    """Return the keys at the top level that only helped to write others: by their name, or by their value."""
    read = [value for key, value in old.items() if key in TOP or key in READ]
    read = [node for node in nodes(read) if not isinstance(node, (bool, type(None)))]
    lost = {key for key, _, _ in unread(cfg)} - {'data_root'}
    return {key for key, value in old.items() if key not in TOP and (key not in lost or value in read)}


def _model(old: dict, scope: str, lines: Lines) -> dict:
    """Return the model, with ours in the place of another library's ConvNeXt."""
    model = old.pop('model')
    for key in ('train_cfg', 'test_cfg'):  # of the first versions
        given = old.pop(key, None)
        if given and not model.get(key):
            model[key] = given
    cfg = Config(dict(model=model, default_scope=scope))
    for place, node in list(own_backbones(cfg)):
        set_at(dict(model=model), place, node)
        if place == 'model.backbone':
            model.pop('pretrained', None)
    backbone = model.get('backbone')
    if scope == 'mmdet' and isinstance(backbone, dict):  # models of mmseg still take it
        weights = model.pop('pretrained', None)
        if weights and not backbone.get('init_cfg'):
            backbone['init_cfg'] = dict(type='Pretrained', checkpoint=weights)
    for node in dicts(model):
        costs = {key: node.pop(key) for key in COSTS if key in node}
        if costs:
            node['match_costs'] = list(costs.values())
    if (model.get('test_cfg') or {}).get('panoptic') and type_name(model) == 'PanopticFPN':
        lines.name('model.test_cfg.panoptic', model['test_cfg']['panoptic'], 'is in model.test_cfg.rcnn now')
    parts = [model, *(model.get(key) for key in ('bbox_head', 'panoptic_head'))]
    for kind in sorted({type_name(part) for part in parts if isinstance(part, dict)} & REMADE):
        advice = 'its settings are arranged anew: take the model from the config of mmdet 3 of that name'
        lines.name('model', kind, advice)
    return model


def _with_images(model: dict, data: Data) -> dict:
    """Return the model with its preprocessor behind the type."""
    preprocessor, rest = data.steps.preprocessor(), dict(model)
    for node in dicts(rest) if data.steps.label_scale else ():
        for key in ('seg_scale_factor', 'seg_rescale_factor'):  # of the head that reads label maps
            cls = found(MODELS, 'mmdet', node.get('type'))
            if cls is not None and takes(cls, key):
                node[key] = data.steps.label_scale
    if type_name(model) == 'YOLOX':  # resized the images of a batch by itself
        rest.pop('input_size', None)
        multiple, every = rest.pop('size_multiplier', 32), rest.pop('random_size_interval', 10)
        sides = tuple(side * multiple for side in rest.pop('random_size_range', (15, 25)))
        resize = dict(type='BatchSyncRandomResize', random_size_range=sides, size_divisor=multiple)
        preprocessor.setdefault('batch_augments', []).append(dict(resize, interval=every))
    return dict(type=rest.pop('type'), data_preprocessor=preprocessor, **rest)


def _imports(given, lines: Lines) -> dict | None:
    """Return ``custom_imports`` without what is not needed."""
    gone, kept = divided_imports(given, FOREIGN)
    if gone:
        lines.name('custom_imports.imports', gone, 'not imported any more: what ConvNeXt needs is here')
    if not kept:
        return None
    lines.name('custom_imports.imports', kept, 'its classes have to be in the registries of mmengine')
    return dict(given, imports=kept)
