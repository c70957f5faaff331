"""Commands on the toy task."""

import pytest

from deploy.cli import main


def command(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["perception", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            main()
    assert done.value.code in (0, None)
