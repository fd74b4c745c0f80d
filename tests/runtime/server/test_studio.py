"""The page, in a real browser."""

import http.client
import io
import re
import shlex
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from PIL import Image
from playwright.sync_api import expect, sync_playwright

from galip_edge.cli import main
from runtime import Pipeline
from runtime.images import ImageFormat, ImageMetadata, read_metadata, save_png
from runtime.latent import Interpolation, Keyframe, interpolation_latent
from runtime.noise import MAX_SEED
from runtime.server.options import ServerOptions

CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed"),
]

# So that the browser itself asks nothing of the network.
FLAGS = (
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)

expect.set_options(timeout=20_000)  # machines of tests are slow at times


@pytest.fixture(scope="module")
def bundle(tiny_bundles):
    return tiny_bundles["int8"]


@pytest.fixture(scope="module")
def pipeline(bundle):
    return Pipeline.from_bundle(bundle)


@pytest.fixture(scope="module")
def address(serving, bundle):
    with serving(Pipeline.from_bundle(bundle)) as address:
        yield address


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        with playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS) as browser:
            yield browser


@pytest.fixture
def context(browser):
    """A browser that was never here; nothing may go wrong in its console."""
    errors = []
    with browser.new_context(reduced_motion="reduce") as context:
        context.on("weberror", lambda error: errors.append(str(error.error)))
        context.on(
            "console", lambda message: message.type == "error" and errors.append(message.text)
        )
        context.errors = errors
        yield context
    assert not errors


@pytest.fixture
def page(context, address):
    page = context.new_page()
    page.goto(address)
    expect(page.locator("#image")).to_be_visible()
    return page


def status(page, text):
    expect(page.locator("#status")).to_contain_text(text)


def shows(page, text):
    expect(page.locator("#recipe")).to_have_text(text)


def saved(page, path, button="#save"):
    """The file that a button downloads."""
    with page.expect_download() as download:
        page.click(button)
    download.value.save_as(path)
    return path, download.value.suggested_filename


def pixels(file):
    with Image.open(file) as picture:
        return np.asarray(picture)


def made(pipeline, blend):
    noise, sentence = interpolation_latent(pipeline, blend)
    return pipeline.synthesize([sentence], [noise])[0]


def drop(page, path):
    data = list(path.read_bytes())
    transfer = page.evaluate_handle(
        """([name, data]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([Uint8Array.from(data)], name, { type: "image/png" }));
            return transfer;
        }""",
        [path.name, data],
    )
    page.dispatch_event("main", "drop", {"dataTransfer": transfer})


def test_it_needs_nothing_but_its_server(context, address):
    asked = []
    context.on("request", lambda request: asked.append(request.url))
    page = context.new_page()
    answer = page.goto(address)
    expect(page.locator("#image")).to_be_visible()
    assert answer.url == f"{address}studio/"
    assert answer.headers["cache-control"] == "no-cache"
    assert len(asked) > 10
    assert all(url.startswith((address, f"blob:{address}")) for url in asked)
    # Were there an address from elsewhere in it, it would be refused.
    context.errors.clear()
    with page.expect_event("console", lambda message: "Content Security" in message.text):
        page.evaluate("() => { new Image().src = 'http://192.0.2.1/x.png' }")
    context.errors.clear()


@pytest.mark.parametrize(
    "path",
    ["../app.py", "%2e%2e/app.py", "..%2f..%2fbundle.py", "/etc/passwd", "vendor/../../app.py"],
)
def test_nothing_but_its_files_is_given(path, address):
    connection = http.client.HTTPConnection(address.removeprefix("http://").rstrip("/"))
    connection.request("GET", f"/studio/{path}")  # as it stands
    assert connection.getresponse().status == 404
    connection.close()


def test_the_picture_follows_the_prompt_and_is_that_of_generate(page, pipeline, tmp_path):
    page.fill("#start-prompt", "two dogs")
    page.fill("#start-seed", "7")
    page.fill("#start-index", "2")
    shows(page, "two dogs (seed 7, image 2)")
    file, name = saved(page, tmp_path / "a.png")
    assert name == "two-dogs-s7-2.png"
    np.testing.assert_array_equal(pixels(file), pipeline.generate("two dogs", n=3, seed=7)[2])
    found = read_metadata(file)
    assert (found.prompt, found.seed, found.index) == ("two dogs", 7, 2)
    assert found.model_hash == pipeline.manifest.model_hash


