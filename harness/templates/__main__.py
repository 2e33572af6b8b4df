"""Write the templates and the blueprint."""

from ..server import ROOT, Server
from . import make

if __name__ == "__main__":
    with Server() as server:
        for path, text in make(server.object_info()).items():
            (ROOT / path).parent.mkdir(exist_ok=True)
            (ROOT / path).write_text(text, encoding="utf-8")
            print(path)
