"""The wheel holds the package, `py.typed` and the licence, and nothing else."""

import pathlib
import re
import sys
import zipfile

wheel = pathlib.Path(sys.argv[1])
names = zipfile.ZipFile(wheel).namelist()
assert "keras_mgda/py.typed" in names
assert any(name.endswith("/licenses/LICENSE") for name in names)
others = [
    name
    for name in names
    if not re.fullmatch(
        r"keras_mgda/(\w+/)*(\w+[.]py|py[.]typed)"
        r"|keras_mgda-[^/]+[.]dist-info/(licenses/LICENSE|METADATA|RECORD|WHEEL)",
        name,
    )
]
assert not others, f"not the package's: {others}"
print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size} bytes")
