"""Translates data loaders, data sets and metrics of mmdet 2.x and mmseg 0.x."""

import os

from mmengine.registry import DATASETS

from ...registry import type_name
from .lines import Lines, found, several, takes
from .steps import Steps, backend_of

WRAPPERS = {  # data sets around others: their own settings
    'RepeatDataset': ('times',),
    'ClassBalancedDataset': ('oversample_thr',),
    'MultiImageMixDataset': ('skip_type_keys',),
    'ConcatDataset': (),
}
PREFIXES = {  # old setting of a data set: key of data_prefix
    'img_prefix': 'img',
    'seg_prefix': 'seg',
    'img_dir': 'img_path',
    'ann_dir': 'seg_map_path',
}
LISTS = ('ann_file', 'split', *PREFIXES)  # several of them are several data sets
XML = ('VOCDataset', 'XMLDataset', 'WIDERFaceDataset')  # img_prefix is a folder around images and labels
MIN_SIZE = 32  # pixels: the old data sets leave out smaller images of a training
METRICS = {  # data set of mmdet: metric, what is before the names of its scores, which metrics it knows
    'VOCDataset': ('VOCMetric', 'pascal_voc', ('mAP', 'recall')),
    'XMLDataset': ('VOCMetric', 'pascal_voc', ('mAP', 'recall')),
    'LVISDataset': ('LVISMetric', 'lvis', ('bbox', 'segm', 'proposal', 'proposal_fast')),
    'LVISV05Dataset': ('LVISMetric', 'lvis', ('bbox', 'segm', 'proposal', 'proposal_fast')),
    'LVISV1Dataset': ('LVISMetric', 'lvis', ('bbox', 'segm', 'proposal', 'proposal_fast')),
    'CocoPanopticDataset': ('CocoPanopticMetric', 'coco_panoptic', ('PQ',)),
    'OpenImagesDataset': ('OpenImagesMetric', 'openimages', ('mAP',)),
    'OpenImagesChallengeDataset': ('OpenImagesMetric', 'openimages', ('mAP',)),
}
COCO = ('CocoMetric', 'coco', ('bbox', 'segm', 'proposal', 'proposal_fast'))
AREAS = ('mIoU', 'mDice', 'mFscore')
MEASURED = {  # of evaluation, now of the metric
    **{name: name for name in ('classwise', 'proposal_nums', 'iou_thrs', 'metric_items', 'format_only')},
    'jsonfile_prefix': 'outfile_prefix',
}


