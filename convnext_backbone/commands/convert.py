"""Convert weights between libraries: any format that is read, by its keys, into one of these.

convnext convert convnext_tiny_1k_224 --to timm
convnext convert work_dirs/convnext_t_in1k/epoch_300.pth --to hf --weights ema --out model.safetensors

official and torchvision write .pth, the others .safetensors; safetensors has the official names.

convnext convert --list

prints the released names with size, published accuracy, image size and licence.
"""

import os
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from ..checkpoint import read_checkpoint
from ..checkpoint.formats import FAMILIES, PRETRAINING, from_released, infer_arch
from ..checkpoint.networks import find_places, recognise, tensors_of
from ..checkpoint.read import file_hash, local_file
from ..checkpoint.zoo import RELEASED
from ..cli import Parser
from ..errors import UserError, some
from ..hub import mebibytes

FORMATS = ('official', 'timm', 'torchvision', 'hf', 'mmpretrain', 'safetensors')


def parse_args(argv=None):
    """Return the options of the command line."""
    parser = Parser(__doc__)
    parser.add_argument('file', nargs='?', help='path, URL or released name')
    parser.add_argument('--to', choices=FORMATS)
    parser.add_argument('--out', metavar='FILE', help='default: NAME.FORMAT.pth or .safetensors')
    parser.add_argument(
        '--weights', choices=('final', 'ema'), default='final', help='of a training with a moving average'
    )
    parser.add_prefix_option()
    parser.add_argument('--list', action='store_true', help='the released names')
    args = parser.parse_args(argv)
    if not args.list and not (args.file and args.to):
        parser.error('FILE and --to FORMAT, or --list')
    return args


def main(argv=None) -> Path | None:
    """Convert a file and return the path of the new one; with ``--list`` print the released names."""
    args = parse_args(argv)
    if args.list:
        for name, released in RELEASED.items():
            print(f'{name:40s} {mebibytes(released):6.0f} MiB  {released}')
        return None
    file = local_file(args.file)
    named = tensors_of(read_checkpoint(file), str(file), args.weights, args.prefix)
    source, tensors = recognise(named)
    others = [n for n in tensors if any(fnmatchcase(n, kind) for kind in PRETRAINING.get(source, ()))]
    tensors = {name: tensor for name, tensor in tensors.items() if name not in others}
    if others:
        print(f'left out, of the pretraining alone: {len(others)} tensors ({some(others)})')
    others = sorted(tensors.keys() - FAMILIES['official'].theirs.keys())
    if others and any(found := find_places(named)):
        raise UserError(
            f'{file} holds more than one ConvNeXt: {", ".join(others[:3])}: name the network to take '
            f'by --prefix, which may be {" or ".join(place or repr(place) for place in found)}'
        )
    v2 = any('.grn.' in name for name in tensors)
    target = {'safetensors': 'official', 'hf': 'hf_v2' if v2 else 'hf'}.get(args.to, args.to)
    converted = from_released(tensors, target)
    suffix = '.pth' if args.to in ('official', 'torchvision', 'mmpretrain') else '.safetensors'
    out = Path(args.out or f'{file.stem}.{args.to}{suffix}')
    if out.suffix not in ('.pth', '.safetensors'):
        raise UserError(f'--out {out}: the name must end in .pth or .safetensors')
    if out.exists():
        raise UserError(f'{out} exists: remove it, or give another name with --out')
    part = out.with_name(f'{out.name}.part')
    try:
        if out.suffix == '.safetensors':
            save_file({name: tensor.contiguous() for name, tensor in converted.items()}, part)
        else:
            wrapper = {'official': 'model', 'mmpretrain': 'state_dict'}.get(args.to)
            torch.save({wrapper: converted} if wrapper else converted, part)
        os.replace(part, out)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have their own
        part.unlink(missing_ok=True)
        raise UserError(f'cannot write {out}: {error}') from error
    numbers = sum(tensor.numel() for tensor in converted.values())
    print(f'{file} ({source}, {infer_arch(tensors) or "a size of its own"}) -> {out} ({target})')
    print(f'  {len(converted)} tensors, {numbers} numbers, sha256 {file_hash(out)}')
    return out
