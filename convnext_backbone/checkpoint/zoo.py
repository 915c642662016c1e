"""Released weights by name: where they come from, and under which licence."""

from ..errors import suggest

_V1 = 'https://dl.fbaipublicfiles.com/convnext/{}.pth'
# Without _ema: the final weights of the training, which the published detectors and segmenters start from.
_V1_NAMES = [
    *(f'convnext_{size}_1k_224' for size in ('tiny', 'small', 'base')),
    *(f'convnext_{size}_1k_224_ema' for size in ('tiny', 'small', 'base', 'large')),
    *(f'convnext_{size}_1k_384' for size in ('base', 'large')),
    *(f'convnext_{size}_22k_224' for size in ('tiny', 'small', 'base', 'large', 'xlarge')),
    *(f'convnext_{size}_22k_1k_{n}' for size in ('tiny', 'small', 'base', 'large') for n in (224, 384)),
    *(f'convnext_xlarge_22k_1k_{n}_ema' for n in (224, 384)),
    *(f'convnext_iso_{size}_1k_224_ema' for size in ('small', 'base', 'large')),
]
_V2 = 'https://dl.fbaipublicfiles.com/convnext/convnextv2/{}/{}.pt'
_V2_SIZES = ('atto', 'femto', 'pico', 'nano', 'tiny', 'base', 'large', 'huge')
_V2_NAMES = {
    'pt_only': [f'convnextv2_{size}_1k_224_fcmae' for size in _V2_SIZES],
    'im1k': [f'convnextv2_{size}_1k_224_ema' for size in _V2_SIZES],
    'im22k': [
        *(f'convnextv2_{size}_22k_{n}_ema' for size in ('nano', 'tiny', 'base', 'large') for n in (224, 384)),
        *(f'convnextv2_huge_22k_{n}_ema' for n in (384, 512)),
    ],
}
URLS = {name: _V1.format(name) for name in _V1_NAMES}
URLS |= {name: _V2.format(folder, name) for folder, names in _V2_NAMES.items() for name in names}
# That of V1 (MIT) permits everything; that of V2 does not.
RESTRICTED = {name: 'CC-BY-NC 4.0: no commercial use' for names in _V2_NAMES.values() for name in names}


def nearest(name: str) -> str:
    """Words that suggest the released name nearest to ``name``; empty if none is near."""
    return suggest(name, URLS, 0.8, 'the released ')
