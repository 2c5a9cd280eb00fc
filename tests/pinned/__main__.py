"""Store what must not change; name what to store, or all is stored."""

import json
import os
import sys

from tests.pinned import PLACE, SOURCES

if __name__ == "__main__":
    for name in sys.argv[1:] or SOURCES:
        if name != "real" or os.environ.get("RESEARCH_RUNS"):
            text = json.dumps(SOURCES[name](), separators=(",", ":")).replace('],"', '],\n"').replace('},"', '},\n"')
            (PLACE / f"{name}.json").write_text(text + "\n", encoding="utf-8")
