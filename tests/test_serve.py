"""What `convnext serve` answers, what it refuses, and the page in a browser."""

import base64
import contextlib
import http.client
import io
import json
import re
import shutil
import signal
import socket
import struct
import threading
import time
import zlib
from pathlib import Path

import cv2
import numpy as np
import PIL.Image
import pytest
import torch
from conftest import begin, convnext, tool
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from pycocotools import mask as coding
from test_infer import CLASSES, DETECTOR, SEGMENTER, checkpoint

from convnext_backbone.classification.data import ImageDataset
from convnext_backbone.classify import ClassPredictor, make_predictor
from convnext_backbone.config import read_config
from convnext_backbone.errors import UnreadableImage, UserError, message
from convnext_backbone.inference import Predictor
from convnext_backbone.serve import Answers, Server
from convnext_backbone.serve.answers import number_map

CLASSIFIER = 'configs/demo/classifier_shapes.py'
LIMIT = 2**20  # bytes of an image file
NAMES = {DETECTOR: CLASSES, SEGMENTER: ['background', *CLASSES], CLASSIFIER: CLASSES}


@contextlib.contextmanager
def serving(predictor, **options):
    """A server in a thread of this process; its ``answers`` may be looked at."""
    with Server('127.0.0.1', 0) as server:
        options = dict(score=0.3, most_bytes=LIMIT, most_pixels=10**6) | options
        server.answers = Answers(predictor, 'folder/net.py', 'secret/weights.pth', **options)
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
            server.answers.close()


def ask(server, path: str, body: bytes | None = None, method: str = '', **headers):
    """Status, headers and content of an answer; JSON is read."""
    connection = http.client.HTTPConnection('127.0.0.1', server.port, timeout=30)
    connection.request(method or ('GET' if body is None else 'POST'), path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    if answer.headers['Content-Type'] == 'application/json':
        content = json.loads(content)
    return answer.status, answer.headers, content


def raw(server, text: bytes, end: bool = True) -> tuple[int, dict]:
    """Status and content for what no client would send; ``end`` closes our side."""
    with socket.create_connection(('127.0.0.1', server.port), timeout=30) as connection:
        connection.sendall(text)
        if end:
            connection.shutdown(socket.SHUT_WR)
        answer = b''.join(iter(lambda: connection.recv(4096), b''))
    head, _, content = answer.partition(b'\r\n\r\n')
    return int(head.split()[1]), json.loads(content)


def encoded(image: np.ndarray | PIL.Image.Image, kind: str = 'png', **options) -> bytes:
    stream = io.BytesIO()
    image = image if isinstance(image, PIL.Image.Image) else PIL.Image.fromarray(image)
    image.save(stream, kind, **options)
    return stream.getvalue()


def photo(width: int = 60, height: int = 40) -> bytes:
    """A JPEG that was taken with the camera turned."""
    image = cv2.resize(np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8), (width, height))
    exif = PIL.Image.Exif()
    exif[0x112] = 6  # a quarter turn
    return encoded(image, 'jpeg', exif=exif)


