"""Makes `stylecrafter_jax/world/pictures.zip` of a larger pack of emoji drawings.

    python benchmarks/make_world_pictures.py SOURCE.zip stylecrafter_jax/world/pictures.zip

Both archives hold `<set>/<content with _>.webp` (96x96 RGBA) and a `manifest.json` with the source
package, version, licence and author of every set. The same source gives the same bytes.
"""

import argparse
import json
import zipfile
from pathlib import Path

from stylecrafter_jax.world.contents import CONTENTS, SETS, file_name

KEPT = ("package", "version", "licence", "author")
EPOCH = (2020, 1, 1, 0, 0, 0)


def main() -> None:
    """Copies the drawings that the world uses."""
    parser = argparse.ArgumentParser(description="make the picture pack of the demo world")
    parser.add_argument("source", type=Path, help="archive to take the drawings from")
    parser.add_argument("out", type=Path, help="archive to write")
    args = parser.parse_args()
    with zipfile.ZipFile(args.source) as source, zipfile.ZipFile(args.out, "w") as out:

        def write(name: str, content: bytes) -> None:
            out.writestr(zipfile.ZipInfo(name, EPOCH), content)

        full = json.loads(source.read("manifest.json"))
        chars = {row["word"]: row["char"] for row in full["contents"]}
        manifest = {
            "size": full["size"],
            "format": full["format"],
            "sets": {name: {key: full["sets"][name][key] for key in KEPT} for name in SETS},
            "contents": {content: chars[content] for content in CONTENTS},
        }
        text = json.dumps(manifest, ensure_ascii=False, indent=1) + "\n"
        write("manifest.json", text.encode("utf-8"))
        for drawing in SETS:
            for content in CONTENTS:
                name = file_name(content, drawing)
                write(name, source.read(name))
    print(f"{args.out}: {len(SETS) * len(CONTENTS)} drawings, {args.out.stat().st_size} bytes")


if __name__ == "__main__":
    main()
