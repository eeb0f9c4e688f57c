import io
import os
import pickle
import shutil
import tarfile

import numpy as np
import pytest

from data import load_dataset
from data.sources.cifar10 import load_cifar10
from data.sources.restricted_pickle import load_restricted

RECORDS = 12
BINARY, PYTHON = "cifar-10-batches-bin", "cifar-10-batches-py"
TRAIN_STEMS = [f"data_batch_{i}" for i in range(1, 6)]


@pytest.fixture(scope="module")
def batches():
    random = np.random.RandomState(0)
    return {
        stem: (
            random.randint(0, 256, (RECORDS, 3072)).astype(np.uint8),
            random.randint(0, 10, RECORDS).astype(np.uint8),
        )
        for stem in [*TRAIN_STEMS, "test_batch"]
    }


def binary_file(images, labels):
    return np.concatenate([labels[:, None], images], axis=1).tobytes()


def python_file(images, labels, protocol=2):
    batch = {b"batch_label": b"x", b"labels": labels.tolist(), b"data": images, b"filenames": [b"a.png"] * RECORDS}
    return pickle.dumps(batch, protocol=protocol)


def contents(batches, kind):
    if kind == BINARY:
        return {f"{stem}.bin": binary_file(*batch) for stem, batch in batches.items()}
    return {stem: python_file(*batch) for stem, batch in batches.items()}


def write_folder(root, kind, files):
    (root / kind).mkdir(parents=True)
    for name, content in files.items():
        (root / kind / name).write_bytes(content)
    return root / kind


def write_archive(root, kind, files, *, compresslevel=6):
    root.mkdir(parents=True, exist_ok=True)
    path = root / {BINARY: "cifar-10-binary.tar.gz", PYTHON: "cifar-10-python.tar.gz"}[kind]
    with tarfile.open(path, "w:gz", compresslevel=compresslevel) as archive:
        # Not in the order of the names, as in the official archive.
        for name in sorted(files, key=lambda name: name[::-1], reverse=True):
            member = tarfile.TarInfo(f"{kind}/{name}")
            member.size = len(files[name])
            archive.addfile(member, io.BytesIO(files[name]))
    return path


def load(root, split="train", **options):
    return load_cifar10(root=root, split=split, **({"download": False, "records_per_file": RECORDS} | options))


def check(dataset, batches, stems):
    images = np.concatenate([batches[stem][0] for stem in stems]).reshape(-1, 3, 32, 32)
    assert np.array_equal(dataset.images.numpy(), images)
    assert dataset.labels.tolist() == np.concatenate([batches[stem][1] for stem in stems]).tolist()
    assert (dataset.num_levels, dataset.num_classes, dataset.name) == (256, 10, "cifar10")
    # in the order of the archives' batches.meta
    assert " ".join(dataset.class_names) == "airplane automobile bird cat deer dog frog horse ship truck"
    assert dataset.split_source == "official split"


@pytest.mark.parametrize("kind", [BINARY, PYTHON])
@pytest.mark.parametrize("write", [write_folder, write_archive])
@pytest.mark.parametrize("subfolder", ["", "cifar10"])
def test_every_official_form_gives_the_same_pixels_in_the_official_order(tmp_path, batches, kind, write, subfolder):
    write(tmp_path / subfolder, kind, contents(batches, kind))
    check(load(tmp_path), batches, TRAIN_STEMS)
    check(load(tmp_path, "test"), batches, ["test_batch"])


@pytest.mark.parametrize("kind", [BINARY, PYTHON])
def test_the_root_may_be_the_folder_or_archive_itself(tmp_path, monkeypatch, batches, kind):
    def never(*_, **__):
        raise AssertionError("it starts a download")

    monkeypatch.setattr("data.sources.cifar10.download", never)
    files = contents(batches, kind)
    folder = write_folder(tmp_path / "extracted", kind, files)
    renamed = tmp_path / "renamed"
    shutil.copytree(folder, renamed)
    archive = write_archive(tmp_path, kind, files)
    for root in (folder, renamed, archive):
        check(load(root, "test", download=True), batches, ["test_batch"])


def test_an_archive_is_read_without_extracting_it(tmp_path, batches):
    archive = write_archive(tmp_path, BINARY, contents(batches, BINARY))
    load(tmp_path)
    assert list(tmp_path.iterdir()) == [archive]


def test_a_folder_of_the_test_split_alone_will_do_for_testing(tmp_path, batches, refuses):
    files = contents(batches, BINARY)
    write_folder(tmp_path, BINARY, {"test_batch.bin": files["test_batch.bin"]})
    check(load(tmp_path, "test"), batches, ["test_batch"])
    with refuses("lacks data_batch_1.bin", "data_batch_5.bin"):
        load(tmp_path)


def test_only_the_files_of_the_split_are_opened(tmp_path, batches):
    write_folder(tmp_path, BINARY, {"test_batch.bin": contents(batches, BINARY)["test_batch.bin"]})
    os.mkfifo(tmp_path / BINARY / "data_batch_1.bin")  # opening it would block for ever
    check(load(tmp_path, "test"), batches, ["test_batch"])


@pytest.mark.parametrize("write", [write_folder, write_archive])
@pytest.mark.parametrize(("cut", "problem"), [(-1, "truncated"), (-3073, "truncated"), (None, "too long")])
def test_a_batch_of_the_wrong_size_is_refused(tmp_path, batches, refuses, write, cut, problem):
    files = contents(batches, BINARY)
    name = "data_batch_3.bin"
    files[name] = files[name][:cut] if cut else files[name] + bytes(3073)
    write(tmp_path, BINARY, files)
    with refuses(name, problem, f"expected {RECORDS * 3073} bytes, got {len(files[name])}"):
        load(tmp_path)


