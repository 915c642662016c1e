"""ImageNet-1K, 384 x 384; tested on the whole image, squeezed to a square (paper, Table 6)."""

_base_ = './imagenet1k.py'

larger = dict(transform=dict(input_size=384))
train_dataloader = dict(batch_size=16, dataset=larger)
val_dataloader = dict(dataset=dict(transform=dict(input_size=384, crop_pct=1.0, crop_mode='squash')))
test_dataloader = val_dataloader
