"""Labels objects by the names of their classes: what is added to mmdet's COCO dataset and metric.

mmdet numbers labels by the order of the categories in each file, whatever ``metainfo.classes`` says. Here the
label of a class is its place in ``metainfo.classes``, in training, evaluation and pictures alike.
"""

import contextlib
import io
import os

from mmengine.fileio import get_local_path

from .annotations import USED, Annotations, read_annotations, without_collecting
from .images import header


class LabelsByName:
    """Is mixed into ``mmdet.CocoDataset`` and what inherits from it.

    See :func:`convnext_backbone.datasets.improve`. Objects that
    :class:`~convnext_backbone.datasets.annotations.Annotations` finds unusable are left out.
    """

    def load_data_list(self) -> list[dict]:
        """Read the annotation file as mmdet does, with labels by name.

        Raises:
            UserError: the file is none, or lacks a class.
        """
        with get_local_path(self.ann_file, backend_args=self.backend_args) as file:
            annotations = read_annotations(file, keep=self.test_mode)  # a metric reads the same file
        classes = self.metainfo['classes']
        self.cat_ids = annotations.category_ids(classes) if annotations.categories else []
        self.cat2label = {number: label for label, number in enumerate(self.cat_ids)}
        self.cat_img_map = {number: [] for number in annotations.categories}
        for record in annotations.records:
            self.cat_img_map[record['category_id']].append(record['image_id'])
        objects = annotations.of_images(annotations.why == USED)
        if not self.test_mode:
            annotations.records = []  # each is released as soon as it is used: the memory of all counts
        folder = (self.data_prefix or {}).get('img') or ''
        with without_collecting():
            return self._infos(annotations, objects, folder)

    def _infos(self, annotations: Annotations, objects: dict, folder: str) -> list[dict]:
        data_list = []
        for number, image in annotations.images.items():
            image = dict(image, img_id=number, file_name=file_in(folder, image['file_name']))
            if 'width' not in image or 'height' not in image:
                image['width'], image['height'] = header(os.path.join(folder, image['file_name'])).upright
            raw = dict(raw_img_info=image, raw_ann_info=objects.pop(number))
            info = self.parse_data_info(raw)
            for instance in info.get('instances') or ():
                instance.setdefault('mask', [])  # mmdet's LoadAnnotations takes an empty one for "ignore"
            data_list.append(info)
        return data_list


def file_in(folder: str, name: str) -> str:
    """Return the name of an image; Windows' backslashes become slashes where only that names a file."""
    if '\\' in name and not os.path.exists(os.path.join(folder, name)):
        other = name.replace('\\', '/')
        if os.path.exists(os.path.join(folder, other)):
            return other
    return name


class EvaluatesByName:
    """Is mixed into ``mmdet.CocoMetric`` and what inherits from it.

    The truth is what the dataset read: every object has an id from 1, an area and ``iscrowd``. The categories
    are those of the classes, by name.
    """

    def __init__(self, *args, ann_file: str | None = None, backend_args: dict | None = None, **kwargs):
        super().__init__(*args, ann_file=None, backend_args=backend_args, **kwargs)
        self._annotations = None
        if ann_file is None:
            return
        with get_local_path(ann_file, backend_args=backend_args) as file:
            self._annotations = read_annotations(file)
        from mmdet.datasets.api_wrappers import COCO

        with contextlib.redirect_stdout(io.StringIO()):
            self._coco_api = self._annotations.coco(COCO, 'segm' in self.metrics)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute as mmdet does; the classes are found by name."""
        if self._annotations is not None and self.cat_ids is None:
            self._label_ids = self._annotations.category_ids(self.dataset_meta['classes'])
            self.cat_ids = sorted(self._label_ids)  # the order in which pycocotools has its results
        return super().compute_metrics(results)

    def results2json(self, results, outfile_prefix: str) -> dict:
        """Write the results as mmdet does, with the ids that the annotation file has for the classes."""
        if self._annotations is None:
            return super().results2json(results, outfile_prefix)
        order, self.cat_ids = self.cat_ids, self._label_ids
        try:
            return super().results2json(results, outfile_prefix)
        finally:
            self.cat_ids = order
