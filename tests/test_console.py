import sys

import pytest

from resnet_pl.utils import program, progress


def test_silent_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("working", 2) as advance:
        advance(2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(("unit", "shown"), [("items", "2/2"), ("bytes", "2/2 bytes")])
def test_bar_on_a_terminal(
    unit: str, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress("some [odd] name", 2, unit) as advance:  # type: ignore[arg-type]
        advance(2)
    out, err = capsys.readouterr()
    assert out == ""
    assert "some [odd] name" in err
    assert shown in err


@pytest.mark.parametrize(
    ("started", "name"),
    [
        ("/usr/bin/resnet-pl", "resnet-pl"),
        ("cli.py", "python cli.py"),
        ("/there/resnet_pl/__main__.py", "python -m resnet_pl"),
        ("/there/pytest/__main__.py", "python cli.py"),
    ],
)
def test_the_program_is_called_as_it_was_started(started: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [started, "fit"])
    assert program() == name
