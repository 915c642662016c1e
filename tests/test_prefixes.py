"""Networks inside larger files: below any prefix, in any wrapper, final or average; one alone, or none."""

import pytest
import torch
from conftest import tool
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from convnext_backbone.backbones import ConvNeXt
from convnext_backbone.checkpoint import CheckpointMismatch, load_checkpoint, load_trained, read_checkpoint
from convnext_backbone.checkpoint.networks import find_tensors, tensors_of
from convnext_backbone.classification import Classifier
from convnext_backbone.config import (
    drop_pretrained,
    read_config,
    set_pretrained,
    start_from,
    use_plain_batch_norm,
)
from convnext_backbone.errors import UserError
from convnext_backbone.hub import create_model

SIZE = dict(depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))
STEM = 'downsample_layers.0.0.weight'


def timm_network(seed: int, **kwargs) -> nn.Module:
    """timm's own model: its names come from its code, not from a table of ours."""
    import timm

    torch.manual_seed(seed)
    return timm.create_model('convnext_tiny', num_classes=5, **SIZE, **kwargs)


def timm_stem(model: nn.Module) -> torch.Tensor:
    return model.state_dict()['stem.0.weight']


@pytest.fixture(scope='module')
def first():
    return timm_network(1)


@pytest.fixture(scope='module')
def second():
    return timm_network(2)


def ours() -> ConvNeXt:
    return ConvNeXt(**SIZE)


def below(prefix: str, model: nn.Module) -> dict:
    return {prefix + name: tensor for name, tensor in model.state_dict().items()}


def load(tmp_path, content, **options):
    """Save as torch does, load into a backbone; the stem it then has, and the report."""
    torch.save(content, tmp_path / 'a.pth')
    model = ours()
    report = load_checkpoint(model, tmp_path / 'a.pth', **options)
    return model.state_dict()[STEM], report


class Lightning(nn.Module):  # any module that has the network as an attribute
    def __init__(self, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


def average_of_torch(model: nn.Module) -> dict:
    from torch.optim.swa_utils import AveragedModel

    return AveragedModel(model).state_dict()


def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model)  # compiles nothing before it is called


# Wrappers as libraries make them, which put their own names in front.
COMPILED = {
    'torch.compile': lambda m: compiled(m).state_dict(),
    'torch.compile in DataParallel': lambda m: nn.DataParallel(compiled(m)).state_dict(),
    'DataParallel in torch.compile': lambda m: compiled(nn.DataParallel(m)).state_dict(),
    'a compiled part': lambda m: dict(
        model=Lightning(backbone=compiled(m), neck=nn.Conv2d(1, 1, 1)).state_dict()
    ),
}
WRAPPED = {
    'DataParallel twice': lambda m: nn.DataParallel(nn.DataParallel(m)).state_dict(),
    'Lightning': lambda m: dict(state_dict=Lightning(model=m).state_dict(), epoch=3, loops={}),
    'Lightning, with a loss of its own': lambda m: dict(
        state_dict=Lightning(net=m, loss=nn.BatchNorm1d(3)).state_dict(), hyper_parameters={}
    ),
    'deep': lambda m: Lightning(
        student=Lightning(net=Lightning(encoder=m)), head=nn.Linear(2, 2)
    ).state_dict(),
    'average of torch': average_of_torch,
}


@pytest.mark.parametrize('kind', WRAPPED)
def test_a_network_wrapped_by_a_library_is_found(kind, first, tmp_path):
    stem, report = load(tmp_path, WRAPPED[kind](first))
    assert torch.equal(stem, timm_stem(first))
    assert report.fits


def test_a_compiled_network_is_found(first, tmp_path):
    """In one test: torch takes seconds to import its compiler."""
    for kind, wrap in COMPILED.items():
        content = wrap(first)
        assert any('_orig_mod' in name for name in content.get('model', content)), kind
        stem, report = load(tmp_path, content)
        assert torch.equal(stem, timm_stem(first)), kind


