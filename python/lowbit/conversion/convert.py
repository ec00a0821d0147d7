"""`convert` and `quantize_file`: convert a checkpoint or a GGUF file to a GGUF file in another format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from lowbit import gguf
from lowbit.base import arguments
from lowbit.base.dtypes import FLOATS
from lowbit.base.errors import InputError
from lowbit.base.operation import operation
from lowbit.base.paths import AnyPath, checked
from lowbit.base.progress import ProgressLike
from lowbit.base.quoting import quoted
from lowbit.base.threads import num_threads
from lowbit.conversion.names import checkpoint_name, destination, model_name
from lowbit.conversion.open import OpenedCheckpoint, open_checkpoint
from lowbit.conversion.plan import Finishing, Input, Plan, Report
from lowbit.conversion.provenance import Hashing, recipe_metadata, reserved_bytes, source_files, with_step
from lowbit.gguf.source import gguf_tensors
from lowbit.gguf.splits import whole_name
from lowbit.hf.lora import Adapters
from lowbit.quantization.assignment import Stored, file_order
from lowbit.quantization.imatrix import Imatrix, Sums, load_imatrix
from lowbit.quantization.options import ConvertOptions, QuantizeOptions, chosen_options, moved_last
from lowbit.quantization.recipes import Mix, find_mix
from lowbit.tensors.source import TensorSource

if TYPE_CHECKING:
    from lowbit.conversion.carried import KnownTokenizer
    from lowbit.conversion.verification import Verdict

Importances = AnyPath | Mapping[str, Any] | Imatrix | Sums


@operation()
def convert(
    path: AnyPath,
    target: AnyPath,
    format: str = "Q4_K_M",
    *,
    imatrix: Importances | None = None,
    lora: Adapters = (),
    lora_scale: float | Sequence[float] = 1.0,
    like: str | None = None,
    intermediate: str | None = None,
    verify: bool | None = None,
    provenance: bool = True,
    tensor_types: Iterable[tuple[str, str]] = (),
    tensor_type_file: AnyPath | None = None,
    pure: bool = False,
    leave_output_tensor: bool = False,
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    include_weights: Sequence[str] = (),
    exclude_weights: Sequence[str] = (),
    prune_layers: Sequence[int] = (),
    override_kv: Mapping[str, Any] | None = None,
    split_max_size: int | str = 0,
    split_max_tensors: int = 0,
    no_tensor_first_split: bool = False,
    strict: bool = False,
    options: ConvertOptions | None = None,
    dry_run: bool = False,
    threads: int | None = None,
    progress: ProgressLike = None,
) -> Report:
    """Converts a Hugging Face folder or hub id to a GGUF file.

    The tensors equal those of the reference tools. With `verify=False, provenance=False` the whole file is the
    reference's, byte for byte; the defaults add keys at the end of the metadata.

    path: a checkpoint folder, or a hub id ("org/name", "org/name@revision").
    target: the file to write. In an existing folder, or with a slash at the end, the file is called MODEL-FORMAT.gguf
        after the hub id or the checkpoint's folder; a missing folder is made. `Report.path` has the result.
    format: a mix ("Q4_K_M"), a format ("Q8_0"), or "BF16", "F16", "F32"; upper or lower case.
    imatrix: a file of llama-imatrix or lowbit imatrix, the result of `lowbit.imatrix.collect`, or a mapping from
        tensor names to float arrays (columns,).
    lora: PEFT adapters to merge into the weights: one folder or hub id, or a list.
    lora_scale: factor for the adapters: one number for all, or one for each.
    like: for a checkpoint of an unknown class, the known class ("LlamaForCausalLM") to read it as. The tensors must
        fit. A note lists keys of config.json that the class does not have.
    intermediate: format to which weights are rounded before they are quantized, as in the file between the
        reference's two tools: "BF16" (the default), "F16", or "F32" (exact).
    verify: True compares the complete file with its source as `lowbit.verify` does, before the file gets its name,
        and writes the result to keys lowbit.verify.*. False does not. None verifies unless the model is split or
        pruned, and also writes a file in which only the tokenizer differs.
    provenance: writes sources, hashes and options to keys lowbit.provenance.*, and the parts of the tokenizer that
        have no GGUF key to lowbit.tokenizer.*. (False still writes these for a pre-tokenizer without a GGUF name.)
    tensor_types ... strict: see `lowbit.ConvertOptions`.
    options: all of these options in one value. A single option beside it is an InputError.
    dry_run: writes nothing; the report describes the file that would be written.
    threads: number of threads; None: LOWBIT_THREADS, else one per processor.
    progress: see `lowbit.ProgressLike`. The notes of the report are also logged by the logger "lowbit".

    The file appears complete or not at all. Memory use is a few chunks of rows.

    Raises FileError; FormatError for a malformed checkpoint; UnsupportedError for an unknown architecture or
    tokenizer and for quantized checkpoints; InputError for a wrong format or option and for NaN or infinity in the
    weights; VerificationError, whose `verdict` lists the differences.

        report = lowbit.convert("HuggingFaceTB/SmolLM2-135M", "smol.gguf", "Q4_K_M")
        print(report.path, report.file_bytes, report.bits_per_weight, report.notes)
    """
    chosen = chosen_options(ConvertOptions, options, locals())
    mix = find_mix(format)
    if mix.is_copy:
        raise InputError("format: COPY works only for GGUF files; for a checkpoint, use BF16, F16 or F32")
    between = checked_intermediate(mix, intermediate)
    path, target = checked(path), checked(target)
    dry_run, provenance = arguments.flag("dry_run", dry_run), arguments.flag("provenance", provenance)
    verify = None if verify is None else arguments.flag("verify", verify)
    is_verified = _is_verified(verify, chosen)
    opened = open_checkpoint(
        path,
        lora=lora,
        lora_scale=lora_scale,
        like=like,
        record_tokenizer=provenance or is_verified,
        progress=progress,
    )
    importances, imatrix = _loaded(imatrix)
    sources = source_files(opened.origin, imatrix) if provenance else []
    # Hashing starts here, because work on the tokenizer uses only one thread.
    with Hashing([] if dry_run else sources) as hashing:
        plan, tokenizer = _plan(opened, mix, between, chosen, provenance)
        to = destination(target, f"{checkpoint_name(opened.origin)}-{mix.name}.gguf")
        if provenance or is_verified:
            given = _unusual(chosen) | ({"lora_scale": lora_scale} if opened.origin.adapters else {})
            given |= {"intermediate": between} if intermediate else {}
            given |= {} if like is None else {"like": like}
            plan.finishing = Finishing(
                gguf.RESERVED_BYTES + reserved_bytes(sources, given),
                (lambda: recipe_metadata(mix.name, given, opened.origin) | hashing.metadata()) if provenance else None,
                partial(_verdict, path, to.path, opened, tokenizer, chosen, verify is True, threads, progress)
                if is_verified
                else None,
            )
        return plan.run(to, importances, progress, num_threads(threads), dry_run)


def checked_intermediate(mix: Mix, format: str | None) -> str:
    """The name of the intermediate format; BF16 if none is given. Raises InputError."""
    found = "BF16" if format is None else arguments.text("intermediate", format).upper() or "BF16"
    if found not in FLOATS:
        raise InputError("intermediate:", expected=f"one of {', '.join(FLOATS)}", found=quoted(format))
    if format and mix.is_float:
        raise InputError(f"intermediate: {mix.name} is a float format, so there is no intermediate format")
    return found


def _plan(
    opened: OpenedCheckpoint, mix: Mix, intermediate: str, options: ConvertOptions, with_tokenizer: bool
) -> tuple[Plan, KnownTokenizer | None]:
    """The plan of a conversion, and the results of the file's tokenizer if it was compared.

    with_tokenizer: also writes the parts of the tokenizer that have no GGUF key.
    """
    # These import the tokenizers library, which takes longer than the rest of the package.
    from lowbit.conversion.carried import KnownTokenizer, carried_tokenizer, is_unnamed

    metadata = dict(opened.metadata)
    if mix.is_float:
        metadata["general.file_type"] = mix.file_type  # the reference converter writes it at this place
    else:
        metadata = _requantized(metadata, mix)
    notes = [*opened.notes, *mix_notes(opened, mix, intermediate)]
    tokenizer = None
    if with_tokenizer or is_unnamed(metadata):
        carried = carried_tokenizer(opened, metadata, notes)
        metadata |= carried.keys
        tokenizer = KnownTokenizer(metadata, carried.record) if carried.record else None
    inputs = checkpoint_inputs(opened.tensors, mix, intermediate)
    return Plan(mix, inputs, metadata, notes, options, intermediate=intermediate), tokenizer


def checkpoint_inputs(tensors: Sequence[TensorSource], mix: Mix, intermediate: str) -> list[Input]:
    """A checkpoint's tensors in the order in which a mix counts them."""
    sources = {tensor.name: tensor for tensor in tensors}
    return [
        Input(Stored(name, sources[name].shape, _before(sources[name], intermediate)), _same(sources[name]), name)
        for name in (sources if mix.is_float else file_order(sources))
    ]


