"""Cards: what is ours is renewed by the next push, and what a user wrote stays."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import EvalResult, ModelCard

from ddpm_hf.hub.cards import Subject, dataset_card, model_card
from ddpm_hf.hub.public_files import public_files

DATA = {"name": "me/pictures", "config": None, "split": "train", "revision": "v1", "resolution": 32}
CONFIG = {"seed": 0, "data": DATA, "model": {}, "diffusion": {}, "training": {"steps": 9, "batch_size": 4}}
EVALUATION = {
    **{"num_inference_steps": 5, "timestep_spacing": "leading", "eta": 0.0, "guidance_scale": 2.0},
    **{"metrics": ["fid", "kid"], "extractor": "inception"},
}
SUBJECT = Subject(
    "me/model",
    "mit",
    unet={"sample_size": 8, "out_channels": 1},
    config={**CONFIG, "evaluation": EVALUATION},
    results={
        "scores": {"fid": {"samples": 3.25, "held_out": 1.5}},
        "num_images": {"samples": 500, "held_out": 500},
        "first_image_seed": 0,
        "extractor": "inception",
        "class_labels": "0-9",
        "environment": {"commit": "abc"},
    },
    step=9,
)
UNSCORED = replace(SUBJECT, results={})


def test_a_card_has_the_metadata_that_the_hub_knows() -> None:
    data = ModelCard(model_card(SUBJECT, None)).data
    assert (data.license, data.datasets, data.library_name) == ("mit", ["me/pictures"], "diffusers")
    [fid] = data.eval_results or []
    assert (fid.metric_type, fid.metric_value, fid.metric_name) == ("fid", 3.25, "FID of 500 images")
    assert (fid.dataset_type, fid.dataset_split, fid.dataset_revision) == ("me/pictures", "train", "v1")
    assert (fid.metric_args["num_images"], fid.metric_args["extractor"]) == (500, "inception")
    assert "model-index" not in ModelCard(model_card(UNSCORED, None)).data.to_dict()
    assert "model_name" not in model_card(UNSCORED, None)


def test_a_card_says_how_to_make_its_scores_again() -> None:
    text = model_card(SUBJECT, None)
    assert (
        "ddpm-hf-sample --model me/model --output samples --num_images 500 --seed 0 --scheduler ddim "
        "--num_inference_steps 5 --timestep_spacing leading --eta 0 --class_labels 0-9 --guidance_scale 2\n"
        "ddpm-hf-evaluate --samples samples --reference me/pictures --reference_split 'train' "
        "--reference_resolution 32 --metrics fid kid --extractor inception --output scores\n"
    ) in text
    unipc = {**CONFIG, "evaluation": {**EVALUATION, "sampler": "unipc"}}
    assert "--seed 0 --scheduler unipc --num_inference_steps 5" in model_card(replace(SUBJECT, config=unipc), None)
    without = replace(SUBJECT, results={**SUBJECT.results, "scores": {"fid": {"samples": 3.25}}})
    assert "| | samples |\n| --- | --- |\n| FID | 3.25 |" in model_card(without, None)


def test_a_card_of_rectangles_says_both_sides() -> None:
    data = {**DATA, "resolution": [48, 64], "center_crop": True, "channels": 3}
    unet = {"sample_size": [48, 64], "in_channels": 3, "out_channels": 6}
    text = model_card(replace(SUBJECT, unet=unet, config={**SUBJECT.config, "data": data}), None)
    assert "draws images of 48 x 64 pixels with 3 channel(s)" in text
    assert " --reference_channels 3 --reference_center_crop true --reference_resolution [48,64] --metrics" in text


def test_a_card_of_other_channels_draws_no_picture_of_them() -> None:
    bands = replace(SUBJECT, unet={"sample_size": 8, "in_channels": 5, "out_channels": 5})
    assert 'output_type="np").images  # (1, height, width, 5), 0 to 1' in model_card(bands, None)
    assert '.images[0].save("image.png")' in model_card(SUBJECT, None)


def test_a_card_says_what_else_was_done_to_the_images_and_what_the_features_saw() -> None:
    data = {**DATA, "alpha": "drop", "dtype": None, "background": "white", "value_range": [0, 400], "resolution": None}
    evaluation = {**EVALUATION, "extractor_channels": [3, 2, 1]}
    text = model_card(replace(SUBJECT, config={**CONFIG, "data": data, "evaluation": evaluation}), None)
    assert ' --reference_alpha "drop" --reference_value_range [0,400] --extractor_channels [3,2,1] --metrics' in text


def test_results_of_earlier_versions_have_a_card() -> None:
    """They have one number of images; and here one score that the held-out images lack."""
    scores = {"fid": {"samples": 3.25, "held_out": 1.5, "ratio": 2.1}, "accuracy": {"samples": 0.5}}
    card = model_card(replace(SUBJECT, results={**SUBJECT.results, "num_images": 400, "scores": scores}), None)
    assert "FID of 400 images" in card
    assert "--num_images 400" in card
    assert "| Accuracy | 0.5 | - |" in card


def test_the_same_again_changes_nothing() -> None:
    card = model_card(SUBJECT, None)
    assert model_card(SUBJECT, card) == card


def test_later_results_come_in() -> None:
    early = model_card(UNSCORED, None)
    assert "No scores were computed." in early
    assert model_card(SUBJECT, early) == model_card(SUBJECT, None)


def test_what_a_user_wrote_stays() -> None:
    text = model_card(SUBJECT, None)
    text = text.replace("images of 8 x 8 pixels", "tiny images")  # within a section
    limits = text[text.index("<!-- ddpm_hf limits") :]
    text = text.replace(limits, "") + "\nCite me.\n"  # a section removed, and words of their own
    card = ModelCard(text)
    card.data.license, card.data.tags, card.data["widget"] = "cc-by-4.0", ["art", "ddpm"], "mine"
    theirs = EvalResult("image-classification", "x", "X", "accuracy", 0.5)
    card.data.eval_results = [*(card.data.eval_results or []), theirs]

    better = replace(SUBJECT, results={**SUBJECT.results, "scores": {"fid": {"samples": 2.0, "held_out": 1.5}}})
    pushed = ModelCard(model_card(better, str(card)))
    assert "tiny images" in pushed.text
    assert "Cite me." in pushed.text
    assert "## Limits" not in pushed.text
    assert "| FID | 2 | 1.5 |" in pushed.text
    assert "| FID | 3.25" not in pushed.text
    assert (pushed.data.license, pushed.data["widget"]) == ("cc-by-4.0", "mine")
    assert pushed.data.tags == ["art", "ddpm", "diffusion"]
    assert sorted((r.metric_type, r.metric_value) for r in pushed.data.eval_results or []) == [
        ("accuracy", 0.5),
        ("fid", 2.0),
    ]


def test_a_page_of_somebody_else_keeps_its_text() -> None:
    pushed = ModelCard(model_card(SUBJECT, "# Mine\n\nAll about it.\n"))
    assert pushed.text.strip() == "# Mine\n\nAll about it."
    assert pushed.data.library_name == "diffusers"


def test_samples_have_a_card_of_their_own() -> None:
    settings = {"num_images": 20_000, "model": "me/model", "revision": "abc", "weights_sha256": "f" * 64, "eta": 0.0}
    settings |= {"scheduler": {"class": "DDIMScheduler"}, "timesteps": [2, 1], "first_seed": 5, "class_labels": None}
    card = dataset_card("me/drawn", {"settings": settings}, "cc0-1.0", None)
    for part in ("size_categories:\n- 10K<n<100K", "5 to 20004", "me/model at abc", 'load_dataset("me/drawn"'):
        assert part in card
    assert dataset_card("me/drawn", {"settings": settings}, "cc0-1.0", card) == card


def test_files_are_published_without_paths_and_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    settings = {
        "output_dir": str(tmp_path / "run"),
        "home": "~/alice/x",
        "history": [{"data.name": ["/home/al ice/pictures", "me/pictures"]}],
        "command": "train.py --a '/home/al ice/x.yaml' --cache=/home/alice/cache hf_secret --lr 1e-4",
        "url": "https://example.org/a",
        "rate": 1e-05,
    }
    (tmp_path / "a.json").write_text(json.dumps(settings))
    (tmp_path / "b.jsonl").write_text('{"loss": null}\n{"path": "/home/alice"}\n')
    (tmp_path / "c.yaml").write_text("data: {cache_dir: /home/alice/cache, betas: [0.9, 0.999]}\n")
    (tmp_path / "d.safetensors").write_bytes(b"x")
    files = public_files(tmp_path, "*", prefix="in/")
    assert files["in/d.safetensors"] == tmp_path / "d.safetensors"
    published = {name: content for name, content in files.items() if isinstance(content, bytes)}
    assert json.loads(published["in/a.json"]) == {
        "output_dir": "run",
        "home": "x",
        "history": [{"data.name": ["pictures", "me/pictures"]}],
        "command": "train.py --a x.yaml --cache=cache TOKEN --lr 1e-4",
        "url": "https://example.org/a",
        "rate": 1e-05,
    }
    assert published["in/b.jsonl"] == b'{"loss": null}\n{"path": "alice"}\n'
    assert b"/home" not in published["in/c.yaml"]
    (tmp_path / "optimizer.pt").write_bytes(b"x")
    with pytest.raises(ValueError, match=r"optimizer\.pt is of a kind that is not published"):
        public_files(tmp_path, "*")


@pytest.mark.parametrize("metadata", ["license: [", "- a\n- b", "a: b: c"])
def test_metadata_that_cannot_be_read_are_said_and_stay(metadata: str) -> None:
    with pytest.raises(ValueError, match="metadata that cannot be read"):
        model_card(SUBJECT, f"---\n{metadata}\n---\n\n# Mine\n")
