"""Converts the content of a checkpoint to tensors under the names of the released ConvNeXt, and back.

Recognised by the keys alone: the official files of V1 (classifiers, isotropic networks) and V2, the latter's
FCMAE pretraining, those of DINOv3 and EUPE, timm (also its CLIP, DINOv3 and EUPE networks), open_clip (the
image tower), torchvision, Hugging Face transformers (ConvNeXt, ConvNeXt V2, DINOv3), mmpretrain, and what a
training of ours or of mmengine writes, with the network below ``backbone.``.
"""

import math
import re
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor

from ..backbones.convnext import ARCHITECTURES
from ..backbones.isotropic import ARCHITECTURES as ISOTROPIC
from ..errors import UserError

MOST_BLOCKS = 36  # in a stage, of any network that is read


@dataclass(frozen=True)
class Family:
    """Holds how one library names the tensors.

    Attributes:
        pairs: the released name and theirs. ``{i}`` is a stage, ``{d}`` one but the first, ``{j}`` a block,
            ``{k}`` 0 or 1 (the parts of a downsampling layer), ``{p}`` weight or bias; ``{odd}`` is
            ``2 i + 1`` and ``{even}`` ``2 d``.
        optional: prefix that their names may lack.
        shapes: end of a released name -> shape in their files, where it differs (-1: the channels).
    """

    pairs: tuple[tuple[str, str], ...]
    optional: str = ''
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)

    @cached_property
    def theirs(self) -> dict[str, str]:
        """Return the mapping released name -> their name."""
        names = {}
        for ours, theirs in self.pairs:
            for i in range(4) if '{i}' in ours else range(1, 4) if '{d}' in ours else (0,):
                for j in range(MOST_BLOCKS) if '{j}' in ours else (0,):
                    for k in (0, 1) if '{k}' in ours else (0,):
                        for p in ('weight', 'bias') if '{p}' in ours else ('',):
                            values = dict(i=i, d=i, j=j, k=k, p=p, odd=2 * i + 1, even=2 * i)
                            names[ours.format(**values)] = theirs.format(**values)
        return names

    @cached_property
    def ours(self) -> dict[str, str]:
        """Return the mapping their name, with the optional prefix or without -> released name."""
        names = {theirs: ours for ours, theirs in self.theirs.items()}
        return names | {theirs.removeprefix(self.optional): ours for theirs, ours in names.items()}


def _family(stem: tuple, down: str, block: str, names: tuple, norm: str, head: str, **kwargs) -> Family:
    """Build a :class:`Family`.

    ``names`` are those of dwconv, norm, pwconv1, pwconv2, gamma, grn.gamma and grn.beta in a block.
    """
    parts = ('dwconv.{p}', 'norm.{p}', 'pwconv1.{p}', 'pwconv2.{p}', 'gamma', 'grn.gamma', 'grn.beta')
    pairs = [(f'downsample_layers.0.{k}.{{p}}', f'{name}.{{p}}') for k, name in enumerate(stem)]
    pairs.append(('downsample_layers.{d}.{k}.{p}', down + '.{k}.{p}'))
    pairs += [('stages.{i}.{j}.' + ours, f'{block}.{theirs}') for ours, theirs in zip(parts, names) if theirs]
    pairs += [('norm.{p}', norm + '.{p}'), ('head.{p}', head + '.{p}')]
    return Family(tuple(pairs), **kwargs)


def _hugging_face(prefix: str, gain: str, grn: tuple) -> Family:
    return _family(
        (f'{prefix}embeddings.patch_embeddings', f'{prefix}embeddings.layernorm'),
        prefix + 'encoder.stages.{d}.downsampling_layer',
        prefix + 'encoder.stages.{i}.layers.{j}',
        ('dwconv.{p}', 'layernorm.{p}', 'pwconv1.{p}', 'pwconv2.{p}', gain, *grn),
        f'{prefix}layernorm',
        'classifier',
        optional=prefix,
    )


