import io
import os
import shutil
import tarfile

import numpy as np
import pytest

from data import load_dataset
from data.sources.cifar10 import load_cifar10

RECORDS = 12
BINARY = "cifar-10-batches-bin"
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


def contents(batches):
    return {
        f"{stem}.bin": np.concatenate([labels[:, None], images], axis=1).tobytes()
        for stem, (images, labels) in batches.items()
    }


def write_folder(root, files):
    (root / BINARY).mkdir(parents=True)
    for name, content in files.items():
        (root / BINARY / name).write_bytes(content)
    return root / BINARY


def write_archive(root, files, *, compresslevel=6):
    root.mkdir(parents=True, exist_ok=True)
    path = root / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=compresslevel) as archive:
        # Not in the order of the names, as in the official archive.
        for name in sorted(files, key=lambda name: name[::-1], reverse=True):
            member = tarfile.TarInfo(f"{BINARY}/{name}")
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
    # six files of as many images
    assert dataset.other_split_size == (6 - len(stems)) * len(images) // len(stems)


@pytest.mark.parametrize("write", [write_folder, write_archive])
@pytest.mark.parametrize("subfolder", ["", "cifar10"])
def test_folder_and_archive_give_the_same_pixels_in_the_official_order(tmp_path, batches, write, subfolder):
    write(tmp_path / subfolder, contents(batches))
    check(load(tmp_path), batches, TRAIN_STEMS)
    check(load(tmp_path, "test"), batches, ["test_batch"])


def test_the_root_may_be_the_folder_or_archive_itself(tmp_path, monkeypatch, batches):
    def never(*_, **__):
        raise AssertionError("it starts a download")

    monkeypatch.setattr("torch.hub.download_url_to_file", never)
    files = contents(batches)
    folder = write_folder(tmp_path / "extracted", files)
    renamed = tmp_path / "renamed"
    shutil.copytree(folder, renamed)
    archive = write_archive(tmp_path, files)
    for root in (folder, renamed, archive):
        check(load(root, "test", download=True), batches, ["test_batch"])


def test_an_archive_is_read_without_extracting_it(tmp_path, batches):
    archive = write_archive(tmp_path, contents(batches))
    load(tmp_path)
    assert list(tmp_path.iterdir()) == [archive]


def test_a_folder_of_the_test_split_alone_will_do_for_testing(tmp_path, batches, refuses):
    files = contents(batches)
    write_folder(tmp_path, {"test_batch.bin": files["test_batch.bin"]})
    check(load(tmp_path, "test"), batches, ["test_batch"])
    with refuses("lacks data_batch_1.bin", "data_batch_5.bin"):
        load(tmp_path)


def test_only_the_files_of_the_split_are_opened(tmp_path, batches):
    write_folder(tmp_path, {"test_batch.bin": contents(batches)["test_batch.bin"]})
    os.mkfifo(tmp_path / BINARY / "data_batch_1.bin")  # opening it would block for ever
    check(load(tmp_path, "test"), batches, ["test_batch"])


@pytest.mark.parametrize("write", [write_folder, write_archive])
@pytest.mark.parametrize(("cut", "problem"), [(-1, "truncated"), (-3073, "truncated"), (None, "too long")])
def test_a_batch_of_the_wrong_size_is_refused(tmp_path, batches, refuses, write, cut, problem):
    files = contents(batches)
    name = "data_batch_3.bin"
    files[name] = files[name][:cut] if cut else files[name] + bytes(3073)
    write(tmp_path, files)
    with refuses(name, problem, f"expected {RECORDS * 3073} bytes, got {len(files[name])}"):
        load(tmp_path)


def test_real_files_must_have_ten_thousand_records(tmp_path, batches, refuses):
    write_folder(tmp_path, contents(batches))
    with refuses("expected 30730000 bytes", f"got {RECORDS * 3073}"):
        load_dataset("cifar10", root=tmp_path, split="test")


def test_a_label_above_nine_is_refused(tmp_path, batches, refuses):
    images, labels = batches["data_batch_2"]
    wrong = labels.copy()
    wrong[4] = 10
    write_folder(tmp_path, contents({**batches, "data_batch_2": (images, wrong)}))
    with refuses("data_batch_2", "label 10", "0 .. 9"):
        load(tmp_path)


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_archive_truncated_anywhere_is_refused_in_one_line(tmp_path, batches, refuses, split):
    path = write_archive(tmp_path, contents(batches))
    whole = path.read_bytes()
    for keep in [0, 1, 11, *range(len(whole) // 9, len(whole) - 9, len(whole) // 9), len(whole) - 9, len(whole) - 1]:
        path.write_bytes(whole[:keep])
        with refuses(path.name):
            load(tmp_path, split)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_flipped_bit_in_an_archive_is_found(tmp_path, batches, refuses, split):
    path = write_archive(tmp_path, contents(batches), compresslevel=0)
    content = bytearray(path.read_bytes())
    content[60000] ^= 1  # stored, so only the checksum can tell
    path.write_bytes(content)
    with refuses(path, "corrupt"):
        load(tmp_path, split)


def test_an_archive_without_a_batch_is_refused(tmp_path, batches, refuses):
    files = contents(batches)
    del files["data_batch_4.bin"]
    path = write_archive(tmp_path, files)
    with refuses(path, "lacks data_batch_4.bin"):
        load(tmp_path)


def test_a_link_in_place_of_a_batch_is_refused(tmp_path, refuses):
    with tarfile.open(tmp_path / "cifar-10-binary.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo(f"{BINARY}/test_batch.bin")
        member.type, member.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(member)
    with refuses("test_batch", "not a regular file"):
        load(tmp_path, "test")


@pytest.mark.parametrize("name", ["cifar-10-batches-py/test_batch", "cifar-10-python.tar.gz"])
def test_pickles_are_not_read_and_the_binary_archive_is_named(tmp_path, refuses, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with refuses("cifar10 not found", "put cifar-10-binary.tar.gz (the binary version; that of pickles is not read)"):
        load(tmp_path)