def mix_notes(opened: OpenedCheckpoint, mix: Mix, intermediate: str) -> list[str]:
    """What a mix does to weights beside quantizing them."""
    notes = []
    if opened.exact_formats and mix.default not in opened.exact_formats:
        notes.append(
            f"{mix.name} rounds the layers' matrices; {', '.join(opened.exact_formats)} would keep them exactly"
        )
    if rounded := _rounded(opened.tensors, mix, intermediate):
        notes.append(
            f"{rounded} weights are rounded to {intermediate} before they are quantized, as between the reference's "
            f"two tools; intermediate {rounded} (--intermediate) prevents this"
        )
    return notes


def _is_verified(verify: bool | None, options: ConvertOptions) -> bool:
    """Whether a conversion verifies its file. Raises InputError if verification is requested but impossible."""
    if verify is None:
        return not options.prune_layers and not options.split_limits
    if verify and options.prune_layers:
        raise InputError("verify: a pruned model cannot be compared with its source")
    if verify and options.split_limits:
        raise InputError(
            "verify: a split model can only be verified after it is written; use lowbit.verify (lowbit verify)"
        )
    return verify


def _unusual(options: ConvertOptions) -> dict[str, Any]:
    """The options that differ from their defaults. tensor_types includes tensor_type_file."""
    usual = type(options)()
    values = {option.name: getattr(options, option.name) for option in fields(options)}
    del values["tensor_type_file"]
    return {name: value for name, value in values.items() if value and value != getattr(usual, name)}


