"""Translates the pipelines of mmdet 2.x and mmseg 0.x, and what they said about the preprocessor."""

import copy

from mmengine.registry import TRANSFORMS

from ...registry import type_name
from .lines import Lines, found, several, takes

PACKED = {  # steps that packing does now
    *('DefaultFormatBundle', 'Collect', 'ImageToTensor', 'ToTensor', 'Transpose', 'ToDataContainer'),
}
META = {'filename': 'img_path', 'ori_filename': '', 'img_norm_cfg': '', 'pad_shape': ''}  # '': not needed
TEST_META = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
VIEWS_META = (*TEST_META, 'flip', 'flip_direction')
RENAMED = {  # step: old argument, new one
    'RandomFlip': {'flip_ratio': 'prob'},
    'RandomShift': {'shift_ratio': 'prob'},
    **dict.fromkeys(
        ('Resize', 'RandomResize', 'RandomChoiceResize'), {'bbox_clip_border': 'clip_object_border'}
    ),
}
TURNED = {  # step of mmdet: argument that was (height, width) and is (width, height)
    'Mosaic': 'img_scale',
    'MixUp': 'img_scale',
    'RandomAffine': 'border',
    'RandomCenterCropPad': 'crop_size',
    'RandomCrop': 'crop_size',
    'Pad': 'size',
}
RANGES = ('absolute_range', 'relative_range')  # crop_type for which crop_size is no pair of sides
GONE = {'Resize': ('override',), 'Albu': ('update_pad_shape',)}  # arguments that said what is always so now
RESIZERS = ('RandomResize', 'RandomChoiceResize')  # pass what they are given to a Resize
LABELS = {'gt_labels': 'gt_bboxes_labels'}  # in the settings of Albu
# Steps for which it is the same whether images are normalised before or after them: now it is after all.
ANYWHERE = {
    *('Resize', 'RandomFlip', 'RandomCrop', 'Normalize', 'Pad'),
    *('LoadAnnotations', 'LoadPanopticAnnotations', 'FilterAnnotations', 'SegRescale'),
}
ANNOTATIONS = ('LoadAnnotations', 'LoadPanopticAnnotations')
MOVING = ('Resize', *RESIZERS, 'RandomFlip')  # steps that move proposals, too
BEHIND = 'images are normalised after all steps now, so it works on other values: check its arguments'


