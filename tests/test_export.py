"""Exported files: the same outputs in another runtime, for images of any size."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import tool
from mmengine.registry import MODELS, DefaultScope
from PIL import Image

from convnext_backbone import export as exporting
from convnext_backbone.backbones import ConvNeXt, IsotropicConvNeXt, Roadmap
from convnext_backbone.classification import Classifier
from convnext_backbone.config import read_config, use_plain_batch_norm
from convnext_backbone.errors import UserError
from convnext_backbone.export import METADATA, AdaptiveMean, Network, export
from convnext_backbone.export.images import describe, read_images

pytest.importorskip('onnxruntime')
SMALL = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))


def mixed(module: torch.nn.Module) -> torch.nn.Module:
    """With values in every parameter that a slip in folding would show; in evaluation mode."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1 or parameter.shape[:3] == (1, 1, 1):
                parameter.copy_(0.5 + 0.3 * torch.randn_like(parameter))
    return module.eval()


def segmenter() -> torch.nn.Module:
    cfg = read_config('configs/segmentation/upernet_convnext_t.py')
    use_plain_batch_norm(cfg)
    cfg.model.backbone.update(**SMALL, init_cfg=None)
    cfg.model.decode_head.update(in_channels=SMALL['dims'], channels=16, num_classes=5)
    cfg.model.auxiliary_head.update(in_channels=24, channels=16, num_classes=5)
    with DefaultScope.overwrite_default_scope('mmseg'):
        return mixed(MODELS.build(cfg.model))


def with_backbone(backbone: torch.nn.Module) -> torch.nn.Module:
    detector = torch.nn.Module()
    detector.backbone = backbone
    return mixed(detector)


def classifier(arch: str) -> Classifier:
    return mixed(Classifier(dict(type='convnext_backbone.ConvNeXt', arch=arch, **SMALL), 7))


CASES = {
    'classifier V1': lambda: (classifier('tiny'), 'whole'),
    'classifier V2': lambda: (classifier('v2_atto'), 'whole'),
    'UPerNet': lambda: (segmenter(), 'whole'),
    'four maps': lambda: (with_backbone(ConvNeXt(**SMALL)), 'backbone'),
    'dilated maps': lambda: (with_backbone(ConvNeXt(**SMALL, output_stride=8)), 'backbone'),
    'isotropic maps': lambda: (with_backbone(IsotropicConvNeXt(depth=2, dim=16)), 'backbone'),
}


# in every run: one network in each format, and the others in ONNX, each part of them once
ALWAYS = {('onnx', name) for name in CASES if name in ('classifier V2', 'UPerNet', 'four maps')}
ALWAYS |= {(format, 'classifier V2') for format in exporting.SUFFIXES}
FORMATS_AND_CASES = [
    pytest.param(
        format,
        case,
        id=f'{format}-{name}',
        marks=pytest.mark.slow if (format, name) not in ALWAYS else (),
    )
    for format in exporting.SUFFIXES
    for name, case in CASES.items()
]


def run_file(file, format: str, images: torch.Tensor) -> list[torch.Tensor]:
    """As someone without this package runs it."""
    if format == 'onnx':
        import onnxruntime

        session = onnxruntime.InferenceSession(file)
        return [torch.from_numpy(out) for out in session.run(None, {'images': images.numpy()})]
    network = torch.jit.load(file) if format == 'torchscript' else torch.export.load(file).module()
    found = network(images)
    return [found] if isinstance(found, torch.Tensor) else list(found)


@pytest.mark.parametrize(('format', 'case'), FORMATS_AND_CASES)
def test_an_exported_file_gives_what_float64_gives_at_sizes_it_was_not_traced_with(case, format, tmp_path):
    model, part = case()
    out = tmp_path / f'network{exporting.SUFFIXES[format]}'
    report = export(model, out, format, part=part, size=(96, 64), meta=dict(classes=['cat']))
    assert [shape[0] for shape, *_ in report] == [2, 1, 3]
    assert all(d < 1e-4 for _, d, *_ in report)
    assert [file.name for file in tmp_path.iterdir()] == [out.name]
    exact = Network(model, part).double()
    for shape in ((1, 3, 64, 64), (5, 3, 117, 150)):
        images = torch.randn(shape, generator=torch.Generator().manual_seed(1))
        with torch.no_grad():
            expected = exact(images.double())
            expected = [expected] if isinstance(expected, torch.Tensor) else list(expected)
            for a, b in zip(expected, run_file(out, format, images), strict=True):
                torch.testing.assert_close(b.double(), a, rtol=1e-4, atol=1e-4)


def test_onnx_names_its_tensors_and_holds_what_belongs_to_it(tmp_path):
    import onnx

    model, part = CASES['four maps']()
    export(model, tmp_path / 'a.onnx', 'onnx', part=part, size=(64, 64), meta=dict(mean=[1.0, 2.0]))
    content = onnx.load(tmp_path / 'a.onnx')
    onnx.checker.check_model(content)
    assert [tensor.name for tensor in content.graph.input] == ['images']
    assert [tensor.name for tensor in content.graph.output] == ['map0', 'map1', 'map2', 'map3']
    assert {entry.key: entry.value for entry in content.metadata_props}[METADATA] == '{"mean": [1.0, 2.0]}'
    kinds = {node.op_type for node in content.graph.node}
    assert 'LayerNormalization' in kinds
    assert 'Dropout' not in kinds


