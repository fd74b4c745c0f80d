"""The aviary: what is drawn is what is said, always the same, and never the same twice."""

import hashlib
import json
import re
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from PIL import Image

from galip_edge.aviary.data import (
    ATTRIBUTES,
    NOISE_DIM,
    AviaryConfig,
    AviarySource,
    Scene,
    draw,
    draw_ahead,
    imagined_scene,
    layout_of,
    random_scene,
    similar_scene,
    to_svg,
)
from galip_edge.aviary.data.attributes import PERCHES
from galip_edge.aviary.data.chance import ENTRIES, Chances, entries
from galip_edge.aviary.data.drawing import LAYOUT_VALUES, _wide_plan, layout_labels
from galip_edge.aviary.data.scene import random_labels, redraw
from galip_edge.cli import main
from galip_edge.config import build
from galip_edge.data import DataConfig, DataError, build_dataset


def source(**settings) -> AviarySource:
    return AviarySource(AviaryConfig(image_size=64, resize=64, **settings))


def pixels(image) -> np.ndarray:
    return np.asarray(image).astype(int)


def some_noise(*seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(NOISE_DIM, dtype=np.float32)


@pytest.fixture
def noise() -> np.ndarray:
    return some_noise(3)


@pytest.fixture
def scene(noise) -> Scene:
    return random_scene(noise)


def test_a_picture_is_the_same_every_time_and_no_two_are_alike():
    images = [pixels(source().image(i)) for i in range(12)]
    again = [pixels(source().image(i)) for i in range(12)]
    assert all((a == b).all() for a, b in zip(images, again))
    assert all(np.abs(a - b).mean() > 2 for i, a in enumerate(images) for b in images[:i])


def test_training_and_held_out_pictures_differ():
    train, test = source(split="train"), source(split="test")
    assert all(train.scene(i) != test.scene(i) for i in range(50))
    assert train.scene(0) != source(split="train", seed=1).scene(0)


@pytest.mark.parametrize(("pose", "species"), [*product(PERCHES, ATTRIBUTES["species"])])
def test_every_species_can_be_drawn_in_every_pose_and_place(pose, species):
    places = product(sorted(set(PERCHES[pose])), ATTRIBUTES["background"])
    for number, (perch, background) in enumerate(places):
        noise = some_noise(number)
        given = {"species": species, "pose": pose, "perch": perch, "background": background}
        image = pixels(draw(random_scene(noise, given), noise, 48))
        assert image.shape == (48, 48, 3)
        assert image.std() > 5


def test_size_is_chosen_freely_and_edges_are_smooth(scene, noise):
    small, large = pixels(draw(scene, noise, 64)), pixels(draw(scene, noise, 256))
    shrunk = large.reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(small - shrunk).mean() < 4
    assert len(np.unique(large.reshape(-1, 3), axis=0)) > 200


def test_the_body_has_the_colour_that_is_named(scene, noise):
    # Two scenes that differ in nothing else: the difference is where the body is.
    values = {**vars(scene), "belly": "plain", "wing": "plain"}
    red, blue = (pixels(draw(Scene(**{**values, "body": c}), noise, 96)) for c in ("red", "blue"))
    body = np.abs(red - blue).sum(2) > 100
    assert 0.01 < body.mean() < 0.6
    assert red[body][:, 0].mean() > red[body][:, 2].mean() + 50
    assert blue[body][:, 2].mean() > blue[body][:, 0].mean() + 50


def test_a_large_bird_is_larger_than_a_small_one():
    areas = {"small": [], "large": []}
    for seed in range(6):
        noise = some_noise(seed)
        for size in areas:
            given = {"size": size, "belly": "plain", "wing": "plain"}
            red, blue = (
                pixels(draw(random_scene(noise, {**given, "body": body}), noise, 64))
                for body in ("red", "blue")
            )
            areas[size].append((np.abs(red - blue).sum(2) > 100).mean())
    assert np.mean(areas["large"]) > 1.4 * np.mean(areas["small"])


def test_captions_state_what_is_in_the_scene():
    birds = "|".join(("bird", *ATTRIBUTES["species"]))
    patterns = [("body", c, rf"\b{c} ({birds})\b") for c in ATTRIBUTES["body"]] + [
        ("species", "duck", r"\bduck\b"),
        ("background", "night", "at night|moonlight"),
        ("background", "sunset", "at sunset"),
        ("background", "forest", "in (the|a) forest"),
        ("pose", "flying", r"\bflying\b"),
        ("pose", "swimming", r"\bswimming\b"),
        ("perch", "fence", r"\bfence\b"),
        ("size", "small", r"\btiny\b"),
    ]
    aviary, found = source(), set()
    for i in range(400):
        for caption in aviary.described(i):
            for attribute, value, pattern in patterns:
                if re.search(pattern, caption.text):
                    assert getattr(aviary.scene(i), attribute) == value, caption.text
                    assert attribute in caption.states, caption.text
                    found.add(pattern)
    assert len(found) == len(patterns)


def test_captions_are_varied_from_terse_to_detailed():
    captions = [c for i in range(400) for c in source().described(i)]
    texts = {caption.text for caption in captions}
    assert len(texts) > 0.6 * len(captions)
    counts = [len(caption.states) for caption in captions]
    assert min(counts) == 0
    assert max(counts) >= 7
    lengths = [len(text.split()) for text in texts]
    assert min(lengths) <= 3
    assert max(lengths) >= 15
    assert all("  " not in t and t == t.strip() for t in texts)
    for name in ATTRIBUTES:
        assert sum(name in caption.states for caption in captions) > 50, name


def test_a_similar_scene_keeps_what_it_shall(scene):
    others = [similar_scene(scene, ("body", "pose"), some_noise(i), "narrow") for i in range(40)]
    assert {(o.body, o.pose) for o in others} == {(scene.body, scene.pose)}
    assert {o.background for o in others} == {"sky", "forest"}
    assert {o.perch for o in others} <= set(PERCHES[scene.pose])
    with pytest.raises(ValueError, match="colour"):
        similar_scene(scene, ("colour",), some_noise(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [({"body": "pink"}, "pink"), ({"pose": "flying", "perch": "rock"}, "flying.*rock")],
)
def test_impossible_scenes_are_refused(scene, change, message):
    with pytest.raises(ValueError, match=message):
        Scene(**{**vars(scene), **change})


def test_labels_are_places_in_the_list_of_values(scene):
    labels = scene.labels()
    assert set(labels) == set(ATTRIBUTES)
    assert all(ATTRIBUTES[name][at] == getattr(scene, name) for name, at in labels.items())


def test_a_cache_gives_the_same_pictures_and_mends_a_broken_file(tmp_path):
    cached = source(cache=str(tmp_path))
    first = pixels(cached.image(1234))
    assert (first == pixels(source().image(1234))).all()
    (path,) = tmp_path.rglob("*.png")
    assert (pixels(cached.image(1234)) == first).all()
    path.write_bytes(path.read_bytes()[:50])
    assert (pixels(cached.image(1234)) == first).all()
    assert [p.name for p in tmp_path.rglob("*.*")] == [path.name]


def test_each_caption_has_noise_that_gives_the_same_image():
    config = AviaryConfig(samples=40, captions=4)
    aviary, seen = AviarySource(config), set()
    for index in range(40):
        scene, image = aviary.scene(index), None
        for caption in aviary.described(index):
            rng = np.random.default_rng(1)
            _, noise, states = aviary.scene_and_noise(aviary.key(index), caption.text, rng)
            assert states == caption.states
            assert similar_scene(scene, states, noise) == scene
            assert (noise[-56:] == aviary.noise(index)[-56:]).all()  # layout and scenery
            _, other, _ = aviary.scene_and_noise(aviary.key(index), caption.text, rng)
            assert (noise != other).any()
            if index < 3:
                image = image or draw(scene, aviary.noise(index), 32)
                assert (np.asarray(draw(scene, noise, 32)) == np.asarray(image)).all()
            seen.add(caption.states)
    assert len(seen) > 40
    with pytest.raises(ValueError, match="no caption 'a cat'"):
        aviary.scene_and_noise("train/000000", "a cat", np.random.default_rng(1))


def test_the_scenes_of_many_noise_vectors_are_those_of_each():
    aviary, rng = AviarySource(AviaryConfig(samples=200)), np.random.default_rng(3)
    noises = rng.standard_normal((200, NOISE_DIM), dtype=np.float32)
    given, expected = np.full((200, len(ATTRIBUTES)), -1), []
    for index, noise in enumerate(noises):
        scene, states = aviary.scene(index), aviary.described(index)[0].states
        labels = scene.labels()
        for column, name in enumerate(ATTRIBUTES):
            if name in states:
                given[index, column] = labels[name]
        expected.append(list(similar_scene(scene, states, noise).labels().values()))
    assert (given >= 0).any(0).all()
    assert random_labels(noises, given).tolist() == expected


def test_direction_and_composition_of_many_noise_vectors_are_those_of_each():
    aviary = AviarySource(AviaryConfig(samples=60))
    noises = np.stack([aviary.noise(i) for i in range(60)])
    plans = [_wide_plan(aviary.scene(i), noises[i]) for i in range(60)]
    expected = [[int(plan.facing < 0), int(plan.composition * 6)] for plan in plans]
    found = layout_labels(noises)
    assert found.tolist() == expected
    assert [len(set(column)) for column in found.T.tolist()] == list(LAYOUT_VALUES)


def test_a_scene_that_no_noise_gives_is_refused():
    scene = replace(source().scene(0), body="red", belly="red")
    with pytest.raises(ValueError, match="no noise gives belly 'red'"):
        redraw(some_noise(0), scene, ("body",), np.random.default_rng(1))


def test_redrawn_noise_is_normal_and_of_narrow_images_unchanged():
    aviary = source()
    rng = np.random.default_rng(2)
    texts = [aviary.captions(i)[0] for i in range(1500)]
    noise = np.stack(
        [aviary.scene_and_noise(aviary.key(i), t, rng)[1] for i, t in enumerate(texts)]
    )
    assert np.abs(noise.mean(0)).max() < 0.12
    assert np.abs(noise.std(0) - 1).max() < 0.1
    narrow = AviarySource(AviaryConfig(variety="narrow"))
    _, noise, _ = narrow.scene_and_noise(narrow.key(5), narrow.captions(5)[0], rng)
    assert (noise == narrow.noise(5)).all()


def test_it_is_data_for_training_like_any_other():
    config = AviaryConfig(image_size=32, samples=7)
    dataset = build_dataset(config)
    assert len(dataset) == 7
    item = dataset[3]
    assert item.image.shape == (3, 32, 32)
    assert item.key == dataset.source.key(3) == "train/000003"
    assert "bird" in item.caption or any(s in item.caption for s in ATTRIBUTES["species"])


def test_settings_of_the_aviary_are_checked():
    with pytest.raises(ValueError, match="validation"):
        AviaryConfig(split="validation")
    with pytest.raises(ValueError, match="variety must be wide or narrow, got 'broad'"):
        AviaryConfig(variety="broad")
    with pytest.raises(ValueError, match="unknown setting variety"):
        build(DataConfig, {"kind": "folder", "root": "x", "variety": "narrow"})
    with pytest.raises(ValueError, match="root='x' has no effect"):
        AviaryConfig(root="x")
    built = build(DataConfig, {"kind": "aviary", "samples": 3})
    assert built == AviaryConfig(samples=3)
    assert build(DataConfig, built.to_dict()) == built
    with pytest.raises(ValueError, match="samples"):
        AviaryConfig(samples=0)


def test_svg_can_be_looked_at_by_itself(scene, noise):
    svg = to_svg(scene, noise)
    assert svg.startswith("<svg")
    assert svg.endswith("</svg>")
    assert svg == to_svg(scene, noise)


@pytest.mark.parametrize(
    ("variety", "complete"), [("narrow", imagined_scene), ("wide", random_scene)]
)
def test_noise_and_stated_attributes_give_the_picture(variety, complete):
    # What a generator gets, sentence and noise, must decide on all that is in the image.
    aviary = source(variety=variety)
    for i in range(20):
        (caption,) = aviary.described(i)
        noise = aviary.noise(i)
        stated = {name: getattr(aviary.scene(i), name) for name in caption.states}
        again = draw(complete(noise, stated), noise, 64, variety)
        assert (pixels(again) == pixels(aviary.image(i))).all()


def test_narrow_images_are_what_they_were():
    # The default model learned from them, and its figures refer to them.
    aviary, digest = source(variety="narrow"), hashlib.sha256()
    for i in range(60):
        digest.update(aviary.image(i).tobytes() + aviary.captions(i)[0].encode())
    assert digest.hexdigest() == "32bda2c7afdc264db51b3c5cebb137bce3a3e6493e3606a2c539a767251d561f"


def test_wide_scenes_take_every_value_where_the_caption_leaves_it_open():
    scenes = [random_scene(some_noise(i), {"pose": "perched"}) for i in range(600)]
    for name in ("species", "body", "belly", "wing", "beak", "size", "background"):
        shares = [np.mean([getattr(s, name) == v for s in scenes]) for v in ATTRIBUTES[name]]
        assert min(shares) > 0.05, (name, shares)
    # A body that is not stated can be inferred from parts that are.
    given = [random_scene(some_noise(i), {"wing": "red", "belly": "blue"}) for i in range(300)]
    bodies = {scene.body for scene in given}
    assert bodies == set(ATTRIBUTES["body"]) - {"red", "blue"}


def test_wide_birds_face_both_ways_and_may_be_anywhere():
    given = {"body": "red", "belly": "plain", "wing": "plain", "size": "small",
             "species": "magpie", "pose": "perched", "perch": "branch"}  # fmt: skip
    right, centres = 0, []
    for i in range(60):
        noise = some_noise(i)
        both = [
            pixels(draw(random_scene(noise, {**given, "body": body}), noise, 64))
            for body in ("red", "blue")
        ]
        columns = (np.abs(both[0] - both[1]).sum(2) > 100).sum(0)
        assert columns.sum() > 20
        middle = (columns * np.arange(64)).sum() / columns.sum()
        centres.append(middle)
        heaviest = columns.argmax()  # the tail of a magpie is long and thin
        right += heaviest > (np.flatnonzero(columns).min() + np.flatnonzero(columns).max()) / 2
    assert 0.3 < right / 60 < 0.7
    assert np.std(centres) > 7
    assert min(centres) < 20
    assert max(centres) > 44


def test_the_layout_is_where_the_bird_is():
    given = {"belly": "plain", "wing": "plain", "size": "large", "species": "songbird",
             "pose": "perched"}  # fmt: skip
    for i in range(20):
        noise = some_noise(i)
        red, blue = (
            pixels(draw(random_scene(noise, {**given, "body": body}), noise, 64))
            for body in ("red", "blue")
        )
        layout = layout_of(random_scene(noise, {**given, "body": "red"}), noise)
        rows, columns = np.nonzero(np.abs(red - blue).sum(2) > 100)
        assert abs(columns.mean() / 64 - layout.x) < 0.12
        assert abs(rows.mean() / 64 - layout.y) < 0.12
        black, orange = (
            pixels(draw(random_scene(noise, {**given, "body": "blue", "beak": beak}), noise, 128))
            for beak in ("black", "orange")
        )
        rows, columns = np.nonzero(np.abs(black - orange).sum(2) > 100)  # the feet differ, too
        assert np.hypot(columns / 128 - layout.beak_x, rows / 128 - layout.beak_y).min() < 0.02
        ahead = 1 if layout.facing == "right" else -1
        end = (layout.beak_x + ahead * layout.beak_length / 2) * 128
        assert abs((columns * ahead).max() * ahead - end) < 3
    facings = [source().layout(i).facing for i in range(60)]
    assert 18 < facings.count("left") < 42
    assert {source(variety="narrow").layout(i).facing for i in range(9)} == {"right"}


def test_each_background_has_several_compositions():
    for background in ATTRIBUTES["background"]:
        images = [
            pixels(draw(random_scene(some_noise(1), {"background": background, "pose": "flying"}),
                        noise, 48))
            for noise in map(some_noise, range(24))
        ]  # fmt: skip
        apart = [np.abs(a - b).mean() for i, a in enumerate(images) for b in images[:i]]
        assert np.quantile(apart, 0.75) > 1.2 * np.quantile(apart, 0.05), background
        assert min(apart) > 1, background


@pytest.mark.slow
def test_images_drawn_ahead_are_the_data_sets_own(tmp_path):
    folder = tmp_path / "drawn"
    config = AviaryConfig(image_size=32, resize=32, samples=260)
    reports = []
    assert draw_ahead(folder, config, 3, 1, lambda *counts: reports.append(counts)) == 260
    assert reports == [(0, 260), (250, 260), (260, 260)]
    drawn = build_dataset(DataConfig(kind="folder", root=str(folder), image_size=32, augment=False))
    assert len(drawn) == 260
    aviary = AviarySource(config)
    for i in (0, 255):
        assert (pixels(drawn.source.image(i)) == pixels(aviary.image(i))).all()
        captions = drawn.source.captions(i)
        assert captions[0] == aviary.captions(i)[0]
        assert len(set(captions)) == len(captions) <= 3
    # It is also the cache of the aviary itself, which knows noise and scenes.
    cached = AviarySource(replace(config, cache=str(folder)))
    Image.new("RGB", (32, 32), "red").save(folder / "00000/0000007.png")
    assert (pixels(cached.image(7)) == (255, 0, 0)).all()
    assert (pixels(cached.image(8)) == pixels(aviary.image(8))).all()
    assert (pixels(AviarySource(replace(config, cache=str(folder), samples=999)).image(300)) ==
            pixels(aviary.image(300))).all()  # fmt: skip
    with pytest.raises(DataError, match="variety was wide, is now narrow"):
        AviarySource(replace(config, cache=str(folder), variety="narrow"))
    # What exists is kept; more can be added; a partial block is drawn again.
    # Held-out images are not among them.
    held_out = AviarySource(replace(config, split="test", cache=str(folder)))
    assert (
        pixels(held_out.image(7)) == pixels(AviarySource(replace(config, split="test")).image(7))
    ).all()
    assert draw_ahead(folder, config, 3) == 0
    assert draw_ahead(folder, replace(config, samples=300), 3) == 50
    (folder / "00000/0000249.txt").unlink()
    assert draw_ahead(folder, replace(config, samples=300), 3) == 250
    with pytest.raises(DataError, match="seed was 0, is now 1"):
        draw_ahead(folder, replace(config, seed=1), 3)
    (tmp_path / "other").mkdir()
    (tmp_path / "other/file").touch()
    with pytest.raises(DataError, match="other files"):
        draw_ahead(tmp_path / "other", config, 3)


@pytest.mark.slow
def test_the_command_draws_with_processes_and_resumes(tmp_path, capsys):
    for drawn in (500, 0):
        with pytest.raises(SystemExit) as exit_:
            main(["data", "draw", str(tmp_path / "drawn"), "--samples", "500", "--size", "16",
                  "--processes", "2", "--json"])  # fmt: skip
        assert exit_.value.code == 0
        assert json.loads(capsys.readouterr().out)["drawn"] == drawn


def test_what_nobody_speaks_of_is_as_usual():
    scenes = [imagined_scene(some_noise(i), {"pose": "swimming"}) for i in range(60)]
    assert {(scene.belly, scene.wing, scene.pose) for scene in scenes} == {
        ("plain", "plain", "swimming")
    }
    beaks = {(scene.species, scene.beak) for scene in scenes}
    assert beaks == {("duck", "orange")}
    scenes = [imagined_scene(some_noise(i), {"pose": "flying"}) for i in range(60)]
    assert {(scene.species, scene.beak) for scene in scenes} == {("songbird", "orange")}
    # Colour and background alone are left to noise.
    assert len(set(scenes)) == 4 * 2
    told = imagined_scene(some_noise(1), {"belly": "red", "wing": "blue", "beak": "black"})
    assert (told.belly, told.wing, told.beak) == ("red", "blue", "black")


def test_less_variety_stays_near_a_usual_number():
    whole = [Chances(some_noise(i), "place").uniform(0, 1) for i in range(500)]
    near = [Chances(some_noise(i), "place", variety=0.2, usual=4).uniform(0, 1) for i in range(500)]
    assert 0.01 < np.std(near) < 0.4 * np.std(whole)
    other = Chances(some_noise(0), "place", variety=0.0, usual=5).uniform(0, 1)
    assert abs(other - np.mean(near)) > 0.02
    (same,) = {
        Chances(some_noise(i), "place", variety=0.0, usual=4).uniform(0, 1) for i in range(5)
    }
    assert same == pytest.approx(np.mean(near), abs=0.05)


def test_noise_is_normal_and_does_not_depend_on_the_caption():
    aviary = source(samples=3000)
    noise = np.stack([aviary.noise(i) for i in range(3000)])
    assert noise.dtype == np.float32
    assert np.abs(noise.mean(0)).max() < 0.1
    assert np.abs(noise.std(0) - 1).max() < 0.1
    # Where a colour is stated, its entry is like any other.
    red = [i for i in range(3000) if "body" in aviary.described(i)[0].states
           and aviary.scene(i).body == "red"]  # fmt: skip
    own = [entries(noise[i], "body")[ATTRIBUTES["body"].index("red")] for i in red]
    assert len(own) > 150
    assert abs(np.mean(own)) < 0.3


def test_what_no_caption_tells_is_decided_by_the_largest_entry(noise):
    for value, name in ((v, n) for n in ("species", "body", "background") for v in ATTRIBUTES[n]):
        changed = noise.copy()
        start = sum(list(ENTRIES.values())[: list(ENTRIES).index(name)])
        changed[start + ATTRIBUTES[name].index(value)] = 9.0
        assert getattr(random_scene(changed), name) == value


def test_small_changes_of_noise_move_the_picture_little(scene, noise):
    before = pixels(draw(scene, noise, 64))
    for scale, most in ((0.001, 0.3), (0.01, 3.0)):
        after = pixels(draw(scene, noise + scale * some_noise(9), 64))
        assert 0 < np.abs(before - after).mean() < most


def test_chances_have_their_distributions():
    drawn = []
    for i in range(2000):
        chances = Chances(some_noise(i), "place")
        drawn.append([chances.uniform(2, 4), chances.normal(10, 2)])
        with pytest.raises(StopIteration):  # these were all
            chances.uniform(0, 1)
    flat, normal = np.array(drawn).T
    assert np.abs(np.quantile(flat, [0.25, 0.5, 0.75]) - [2.5, 3, 3.5]).max() < 0.08
    assert (flat.min(), flat.max()) == pytest.approx((2, 4), abs=0.01)
    assert (normal.mean(), normal.std()) == pytest.approx((10, 2), abs=0.15)
    assert np.abs(np.corrcoef(np.array(drawn).T) - np.eye(2)).max() < 0.08
    with pytest.raises(ValueError, match="100"):
        Chances(np.zeros(16, np.float32), "place")
