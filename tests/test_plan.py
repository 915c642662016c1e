"""`convnext plan`: sizes, bytes and hours by hand, by other instruments, by the pipelines themselves."""

import json

import numpy as np
import pytest
import torch
from mmengine.dataset import Compose
from mmengine.registry import DefaultScope
from mmengine.runner import set_random_seed
from torch import nn
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from convnext_backbone import plan
from convnext_backbone.cli import run_command
from convnext_backbone.commands import plan as command
from convnext_backbone.config import dicts, read_config
from convnext_backbone.errors import UserError
from convnext_backbone.measure import build_model, building
from convnext_backbone.plan import steps
from convnext_backbone.plan.steps import LiveBytes, _Training, batch_of
from convnext_backbone.registry import type_name

DEMO = 'configs/demo/classifier_shapes.py'
DEPTHS, DIMS, CLASSES = (2, 2, 4, 2), (32, 64, 128, 256), 5  # of the demo's backbone


def in_float32(name: str, **options):
    cfg = read_config(name, options)
    cfg.optim_wrapper = dict(type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4))
    return cfg


# --- the largest image


SIZES = {  # height and width, and what a batch of mixed orientation is padded to
    'mask_rcnn_convnext_t_1x': ((800, 1344), None),  # 1333 x 800, next multiples of 32; batches of one kind
    'mask_rcnn_convnext_t': ((800, 1344), (1344, 1344)),  # a crop of a wide image may be upright
    'dino_convnext_t': ((800, 1344), (1344, 1344)),
    'mask_rcnn_convnext_v2_b': ((1024, 1024), None),
    'mask2former_convnext_t': ((1024, 1024), None),
    'rtmdet_convnext_t': ((640, 640), None),  # mosaic of 1280, enlarged to 2560, cropped
    'upernet_convnext_t': ((512, 512), None),
    'upernet_convnext_xl_in22k': ((640, 640), None),
    'camvid_small': ((240, 240), None),
    'convnext_t_in1k': ((224, 224), None),
    'convnext_b_in1k_384': ((384, 384), None),
    'mask_rcnn_shapes': ((128, 128), None),  # by the pipeline of the validation
}


@pytest.mark.parametrize('name', SIZES)
def test_largest_image_of_the_shipped_configs(name):
    largest = plan.largest_shape(read_config(name))
    assert (largest.size, largest.mixed) == SIZES[name]


def of_steps(*steps, base='mask_rcnn_convnext_t_1x', **preprocessor):
    cfg = read_config(base)
    cfg.train_dataloader.dataset.pipeline = list(steps)
    cfg.model.data_preprocessor.update(preprocessor)
    return plan.largest_shape(cfg).size


def test_steps_in_the_order_of_their_sides():
    resize = dict(type='Resize', scale=(640, 320), keep_ratio=False)  # width, height
    assert of_steps(resize) == (320, 640)
    assert of_steps(dict(type='RandomResize', scale=(320, 320), ratio_range=(0.5, 2.0), keep_ratio=True)) == (
        640,
        640,
    )
    assert of_steps(resize, dict(type='Pad', size=(704, 384))) == (384, 704)
    assert of_steps(resize, dict(type='RandomCrop', crop_size=(96, 160))) == (160, 96)  # mmdet: width, height
    crop = dict(type='RandomCrop', crop_size=(96, 160))  # mmseg: height, width
    assert of_steps(resize, crop, base='upernet_convnext_t', size=(96, 160)) == (96, 160)
    assert of_steps(dict(type='CachedMosaic', img_scale=(320, 160))) == (320, 640)
    assert of_steps(resize, pad_size_divisor=128) == (384, 640)
    nested = dict(type='RandomApply', transforms=[dict(type='Resize', scale=(1280, 1280))], prob=0.5)
    assert of_steps(resize, nested) == (1280, 1280)


