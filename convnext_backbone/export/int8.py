"""Quantises an ONNX file: inputs and weights of convolutions and linear layers in 8 bits."""

import ast
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor

KINDS = ['Conv', 'MatMul', 'Gemm']
SCOPES = 'pkg.torch.onnx.name_scopes'  # by which PyTorch's exporter says which module a node comes from
LAST = re.compile(r'(_cls|_reg|_logits|_centerness|\.conv_seg|model\.head)$')  # what predicts, by its module


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

    Weights have a scale for each channel. The first convolution and the layers that predict keep float32:
    they are small, and most of the loss was theirs. So do proposals, boxes and suppression.

    Args:
        name: of the input.
        images: (1, 3, H, W), normalised.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    CalibrationDataReader.register(_Images)
    draft = file.with_name(f'int8.{file.name}')
    logging.disable(logging.WARNING)  # of a preparation that PyTorch's exporter has done
    try:
        quantize_static(
            str(file),
            str(draft),
            _Images(name, images),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=KINDS,
            nodes_to_exclude=list(_sensitive(file)),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        logging.disable(logging.NOTSET)
    os.replace(draft, file)


def _sensitive(file: Path) -> Iterator[str]:
    """Yield the names of the nodes that stay as they are."""
    import onnx

    nodes = [
        node
        for node in onnx.load(file, load_external_data=False).graph.node
        if node.op_type in KINDS and node.name
    ]
    for number, node in enumerate(nodes):
        scopes = {entry.key: entry.value for entry in node.metadata_props}.get(SCOPES, '[]')
        if number == 0 or any(LAST.search(scope) for scope in ast.literal_eval(scopes)):
            yield node.name
