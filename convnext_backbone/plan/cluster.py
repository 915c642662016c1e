"""Computes step time and hours of a data-parallel training on many GPUs, from what one of them measured."""

from dataclasses import dataclass

NODE = 8  # GPUs with fast links among them
NVLINK = 300e9  # bytes per second and GPU within a node, as a ring all-reduce gets them
INFINIBAND = 40e9  # between nodes: NDR, 400 Gb/s for each GPU, of which four fifths
BUCKET = 25 * 2**20  # bytes: DistributedDataParallel's default


@dataclass(frozen=True)
class Step:
    """Holds what one process measured of a step.

    Attributes:
        seconds: of a step, without communication.
        backward: seconds of it with which an all-reduce can overlap.
        gradient_bytes: of all trainable parameters.
        batch: images.
    """

    seconds: float
    backward: float
    gradient_bytes: int
    batch: int


@dataclass(frozen=True)
class Row:
    """Holds the training on a number of GPUs; ``reduce`` and ``exposed`` are seconds of a step."""

    gpus: int
    batch: int
    reduce: float
    exposed: float
    step: float
    steps: int
    hours: float
    efficiency: float


def reduce_seconds(size: float, gpus: int, link: float = INFINIBAND) -> float:
    """Return the seconds of a ring all-reduce: each GPU sends and receives 2 (n - 1) / n of the bytes.

    Args:
        size: bytes.
        gpus: of the ring; its slowest link decides.
        link: bytes per second and GPU between nodes.
    """
    return 2 * (gpus - 1) / gpus * size / (NVLINK if gpus <= NODE else link)


def estimate(step: Step, gpus: int, images: float, link: float = INFINIBAND) -> Row:
    """Return step time and hours on ``gpus`` with the same batch on each.

    All buckets but the last are reduced while the backward pass goes on, as far as it lasts.

    Args:
        step: what one GPU measured.
        gpus: processes.
        images: that the training sees in all: the number of steps shrinks with the batch of all GPUs.
        link: bytes per second and GPU between nodes.
    """
    whole = reduce_seconds(step.gradient_bytes, gpus, link)
    last = reduce_seconds(min(BUCKET, step.gradient_bytes), gpus, link)
    exposed = last + max(0.0, whole - last - step.backward)
    seconds, batch = step.seconds + exposed, step.batch * gpus
    steps = max(1, round(images / batch))
    return Row(gpus, batch, whole, exposed, seconds, steps, steps * seconds / 3600, step.seconds / seconds)
