"""`milseg predict`: photos in, masks into the files that annotation tools open."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from milseg.annotations import open_writer, writer_class
from milseg.annotations.label_studio import image_prefix
from milseg.annotations.writer import Ledger, Prediction, Writer, check_photos
from milseg.config import PredictOptions, ShardReading, overridden
from milseg.data.image import photo_pixels
from milseg.data.sources.known_tags import KnownTags, read_known_tags
from milseg.data.sources.photo_inputs import PhotoFile, fetched, find_photos
from milseg.distributed import collectives, preemption
from milseg.distributed.launch import launched
from milseg.errors import OutputError, UserError
from milseg.inference.changed_photos import digest_of, file_stamp, forget_changed
from milseg.inference.hub import local_folder
from milseg.inference.merging import FOLDER, Shard, merge, parse_shard, shard_folders
from milseg.inference.onnx_network import is_onnx_file
from milseg.inference.prediction_files import (
    LABELS,
    LEDGER,
    photos_of,
    remove_run,
    review_first,
    write_failed,
    write_table,
)
from milseg.inference.prediction_ranges import sampled_ranges
from milseg.inference.segmenter import Segmentation, Segmenter, load
from milseg.utils.files import claim_folder, ends_run, remove_halves, write_json
from milseg.utils.parallel import one_thread, prefetch_map, processors

log = logging.getLogger("milseg")

SHOWN = 10
# Photos that are decoded at once hold no more pixels together, or there is one alone.
PIXELS_AT_ONCE = 64_000_000


def parse_class_bias(text: str | None) -> dict[str, float]:
    """Class adjustments from `cat=1,dog=-0.5`.

    >>> parse_class_bias("cat=1,dog=-0.5")
    {'cat': 1.0, 'dog': -0.5}
    """
    amounts = {}
    for part in filter(None, (part.strip() for part in (text or "").split(","))):
        name, equals, amount = part.rpartition("=")
        try:
            amounts[name.strip()] = float(amount)
        except ValueError:
            equals = ""
        if not equals or not name.strip():
            raise UserError(f"--class-bias {part!r}: expected CLASS=NUMBER, as in cat=1,dog=-0.5")
    return amounts


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run made ready: what every process of it agrees on."""

    options: PredictOptions
    photos: Sequence[PhotoFile]
    formats: Sequence[str]
    segmenter: Segmenter
    given: KnownTags
    header: Mapping[str, Any]


def predict_run(options: PredictOptions, *, progress: bool = True) -> dict[str, int]:
    """Segment photos into `options.out`; returns counts: photos, done (now), earlier, failed.

    A photo that cannot be read is named and left out; the others go on. Finished photos are not done again with
    `resume`. With `shard`, or as one of several processes that torchrun started, a part of the photos goes into a
    folder of its own below `options.out` (see `milseg.inference.merging`); of several processes the first then merges
    them.

    Raises:
        UserError: no model, no photos, names that collide, a folder that is in use, or not one photo readable.
        Stopped: by SIGTERM or SIGUSR1, once the photo in hand was written; `resume` goes on.
    """
    if options.shard and launched():
        raise UserError("--shard under torchrun: the processes share the photos by themselves; leave it out")
    with preemption.heeding(), preemption.deferred(), collectives.process_group(options.device) as device:
        job = prepare_run(options, device)
        if collectives.size() > 1:
            return _together(job, progress=progress and collectives.is_main())
        if options.shard:
            shard = parse_shard(options.shard)
            out = shard.folder(options.out)
            mine = [photo for photo in job.photos if shard.holds(photo.below)]
            _claim_folder(out, options, mine)
            return predict_photos(job, mine, out, resume=options.resume, progress=progress)
        _claim_whole(job)
        return predict_photos(job, job.photos, options.out, resume=options.resume, progress=progress)


