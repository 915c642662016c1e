"""Every private name of another library that we rely on is there, with the signature we rely on.

An upgrade that removes or changes one fails here, in seconds, with its name. A private name that is used and
not listed here fails, too.
"""

import ast
import importlib
import inspect
import re

import pytest
import torch
import torchvision  # noqa: F401  its operators
from conftest import ROOT

import convnext_backbone.engine.runner  # noqa: F401  what it replaces is replaced before we look
from convnext_backbone.engine import CheckpointHook, EpochLoop, IterLoop, Runner
from convnext_backbone.ops.trial import EXPORTING

# Beside each private name: why there is no public way. What is public is here for its signature or its place.
FUNCTIONS = {  # dotted name: parameters
    # which files a config is read from, and what stands in them before it is evaluated
    'mmengine.config.Config._get_base_files': 'filename',
    'mmengine.config.Config._get_cfg_path': 'cfg_path filename',
    'mmengine.config.Config._is_lazy_import': 'filename',
    'mmengine.config.Config._substitute_predefined_vars': 'filename temp_config_name',
    'mmengine.config.Config._substitute_env_variables': 'filename temp_config_name',
    # the classes that a dataset would have, without its files
    'mmengine.dataset.BaseDataset._load_metainfo': 'metainfo',
    'mmengine.runner.checkpoint.CheckpointLoader.register_scheme': 'prefixes loader force',
    'mmengine.hooks.EMAHook.after_val_epoch': 'self runner metrics',
    'mmengine.optim.OptimWrapper.initialize_count_status': 'self model init_counts max_counts',
    'mmengine.dataset.InfiniteSampler.__init__': 'self dataset shuffle seed',
    'mmengine.runner.BaseLoop.__init__': 'self runner dataloader',
    # weights are set before a model is divided among processes, and not again
    'mmengine.runner.Runner._init_model_weights': 'self',
    # what mmseg's heads do before and after what we compute in their place
    'mmseg.models.decode_heads.decode_head.BaseDecodeHead._transform_inputs': 'self inputs',
    'mmseg.models.decode_heads.decode_head.BaseDecodeHead._stack_batch_gt': 'self batch_data_samples',
    # the store through which all processes met, whichever launcher made it: another would need a port
    'torch.distributed.distributed_c10d._get_default_store': '',
    # shared memory of a size, as torch's own collation makes it: share_memory_() would copy nothing into it
    'torch.UntypedStorage._new_shared': 'size device',
    'mmcv.utils.ext_loader.load_ext': 'name funcs',
    # whether a head predicts as the one whose prediction is written anew for an exported file
    'mmdet.models.roi_heads.bbox_heads.BBoxHead._predict_by_feat_single': (
        'self roi cls_score bbox_pred img_meta rescale rcnn_test_cfg'
    ),
}
OPERATORS = {  # of torch.ops: arguments
    # gradients without the forward pass, which autograd would compute again
    'torchvision._roi_align_backward': (
        'grad rois spatial_scale pooled_height pooled_width batch_size channels height width sampling_ratio '
        'aligned'
    ),
    'torchvision.roi_align': 'input rois spatial_scale pooled_height pooled_width sampling_ratio aligned',
    'torchvision.deform_conv2d': (
        'input weight offset mask bias stride_h stride_w pad_h pad_w dilation_h dilation_w groups '
        'offset_groups use_mask'
    ),
    'torchvision._deform_conv2d_backward': (
        'grad input weight offset mask bias stride_h stride_w pad_h pad_w dilation_h dilation_w groups '
        'offset_groups use_mask'
    ),
    # products of oneDNN with a weight that is packed once; tried before use, else F.linear
    'mkldnn._linear_pointwise': 'X W B attr scalars algorithm',
    'mkldnn._reorder_linear_weight': 'self batch_size',
}
VALUES = [  # dotted names that are read, or set
    'atexit._run_exitfuncs',  # called at Ctrl-C, before the process is left at once
    'mmengine.device.utils.DEVICE',
    'mmengine.model.BaseModule.is_init',
    'mmengine.runner.checkpoint.load_url',
    f'torch.compiler.{EXPORTING}',  # see there
    'torch.utils._python_dispatch._get_current_dispatch_mode',  # whether something watches operators
    'torch.autograd.forward_ad._current_level',  # a level may be active without a tangent at the input
    'timm.data.readers.reader_wds._decode',  # timm logs an image that cannot be read without its name
    'timm.data.readers.reader_wds.ReaderWds._lazy_init',  # where timm binds _decode
    'timm.data.IterableImageDataset',
]
ATTRIBUTES = {  # class: what its objects have, found in the text of its constructor
    # set by our loops, and by mmengine when it resumes
    'mmengine.runner.EpochBasedTrainLoop': '_iter _epoch dynamic_milestones dynamic_intervals',
    'mmengine.runner.IterBasedTrainLoop': '_iter _epoch dynamic_milestones dynamic_intervals',
    'mmengine.model.BaseModule': '_params_init_info',  # who initialised what, for mmengine's log
    'mmengine.hooks.CheckpointHook': (
        'key_indicators rules is_better_than greater_keys less_keys init_value_map filename_tmpl save_last'
    ),
    'mmengine.hooks.EarlyStoppingHook': 'wait_count best_score',
    'torch.utils.data.DataLoader': '_iterator',  # persistent_workers: the loader keeps dead processes
    'torch.nn.Module': '_forward_hooks _forward_pre_hooks',  # whether somebody watches a layer
    'mmengine.dataset.InfiniteSampler': 'indices size shuffle seed',
    'mmengine.logging.MMLogger': '_instance_dict',  # whether there is a log; asking for it makes one
}
# Listed by what they belong to, above; and those that a test cannot look up.
ELSEWHERE = {
    '_exit': 'os._exit, documented',
    '_replace': 'of a NamedTuple, documented',
    '_safe_torch_load': 'of the maintained builds, looked for before use',
}