@pytest.mark.parametrize(
    'prefix',
    [
        *(
            'module.',
            'model.',
            'net.',
            'encoder.',
            'student.',
            'teacher.',
            'bottom_up.',
            'backbone.',
            'a.b.c.d.',
        ),
        *('student.backbone.', 'backbone.bottom_up.', 'module.model.', 'model.module.', 'backbone.0.body.'),
        *('module.encoder_q.', '_orig_mod.module.model.', 'trunk_0.', 'model.backbone.model.'),
    ],
)
def test_any_one_prefix_is_found_and_what_lies_outside_is_named(prefix, first, tmp_path):
    stem, report = load(tmp_path, {**below(prefix, first), 'neck.conv.weight': torch.ones(2)})
    assert torch.equal(stem, timm_stem(first))
    assert 'neck.conv.weight' in report.skipped
    assert f'outside {prefix.replace("_orig_mod.", "")}' in str(report)


@pytest.mark.parametrize(
    'library', ['timm', 'timm features', 'torchvision', 'torchvision detector', 'Hugging Face']
)
def test_the_prefix_is_found_whatever_the_format(library, tmp_path):
    import torchvision
    from torchvision.models._utils import IntermediateLayerGetter
    from torchvision.models.convnext import CNBlockConfig

    widths = (*SIZE['dims'], None)
    blocks = [CNBlockConfig(*row) for row in zip(SIZE['dims'], widths[1:], SIZE['depths'])]
    if library == 'timm':
        model, name = timm_network(3), 'stem.0.weight'
    elif library == 'timm features':  # what segmentation_models_pytorch has below encoder.model.
        model, name = timm_network(3, features_only=True), 'stem_0.weight'
    elif library == 'Hugging Face':
        transformers = pytest.importorskip('transformers')
        sizes = dict(depths=list(SIZE['depths']), hidden_sizes=list(SIZE['dims']), num_labels=5)
        model = transformers.ConvNextForImageClassification(transformers.ConvNextConfig(**sizes))
        name = 'convnext.embeddings.patch_embeddings.weight'
    else:
        model, name = torchvision.models.ConvNeXt(blocks, num_classes=5), 'features.0.0.weight'
        if library == 'torchvision detector':
            model, name = (
                IntermediateLayerGetter(model.features, {str(i): str(i) for i in (1, 3, 5, 7)}),
                '0.0.weight',
            )
    content = dict(state_dict={**below('encoder.model.', model), 'decoder.x.weight': torch.ones(1)})
    stem, report = load(tmp_path, content)
    assert torch.equal(stem, model.state_dict()[name])
    assert 'decoder.x.weight' in report.skipped


@pytest.mark.parametrize(
    ('one', 'other'),
    [
        ('student.backbone.', 'teacher.backbone.'),
        ('module.encoder_q.', 'module.encoder_k.'),
        ('online_network.', 'target_network.'),
        ('backbone.', 'teacher.backbone.'),
        ('model.student.', 'model.teacher.model.'),
    ],
)
def test_of_two_networks_that_fit_none_is_taken_but_by_name(one, other, first, second, tmp_path):
    content = dict(state_dict={**below(one, first), **below(other, second)})
    with pytest.raises(UserError) as error:
        load(tmp_path, content)
    text = str(error.value)
    assert '\n' not in text
    for prefix in (one, other):
        assert repr(prefix.removeprefix('module.')) in text
    assert '--pretrained-prefix' in text
    for prefix, model in ((one, first), (other, second)):
        for written in (prefix, prefix.strip('.'), f'state_dict.{prefix}'):
            stem, report = load(tmp_path, content, prefix=written)
            assert torch.equal(stem, timm_stem(model))
        assert f'outside {prefix.removeprefix("module.")}' in str(report)
        assert len(report.skipped) > len(first.state_dict())


