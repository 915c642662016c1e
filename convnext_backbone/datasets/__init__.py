"""Reads annotations and masks truly: what stands in for the datasets and metrics of mmdet and mmseg."""