@pytest.mark.parametrize('name', ['mask_rcnn_convnext_t', 'mask_rcnn_convnext_v2_b', 'upernet_convnext_t'])
def test_no_image_of_the_real_pipeline_is_larger(name):
    """Images of extreme sizes through the steps themselves; the largest comes near the bound."""
    cfg = read_config(name)
    largest = plan.largest_shape(cfg)
    height, width = largest.mixed or largest.size
    kinds = ('RandomChoice', 'Resize', 'RandomResize', 'RandomCrop')
    steps = [step for step in cfg.train_dataloader.dataset.pipeline if type_name(step) in kinds]
    image_of, seen = np.random.default_rng(0), []
    set_random_seed(0)  # of numpy's global numbers, which the steps take
    with building(cfg.default_scope, 'cpu'), DefaultScope.overwrite_default_scope(cfg.default_scope):
        pipeline = Compose(steps)
        for number in range(60):
            size = [(384, 640), (640, 384), (480, 640)][number % 3]
            image = image_of.integers(0, 255, (*size, 3), dtype=np.uint8)
            boxes = torch.tensor([[4.0, 4.0, size[1] - 4, size[0] - 4]])
            given = dict(
                img=image, img_shape=size, gt_seg_map=np.zeros(size, np.uint8), seg_fields=['gt_seg_map']
            )
            if cfg.default_scope == 'mmdet':
                from mmdet.structures.bbox import HorizontalBoxes

                given = dict(img=image, img_shape=size, gt_bboxes=HorizontalBoxes(boxes))
                given.update(gt_bboxes_labels=np.zeros(1, np.int64), gt_ignore_flags=np.zeros(1, bool))
            if (result := pipeline(given)) is not None:
                seen.append(result['img'].shape[:2])
    assert max(h for h, _ in seen) <= height and max(w for _, w in seen) <= width
    assert max(h * w for h, w in seen) > 0.85 * largest.size[0] * largest.size[1]
    assert max(min(size) for size in seen) <= min(largest.size)


# --- memory


def test_living_tensors_of_a_small_network_by_hand():
    """4 x 8 -> 16, ReLU, -> 2: the backward pass needs ReLU's output, once its input is there, too."""
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 2))
    x = torch.randn(4, 8)
    with plan.LiveBytes([*net.parameters(), x]) as live:
        out = net(x)
        assert live.now == 4 * (4 * 16 + 4 * 2)
        assert live.peak == 4 * (4 * 16 + 4 * 16)
        loss = out.sum()
        del out
        loss.backward()
        del loss
        assert live.now == 4 * (8 * 16 + 16 + 16 * 2 + 2)  # the gradients
    with plan.LiveBytes([*net.parameters(), x]) as live:
        out = checkpoint(net, x, use_reentrant=False)
        assert live.now == out.nbytes == 4 * 4 * 2  # ReLU's output is computed again


def saved_bytes(model, data) -> int:
    """Bytes that hooks of saved tensors see, without parameters."""
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        losses = model(**model.data_preprocessor(data, True), mode='loss')
        kept_now = sum(kept.values())
    del losses
    return kept_now


@pytest.fixture(scope='module')
def sheets():
    return {batch: plan.measure_steps(in_float32(DEMO), (64, 64), batch) for batch in (8, 16, 24)}


def test_bytes_of_a_classifier_by_hand(sheets):
    """Every layer's parameters; AdamW keeps two moments of each, and a count for each tensor."""
    stem = 3 * 32 * 16 + 32 + 2 * 32
    blocks = sum(
        n * ((49 + 1) * d + 2 * d + 4 * d * d + 4 * d + 4 * d * d + d + d) for n, d in zip(DEPTHS, DIMS)
    )
    down = sum(2 * a + 4 * a * b + b for a, b in zip(DIMS, DIMS[1:]))
    head = 2 * 256 + 256 * CLASSES + CLASSES
    parameters = stem + blocks + down + head
    tensors = 4 + 9 * sum(DEPTHS) + 4 * 3 + 4
    for sheet in sheets.values():
        assert sheet.trainable == parameters
        assert sheet.weights == sheet.gradients == 4 * parameters
        assert sheet.state == 8 * parameters + 4 * tensors


def test_kept_activations_are_those_that_hooks_of_saved_tensors_see(sheets):
    cfg = in_float32(DEMO)
    with building(cfg.default_scope, 'cpu'):
        model = build_model(cfg, 'cpu').train()
        seen = saved_bytes(model, batch_of(cfg, (64, 64), 16))
    assert sum(sheets[16].kept.values()) == pytest.approx(seen, rel=0.001)