class StandIn:
    """A detector without a network: the left half of each image is a circle, its top left corner a cross.

    It counts how many predictions run at a time; ``width`` of the image decides the first score.
    """

    task, device = 'detection', 'cpu'
    meta = dict(classes=CLASSES, palette=[(255, 0, 0), (0, 0, 255), (0, 128, 0), (9, 9, 9), (200, 200, 0)])
    to_json = Predictor.to_json
    picture = staticmethod(lambda file: cv2.imread(str(file))[..., ::-1])

    def __init__(self, seconds: float = 0.0):
        self.seconds, self.running, self.most, self.go = seconds, 0, 0, threading.Event()
        self.go.set()

    def predict(self, file):
        self.running += 1
        self.most = max(self.most, self.running)
        assert self.go.wait(30)
        time.sleep(self.seconds)
        image = cv2.imread(str(file), cv2.IMREAD_ANYDEPTH)
        self.running -= 1
        if image is None:
            raise UnreadableImage(f'{file} cannot be read as an image (cut off): replace it')
        height, width = image.shape[:2]
        if width == 13:
            raise RuntimeError(f'[enforce fail at alloc_cpu.cpp:117] {file}: not enough')
        if width == 14:
            raise MemoryError
        masks = torch.zeros(2, height, width, dtype=torch.bool)
        masks[0, :, : width // 2] = masks[1, : height // 4, : width // 4] = True
        boxes = [[0, 0, width // 2, height], [0, 0, width // 4, height // 4]]
        found = dict(bboxes=torch.tensor(boxes).float(), labels=torch.tensor([0, 1]), masks=masks)
        sample = DetDataSample(metainfo=dict(ori_shape=(height, width)))
        sample.pred_instances = InstanceData(scores=torch.tensor([width / 1000, 0.95]), **found)
        return sample


@pytest.fixture(scope='module')
def stand_in():
    with serving(StandIn()) as server:
        yield server


@pytest.fixture(scope='module')
def predictors(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp('predictors')
    return {
        config: make_predictor(config, checkpoint(config, folder / f'{Path(config).stem}.pth', names), 'cpu')
        for config, names in NAMES.items()
    }


# -- answers ---------------------------------------------------------------------------------


def test_a_detector_answers_as_the_predictor_does_on_the_file(predictors, shapes, tmp_path):
    """Of a photo that is turned by its EXIF data, and of a PNG; least scores are kept."""
    predictor = predictors[DETECTOR]
    files = {'a.jpg': photo(), 'b.png': sorted((shapes / 'images/val').iterdir())[0].read_bytes()}
    with serving(predictor) as server:
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)
            sample = predictor.predict(tmp_path / name)
            for query, score in (('', 0.3), ('?score=0', 0), ('?score=0.1', 0.1)):
                status, _, found = ask(server, f'/predict{query}', content)
                expected = predictor.to_json(sample, score)
                assert status == 200
                assert {key: found[key] for key in expected} == expected
        assert ask(server, '/predict?score=0', files['b.png'])[2]['objects']
        assert ask(server, '/predict', files['a.jpg'])[2]['width'] == 40  # upright
        colours = [f'#{r:02x}{g:02x}{b:02x}' for r, g, b in predictor.meta['palette']]
        expected = [dict(label=label, colour=colour) for label, colour in zip(CLASSES, colours)]
        facts = ask(server, '/model')[2]
        assert facts['classes'] == found['classes'] == expected
        assert (facts['task'], facts['config'], facts['checkpoint']) == ('detection', 'net', 'weights.pth')
        picture = base64.b64decode(ask(server, '/predict?picture=1', files['a.jpg'])[2]['picture'])
        shown = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
        np.testing.assert_array_equal(shown, cv2.imread(str(tmp_path / 'a.jpg')))


def test_a_segmenter_answers_with_shares_and_the_map(predictors, shapes):
    predictor, file = predictors[SEGMENTER], sorted((shapes / 'images/val').iterdir())[0]
    numbers = predictor.predict(file).pred_sem_seg.data[0].numpy()
    with serving(predictor) as server:
        found = ask(server, '/predict?map=1', file.read_bytes())[2]
        image = PIL.Image.open(io.BytesIO(base64.b64decode(found['map'])))
        assert image.mode == 'L'
        np.testing.assert_array_equal(np.asarray(image), numbers)
        names = [each['label'] for each in found['classes']]
        shares = {name: (numbers == i).mean() for i, name in enumerate(names) if (numbers == i).any()}
        assert found['share_of_pixels'] == pytest.approx(shares, abs=1e-6)
        assert 'map' not in ask(server, '/predict', file.read_bytes())[2]


def test_a_classifier_answers_with_the_best_classes_of_the_evaluation(predictors, shapes):
    """The same as the network gives for the item of the data set of the evaluation."""
    predictor = predictors[CLASSIFIER]
    data = read_config(CLASSIFIER).val_dataloader.dataset
    dataset = ImageDataset(f'{shapes}/classification', 'val', dict(data.transform))
    with serving(predictor) as server, torch.no_grad():
        for index in (0, len(dataset) - 1):
            logits = predictor.model(dataset[index]['inputs'][None])[0].double()
            scores = (logits.exp() / logits.exp().sum()).tolist()
            order = sorted(range(5), key=lambda number: -scores[number])
            found = ask(server, '/predict', Path(dataset.filename(index)).read_bytes())[2]
            assert [each['label'] for each in found['classes']] == [CLASSES[number] for number in order]
            assert [each['score'] for each in found['classes']] == pytest.approx(
                [scores[number] for number in order], abs=1e-4
            )


def test_a_classifier_predicts_pixels_as_files_and_writes_into_the_picture(predictors, tmp_path):
    predictor, file = predictors[CLASSIFIER], tmp_path / 'a.png'
    cv2.imwrite(str(file), np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8))
    of_file, of_pixels = predictor.predict(file), predictor.predict(cv2.imread(str(file)))
    assert torch.equal(of_file.pred_score, of_pixels.pred_score)
    picture = predictor.draw(file, of_file)
    plain = predictor.picture(file)
    assert picture.shape == plain.shape == (90, 120, 3)
    np.testing.assert_array_equal(plain, cv2.imread(str(file))[..., ::-1])
    assert (picture != plain).any()
    with pytest.raises(UnreadableImage, match='cannot be read as an image'):
        predictor.predict(__file__)
    with pytest.raises(UserError, match='no image at'):
        predictor.predict(tmp_path / 'none.png')
    cv2.imwrite(str(tmp_path / 'deep.png'), np.full((9, 9), 300, np.uint16))
    with pytest.raises(UnreadableImage, match=r'deep.png has more than 8 bits \(I;16\): save it with 8'):
        predictor.predict(tmp_path / 'deep.png')


def test_names_of_a_classifier_come_from_the_checkpoint_or_are_numbers(tmp_path):
    def names(*classes):
        return ClassPredictor(CLASSIFIER, checkpoint(CLASSIFIER, tmp_path / 'c.pth', classes), 'cpu').meta

    synsets = ('n02123045', 'n01440764', 'n02084071', 'n03345487', 'n00007846')
    words = ['tabby, tabby cat', 'tench, Tinca tinca']  # of ILSVRC-2012's list
    assert names(*synsets)['classes'][:2] == words
    assert names(*synsets[:4], 'n99999999')['classes'] == [*synsets[:4], 'n99999999']  # another's folders
    assert names()['classes'] == [f'class {i}' for i in range(5)]
    with pytest.raises(UserError, match='names 2 classes, the model .* predicts 5'):
        names('cat', 'dog')
    with pytest.raises(UserError, match='is no classifier'):
        ClassPredictor(DETECTOR, 'c.pth', 'cpu')


# -- limits ----------------------------------------------------------------------------------


def test_requests_are_queued_one_at_a_time_and_each_gets_its_own_answer():
    predictor, found = StandIn(0.02), {}
    with serving(predictor, waiting=16) as server:

        def client(width: int) -> None:
            found[width] = ask(server, '/predict', encoded(np.zeros((20, width, 3), np.uint8)))

        threads = [threading.Thread(target=client, args=(width,)) for width in range(400, 412)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert predictor.most == 1
    assert {width: answer['width'] for width, (_, _, answer) in found.items()} == {
        w: w for w in range(400, 412)
    }
    assert {width: answer['objects'][0]['score'] for width, (_, _, answer) in found.items()} == {
        width: width / 1000 for width in range(400, 412)
    }


def test_beyond_the_places_a_request_is_refused_and_later_taken():
    predictor = StandIn()
    predictor.go.clear()
    content, found = encoded(np.zeros((20, 500, 3), np.uint8)), []
    with serving(predictor, waiting=1) as server:
        threads = [
            threading.Thread(target=lambda: found.append(ask(server, '/predict', content))) for _ in '12'
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: predictor.running == 1 and not server.answers._places._value)
        status, headers, answer = ask(server, '/predict', content)
        assert (status, headers['Retry-After']) == (503, '2')
        assert 'try again' in answer['error']
        assert ask(server, '/health')[0] == 200  # while it predicts
        predictor.go.set()
        for thread in threads:
            thread.join()
        assert [status for status, _, _ in found] == [200, 200]
        assert ask(server, '/predict', content)[0] == 200


def wait_until(condition) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


JPEG = photo(600, 400)


@pytest.mark.parametrize(
    ('content', 'status', 'words'),
    [
        (b'', 400, 'no image'),
        (b'hello', 415, 'no image'),
        (b'II*\0', 415, 'no image'),
        (b'\xff\xd8\xff\xe0', 415, 'no image'),
        (JPEG[: len(JPEG) // 2], 415, 'cut off'),
        (encoded(np.eye(60, 40, dtype=bool))[:-30], 415, 'cut off'),
        (
            encoded(np.zeros((1001, 1000), np.uint8)),
            413,
            '1000 x 1001 pixels is too large: at most 1 million',
        ),
        (encoded(np.zeros((9, 13, 3), np.uint8)), 500, '13 x 9 pixels could not be predicted: RuntimeError'),
        (encoded(np.zeros((9, 14, 3), np.uint8)), 500, 'the memory is too small'),
        (bytes(LIMIT + 1), 413, '1.0 MB, more than the 1 MB'),
    ],
    ids=[
        'empty',
        'text',
        'half header',
        'no header',
        'half JPEG',
        'short PNG',
        'pixels',
        'error',
        'memory',
        'bytes',
    ],
)
def test_what_cannot_be_predicted_is_a_sentence_and_the_server_goes_on(
    stand_in, content, status, words, capfd
):
    found, _, answer = ask(stand_in, '/predict', content)
    assert (found, [*answer]) == (status, ['error'])
    assert words in answer['error']
    assert answer['error'].endswith('.')
    assert '/tmp' not in answer['error']
    assert ask(stand_in, '/predict', encoded(np.zeros((9, 400, 3), np.uint8)))[0] == 200
    assert ('Traceback' in capfd.readouterr().err) == (status == 500)


def test_the_size_of_a_file_is_known_before_it_is_decoded(stand_in):
    """Headers that promise 60000 x 60000 pixels, in a format that Pillow reads and one that it does not."""
    large = bytearray(encoded(np.zeros((9, 9, 3), np.uint8)))
    large[16:24] = (60000).to_bytes(4, 'big') * 2
    large[29:33] = zlib.crc32(large[12:29]).to_bytes(4, 'big')
    words = 'The image is too large: at most 1 million pixels. Send a smaller one.'
    assert ask(stand_in, '/predict', bytes(large))[::2] == (413, dict(error=words))
    large = bytearray(cv2.imencode('.tif', np.zeros((8, 8), np.float64))[1].tobytes())
    with pytest.raises(PIL.UnidentifiedImageError):
        PIL.Image.open(io.BytesIO(large))
    assert ask(stand_in, '/predict', bytes(large))[0] == 200
    for tag in (0x100, 0x101):  # width and height, each a number of 16 bits
        entry = struct.pack('<HHI', tag, 3, 1)
        assert entry + b'\x08\0' in large
        large = large.replace(entry + b'\x08\0', entry + struct.pack('<H', 60000))
    status, _, answer = ask(stand_in, '/predict', bytes(large))
    assert (status, '60000 x 60000 pixels' in answer['error']) == (413, True)


@pytest.mark.parametrize(
    ('head', 'status', 'words'),
    [
        ('Transfer-Encoding: chunked', 411, 'Content-Length'),
        ('Transfer-Encoding: chunked\r\nContent-Length: 4', 411, 'Content-Length'),
        ('X: y', 411, 'Content-Length'),
        ('Content-Length: -1', 400, 'one number'),
        ('Content-Length: 1_0', 400, 'one number'),
        ('Content-Length: 4\r\nContent-Length: 5', 400, 'one number'),
        ('Content-Length: 100', 400, '96 bytes missing'),
        (f'Content-Length: {10**12}\r\nExpect: 100-continue', 413, '953674.3 MB'),
    ],
)  # fmt: skip
def test_the_length_of_a_body_is_looked_at_before_it_is_read(stand_in, head, status, words):
    text = f'POST /predict HTTP/1.1\r\nHost: localhost\r\n{head}\r\n\r\nabcd'
    found, answer = raw(stand_in, text.encode())
    assert found == status
    assert words in answer['error']


def test_a_client_that_sends_nothing_is_given_up(stand_in, monkeypatch):
    monkeypatch.setattr('convnext_backbone.serve.server.Handler.timeout', 0.2)
    text = b'POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nabc'
    status, answer = raw(stand_in, text, end=False)
    assert status == 408
    assert '6 bytes missing' in answer['error']


@pytest.mark.parametrize(
    'path',
    [
        '/../setup.cfg',
        '/%2e%2e/setup.cfg',
        '//etc/passwd',
        '/page.html',
        '/model/',
        '/..\\setup.cfg',
        '/predict',
        'http://localhost/setup.cfg',
        '/favicon.ico',
    ],
)
def test_there_are_no_other_routes(stand_in, path):
    status, headers, answer = ask(stand_in, path)
    assert status == 404
    assert headers['Content-Type'] == 'application/json'
    assert 'GET /health' in answer['error']


def test_what_is_no_request_is_answered_in_json_too(stand_in):
    assert raw(stand_in, b'nonsense\r\n\r\n')[0] == 400
    assert raw(stand_in, b'GET /' + b'a' * 70000 + b' HTTP/1.1\r\n\r\n')[0] == 414
    assert ask(stand_in, '/predict', b'a', 'DELETE')[0] == 501
    for query in (
        'score=2',
        'score=nan',
        'score=a',
        'map=2',
        'mask=1',
        '&'.join(f'{i}=1' for i in range(99)),
    ):
        status, _, answer = ask(stand_in, f'/predict?{query}', b'a')
        assert status == 400
        assert 'score (0 to 1)' in answer['error']


def test_only_requests_to_names_of_this_machine_and_by_pages_of_ours_are_answered(stand_in):
    """Against DNS rebinding, and pages of other sites."""
    port = stand_in.port
    for host in ('localhost', f'localhost:{port}', '127.0.0.1:1', f'[::1]:{port}', 'LOCALHOST'):
        assert ask(stand_in, '/model', Host=host)[0] == 200
    for host in ('evil.example', f'evil.example:{port}', 'localhost.evil.example', '', '[', '169.254.0.1'):
        status, _, answer = ask(stand_in, '/model', Host=host)
        assert status == 403
        assert 'not under the name' in answer['error']
    status, headers, _ = ask(stand_in, '/model', Host='localhost', Origin='http://localhost')
    assert status == 200
    assert not [name for name in headers if name.lower().startswith('access-control')]
    for origin in ('http://evil.example', 'null', f'http://localhost:{port + 1}'):
        assert ask(stand_in, '/predict', b'a', Host=f'localhost:{port}', Origin=origin)[0] == 403


def test_under_another_address_the_page_is_where_the_server_says():
    """IPv6 is in brackets; whoever listens to all networks is asked under any name."""
    with Server('0.0.0.0', 0) as server:
        assert (server.url, server.is_local, server.names) == (
            f'http://localhost:{server.port}/',
            False,
            None,
        )
    try:
        server = Server('::1', 0)
    except UserError as error:
        pytest.skip(f'no IPv6 here: {message(error)}')
    with server:
        assert (server.url, server.is_local) == (f'http://[::1]:{server.port}/', True)


# -- the command -----------------------------------------------------------------------------


def refused(*arguments) -> str:
    with pytest.raises(UserError) as error:
        tool('serve').main([DETECTOR, 'c.pth', *arguments])
    text = message(error.value)
    assert '\n' not in text
    return text


def test_options_that_cannot_be_are_one_line(stand_in, capsys):
    handler = signal.getsignal(signal.SIGTERM)
    taken = str(stand_in.port)
    assert f'port {taken} of 127.0.0.1 cannot be taken (Address already in use)' in refused('--port', taken)
    assert '--host no.such.host.invalid is no name' in refused('--host', 'no.such.host.invalid')
    assert '--port is a number' in refused('--port', '99999')
    assert '--score is a number' in refused('--score', '30')
    assert '--max-megabytes is a number above 0' in refused('--max-megabytes', '0')
    assert not capsys.readouterr().err
    assert 'c.pth' in refused('--host', '0.0.0.0', '--port', '0')
    assert 'everyone who reaches this machine' in capsys.readouterr().err
    signal.signal(signal.SIGTERM, handler)


def test_the_command_serves_until_sigterm(tmp_path, shapes):
    weights = checkpoint(CLASSIFIER, tmp_path / 'c.pth', CLASSES)
    log = tmp_path / 'log'
    log.touch()
    process = begin(convnext, 'serve', CLASSIFIER, weights, '--port', '0', '--device', 'cpu', log=log)
    wait_until(lambda: 'Ctrl-C' in log.read_text() or process.exitcode is not None)
    port = int(re.search(r'http://127\.0\.0\.1:(\d+)/ ', log.read_text())[1])
    connection = http.client.HTTPConnection('127.0.0.1', port, timeout=30)
    connection.request('POST', '/predict', photo())
    assert len(json.loads(connection.getresponse().read())['classes']) == 5
    process.terminate()
    process.join(30)
    assert process.exitcode == 0
    assert log.read_text().splitlines()[-1] == 'stopped'
    assert 'Traceback' not in log.read_text()


# -- the page in a browser -------------------------------------------------------------------


@pytest.fixture(scope='module')
def chrome(tmp_path_factory):
    """A browser without a window; what it saves is in ``downloads``."""
    webdriver = pytest.importorskip('selenium.webdriver', reason='no selenium: pip install selenium')
    browser, driver = shutil.which('chromium'), shutil.which('chromedriver')
    if not browser or not driver:
        pytest.skip('no Chromium here: apt install chromium chromium-driver')
    folder = tmp_path_factory.mktemp('chrome')
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for name in (
        *('headless', 'no-sandbox', 'disable-gpu', 'disable-background-networking', 'no-first-run'),
        *('disable-component-update', 'disable-sync', f'user-data-dir={folder / "profile"}'),
    ):
        options.add_argument(f'--{name}')
    options.set_capability('goog:loggingPrefs', dict(browser='ALL', performance='ALL'))
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    chrome.downloads = folder / 'downloads'
    chrome.execute_cdp_cmd(
        'Browser.setDownloadBehavior', dict(behavior='allow', downloadPath=str(chrome.downloads))
    )
    yield chrome
    chrome.quit()


@contextlib.contextmanager
def opened(chrome, server, width: int = 1200):
    """The page of a server. At the end: no error was logged, and nothing else was asked for anything."""
    size = dict(width=width, height=800, deviceScaleFactor=1, mobile=width < 600)
    chrome.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', size)
    chrome.get(server.url)
    for kind in ('browser', 'performance'):
        chrome.get_log(kind)
    chrome.refresh()
    wait_until(lambda: chrome.execute_script('return Boolean(facts)'))
    yield
    errors = [entry for entry in chrome.get_log('browser') if entry['level'] == 'SEVERE']
    assert [entry for entry in errors if entry['source'] != 'network'] == []  # not: status 415
    events = [json.loads(entry['message'])['message'] for entry in chrome.get_log('performance')]
    urls = [e['params']['request']['url'] for e in events if e['method'] == 'Network.requestWillBeSent']
    assert {url for url in urls if not url.startswith(('blob:', 'data:'))} >= {
        server.url,
        f'{server.url}model',
    }
    assert [url for url in urls if not url.startswith((server.url, f'blob:{server.url}', 'data:'))] == []


def by(chrome, css: str) -> list:
    return chrome.find_elements('css selector', css)


def texts(chrome, css: str) -> list[str]:
    return [' '.join(element.text.split()) for element in by(chrome, css)]


def choose(chrome, file: Path) -> None:
    """Choose a file and wait for what comes of it."""
    before = texts(chrome, '#status, #error')
    by(chrome, '#file')[0].send_keys(str(file))
    done = 'return !document.body.classList.contains("busy")'
    wait_until(lambda: chrome.execute_script(done) and texts(chrome, '#status, #error') != before)
    settle(chrome)


def settle(chrome) -> None:
    """Wait for two frames, in which what was asked for is drawn."""
    chrome.execute_async_script('requestAnimationFrame(() => requestAnimationFrame(arguments[0]))')


def colour(chrome, x: float, y: float) -> list[int]:
    """The colour at a place of the canvas, as parts of its width and height."""
    script = """const [x, y] = arguments, {width, height} = canvas;
    return [...canvas.getContext('2d').getImageData(x * width, y * height, 1, 1).data].slice(0, 3)"""
    return chrome.execute_script(script, x, y)


def mixed(mask: tuple, strength: float, under: float = 100) -> pytest.approx:
    """A colour laid over gray; the parts of colours are rounded on the way."""
    return pytest.approx([part * strength / 255 + under * (1 - strength / 255) for part in mask], abs=3)


RED, BLUE, GRAY = (255, 0, 0), (0, 0, 255), [100, 100, 100]


def test_a_detectors_page_filters_highlights_and_saves(chrome, tmp_path):
    """Of a photo 400 pixels wide: a circle (0.40) in the left half, a cross (0.95) in its corner."""
    from selenium.webdriver import ActionChains, Keys

    predictor, file = StandIn(), tmp_path / 'photo.jpg'
    exif = PIL.Image.Exif()
    exif[0x112] = 6
    file.write_bytes(encoded(np.full((400, 600, 3), 100, np.uint8), 'jpeg', exif=exif))
    with serving(predictor) as server, opened(chrome, server):
        predict, calls = server.answers.predict, []
        server.answers.predict = lambda *args, **options: calls.append(1) or predict(*args, **options)
        assert texts(chrome, 'h1, header p') == ['net', 'Detector of 5 classes, weights.pth']
        choose(chrome, file)
        assert texts(chrome, '#status')[0].startswith('2 objects in photo.jpg (')
        assert texts(chrome, '#list li') == ['cross 0.95', 'circle 0.40']
        assert by(chrome, '#canvas')[0].get_attribute('aria-label') == (
            '2 objects in photo.jpg: cross 0.95, circle 0.40'
        )
        assert chrome.execute_script('return canvas.width / canvas.height') == pytest.approx(
            400 / 600, abs=0.01
        )
        assert colour(chrome, 0.3, 0.6) == mixed(RED, 110)
        assert colour(chrome, 0.2, 0.2) == mixed(BLUE, 110)
        assert colour(chrome, 0.8, 0.6) == mixed(GRAY, 0)

        by(chrome, '#score')[0].send_keys(Keys.ARROW_RIGHT * 20)  # to 0.50
        settle(chrome)
        assert texts(chrome, '#least, #list li') == ['0.50', 'cross 0.95']
        assert texts(chrome, '#status') == ['1 object in photo.jpg']
        assert colour(chrome, 0.3, 0.6) == mixed(GRAY, 0)
        assert colour(chrome, 0.2, 0.2) == mixed(BLUE, 110)
        by(chrome, '#json')[0].click()
        by(chrome, '#picture')[0].click()
        saved = [chrome.downloads / 'photo.jpg.json', chrome.downloads / 'photo.jpg.png']
        wait_until(lambda: all(path.is_file() for path in saved))
        expected = ask(server, '/predict?score=0.5', file.read_bytes())[2]
        assert json.loads(saved[0].read_text()) == dict(image='photo.jpg', **expected)
        assert len(expected['objects']) == 1
        picture = cv2.imread(str(saved[1]))[..., ::-1]
        assert picture.shape == (600, 400, 3)
        assert picture[120, 80].tolist() == mixed(BLUE, 110)
        assert picture[360, 120].tolist() == mixed(GRAY, 0)

        by(chrome, '#score')[0].send_keys(Keys.ARROW_LEFT * 20, Keys.TAB, Keys.TAB, Keys.TAB)  # both buttons
        settle(chrome)
        assert texts(chrome, '.chosen') == texts(chrome, ':focus') == ['cross 0.95']
        assert colour(chrome, 0.2, 0.2) == mixed(BLUE, 150)
        assert colour(chrome, 0.3, 0.6) == mixed(RED, 35)
        ActionChains(chrome).send_keys(Keys.TAB, Keys.ENTER).perform()
        assert texts(chrome, '[aria-pressed=true]') == ['circle 0.40']
        by(chrome, 'h1')[0].click()  # the focus is elsewhere; it stays
        settle(chrome)
        assert texts(chrome, '.chosen') == ['circle 0.40']
        assert colour(chrome, 0.3, 0.6) == mixed(RED, 150)
        ActionChains(chrome).move_to_element_with_offset(by(chrome, '#canvas')[0], -150, -250).perform()
        settle(chrome)
        assert texts(chrome, '.chosen') == ['cross 0.95']  # the smaller one of two under the pointer
        assert len(calls) == 2  # one by the page, one by the test
        assert predictor.most == 1


def test_errors_are_shown_and_the_next_image_is_dropped_or_pasted(chrome, stand_in, tmp_path):
    (tmp_path / 'notes.png').write_text('no image')
    (tmp_path / 'large.png').write_bytes(bytes(LIMIT * 3 // 2))
    stack = np.full((300, 500, 3), 100, np.uint8)
    cv2.imwrite(str(tmp_path / 'scan.tif'), stack)
    send = """const [kind, done] = arguments, data = new DataTransfer();
    const drawn = document.createElement('canvas');
    [drawn.width, drawn.height] = [450, 200];
    drawn.toBlob(blob => { data.items.add(new File([blob], `${kind}.png`));
      const event = kind === 'drop' ? new DragEvent('drop', {dataTransfer: data, cancelable: true})
        : new ClipboardEvent('paste', {clipboardData: data});
      dispatchEvent(event); done(); })"""
    with opened(chrome, stand_in):
        choose(chrome, tmp_path / 'notes.png')
        assert texts(chrome, '#error')[0].startswith('notes.png: This is no image')
        assert not by(chrome, '#result')[0].is_displayed()
        choose(chrome, tmp_path / 'large.png')
        words = 'large.png has 1.5 MB, more than the 1 MB that the server takes.'
        assert texts(chrome, '#error') == [words]
        for kind in ('drop', 'paste'):
            chrome.execute_async_script(send, kind)
            words = f'2 objects in {kind}.png ('
            wait_until(lambda words=words: texts(chrome, '#status')[0].startswith(words))
            assert texts(chrome, '#error') == ['']
        choose(chrome, tmp_path / 'scan.tif')  # which the browser cannot read
        assert texts(chrome, '#list li') == ['cross 0.95', 'circle 0.50']
        assert colour(chrome, 0.3, 0.6) == mixed(RED, 110)
        assert colour(chrome, 0.8, 0.6) == mixed(GRAY, 0)


def test_the_page_reads_masks_as_pycocotools_writes_them(chrome, stand_in):
    rng = np.random.default_rng(0)
    with opened(chrome, stand_in):
        for height, width, share in ((1, 1, 1), (7, 5, 0.5), (40, 61, 0.02), (90, 3, 0.98), (300, 200, 0.9)):
            mask = (rng.random((height, width)) < share).astype(np.uint8)
            mask[:, width // 2] = 1  # a run over more than a column
            found = coding.encode(np.asfortranarray(mask))
            found = dict(size=found['size'], counts=found['counts'].decode())
            script = 'const {data, ...frame} = raster(...arguments); return [frame, [...data]]'
            frame, data = chrome.execute_script(script, found, width, height)
            whole = np.zeros_like(mask)
            rows, columns = (slice(frame[a], frame[a] + frame[b]) for a, b in ('yh', 'xw'))
            whole[rows, columns] = np.reshape(data, (frame['h'], frame['w']))
            np.testing.assert_array_equal(whole, mask)
        large = np.zeros((400, 600), np.uint8)
        large[100:200, 300:600] = 1
        found = coding.encode(np.asfortranarray(large))
        found = dict(size=found['size'], counts=found['counts'].decode())
        script = 'const {data, ...frame} = raster(...arguments); return [frame, Math.min(...data)]'
        assert chrome.execute_script(script, found, 60, 40) == [dict(x=30, y=10, w=30, h=10), 1]


def test_a_segmenters_page_lists_classes_and_dims_the_others(chrome, predictors, shapes, tmp_path):
    file = sorted((shapes / 'images/val').iterdir())[0]
    sample = predictors[SEGMENTER].predict(file)
    numbers = sample.pred_sem_seg.data[0].numpy()
    shares = predictors[SEGMENTER].to_json(sample)['share_of_pixels']
    with serving(predictors[SEGMENTER]) as server, opened(chrome, server):
        choose(chrome, file)
        assert chrome.execute_script('return [...shown.numbers]') == numbers.ravel().tolist()
        names = sorted(shares, key=lambda name: -shares[name])
        assert [text.partition(' ')[0] for text in texts(chrome, '#list li')] == names
        first, last = (NAMES[SEGMENTER].index(names[place]) for place in (0, -1))
        places = [np.argwhere(numbers == number)[0] for number in (first, last)]
        places = [((x + 0.5) / numbers.shape[1], (y + 0.5) / numbers.shape[0]) for y, x in places]
        image = cv2.imread(str(file))[..., ::-1]
        chrome.execute_script('choose(arguments[0])', last)
        settle(chrome)
        palette = predictors[SEGMENTER].meta['palette']
        for (x, y), number in zip(places, (first, last)):
            under = image[int(y * image.shape[0]), int(x * image.shape[1])]
            over, strength = (palette[last], 140) if number == last else ((0, 0, 0), 175)
            expected = [o * strength / 255 + u * (1 - strength / 255) for o, u in zip(over, under)]
            assert colour(chrome, x, y) == pytest.approx(expected, abs=3)
        assert texts(chrome, '.chosen')[0].startswith(f'{names[-1]} ')


@pytest.mark.parametrize('classes', [256, 847])
def test_the_page_reads_the_numbers_of_many_classes(chrome, stand_in, classes):
    numbers = np.arange(30 * 40).reshape(30, 40) % classes
    encoded_map = base64.b64encode(number_map(numbers, classes)).decode()
    script = 'const done = arguments[4]; classNumbers(...arguments).then(found => done([...found]))'
    with opened(chrome, stand_in):
        found = chrome.execute_async_script(script, encoded_map, 40, 30, classes)
    assert found == numbers.ravel().tolist()


@pytest.mark.parametrize('config', [DETECTOR, SEGMENTER, CLASSIFIER])
def test_nothing_runs_over_on_a_phone(chrome, predictors, config, tmp_path):
    """360 pixels wide, a picture that is wider, a file name that is longer."""
    file = tmp_path / f'{"a_long_name" * 9}.png'
    file.write_bytes(encoded(np.random.default_rng(0).integers(0, 256, (80, 700, 3), np.uint8)))
    with serving(predictors[config], score=0.0) as server, opened(chrome, server, 360):
        choose(chrome, file)
        assert len(by(chrome, '#list li')) >= (5 if config == CLASSIFIER else 1)
        width, beyond = chrome.execute_script(
            """return [document.documentElement.scrollWidth, [...document.querySelectorAll('body *')]
            .filter(element => element.getBoundingClientRect().right > 361).length]"""
        )
        assert (width, beyond) == (360, 0)