def _verdict(
    src: str,
    dst: str,
    opened: OpenedCheckpoint,
    tokenizer: KnownTokenizer | None,
    options: ConvertOptions,
    is_strict: bool,
    threads: int | None,
    progress: ProgressLike,
    path: str,
) -> Verdict:
    """The verdict on a complete file at `path`, before it gets its name. Raises VerificationError if it fails."""
    from lowbit.conversion.verification import compare_with, verifying

    changed = list(options.override_kv or {})
    with verifying(progress) as advance:
        verdict = compare_with(path, dst, src, opened, advance, known=tokenizer, changed=changed, threads=threads)
    if not verdict.ok and (is_strict or verdict.word == "failed"):
        raise verdict.error()
    return verdict


@operation()
def quantize_file(
    path: AnyPath,
    target: AnyPath,
    format: str,
    *,
    imatrix: Importances | None = None,
    tensor_types: Iterable[tuple[str, str]] = (),
    tensor_type_file: AnyPath | None = None,
    pure: bool = False,
    leave_output_tensor: bool = False,
    output_tensor_type: str | None = None,
    token_embedding_type: str | None = None,
    include_weights: Sequence[str] = (),
    exclude_weights: Sequence[str] = (),
    prune_layers: Sequence[int] = (),
    override_kv: Mapping[str, Any] | None = None,
    split_max_size: int | str = 0,
    split_max_tensors: int = 0,
    no_tensor_first_split: bool = False,
    strict: bool = False,
    allow_requantize: bool = False,
    keep_split: bool = False,
    options: QuantizeOptions | None = None,
    dry_run: bool = False,
    threads: int | None = None,
    progress: ProgressLike = None,
) -> Report:
    """Quantizes a GGUF file of floats, as llama-quantize does.

    path: a GGUF file, or any file of a split model, which is read as a whole.
    format: as for `convert`, or "COPY", which copies all tensors.
    allow_requantize, keep_split: see `lowbit.QuantizeOptions`. Other parameters are those of `convert`.

    If `path` has keys lowbit.provenance.*, they are kept, and this step is added: format, options, and the hash of the
    importance matrix. `path` itself is not hashed: that would cost as much time as many formats, and it can be made
    again from the sources whose hashes it has. Without these keys the file equals llama-quantize's, byte for byte.

    Tensors that already have the wanted format are copied. Other quantized tensors raise InputError unless
    allow_requantize is set, because quantizing twice adds the losses of both formats.

    Returns a Report. Raises FileError, FormatError, UnsupportedError and InputError like `convert`.

        report = lowbit.quantize_file("model-bf16.gguf", "model-Q4_K_M.gguf", "Q4_K_M")
    """
    chosen = chosen_options(QuantizeOptions, options, locals())
    mix = find_mix(format)
    path, target = checked(path), checked(target)
    dry_run = arguments.flag("dry_run", dry_run)
    with gguf.open(path) as file:
        inputs = file_inputs(file, chosen.keep_split)
        metadata = {key: file.typed(key) for key in file.metadata if key not in gguf.SPLIT_KEYS}
        num_files = len(file.paths) if chosen.keep_split else None
    importances, imatrix = _loaded(imatrix)
    given = _unusual(chosen)
    if given or not mix.is_copy:
        metadata = with_step(metadata, path, mix.name, given, imatrix)
    metadata = _own_last(_requantized(metadata, mix))
    name = whole_name(path) if mix.is_copy else f"{model_name(path)}-{mix.name}"
    requantize = chosen.allow_requantize
    plan = Plan(mix, inputs, metadata, [], chosen, allow_requantize=requantize, num_files=num_files)
    return plan.run(destination(target, f"{name}.gguf"), importances, progress, num_threads(threads), dry_run)


