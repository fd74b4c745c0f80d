"""`galip-edge mcp`, with the official client."""

import asyncio
import base64
import io
import json
import os
import sys

import numpy as np
import pytest
from PIL import Image

from runtime import Pipeline

pytestmark = pytest.mark.slow


def session(bundle, use, *options):
    """Result of `use` for a session with the command as a process."""
    from mcp import ClientSession, StdioServerParameters
    from mcp.client.stdio import stdio_client

    async def run():
        command = ["-m", "galip_edge", "mcp", "--model", str(bundle), *options]
        server = StdioServerParameters(command=sys.executable, args=command, env=dict(os.environ))
        async with stdio_client(server) as streams, ClientSession(*streams) as client:
            await client.initialize()
            return await use(client)

    return asyncio.run(run())


def test_the_official_client_gets_an_image(tiny_bundles):
    async def use(client):
        tools = (await client.list_tools()).tools
        calls = [
            await client.call_tool("generate_image", arguments)
            for arguments in (
                {"prompt": "a bird", "seed": 7},
                {"prompt": "a bird", "size": 100},
                {"prompt": " "},
                {"prompt": "a bird", "seed": -5},
            )
        ]
        return tools, calls

    (tool,), (first, second, empty, wrong) = session(tiny_bundles["int8"], use)
    assert tool.name == "generate_image"
    schema = tool.model_dump(by_alias=True)["inputSchema"]
    assert schema["required"] == ["prompt"]
    image, recipe = first.content
    assert image.model_dump(by_alias=True)["mimeType"] == "image/png"
    with Image.open(io.BytesIO(base64.b64decode(image.data))) as found:
        wanted = Pipeline.from_bundle(tiny_bundles["int8"]).generate("a bird", seed=7)[0]
        np.testing.assert_array_equal(np.asarray(found), wanted)
        assert json.loads(found.text["galip-edge"])["seed"] == 7
    assert json.loads(recipe.text)["seed"] == 7
    with Image.open(io.BytesIO(base64.b64decode(second.content[0].data))) as found:
        assert found.size == (100, 100)
    for failed, message in ((empty, "the prompt is empty"), (wrong, "seed")):
        assert failed.model_dump(by_alias=True)["isError"]
        assert message in failed.content[0].text


def test_its_images_are_signed(tiny_bundles, tmp_path):
    pytest.importorskip("c2pa")
    from certificates import check_signed, write_pair

    async def use(client):
        return await client.call_tool("generate_image", {"prompt": "a bird", "seed": 7})

    key, chain = map(str, write_pair(tmp_path))
    options = ("--sign-key", key, "--sign-cert", chain)
    image, _ = session(tiny_bundles["int8"], use, *options).content
    check_signed(base64.b64decode(image.data), "image/png")


def test_a_missing_sdk_is_named(monkeypatch, capsys):
    from galip_edge.cli import main

    monkeypatch.setitem(sys.modules, "mcp.server.mcpserver", None)
    monkeypatch.setitem(sys.modules, "mcp", None)
    monkeypatch.delitem(sys.modules, "galip_edge.commands.mcp", raising=False)
    with pytest.raises(SystemExit):
        main(["mcp"])
    assert "galip-edge mcp needs mcp, which is not installed" in capsys.readouterr().err