@pytest.mark.parametrize(
    ('outer', 'inner'), [('', 'teacher.'), ('model.', 'model.momentum.'), ('a.b.', 'a.b.c.d.')]
)
def test_a_network_with_another_inside_is_one_of_two(outer, inner, first, second, tmp_path):
    """Nothing fits below the prefix of the outer one; the inner is still not the only one."""
    content = {**below(outer, first), **below(inner, second)}
    with pytest.raises(UserError, match='holds 2 networks that fit') as error:
        load(tmp_path, content)
    assert repr(outer) in str(error.value)
    assert repr(inner) in str(error.value)
    assert torch.equal(load(tmp_path, content, prefix=inner)[0], timm_stem(second))
    stem, report = load(tmp_path, content, prefix=outer)
    assert torch.equal(stem, timm_stem(first))
    if not outer:
        assert sum(name.startswith(inner) for name in report.skipped) == len(second.state_dict())


def test_an_average_inside_the_network_is_one_too(first, second, tmp_path):
    content = {**below('', first), **below('ema.', second)}
    assert torch.equal(load(tmp_path, content)[0], timm_stem(first))
    stem, report = load(tmp_path, content, weights='ema')
    assert torch.equal(stem, timm_stem(second))
    assert 'final weights' in report.left_out[0]


def test_of_several_networks_the_one_whose_shapes_fit_is_taken(first, tmp_path):
    import timm

    small = timm.create_model('convnext_tiny', num_classes=5, depths=(1, 1, 1, 1), dims=(4, 8, 12, 16))
    stem, _ = load(tmp_path, {**below('student.', small), **below('teacher.', first)})
    assert torch.equal(stem, timm_stem(first))


def test_where_nothing_fits_the_nearest_is_compared(first, tmp_path):
    weights = below('model.net.', first)
    del weights['model.net.stages.2.blocks.1.gamma']
    with pytest.raises(CheckpointMismatch) as error:
        load(tmp_path, weights)
    assert 'missing     1   stages.2.1.gamma' in str(error.value)
    assert "below 'model.net.'" in str(error.value)


def test_a_prefix_that_is_not_there_is_told_with_those_that_are(first, tmp_path):
    with pytest.raises(
        UserError, match="no tensor below the prefix 'techer'; networks lie below 'teacher.'"
    ) as error:
        load(tmp_path, below('teacher.', first), prefix='techer')
    assert '\n' not in str(error.value)


AVERAGES = {  # how trainings name final weights and average
    'timm': ('state_dict', 'state_dict_ema'),
    'official': ('model', 'model_ema'),
    'plain': ('model', 'ema'),
    'RT-DETR': ('model', 'ema.module'),
    'BasicSR': ('params', 'params_ema'),
    'long names': ('model_state_dict', 'ema_model_state_dict'),
    'ema_state_dict that nothing swapped': ('state_dict', 'ema_state_dict'),
    'net': ('net', 'net_ema'),
    'SWA': ('model', 'swa_model'),
    'Lightning 2.6': ('current_model_state', 'state_dict'),
}


@pytest.mark.parametrize('kind', AVERAGES)
@pytest.mark.parametrize('weights', ['final', 'ema'])
def test_final_weights_and_average_are_told_apart_and_the_other_is_named(
    kind, weights, first, second, tmp_path
):
    content = dict(epoch=3, optimizer=dict(state={}, param_groups=[]))
    for key, model in zip(AVERAGES[kind], (first, second)):
        outer, _, inner = key.partition('.')
        content[outer] = {inner: model.state_dict(), 'updates': 7} if inner else model.state_dict()
    stem, report = load(tmp_path, content, weights=weights)
    assert torch.equal(stem, timm_stem(dict(final=first, ema=second)[weights]))
    assert f'{weights} weights ->' in str(report)
    other = AVERAGES[kind][weights == 'final'].partition('.')[0]
    words = dict(final='moving average', ema='final weights')[weights]
    assert [line.startswith(f'{words} in {other!r}') for line in report.left_out] == [True]
    assert f'left out    1   {words}' in str(report)


