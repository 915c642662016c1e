"""Turns config and checkpoint into predictions and pictures of single images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmcv.transforms import LoadImageFromFile
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from mmengine.registry import DATASETS, MODELS, VISUALIZERS, init_default_scope

from .checkpoint import load_trained, read_checkpoint
from .checkpoint.formats import dataset_meta
from .checkpoint.read import local_file
from .config import (
    choose_device,
    class_counts,
    datasets,
    drop_pretrained,
    read_config,
    task_of,
    use_plain_batch_norm,
    use_preprocessors,
    use_stand_ins,
    without_annotations,
)
from .errors import UserError, report_build_errors
from .heads import predict_classes, save_work
from .predictions import class_shares, image_size, rle
from .registry import class_of
from .tiles import (
    Pixels,
    Reduced,
    Tiling,
    loaded,
    parts_of,
    predict_by_tiles,
    reduced_sample,
    source_of,
    threshold_of,
)


def trained_model(cfg: Config, checkpoint: str, weights: str | None = None, prefix: str | None = None):
    """Return the model of a config, filled completely from a checkpoint, in evaluation mode on the CPU.

    Args:
        checkpoint: path, URL or released name.
        weights: ``'final'`` or ``'ema'``; see :func:`~convnext_backbone.checkpoint.load_trained`.
        prefix: what is in front of the names of the network to take, of a file with several.

    Returns:
        The model, the content of the file, and the report of what was loaded.

    Raises:
        UserError: the file cannot be read, or does not fit.
    """
    cfg = cfg.copy()
    use_plain_batch_norm(cfg)
    use_preprocessors(cfg)
    drop_pretrained(cfg)
    init_default_scope(cfg.get('default_scope') or 'mmengine')
    file = local_file(checkpoint)
    content = read_checkpoint(file)
    model = report_build_errors(MODELS.build)(cfg.model)
    return model.eval(), content, load_trained(model, content, file, weights=weights, prefix=prefix)


class Predictor:
    """Predicts on image files with a trained detector or segmenter.

    Args:
        config: config file of the training.
        checkpoint: what the training wrote; it must fit completely. The class names are the ones it
            was trained with, or, if it does not hold them, those of the config's test data.
        device: ``cpu`` or ``cuda``; by default ``cuda`` where there is a GPU.
        prefix: what is in front of the names of the network to take, of a file with several.

    ``task`` is ``'detection'`` or ``'segmentation'``, ``meta`` has the names and colours of the classes.

    Raises:
        UserError: config or checkpoint cannot be read, do not fit each other, or do not name the classes.
    """

    def __init__(self, config: str, checkpoint: str, device: str | None = None, prefix: str | None = None):
        self.device = choose_device(device)
        cfg = read_config(config)
        self.task = task_of(cfg.model)
        if self.task == 'pretraining':
            raise UserError(
                f'{config} is a pretraining without labels, whose model predicts nothing: train a '
                f'classifier, a detector or a segmenter with --pretrained {checkpoint} first'
            )
        dense = self.task in ('detection', 'segmentation')
        if not dense or cfg.get('test_dataloader') is None or not cfg.get('visualizer'):
            raise UserError(f'{config} has no test_dataloader or no visualizer: not a detector or segmenter')
        self.model, content, _ = trained_model(cfg, checkpoint, prefix=prefix)
        self.model.to(self.device)
        save_work(self.model, self.device)
        use_stand_ins(cfg)
        self.meta = _with_colours(_names_of(content, cfg, checkpoint))
        steps = Compose(without_annotations(cfg.test_dataloader.dataset.pipeline)).transforms
        first = next((k for k, step in enumerate(steps) if type(step).__name__.startswith('Load')), None)
        self.reader = LoadImageFromFile() if first is None else steps[first]
        self._rest = Compose(steps if first is None else [*steps[:first], *steps[first + 1 :]])
        cfg.visualizer.pop('vis_backends', None)
        self.visualizer = VISUALIZERS.build({**cfg.visualizer, 'name': f'predictor-{id(self)}'})
        self.visualizer.dataset_meta = self.meta

    def predict(self, image: str | Path | np.ndarray, logits: bool = False):
        """Return the data sample of mmdet or mmseg for an image, on the CPU.

        A detector's has ``pred_instances`` (boxes x1 y1 x2 y2 in pixels, labels, scores, masks), a
        segmenter's ``pred_sem_seg`` (class numbers, height x width). The pixels are those of the picture as
        viewers show it: a photo whose EXIF data say that it is turned has been turned upright, so that its
        height and width (:func:`~convnext_backbone.predictions.image_size`) may be the file's width and
        height.

        Args:
            image: a file, or its pixels as OpenCV reads them, (H, W, 3) uint8 BGR.
            logits: a segmenter's has ``seg_logits``, too, (classes, height, width) in float32: 7 GiB of 150
                classes and 12 megapixels.

        Raises:
            UnreadableImage: the file is no image.
            UserError: there is no such file.
        """
        return self.predict_prepared([self.prepare(image)], logits)[0]

    @torch.no_grad()
    def predict_prepared(self, images: Sequence[dict], logits: bool = False) -> list:
        """Return the data sample of each of some images that :meth:`prepare` gave, computed at once.

        Images of other sizes are padded to the largest: only among equal sizes is a result what it is alone.
        ``logits``: see :meth:`predict`.
        """
        batch = pseudo_collate(list(images))
        samples = self.model.test_step(batch) if logits else predict_classes(self.model, batch)
        return [sample.cpu() for sample in samples]

    def predict_by_tiles(self, image: str | Path | np.ndarray, tiling: Tiling, min_score: float = 0.0):
        """Return the prediction for an image, computed tile by tile, and what :meth:`draw` draws it on.

        A tile is an image of its own to the model: scaled, normalised and padded by the pipeline of the test
        data. See :func:`~convnext_backbone.tiles.predict_by_tiles` for the data sample.

        Args:
            image: see :meth:`predict`. A file of more than 2 ** 27 pixels is read by rows (rasterio).
            tiling: size, overlap and number of the tiles that are predicted at once.
            min_score: of an object that is kept.

        Raises:
            UnreadableImage, UserError: see :meth:`predict` and :class:`~convnext_backbone.tiles.Rows`.
        """
        given = isinstance(image, np.ndarray)
        source = Pixels(image) if given else source_of(image, self.reader)

        def predict(images: Sequence[np.ndarray]) -> list:
            return self.predict_prepared([self.prepare(tile) for tile in images], logits=True)

        sample = predict_by_tiles(predict, source, tiling, threshold_of(self.model), min_score)
        return sample, source.whole()

    def load(self, file: str | Path) -> dict:
        """Return what the loader of the test data makes of a file: its pixels as ``img``, and its size.

        Raises:
            UnreadableImage, UserError: see :meth:`predict`.
        """
        if not Path(file).is_file():
            raise UserError(f'no image at {file}')
        return self.reader(dict(img_path=str(file), img_id=0))

    def prepare(self, image: str | Path | np.ndarray | dict) -> dict:
        """Return what the pipeline of the test data makes of an image: what the model takes, and its sizes.

        Args:
            image: a file, its pixels, see :meth:`predict`, or what :meth:`load` gave.

        Raises:
            UnreadableImage, UserError: see :meth:`predict`.
        """
        if isinstance(image, np.ndarray):
            return self._rest(loaded(image))
        return self._rest(dict(image) if isinstance(image, dict) else self.load(image))

    def to_json(self, sample, min_score: float = 0.3) -> dict:
        """Return the prediction in plain types, with width and height of the image as it was predicted.

        A detector's has objects with box, score and RLE mask; a segmenter's the share of each class.
        """
        classes = self.meta['classes']
        height, width = image_size(sample)
        size = dict(width=width, height=height)
        if (shares := class_shares(sample)) is not None:
            return dict(**size, share_of_pixels={classes[n]: round(share, 6) for n, share in shares.items()})
        found = sample.pred_instances
        found = found[found.scores >= min_score]
        objects = []
        for i in range(len(found)):
            entry = dict(
                label=classes[int(found.labels[i])],
                score=round(float(found.scores[i]), 4),
                bbox=[round(v, 2) for v in found.bboxes[i].tolist()],
            )
            if 'masks' in found:
                entry['mask'] = rle(found.masks[i])
            objects.append(entry)
        return dict(**size, objects=objects)

    def picture(self, image: str | Path | np.ndarray) -> np.ndarray:
        """Return the image as the model takes it before it is resized, (H, W, 3) uint8 RGB."""
        return _shown(image if isinstance(image, np.ndarray) else self.load(image)['img'])

    def draw(self, image: str | Path | np.ndarray | Reduced, sample, min_score: float = 0.3) -> np.ndarray:
        """Draw the image with boxes and masks, or with the classes' colours; (H, W, 3) uint8 RGB.

        Args:
            image: a file, or its pixels, see :meth:`predict`, or a whole image that was reduced.
            sample: what :meth:`predict` or :meth:`predict_by_tiles` gave for it.
            min_score: least score of an object.
        """
        if isinstance(image, Reduced):
            sample, image = reduced_sample(sample, image.factor, min_score), image.pixels
        picture = self.picture(image)
        options = dict(pred_score_thr=min_score) if 'pred_instances' in sample else dict(with_labels=False)
        for part in parts_of(sample, min_score):
            self.visualizer.add_datasample('image', picture, part, draw_gt=False, show=False, **options)
            picture = self.visualizer.get_image()
        return picture


def _shown(image: np.ndarray) -> np.ndarray:
    """Return an image as it was loaded (BGR) in 8-bit RGB; of more channels the first three."""
    image = image[..., None] if image.ndim == 2 else image
    image = image[..., :3] if image.shape[2] >= 3 else image[..., :1].repeat(3, axis=2)
    if image.dtype != np.uint8:
        image = image.astype(np.float32)
        if image.max() > 255 or image.max() <= 1:  # by its range
            image = (image - image.min()) * (255 / max(np.ptp(image), 1e-12))
        image = image.clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(image[..., ::-1])


def _names_of(content: dict, cfg: Config, checkpoint: str) -> dict:
    """Return the class names and colours that the checkpoint holds.

    Else the config's, if they can be its own.

    Raises:
        UserError: neither names the classes, or the config names another number than the model predicts.
    """
    meta = dataset_meta(content)
    if meta.get('classes'):
        return meta
    meta = _metainfo(cfg)
    advice = 'name those of its training by metainfo=dict(classes=...) in test_dataloader.dataset'
    if not (classes := meta.get('classes')):
        raise UserError(f'neither {checkpoint} nor the config names the classes: {advice}')
    for path, number in class_counts(cfg.model):
        if number != len(classes):
            raise UserError(
                f'{checkpoint} does not name its classes, and the config has {len(classes)} names, but '
                f'{path} is {number}: {advice}'
            )
    return meta


def _metainfo(cfg: Config) -> dict:
    """Return ``metainfo`` of the config's test data, on top of that of its class, as mmengine reads both."""
    dataset = next((dataset for _, dataset in datasets(cfg, ('test_dataloader',))), {})
    kind = class_of(dataset, DATASETS)
    given = dict(dataset.get('metainfo') or {})
    if not hasattr(kind, '_load_metainfo'):
        return given
    meta, known = kind._load_metainfo(given), kind.METAINFO
    if isinstance(meta.get('classes'), str):  # the only one
        meta['classes'] = [meta['classes']]
    names, colours = list(known.get('classes') or ()), known.get('palette')
    classes = meta.get('classes') or ()
    if colours and 'palette' not in given and set(classes) <= set(names):  # in another order, or fewer
        meta['palette'] = [colours[names.index(name)] for name in classes]
    return meta


def _with_colours(meta: dict) -> dict:
    """Return ``meta`` with a colour for each class: with fewer mmdet and mmseg fail while they draw."""
    palette, number = meta.get('palette'), len(meta['classes'])
    if palette is not None and np.size(palette) and np.ndim(palette) != 2:  # a name, or one colour for all
        return meta
    if palette is None or len(palette) < number:
        palette = np.random.default_rng(0).integers(0, 256, (number, 3)).tolist()
    return {**meta, 'palette': [tuple(colour) for colour in palette]}
