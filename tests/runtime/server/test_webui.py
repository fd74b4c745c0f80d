"""A1111's API, as its clients use it."""

import base64
import io
import json

import pytest
from PIL import Image
from starlette.testclient import TestClient

from runtime import Pipeline
from runtime.images import ImageMetadata, write_png
from runtime.server.app import create_app
from runtime.server.options import ServerOptions

TXT2IMG = "/sdapi/v1/txt2img"


@pytest.fixture(scope="module")
def pipeline(tiny_bundles):
    return Pipeline.from_bundle(tiny_bundles["int8"])


@pytest.fixture(scope="module")
def client(tiny_bundles):
    app = create_app(Pipeline.from_bundle(tiny_bundles["int8"]))
    with TestClient(app, base_url="http://localhost") as client:
        yield client


def image_of(text):
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    image.load()
    return image


# As SillyTavern sends it, with its settings of a new installation.
SILLY_TAVERN = {
    "prompt": "a red bird",
    "negative_prompt": "lowres, bad anatomy",
    "sampler_name": "DDIM",
    "scheduler": "normal",
    "steps": 20,
    "cfg_scale": 7,
    "width": 512,
    "height": 512,
    "restore_faces": False,
    "enable_hr": False,
    "hr_upscaler": "Latent",
    "hr_scale": 1,
    "hr_additional_modules": [],
    "denoising_strength": 0.7,
    "hr_second_pass_steps": 0,
    "seed": 12,
    "override_settings": {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic"},
    "override_settings_restore_afterwards": True,
    "clip_skip": 1,
    "save_images": True,
    "send_images": True,
    "do_not_save_grid": False,
    "do_not_save_samples": False,
}
# As Open WebUI sends it.
OPEN_WEBUI = {
    "prompt": "a red bird",
    "batch_size": 2,
    "width": 512,
    "height": 384,
    "steps": 50,
    "negative_prompt": None,
    "cfg_scale": 7.0,
}
# A small part of what webuiapi sends, the Python client.
WEBUIAPI = {
    "prompt": "a red bird",
    "negative_prompt": "",
    "seed": -1,
    "subseed": -1,
    "subseed_strength": 0.0,
    "seed_resize_from_h": 0,
    "n_iter": 1,
    "batch_size": 1,
    "width": 512,
    "height": 512,
    "styles": [],
    "script_args": [],
    "script_name": "",
    "sampler_index": None,
    "alwayson_scripts": {},
    "use_async": False,
}


@pytest.mark.parametrize("body", [SILLY_TAVERN, OPEN_WEBUI, WEBUIAPI], ids="stw")
def test_clients_get_their_images(body, client):
    answer = client.post(TXT2IMG, json=body)
    assert answer.status_code == 200, answer.text
    found = answer.json()
    assert len(found["images"]) == body.get("batch_size", 1)
    for text in found["images"]:
        assert image_of(text).size == (body["width"], body["height"])
    info = json.loads(found["info"])
    assert info["all_seeds"][0] == info["seed"] >= 0
    assert found["parameters"]["prompt"] == "a red bird"


def test_the_file_is_that_of_generate(client, pipeline):
    found = client.post(TXT2IMG, json={"prompt": "a red bird", "seed": 9}).json()
    manifest = pipeline.manifest
    metadata = ImageMetadata("a red bird", 9, 0, manifest.name, manifest.model_hash)
    wanted = io.BytesIO()
    write_png(pipeline.generate("a red bird", seed=9)[0], wanted, metadata)
    assert base64.b64decode(found["images"][0]) == wanted.getvalue()


def test_info_sent_back_gives_the_same_images(client):
    body = {"prompt": "a red bird", "batch_size": 2, "n_iter": 2, "width": 96, "height": 64}
    found = client.post(TXT2IMG, json=body | {"psi": 0.75}).json()
    info = json.loads(found["info"])
    assert info["all_seeds"] == [info["seed"] + i for i in range(4)]
    again = client.post(TXT2IMG, json=info).json()
    assert again["images"] == found["images"]
    # Each image alone, by its own seed, and by the settings inside of it.
    third = info | {"seed": info["all_seeds"][2], "batch_size": 1, "n_iter": 1}
    assert client.post(TXT2IMG, json=third).json()["images"] == [found["images"][2]]
    text = client.post("/sdapi/v1/png-info", json={"image": found["images"][2]}).json()["info"]
    assert text == info["infotexts"][2]
    assert f"Seed: {info['all_seeds'][2]}" in text
    assert "Size: 96x64" in text


def test_a_high_resolution_pass_changes_the_size(client):
    body = {"prompt": "a bird", "width": 64, "height": 32, "enable_hr": True, "hr_scale": 1.5}
    assert image_of(client.post(TXT2IMG, json=body).json()["images"][0]).size == (96, 48)
    body |= {"hr_resize_x": 80, "hr_resize_y": 90}
    assert image_of(client.post(TXT2IMG, json=body).json()["images"][0]).size == (80, 90)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "prompt must be a string"),
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": "a", "width": 4096}, "width must be an integer from 1 to 2048"),
        ({"prompt": "a", "batch_size": 4, "n_iter": 4}, "must be at most 10, got 16"),
        ({"prompt": "a", "seed": 2**63 - 1, "batch_size": 2}, "seed must be at most"),
        ({"prompt": "a", "override_settings": {"sd_model_checkpoint": 5}}, "must be a string"),
    ],
)
def test_what_is_wrong_is_named(body, message, client):
    answer = client.post(TXT2IMG, json=body)
    assert answer.status_code == 400
    assert message in answer.json()["detail"]