FLAT_GRN = {'grn.gamma': (-1,), 'grn.beta': (-1,)}
FAMILIES = {
    'official': _family(
        ('downsample_layers.0.0', 'downsample_layers.0.1'),
        'downsample_layers.{d}',
        'stages.{i}.{j}',
        ('dwconv.{p}', 'norm.{p}', 'pwconv1.{p}', 'pwconv2.{p}', 'gamma', 'grn.gamma', 'grn.beta'),
        'norm',
        'head',
    ),
    'timm': _family(
        ('stem.0', 'stem.1'),
        'stages.{d}.downsample',
        'stages.{i}.blocks.{j}',
        (
            *('conv_dw.{p}', 'norm.{p}', 'mlp.fc1.{p}', 'mlp.fc2.{p}'),
            *('gamma', 'mlp.grn.weight', 'mlp.grn.bias'),
        ),
        'head.norm',
        'head.fc',
        shapes=FLAT_GRN,
    ),
    'torchvision': _family(
        ('features.0.0', 'features.0.1'),
        'features.{even}',
        'features.{odd}.{j}',
        ('block.0.{p}', 'block.2.{p}', 'block.3.{p}', 'block.5.{p}', 'layer_scale', '', ''),
        'classifier.0',
        'classifier.2',
        optional='features.',  # torchvision's detectors have the features alone
        shapes={'gamma': (-1, 1, 1)},
    ),
    'hf': _hugging_face('convnext.', 'layer_scale_parameter', ('', '')),
    'hf_v2': _hugging_face('convnextv2.', '', ('grn.weight', 'grn.bias')),
    'hf_dinov3': _family(
        ('model.stages.0.downsample_layers.0', 'model.stages.0.downsample_layers.1'),
        'model.stages.{d}.downsample_layers',
        'model.stages.{i}.layers.{j}',
        (
            *('depthwise_conv.{p}', 'layer_norm.{p}', 'pointwise_conv1.{p}', 'pointwise_conv2.{p}'),
            *('gamma', '', ''),
        ),
        'layer_norm',
        'classifier',
        optional='model.',
    ),
    'mmpretrain': _family(
        ('backbone.downsample_layers.0.0', 'backbone.downsample_layers.0.1'),
        'backbone.downsample_layers.{d}',
        'backbone.stages.{i}.{j}',
        (
            *('depthwise_conv.{p}', 'norm.{p}', 'pointwise_conv1.{p}', 'pointwise_conv2.{p}'),
            *('gamma', 'grn.gamma', 'grn.beta'),
        ),
        'backbone.norm3',
        'head.fc',
        optional='backbone.',
        shapes=FLAT_GRN,
    ),
}
# Patterns of what only the pretraining has, by family: FCMAE's decoder; of DINOv3 and EUPE the last norm once
# more, as norms.3 (dinov3/models/convnext.py), and EUPE's heads to its teachers (as timm leaves them out).
PRETRAINING = {
    'official FCMAE': ('decoder.*', 'proj.*', 'pred.*', 'mask_token'),
    'official DINOv3': ('norms.*', 'projectors.*'),
}
ISOTROPIC_NAMES = r'stem\.|blocks\.\d+\.(dwconv|norm|pwconv[12])\.|norm\.|head\.|blocks\.\d+\.gamma'
# In front of the network in a larger one: CLIP's image tower, a detector, a classifier of ours or mmpretrain.
PREFIXES = ('visual.trunk.', 'backbone.')


def dataset_meta(content: dict) -> dict:
    """Return what a checkpoint records about its training's data: ``classes``, ``palette``, ...

    The dict is empty if there is nothing.

    Since mmdet 3 and mmseg 1 it stands in ``meta['dataset_meta']``, before in ``meta`` itself, in capitals.
    """
    meta = content.get('meta') or {}
    given = meta.get('dataset_meta') or {key: meta.get(key) for key in ('CLASSES', 'PALETTE')}
    found = {key.lower(): value for key, value in given.items() if value is not None}
    if isinstance(found.get('classes'), str):  # its only one
        found['classes'] = [found['classes']]
    return found


def released_names(names) -> dict[str, str]:
    """Map each name in a module of ours to its name in the released checkpoints: without ``backbone.``."""
    return {name: name.removeprefix('backbone.') for name in names}