def test_a_segmenter_gives_the_logits_of_mmsegs_own_inference():
    model = segmenter()
    images = torch.randn(2, 3, 72, 100)
    with torch.no_grad():
        expected = model.encode_decode(images, [dict(img_shape=(72, 100))] * 2)
        torch.testing.assert_close(Network(model)(images), expected)


@pytest.mark.parametrize('size', [1, 2, 3, 6, (5, 2)])
@pytest.mark.parametrize('shape', [(2, 3, 7, 9), (1, 4, 16, 33), (1, 2, 3, 2)])
def test_adaptive_mean_is_pytorchs(size, shape):
    x = torch.randn(shape, dtype=torch.double)
    torch.testing.assert_close(AdaptiveMean(size)(x), F.adaptive_avg_pool2d(x, size), rtol=1e-12, atol=1e-12)


def test_a_file_that_differs_from_eager_is_not_kept(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model, part = CASES['classifier V1']()
    model.head.weight.data.mul_(50)
    fold = exporting.fuse_for_inference

    def fold_badly(network):
        fold(network)
        next(m for m in network.modules() if hasattr(m, 'fold')).folded_b2[0] += 0.5

    monkeypatch.setattr(exporting, 'fuse_for_inference', fold_badly)
    with pytest.raises(UserError, match='not written: torchscript differs from eager by'):
        export(model, tmp_path / 'a.pt', 'torchscript', part=part, size=(64, 64))
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_said():
    detector = with_backbone(Roadmap(start='resnet50', step='depthwise'))
    with pytest.raises(UserError, match='of a detector only the part backbone'):
        Network(detector)
    with pytest.raises(UserError, match='no output norms'):
        Network(classifier('tiny'), 'backbone')
    with pytest.raises(UserError, match="format must be one of .*'ONNX'"):
        export(classifier('tiny'), 'a.onnx', 'ONNX')
    with pytest.raises(UserError, match='--size is height and width in pixels, at least 1, got -3 0'):
        tool('export').main(['convnext_t_in1k', 'x.pth', '--format', 'onnx', '--size', '-3', '0'])
    with pytest.raises(UserError, match='must end in .pt2'):
        export(classifier('tiny'), 'a.pt', 'torch_export')


def test_an_operation_that_a_format_does_not_have_is_one_line(tmp_path):
    class Odd(torch.nn.Module):
        out_indices = (0,)

        def forward(self, x):
            return x[:, :, : int(x.sum().abs())]

    detector = torch.nn.Module()
    detector.backbone = Odd()
    long = f'{250 * "a"}.pt2'  # as long a name as file systems allow
    with pytest.raises(UserError, match='torch_export cannot express this Module: .+') as error:
        export(detector, tmp_path / long, 'torch_export', part='backbone')
    assert '\n' not in str(error.value)

    def silent(x):
        raise NotImplementedError

    detector.backbone.forward = silent
    with pytest.raises(UserError, match='torchscript cannot express this Module: NotImplementedError$'):
        export(detector, tmp_path / 'a.pt', 'torchscript', part='backbone')
    assert not list(tmp_path.iterdir())


def test_a_classifier_without_test_data_is_exported_as_its_validation_reads_images(tmp_path):
    cfg = read_config('configs/demo/classifier_shapes.py')
    assert 'test_dataloader' not in cfg
    assert read_images(cfg, []) == []
    Image.new('RGB', (70, 90), (255, 0, 0)).save(tmp_path / 'a.png')
    (image,) = read_images(cfg, [tmp_path / 'a.png'])
    assert image.shape == (1, 3, 64, 64)
    assert image[0, :, 32, 32].tolist() == pytest.approx(  # red, by the mean and std of the config
        [(1 - 0.485) / 0.229, -0.456 / 0.224, -0.406 / 0.225]
    )
    steps = describe(cfg, None)['steps']
    assert steps == [dict(resize_shorter=64, interpolation='bilinear'), dict(crop=[64, 64])]


def test_the_tool_exports_a_classifier_with_its_classes_and_normalisation(tmp_path):
    config = 'configs/classification/cifar10_mini.py'
    cfg = read_config(config)
    model = mixed(MODELS.build(cfg.model))
    meta = dict(dataset_meta=dict(classes=[f'class {i}' for i in range(10)]))
    torch.save(dict(state_dict=model.state_dict(), meta=meta), tmp_path / 'trained.pth')
    out = tmp_path / 'a.onnx'
    asked = [
        config,
        str(tmp_path / 'trained.pth'),
        '--format',
        'onnx',
        '--out',
        str(out),
        '--size',
        '64',
        '64',
    ]
    assert tool('export').main(asked) == out
    import onnxruntime

    session = onnxruntime.InferenceSession(out)
    said = json.loads(session.get_modelmeta().custom_metadata_map[METADATA])
    transform = cfg.test_dataloader.dataset.transform
    assert said['mean'] == list(transform.mean)
    assert said['classes'][9] == 'class 9'
    assert (said['channels'], said['range']) == ('RGB', [0, 1])
    images = torch.randn(1, 3, 48, 48)  # smaller than it was traced with
    with torch.no_grad():
        np.testing.assert_allclose(
            session.run(['logits'], {'images': images.numpy()})[0], model(images), rtol=1e-4, atol=1e-5
        )
    with pytest.raises(UserError, match='exists: remove it'):
        tool('export').main(asked)
