"""Faster R-CNN with FPN on ConvNeXt-T: Mask R-CNN without its masks."""

_base_ = './mask_rcnn_convnext_t.py'

model = dict(
    type='FasterRCNN',
    data_preprocessor=dict(pad_mask=False),
    roi_head=dict(mask_roi_extractor=None, mask_head=None),
    train_cfg=dict(rcnn=dict(assigner=dict(match_low_quality=False))),
)