def test_lone_surrogates_are_repeated_in_ascii(client):
    text = '{"prompt": "a", "negative_prompt": "\\ud800", "x\\ud800": 1}'
    answer = client.post(TXT2IMG, content=text)
    assert answer.status_code == 200
    assert json.loads(answer.json()["info"])["negative_prompt"] == "\ud800"


LISTS = ["samplers", "upscalers", "latent-upscale-modes", "schedulers", "sd-vae", "sd-modules"]
LISTS += ["loras", "prompt-styles", "face-restorers", "hypernetworks", "script-info", "sd-models"]


def test_what_clients_ask_when_they_connect(client, pipeline):
    for name in LISTS:
        found = client.get(f"/sdapi/v1/{name}").json()
        assert isinstance(found, list), name
    for name in ("cmd-flags", "embeddings", "scripts", "memory", "options", "progress"):
        assert isinstance(client.get(f"/sdapi/v1/{name}").json(), dict), name
    assert client.get("/internal/ping").status_code == 200
    assert [each["name"] for each in client.get("/sdapi/v1/samplers").json()] == ["GALIP"]
    assert client.get("/sdapi/v1/upscalers").json()[0]["name"] == "None"
    (model,) = client.get("/sdapi/v1/sd-models").json()
    assert model["sha256"] == pipeline.manifest.model_hash
    assert model["title"] == client.get("/sdapi/v1/options").json()["sd_model_checkpoint"]
    # SillyTavern selects a model, then waits until nothing is in progress.
    selected = client.post("/sdapi/v1/options", json={"sd_model_checkpoint": model["title"]})
    assert selected.status_code == 200
    progress = client.get("/sdapi/v1/progress").json()
    assert (progress["progress"], progress["state"]["job_count"]) == (0, 0)
    assert client.post("/sdapi/v1/interrupt").status_code == 200


def test_what_the_model_cannot_do_is_refused(client):
    answer = client.post("/sdapi/v1/img2img", json={"prompt": "a", "init_images": ["x"]})
    assert answer.status_code == 400
    assert answer.json()["detail"] == "img2img is not supported by this model"
    for image in (None, "x", base64.b64encode(b"GIF89a").decode()):
        assert client.post("/sdapi/v1/png-info", json={"image": image}).status_code == 400


def test_basic_auth_has_the_key(tiny_bundles):
    options = ServerOptions(api_key="a-long-secret")
    app = create_app(Pipeline.from_bundle(tiny_bundles["int8"]), options)
    with TestClient(app) as client:
        assert client.get("/sdapi/v1/options").status_code == 401
        assert client.get("/sdapi/v1/options", auth=("user", "a-long-secret")).status_code == 200
        assert client.get("/sdapi/v1/options", auth=("user", "wrong")).status_code == 401
        basic = {"Authorization": "Basic !"}
        assert client.get("/sdapi/v1/options", headers=basic).status_code == 401