def prepare_run(options: PredictOptions, device: torch.device) -> Run:
    """Load the model, find the photos and check all that can be wrong before work starts; writes nothing."""
    if options.workers < 0:
        raise UserError(f"--workers {options.workers}: expected 0 (one for each processor) or more")
    if options.longest_side is not None and options.longest_side != 0 and options.longest_side < 16:
        raise UserError(
            f"--longest-side {options.longest_side}: expected 16 or more, or 0 for the photo's own size"
        )
    if options.shard:
        parse_shard(options.shard)
    photos = find_photos(options.inputs, ShardReading.of(options), leave_out=[options.out])
    class_bias = parse_class_bias(options.class_bias)
    formats = list(dict.fromkeys(("png", *options.format)))
    kinds = [writer_class(name) for name in formats]
    check_photos(((photo.name, photo.below) for photo in photos), kinds)
    folder = local_folder(options.model)
    # An exported file runs on the CPU, whatever auto finds.
    on_cpu = is_onnx_file(folder) and options.device == "auto"
    loaded = load(folder, device="cpu" if on_cpu else str(device))
    spec = loaded.spec
    if options.longest_side is not None:
        spec = replace(spec, longest_side=options.longest_side or None)
    inference = overridden(
        loaded.inference, random_walk=options.random_walk, refine=options.refine, scales=options.scales
    )
    sampled = sampled_ranges(options, spec, photos)
    if sampled:
        spec = replace(spec, value_ranges={**sampled, **spec.value_ranges})
    segmenter = Segmenter(
        loaded.model, spec, inference=inference, class_bias=class_bias, network=loaded.network
    )
    given = _known_tags(options, segmenter.classes, photos)
    header: dict[str, Any] = {
        "model": digest_of(folder if is_onnx_file(folder) else folder / "model.safetensors"),
        "tags": _tags_record(options),
        "class_bias": class_bias,
        "random_walk": options.random_walk,
        "refine": options.refine,
        "scales": list(options.scales) if options.scales else None,
    }
    if options.longest_side is not None:
        header["longest_side"] = options.longest_side
    if sampled:
        header["value_ranges"] = {kind: list(pair) for kind, pair in sampled.items()}
    return Run(
        options=options,
        photos=photos,
        formats=formats,
        segmenter=segmenter,
        given=given,
        header=header,
    )


def _together(job: Run, *, progress: bool) -> dict[str, int]:
    """This process's part of a run of several; the first one merges when all have done theirs."""
    options = job.options
    with collectives.errors_on_all_ranks():
        if collectives.is_main():
            _claim_whole(job)
    there = _done_in(options.out, job.formats)
    shard = Shard(collectives.rank() + 1, collectives.size())
    mine = [photo for photo in job.photos if photo.name not in there and shard.holds(photo.below)]
    out = shard.folder(options.out)
    with collectives.errors_on_all_ranks():
        out.mkdir(parents=True, exist_ok=True)
        counts = predict_photos(job, mine, out, resume=True, progress=progress, all_may_fail=True)
    counts = {name: sum(part[name] for part in collectives.gathered(counts)) for name in counts}
    with collectives.errors_on_all_ranks():
        if collectives.is_main():
            order = {photo.name: number for number, photo in enumerate(job.photos)}
            merge(shard_folders(options.out), options.out, order=order)
    if counts["failed"] and counts["failed"] == len(job.photos):
        raise collectives.SharedError(f"none of {len(job.photos)} photos could be read; failed.csv says why")
    counts["earlier"] += len(there)
    return {**counts, "photos": len(job.photos)}