class Steps:
    """Translates pipelines, the training's first, and collects what the preprocessor does now.

    Attributes:
        annotations: the step that loads them in the training.
        views: pipeline of test-time augmentation, if the old test had several views.
        label_scale: factor by which a detector's label maps were made smaller; its head does that now.
    """

    def __init__(self, detection: bool, lines: Lines):
        self.detection, self.lines = detection, lines
        self.scope = 'mmdet' if detection else 'mmseg'
        self.annotations: dict = {}
        self.views: list[dict] = []
        self.label_scale = None
        self._normalize: dict = {}
        self._pads: dict[bool, dict] = {}  # of the training, of the evaluation
        self._crop = None

    def pipeline(self, steps: list, place: str, train: bool) -> list[dict]:
        """Return a pipeline of the training or of the evaluation as it is written now."""
        views = next((step for step in steps if type_name(step) == 'MultiScaleFlipAug'), None)
        if views is not None:
            return self._tested(steps, views, place)
        new = self._steps(steps, place, train)
        if train and not self.annotations:
            self.annotations = next((step for step in new if type_name(step) in ANNOTATIONS), {})
            self._crop = next((step['crop_size'] for step in new if type_name(step) == 'RandomCrop'), None)
        packs = any(type_name(step) in PACKED for step in steps)
        return [*_broadcast(new), *self._packing(steps, train)] if packs else new

    def _steps(self, steps: list, place: str, train: bool) -> list[dict]:
        """Return the steps without packing, normalisation, and padding of a normalised image."""
        new, plain = [], not any(type_name(step) == 'Normalize' for step in steps)
        normalized = plain and any(type_name(step) in PACKED for step in steps)
        for step in map(dict, steps):
            kind = type_name(step)
            if kind in PACKED:
                continue
            if kind == 'Normalize':
                normalized = True
                self._normalization(step, place)
            elif kind == 'SegRescale' and self.detection:
                self.label_scale = step.get('scale_factor', 1)
            elif kind == 'Pad' and normalized and not step.get('pad_to_square'):
                self._padding(step, place, train)
            else:
                if normalized and not plain and kind not in ANYWHERE:
                    self.lines.name(f'{place}.{kind}', step, BEHIND)
                new += self._step(step, place)
        return new

    def _normalization(self, step: dict, place: str) -> None:
        given = dict(mean=list(step['mean']), std=list(step['std']), bgr_to_rgb=step.get('to_rgb', True))
        self._normalize = self._normalize or given
        if self._normalize != given:
            self.lines.name(f'{place}.Normalize', given, 'all images are normalised as the first now')

    def _padding(self, step: dict, place: str, train: bool) -> None:
        given = {key: value for key, value in step.items() if key != 'type' and value is not None}
        if self._pads.setdefault(train, given) != given:
            self.lines.name(f'{place}.Pad', given, 'all images are padded as in the first pipeline now')

    def _step(self, step: dict, place: str) -> list[dict]:
        """Return what takes the place of a step; nothing, and a line, if nothing does."""
        if type_name(step) == 'AutoAugment':
            place = f'{place}.AutoAugment'
            policies = [self._steps(policy, place, False) for policy in step['policies']]
            return [dict(type='RandomChoice', transforms=policies)]
        if type_name(step) == 'Resize':
            step = self._resize(step, place)
        kind = type_name(step)
        cls = found(TRANSFORMS, self.scope, kind)
        if cls is None:
            self.lines.name(f'{place}.{kind}', step, 'is left out, nothing is called so now: write it anew')
            return []
        if backend := backend_of(step.pop('file_client_args', None)):
            step['backend_args'] = backend
        names = RENAMED.get(kind, {})
        step = {names.get(key, key): v for key, v in step.items() if key not in GONE.get(kind, ())}
        turned = TURNED.get(kind) if self.detection or kind == 'Pad' else None
        pair = step.get(turned)
        if isinstance(pair, (list, tuple)) and step.get('crop_type') not in RANGES:
            step[turned] = tuple(pair)[::-1]
        if kind == 'Albu':
            step = _renamed(step, LABELS)
        wrong = [key for key in step if key != 'type' and kind not in RESIZERS and not takes(cls, key)]
        self.lines.left(f'{place}.{kind}', {key: step.pop(key) for key in wrong})
        return [step]

    def _resize(self, step: dict, place: str) -> dict:
        """Return an old Resize as the one of the three steps that there are now for its forms."""
        scales, ratios = step.pop('img_scale', None), step.pop('ratio_range', None)
        value = step.pop('multiscale_mode', 'range') == 'value'
        scales = scales if isinstance(scales, list) else [] if scales is None else [scales]
        scales = [tuple(s) if isinstance(s, (list, tuple)) else s for s in scales]
        rest = {key: v for key, v in step.items() if key not in ('type', 'keep_ratio', 'override')}
        rest = dict(keep_ratio=step.get('keep_ratio', True), **rest)
        if (low := rest.pop('min_size', None)) is not None:
            self.lines.name(
                f'{place}.Resize.min_size', low, 'smaller images stay so: write ResizeShortestEdge'
            )
        if ratios and not scales:  # of the size of the image itself
            advice = 'images keep their size now, nothing takes a range of their own: give a scale'
            self.lines.name(f'{place}.Resize.ratio_range', ratios, advice)
            return dict(type='Resize', scale_factor=1.0, **rest)
        if ratios:
            return dict(type='RandomResize', scale=scales[0], ratio_range=tuple(ratios), **rest)
        if len(scales) > 1:
            kind, key = ('RandomChoiceResize', 'scales') if value else ('RandomResize', 'scale')
            return {'type': kind, key: scales, **rest}
        return dict(type='Resize', **(dict(scale=scales[0]) if scales else {}), **rest)

    def _packing(self, steps: list, train: bool) -> list[dict]:
        """Return the last steps: of an evaluation, what it compares with, and packing."""
        new = dict(type='PackDetInputs' if self.detection else 'PackSegInputs')
        collect = next((step for step in steps if type_name(step) == 'Collect'), {})
        if given := collect.get('meta_keys'):
            names = ['img_id', *(META.get(name, name) for name in given)]  # metrics find images by it
            new['meta_keys'] = tuple(dict.fromkeys(filter(None, names)))
        elif not train and self.detection:
            new['meta_keys'] = TEST_META
        if train or any(type_name(step) in ANNOTATIONS for step in steps):
            return [new]
        return [self._annotations(), new]

    def _annotations(self) -> dict:
        """Return the step by which an evaluation loads what it compares with."""
        if type_name(self.annotations) != 'LoadAnnotations' or not self.detection:
            return copy.deepcopy(self.annotations) or dict(type='LoadAnnotations')
        masks = dict(with_mask=True) if self.annotations.get('with_mask') else {}
        return dict(type='LoadAnnotations', with_bbox=True, **masks)

    def _tested(self, steps: list, views: dict, place: str) -> list[dict]:
        """Return the pipeline of one view of an evaluation; several views become :attr:`views`."""
        before = [step for step in steps if step is not views]
        inner = [dict(step) for step in views['transforms']]
        resize = next((dict(step) for step in inner if type_name(step) == 'Resize'), {'type': 'Resize'})
        rest = [step for step in inner if type_name(step) not in ('Resize', 'RandomFlip')]
        loading, others = self._steps(before, place, False), self._steps(rest, place, False)
        first, *more = _scales(views)
        rest = {key: v for key, v in self._step(resize, place)[0].items() if key != 'type'}
        resizes = [dict(type='Resize', **scale, **rest) if scale else None for scale in (first, *more)]
        packing = self._packing([*before, *inner], False)
        if more[1:] or views.get('flip'):
            turns = [dict(type='RandomFlip', prob=0.0)]
            if views.get('flip'):
                ways = several(views.get('flip_direction', 'horizontal'))
                turns += [dict(type='RandomFlip', prob=1.0, direction=way) for way in ways]
            last = dict(packing[-1], meta_keys=VIEWS_META) if self.detection else packing[-1]
            sizes = [step or dict(type='Resize', scale_factor=1.0, keep_ratio=True) for step in resizes[1:]]
            lists = [sizes, turns, *([step] for step in [*others, *packing[:-1], last])]
            self.views = [*loading, dict(type='TestTimeAug', transforms=lists)]
            text = f'{len(sizes)} sizes{", each also flipped" if views.get("flip") else ""}'
            advice = 'an evaluation has one view now; all are in tta_model and tta_pipeline'
            self.lines.name(f'{place}.MultiScaleFlipAug', text, advice)
        return [*_broadcast([*loading, *filter(None, resizes[:1]), *others]), *packing]

    def preprocessor(self) -> dict:
        """Return ``model.data_preprocessor``, for Normalize and Pad of the pipelines."""
        train, test = self._pads.get(True, {}), self._pads.get(False, {})
        if not self.detection:
            new = dict(type='SegDataPreProcessor', **self._normalize)
            new |= dict(pad_val=train.get('pad_val', 0), seg_pad_val=train.get('seg_pad_val', 255))
            size = {key: train[key] for key in ('size', 'size_divisor') if key in train}
            new |= size or (dict(size=tuple(self._crop)) if self._crop else dict(size_divisor=1))
            if 'size_divisor' in test:
                new['test_cfg'] = dict(size_divisor=test['size_divisor'])
            return new
        masks = dict(pad_mask=True) if self.annotations.get('with_mask') else {}
        seg = self.annotations.get('with_seg', type_name(self.annotations) == 'LoadPanopticAnnotations')
        masks |= dict(pad_seg=True) if seg else {}
        new = dict(type='DetDataPreprocessor', **self._normalize, **masks)
        value = train.get('pad_val', 0)
        value = value.get('img', 0) if isinstance(value, dict) else value
        new |= dict(pad_value=value) if value else {}
        if divisor := train.get('size_divisor') or test.get('size_divisor'):
            new['pad_size_divisor'] = divisor
        if 'size' in train:
            new['batch_augments'] = [dict(type='BatchFixedSizePad', size=tuple(train['size']), **masks)]
        return new


