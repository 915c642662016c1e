"""Labels of every format are read into the same structure, or the error says where they are broken.

The sets are written here by hand; what is read is compared with them, and with labelformat and globox.
"""

import base64
import io
import json
import shutil
from pathlib import Path
from xml.etree import ElementTree

import globox
import numpy as np
import pytest
from labelformat.formats import (
    COCOInstanceSegmentationInput,
    COCOObjectDetectionInput,
    CVATObjectDetectionInput,
    CVATObjectDetectionOutput,
    PascalVOCObjectDetectionInput,
    PascalVOCObjectDetectionOutput,
    YOLOv8InstanceSegmentationInput,
    YOLOv8ObjectDetectionInput,
    YOLOv8ObjectDetectionOutput,
)
from PIL import Image

from convnext_backbone.classification.data import ImageDataset
from convnext_backbone.datasets import improve, near
from convnext_backbone.datasets.masks import read_mask
from convnext_backbone.errors import UserError
from convnext_backbone.labels import (
    RunLengths,
    read_labels,
    recognise,
    split,
    write_coco,
    write_lists,
    write_masks,
)

NAMES = ('zebra', 'ant', 'Cat')  # in the order of numbers of YOLO and COCO, which is not that of the alphabet
SORTED = ('Cat', 'ant', 'zebra')