def _loaded(imatrix: Importances | None) -> tuple[Imatrix | None, str | None]:
    """The importances, and the path of their file."""
    if imatrix is None:
        return None, None
    return load_imatrix(imatrix), None if isinstance(imatrix, (Mapping, Imatrix, Sums)) else checked(imatrix)


def _rounded(sources: Iterable[TensorSource], mix: Mix, intermediate: str) -> str | None:
    """The checkpoint's float format if the intermediate format cannot hold all of its values, else None."""
    types = {source.dtype for source in sources if len(source.shape) > 1}
    lost = [name for name in FLOATS if FLOATS[name] in types and name != intermediate]
    return lost[0] if lost and not mix.is_float and intermediate != "F32" else None


def _before(source: TensorSource, intermediate: str) -> str:
    """The format of a tensor in the reference's intermediate file."""
    return "F32" if source.dtype == np.float32 and len(source.shape) <= 1 else intermediate


def _same(source: TensorSource) -> Callable[[str], TensorSource]:
    return lambda format: source


def file_inputs(file: gguf.File, keep_split: bool = False) -> list[Input]:
    """A file's tensors in the order in which a mix counts them; with keep_split, in that of the file."""
    tensors = gguf_tensors(file)
    names = file_order(file.infos)
    if keep_split:
        names.sort(key=lambda name: (file.place(name).path, file.place(name).offset))
    return [Input(Stored(*file.infos[name]), tensors[name], name, file.place(name).path) for name in names]


def _own_last(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Moves lowbit's keys to the end, without the verdict on another file."""
    kept = {key: value for key, value in metadata.items() if not key.startswith("lowbit.verify.")}
    return moved_last(kept, {key: value for key, value in kept.items() if key.startswith("lowbit.")})


def _requantized(metadata: dict[str, Any], mix: Mix) -> dict[str, Any]:
    """Metadata as llama-quantize writes it, with these two keys last."""
    last = {"general.quantization_version": np.uint32(2)}
    file_type = metadata.get("general.file_type") if mix.is_copy else mix.file_type
    if file_type is not None:
        last["general.file_type"] = np.uint32(file_type)
    return moved_last(metadata, last)
