"""Quantises an ONNX file: inputs and weights of convolutions and linear layers in 8 bits."""

import os
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

KINDS = ['Conv', 'MatMul', 'Gemm']


class _Images:
    """Gives images one after the other, as onnxruntime asks for them."""

    def __init__(self, name: str, images: Sequence[Tensor]):
        self.name, self.images = name, iter(images)

    def get_next(self) -> dict | None:
        """Return the next image by its name in the graph; ``None`` at the end."""
        image = next(self.images, None)
        return None if image is None else {self.name: image.numpy()}


def quantise(file: Path, name: str, images: Sequence[Tensor]) -> None:
    """Replace an ONNX file by its quantised form: the ranges of values are those met on ``images``.

    Weights have a scale for each channel. Proposals, boxes and suppression stay in float32.

    Args:
        name: of the input.
        images: (1, 3, H, W), normalised.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    CalibrationDataReader.register(_Images)
    draft = file.with_name(f'int8.{file.name}')
    quantize_static(
        str(file),
        str(draft),
        _Images(name, images),
        quant_format=QuantFormat.QDQ,
        op_types_to_quantize=KINDS,
        per_channel=True,
        activation_type=QuantType.QInt8,
        weight_type=QuantType.QInt8,
    )
    os.replace(draft, file)