def test_an_average_below_a_prefix_is_one_too(first, second, tmp_path):
    content = {**below('model.', first), **below('model_ema.', second)}
    stem, report = load(tmp_path, content)
    assert torch.equal(stem, timm_stem(first))
    assert report.left_out == ["moving average below 'model_ema.' (weights='ema')"]
    stem, report = load(tmp_path, content, weights='ema')
    assert torch.equal(stem, timm_stem(second))
    assert report.left_out == ["final weights below 'model.' (weights='final')"]


def test_timms_own_saver_writes_what_is_read(first, second, tmp_path):
    from timm.utils import CheckpointSaver, ModelEmaV3

    average = ModelEmaV3(first)
    average.module.load_state_dict(second.state_dict())
    optimizer = torch.optim.SGD(first.parameters(), 0.1)
    saver = CheckpointSaver(first, optimizer, model_ema=average, recovery_dir=str(tmp_path))
    saver.save_recovery(0, 0)
    file = next(tmp_path.glob('recovery*'))
    for weights, model in (('final', first), ('ema', second)):
        backbone = ours()
        report = load_checkpoint(backbone, file, weights=weights)
        assert torch.equal(backbone.state_dict()[STEM], timm_stem(model))
        assert len(report.left_out) == 1


@pytest.mark.parametrize(
    'wrapper',
    [
        'model_state_dict',
        'params',
        'net',
        'network',
        'weights',
        'state.model',
        'module',
        'checkpoint.model.backbone',
    ],
)
def test_whatever_the_wrapper_is_called(wrapper, first, tmp_path):
    content = first.state_dict()
    for key in reversed(wrapper.split('.')):
        content = {key: content, 'optimizer_state_dict': {'state': {}}, 'epoch': torch.tensor(3)}
    stem, _ = load(tmp_path, content)
    assert torch.equal(stem, timm_stem(first))


def test_two_wrappers_of_unknown_names_are_two_networks(first, second, tmp_path):
    content = dict(online=first.state_dict(), target=second.state_dict())
    with pytest.raises(UserError, match=r"below 'online\.', 'target\.'"):
        load(tmp_path, content)
    assert torch.equal(load(tmp_path, content, prefix='target')[0], timm_stem(second))


def test_dinos_teacher_is_taken_and_the_student_named(first, second, tmp_path):
    """The method evaluates and publishes the teacher."""
    content = dict(student=below('module.backbone.', second), teacher=below('backbone.', first), epoch=1)
    stem, report = load(tmp_path, content)
    assert torch.equal(stem, timm_stem(first))
    assert report.left_out == ["another network in 'student' (prefix='student')"]
    assert torch.equal(load(tmp_path, content, prefix='student')[0], timm_stem(second))


def test_an_average_that_is_not_there_is_not_made_up(first, tmp_path):
    for content in (first.state_dict(), dict(state_dict=below('model.', first))):
        with pytest.raises(UserError, match='holds no moving average'):
            load(tmp_path, content, weights='ema')


def test_arrays_of_numpy_are_tensors(first, tmp_path):
    stem, _ = load(tmp_path, {name: tensor.numpy() for name, tensor in first.state_dict().items()})
    assert torch.equal(stem, timm_stem(first))


@pytest.mark.parametrize(
    'content',
    [
        dict(optimizer=torch.optim.AdamW([nn.Parameter(torch.ones(2))]).state_dict(), epoch=3),
        torch.optim.AdamW([nn.Parameter(torch.ones(2))]).state_dict(),
        dict(optimizer_state_dict=torch.optim.SGD([nn.Parameter(torch.ones(2))], 1).state_dict()),
    ],
)
def test_the_state_of_an_optimizer_alone_is_named_as_that(content, tmp_path):
    with pytest.raises(UserError, match='holds the state of an optimizer and no weights') as error:
        load(tmp_path, content)
    assert '\n' not in str(error.value)