def to_released(tensors: dict[str, Tensor]) -> tuple[str, dict[str, Tensor]]:
    """Return the family whose names most of the tensors have, and the tensors under the released names.

    What the family does not name keeps its name. Shapes stay as they are in the file, but for those of
    FCMAE's sparse layers, which become dense ones.
    """
    if any(name.endswith('.kernel') for name in tensors):
        return 'official FCMAE', _dense_fcmae(tensors)
    prefix = next((p for p in PREFIXES if any(name.startswith(p) for name in tensors)), '')
    stripped = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    if any(name.startswith('stem_0.') for name in stripped):  # timm, with features_only
        stripped = {re.sub(r'^(stem|stages)_(?=\d)', r'\1.', name): t for name, t in stripped.items()}

    def known(family: Family) -> int:
        return sum(name in family.ours for name in stripped)

    best = max(FAMILIES, key=lambda name: known(FAMILIES[name]))
    if best == 'official' and 'norms.3.weight' in stripped:
        return 'official DINOv3', stripped
    isotropic = sum(re.match(ISOTROPIC_NAMES, name) is not None for name in stripped)
    if isotropic > known(FAMILIES[best]):
        return 'official isotropic', stripped
    names = FAMILIES[best].ours
    if best == 'mmpretrain' and 'norm0.weight' in stripped:  # a dense backbone: norm3 is an output norm
        names = {theirs: ours for theirs, ours in names.items() if not ours.startswith('norm.')}
    return best, {names.get(name, name): tensor for name, tensor in stripped.items()}


def _dense_fcmae(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Convert the sparse layers of V2's pretraining to dense ones.

    Its decoder, whose names stay, is of no use here.
    """
    found = {}
    for name, tensor in tensors.items():
        name = name.removeprefix('encoder.')
        if name.endswith('.kernel'):  # (taps, in, out), or depthwise (taps, channels), taps column by column
            name = name.removesuffix('kernel') + 'weight'
            side = math.isqrt(tensor.shape[0])
            tensor = tensor if tensor.ndim == 3 else tensor.unsqueeze(1)
            tensor = tensor.unflatten(0, (side, side)).permute(3, 2, 1, 0)
        name = re.sub(r'\.(ln|linear)\.', '.', name)
        if name.endswith('.bias') and tensor.ndim > 1:
            tensor = tensor.flatten()
        found[name] = tensor
    return found


def from_released(tensors: dict[str, Tensor], family: str) -> dict[str, Tensor]:
    """Rename and reshape tensors under the released names as ``family`` has them.

    Raises:
        UserError: the family cannot express one of them, or has no such name.
    """
    if family not in FAMILIES:
        raise UserError(f'the format must be one of {", ".join(FAMILIES)}, got {family!r}')
    table = FAMILIES[family]
    if other := sorted(name for name in tensors if name not in table.theirs):
        raise UserError(
            f'{family} has no name for {len(other)} of the {len(tensors)} tensors: {", ".join(other[:4])}'
        )
    found = {}
    for name, tensor in tensors.items():
        shape = next((shape for end, shape in table.shapes.items() if name.endswith('.' + end)), tensor.shape)
        found[table.theirs[name]] = tensor.reshape(shape)
    return found


def infer_arch(tensors: dict[str, Tensor]) -> str | None:
    """Return the network whose depths and widths the tensors (released names) have, ``None`` if none has.

    Returns:
        Its name as written in a config: ``arch='tiny'``, or ``type='IsotropicConvNeXt', arch='small'``.
    """
    depths, dims = [0] * 4, [0] * 4
    for name, tensor in tensors.items():
        if match := re.fullmatch(r'(?:stages\.([0-3])|blocks)\.(\d+)\.dwconv\.weight', name):
            stage = int(match[1] or 0)
            depths[stage] = max(depths[stage], int(match[2]) + 1)
            dims[stage] = tensor.shape[0]
    if 'stem.weight' in tensors:
        found = (arch for arch, size in ISOTROPIC.items() if size[:2] == (depths[0], dims[0]))
        return next((f"type='IsotropicConvNeXt', arch={arch!r}" for arch in found), None)
    v2 = any('.grn.' in name for name in tensors)
    sizes = (tuple(depths), tuple(dims))
    found = (arch for arch, size in ARCHITECTURES.items() if size == sizes and arch.startswith('v2_') == v2)
    return next((f'arch={arch!r}' for arch in found), None)