def test_memory_is_a_line_in_the_batch(sheets):
    line = plan.Line.through(8, sheets[8].peak, 16, sheets[16].peak)
    assert line(24) == pytest.approx(sheets[24].peak, rel=0.02)
    assert plan.Line(10.0, 2.0).largest(100 / (1 - plan.MARGIN)) == 45
    assert plan.Line(10.0, 2.0).largest(100 / (1 - plan.MARGIN), step=2) == 44
    assert plan.Line(10.0, 2.0).largest(5) == 0


def test_the_process_needs_what_the_tensors_need(sheets):
    """The C library keeps freed blocks for later, so that the process is larger, never much smaller."""
    for sheet in sheets.values():
        assert sheet.measured, 'this machine cannot measure the memory of a process'
        assert -0.45 < sheet.error < 0.1
        assert 0 < sheet.forward < sheet.seconds and 0 < sheet.backward < sheet.seconds


def test_accumulated_gradients_live_through_the_forward_pass(sheets):
    twice = plan.measure_steps(in_float32(DEMO), (64, 64), 16, counts=4, timed=False)
    assert twice.kept == sheets[16].kept
    assert twice.growth - sheets[16].growth > 0.5 * sheets[16].gradients


@pytest.mark.slow
def test_kept_activations_are_those_of_one_step():
    cfg = in_float32('configs/demo/upernet_shapes.py')

    once, twice = (plan.measure_steps(cfg, (128, 128), 2, counts=n, timed=False).kept for n in (1, 2))
    assert once['heads'] - twice['heads'] < 2**15  # matrices that the first step makes for all
    assert {**once, 'heads': 0} == {**twice, 'heads': 0} and twice['heads'] > 2**22


def test_the_first_update_tells_what_later_ones_need():
    """It makes the optimizer's state at its end; a small batch, of which the update is the highest point."""
    cfg = in_float32(DEMO)
    with building(cfg.default_scope, 'cpu'):
        training = _Training(cfg, (64, 64), 2, 1, 'cpu')
        first, second = training.watch(), training.watch()
    assert first['growth'] == pytest.approx(second['growth'], rel=0.001)
    assert first['growth'] > first['gradients'] and first['state'] == second['state']


def test_a_step_that_does_not_fit_is_one_line():
    with pytest.raises(UserError, match=r'64 images of 64 x 64 \(height x width\) does not fit: 0.0 GiB are'):
        plan.measure_steps(in_float32(DEMO), (64, 64), 64, limit=40 * 2**20)


def test_heads_train_on_as_many_regions_as_their_samplers_take():
    cfg = read_config('mask_rcnn_convnext_t')  # 512 regions, a quarter of them positive
    data = batch_of(cfg, (64, 96), 1)
    assert data['inputs'][0].shape == (3, 64, 96)
    objects = data['data_samples'][0].gt_instances
    assert len(objects) == 128 and objects.masks.masks.shape == (128, 64, 96)
    assert objects.bboxes[:, 2].max() <= 96 and objects.bboxes[:, 3].max() <= 64


def test_search_finds_the_largest_that_fits():
    for most in (0, 1, 2, 3, 7, 8, 100):
        tried = []
        assert plan.search(lambda n, most=most, tried=tried: tried.append(n) or n <= most) == most
        assert len(tried) <= 2 * most.bit_length() + 1


class SmallDevice(LiveBytes):
    """A device whose allocator refuses what goes beyond its memory, as CUDA's does."""

    most = 0

    def _note(self, tensor, size=None):
        super()._note(tensor, size)
        if self.now > self.most:
            raise torch.OutOfMemoryError('CUDA out of memory.')