def make_image(file: Path, size=(97, 61), seed: int = 0, **options) -> None:
    """A picture that is like no other: coarse noise."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC).save(file, **options)


def make_truth(count: int = 14, seed: int = 1) -> dict[str, tuple]:
    """Name -> (split, size, objects), each object (name of the class, polygon of whole numbers)."""
    random = np.random.default_rng(seed)
    truth = {}
    for number in range(count):
        size = [(97, 61), (64, 120), (333, 251)][number % 3]
        objects = []
        for _ in range(0 if number == 3 else random.integers(1, 4)):
            x, y = random.integers(0, size[0] - 20), random.integers(0, size[1] - 20)
            w, h = random.integers(5, 20, 2)
            polygon = [x, y, x + w, y + 1, x + w - 2, y + h, x + 1, y + h - 1]
            objects.append((NAMES[random.integers(len(NAMES))], [int(v) for v in polygon]))
        split = 'val' if number % 4 == 2 else 'train'
        truth[f'{("b", "a b ", " ", "ü", "c")[number % 5]}{number:02}.jpg'] = (split, size, objects)
    return truth


TRUTH = make_truth()


def box_of(polygon: list[int]) -> tuple:
    return min(polygon[::2]), min(polygon[1::2]), max(polygon[::2]), max(polygon[1::2])


def put_images(root: Path, place: str, truth=TRUTH) -> None:
    for seed, (name, (part, size, _)) in enumerate(truth.items()):
        make_image(root / place.format(split=part) / name, size, seed)


def as_coco(root: Path, truth=TRUTH, polygons=False, file='annotations/{split}.json', images='{split}'):
    put_images(root, images, truth)
    for part in ('train', 'val'):
        content = dict(images=[], annotations=[], categories=[])
        content['categories'] = [dict(id=7 + 2 * i, name=name) for i, name in enumerate(NAMES)]
        for name in sorted(truth):
            own, (width, height), objects = truth[name]
            if own != part:
                continue
            number = 100 - len(content['images'])
            content['images'].append(dict(id=number, file_name=name, width=width, height=height))
            for label, polygon in objects:
                x1, y1, x2, y2 = box_of(polygon)
                record = dict(
                    id=len(content['annotations']), image_id=number, category_id=7 + 2 * NAMES.index(label)
                )
                record.update(bbox=[x1, y1, x2 - x1, y2 - y1], iscrowd=0)
                record.update(segmentation=[polygon] if polygons else [])
                content['annotations'].append(record)
        target = root / file.format(split=part)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(json.dumps(content))
    return root


def as_yolo(root: Path, truth=TRUTH, polygons=False, digits=6, newline='\n', bom=''):
    put_images(root, 'images/{split}', truth)
    for name, (part, (width, height), objects) in truth.items():
        lines = []
        for label, polygon in objects:
            x1, y1, x2, y2 = box_of(polygon)
            values = [(x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height]
            if polygons:
                values = [v / (height if i % 2 else width) for i, v in enumerate(polygon)]
            lines.append(' '.join([str(NAMES.index(label)), *(f'{v:.{digits}f}' for v in values)]))
        file = (root / 'labels' / part / name).with_suffix('.txt')
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes((bom + newline.join([*lines, ''])).encode())
    (root / 'data.yaml').write_text(
        f'path: .\ntrain: images/train\nval: images/val\nnc: {len(NAMES)}\nnames: {list(NAMES)}\n'
    )
    return root


def as_voc(root: Path, truth=TRUTH, lists=True):
    put_images(root, 'JPEGImages' if lists else '{split}', truth)
    for name, (part, (width, height), objects) in truth.items():
        node = ElementTree.Element('annotation')
        ElementTree.SubElement(node, 'filename').text = name
        size = ElementTree.SubElement(node, 'size')
        for key, value in dict(width=width, height=height, depth=3).items():
            ElementTree.SubElement(size, key).text = str(value)
        for label, polygon in objects:
            item = ElementTree.SubElement(node, 'object')
            ElementTree.SubElement(item, 'name').text = label
            ElementTree.SubElement(item, 'difficult').text = '0'
            corners = ElementTree.SubElement(item, 'bndbox')
            for key, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), box_of(polygon)):
                ElementTree.SubElement(corners, key).text = str(value)
        file = (root / ('Annotations' if lists else part) / name).with_suffix('.xml')
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(ElementTree.tostring(node, 'utf-8'))
    for part in ('train', 'val') if lists else ():
        file = root / 'ImageSets' / 'Main' / f'{part}.txt'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(''.join(f'{Path(n).stem}\n' for n, t in truth.items() if t[0] == part))
    return root


def as_labelme(root: Path, truth=TRUTH, polygons=True):
    put_images(root, '{split}', truth)
    for name, (part, (width, height), objects) in truth.items():
        shapes = []
        for label, polygon in objects:
            points = np.array(polygon if polygons else box_of(polygon), float).reshape(-1, 2).tolist()
            shapes.append(dict(label=label, points=points, shape_type='polygon' if polygons else 'rectangle'))
        content = dict(version='5.4.1', flags={}, shapes=shapes, imagePath=name, imageData=None)
        content.update(imageHeight=height, imageWidth=width)
        (root / part / name).with_suffix('.json').write_text(json.dumps(content))
    return root


def as_cvat(root: Path, truth=TRUTH, polygons=True):
    put_images(root, 'images', truth)
    node = ElementTree.Element('annotations')
    labels = ElementTree.SubElement(
        ElementTree.SubElement(ElementTree.SubElement(node, 'meta'), 'task'), 'labels'
    )
    for label in NAMES:
        ElementTree.SubElement(ElementTree.SubElement(labels, 'label'), 'name').text = label
    for number, (name, (part, (width, height), objects)) in enumerate(truth.items()):
        image = dict(id=str(number), name=name, subset=part.title(), width=str(width), height=str(height))
        image = ElementTree.SubElement(node, 'image', image)
        for label, polygon in objects:
            if polygons:
                pairs = np.array(polygon).reshape(-1, 2)
                ElementTree.SubElement(
                    image, 'polygon', label=label, points=';'.join(f'{x}.00,{y}' for x, y in pairs)
                )
            else:
                corners = dict(zip(('xtl', 'ytl', 'xbr', 'ybr'), map(str, box_of(polygon))))
                ElementTree.SubElement(image, 'box', label=label, **corners)
    (root / 'annotations.xml').write_bytes(ElementTree.tostring(node, 'utf-8'))
    return root


WRITERS = {
    'coco': as_coco,
    'yolo': as_yolo,
    'voc': as_voc,
    'labelme': as_labelme,
    'cvat': as_cvat,
}


def plain(labels, masks: bool = False) -> dict:
    """Split -> name of the image -> size and objects, in names of classes."""
    found = {}
    for part, samples in labels.splits.items():
        found[part] = {}
        for sample in samples:
            objects = [
                (labels.classes[o.label], o.box, *((o.mask,) if masks else ())) for o in sample.objects
            ]
            found[part][sample.image.name] = (sample.width, sample.height, objects)
    return found


def expected(truth=TRUTH, masks: bool = False) -> dict:
    found = {'train': {}, 'val': {}}
    for name in sorted(truth):
        part, size, objects = truth[name]
        given = [(label, box_of(p), *(((tuple(p),),) if masks else ())) for label, p in objects]
        found[part][name] = (*size, given)
    return found


def error(folder: Path, **options) -> str:
    with pytest.raises(UserError) as caught:
        read_labels(folder, **options)
    text = str(caught.value)
    assert '\n' not in text
    return text


def snapshot(root: Path) -> dict:
    return {str(p): (p.stat().st_mtime_ns, p.is_file() and p.read_bytes()) for p in sorted(root.rglob('*'))}


# -- every format ------------------------------------------------------


@pytest.mark.parametrize('name', WRITERS)
def test_boxes_are_read_as_they_were_written(name, tmp_path):
    options = {} if name in ('coco', 'yolo', 'voc') else dict(polygons=False)
    root = WRITERS[name](tmp_path / 'a set', **options)
    before = snapshot(root)
    labels = read_labels(root)
    assert recognise(root) == labels.format == name
    assert (labels.task, labels.classes, labels.given) == ('boxes', SORTED, True)
    assert plain(labels) == expected()
    assert [list(part) for part in plain(labels).values()] == [list(part) for part in expected().values()]
    write_coco(labels, tmp_path / 'out')
    assert snapshot(root) == before
    assert any(note.startswith('1 of 14 images have no object') for note in labels.notes)


@pytest.mark.parametrize('name', ['coco', 'yolo', 'labelme', 'cvat'])
def test_outlines_are_read_as_they_were_written(name, tmp_path):
    labels = read_labels(WRITERS[name](tmp_path, polygons=True))
    assert labels.task == 'segments'
    assert plain(labels, masks=True) == expected(masks=True)


def test_copies_of_one_set_give_the_same_files(tmp_path):
    """Training gets the very same numbers, with splits stated or drawn, from all formats."""
    written = {}
    for name in WRITERS:
        options = {} if name in ('coco', 'yolo', 'voc') else dict(polygons=False)
        root = WRITERS[name](tmp_path / name, **options)
        labels = read_labels(root)
        labels = type(labels)(**{**vars(labels), 'files': {}})
        written[name] = [
            s.ann_file.read_bytes() for s in write_coco(labels, tmp_path / f'{name}_out').values()
        ]
    assert len({tuple(files) for files in written.values()}) == 1
    content = json.loads(written['voc'][0])
    assert [c['name'] for c in content['categories']] == list(SORTED)
    assert [c['id'] for c in content['categories']] == [1, 2, 3]
    assert [a['id'] for a in content['annotations']] == list(range(1, len(content['annotations']) + 1))


def test_a_drawn_split_does_not_depend_on_the_format(tmp_path):
    one = {name: ('', size, objects) for name, (_, size, objects) in TRUTH.items()}
    as_voc(tmp_path / 'voc', one, lists=False)
    as_yolo(tmp_path / 'yolo', one)
    (tmp_path / 'yolo' / 'data.yaml').unlink()
    (tmp_path / 'yolo' / 'classes.txt').write_bytes('\r\n'.join(NAMES).encode())
    files = {}
    for name in ('voc', 'yolo'):
        labels = read_labels(tmp_path / name, seed=3)
        files[name] = [s.ann_file.read_bytes() for s in write_coco(labels, tmp_path / 'out' / name).values()]
        assert not labels.given and list(labels.splits) == ['train', 'val']
        assert read_labels(tmp_path / name, seed=3) == labels
    assert files['voc'] == files['yolo']
    other = read_labels(tmp_path / 'voc', seed=4)
    assert [s.image for s in other.splits['val']] != [s.image for s in labels.splits['val']]
    assert list(read_labels(tmp_path / 'voc', split=0).splits) == ['']


def test_a_coco_file_is_used_where_it_lies_if_a_dataset_reads_the_same_from_it(tmp_path):
    root = as_coco(tmp_path / 'set')
    found = write_coco(read_labels(root), tmp_path / 'out')
    assert found['val'].ann_file == root / 'annotations' / 'val.json'
    assert found['val'].image_folder == root / 'val' and not found['val'].written
    assert not (tmp_path / 'out').exists()
    file = root / 'annotations' / 'train.json'
    content = json.loads(file.read_text())
    content['images'].reverse()  # another order of the images is another training
    file.write_text(json.dumps(content))
    found = write_coco(read_labels(root), tmp_path / 'out')
    assert [found['train'].written, found['val'].written] == [True, False]
    rewritten = json.loads(found['train'].ann_file.read_text())
    assert [i['file_name'] for i in rewritten['images']] == sorted(i['file_name'] for i in content['images'])


def test_a_detector_is_given_the_very_same_from_every_format(tmp_path):
    """From the file where it lies, from one that was written: images, boxes and labels in the same order."""
    from mmdet.datasets import CocoDataset

    seen = {}
    for name in ('coco', 'yolo', 'voc'):
        root = WRITERS[name](tmp_path / name)
        if name == 'coco':
            for file in root.rglob('*.json'):
                content = json.loads(file.read_text())
                content['categories'].reverse()
                file.write_text(json.dumps(content))
        labels = read_labels(root)
        own = write_coco(labels, tmp_path / 'out' / name)['train']
        assert own.written == (name != 'coco')
        dataset = improve(CocoDataset)(
            ann_file=str(own.ann_file),
            data_prefix=dict(img=str(own.image_folder)),
            metainfo=dict(classes=labels.classes),
        )
        seen[name] = []
        for info in (dataset.get_data_info(i) for i in range(len(dataset))):
            objects = [(o['bbox'], o['bbox_label'], o['ignore_flag']) for o in info['instances']]
            seen[name].append((Path(info['img_path']).name, info['width'], info['height'], objects))
    assert seen['coco'] == seen['yolo'] == seen['voc'] and len(seen['coco']) == len(expected()['train'])


def test_coco_written_here_is_read_by_pycocotools_and_again(tmp_path):
    from pycocotools.coco import COCO

    labels = read_labels(as_yolo(tmp_path / 'set', polygons=True))
    found = write_coco(labels, tmp_path / 'out')
    for own in found.values():
        api = COCO(str(own.ann_file))
        for image in api.loadImgs(api.getImgIds()):
            assert (own.image_folder / image['file_name']).is_file()
            for item in api.loadAnns(api.getAnnIds(image['id'])):
                assert item['area'] == pytest.approx(int(api.annToMask(item).sum()), rel=0.2)
    for part in found:
        shutil.copy(found[part].ann_file, tmp_path / 'set' / f'{part}.json')
    again = read_labels(tmp_path / 'set', format='coco')
    assert plain(again, masks=True) == plain(labels, masks=True)
    assert again.files.keys() == {'train', 'val'}


def test_nothing_is_written_into_the_folder_of_the_labels(tmp_path):
    root = as_voc(tmp_path / 'set')
    with pytest.raises(UserError, match='where nothing is written'):
        write_coco(read_labels(root), root / 'coco')


# -- the same by other libraries -----------------------------------------


def of_labelformat(reader) -> dict:
    found = {}
    for label in reader.get_labels():
        boxes = [(o.category.name, (o.box.xmin, o.box.ymin, o.box.xmax, o.box.ymax)) for o in label.objects]
        found[Path(label.image.filename).name] = (label.image.width, label.image.height, boxes)
    return found


def same(ours: dict, theirs: dict, tolerance: float = 0.005) -> None:
    assert ours.keys() == theirs.keys() and len(ours) > 2
    for name, (width, height, objects) in ours.items():
        their_width, their_height, their_objects = theirs[name]
        assert (width, height) == (their_width, their_height)
        assert [label for label, _ in objects] == [label for label, _ in their_objects]
        mine, other = ([box for _, box in given] for given in (objects, their_objects))
        assert np.allclose(mine, other, atol=tolerance)


def test_boxes_are_those_that_labelformat_reads(tmp_path):
    roots = {n: WRITERS[n](tmp_path / n) for n in ('coco', 'yolo', 'voc')}
    roots['cvat'] = as_cvat(tmp_path / 'cvat', polygons=False)
    ours = {name: plain(read_labels(root)) for name, root in roots.items()}
    coco = COCOObjectDetectionInput(roots['coco'] / 'annotations' / 'train.json')
    same(ours['coco']['train'], of_labelformat(coco))
    same(
        ours['yolo']['train'],
        of_labelformat(YOLOv8ObjectDetectionInput(roots['yolo'] / 'data.yaml', 'train')),
    )
    voc = PascalVOCObjectDetectionInput(roots['voc'] / 'Annotations', ','.join(NAMES))
    same({**ours['voc']['train'], **ours['voc']['val']}, of_labelformat(voc))
    cvat = CVATObjectDetectionInput(roots['cvat'] / 'annotations.xml')
    same({**ours['cvat']['train'], **ours['cvat']['val']}, of_labelformat(cvat))


def test_outlines_are_those_that_labelformat_reads(tmp_path):
    coco, yolo = as_coco(tmp_path / 'coco', polygons=True), as_yolo(tmp_path / 'yolo', polygons=True)
    readers = (
        (coco, COCOInstanceSegmentationInput(coco / 'annotations' / 'train.json')),
        (yolo, YOLOv8InstanceSegmentationInput(yolo / 'data.yaml', 'train')),
    )
    for root, reader in readers:
        ours = {sample.image.name: sample.objects for sample in read_labels(root).splits['train']}
        theirs = {Path(label.image.filename).name: label.objects for label in reader.get_labels()}
        assert ours.keys() == theirs.keys()
        for name, objects in ours.items():
            outlines = [o.segmentation.polygons for o in theirs[name]]
            for mine, other in zip(objects, outlines, strict=True):
                assert np.allclose(np.array(mine.mask).reshape(-1, 2), other[0], atol=0.005)


def of_globox(annotations, names=None) -> dict:
    found = {}
    for one in annotations:
        boxes = [(names[int(b.label)] if names else b.label, b.ltrb) for b in one.boxes]
        found[Path(one.image_id).name] = (*one.image_size, boxes)
    return found


def test_boxes_are_those_that_globox_reads(tmp_path):
    sets, roots = globox.AnnotationSet, {}
    for name in WRITERS:
        options = {} if name in ('coco', 'yolo', 'voc') else dict(polygons=False)
        roots[name] = WRITERS[name](tmp_path / name, **options)
    ours = {name: plain(read_labels(root)) for name, root in roots.items()}
    whole = {name: {**found['train'], **found['val']} for name, found in ours.items()}
    same(ours['coco']['val'], of_globox(sets.from_coco(roots['coco'] / 'annotations' / 'val.json')))
    folders = dict(folder=roots['yolo'] / 'labels' / 'train', image_folder=roots['yolo'] / 'images' / 'train')
    same(ours['yolo']['train'], of_globox(sets.from_yolo_v5(**folders), NAMES))
    same(whole['voc'], of_globox(sets.from_pascal_voc(roots['voc'] / 'Annotations')))
    same(whole['cvat'], of_globox(sets.from_cvat(roots['cvat'] / 'annotations.xml')))
    same(ours['labelme']['train'], of_globox(sets.from_labelme(roots['labelme'] / 'train')))


# -- real data -----------------------------------------------------------


def test_coco_mini(real_data, tmp_path):
    labels = read_labels(real_data / 'coco_mini')
    assert (labels.format, labels.task, len(labels.classes)) == ('coco', 'segments', 80)
    assert labels.classes == tuple(sorted(labels.classes))
    found = write_coco(labels, tmp_path / 'out')
    assert not any(own.written for own in found.values())
    for part, total, crowd in (('train', 746, 6), ('val', 712, 5)):  # as the README of the data says
        objects = [o for sample in labels.splits[part] for o in sample.objects]
        assert (len(objects), sum(o.crowd for o in objects)) == (total, crowd)
        assert all(isinstance(o.mask, RunLengths) for o in objects)
    theirs = of_labelformat(
        COCOObjectDetectionInput(real_data / 'coco_mini' / 'annotations' / 'instances_val2017.json')
    )
    same(plain(labels)['val'], theirs)
    two = read_labels(real_data / 'coco_mini', classes=('person', 'dog'))
    people = sum(name == 'person' for *_, objects in plain(labels)['val'].values() for name, _ in objects)
    assert people == sum(o.label == 0 for s in two.splits['val'] for o in s.objects) > 100


def test_camvid(real_data, tmp_path):
    labels = read_labels(real_data / 'camvid')
    table = json.loads((real_data / 'camvid' / 'classes.json').read_text())
    assert (labels.format, list(labels.classes)) == ('masks', table['classes'])
    assert [list(colour) for colour in labels.colours] == table['palette']
    assert {part: len(samples) for part, samples in labels.splits.items()} == {'train': 367, 'val': 101}
    found = write_masks(labels, tmp_path)
    assert not found['train'].written and [p.name for p in tmp_path.iterdir()] == ['train.txt', 'val.txt']


def test_cifar10_mini(real_data, tmp_path):
    labels = read_labels(real_data / 'cifar10_mini')
    assert (labels.format, labels.task, len(labels.classes)) == ('folders', 'classes', 10)
    found = write_lists(labels, tmp_path / 'out')
    assert [(own.split, own.images) for own in found.values()] == [('train', None), ('val', None)]
    dataset = ImageDataset(
        str(found['val'].data_root), 'val', dict(input_size=32), class_index=found['val'].class_index
    )
    assert dataset.metainfo['classes'] == labels.classes and len(dataset) == len(labels.splits['val'])


BY_OTHERS = {
    'labelformat voc': lambda file, out: PascalVOCObjectDetectionOutput(out / 'xml').save(
        COCOObjectDetectionInput(file)
    ),
    'labelformat yolo': lambda file, out: YOLOv8ObjectDetectionOutput(out / 'data.yaml', 'train').save(
        COCOObjectDetectionInput(file)
    ),
    'labelformat cvat': lambda file, out: CVATObjectDetectionOutput(out).save(COCOObjectDetectionInput(file)),
    'globox voc': lambda file, out: globox.AnnotationSet.from_coco(file).save_pascal_voc(out / 'xml'),
    'globox labelme': lambda file, out: globox.AnnotationSet.from_coco(file).save_labelme(out / 'json'),
    'globox cvat': lambda file, out: globox.AnnotationSet.from_coco(file).save_cvat(out / 'annotations.xml'),
}


@pytest.mark.parametrize('name', BY_OTHERS)
def test_what_other_libraries_write_of_coco_mini_is_read_as_the_original(name, real_data, tmp_path):
    source = real_data / 'coco_mini'
    original = plain(read_labels(source, drop=['masks']))['val']
    BY_OTHERS[name](source / 'annotations' / 'instances_val2017.json', tmp_path)
    (tmp_path / 'images').symlink_to(source / 'val2017')
    labels = read_labels(tmp_path, split=0)
    assert labels.format == name.split()[1]
    assert {image: objects for image, (*_, objects) in plain(labels)[''].items()} == {
        image: objects for image, (*_, objects) in original.items()
    }


# -- layouts --------------------------------------------------------------


def test_layout_of_roboflow_coco(tmp_path):
    as_coco(tmp_path, file='{split}/_annotations.coco.json')
    (tmp_path / 'val').rename(tmp_path / 'valid')
    for file in tmp_path.rglob('*.json'):
        content = json.loads(file.read_text())
        for category in content['categories']:
            category['supercategory'] = 'animals'
        content['categories'].insert(0, dict(id=0, name='animals', supercategory='none'))
        file.write_text(json.dumps(content))
    labels = read_labels(tmp_path)
    assert labels.classes == SORTED and plain(labels) == expected()
    assert any('the category animals is the name of the set' in note for note in labels.notes)


def test_a_category_that_is_used_is_kept_whatever_the_others_belong_to(tmp_path):
    as_coco(tmp_path)
    for file in tmp_path.rglob('*.json'):
        content = json.loads(file.read_text())
        for category in content['categories'][1:]:
            category['supercategory'] = 'zebra'
        file.write_text(json.dumps(content))
    labels = read_labels(tmp_path)
    assert labels.classes == SORTED and not any('name of the set' in note for note in labels.notes)


def test_crowds_and_run_lengths_of_coco(tmp_path):
    file = as_coco(tmp_path / 'set', polygons=True) / 'annotations' / 'train.json'
    content = json.loads(file.read_text())
    number = next(image['id'] for image in content['images'] if image['file_name'] == 'b00.jpg')
    runs = dict(size=[61, 97], counts=[61 * 10 + 5, 3, 58, 3, 5238])  # two columns of three pixels
    record = dict(id=99, image_id=number, category_id=7, bbox=[10, 5, 2, 3], segmentation=runs, iscrowd=1)
    content['annotations'].append(record)
    content['images'].reverse()  # so that it is written anew
    file.write_text(json.dumps(content))
    labels = read_labels(tmp_path / 'set')
    (item,) = (o for sample in labels.splits['train'] for o in sample.objects if o.crowd)
    assert item.box == (10, 5, 12, 8) and item.mask == RunLengths((61, 97), tuple(runs['counts']))
    written = json.loads(write_coco(labels, tmp_path / 'out')['train'].ann_file.read_text())
    (record,) = (a for a in written['annotations'] if a['iscrowd'])
    assert (record['segmentation'], record['area'], record['bbox']) == (runs, 6, [10, 5, 2, 3])


def test_layout_of_cvat_coco(tmp_path):
    as_coco(tmp_path, file='annotations/instances_{split}.json', images='images')
    (tmp_path / 'annotations' / 'instances_val.json').unlink()
    (tmp_path / 'annotations' / 'instances_train.json').rename(
        tmp_path / 'annotations' / 'instances_default.json'
    )
    for name, (part, *_) in TRUTH.items():
        if part == 'val':
            (tmp_path / 'images' / name).unlink()
    labels = read_labels(tmp_path)
    assert not labels.given and sum(map(len, labels.splits.values())) == len(expected()['train'])


def test_layout_of_roboflow_yolo(tmp_path):
    as_yolo(tmp_path)
    for ours, theirs in (('train', 'train'), ('val', 'valid')):
        (tmp_path / theirs).mkdir()
        for kind in ('images', 'labels'):
            (tmp_path / kind / ours).rename(tmp_path / theirs / kind)
            if ours == 'val':
                (tmp_path / kind).rmdir()
    text = f'train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnames: {list(NAMES)}\n'
    (tmp_path / 'data.yaml').write_text(text)
    labels = read_labels(tmp_path)
    assert plain(labels) == expected() and any('has no such split' in note for note in labels.notes)


def test_yolo_lists_of_images_and_lists_of_folders(tmp_path):
    as_yolo(tmp_path)
    names = [f'./images/train/{name}' for name, (part, *_) in TRUTH.items() if part == 'train']
    (tmp_path / 'train.txt').write_text('\n'.join(names))
    names = ', '.join(f'{i}: {name}' for i, name in enumerate(NAMES))
    (tmp_path / 'data.yaml').rename(tmp_path / 'animals.yaml')
    (tmp_path / 'animals.yaml').write_text(f'train: train.txt\nval:\n  - images/val\nnames: {{{names}}}\n')
    assert plain(read_labels(tmp_path)) == expected()


def test_yolo_of_darknet_as_cvat_exports_it(tmp_path):
    as_yolo(tmp_path)
    (tmp_path / 'data.yaml').unlink()
    (tmp_path / 'obj_train_data').mkdir()
    for name, (part, *_) in TRUTH.items():
        for kind, file in (('images', name), ('labels', f'{Path(name).stem}.txt')):
            (tmp_path / kind / part / file).rename(tmp_path / 'obj_train_data' / file)
    (tmp_path / 'obj.names').write_text('\n'.join(NAMES))
    (tmp_path / 'obj.data').write_text('classes = 3\ntrain = data/train.txt\nnames = data/obj.names\n')
    (tmp_path / 'train.txt').write_text(''.join(f'data/obj_train_data/{name}\n' for name in TRUTH))
    labels = read_labels(tmp_path, split=0)
    every = {**expected()['train'], **expected()['val']}
    assert plain(labels)[''] == every


def test_crlf_and_byte_order_marks_and_upper_case_suffixes(tmp_path):
    upper = {name.replace('.jpg', '.JPG'): value for name, value in TRUTH.items()}
    as_yolo(tmp_path, upper, newline='\r\n', bom='\ufeff')
    yaml = (tmp_path / 'data.yaml').read_text()
    (tmp_path / 'data.yaml').write_bytes(('\ufeff' + yaml.replace('\n', '\r\n')).encode())
    assert plain(read_labels(tmp_path)) == expected(upper)


@pytest.mark.parametrize('name', ['coco', 'voc', 'labelme', 'cvat'])
def test_byte_order_marks_of_other_formats(name, tmp_path):
    WRITERS[name](tmp_path)
    for file in (*tmp_path.rglob('*.json'), *tmp_path.rglob('*.xml')):
        file.write_bytes(b'\xef\xbb\xbf' + file.read_bytes().replace(b'\n', b'\r\n'))
    assert plain(read_labels(tmp_path)) == expected()


def test_images_by_links_and_links_in_a_circle(tmp_path):
    as_voc(tmp_path / 'set')
    (tmp_path / 'set' / 'JPEGImages').rename(tmp_path / 'elsewhere')
    (tmp_path / 'set' / 'JPEGImages').symlink_to(tmp_path / 'elsewhere')
    file = tmp_path / 'elsewhere' / next(iter(TRUTH))
    file.rename(tmp_path / 'one.jpg')
    file.symlink_to(tmp_path / 'one.jpg')
    (tmp_path / 'set' / 'again').symlink_to(tmp_path / 'set')
    assert plain(read_labels(tmp_path / 'set')) == expected()


def test_sizes_follow_the_orientation_of_photos(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    make_image(tmp_path / 'images' / 'turned.jpg', (80, 40), 1, exif=exif)
    make_image(tmp_path / 'images' / 'upright.jpg', (80, 40), 2)
    for name in ('turned', 'upright'):
        (tmp_path / 'labels').mkdir(exist_ok=True)
        (tmp_path / 'labels' / f'{name}.txt').write_text('0 0.5 0.5 0.5 0.25\n')
    (tmp_path / 'classes.txt').write_text('cat\n')
    found = plain(read_labels(tmp_path, split=0))['']
    assert found['turned.jpg'] == (40, 80, [('cat', (10, 30, 30, 50))])
    assert found['upright.jpg'] == (80, 40, [('cat', (20, 15, 60, 25))])


@pytest.mark.parametrize('size', [(6000, 4000), (1920, 1080), (333, 77)])
def test_coordinates_to_hundredths_survive_yolo_with_six_digits(size, tmp_path):
    make_image(tmp_path / 'a.png', (8, 8))
    from convnext_backbone.labels.yolo import _shape

    random = np.random.default_rng(0)
    for _ in range(200):
        (x1, x2), (y1, y2) = (np.sort(np.round(random.uniform(0, side, 2), 2)) for side in size)
        if min(x2 - x1, y2 - y1) < 0.02:
            continue
        values = (x1 + x2) / 2 / size[0], (y1 + y2) / 2 / size[1], (x2 - x1) / size[0], (y2 - y1) / size[1]
        assert _shape([round(float(v), 6) for v in values], *size, 0)[0] == (x1, y1, x2, y2)


# -- what cannot be kept ----------------------------------------------------


def one_image(root: Path, size=(100, 80)) -> Path:
    make_image(root / 'a.png', size)
    return root


def labelme(root: Path, *shapes: dict) -> Path:
    one_image(root)
    content = dict(shapes=list(shapes), imagePath='a.png', imageWidth=100, imageHeight=80)
    (root / 'a.json').write_text(json.dumps(content))
    return root


def cvat(root: Path, *shapes: str) -> Path:
    one_image(root)
    text = f'<annotations><image id="0" name="a.png" width="100" height="80">{"".join(shapes)}</image>'
    text += '</annotations>'
    (root / 'annotations.xml').write_text(text)
    return root


RECTANGLE = dict(label='cat', shape_type='rectangle', points=[[30, 40], [10, 20]])
BOX = '<box label="cat" xtl="10" ytl="20" xbr="30" ybr="40"/>'


def objects_of(root: Path, **options) -> tuple:
    return read_labels(root, split=0, **options).splits[''][0].objects


@pytest.mark.parametrize('kind, shape', [('lines', 'line'), ('lines', 'linestrip'), ('points', 'point')])
def test_shapes_of_labelme_that_cannot_be_kept_are_named(kind, shape, tmp_path):
    labelme(
        tmp_path,
        RECTANGLE,
        dict(label='cat', shape_type=shape, points=[[1, 2], [3, 4]][: 1 + (shape != 'point')]),
    )
    text = error(tmp_path)
    assert f'1 {kind} (a.json: shape 2 ({shape} cat))' in text and f'--drop {kind}' in text
    assert [o.box for o in objects_of(tmp_path, drop=[kind])] == [(10, 20, 30, 40)]


@pytest.mark.parametrize(
    'kind, shape',
    [
        ('lines', '<polyline label="cat" points="1,2;3,4"/>'),
        ('points', '<points label="cat" points="1,2"/>'),
        ('cuboids', '<cuboid label="cat" xtl1="1"/>'),
        ('skeletons', '<skeleton label="cat"/>'),
        ('tags', '<tag label="cat"/>'),
    ],
)
def test_shapes_of_cvat_that_cannot_be_kept_are_named(kind, shape, tmp_path):
    cvat(tmp_path, BOX, shape)
    assert f'1 {kind} (annotations.xml: image a.png: shape 2' in error(tmp_path)
    labels = read_labels(tmp_path, drop=[kind], split=0)
    assert len(labels.splits[''][0].objects) == 1 and any(
        note.startswith(f'1 {kind}') for note in labels.notes
    )


def test_tracks_of_cvat_are_named(tmp_path):
    file = cvat(tmp_path, BOX) / 'annotations.xml'
    file.write_text(file.read_text().replace('<image', '<track id="5"/><image'))
    assert '1 tracks (annotations.xml: track 5)' in error(tmp_path)


def test_a_rotated_box_becomes_the_upright_one_around_it_if_that_is_wanted(tmp_path):
    cvat(
        tmp_path,
        BOX.replace('/>', ' rotation="90"/>').replace('"30"', '"50"'),
        BOX.replace('/>', ' rotation="0"/>'),
    )
    assert '1 rotated (' in error(tmp_path)
    assert [o.box for o in objects_of(tmp_path, drop=['rotated'])] == [(20, 10, 40, 50), (10, 20, 30, 40)]


def test_keypoints_of_coco_and_yolo_are_named(tmp_path):
    as_coco(tmp_path / 'coco')
    file = tmp_path / 'coco' / 'annotations' / 'train.json'
    content = json.loads(file.read_text())
    content['annotations'][0].update(keypoints=[1, 2, 2], num_keypoints=1)
    file.write_text(json.dumps(content))
    assert '1 keypoints (' in error(tmp_path / 'coco')
    assert plain(read_labels(tmp_path / 'coco', drop=['keypoints'])) == expected()
    make_image(tmp_path / 'yolo' / 'images' / 'a.png', (100, 100))
    (tmp_path / 'yolo' / 'labels').mkdir()
    (tmp_path / 'yolo' / 'labels' / 'a.txt').write_text('0 0.5 0.5 0.2 0.4 0.1 0.1 2 0.2 0.2 0\n')
    (tmp_path / 'yolo' / 'data.yaml').write_text('names: [cat]\nkpt_shape: [2, 3]\n')
    assert '1 keypoints (labels/a.txt, line 1)' in error(tmp_path / 'yolo')
    assert objects_of(tmp_path / 'yolo', drop=['keypoints'])[0].box == (40, 30, 60, 70)


def test_boxes_without_outlines_among_outlines(tmp_path):
    labelme(tmp_path, RECTANGLE, dict(label='cat', points=[[1, 2], [9, 4], [5, 7]]))
    text = error(tmp_path)
    assert (
        '1 objects have an outline, 1 only a box (first: a.json: shape 1' in text and '--drop masks' in text
    )
    labels = read_labels(tmp_path, drop=['masks'], split=0)
    assert labels.task == 'boxes' and [o.box for o in labels.splits[''][0].objects] == [
        (10, 20, 30, 40),
        (1, 2, 9, 7),
    ]


def test_difficult_objects_of_voc_are_crowds(tmp_path):
    as_voc(tmp_path)
    file = next(
        file for file in sorted((tmp_path / 'Annotations').iterdir()) if b'<object>' in file.read_bytes()
    )
    file.write_bytes(file.read_bytes().replace(b'<difficult>0', b'<difficult>1', 1))
    labels = read_labels(tmp_path)
    crowds = [s.image.stem for s in labels.samples() for o in s.objects if o.crowd]
    assert crowds == [file.stem] and any("'difficult'" in note for note in labels.notes)


def test_an_unknown_kind_to_drop(tmp_path):
    assert '--drop must be one of keypoints, rotated' in error(as_voc(tmp_path), drop=['colours'])


# -- shapes ---------------------------------------------------------------


def test_circles_and_ellipses_are_outlines_of_their_size(tmp_path):
    circle = dict(label='cat', shape_type='circle', points=[[50, 40], [50, 60]])
    (one,) = objects_of(labelme(tmp_path / 'labelme', circle))
    assert one.box == (30, 20, 70, 60)
    turned = '<ellipse label="cat" cx="50" cy="40" rx="30" ry="10" rotation="90"/>'
    (other,) = objects_of(cvat(tmp_path / 'cvat', turned))
    assert other.box == (40, 10, 60, 70)
    for item, area in ((one, np.pi * 20 * 20), (other, np.pi * 30 * 10)):
        xs, ys = np.array(item.mask[0][::2]), np.array(item.mask[0][1::2])
        assert abs((xs * np.roll(ys, -1) - np.roll(xs, -1) * ys).sum()) / 2 == pytest.approx(area, rel=0.005)


def test_bitmaps_of_labelme_and_cvat(tmp_path):
    from pycocotools import mask as rle

    part = np.array([[0, 1, 1], [1, 1, 0]], np.uint8)
    stream = io.BytesIO()
    Image.fromarray(part * 255).save(stream, 'PNG')
    shape = dict(label='cat', shape_type='mask', points=[[20, 30], [22, 31]])
    shape['mask'] = base64.b64encode(stream.getvalue()).decode()
    runs = '<mask label="cat" rle="1, 4, 1" left="20" top="30" width="3" height="2"/>'
    for root in (labelme(tmp_path / 'labelme', shape), cvat(tmp_path / 'cvat', runs)):
        (item,) = objects_of(root)
        whole = rle.decode(dict(size=item.mask.size, counts=item.mask.counts))
        assert item.box == (20, 30, 23, 32) and whole.shape == (80, 100)
        assert (whole[30:32, 20:23] == part).all() and whole.sum() == 4


def test_shapes_of_one_group_of_labelme_are_one_object(tmp_path):
    first = dict(label='cat', group_id=1, points=[[1, 2], [9, 4], [5, 7]])
    second = dict(label='cat', group_id=1, points=[[41, 2], [49, 4], [45, 9]])
    other = dict(label='dog', group_id=1, points=[[41, 2], [49, 4], [45, 9]])
    found = objects_of(labelme(tmp_path, first, second, other))
    assert [(o.box, len(o.mask)) for o in found] == [((1, 2, 49, 9), 2), ((41, 2, 49, 9), 1)]


# -- masks ------------------------------------------------------------------


def as_masks(
    root: Path, count=8, values=(0, 1, 2), mode='L', shift=0, palette=None, images='images', masks='masks'
):
    """Images with masks of columns; returns name -> (H, W) numbers."""
    truth = {}
    for number in range(count):
        size = (40 + number, 30)
        make_image(root / images / f'{number}.jpg', size, number + shift)
        numbers = (np.arange(size[0]) * len(values) // size[0])[None].repeat(size[1], 0)
        numbers[: number + 1] = 0
        truth[str(number)] = numbers
        pixels = np.array(values, np.uint8)[numbers]
        if palette is not None and mode == 'RGB':
            image = Image.fromarray(np.array(palette, np.uint8)[numbers])
        else:
            image = Image.fromarray(pixels)
            if palette is not None:
                image = Image.fromarray(pixels, 'P')
                image.putpalette(bytes(v for colour in palette for v in colour))
        (root / masks).mkdir(parents=True, exist_ok=True)
        image.save(root / masks / f'{number}.png')
    return truth


def numbers_of(labels, folder: Path) -> dict:
    """What mmseg's dataset would read: name -> (H, W)."""
    found = {}
    for own in write_masks(labels, folder).values():
        for line in own.ann_file.read_text().splitlines():
            assert (own.image_folder / (line + own.img_suffix)).is_file()
            found[line] = read_mask(own.mask_folder / (line + own.seg_map_suffix))
    return found