def test_pictures_are_made_and_outlive_the_page(page, pipeline, tmp_path):
    page.fill("#start-prompt", "a red bird")
    page.fill("#count", "5")
    page.press("#start-prompt", "Control+Enter")
    status(page, "5 images in")
    for _ in range(2):
        expect(page.locator("#images li")).to_have_count(5)
        with zipfile.ZipFile(saved(page, tmp_path / "all.zip", "#zip")[0]) as archive:
            assert archive.testzip() is None
            names = archive.namelist()
            assert names[0] == "001-a-red-bird-s0-0.png"
            found = [pixels(io.BytesIO(archive.read(name))) for name in names]
        np.testing.assert_array_equal(found, pipeline.generate("a red bird", n=5))
        page.reload()
    page.locator(".opener").nth(1).click()  # the newest comes first
    shows(page, "a red bird (seed 0, image 3)")
    expect(page.locator("#start-index")).to_have_value("3")
    page.locator(".remover").first.click()
    expect(page.locator("#images li")).to_have_count(4)
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#clear")
    expect(page.locator("#empty")).to_be_visible()
    page.reload()
    expect(page.locator("#image")).to_be_visible()
    expect(page.locator("#images li")).to_have_count(0)


def test_sliders_move_between_prompts_and_seeds(page, pipeline, tmp_path):
    page.fill("#start-prompt", "a red bird")
    page.fill("#end-prompt", "two dogs")
    page.fill("#end-seed", "9")
    page.fill("#sentence-share", "0.25")
    expect(page.locator("#noise-share")).to_have_value("0.25")
    page.uncheck("#together")
    page.fill("#noise-share", "0.5")
    page.fill("#psi", "0.75")
    shows(
        page,
        "a red bird (seed 0, image 0) → two dogs (seed 9, image 0), prompt 25 %, seed 50 %, ψ 75 %",
    )
    start, end = Keyframe("a red bird"), Keyframe("two dogs", 9)
    file, _ = saved(page, tmp_path / "a.png")
    np.testing.assert_array_equal(
        pixels(file), made(pipeline, Interpolation(start, end, 0.25, 0.5, 0.75))
    )
    page.click("#swap")
    shows(
        page,
        "two dogs (seed 9, image 0) → a red bird (seed 0, image 0), prompt 75 %, seed 50 %, ψ 75 %",
    )
    page.fill("#psi", "1")
    page.fill("#sentence-share", "1")
    page.fill("#noise-share", "1")
    shows(page, "a red bird (seed 0, image 0)")  # an end is a separate image
    np.testing.assert_array_equal(
        pixels(saved(page, tmp_path / "b.png")[0]), pipeline.generate("a red bird")[0]
    )


def frames(page, count=10):
    """Wait until the page has drawn `count` frames: what it schedules for the next one has run."""
    page.evaluate(
        """async (count) => {
            for (let i = 0; i < count; i += 1) await new Promise(requestAnimationFrame);
        }""",
        count,
    )


def test_only_the_newest_setting_is_requested(page):
    asked, most, open_now = [], 0, set()

    def began(request):
        nonlocal most
        if request.method == "POST":
            asked.append(request.post_data_json["psi"])
            open_now.add(request)
            most = max(most, len(open_now))

    page.on("request", began)
    page.on("requestfinished", lambda request: open_now.discard(request))
    page.evaluate(
        """() => {
            const slider = document.getElementById("psi");
            for (let value = 99; value >= 50; value -= 1) {
                slider.value = value / 100;
                slider.dispatchEvent(new Event("input", { bubbles: true }));
            }
        }"""
    )
    shows(page, "a bird on a branch (seed 0, image 0), ψ 50 %")
    frames(page)
    assert asked == [0.99, 0.5]  # one at once, then the newest
    assert most == 1