class Data:
    """Translates what an old config says about data.

    Attributes:
        steps: what the pipelines said about other parts of a config.
        prefix: before the names of scores.
    """

    def __init__(self, detection: bool, root, lines: Lines):
        """Start without any data.

        Args:
            detection: else segmentation.
            root: variable ``data_root`` of the file: paths that begin so are written below it.
            lines: for what has no counterpart.
        """
        self.detection, self.lines = detection, lines
        self.root = root if isinstance(root, str) else ''
        self.scope = 'mmdet' if detection else 'mmseg'
        self.steps = Steps(detection, lines)
        self.prefix = ''

    def loaders(self, old: dict, by_epoch: bool) -> dict:
        """Return the data loaders that take the place of ``data``."""
        old, new = dict(old), {}
        batch, workers = old.pop('samples_per_gpu', 1), old.pop('workers_per_gpu', 2)
        old.pop('persistent_workers', None)  # only how long processes live
        for split in ('train', 'val', 'test'):
            given, own = old.pop(split, None), dict(old.pop(f'{split}_dataloader', None) or {})
            if given is None:
                continue
            images = batch if split == 'train' else 1
            if isinstance(given, dict) and 'samples_per_gpu' in given:
                given = dict(given)
                images = given.pop('samples_per_gpu')
            own = {'samples_per_gpu': images, 'workers_per_gpu': workers, **own}
            dataset = self._dataset(given, f'data.{split}', split == 'train')
            new[f'{split}_dataloader'] = self._loader(split, own, dataset, by_epoch)
        self.lines.left('data', old)
        return new

    def _loader(self, split: str, own: dict, dataset: dict, by_epoch: bool) -> dict:
        train, workers = split == 'train', own.pop('workers_per_gpu')
        new = dict(batch_size=own.pop('samples_per_gpu'), num_workers=workers, persistent_workers=workers > 0)
        own.pop('persistent_workers', None)
        kind = 'InfiniteSampler' if train and not by_epoch else 'DefaultSampler'
        new['sampler'] = dict(type=kind, shuffle=own.pop('shuffle', train))
        if balanced := own.pop('class_aware_sampler', None):
            new['sampler'] = dict(type='ClassAwareSampler', **balanced)
        elif self.detection and train and type_name(dataset) != 'MultiImageMixDataset':
            new['batch_sampler'] = dict(type='AspectRatioBatchSampler')
        for key in ('drop_last', 'pin_memory', 'prefetch_factor'):
            if key in own:
                new[key] = own.pop(key)
        self.lines.left(f'data.{split}_dataloader', own)
        return dict(new, dataset=dataset)

    def _dataset(self, given, place: str, train: bool) -> dict:
        if isinstance(given, (list, tuple)):
            return _joined([self._dataset(one, f'{place}.{i}', train) for i, one in enumerate(given)])
        given, kind = dict(given), type_name(given)
        if kind in WRAPPERS:
            new = {key: given.pop(key) for key in ('type', *WRAPPERS[kind]) if key in given}
            if 'datasets' in given:
                new |= self._dataset(given.pop('datasets'), f'{place}.datasets', train)
            elif 'dataset' in given:
                new['dataset'] = self._dataset(given.pop('dataset'), f'{place}.dataset', train)
            if 'pipeline' in given:
                new['pipeline'] = self.steps.pipeline(given.pop('pipeline'), f'{place}.pipeline', train)
            if given.get('filter_empty_gt') or given.get('separate_eval') is False:
                given = {k: v for k, v in given.items() if k not in ('filter_empty_gt', 'separate_eval')}
            self.lines.left(place, given)
            return new
        lists = {key: given[key] for key in LISTS if isinstance(given.get(key), (list, tuple))}
        number = max(map(len, lists.values()), default=0)
        parts = [{**given, **{key: value[i] for key, value in lists.items()}} for i in range(number)]
        return _joined([self._one(part, place, train) for part in parts or [given]])

    def _one(self, given: dict, place: str, train: bool) -> dict:
        """Return a data set that is not around another."""
        given, kind = dict(given), type_name(given)
        new = dict(type=given.pop('type'))
        file = given.pop('ann_file', None) or given.get('split')
        given.pop('split', None)
        folders = {new: given.pop(old) for old, new in PREFIXES.items() if given.get(old) is not None}
        if kind in XML and 'img' in folders:
            folders = dict(sub_data_root=folders['img'])
        proposals = given.pop('proposal_file', None)
        if proposals is not None:
            advice = 'its format is another now: write it anew by tools/test.py of mmdet 3'
            self.lines.name(f'{place}.proposal_file', proposals, advice)
        root, paths = given.pop('data_root', None), [file, proposals, *folders.values()]
        paths = [path for path in paths if isinstance(path, str)]
        if root is None and self.root and paths and all(path.startswith(self.root) for path in paths):
            root = self.root
            file = file.removeprefix(root) if isinstance(file, str) else file
            proposals = proposals.removeprefix(root) if isinstance(proposals, str) else proposals
            folders = {key: path.removeprefix(root) for key, path in folders.items()}
        given_paths = dict(data_root=root, ann_file=file, proposal_file=proposals)
        new |= {key: path for key, path in given_paths.items() if path is not None}
        if folders:
            new['data_prefix'] = folders
        meta = {key: given.pop(key) for key in ('classes', 'palette') if given.get(key) is not None}
        if meta:
            new['metainfo'] = {k: tuple(v) if isinstance(v, list) else v for k, v in meta.items()}
        with_objects, test = given.pop('filter_empty_gt', True), given.pop('test_mode', not train)
        smallest = given.pop('min_size', None)
        if self.detection and test:
            new['test_mode'] = True
        elif self.detection:
            new['filter_cfg'] = dict(filter_empty_gt=with_objects, min_size=MIN_SIZE)
            new['filter_cfg'] |= {} if smallest is None else dict(bbox_min_size=smallest)
        if 'pipeline' in given:
            new['pipeline'] = self.steps.pipeline(given.pop('pipeline'), f'{place}.pipeline', train)
        if backend := backend_of(given.pop('file_client_args', None)):
            new['backend_args'] = backend
        cls = found(DATASETS, self.scope, kind)
        if cls is None:
            self.lines.name(f'{place}.type', kind, 'is not known now: write it as a data set of mmengine')
        known = [key for key, value in given.items() if value is not None and (not cls or takes(cls, key))]
        new |= {key: given.pop(key) for key in known}
        self.lines.left(place, given)
        return new

    def evaluators(self, evaluation: dict, loaders: dict) -> dict:
        """Return the evaluators that take the place of ``evaluation``; what they take is taken from it."""
        metric = evaluation.pop('metric', None)
        own = dict(collect_device='gpu') if evaluation.pop('gpu_collect', False) else {}
        if self.detection:
            own |= {new: evaluation.pop(old) for old, new in MEASURED.items() if old in evaluation}
        splits = [split for split in ('val', 'test') if f'{split}_dataloader' in loaders]
        parts = {split: loaders[f'{split}_dataloader']['dataset'] for split in splits}
        return {f'{split}_evaluator': self._evaluator(metric, part) | own for split, part in parts.items()}

    def _evaluator(self, metric, dataset: dict) -> dict:
        if not self.detection:
            return dict(type='IoUMetric', iou_metrics=self._known(metric or 'mIoU', AREAS))
        while inner := dataset.get('dataset') or dataset.get('datasets'):
            if isinstance(inner, list):
                self.lines.name('data.val', f'{len(inner)} data sets', 'the metric has the first only')
            dataset = several(inner)[0]
        kind, self.prefix, names = METRICS.get(type_name(dataset), COCO)
        known = self._known(metric or names[0], names)
        known = known if isinstance(metric, (list, tuple)) or len(known) != 1 else known[0]
        new, file, root = dict(type=kind), dataset.get('ann_file'), dataset.get('data_root') or ''
        if kind == 'VOCMetric':
            first = 'VOC2007' in f'{file}{dataset.get("data_prefix")}'
            return dict(new, metric=known, eval_mode='11points' if first else 'area')
        if isinstance(file, str) and kind != 'OpenImagesMetric':
            new['ann_file'] = os.path.join(root, file)
            if kind == 'CocoPanopticMetric' and 'seg' in dataset.get('data_prefix', {}):
                new['seg_prefix'] = os.path.join(root, dataset['data_prefix']['seg'])
        return new if len(names) == 1 else dict(new, metric=known)

    def _known(self, metric, names: tuple) -> list:
        """Return the metrics that there still are, and name the others."""
        for name in several(metric):
            if name not in names:
                self.lines.name('evaluation.metric', name, 'add an evaluator that computes it')
        return [name for name in several(metric) if name in names] or [names[0]]


def _joined(datasets: list[dict]) -> dict:
    """Return data sets behind one another."""
    if len(datasets) == 1:
        return datasets[0]
    kinds = {type_name(dataset) for dataset in datasets}
    years = dict(ignore_keys=['dataset_type']) if kinds & set(XML) else {}  # differ between them
    return dict(type='ConcatDataset', **years, datasets=datasets)
