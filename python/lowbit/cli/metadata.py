"""lowbit metadata: shows and changes the metadata of GGUF files."""

from __future__ import annotations

import json as json_format
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lowbit.base.files import read_text
from lowbit.base.quoting import shown
from lowbit.cli.app import app, examples
from lowbit.cli.console import print_json, size, value_text
from lowbit.cli.options import Json, existing_file, gguf_argument, wrong_usage
from lowbit.cli.tables import print_table

if TYPE_CHECKING:
    from lowbit.gguf import Edit

_USAGE = {"get": "KEY", "set": "KEY VALUE", "unset": "KEY", "recover": ""}


@app.command(
    context_settings={"ignore_unknown_options": True},  # -1 must not be parsed as an option
    epilog=examples(
        "lowbit metadata model.gguf",
        "lowbit metadata model.gguf get tokenizer.chat_template",
        "lowbit metadata model.gguf set general.name 'My model'",
        "lowbit metadata model.gguf set tokenizer.chat_template --from-file template.jinja",
        "lowbit metadata model.gguf set tokenizer.ggml.eos_token_id '<|im_end|>'",
        "lowbit metadata model.gguf set tokenizer.ggml.eos_token_id 2 --dry-run",
        "lowbit metadata model.gguf set my.list '[1, 2, 3]' --type u8[]",
        "lowbit metadata model.gguf unset general.url",
    ),
)
def metadata(
    path: Annotated[Path, gguf_argument("FILE", "GGUF file.")],
    action: Annotated[
        str | None,
        typer.Argument(metavar="[get|set|unset|recover]", help="By default, all keys are listed.", show_default=False),
    ] = None,
    operands: Annotated[list[str] | None, typer.Argument(metavar="[KEY [VALUE]]", show_default=False)] = None,
    type: Annotated[
        str | None,
        typer.Option(
            "--type",
            help="Type of VALUE: u8 to u64, i8 to i64, f32, f64, bool or str; with [] an array. [default: the key's]",
        ),
    ] = None,
    token: Annotated[
        bool, typer.Option("--token", help="VALUE is the text of a token, even if it looks like a number.")
    ] = False,
    from_file: Annotated[
        Path | None, typer.Option("--from-file", parser=existing_file, help="Read VALUE from this text file.")
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Fail if the change does not fit, instead of copying the file.")
    ] = False,
    reserve: Annotated[
        int | None, typer.Option("--reserve", min=0, help="Bytes of padding in a copied file. [default: 16 KiB]")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what would change, and write nothing.")] = False,
    json: Json = False,
) -> None:
    """Shows, sets and removes metadata.

    An edit that fits into the file's padding (lowbit.padding) is made in place; otherwise the file is copied. A key
    keeps its type. A new key is a bool, a number or a list if VALUE is one in JSON, else a string. For the id of a
    special token (tokenizer.ggml.eos_token_id), VALUE is the id or the token's text. recover undoes an interrupted
    edit; the next edit also does so.
    """
    from lowbit import gguf
    from lowbit.base.operation import operation, replacing

    operands = operands or []
    if action == "set" and from_file is not None:
        with operation():
            replacing([str(path)])
            operands = [*operands, read_text(from_file, pipes=True)]
    if action is None:
        _list(path, json)
        return
    if action not in _USAGE or len(operands) != len(_USAGE[action].split()):
        expected = (
            f"{action} {_USAGE[action]}" if action in _USAGE else f"{', '.join(_USAGE)}, or nothing to list all keys"
        )
        raise typer.BadParameter(f"expected {expected}", param_hint="ACTION")
    if operands and operands[0].startswith("-"):
        raise typer.BadParameter(f"there is no option {operands[0]}", param_hint="KEY")
    if action == "get":
        _get(path, operands[0], json)
        return
    recovered = not dry_run and gguf.edit(path).recovered
    if action == "recover":
        if json:
            print_json({"path": str(path), "recovered": recovered})
        else:
            print(f"{path}: {'an interrupted edit was undone' if recovered else 'no edit was interrupted'}")
        return
    changes = {operands[0]: _parsed(path, operands[0], operands[1], type, token)} if action == "set" else {}
    gone = operands if action == "unset" else []
    padding = gguf.RESERVED_BYTES if reserve is None else reserve
    report = gguf.edit(
        path,
        changes,
        gone,
        in_place=in_place,
        reserve=padding,
        dry_run=dry_run,
        progress=True,
    )
    _print_edit(report, dry_run, json)


def _parsed(path: Path, key: str, text: str, type: str | None, token: bool) -> Any:
    from lowbit import gguf
    from lowbit.gguf.editing import is_token_key
    from lowbit.gguf.values import parsed

    if token and (not is_token_key(key) or type is not None):
        raise typer.BadParameter("allowed only for tokenizer.ggml.*_token_id, without --type", param_hint="--token")
    if token or (is_token_key(key) and type is None and re.fullmatch(r"\s*-?[0-9]+\s*", text) is None):
        return text

    with gguf.open(path) as file:
        before = file.typed(key) if key in file.metadata else None
    with wrong_usage("VALUE"):
        return parsed(key, text, type, before)


def _list(path: Path, json: bool) -> None:
    from lowbit import gguf
    from lowbit.evaluate.inspect import summary
    from lowbit.gguf.values import type_name

    with gguf.open(path) as file:
        rows = [(key, type_name(file.typed(key)), summary(value)) for key, value in file.metadata.items()]
    if json:
        print_json({key: {"type": type, "value": value} for key, type, value in rows})
    else:
        print_table(["key", "type", "value"], [[key, type, value_text(value)] for key, type, value in rows])


def _get(path: Path, key: str, json: bool) -> None:
    from lowbit import InputError, gguf
    from lowbit.base.suggest import did_you_mean
    from lowbit.gguf.values import type_name

    with gguf.open(path) as file:
        if key not in file.metadata:
            raise InputError(f"there is no key {key}{did_you_mean(key, file.metadata)}", path=path, key=key)
        value, type = file.typed(key), type_name(file.typed(key))
    plain = value if isinstance(value, (str, list)) else value.tolist()
    if json:
        print_json({"key": key, "type": type, "value": plain})
    else:
        print(plain if isinstance(plain, str) else json_format.dumps(plain, ensure_ascii=False))


def _print_edit(report: Edit, dry_run: bool, json: bool) -> None:
    from lowbit.evaluate.inspect import summary

    if json:
        changes = [
            {"key": change.key, "before": summary(change.before), "after": summary(change.after)}
            for change in report.changes
        ]
        print_json(vars(report) | {"changes": changes, "written": not dry_run})
        return
    for change in report.changes:
        before, after = (
            value_text(summary(value), 80) if value is not None else "nothing"
            for value in (change.before, change.after)
        )
        print(f"{shown(change.key)}: {before} -> {after}")
    how = "in place" if report.in_place else "in a copy"
    would = "would be " if dry_run else ""
    print(f"{report.path}: {size(report.bytes_written)} {would}written {how}, {report.padding} bytes of padding left")