def test_playing_moves_by_itself_until_it_is_stopped(page):
    page.click("#play")
    expect(page.locator("#play")).to_have_attribute("aria-pressed", "true")
    expect(page.locator("#recipe")).to_contain_text(re.compile(r"prompt [4-9]\d %"))
    page.keyboard.press("Escape")
    expect(page.locator("#play")).to_have_attribute("aria-pressed", "false")
    at = page.input_value("#sentence-share")
    frames(page)
    assert page.input_value("#sentence-share") == at
    assert float(at) > 0


@pytest.mark.parametrize("way", ["drop", "open"])
def test_a_png_gives_its_settings_back(way, page, pipeline, tmp_path):
    model = pipeline.manifest.name, pipeline.manifest.model_hash
    end = Keyframe('"seed":"5" — 🐦', MAX_SEED, 4)
    blend = Interpolation(Keyframe('a "bird", "seed": 12', MAX_SEED - 1, 3), end, 0.25, 0.75, 0.5)
    image = made(pipeline, blend)
    save_png(image, tmp_path / "a.png", ImageMetadata.of_interpolation(blend, *model))
    if way == "drop":
        drop(page, tmp_path / "a.png")
    else:
        page.set_input_files("#file", tmp_path / "a.png")
    status(page, "Restored the settings of a.png.")
    wanted = {
        "start-prompt": blend.start.prompt,
        "start-seed": str(MAX_SEED - 1),
        "start-index": "3",
        "end-prompt": end.prompt,
        "end-seed": str(MAX_SEED),
        "end-index": "4",
        "sentence-share": "0.25",
        "noise-share": "0.75",
        "psi": "0.5",
    }
    for name, value in wanted.items():
        expect(page.locator(f"#{name}")).to_have_value(value)
    page.fill("#count", "1")
    page.click("#make")  # from the settings, not the file
    status(page, "1 image in")
    file, _ = saved(page, tmp_path / "again.png")
    assert read_metadata(file) == read_metadata(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels(file), image)


@pytest.mark.parametrize("name", ["jpeg", "webp"])
def test_other_formats_give_their_settings_back(name, page, pipeline, tmp_path):
    recipe = ImageMetadata(
        "<b> & \"q\" 'x' 🐦", MAX_SEED, 2, "m", pipeline.manifest.model_hash, psi=0.5
    )
    file = tmp_path / f"a.{name}"
    file.write_bytes(ImageFormat(name).encode(pipeline.generate("a bird")[0], recipe))
    page.set_input_files("#file", file)
    status(page, f"Restored the settings of a.{name}.")
    shows(page, "<b> & \"q\" 'x' 🐦 (seed 9223372036854775807, image 2), ψ 50 %")
    saved(page, tmp_path / "again.png")
    wanted = pipeline.generate(recipe.prompt, n=3, seed=MAX_SEED, psi=0.5)[2]
    np.testing.assert_array_equal(pixels(tmp_path / "again.png"), wanted)


def test_pngs_that_are_not_ours(page, pipeline, tmp_path):
    image = pipeline.generate("a bird")[0]
    recipe = ImageMetadata("a cat", 3, 0, "another", "ab" * 32)
    save_png(image, tmp_path / "other.png", recipe)
    drop(page, tmp_path / "other.png")
    status(page, "other.png was generated by the model another; the served model generates")
    expect(page.locator("#start-prompt")).to_have_value("a cat")
    Image.fromarray(image).save(tmp_path / "foreign.png")
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.png").write_bytes(b"")
    (tmp_path / "cut.png").write_bytes((tmp_path / "other.png").read_bytes()[:60])
    end, wrong = Keyframe("a dog", 1), Keyframe("a dog", 2)
    object.__setattr__(wrong, "seed", "y")  # which `Keyframe` itself refuses
    odd = {
        "seed": replace(recipe, seed="x"),
        "index": replace(recipe, index=-1),
        "large": replace(recipe, index=2**40),
        "prompt": replace(recipe, prompt=" "),
        "psi": replace(recipe, psi="half"),
        "beyond": replace(recipe, psi=7.5),
        "share": replace(recipe, end=end, sentence_share="x"),
        "null": replace(recipe, end=end, noise_share=None),
        "end": replace(recipe, end=wrong),
    }
    for name, each in odd.items():
        save_png(image, tmp_path / f"{name}.png", each)
    for name in ("foreign", "text", "empty", "cut", *odd):
        drop(page, tmp_path / f"{name}.png")
        status(page, f"{name}.png has no galip-edge settings")
    (tmp_path / "half.png").write_bytes((tmp_path / "other.png").read_bytes()[:2000])
    drop(page, tmp_path / "half.png")
    status(page, "half.png")
    expect(page.locator("#start-prompt")).to_have_value("a cat")


