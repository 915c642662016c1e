"""timm's image datasets for mmengine's data loaders."""

from PIL import Image
from timm.data import create_dataset, create_transform
from torch.utils.data import Dataset

from ..errors import UnreadableImage, UserError
from ..registry import DATASETS


@DATASETS.register_module()
class ImageDataset(Dataset):
    """One image and its label at a time, from anything timm reads.

    Args:
        data_root: folder that holds the splits.
        split: name of the split, as timm takes it; for folders ``train`` or ``val``.
        transform: arguments of ``timm.data.create_transform`` (``input_size``, ``is_training``, ...).
        name: kind of dataset in timm's naming; empty for folders and tar files.

    Items are ``dict(inputs=Tensor (3, H, W), labels=int)``; ``metainfo['classes']`` names the classes.

    Raises:
        UserError: nothing readable at ``data_root``.
        UnreadableImage: on taking an item whose file is no image.
    """

    def __init__(self, data_root: str, split: str, transform: dict, name: str = ''):
        transform = dict(transform)
        try:
            self._images = create_dataset(
                name, root=data_root, split=split, is_training=transform.get('is_training', False)
            )
        except (RuntimeError, OSError, AssertionError) as error:
            raise UserError(f'no images for split {split!r} at {data_root}: {error}') from error
        self._images.transform = create_transform(**transform)
        index = self._images.reader.class_to_idx
        self.metainfo = dict(classes=tuple(sorted(index, key=index.get)))

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict:
        stream, label = self._images.reader[index]
        try:
            image = Image.open(stream).convert('RGB')
        except (OSError, SyntaxError, ValueError) as error:  # timm would silently take the next one
            name = self._images.filename(index, absolute=True)
            raise UnreadableImage(
                f'{name} cannot be read as an image ({error}): replace or remove it'
            ) from error
        return dict(inputs=self._images.transform(image), labels=label)