def test_a_classifier_and_a_detector_are_found_below_a_prefix_too(tmp_path):
    """``load_trained``, by which ``convnext test`` and ``load_from`` load."""
    torch.manual_seed(0)
    backbone = dict(type='convnext_backbone.ConvNeXt', **SIZE)
    source, model = (Classifier(backbone, 5) for _ in range(2))
    torch.save(dict(state_dict=below('model.', source)), tmp_path / 'a.pth')
    load_trained(model, read_checkpoint(tmp_path / 'a.pth'), tmp_path / 'a.pth')
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in source.state_dict().items())
    anything, again, other = (nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3)) for _ in range(3))
    torch.save({**below('student.', other), **below('teacher.', anything)}, tmp_path / 'b.pth')
    content = read_checkpoint(tmp_path / 'b.pth')
    with pytest.raises(UserError, match='holds 2 networks that fit Sequential'):
        load_trained(again, content, tmp_path / 'b.pth')
    load_trained(again, content, tmp_path / 'b.pth', prefix='teacher')
    assert torch.equal(again[0].weight, anything[0].weight)


def test_the_converter_and_create_model_take_a_whole_file_below_a_prefix(tmp_path):
    import timm

    model = timm.create_model('convnext_atto', num_classes=3)
    torch.save(dict(state_dict=below('model.', model)), tmp_path / 'a.ckpt')
    out = tool('convert').main([str(tmp_path / 'a.ckpt'), '--to', 'timm', '--out', str(tmp_path / 'b.pth')])
    model.load_state_dict(torch.load(out), strict=True)
    assert create_model('convnext_atto', pretrained=tmp_path / 'a.ckpt').head.out_features == 3


def test_the_option_goes_into_init_cfg_and_is_refused_where_nothing_reads_it(first, second, tmp_path):
    torch.save({**below('student.', first), **below('teacher.', second)}, tmp_path / 'a.pth')
    cfg = read_config('mask_rcnn_convnext_t')
    set_pretrained(cfg, str(tmp_path / 'a.pth'), None, 'teacher')
    init = cfg.model.backbone.init_cfg[0]
    assert init['prefix'] == 'teacher'
    model = ConvNeXt(**SIZE, init_cfg=init)
    model.init_weights()
    assert torch.equal(model.state_dict()[STEM], timm_stem(second))
    cfg.work_dir = str(tmp_path / 'w')
    with pytest.raises(UserError, match='--pretrained-prefix a: --pretrained none loads no weights'):
        set_pretrained(cfg, 'none', None, 'a')
    cfg.load_from = str(tmp_path / 'a.pth')
    with pytest.raises(UserError, match='--pretrained-prefix a: another checkpoint has all the weights'):
        start_from(cfg, None, None, None, 'a')


# The option of the commands


SEGMENTER = 'upernet_shapes'


@pytest.fixture(scope='module')
def pair(tmp_path_factory):
    """Student and teacher in one file, as semi-supervised trainings write them, and the teacher alone."""
    folder = tmp_path_factory.mktemp('pair')
    cfg = read_config(SEGMENTER)
    use_plain_batch_norm(cfg)
    drop_pretrained(cfg)
    init_default_scope('mmseg')
    torch.manual_seed(0)
    student, teacher = (MODELS.build(cfg.model) for _ in range(2))
    meta = dict(dataset_meta=dict(classes=['background', 'circle', 'cross', 'square', 'star', 'triangle']))
    content = {**below('student.', student), **below('teacher.', teacher), 'step': torch.ones(1)}
    torch.save(dict(state_dict=content, meta=meta), folder / 'pair.pth')
    torch.save(dict(state_dict=teacher.state_dict(), meta=meta), folder / 'teacher.pth')
    return folder


def published(file, options, shapes, folder):
    out = tool('publish').main([SEGMENTER, str(file), '--out', str(folder), *options])
    return torch.load(out)['state_dict']