def test_what_cannot_be_made_is_told(page):
    page.fill("#start-prompt", " ")
    page.click("#make")
    status(page, "The start needs a prompt")
    page.fill("#start-prompt", "a bird")
    page.fill("#end-seed", str(MAX_SEED + 1))
    expect(page.locator("#end-seed")).to_have_attribute("aria-invalid", "true")
    page.click("#make")
    status(page, "both ends need seeds")
    page.fill("#end-seed", str(MAX_SEED))
    expect(page.locator("#end-seed")).to_have_attribute("aria-invalid", "false")
    page.click("#make")
    status(page, "4 images in")


def test_a_prompt_that_is_cut_is_told(page):
    page.fill("#start-prompt", "bird " * 80)
    status(page, "a prompt has 80 tokens, the model reads the first 75")
    page.fill("#start-prompt", "a bird")
    expect(page.locator("#status")).to_be_empty()


def test_a_full_queue_is_waited_for(context, serving, bundle):
    with serving(
        Pipeline.from_bundle(bundle), ServerOptions(queue_size=1, max_images=1)
    ) as address:
        page = context.new_page()
        page.goto(address)
        expect(page.locator("#image")).to_be_visible()
        page.fill("#count", "6")
        page.click("#make")
        status(page, "6 images in")
        expect(page.locator("#images li")).to_have_count(6)
    context.errors.clear()  # the browser logs each 429


def test_a_server_that_goes_and_comes_back(context, serving, bundle):
    with serving(Pipeline.from_bundle(bundle)) as address:
        page = context.new_page()
        page.goto(address)
        expect(page.locator("#image")).to_be_visible()
    page.fill("#start-prompt", "two dogs")
    status(page, "The server does not respond: is it running?")
    port = int(address.rstrip("/").rpartition(":")[2])
    with serving(Pipeline.from_bundle(bundle), port=port):
        shows(page, "two dogs (seed 0, image 0)")
        expect(page.locator("#status")).to_be_empty()
    context.errors.clear()


def test_a_key_is_asked_for_once(context, serving, bundle):
    with serving(Pipeline.from_bundle(bundle), ServerOptions(api_key="a-long-secret")) as address:
        page = context.new_page()
        page.goto(address)
        for key in ("wrong", "a-long-secret"):
            page.fill("#key-value", key)
            page.keyboard.press("Enter")
        expect(page.locator("#key")).to_be_hidden()
        expect(page.locator("#image")).to_be_visible()
        page.reload()
        expect(page.locator("#image")).to_be_visible()
        expect(page.locator("#key")).to_be_hidden()
    context.errors.clear()  # the browser logs each 401


def test_all_of_it_by_keyboard(page):
    reached = []
    for _ in range(30):
        page.keyboard.press("Tab")
        focused = page.evaluate(
            "() => document.activeElement.id || document.activeElement.dataset.for"
        )
        reached.append(focused)
        if focused == "sentence-share":
            page.keyboard.press("PageUp")
            shows(
                page,
                "a bird on a branch (seed 0, image 0) → (seed 1, image 0), prompt 10 %, seed 10 %",
            )
        if focused == "make":
            page.keyboard.press("Enter")
            status(page, "4 images in")
            break
    in_order = [
        "keep",
        "save",
        "copy",
        "open",
        "start-prompt",
        "start-seed",
        "start-seed",
        "start-index",
    ]
    assert reached[: len(in_order)] == in_order
    for _ in range(3):  # over the buttons of the history to the newest image
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    shows(page, "a bird on a branch (seed 0, image 3) → (seed 1, image 3), prompt 10 %, seed 10 %")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390, 320])
def test_axe_finds_nothing(width, scheme, browser, address):
    with browser.new_context(
        color_scheme=scheme, viewport={"width": width, "height": 800}
    ) as context:
        page = context.new_page()
        page.goto(address)
        page.click("#make")
        status(page, "4 images in")
        found = Axe().run(page).response
        assert len(found["passes"]) > 20
        assert [(each["id"], each["impact"]) for each in found["violations"]] == []
        # Nothing is cut off or has to be scrolled to sideways, also on a small phone.
        assert page.evaluate("() => document.documentElement.scrollWidth") == width