def same_masks(found: dict, truth: dict) -> None:
    assert found.keys() == truth.keys()
    assert all((found[name] == truth[name]).all() for name in truth)


COLOURS = [(0, 0, 0), (200, 10, 10), (10, 200, 10)]


def test_gray_masks_are_used_where_they_lie(tmp_path):
    truth = as_masks(tmp_path / 'set')
    (tmp_path / 'set' / 'classes.json').write_text('["sky", "road", "car"]')
    labels = read_labels(tmp_path / 'set')
    assert labels.classes == ('sky', 'road', 'car') and recognise(tmp_path / 'set') == 'masks'
    same_masks(numbers_of(labels, tmp_path / 'out'), truth)
    assert not (tmp_path / 'out' / 'masks').exists()
    from mmseg.datasets import BaseSegDataset

    for part, own in write_masks(labels, tmp_path / 'out').items():
        dataset = BaseSegDataset(
            ann_file=str(own.ann_file),
            data_prefix=dict(img_path=str(own.image_folder), seg_map_path=str(own.mask_folder)),
            img_suffix=own.img_suffix,
            seg_map_suffix=own.seg_map_suffix,
            metainfo=dict(classes=labels.classes, palette=[[0, 0, 0]] * 3),
        )
        names = [(Path(d['img_path']), Path(d['seg_map_path'])) for d in dataset.load_data_list()]
        assert names == [(s.image, s.mask) for s in labels.splits[part]]


