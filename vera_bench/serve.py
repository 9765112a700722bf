"""vera-bench serve: starts the server of examples/, which only a clone has."""

import importlib.util
import sys

from runs.command.errors import UserError
from runs.record.ledger import ROOT

EXAMPLE = ROOT / "examples" / "serve.py"


def main(words: list[str]) -> int:
    """Serves adapters until the server is stopped. words: not used, since the example
    reads them from sys.argv. Raises UserError in an installation without the example."""
    spec = importlib.util.spec_from_file_location("serve", EXAMPLE)
    if not EXAMPLE.is_file() or spec is None or spec.loader is None:
        raise UserError(
            f"{EXAMPLE} is not here: the server is an example of the repository. "
            "docs/serving.md shows how to serve with vera alone"
        )
    # the example imports modules that lie beside it
    sys.path.insert(0, str(EXAMPLE.parent))
    server = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(server)
    server.main()
    return 0