def test_real_files_must_have_ten_thousand_records(tmp_path, batches, refuses):
    write_folder(tmp_path, BINARY, contents(batches, BINARY))
    with refuses("expected 30730000 bytes", f"got {RECORDS * 3073}"):
        load_dataset("cifar10", root=tmp_path, split="test")


@pytest.mark.parametrize("kind", [BINARY, PYTHON])
def test_a_label_above_nine_is_refused(tmp_path, batches, refuses, kind):
    images, labels = batches["data_batch_2"]
    wrong = labels.copy()
    wrong[4] = 10
    write_folder(tmp_path, kind, contents({**batches, "data_batch_2": (images, wrong)}, kind))
    with refuses("data_batch_2", "label 10", "0 .. 9"):
        load(tmp_path)


@pytest.mark.parametrize("kind", [BINARY, PYTHON])
@pytest.mark.parametrize("split", ["train", "test"])
def test_an_archive_truncated_anywhere_is_refused_in_one_line(tmp_path, batches, refuses, kind, split):
    path = write_archive(tmp_path, kind, contents(batches, kind))
    whole = path.read_bytes()
    for keep in [0, 1, 11, *range(len(whole) // 9, len(whole) - 9, len(whole) // 9), len(whole) - 9, len(whole) - 1]:
        path.write_bytes(whole[:keep])
        with refuses(path.name):
            load(tmp_path, split)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_flipped_bit_in_an_archive_is_found(tmp_path, batches, refuses, split):
    path = write_archive(tmp_path, BINARY, contents(batches, BINARY), compresslevel=0)
    content = bytearray(path.read_bytes())
    content[60000] ^= 1  # stored, so only the checksum can tell
    path.write_bytes(content)
    with refuses(path, "corrupt"):
        load(tmp_path, split)


def test_an_archive_without_a_batch_is_refused(tmp_path, batches, refuses):
    files = contents(batches, BINARY)
    del files["data_batch_4.bin"]
    path = write_archive(tmp_path, BINARY, files)
    with refuses(path, "lacks data_batch_4.bin"):
        load(tmp_path)


def test_a_link_in_place_of_a_batch_is_refused(tmp_path, refuses):
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo(f"{PYTHON}/test_batch")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(member)
    with refuses("test_batch", "not a regular file"):
        load(tmp_path, "test")


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_a_malicious_pickle_is_refused_by_name_and_not_executed(tmp_path, refuses, protocol):
    mark = tmp_path / "executed"
    write_folder(tmp_path, PYTHON, {"test_batch": pickle.dumps({b"data": Bomb(mark)}, protocol=protocol)})
    with refuses("test_batch", "open", "refused"):
        load(tmp_path, "test")
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"cbuiltins\neval\n(S'1'\ntR.",
        b"cnumpy\nload\n(S'x'\ntR.",
        b"cnumpy.core.multiarray\n_reconstruct.__globals__\n.",
        b"c_codecs\ndecode\n(S'x'\ntR.",
    ],
)
def test_other_globals_are_refused(refuses, content):
    with refuses("test_batch", "refused"):
        load_restricted(content, source="test_batch")


def test_codecs_beyond_latin1_are_refused(refuses):
    content = b"c_codecs\nencode\n(X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13tR."
    with refuses("rot13"):
        load_restricted(content, source="test_batch")


@pytest.mark.parametrize("protocol", [0, 2, 3, 4])
def test_arrays_bytes_and_containers_are_unpickled(protocol):
    array = np.arange(12, dtype=np.uint8).reshape(3, 4)
    found = load_restricted(pickle.dumps({b"a": [array, b"\xff", 3, (1.5, None)]}, protocol), source="x")
    assert np.array_equal(found[b"a"][0], array) and found[b"a"][1:] == [b"\xff", 3, (1.5, None)]


def test_a_pickle_of_python_2_gives_bytes():
    assert load_restricted(b"(dp0\nS'data'\np1\nS'\\xff'\np2\ns.", source="x") == {b"data": b"\xff"}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({b"data": np.zeros((RECORDS, 3071), np.uint8)}, ["3071"]),
        ({b"data": np.zeros((RECORDS, 3072), np.int8)}, ["int8"]),
        ({b"data": [1, 2]}, ["list"]),
        ({b"labels": [1] * (RECORDS - 1)}, ["labels"]),
        ({b"labels": ["1"] * RECORDS}, ["labels"]),
        ({b"labels": [10**30] * RECORDS}, ["label 1000"]),
        ({b"labels": None}, ["labels"]),
    ],
)
def test_a_python_batch_of_other_contents_is_refused(tmp_path, batches, refuses, change, words):
    images, labels = batches["test_batch"]
    batch = {b"data": images, b"labels": labels.tolist()} | change
    write_folder(tmp_path, PYTHON, {"test_batch": pickle.dumps(batch, 2)})
    with refuses("test_batch", *words):
        load(tmp_path, "test")


@pytest.mark.parametrize("keep", [0, 1, 100, 5000, -1])
def test_a_truncated_pickle_is_one_line(tmp_path, batches, refuses, keep):
    write_folder(tmp_path, PYTHON, {"test_batch": python_file(*batches["test_batch"])[:keep]})
    with refuses("test_batch", "truncated"):
        load(tmp_path, "test")


def test_a_pickle_of_something_else_and_a_huge_file_are_refused(tmp_path, refuses):
    write_folder(tmp_path, PYTHON, {"test_batch": pickle.dumps([1, 2], 2)})
    with refuses("test_batch", "not a CIFAR-10 batch"):
        load(tmp_path, "test")
    (tmp_path / PYTHON / "test_batch").write_bytes(bytes(RECORDS * 3 * 3073))
    with refuses("test_batch", "too long"):
        load(tmp_path, "test")