@pytest.mark.parametrize(
    'name, text',
    [
        ('labelmap.txt', '# label:color_rgb:parts:actions\nsky:0,0,0::\nroad:200,10,10::\ncar:10,200,10::\n'),
        ('class_dict.csv', 'name,r,g,b\nsky,0,0,0\nroad,200,10,10\ncar,10,200,10\n'),
        ('classes.json', '{"sky": [0, 0, 0], "road": [200, 10, 10], "car": [10, 200, 10]}'),
        ('classes.json', '{"classes": ["sky", "road", "car"], "palette": [[0,0,0], '
         '[200,10,10], [10,200,10]]}'),
        ('classes.json', '[{"name": "sky", "color": [0,0,0]}, {"name": "road", "color": [200,10,10]}, '
         '{"name": "car", "color": [10,200,10]}]'),
    ],
)  # fmt: skip
def test_masks_in_colour_are_converted_by_a_table(name, text, tmp_path):
    truth = as_masks(tmp_path / 'set', mode='RGB', palette=COLOURS)
    (tmp_path / 'set' / name).write_text(text)
    labels = read_labels(tmp_path / 'set')
    assert (labels.classes, labels.colours) == (('sky', 'road', 'car'), tuple(COLOURS))
    same_masks(numbers_of(labels, tmp_path / 'out'), truth)


