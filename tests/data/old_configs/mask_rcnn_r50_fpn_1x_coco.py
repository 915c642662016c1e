_base_ = ['./coco_instance.py', './schedule_1x.py', './det_runtime.py']