def predict_photos(
    job: Run,
    photos: Sequence[PhotoFile],
    out: Path,
    *,
    resume: bool,
    progress: bool,
    all_may_fail: bool = False,
) -> dict[str, int]:
    """Segment `photos` into the folder `out`, which is this process's alone."""
    options, segmenter = job.options, job.segmenter
    write_json(out / LABELS, {"classes": list(segmenter.classes)})
    failed: dict[str, str] = {}
    notes: dict[str, list[str]] = {}
    done = 0
    with ExitStack() as stack:
        writers = [
            stack.enter_context(
                open_writer(name, out, segmenter.classes, resume=resume, **_writer_options(name, options))
            )
            for name in job.formats
        ]
        rows = Ledger(out / ".parts" / LEDGER, job.header, resume=resume)
        stack.enter_context(closing(rows))
        todo = [photo for photo in photos if not _finished(photo, writers, rows)]
        results = prefetch_map(
            partial(_segment, job),
            fetched(todo),
            workers=options.workers or processors(),
            cost=lambda photo: photo_pixels(photo.path),
            most=PIXELS_AT_ONCE,
            begin=one_thread,
        )
        stack.enter_context(closing(results))
        for photo, found in tqdm(
            results, total=len(todo), desc="predict", unit="photo", disable=not progress
        ):
            failure = found if isinstance(found, UserError) else _write(job, photo, found, writers, rows)
            if failure is not None:
                failed[photo.below] = str(failure)
            else:
                done += 1
                for note in found.segmentation.notes if isinstance(found, Found) else ():
                    notes.setdefault(note, []).append(photo.below)
            if preemption.asked() and done + len(failed) < len(todo):
                raise preemption.Stopped(
                    f"stopped; {done} photos more are in {out}, {len(todo) - done - len(failed)} are to do: the same "
                    "command with --resume goes on"
                )
    counts = {"photos": len(photos), "done": done, "earlier": len(photos) - len(todo), "failed": len(failed)}
    write_table(out)
    write_failed(out, failed)
    if failed and not done and not counts["earlier"] and not all_may_fail:
        raise UserError(
            f"none of {len(photos)} photos could be read; the first: {next(iter(failed.values()))}"
        )
    _tell_failed(failed)
    _tell_notes(notes, [note for writer in writers for note in writer.notes])
    return counts


@dataclass(frozen=True, kw_only=True)
class Found:
    """One photo's masks, and what its file was when they were made (see `file_stamp`)."""

    segmentation: Segmentation
    stamp: list[Any] | None


def _segment(job: Run, photo: PhotoFile) -> Found | UserError:
    """One photo's masks, or why there are none; runs beside others. Nothing that one photo raises ends the run."""
    try:
        stamp = file_stamp(photo.path)
        found = job.segmenter.segment(
            photo.path, tags=job.given.allowed.get(photo.name), max_pixels=job.options.max_pixels
        )
        return Found(segmentation=found, stamp=stamp)
    except UserError as error:
        return error
    except (MemoryError, torch.OutOfMemoryError):
        return UserError(f"{photo.path}: needs more memory than there is; give a smaller --longest-side")
    except Exception as error:
        return UserError(f"{photo.path}: cannot be segmented ({type(error).__name__}: {error}); leave it out")


def _write(
    job: Run, photo: PhotoFile, found: Found, writers: Sequence[Writer], rows: Ledger
) -> UserError | None:
    """Write one photo's files; what goes wrong with this photo alone, for it to be left out.

    Raises:
        OutputError: a full disk or a folder that cannot be written, which ends the run.
    """
    try:
        record = _prediction(photo, found.segmentation)
        for writer in writers:
            writer.add(record)
        if photo.name not in rows.names:
            row = _row(photo, found.segmentation, job.given.present.get(photo.name))
            rows.append(photo.name, photo.below, row, file=found.stamp)
        return None
    except Exception as error:
        if ends_run(error):
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"{photo.path}: its mask cannot be written ({error}); then resume") from error
        if isinstance(error, UserError):
            return error
        return UserError(f"{photo.path}: its mask cannot be written ({type(error).__name__}: {error})")


def _writer_options(name: str, options: PredictOptions) -> dict[str, Any]:
    if name == "labelstudio" and options.labelstudio_prefix is not None:
        return {"image_prefix": image_prefix(options.labelstudio_prefix)}
    return {"overlays": False} if name == "png" and options.no_overlays else {}


def _known_tags(options: PredictOptions, classes: Sequence[str], photos: Sequence[PhotoFile]) -> KnownTags:
    if options.tags is None:
        return KnownTags(allowed={})
    first = Path(options.inputs[0])
    known = read_known_tags(
        options.tags,
        classes,
        [photo.below for photo in photos],
        root=first if first.is_dir() else _folder_of(photos[0]),
        tags_are=options.tags_are,
        ignore_unknown=options.ignore_unknown_tags,
    )
    for note in known.notes:
        log.warning(note)
    free = len(photos) - len(known.allowed)
    if free:
        log.warning(
            f"{free} photos have no row in {options.tags}, or one that says nothing, and are predicted freely"
        )
    return known


