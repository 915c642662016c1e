"""Defines the image classifier: backbone, global average, LayerNorm, linear layer (paper, Sec. 2)."""

import torch.nn.functional as F
from mmengine.model import BaseModel
from timm.data import Mixup
from torch import Tensor, nn

from ..backbones.base import DenseBackbone
from ..backbones.layers import init_layer
from ..checkpoint.formats import released_names
from ..errors import UserError
from ..registry import MODELS, type_name


@MODELS.register_module()
class Classifier(BaseModel):
    """Classifies images by a backbone of this package, pooling and a linear layer.

    Its parameters have the names of the released classifiers, the backbone's below ``backbone.``;
    :func:`convnext_backbone.checkpoint.load_checkpoint` loads those files into it as they are.

    Args:
        backbone: config of the backbone; which maps it emits is decided here.
        num_classes: length of the logits; 0 leaves the last layer out: pooled and normed features come out.
        head_init_scale: factor on the starting weights of the last layer (0.001 in fine-tuning).
        label_smoothing: share of the target spread evenly over all classes, in [0, 1).
        mixup: arguments of ``timm.data.Mixup`` (``mixup_alpha``, ``cutmix_alpha``, ...), which mixes the
            images and labels of every training batch; the batch must be even.

    Raises:
        UserError: the backbone is none of this package.
    """

    checkpoint_names = staticmethod(released_names)  # under which a checkpoint has its parameters

    def __init__(
        self,
        backbone: dict,
        num_classes: int,
        *,
        head_init_scale: float = 1.0,
        label_smoothing: float = 0.0,
        mixup: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | list | None = None,
    ):
        super().__init__(data_preprocessor, init_cfg)
        name, kind = type_name(backbone), backbone.get('type')
        if not isinstance(kind, type):
            kind = MODELS.get(name) if name.startswith('convnext_backbone.') else None
        if not (isinstance(kind, type) and issubclass(kind, DenseBackbone)):
            raise UserError(
                'the backbone of a Classifier is convnext_backbone.ConvNeXt, .IsotropicConvNeXt or .Roadmap, '
                f'got type {backbone.get("type")!r}'
            )
        index = kind.classifier_map
        self.backbone = MODELS.build(dict(backbone, out_indices=(index,), output_norm=False))
        (dim,) = self.backbone.out_channels
        self.norm = nn.LayerNorm(dim, eps=1e-6) if self.backbone.classifier_norm else nn.Identity()
        self.head = nn.Linear(dim, num_classes) if num_classes else nn.Identity()
        self.label_smoothing = label_smoothing
        self.mixup = mixup and Mixup(**mixup, label_smoothing=label_smoothing, num_classes=num_classes)
        init_layer(self.head)
        if num_classes:
            self.head.weight.data.mul_(head_init_scale)

    def forward(self, inputs: Tensor, labels: Tensor | None = None, mode: str = 'tensor'):
        """Return logits, losses or predictions, as mmengine's Runner asks for them.

        Args:
            inputs: (N, 3, H, W), normalised.
            labels: (N,) class numbers, or (N, num_classes) probabilities (Mixup).
            mode: ``'tensor'`` or ``'predict'``: logits (N, num_classes). ``'loss'``: dict of losses.

        Raises:
            UserError: an odd number of images with Mixup.
        """
        smoothing = self.label_smoothing
        if mode == 'loss' and self.mixup:
            if len(inputs) % 2:
                raise UserError(
                    f'mixup needs an even batch, got {len(inputs)} images: choose another batch_size'
                )
            inputs, labels = self.mixup(inputs, labels)
            smoothing = 0.0  # it is in the labels already
        (x,) = self.backbone(inputs)
        logits = self.head(self.norm(x.mean((2, 3))))
        if mode != 'loss':
            return logits
        return dict(loss=F.cross_entropy(logits, labels, label_smoothing=smoothing))

    def val_step(self, data: dict) -> list[dict]:
        """Return logits and label of each image, for :class:`Accuracy`."""
        data = self.data_preprocessor(data, False)
        logits = self(data['inputs'], mode='predict')
        return [dict(logits=row, label=label) for row, label in zip(logits.cpu(), data['labels'].cpu())]

    test_step = val_step