def test_colours_without_a_table_become_classes(tmp_path):
    as_masks(tmp_path / 'set', mode='RGB', palette=COLOURS)
    labels = read_labels(tmp_path / 'set')
    assert labels.classes == ('000000', '0ac80a', 'c80a0a')
    assert any('no file names the colours' in note for note in labels.notes)


def test_palettes_are_read_by_colour_where_a_table_has_them(tmp_path):
    """The entries of the palette are in another order than the classes."""
    truth = as_masks(tmp_path / 'set', values=(2, 0, 1), palette=[COLOURS[1], COLOURS[2], COLOURS[0]])
    (tmp_path / 'set' / 'class_dict.csv').write_text('name,r,g,b\nsky,0,0,0\nroad,200,10,10\ncar,10,200,10\n')
    labels = read_labels(tmp_path / 'set')
    same_masks(numbers_of(labels, tmp_path / 'out'), truth)


def test_palettes_without_a_table_are_read_by_index(tmp_path):
    truth = as_masks(tmp_path / 'set', palette=COLOURS)
    labels = read_labels(tmp_path / 'set')
    assert labels.classes == ('0', '1', '2')
    same_masks(numbers_of(labels, tmp_path / 'out'), truth)


def test_binary_masks_are_background_and_foreground(tmp_path):
    truth = as_masks(tmp_path / 'set', values=(0, 255))
    labels = read_labels(tmp_path / 'set')
    assert labels.classes == ('background', 'foreground')
    same_masks(numbers_of(labels, tmp_path / 'out'), truth)


def test_classes_of_masks_may_be_a_subset(tmp_path):
    truth = as_masks(tmp_path / 'set', values=(0, 7, 255))
    (tmp_path / 'set' / 'classes.json').write_text('{"0": "sky", "7": "car"}')
    both = read_labels(tmp_path / 'set')
    assert both.classes == ('sky', 'car')
    same_masks(numbers_of(both, tmp_path / 'out'), {n: np.array([0, 1, 255])[t] for n, t in truth.items()})
    turned = read_labels(tmp_path / 'set', classes=('car', 'sky'))
    same_masks(numbers_of(turned, tmp_path / 'out2'), {n: np.array([1, 0, 255])[t] for n, t in truth.items()})
    assert 'one class, car' in error(tmp_path / 'set', classes=('car',))


def test_masks_that_end_in_mask_beside_the_images(tmp_path):
    """Roboflow's layout, with its table of values."""
    for part in ('train', 'valid'):
        options = dict(values=(0, 3, 7), images='.', masks='.')
        truth = as_masks(tmp_path / part, 3, shift=9 * (part == 'valid'), **options)
        for name in truth:
            (tmp_path / part / f'{name}.png').rename(tmp_path / part / f'{name}_mask.png')
        (tmp_path / part / '_classes.csv').write_text('Pixel Value, Class\n0, background\n3, cat\n7, dog\n')
    labels = read_labels(tmp_path)
    assert labels.classes == ('background', 'cat', 'dog') and list(labels.splits) == ['train', 'val']
    same_masks(numbers_of(labels, tmp_path.parent / f'{tmp_path.name}_out'), truth)


@pytest.mark.parametrize(
    'masks', ['annotations', 'train_labels', 'trainannot', 'SegmentationClass', 'my-masks']
)
def test_usual_names_of_folders_of_masks(masks, tmp_path):
    as_masks(tmp_path, 3, images='train' if masks.startswith('train') else 'images', masks=masks)
    assert recognise(tmp_path) == 'masks' and len(list(read_labels(tmp_path).samples())) == 3


def test_lists_of_voc_for_masks(tmp_path):
    as_masks(tmp_path, 6, images='JPEGImages', masks='SegmentationClass')
    (tmp_path / 'ImageSets' / 'Segmentation').mkdir(parents=True)
    (tmp_path / 'ImageSets' / 'Segmentation' / 'train.txt').write_text('4\n0\n')
    (tmp_path / 'ImageSets' / 'Segmentation' / 'val.txt').write_text('2\n3\n')
    labels = read_labels(tmp_path)
    assert [[s.image.stem for s in own] for own in labels.splits.values()] == [['0', '4'], ['2', '3']]
    assert labels.given and any(note.startswith('2 masks are in no list') for note in labels.notes)


