"""`galip-edge mcp`: a tool for assistants that speak the Model Context Protocol."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Annotated, Any

import click
from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

from galip_edge.commands.loading import load_pipeline
from galip_edge.commands.options import (
    model_option,
    pipeline_options,
    signing_options,
)
from runtime.credentials import Signer
from runtime.errors import PromptError
from runtime.images import ImageMetadata, png_file, resized
from runtime.noise import MAX_SEED
from runtime.pipeline import Pipeline, PipelineOptions
from runtime.prompts import checked_prompt
from runtime.server.schema import MAX_SIDE, random_seed
from runtime.version import __version__


@click.command("mcp")
@model_option
@pipeline_options
@signing_options
def command(model: Path | None, options: PipelineOptions, signer: Signer | None) -> None:
    """Serve a tool, generate_image, over the Model Context Protocol (standard input and output).

    Assistants start this command themselves; see docs/serving.md for their settings.

    \b
    Example:
      galip-edge mcp --model galip-coco
    """
    pipeline = load_pipeline(model, options)
    pipeline.generate("a bird on a branch")  # a faulty bundle ends the command here
    server_of(pipeline, signer).run("stdio")


def server_of(pipeline: Pipeline, signer: Signer | None = None) -> MCPServer[Any]:
    """A server with the tool `generate_image`."""
    manifest = pipeline.manifest
    server: MCPServer[Any] = MCPServer("galip-edge", version=__version__, log_level="WARNING")
    one_at_a_time = threading.Lock()

    @server.tool(
        title="Generate an image",
        description=(
            f"Generate an image from a prompt with the model {manifest.name}, in less than a "
            f"second, on this machine. Its own size is {manifest.image_size}x{manifest.image_size} "
            "pixels. A given prompt, seed and psi produce the same image; the seed is returned."
        ),
        structured_output=False,
    )
    def generate_image(
        prompt: Annotated[str, Field(description="Description of the image.")],
        seed: Annotated[
            int, Field(ge=-1, le=MAX_SEED, description="Seed of the noise; -1 for a random one.")
        ] = -1,
        psi: Annotated[
            float,
            Field(ge=0, le=1, description="Truncation: below 1, more typical and less diverse."),
        ] = 1.0,
        size: Annotated[
            int,
            Field(ge=0, le=MAX_SIDE, description="Width and height; 0 for the model's own."),
        ] = 0,
    ) -> list[Any]:
        """A PNG and its recipe."""
        try:
            checked_prompt(prompt)
        except PromptError as error:
            raise ToolError(str(error)) from error
        seed = random_seed() if seed == -1 else seed
        with one_at_a_time:
            image = pipeline.generate(prompt, seed=seed, psi=psi)[0]
        metadata = ImageMetadata(prompt, seed, 0, manifest.name, manifest.model_hash, psi=psi)
        content = png_file(resized(image, size, size) if size else image, metadata, signer)
        found: dict[str, Any] = metadata.recorded()
        if cut := pipeline.tokenizer.cut(prompt):
            found["warning"] = f"the prompt has {cut}"
        return [Image(data=content, format="png"), json.dumps(found)]

    return server