@pytest.mark.parametrize(("width", "height"), [(390, 664), (320, 568)])
def test_on_a_phone_prompt_image_and_button_are_in_sight(width, height, browser, address):
    size = {"width": width, "height": height}
    with browser.new_context(viewport=size, has_touch=True) as context:
        page = context.new_page()
        page.goto(address)
        expect(page.locator("#image")).to_be_visible()
        for name in ("image", "start-prompt", "make"):
            expect(page.locator(f"#{name}")).to_be_in_viewport(ratio=1)
        page.locator("#psi").scroll_into_view_if_needed()
        expect(page.locator("#image")).to_be_in_viewport(ratio=1)
        expect(page.locator("#psi")).to_be_in_viewport(ratio=1)


def test_the_image_is_enlarged_smoothly_when_it_rests(page):
    expect(page.locator("#smooth")).to_be_visible()
    shown, drawn = (page.locator(name).bounding_box() for name in ("#image", "#smooth"))
    assert shown == drawn
    assert page.evaluate("() => document.getElementById('smooth').width") == round(shown["width"])


def test_the_rate_is_zero_when_nothing_moves(page):
    page.fill("#psi", "0.5")
    expect(page.locator("#rate")).to_have_text(re.compile(r"[1-9]\d* frames/s"))
    expect(page.locator("#rate")).to_have_text("0 frames/s")


def test_an_error_is_cleared_when_it_is_over(page):
    page.fill("#start-prompt", " ")
    page.click("#make")
    status(page, "The start needs a prompt")
    page.fill("#start-prompt", "a bird")
    expect(page.locator("#status")).to_be_empty()


def test_selected_images_are_downloaded(page, tmp_path):
    page.click("#make")
    status(page, "4 images in")
    page.locator(".chooser").nth(0).check()
    page.locator(".chooser").nth(2).check()
    expect(page.locator("#zip")).to_have_text("Download ZIP (2 selected)")
    with zipfile.ZipFile(saved(page, tmp_path / "some.zip", "#zip")[0]) as archive:
        assert [name[-7:] for name in archive.namelist()] == ["0-1.png", "0-3.png"]
    page.locator(".remover").nth(0).click()
    expect(page.locator("#zip")).to_have_text("Download ZIP (1 selected)")
    page.locator(".chooser").nth(1).uncheck()
    expect(page.locator("#zip")).to_have_text("Download ZIP")


def test_the_command_makes_the_image_again(page, context, bundle, tmp_path):
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.fill("#start-prompt", "-a 'bird' $HOME")
    page.fill("#start-seed", "7")
    page.fill("#start-index", "1")
    page.fill("#psi", "0.5")
    shows(page, "-a 'bird' $HOME (seed 7, image 1), ψ 50 %")
    page.click("#copy")
    status(page, "Copied the command.")
    command = page.evaluate("() => navigator.clipboard.readText()")
    name, *arguments = shlex.split(command)
    assert name == "galip-edge"
    options = ["--model", str(bundle), "--out", str(tmp_path / "made")]
    with pytest.raises(SystemExit):
        main([arguments[0], *options, *arguments[1:]])
    file, _ = saved(page, tmp_path / "a.png")
    recipe = read_metadata(file)
    made_again = [path for path in (tmp_path / "made").iterdir() if read_metadata(path) == recipe]
    np.testing.assert_array_equal(pixels(made_again[0]), pixels(file))
    page.fill("#sentence-share", "0.5")
    expect(page.locator("#copy")).to_be_disabled()
