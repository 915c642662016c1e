"""Turns config and checkpoint of a classifier into predictions for single images, as a Predictor does."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from mmengine.visualization import Visualizer
from PIL import Image
from timm.data import ImageNetInfo

from .checkpoint.formats import dataset_meta
from .classification.data import collate_images, image_transform, open_image
from .config import choose_device, read_config, task_of, transform_of
from .errors import UserError, report_build_errors
from .inference import Predictor, trained_model

BEST = 5  # classes that are named for an image
IMAGENET = {1000: 'imagenet-1k', 21841: 'imagenet-22k'}  # what released weights without names were trained on


class ClassPredictor:
    """Names what is on images with a trained classifier; the counterpart of ``Predictor``.

    Args:
        config: config file of the training; ``transform`` of its test data, or else of its validation
            data, prepares the images.
        checkpoint: what the training wrote; it must fit completely. The class names are the ones it
            was trained with; without them those of ImageNet, if their number is ImageNet's, or numbers.
        device: ``cpu`` or ``cuda``; by default ``cuda`` where there is a GPU.
        prefix: what is in front of the names of the network to take, of a file with several.

    ``task`` is ``'classification'``, ``meta`` has the names of the classes.

    Raises:
        UserError: config or checkpoint cannot be read, do not fit each other, or are no classifier's.
    """

    task = 'classification'

    def __init__(self, config: str, checkpoint: str, device: str | None = None, prefix: str | None = None):
        self.device = choose_device(device)
        cfg = read_config(config)
        transform = transform_of(cfg)
        if task_of(cfg.model) != self.task or transform is None:
            raise UserError(
                f'{config} is no classifier, or neither test_dataloader nor val_dataloader has a dataset '
                'with transform: nothing says how an image is prepared'
            )
        self.model, content, _ = trained_model(cfg, checkpoint, prefix=prefix)
        self.model.to(self.device)
        self.transform = report_build_errors(image_transform)(**transform)
        self.meta = dict(classes=_names_of(content, cfg.model.num_classes))
        if len(self.meta['classes']) != cfg.model.num_classes or not cfg.model.num_classes:
            raise UserError(
                f'{checkpoint} names {len(self.meta["classes"])} classes, the model of {config} predicts '
                f'{cfg.model.num_classes}: give the config of its training'
            )

    def predict(self, image: str | Path | np.ndarray) -> BaseDataElement:
        """Return ``pred_score``, the probability of each class, (classes,) float32 on the CPU.

        The pixels are those of the training: a photo is not turned by its EXIF data, as timm does not turn
        it, either.

        Args:
            image: a file, or its pixels as OpenCV reads them, (H, W, 3) uint8 BGR.

        Raises:
            UnreadableImage: the file is no image.
            UserError: there is no such file.
        """
        return self.predict_prepared([self.prepare(image)])[0]

    def load(self, file: str | Path) -> dict:
        """Return the pixels of a file as ``img``, as OpenCV would read them.

        Raises:
            UnreadableImage, UserError: see :meth:`predict`.
        """
        return dict(img=np.asarray(_read(file))[..., ::-1])

    def prepare(self, image: str | Path | np.ndarray | dict) -> dict:
        """Return what the model takes of an image, ``inputs``, and its size.

        Args:
            image: a file, its pixels, or what :meth:`load` gave.

        Raises:
            UnreadableImage, UserError: see :meth:`predict`.
        """
        picture = _read(image['img'] if isinstance(image, dict) else image)
        return dict(inputs=self.transform(picture), size=picture.size[::-1])

    @torch.no_grad()
    def predict_prepared(self, images: Sequence[dict]) -> list[BaseDataElement]:
        """Return the data sample of each of some images that :meth:`prepare` gave, computed at once."""
        data = collate_images(
            [dict(inputs=image['inputs'], labels=0) for image in images]
        )  # no label is read
        samples = []
        for image, found in zip(images, self.model.test_step(data)):
            sample = BaseDataElement(metainfo=dict(ori_shape=image['size']))
            sample.pred_score = found['logits'].float().softmax(0)
            samples.append(sample)
        return samples

    def to_json(self, sample: BaseDataElement, min_score: float = 0.0) -> dict:
        """Return width and height of the image and the five best classes, whatever their score."""
        height, width = sample.ori_shape
        return dict(width=width, height=height, classes=self.best(sample))

    def best(self, sample: BaseDataElement) -> list[dict]:
        """Return label and score (0 to 1) of the five best classes, the best first."""
        scores, numbers = sample.pred_score.topk(min(BEST, len(sample.pred_score)))
        names = self.meta['classes']
        return [
            dict(label=names[number], score=round(score, 4))
            for score, number in zip(scores.tolist(), numbers.tolist())
        ]

    def picture(self, image: str | Path | np.ndarray) -> np.ndarray:
        """Return the image as the model takes it before it is resized, (H, W, 3) uint8 RGB."""
        return np.asarray(_read(image))

    def draw(
        self, image: str | Path | np.ndarray, sample: BaseDataElement, min_score: float = 0.0
    ) -> np.ndarray:
        """Write the five best classes into the image; (H, W, 3) uint8 RGB."""
        picture = self.picture(image)
        text = '\n'.join(f'{each["score"]:.2f}  {each["label"]}' for each in self.best(sample))
        visualizer = Visualizer()
        visualizer.set_image(picture)
        size = max(7, picture.shape[1] // 40)
        box = dict(facecolor='black', edgecolor='none', alpha=0.6, pad=size / 3)
        place = np.array([[size, size]])
        visualizer.draw_texts(text, place, font_sizes=size, colors='white', bboxes=box)
        return visualizer.get_image()


def make_predictor(
    config: str, checkpoint: str, device: str | None = None, prefix: str | None = None
) -> Predictor | ClassPredictor:
    """Return what predicts by a config and a checkpoint, of a classifier, a detector or a segmenter.

    Raises:
        UserError: see :class:`ClassPredictor` and :class:`~convnext_backbone.inference.Predictor`.
    """
    kind = ClassPredictor if task_of(read_config(config).model) == ClassPredictor.task else Predictor
    return kind(config, checkpoint, device, prefix)


def _names_of(content: dict, number: int) -> list[str]:
    """Return the names of the classes; the folders of ImageNet (``n02123045``) become words."""
    names = list(dataset_meta(content).get('classes') or ())
    if not names and number in IMAGENET:
        info = ImageNetInfo(IMAGENET[number])
        return [info.index_to_description(i) for i in range(number)]
    info = ImageNetInfo('imagenet-22k')
    if names and set(names) <= set(info.label_names()):
        return [info.label_name_to_description(name) for name in names]
    return names or [f'class {i}' for i in range(number)]


def _read(image: str | Path | np.ndarray) -> Image.Image:
    """Return the image in RGB, read as the datasets of classification read it."""
    if isinstance(image, np.ndarray):
        return Image.fromarray(np.ascontiguousarray(image[..., ::-1]))
    if not Path(image).is_file():
        raise UserError(f'no image at {image}')
    return open_image(image)