@pytest.mark.parametrize(('step', 'expected'), [(1, (21, 22)), (4, (20,))])
def test_the_search_on_a_gpu_finds_the_batch_that_its_memory_holds(sheets, monkeypatch, step, expected):
    """With a stand-in for the GPU: the answer is that of the line through two measured batches."""
    cfg = in_float32(DEMO)

    class Training(steps._Training):
        def __init__(self, cfg, size, batch, counts, device):
            assert device == 'cuda'
            super().__init__(cfg, size, batch, counts, 'cpu')

        def update(self, at=lambda what: None):
            known = [
                *self.own,
                *self.state,
                *(t for t in tree_leaves(self.data) if isinstance(t, torch.Tensor)),
            ]
            known += [p.grad for p in self.own if p.grad is not None]
            device = SmallDevice([])
            for tensor in known:
                device._note(tensor)
            with device:
                super().update(at)

    shares = []
    monkeypatch.setattr(steps, '_Training', Training)
    monkeypatch.setattr(steps, 'building', lambda scope, device: building(scope, 'cpu'))
    monkeypatch.setattr(torch.cuda, 'set_per_process_memory_fraction', shares.append)
    line = plan.Line.through(8, sheets[8].peak, 24, sheets[24].peak)
    monkeypatch.setattr(SmallDevice, 'most', line(22))
    assert steps._search(cfg, (64, 64), 1, step) in expected
    assert shares == [1 - plan.MARGIN]
    monkeypatch.setattr(SmallDevice, 'most', 10_000)
    assert steps._search(cfg, (64, 64), 1, step) == 0


def test_batches_that_are_measured():
    assert plan.batches(2, (800, 1344)) == (2, 1)
    assert plan.batches(1, (800, 1344)) == (1, 2)
    assert plan.batches(128, (224, 224), step=2) == (42, 20)  # 2,200,000 / 224 / 224 = 43.8
    assert plan.batches(1, (800, 1344), least=2) == (2, 4)
    assert plan.batches(2, (64, 64), step=2) == (2, 4)
    assert plan.least_batch(read_config('upernet_convnext_t')) == 2  # SyncBN
    assert plan.least_batch(read_config('mask_rcnn_convnext_v2_b')) == 1


def test_changes_reach_the_preprocessor():
    cfg = read_config('upernet_convnext_t')
    found = {name: (changed, size) for name, changed, size in plan.variants(cfg, (512, 512), 'cpu')}
    assert len(found) == 2
    changed, size = found['images of 384 x 384 (scale 0.75)']
    assert size == changed.model.data_preprocessor.size == (384, 384)
    assert found['model.backbone.with_cp=True'][0].model.backbone.with_cp
    assert not cfg.model.backbone.get('with_cp')


# --- time and disk


def test_many_gpus_by_hand():
    """0.5 s per step, 0.3 of it backward, 120 MB of gradients, 2 images; 36 epochs of 117,266."""
    step = plan.Step(0.5, 0.3, 120_000_000, 2)
    assert plan.reduce_seconds(120e6, 8) == pytest.approx(2 * 7 / 8 * 120e6 / 300e9)
    assert plan.reduce_seconds(120e6, 16) == pytest.approx(2 * 15 / 16 * 120e6 / 40e9)
    assert plan.reduce_seconds(120e6, 1) == 0
    row = plan.estimate(step, 16, 36 * 117_266)
    last = 2 * 15 / 16 * 25 * 2**20 / 40e9
    assert (row.batch, row.steps) == (32, round(36 * 117_266 / 32))
    assert row.exposed == pytest.approx(last)  # 5.6 ms in all, the rest hides behind 300 ms
    assert row.step == pytest.approx(0.5 + last)
    assert row.hours == pytest.approx(row.steps * row.step / 3600)
    assert row.efficiency == pytest.approx(0.5 / (0.5 + last))
    slow = plan.estimate(step, 16, 36 * 117_266, link=0.25e9)  # 2 Gb/s: 0.9 s, of which 0.3 hide
    assert slow.exposed == pytest.approx(2 * 15 / 16 * 120e6 / 0.25e9 - 0.3)
    assert plan.estimate(step, 1, 1000).step == 0.5


