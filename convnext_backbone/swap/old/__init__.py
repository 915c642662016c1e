"""Translates the parts of a config of mmdet 2.x or mmseg 0.x: data, pipelines, schedule, run."""