def _folder_of(photo: PhotoFile) -> Path:
    """A folder for messages, which must be there."""
    return photo.path.parent if isinstance(photo.path, Path) else Path()


def _tags_record(options: PredictOptions) -> str | list[str] | None:
    """What a run that is resumed must agree on."""
    if options.tags is None:
        return None
    digest = digest_of(options.tags)
    return digest if options.tags_are == "complete" else [digest, options.tags_are]


def _claim_whole(job: Run) -> None:
    """Take the output folder; what shards of an earlier run left there is merged, or goes."""
    options = job.options
    _claim_folder(options.out, options, job.photos)
    if not options.resume:
        for folder in shard_folders(options.out):
            remove_run(folder, keep=_resolved(job.photos))
        return
    if left := [folder for folder in shard_folders(options.out) if (folder / ".parts" / LEDGER).is_file()]:
        merge(left, options.out)
        forget_changed(options.out, job.photos)
    if (options.out / ".parts" / LEDGER).is_file():
        # Stops here, and not after hours, where the earlier run had another model or other options.
        Ledger(options.out / ".parts" / LEDGER, job.header, resume=True).close()


def _done_in(out: Path, formats: Sequence[str]) -> set[str]:
    """The photos that are finished in a folder, in every format."""
    done = set(photos_of(out / ".parts" / LEDGER))
    for name in formats:
        done &= set(photos_of(out / ".parts" / f"{name}.jsonl"))
    return done


def _claim_folder(out: Path, options: PredictOptions, photos: Iterable[PhotoFile]) -> None:
    claim_folder(out, resume=options.resume, overwrite=options.overwrite)
    if options.overwrite and not options.resume:
        remove_run(out, keep=_resolved(photos))
    # A run that was killed may have left halves of files.
    remove_halves(out, but=FOLDER)
    if options.resume:
        forget_changed(out, photos)


def _resolved(photos: Iterable[PhotoFile]) -> Collection[Path]:
    return {photo.path.resolve() for photo in photos if isinstance(photo.path, Path)}


def _finished(photo: PhotoFile, writers: list[Writer], rows: Ledger) -> bool:
    return photo.name in rows.names and all(photo.name in writer.done for writer in writers)


def _prediction(photo: PhotoFile, found: Segmentation) -> Prediction:
    height, width = found.mask.shape
    return Prediction(
        name=photo.name,
        photo_path=photo.path,
        photo_file=photo.below,
        size=(height, width),
        mask=found.mask,
        tags=found.tags,
        confidence=found.confidence,
        scores=found.scores,
        stride=found.stride,
        offset=found.offset,
        input_size=found.input_size,
        photo=found.photo,
    )


def _row(photo: PhotoFile, found: Segmentation, present: Sequence[str] | None) -> dict[str, Any]:
    return {
        "review": review_first(found.areas, present),
        "photo": photo.below,
        "mask": f"masks/{photo.name}.png",
        "confidence": round(found.confidence, 6),
        "tags": ";".join(name for name, _ in found.tags),
        "tag_confidence": ";".join(f"{confidence:.4f}" for _, confidence in found.tags),
        "areas": ";".join(f"{name}={share:.4f}" for name, share in found.areas.items()),
        "tags_given": "yes" if found.tags_given else "no",
    }


def _tell_notes(notes: Mapping[str, Sequence[str]], written: Sequence[str]) -> None:
    """What of the photos' files is left out, and what was written otherwise than asked."""
    for note, names in sorted(notes.items()):
        log.warning(f"{len(names)} photos, such as {names[0]}: {note}")
    for note in written[:SHOWN]:
        log.warning(note)
    if len(written) > SHOWN:
        log.warning(f"... and {len(written) - SHOWN} more like these")


def _tell_failed(failed: Mapping[str, str]) -> None:
    for message in list(failed.values())[:SHOWN]:
        log.warning(f"left out: {message}")
    if len(failed) > SHOWN:
        log.warning(f"... and {len(failed) - SHOWN} more; failed.csv names them all")