def test_images_with_several_suffixes_get_masks_of_their_own(tmp_path):
    truth = as_masks(tmp_path / 'set')
    make_image(tmp_path / 'set' / 'images' / '0.png', (40, 30), 0)
    (tmp_path / 'set' / 'images' / '0.jpg').unlink()
    found = numbers_of(read_labels(tmp_path / 'set'), tmp_path / 'out')
    sides = {name.removesuffix('.jpg').removesuffix('.png'): mask for name, mask in found.items()}
    same_masks(sides, truth)


def test_bad_masks(tmp_path):
    as_masks(tmp_path)
    (tmp_path / 'classes.json').write_text('["sky", "road"]')
    assert 'the value 2, which no class of the table has (2 names' in error(tmp_path)
    (tmp_path / 'classes.json').unlink()
    Image.new('L', (5, 5)).save(tmp_path / 'masks' / '3.png')
    assert 'masks/3.png: the mask has (5, 5) pixels, its image images/3.jpg (43, 30)' in error(tmp_path)
    make_image(tmp_path / 'masks' / '3.png', (43, 30))
    assert 'colours is no mask' in error(tmp_path)
    (tmp_path / 'masks' / '3.png').write_bytes(b'nothing')
    assert 'is no image' in error(tmp_path)
    labels = read_labels(tmp_path, skip_corrupt=True)
    assert len(list(labels.samples())) == 7 and any('1 broken' in note for note in labels.notes)
    (tmp_path / 'masks' / '3.png').rename(tmp_path / 'masks' / '33.png')
    assert 'masks/33.png: 1 masks have no image' in error(tmp_path)


# -- folders of classes --------------------------------------------------------


def as_folders(root: Path, counts: dict) -> Path:
    seed = 0
    for folder, count in counts.items():
        for number in range(count):
            make_image(root / folder / f'{number}.jpg', (20, 20), seed)
            seed += 1
    return root


def test_folders_without_splits_are_split_and_read_by_the_dataset(tmp_path):
    root = as_folders(tmp_path / 'set', {'class10': 10, 'class2': 5, 'two words': 5, 'rare': 2})
    labels = read_labels(root)
    assert labels.classes == ('class10', 'class2', 'rare', 'two words') and labels.task == 'classes'
    found = write_lists(labels, tmp_path / 'out')
    for part, own in found.items():
        dataset = ImageDataset(
            str(own.data_root),
            own.split,
            dict(input_size=20),
            class_index=own.class_index,
            images=str(own.images),
        )
        names = [(dataset.filename(i), dataset[i]['labels']) for i in range(len(dataset))]
        assert names == [(str(s.image), s.label) for s in labels.splits[part]]
        assert dataset.metainfo['classes'] == labels.classes
    assert {s.label for s in labels.splits['val']} == {0, 1, 2, 3}
    assert any('class2 (4), rare (1), two words (4)' in note for note in labels.notes)
    found['val'].images.write_text('rare/7.jpg\n')
    with pytest.raises(UserError, match='1 of 1 images are not in .* rare/7.jpg'):
        ImageDataset(str(root), '', dict(input_size=20), images=str(found['val'].images))


def test_folders_of_train_alone_are_split(tmp_path):
    labels = read_labels(as_folders(tmp_path / 'set', {'train/a': 10, 'train/b': 10}))
    assert not labels.given and [len(own) for own in labels.splits.values()] == [16, 4]
    own = write_lists(labels, tmp_path / 'out')['val']
    dataset = ImageDataset(str(own.data_root), own.split, dict(input_size=20), images=str(own.images))
    assert [dataset.filename(i) for i in range(4)] == [str(s.image) for s in labels.splits['val']]


def test_a_subset_of_the_folders_of_classes(tmp_path):
    root = as_folders(tmp_path / 'set', {'train/a': 3, 'train/b': 3, 'train/c': 3, 'val/a': 2, 'val/b': 2})
    labels = read_labels(root, classes=('b', 'a'))
    assert {s.label for s in labels.splits['train']} == {0, 1}
    own = write_lists(labels, tmp_path / 'out')['train']
    dataset = ImageDataset(
        str(own.data_root),
        own.split,
        dict(input_size=20),
        class_index=own.class_index,
        images=str(own.images),
    )
    assert len(dataset) == 6 and dataset[0]['labels'] == 1


def test_a_class_may_be_called_train(tmp_path):
    assert read_labels(as_folders(tmp_path, {'train': 4, 'car': 4})).classes == ('car', 'train')


def test_pictures_to_predict_beside_the_folders_of_classes(tmp_path):
    as_folders(tmp_path, {'train/a': 3, 'train/b': 3, 'val/a': 2, 'val/b': 2, 'test': 4})
    labels = read_labels(tmp_path)
    assert list(labels.splits) == ['train', 'val'] and labels.given
    assert any('4 images of test have no class' in note for note in labels.notes)


def test_bad_folders_of_classes(tmp_path):
    assert 'images of one class, cat' in error(as_folders(tmp_path / '1', {'cat': 3}), format='folders')
    assert 'val has the class b' in error(
        as_folders(tmp_path / '2', {'train/a': 2, 'train/c': 2, 'val/b': 2})
    )
    root = as_folders(tmp_path / '3', {'a': 2, 'b': 2})
    make_image(root / 'b' / 'x.bmp')
    assert 'b/x.bmp: classifiers read' in error(root)


# -- what is wrong -------------------------------------------------------------


def test_folders_that_hold_nothing_to_read(tmp_path):
    assert 'is no folder' in error(tmp_path / 'absent')
    assert 'has no files' in error(tmp_path)
    (tmp_path / 'README.md').write_text('nothing')
    assert 'holds 0 images and no labels that are known: expected COCO JSON, YOLO' in error(tmp_path)
    assert 'has no images' in error(tmp_path, format='folders')
    make_image(tmp_path / 'a.jpg')
    assert 'holds 1 images and no labels' in error(tmp_path)
    assert '--format must be one of coco, yolo' in error(tmp_path, format='pascal')
    assert 'no files of the format Pascal VOC' in error(tmp_path, format='voc')


def test_two_formats_at_once(tmp_path):
    as_voc(as_yolo(tmp_path), lists=True)
    text = error(tmp_path)
    assert 'YOLO (data.yaml) and Pascal VOC (Annotations/' in text and '--format yolo or voc' in text
    shutil.rmtree(tmp_path / 'JPEGImages')
    shutil.rmtree(tmp_path / 'ImageSets')
    assert (
        plain(read_labels(tmp_path, format='voc'))
        == plain(read_labels(tmp_path, format='yolo'))
        == expected()
    )


@pytest.mark.parametrize('name', WRITERS)
def test_labels_without_any_image(name, tmp_path):
    WRITERS[name](tmp_path)
    for file in tmp_path.rglob('*.jpg'):
        file.unlink()
    assert 'has labels (' in (text := error(tmp_path)) and 'but no images' in text


@pytest.mark.parametrize('name', WRITERS)
def test_labels_without_their_image(name, tmp_path):
    WRITERS[name](tmp_path)
    gone = 'b00.jpg'
    next(tmp_path.rglob(gone)).unlink()
    text = error(tmp_path)
    assert 'b00' in text and ('no image' in text or 'not there' in text) and '--skip-corrupt' in text
    truth = {key: value for key, value in TRUTH.items() if key != gone}
    labels = read_labels(tmp_path, skip_corrupt=True)
    assert plain(labels) == {
        part: {k: v for k, v in own.items() if k in truth} for part, own in expected().items()
    }
    assert any(
        note.startswith('1 broken labels are left out') or 'have no image' in note for note in labels.notes
    )


@pytest.mark.parametrize('name', ['yolo', 'voc', 'labelme', 'coco'])
def test_several_labels_without_their_images_are_counted(name, tmp_path):
    WRITERS[name](tmp_path)
    for image in ('b00.jpg', 'b05.jpg'):
        next(tmp_path.rglob(image)).unlink()
    text = error(tmp_path)
    assert 'b00' in text and (
        ': 2 files of labels have no image' in text or '2 of 11 images that it lists' in text
    )
    assert any(note.startswith('2 broken') for note in read_labels(tmp_path, skip_corrupt=True).notes)


def test_run_lengths_of_another_size_than_the_image(tmp_path):
    """The size of the image is not stated, so that it comes from the file."""
    file = as_coco(tmp_path) / 'annotations' / 'train.json'
    content = json.loads(file.read_text())
    for image in content['images']:
        del image['width'], image['height']
    number = next(image['id'] for image in content['images'] if image['file_name'] == 'b00.jpg')
    record = dict(id=99, image_id=number, category_id=7, bbox=[1, 1, 5, 5])
    record['segmentation'] = dict(size=[97, 61], counts=[61 * 10, 5, 61 * 97 - 615])
    content['annotations'].append(record)
    file.write_text(json.dumps(content))
    assert 'a mask of (61, 97) pixels, the image has (97, 61)' in error(tmp_path)
    assert plain(read_labels(tmp_path, skip_corrupt=True)) == expected()


def test_an_image_in_two_coco_files(tmp_path):
    as_coco(tmp_path)
    content = json.loads((tmp_path / 'annotations' / 'train.json').read_text())
    (tmp_path / 'annotations' / 'train_more.json').write_text(json.dumps(content))
    assert 'is listed by annotations/train.json, too' in error(tmp_path)
    (tmp_path / 'annotations' / 'train_more.json').rename(tmp_path / 'annotations' / 'test.json')
    assert 'an image that is trained on cannot test the training' in error(tmp_path)