def test_length_of_the_recipes_without_their_data():
    length = plan.length_of(read_config('mask_rcnn_convnext_t'), 2, 8)
    assert (length.images, length.epochs, length.recipe_batch, length.counts) == (117_266, 36, 16, 1)
    assert length.seen(16) == 36 * 117_266
    length = plan.length_of(read_config('upernet_convnext_t'), 2, 8)
    assert (length.images, length.iterations) == (20_210, 160_000)
    assert length.seen(16) == 160_000 * 16
    length = plan.length_of(read_config('convnext_t_in1k'), 128, 8)
    assert (length.images, length.epochs, length.counts) == (1_281_167, 300, 4)


def test_length_of_data_that_is_there(shapes):
    cfg = read_config('configs/demo/classifier_shapes.py')
    cfg.train_dataloader.dataset.data_root = str(shapes / 'classification')
    length = plan.length_of(cfg, 4, 1)
    assert (length.images, length.source) == (40, 'counted in the data')


def test_disk_by_hand():
    cfg = read_config('convnext_t_in1k')  # a moving average, three checkpoints, one each epoch
    length = plan.length_of(cfg, 128, 8)
    cfg.default_hooks.checkpoint.save_best = 'auto'
    disk = plan.disk_of(cfg, length, 100, 200)
    assert (disk.regular, disk.best, disk.kept, disk.bests) == (400, 200, 3, 1)
    assert disk.bytes == 4 * 400 + 2 * 200
    cfg.default_hooks.checkpoint.update(max_keep_ckpts=-1, interval=7)
    assert plan.disk_of(cfg, length, 100, 200).kept == 43  # of 300 epochs


# --- the command


def test_the_command(capsys, tmp_path):
    run_command('plan', 'configs/demo/upernet_shapes.py', '--gpus', '4', '--out', str(tmp_path / 'plans'))
    printed = capsys.readouterr().out
    for title in (
        'Memory with 8 images',
        'Largest batch: ',
        'Time, ',
        'Disk: ',
        'What would help',
        'Many GPUs',
    ):
        assert f'\n{title}' in printed
    assert '8 images of 128 x 128' in printed and 'the process that made it grew by' in printed
    found = json.loads((tmp_path / 'plans' / 'plan.json').read_text())
    assert [row['gpus'] for row in found['cluster']] == [4, 8, 16, 32, 64, 128, 256, 512]
    assert found['cluster'][0]['steps'] == 1000
    assert (
        found['changes'][0]['change'] == 'model.backbone.with_cp=True' and found['changes'][0]['memory'] < 0
    )
    assert all(value > 0 for key, value in found['measured']['kept'].items() if key != 'neck')


def test_a_detector_is_measured_by_part():
    sheet = plan.measure_steps(in_float32('configs/demo/mask_rcnn_shapes.py'), (64, 96), 2, timed=False)
    assert all(size > 0 for size in sheet.kept.values())
    assert sheet.peak > sheet.weights + sheet.state + sum(sheet.kept.values())


def refused(*words: str) -> str:
    with pytest.raises(UserError) as error:
        command.main(list(words))
    assert '\n' not in str(error.value)
    return str(error.value)


def test_bad_input_is_one_line(tmp_path):
    assert refused(DEMO, '--batch', '0') == '--batch is a number above 0, got 0'
    assert refused(DEMO, '--gpus', '-1') == '--gpus is a number above 0, got -1'
    assert refused(DEMO, '--shape', '0', '8') == '--shape is height and width in pixels, got 0 8'
    file = tmp_path / 'model.py'
    file.write_text("model = dict(type='convnext_backbone.ConvNeXt', arch='tiny')\n")
    assert 'has no train_dataloader, train_cfg, optim_wrapper: a plan is for' in refused(str(file))
    cfg = read_config('mask_rcnn_convnext_t_1x')
    del cfg.train_dataloader.dataset['pipeline']
    with pytest.raises(UserError, match='has no train_dataloader.dataset.pipeline'):
        plan.largest_shape(cfg)
    cfg = read_config('mask_rcnn_convnext_t_1x')
    for node in dicts([cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader]):
        if type_name(node) == 'Resize':
            node['type'] = 'RandomFlip'
    with pytest.raises(UserError, match='give --shape HEIGHT WIDTH'):
        plan.largest_shape(cfg)
    assert plan.largest_shape(cfg, (600, 1000)).size == (608, 1024)
