"""Lists the models that ``convnext new`` knows, and which of them learn from which labels."""

from dataclasses import dataclass

from ..errors import UserError, check_choice

DETECTOR_TASKS = ('boxes', 'segments')


@dataclass(frozen=True)
class Model:
    """Describes a model.

    Attributes:
        title: as the config's first line has it.
        bases: task of the labels -> the config that comes along, which it inherits from.
        shape: of the learning rate's decay: steps, poly or cosine.
    """

    title: str
    bases: dict[str, str]
    shape: str = 'steps'


def _detector(title: str, base: str, tasks: tuple[str, ...] = DETECTOR_TASKS, shape: str = 'steps') -> Model:
    return Model(title, dict.fromkeys(tasks, f'detection/{base}.py'), shape)


MODELS = dict(
    faster_rcnn=_detector('Faster R-CNN', 'faster_rcnn_convnext_t'),
    cascade_rcnn=_detector('Cascade R-CNN', 'cascade_rcnn_convnext_t'),
    mask_rcnn=_detector('Mask R-CNN', 'mask_rcnn_convnext_t', ('segments',)),
    cascade=_detector('Cascade Mask R-CNN', 'cascade_convnext_t', ('segments',)),
    retinanet=_detector('RetinaNet', 'retinanet_convnext_t'),
    rtmdet=_detector('RTMDet', 'rtmdet_convnext_t', shape='cosine'),
    dino=_detector('DINO', 'dino_convnext_t'),
    upernet=Model('UPerNet', dict(masks='segmentation/upernet_convnext_t.py'), 'poly'),
    mask2former=Model(
        'Mask2Former',
        dict(
            segments='detection/mask2former_convnext_t.py',
            masks='segmentation/mask2former_semantic_convnext_t.py',
        ),
        'poly',
    ),
    classifier=Model('Classifier', dict(classes='classification/convnext_t_in22k_in1k.py'), 'cosine'),
)
DEFAULTS = dict(boxes='faster_rcnn', segments='mask_rcnn', masks='upernet', classes='classifier')
LABELS = dict(
    boxes='boxes without outlines',
    segments='boxes with outlines',
    masks='a mask for each image',
    classes='a class for each image',
)


def model_for(task: str, name: str | None = None) -> str:
    """Return the name of the model for a kind of labels: the one that is asked for, if it learns from them.

    Args:
        task: of :class:`convnext_backbone.labels.Labels`.
        name: of :data:`MODELS`; by default what fits the labels.

    Raises:
        UserError: no such model, or one that needs other labels.
    """
    if name is None:
        return DEFAULTS[task]
    check_choice('--model', name, MODELS)
    if task not in MODELS[name].bases:
        needs = ' or '.join(LABELS[t] for t in MODELS[name].bases)
        fits = ', '.join(other for other, model in MODELS.items() if task in model.bases)
        raise UserError(f'--model {name} learns from {needs}; here are {LABELS[task]}: choose {fits}')
    return name