def find(dotted: str):
    """The object a dotted name stands for."""
    parts = dotted.split('.')
    for length in range(len(parts), 0, -1):
        try:
            found = importlib.import_module('.'.join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for name in parts[length:]:
            found = getattr(found, name)
        return found
    raise AttributeError(dotted)


@pytest.mark.matrix
@pytest.mark.parametrize('dotted', FUNCTIONS)
def test_function_has_the_parameters_we_give(dotted):
    assert list(inspect.signature(find(dotted)).parameters) == FUNCTIONS[dotted].split()


@pytest.mark.matrix
@pytest.mark.parametrize('name', OPERATORS)
def test_operator_has_the_arguments_we_give(name):
    namespace, operator = name.split('.')
    schema = getattr(getattr(torch.ops, namespace), operator).default._schema
    assert [argument.name for argument in schema.arguments] == OPERATORS[name].split()


@pytest.mark.matrix
@pytest.mark.parametrize('dotted', VALUES)
def test_name_is_there(dotted):
    find(dotted)


@pytest.mark.matrix
@pytest.mark.parametrize('dotted', ATTRIBUTES)
def test_objects_have_the_attributes_we_read(dotted):
    source = inspect.getsource(find(dotted))
    for name in ATTRIBUTES[dotted].split():
        assert re.search(rf"\b{name}('|:| =|,)", source), f'{dotted} has no {name}'


@pytest.mark.matrix
@pytest.mark.parametrize('ours', [Runner, CheckpointHook, EpochLoop, IterLoop])
def test_a_method_that_we_override_takes_what_the_original_takes(ours):
    base = next(cls for cls in ours.__mro__ if cls.__module__.startswith('mmengine.'))
    for name, method in vars(ours).items():
        original = getattr(base, name, None)
        if name == '__init__' or not inspect.isfunction(method) or not callable(original):
            continue
        taken = inspect.signature(method).parameters
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in taken.values()):
            continue
        missing = [p for p in inspect.signature(original).parameters if p not in taken]
        assert missing == [], f'{base.__name__}.{name} takes {missing}, ours does not'


def test_no_other_private_name_is_used():
    used, own = {}, set()
    for file in (ROOT / 'convnext_backbone').rglob('*.py'):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                own.add(node.name)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                own.add(node.id)
            elif isinstance(node, ast.Attribute):
                if isinstance(node.ctx, ast.Store) and getattr(node.value, 'id', '') == 'self':
                    own.add(node.attr)
                if node.attr.startswith('_') and not node.attr.startswith('__'):
                    used.setdefault(node.attr, f'{file.relative_to(ROOT)}:{node.lineno}')
    listed = {dotted.split('.')[-1] for dotted in (*FUNCTIONS, *OPERATORS, *VALUES)}
    listed |= {name for names in ATTRIBUTES.values() for name in names.split()}
    unlisted = {name: place for name, place in used.items() if name not in own | listed | set(ELSEWHERE)}
    assert unlisted == {}