@pytest.mark.parametrize('name', ['yolo', 'voc', 'labelme', 'cvat'])
def test_images_without_labels(name, tmp_path):
    WRITERS[name](tmp_path)
    make_image(next(tmp_path.rglob('b00.jpg')).parent / 'another.jpg', seed=99)
    labels = read_labels(tmp_path)
    (note,) = (note for note in labels.notes if 'another.jpg' in note)
    assert note.startswith('1 images have no ')
    assert sum(s.image.name == 'another.jpg' for s in labels.samples()) == (name == 'yolo')


@pytest.mark.parametrize('name', ['voc', 'labelme', 'cvat', 'coco'])
def test_a_file_that_is_cut_off(name, tmp_path):
    WRITERS[name](tmp_path)
    suffix = {'voc': 'b00.xml', 'labelme': 'b00.json', 'cvat': 'annotations.xml', 'coco': 'train.json'}[name]
    file = next(tmp_path.rglob(suffix))
    text = file.read_text()
    file.write_text(text[: len(text) * 3 // 4])
    assert str(file) in (text := error(tmp_path)) and ('cut off' in text or 'ends too early' in text)
    if name in ('voc', 'labelme'):
        labels = read_labels(tmp_path, skip_corrupt=True)
        assert len(list(labels.samples())) == len(TRUTH) - 1
        assert any(note.startswith('1 broken labels') and suffix in note for note in labels.notes)


def spoiled_yolo(root: Path, line: str) -> Path:
    as_yolo(root)
    file = root / 'labels' / 'train' / 'b00.txt'
    file.write_text(file.read_text() + line + '\n')
    return root


BAD_LINES = {
    '0 0.5 0.5 0.1': '4 numbers, expected 5',
    'cat 0.5 0.5 0.1 0.1': "'cat' is no finite number",
    '0 0.5 nan 0.1 0.1': "'nan' is no finite number",
    '0 0.5 inf 0.1 0.1': "'inf' is no finite number",
    '3 0.5 0.5 0.1 0.1': 'class 3, but 3 classes are named (0 to 2)',
    '-1 0.5 0.5 0.1 0.1': 'class -1',
    '0 0.5 0.5 0 0.1': 'has no width or height',
    '0 50 50 10 10': '50 is no fraction',
    '0 1.4 0.5 0.1 0.1': 'lies outside of its image',
    '0 0.5 0.5 0.1 0.1 0.9': '6 numbers',
}


@pytest.mark.parametrize('line', BAD_LINES)
def test_a_bad_line_of_yolo(line, tmp_path):
    text = error(spoiled_yolo(tmp_path, line))
    count = len(TRUTH['b00.jpg'][2]) + 1
    assert f'labels/train/b00.txt, line {count}: ' in text and BAD_LINES[line] in text
    labels = read_labels(tmp_path, skip_corrupt=True)
    assert plain(labels) == expected()
    assert any(
        note.startswith('1 broken labels are left out (first: labels/train/b00.txt') for note in labels.notes
    )


BAD_BOXES = {
    ('10', '20', '10', '40'): 'the box 10 20 10 40 has no width or height',
    ('30', '20', '10', '40'): 'has no width or height',
    ('nan', '20', '30', '40'): "'nan' is no finite number",
    ('', '20', '30', '40'): "'' is no finite number",
    ('200', '20', '230', '40'): 'the box 200 20 230 40 lies outside of its image of 97 x 61 pixels',
}


@pytest.mark.parametrize('corners', BAD_BOXES)
@pytest.mark.parametrize('name', ['voc', 'cvat', 'labelme', 'coco'])
def test_bad_boxes(name, corners, tmp_path):
    place = 'b00'
    if name == 'voc':
        file = as_voc(tmp_path) / 'Annotations' / 'b00.xml'
        node = ''.join(f'<{k}>{v}</{k}>' for k, v in zip(('xmin', 'ymin', 'xmax', 'ymax'), corners))
        text = f'<object><name>ant</name><bndbox>{node}</bndbox></object></annotation>'
        file.write_text(file.read_text().replace('</annotation>', text))
    elif name == 'cvat':
        file = as_cvat(tmp_path, polygons=False) / 'annotations.xml'
        node = ' '.join(f'{k}="{v}"' for k, v in zip(('xtl', 'ytl', 'xbr', 'ybr'), corners))
        file.write_text(file.read_text().replace('</image>', f'<box label="ant" {node}/></image>', 1))
    else:
        values = [json.loads(v.replace('nan', 'NaN') or 'null') for v in corners]
        if name == 'labelme' and values[0] == 30:
            pytest.skip('its corners may stand in any order')
        if name == 'labelme':
            file = as_labelme(tmp_path, polygons=False) / 'train' / 'b00.json'
            content = json.loads(file.read_text())
            points = [values[:2], values[2:]]
            content['shapes'].append(dict(label='ant', shape_type='rectangle', points=points))
        else:
            file = as_coco(tmp_path) / 'annotations' / 'train.json'
            content = json.loads(file.read_text())
            number = next(image['id'] for image in content['images'] if image['file_name'] == 'b00.jpg')
            x, y, x2, y2 = values
            box = [x, y, x2 - x if x is not None else 20, y2 - y]
            content['annotations'].append(dict(id=99, image_id=number, category_id=7, bbox=box))
        file.write_text(json.dumps(content))
    text = error(tmp_path)
    assert str(file) in text and place in text
    if name in ('voc', 'cvat'):
        assert BAD_BOXES[corners] in text
    labels = read_labels(tmp_path, skip_corrupt=True)
    assert plain(labels) == expected()
    assert any(note.startswith('1 broken labels') for note in labels.notes)


def test_a_box_that_reaches_outside_is_kept_and_told(tmp_path):
    cvat(tmp_path, BOX, BOX.replace('"30"', '"105"'))
    labels = read_labels(tmp_path, split=0)
    assert labels.splits[''][0].objects[1].box == (10, 20, 105, 40)
    assert any('1 boxes reach outside of their image' in note for note in labels.notes)


def test_names_of_classes_that_are_wrong(tmp_path):
    as_yolo(tmp_path)
    for text, expected_text in (
        ('names: [a, b, c]\nnc: 4', 'nc is 4, but 3 classes are named'),
        ('names: [a, b, a]', "names 'a' twice"),
        ('names: {0: a, b: c}', "the key 'b' of names is no number"),
        ('names: [a, b, c]\ntrain: nowhere', 'train: nowhere is not there'),
        ('names: [a, b, c]\ntrain: images/train\nval: images/train', 'is in train and in val'),
        ('names: [a\nb: {', 'is no YAML'),
    ):
        (tmp_path / 'data.yaml').write_text(text)
        assert expected_text in error(tmp_path)
    (tmp_path / 'data.yaml').unlink()
    assert 'no file that names the classes' in error(tmp_path)


def test_images_of_the_same_name(tmp_path):
    as_voc(tmp_path, lists=False)
    (tmp_path / 'xml').mkdir()
    (tmp_path / 'train' / 'b00.xml').rename(tmp_path / 'xml' / 'b00.xml')
    make_image(tmp_path / 'val' / 'b00.jpg', seed=77)
    assert 'xml/b00.xml: 2 images have its name (train/b00.jpg, val/b00.jpg): rename' in error(tmp_path)


@pytest.mark.parametrize('name', ['voc', 'labelme', 'cvat'])
def test_two_files_of_labels_for_one_image(name, tmp_path):
    WRITERS[name](tmp_path)
    suffix = 'xml' if name == 'voc' else 'json'
    if name == 'cvat':
        shutil.copy(tmp_path / 'annotations.xml', tmp_path / 'more.xml')
    else:
        (tmp_path / 'more').mkdir()
        shutil.copy(next(tmp_path.rglob(f'b00.{suffix}')), tmp_path / 'more' / f'b00.{suffix}')
    text = error(tmp_path)
    assert 'b00.jpg' in text and ', too' in text


def test_coco_that_lists_an_image_twice(tmp_path):
    file = as_coco(tmp_path) / 'annotations' / 'train.json'
    content = json.loads(file.read_text())
    content['images'].append(dict(content['images'][-1], id=55))
    file.write_text(json.dumps(content))
    assert f'lists the image {content["images"][-1]["file_name"]} twice' in error(tmp_path)


def test_two_images_with_one_file_of_labels(tmp_path):
    as_yolo(tmp_path)
    make_image(tmp_path / 'images' / 'train' / 'b00.png', seed=78)
    assert 'labels/train/b00.txt: it belongs to two images, images/train/b00.jpg and' in error(tmp_path)


def test_a_coco_file_without_one_of_the_classes_is_not_used_where_it_lies(tmp_path):
    file = as_coco(tmp_path / 'set') / 'annotations' / 'train.json'
    content = json.loads(file.read_text())
    content['categories'].append(dict(id=1, name='dog'))
    file.write_text(json.dumps(content))
    found = write_coco(read_labels(tmp_path / 'set'), tmp_path / 'out')
    assert [found['train'].written, found['val'].written] == [False, True]
    from convnext_backbone.datasets import read_annotations

    read_annotations(found['val'].ann_file).category_ids(('Cat', 'ant', 'dog', 'zebra'))


def test_classes_that_differ_in_case_alone(tmp_path):
    cvat(tmp_path, BOX, BOX.replace('cat', 'Cat'))
    labels = read_labels(tmp_path, split=0)
    assert labels.classes == ('Cat', 'cat') and any('case alone' in note for note in labels.notes)


def test_lists_of_voc_that_disagree(tmp_path):
    as_voc(tmp_path)
    lists = tmp_path / 'ImageSets' / 'Main'
    (lists / 'ant_train.txt').write_text('b00 -1\n')  # of one class: no split
    assert plain(read_labels(tmp_path)) == expected()
    train = (lists / 'train.txt').read_text()
    (lists / 'train.txt').write_text(train + 'nowhere\n')
    assert '1 listed images have no labels (first: nowhere)' in error(tmp_path)
    (lists / 'train.txt').write_text(train)
    (lists / 'val.txt').write_text((lists / 'val.txt').read_text() + 'b00\n')
    assert 'b00 is in the lists' in error(tmp_path)


def test_classes_in_an_order_or_a_subset(tmp_path):
    as_voc(tmp_path)
    labels = read_labels(tmp_path, classes=('zebra', 'ant'))
    found = {name for own in plain(labels).values() for *_, objects in own.values() for name, _ in objects}
    assert labels.classes == ('zebra', 'ant') and found == {'zebra', 'ant'}
    assert any('left out: Cat (' in note for note in labels.notes)
    assert "has no class 'zebras' (it has Cat, ant, zebra); did you mean 'zebra'?" in error(
        tmp_path, classes=['zebras']
    )
    assert 'must be different names' in error(tmp_path, classes=['ant', 'ant'])


def test_one_class_and_classes_of_few_examples(tmp_path):
    cvat(tmp_path, BOX)
    assert read_labels(tmp_path, split=0).classes == ('cat',)
    labels = read_labels(as_yolo(tmp_path / 'more'))
    assert any('fewer than 10 objects to train on: ' in note for note in labels.notes)
    text = (
        (tmp_path / 'more' / 'data.yaml')
        .read_text()
        .replace("'Cat'", "'Cat', 'dog'")
        .replace('nc: 3', 'nc: 4')
    )
    (tmp_path / 'more' / 'data.yaml').write_text(text)
    labels = read_labels(tmp_path / 'more')
    assert labels.classes == ('Cat', 'ant', 'dog', 'zebra')
    assert any('1 classes have no object to train on: dog' in note for note in labels.notes)


# -- splits --------------------------------------------------------------------


def as_boxes(root: Path, classes: list[list[str]], seeds=None) -> Path:
    """A YOLO set without splits: an image for each list of classes."""
    names = sorted({name for own in classes for name in own})
    for number, own in enumerate(classes):
        make_image(root / 'images' / f'{number:03}.jpg', (64, 48), seeds[number] if seeds else number)
        (root / 'labels').mkdir(exist_ok=True)
        lines = [f'{names.index(name)} 0.5 0.5 0.2 0.2\n' for name in own]
        (root / 'labels' / f'{number:03}.txt').write_text(''.join(lines))
    (root / 'classes.txt').write_text('\n'.join(names))
    return root


def test_rare_classes_are_on_both_sides(tmp_path):
    classes = [['common'] * 3] * 60 + [['rare', 'common'], ['rare']] + [['once']] + [['half']] * 30
    for seed in range(5):
        labels = read_labels(as_boxes(tmp_path, classes) if not seed else tmp_path, seed=seed)
        sides = {side: [s.labels for s in samples] for side, samples in labels.splits.items()}
        index = {name: i for i, name in enumerate(labels.classes)}
        counts = {n: [sum(i in own for own in sides[s]) for s in ('train', 'val')] for n, i in index.items()}
        assert counts['rare'] == [1, 1] and counts['once'] == [1, 0]
        assert counts['half'] == [24, 6] and counts['common'][1] == 12


def test_a_large_share_leaves_a_rare_class_to_train_on(tmp_path):
    as_boxes(tmp_path, [['common']] * 20 + [['rare']] * 2)
    for seed in range(3):
        labels = read_labels(tmp_path, split=0.9, seed=seed)
        rare = [[s for s in own if 1 in s.labels] for own in labels.splits.values()]
        assert [len(own) for own in rare] == [1, 1]


def test_near_identical_images_stay_together(tmp_path):
    seeds = [number % 12 for number in range(48)]
    as_boxes(tmp_path, [['cat']] * 48, seeds)
    for number in range(12, 24):  # smaller, and compressed a lot
        file = tmp_path / 'images' / f'{number:03}.jpg'
        Image.open(file).resize((56, 42)).save(file, quality=40)
    for number in range(24, 36):  # brighter
        file = tmp_path / 'images' / f'{number:03}.jpg'
        Image.open(file).point(lambda v: min(255, v + 2)).save(file.with_suffix('.png'))
        file.unlink()
    for seed in range(5):
        labels = read_labels(tmp_path, seed=seed)
        sides = [{int(s.image.stem) % 12 for s in samples} for samples in labels.splits.values()]
        assert not sides[0] & sides[1] and len(sides[1]) in (2, 3)
    assert any(note.startswith('36 images are nearly the same as another') for note in labels.notes)


def test_near_identical_images_of_a_stated_split_are_told(tmp_path):
    as_yolo(tmp_path)
    names = {
        part: [n for n, t in TRUTH.items() if t[0] == part and t[1] == (97, 61)] for part in ('train', 'val')
    }
    one, other = names['train'][0], names['val'][0]
    shutil.copy(tmp_path / 'images' / 'train' / one, tmp_path / 'images' / 'val' / other)
    (note,) = (note for note in read_labels(tmp_path).notes if 'nearly the same' in note)
    assert note.startswith('1 of 3 images of val') and one in note and other in note


def test_images_that_are_all_the_same_cannot_be_split(tmp_path):
    assert 'which cannot be split' in error(as_boxes(tmp_path, [['cat']] * 3, [0, 0, 0]))


def test_pictures_of_little_contrast_are_not_taken_for_the_same(tmp_path):
    """A microscope's: the same ground with a few cells elsewhere."""
    as_boxes(tmp_path, [['cat']] * 6)
    for number, file in enumerate(sorted((tmp_path / 'images').iterdir())):
        pixels = np.full((48, 64, 3), 240, np.uint8)
        pixels[5 + 6 * number : 15 + 6 * number, 10:20] = 150
        Image.fromarray(pixels).save(file, quality=95)
    assert not any('nearly the same' in note for note in read_labels(tmp_path).notes)


def test_pairs_are_those_that_all_comparisons_find():
    """Against every pair, one by one."""
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**63, 300, dtype=np.uint64)
    tiny = random.integers(0, 256, (300, 256), np.uint8)
    for number in range(100, 300):
        other = random.integers(0, 100)
        flipped = np.uint64(
            sum(1 << int(bit) for bit in random.choice(64, random.integers(0, 7), replace=False))
        )
        hashes[number], tiny[number] = hashes[other] ^ flipped, tiny[other]
    groups = np.arange(300)
    for a in range(300):
        for b in range(a):
            if (
                bin(int(hashes[a]) ^ int(hashes[b])).count('1') <= near.DISTANCE
                and (tiny[a] == tiny[b]).all()
            ):
                groups[groups == max(groups[a], groups[b])] = min(groups[a], groups[b])
    assert (near._groups(hashes, tiny) == groups).all() and len(set(groups.tolist())) < 250


def test_a_hundred_thousand_hashes_are_compared_in_seconds():
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**63, 100_000, dtype=np.uint64)
    hashes[:2000] &= np.uint64(0xFFFF)  # pictures that are flat but for a corner
    tiny = random.integers(0, 256, (100_000, 4), np.uint8)
    hashes[-1], tiny[-1] = hashes[5] ^ np.uint64(0b10001), tiny[5]
    groups = near._groups(hashes, tiny)
    assert groups[-1] == 5 and groups[50_000] == 50_000


