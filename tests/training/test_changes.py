"""Which settings a run may change when it goes on."""

from dataclasses import replace
from pathlib import Path

import pytest

from ddpm_hf.command_line import parse_config
from ddpm_hf.training.changes import changes, refused_changes

DIGITS = Path(__file__).parents[2] / "configs" / "train" / "digits.yaml"


def test_settings_that_an_earlier_version_lacked_count_as_their_defaults() -> None:
    config = parse_config([], DIGITS)
    earlier = config.to_dict()
    for name in ("alpha", "background"):
        del earlier["data"][name]
    del earlier["init_from"], earlier["init_partial"]
    assert changes(earlier, config.to_dict()) == {}
    blue = replace(config, data=replace(config.data, background="blue"))
    assert refused_changes(earlier, blue.to_dict()) == {"data.background": ("white", "blue")}


def test_another_start_is_refused_and_leave_to_differ_is_not() -> None:
    config = parse_config([], DIGITS)
    started = replace(config, init_from="me/model").to_dict()
    assert refused_changes(started, config.to_dict()) == {"init_from": ("me/model", None)}
    assert refused_changes(started, replace(config, init_from="me/model", init_partial=True).to_dict()) == {}


def test_a_crop_that_may_be_is_no_other_than_none_and_only_of_crops_is_that_so() -> None:
    config = parse_config([], DIGITS)
    earlier = config.to_dict()
    earlier["data"]["center_crop"] = False  # as earlier versions had it by default
    assert refused_changes(earlier, config.to_dict()) == {}
    earlier["model"]["num_class_embeds"] = False
    assert refused_changes(earlier, config.to_dict()) == {"model.num_class_embeds": (False, None)}
    cut = replace(config, data=replace(config.data, center_crop=True))
    assert "data.center_crop" in refused_changes(earlier, cut.to_dict())


@pytest.mark.parametrize("before", [None, 3])
def test_equal_settings_are_no_change(before: int | None) -> None:
    config = replace(parse_config([], DIGITS), threads=before)
    assert changes(config.to_dict(), config.to_dict()) == {}
