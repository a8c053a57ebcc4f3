"""The embedded digits and the network that scores them are what their scripts make."""

from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm_hf.assets.make_digits import load_digits_uint8, split_indices, write_split
from ddpm_hf.assets.train_digits_features import accuracy, train
from ddpm_hf.data.settings import DataConfig
from ddpm_hf.data.sources import load_cached_images
from ddpm_hf.metrics import DigitsFeatures, frechet_distance


def test_the_embedded_digits_are_the_uci_digits_split_once() -> None:
    images, labels = load_digits_uint8()
    train_indices, test_indices = split_indices(len(images))
    assert sorted([*train_indices, *test_indices]) == list(range(1797))
    for split, indices in (("train", train_indices), ("test", test_indices)):
        data = load_cached_images(DataConfig(split=split))
        assert data.labels is not None
        np.testing.assert_array_equal(data.images.squeeze(1).numpy(), images[indices])
        np.testing.assert_array_equal(data.labels.numpy(), labels[indices])
    assert (len(train_indices), len(test_indices)) == (1297, 500)


def test_digits_fill_the_range_of_uint8_in_steps_of_a_sixteenth() -> None:
    images, _ = load_digits_uint8()
    assert sorted(set(images.ravel().tolist())) == [round(255 * level / 16) for level in range(17)]


def test_a_written_split_reads_back(tmp_path: Path) -> None:
    images, labels = load_digits_uint8()
    write_split(tmp_path / "some.parquet", images[:7], labels[:7])
    data = load_cached_images(DataConfig(name=str(tmp_path / "some.parquet")))
    assert data.labels is not None
    np.testing.assert_array_equal(data.images.squeeze(1).numpy(), images[:7])
    np.testing.assert_array_equal(data.labels.numpy(), labels[:7])


def test_the_network_names_held_out_digits() -> None:
    assert accuracy(DigitsFeatures.load(), "test") > 0.97


def test_the_floor_is_that_of_a_split_of_one_population() -> None:
    """A network that knew its training images by heart would set them apart from the held-out ones."""
    network = DigitsFeatures.load()
    splits = [load_cached_images(DataConfig(split=split)) for split in ("train", "test")]
    features = [network(data.images) for data in splits]
    floor = frechet_distance(*features)
    everything = torch.cat(features)
    resplits = []
    for seed in range(20):
        order = np.random.default_rng(1000 + seed).permutation(1797)
        resplits.append(frechet_distance(everything[order[500:]], everything[order[:500]]))
    assert abs(floor - np.mean(resplits)) < 3 * np.std(resplits)


@pytest.mark.slow
def test_training_the_network_again_gives_one_as_good() -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        network = train()
    finally:
        torch.set_num_threads(threads)
    assert accuracy(network, "test") > 0.97