def test_a_stated_split_without_val_or_without_train(tmp_path):
    as_yolo(tmp_path)
    text = (tmp_path / 'data.yaml').read_text()
    (tmp_path / 'data.yaml').write_text(text.replace('val: images/val', 'test: images/val'))
    labels = read_labels(tmp_path)
    assert list(labels.splits) == ['train', 'val', 'test'] and not labels.given
    assert {s.image.name for s in labels.splits['test']} == set(expected()['val'])
    (tmp_path / 'data.yaml').write_text(text.replace('train: images/train\n', ''))
    labels = read_labels(tmp_path)
    assert list(labels.splits) == ['train', 'val'] and len(list(labels.samples())) == len(expected()['val'])
    assert any('no train: all images are split anew' in note for note in labels.notes)


def test_images_outside_of_every_split(tmp_path):
    as_voc(tmp_path, lists=False)
    for suffix in ('jpg', 'xml'):
        (tmp_path / 'train' / f'b00.{suffix}').rename(tmp_path / f'b00.{suffix}')
    assert 'b00.jpg: 1 images belong to no split, others to train, val' in error(tmp_path)
    found = plain(read_labels(tmp_path, skip_corrupt=True))
    assert list(found) == ['train', 'val'] and len(found['train']) == len(expected()['train']) - 1


def test_the_share_of_a_split(tmp_path):
    as_boxes(tmp_path, [['cat']] * 40)
    assert [len(own) for own in read_labels(tmp_path, split=0.5).splits.values()] == [20, 20]
    assert 'below 1, got 1.5' in error(tmp_path, split=1.5)
    assert split.EMPTY == -1


@pytest.mark.parametrize('kind', ['12 bits', 'float'])
def test_images_of_more_than_8_bits_are_compared_by_their_whole_range(kind, tmp_path):
    """Pillow cuts their values off at 255: all would be white, and so the same."""
    files = []
    for number in range(6):
        values = np.random.default_rng(number % 5).integers(300, 4096, (6, 8)).astype(np.uint16)
        image = np.kron(values, np.ones((8, 8), np.uint16))
        files.append(tmp_path / f'{number}.tif')
        Image.fromarray(image if kind == '12 bits' else image.astype(np.float32) / 4095).save(files[-1])
    assert near.groups_of(files).tolist() == [0, 1, 2, 3, 4, 0]