def _scales(views: dict) -> list[dict]:
    """Return the size of the one view of an evaluation, and then those of all; {}: as the image is."""
    given, ratios = views.get('img_scale'), views.get('img_ratios')
    if not given:
        factors = several(views.get('scale_factor') or ratios or 1.0)
        forms = [dict(scale_factor=factor) if factor != 1.0 else {} for factor in factors]
        return [forms[0] if len(forms) == 1 else {}, *forms]
    scales = list(map(tuple, given)) if isinstance(given, list) else [tuple(given)]
    first = scales[0]
    if ratios:
        scales = [tuple(int(side * ratio) for side in first) for ratio in several(ratios)]
        first = scales[0] if len(scales) == 1 else first
    return [dict(scale=first), *(dict(scale=scale) for scale in scales)]


def backend_of(given) -> dict | None:
    """Return ``backend_args`` for ``file_client_args``; none for files on a disk."""
    return None if not given or given.get('backend') == 'disk' else dict(given)


def _broadcast(steps: list[dict]) -> list[dict]:
    """Return steps of which those that move proposals, if some are loaded, are told to do so."""
    if not any(type_name(step) == 'LoadProposals' for step in steps):
        return steps
    places = [place for place, step in enumerate(steps) if type_name(step) in MOVING]
    if not places:
        return steps
    first, last = places[0], places[-1] + 1
    moving = dict(type='ProposalBroadcaster', transforms=steps[first:last])
    return [*steps[:first], moving, *steps[last:]]


def _renamed(node, names: dict):
    if isinstance(node, dict):
        return {names.get(key, key): _renamed(value, names) for key, value in node.items()}
    if isinstance(node, (list, tuple)):
        new = type(node)(_renamed(value, names) for value in node)
        return [*new, 'gt_ignore_flags'] if 'gt_labels' in node else new  # as long as the labels
    return names.get(node, node) if isinstance(node, str) else node
