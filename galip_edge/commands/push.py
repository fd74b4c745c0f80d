"""`galip-edge push`: upload a bundle to a hub."""

from __future__ import annotations

from pathlib import Path

import click

from galip_edge.commands.console import console, notice
from galip_edge.commands.options import bundle_path
from galip_edge.hub import HubModel, push
from galip_edge.model_card import SAMPLES, model_card, sample_sheet
from runtime.bundle import MANIFEST, Bundle
from runtime.pipeline import Pipeline


@click.command("push")
@click.argument("bundle", type=bundle_path)
@click.argument("repository", metavar="[hf:]OWNER/NAME")
@click.option(
    "--license",
    "licence",
    metavar="ID",
    help="Licence of the weights, as the hub's identifier, such as apache-2.0 or cc-by-nc-sa-4.0.",
)
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    help="Prompt of sample images; may be repeated. Default: the bundle's golden prompts.",
)
@click.option("--private", is_flag=True, help="Create the repository as private.")
@click.option(
    "--message",
    default="Upload with galip-edge push",
    show_default=True,
    help="Commit message.",
)
@click.option("--force", is_flag=True, help="Replace an existing model card.")
@click.option("--dry-run", is_flag=True, help="Print the card and the list of files, then exit.")
def command(
    bundle: Path,
    repository: str,
    licence: str | None,
    prompts: tuple[str, ...],
    private: bool,
    message: str,
    force: bool,
    dry_run: bool,
) -> None:
    """Verify BUNDLE and upload it with a model card: licence, fidelity and sample images.

    The token is that of huggingface_hub (`hf auth login`, or HF_TOKEN). Prints the commit's URL.

    \b
    Example:
      galip-edge push galip-own owner/name --license apache-2.0 --dry-run
    """
    if "@" in repository:
        raise click.UsageError(f"{repository} names a revision: push goes to main, omit it")
    model = HubModel.parse(repository)
    opened = Bundle.open(bundle)
    with console().status("generating samples"):
        prompts, sheet = sample_sheet(Pipeline.from_bundle(bundle), prompts)
    card = model_card(opened.manifest, str(model), licence, prompts)
    if licence is None:
        notice("Warning: the card states no licence: pass --license")
    if dry_run:
        click.echo(card)
        click.echo(f"files: {', '.join((MANIFEST, *opened.manifest.files, 'README.md', SAMPLES))}")
        return
    extra = [("README.md", card.encode()), (SAMPLES, sheet)]
    with console().status(f"uploading to {model}"):
        url, kept = push(opened, model.repository, extra, private, message, force)
    if kept:
        notice("the repository's README.md was kept: pass --force to replace it")
    click.echo(url)
