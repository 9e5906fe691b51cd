"""``paretune serve``."""

from pathlib import Path
from typing import Annotated

import typer

from paretune.cli.arguments import AnswerOverrides, Method, TrustRemoteCode
from paretune.cli.output import echo


def serve(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, such as runs/demo.")],
    overrides: AnswerOverrides = None,
    method: Method = None,
    host: Annotated[
        str, typer.Option(help="Where to listen; the default is this machine alone.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="By default the first free from 7860.")
    ] = None,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Open a local page with a slider for each objective and two answers side by side.

    Needs paretune[serve]. Ctrl-C ends it.
    """
    from paretune.extras import require

    require("gradio", "`paretune serve`")  # all else takes seconds to import
    from paretune.cli.progress import quiet_libraries
    from paretune.serving.choose import open_run
    from paretune.serving.guard import check_address

    check_address(host, port)
    choices = open_run(run, overrides or [], method)
    choices.recipe.model.check_place()
    quiet_libraries(choices.recipe.model.name)
    from paretune.serving.chat import ChatModel
    from paretune.serving.page import Page, build_page
    from paretune.serving.page import serve as serve_page

    app = build_page(Page(choices, ChatModel(choices.recipe)))
    address = serve_page(app, host, port)
    echo(f"Open {address} in a browser; ctrl-C ends it.")
    if host not in ("127.0.0.1", "localhost", "::1"):
        echo("Everyone who can reach this machine can use the page.", err=True)
    app.block_thread()