def inferred(file, options, shapes, folder):
    arguments = [SEGMENTER, str(file), str(shapes / 'images/val'), '--out', str(folder), *options]
    tool('infer').main([*arguments, '--format', 'labels', '--device', 'cpu'])
    return {path.name: path.read_bytes() for path in (folder / 'labels').iterdir()}


def evaluated(file, options, shapes, folder):
    arguments = [SEGMENTER, str(file), '--data-root', str(shapes), '--work-dir', str(folder), *options]
    workers = ['test_dataloader.num_workers=0', 'test_dataloader.persistent_workers=False']
    # mmengine gives two runs of one name within a second the same log
    name = f'experiment_name=prefixes_{folder.name}'
    return tool('test').main([*arguments, '--device', 'cpu', '--cfg-options', *workers, name])


@pytest.mark.xdist_group('prefixes')
@pytest.mark.parametrize('result', [published, inferred, evaluated])
def test_commands_take_the_network_that_the_option_names(result, pair, shapes, tmp_path):
    for options, words in (
        ([], 'name one, by .* or by --prefix student.$'),
        (
            ['--prefix', 'techer'],
            "no tensor below the prefix 'techer'; networks lie below 'student.', 'teacher.'",
        ),
    ):
        with pytest.raises(UserError, match=words) as error:
            result(pair / 'pair.pth', options, shapes, tmp_path / 'none')
        assert '\n' not in str(error.value)
    alone = result(pair / 'teacher.pth', [], shapes, tmp_path / 'alone')
    for written in ('teacher', 'teacher.', 'state_dict.teacher.'):
        named = result(pair / 'pair.pth', ['--prefix', written], shapes, tmp_path / written)
        assert named.keys() == alone.keys()
        assert all(
            torch.equal(a, b) if torch.is_tensor(a) else a == b
            for a, b in zip(named.values(), alone.values())
        )
    with pytest.raises(UserError, match="no tensor below the prefix 'teacher'; its network has no prefix"):
        result(pair / 'teacher.pth', ['--prefix', 'teacher'], shapes, tmp_path / 'none')


def test_the_converter_takes_the_network_that_the_option_names(tmp_path):
    import timm

    one, other = (timm.create_model('convnext_atto', num_classes=3) for _ in range(2))
    torch.save({**below('online.', one), **below('target.', other)}, tmp_path / 'a.pth')
    torch.save({**below('backbone.', one), 'neck.conv.weight': torch.ones(1)}, tmp_path / 'b.pth')

    def convert(file: str, *options: str):
        arguments = [str(tmp_path / file), '--to', 'timm', '--out', str(tmp_path / 'o.pth'), *options]
        return torch.load(tool('convert').main(arguments))

    for file, options, words in (
        ('a.pth', [], 'by --prefix, which may be online. or target.$'),
        ('a.pth', ['--prefix', 'on'], "networks lie below 'online.', 'target.'$"),
        ('b.pth', [], 'neck.conv.weight: name the network to take by --prefix, which may be backbone.$'),
    ):
        with pytest.raises(UserError, match=words) as error:
            convert(file, *options)
        assert '\n' not in str(error.value)
    other.load_state_dict(convert('a.pth', '--prefix', 'target'), strict=True)
    (tmp_path / 'o.pth').unlink()
    one.load_state_dict(convert('b.pth', '--prefix', 'backbone.'), strict=True)


def test_the_state_of_a_training_is_no_network(first):
    """An optimizer whose state is kept by the names of the parameters has as many tensors as the network."""
    state = {name: {'exp_avg': tensor} for name, tensor in first.state_dict().items()}
    content = dict(net=first.state_dict(), optimizer=dict(state=state), callbacks={'a.b': torch.ones(1)})
    found = find_tensors(content, 'f')
    assert set(found.named) == set(first.state_dict())
    assert found.left_out == []
    assert tensors_of(dict(state_dict={'a.b': torch.ones(1)}, meta={'x.y': torch.ones(1)}), 'f').keys() == {
        'a.b'
    }
